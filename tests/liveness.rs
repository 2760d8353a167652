//! Connections that live and say nothing: told of, asked, and left alone.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test may panic and read the clock"
)]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use exchange_sim::{ExchangeConfig, Mode, Wire};
use kalshi_feed::{Cause, ConnId, Event, PoolLayout};
use support::Rig;

const POOL: PoolLayout = PoolLayout::new(1, 1, 1, 5);

fn exchange() -> ExchangeConfig {
    ExchangeConfig {
        markets: 50,
        rate_per_second: 5_000,
        lifecycle_churn_per_minute: 0,
        ..ExchangeConfig::default()
    }
}

/// How often each connection said so.
fn counts(rig: &Rig, which: impl Fn(&Event) -> Option<ConnId>) -> BTreeMap<ConnId, usize> {
    let mut counts = BTreeMap::new();
    for conn in rig.seen.iter().filter_map(which) {
        *counts.entry(conn).or_default() += 1;
    }
    counts
}

fn silent(event: &Event) -> Option<ConnId> {
    match event {
        Event::Silent { conn, .. } => Some(*conn),
        _ => None,
    }
}

fn heard(event: &Event) -> Option<ConnId> {
    match event {
        Event::Heard { conn, .. } => Some(*conn),
        _ => None,
    }
}

#[test]
fn d12_a_maintenance_is_told_once_for_each_connection_and_nothing_reconnects() {
    let mut rig =
        Rig::start(exchange(), POOL, |settings| settings.silent_after(Duration::from_millis(400)));
    rig.all_confirmed(50);
    rig.exchange.set_mode(Mode::Quiet);
    rig.consume_until(
        "all are called silent",
        |_| {},
        |rig| rig.handle.stats().connections_silent == 8 && counts(rig, silent).len() == 8,
    );
    rig.consume_for(Duration::from_millis(1_500), |_| {});
    let told = counts(&rig, silent);
    assert_eq!(told.len(), 8);
    // The lifecycle line was silent from the start; others may have paused a moment before.
    assert!(told.values().sum::<usize>() <= 16, "{told:?}");
    let before = counts(&rig, heard).values().sum::<usize>();
    rig.exchange.set_mode(Mode::Paced);
    rig.exchange.create_markets(1);
    // The gauge is the shards' own; what they report of it comes by the conductor, a little later.
    rig.consume_until(
        "all are heard again, and told of",
        |_| {},
        |rig| {
            rig.handle.stats().connections_silent == 0
                && counts(rig, heard).values().sum::<usize>() >= before + 8
        },
    );
    let stats = rig.handle.stats();
    assert_eq!((stats.reconnects, stats.connections_healthy), (0, 8));
    assert!(stats.feed_lag_ms_max < 5_000, "one machine, one clock: {stats:?}");
    let (verdict, _) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
}

#[test]
fn d9_an_exchange_that_never_pings_is_pinged_and_its_pongs_are_life() {
    let never = Duration::from_secs(3_600);
    let quiet = ExchangeConfig { mode: Mode::Quiet, heartbeat_idle: never, ..exchange() };
    let mut rig = Rig::start(quiet, POOL, |settings| {
        settings.ping_idle(Duration::from_millis(100)).pong_timeout(Duration::from_secs(5))
    });
    rig.all_confirmed(50);
    let before = rig.handle.stats();
    rig.consume_until(
        "every connection has answered some",
        |_| {},
        |rig| rig.handle.stats().control_frames >= before.control_frames + 40,
    );
    let stats = rig.handle.stats();
    assert_eq!((stats.reconnects, stats.connections_healthy), (0, 8));
    assert!(!rig.seen.iter().any(|event| matches!(event, Event::Down { .. })));
}

#[test]
fn d8_half_open_connections_are_noticed_and_no_other_suffers() {
    let wired = ExchangeConfig { proxy: Some(Wire::default()), ..exchange() };
    let mut rig = Rig::start(wired, POOL, |settings| {
        settings.ping_idle(Duration::from_millis(700)).pong_timeout(Duration::from_millis(1_500))
    });
    rig.all_confirmed(50);
    // From now on nothing passes on two of them, in either direction, and neither end is told.
    let lost: Vec<_> = [2, 5].map(|conn| (ConnId::new(conn), rig.live[&ConnId::new(conn)])).into();
    let peers: Vec<_> = lost.iter().map(|(_, (_, address))| *address).collect();
    assert_eq!(rig.exchange.set_wire_of(&peers, Wire::black_hole()), 2);
    rig.consume_until(
        "both are given up and back",
        |_| {},
        |rig| {
            let stats = rig.handle.stats();
            stats.reconnects == 2
                && (stats.connections_healthy, stats.markets_total) == (8, 50)
                && lost.iter().all(|(conn, (epoch, _))| {
                    rig.live.get(conn).is_some_and(|(live, _)| live > epoch)
                })
        },
    );
    let downs: BTreeMap<_, _> = rig
        .seen
        .iter()
        .filter_map(|event| match event {
            Event::Down { conn, cause, .. } => Some((*conn, cause.clone())),
            _ => None,
        })
        .collect();
    let victims: Vec<_> = lost.iter().map(|(conn, _)| *conn).collect();
    assert_eq!(downs.keys().copied().collect::<Vec<_>>(), victims);
    for cause in downs.values() {
        assert!(
            matches!(cause, Cause::Liveness { message } if message.starts_with("no frame for")),
            "{cause}"
        );
    }
    let (verdict, _) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
    assert!(verdict.covered > 0, "what was sent into the hole: {verdict:?}");
}

#[test]
fn j1_two_thirds_cut_at_once_come_back_and_the_others_lose_nothing() {
    let exchange = ExchangeConfig { markets: 1_000, ..exchange() };
    let mut rig = Rig::start(exchange, PoolLayout::default(), |settings| {
        settings.connect_interval(Duration::ZERO)
    });
    rig.all_confirmed(1_000);
    let peers: BTreeMap<_, _> = rig.live.iter().map(|(conn, live)| (*conn, live.1)).collect();
    let (cut, spared): (Vec<_>, Vec<_>) = peers.keys().partition(|conn| conn.number() % 3 != 0);
    assert_eq!((cut.len(), spared.len()), (100, 50));
    let peers: Vec<_> = cut.iter().map(|conn| peers[*conn]).collect();
    let begun = std::time::Instant::now();
    assert_eq!(rig.exchange.cut(&peers), 100);
    let mut gaps = 0;
    rig.consume_until(
        "all are back",
        |message| {
            if message.conn_id.number() % 3 == 0 {
                gaps += message.gap_size;
            }
        },
        |rig| {
            let stats = rig.handle.stats();
            stats.connections_healthy == 150
                && stats.reconnects == 100
                && stats.markets_total == 1_000
        },
    );
    let stats = rig.handle.stats();
    println!(
        "back in {:?}; orders took at most {} ns of CPU in one turn",
        begun.elapsed(),
        stats.control_ns_max
    );
    let downs: Vec<_> = rig
        .seen
        .iter()
        .filter_map(|event| match event {
            Event::Down { conn, .. } => Some(conn.number()),
            _ => None,
        })
        .collect();
    assert!(downs.iter().all(|conn| conn % 3 != 0), "{downs:?}");
    assert_eq!(gaps, 0, "who was not cut lost nothing");
    let (verdict, report) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
    assert_eq!(report.stats.messages_dropped, 0);
}
