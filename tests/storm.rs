//! Storms in little: everything cut at once, then connections cut at random, under load. Alone in
//! its process, so that the descriptors it counts are its own. How long it takes is measured by
//! `benches/storm.rs`; here only what must be right.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test may panic and read the clock"
)]

mod support;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use exchange_sim::ExchangeConfig;
use kalshi_feed::{ConnId, Epoch, Overflow, PoolLayout, RawMessage, Role};
use support::Rig;

const MARKETS: u64 = 2_000;
const ALL: u64 = 150;
/// Cut at random, one after another.
const CUTS: u64 = 200;

/// What came on each connection in the epoch of its last message.
#[derive(Default)]
struct Streams(BTreeMap<ConnId, (Epoch, BTreeSet<String>)>);

impl Streams {
    fn note(&mut self, message: &RawMessage) {
        let fresh = (message.epoch, BTreeSet::new());
        let stream = self.0.entry(message.conn_id).or_insert_with(|| fresh.clone());
        if stream.0 != message.epoch {
            *stream = fresh;
        }
        if message.data.starts_with(b"{\"type\":\"orderbook_snapshot\"") {
            let book: serde_json::Value = serde_json::from_slice(&message.data).unwrap();
            stream.1.insert(book["msg"]["market_ticker"].as_str().unwrap().to_owned());
        }
    }

    /// Everything is subscribed, every market's book has come in its connection's present epoch,
    /// and every connection streams; but for the lifecycle's, which go another way.
    fn are_whole(&self, rig: &Rig) -> bool {
        let stats = rig.handle.stats();
        let (all, heard) = (rig.live.len(), |conn: &ConnId| self.0.get(conn).map(|(at, _)| *at));
        let pool = PoolLayout::default();
        let streams = rig.live.iter().all(|(conn, (epoch, _))| {
            pool.role(*conn) == Some(Role::Lifecycle) || heard(conn) == Some(*epoch)
        });
        let books: BTreeSet<_> = self.0.values().flat_map(|(_, books)| books).collect();
        streams
            && u64::try_from(all) == Ok(ALL)
            && (stats.connections_healthy, stats.subscriptions_total) == (ALL, ALL)
            && (stats.markets_total, stats.markets_wanted) == (MARKETS, MARKETS)
            && u64::try_from(books.len()) == Ok(MARKETS)
    }
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Takes what comes until everything streams after so many returns to live.
fn whole_again(rig: &mut Rig, streams: &RefCell<Streams>, reconnects: u64, most: usize) {
    rig.consume_until(
        "everything streams again",
        |message| streams.borrow_mut().note(message),
        |rig| {
            rig.handle.stats().reconnects == reconnects
                && streams.borrow().are_whole(rig)
                && descriptors() <= most
        },
    );
}

#[test]
fn j1_all_cut_at_once_and_then_at_random_stream_again_and_nothing_is_lost_in_silence() {
    let exchange = ExchangeConfig {
        markets: usize::try_from(MARKETS).unwrap(),
        rate_per_second: 5_000,
        lifecycle_churn_per_minute: 0,
        // Something is always on its way, and lost with its connection.
        proxy: Some("latency=10".parse().unwrap()),
        ..ExchangeConfig::default()
    };
    let mut rig = Rig::start(exchange, PoolLayout::default(), |settings| {
        settings.connect_interval(Duration::ZERO).overflow(Overflow::Backpressure)
    });
    let streams = RefCell::new(Streams::default());
    whole_again(&mut rig, &streams, 0, usize::MAX);
    let before = descriptors();
    let everyone = rig.exchange.connections();
    assert_eq!(u64::try_from(rig.exchange.reset(&everyone)), Ok(ALL));
    whole_again(&mut rig, &streams, ALL, before);
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..CUTS {
        let enough = |rig: &Rig| rig.live.len() >= 20;
        rig.consume_until("some are live", |message| streams.borrow_mut().note(message), enough);
        let conns: Vec<_> = rig.live.keys().copied().collect();
        let (_, address) = rig.live.remove(&conns[random.usize(..conns.len())]).unwrap();
        assert_eq!(rig.exchange.reset(&[address]), 1);
        rig.consume_for(Duration::from_millis(10), |message| streams.borrow_mut().note(message));
    }
    whole_again(&mut rig, &streams, ALL + CUTS, before);
    let (verdict, report) = rig.settle();
    println!("{verdict:?}");
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
    assert!(verdict.covered > 0, "nothing was on its way");
    assert_eq!((report.stats.messages_dropped, report.stats.reports_lost), (0, 0));
    assert!(report.stats.tls_full <= ALL, "every return resumed: {:?}", report.stats);
}
