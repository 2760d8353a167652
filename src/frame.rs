//! Cuts WebSocket frames out of received plaintext. A whole, final, unmasked text frame outside a
//! fragmented message is taken where it lies; every other frame runs through tungstenite, which
//! keeps the protocol's rules: fragments, control frames, limits, replies to ping and close. Both
//! ways say the same about the same bytes: the tests hold them against each other.
//!
//! For the context it cuts one whole frame by tungstenite's own header parser, checks the size on
//! the header alone, and gives the context exactly that frame, so that its buffer is empty between
//! calls. It owns no socket: what is to be sent is appended to `outgoing`.

use std::io::{self, Cursor, Read, Write};
use std::ops::Range;

use bytes::Bytes;
use tungstenite::error::{CapacityError, ProtocolError};
use tungstenite::protocol::frame::coding::{CloseCode, OpCode};
use tungstenite::protocol::frame::{CloseFrame, FrameHeader};
use tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
use tungstenite::{Error, Message, Utf8Bytes};

use crate::error::Cause;

/// How much of a peer's reason text is kept.
const REASON_BYTES_MAX: usize = 120;
/// The context's read buffer: small, since it is filled anew for each frame.
const READ_BUFFER_BYTES: usize = 1_024;

/// A final text frame: no reserved bit, no other opcode.
const WHOLE_TEXT: u8 = 0x81;

/// One thing the peer said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Incoming {
    /// A text message, in place: this range of the bytes given.
    Text(Range<usize>),
    /// A text message put together from fragments.
    Assembled(Utf8Bytes),
    Binary,
    Ping,
    Pong,
    Close {
        code: Option<u16>,
        reason: String,
    },
}

/// The WebSocket state of one connection.
pub(crate) struct Framer {
    context: WebSocketContext,
    message_bytes_max: usize,
    /// Whether a text frame may be taken in place: not while a fragmented message is open, and
    /// not after the peer's Close.
    in_place: bool,
    /// Whole frames seen.
    frames: u64,
    /// The frame that began the fragmented message under way, if there is one.
    fragmented: Option<u64>,
}

impl Framer {
    pub(crate) fn new(message_bytes_max: usize) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(0)
            .max_message_size(Some(message_bytes_max))
            .max_frame_size(Some(message_bytes_max));
        let context = WebSocketContext::new(Role::Client, Some(config));
        Self { context, message_bytes_max, in_place: true, frames: 0, fragmented: None }
    }

    /// Takes the next message of `bytes` from `at` on, and moves `at` behind it. `Ok(None)` when
    /// only part of a frame is left. Replies go to `outgoing`.
    #[inline]
    pub(crate) fn next(
        &mut self,
        bytes: &[u8],
        at: &mut usize,
        outgoing: &mut Vec<u8>,
    ) -> Result<Option<Incoming>, Cause> {
        if self.in_place
            && let Some(text) = self.whole_text(bytes, *at)
        {
            *at = text.end;
            self.frames += 1;
            return Ok(Some(Incoming::Text(text)));
        }
        self.next_by_context(bytes, at, outgoing)
    }

    /// Whole frames seen so far, of any kind.
    pub(crate) fn frames(&self) -> u64 {
        self.frames
    }

    /// Which message is under way, of which part is still to come: the same number as long as it
    /// is the same message. `rest` is what is left of the bytes.
    pub(crate) fn unfinished(&self, rest: &[u8]) -> Option<u64> {
        self.fragmented.or_else(|| (!rest.is_empty()).then_some(self.frames.wrapping_add(1)))
    }

    /// How many bytes are missing of the frame that `rest` begins with, where its header says.
    pub(crate) fn missing(&self, rest: &[u8]) -> usize {
        let mut cursor = Cursor::new(rest);
        let Ok(Some((_, length))) = FrameHeader::parse(&mut cursor) else { return 0 };
        let whole = usize::try_from(cursor.position().saturating_add(length)).unwrap_or(usize::MAX);
        whole.saturating_sub(rest.len())
    }

    /// Where the text lies, if the next frame is one that needs no rule but UTF-8. Anything else,
    /// and anything wrong, is the context's to judge.
    #[inline]
    fn whole_text(&self, bytes: &[u8], at: usize) -> Option<Range<usize>> {
        let (&[first, second], rest) = bytes.get(at..)?.split_first_chunk()?;
        if first != WHOLE_TEXT {
            return None;
        }
        let (header, length) = match second {
            length @ 0..=125 => (2, usize::from(length)),
            126 => (4, usize::from(u16::from_be_bytes(*rest.first_chunk()?))),
            127 => (10, usize::try_from(u64::from_be_bytes(*rest.first_chunk()?)).ok()?),
            128.. => return None, // masked
        };
        if length > self.message_bytes_max {
            return None;
        }
        let start = at + header;
        let text = bytes.get(start..start.checked_add(length)?)?;
        if !is_ascii(text) {
            simdutf8::basic::from_utf8(text).ok()?;
        }
        Some(start..start + length)
    }

    #[cold]
    fn next_by_context(
        &mut self,
        bytes: &[u8],
        at: &mut usize,
        outgoing: &mut Vec<u8>,
    ) -> Result<Option<Incoming>, Cause> {
        while let Some((header, frame)) = self.cut(bytes.get(*at..).unwrap_or_default())? {
            *at += frame.len();
            self.frames += 1;
            self.note_fragments(&header);
            let mut feed = Feed { frame, outgoing };
            let message = match self.context.read(&mut feed) {
                Ok(message) => message,
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(cause_of(error)),
            };
            if matches!(message, Message::Ping(_) | Message::Close(_)) {
                // The reply is queued inside the context; nothing else may follow to push it out.
                self.flush(outgoing)?;
            }
            return Ok(Some(match message {
                Message::Text(text) => Incoming::Assembled(text),
                Message::Binary(_) | Message::Frame(_) => Incoming::Binary,
                Message::Ping(_) => Incoming::Ping,
                Message::Pong(_) => Incoming::Pong,
                Message::Close(frame) => {
                    self.in_place = false;
                    close_incoming(frame)
                }
            }));
        }
        Ok(None)
    }

    /// A message begun and not ended takes its next frames through the context.
    fn note_fragments(&mut self, header: &FrameHeader) {
        if matches!(header.opcode, OpCode::Data(_)) {
            self.in_place = header.is_final && self.context.can_read();
            self.fragmented =
                if header.is_final { None } else { self.fragmented.or(Some(self.frames)) };
        }
    }

    /// The next whole frame and its header, or `None` when more bytes are needed.
    fn cut<'a>(&self, input: &'a [u8]) -> Result<Option<(FrameHeader, &'a [u8])>, Cause> {
        let mut cursor = Cursor::new(input);
        let Some((header, length)) = FrameHeader::parse(&mut cursor).map_err(cause_of)? else {
            return Ok(None);
        };
        let max = self.message_bytes_max;
        let length = usize::try_from(length).ok().filter(|&length| length <= max);
        let Some(length) = length else {
            return Err(Cause::Protocol { message: format!("a frame longer than {max} bytes") });
        };
        let start = usize::try_from(cursor.position()).unwrap_or(usize::MAX);
        let frame = input.get(..start.saturating_add(length));
        Ok(frame.map(|frame| (header, frame)))
    }

    /// Appends a text frame.
    pub(crate) fn text(&mut self, text: String, outgoing: &mut Vec<u8>) -> Result<(), Cause> {
        self.write(Message::text(text), outgoing)
    }

    /// Appends a ping.
    pub(crate) fn ping(&mut self, outgoing: &mut Vec<u8>) -> Result<(), Cause> {
        self.write(Message::Ping(Bytes::from_static(b"kalshi-feed")), outgoing)
    }

    /// Appends a pong nobody asked for: a sign of life while reading is held back.
    pub(crate) fn pong(&mut self, outgoing: &mut Vec<u8>) -> Result<(), Cause> {
        self.write(Message::Pong(Bytes::new()), outgoing)?;
        self.flush(outgoing)
    }

    /// Appends a Close frame with code 1000; nothing may be written after it.
    pub(crate) fn close(&mut self, outgoing: &mut Vec<u8>) -> Result<(), Cause> {
        let frame = CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::from_static("") };
        let mut feed = Feed { frame: &[], outgoing };
        self.context.close(&mut feed, Some(frame)).map_err(cause_of)
    }

    fn write(&mut self, message: Message, outgoing: &mut Vec<u8>) -> Result<(), Cause> {
        let mut feed = Feed { frame: &[], outgoing };
        self.context.write(&mut feed, message).map_err(cause_of)
    }

    fn flush(&mut self, outgoing: &mut Vec<u8>) -> Result<(), Cause> {
        let mut feed = Feed { frame: &[], outgoing };
        self.context.flush(&mut feed).map_err(cause_of)
    }
}

/// Whether every byte is ASCII, as almost all of the exchange's are: 32 at a time, the last ones
/// with some before them once more.
#[inline]
fn is_ascii(text: &[u8]) -> bool {
    let words = |chunk: &[u8; 32]| {
        let (words, _) = chunk.as_chunks::<8>();
        words.iter().fold(0, |seen, &word| seen | u64::from_ne_bytes(word))
    };
    let Some(last) = text.last_chunk() else { return text.is_ascii() };
    let (chunks, _) = text.as_chunks();
    let seen = chunks.iter().fold(words(last), |seen, chunk| seen | words(chunk));
    seen & 0x8080_8080_8080_8080 == 0
}

/// What the context takes for its socket: one frame to read, then nothing more for now; writes
/// always succeed, into memory whose bound the caller keeps.
struct Feed<'a> {
    frame: &'a [u8],
    outgoing: &'a mut Vec<u8>,
}

impl Read for Feed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.frame.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.frame.read(buffer)
    }
}

impl Write for Feed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.outgoing.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn close_incoming(frame: Option<CloseFrame>) -> Incoming {
    let Some(frame) = frame else {
        return Incoming::Close { code: None, reason: String::new() };
    };
    let reason = frame.reason.as_str();
    let end = (0..=reason.len().min(REASON_BYTES_MAX))
        .rev()
        .find(|&end| reason.is_char_boundary(end))
        .unwrap_or(0);
    let reason: String = reason.get(..end).unwrap_or_default().chars().map(printable).collect();
    Incoming::Close { code: Some(frame.code.into()), reason }
}

/// Control characters of a peer's text have no business in our logs.
fn printable(c: char) -> char {
    if c.is_control() { ' ' } else { c }
}

fn cause_of(error: Error) -> Cause {
    match error {
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => Cause::Ended,
        Error::ConnectionClosed | Error::AlreadyClosed => Cause::Ended,
        Error::Capacity(CapacityError::MessageTooLong { max_size, .. }) => {
            Cause::Protocol { message: format!("a message longer than {max_size} bytes") }
        }
        error => Cause::Protocol { message: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAX: usize = 1_000;

    fn frame(first_byte: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![first_byte];
        match payload.len() {
            length @ 0..=125 => bytes.push(u8::try_from(length).unwrap()),
            length => {
                bytes.push(126);
                bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
            }
        }
        bytes.extend(payload);
        bytes
    }

    /// What was said, with texts as texts whichever way they came.
    #[derive(Debug, PartialEq, Eq)]
    enum Said {
        Text(String),
        Other(Incoming),
    }

    /// Everything the framer says about `bytes` given in chunks ending at `cuts`, each frame in
    /// place where it may be; and the same with every frame through the context.
    fn run(bytes: &[u8], cuts: &[usize]) -> (Vec<Said>, Option<Cause>, usize) {
        let in_place = run_one_way(bytes, cuts, true);
        let by_context = run_one_way(bytes, cuts, false);
        assert_eq!(in_place, by_context, "both ways say the same");
        in_place
    }

    fn run_one_way(
        bytes: &[u8],
        cuts: &[usize],
        in_place: bool,
    ) -> (Vec<Said>, Option<Cause>, usize) {
        let mut framer = Framer::new(MAX);
        let (mut said, mut outgoing, mut partial) = (Vec::new(), Vec::new(), Vec::new());
        let mut start = 0;
        for &end in cuts.iter().chain([&bytes.len()]) {
            let end = end.clamp(start, bytes.len());
            partial.extend_from_slice(&bytes[start..end]);
            start = end;
            let taken = std::mem::take(&mut partial);
            let mut at = 0;
            loop {
                framer.in_place &= in_place;
                match framer.next(&taken, &mut at, &mut outgoing) {
                    Ok(Some(Incoming::Text(range))) => {
                        assert!(in_place, "not taken in place when it may not be");
                        let text = String::from_utf8(taken[range].to_vec()).unwrap();
                        said.push(Said::Text(text));
                    }
                    Ok(Some(Incoming::Assembled(text))) => said.push(Said::Text(text.to_string())),
                    Ok(Some(incoming)) => said.push(Said::Other(incoming)),
                    Ok(None) => break,
                    Err(cause) => return (said, Some(cause), outgoing.len()),
                }
            }
            partial.extend_from_slice(&taken[at..]);
            assert!(partial.len() <= MAX + 14, "what waits for the rest is bounded");
        }
        (said, None, outgoing.len())
    }

    fn protocol(text: &str) -> impl Fn(&Option<Cause>) -> bool + '_ {
        move |cause| matches!(cause, Some(Cause::Protocol { message }) if message.contains(text))
    }

    #[test]
    fn c1_hostile_frames_are_refused_and_nothing_of_them_delivered() {
        let masked = [0x81, 0x80, 1, 2, 3, 4].to_vec();
        let endless = [[0x81, 127].as_slice(), &(1u64 << 62).to_be_bytes()].concat();
        let table: [(Vec<u8>, &str); 9] = [
            (masked, "mask"),
            (frame(0xC1, b"x"), "eserved"),
            (frame(0x83, b"x"), "opcode"),
            (frame(0x09, b"x"), "ragmented"),
            (frame(0x89, &[0; 126]), "ontrol"),
            (frame(0x80, b"x"), "ontinue"),
            (frame(0x81, b"\xff"), "UTF-8"),
            (frame(0x88, b"x"), "lose"),
            (endless, "longer than"),
        ];
        for (bytes, text) in table {
            let (said, cause, _) = run(&bytes, &[]);
            assert!(said.is_empty(), "{text}: {said:?}");
            assert!(protocol(text)(&cause), "{text}: {cause:?}");
        }
    }

    #[test]
    fn d1_a_close_is_echoed_and_a_ping_answered_at_once() {
        let (said, cause, sent) = run(&frame(0x89, b"heartbeat"), &[]);
        assert_eq!((said, cause, sent), (vec![Said::Other(Incoming::Ping)], None, 2 + 4 + 9));
        let (said, cause, sent) = run(&frame(0x88, &[0x03, 0xE9]), &[]);
        let close = Incoming::Close { code: Some(1001), reason: String::new() };
        assert_eq!((said, cause, sent), (vec![Said::Other(close)], None, 2 + 4 + 2));
    }

    #[test]
    fn d5_an_empty_close_is_legal_and_data_after_a_close_is_not() {
        let bytes = [frame(0x88, b""), frame(0x81, b"late")].concat();
        let (said, cause, _) = run(&bytes, &[]);
        let close = Incoming::Close { code: None, reason: String::new() };
        assert_eq!(said, [Said::Other(close)]);
        assert!(cause.is_some());
    }

    #[test]
    fn c5_the_size_limit_is_exact() {
        assert_eq!(run(&frame(0x81, &[b'a'; MAX]), &[]).0.len(), 1);
        assert!(protocol("longer")(&run(&frame(0x81, &[b'a'; MAX + 1]), &[]).1));
    }

    #[test]
    fn c4_the_header_alone_is_enough_and_the_limit_holds_over_fragments() {
        let header = &frame(0x81, &[b'a'; MAX + 1])[..4];
        assert!(protocol("longer")(&run(header, &[]).1), "not a byte of it is waited for");
        let halves = [frame(0x01, &[b'a'; MAX]), frame(0x80, b"a")].concat();
        assert!(protocol("longer")(&run(&halves, &[]).1));
    }

    proptest! {
        #![proptest_config(crate::property::cases(1_000))]

        /// However the bytes are cut, the messages are the same.
        #[test]
        fn c3_chunking_changes_nothing(
            texts in prop::collection::vec("[a-zé]{0,200}", 1..8),
            fragment in any::<bool>(),
            mut cuts in prop::collection::vec(0usize..2_000, 0..10),
        ) {
            let mut bytes = Vec::new();
            for text in &texts {
                if fragment {
                    let (head, tail) = text.as_bytes().split_at(text.len() / 2);
                    let (head, tail) = (frame(0x01, head), frame(0x80, tail));
                    bytes.extend([head, frame(0x89, b"p"), tail].concat());
                } else {
                    bytes.extend(frame(0x81, text.as_bytes()));
                }
            }
            cuts.sort_unstable();
            prop_assert_eq!(run(&bytes, &cuts), run(&bytes, &[]));
            let said = run(&bytes, &cuts).0;
            let got: Vec<_> = said.iter().filter_map(|incoming| match incoming {
                Said::Text(text) => Some(text.clone()),
                Said::Other(_) => None,
            }).collect();
            prop_assert_eq!(got, texts);
        }

        /// Frames good and bad in any order, cut anywhere: `run` compares the two ways.
        #[test]
        fn both_ways_agree_on_any_frames(
            frames in prop::collection::vec(
                (prop::sample::select(vec![0x81u8, 0x81, 0x81, 0x01, 0x80, 0x00, 0x89, 0x8A, 0x88,
                                           0x82, 0xC1, 0x83, 0x09]),
                 prop::sample::select(vec![b"".to_vec(), b"ok".to_vec(), vec![b'a'; 130],
                                           b"\xff\xfe".to_vec(), "é".into(), vec![b'b'; MAX],
                                           vec![b'c'; MAX + 1], b"\x03\xe8".to_vec()]),
                 any::<bool>()),
                0..12),
            mut cuts in prop::collection::vec(0usize..4_000, 0..6),
        ) {
            let mut bytes = Vec::new();
            for (first, payload, masked) in frames {
                let start = bytes.len();
                bytes.extend(frame(first, &payload));
                if masked && payload.len() < 4 {
                    bytes[start + 1] |= 0x80;
                    bytes.splice(start + 2..start + 2, [0u8; 4]);
                }
            }
            cuts.sort_unstable();
            run(&bytes, &cuts);
        }

        #[test]
        fn no_bytes_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..600),
            cuts in prop::collection::vec(0usize..600, 0..4),
        ) {
            let mut cuts = cuts;
            cuts.sort_unstable();
            run(&bytes, &cuts);
        }
    }
}
