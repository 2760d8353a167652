//! What the engine counts. One block per thread, written by that thread alone with plain relaxed
//! stores, read by anyone as a snapshot. Counters, not logs, on the hot path.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_utils::CachePadded;
use serde::Serialize;

use crate::causes::{ByCause, CauseCount};
use crate::clock::CpuTime;
use crate::code::ExchangeCode;
use crate::ids::{ConnId, Role, widen};
use crate::lines::{ArbitrationCounters, ArbitrationStats};
use crate::pool::PoolLayout;
use crate::recovery_stats::{RecoveryCounters, RecoveryStats};
use crate::shard_stats::ShardStats;
use crate::spread::{Durations, Spread};

/// A number with one writer and any readers. Adding is a load and a store, not a locked add.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    /// Slots of a sequence: the exchange may say that any number of them are missing.
    pub(crate) fn add_slots(&self, count: u64) {
        self.set(self.total().saturating_add(count));
    }

    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub(crate) fn subtract(&self, count: u64) {
        self.set(self.total().saturating_sub(count));
    }

    pub(crate) fn raise(&self, value: u64) {
        if value > self.total() {
            self.set(value);
        }
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Of a counter of milliseconds.
    fn seconds_of_ms(&self) -> f64 {
        std::time::Duration::from_millis(self.total()).as_secs_f64()
    }
}

/// The sum of counters, of which each may have come to its end.
pub(crate) fn saturating<'a>(counters: impl Iterator<Item = &'a Counter>) -> u64 {
    counters.fold(0, |sum, counter| sum.saturating_add(counter.total()))
}

/// Counted by each shard.
#[derive(Debug, Default)]
pub(crate) struct ShardCounters {
    /// Data messages received, of all roles.
    pub(crate) messages_received: Counter,
    /// Handed to `Messages`.
    pub(crate) messages_forwarded: Counter,
    /// Taken by an inline handler.
    pub(crate) messages_consumed: Counter,
    /// Dropped for want of room.
    pub(crate) messages_dropped: Counter,
    /// Of those, replaced by a newer one of their market.
    pub(crate) messages_conflated: Counter,
    /// Kept until there is room, now.
    pub(crate) messages_kept: Counter,
    /// Handed to the registry.
    pub(crate) lifecycle_forwarded: Counter,
    /// Lifecycle frames nobody listens for.
    pub(crate) lifecycle_discarded: Counter,
    /// Holes in a sequence, on the wire.
    pub(crate) sequence_gaps: Counter,
    /// Slots in those holes.
    pub(crate) messages_missed: Counter,
    /// Numbers seen again.
    pub(crate) duplicates: Counter,
    /// Older numbers.
    pub(crate) backward: Counter,
    /// Of the redundant pairs.
    pub(crate) arbitration: ArbitrationCounters,
    /// Replies and errors.
    pub(crate) replies: Counter,
    /// Replies to commands that had ended without one.
    pub(crate) replies_late: Counter,
    /// Replies no command waits for: unknown or doubled.
    pub(crate) replies_unmatched: Counter,
    /// Pings and pongs.
    pub(crate) control_frames: Counter,
    /// Binary frames, ignored.
    pub(crate) binary_frames: Counter,
    /// Data of a type the engine does not know, delivered.
    pub(crate) unknown_types: Counter,
    /// Frames without a readable envelope, delivered.
    pub(crate) unreadable: Counter,
    /// Plaintext bytes received.
    pub(crate) bytes_received: Counter,
    /// Reports the conductor's queue had no room for: a broken bound, always zero.
    pub(crate) reports_lost: Counter,
    /// Connections adopted and not yet lost.
    pub(crate) connections: Counter,
    /// Turns of the loop.
    pub(crate) cycles: Counter,
    /// Nanoseconds spent in turns, waiting excluded.
    pub(crate) busy_ns: Counter,
    /// The longest turn, in nanoseconds.
    pub(crate) cycle_ns_max: Counter,
    /// How long turns took.
    pub(crate) cycle_ns: Spread,
    /// The most CPU that orders of the conductor took in one turn, in nanoseconds.
    pub(crate) control_ns_max: Counter,
    /// CPU that orders of the conductor took in turns that had any.
    pub(crate) control_ns: Spread,
    /// Turns that took longer than the threshold.
    pub(crate) cycles_slow: Counter,
    /// Restarts after a bug.
    pub(crate) restarts: Counter,
    /// Connections told to be silent now.
    pub(crate) silent: Counter,
    /// Silences told.
    pub(crate) silences: Counter,
    /// Connections told to be lagging now.
    pub(crate) lagging: Counter,
    /// How late data came at the newest sample, in milliseconds.
    pub(crate) lag_ms: Counter,
    /// The highest sample so far.
    pub(crate) lag_ms_max: Counter,
    /// Events the conductor's queue had no time for.
    pub(crate) events_dropped: Counter,
    /// Nanoseconds since the thread's loop began.
    pub(crate) wall_ns: Counter,
    /// Thread CPU time, in nanoseconds.
    pub(crate) cpu_ns: Counter,
    /// Calls of the inline handler.
    pub(crate) handler_calls: Counter,
    /// Nanoseconds spent in them.
    pub(crate) handler_busy_ns: Counter,
    /// The longest of them, in nanoseconds.
    pub(crate) handler_ns_max: Counter,
    /// Those over the threshold.
    pub(crate) handler_slow: Counter,
    /// The core it is verified to be pinned to and to run on, plus one; zero for none.
    pub(crate) core: Counter,
}

/// Error codes counted apart; others share the last place.
const CODES: usize = 32;

/// Counted by the conductor and the connector.
#[derive(Debug, Default)]
pub(crate) struct ControlCounters {
    pub(crate) connections_healthy: [Counter; 4],
    pub(crate) subscriptions: Counter,
    /// Markets the exchange has confirmed.
    pub(crate) markets: Counter,
    /// Markets the registry wants.
    pub(crate) markets_wanted: Counter,
    /// Markets wanted that have no connection.
    pub(crate) markets_unplaced: Counter,
    /// Market-milliseconds that were not covered.
    pub(crate) uncovered_market_ms: Counter,
    /// Times markets began to wait because no connection was healthy.
    pub(crate) no_healthy_connections: Counter,
    /// Times markets began to wait because every connection was full.
    pub(crate) pool_full: Counter,
    /// Times a market was refused by itself.
    pub(crate) markets_refused: Counter,
    pub(crate) attempts: Counter,
    pub(crate) halted: Counter,
    pub(crate) attempts_failed: ByCause,
    pub(crate) connections_lost: ByCause,
    pub(crate) reconnects: Box<[Counter]>,
    pub(crate) subscribe_errors: [[Counter; CODES]; 4],
    pub(crate) commands_timed_out: Counter,
    pub(crate) events_dropped: Counter,
    pub(crate) conductor_cpu_ns: Counter,
    pub(crate) connector_cpu_ns: Counter,
    /// How often the exchange refused our time and its own was believed.
    pub(crate) clock_corrections: Counter,
    /// How far its clock is ahead of ours: the bits of a signed number of milliseconds.
    pub(crate) clock_skew_ms: Counter,
    pub(crate) tls_resumed: Counter,
    pub(crate) tls_full: Counter,
    pub(crate) recovery: RecoveryCounters,
}

impl ControlCounters {
    pub(crate) fn subscribe_error(&self, role: Role, code: ExchangeCode) {
        let code = code.number().unwrap_or(0);
        let place = usize::try_from(code).unwrap_or(0).min(CODES - 1);
        if let Some(counter) =
            self.subscribe_errors.get(role.index()).and_then(|codes| codes.get(place))
        {
            counter.add(1);
        }
    }

    pub(crate) fn reconnect(&self, conn: ConnId) {
        if let Some(counter) = self.reconnects.get(usize::from(conn.number()).saturating_sub(1)) {
            counter.add(1);
        }
    }
}

/// All counters of one manager.
#[derive(Debug)]
pub(crate) struct Counters {
    pub(crate) pool: PoolLayout,
    pub(crate) shards: Vec<Arc<CachePadded<ShardCounters>>>,
    pub(crate) control: Arc<CachePadded<ControlCounters>>,
    pub(crate) consumed: Arc<CachePadded<Counter>>,
}

impl Counters {
    pub(crate) fn new(
        pool: PoolLayout,
        shards: usize,
        consumed: Arc<CachePadded<Counter>>,
    ) -> Self {
        let control = ControlCounters {
            reconnects: (0..pool.connections()).map(|_| Counter::default()).collect(),
            ..ControlCounters::default()
        };
        Self {
            pool,
            shards: (0..shards).map(|_| Arc::default()).collect(),
            control: Arc::new(CachePadded::new(control)),
            consumed,
        }
    }

    /// The engine has stopped: what says "now" says nothing.
    pub(crate) fn nothing_is_live(&self) {
        self.control.connections_healthy.iter().for_each(|counter| counter.set(0));
        self.control.subscriptions.set(0);
        self.control.markets.set(0);
        self.control.markets_unplaced.set(0);
        self.control.recovery.nothing_is_live();
        self.shards.iter().for_each(|shard| shard.lag_ms.set(0));
    }

    fn sum(&self, counter: fn(&ShardCounters) -> &Counter) -> u64 {
        saturating(self.shards.iter().map(|shard| counter(shard)))
    }

    fn highest(&self, counter: fn(&ShardCounters) -> &Counter) -> u64 {
        self.shards.iter().map(|shard| counter(shard).total()).max().unwrap_or(0)
    }

    fn reconnects(&self) -> Vec<(ConnId, Role, u64)> {
        let counted = self.pool.iter().zip(self.control.reconnects.iter());
        let counted = counted.map(|((conn, role), counter)| (conn, role, counter.total()));
        counted.filter(|&(_, _, count)| count > 0).collect()
    }

    /// Everything, read now.
    pub(crate) fn snapshot(&self, abandoned: bool) -> Stats {
        Stats {
            connections_total: widen(self.pool.connections()),
            connections_healthy: self.healthy().iter().map(|(_, count)| count).sum(),
            connections_healthy_by_role: self.healthy(),
            connections_halted: self.control.halted.total(),
            connection_attempts: self.control.attempts.total(),
            attempts_failed_by_cause: self.control.attempts_failed.counts(),
            connections_lost_by_cause: self.control.connections_lost.counts(),
            subscriptions_total: self.control.subscriptions.total(),
            markets_total: self.control.markets.total(),
            markets_wanted: self.control.markets_wanted.total(),
            markets_unplaced: self.control.markets_unplaced.total(),
            markets_refused: self.control.markets_refused.total(),
            uncovered_market_seconds: self.control.uncovered_market_ms.seconds_of_ms(),
            no_healthy_connections: self.control.no_healthy_connections.total(),
            pool_full: self.control.pool_full.total(),
            messages_received: self.sum(|shard| &shard.messages_received),
            messages_forwarded: self.handed().0,
            messages_consumed: self.handed().1,
            messages_abandoned: self.abandoned(abandoned),
            messages_dropped: self.sum(|shard| &shard.messages_dropped),
            messages_conflated: self.sum(|shard| &shard.messages_conflated),
            messages_kept: self.sum(|shard| &shard.messages_kept),
            lifecycle_forwarded: self.sum(|shard| &shard.lifecycle_forwarded),
            lifecycle_discarded: self.sum(|shard| &shard.lifecycle_discarded),
            sequence_gaps: self.sum(|shard| &shard.sequence_gaps),
            messages_missed: self.sum(|shard| &shard.messages_missed),
            recovery: self.control.recovery.snapshot(),
            messages_duplicate: self.sum(|shard| &shard.duplicates),
            messages_backward: self.sum(|shard| &shard.backward),
            arbitration: self.arbitration(),
            replies: self.sum(|shard| &shard.replies),
            replies_late: self.sum(|shard| &shard.replies_late),
            replies_unmatched: self.sum(|shard| &shard.replies_unmatched),
            control_frames: self.sum(|shard| &shard.control_frames),
            binary_frames: self.sum(|shard| &shard.binary_frames),
            unknown_types: self.sum(|shard| &shard.unknown_types),
            unreadable: self.sum(|shard| &shard.unreadable),
            reports_lost: self.sum(|shard| &shard.reports_lost),
            reconnects: self.control.reconnects.iter().map(Counter::total).sum(),
            reconnects_by_connection: self.reconnects(),
            subscribe_errors: subscribe_errors(&self.control).iter().map(|error| error.count).sum(),
            subscribe_errors_by_code: subscribe_errors(&self.control),
            commands_timed_out: self.control.commands_timed_out.total(),
            events_dropped: self.events_dropped(),
            connections_silent: self.sum(|shard| &shard.silent),
            silences: self.sum(|shard| &shard.silences),
            connections_lagging: self.sum(|shard| &shard.lagging),
            feed_lag_ms: self.highest(|shard| &shard.lag_ms),
            feed_lag_ms_max: self.highest(|shard| &shard.lag_ms_max),
            shard_restarts: self.sum(|shard| &shard.restarts),
            cycles_slow: self.sum(|shard| &shard.cycles_slow),
            cycle_ns_max: self.highest(|shard| &shard.cycle_ns_max),
            clock_corrections: self.control.clock_corrections.total(),
            clock_skew_ms: self.control.clock_skew_ms.total().cast_signed(),
            tls_resumed: self.control.tls_resumed.total(),
            tls_full: self.control.tls_full.total(),
            bytes_received: self.sum(|shard| &shard.bytes_received),
            handler_calls: self.sum(|shard| &shard.handler_calls),
            handler_busy_ns: self.sum(|shard| &shard.handler_busy_ns),
            handler_slowest_ns: self.highest(|shard| &shard.handler_ns_max),
            handler_slow: self.sum(|shard| &shard.handler_slow),
            control_ns_max: self.highest(|shard| &shard.control_ns_max),
            control_ns: self.durations(|shard| &shard.control_ns),
            cycle_ns: self.durations(|shard| &shard.cycle_ns),
            cpu_ns: self.cpu_ns(),
            shards: self.shard_stats(),
        }
    }
}

impl Counters {
    fn healthy(&self) -> [(Role, u64); 4] {
        let live = |role: Role| self.control.connections_healthy.get(role.index());
        Role::ALL.map(|role| (role, live(role).map_or(0, Counter::total)))
    }

    fn shard_stats(&self) -> Vec<ShardStats> {
        let each = (0u16..).zip(&self.shards);
        each.map(|(id, shard)| ShardStats::of(id, shard)).collect()
    }

    /// Messages handed over that nobody takes any more, if that is so.
    fn abandoned(&self, abandoned: bool) -> u64 {
        let (forwarded, consumed) = self.handed();
        if abandoned { forwarded.saturating_sub(consumed) } else { 0 }
    }

    /// Messages handed over, and those of them that were taken.
    fn handed(&self) -> (u64, u64) {
        let inline = self.sum(|shard| &shard.messages_consumed);
        let consumed = self.consumed.total().saturating_add(inline);
        (self.sum(|shard| &shard.messages_forwarded), consumed)
    }

    fn events_dropped(&self) -> u64 {
        self.control.events_dropped.total() + self.sum(|shard| &shard.events_dropped)
    }

    fn arbitration(&self) -> ArbitrationStats {
        ArbitrationStats::sum(self.pool, self.shards.iter().map(|shard| &shard.arbitration))
    }

    fn cpu_ns(&self) -> u64 {
        let control = self.control.conductor_cpu_ns.total() + self.control.connector_cpu_ns.total();
        self.sum(|shard| &shard.cpu_ns) + control
    }

    fn durations(&self, of: impl Fn(&ShardCounters) -> &Spread) -> Durations {
        let mut sum = Durations::default();
        self.shards.iter().for_each(|shard| of(shard).add_to(&mut sum));
        sum
    }
}

fn subscribe_errors(control: &ControlCounters) -> Vec<SubscribeErrors> {
    let mut errors = Vec::new();
    for (role, codes) in Role::ALL.into_iter().zip(&control.subscribe_errors) {
        for (code, counter) in (0i64..).zip(codes) {
            let count = counter.total();
            if count > 0 {
                errors.push(SubscribeErrors { channel: role.channel(), code, count });
            }
        }
    }
    errors
}

/// A snapshot of everything the engine counts. Counts are since the manager was made, over all
/// epochs. What is live, open or confirmed now is zero once the engine has stopped, whoever asked
/// it to; what is halted or wanted stays as it last was.
///
/// `messages_received = messages_forwarded + messages_dropped + messages_kept +
/// lifecycle_forwarded + lifecycle_discarded + arbitration.duplicates_dropped` once the engine is
/// idle: data messages only, replies apart. Numbers of different threads are read one after
/// another, so sums may be off by what happened meanwhile.
///
/// ```
/// # fn show(handle: &kalshi_feed::Handle) {
/// let stats = handle.stats();
/// println!("{} of {} live", stats.connections_healthy, stats.connections_total);
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Connections in the pool.
    pub connections_total: u64,
    /// Connections live now.
    pub connections_healthy: u64,
    /// The same, role by role.
    pub connections_healthy_by_role: [(Role, u64); 4],
    /// Connections given up until an operator acts.
    pub connections_halted: u64,
    /// Attempts to connect.
    pub connection_attempts: u64,
    /// Attempts that failed, by the kind of their cause.
    pub attempts_failed_by_cause: Vec<CauseCount>,
    /// Live connections lost, by the kind of their cause.
    pub connections_lost_by_cause: Vec<CauseCount>,
    /// Subscriptions the exchange has confirmed and that are open.
    pub subscriptions_total: u64,
    /// Order-book markets the exchange has confirmed.
    pub markets_total: u64,
    /// Order-book markets the registry wants.
    pub markets_wanted: u64,
    /// Of those, without a connection now; they get one by themselves when there is room.
    pub markets_unplaced: u64,
    /// How often a market was refused by itself.
    pub markets_refused: u64,
    /// How long order-book markets were not covered, summed over all of them, in seconds; see
    /// [`Event::Uncovered`](crate::Event::Uncovered). Those that are not covered now count until
    /// now.
    pub uncovered_market_seconds: f64,
    /// How often markets began to wait because no connection was healthy.
    pub no_healthy_connections: u64,
    /// How often markets began to wait because every healthy connection was full.
    pub pool_full: u64,
    /// Data messages received.
    pub messages_received: u64,
    /// Of those, handed to `Messages`.
    pub messages_forwarded: u64,
    /// Of those, taken by the host.
    pub messages_consumed: u64,
    /// Handed over and never taken because `Messages` was dropped.
    pub messages_abandoned: u64,
    /// Dropped for want of room in `Messages`. Each, repeated frames aside, is told by the
    /// `gap_size` of a later message or, at the end, by [`StopReport::untold`](crate::StopReport).
    pub messages_dropped: u64,
    /// Of those, left out because a newer one of their market came.
    pub messages_conflated: u64,
    /// The newest message of each market that waits for room now, under
    /// [`Overflow::ConflateByMarket`](crate::Overflow::ConflateByMarket).
    pub messages_kept: u64,
    /// Lifecycle frames handed to the registry.
    pub lifecycle_forwarded: u64,
    /// Lifecycle frames nobody listened for.
    pub lifecycle_discarded: u64,
    /// Holes in sequences, on the wire.
    pub sequence_gaps: u64,
    /// Slots in those holes.
    pub messages_missed: u64,
    /// What was done about such holes in order books.
    pub recovery: RecoveryStats,
    /// Frames whose number was seen just before.
    pub messages_duplicate: u64,
    /// Frames with an older number.
    pub messages_backward: u64,
    /// Of the redundant pairs whose copies are arbitrated.
    pub arbitration: ArbitrationStats,
    /// Replies and errors from the exchange.
    pub replies: u64,
    /// Replies that came after their command's time was up.
    pub replies_late: u64,
    /// Replies no command waited for: unknown or doubled.
    pub replies_unmatched: u64,
    /// Pings and pongs received.
    pub control_frames: u64,
    /// Binary frames received and ignored.
    pub binary_frames: u64,
    /// Data of types the engine does not know, delivered all the same.
    pub unknown_types: u64,
    /// Frames without a readable envelope, delivered all the same.
    pub unreadable: u64,
    /// Internal reports lost; anything but zero is a bug.
    pub reports_lost: u64,
    /// Returns to live after a connection was lost.
    pub reconnects: u64,
    /// The same, for each connection that had any.
    pub reconnects_by_connection: Vec<(ConnId, Role, u64)>,
    /// Commands the exchange refused.
    pub subscribe_errors: u64,
    /// The same, by channel and code.
    pub subscribe_errors_by_code: Vec<SubscribeErrors>,
    /// Commands without a reply in time.
    pub commands_timed_out: u64,
    /// Events the host's queue had no room for.
    pub events_dropped: u64,
    /// Connections that have brought no data for `silent_after` now.
    pub connections_silent: u64,
    /// How often one fell silent so.
    pub silences: u64,
    /// Connections whose data comes later than `lag_threshold` now.
    pub connections_lagging: u64,
    /// How late data came: the exchange's `ts_ms` to our read, in milliseconds. The newest sample
    /// (about four a second of each connection) of the shard where it is highest.
    pub feed_lag_ms: u64,
    /// The highest sample so far, in milliseconds.
    pub feed_lag_ms_max: u64,
    /// How often a shard was restarted after a bug of the engine's; anything but zero is one.
    pub shard_restarts: u64,
    /// Turns of shards that took longer than `stall_threshold`.
    pub cycles_slow: u64,
    /// The longest turn of any shard, in nanoseconds of wall time.
    pub cycle_ns_max: u64,
    /// How often the exchange refused our time, and its own was believed.
    pub clock_corrections: u64,
    /// How far the exchange's clock is ahead of ours, in milliseconds, as of the last of those.
    pub clock_skew_ms: i64,
    /// TLS handshakes resumed from a ticket.
    pub tls_resumed: u64,
    /// Full TLS handshakes.
    pub tls_full: u64,
    /// Bytes received, after decryption.
    pub bytes_received: u64,
    /// The most that orders of the conductor (commands, new connections) took of one turn of a
    /// shard, in nanoseconds of thread CPU time.
    pub control_ns_max: u64,
    /// What such orders took, turn by turn, in thread CPU time.
    #[serde(skip)]
    pub control_ns: Durations,
    /// How long turns of the shards' loops took, waiting excluded.
    #[serde(skip)]
    pub cycle_ns: Durations,
    /// Calls of inline handlers.
    pub handler_calls: u64,
    /// Time spent in them, in nanoseconds of wall time.
    pub handler_busy_ns: u64,
    /// The longest of them, in nanoseconds.
    pub handler_slowest_ns: u64,
    /// Those that took longer than `handler_slow_threshold`.
    pub handler_slow: u64,
    /// CPU time of the engine's threads, in nanoseconds.
    pub cpu_ns: u64,
    /// Shard by shard.
    pub shards: Vec<ShardStats>,
}

/// Refusals of one channel with one code.
///
/// ```
/// # fn show(errors: &kalshi_feed::SubscribeErrors) {
/// println!("{} refused {} times with {}", errors.channel, errors.count, errors.code);
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SubscribeErrors {
    /// The channel's name.
    pub channel: &'static str,
    /// The exchange's code; 31 stands for all from there on, 0 for none.
    pub code: i64,
    /// How often.
    pub count: u64,
}

impl CpuTime {
    /// Publishes the calling thread's CPU time.
    pub(crate) fn publish(counter: &Counter) {
        counter.set(crate::clock::thread_cpu().0);
    }
}

#[cfg(test)]
#[path = "stats/tests.rs"]
mod tests;
