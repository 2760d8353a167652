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
        scan(frame).unwrap_or_else(|| long_way(frame))
    }
}

/// The expected shape: `{"type":"…","sid":n,"seq":n,"msg":{…}}`, the number missing on tickers, no
/// white space, no escapes, and `msg` last. `None` at the first surprise.
#[inline]
fn scan(frame: &[u8]) -> Option<Envelope> {
    let (kind, rest) = kind(frame.strip_prefix(b"{\"type\":\"")?)?;
    let (sid, rest) = digits(rest.strip_prefix(b",\"sid\":")?)?;
    // Only complete when nothing was left for after `msg`: the sequenced types without their
    // numbers, and objects that go on after `msg`, are read in full, as is every rare frame.
    let (seq, rest) = match kind {
        Kind::Known | Kind::Book => {
            let (seq, rest) = digits(rest.strip_prefix(b",\"seq\":")?)?;
            (Some(Seq::new(seq)), rest)
        }
        Kind::Ticker => (None, rest),
        _ => return None,
    };
    let complete = rest.starts_with(b",\"msg\":{") && ends_with_message(frame);
    complete.then_some(Envelope { kind, sid: Some(Sid::new(sid)), seq, id: None })
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

/// A JSON integer without sign, point, exponent or leading zero, of up to seven digits at once;
/// longer ones, up to 19 digits, one by one.
#[inline]
fn digits(text: &[u8]) -> Option<(u64, &[u8])> {
    let &eight = text.first_chunk()?;
    let digits = u64::from_le_bytes(eight) ^ ZEROS;
    // The lowest bit set is in the first byte that is no digit: what carries goes up from there.
    let others = (digits.wrapping_add(OVER_NINE) | digits) & HIGH_BITS;
    let length = others.trailing_zeros() / 8;
    if length == 8 {
        return many_digits(text);
    }
    let leading_zero = length > 1 && digits.to_le_bytes()[0] == 0;
    let number = eight_digits(digits.checked_shl(64 - 8 * length)?);
    ended(number, text.get(usize::try_from(length).ok()?..)?).filter(|_| !leading_zero)
}

const ZEROS: u64 = 0x3030_3030_3030_3030;
const OVER_NINE: u64 = 0x7676_7676_7676_7676;
const HIGH_BITS: u64 = 0x8080_8080_8080_8080;

/// The number of these digits, the first in the lowest byte: pairs, fours, all eight.
#[inline]
fn eight_digits(digits: u64) -> u64 {
    const EVERY_FOURTH: u64 = 0x0000_00ff_0000_00ff;
    let pairs = digits.wrapping_mul(10).wrapping_add(digits >> 8);
    let front = (pairs & EVERY_FOURTH).wrapping_mul(100 + (1_000_000 << 32));
    let back = ((pairs >> 16) & EVERY_FOURTH).wrapping_mul(1 + (10_000 << 32));
    front.wrapping_add(back) >> 32
}

/// The number, if it ends where a key or the object does.
#[inline]
fn ended(number: u64, rest: &[u8]) -> Option<(u64, &[u8])> {
    matches!(rest.first()?, b',' | b'}').then_some((number, rest))
}

fn many_digits(text: &[u8]) -> Option<(u64, &[u8])> {
    let (mut number, mut rest) = (0u64, text);
    while let [digit @ b'0'..=b'9', after @ ..] = rest {
        number = number.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
        rest = after;
    }
    let short = text.len() - rest.len() <= 19 && text.first() != Some(&b'0');
    ended(number, rest).filter(|_| short)
}

#[cold]
fn long_way(frame: &[u8]) -> Envelope {
    acknowledgement(frame).unwrap_or_else(|| parse(frame))
}

/// `{"type":"ok","id":n,"sid":n,"seq":n,"msg":{…}}`: it may list thousands of markets, which is
/// no reason to read them.
fn acknowledgement(frame: &[u8]) -> Option<Envelope> {
    let (id, rest) = digits(frame.strip_prefix(b"{\"type\":\"ok\",\"id\":")?)?;
    let (sid, rest) = digits(rest.strip_prefix(b",\"sid\":")?)?;
    let (seq, rest) = digits(rest.strip_prefix(b",\"seq\":")?)?;
    let complete = rest.starts_with(b",\"msg\":{") && ends_with_message(frame) && id > 0;
    complete.then_some(Envelope {
        kind: Kind::Ok,
        sid: Some(Sid::new(sid)),
        seq: Some(Seq::new(seq)),
        id: Some(CommandId::new(id)),
    })
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
        let ok = br#"{"type":"ok","id":7,"sid":1,"seq":6,"msg":{"market_tickers":["A"]}}"#;
        let id = Some(CommandId::new(7));
        assert_eq!(acknowledgement(ok), Some(Envelope { id, ..envelope(Kind::Ok, 1, Some(6)) }));
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

        #[test]
        fn digits_are_read_as_numbers(text in "[0-9]{0,22}[,}x:/]?[ -~]{0,9}") {
            let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
            let (number, rest) = text.split_at(end);
            let plain = number.len() <= 19 && (number.len() == 1 || !number.starts_with('0'));
            let want = number.parse().ok().filter(|_| plain && rest.starts_with([',', '}']));
            let got = digits(text.as_bytes());
            // With fewer than eight bytes left, no frame ends so soon.
            let want = want.filter(|_| text.len() >= 8);
            prop_assert_eq!(got, want.map(|number: u64| (number, rest.as_bytes())));
        }


        /// What the short way accepts, the long way reads the same.
        #[test]
        fn short_and_long_way_agree(
            kind in prop::sample::select(
                vec!["trade", "ticker", "ok", "orderbook_delta", "new", ""]),
            fields in prop::collection::vec(
                (prop::sample::select(vec!["sid", "seq", "id", "x"]),
                 prop::sample::select(vec!["1", "0", "01", "-1", "1.0", "1e3", "null", "\"1\"",
                                           "7", "1234567", "12345678901234",
                                           "18446744073709551615", "18446744073709551616", "42"])),
                0..4),
            message in prop::sample::select(vec!["{}", r#"{"a":{"seq":9}}"#, "[]", "3", r#"{"s":"}}"}"#]),
            tail in prop::sample::select(vec!["}", "}\n", ",\"seq\":5}", "", "}}", "} x"]),
            usual in any::<bool>(),
        ) {
            let mut text = format!(r#"{{"type":"{kind}""#);
            for ((key, value), name) in fields.into_iter().zip(["id", "sid", "seq"]) {
                let key = if usual { name } else { key };
                text.push_str(&format!(r#","{key}":{value}"#));
            }
            text.push_str(&format!(r#","msg":{message}{tail}"#));
            let long = parse(text.as_bytes());
            let short = scan(text.as_bytes()).or_else(|| acknowledgement(text.as_bytes()));
            if let Some(short) = short {
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
