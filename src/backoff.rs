//! How long to wait before the next attempt: exponential growth with full jitter, and the
//! process-wide pacing of attempts. Pure: the caller brings the clock and the random numbers.

use std::time::{Duration, Instant};

use crate::error::Cause;

/// Growth of reconnect delays. `attempt` 0 is the first retry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    pub(crate) initial: Duration,
    pub(crate) max: Duration,
    pub(crate) factor: f64,
}

impl Backoff {
    /// The longest delay attempt number `attempt` may wait: `min(max, initial × factor^attempt)`.
    pub(crate) fn ceiling(&self, attempt: u32) -> Duration {
        let exponent = i32::try_from(attempt).unwrap_or(i32::MAX);
        let seconds = self.initial.as_secs_f64() * self.factor.powi(exponent);
        match Duration::try_from_secs_f64(seconds) {
            Ok(delay) => delay.min(self.max),
            Err(_) => self.max,
        }
    }

    /// A delay drawn uniformly from zero to the ceiling, so that connections lost together do
    /// not come back together.
    pub(crate) fn delay(&self, attempt: u32, random: &mut fastrand::Rng) -> Duration {
        self.ceiling(attempt).mul_f64(random.f64())
    }
}

/// However often it is told to slow down, an attempt is let through this often.
const PACE_MAX: Duration = Duration::from_secs(1);

/// A bucket of depth one: no two paced attempts closer together than `interval`, which doubles
/// whenever the exchange says that we come too fast and halves when it lets us in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pacer {
    least: Duration,
    interval: Duration,
    next: Option<Instant>,
}

impl Pacer {
    pub(crate) fn new(interval: Duration) -> Self {
        Self { least: interval, interval, next: None }
    }

    /// The exchange refused an attempt for this.
    pub(crate) fn heed(&mut self, cause: &Cause) {
        if matches!(cause, Cause::Upgrade { status: 429, .. }) {
            self.slow_down();
        }
    }

    fn slow_down(&mut self) {
        self.interval = self.interval.saturating_mul(2).min(PACE_MAX.max(self.least));
    }

    pub(crate) fn speed_up(&mut self) {
        self.interval = (self.interval / 2).max(self.least);
    }

    /// Takes the token if it is there.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        if self.next.is_some_and(|next| now < next) {
            return false;
        }
        self.next = now.checked_add(self.interval);
        true
    }

    /// When the next token is there, if it is not there yet.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backoff() -> Backoff {
        Backoff { initial: Duration::from_secs(1), max: Duration::from_secs(300), factor: 2.0 }
    }

    #[test]
    fn ceiling_doubles_then_stays_at_the_maximum() {
        let seconds: Vec<_> = (0..12).map(|n| backoff().ceiling(n).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        assert_eq!(backoff().ceiling(u32::MAX).as_secs(), 300);
    }

    #[test]
    fn jitter_spreads_over_the_whole_range() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut buckets = [0; 4];
        for _ in 0..4_000 {
            let quarter = backoff().delay(2, &mut random).as_secs();
            buckets[usize::try_from(quarter).unwrap()] += 1;
        }
        assert!(buckets.iter().all(|&n| n > 800), "{buckets:?}");
    }

    #[test]
    fn b4_being_told_too_fast_slows_the_whole_process_down_for_a_while() {
        let start = crate::clock::now();
        let mut pacer = Pacer::new(Duration::from_millis(50));
        (0..9).for_each(|_| pacer.slow_down());
        let passed = |pacer: &mut Pacer, from: u64| {
            (from..from + 3_000u64)
                .filter(|ms| pacer.take(start + Duration::from_millis(*ms)))
                .count()
        };
        assert_eq!(passed(&mut pacer, 0), 3, "one a second, and no less");
        (0..9).for_each(|_| pacer.speed_up());
        assert_eq!(passed(&mut pacer, 10_000), 60);
        let mut off = Pacer::new(Duration::ZERO);
        off.slow_down();
        assert_eq!(passed(&mut off, 0), 3_000, "what is off stays off");
    }

    #[test]
    fn pacer_lets_one_through_each_interval() {
        let start = crate::clock::now();
        let mut pacer = Pacer::new(Duration::from_millis(50));
        let passed: Vec<_> =
            (0..1_000u64).filter(|ms| pacer.take(start + Duration::from_millis(*ms))).collect();
        assert_eq!(passed.len(), 20);
        assert!(passed.windows(2).all(|pair| pair[1] - pair[0] == 50));
    }
}
