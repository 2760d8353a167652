//! A server's side of RFC 6455 framing, written apart from the engine's: whole frames out, masked
//! frames in.

pub(super) const TEXT: u8 = 1;
pub(super) const CLOSE: u8 = 8;
pub(super) const PING: u8 = 9;
pub(super) const PONG: u8 = 10;

pub(super) fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x80 | opcode];
    match u8::try_from(payload.len()) {
        Ok(length @ 0..=125) => bytes.push(length),
        _ => {
            bytes.push(126);
            bytes.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
        }
    }
    bytes.extend_from_slice(payload);
    bytes
}

/// A text in two frames, with a ping between them.
pub(super) fn fragments(payload: &[u8], at: usize) -> Vec<u8> {
    let (front, rest) = payload.split_at(at.min(payload.len()));
    let mut first = frame(TEXT, front);
    first[0] &= 0x7F;
    [first, frame(PING, b"between"), frame(0, rest)].concat()
}

/// Takes the first whole frame off what a client sent: its opcode and its payload. A frame that is
/// not masked, or not whole as a message, is a fault of the client.
pub(super) fn take(bytes: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    assert!(first & 0xF0 == 0x80 && second & 0x80 != 0, "a client's frame is whole and masked");
    let (length, header) = match second & 0x7F {
        126 => {
            let length = bytes.get(2..4)?;
            (usize::from(u16::from_be_bytes([length[0], length[1]])), 4)
        }
        length => (usize::from(length), 2),
    };
    assert!(second & 0x7F != 127, "no client of this exchange says so much");
    let mask: [u8; 4] = bytes.get(header..header + 4)?.try_into().unwrap();
    let payload = bytes.get(header + 4..header + 4 + length)?;
    let plain = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
    bytes.drain(..header + 4 + length);
    Some((first & 0x0F, plain))
}
