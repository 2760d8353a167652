//! The bytes of every message the exchange sends, field names and order as recorded live. Data
//! messages come as a tail without the envelope, so that one formatting serves every listener. It
//! decides nothing and sends nothing.

use crate::book::{Book, Change, DOLLAR, Level, Side};
use crate::clock::{Stamp, StampWriter};
use crate::names;

/// Appends a decimal number.
pub(crate) fn uint(mut value: u64, out: &mut Vec<u8>) {
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends a price in 0.0001 dollars as `0.4700`.
fn price(value: u16, out: &mut Vec<u8>) {
    let value = u32::from(value);
    let digit = |scale: u32| b'0' + (value / scale % 10) as u8;
    out.extend_from_slice(&[digit(10_000), b'.', digit(1_000), digit(100), digit(10), digit(1)]);
}

/// Appends a count in 0.01 contracts as `-3.00`.
fn count(value: i64, out: &mut Vec<u8>) {
    if value < 0 {
        out.push(b'-');
    }
    let value = value.unsigned_abs();
    uint(value / 100, out);
    let cents = (value % 100) as u8;
    out.extend_from_slice(&[b'.', b'0' + cents / 10, b'0' + cents % 10]);
}

fn uuid(bits: u128, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut text = [b'-'; 36];
    let mut at = 0;
    for (index, byte) in bits.to_be_bytes().into_iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            at += 1;
        }
        text[at] = HEX[usize::from(byte >> 4)];
        text[at + 1] = HEX[usize::from(byte & 15)];
        at += 2;
    }
    out.extend_from_slice(&text);
}

/// Appends a JSON string with its quotes.
pub(crate) fn quoted(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    let plain = |byte: u8| byte >= 0x20 && byte != b'"' && byte != b'\\';
    if text.bytes().all(plain) {
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
        return;
    }
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            0..=0x1f => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

pub(crate) fn put(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
}

/// `{"type":T,"sid":S,"seq":N,"msg":{`
pub(crate) fn sequenced_head(kind: &str, sid: u64, seq: u64, out: &mut Vec<u8>) {
    put(out, "{\"type\":\"");
    put(out, kind);
    put(out, "\",\"sid\":");
    uint(sid, out);
    put(out, ",\"seq\":");
    uint(seq, out);
    put(out, ",\"msg\":{");
}

/// `{"type":T,"id":I,"sid":S,"seq":N,"msg":{`: data that answers a command; no `id` if that is 0.
pub(crate) fn answering_head(kind: &str, id: u64, sid: u64, seq: u64, out: &mut Vec<u8>) {
    put(out, "{\"type\":\"");
    put(out, kind);
    out.push(b'"');
    if id != 0 {
        put(out, ",\"id\":");
        uint(id, out);
    }
    put(out, ",\"sid\":");
    uint(sid, out);
    put(out, ",\"seq\":");
    uint(seq, out);
    put(out, ",\"msg\":{");
}

/// `{"type":T,"sid":S,"msg":{"Clock":N,`: data of a channel without `seq`.
pub(crate) fn clocked_head(kind: &str, sid: u64, clock: u64, out: &mut Vec<u8>) {
    put(out, "{\"type\":\"");
    put(out, kind);
    put(out, "\",\"sid\":");
    uint(sid, out);
    put(out, ",\"msg\":{\"Clock\":");
    uint(clock, out);
    out.push(b',');
}

/// What every data message names: the market and the moment.
pub(crate) struct Subject<'a> {
    pub(crate) ticker: &'a str,
    pub(crate) market_id: u128,
    pub(crate) stamp: Stamp,
}

impl Subject<'_> {
    fn open(&self, out: &mut Vec<u8>) {
        put(out, "\"market_ticker\":");
        quoted(self.ticker, out);
        put(out, ",\"market_id\":\"");
        uuid(self.market_id, out);
        out.push(b'"');
    }
}

/// The tail of an `orderbook_delta`.
pub(crate) fn delta(
    subject: &Subject<'_>,
    change: Change,
    stamps: &mut StampWriter,
    out: &mut Vec<u8>,
) {
    subject.open(out);
    put(out, ",\"price_dollars\":\"");
    price(change.price, out);
    put(out, "\",\"delta_fp\":\"");
    count(change.delta, out);
    put(out, "\",\"side\":\"");
    put(out, change.side.name());
    put(out, "\",\"ts\":\"");
    stamps.write(subject.stamp, out);
    put(out, "\",\"ts_ms\":");
    uint(subject.stamp.millis(), out);
    put(out, "}}\n");
}

/// The tail of an `orderbook_snapshot`; empty sides are left out.
pub(crate) fn snapshot(ticker: &str, market_id: u128, book: &Book, out: &mut Vec<u8>) {
    put(out, "\"market_ticker\":");
    quoted(ticker, out);
    put(out, ",\"market_id\":\"");
    uuid(market_id, out);
    out.push(b'"');
    for (side, key) in [(Side::Yes, ",\"yes_dollars_fp\":["), (Side::No, ",\"no_dollars_fp\":[")] {
        let levels = book.levels(side);
        if levels.is_empty() {
            continue;
        }
        put(out, key);
        for (at, level) in levels.iter().enumerate() {
            put(out, if at == 0 { "[\"" } else { ",[\"" });
            price(level.price, out);
            put(out, "\",\"");
            count(i64::from(level.size), out);
            put(out, "\"]");
        }
        out.push(b']');
    }
    put(out, "}}\n");
}

/// The tail of a `ticker`, after the running number.
pub(crate) fn ticker(
    subject: &Subject<'_>,
    book: &Book,
    stamps: &mut StampWriter,
    out: &mut Vec<u8>,
) {
    let none = Level { price: 0, size: 0 };
    let bid = book.best(Side::Yes).unwrap_or(none);
    let ask = book.best(Side::No).unwrap_or(none);
    let dollars = |contracts: u64| contracts / 100 * u64::from(book.last_price) / u64::from(DOLLAR);
    subject.open(out);
    put(out, ",\"price_dollars\":\"");
    price(book.last_price, out);
    put(out, "\",\"yes_bid_dollars\":\"");
    price(bid.price, out);
    put(out, "\",\"yes_ask_dollars\":\"");
    price(DOLLAR - ask.price, out);
    put(out, "\",\"volume_fp\":\"");
    count(book.volume as i64, out);
    put(out, "\",\"open_interest_fp\":\"");
    count(book.open_interest as i64, out);
    put(out, "\",\"dollar_volume\":");
    uint(dollars(book.volume), out);
    put(out, ",\"dollar_open_interest\":");
    uint(dollars(book.open_interest), out);
    put(out, ",\"yes_bid_size_fp\":\"");
    count(i64::from(bid.size), out);
    put(out, "\",\"yes_ask_size_fp\":\"");
    count(i64::from(ask.size), out);
    put(out, "\",\"last_trade_size_fp\":\"");
    count(i64::from(book.last_size), out);
    put(out, "\",\"ts\":");
    uint(subject.stamp.seconds(), out);
    put(out, ",\"ts_ms\":");
    uint(subject.stamp.millis(), out);
    put(out, ",\"time\":\"");
    stamps.write(subject.stamp, out);
    put(out, "\"}}\n");
}

/// One trade: a random id, yes price in 0.0001 dollars, size in 0.01 contracts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trade {
    pub(crate) id: u128,
    pub(crate) yes_price: u16,
    pub(crate) size: u32,
    pub(crate) taker: Side,
}

/// The tail of a `trade`.
pub(crate) fn trade(ticker: &str, stamp: Stamp, trade: &Trade, out: &mut Vec<u8>) {
    put(out, "\"trade_id\":\"");
    uuid(trade.id, out);
    put(out, "\",\"market_ticker\":");
    quoted(ticker, out);
    put(out, ",\"yes_price_dollars\":\"");
    price(trade.yes_price, out);
    put(out, "\",\"no_price_dollars\":\"");
    price(DOLLAR.saturating_sub(trade.yes_price), out);
    put(out, "\",\"count_fp\":\"");
    count(i64::from(trade.size), out);
    let (side, book_side) = match trade.taker {
        Side::Yes => ("yes", "bid"),
        Side::No => ("no", "ask"),
    };
    put(out, "\",\"taker_side\":\"");
    put(out, side);
    put(out, "\",\"taker_outcome_side\":\"");
    put(out, side);
    put(out, "\",\"taker_book_side\":\"");
    put(out, book_side);
    put(out, "\",\"is_block_trade\":false,\"ts\":");
    uint(stamp.seconds(), out);
    put(out, ",\"ts_ms\":");
    uint(stamp.millis(), out);
    put(out, "}}\n");
}

/// What can happen to a market or event, as the lifecycle channel tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Happening {
    Created,
    /// Activated for the first time.
    Opened,
    /// Activated again after a pause.
    Activated,
    Deactivated,
    Determined,
    Settled,
    MetadataUpdated,
    EventLifecycle,
    EventFeeUpdate,
}

impl Happening {
    /// The message's `type`.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Self::EventLifecycle => "event_lifecycle",
            Self::EventFeeUpdate => "event_fee_update",
            _ => "market_lifecycle_v2",
        }
    }
}

/// The tail of a lifecycle message; `event_type` comes last, as recorded.
pub(crate) fn lifecycle(happening: Happening, ticker: &str, seconds: u64, out: &mut Vec<u8>) {
    let event = names::event_of(ticker);
    if matches!(happening, Happening::EventLifecycle | Happening::EventFeeUpdate) {
        put(out, "\"event_ticker\":");
        quoted(event, out);
    } else {
        put(out, "\"market_ticker\":");
        quoted(ticker, out);
    }
    let text = match happening {
        Happening::Created => {
            created(ticker, seconds, out);
            ",\"event_type\":\"created\""
        }
        Happening::Opened | Happening::Activated => {
            ",\"is_deactivated\":false,\"event_type\":\"activated\""
        }
        Happening::Deactivated => ",\"is_deactivated\":true,\"event_type\":\"deactivated\"",
        Happening::Determined => {
            put(out, ",\"determination_ts\":");
            uint(seconds, out);
            let yes = names::mix(seconds ^ ticker.len() as u64).is_multiple_of(2);
            put(out, if yes { ",\"result\":\"yes\"" } else { ",\"result\":\"no\"" });
            put(out, ",\"settlement_value\":");
            put(out, if yes { "\"1.0000\"" } else { "\"0.0000\"" });
            ",\"event_type\":\"determined\""
        }
        Happening::Settled => {
            put(out, ",\"settled_ts\":");
            uint(seconds, out);
            ",\"event_type\":\"settled\""
        }
        Happening::MetadataUpdated => {
            put(out, ",\"yes_sub_title\":\"Above the strike\",\"strike_type\":\"greater\"");
            ",\"event_type\":\"metadata_updated\""
        }
        Happening::EventLifecycle => {
            put(out, ",\"exchange_index\":0,\"title\":\"Simulated event ");
            put(out, event);
            put(out, "\",\"subtitle\":\"\",\"collateral_return_type\":\"MECNET\",");
            put(out, "\"series_ticker\":");
            quoted(names::series_of(ticker), out);
            ""
        }
        Happening::EventFeeUpdate => {
            ",\"fee_type_override\":\"quadratic\",\"fee_multiplier_override\":1"
        }
    };
    put(out, text);
    put(out, "}}\n");
}

/// The tail of a `market_lifecycle`, the mission's lifecycle message; `None` for what its page does
/// not know. A market is created active, so its first activation is not told again.
pub(crate) fn status(
    happening: Happening,
    was: &str,
    ticker: &str,
    seconds: u64,
    out: &mut Vec<u8>,
) -> Option<()> {
    let (event, old, new) = match happening {
        Happening::Created => ("created", "", "active"),
        Happening::Opened => return None,
        Happening::Activated => ("status_change", was, "active"),
        Happening::Deactivated => ("status_change", was, "inactive"),
        Happening::Determined => ("status_change", was, "determined"),
        Happening::Settled => ("settled", was, "finalized"),
        Happening::MetadataUpdated | Happening::EventLifecycle | Happening::EventFeeUpdate => {
            return None;
        }
    };
    put(out, "\"market_ticker\":");
    quoted(ticker, out);
    for (key, value) in [("event_type", event), ("old_status", old), ("new_status", new)] {
        put(out, ",\"");
        put(out, key);
        put(out, "\":\"");
        put(out, value);
        out.push(b'"');
    }
    let over = matches!(happening, Happening::Determined | Happening::Settled);
    put(out, if over { ",\"result\":\"yes\"" } else { ",\"result\":\"\"" });
    put(out, ",\"ts\":");
    uint(seconds, out);
    put(out, "}}\n");
    Some(())
}

fn created(ticker: &str, seconds: u64, out: &mut Vec<u8>) {
    put(out, ",\"exchange_index\":0,\"open_ts\":");
    uint(seconds, out);
    put(out, ",\"close_ts\":");
    uint(seconds + 3_600, out);
    put(out, ",\"price_level_structure\":\"linear_cent\",\"price_ranges\":[{\"start\":\"0.0000\",");
    put(out, "\"end\":\"1.0000\",\"step\":\"0.0100\"}],\"additional_metadata\":{\"name\":");
    quoted(ticker, out);
    put(out, ",\"title\":\"Will the value be above the strike at the hour?\",");
    put(out, "\"yes_sub_title\":\"Above the strike\",\"no_sub_title\":\"At or below the strike\",");
    put(out, "\"rules_primary\":\"If the simple average of the sixty seconds of the index before ");
    put(out, "the hour is above the strike, then the market resolves to Yes.\",");
    put(out, "\"rules_secondary\":\"The index is published once a second. Should it not be ");
    put(
        out,
        "published for more than thirty of the sixty seconds, the last sixty published values ",
    );
    put(out, "count instead. Revisions made after expiration are not taken into account.\",");
    put(out, "\"can_close_early\":true,\"event_ticker\":");
    quoted(names::event_of(ticker), out);
    put(out, ",\"expected_expiration_ts\":");
    uint(seconds + 3_900, out);
    put(out, ",\"strike_type\":\"greater\"}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    const TICKER: &str = "KXBTCD-26NOV2317-T95499.99";

    fn subject() -> Subject<'static> {
        let stamp = Stamp::from_micros(1_793_534_400_957_081);
        Subject { ticker: TICKER, market_id: names::uuid(1, 1), stamp }
    }

    fn whole(head: impl Fn(&mut Vec<u8>), tail: impl Fn(&mut Vec<u8>)) -> (Value, usize) {
        let mut out = Vec::new();
        head(&mut out);
        tail(&mut out);
        assert_eq!(out.last(), Some(&b'\n'));
        (serde_json::from_slice(&out).expect("valid JSON"), out.len())
    }

    #[test]
    fn a_delta_has_the_recorded_shape_and_size() {
        let change = Change { side: Side::Yes, price: 4_700, delta: -300 };
        let (value, size) = whole(
            |out| sequenced_head("orderbook_delta", 1, 12_345, out),
            |out| delta(&subject(), change, &mut StampWriter::new(), out),
        );
        assert_eq!(value["seq"], 12_345);
        assert_eq!(value["msg"]["price_dollars"], "0.4700");
        assert_eq!(value["msg"]["delta_fp"], "-3.00");
        assert_eq!(value["msg"]["ts"], "2026-11-01T12:00:00.957081Z");
        assert_eq!(value["msg"]["ts_ms"], 1_793_534_400_957_u64);
        assert!((250..=285).contains(&size), "{size}");
    }

    #[test]
    fn ticker_and_trade_have_the_recorded_keys_and_sizes() {
        let book = Book::opening(5, &(3..=3));
        let (value, size) = whole(
            |out| clocked_head("ticker", 3, 17, out),
            |out| ticker(&subject(), &book, &mut StampWriter::new(), out),
        );
        assert!(value.get("seq").is_none());
        assert_eq!(value["msg"]["Clock"], 17);
        for key in ["yes_bid_dollars", "yes_ask_dollars", "volume_fp", "dollar_volume", "time"] {
            assert!(value["msg"].get(key).is_some(), "{key}");
        }
        assert!((440..=520).contains(&size), "{size}");
        let one = Trade { id: 7, yes_price: 3_600, size: 13_600, taker: Side::No };
        let (value, size) = whole(
            |out| sequenced_head("trade", 2, 1, out),
            |out| trade(TICKER, subject().stamp, &one, out),
        );
        assert_eq!(value["msg"]["no_price_dollars"], "0.6400");
        assert_eq!(value["msg"]["count_fp"], "136.00");
        assert!((320..=370).contains(&size), "{size}");
    }

    #[test]
    fn lifecycle_messages_have_the_recorded_keys_and_sizes() {
        let cases = [
            (Happening::Created, "created", 800..3_000),
            (Happening::Activated, "activated", 120..220),
            (Happening::Deactivated, "deactivated", 120..220),
            (Happening::Determined, "determined", 180..230),
            (Happening::Settled, "settled", 120..170),
            (Happening::MetadataUpdated, "metadata_updated", 120..300),
        ];
        for (happening, name, sizes) in cases {
            let (value, size) = whole(
                |out| sequenced_head(happening.kind(), 1, 279_597, out),
                |out| lifecycle(happening, TICKER, 1_784_501_722, out),
            );
            assert_eq!(value["msg"]["event_type"], name);
            assert_eq!(value["msg"]["market_ticker"], TICKER);
            assert!(sizes.contains(&size), "{name}: {size}");
        }
        for happening in [Happening::EventLifecycle, Happening::EventFeeUpdate] {
            let (value, _) = whole(
                |out| sequenced_head(happening.kind(), 1, 1, out),
                |out| lifecycle(happening, TICKER, 1, out),
            );
            assert_eq!(value["msg"]["event_ticker"], "KXBTCD-26NOV2317");
        }
    }

    #[test]
    fn the_missions_lifecycle_tells_old_and_new_status() {
        let tell = |happening, was| {
            let mut out = Vec::new();
            clocked_head("market_lifecycle", 1, 4, &mut out);
            status(happening, was, TICKER, 1_705_328_200, &mut out)?;
            Some(serde_json::from_slice::<Value>(&out).expect("valid JSON"))
        };
        let got = tell(Happening::Deactivated, "active").unwrap_or_default();
        let want = serde_json::json!({"type":"market_lifecycle","sid":1,"msg":{"Clock":4,
            "market_ticker":TICKER,"event_type":"status_change","old_status":"active",
            "new_status":"inactive","result":"","ts":1_705_328_200}});
        assert_eq!(got, want);
        let got = tell(Happening::Settled, "determined").unwrap_or_default();
        assert_eq!(got["msg"]["event_type"], "settled");
        assert_eq!(got["msg"]["new_status"], "finalized");
        assert_eq!(tell(Happening::EventFeeUpdate, "active"), None);
    }

    #[test]
    fn snapshots_leave_empty_sides_out() {
        let (value, _) = whole(
            |out| sequenced_head("orderbook_snapshot", 1, 1, out),
            |out| snapshot(TICKER, 0, &Book::empty(), out),
        );
        assert!(value["msg"].get("yes_dollars_fp").is_none());
        let book = Book::opening(5, &(2..=2));
        let (value, size) = whole(
            |out| sequenced_head("orderbook_snapshot", 1, 1, out),
            |out| snapshot(TICKER, 0, &book, out),
        );
        assert_eq!(value["msg"]["yes_dollars_fp"].as_array().map(Vec::len), Some(2));
        assert!((220..=320).contains(&size), "{size}");
    }
}
