//! RFC 6455 frames, the server's side: reads masked client frames from bytes in any chunking,
//! writes unmasked frames. Bounded by the message size cap; it never touches a socket and never
//! panics on what a client sends.

/// Largest message accepted from a client, in bytes.
pub(crate) const MAX_MESSAGE: usize = 4 << 20;
/// Largest payload of a control frame.
const MAX_CONTROL: usize = 125;

/// One complete client message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Text(Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    /// The close code, 1005 when the frame was empty.
    Close(u16),
}

/// A broken rule, with the close code that answers it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Violation(pub(crate) u16);

/// Reassembles client messages.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    bytes: Vec<u8>,
    head: usize,
    partial: Option<Vec<u8>>,
}

struct Header {
    last: bool,
    opcode: u8,
    mask: [u8; 4],
    start: usize,
    end: usize,
}

impl Reader {
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        if self.head > 0 {
            self.bytes.drain(..self.head);
            self.head = 0;
        }
        if self.bytes.is_empty() && self.bytes.capacity() > 1 << 17 {
            self.bytes = Vec::new();
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next complete message, `None` when more bytes are needed.
    pub(crate) fn next(&mut self) -> Result<Option<Message>, Violation> {
        while let Some(header) = self.header()? {
            let Some(masked) = self.bytes.get(header.start..header.end) else {
                return Ok(None);
            };
            let mut payload = masked.to_vec();
            unmask(&mut payload, header.mask);
            self.head = header.end;
            if let Some(message) = self.accept(&header, payload)? {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }

    fn header(&self) -> Result<Option<Header>, Violation> {
        let bytes = self.bytes.get(self.head..).unwrap_or_default();
        let [first, second, rest @ ..] = bytes else {
            return Ok(None);
        };
        let (opcode, last) = (first & 0x0f, first & 0x80 != 0);
        let masked = second & 0x80 != 0;
        let known = matches!(opcode, 0..=2 | 8..=10);
        if first & 0x70 != 0 || !known || !masked {
            return Err(Violation(1002));
        }
        let control = opcode >= 8;
        let (length, used) = match (second & 0x7f, rest) {
            (126, [a, b, ..]) => (u64::from(u16::from_be_bytes([*a, *b])), 2),
            (127, [a, b, c, d, e, f, g, h, ..]) => {
                (u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]), 8)
            }
            (126 | 127, _) if control => return Err(Violation(1002)),
            (126 | 127, _) => return Ok(None),
            (short, _) => (u64::from(short), 0),
        };
        if control && (length > MAX_CONTROL as u64 || !last) {
            return Err(Violation(1002));
        }
        if length >> 63 != 0 {
            return Err(Violation(1002));
        }
        let held = if control { 0 } else { self.partial.as_ref().map_or(0, Vec::len) };
        if length > (MAX_MESSAGE - held) as u64 {
            return Err(Violation(1009));
        }
        let Some([a, b, c, d]) = rest.get(used..used + 4) else {
            return Ok(None);
        };
        let start = self.head + 2 + used + 4;
        let end = start + length as usize;
        Ok(Some(Header { last, opcode, mask: [*a, *b, *c, *d], start, end }))
    }

    fn accept(&mut self, header: &Header, payload: Vec<u8>) -> Result<Option<Message>, Violation> {
        match header.opcode {
            8 => close(&payload).map(Some),
            9 => Ok(Some(Message::Ping(payload))),
            10 => Ok(Some(Message::Pong)),
            2 => Err(Violation(1003)),
            1 if self.partial.is_some() => Err(Violation(1002)),
            1 if header.last => text(payload).map(Some),
            1 => {
                self.partial = Some(payload);
                Ok(None)
            }
            _ => {
                let Some(mut whole) = self.partial.take() else {
                    return Err(Violation(1002));
                };
                whole.extend_from_slice(&payload);
                if header.last {
                    text(whole).map(Some)
                } else {
                    self.partial = Some(whole);
                    Ok(None)
                }
            }
        }
    }
}

fn text(payload: Vec<u8>) -> Result<Message, Violation> {
    if std::str::from_utf8(&payload).is_ok() {
        Ok(Message::Text(payload))
    } else {
        Err(Violation(1007))
    }
}

fn close(payload: &[u8]) -> Result<Message, Violation> {
    match payload {
        [] => Ok(Message::Close(1005)),
        [_] => Err(Violation(1002)),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            let allowed = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
            if !allowed {
                Err(Violation(1002))
            } else if std::str::from_utf8(reason).is_err() {
                Err(Violation(1007))
            } else {
                Ok(Message::Close(code))
            }
        }
    }
}

fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    for (at, byte) in payload.iter_mut().enumerate() {
        *byte ^= mask[at & 3];
    }
}

/// Opcodes the server writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opcode {
    Text = 1,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

/// Appends one unmasked frame whose payload is given in two pieces.
pub(crate) fn write(opcode: Opcode, head: &[u8], tail: &[u8], out: &mut Vec<u8>) {
    header(0x80 | opcode as u8, head.len() + tail.len(), out);
    out.extend_from_slice(head);
    out.extend_from_slice(tail);
}

/// Appends one unmasked fragment of a text message.
pub(crate) fn write_fragment(begins: bool, ends: bool, payload: &[u8], out: &mut Vec<u8>) {
    let opcode = if begins { Opcode::Text as u8 } else { 0 };
    header(if ends { 0x80 | opcode } else { opcode }, payload.len(), out);
    out.extend_from_slice(payload);
}

fn header(first: u8, length: usize, out: &mut Vec<u8>) {
    if length <= 125 {
        out.extend_from_slice(&[first, length as u8]);
    } else if let Ok(short) = u16::try_from(length) {
        let [high, low] = short.to_be_bytes();
        out.extend_from_slice(&[first, 126, high, low]);
    } else {
        out.extend_from_slice(&[first, 127]);
        out.extend_from_slice(&(length as u64).to_be_bytes());
    }
}

/// The length of the frame at the front, header included; all there is if it is cut off.
pub(crate) fn whole_length(bytes: &[u8]) -> usize {
    let length = match bytes {
        [_, 126, high, low, ..] => 4 + usize::from(u16::from_be_bytes([*high, *low])),
        [_, 127, rest @ ..] => match rest.first_chunk::<8>() {
            Some(long) => 10 + u64::from_be_bytes(*long) as usize,
            None => bytes.len(),
        },
        [_, short, ..] => 2 + usize::from(short & 0x7f),
        _ => bytes.len(),
    };
    length.min(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;

    fn client(first: u8, payload: &[u8], rng: &mut Rng) -> Vec<u8> {
        let mut out = vec![first];
        match payload.len() {
            short @ 0..=125 => out.push(0x80 | short as u8),
            medium @ 126..=65_535 => {
                out.push(0x80 | 126);
                out.extend_from_slice(&(medium as u16).to_be_bytes());
            }
            long => {
                out.push(0x80 | 127);
                out.extend_from_slice(&(long as u64).to_be_bytes());
            }
        }
        let mask = rng.u32(..).to_be_bytes();
        out.extend_from_slice(&mask);
        out.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at & 3]));
        out
    }

    fn drain(reader: &mut Reader, got: &mut Vec<Message>) -> Result<(), Violation> {
        while let Some(message) = reader.next()? {
            got.push(message);
        }
        Ok(())
    }

    #[test]
    fn any_chunking_and_fragmentation_gives_the_same_messages() {
        for seed in 0..200 {
            let mut rng = Rng::with_seed(seed);
            let (mut wire, mut want) = (Vec::new(), Vec::new());
            for _ in 0..rng.usize(1..12) {
                let length = [0, 1, 125, 126, 300, 65_535, 65_536][rng.usize(0..7)];
                let payload: Vec<u8> = (0..length).map(|_| rng.u8(b' '..b'~')).collect();
                match rng.u8(0..4) {
                    0 => {
                        let ping = &payload[..payload.len().min(125)];
                        wire.extend(client(0x89, ping, &mut rng));
                        want.push(Message::Ping(ping.to_vec()));
                    }
                    1 => {
                        let cut = rng.usize(0..=payload.len());
                        wire.extend(client(0x01, &payload[..cut], &mut rng));
                        wire.extend(client(0x8a, b"between", &mut rng));
                        want.push(Message::Pong);
                        wire.extend(client(0x00, &[], &mut rng));
                        wire.extend(client(0x80, &payload[cut..], &mut rng));
                        want.push(Message::Text(payload));
                    }
                    _ => {
                        wire.extend(client(0x81, &payload, &mut rng));
                        want.push(Message::Text(payload));
                    }
                }
            }
            let (mut reader, mut got, mut at) = (Reader::default(), Vec::new(), 0);
            while at < wire.len() {
                let most = [1, 7, 4_096][rng.usize(0..3)];
                let step = rng.usize(1..=most).min(wire.len() - at);
                reader.feed(&wire[at..at + step]);
                drain(&mut reader, &mut got).unwrap();
                at += step;
            }
            assert_eq!(got, want, "seed {seed}");
        }
    }

    #[test]
    fn broken_rules_are_named() {
        let mut rng = Rng::with_seed(1);
        let huge = {
            let mut bytes = vec![0x81, 0xff];
            bytes.extend_from_slice(&(MAX_MESSAGE as u64 + 1).to_be_bytes());
            bytes.extend_from_slice(&[0; 4]);
            bytes
        };
        let cases: [(Vec<u8>, u16); 13] = [
            (vec![0x81, 0x01, b'x'], 1002),
            (client(0xc1, b"x", &mut rng), 1002),
            (client(0x83, b"x", &mut rng), 1002),
            (client(0x09, b"x", &mut rng), 1002),
            (client(0x89, &[b'x'; 126], &mut rng), 1002),
            (client(0x80, b"x", &mut rng), 1002),
            (client(0x82, b"x", &mut rng), 1003),
            (client(0x81, &[0xff], &mut rng), 1007),
            (client(0x88, &[3], &mut rng), 1002),
            (client(0x88, &[0x03, 0xed], &mut rng), 1002),
            (client(0x88, &[0x03, 0xe8, 0xff], &mut rng), 1007),
            (huge, 1009),
            (vec![0x81, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 1002),
        ];
        for (bytes, code) in cases {
            let mut reader = Reader::default();
            reader.feed(&bytes);
            assert_eq!(reader.next(), Err(Violation(code)), "{bytes:?}");
        }
    }

    #[test]
    fn fragments_count_towards_the_cap() {
        let mut rng = Rng::with_seed(1);
        let mut reader = Reader::default();
        let piece = vec![b'x'; MAX_MESSAGE / 2 + 1];
        reader.feed(&client(0x01, &piece, &mut rng));
        assert_eq!(reader.next(), Ok(None));
        reader.feed(&client(0x80, &piece, &mut rng));
        assert_eq!(reader.next(), Err(Violation(1009)));
    }

    #[test]
    fn random_bytes_never_panic() {
        for seed in 0..2_000 {
            let mut rng = Rng::with_seed(seed);
            let bytes: Vec<u8> = (0..rng.usize(0..200)).map(|_| rng.u8(..)).collect();
            let mut reader = Reader::default();
            for chunk in bytes.chunks(7) {
                reader.feed(chunk);
                let mut got = Vec::new();
                if drain(&mut reader, &mut got).is_err() {
                    break;
                }
            }
        }
    }

    #[test]
    fn written_lengths_use_the_shortest_form() {
        for (length, header) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            let mut out = Vec::new();
            write(
                Opcode::Text,
                &vec![b'a'; length / 2],
                &vec![b'a'; length - length / 2],
                &mut out,
            );
            assert_eq!(out.len(), header + length);
        }
    }
}
