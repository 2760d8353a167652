//! What is kept, in which order it goes out and what it tells, by example and against a list.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::ids::{ConnId, Role, ShardId, widen};

const LIMITS: Limits = Limits { markets: 3, bytes: 1 << 20 };
const SID: Sid = Sid::new(1);

fn stamp(read: u64) -> Stamp {
    let since = Duration::from_millis(read);
    let wall = std::time::SystemTime::UNIX_EPOCH + since;
    static START: std::sync::LazyLock<std::time::Instant> =
        std::sync::LazyLock::new(crate::clock::now);
    Stamp { wall, mono: *START + since }
}

fn text(market: &str, number: u64) -> String {
    format!(
        "{{\"type\":\"ticker\",\"sid\":1,\"msg\":{{\"market_ticker\":\"{market}\",\"n\":{number}}}}}\n"
    )
}

/// A batch of one message.
fn message(epoch: u32, read: u64, text: &str, continuity: Continuity) -> Box<Buffer> {
    let mut buffer = Buffer::empty(ShardId::new(0), 100);
    (buffer.conn, buffer.epoch, buffer.role) = (ConnId::new(1), Epoch::new(epoch), Role::Ticker);
    buffer.received_at = stamp(read);
    buffer.bytes.extend_from_slice(text.as_bytes());
    let (start, end, sid) = (0, text.len(), Some(SID));
    let (seq, gap_size, suspect) = (None, 0, false);
    buffer.entries.push(Entry { start, end, sid, seq, gap_size, continuity, suspect });
    buffer
}

fn give(kept: &mut Conflated, market: &str, number: u64) -> Absorbed {
    let continuity = if number == 1 { Continuity::First } else { Continuity::Next };
    let batch = message(1, number, &text(market, number), continuity);
    kept.absorb(&batch, &batch.entries)
}

/// Takes out up to so many: their numbers, and what they tell.
fn take(kept: &mut Conflated, most: usize) -> Vec<(u64, Continuity, u64)> {
    let mut out = Vec::new();
    while out.len() < most {
        let (mut bytes, mut entries) = (Vec::new(), Vec::new());
        if kept.front(most - out.len(), &mut bytes, &mut entries).is_none() {
            break;
        }
        for entry in &entries {
            let data: serde_json::Value =
                serde_json::from_slice(&bytes[entry.start..entry.end]).unwrap();
            out.push((data["msg"]["n"].as_u64().unwrap(), entry.continuity, entry.gap_size));
        }
        kept.commit(entries.len());
    }
    out
}

fn owed(kept: &Conflated) -> u64 {
    kept.debts().map(|debt| debt.messages).sum()
}

#[test]
fn the_newest_of_each_market_goes_out_in_the_order_it_came() {
    use Continuity::{First, Gap, Next};
    let mut kept = Conflated::new(LIMITS);
    for (number, market) in (1..).zip(["A", "B", "A", "C", "B", "C", "C"]) {
        give(&mut kept, market, number);
    }
    assert_eq!((kept.len(), owed(&kept)), (3, 7));
    assert_eq!(take(&mut kept, 9), [(3, First, 2), (5, Gap, 1), (7, Gap, 1)]);
    assert_eq!((kept.len(), owed(&kept), kept.bytes), (0, 0, 0));
    give(&mut kept, "A", 8);
    assert_eq!(take(&mut kept, 9), [(8, Next, 0)]);
}

#[test]
fn beyond_the_bounds_the_newest_is_dropped_and_the_next_one_tells() {
    use Continuity::{First, Gap, Next};
    let mut kept = Conflated::new(LIMITS);
    let fates: Vec<_> = (1..)
        .zip(["A", "B", "C", "D", "A"])
        .map(|(number, market)| give(&mut kept, market, number))
        .map(|absorbed| (absorbed.kept, absorbed.conflated, absorbed.dropped))
        .collect();
    assert_eq!(fates, [(1, 0, 0), (1, 0, 0), (1, 0, 0), (0, 0, 1), (0, 1, 0)]);
    assert_eq!(take(&mut kept, 9), [(2, First, 1), (3, Next, 0), (5, Gap, 1)]);
    let mut kept = Conflated::new(Limits { markets: 9, bytes: 200 });
    let long = text(&"L".repeat(64), 1);
    let batch = message(1, 1, &long, Continuity::First);
    kept.absorb(&batch, &batch.entries);
    give(&mut kept, "B", 2);
    assert_eq!(give(&mut kept, "C", 3).dropped, 1, "{} bytes are kept", kept.bytes);
    assert!(kept.bytes <= 200);
}

#[test]
fn what_is_no_ticker_is_dropped_and_told() {
    let mut kept = Conflated::new(LIMITS);
    give(&mut kept, "A", 1);
    let odd = [
        r#"{"type":"trade","sid":1,"seq":3,"msg":{"market_ticker":"B"}}"#,
        r#"{"type":"ticker","sid":1,"msg":{"market_id":"x"}}"#,
        r#"{"type":"ticker","sid":1,"msg":{"market_ticker":"a\"b"}}"#,
        r#"{"type":"ticker","sid":1,"msg":{"market_ticker":""}}"#,
        "not json",
    ];
    for (read, text) in (2..).zip(odd) {
        let batch = message(1, read, text, Continuity::Next);
        assert_eq!(kept.absorb(&batch, &batch.entries).dropped, 1, "{text}");
    }
    give(&mut kept, "B", 7);
    assert_eq!(take(&mut kept, 9)[1], (7, Continuity::Gap, 5));
}

#[test]
fn what_an_ended_epoch_left_is_told_by_the_first_of_the_next() {
    let mut kept = Conflated::new(LIMITS);
    give(&mut kept, "A", 1);
    give(&mut kept, "A", 2);
    let batch = message(2, 3, &text("A", 3), Continuity::First);
    kept.absorb(&batch, &batch.entries);
    assert_eq!(take(&mut kept, 9), [(3, Continuity::First, 2)]);
    assert_eq!(owed(&kept), 0);
}

#[test]
fn a_flood_of_subscriptions_is_bounded_and_told_in_the_end() {
    let mut kept = Conflated::new(Limits { markets: 1_000, bytes: 1 << 20 });
    for sid in 0..500 {
        let mut batch = message(1, sid, &text(&format!("M{sid}"), sid), Continuity::First);
        batch.entries[0].sid = Some(Sid::new(sid));
        kept.absorb(&batch, &batch.entries);
    }
    assert_eq!((kept.len(), kept.lines.len(), owed(&kept)), (LINES_MAX, LINES_MAX, 500));
}

/// The same by walking a list of everything that ever came.
#[derive(Default)]
struct Naive {
    came: Vec<(u32, usize)>,
    /// Places in it.
    kept: Vec<usize>,
    told: Vec<bool>,
    spoken: Vec<u32>,
}

impl Naive {
    fn give(&mut self, epoch: u32, market: usize) {
        let at = self.came.len();
        self.came.push((epoch, market));
        self.told.push(false);
        let older = self.kept.iter().position(|&kept| self.came[kept].1 == market);
        if older.is_none() && self.kept.len() >= LIMITS.markets {
            return;
        }
        if let Some(older) = older {
            self.kept.remove(older);
        }
        self.kept.push(at);
    }

    fn take(&mut self) -> Option<(u64, Continuity, u64)> {
        let at = (!self.kept.is_empty()).then(|| self.kept.remove(0))?;
        let epoch = self.came[at].0;
        let first = !self.spoken.contains(&epoch);
        self.spoken.push(epoch);
        let mut gap = 0;
        for before in 0..at {
            let other = self.came[before].0;
            // Of an earlier epoch nothing is kept any more: it went out before.
            if (other == epoch || first) && !self.told[before] {
                self.told[before] = true;
                gap += 1;
            }
        }
        self.told[at] = true;
        let continuity = match (first, gap) {
            (true, _) => Continuity::First,
            (false, 0) => Continuity::Next,
            _ => Continuity::Gap,
        };
        Some((widen(at), continuity, gap))
    }
}

proptest! {
    #![proptest_config(crate::property::cases(2_000))]

    /// Markets come, epochs begin, room comes back now and then: order, gaps and first ones are
    /// those of the list, and what was delivered, told and is still owed is all that came.
    #[test]
    fn agrees_with_a_list_of_all_that_came(
        steps in prop::collection::vec((0usize..5, 0u8..12, 0usize..4), 1..120),
    ) {
        let mut kept = Conflated::new(LIMITS);
        let mut naive = Naive::default();
        let (mut epoch, mut begun, mut read) = (1_u32, false, 0_u64);
        let (mut delivered, mut told) = (0, 0);
        for (market, event, most) in steps {
            match event {
                0 => (epoch, begun) = (epoch + 1, false),
                1..=3 => {
                    let got = take(&mut kept, most);
                    let want: Vec<_> = (0..most).map_while(|_| naive.take()).collect();
                    prop_assert_eq!(&got, &want);
                    delivered += widen(got.len());
                    told += got.iter().map(|(_, _, gap)| gap).sum::<u64>();
                }
                _ => {
                    let first = !std::mem::replace(&mut begun, true);
                    let continuity = if first { Continuity::First } else { Continuity::Next };
                    // Now and then several come in one read.
                    read += u64::from(event % 2 == 0);
                    let text = text(&format!("M{market}"), widen(naive.came.len()));
                    let batch = message(epoch, read, &text, continuity);
                    kept.absorb(&batch, &batch.entries);
                    naive.give(epoch, market);
                }
            }
            prop_assert_eq!(kept.len(), naive.kept.len());
            prop_assert_eq!(delivered + told + owed(&kept), widen(naive.came.len()));
        }
        take(&mut kept, usize::MAX);
        prop_assert_eq!(kept.bytes, 0, "all memory of messages is given back");
    }
}
