//! What a step asks of the loop around it, and the earliest of many deadlines, cached: arming makes
//! it earlier at once, disarming leaves it to be found too early, and then the owner scans. With at
//! most a few hundred connections a scan is about a microsecond, so no wheel is needed.

use std::time::{Duration, Instant};

/// What `step` asks of the loop around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Again at once: connections are still ready.
    Now,
    /// At this time, or when an event or an order comes.
    At(Option<Instant>),
    /// Never: stopped.
    Done,
}

/// The time of a turn, and the time by which deadlines are judged: that of the turn before, since
/// which the sockets have been looked at. A process that was stopped for a minute has read what
/// came meanwhile before it calls anyone silent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) judged: Instant,
    pub(crate) now: Instant,
}

/// The cached earliest deadline.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Alarm {
    due: Option<Instant>,
}

impl Alarm {
    /// Something is due at `deadline`.
    pub(crate) fn arm(&mut self, deadline: Instant) {
        self.due = Some(self.due.map_or(deadline, |due| due.min(deadline)));
    }

    /// Whether a scan is due; if so the cache is emptied, to be armed anew by the scan.
    pub(crate) fn ring(&mut self, now: Instant) -> bool {
        let rings = self.due.is_some_and(|due| due <= now);
        if rings {
            self.due = None;
        }
        rings
    }

    /// When the next scan is due.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }
}

/// `now + delay`, or `now` itself where the clock could not hold it (configuration forbids that).
pub(crate) fn after(now: Instant, delay: Duration) -> Instant {
    now.checked_add(delay).unwrap_or(now)
}

/// The earlier of two deadlines that may not exist.
pub(crate) fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_deadline_rings_and_a_scan_arms_the_next() {
        let start = crate::clock::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut alarm = Alarm::default();
        alarm.arm(at(5));
        alarm.arm(at(3));
        alarm.arm(at(9));
        assert_eq!(alarm.due(), Some(at(3)));
        assert!(!alarm.ring(at(2)));
        assert!(alarm.ring(at(3)));
        assert_eq!(alarm.due(), None);
    }
}
