//! Markets that come and go while everything streams.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test may panic and read the clock"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use exchange_sim::ExchangeConfig;
use kalshi_feed::{ConnId, MarketChange, MarketState, MarketStatus, PoolLayout, Ticker};
use support::Rig;

fn loads(rig: &Rig) -> BTreeMap<ConnId, usize> {
    let mut loads: BTreeMap<_, _> = (7..=150).map(|conn| (ConnId::new(conn), 0)).collect();
    for info in rig.handle.assignments().iter() {
        assert_eq!(info.state, MarketState::Subscribed, "{info:?}");
        *loads.get_mut(&info.conn.unwrap()).unwrap() += 1;
    }
    loads
}

fn spread(loads: &BTreeMap<ConnId, usize>) -> usize {
    loads.values().max().unwrap() - loads.values().min().unwrap()
}

/// What the exchange holds, connection by connection.
fn held(rig: &Rig) -> Vec<String> {
    let peers = rig.exchange.connections();
    peers.into_iter().flat_map(|peer| rig.exchange.subscribed_markets(peer)).collect()
}

#[test]
fn a_thousand_created_and_half_of_them_settled_while_streaming() {
    let exchange = ExchangeConfig {
        markets: 300,
        rate_per_second: 10_000,
        lifecycle_churn_per_minute: 0,
        // Settled markets go on streaming until they are unsubscribed: only then does silence
        // prove anything.
        settled_markets_stream: true,
        ..ExchangeConfig::default()
    };
    let mut rig = Rig::start(exchange, PoolLayout::default(), |settings| settings);
    rig.all_confirmed(300);
    assert!(spread(&loads(&rig)) <= 1, "{:?}", loads(&rig));

    let created = rig.exchange.create_markets(1_000);
    let tickers: Vec<Ticker> = created.iter().map(|text| text.parse().unwrap()).collect();
    for (index, ticker) in tickers.iter().enumerate() {
        rig.host.send(MarketChange::created(ticker.clone(), MarketStatus::Active)).unwrap();
        if index % 100 == 0 {
            rig.consume_for(Duration::from_millis(10), |_| {});
        }
    }
    rig.all_confirmed(1_300);
    let after = loads(&rig);
    println!("after 1,000 creations: max - min = {}", spread(&after));
    assert!(spread(&after) <= 1, "each went to a least loaded connection: {after:?}");

    let (settled, kept) = created.split_at(500);
    rig.exchange.settle_markets(settled);
    for ticker in tickers.iter().take(500) {
        rig.host.send(MarketChange::settled(ticker.clone())).unwrap();
    }
    rig.all_confirmed(800);
    let acknowledged = Instant::now();
    let held = held(&rig);
    let distinct: BTreeSet<_> = held.iter().cloned().collect();
    assert_eq!(held.len(), distinct.len(), "no market on two connections");
    assert_eq!(distinct.len(), 800);
    assert!(kept.iter().all(|ticker| distinct.contains(ticker)));
    assert!(settled.iter().all(|ticker| !distinct.contains(ticker)));

    let settled: BTreeSet<&[u8]> = settled.iter().map(|ticker| ticker.as_bytes()).collect();
    let (mut late, mut books) = (0, 0);
    rig.consume_for(Duration::from_secs(3), |message| {
        if message.role != kalshi_feed::Role::Orderbook {
            return;
        }
        books += 1;
        let value: serde_json::Value = serde_json::from_slice(&message.data).unwrap();
        let market = value["msg"]["market_ticker"].as_str().unwrap().as_bytes();
        let over = message.received_at.mono.saturating_duration_since(acknowledged);
        late += usize::from(settled.contains(market) && over > Duration::from_secs(1));
    });
    println!("{books} book frames in the next 3 s, {late} of settled markets after 1 s");
    assert!(books > 1_000);
    assert_eq!(late, 0);
    let (verdict, _) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
}

#[test]
fn a_connections_last_market_takes_its_subscription_along_and_the_next_opens_another() {
    let exchange = ExchangeConfig { markets: 1, rate_per_second: 200, ..ExchangeConfig::default() };
    let mut rig = Rig::start(exchange, PoolLayout::new(0, 1, 0, 1), |settings| settings);
    rig.all_confirmed(1);
    let ticker: Ticker = rig.exchange.active_markets().first().unwrap().parse().unwrap();
    let first = rig.handle.subscription(&ticker).unwrap();
    for _ in 0..3 {
        rig.host.send(MarketChange::settled(ticker.clone())).unwrap();
        rig.all_confirmed(0);
        assert_eq!(rig.handle.stats().subscriptions_total, 1, "only the trade line is open");
        assert_eq!(rig.handle.subscription(&ticker), None);
        rig.host.send(MarketChange::created(ticker.clone(), MarketStatus::Active)).unwrap();
        rig.all_confirmed(1);
    }
    let last = rig.handle.subscription(&ticker).unwrap();
    assert!(last.sid > first.sid, "{first:?} {last:?}");
    let (verdict, report) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
    assert_eq!(report.stats.sequence_gaps, 0);
}

#[test]
fn a_list_longer_than_one_command_goes_out_in_chunks() {
    let exchange =
        ExchangeConfig { markets: 1_000, rate_per_second: 1_000, ..ExchangeConfig::default() };
    let mut rig = Rig::start(exchange, PoolLayout::new(0, 0, 0, 2), |settings| settings.chunk(64));
    rig.all_confirmed(1_000);
    let (verdict, report) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
    assert_eq!(report.stats.sequence_gaps, 0, "acknowledgements take slots, and are counted");
    assert!(report.stats.replies >= 16, "{}", report.stats.replies);
}
