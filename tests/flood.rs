//! How much the log may say. Alone in its process, which has one logger.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may panic and read the clock"
)]

mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use exchange_sim::ExchangeConfig;
use kalshi_feed::{Event, PoolLayout};
use support::Rig;

/// Counts the engine's lines at `info` and above: what an operator has to live with.
struct Counter(AtomicU64);

static COUNTER: Counter = Counter(AtomicU64::new(0));

impl log::Log for Counter {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        if record.target().starts_with("kalshi_feed") && record.level() <= log::Level::Info {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    fn flush(&self) {}
}

/// Lines told while this goes on, and for how long it does.
fn told(what: impl FnOnce()) -> (u64, Duration) {
    let (before, begun) = (COUNTER.0.load(Ordering::Relaxed), Instant::now());
    what();
    (COUNTER.0.load(Ordering::Relaxed) - before, begun.elapsed())
}

#[test]
fn j9_a_loop_of_refusals_or_of_losses_is_a_line_a_second() {
    log::set_logger(&COUNTER).unwrap();
    log::set_max_level(log::LevelFilter::Info);
    let exchange = ExchangeConfig { markets: 50, rate_per_second: 500, ..Default::default() };
    let mut rig = Rig::start(exchange, PoolLayout::new(1, 1, 1, 5), |settings| settings);
    rig.all_confirmed(50);
    let failed = |event: &&Event| matches!(event, Event::AttemptFailed { .. });
    let lost = |event: &&Event| matches!(event, Event::Down { .. });
    // One a second of attempts, one a second of losses, and one each to begin with.
    let most = |time: Duration| 2 * (time.as_secs() + 2);
    rig.exchange.refuse_upgrades(Some(503));
    let (lines, time) = told(|| {
        rig.exchange.cut(&rig.exchange.connections());
        rig.consume_until(
            "five hundred attempts were refused",
            |_| {},
            |rig| rig.seen.iter().filter(failed).count() >= 500,
        );
    });
    println!("{lines} lines in {time:?} of 500 refusals");
    assert!((1..=most(time)).contains(&lines), "{lines} lines in {time:?}");
    rig.exchange.refuse_upgrades(None);
    let (lines, time) = told(|| {
        rig.consume_until(
            "a hundred connections were lost",
            |_| {},
            |rig| {
                rig.exchange.cut(&rig.exchange.connections());
                rig.seen.iter().filter(lost).count() >= 108
            },
        );
    });
    println!("{lines} lines in {time:?} of 100 losses");
    assert!((1..=most(time)).contains(&lines), "{lines} lines in {time:?}");
}
