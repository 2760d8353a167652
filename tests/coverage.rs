//! What was not covered, and from when to when, as the host is told: the time before the first
//! subscription, a connection that was down, messages that were lost.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may panic and read the clock"
)]

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use exchange_sim::{Among, DataFault, DataRule, ExchangeConfig};
use kalshi_feed::{ConnId, Event, PoolLayout, Role, Uncovered, UncoveredMarkets, UncoveredReason};
use support::Rig;

const MARKETS: u64 = 40;

fn start() -> Rig {
    let exchange = ExchangeConfig {
        markets: usize::try_from(MARKETS).unwrap(),
        rate_per_second: 2_000,
        lifecycle_churn_per_minute: 0,
        ..ExchangeConfig::default()
    };
    let mut rig = Rig::start(exchange, PoolLayout::new(1, 1, 1, 2), |settings| settings);
    rig.all_confirmed(MARKETS);
    rig
}

fn told(rig: &Rig) -> Vec<Uncovered> {
    let uncovered = rig.seen.iter().filter_map(|event| match event {
        Event::Uncovered(uncovered) => Some((**uncovered).clone()),
        _ => None,
    });
    uncovered.collect()
}

/// How often each market was told of, for this reason.
fn markets(told: &[Uncovered], reason: UncoveredReason) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for one in told.iter().filter(|one| one.reason == reason) {
        let UncoveredMarkets::Listed(list) = &one.markets else { continue };
        assert!(!list.is_empty() && list.iter().count() == list.len());
        list.iter().for_each(|ticker| *counts.entry(ticker.to_owned()).or_default() += 1);
    }
    counts
}

/// Seconds from start to end, over all markets.
fn market_seconds(told: &[Uncovered]) -> f64 {
    let of = |one: &Uncovered| {
        let markets = match &one.markets {
            UncoveredMarkets::Listed(list) => u32::try_from(list.len()).unwrap(),
            UncoveredMarkets::AllOfConnection(markets) => u32::try_from(*markets).unwrap(),
            _ => 0,
        };
        one.end.duration_since(one.start).unwrap().as_secs_f64() * f64::from(markets)
    };
    told.iter().map(of).sum()
}

#[test]
fn until_it_is_subscribed_a_market_is_not_covered() {
    let begun = SystemTime::now();
    let mut rig = start();
    let lines = |told: &[Uncovered]| told.iter().filter(|one| one.role.is_global()).count();
    rig.consume_until(
        "all are told of",
        |_| {},
        |rig| {
            let told = told(rig);
            markets(&told, UncoveredReason::NotSubscribed).len() == 40 && lines(&told) == 3
        },
    );
    let told = told(&rig);
    let each = markets(&told, UncoveredReason::NotSubscribed);
    assert!(each.values().all(|&times| times == 1), "{each:?}");
    let now = SystemTime::now();
    assert!(told.iter().all(|one| begun <= one.start && one.start <= one.end && one.end <= now));
    let total = rig.handle.stats().uncovered_market_seconds;
    let sum = market_seconds(&told);
    // Those that end within a tenth of a second are told of together, with the latest end.
    assert!(total > 0.0 && total <= sum + 0.1 && sum <= total + 0.1 * 40.0, "{total} {sum}");
    let (verdict, report) = rig.settle();
    assert_eq!((verdict.unaccounted, report.stats.events_dropped), (0, 0));
    assert_eq!(report.stats.uncovered_market_seconds, total, "nothing was added since");
}

#[test]
fn a_connection_that_was_down_is_told_of_from_its_last_data_to_each_markets_return() {
    let mut rig = start();
    let book = ConnId::new(4);
    let (_, address) = rig.live[&book];
    let assigned = rig.exchange.subscribed_markets(address);
    rig.consume_for(Duration::from_millis(300), |_| {});
    let before = SystemTime::now();
    assert_eq!(rig.exchange.cut(&[address]), 1);
    rig.consume_until(
        "all of its markets are told of",
        |_| {},
        |rig| markets(&told(rig), UncoveredReason::Down).len() == assigned.len(),
    );
    let all = told(&rig);
    let down: Vec<_> = all.iter().filter(|one| one.reason == UncoveredReason::Down).collect();
    assert!(down.iter().all(|one| one.conn == Some(book) && one.role == Role::Orderbook));
    assert_eq!(markets(&all, UncoveredReason::Down).into_keys().collect::<Vec<_>>(), assigned);
    let slack = Duration::from_secs(2);
    for one in &down {
        assert!(one.start + slack > before && one.start <= before + slack, "{one:?}");
        assert!(one.end > one.start && one.end <= SystemTime::now(), "{one:?}");
    }
    let (verdict, _) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
}

#[test]
fn lost_messages_are_one_interval_with_their_number() {
    let mut rig = start();
    rig.consume_for(Duration::from_millis(300), |_| {});
    let among = Among::Channel("orderbook_delta".to_owned());
    rig.exchange.inject_data(DataRule::next(among, DataFault::Drop, 9));
    let is_lost = |one: &Uncovered| matches!(one.reason, UncoveredReason::Lost { .. });
    let missed = |told: &[Uncovered]| {
        let each = told.iter().filter(|one| one.role == Role::Orderbook);
        let missed = each.map(|one| match one.reason {
            UncoveredReason::Lost { missed, dropped: 0 } => missed,
            _ => 0,
        });
        missed.sum::<u64>()
    };
    rig.consume_until("all are told of", |_| {}, |rig| missed(&told(rig)) == 9);
    let all = told(&rig);
    let lost: Vec<_> = all.iter().filter(|one| is_lost(one)).collect();
    assert!(lost.len() <= 2, "one for each connection at most: {lost:?}");
    for one in &lost {
        assert!(one.start <= one.end && one.epoch.is_some() && one.sid.is_some(), "{one:?}");
        assert!(matches!(one.markets, UncoveredMarkets::AllOfConnection(1..)), "{one:?}");
    }
    let (verdict, report) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
    assert_eq!(report.stats.messages_missed, 9);
}
