//! Faults of data over real sockets: frames dropped, repeated and renumbered, silent subscriptions,
//! and redundant lines with their own losses and delays. After each the ledger settles.

#![allow(
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

#[allow(dead_code, reason = "each test file uses part of the client")]
mod client;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use client::{Client, Event};
use exchange_sim::{
    Arbitration, Audit, Content, DataRule, Exchange, ExchangeConfig, LineVerdict, Mode, Verdict,
};
use serde_json::Value;

fn config(rules: &[&str]) -> ExchangeConfig {
    ExchangeConfig {
        markets: 20,
        rate_per_second: 20_000,
        lifecycle_churn_per_minute: 0,
        tls: false,
        data_faults: rules.iter().map(|rule| rule.parse().unwrap()).collect(),
        ..ExchangeConfig::default()
    }
}

/// A reader that keeps sequences as an honest client does.
struct Reader {
    client: Client,
    audit: Audit,
    /// By sid: the highest number seen, and what was missed and not told yet.
    sids: BTreeMap<u64, (u64, u64)>,
    repeats: u64,
    gaps: u64,
}

/// A frame as it was handed over.
struct Taken {
    kind: String,
    gap: u64,
    seq: Option<u64>,
    text: Vec<u8>,
}

impl Reader {
    fn connect(exchange: &Exchange) -> Self {
        let client = Client::connect(exchange);
        let mut audit = Audit::default();
        audit.up(1, 1, client.local_addr());
        Self { client, audit, sids: BTreeMap::new(), repeats: 0, gaps: 0 }
    }

    /// The next data frame, or how the connection ended.
    fn take(&mut self) -> Result<Taken, Event> {
        loop {
            let text = match self.client.next() {
                Event::Text(text) => text,
                Event::Ping(_) => continue,
                end => return Err(end),
            };
            let frame: Value = serde_json::from_slice(&text).unwrap();
            let kind = frame["type"].as_str().unwrap().to_owned();
            let (sid, seq) = (frame["sid"].as_u64(), frame["seq"].as_u64());
            let (seen, owed) = self.sids.entry(sid.unwrap_or(0)).or_default();
            if let Some(seq) = seq {
                if seq > *seen {
                    *owed += seq - *seen - 1;
                    self.gaps += u64::from(seq > *seen + 1);
                    *seen = seq;
                } else {
                    self.repeats += 1;
                }
            }
            if matches!(kind.as_str(), "subscribed" | "ok" | "error" | "unsubscribed") {
                continue;
            }
            let gap = std::mem::take(owed);
            self.audit.delivered(1, 1, sid.unwrap(), seq, gap, &text);
            return Ok(Taken { kind, gap, seq, text });
        }
    }

    fn take_many(&mut self, count: usize) {
        (0..count).for_each(|_| drop(self.take().map_err(|end| panic!("{end:?}"))));
    }

    /// Reads to the exchange's Close and settles.
    fn finish(mut self, exchange: &Exchange) -> Verdict {
        exchange.set_mode(Mode::Quiet);
        exchange.close(&[self.client.local_addr()], 1000);
        while self.take().is_ok() {}
        for (sid, (_, owed)) in self.sids {
            self.audit.owed(1, 1, sid, owed);
        }
        let mut ledger = exchange.ledger();
        ledger.connections.retain(|record| record.peer == self.client.local_addr());
        self.audit.settle(&ledger)
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen within 10 s");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn clean(verdict: &Verdict) {
    assert_eq!((verdict.unaccounted, &verdict.findings), (0, &Vec::new()), "{verdict:?}");
    let sum = verdict.delivered + verdict.covered + verdict.undetectable;
    assert_eq!(sum, verdict.sent, "{verdict:?}");
}

#[test]
fn f1_dropped_frames_leave_holes_that_are_told_exactly() {
    let exchange = Exchange::start(config(&["sequenced drop p=0.05"])).unwrap();
    let mut reader = Reader::connect(&exchange);
    let markets = exchange.active_markets();
    reader.client.subscribe(1, &["orderbook_delta", "ticker", "trade"], &markets);
    reader.take_many(5_000);
    let gaps = reader.gaps;
    let verdict = reader.finish(&exchange);
    clean(&verdict);
    let stats = exchange.stats();
    assert!(gaps > 100 && verdict.covered >= gaps, "{gaps} {verdict:?}");
    assert_eq!(verdict.covered + verdict.undetectable, stats.data_withheld);
    assert!(verdict.undetectable <= 10, "only what was withheld last");
}

#[test]
fn dropped_tickers_are_undetectable_and_drops_end_in_time() {
    let exchange = Exchange::start(config(&["ticker drop p=0.5 for=300"])).unwrap();
    let mut reader = Reader::connect(&exchange);
    reader.client.subscribe(1, &["ticker"], &[]);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(400) {
        reader.take_many(1);
    }
    let withheld = exchange.stats().data_withheld;
    assert!(withheld > 100, "{withheld}");
    reader.take_many(500);
    assert_eq!(exchange.stats().data_withheld, withheld);
    let verdict = reader.finish(&exchange);
    clean(&verdict);
    assert_eq!((verdict.undetectable, verdict.covered), (withheld, 0));
}

#[test]
fn f2_duplicates_and_backward_frames_are_no_loss_and_no_gain() {
    let rules = ["any duplicate p=0.02", "sequenced backward=7 p=0.02", "any drop p=0.01"];
    let exchange = Exchange::start(config(&rules)).unwrap();
    let mut reader = Reader::connect(&exchange);
    let markets = exchange.active_markets();
    reader.client.subscribe(1, &["orderbook_delta", "ticker", "trade"], &markets);
    reader.take_many(5_000);
    let repeats = reader.repeats;
    let verdict = reader.finish(&exchange);
    clean(&verdict);
    assert!(repeats > 100 && exchange.stats().data_repeated >= repeats, "{repeats}");
}

#[test]
fn f3_numbers_start_again_and_the_ledger_follows() {
    let exchange = Exchange::start(config(&["sequenced drop p=0.02"])).unwrap();
    let mut reader = Reader::connect(&exchange);
    let markets = exchange.active_markets();
    reader.client.subscribe(1, &["trade"], &markets);
    reader.take_many(300);
    exchange.inject_data("trade restart next=1".parse().unwrap());
    let again = (0..10_000).position(|_| reader.take().is_ok_and(|taken| taken.seq == Some(1)));
    assert!(again.is_some(), "numbers never started again");
    reader.take_many(2_000);
    assert!(reader.repeats > 200, "{}", reader.repeats);
    clean(&reader.finish(&exchange));
    assert_eq!(exchange.ledger().connections[0].sids[0].renumbered.len(), 1);
}

#[test]
fn everything_withheld_ends_in_good_order() {
    for mode in [Mode::Paced, Mode::Burst, Mode::Flood] {
        let exchange =
            Exchange::start(ExchangeConfig { mode, ..config(&["any drop p=0.999"]) }).unwrap();
        let mut reader = Reader::connect(&exchange);
        reader.client.subscribe(1, &["orderbook_delta", "trade"], &exchange.active_markets());
        reader.take_many(20);
        exchange.clear_data_faults();
        reader.take_many(200);
        clean(&reader.finish(&exchange));
    }
}

#[test]
fn d12_one_subscription_is_silent_while_others_flow() {
    let exchange = Exchange::start(config(&[])).unwrap();
    let mut reader = Reader::connect(&exchange);
    let peer = reader.client.local_addr();
    let markets = exchange.active_markets();
    reader.client.subscribe(1, &["orderbook_delta", "ticker", "trade"], &markets);
    reader.take_many(200);
    assert!(exchange.stall(peer, 1, true) && !exchange.stall(peer, 9, true));
    let at_most = exchange.ledger().connections[0].sids[0].last_number;
    let mut others = 0;
    while others < 500 {
        let taken = reader.take().unwrap();
        let book = taken.kind.starts_with("orderbook");
        assert!(!book || taken.seq.unwrap() <= at_most, "silent means silent");
        others += u32::from(!book);
    }
    assert!(exchange.stall(peer, 1, false));
    while reader.take().unwrap().seq.is_none_or(|seq| seq <= at_most) {}
    clean(&reader.finish(&exchange));
}

/// Two readers that follow whole channels, their frames merged by what they say as they come.
fn merge(exchange: &Exchange, channel: &str, frames: usize) -> (LineVerdict, [u64; 2]) {
    let mut readers = [Reader::connect(exchange), Reader::connect(exchange)];
    for (at, reader) in readers.iter_mut().enumerate() {
        reader.client.subscribe(1, &[channel], &[]);
        until("the line is there", || exchange.lines().len() > at);
    }
    let lines = exchange.lines();
    let peers: Vec<_> = lines.iter().map(|holder| (holder.line, holder.peer)).collect();
    let want = |line: u8, at: usize| (line, readers[at].client.local_addr());
    assert_eq!(peers, [want(1, 0), want(2, 1)]);
    std::thread::scope(|scope| {
        let (sender, taken) = std::sync::mpsc::channel();
        for (line, mut reader) in readers.into_iter().enumerate() {
            let sender = sender.clone();
            scope.spawn(move || {
                for count in 0.. {
                    match reader.take() {
                        Ok(taken) => sender.send((line, Some(taken))).unwrap(),
                        Err(_) => break,
                    }
                    if count == frames {
                        sender.send((line, None)).unwrap();
                    }
                }
                clean(&reader.finish(exchange));
            });
        }
        drop(sender);
        let (mut seen, mut wins, mut ends) = (BTreeSet::new(), [0, 0], 0);
        // What each line said is missing and the other has not brought yet.
        let (mut open, mut account) = ([0_u64, 0], Arbitration::default());
        for (line, taken) in taken {
            let Some(Taken { gap, text, .. }) = taken else {
                ends += 1;
                if ends == 2 {
                    exchange.set_mode(Mode::Quiet);
                    exchange.close(&exchange.connections(), 1000);
                }
                continue;
            };
            open[line] += gap;
            if seen.insert(Content::identity_of(&text).unwrap()) {
                wins[line] += 1;
                account.delivered(channel, 0, &text);
            }
        }
        assert!(channel == "ticker" || open[0].min(open[1]) > 0);
        // Which of the holes both had is known at the end only, by this simple merger.
        let contents = exchange.contents();
        let both = account.settle(channel, &contents);
        account.owed(channel, both.lost_on_all - both.undetectable);
        (account.settle(channel, &contents), wins)
    })
}

#[test]
fn lines_say_the_same_and_lose_on_their_own() {
    for (mode, channel) in [
        (Mode::Paced, "ticker"),
        (Mode::Paced, "trade"),
        (Mode::Burst, "trade"),
        (Mode::Burst, "ticker"),
    ] {
        let rules = [format!("{channel}/1 drop p=0.2"), format!("{channel}/2 drop p=0.2")];
        let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
        let exchange =
            Exchange::start(ExchangeConfig { mode, record_contents: true, ..config(&rules) })
                .unwrap();
        let (verdict, _) = merge(&exchange, channel, 3_000);
        assert_eq!(verdict.unaccounted, 0, "{mode} {channel}: {verdict:?}");
        // 4 % are lost on both, 32 % on one of them.
        assert!(verdict.lost_on_all * 100 > verdict.sent, "{verdict:?}");
        assert!(verdict.lost_on_some * 10 > verdict.sent, "{verdict:?}");
        let undetectable = if channel == "ticker" { verdict.lost_on_all } else { 0 };
        assert!(verdict.undetectable.abs_diff(undetectable) <= 5, "{verdict:?}");
    }
}

#[test]
fn lifecycle_lines_tell_the_same_events() {
    let rule: DataRule = "market_lifecycle_v2/2 drop p=0.3".parse().unwrap();
    let churn = ExchangeConfig {
        lifecycle_churn_per_minute: 60_000,
        record_contents: true,
        data_faults: vec![rule],
        ..config(&[])
    };
    let exchange = Exchange::start(churn).unwrap();
    let mut readers = [Reader::connect(&exchange), Reader::connect(&exchange)];
    for reader in &mut readers {
        reader.client.subscribe(1, &["market_lifecycle_v2"], &[]);
    }
    readers.iter_mut().for_each(|reader| reader.take_many(200));
    assert!(exchange.stop_traffic(Duration::from_secs(5)));
    for reader in readers {
        clean(&reader.finish(&exchange));
    }
    let contents = exchange.contents();
    let (both, whole): (Vec<_>, Vec<_>) = contents
        .list
        .iter()
        .filter(|content| content.copies.len() == 2)
        .partition(|content| content.copies.iter().any(|copy| !copy.written));
    assert!(both.len() > 20 && whole.len() > 100, "{} {}", both.len(), whole.len());
    assert!(both.iter().all(|content| content.copies[0].written));
}

#[test]
fn the_line_that_is_held_back_loses_the_race() {
    let exchange = Exchange::start(ExchangeConfig {
        record_contents: true,
        line_delays: vec!["trade/1 25".parse().unwrap()],
        ..config(&["trade drop p=0.05"])
    })
    .unwrap();
    let (verdict, wins) = merge(&exchange, "trade", 2_000);
    assert_eq!(verdict.unaccounted, 0, "{verdict:?}");
    // The first brings only what the second lost.
    assert!(wins[0] * 8 < wins[1], "{wins:?}");
    assert!(wins[0] > 0, "{wins:?}");
}

#[test]
fn a_line_keeps_its_number_and_its_delay_through_a_reconnect() {
    let exchange = Exchange::start(ExchangeConfig { mode: Mode::Quiet, ..config(&[]) }).unwrap();
    let follow = || {
        let mut reader = Reader::connect(&exchange);
        reader.client.subscribe(1, &["trade"], &[]);
        assert_eq!(reader.client.json()["type"], "subscribed");
        reader
    };
    let (first, _second) = (follow(), follow());
    exchange.set_line_delay("trade/1 60".parse().unwrap());
    let round = |reader: &mut Reader| {
        let asked = Instant::now();
        reader.client.frame(0x89, b"x");
        assert_eq!(reader.client.next(), Event::Pong(b"x".to_vec()));
        asked.elapsed()
    };
    exchange.cut(&[first.client.local_addr()]);
    let mut again = follow();
    let lines: Vec<_> = exchange.lines().iter().map(|line| (line.line, line.peer)).collect();
    assert_eq!(lines[0], (1, again.client.local_addr()));
    assert!(round(&mut again) >= Duration::from_millis(60));
    exchange.set_line_delay("trade/1 0".parse().unwrap());
    round(&mut again);
    assert_eq!(exchange.lines().len(), 2);
}
