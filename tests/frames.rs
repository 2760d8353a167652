//! Frames out of the ordinary, over real sockets: rows C.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test may panic and read the clock"
)]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use exchange_sim::{Break, ExchangeConfig, Mode, Oddity};
use kalshi_feed::{Cause, ConnId, Event, PoolLayout};
use support::Rig;

const POOL: PoolLayout = PoolLayout::new(1, 1, 1, 3);
/// An order-book connection.
const BOOK: ConnId = ConnId::new(4);

fn exchange(manners: &str) -> ExchangeConfig {
    ExchangeConfig {
        markets: 30,
        rate_per_second: 3_000,
        manners: manners.parse().unwrap(),
        ..ExchangeConfig::default()
    }
}

/// Our end of the connection's live epoch.
fn peer(rig: &mut Rig, conn: ConnId) -> SocketAddr {
    rig.consume_until("it is live", |_| {}, |rig| rig.live.contains_key(&conn));
    rig.live.get(&conn).unwrap().1
}

/// Why connections were lost so far.
fn lost(rig: &Rig) -> Vec<(ConnId, Cause)> {
    let down = |event: &Event| match event {
        Event::Down { conn, cause, .. } => Some((*conn, cause.clone())),
        _ => None,
    };
    rig.seen.iter().filter_map(down).collect()
}

/// Each of these frames ends its connection, and no other, with this; then all is well again.
fn violated(oddities: &[&str], said: &str) {
    let mut rig = Rig::start(exchange(""), POOL, |settings| settings);
    rig.all_confirmed(30);
    for (round, name) in (1..).zip(oddities) {
        let oddity: Oddity = name.parse().unwrap();
        let peer = peer(&mut rig, BOOK);
        assert_eq!(rig.exchange.send_odd(&[peer], &oddity), 1);
        rig.consume_until(
            name,
            |message| assert!(!matches!(message.data.as_ref(), b"x" | b"y" | b"xy")),
            |rig| rig.handle.stats().reconnects == round,
        );
        rig.take_aside();
        let (conn, cause) = lost(&rig).pop().unwrap();
        let protocol = matches!(&cause, Cause::Protocol { message } if message.contains(said));
        assert!(conn == BOOK && protocol, "{name}: {cause}");
    }
    rig.all_confirmed(30);
    assert_eq!(lost(&rig).len(), oddities.len(), "{:?}", lost(&rig));
    let stats = rig.handle.stats();
    let counts = &stats.connections_lost_by_cause;
    let protocol = counts.iter().find(|counted| counted.cause == "protocol").unwrap();
    assert_eq!(protocol.count, u64::try_from(oddities.len()).unwrap());
    let (verdict, _) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
}

#[test]
fn c1_frames_against_the_rules_end_their_connection_and_deliver_nothing() {
    let oddities = [
        "masked",
        "reserved",
        "unknown_opcode",
        "fragmented_ping",
        "long_ping",
        "stray_continuation",
        "text_inside_fragments",
    ];
    violated(&oddities, "");
}

#[test]
fn c2_text_that_is_no_utf8_ends_its_connection_whole_or_in_fragments() {
    violated(&["bad_utf8", "bad_utf8_across_fragments"], "UTF-8");
}

#[test]
fn c3_messages_in_fragments_with_pings_between_are_the_same_messages() {
    let mut rig = Rig::start(exchange("fragments=7/ping"), POOL, |settings| settings);
    rig.all_confirmed(30);
    let peer = peer(&mut rig, BOOK);
    for name in ["empty_fragments", "long_form"] {
        assert_eq!(rig.exchange.send_odd(&[peer], &name.parse().unwrap()), 1);
    }
    let mut odd = 0;
    rig.consume_until(
        "enough came",
        |message| odd += u32::from(message.data.as_ref() == b"{}"),
        |rig| rig.handle.stats().messages_received > 2_000,
    );
    rig.consume_for(Duration::from_millis(200), |message| {
        odd += u32::from(message.data.as_ref() == b"{}");
    });
    assert_eq!(odd, 2);
    assert_eq!(lost(&rig), []);
    // Each of those pings was answered.
    let exchange = rig.exchange.stats();
    assert!(exchange.pongs > 1_000, "{exchange:?}");
    let (verdict, _) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
}

/// Memory of this process now, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1_024
}

#[test]
fn c4_a_header_that_promises_too_much_ends_its_connection_and_costs_no_memory() {
    const LENGTH: u64 = (2 << 20) + 1;
    let quiet = ExchangeConfig { mode: Mode::Quiet, ..exchange("") };
    let mut rig = Rig::start(quiet, PoolLayout::default(), |settings| settings);
    rig.all_confirmed(30);
    let before = resident();
    for (round, length) in (1..).zip([LENGTH, 1 << 40, u64::MAX >> 1]) {
        rig.consume_until("all are live", |_| {}, |rig| rig.live.len() == 150);
        let peers = rig.exchange.connections();
        assert_eq!(rig.exchange.send_odd(&peers, &Oddity::Length(length)), 150);
        rig.consume_until(
            "all are back",
            |_| {},
            |rig| {
                let stats = rig.handle.stats();
                stats.reconnects == 150 * round && stats.connections_healthy == 150
            },
        );
    }
    rig.all_confirmed(30);
    let causes = lost(&rig);
    let long = |(_, cause): &(ConnId, Cause)| match cause {
        Cause::Protocol { message } => message.contains("longer than"),
        _ => false,
    };
    assert!(causes.len() == 450 && causes.iter().all(long), "{causes:?}");
    let grown = resident().saturating_sub(before);
    println!("{} KiB more after 450 such headers", grown >> 10);
    // Were the promised bytes set aside, a round would take 300 MiB.
    assert!(grown < 100 << 20, "{grown} bytes");
}

#[test]
fn c6_an_end_within_a_frame_or_a_record_delivers_nothing_of_it() {
    let mut rig = Rig::start(exchange(""), POOL, |settings| settings);
    let ends = [Break::MidFrame, Break::MidFrameReset, Break::MidRecord, Break::Truncated];
    for (round, how) in (1..).zip(ends) {
        rig.all_confirmed(30);
        let peers = rig.exchange.connections();
        assert_eq!(rig.exchange.break_off(&peers, how), 6);
        rig.consume_until(
            "all are back",
            |_| {},
            |rig| {
                let stats = rig.handle.stats();
                stats.reconnects == 6 * round && stats.connections_healthy == 6
            },
        );
    }
    rig.all_confirmed(30);
    let causes = lost(&rig);
    let ended = |(_, cause): &(ConnId, Cause)| matches!(cause, Cause::Ended | Cause::Reset);
    assert!(causes.len() == 24 && causes.iter().all(ended), "{causes:?}");
    let (verdict, _) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
}

#[test]
fn c7_what_is_allowed_and_unexpected_is_counted_and_ends_nothing() {
    let mut rig = Rig::start(exchange(""), POOL, |settings| settings);
    rig.all_confirmed(30);
    let before = rig.handle.stats();
    let peer = peer(&mut rig, BOOK);
    for name in ["binary", "empty_text", "pong", "text={\"type\":\"news\"}"] {
        assert_eq!(rig.exchange.send_odd(&[peer], &name.parse().unwrap()), 1);
    }
    let mut odd = Vec::new();
    rig.consume_until(
        "the last of them came",
        |message| {
            if message.conn_id == BOOK && message.sid.is_none() {
                odd.push(message.data.to_vec());
            }
        },
        |rig| rig.handle.stats().unknown_types > before.unknown_types,
    );
    rig.consume_for(Duration::from_millis(200), |message| {
        if message.conn_id == BOOK && message.sid.is_none() {
            odd.push(message.data.to_vec());
        }
    });
    assert_eq!(odd, [b"".to_vec(), b"{\"type\":\"news\"}".to_vec()], "as they came");
    let stats = rig.handle.stats();
    assert_eq!(stats.binary_frames, before.binary_frames + 1);
    assert_eq!(stats.unreadable, before.unreadable + 1, "the empty one");
    assert!(stats.control_frames > before.control_frames, "the pong");
    assert_eq!(lost(&rig), []);
    let (verdict, _) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
}
