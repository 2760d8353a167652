//! A host that does not keep up, or goes away: what it misses is told, exactly.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test may panic and read the clock"
)]

mod support;

use std::time::Duration;

use exchange_sim::ExchangeConfig;
use kalshi_feed::{PoolLayout, Role};
use support::Rig;

fn busy() -> ExchangeConfig {
    ExchangeConfig { markets: 200, rate_per_second: 20_000, ..ExchangeConfig::default() }
}

#[test]
fn messages_left_unread_for_three_seconds_are_told_as_gaps_that_add_up() {
    let mut rig =
        Rig::start(busy(), PoolLayout::new(2, 2, 2, 10), |settings| settings.message_buffer(2_000));
    rig.all_confirmed(200);
    let mut messages = rig.messages.take();
    rig.consume_for(Duration::from_secs(3), |_| {});
    let dropped = rig.handle.stats().messages_dropped;
    assert!(dropped > 10_000, "three seconds at 20,000/s into 2,000 places: {dropped}");
    rig.messages = messages.take();
    let mut told = 0;
    rig.consume_for(Duration::from_secs(1), |message| {
        told += message.gap_size;
        assert_eq!(message.seq_gap, message.gap_size > 0);
    });
    assert!(told > 0);
    let (verdict, report) = rig.settle();
    println!(
        "dropped {} covered {} delivered {}",
        report.stats.messages_dropped, verdict.covered, verdict.delivered
    );
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
    assert_eq!(verdict.covered, report.stats.messages_dropped);
    assert_eq!(report.stats.sequence_gaps, 0, "nothing was lost on the wire");
    assert_eq!(
        report.stats.messages_received,
        report.stats.messages_forwarded
            + report.stats.messages_dropped
            + report.stats.lifecycle_forwarded
    );
}

#[test]
fn under_back_pressure_a_host_that_pauses_misses_nothing() {
    let mut rig = Rig::start(busy(), PoolLayout::new(2, 2, 2, 10), |settings| {
        settings.message_buffer(2_000).overflow(kalshi_feed::Overflow::Backpressure)
    });
    rig.all_confirmed(200);
    let mut messages = rig.messages.take();
    rig.consume_for(Duration::from_secs(2), |_| {});
    rig.messages = messages.take();
    rig.consume_for(Duration::from_secs(1), |message| assert_eq!(message.gap_size, 0));
    let (verdict, report) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
    assert_eq!((verdict.covered, report.stats.messages_dropped), (0, 0));
    assert_eq!(report.stats.reconnects, 0, "held back, not given up");
    assert!(verdict.delivered > 20_000, "{verdict:?}");
}

#[test]
fn a_consumer_that_goes_away_hangs_nothing_and_the_rest_is_called_abandoned() {
    let mut rig =
        Rig::start(busy(), PoolLayout::new(2, 2, 2, 10), |settings| settings.message_buffer(1_000));
    rig.all_confirmed(200);
    rig.consume_for(Duration::from_millis(300), |_| {});
    drop(rig.messages.take());
    let at_drop = rig.handle.stats();
    rig.consume_until(
        "more was received",
        |_| {},
        |rig| rig.handle.stats().messages_received > at_drop.messages_received + 10_000,
    );
    assert_eq!(rig.handle.stats().connections_healthy, 16, "the engine lives on");
    let report = rig.manager.stop(Duration::from_secs(3));
    let stats = &report.stats;
    println!(
        "forwarded {} consumed {} abandoned {} dropped {}",
        stats.messages_forwarded,
        stats.messages_consumed,
        stats.messages_abandoned,
        stats.messages_dropped
    );
    assert!(stats.messages_abandoned >= 10_000, "{stats:?}");
    assert_eq!(stats.messages_forwarded, stats.messages_consumed + stats.messages_abandoned);
    assert_eq!((report.stuck.len(), report.panicked.len()), (0, 0));
    assert!(report.elapsed < Duration::from_secs(3));
}

#[test]
fn lifecycle_frames_wait_for_a_slow_registry_and_none_is_lost() {
    let exchange = ExchangeConfig {
        markets: 50,
        rate_per_second: 500,
        lifecycle_churn_per_minute: 0,
        ..ExchangeConfig::default()
    };
    let mut rig = Rig::start(exchange, PoolLayout::new(1, 1, 2, 4), |settings| settings);
    rig.all_confirmed(50);
    // Far more frames than the registry's queue (1,024) holds; nobody takes them for a while.
    let created = rig.exchange.create_markets(3_000);
    assert_eq!(created.len(), 3_000);
    let full = |rig: &Rig| rig.host.lifecycle().is_full();
    let messages = rig.messages.take();
    while !full(&rig) {
        std::thread::yield_now();
    }
    rig.messages = messages;
    let (verdict, report) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
    assert_eq!((verdict.covered, report.stats.lifecycle_discarded), (0, 0));
    assert!(report.stats.lifecycle_forwarded >= 2 * 6_000, "created and activated, on both lines");
}

#[test]
fn a_registry_that_hangs_up_is_an_event_and_a_counter() {
    let mut rig = Rig::start(busy(), PoolLayout::new(1, 1, 1, 2), |settings| settings);
    rig.all_confirmed(200);
    let (_, other) = kalshi_feed::ChannelRegistry::new([], 1, 1);
    drop(std::mem::replace(&mut rig.host, other));
    rig.exchange.create_markets(5);
    rig.consume_until(
        "frames are discarded",
        |_| {},
        |rig| {
            rig.handle.stats().lifecycle_discarded > 0
                && rig.seen.contains(&kalshi_feed::Event::RegistryHungUp)
        },
    );
    let healthy = rig.handle.stats().connections_healthy_by_role;
    assert!(healthy.contains(&(Role::Lifecycle, 1)));
}
