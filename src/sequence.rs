//! Sequence state of one connection's epoch, per sid: what was seen, what was lost, what the host
//! has not yet been told. Pure; one owner, no clock, no I/O.
//!
//! `seen` advances on every frame that carries a number, replies and errors included, and never
//! rolls back. `owed` counts slots lost and not yet told, whatever the cause: a hole on the wire
//! adds its width, a message dropped here gives back itself and the `gap_size` it carried. Taking
//! a message for the host moves `owed` into its `gap_size`. So `gap_size` always means "this many
//! you will never get".

use std::time::Instant;

use crate::batch::{Continuity, Entry};
use crate::ids::{Seq, Sid};

/// Frames behind `seen`, contiguous among themselves, after which the sequence has evidently
/// restarted and the subscription is renewed.
const BACKWARD_RUN_MAX: u32 = 8;

/// Sids remembered per epoch. The exchange gives one per channel; more than this is hostile and
/// goes untracked (delivered, unjudged) rather than growing memory.
const SIDS_MAX: usize = 32;

/// Sids remembered where so many markets have one of their own.
pub(crate) fn sids_max(markets: usize) -> usize {
    SIDS_MAX.saturating_add(markets)
}

/// What one frame's number says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Observed {
    /// The next in line, or the first.
    Contiguous,
    /// This many slots are missing before it.
    Gap(u64),
    /// The last number again.
    Duplicate,
    /// An older number.
    Backward,
    /// An older number, and enough of them in a row that the subscription must be renewed.
    Restarted,
}

/// What goes with a message to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) continuity: Continuity,
    pub(crate) gap_size: u64,
}

#[derive(Clone, Debug)]
struct State {
    sid: Sid,
    seen: u64,
    owed: u64,
    /// The host has not yet had the epoch's first message of this sid.
    first: bool,
    /// Unsubscribed; its number may be given out again.
    retired: bool,
    backward_run: u32,
    backward_last: u64,
    /// When it was opened, or last `heard`: what was missing until then is known.
    heard: Option<Instant>,
}

impl Mark {
    /// What is lost with a message that is not handed over: itself, unless the exchange only
    /// repeated it, and what it would have told.
    pub(crate) fn debt(&self) -> u64 {
        let itself = match self.continuity {
            Continuity::Duplicate | Continuity::Backward => 0,
            Continuity::First | Continuity::Next | Continuity::Gap => 1,
        };
        self.gap_size.saturating_add(itself)
    }

    /// The same of a first copy between two lines: with an old number, too, it was news.
    pub(crate) fn first_copy_debt(&self) -> u64 {
        self.gap_size.saturating_add(1)
    }
}

impl State {
    /// The number was given out again: a new count.
    fn restart(&mut self) {
        (self.seen, self.retired, self.first) = (0, false, true);
        (self.backward_run, self.backward_last) = (0, 0);
    }
}

/// The sequences of one connection's epoch.
#[derive(Clone, Debug)]
pub(crate) struct Sequences {
    /// In order of sid.
    states: Vec<State>,
    sids_max: usize,
    /// Owed by earlier sids and epochs of this connection, for the next sid's first message.
    carry: u64,
}

impl Sequences {
    /// A new epoch that inherits what the last one left untold.
    pub(crate) fn new(carry: u64) -> Self {
        Self { states: Vec::new(), sids_max: SIDS_MAX, carry }
    }

    /// The same, with room for a sid for each market.
    pub(crate) fn with_room(mut self, markets: usize) -> Self {
        self.sids_max = sids_max(markets);
        self
    }

    /// A sid was acknowledged, at this place in its sequence if the acknowledgement took one. Data
    /// may have come before it; a number that was unsubscribed before starts anew.
    pub(crate) fn open(&mut self, sid: Sid, seq: Option<Seq>) {
        let Some(state) = self.ensure(sid).filter(|state| state.retired) else { return };
        state.restart();
        state.seen = seq.map_or(0, Seq::number);
        let carry = std::mem::take(&mut self.carry);
        self.owe_sid(sid, carry);
    }

    /// The same, at this time, which counts as heard unless data came before it.
    pub(crate) fn open_at(&mut self, sid: Sid, seq: Option<Seq>, at: Instant) {
        let state = self.find(sid).and_then(|index| self.states.get(index));
        let is_new = state.is_none_or(|state| state.retired);
        self.open(sid, seq);
        if is_new {
            self.hear(sid, at);
        }
    }

    /// Whatever these are of came in whole until then. Only for where subscriptions are many: one
    /// alone is heard when its connection is.
    pub(crate) fn heard(&mut self, entries: &[Entry], at: Instant) {
        let mut last = None;
        for sid in entries.iter().filter_map(|entry| entry.sid) {
            if last.replace(sid) != Some(sid) {
                self.hear(sid, at);
            }
        }
    }

    fn hear(&mut self, sid: Sid, at: Instant) {
        if let Some(state) = self.find(sid).and_then(|index| self.states.get_mut(index)) {
            state.heard = state.heard.max(Some(at));
        }
    }

    /// When a sid was opened or heard last, if that is known.
    pub(crate) fn heard_at(&self, sid: Sid) -> Option<Instant> {
        self.find(sid).and_then(|index| self.states.get(index))?.heard
    }

    /// A sid was unsubscribed or ended: its debt waits for the connection's next sid.
    pub(crate) fn retire(&mut self, sid: Sid) {
        if let Some(state) = self.find(sid).and_then(|index| self.states.get_mut(index)) {
            state.retired = true;
            self.carry = self.carry.saturating_add(std::mem::take(&mut state.owed));
        }
    }

    /// Whether a sid was ours and is over.
    pub(crate) fn is_retired(&self, sid: Sid) -> bool {
        let state = self.find(sid).and_then(|index| self.states.get(index));
        state.is_some_and(|state| state.retired)
    }

    /// The usual message, in one look: the next number of a sid that has begun and owes nothing.
    /// False when it is anything else; then nothing has happened yet.
    #[inline]
    pub(crate) fn advance(&mut self, sid: Sid, seq: Seq) -> bool {
        let state = self.find(sid).and_then(|index| self.states.get_mut(index));
        let Some(state) = state.filter(|state| {
            // Nothing follows the highest number.
            let next = state.seen.wrapping_add(1) == seq.number() && seq.number() > 0;
            next && state.owed == 0 && !state.first && !state.retired
        }) else {
            return false;
        };
        (state.seen, state.backward_run) = (seq.number(), 0);
        true
    }

    /// Records a frame's number, before anything else looks at the frame.
    #[inline]
    pub(crate) fn observe(&mut self, sid: Sid, seq: Seq) -> Observed {
        let seq = seq.number();
        if seq == 1 && self.restart_retired(sid) {
            // Given out again, and its data came before its acknowledgement.
            let carry = std::mem::take(&mut self.carry);
            self.owe_sid(sid, carry);
        }
        let Some(state) = self.ensure(sid) else { return Observed::Contiguous };
        if seq > state.seen {
            let missing = seq - state.seen - 1;
            state.seen = seq;
            state.backward_run = 0;
            state.owed = state.owed.saturating_add(missing);
            return if missing == 0 { Observed::Contiguous } else { Observed::Gap(missing) };
        }
        let follows = state.backward_run > 0 && seq == state.backward_last.saturating_add(1);
        state.backward_run = if follows { state.backward_run + 1 } else { 1 };
        state.backward_last = seq;
        if state.backward_run >= BACKWARD_RUN_MAX {
            // The new count is the one that goes on, until the subscription is renewed.
            state.backward_run = 0;
            state.seen = seq;
            return Observed::Restarted;
        }
        if seq == state.seen { Observed::Duplicate } else { Observed::Backward }
    }

    /// Takes a message for the host: what was owed becomes its `gap_size`.
    #[inline]
    pub(crate) fn take(&mut self, sid: Sid, observed: Observed) -> Mark {
        let Some(state) = self.ensure(sid) else {
            return Mark { continuity: Continuity::Next, gap_size: 0 };
        };
        let gap_size = std::mem::take(&mut state.owed);
        let continuity = match observed {
            Observed::Duplicate => Continuity::Duplicate,
            Observed::Backward | Observed::Restarted => Continuity::Backward,
            _ if std::mem::take(&mut state.first) => Continuity::First,
            _ if gap_size > 0 => Continuity::Gap,
            _ => Continuity::Next,
        };
        Mark { continuity, gap_size }
    }

    /// A message taken before was not handed over after all. A repeated frame is no loss itself.
    pub(crate) fn give_back(&mut self, sid: Sid, mark: Mark) {
        match self.ensure(sid).filter(|state| !state.retired) {
            Some(state) => {
                state.first |= mark.continuity == Continuity::First;
                state.owed = state.owed.saturating_add(mark.debt());
            }
            None => self.owe(mark.debt()),
        }
    }

    /// Lost under no sid that could tell of it: for the next one.
    pub(crate) fn owe(&mut self, messages: u64) {
        self.carry = self.carry.saturating_add(messages);
    }

    /// Starts a retired sid's count anew; false when it is not retired.
    fn restart_retired(&mut self, sid: Sid) -> bool {
        let index = self.find(sid);
        let state = index.and_then(|index| self.states.get_mut(index));
        state.filter(|state| state.retired).map(State::restart).is_some()
    }

    fn owe_sid(&mut self, sid: Sid, messages: u64) {
        match self.ensure(sid) {
            Some(state) => state.owed = state.owed.saturating_add(messages),
            None => self.owe(messages),
        }
    }

    /// What the host has not been told, over all sids: the next epoch's inheritance.
    pub(crate) fn untold(&self) -> u64 {
        self.states.iter().fold(self.carry, |sum, state| sum.saturating_add(state.owed))
    }

    /// What the host has not been told, sid by sid; the inheritance under no sid.
    pub(crate) fn untold_by_sid(&self) -> impl Iterator<Item = (Option<Sid>, u64)> + '_ {
        let states = self.states.iter().map(|state| (Some(state.sid), state.owed));
        std::iter::once((None, self.carry)).chain(states).filter(|&(_, owed)| owed > 0)
    }

    #[inline]
    fn find(&self, sid: Sid) -> Option<usize> {
        match self.states.as_slice() {
            // On the live exchange there is one.
            [only] if only.sid == sid => Some(0),
            states => states.binary_search_by_key(&sid, |state| state.sid).ok(),
        }
    }

    fn remove(&mut self, index: usize) {
        let state = self.states.remove(index);
        self.carry = self.carry.saturating_add(state.owed);
    }

    /// The state of `sid`, made if there is room; retired ones make room.
    #[inline]
    fn ensure(&mut self, sid: Sid) -> Option<&mut State> {
        let index = match self.find(sid) {
            Some(index) => index,
            None => {
                if self.states.len() >= self.sids_max {
                    let retired = self.states.iter().position(|state| state.retired)?;
                    self.remove(retired);
                }
                let index = self.states.partition_point(|state| state.sid < sid);
                let state = State {
                    sid,
                    seen: 0,
                    owed: std::mem::take(&mut self.carry),
                    first: true,
                    retired: false,
                    backward_run: 0,
                    backward_last: 0,
                    heard: None,
                };
                self.states.insert(index, state);
                index
            }
        };
        self.states.get_mut(index)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SID: Sid = Sid::new(1);

    fn deliver(sequences: &mut Sequences, seq: u64) -> Mark {
        let observed = sequences.observe(SID, Seq::new(seq));
        sequences.take(SID, observed)
    }

    fn mark(continuity: Continuity, gap_size: u64) -> Mark {
        Mark { continuity, gap_size }
    }

    #[test]
    fn f1_first_next_gap_duplicate_backward() {
        let mut sequences = Sequences::new(0);
        assert_eq!(deliver(&mut sequences, 1), mark(Continuity::First, 0));
        assert_eq!(deliver(&mut sequences, 2), mark(Continuity::Next, 0));
        assert_eq!(deliver(&mut sequences, 6), mark(Continuity::Gap, 3));
        assert_eq!(deliver(&mut sequences, 6), mark(Continuity::Duplicate, 0));
        assert_eq!(deliver(&mut sequences, 4), mark(Continuity::Backward, 0));
        assert_eq!(deliver(&mut sequences, 7), mark(Continuity::Next, 0));
    }

    #[test]
    fn f7_acknowledgements_take_slots_without_making_gaps() {
        let mut sequences = Sequences::new(0);
        deliver(&mut sequences, 1);
        assert_eq!(sequences.observe(SID, Seq::new(2)), Observed::Contiguous);
        assert_eq!(deliver(&mut sequences, 3), mark(Continuity::Next, 0));
    }

    #[test]
    fn a_missing_start_is_a_gap_and_still_the_first() {
        let mut sequences = Sequences::new(0);
        assert_eq!(deliver(&mut sequences, 4), mark(Continuity::First, 3));
    }

    #[test]
    fn a_drop_gives_back_itself_and_what_it_carried() {
        let mut sequences = Sequences::new(0);
        let first = deliver(&mut sequences, 3);
        sequences.give_back(SID, first);
        let second = deliver(&mut sequences, 4);
        assert_eq!(second, mark(Continuity::First, 3));
        assert_eq!(deliver(&mut sequences, 5), mark(Continuity::Next, 0));
    }

    #[test]
    fn f4_what_is_left_untold_goes_to_the_next_epoch() {
        let mut sequences = Sequences::new(0);
        let lost = deliver(&mut sequences, 1);
        sequences.give_back(SID, lost);
        let mut next = Sequences::new(sequences.untold());
        assert_eq!(deliver(&mut next, 1), mark(Continuity::First, 1));
    }

    #[test]
    fn f5_an_unsubscribed_sid_may_come_again_with_a_new_count() {
        let mut sequences = Sequences::new(0);
        sequences.open(SID, None);
        deliver(&mut sequences, 1);
        let lost = deliver(&mut sequences, 2);
        sequences.give_back(SID, lost);
        sequences.retire(SID);
        assert_eq!(sequences.observe(SID, Seq::new(3)), Observed::Contiguous);
        sequences.open(SID, None);
        assert_eq!(deliver(&mut sequences, 1), mark(Continuity::First, 1));
    }

    #[test]
    fn f5_data_of_a_sid_given_out_again_may_come_before_its_acknowledgement() {
        let mut sequences = Sequences::new(0);
        for seq in 1..=5 {
            deliver(&mut sequences, seq);
        }
        sequences.retire(SID);
        assert_eq!(deliver(&mut sequences, 1), mark(Continuity::First, 0));
        sequences.open(SID, None);
        assert_eq!(deliver(&mut sequences, 2), mark(Continuity::Next, 0));
    }

    #[test]
    fn a_subscription_that_goes_on_after_all_makes_no_gap() {
        let mut sequences = Sequences::new(0);
        for seq in 1..=5 {
            deliver(&mut sequences, seq);
        }
        sequences.retire(SID);
        sequences.observe(SID, Seq::new(6));
        sequences.open(SID, Some(Seq::new(6)));
        assert_eq!(deliver(&mut sequences, 7), mark(Continuity::First, 0));
    }

    #[test]
    fn f3_a_restart_within_the_epoch_asks_for_renewal() {
        let mut sequences = Sequences::new(0);
        deliver(&mut sequences, 100);
        let observed: Vec<_> = (1..=8).map(|n| sequences.observe(SID, Seq::new(n))).collect();
        assert!(observed[..7].iter().all(|&o| o == Observed::Backward));
        assert_eq!(observed[7], Observed::Restarted);
    }

    #[test]
    fn f5_a_sid_that_was_not_unsubscribed_does_not_begin_anew() {
        let mut sequences = Sequences::new(0);
        for seq in 1..=5 {
            deliver(&mut sequences, seq);
        }
        sequences.open(SID, Some(Seq::new(1)));
        assert_eq!(deliver(&mut sequences, 2), mark(Continuity::Backward, 0));
        assert_eq!(deliver(&mut sequences, 6), mark(Continuity::Next, 0));
    }

    #[test]
    fn f6_the_highest_number_and_the_lowest_overflow_nothing() {
        const MAX: u64 = u64::MAX;
        let mut sequences = Sequences::new(0);
        assert_eq!(deliver(&mut sequences, 0), mark(Continuity::Duplicate, 0), "none has it");
        assert_eq!(deliver(&mut sequences, MAX), mark(Continuity::First, MAX - 1));
        assert_eq!(deliver(&mut sequences, 0), mark(Continuity::Backward, 0));
        assert!(!sequences.advance(SID, Seq::new(0)), "nothing follows the highest");
        assert_eq!(deliver(&mut sequences, MAX), mark(Continuity::Duplicate, 0));
        let other = Sid::new(MAX);
        let observed = sequences.observe(other, Seq::new(MAX));
        let lost = sequences.take(other, observed);
        sequences.give_back(other, lost);
        sequences.give_back(SID, mark(Continuity::Gap, MAX));
        sequences.owe(MAX);
        assert_eq!(sequences.untold(), MAX, "as many as can be told");
    }

    #[test]
    fn a_flood_of_sids_is_bounded() {
        let mut sequences = Sequences::new(0);
        for sid in 1..10_000 {
            sequences.observe(Sid::new(sid), Seq::new(u64::MAX));
        }
        assert_eq!(sequences.states.len(), SIDS_MAX);
        assert_eq!(sequences.untold(), u64::MAX);
    }

    proptest! {
        #![proptest_config(crate::property::cases(2_000))]

        /// `advance` is what `observe` and `take` come to for the usual message, and nothing for
        /// any other.
        #[test]
        fn the_short_way_agrees_with_the_long_one(
            steps in prop::collection::vec((0u64..4, 1u64..3, 0u8..8), 1..100),
        ) {
            let mut short = Sequences::new(0);
            let mut long = Sequences::new(0);
            let mut next = [0u64; 4];
            for (ahead, sid, event) in steps {
                let place = usize::try_from(sid).unwrap();
                let (sid, seq) = (Sid::new(sid), Seq::new((next[place] + ahead).max(1)));
                let observed = long.observe(sid, seq);
                let mark = long.take(sid, observed);
                let got = if short.advance(sid, seq) {
                    prop_assert_eq!(observed, Observed::Contiguous);
                    Mark { continuity: Continuity::Next, gap_size: 0 }
                } else {
                    let observed = short.observe(sid, seq);
                    short.take(sid, observed)
                };
                prop_assert_eq!(got, mark);
                next[place] = next[place].max(seq.number());
                for sequences in [&mut short, &mut long] {
                    match event {
                        0 => sequences.give_back(sid, mark),
                        1 => sequences.retire(sid),
                        2 => sequences.open(sid, None),
                        _ => {}
                    }
                }
            }
            prop_assert_eq!(format!("{short:?}"), format!("{long:?}"));
        }

        /// Against the set of all numbers seen: what came before, or is older than the newest,
        /// changes nothing for what comes next.
        #[test]
        fn f2_repeated_and_old_numbers_rewind_nothing(
            steps in prop::collection::vec((any::<bool>(), 0u64..7), 1..200),
        ) {
            let mut sequences = Sequences::new(0);
            let mut seen = std::collections::BTreeSet::from([0_u64]);
            for (back, by) in steps {
                let newest = *seen.last().unwrap();
                let seq = if back { newest.saturating_sub(by) } else { newest + 1 + by };
                let expected = match seq.checked_sub(newest) {
                    None => Observed::Backward,
                    Some(0) => Observed::Duplicate,
                    Some(1) => Observed::Contiguous,
                    Some(ahead) => Observed::Gap(ahead - 1),
                };
                prop_assert_eq!(sequences.observe(SID, Seq::new(seq)), expected);
                seen.insert(seq);
            }
            let newest = *seen.last().unwrap();
            prop_assert!(sequences.untold() <= newest);
        }

        /// What happens to one sid is the same whatever happens to others meanwhile.
        #[test]
        fn f8_sids_side_by_side_are_independent(
            steps in prop::collection::vec((0usize..4, 0u64..5, 0u8..6), 1..200),
        ) {
            let mut together = Sequences::new(0);
            let mut alone = [(); 4].map(|()| Sequences::new(0));
            let mut next = [5_u64; 4];
            for (place, by, event) in steps {
                let sid = Sid::new(u64::try_from(place).unwrap() + 1);
                // Forward as often as back, with holes.
                let seq = Seq::new((next[place] + by).saturating_sub(1));
                next[place] = next[place].max(seq.number() + 1);
                let each = [&mut together, &mut alone[place]].map(|sequences| {
                    let observed = sequences.observe(sid, seq);
                    let mark = sequences.take(sid, observed);
                    match event {
                        0 => sequences.give_back(sid, mark),
                        1 => sequences.open(sid, None),
                        _ => {}
                    }
                    (observed, mark)
                });
                prop_assert_eq!(each[0], each[1]);
            }
            let apart: u64 = alone.iter().map(Sequences::untold).sum();
            prop_assert_eq!(together.untold(), apart);
        }

        /// Whatever is lost on the wire, taken as a reply or dropped here: what was delivered,
        /// what gaps told and what is still owed add up to every slot that was not a reply.
        #[test]
        fn every_slot_is_delivered_told_or_owed(fates in prop::collection::vec(0u8..4, 1..200)) {
            let mut sequences = Sequences::new(0);
            let (mut delivered, mut told, mut replies) = (0u64, 0u64, 0u64);
            let mut last_seen = 0;
            for (index, fate) in fates.iter().enumerate() {
                let seq = u64::try_from(index).unwrap() + 1;
                if *fate == 0 {
                    continue; // lost on the wire
                }
                last_seen = seq;
                let observed = sequences.observe(SID, Seq::new(seq));
                if *fate == 1 {
                    replies += 1;
                    continue;
                }
                let mark = sequences.take(SID, observed);
                if *fate == 2 {
                    sequences.give_back(SID, mark);
                } else {
                    delivered += 1;
                    told += mark.gap_size;
                }
            }
            prop_assert_eq!(delivered + told + replies + sequences.untold(), last_seen);
        }
    }
}
