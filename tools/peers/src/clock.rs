//! Clocks and cores: what a thread has used, when something came, and where a thread runs. It
//! decides nothing.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// When a message came: both clocks, as the engine stamps it.
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    /// Wall clock.
    pub wall: SystemTime,
    /// Monotonic clock.
    pub mono: Instant,
}

impl Stamp {
    /// Both clocks now.
    #[must_use]
    pub fn now() -> Self {
        Self { wall: SystemTime::now(), mono: Instant::now() }
    }
}

/// CPU time the calling thread has used.
#[must_use]
pub fn thread_cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a thread CPU clock").into()
}

/// Pins the calling thread, and what it starts from now on, to one core.
pub fn pin(core: usize) {
    let done = core_affinity::set_for_current(core_affinity::CoreId { id: core });
    assert!(done, "core {core} is not ours to use");
}

/// How old an order-book delta is by the time in its text (microseconds), whole minutes left out;
/// `None` for other frames.
#[must_use]
pub fn age(frame: &[u8]) -> Option<Duration> {
    const MINUTE: u64 = 60_000_000_000;
    // "…","ts":"2026-11-01T12:00:00.957081Z","ts_ms":1793534400957}}\n
    let end = frame.len().checked_sub(26)?;
    let text = frame.get(end.checked_sub(10)?..end)?;
    let digits = |range: std::ops::Range<usize>| {
        text[range].iter().try_fold(0, |sum, byte| {
            byte.is_ascii_digit().then(|| sum * 10 + u64::from(byte - b'0'))
        })
    };
    if text[9] != b'Z' || text[2] != b'.' {
        return None;
    }
    let sent = digits(0..2)? * 1_000_000_000 + digits(3..9)? * 1_000;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let now = now.as_secs() % 60 * 1_000_000_000 + u64::from(now.subsec_nanos());
    Some(Duration::from_nanos((now + MINUTE - sent) % MINUTE))
}
