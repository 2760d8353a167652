//! The process runs out of file descriptors. Alone in its process, whose limit it lowers: row A11.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may panic and read the clock"
)]

mod support;

use exchange_sim::ExchangeConfig;
use kalshi_feed::{Cause, Event, PoolLayout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use support::Rig;

#[test]
fn a11_without_descriptors_left_it_backs_off_and_comes_back_when_there_are_some() {
    let exchange = ExchangeConfig { markets: 30, rate_per_second: 1_000, ..Default::default() };
    let mut rig = Rig::start(exchange, PoolLayout::new(1, 1, 1, 5), |settings| settings);
    rig.all_confirmed(30);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // Those that are open stay so; there are no new ones.
    setrlimit(Resource::RLIMIT_NOFILE, 3, hard).unwrap();
    let peers = rig.exchange.connections();
    assert_eq!(rig.exchange.cut(&peers), 8);
    let local = |event: &&Event| {
        matches!(event, Event::AttemptFailed { cause: Cause::Local { message }, .. }
            if message.contains("ulimit -n"))
    };
    rig.consume_until(
        "each has failed at least twice",
        |_| {},
        |rig| rig.seen.iter().filter(local).count() >= 16,
    );
    let stats = rig.handle.stats();
    assert_eq!((stats.connections_healthy, stats.connections_halted), (0, 0));
    let counts = &stats.attempts_failed_by_cause;
    assert!(counts.iter().any(|counted| counted.cause == "local" && counted.count >= 16));
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    rig.consume_until(
        "all are back",
        |_| {},
        |rig| {
            let stats = rig.handle.stats();
            stats.connections_healthy == 8 && stats.reconnects == 8
        },
    );
    rig.all_confirmed(30);
    let (verdict, _) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
}
