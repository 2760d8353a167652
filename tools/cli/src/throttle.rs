//! A consumer made slow on purpose: how many messages it may have taken by now. It reads no clock
//! and takes no message itself.

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// For this long it takes everything, to see how fast messages come.
const MEASURED: Duration = Duration::from_secs(1);
/// It may be behind its own speed by this much, and catch up.
const BURST: Duration = Duration::from_millis(20);

/// A part of the needed speed: above 0, at most 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Fraction(f64);

impl FromStr for Fraction {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<f64>() {
            Ok(part) if part > 0.0 && part <= 1.0 => Ok(Self(part)),
            _ => Err("give the part of the needed speed, such as 0.1: above 0, at most 1".into()),
        }
    }
}

impl Fraction {
    /// This part of so many a second.
    fn of(self, needed_per_second: f64, at: Instant) -> State {
        let per_second = (needed_per_second * self.0).max(1.0);
        State::Slow { per_second, tokens: 0.0, at }
    }
}

/// What a throttled consumer may do.
#[derive(Debug)]
pub(crate) struct Throttle {
    fraction: Fraction,
    /// Opened when the traffic is off: what waits is then taken at full speed.
    open: Arc<AtomicBool>,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Nothing was taken yet.
    Idle { needed_per_second: Option<u64> },
    /// Counting what comes.
    Measuring { since: Instant, taken: u64 },
    /// Tokens of a bucket that fills at this rate.
    Slow { per_second: f64, tokens: f64, at: Instant },
}

impl Throttle {
    /// A throttle, and what opens it. How many come in a second is measured unless it is known.
    pub(crate) fn new(
        fraction: Fraction,
        needed_per_second: Option<u64>,
    ) -> (Self, Arc<AtomicBool>) {
        let open = Arc::new(AtomicBool::new(false));
        let state = State::Idle { needed_per_second };
        (Self { fraction, open: Arc::clone(&open), state }, open)
    }

    /// A message was taken; how long to wait before the next.
    pub(crate) fn taken(&mut self, now: Instant) -> Duration {
        if self.open.load(Ordering::Relaxed) {
            return Duration::ZERO;
        }
        let fraction = self.fraction;
        match &mut self.state {
            State::Idle { needed_per_second: Some(needed) } => {
                self.state = fraction.of(*needed as f64, now);
            }
            State::Idle { needed_per_second: None } => {
                self.state = State::Measuring { since: now, taken: 1 };
            }
            State::Measuring { since, taken } => {
                *taken += 1;
                let elapsed = now.saturating_duration_since(*since);
                if elapsed >= MEASURED {
                    let needed = *taken as f64 / elapsed.as_secs_f64();
                    self.state = fraction.of(needed, now);
                }
            }
            State::Slow { per_second, tokens, at } => {
                let passed = now.saturating_duration_since(*at).as_secs_f64();
                let most = (*per_second * BURST.as_secs_f64()).max(1.0);
                *tokens = (*tokens + passed * *per_second).min(most) - 1.0;
                *at = now;
                if *tokens < 0.0 {
                    return Duration::try_from_secs_f64(-*tokens / *per_second).unwrap_or(BURST);
                }
            }
        }
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fraction_is_a_part_of_one() {
        assert_eq!("0.1".parse(), Ok(Fraction(0.1)));
        for wrong in ["0", "-1", "1.5", "slow", "NaN", ""] {
            assert!(wrong.parse::<Fraction>().unwrap_err().contains("such as 0.1"), "{wrong}");
        }
    }

    /// Messages taken in this long, if there is always another, 1,000 a second come at first.
    fn taken_in(fraction: f64, slow: Duration) -> u64 {
        let (mut throttle, _) = Throttle::new(Fraction(fraction), None);
        let mut now = Instant::now();
        for _ in 0..=1_000 {
            assert_eq!(throttle.taken(now), Duration::ZERO, "while it is measured");
            now += Duration::from_millis(1);
        }
        let end = now + slow;
        let mut taken = 0;
        while now < end {
            now += throttle.taken(now) + Duration::from_micros(1);
            taken += 1;
        }
        taken
    }

    #[test]
    fn it_takes_its_part_of_what_came_at_first() {
        let tenth = taken_in(0.1, Duration::from_secs(10));
        assert!((990..=1_010).contains(&tenth), "{tenth}");
        let half = taken_in(0.5, Duration::from_secs(10));
        assert!((4_900..=5_100).contains(&half), "{half}");
    }

    #[test]
    fn once_open_it_never_waits() {
        let (mut throttle, open) = Throttle::new(Fraction(0.1), Some(10));
        let now = Instant::now();
        assert_eq!(throttle.taken(now), Duration::ZERO);
        assert_eq!(throttle.taken(now), Duration::from_secs(1));
        open.store(true, Ordering::Relaxed);
        assert_eq!(throttle.taken(now), Duration::ZERO);
    }
}
