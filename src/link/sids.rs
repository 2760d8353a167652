//! The sids of a link: the subscriptions that are open, those that ended before it was known that
//! they are ours, and those whose end the conductor has still to hear of. Bounded whatever the
//! exchange says; it counts no messages and tells nobody.

use std::collections::{BTreeMap, BTreeSet};

use crate::code::ExchangeCode;
use crate::command::{Ended, Outcome};
use crate::ids::Sid;
use crate::request::Expects;

/// Subscriptions that ended before they were acknowledged, remembered until they are.
const EARLY_MAX: usize = 32;

/// A subscription that is over or out of step, and what the exchange said of it.
pub(crate) type Over = (Sid, Option<ExchangeCode>);

/// Which subscriptions there are: one, but for the legacy dialect.
#[derive(Debug)]
pub(super) struct Sids {
    open: BTreeSet<Sid>,
    early: Vec<Over>,
    /// Not told yet; none of them is open.
    over: BTreeMap<Sid, Option<ExchangeCode>>,
    /// Those that a list of the exchange's may make open and over together.
    listed_max: usize,
}

impl Sids {
    pub(super) fn new(listed_max: usize) -> Self {
        Self { open: BTreeSet::new(), early: Vec::new(), over: BTreeMap::new(), listed_max }
    }

    /// Whether any is open.
    pub(super) fn is_any_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// The open subscription that a command was about, if the answer is that it is over.
    pub(super) fn ended_by(
        &self,
        ended: &Ended,
        named: Option<Sid>,
    ) -> Option<(Sid, ExchangeCode)> {
        let Outcome::Rejected { code } = ended.outcome else { return None };
        let about_one = matches!(ended.expects, Expects::Done | Expects::Books(_));
        let sid = named.or_else(|| self.only()).filter(|sid| self.open.contains(sid))?;
        (about_one && code.is_terminal()).then_some((sid, code))
    }

    /// The one that is open, if it is the only one.
    pub(super) fn only(&self) -> Option<Sid> {
        self.open.first().copied().filter(|_| self.open.len() == 1)
    }

    /// It is ours from now on. False when it ended before we knew.
    pub(super) fn opened(&mut self, sid: Sid) -> bool {
        let early = self.early.iter().position(|&(early, _)| early == sid);
        match early.map(|index| self.early.swap_remove(index)) {
            Some((sid, code)) => drop(self.over.insert(sid, code)),
            None => drop(self.open.insert(sid)),
        }
        early.is_none()
    }

    /// The exchange said which there are: no other is open, and these are, as far as that is
    /// credible.
    pub(super) fn listed(&mut self, there: &BTreeSet<Sid>) {
        self.open.retain(|sid| there.contains(sid));
        for &sid in there {
            // One whose end is to be told has ended since.
            let known = self.open.contains(&sid) || self.over.contains_key(&sid);
            if !known && self.open.len().saturating_add(self.over.len()) < self.listed_max {
                self.opened(sid);
            }
        }
    }

    /// It is no more, and whoever wanted that has heard.
    pub(super) fn closed(&mut self, sid: Sid) {
        self.open.remove(&sid);
        self.over.remove(&sid);
        self.early.retain(|&(early, _)| early != sid);
    }

    /// It is over or out of step and must be renewed; that is to be told, once.
    pub(super) fn ended(&mut self, sid: Sid, code: Option<ExchangeCode>) {
        if self.open.remove(&sid) {
            self.over.insert(sid, code);
        } else if self.early.len() < EARLY_MAX && self.early.iter().all(|&(early, _)| early != sid)
        {
            self.early.push((sid, code));
        }
    }

    /// Whether there is an end to tell.
    pub(super) fn is_any_over(&self) -> bool {
        !self.over.is_empty()
    }

    /// The next end to tell.
    pub(super) fn next_over(&mut self) -> Option<Over> {
        self.over.pop_first()
    }

    /// The end of this one, if it is still to be told.
    pub(super) fn take_over(&mut self, sid: Sid) -> Option<Over> {
        self.over.remove_entry(&sid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sids(numbers: impl IntoIterator<Item = u64>) -> BTreeSet<Sid> {
        numbers.into_iter().map(Sid::new).collect()
    }

    #[test]
    fn e10_an_end_is_told_once_and_not_before_the_sid_is_known_to_be_ours() {
        let (mut known, code) = (Sids::new(8), Some(ExchangeCode::BufferOverflow));
        assert!(known.opened(Sid::new(1)) && known.only() == Some(Sid::new(1)));
        known.ended(Sid::new(1), code);
        known.ended(Sid::new(2), None);
        assert_eq!(known.next_over(), Some((Sid::new(1), code)));
        assert!(!known.is_any_over() && !known.is_any_open());
        assert!(!known.opened(Sid::new(2)));
        assert_eq!(known.take_over(Sid::new(2)), Some((Sid::new(2), None)));
        known.ended(Sid::new(1), code);
        assert!(!known.is_any_over(), "it was told, and is early again");
        known.closed(Sid::new(1));
        assert!(known.opened(Sid::new(1)));
    }

    #[test]
    fn a_list_leaves_open_what_is_there_and_no_flood_of_it() {
        let mut known = Sids::new(8);
        (1..=3).for_each(|number| assert!(known.opened(Sid::new(number))));
        known.listed(&sids([2, 5]));
        assert_eq!(known.open, sids([2, 5]));
        known.listed(&sids(5..70_000));
        assert_eq!(known.open, sids(5..13));
        // What is ended and not told yet makes no room.
        (5..13).for_each(|number| known.ended(Sid::new(number), None));
        known.listed(&sids(100..70_000));
        assert!(!known.is_any_open() && known.over.len() == 8);
        known.next_over();
        known.listed(&sids(100..70_000));
        assert_eq!(known.only(), Some(Sid::new(100)));
    }

    #[test]
    fn ends_of_sids_that_are_not_ours_are_bounded() {
        let mut known = Sids::new(8);
        (0..1_000).for_each(|number| known.ended(Sid::new(number), None));
        assert!(known.early.len() == EARLY_MAX && !known.is_any_over());
    }
}
