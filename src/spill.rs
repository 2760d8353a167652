//! When messages began to find no room on a shard, and when that was over: many drops, or many
//! moments of holding back, are one overflow. Pure: the time is an argument.

use std::time::{Duration, Instant};

use crate::timer::after;

/// An overflow is over once everything has found room for this long.
const CALM: Duration = Duration::from_secs(1);

/// An overflow that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Over {
    /// From the first message without room to the last.
    pub(crate) lasted: Duration,
    /// Messages dropped.
    pub(crate) dropped: u64,
    /// Of those, replaced by a newer one of their market.
    pub(crate) conflated: u64,
}

/// The present overflow of one shard, if there is one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spill {
    now: Option<Lasting>,
}

/// From when to when so far, and how many were dropped and conflated.
type Lasting = (Instant, Instant, u64, u64);

impl Spill {
    /// Something found no room; this many messages were dropped, of which some were conflated. True
    /// when it is the first.
    pub(crate) fn note(&mut self, dropped: u64, conflated: u64, now: Instant) -> bool {
        let (began, _, all, newer) = self.now.unwrap_or((now, now, 0, 0));
        let (all, newer) = (all.saturating_add(dropped), newer.saturating_add(conflated));
        self.now.replace((began, now, all, newer)).is_none()
    }

    /// When `tick` may have something to tell.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.now.map(|(_, last, ..)| after(last, CALM))
    }

    /// The overflow that is over.
    pub(crate) fn tick(&mut self, now: Instant) -> Option<Over> {
        self.due().filter(|due| *due <= now)?;
        self.finish()
    }

    /// The present overflow, over or not.
    pub(crate) fn finish(&mut self) -> Option<Over> {
        let (began, last, dropped, conflated) = self.now.take()?;
        Some(Over { lasted: last.saturating_duration_since(began), dropped, conflated })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_close_together_are_one_overflow() {
        let start = crate::clock::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut spill = Spill::default();
        assert_eq!((spill.due(), spill.tick(at(0))), (None, None));
        assert!(spill.note(3, 0, at(0)));
        assert!(!spill.note(4, 2, at(900)));
        assert_eq!(spill.tick(at(1_899)), None);
        let lasted = Duration::from_millis(900);
        assert_eq!(spill.tick(at(1_900)), Some(Over { lasted, dropped: 7, conflated: 2 }));
        assert_eq!((spill.due(), spill.tick(at(9_999))), (None, None));
        assert!(spill.note(0, 0, at(10_000)), "a new one");
    }
}
