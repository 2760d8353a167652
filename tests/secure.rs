//! TLS that goes wrong, or is other than usual, over real sockets: rows A6 to A10.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test may panic and read the clock"
)]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use exchange_sim::{Break, ExchangeConfig, UpgradeFault, UpgradeRule};
use kalshi_feed::{Cause, ConnId, Event, PoolLayout, StartError, Stats};
use support::Rig;

const POOL: PoolLayout = PoolLayout::new(1, 1, 1, 3);

/// An exchange whose TLS is like this.
fn exchange(security: &str) -> ExchangeConfig {
    ExchangeConfig {
        markets: 30,
        rate_per_second: 3_000,
        security: security.parse().unwrap(),
        ..ExchangeConfig::default()
    }
}

/// How often attempts failed for this kind of cause.
fn failed(stats: &Stats, kind: &str) -> u64 {
    let counts = &stats.attempts_failed_by_cause;
    counts.iter().find(|counted| counted.cause == kind).map_or(0, |counted| counted.count)
}

fn lost(stats: &Stats, kind: &str) -> u64 {
    let counts = &stats.connections_lost_by_cause;
    counts.iter().find(|counted| counted.cause == kind).map_or(0, |counted| counted.count)
}

/// What a start against such an exchange ends with, its statistics and its events.
fn refused(security: &str) -> (StartError, Stats, Vec<Event>) {
    let mut rig = Rig::prepare(exchange(security), POOL, |settings| {
        settings.start_timeout(Duration::from_secs(2))
    });
    let error = rig.manager.start().unwrap_err();
    let stats = rig.handle.stats();
    rig.take_aside();
    (error, stats, std::mem::take(&mut rig.seen))
}

#[test]
fn a6_a_reset_amid_tls_or_the_upgrade_is_retried() {
    let mut rig = Rig::prepare(exchange(""), POOL, |settings| settings);
    rig.exchange.inject_upgrade(UpgradeRule::next(UpgradeFault::Reset, 6));
    rig.manager.start().unwrap();
    rig.all_confirmed(30);
    assert_eq!(failed(&rig.handle.stats(), "reset"), 6);
    // The same with the reset right behind our hello.
    let door = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("wss://127.0.0.1:{}/", door.local_addr().unwrap().port());
    let resets = std::thread::spawn(move || {
        for _ in 0..6 {
            let (client, _) = door.accept().unwrap();
            socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
            let mut hello = [0; 1];
            std::io::Read::read_exact(&mut &client, &mut hello).unwrap();
        }
    });
    let config = support::settings(&rig.exchange, POOL).url(url);
    let config = config.start_timeout(Duration::from_secs(2)).build().unwrap();
    let mut manager = kalshi_feed::Manager::new(config, kalshi_feed::StaticRegistry::default());
    manager.start().unwrap_err();
    resets.join().unwrap();
    assert_eq!(failed(&manager.handle().stats(), "reset"), 6);
}

#[test]
fn a7_a_fatal_alert_is_told_as_such_and_backed_off_from() {
    let (error, stats, events) = refused("certificate=none");
    let StartError::Timeout { causes, .. } = &error else { panic!("{error}") };
    let alert = |cause: &Cause| match cause {
        Cause::Tls { message } => message.to_lowercase().contains("alert"),
        _ => false,
    };
    assert!(!causes.is_empty() && causes.iter().all(|(_, cause)| alert(cause)), "{error}");
    assert!(failed(&stats, "tls") >= 12, "counted apart, and tried again: {stats:?}");
    assert!(!events.iter().any(|event| matches!(event, Event::Halted { .. })), "never halted");
}

#[test]
fn a8_a_certificate_expired_too_new_or_of_another_host_halts_after_three() {
    for identity in ["expired", "future", "other_name"] {
        let (error, stats, events) = refused(&format!("certificate={identity}"));
        let StartError::Halted { causes, .. } = &error else { panic!("{identity}: {error}") };
        let certificate = |(_, cause): &(ConnId, Cause)| matches!(cause, Cause::Certificate { .. });
        assert!(!causes.is_empty() && causes.iter().all(certificate), "{identity}: {error}");
        let mut attempts: BTreeMap<ConnId, u32> = BTreeMap::new();
        for event in &events {
            if let Event::AttemptFailed { conn, .. } | Event::Halted { conn, .. } = event {
                *attempts.entry(*conn).or_default() += 1;
            }
        }
        let halted = events.iter().filter(|event| matches!(event, Event::Halted { .. })).count();
        assert!(halted > 0, "{identity}");
        assert!(attempts.values().all(|&count| count <= 3), "{identity}: {attempts:?}");
        let kinds: Vec<_> = stats.attempts_failed_by_cause.iter().map(|by| by.cause).collect();
        assert_eq!(kinds, ["certificate"], "{identity}");
    }
}

#[test]
fn a9_other_tls_than_usual_works_and_keeps_the_order() {
    let cases =
        ["tls12", "tls12 no_tickets records=512", "no_tickets", "records=512", "records=40"];
    for security in cases {
        let mut rig = Rig::start(exchange(security), POOL, |settings| settings);
        rig.all_confirmed(30);
        rig.consume_for(Duration::from_millis(100), |_| {});
        // New keys amid the stream, both ways; TLS 1.2 has no such thing.
        let peers = rig.exchange.connections();
        for _ in 0..3 {
            let renewed = rig.exchange.renew_keys(&peers);
            assert_eq!(renewed, if security.contains("tls12") { 0 } else { 6 }, "{security}");
            rig.consume_for(Duration::from_millis(100), |_| {});
        }
        assert_eq!(rig.handle.stats().reconnects, 0, "{security}");
        rig.exchange.cut(&peers);
        rig.consume_until(
            "all are back",
            |_| {},
            |rig| {
                let stats = rig.handle.stats();
                stats.connections_healthy == 6 && stats.reconnects == 6
            },
        );
        let stats = rig.handle.stats();
        if security.contains("no_tickets") {
            assert_eq!((stats.tls_full, stats.tls_resumed), (12, 0), "{security}");
        } else {
            assert_eq!((stats.tls_full, stats.tls_resumed), (6, 6), "{security}");
        }
        let (verdict, _) = rig.settle();
        assert_eq!(verdict.unaccounted, 0, "{security}: {:#?}", verdict.findings);
        assert!(verdict.delivered > 500, "{security}: {verdict:?}");
    }
}

#[test]
fn a10_bytes_that_are_no_tls_and_a_record_cut_short_deliver_nothing_of_themselves() {
    // On the way, what was sent shortly before the end comes together with it.
    let exchange = ExchangeConfig {
        rate_per_second: 20_000,
        proxy: Some("down latency=40".parse().unwrap()),
        ..exchange("")
    };
    let mut rig = Rig::start(exchange, POOL, |settings| settings);
    for (round, (how, kind)) in (1..).zip([
        (Break::Garbage, "tls"),
        (Break::MidRecord, "ended"),
        (Break::Truncated, "ended"),
    ]) {
        rig.all_confirmed(30);
        let before = lost(&rig.handle.stats(), kind);
        let peers = rig.exchange.connections();
        assert_eq!(rig.exchange.break_off(&peers, how), 6);
        rig.consume_until(
            "all are back",
            |_| {},
            |rig| {
                let stats = rig.handle.stats();
                stats.connections_healthy == 6 && stats.reconnects == 6 * round
            },
        );
        assert_eq!(lost(&rig.handle.stats(), kind), before + 6, "{how:?}");
    }
    rig.all_confirmed(30);
    // What had come before stands, and of the rest nothing does: the ledger says so.
    let (verdict, _) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
}
