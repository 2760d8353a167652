//! How many messages neither line of a pair brought; no markets and no times, which are those of
//! the crate's own `coverage`. Both lines bring the same messages in the same order, so a message
//! both had shows how the numbers of one line lie to those of the other: every message gets one
//! number of the pair. A hole is lost where the other line has one too, or was not there; it waits
//! until both lines brought a message behind it, or for the arbitration window.
//!
//! Slots that were no messages (a lost acknowledgement) show as lines that count differently to the
//! same message. Where one lies in a hole beside what the other line lost, it may be told as lost,
//! too; nothing that is lost goes untold.
//!
//! Its numbers tell messages in the same words apart (a market paused, resumed, paused). They
//! cannot where a line lost all that came between the two: then those are taken for one, and what
//! is told about there may be wrong. Pure: no contents, no clock.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::window::{Kin, Spot};
use crate::lines::Line;
use crate::timer::after;

/// Numbers of a pair begin here, so that a line's may begin before them.
const ORIGIN: u64 = 1 << 62;
/// Numbers left free where nobody is there to compare with: a line that is found out later may
/// have been further on.
const ROOM: u64 = 1 << 32;
/// Absences of one line that are remembered, for a line so far behind that it comes to them yet.
const ABSENCES_MAX: usize = 8;
/// Holes of one line that wait; beyond that the oldest waits no longer.
const HOLES_MAX: usize = 1_024;
/// Messages in a row that look like others of the same words, all as far apart: they are not.
const SHIFTED_AFTER: u32 = 8;
/// Holes that lie beside each other are looked through so far.
const TOUCHING_MAX: usize = 8;
/// Slots a line may miss at once and catch up on. Only nonsense says more; what is beyond is lost
/// at once, so that no number runs over.
const MISSING_MAX: u64 = 1 << 40;

/// Numbers `first..=last`, missing on one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hole {
    first: u64,
    last: u64,
    /// When it waits no longer for the other line.
    due: Instant,
}

impl Hole {
    fn size(&self) -> u64 {
        self.last.saturating_sub(self.first).saturating_add(1)
    }

    /// Where it overlaps with another range.
    fn overlap(&self, first: u64, last: u64) -> Option<(u64, u64)> {
        let (first, last) = (self.first.max(first), self.last.min(last));
        (first <= last).then_some((first, last))
    }
}

/// How far one line has come.
#[derive(Debug, Default)]
struct Track {
    live: bool,
    /// Grows with each interruption.
    stint: u32,
    /// Messages passed in this stint, those missing included.
    slot: u64,
    /// Of those, brought.
    brought: u64,
    /// The pair's number of slot 0, once known.
    base: Option<u64>,
    /// The last stint before that had one, and it.
    before: (u32, u64),
    /// Since this number it is a guess, for want of a line to compare with: the numbers before are
    /// others.
    begun: u64,
    /// The last number of the pair that this line has passed, in whatever stint.
    reach: u64,
    /// What of that it was not there for, oldest first.
    absences: VecDeque<(u64, u64)>,
    /// By the pair's numbers; not yet told and not yet filled.
    holes: VecDeque<Hole>,
    /// The same by slots, until `base` is known.
    unplaced: VecDeque<Hole>,
    /// Holes that waited for as long as they may. The other line may come to them yet.
    given_up: VecDeque<Hole>,
    /// Up to here the other line had come before this stint: nothing of that comes on this one.
    floor: u64,
}

#[derive(Debug)]
pub(super) struct Coverage {
    tracks: [Track; 2],
    /// The number of the last message both lines brought: up to there they count alike.
    common: u64,
    /// By how much the numbers of the same words differed last, and how often in a row.
    apart: (u64, u32),
    window: Duration,
}

impl Coverage {
    /// Holes wait for the other line as long as this.
    pub(super) fn new(window: Duration) -> Self {
        Self { tracks: Default::default(), common: 0, apart: (0, 0), window }
    }

    fn track(&mut self, line: Line) -> (&mut Track, &mut Track) {
        let [a, b] = &mut self.tracks;
        match line {
            Line::A => (a, b),
            Line::B => (b, a),
        }
    }

    /// A line is there, or begins anew; says what turns out to be lost by that.
    pub(super) fn up(&mut self, line: Line) -> u64 {
        let (own, other) = self.track(line);
        let mut lost: u64 = 0;
        if !other.live {
            // Nothing is known of what came between.
            other.forget_base();
        } else if other.base.is_none() {
            // It never met what this line brought before, and will not any more.
            while let Some(hole) = own.holes.pop_front() {
                lost = other.lacks(hole).saturating_add(lost);
            }
            other.begin(own);
            while let Some(hole) = other.holes.pop_front() {
                lost = own.lacks(hole).saturating_add(lost);
            }
            other.advance();
        }
        lost = own.abandon().saturating_add(lost);
        own.live = true;
        own.forget_base();
        own.stint = own.stint.wrapping_add(1);
        (own.slot, own.brought, own.begun, own.floor) = (0, 0, 0, 0);
        lost
    }

    /// A line that is just up has not subscribed yet: what the other brought so far it will not. If
    /// that is there and brought nothing, it may begin later still.
    pub(super) fn begins_now(&mut self, line: Line) {
        let (own, other) = self.track(line);
        own.floor = if other.live && other.slot == 0 { 0 } else { other.reach };
    }

    /// A line is gone; says how many holes are lost with it, because nobody is left to place them.
    pub(super) fn down(&mut self, line: Line) -> u64 {
        let (own, other) = self.track(line);
        // What it brought still tells where the other line is, and where its own holes are: the
        // other may be behind, and bring them yet.
        own.live = false;
        if other.live { 0 } else { own.abandon().saturating_add(other.abandon()) }
    }

    /// Whether any line is there.
    pub(super) fn is_live(&self) -> bool {
        self.tracks.iter().any(|track| track.live)
    }

    /// Whether a line has brought anything since it is there.
    pub(super) fn has_begun(&self, line: Line) -> bool {
        self.tracks.get(line.index()).is_some_and(|track| track.slot > 0)
    }

    /// Whether it is known how a line's numbers lie to the pair's.
    #[cfg(test)]
    pub(super) fn is_placed(&self, line: Line) -> bool {
        self.tracks[line.index()].base.is_some()
    }

    /// A line passes so many missing slots, and then a message, if it has a slot of its own. Says
    /// where it is now, and how many holes there were too many of.
    pub(super) fn pass(
        &mut self,
        line: Line,
        missing: u64,
        message: bool,
        now: Instant,
    ) -> (Spot, u64) {
        let due = after(now, self.window);
        let (missing, beyond) = (missing.min(MISSING_MAX), missing.saturating_sub(MISSING_MAX));
        let (own, other) = self.track(line);
        let before = own.slot;
        own.slot = before.saturating_add(missing).saturating_add(u64::from(message));
        own.brought = own.brought.saturating_add(u64::from(message));
        if own.base.is_none() && other.base.is_none() {
            own.begin(other);
        }
        let mut lost = beyond;
        if missing > 0 {
            let (base, last) = (own.base.unwrap_or(0), before.saturating_add(missing));
            let (first, last) =
                (base.wrapping_add(before).wrapping_add(1), base.wrapping_add(last));
            let holes = if own.base.is_some() { &mut own.holes } else { &mut own.unplaced };
            holes.push_back(Hole { first, last, due });
            lost = self.bound(line).saturating_add(beyond);
        }
        let (own, _) = self.track(line);
        own.advance();
        let slot = if message { own.slot } else { 0 };
        let number = own.base.map_or(0, |base| base.wrapping_add(slot));
        // What the other had brought before it came up it does not bring.
        let least = if own.floor > 0 { own.floor.saturating_add(own.brought) } else { 0 };
        (Spot { stint: own.stint, slot, number, least, at: now }, lost)
    }

    /// The oldest of too many holes waits no longer.
    fn bound(&mut self, line: Line) -> u64 {
        let (own, other) = self.track(line);
        let mut lost: u64 = 0;
        while own.holes.len() > HOLES_MAX
            && let Some(hole) = own.holes.pop_front()
        {
            lost = other.lacks(hole).saturating_add(lost);
        }
        while own.unplaced.len() > HOLES_MAX
            && let Some(hole) = own.unplaced.pop_front()
        {
            lost = hole.size().saturating_add(lost);
        }
        lost
    }

    /// Whether what a line brought there lies before a message that both brought since.
    pub(super) fn is_passed(&self, line: Line, spot: Spot) -> bool {
        self.number(line, spot).is_some_and(|number| number <= self.common)
    }

    /// The pair's number of what a line brought there, as far as known.
    fn number(&self, line: Line, spot: Spot) -> Option<u64> {
        let track = self.tracks.get(line.index()).filter(|_| spot.slot > 0);
        let base = track.and_then(|track| track.base_of(spot.stint));
        let number = base.map_or(spot.number, |base| base.wrapping_add(spot.slot));
        Some(number).filter(|&number| number > 0)
    }

    /// How what a line brings at `spot` lies to what the other brought at `first` in the same
    /// words. Where their numbers differ it is another message if the one line passed it for sure:
    /// it is missing there, and something that line did bring lies between the two. A hole alone
    /// proves nothing: slots that were no messages may have shifted the numbers, as they have when
    /// one message after the other is as far apart.
    pub(super) fn kin(&mut self, line: Line, spot: Spot, first: Spot) -> Kin {
        let (number, other_number) = (self.number(line, spot), self.number(line.other(), first));
        let common = self.common;
        let (own, other) = self.track(line);
        let kin = match (number, other_number) {
            (Some(number), Some(first)) if number == first => Kin::Same,
            (_, Some(first)) if first <= common.max(own.floor) => return Kin::Earlier,
            (Some(number), Some(first)) if (first..number).contains(&own.begun) => {
                return Kin::Unknown;
            }
            (Some(number), Some(first)) if own.has_passed(first, number) => Kin::Earlier,
            (Some(number), Some(first)) if other.has_passed(number, first) => Kin::Later,
            (Some(_), Some(_)) => Kin::Shifted,
            (None, Some(first)) if first < spot.least => return Kin::Earlier,
            (Some(number), None) if first.stint == other.stint && number < first.least => {
                return Kin::Later;
            }
            _ => return Kin::Unknown,
        };
        let apart = number.unwrap_or(0).wrapping_sub(other_number.unwrap_or(0));
        let times = if self.apart.0 == apart { self.apart.1.saturating_add(1) } else { 1 };
        self.apart = (apart, times);
        let is_other = matches!(kin, Kin::Earlier | Kin::Later);
        if is_other && times >= SHIFTED_AFTER { Kin::Shifted } else { kin }
    }

    /// A line brought what the other had brought at `first`: now it is known how their numbers lie
    /// to each other. Says how many messages neither was there for.
    pub(super) fn align(&mut self, line: Line, first: Spot) -> u64 {
        let (own, other) = self.track(line);
        if first.stint != other.stint || first.slot == 0 {
            return 0;
        }
        let (number, lost) = match (own.base, other.base) {
            (None, Some(base)) => {
                let number = base.wrapping_add(first.slot);
                (number, own.place(number.wrapping_sub(own.slot), other))
            }
            (Some(base), None) => {
                let number = base.wrapping_add(own.slot);
                (number, other.place(number.wrapping_sub(first.slot), own))
            }
            (Some(own_base), Some(base)) => {
                let number = base.wrapping_add(first.slot);
                if own_base.wrapping_add(own.slot) != number {
                    own.correct(number);
                }
                (number, 0)
            }
            (None, None) => return 0,
        };
        self.common = self.common.max(number);
        lost
    }

    /// Where a message with an old number lies, so far behind its line's last, as far as known: it
    /// has no slot.
    pub(super) fn old(&self, line: Line, behind: u64, at: Instant) -> Spot {
        let track = self.tracks.get(line.index());
        let number = track.and_then(|own| Some(own.base?.wrapping_add(own.slot)));
        let number = number.map_or(0, |last| last.wrapping_sub(behind));
        Spot { stint: track.map_or(0, |own| own.stint), slot: 0, number, least: 0, at }
    }

    /// Whether a line has a hole there that waits.
    pub(super) fn awaits(&self, line: Line, spot: Spot) -> bool {
        let holes = self.tracks.get(line.index()).map(|own| &own.holes);
        holes.is_some_and(|holes| {
            holes.iter().any(|hole| (hole.first..=hole.last).contains(&spot.number))
        })
    }

    /// A line brought with an old number, so far behind its last, what it had missed: a hole is one
    /// smaller, its newest if none lies there (replies take numbers, too). False when there is none
    /// that waits.
    pub(super) fn fill(&mut self, line: Line, behind: u64) -> bool {
        let (own, _) = self.track(line);
        let place = own.base.unwrap_or(0).wrapping_add(own.slot).wrapping_sub(behind);
        let holes = if own.base.is_some() { &mut own.holes } else { &mut own.unplaced };
        // Out of the midst of a hole it makes two.
        if holes.len() < HOLES_MAX && cut(holes, place, place) > 0 {
            return true;
        }
        let Some(last) = holes.back().map(|hole| hole.last) else { return false };
        cut(holes, last, last) > 0
    }

    /// Whether what this line brings now was told to be lost: the other has passed it, and no hole
    /// of it waits. (Slots that were no messages may have shifted the numbers since they last met.)
    pub(super) fn is_late(&mut self, line: Line) -> bool {
        let (own, other) = self.track(line);
        let Some(number) = own.base.map(|base| base.wrapping_add(own.slot)) else { return false };
        other.base.is_some() && number <= other.reach && other.holes.is_empty()
    }

    /// What turns out to be lost: holes that both lines have passed, or will not. Those that
    /// only wait do so until `judged`; for ever if that is none.
    #[inline]
    pub(super) fn settle(&mut self, judged: Option<Instant>) -> u64 {
        let mut lost = 0;
        if self.tracks.iter().all(|track| track.holes.is_empty() && track.unplaced.is_empty()) {
            return lost;
        }
        let common = self.common;
        for line in Line::BOTH {
            let (own, other) = self.track(line);
            let over = |hole: &Hole| judged.is_some_and(|judged| hole.due <= judged);
            while let Some(hole) =
                own.holes.pop_front_if(|hole| hole.last <= common || !other.live || over(hole))
            {
                lost = other.lacks(hole).saturating_add(lost);
                own.give_up(hole, common);
            }
            while let Some(hole) = own.unplaced.pop_front_if(|hole| over(hole)) {
                lost = hole.size().saturating_add(lost);
            }
        }
        lost
    }

    /// All is over: nothing more is waited for.
    pub(super) fn finish(&mut self) -> u64 {
        let mut lost: u64 = 0;
        for line in Line::BOTH {
            let (own, other) = self.track(line);
            while let Some(hole) = own.holes.pop_front() {
                lost = other.lacks(hole).saturating_add(lost);
            }
            lost = own.abandon().saturating_add(lost);
        }
        lost
    }

    /// Nobody could read for a while: holes wait their whole time from now.
    pub(super) fn excuse(&mut self, now: Instant) {
        let due = after(now, self.window);
        for track in &mut self.tracks {
            for hole in track.holes.iter_mut().chain(&mut track.unplaced) {
                hole.due = due;
            }
        }
    }
}

impl Track {
    fn advance(&mut self) {
        if let Some(base) = self.base {
            self.reach = self.reach.max(base.wrapping_add(self.slot));
        }
    }

    /// The pair's numbers of this line are known from now on: its holes get theirs, and what came
    /// between its last number and its first now is one more. Says what of that the other line
    /// misses too.
    fn place(&mut self, base: u64, other: &mut Self) -> u64 {
        self.base = Some(base);
        self.place_holes();
        let lost = cut(&mut other.holes, self.reach.saturating_add(1), base);
        self.miss(base);
        lost
    }

    /// Nobody to compare with: numbers go on from the last there was.
    fn begin(&mut self, other: &Self) {
        let base = self.reach.max(other.reach).saturating_add(ROOM).max(ORIGIN);
        (self.base, self.begun) = (Some(base), base);
        self.place_holes();
        self.miss(base);
    }

    /// It was not there for what came between its last number and this one.
    fn miss(&mut self, base: u64) {
        if self.reach < base {
            let first = self.reach.saturating_add(1);
            let before = self.absences.pop_back_if(|before| before.1 == self.reach);
            self.absences.push_back((before.map_or(first, |before| before.0), base));
            // Two as one, with what lies between them: too much may be told, never too little.
            if self.absences.len() > ABSENCES_MAX
                && let Some((first, _)) = self.absences.pop_front()
                && let Some(next) = self.absences.front_mut()
            {
                next.0 = first;
            }
        }
        self.advance();
    }

    fn place_holes(&mut self) {
        let base = self.base.unwrap_or(0);
        self.holes.extend(self.unplaced.drain(..).map(|hole| Hole {
            first: base.wrapping_add(hole.first),
            last: base.wrapping_add(hole.last),
            due: hole.due,
        }));
    }

    /// Holes that nobody will place any more; says how much that was.
    fn abandon(&mut self) -> u64 {
        self.unplaced.drain(..).fold(0, |sum, hole| hole.size().saturating_add(sum))
    }

    /// The number of a message both lines brought: whoever counted more counted slots that were no
    /// messages, and from here on both count alike. Its holes before keep their numbers, but for
    /// those from here on; so what both lack always overlaps in full.
    fn correct(&mut self, number: u64) {
        self.base = Some(number.wrapping_sub(self.slot));
        self.reach = number;
        for holes in [&mut self.holes, &mut self.given_up] {
            while let Some(hole) = holes.back_mut().filter(|hole| hole.last >= number) {
                if hole.first < number {
                    hole.last = number - 1;
                } else {
                    holes.pop_back();
                }
            }
        }
    }

    /// A hole waits no longer; the other line has come to `common`.
    fn give_up(&mut self, hole: Hole, common: u64) {
        while self.given_up.pop_front_if(|hole| hole.last <= common).is_some() {}
        if hole.last > common {
            self.given_up.push_back(hole);
        }
        if self.given_up.len() > HOLES_MAX {
            self.given_up.pop_front();
        }
    }

    /// Whether it is known to lack this number: it misses it, and brought one before `later`.
    fn has_passed(&self, number: u64, later: u64) -> bool {
        let brought = self.next_brought(number);
        number < brought && brought < later
    }

    /// The first number from this one on that it is not known to miss; this one, if there is none
    /// near by.
    fn next_brought(&self, number: u64) -> u64 {
        let missed = |holes: &VecDeque<Hole>, number: u64| {
            let index = holes.partition_point(|hole| hole.last < number);
            holes.get(index).filter(|hole| hole.first <= number).map(|hole| hole.last)
        };
        let absent = |number: u64| {
            let mut absences = self.absences.iter();
            absences.find(|(first, last)| (first..=last).contains(&&number)).map(|(_, last)| *last)
        };
        let mut brought = number;
        // Holes rarely touch.
        for _ in 0..TOUCHING_MAX {
            let last = missed(&self.holes, brought)
                .or_else(|| missed(&self.given_up, brought))
                .or_else(|| absent(brought));
            match last.map(|last| last.checked_add(1)) {
                None => return brought,
                Some(Some(next)) => brought = next,
                Some(None) => break,
            }
        }
        number
    }

    /// The number of slot 0 in a stint, this one or the last before that had one.
    fn base_of(&self, stint: u32) -> Option<u64> {
        let (before, base) = self.before;
        let now = self.base.filter(|_| stint == self.stint);
        now.or(Some(base).filter(|_| base > 0 && stint == before))
    }

    fn forget_base(&mut self) {
        if let Some(base) = self.base.take() {
            self.before = (self.stint, base);
        }
    }

    /// What of a hole of the other line this one did not bring either.
    fn lacks(&mut self, hole: Hole) -> u64 {
        let beyond = hole.last.saturating_sub(self.reach.max(hole.first.saturating_sub(1)));
        let absent = |&(first, last): &(u64, u64)| {
            hole.overlap(first, last).map_or(0, |(first, last)| (last - first).saturating_add(1))
        };
        let absent = self.absences.iter().map(absent).fold(beyond, u64::saturating_add);
        cut(&mut self.holes, hole.first, hole.last).saturating_add(absent)
    }
}

/// Takes a range out of holes, and says how much of it lay there.
fn cut(holes: &mut VecDeque<Hole>, first: u64, last: u64) -> u64 {
    let mut overlap: u64 = 0;
    let mut index = 0;
    while let Some(&hole) = holes.get(index) {
        let Some((from, to)) = hole.overlap(first, last) else {
            index += 1;
            continue;
        };
        overlap = (to - from).saturating_add(1).saturating_add(overlap);
        holes.remove(index);
        if hole.first < from {
            holes.insert(index, Hole { last: from - 1, ..hole });
            index += 1;
        }
        if to < hole.last {
            holes.insert(index, Hole { first: to + 1, ..hole });
            index += 1;
        }
    }
    overlap
}

#[cfg(test)]
mod tests;
