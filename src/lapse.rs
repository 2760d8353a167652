//! When messages of one connection's epoch were lost, whatever the channel and whatever is done
//! about it: losses that follow each other closely are one interval. Kept by the link, for
//! `coverage` to tell. Pure: the time is an argument.

use std::time::{Duration, Instant, SystemTime};

use crate::batch::Entry;
use crate::clock::Stamp;
use crate::ids::{Sid, widen};
use crate::timer::after;

/// An interval is over once nothing has been lost for this long.
const CALM: Duration = Duration::from_secs(1);

/// Messages lost, and when at the earliest and at the latest they were due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lapse {
    pub(crate) start: SystemTime,
    pub(crate) end: SystemTime,
    /// The subscription they were of, if of one alone.
    pub(crate) sid: Option<Sid>,
    pub(crate) missed: u64,
    pub(crate) dropped: u64,
}

/// The present lapse of an epoch, if there is one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lapses {
    now: Option<(Lapse, Instant)>,
    /// When the one before it ended, and whose it was: no time of it is told again.
    before: Option<(Instant, Option<Sid>)>,
}

impl Lapses {
    /// Messages were missing before one that was read at `at`; the last one before them was read at
    /// `since`.
    pub(crate) fn missed(&mut self, sid: Option<Sid>, messages: u64, since: Instant, at: Stamp) {
        let (start, end) = (self.start(sid, since, at), at.wall);
        self.note(Lapse { start, end, sid, missed: messages, dropped: 0 }, at.mono);
    }

    /// Messages that were read at `at` found no room; they came after `since`.
    pub(crate) fn dropped(&mut self, entries: &[Entry], since: Instant, at: Stamp) {
        let (first, dropped) = (entries.first(), widen(entries.len()));
        let sid = first.and_then(|entry| entry.sid);
        let sid = sid.filter(|_| entries.iter().all(|entry| entry.sid == sid));
        let (start, end) = (self.start(sid, since, at), at.wall);
        self.note(Lapse { start, end, sid, missed: 0, dropped }, at.mono);
    }

    /// The same of messages of which only the number is known.
    pub(crate) fn dropped_some(&mut self, dropped: u64, since: Instant, at: Stamp) {
        let (start, end) = (self.start(None, since, at), at.wall);
        self.note(Lapse { start, end, sid: None, missed: 0, dropped }, at.mono);
    }

    /// On the wall clock, a time before `at`.
    fn start(&self, sid: Option<Sid>, since: Instant, at: Stamp) -> SystemTime {
        let same = |&(_, before): &(Instant, Option<Sid>)| before.is_none() || before == sid;
        let since = self.before.filter(same).map_or(since, |(end, _)| end.max(since));
        let earlier = at.mono.saturating_duration_since(since);
        at.wall.checked_sub(earlier).unwrap_or(at.wall)
    }

    fn note(&mut self, lapse: Lapse, at: Instant) {
        let merged = self.now.map_or(lapse, |(before, _)| Lapse {
            start: before.start.min(lapse.start),
            end: before.end.max(lapse.end),
            sid: before.sid.filter(|_| before.sid == lapse.sid),
            missed: before.missed.saturating_add(lapse.missed),
            dropped: before.dropped.saturating_add(lapse.dropped),
        });
        self.now = Some((merged, at));
    }

    /// When `take` has something.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.now.map(|(_, last)| after(last, CALM))
    }

    /// The lapse that is over.
    pub(crate) fn take(&mut self, now: Instant) -> Option<Lapse> {
        self.due().filter(|due| *due <= now)?;
        self.finish()
    }

    /// The present lapse, over or not.
    pub(crate) fn finish(&mut self) -> Option<Lapse> {
        let (lapse, last) = self.now.take()?;
        self.before = Some((last, lapse.sid));
        Some(lapse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Seq;

    #[test]
    fn losses_close_together_are_one_interval_from_the_last_message_before_them() {
        let start = crate::clock::stamp();
        let at = |ms| Stamp {
            wall: start.wall + Duration::from_millis(ms),
            mono: start.mono + Duration::from_millis(ms),
        };
        let (one, two) = (Some(Sid::new(1)), Some(Sid::new(2)));
        let mut lapses = Lapses::default();
        assert_eq!((lapses.due(), lapses.finish()), (None, None));
        lapses.missed(one, 3, at(100).mono, at(400));
        let entry = Entry::next(0..1, Sid::new(1), Seq::new(1));
        lapses.dropped(&[entry; 5], at(900).mono, at(1_200));
        assert_eq!(lapses.take(at(2_199).mono), None);
        let lapse =
            Lapse { start: at(100).wall, end: at(1_200).wall, sid: one, missed: 3, dropped: 5 };
        assert_eq!(lapses.take(at(2_200).mono), Some(lapse));
        lapses.missed(one, 1, at(5_000).mono, at(5_100));
        lapses.missed(two, 1, at(5_050).mono, at(5_200));
        let both = lapses.finish().unwrap();
        assert_eq!((both.sid, both.missed, both.start), (None, 2, at(5_000).wall));
        lapses.dropped(&[entry], at(7_000).mono, at(9_000));
        let dropped = lapses.finish().unwrap();
        assert_eq!((dropped.start, dropped.end), (at(7_000).wall, at(9_000).wall));
        for (sid, start) in [(one, 9_000), (two, 7_000)] {
            lapses.missed(sid, 1, at(7_000).mono, at(11_000));
            assert_eq!(lapses.finish().unwrap().start, at(start).wall, "no time is told twice");
        }
    }
}
