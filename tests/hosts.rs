//! Hosts that are fast, slow, asleep or gone, under every overflow policy: what was sent is what
//! was taken and what was told, to the last message. Rows G1 to G3 of the fault matrix.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may panic and read the clock"
)]

mod support;

use std::time::{Duration, Instant};

use exchange_sim::ExchangeConfig;
use kalshi_feed::{Overflow, OverflowPolicy, PoolLayout, Stats};
use support::Rig;

const MARKETS: u64 = 100;
/// Changes of markets a second; each comes on several channels.
const RATE: u64 = 6_000;
const BUFFER: u64 = 1_000;

fn conflating() -> OverflowPolicy {
    let mut policy = OverflowPolicy::default();
    policy.ticker = Overflow::ConflateByMarket;
    policy
}

fn start(policy: impl Into<OverflowPolicy>) -> Rig {
    let exchange = ExchangeConfig {
        markets: usize::try_from(MARKETS).unwrap(),
        rate_per_second: RATE,
        ..ExchangeConfig::default()
    };
    let mut rig = Rig::start(exchange, PoolLayout::new(2, 2, 2, 6), |settings| {
        // So short that a connection held back for seconds lives only if its clocks stand still.
        let (idle, pong) = (Duration::from_millis(1_500), Duration::from_millis(1_500));
        let buffer = usize::try_from(BUFFER).unwrap();
        settings.overflow(policy).message_buffer(buffer).ping_idle(idle).pong_timeout(pong)
    });
    rig.all_confirmed(MARKETS);
    rig
}

/// The account of a host that took everything in the end: nothing is left over.
fn settle(rig: &mut Rig) -> Stats {
    let (verdict, report) = rig.settle();
    let stats = report.stats;
    println!(
        "sent {} delivered {} covered {}: {} dropped, {} of them conflated",
        verdict.sent,
        verdict.delivered,
        verdict.covered,
        stats.messages_dropped,
        stats.messages_conflated
    );
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
    assert_eq!(verdict.sent, verdict.delivered + verdict.covered);
    assert_eq!(verdict.sent, stats.messages_received);
    assert_eq!(verdict.covered, stats.messages_dropped);
    assert_eq!(verdict.delivered, stats.messages_consumed + stats.lifecycle_forwarded);
    assert_eq!((stats.sequence_gaps, stats.messages_missed), (0, 0), "nothing of it on the wire");
    assert_eq!((stats.messages_kept, stats.reconnects), (0, 0));
    assert!(stats.messages_conflated <= stats.messages_dropped);
    stats
}

fn fast(policy: impl Into<OverflowPolicy>) -> Stats {
    let mut rig = start(policy);
    rig.consume_for(Duration::from_secs(2), |_| {});
    settle(&mut rig)
}

/// A tenth of what is needed.
fn slow(policy: impl Into<OverflowPolicy>) -> Stats {
    let mut rig = start(policy);
    rig.consume_slowly(u32::try_from(RATE / 10).unwrap(), Duration::from_secs(3));
    settle(&mut rig)
}

fn stopped(policy: impl Into<OverflowPolicy>) -> Stats {
    let mut rig = start(policy);
    let messages = rig.messages.take();
    let begun = Instant::now();
    rig.consume_until(
        "five seconds are over",
        |_| {},
        |rig| {
            let stats = rig.handle.stats();
            let waiting = stats.messages_forwarded.saturating_sub(stats.messages_consumed);
            assert!(waiting <= BUFFER, "{waiting} wait");
            // Some markets are created meanwhile.
            let most = 2 * (MARKETS + 50);
            assert!(stats.messages_kept <= most, "{} kept", stats.messages_kept);
            begun.elapsed() >= Duration::from_secs(5)
        },
    );
    assert_eq!(rig.handle.stats().connections_healthy, 12, "all live on");
    rig.messages = messages;
    settle(&mut rig)
}

/// What nobody takes is abandoned, and counted.
fn dropped(policy: impl Into<OverflowPolicy>) {
    let mut rig = start(policy);
    rig.consume_for(Duration::from_millis(300), |_| {});
    let messages = rig.messages.take();
    // A read of many may wait for room where there is still some.
    let full = |rig: &Rig| {
        let stats = rig.handle.stats();
        stats.messages_forwarded.saturating_sub(stats.messages_consumed) >= BUFFER / 2
    };
    rig.consume_until("there is no room", |_| {}, full);
    drop(messages);
    let then = rig.handle.stats().messages_received;
    rig.consume_until(
        "the engine goes on without",
        |_| {},
        |rig| rig.handle.stats().messages_received > then + 5_000,
    );
    assert_eq!(rig.handle.stats().connections_healthy, 12, "all live on");
    let (verdict, report) = rig.settle();
    let stats = report.stats;
    assert_eq!((report.stuck.len(), report.panicked.len()), (0, 0));
    assert_eq!(verdict.sent, stats.messages_received);
    let shed = stats.messages_dropped + stats.lifecycle_discarded;
    assert_eq!(
        stats.messages_received,
        stats.messages_forwarded + stats.lifecycle_forwarded + shed
    );
    assert_eq!(stats.messages_forwarded, stats.messages_consumed + stats.messages_abandoned);
    assert_eq!(verdict.delivered, stats.messages_consumed + stats.lifecycle_forwarded);
    assert!(stats.messages_abandoned > 4_000, "{}", stats.messages_abandoned);
}

#[test]
fn g2_a_fast_host_under_drop_newest() {
    fast(Overflow::DropNewest);
}

#[test]
fn g2_a_fast_host_under_back_pressure_misses_nothing() {
    assert_eq!(fast(Overflow::Backpressure).messages_dropped, 0);
}

#[test]
fn g2_a_fast_host_that_conflates() {
    fast(conflating());
}

#[test]
fn g2_a_host_at_a_tenth_of_the_speed_is_told_what_was_dropped() {
    assert!(slow(Overflow::DropNewest).messages_dropped > 5_000);
}

#[test]
fn g2_a_host_at_a_tenth_of_the_speed_holds_its_connections_back() {
    assert_eq!(slow(Overflow::Backpressure).messages_dropped, 0);
}

#[test]
fn g2_a_host_at_a_tenth_of_the_speed_has_the_newest_of_each_market() {
    let stats = slow(conflating());
    assert!(stats.messages_conflated > 1_000, "{}", stats.messages_conflated);
}

#[test]
fn g1_a_host_asleep_for_five_seconds_is_told_what_was_dropped() {
    assert!(stopped(Overflow::DropNewest).messages_dropped > 5_000);
}

#[test]
fn g1_a_host_asleep_for_five_seconds_holds_its_connections_back_and_they_live_on() {
    assert_eq!(stopped(Overflow::Backpressure).messages_dropped, 0);
}

#[test]
fn g1_a_host_asleep_for_five_seconds_has_the_newest_of_each_market_then() {
    let stats = stopped(conflating());
    assert!(stats.messages_conflated > 1_000, "{}", stats.messages_conflated);
}

#[test]
fn g3_a_host_that_goes_away_under_drop_newest_hangs_nothing() {
    dropped(Overflow::DropNewest);
}

#[test]
fn g3_a_host_that_goes_away_under_back_pressure_hangs_nothing() {
    dropped(Overflow::Backpressure);
}

#[test]
fn g3_a_host_that_goes_away_while_it_conflates_hangs_nothing() {
    dropped(conflating());
}
