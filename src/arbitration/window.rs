//! Who brought which content first, for as long as its second copy may come: bounded by time and
//! by number. It knows contents by their identities, and nothing of what was lost.

use std::collections::hash_map::Entry as Place;
use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use crate::lines::Line;

/// Where a line stood when it brought something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    /// Which of the line's stretches without interruption.
    pub(super) stint: u32,
    /// Its place in that; zero where no place can be told.
    pub(super) slot: u64,
    /// Its number in the pair, as far as known then; zero if not.
    pub(super) number: u64,
    /// Its number is this at least, where nothing more was known.
    pub(super) least: u64,
    pub(super) at: Instant,
}

/// How a message came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// With a number its line has not brought yet: if that brought the same words before, they are
    /// told once more.
    Fresh,
    /// With an old number, or with none on a channel where the same content is the same message.
    Repeatable,
}

/// Which copy of a content it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Copy {
    First,
    /// The other line brought it before; there, unless more than one may be meant.
    Second(Option<Spot>),
    /// Its own line did, or the other and this one.
    Again,
}

/// How what a line brings lies to what the other brought before in the same words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kin {
    /// The same message: it has the same number.
    Same,
    /// There are no numbers to go by.
    Unknown,
    /// The numbers differ, and nothing says that the one line lacks what the other brought.
    Shifted,
    /// The other's was an earlier message, whose second copy will not come any more.
    Earlier,
    /// The other's is a later message; it lacks this one.
    Later,
}

/// First copies that wait for the other line's, oldest first; nearly always one or none.
#[derive(Clone, Debug, Default)]
struct Waiting {
    oldest: Option<Spot>,
    others: VecDeque<Spot>,
}

impl Waiting {
    fn push(&mut self, spot: Spot) {
        match self.oldest {
            None => self.oldest = Some(spot),
            Some(_) => self.others.push_back(spot),
        }
    }

    fn pop(&mut self) -> Option<Spot> {
        std::mem::replace(&mut self.oldest, self.others.pop_front())
    }

    fn len(&self) -> usize {
        usize::from(self.oldest.is_some()).saturating_add(self.others.len())
    }
}

/// One content.
#[derive(Clone, Debug)]
struct Seen {
    /// Who brought those that wait for the other's copy.
    line: Line,
    waiting: Waiting,
    /// How many first copies the window still holds.
    kept: usize,
}

#[derive(Debug)]
pub(super) struct Window {
    seen: HashMap<u64, Seen>,
    /// First copies, oldest first.
    order: VecDeque<(u64, Instant)>,
    most: usize,
}

impl Window {
    /// One that holds so many first copies at most.
    pub(super) fn new(most: usize) -> Self {
        Self { seen: HashMap::new(), order: VecDeque::new(), most }
    }

    /// A line brings a content; `kin` says how it lies to a copy of the other line that waits.
    pub(super) fn meet(
        &mut self,
        identity: u64,
        line: Line,
        manner: Manner,
        spot: Spot,
        mut kin: impl FnMut(Spot) -> Kin,
    ) -> Copy {
        let seen = match self.seen.entry(identity) {
            Place::Vacant(place) => {
                let waiting = Waiting { oldest: Some(spot), others: VecDeque::new() };
                place.insert(Seen { line, waiting, kept: 1 });
                self.order.push_back((identity, spot.at));
                return Copy::First;
            }
            Place::Occupied(place) => place.into_mut(),
        };
        while let Some(first) = seen.waiting.oldest.filter(|_| seen.line != line) {
            match (kin(first), manner) {
                (kin @ (Kin::Same | Kin::Unknown), _) | (kin @ Kin::Shifted, Manner::Fresh) => {
                    seen.waiting.pop();
                    let is_clear = kin == Kin::Same || seen.waiting.oldest.is_none();
                    return Copy::Second(is_clear.then_some(first));
                }
                (Kin::Earlier, Manner::Fresh) => drop(seen.waiting.pop()),
                (Kin::Later, Manner::Fresh) => return Copy::First,
                (_, Manner::Repeatable) => return Copy::Again,
            }
        }
        if manner == Manner::Repeatable {
            return Copy::Again;
        }
        seen.line = line;
        seen.waiting.push(spot);
        seen.kept = seen.kept.saturating_add(1);
        self.order.push_back((identity, spot.at));
        Copy::First
    }

    /// Forgets what came before `since`, and the oldest beyond the bound; says how many of the
    /// latter still waited for a second copy that may yet come.
    pub(super) fn forget(
        &mut self,
        since: Option<Instant>,
        is_passed: impl Fn(Line, Spot) -> bool,
    ) -> u64 {
        let mut cut_short = 0;
        while let Some(&(identity, at)) = self.order.front() {
            let full = self.order.len() > self.most;
            if !full && since.is_none_or(|since| at >= since) {
                break;
            }
            self.order.pop_front();
            let Place::Occupied(mut place) = self.seen.entry(identity) else { continue };
            let seen = place.get_mut();
            seen.kept = seen.kept.saturating_sub(1);
            if seen.waiting.len() > seen.kept
                && let Some(first) = seen.waiting.pop()
            {
                cut_short += u64::from(full && !is_passed(seen.line, first));
            }
            if seen.kept == 0 {
                place.remove();
            }
        }
        cut_short
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn spot(slot: u64) -> Spot {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        let at = *START.get_or_init(crate::clock::now) + Duration::from_secs(slot);
        Spot { stint: 1, slot, number: slot, least: 0, at }
    }

    #[test]
    fn the_first_copy_is_first_whoever_brings_it() {
        let mut window = Window::new(10);
        let mut meet = |identity, line, slot| {
            window.meet(identity, line, Manner::Fresh, spot(slot), |_| Kin::Unknown)
        };
        assert_eq!(meet(1, Line::A, 1), Copy::First);
        assert_eq!(meet(1, Line::B, 2), Copy::Second(Some(spot(1))));
        assert_eq!(meet(2, Line::B, 3), Copy::First);
        assert_eq!(meet(2, Line::A, 4), Copy::Second(Some(spot(3))));
    }

    #[test]
    fn the_same_told_twice_under_two_numbers_is_two_messages() {
        let mut window = Window::new(10);
        let mut meet =
            |line, slot| window.meet(7, line, Manner::Fresh, spot(slot), |_| Kin::Unknown);
        // Paused, resumed, paused: two of three say the same.
        assert_eq!([meet(Line::A, 1), meet(Line::A, 3)], [Copy::First; 2]);
        assert_eq!(meet(Line::B, 4), Copy::Second(None), "which of the two");
        assert_eq!(meet(Line::B, 6), Copy::Second(Some(spot(3))));
        assert_eq!(meet(Line::B, 8), Copy::First);
    }

    #[test]
    fn the_same_number_twice_is_one_message() {
        let mut window = Window::new(10);
        let mut meet =
            |line, manner, slot| window.meet(7, line, manner, spot(slot), |_| Kin::Unknown);
        assert_eq!(meet(Line::A, Manner::Fresh, 1), Copy::First);
        assert_eq!(meet(Line::A, Manner::Repeatable, 0), Copy::Again);
        assert_eq!(meet(Line::B, Manner::Repeatable, 0), Copy::Second(Some(spot(1))));
        assert_eq!(meet(Line::B, Manner::Repeatable, 0), Copy::Again);
        assert_eq!(meet(Line::A, Manner::Repeatable, 0), Copy::Again);
    }

    #[test]
    fn what_the_other_line_has_passed_without_it_is_not_waited_for() {
        let mut window = Window::new(10);
        let mut meet = |line, slot, common| {
            window.meet(7, line, Manner::Fresh, spot(slot), |of| {
                if of.number <= common { Kin::Earlier } else { Kin::Same }
            })
        };
        assert_eq!(meet(Line::A, 1, 0), Copy::First);
        // B lost that, and is the first to tell the next.
        assert_eq!(meet(Line::B, 5, 4), Copy::First);
        assert_eq!(meet(Line::A, 5, 4), Copy::Second(Some(spot(5))));
    }

    #[test]
    fn what_the_other_line_lacks_does_not_take_its_later_one() {
        let mut window = Window::new(10);
        let mut meet = |line, slot| {
            window.meet(7, line, Manner::Fresh, spot(slot), |of| {
                if of.number == slot { Kin::Same } else { Kin::Later }
            })
        };
        // A is ahead and lost the first of three.
        assert_eq!([meet(Line::A, 2), meet(Line::A, 3)], [Copy::First; 2]);
        assert_eq!(meet(Line::B, 1), Copy::First);
        assert_eq!(meet(Line::B, 2), Copy::Second(Some(spot(2))));
        assert_eq!(meet(Line::B, 3), Copy::Second(Some(spot(3))));
    }

    #[test]
    fn time_and_number_bound_it() {
        let mut window = Window::new(3);
        for slot in 1..=6 {
            window.meet(slot, Line::A, Manner::Fresh, spot(slot), |_| Kin::Unknown);
        }
        window.meet(2, Line::B, Manner::Fresh, spot(6), |_| Kin::Unknown);
        let forgotten = window.forget(None, |_, spot| spot.slot == 3);
        assert_eq!(forgotten, 1, "of three too many one had its second copy, one is passed");
        assert_eq!(window.len(), 3);
        let forgotten = window.forget(Some(spot(6).at), |_, _| false);
        assert_eq!(forgotten, 0, "time is not counted");
        assert_eq!((window.len(), window.seen.len()), (1, 1));
        assert_eq!(
            window.meet(4, Line::B, Manner::Fresh, spot(7), |_| Kin::Unknown),
            Copy::First,
            "forgotten"
        );
    }

    #[test]
    fn of_several_that_wait_the_oldest_is_forgotten() {
        let mut window = Window::new(10);
        window.meet(7, Line::A, Manner::Fresh, spot(1), |_| Kin::Unknown);
        window.meet(7, Line::A, Manner::Fresh, spot(3), |_| Kin::Unknown);
        window.forget(Some(spot(2).at), |_, _| false);
        assert_eq!(
            window.meet(7, Line::B, Manner::Fresh, spot(4), |_| Kin::Unknown),
            Copy::Second(Some(spot(3)))
        );
        assert_eq!(window.meet(7, Line::B, Manner::Fresh, spot(5), |_| Kin::Unknown), Copy::First);
    }
}
