//! Connections lost and won back: new epochs, markets replayed, nothing silent.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test may panic and read the clock"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use exchange_sim::ExchangeConfig;
use kalshi_feed::{ConnId, Continuity, Epoch, Event, PoolLayout};
use support::Rig;

fn exchange() -> ExchangeConfig {
    ExchangeConfig { markets: 400, rate_per_second: 5_000, ..ExchangeConfig::default() }
}

/// The market of a snapshot, if the message is one.
fn snapshot_of(data: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(data).unwrap();
    (value["type"] == "orderbook_snapshot")
        .then(|| value["msg"]["market_ticker"].as_str().unwrap().to_owned())
}

#[test]
fn d6_twenty_connections_reset_at_once_come_back_with_every_market() {
    let mut rig = Rig::start(exchange(), PoolLayout::default(), |settings| settings);
    rig.all_confirmed(400);
    let victims: BTreeMap<_, _> = rig
        .live
        .iter()
        .map(|(conn, live)| (*conn, *live))
        .filter(|(conn, _)| conn.number() % 7 == 1)
        .take(20)
        .collect();
    assert_eq!(victims.len(), 20);
    let peers: Vec<_> = victims.values().map(|(_, address)| *address).collect();
    let mut markets: BTreeMap<ConnId, BTreeSet<String>> = BTreeMap::new();
    for info in rig.handle.assignments().iter() {
        let conn = info.conn.filter(|conn| victims.contains_key(conn));
        if let Some(conn) = conn {
            markets.entry(conn).or_default().insert(info.ticker.to_string());
        }
    }
    assert_eq!(rig.exchange.cut(&peers), 20);
    let mut snapshots: BTreeMap<ConnId, BTreeSet<String>> = BTreeMap::new();
    let (mut first, mut false_gaps) = (BTreeSet::new(), 0);
    rig.consume_until(
        "all are back",
        |message| {
            if victims.get(&message.conn_id).is_none_or(|(epoch, _)| message.epoch <= *epoch) {
                return;
            }
            if message.continuity == Continuity::First {
                first.insert(message.conn_id);
            }
            false_gaps += message.gap_size;
            if let Some(ticker) = snapshot_of(&message.data) {
                snapshots.entry(message.conn_id).or_default().insert(ticker);
            }
        },
        |rig| {
            let stats = rig.handle.stats();
            stats.connections_healthy == 150 && stats.reconnects == 20 && stats.markets_total == 400
        },
    );
    rig.consume_for(Duration::from_millis(500), |message| {
        if let Some(ticker) = snapshot_of(&message.data) {
            snapshots.entry(message.conn_id).or_default().insert(ticker);
        }
    });
    for (conn, wanted) in &markets {
        let got = snapshots.get(conn).cloned().unwrap_or_default();
        assert!(got.is_superset(wanted), "connection {conn}: {got:?} of {wanted:?}");
    }
    assert_eq!(false_gaps, 0, "a reconnect is no gap");
    let (verdict, report) = rig.settle();
    println!("{verdict:?}");
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
    assert_eq!(report.stats.reconnects, 20);
    let downs = rig
        .seen
        .iter()
        .filter(|event| matches!(event, Event::Down { epoch, .. } if *epoch == Epoch::new(1)));
    assert!(downs.count() >= 20);
}

#[test]
fn j1_handshakes_after_a_storm_resume_their_tls_sessions() {
    let mut rig = Rig::start(exchange(), PoolLayout::new(2, 2, 2, 24), |settings| settings);
    rig.all_confirmed(400);
    let before = rig.handle.stats();
    assert_eq!(before.tls_full + before.tls_resumed, 30);
    let peers = rig.exchange.connections();
    rig.exchange.cut(&peers);
    rig.consume_until(
        "all are back",
        |_| {},
        |rig| {
            let stats = rig.handle.stats();
            stats.connections_healthy == 30 && stats.reconnects == 30
        },
    );
    let after = rig.handle.stats();
    assert_eq!(after.tls_full, before.tls_full, "no full handshake in the storm");
    assert_eq!(after.tls_resumed, before.tls_resumed + 30);
}

#[test]
fn b5_an_exchange_that_refuses_for_a_while_is_waited_for() {
    let mut rig = Rig::start(exchange(), PoolLayout::new(1, 1, 1, 5), |settings| settings);
    rig.all_confirmed(400);
    rig.exchange.refuse_upgrades(Some(503));
    let peers = rig.exchange.connections();
    rig.exchange.cut(&peers);
    rig.consume_until(
        "several attempts were refused",
        |_| {},
        |rig| {
            let failed = |event: &&Event| matches!(event, Event::AttemptFailed { .. });
            rig.seen.iter().filter(failed).count() >= 16
        },
    );
    assert_eq!(rig.handle.stats().connections_healthy, 0);
    rig.exchange.refuse_upgrades(None);
    rig.consume_until(
        "all are back",
        |_| {},
        |rig| {
            let stats = rig.handle.stats();
            stats.connections_healthy == 8 && stats.markets_total == 400
        },
    );
    let (verdict, _) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
}
