//! Order books after lost messages: what is suspect is said, fresh snapshots come, and nothing is
//! suspect in the end. What the host sees is held against a record of its own.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test may panic and read the clock"
)]

mod support;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use exchange_sim::{Among, DataFault, DataRule, ExchangeConfig};
use kalshi_feed::{ConnId, Epoch, Event, GapPolicy, PoolLayout, RawMessage, Role};
use support::Rig;

const MARKETS: u64 = 60;

fn exchange() -> ExchangeConfig {
    ExchangeConfig {
        markets: 60,
        rate_per_second: 6_000,
        lifecycle_churn_per_minute: 0,
        ..ExchangeConfig::default()
    }
}

fn losing(probability: f64) -> DataRule {
    DataRule::chance(Among::Channel("orderbook_delta".to_owned()), DataFault::Drop, probability)
}

/// What a host can know by itself: after a gap of its connection a market is suspect until its next
/// snapshot.
#[derive(Debug, Default)]
struct Record {
    /// By connection, since its first gap.
    books: BTreeMap<(ConnId, Epoch), Books>,
    gaps: u64,
    marked: u64,
    mended: u64,
}

#[derive(Debug, Default)]
struct Books {
    /// Markets that have had a message.
    seen: BTreeSet<String>,
    /// Those that have had a snapshot since the last gap.
    sound: BTreeSet<String>,
}

impl Record {
    fn take(&mut self, message: &RawMessage) {
        if message.role != Role::Orderbook {
            assert!(!message.suspect);
            return;
        }
        let text: serde_json::Value = serde_json::from_slice(&message.data).unwrap();
        let market = text["msg"]["market_ticker"].as_str().unwrap();
        let place = (message.conn_id, message.epoch);
        if message.gap_size > 0 {
            self.gaps += 1;
            self.books.entry(place).or_default().sound.clear();
        }
        let Some(books) = self.books.get_mut(&place) else {
            assert!(!message.suspect, "{message:?}");
            return;
        };
        books.seen.insert(market.to_owned());
        if text["type"] == "orderbook_snapshot" && books.sound.insert(market.to_owned()) {
            self.mended += 1;
        }
        self.marked += u64::from(message.suspect);
        assert_eq!(message.suspect, !books.sound.contains(market), "{message:?}");
    }

    fn left(&self) -> usize {
        let left = |books: &Books| books.seen.difference(&books.sound).count();
        self.books.values().map(left).sum()
    }
}

/// The markets that were told to be suspect, and those told to be sound again.
fn told(events: &[Event]) -> (u64, u64) {
    let (mut suspect, mut recovered) = (0, 0);
    for event in events {
        match event {
            Event::Suspect { total, markets, .. } => {
                assert_eq!(u64::try_from(markets.len()), Ok(*total));
                suspect += total;
            }
            Event::Recovered { markets, .. } => {
                recovered += u64::try_from(markets.len()).unwrap();
            }
            _ => {}
        }
    }
    (suspect, recovered)
}

fn at_rest(rig: &Rig) -> bool {
    let stats = rig.handle.stats();
    stats.recovery.suspect_markets == 0 && stats.markets_total == stats.markets_wanted
}

fn lose_and_mend(policy: GapPolicy, probability: f64) -> (Record, kalshi_feed::Stats) {
    let mut rig = Rig::start(exchange(), PoolLayout::new(1, 1, 1, 4), |settings| {
        settings.gap_policy(policy).message_buffer(1 << 20)
    });
    rig.all_confirmed(MARKETS);
    rig.exchange.inject_data(losing(probability));
    let record = RefCell::new(Record::default());
    let take = |message: &RawMessage| record.borrow_mut().take(message);
    rig.consume_for(Duration::from_secs(3), take);
    rig.exchange.clear_data_faults();
    // What the engine says of itself, the messages say as well.
    let mended = |rig: &Rig| at_rest(rig) && record.borrow().left() == 0;
    rig.consume_until("nothing is suspect", take, mended);
    let record = record.into_inner();
    let (verdict, report) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
    let (suspect, recovered) = told(&rig.seen);
    assert!(suspect > 0 && record.gaps > 0, "nothing was lost");
    assert_eq!(suspect, recovered, "each market that was suspect is told to be sound");
    assert_eq!(recovered, report.stats.recovery.markets_recovered);
    assert_eq!(report.stats.reconnects, 0, "no connection had to go for it");
    println!("{policy:?}: {} gaps, {:?}", record.gaps, report.stats.recovery);
    (record, report.stats)
}

#[test]
fn f1_lost_frames_are_followed_by_fresh_snapshots_and_nothing_stays_suspect() {
    let (record, stats) = lose_and_mend(GapPolicy::Resnapshot, 0.002);
    assert!(record.marked > 0 && record.mended > 0, "{record:?}");
    let recovery = &stats.recovery;
    assert_eq!(recovery.started, recovery.completed);
    assert!(recovery.requests >= recovery.started, "{recovery:?}");
    // One snapshot for each suspect market, and again for what was lost meanwhile.
    assert!(recovery.books_asked <= recovery.markets_recovered * 3, "{recovery:?}");
}

#[test]
fn f1_lost_frames_are_followed_by_a_new_subscription() {
    let (_, stats) = lose_and_mend(GapPolicy::Resubscribe, 0.000_5);
    assert!(stats.recovery.reopened > 0, "{:?}", stats.recovery);
}

#[test]
fn f1_in_the_legacy_dialect_single_markets_are_subscribed_anew() {
    let legacy = ExchangeConfig { dialect: exchange_sim::Dialect::Legacy, ..exchange() };
    let mut rig = Rig::start(legacy, PoolLayout::new(1, 1, 1, 4), |settings| {
        let settings = settings.dialect(kalshi_feed::Dialect::Legacy);
        settings.gap_policy(GapPolicy::Resnapshot).message_buffer(1 << 20)
    });
    rig.all_confirmed(MARKETS);
    rig.exchange.inject_data(losing(0.002));
    let mut marked = 0;
    rig.consume_for(Duration::from_secs(2), |message| marked += u64::from(message.suspect));
    rig.exchange.clear_data_faults();
    rig.consume_until("nothing is suspect", |_| {}, at_rest);
    let verbs = rig.exchange.stats().verbs;
    let (verdict, report) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
    let (suspect, recovered) = told(&rig.seen);
    assert!(marked > 0 && suspect > 0, "nothing was lost");
    assert_eq!(suspect, recovered);
    assert_eq!((verbs.get_snapshot, report.stats.recovery.requests), (0, 0));
    // One at a time, and others were left alone.
    assert!((suspect / 2..suspect * 3).contains(&verbs.unsubscribe), "{verbs:?}, {suspect}");
    println!("{suspect} markets, {verbs:?}, {:?}", report.stats.recovery);
}

#[test]
fn f9_a_storm_of_gaps_is_outlived_and_its_traffic_bounded() {
    let mut rig = Rig::start(exchange(), PoolLayout::new(1, 1, 1, 2), |settings| {
        settings.gap_policy(GapPolicy::Resnapshot).message_buffer(1 << 20)
    });
    rig.all_confirmed(MARKETS);
    let before = rig.exchange.stats().verbs;
    rig.exchange.inject_data(losing(0.5));
    rig.consume_for(Duration::from_secs(3), |_| {});
    let amid = rig.exchange.stats().verbs;
    let asked = amid.get_snapshot - before.get_snapshot;
    let gaps = rig.handle.stats().sequence_gaps;
    assert!(gaps > 500, "{gaps} gaps");
    // Two subscriptions; the pauses between rounds double from 50 ms.
    assert!((2..=20).contains(&asked), "{asked} commands for {gaps} gaps");
    rig.exchange.clear_data_faults();
    rig.consume_until("nothing is suspect", |_| {}, at_rest);
    let (verdict, report) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
    println!("{gaps} gaps, {asked} commands, {:?}", report.stats.recovery);
}

#[test]
fn e10_a_subscription_the_exchange_ends_makes_its_markets_suspect() {
    let mut rig = Rig::start(exchange(), PoolLayout::new(1, 1, 1, 2), |settings| {
        settings.gap_policy(GapPolicy::Resnapshot)
    });
    rig.all_confirmed(MARKETS);
    rig.take_aside();
    let (&conn, &(_, peer)) = rig.live.iter().next_back().unwrap();
    assert!(rig.exchange.terminate(peer, 1, 25));
    let told = |rig: &Rig| {
        let suspect =
            |event: &Event| matches!(event, Event::Suspect { conn: of, .. } if *of == conn);
        let sound = |event: &Event| match event {
            Event::Recovered { conn: of, left, .. } => *of == conn && *left == 0,
            _ => false,
        };
        rig.seen.iter().any(suspect) && rig.seen.iter().any(sound)
    };
    rig.consume_until("its markets were suspect and are sound", |_| {}, told);
    rig.consume_until("all is well", |_| {}, at_rest);
    let (verdict, report) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
    assert_eq!(report.stats.recovery.started, 1);
}

#[test]
fn a_flagged_gap_is_told_and_nothing_is_asked_for() {
    let mut rig = Rig::start(exchange(), PoolLayout::new(1, 1, 1, 2), |settings| settings);
    rig.all_confirmed(MARKETS);
    let before = rig.exchange.stats().verbs.get_snapshot;
    rig.exchange.inject_data(losing(0.01));
    let mut told = 0;
    rig.consume_for(Duration::from_secs(1), |message| {
        assert!(!message.suspect);
        told += message.gap_size;
    });
    assert!(told > 0);
    assert_eq!(rig.exchange.stats().verbs.get_snapshot, before);
    let recovery = rig.handle.stats().recovery;
    assert_eq!((recovery.started, recovery.requests, recovery.suspect_markets), (0, 0, 0));
}
