//! The loops around the steps: where clocks are read, threads are named, pinned and measured, and
//! a panic becomes a report. Nothing here decides anything.

use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};

use crate::affinity;
use crate::clock::{self, CpuTime};
use crate::conductor::Conductor;
use crate::connector::Connector;
use crate::event::Event;
use crate::ids::ShardId;
use crate::mailbox::{Lost, Untold};
use crate::resolve::Resolver;
use crate::shard::Shard;
use crate::stats::{Counter, ShardCounters};
use crate::timer::Next;
use crate::transport::Transport;
use crate::wait::Wait;
use crate::warning::{Warning, Warnings};
use crate::watchdog;

/// The threads there is one of.
pub(crate) const CONDUCTOR: &str = "kf-conductor";
pub(crate) const CONNECTOR: &str = "kf-connector";

/// The longest wait of a thread that sleeps in a poll.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// How often a thread publishes its CPU time.
const CPU_INTERVAL: Duration = Duration::from_millis(100);

/// Tells that a thread has ended, whichever way.
#[derive(Clone, Debug)]
pub(crate) struct Exits {
    /// The names of threads that ended.
    pub(crate) ended: Sender<String>,
    /// Threads that ended and should not have.
    pub(crate) lost: Sender<Lost>,
    /// For when the one who takes `lost` is lost.
    pub(crate) events: Sender<Event>,
}

impl Exits {
    /// A thread has ended that should not have: the conductor tells the host, or it is told here
    /// if that was the conductor.
    fn lose(&self, lost: Lost) {
        if let Err(error) = self.lost.try_send(lost) {
            let thread = error.into_inner().thread;
            // A host that does not take its events has to do without.
            self.events.try_send(Event::ThreadLost { thread }).unwrap_or_default();
        }
    }
}

struct Farewell {
    name: String,
    shard: Option<ShardId>,
    exits: Exits,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        let thread = std::mem::take(&mut self.name);
        if std::thread::panicking() {
            log::error!("the thread {thread} has ended by a bug");
            self.exits.lose(Lost { thread: thread.clone(), shard: self.shard });
        }
        // The queue has a place for every thread; without a listener nobody needs to know.
        self.exits.ended.try_send(thread).unwrap_or_default();
    }
}

/// Starts a named thread whose end is told.
pub(crate) fn spawn<R: Send + 'static>(
    builder: Builder,
    name: &str,
    shard: Option<ShardId>,
    exits: &Exits,
    run: impl FnOnce() -> R + Send + 'static,
) -> std::io::Result<JoinHandle<R>> {
    let farewell = Farewell { name: name.to_owned(), shard, exits: exits.clone() };
    builder.name(name.to_owned()).spawn(move || {
        let _told_at_the_end = farewell;
        run()
    })
}

/// The same with something the thread takes along, which comes back if there is no thread.
pub(crate) fn spawn_with<L: Send + 'static, R: Send + 'static>(
    builder: Builder,
    name: &str,
    exits: &Exits,
    luggage: L,
    run: impl FnOnce(L) -> R + Send + 'static,
) -> Result<JoinHandle<Option<R>>, (std::io::Error, Option<L>)> {
    let (sender, receiver) = bounded(1);
    let carried = receiver.clone();
    // There is room for the one.
    sender.try_send(luggage).unwrap_or_default();
    let run = move || carried.try_recv().ok().map(run);
    spawn(builder, name, None, exits, run).map_err(|error| (error, receiver.try_recv().ok()))
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
            exits.lose(Lost::shard(id));
            break;
        }
        let now = clock::now();
        let busy = shard.is_ready();
        next = shard.turn(now);
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
        log::error!("shard {} has failed for good; its connections are closed", shard.id());
        exits.lose(Lost::shard(id));
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
    let blocked = Some(until.map_or(WAIT_MAX, |until| until.min(WAIT_MAX)));
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
    exits: &Exits,
) {
    let mut timeout = Some(Duration::ZERO);
    loop {
        if let Err(error) = connector.wait(timeout) {
            log::error!("the connector cannot wait for events: {error}");
            exits.lose(Lost { thread: CONNECTOR.to_owned(), shard: None });
            return;
        }
        let now = clock::stamp();
        match connector.step(now) {
            Next::Done => break,
            // Not for ever, as with shards.
            next => timeout = Some(plain_timeout(next, now.mono).unwrap_or(WAIT_MAX).min(WAIT_MAX)),
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
                conductor.look_after_shards(now);
                // Not for longer than it may take its eyes off the shards.
                let timeout = plain_timeout(next, now).unwrap_or(watchdog::LOOK);
                conductor.wait(Some(timeout.min(watchdog::LOOK)));
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

#[cfg(test)]
mod tests {
    use crossbeam_channel::Receiver;

    use super::*;
    use crate::event::Events;

    fn exits() -> (Exits, Receiver<String>, Receiver<Lost>, Events) {
        let ((ended, told), (lost, losses)) = (bounded(4), bounded(4));
        let (events, host) = Events::new(4);
        (Exits { ended, lost, events }, told, losses, host)
    }

    /// No system has so much memory for one stack.
    fn impossible() -> Builder {
        Builder::new().stack_size(1 << 60)
    }

    #[test]
    fn g6_a_lost_wake_up_costs_a_second_and_not_a_hang() {
        let now = clock::now();
        let day = Next::At(Some(now + Duration::from_secs(86_400)));
        for next in [Next::At(None), day] {
            let timeout = shard_timeout(next, Wait::Block, now, now);
            assert_eq!(timeout, Some(Some(Duration::from_secs(1))));
        }
    }

    #[test]
    fn what_no_thread_could_take_along_comes_back() {
        let (exits, told, losses, _) = exits();
        let result =
            spawn_with(impossible(), "kf-conductor", &exits, String::from("registry"), |name| name);
        let (error, back) = result.map(drop).unwrap_err();
        assert_eq!(back.as_deref(), Some("registry"), "{error}");
        assert_eq!(told.try_recv().as_deref(), Ok("kf-conductor"), "nobody waits for it");
        assert!(losses.try_recv().is_err(), "it never was");
        let result = spawn_with(Builder::new(), "kf-conductor", &exits, 7, |number| number + 1);
        assert_eq!(result.ok().unwrap().join().unwrap(), Some(8));
    }

    #[test]
    fn g5_a_thread_that_panics_is_told_of_by_name() {
        let (exits, told, losses, host) = exits();
        let shard = Some(ShardId::new(3));
        let run = || panic!("a bug, put here on purpose");
        spawn::<()>(Builder::new(), "kf-shard-3", shard, &exits, run).unwrap().join().unwrap_err();
        let lost = losses.try_recv().unwrap();
        assert_eq!((lost.thread.as_str(), lost.shard), ("kf-shard-3", shard));
        assert_eq!(told.try_recv().as_deref(), Ok("kf-shard-3"));
        assert!(host.try_recv().is_err(), "the conductor tells the host");
    }

    #[test]
    fn g5_without_a_conductor_to_tell_the_host_is_told_here() {
        let (exits, _, losses, host) = exits();
        let run = move || {
            let _gone_with_it = losses;
            panic!("a bug, put here on purpose")
        };
        spawn::<()>(Builder::new(), "kf-conductor", None, &exits, run).unwrap().join().unwrap_err();
        let thread = "kf-conductor".to_owned();
        assert_eq!(host.try_recv(), Ok(Event::ThreadLost { thread }));
    }
}
