//! Closes and manners at the end and in between, over real sockets: rows D, and G4.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test may panic and read the clock"
)]

mod support;

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use exchange_sim::{Break, ExchangeConfig, Wire};
use kalshi_feed::{Cause, ConnId, Event, PoolLayout};
use support::Rig;

const POOL: PoolLayout = PoolLayout::new(1, 1, 1, 5);
const MARKETS: u64 = 50;

fn exchange() -> ExchangeConfig {
    ExchangeConfig { markets: 50, rate_per_second: 3_000, ..ExchangeConfig::default() }
}

fn started() -> Rig {
    let mut rig = Rig::start(exchange(), POOL, |settings| settings);
    rig.all_confirmed(MARKETS);
    rig
}

/// Our end of a connection's live epoch.
fn peer(rig: &mut Rig, conn: ConnId) -> SocketAddr {
    rig.consume_until("it is live", |_| {}, |rig| rig.live.contains_key(&conn));
    rig.live.get(&conn).unwrap().1
}

fn all_back(rig: &mut Rig, reconnects: u64) {
    rig.consume_until(
        "all are back",
        |_| {},
        |rig| {
            let stats = rig.handle.stats();
            stats.connections_healthy == 8
                && stats.reconnects == reconnects
                && stats.markets_total == MARKETS
        },
    );
}

fn lost(rig: &Rig) -> Vec<(ConnId, Cause)> {
    let down = |event: &Event| match event {
        Event::Down { conn, cause, .. } => Some((*conn, cause.clone())),
        _ => None,
    };
    rig.seen.iter().filter_map(down).collect()
}

/// Everything is closed with each of these codes, and comes back.
fn closed_with(codes: &[u16]) {
    let mut rig = started();
    for (round, &code) in (1..).zip(codes) {
        let peers = rig.exchange.connections();
        assert_eq!(rig.exchange.close(&peers, code), 8);
        all_back(&mut rig, 8 * round);
    }
    let told: Vec<_> = lost(&rig)
        .into_iter()
        .filter_map(|(_, cause)| match cause {
            Cause::PeerClosed { code, .. } => code,
            _ => None,
        })
        .collect();
    for code in codes {
        assert_eq!(told.iter().filter(|told| *told == code).count(), 8, "{code}: {told:?}");
    }
    let (verdict, _) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
}

#[test]
fn d1_closes_in_good_order_lead_back_to_live() {
    closed_with(&[1000, 1001, 1012]);
}

#[test]
fn d2_closes_of_an_exchange_in_trouble_lead_back_to_live() {
    closed_with(&[1011, 1013]);
}

#[test]
fn d3_closes_by_policy_halt_after_three_in_a_row_and_nobody_else() {
    let mut rig = started();
    for (number, code) in [(4, 1008), (5, 4001)] {
        let conn = ConnId::new(number);
        for round in 1..=3 {
            let peer = peer(&mut rig, conn);
            assert_eq!(rig.exchange.close(&[peer], code), 1);
            rig.consume_until(
                "it is down",
                |_| {},
                |rig| lost(rig).iter().filter(|(down, _)| *down == conn).count() == round,
            );
        }
    }
    rig.consume_until("both are halted", |_| {}, |rig| rig.handle.stats().connections_halted == 2);
    // Their markets go to the others.
    rig.all_confirmed(MARKETS);
    let halted: Vec<_> = rig
        .seen
        .iter()
        .filter_map(|event| match event {
            Event::Halted { conn, cause, .. } => Some((conn.number(), cause.clone())),
            _ => None,
        })
        .collect();
    assert!(
        matches!(
            &halted[..],
            [
                (4, Cause::PeerClosed { code: Some(1008), .. }),
                (5, Cause::PeerClosed { code: Some(4001), .. })
            ]
        ),
        "{halted:?}"
    );
    assert_eq!(rig.handle.stats().connections_healthy, 6);
    let (verdict, _) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
}

#[test]
fn d6_ends_without_a_close_are_told_and_lead_back_to_live() {
    let mut rig = started();
    let peers = rig.exchange.connections();
    assert_eq!(rig.exchange.break_off(&peers, Break::Fin), 8);
    all_back(&mut rig, 8);
    let peers = rig.exchange.connections();
    assert_eq!(rig.exchange.cut(&peers), 8);
    all_back(&mut rig, 16);
    let causes = lost(&rig);
    let count = |wanted: &Cause| causes.iter().filter(|(_, cause)| cause == wanted).count();
    assert_eq!((count(&Cause::Ended), count(&Cause::Reset)), (8, 8), "{causes:?}");
    let (verdict, _) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
}

#[test]
fn d7_an_exchange_that_never_answers_our_close_holds_up_no_stop() {
    let mut rig = started();
    rig.exchange.set_manners("no_close".parse().unwrap());
    let report = rig.manager.stop(Duration::from_secs(10));
    assert_eq!((report.stuck.len(), report.panicked.len()), (0, 0), "{report:?}");
    // A second of grace, and not the ten that it might take.
    assert!(report.elapsed >= Duration::from_millis(900), "{:?}", report.elapsed);
    assert!(report.elapsed < Duration::from_secs(6), "{:?}", report.elapsed);
}

#[test]
fn d10_a_flood_of_pings_is_answered_and_holds_up_nobody() {
    let mut rig = started();
    let flooding = peer(&mut rig, ConnId::new(4));
    let before = rig.exchange.stats().pongs;
    let manners = "pings=flood/20000".parse().unwrap();
    assert_eq!(rig.exchange.set_manners_of(&[flooding], manners), 1);
    let mut others = 0_u64;
    rig.consume_until(
        "twenty thousand pongs came",
        |message| others += u64::from(message.conn_id.number() != 4),
        |rig| rig.exchange.stats().pongs >= before + 20_000,
    );
    assert!(others > 500, "{others}");
    rig.exchange.set_manners("".parse().unwrap());
    assert_eq!(lost(&rig), []);
    let (verdict, report) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
    assert_eq!(report.stats.messages_dropped, 0);
}

#[test]
fn d11_an_exchange_that_reads_nothing_is_given_up_and_no_other() {
    let exchange = ExchangeConfig { proxy: Some(Wire::default()), ..exchange() };
    let mut rig = Rig::start(exchange, POOL, |settings| {
        let second = Duration::from_secs(1);
        settings.write_timeout(second).tcp_user_timeout(Duration::ZERO)
    });
    rig.all_confirmed(MARKETS);
    // It pings without end and takes no pong: what we have to say piles up in the socket, then
    // with us, and there is an end to that.
    let deaf = peer(&mut rig, ConnId::new(4));
    let wire = "up stalled".parse().unwrap();
    assert_eq!(rig.exchange.set_wire_of(&[deaf], wire), 1);
    let manners = "pings=flood/400000".parse().unwrap();
    assert_eq!(rig.exchange.set_manners_of(&[deaf], manners), 1);
    rig.consume_until("it is given up", |_| {}, |rig| !lost(rig).is_empty());
    all_back(&mut rig, 1);
    let causes = lost(&rig);
    assert!(
        matches!(&causes[..], [(conn, Cause::Liveness { .. })] if conn.number() == 4),
        "{causes:?}"
    );
    let (verdict, _) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
}

#[test]
fn g4_one_that_floods_delays_the_others_by_little() {
    // All on one shard; the kernel says when each read arrived.
    let mut rig = Rig::start(exchange(), POOL, |settings| {
        settings.shards(1).kernel_timestamps(true).message_buffer(1_000_000)
    });
    rig.all_confirmed(MARKETS);
    let flooding = peer(&mut rig, ConnId::new(4));
    let manners = "pings=flood/200000".parse().unwrap();
    assert_eq!(rig.exchange.set_manners_of(&[flooding], manners), 1);
    let mut late = Vec::new();
    rig.consume_for(Duration::from_secs(2), |message| {
        if message.conn_id.number() != 4 {
            let passed = SystemTime::now().duration_since(message.received_at.wall);
            late.push(passed.unwrap_or_default());
        }
    });
    late.sort_unstable();
    let p99 = late.len() * 99 / 100;
    println!("{} messages of others, 99 in 100 within {:?}", late.len(), late.get(p99));
    assert!(late.len() > 1_000);
    assert!(late.get(p99).is_some_and(|&late| late < Duration::from_millis(250)));
    assert_eq!(lost(&rig), []);
    rig.exchange.set_manners("".parse().unwrap());
    let (verdict, _) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
}
