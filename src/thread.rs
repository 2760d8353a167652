//! The loops around the steps: where clocks are read, threads are named, pinned and measured, and
//! a panic becomes a report. Nothing here decides anything.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use crate::affinity;
use crate::clock::{self, CpuTime};
use crate::conductor::Conductor;
use crate::config::Wait;
use crate::connector::Connector;
use crate::ids::ShardId;
use crate::mailbox::Untold;
use crate::resolve::Resolver;
use crate::shard::Shard;
use crate::stats::{Counter, ShardCounters};
use crate::timer::Next;
use crate::transport::Transport;
use crate::warning::{Warning, Warnings};

/// How often a thread publishes its CPU time.
const CPU_INTERVAL: Duration = Duration::from_millis(100);

/// Tells that a thread has ended, whichever way.
#[derive(Clone, Debug)]
pub(crate) struct Exits {
    /// The names of threads that ended.
    pub(crate) ended: Sender<String>,
    /// Shards that ended by a panic.
    pub(crate) lost: Sender<ShardId>,
}

struct Farewell {
    name: String,
    shard: Option<ShardId>,
    exits: Exits,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        // The queues have a place for every thread; without a listener nobody needs to know.
        if let Some(shard) = self.shard.filter(|_| std::thread::panicking()) {
            self.exits.lost.try_send(shard).unwrap_or_default();
        }
        self.exits.ended.try_send(std::mem::take(&mut self.name)).unwrap_or_default();
    }
}

/// Starts a named thread whose end is told.
pub(crate) fn spawn<R: Send + 'static>(
    name: &str,
    shard: Option<ShardId>,
    exits: &Exits,
    run: impl FnOnce() -> R + Send + 'static,
) -> std::io::Result<JoinHandle<R>> {
    let farewell = Farewell { name: name.to_owned(), shard, exits: exits.clone() };
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _told_at_the_end = farewell;
        run()
    })
}

/// Where a shard's thread runs, and how it waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seat {
    pub(crate) shard: ShardId,
    /// Its core, if it is pinned.
    pub(crate) core: Option<usize>,
    pub(crate) wait: Wait,
}

/// A shard's thread: made there, run there.
pub(crate) fn run_shard<T: Transport>(
    make: impl FnOnce() -> Shard<T>,
    Seat { shard: id, core, wait }: Seat,
    counters: &ShardCounters,
    exits: &Exits,
    warnings: &Warnings,
) -> Vec<Untold> {
    // Pinned first, so that the shard's memory, and its handler's, comes from its own node.
    let mut seated = core.is_none_or(affinity::pin);
    report_seat(id, core, seated, counters, warnings);
    let mut shard = make();
    let started = clock::now();
    let (mut before, mut worked, mut measured) = (started, started, started);
    let mut next = Next::Now;
    while let Some(timeout) = shard_timeout(next, wait, before, worked) {
        if let Err(error) = shard.wait(timeout) {
            log::error!("a shard cannot wait for events: {error}");
            // Its queue has a place for every shard.
            exits.lost.try_send(shard.id()).unwrap_or_default();
            break;
        }
        let now = clock::now();
        let busy = shard.is_ready();
        next = shard.step(now);
        before = clock::now();
        if busy {
            worked = before;
        }
        let took = before.saturating_duration_since(now);
        shard.turn_took(took);
        let spent = nanoseconds(took);
        counters.cycles.add(1);
        counters.busy_ns.add(if busy || wait == Wait::Block { spent } else { 0 });
        counters.cycle_ns_max.raise(spent);
        counters.cycle_ns.add(spent);
        if before.saturating_duration_since(measured) >= CPU_INTERVAL {
            measured = before;
            CpuTime::publish(&counters.cpu_ns);
            counters.wall_ns.set(nanoseconds(before.saturating_duration_since(started)));
            if core.is_none_or(affinity::is_pinned) != seated {
                seated = !seated;
                report_seat(id, core, seated, counters, warnings);
            }
        }
    }
    if shard.is_failed() {
        log::error!("the handler of shard {} panicked; its connections are closed", shard.id());
        exits.lost.try_send(shard.id()).unwrap_or_default();
    }
    CpuTime::publish(&counters.cpu_ns);
    counters.wall_ns.set(nanoseconds(before.saturating_duration_since(started)));
    shard.into_untold()
}

/// How long to wait; the outer `None` is the end, the inner one for ever.
fn shard_timeout(
    next: Next,
    wait: Wait,
    now: Instant,
    worked: Instant,
) -> Option<Option<Duration>> {
    let until = match next {
        Next::Done => return None,
        Next::Now => return Some(Some(Duration::ZERO)),
        Next::At(until) => until.map(|until| until.saturating_duration_since(now)),
    };
    let spins = match wait {
        Wait::Block => false,
        Wait::Spin => true,
        Wait::Adaptive { spin } => now.saturating_duration_since(worked) < spin,
    };
    // Not for ever: figures are published, and a lost wake-up would cost a second, not a hang.
    let longest = Duration::from_secs(1);
    let blocked = Some(until.map_or(longest, |until| until.min(longest)));
    Some(if spins { Some(Duration::ZERO) } else { blocked })
}

/// Publishes where a pinned shard really runs, and that it does not run where it should.
fn report_seat(
    shard: ShardId,
    core: Option<usize>,
    seated: bool,
    counters: &ShardCounters,
    warnings: &Warnings,
) {
    let Some(core) = core else { return };
    counters.core.set(if seated { crate::ids::widen(core).saturating_add(1) } else { 0 });
    if !seated {
        warnings.add(Warning::NotPinned { shard, core });
    }
}

/// Keeps the calling thread on `cores`, or anywhere if there are none.
pub(crate) fn confine(cores: &[usize], warnings: &Warnings) {
    if cores.is_empty() {
        return;
    }
    if let Err(problem) = affinity::confine(cores) {
        warnings.add(Warning::NotConfined { problem });
    }
}

/// The connector's thread.
pub(crate) fn run_connector<T: Transport, R: Resolver>(
    mut connector: Connector<T, R>,
    cpu: &Counter,
) {
    let mut timeout = Some(Duration::ZERO);
    loop {
        if let Err(error) = connector.wait(timeout) {
            log::error!("the connector cannot wait for events: {error}");
            return;
        }
        let now = clock::stamp();
        match connector.step(now) {
            Next::Done => break,
            next => timeout = plain_timeout(next, now.mono),
        }
        CpuTime::publish(cpu);
    }
    CpuTime::publish(cpu);
}

/// The conductor's thread, until it is done.
pub(crate) fn run_conductor<L>(mut conductor: Conductor<L>, cpu: &Counter) -> Conductor<L> {
    loop {
        let now = clock::now();
        match conductor.step(now) {
            Next::Done => break,
            next => {
                CpuTime::publish(cpu);
                conductor.wait(plain_timeout(next, now));
            }
        }
    }
    CpuTime::publish(cpu);
    conductor
}

fn plain_timeout(next: Next, now: Instant) -> Option<Duration> {
    match next {
        Next::Now | Next::Done => Some(Duration::ZERO),
        Next::At(until) => until.map(|until| until.saturating_duration_since(now)),
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
