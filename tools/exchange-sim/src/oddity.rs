//! Frames out of the ordinary, as bytes: first those that break RFC 6455, then those it allows and
//! nobody expects. They carry no number; the
//! ledger counts those that are whole messages.

use std::str::FromStr;

use crate::frame::{self, Opcode};

/// A frame out of the ordinary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Oddity {
    /// A masked text frame.
    Masked,
    /// A text frame with the first reserved bit.
    Reserved,
    /// Opcode 3.
    UnknownOpcode,
    /// A ping that says more is to come.
    FragmentedPing,
    /// A ping of 126 bytes.
    LongPing,
    /// A continuation of nothing.
    StrayContinuation,
    /// A text frame between the fragments of another.
    TextInsideFragments,
    /// A text message that is no UTF-8.
    BadUtf8,
    /// The same, cut within what is wrong.
    BadUtf8AcrossFragments,
    /// The header of a text frame of this many bytes, and none of them.
    Length(u64),
    /// A Close with one byte.
    ShortClose,
    /// A Close whose reason is no UTF-8.
    BadClose,
    /// A Close with this code on the wire, lawful or not; the exchange goes on as if nothing
    /// happened.
    Close(u16),
    /// An HTTP answer where frames belong.
    Http,
    /// A binary message: allowed.
    Binary,
    /// An empty text message: allowed.
    EmptyText,
    /// A pong nobody asked for: allowed.
    Pong,
    /// A text message of a thousand empty fragments: allowed.
    EmptyFragments,
    /// A text message whose length takes more bytes than it needs: allowed here.
    LongForm,
    /// Any text message: allowed.
    Text(String),
}

const NAMES: [(&str, Oddity); 17] = [
    ("masked", Oddity::Masked),
    ("reserved", Oddity::Reserved),
    ("unknown_opcode", Oddity::UnknownOpcode),
    ("fragmented_ping", Oddity::FragmentedPing),
    ("long_ping", Oddity::LongPing),
    ("stray_continuation", Oddity::StrayContinuation),
    ("text_inside_fragments", Oddity::TextInsideFragments),
    ("bad_utf8", Oddity::BadUtf8),
    ("bad_utf8_across_fragments", Oddity::BadUtf8AcrossFragments),
    ("short_close", Oddity::ShortClose),
    ("bad_close", Oddity::BadClose),
    ("http", Oddity::Http),
    ("binary", Oddity::Binary),
    ("empty_text", Oddity::EmptyText),
    ("pong", Oddity::Pong),
    ("empty_fragments", Oddity::EmptyFragments),
    ("long_form", Oddity::LongForm),
];

impl Oddity {
    /// Whether it is a message a client may hand over.
    pub(crate) fn is_message(&self) -> bool {
        matches!(
            self,
            Self::Binary | Self::EmptyText | Self::EmptyFragments | Self::LongForm | Self::Text(_)
        )
    }

    /// The bytes it is on the wire.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Masked => out.extend([0x81, 0x81, 1, 2, 3, 4, b'x' ^ 1]),
            Self::Reserved => out.extend([0xc1, 1, b'x']),
            Self::UnknownOpcode => out.extend([0x83, 1, b'x']),
            Self::FragmentedPing => out.extend([0x09, 1, b'x', 0x80, 1, b'x']),
            Self::LongPing => frame::write(Opcode::Ping, &[b'x'; 126], &[], &mut out),
            Self::StrayContinuation => out.extend([0x80, 1, b'x']),
            Self::TextInsideFragments => out.extend([0x01, 1, b'x', 0x81, 1, b'y']),
            Self::BadUtf8 => out.extend([0x81, 2, b'x', 0xff]),
            // Half of a euro sign, then something else.
            Self::BadUtf8AcrossFragments => out.extend([0x01, 2, 0xe2, 0x82, 0x80, 1, b'x']),
            Self::Length(length) => {
                out.extend([0x81, 127]);
                out.extend(length.to_be_bytes());
            }
            Self::ShortClose => out.extend([0x88, 1, 3]),
            Self::BadClose => out.extend([0x88, 3, 0x03, 0xe8, 0xff]),
            Self::Close(code) => frame::write(Opcode::Close, &code.to_be_bytes(), &[], &mut out),
            Self::Http => out.extend(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"),
            Self::Binary => out.extend([0x82, 3, 0, 1, 0xff]),
            Self::EmptyText => out.extend([0x81, 0]),
            Self::Pong => out.extend([0x8a, 1, b'x']),
            Self::EmptyFragments => {
                out.extend([0x01, 0]);
                (0..1_000).for_each(|_| out.extend([0x00, 0]));
                out.extend([0x80, 2, b'{', b'}']);
            }
            Self::LongForm => out.extend([0x81, 126, 0, 2, b'{', b'}']),
            Self::Text(text) => frame::write(Opcode::Text, text.as_bytes(), &[], &mut out),
        }
        out
    }
}

impl FromStr for Oddity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let valued = || match text.split_once('=')? {
            ("length", value) => value.parse().ok().map(Self::Length),
            ("close", value) => value.parse().ok().map(Self::Close),
            ("text", value) => Some(Self::Text(value.to_owned())),
            _ => None,
        };
        let named = NAMES.iter().find(|(name, _)| *name == text).map(|(_, oddity)| oddity.clone());
        named.or_else(valued).ok_or_else(|| {
            let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
            format!(
                "`{text}` is no frame: give length=BYTES, close=CODE, text=TEXT, {}",
                names.join(", ")
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_name_frames() {
        for (name, oddity) in NAMES {
            assert_eq!(name.parse(), Ok(oddity.clone()));
            assert!(!oddity.bytes().is_empty());
        }
        assert_eq!("length=9".parse::<Oddity>().map(|odd| odd.bytes().len()), Ok(10));
        assert_eq!(
            "close=1005".parse::<Oddity>().map(|odd| odd.bytes()),
            Ok(vec![0x88, 2, 3, 237])
        );
        assert_eq!("text={\"a\":1}".parse(), Ok(Oddity::Text("{\"a\":1}".to_owned())));
        assert!("square".parse::<Oddity>().is_err());
    }
}
