//! What the engine counts of one shard, as its host sees it.

use serde::Serialize;

use crate::ids::ShardId;
use crate::stats::ShardCounters;

/// One shard's figures.
///
/// ```
/// # fn show(shard: &kalshi_feed::ShardStats) {
/// println!("shard {} on {:?}: {:.0} % busy", shard.shard, shard.core, shard.busy_ratio * 100.0);
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ShardStats {
    /// Which shard.
    pub shard: ShardId,
    /// The core it is pinned to and runs on, verified ten times a second while it works; none
    /// when it is not pinned, or no longer.
    pub core: Option<usize>,
    /// Its live connections.
    pub connections: u64,
    /// Data messages it received.
    pub messages: u64,
    /// Turns of its loop.
    pub cycles: u64,
    /// The longest turn, in nanoseconds of wall time.
    pub cycle_ns_max: u64,
    /// The most that orders of the conductor (commands, new connections) took of one turn, in
    /// nanoseconds of thread CPU time.
    pub control_ns_max: u64,
    /// Turns that took longer than `stall_threshold`.
    pub cycles_slow: u64,
    /// Part of the wall time spent in turns rather than waiting.
    pub busy_ratio: f64,
    /// CPU time of its thread, in nanoseconds.
    pub cpu_ns: u64,
    /// Calls of its inline handler.
    pub handler_calls: u64,
    /// Time spent in them, in nanoseconds of wall time.
    pub handler_busy_ns: u64,
    /// The longest of them, in nanoseconds.
    pub handler_slowest_ns: u64,
    /// Those that took longer than `handler_slow_threshold`.
    pub handler_slow: u64,
}

impl ShardStats {
    pub(crate) fn of(id: u16, shard: &ShardCounters) -> Self {
        let wall_ns = shard.wall_ns.total();
        Self {
            shard: ShardId::new(id),
            core: usize::try_from(shard.core.total()).ok().and_then(|core| core.checked_sub(1)),
            connections: shard.connections.total(),
            messages: shard.messages_received.total(),
            cycles: shard.cycles.total(),
            cycle_ns_max: shard.cycle_ns_max.total(),
            control_ns_max: shard.control_ns_max.total(),
            cycles_slow: shard.cycles_slow.total(),
            busy_ratio: ratio(shard.busy_ns.total(), wall_ns),
            cpu_ns: shard.cpu_ns.total(),
            handler_calls: shard.handler_calls.total(),
            handler_busy_ns: shard.handler_busy_ns.total(),
            handler_slowest_ns: shard.handler_ns_max.total(),
            handler_slow: shard.handler_slow.total(),
        }
    }
}

pub(crate) fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        return 0.0;
    }
    #[expect(clippy::as_conversions, reason = "a ratio for people; rounding is fine")]
    {
        part as f64 / whole as f64
    }
}
