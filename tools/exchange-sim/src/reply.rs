//! The bytes of every reply, in both dialects. It decides nothing and sends nothing.

use crate::code::Code;
use crate::payload::{put, quoted, uint};

/// `,"id":N` when the command had one.
fn id(value: u64, out: &mut Vec<u8>) {
    if value != 0 {
        put(out, ",\"id\":");
        uint(value, out);
    }
}

fn scope(sid: Option<u64>, seq: Option<u64>, out: &mut Vec<u8>) {
    if let Some(sid) = sid {
        put(out, ",\"sid\":");
        uint(sid, out);
    }
    if let Some(seq) = seq {
        put(out, ",\"seq\":");
        uint(seq, out);
    }
}

/// The whole of a `subscribed`.
pub(crate) fn subscribed(command: u64, channel: &str, sid: u64, out: &mut Vec<u8>) {
    put(out, "{\"type\":\"subscribed\"");
    id(command, out);
    put(out, ",\"msg\":{\"channel\":");
    quoted(channel, out);
    put(out, ",\"sid\":");
    uint(sid, out);
    put(out, "}}\n");
}

/// The whole of an `unsubscribed`.
pub(crate) fn unsubscribed(command: u64, sid: u64, seq: Option<u64>, out: &mut Vec<u8>) {
    put(out, "{\"type\":\"unsubscribed\"");
    id(command, out);
    scope(Some(sid), seq, out);
    put(out, "}\n");
}

/// The mission's `subscribed`.
pub(crate) fn legacy_subscribed(command: u64, channel: &str, sid: u64, out: &mut Vec<u8>) {
    legacy_head(command, "subscribed", None, out);
    put(out, "\"sid\":");
    uint(sid, out);
    put(out, ",\"channel\":");
    quoted(channel, out);
    put(out, "}}\n");
}

/// The mission's `unsubscribed`, for all sids of one command.
pub(crate) fn legacy_unsubscribed(command: u64, sids: &[u64], out: &mut Vec<u8>) {
    legacy_head(command, "unsubscribed", None, out);
    put(out, "\"sids\":[");
    for (at, &sid) in sids.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        uint(sid, out);
    }
    put(out, "]}}\n");
}

/// The mission's `error`: a text as its code. `sid` only where it answers no command.
pub(crate) fn legacy_error(command: u64, sid: Option<u64>, code: Code, out: &mut Vec<u8>) {
    legacy_head(command, "error", sid, out);
    put(out, "\"code\":");
    quoted(&code.name(), out);
    put(out, ",\"message\":");
    quoted(code.text(), out);
    put(out, "}}\n");
}

/// `{"id":N,"type":T,"msg":{`, in the order of the mission's page; without `id` if it is 0.
fn legacy_head(command: u64, kind: &str, sid: Option<u64>, out: &mut Vec<u8>) {
    out.push(b'{');
    if command != 0 {
        put(out, "\"id\":");
        uint(command, out);
        out.push(b',');
    }
    put(out, "\"type\":\"");
    put(out, kind);
    out.push(b'"');
    scope(sid, None, out);
    put(out, ",\"msg\":{");
}

/// The `ok` that lists the subscriptions of a connection: channel and sid of each.
pub(crate) fn list<'a>(
    command: u64,
    subscriptions: impl Iterator<Item = (&'a str, u64)>,
    out: &mut Vec<u8>,
) {
    put(out, "{\"type\":\"ok\"");
    id(command, out);
    put(out, ",\"msg\":[");
    for (at, (channel, sid)) in subscriptions.enumerate() {
        put(out, if at == 0 { "{\"channel\":" } else { ",{\"channel\":" });
        quoted(channel, out);
        put(out, ",\"sid\":");
        uint(sid, out);
        out.push(b'}');
    }
    put(out, "]}\n");
}

/// An `ok` that names no subscription, as nothing the exchange does on request looks like.
pub(crate) fn bare_ok(command: u64, out: &mut Vec<u8>) {
    put(out, "{\"type\":\"ok\"");
    id(command, out);
    put(out, ",\"msg\":{}}\n");
}

/// The whole of an `ok`; `tickers` is the full list, `None` when the client asked to skip it.
pub(crate) fn ok<'a>(
    command: u64,
    sid: u64,
    seq: Option<u64>,
    tickers: Option<impl Iterator<Item = &'a str>>,
    out: &mut Vec<u8>,
) {
    put(out, "{\"type\":\"ok\"");
    id(command, out);
    scope(Some(sid), seq, out);
    put(out, ",\"msg\":{");
    if let Some(tickers) = tickers {
        put(out, "\"market_tickers\":[");
        for (at, ticker) in tickers.enumerate() {
            if at > 0 {
                out.push(b',');
            }
            quoted(ticker, out);
        }
        out.push(b']');
    }
    put(out, "}}\n");
}

/// The whole of an `error`.
pub(crate) fn error(
    command: u64,
    sid: Option<u64>,
    seq: Option<u64>,
    code: Code,
    out: &mut Vec<u8>,
) {
    put(out, "{\"type\":\"error\"");
    id(command, out);
    scope(sid, seq, out);
    put(out, ",\"msg\":{\"code\":");
    uint(u64::from(code.0), out);
    put(out, ",\"msg\":");
    quoted(code.text(), out);
    put(out, "}}\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn whole(write: impl Fn(&mut Vec<u8>)) -> (Value, usize) {
        let mut out = Vec::new();
        write(&mut out);
        assert_eq!(out.last(), Some(&b'\n'));
        (serde_json::from_slice(&out).expect("valid JSON"), out.len())
    }

    #[test]
    fn replies_echo_ids_and_escape_names() {
        let (value, _) = whole(|out| error(0, None, None, Code(1), out));
        assert!(value.get("id").is_none());
        assert_eq!(value["msg"], json!({"code":1,"msg":"Unable to process message"}));
        let names = ["A", "B\\\""];
        let (value, _) = whole(|out| ok(7, 1, Some(6), Some(names.into_iter()), out));
        assert_eq!(value["msg"]["market_tickers"][1], "B\\\"");
        assert_eq!((&value["id"], &value["seq"]), (&7.into(), &6.into()));
        let none = || None::<std::iter::Empty<&str>>;
        let (value, _) = whole(|out| ok(7, 1, None, none(), out));
        assert_eq!(value["msg"], json!({}));
        let (value, size) = whole(|out| subscribed(1, "orderbook_delta", 1, out));
        assert_eq!(value["msg"]["sid"], 1);
        assert!((63..=78).contains(&size), "{size}");
    }

    #[test]
    fn lists_name_channels_and_sids_and_nothing_else() {
        let (value, _) = whole(|out| list(3, [("ticker", 1), ("trade", 4)].into_iter(), out));
        let both = json!([{"channel":"ticker","sid":1},{"channel":"trade","sid":4}]);
        assert_eq!(value, json!({"type":"ok","id":3,"msg":both}));
        let (value, _) = whole(|out| list(3, std::iter::empty(), out));
        assert_eq!(value["msg"], json!([]));
    }

    #[test]
    fn the_missions_replies_have_their_own_shape() {
        let (value, _) = whole(|out| legacy_subscribed(1, "orderbook_delta", 5, out));
        let msg = json!({"sid":5,"channel":"orderbook_delta"});
        assert_eq!(value, json!({"id":1,"type":"subscribed","msg":msg}));
        let (value, _) = whole(|out| legacy_unsubscribed(2, &[1, 2], out));
        assert_eq!(value, json!({"id":2,"type":"unsubscribed","msg":{"sids":[1,2]}}));
        let (value, _) = whole(|out| legacy_error(3, None, Code::ALREADY_SUBSCRIBED, out));
        let msg = json!({"code":"already_subscribed","message":"Already subscribed"});
        assert_eq!(value, json!({"id":3,"type":"error","msg":msg}));
        let (value, _) = whole(|out| legacy_error(0, Some(9), Code(25), out));
        assert_eq!((&value["sid"], value.get("id")), (&9.into(), None));
    }
}
