//! Reads the routing fields of a frame (`type`, `sid`, `seq`, `id`) from its first bytes, without
//! building a tree. Whatever it does not expect goes to `serde_json`. It judges nothing and never
//! fails: a frame it cannot read is `Kind::Unreadable`, still delivered as it came.

use serde::Deserialize;

use crate::ids::{CommandId, Seq, Sid};

/// What a frame says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Subscribed,
    Unsubscribed,
    Ok,
    Error,
    Ticker,
    /// A whole order book.
    Book,
    /// Any other data the exchange sends on sequenced channels, by a name we know.
    Known,
    /// A type nobody told us about: data all the same.
    Unknown,
    /// Not a JSON object with a `type`.
    Unreadable,
}

impl Kind {
    fn of(name: &[u8]) -> Self {
        match name {
            b"orderbook_snapshot" => Self::Book,
            b"orderbook_delta"
            | b"trade"
            | b"market_lifecycle_v2"
            | b"market_lifecycle"
            | b"event_lifecycle"
            | b"event_fee_update"
            | b"multivariate_market_lifecycle" => Self::Known,
            b"ticker" => Self::Ticker,
            b"subscribed" => Self::Subscribed,
            b"unsubscribed" => Self::Unsubscribed,
            b"ok" => Self::Ok,
            b"error" => Self::Error,
            _ => Self::Unknown,
        }
    }

    /// Whether the frame is the host's (data) rather than the engine's (a reply or an error).
    pub(crate) fn is_data(self) -> bool {
        !matches!(self, Self::Subscribed | Self::Unsubscribed | Self::Ok | Self::Error)
    }
}

/// The routing fields of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Envelope {
    pub(crate) kind: Kind,
    pub(crate) sid: Option<Sid>,
    pub(crate) seq: Option<Seq>,
    pub(crate) id: Option<CommandId>,
}

impl Envelope {
    const UNREADABLE: Self = Self { kind: Kind::Unreadable, sid: None, seq: None, id: None };

    /// Reads the envelope of `frame`.
    #[inline]
    pub(crate) fn read(frame: &[u8]) -> Self {
        scan(frame).unwrap_or_else(|| parse(frame))
    }
}

/// The expected shape: `{"type":"…","id":n,"sid":n,"seq":n,"msg":…}` with any of the numbers
/// missing, no white space, no escapes, and `msg` last. `None` at the first surprise.
#[inline]
fn scan(frame: &[u8]) -> Option<Envelope> {
    let rest = frame.strip_prefix(b"{\"type\":\"")?;
    let (kind, mut rest) = kind(rest)?;
    let mut envelope = Envelope { kind, sid: None, seq: None, id: None };
    loop {
        if let Some(after) = rest.strip_prefix(b",\"sid\":") {
            if envelope.sid.is_some() {
                return None;
            }
            let (number, after) = digits(after)?;
            envelope.sid = Some(Sid::new(number));
            rest = after;
        } else if let Some(after) = rest.strip_prefix(b",\"seq\":") {
            if envelope.seq.is_some() {
                return None;
            }
            let (number, after) = digits(after)?;
            envelope.seq = Some(Seq::new(number));
            rest = after;
        } else if rest.starts_with(b",\"msg\":{") {
            break;
        } else {
            // An `id`, another key, or the end: rare frames, read in full.
            return None;
        }
    }
    // Only complete when nothing was left for after `msg`: the sequenced types without their
    // numbers, and objects that go on after `msg`, are read in full.
    let complete = match envelope.kind {
        Kind::Known | Kind::Book => envelope.sid.is_some() && envelope.seq.is_some(),
        Kind::Ticker => envelope.sid.is_some() && envelope.seq.is_none(),
        _ => false,
    };
    (complete && ends_with_message(frame)).then_some(envelope)
}

/// The type's name up to its closing quote. The two that make up almost all traffic are compared
/// at once instead of being searched for their end.
#[inline]
fn kind(text: &[u8]) -> Option<(Kind, &[u8])> {
    if let Some(rest) = text.strip_prefix(b"orderbook_delta\"") {
        return Some((Kind::Known, rest));
    }
    if let Some(rest) = text.strip_prefix(b"ticker\"") {
        return Some((Kind::Ticker, rest));
    }
    let end = text.iter().take(40).position(|&byte| byte == b'"' || byte == b'\\')?;
    let (name, rest) = text.split_at_checked(end)?;
    Some((Kind::of(name), rest.strip_prefix(b"\"")?))
}

/// Whether the frame's text ends in `}}`, white space aside: the message object's end and the
/// envelope's.
#[inline]
fn ends_with_message(frame: &[u8]) -> bool {
    frame.ends_with(b"}}\n") || frame.trim_ascii_end().ends_with(b"}}")
}

/// A JSON integer without sign, point, exponent or leading zero, up to 19 digits.
#[inline]
fn digits(text: &[u8]) -> Option<(u64, &[u8])> {
    let (mut number, mut rest) = (0u64, text);
    while let [digit @ b'0'..=b'9', after @ ..] = rest {
        number = number.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
        rest = after;
    }
    let length = text.len() - rest.len();
    let plain = (1..=19).contains(&length)
        && (length == 1 || text.first() != Some(&b'0'))
        && matches!(rest.first()?, b',' | b'}');
    plain.then_some((number, rest))
}

/// The whole frame through `serde_json`: slow, and right about everything. A number out of
/// range or of another type counts as absent rather than making the frame unreadable.
#[cold]
fn parse(frame: &[u8]) -> Envelope {
    #[derive(Deserialize)]
    struct Fields<'a> {
        #[serde(rename = "type", borrow)]
        kind: std::borrow::Cow<'a, str>,
        #[serde(default, deserialize_with = "lenient")]
        sid: Option<u64>,
        #[serde(default, deserialize_with = "lenient")]
        seq: Option<u64>,
        #[serde(default, deserialize_with = "lenient")]
        id: Option<u64>,
    }
    fn lenient<'de, D: serde::Deserializer<'de>>(source: D) -> Result<Option<u64>, D::Error> {
        Ok(serde_json::Value::deserialize(source)?.as_u64())
    }
    match serde_json::from_slice::<Fields<'_>>(frame) {
        Ok(fields) => Envelope {
            kind: Kind::of(fields.kind.as_bytes()),
            sid: fields.sid.map(Sid::new),
            seq: fields.seq.map(Seq::new),
            // Zero means "no id" on this exchange, and we never send it.
            id: fields.id.filter(|&id| id > 0).map(CommandId::new),
        },
        Err(_) => Envelope::UNREADABLE,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn envelope(kind: Kind, sid: u64, seq: Option<u64>) -> Envelope {
        Envelope { kind, sid: Some(Sid::new(sid)), seq: seq.map(Seq::new), id: None }
    }

    #[test]
    fn the_exchanges_own_shapes_take_the_short_way() {
        let delta = br#"{"type":"orderbook_delta","sid":1,"seq":2,"msg":{"market_ticker":"A"}}
"#;
        assert_eq!(scan(delta), Some(envelope(Kind::Known, 1, Some(2))));
        let ticker = br#"{"type":"ticker","sid":3,"msg":{"market_ticker":"A"}}"#;
        assert_eq!(scan(ticker), Some(envelope(Kind::Ticker, 3, None)));
    }

    #[test]
    fn c8_surprises_take_the_long_way_and_are_read_right() {
        let table: [(&str, Envelope); 8] = [
            (r#"{"sid":1,"seq":2,"type":"trade","msg":{}}"#, envelope(Kind::Known, 1, Some(2))),
            (
                r#"{ "type" : "trade", "sid" : 1, "seq" : 2, "msg" : {} }"#,
                envelope(Kind::Known, 1, Some(2)),
            ),
            (
                r#"{"type":"tr\u0061de","sid":1,"seq":2,"msg":{}}"#,
                envelope(Kind::Known, 1, Some(2)),
            ),
            (
                r#"{"type":"trade","msg":{},"sid":1,"seq":18446744073709551615}"#,
                envelope(Kind::Known, 1, Some(u64::MAX)),
            ),
            (
                r#"{"type":"ok","id":7,"sid":1,"seq":6,"msg":{"market_tickers":[]}}"#,
                Envelope { id: Some(CommandId::new(7)), ..envelope(Kind::Ok, 1, Some(6)) },
            ),
            (
                r#"{"type":"trade","sid":"1","seq":-2,"msg":{}}"#,
                Envelope { kind: Kind::Known, sid: None, seq: None, id: None },
            ),
            (
                r#"{"type":"trade","sid":1,"seq":99999999999999999999,"msg":{}}"#,
                Envelope { seq: None, ..envelope(Kind::Known, 1, None) },
            ),
            ("not json", Envelope::UNREADABLE),
        ];
        for (text, expected) in table {
            assert_eq!(Envelope::read(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn an_id_of_zero_is_no_id() {
        assert_eq!(Envelope::read(br#"{"type":"error","id":0,"msg":{}}"#).id, None);
    }

    proptest! {
        #![proptest_config(crate::property::cases(4_000))]

        /// What the short way accepts, the long way reads the same.
        #[test]
        fn short_and_long_way_agree(
            kind in prop::sample::select(
                vec!["trade", "ticker", "ok", "orderbook_delta", "new", ""]),
            fields in prop::collection::vec(
                (prop::sample::select(vec!["sid", "seq", "id", "x"]),
                 prop::sample::select(vec!["1", "0", "01", "-1", "1.0", "1e3", "null", "\"1\"",
                                           "18446744073709551615", "18446744073709551616", "42"])),
                0..4),
            message in prop::sample::select(vec!["{}", r#"{"a":{"seq":9}}"#, "[]", "3", r#"{"s":"}}"}"#]),
            tail in prop::sample::select(vec!["}", "}\n", ",\"seq\":5}", "", "}}", "} x"]),
        ) {
            let mut text = format!(r#"{{"type":"{kind}""#);
            for (key, value) in fields {
                text.push_str(&format!(r#","{key}":{value}"#));
            }
            text.push_str(&format!(r#","msg":{message}{tail}"#));
            let long = parse(text.as_bytes());
            if let Some(short) = scan(text.as_bytes()) {
                // A frame that is not JSON at all past its `msg` is delivered raw either way;
                // the short way may still read its numbers.
                let agree = short == long || long.kind == Kind::Unreadable;
                prop_assert!(agree, "{text}: {short:?} {long:?}");
            }
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            Envelope::read(&bytes);
        }
    }
}
