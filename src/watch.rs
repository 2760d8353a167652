//! Watches the time that calls of one kind take: those of an inline handler, or a shard's turns.
//! Pure: the time is an argument. Every slow call is counted; told of are they together, at most
//! once a second.

use std::time::{Duration, Instant};

use crate::timer::after;

/// The least time between two reports.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Slow calls since the last report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Slow {
    pub(crate) calls: u64,
    /// The slowest of them.
    pub(crate) took: Duration,
}

/// The watch over one kind of call.
#[derive(Debug)]
pub(crate) struct Watch {
    threshold: Duration,
    slow: Slow,
    next: Option<Instant>,
}

impl Watch {
    pub(crate) fn new(threshold: Duration) -> Self {
        Self { threshold, slow: Slow::default(), next: None }
    }

    /// Takes note of a call; whether it was slow.
    pub(crate) fn note(&mut self, took: Duration) -> bool {
        let slow = took > self.threshold;
        if slow {
            self.slow.calls = self.slow.calls.saturating_add(1);
            self.slow.took = self.slow.took.max(took);
        }
        slow
    }

    /// Tells of slow calls, if there were any and it is time to; when it will be, if it is not.
    /// What `tell` does not take is told later.
    pub(crate) fn tell(
        &mut self,
        now: Instant,
        tell: impl FnOnce(Slow) -> bool,
    ) -> Option<Instant> {
        if self.slow.calls == 0 {
            return None;
        }
        if let Some(next) = self.next.filter(|next| *next > now) {
            return Some(next);
        }
        let next = after(now, REPORT_INTERVAL);
        self.next = Some(next);
        if !tell(self.slow) {
            return Some(next);
        }
        self.slow = Slow::default();
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_calls_are_told_at_once_and_then_once_a_second() {
        let ms = Duration::from_millis;
        let start = crate::clock::now();
        let mut watch = Watch::new(ms(1));
        assert!(!watch.note(ms(1)), "the threshold itself is not slow");
        let mut told = Vec::new();
        let mut tell = |watch: &mut Watch, at: u64, takes: bool| {
            let later = watch.tell(start + ms(at), |slow| {
                told.push((at, slow.calls, slow.took));
                takes
            });
            later.map(|later| later.saturating_duration_since(start))
        };
        assert_eq!(tell(&mut watch, 0, true), None);
        assert!(watch.note(ms(3)));
        assert_eq!(tell(&mut watch, 1, true), None);
        assert_eq!(tell(&mut watch, 2, true), None);
        assert!(watch.note(ms(9)) && watch.note(ms(4)));
        assert_eq!(tell(&mut watch, 1_000, true), Some(ms(1_001)));
        assert_eq!(tell(&mut watch, 1_001, false), Some(ms(2_001)), "nobody took it");
        assert_eq!(tell(&mut watch, 2_001, true), None);
        assert_eq!(told, [(1, 1, ms(3)), (1_001, 2, ms(9)), (2_001, 2, ms(9))]);
    }
}
