//! The one place that reads clocks. Everything that decides takes the time as an argument.

use std::time::{Duration, Instant, SystemTime};

use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// When a message was received: one reading of both clocks for each socket read.
///
/// ```
/// # fn show(stamp: kalshi_feed::Stamp) {
/// println!("{:?} since the epoch", stamp.wall.duration_since(std::time::UNIX_EPOCH));
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Wall clock: for people, and for comparing with the exchange's times. May step.
    pub wall: SystemTime,
    /// Monotonic clock: for measuring.
    pub mono: Instant,
}

/// Thread CPU time, in nanoseconds, as the engine reports it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct CpuTime(pub(crate) u64);

#[expect(clippy::disallowed_methods, reason = "this is the place the rule points to")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "this is the place the rule points to")]
pub(crate) fn wall() -> SystemTime {
    SystemTime::now()
}

/// Both clocks at once.
pub(crate) fn stamp() -> Stamp {
    Stamp { wall: wall(), mono: now() }
}

/// CPU time the calling thread has used so far; zero where the system does not tell.
pub(crate) fn thread_cpu() -> CpuTime {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .map(|spec| {
            let spent = Duration::from(spec);
            CpuTime(u64::try_from(spent.as_nanos()).unwrap_or(u64::MAX))
        })
        .unwrap_or_default()
}

/// Milliseconds since the Unix epoch, as the upgrade's timestamp header wants them.
pub(crate) fn unix_ms(wall: SystemTime) -> u64 {
    wall.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
