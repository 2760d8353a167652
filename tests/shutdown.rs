//! A hundred managers started and stopped, in every state there is: nothing of them stays. Alone
//! in its process, so that what it counts is theirs.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test may panic and read the clock"
)]

mod support;

use std::time::{Duration, Instant};

use cap::Cap;
use exchange_sim::{Ended, ExchangeConfig, Mode};
use kalshi_feed::{PoolLayout, StartError, StopReport};
use support::Rig;

/// Counts the bytes that are allocated now.
#[global_allocator]
static ALLOCATED: Cap<std::alloc::System> = Cap::new(std::alloc::System, usize::MAX);

const POOL: PoolLayout = PoolLayout::new(1, 1, 1, 5);
/// How long a stop may take.
const LIMIT: Duration = Duration::from_secs(2);
/// What may stay or go from one manager to the next: buffers of the process itself.
const SLACK: usize = 64 << 10;

fn entries(folder: &str) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

/// Open descriptors, and threads.
fn held() -> (usize, usize) {
    (entries("/proc/self/fd"), entries("/proc/self/task"))
}

fn prepared(mode: Mode) -> Rig {
    let exchange =
        ExchangeConfig { markets: 50, rate_per_second: 20_000, mode, ..ExchangeConfig::default() };
    Rig::prepare(exchange, POOL, |settings| {
        settings.message_buffer(2_000).start_timeout(Duration::from_secs(10))
    })
}

fn started(mode: Mode) -> Rig {
    let mut rig = prepared(mode);
    rig.manager.start().unwrap();
    rig
}

fn stopped(rig: &mut Rig) -> StopReport {
    let report = rig.manager.stop(LIMIT);
    assert_eq!((report.stuck.len(), report.panicked.len()), (0, 0), "{report:?}");
    assert!(report.elapsed < LIMIT, "{:?}", report.elapsed);
    report
}

/// One manager's life, ended in the state of this number.
fn live_and_die(state: usize) {
    match state % 8 {
        // Idle: everyone is told goodbye.
        0 => {
            let mut rig = started(Mode::Quiet);
            stopped(&mut rig);
            let ledger = rig.exchange.ledger();
            let closed = ledger.connections.iter().filter(|c| c.ended == Ended::PeerClosed);
            assert_eq!(closed.count(), 8, "{ledger:?}");
        }
        // Under load.
        1 => {
            let mut rig = started(Mode::Burst);
            rig.consume_for(Duration::from_millis(50), |_| {});
            stopped(&mut rig);
        }
        // In the middle of a storm.
        2 => {
            let mut rig = started(Mode::Paced);
            rig.exchange.cut(&rig.exchange.connections());
            stopped(&mut rig);
        }
        // While nobody takes anything.
        3 => {
            let mut rig = started(Mode::Burst);
            while rig.handle.stats().messages_dropped == 0 {
                std::thread::yield_now();
            }
            stopped(&mut rig);
        }
        // While starting, by another thread.
        4 => {
            let mut rig = prepared(Mode::Paced);
            let handle = rig.handle.clone();
            let begun = std::thread::scope(|scope| {
                scope.spawn(|| {
                    while handle.stats().connection_attempts == 0 {
                        std::thread::yield_now();
                    }
                    handle.request_stop();
                });
                rig.manager.start()
            });
            assert!(matches!(begun, Ok(()) | Err(StartError::Cancelled)), "{begun:?}");
            stopped(&mut rig);
        }
        // After a start that failed.
        5 => {
            let mut rig = prepared(Mode::Paced);
            rig.exchange.refuse_upgrades(Some(401));
            let begun = rig.manager.start();
            assert!(matches!(begun, Err(StartError::Halted { .. })), "{begun:?}");
            stopped(&mut rig);
        }
        // Twice.
        6 => {
            let mut rig = started(Mode::Paced);
            assert_eq!(stopped(&mut rig).elapsed, stopped(&mut rig).elapsed);
        }
        // By being forgotten.
        _ => drop(started(Mode::Paced)),
    }
}

#[test]
fn j3_a_hundred_lives_in_every_state_leave_nothing_behind() {
    // Whatever is made once and for all is made by the first.
    (0..8).for_each(live_and_die);
    let before = settled(None);
    let mut after_ten = 0;
    for round in 1..=100 {
        let begun = Instant::now();
        live_and_die(round);
        let now = settled(Some(before));
        assert_eq!(now, before, "descriptors and threads after round {round}");
        match round {
            10 => after_ten = ALLOCATED.allocated(),
            100 => {
                let after_all = ALLOCATED.allocated();
                println!("live bytes: {after_ten} after 10 rounds, {after_all} after 100");
                assert!(after_all.abs_diff(after_ten) <= SLACK, "{after_ten} then {after_all}");
            }
            _ => {}
        }
        assert!(begun.elapsed() < support::PATIENCE);
    }
}

/// What is held once it is what it should be, or once it has not changed for a while: threads that
/// are nobody's to join (a name lookup, the exchange's own) end by themselves.
fn settled(expected: Option<(usize, usize)>) -> (usize, usize) {
    let begun = Instant::now();
    let mut last = (held(), Instant::now());
    loop {
        let now = held();
        if now != last.0 {
            last = (now, Instant::now());
        }
        let calm = last.1.elapsed() > Duration::from_millis(300);
        let enough = begun.elapsed() > Duration::from_secs(5);
        if Some(now) == expected || enough || (expected.is_none() && calm) {
            return now;
        }
        std::thread::yield_now();
    }
}
