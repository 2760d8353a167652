//! Getting one connection's order books back in step after a gap: what is asked for next, and when.
//! Pure; its owner (`subscription`) tells it of gaps, books and ends of commands, and sends what it
//! asks for. It holds at most the connection's markets, and nothing while none is suspect.
//!
//! A *round* asks for the books of all suspect markets, one list after another, one list at a time.
//! A gap amid a round asks for nothing by itself: what it made suspect is left when the round ends,
//! and then there is another, a little later each time. After [`ROUNDS_MAX`] rounds in vain, or
//! when the exchange knows no such command, the subscription is opened anew instead.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::{Duration, Instant};

use crate::gap::GapPolicy;
use crate::ids::CommandId;
use crate::timer::after;

/// Rounds that leave something suspect, in a row, before the subscription is opened anew.
pub(crate) const ROUNDS_MAX: u32 = 4;
/// Time between a round that left something and the next: the first, and the longest.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// So long until those that cannot be asked for now are looked at again.
const LEFT_ALONE: Duration = Duration::from_millis(200);
/// Once messages of what is being opened anew are lost, the next book is waited for only so long.
const LOST: Duration = Duration::from_secs(1);
/// After so long with nothing suspect that can be asked for, pauses start from the beginning.
const CALM: Duration = Duration::from_secs(1);

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Act<K> {
    /// Ask for these books.
    Ask(Vec<K>),
    /// End the subscription, or these markets' own, and open it anew.
    Reopen(Vec<K>),
}

/// Whether a market goes into a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pick {
    Take,
    /// It is not with the exchange now; its book will come when it is.
    Skip,
    /// The list is full.
    Full,
}

/// How a list that was asked for ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answered {
    /// In whatever way; what is still suspect is asked for again.
    Over,
    /// The exchange has no such command.
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase<K> {
    /// Nothing is suspect.
    Calm { since: Option<Instant> },
    /// A round may begin.
    Due { at: Instant },
    /// Since then none is suspect but those that cannot be asked for. As good as calm; they are
    /// looked at again.
    Left { since: Instant, at: Instant },
    /// Amid a round: markets up to `past` have been asked for.
    Round { past: Option<K> },
    /// Opened anew: books are due by then, and from each on after so long the next.
    Reopening { until: Instant, patience: Duration },
}

/// The recovery of one connection's books.
#[derive(Clone, Debug)]
pub(crate) struct Recovery<K> {
    phase: Phase<K>,
    /// The list under way; there is never another.
    asking: Option<CommandId>,
    /// Since when each is suspect.
    suspects: BTreeMap<K, Instant>,
    /// The last gap, while the shard has not been told that nothing is suspect after it.
    unsettled: Option<u64>,
    /// Rounds in vain since the last calm or reopening.
    vain: u32,
    /// Pauses since the last long calm.
    pauses: u32,
    /// The exchange has no command for it.
    reopens: bool,
}

impl<K> Default for Recovery<K> {
    fn default() -> Self {
        Self {
            phase: Phase::Calm { since: None },
            asking: None,
            suspects: BTreeMap::new(),
            unsettled: None,
            vain: 0,
            pauses: 0,
            reopens: false,
        }
    }
}

impl<K: Ord + Copy> Recovery<K> {
    /// There was a gap, the last so far with this number; these markets are suspect. Says which of
    /// them were not before, and whether a recovery begins.
    pub(crate) fn gap(
        &mut self,
        last: u64,
        markets: impl IntoIterator<Item = K>,
        since: Instant,
        now: Instant,
    ) -> (Vec<K>, bool) {
        self.unsettled = Some(last);
        let new = |key: &K| {
            let is_new = !self.suspects.contains_key(key);
            self.suspects.entry(*key).or_insert(since);
            is_new
        };
        let new: Vec<K> = markets.into_iter().filter(new).collect();
        // A book on its way may be among what was lost.
        if let Phase::Reopening { until, patience } = &mut self.phase {
            *patience = (*patience).min(LOST);
            *until = (*until).min(after(now, *patience));
        }
        let (since, begins) = match self.phase {
            Phase::Calm { since } if !self.suspects.is_empty() => (since, true),
            Phase::Left { since, .. } if !new.is_empty() => (Some(since), false),
            _ => return (new, false),
        };
        let soon = since.is_some_and(|since| after(since, CALM) > now);
        let at = if soon {
            self.pause(now)
        } else {
            self.pauses = 0;
            now
        };
        self.phase = Phase::Due { at };
        (new, begins)
    }

    /// A book above the last gap came: since when the market was suspect, if it was, and whether
    /// it was the last.
    pub(crate) fn sound(&mut self, key: K, now: Instant) -> Option<(Instant, bool)> {
        let since = self.suspects.remove(&key)?;
        self.wait_on(now);
        Some((since, self.calm(now)))
    }

    /// The market is no longer with the connection; whether it was the last.
    pub(crate) fn gone(&mut self, key: K, now: Instant) -> bool {
        self.suspects.remove(&key).is_some() && self.calm(now)
    }

    fn calm(&mut self, now: Instant) -> bool {
        let calm = self.suspects.is_empty();
        if calm {
            self.phase = Phase::Calm { since: Some(now) };
            self.vain = 0;
        }
        calm
    }

    /// What is to be done now, if anything, and how much may be asked at all. What is returned
    /// counts as done. Only to be called while the subscription is open.
    pub(crate) fn next(
        &mut self,
        policy: GapPolicy,
        patience: Duration,
        now: Instant,
        mut pick: impl FnMut(K) -> Pick,
    ) -> Option<Act<K>> {
        match self.phase {
            _ if self.asking.is_some() => return None,
            Phase::Calm { .. } => return None,
            Phase::Reopening { until, .. } if until <= now => {
                self.end_round(now);
                return None;
            }
            Phase::Due { at } | Phase::Left { at, .. } if at <= now => {}
            Phase::Due { .. } | Phase::Left { .. } | Phase::Reopening { .. } => return None,
            Phase::Round { .. } => {}
        }
        if self.always_reopens(policy) || self.vain >= ROUNDS_MAX {
            self.reopening(patience, now);
            return Some(Act::Reopen(self.suspects.keys().copied().collect()));
        }
        let past = match self.phase {
            Phase::Round { past } => past,
            _ => None,
        };
        let from = past.map_or(Bound::Unbounded, Bound::Excluded);
        let (mut list, mut end) = (Vec::new(), past);
        for (&key, _) in self.suspects.range((from, Bound::Unbounded)) {
            match pick(key) {
                Pick::Take => list.push(key),
                Pick::Skip => {}
                Pick::Full => break,
            }
            end = Some(key);
        }
        if list.is_empty() {
            if self.suspects.keys().all(|&key| pick(key) == Pick::Skip) {
                self.leave_alone(now);
            } else {
                self.end_round(now);
            }
            return None;
        }
        self.phase = Phase::Round { past: end };
        Some(Act::Ask(list))
    }

    /// All of them come anew, for whatever reason: what is suspect need not be asked for.
    pub(crate) fn reopening(&mut self, patience: Duration, now: Instant) {
        if !self.suspects.is_empty() {
            self.vain = 0;
            self.phase = Phase::Reopening { until: after(now, patience), patience };
        }
    }

    /// Whether no book is ever asked for.
    pub(crate) fn always_reopens(&self, policy: GapPolicy) -> bool {
        policy == GapPolicy::Resubscribe || self.reopens
    }

    /// Whether all of them come anew.
    pub(crate) fn is_reopening(&self) -> bool {
        matches!(self.phase, Phase::Reopening { .. })
    }

    /// What is opened anew makes headway: the next book is due from now on.
    pub(crate) fn wait_on(&mut self, now: Instant) {
        if let Phase::Reopening { until, patience } = &mut self.phase {
            *until = after(now, *patience);
        }
    }

    /// The list returned last goes out as this command.
    pub(crate) fn asked(&mut self, id: CommandId) {
        self.asking = Some(id);
    }

    /// A command has ended; whether it was the one that asks.
    pub(crate) fn answered(&mut self, id: CommandId, how: Answered) -> bool {
        let is_ours = self.asking == Some(id);
        if is_ours {
            self.asking = None;
            self.reopens |= how == Answered::Never;
        }
        is_ours
    }

    /// Nothing was asked in vain, and what becomes suspect from now on does not wait for these.
    fn leave_alone(&mut self, now: Instant) {
        let since = match self.phase {
            Phase::Left { since, .. } => since,
            _ => now,
        };
        self.vain = 0;
        self.phase = Phase::Left { since, at: after(now, LEFT_ALONE) };
    }

    /// A round is over and something is suspect still.
    fn end_round(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Round { .. }) {
            self.vain += 1;
        }
        self.phase = Phase::Due { at: self.pause(now) };
    }

    fn pause(&mut self, now: Instant) -> Instant {
        let doubled = PAUSE.saturating_mul(2u32.saturating_pow(self.pauses.min(16)));
        self.pauses = self.pauses.saturating_add(1);
        after(now, doubled.min(PAUSE_MAX))
    }

    /// When `next` has something to do.
    pub(crate) fn due(&self) -> Option<Instant> {
        match self.phase {
            Phase::Due { at } | Phase::Left { at, .. } => Some(at),
            Phase::Reopening { until, .. } => Some(until),
            Phase::Calm { .. } | Phase::Round { .. } => None,
        }
    }

    /// How many are suspect.
    pub(crate) fn suspects(&self) -> usize {
        self.suspects.len()
    }

    pub(crate) fn is_suspect(&self, key: K) -> bool {
        self.suspects.contains_key(&key)
    }

    /// The last gap, if nothing is suspect after it and the shard does not know.
    pub(crate) fn unsettled(&self) -> Option<u64> {
        self.unsettled.filter(|_| self.suspects.is_empty())
    }

    /// The shard knows.
    pub(crate) fn settled(&mut self) {
        self.unsettled = None;
    }
}

/// How many books the whole process may ask for in a second. A list longer than what is left is
/// let through, and the next waits the longer for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance {
    each: Duration,
    /// When all that was taken will have been worked off.
    paid: Option<Instant>,
}

impl Allowance {
    /// So much may be taken ahead of time.
    const AHEAD: Duration = Duration::from_millis(50);

    pub(crate) fn new(per_second: usize) -> Self {
        let per_second = u32::try_from(per_second).unwrap_or(u32::MAX).max(1);
        Self { each: Duration::from_secs(1) / per_second, paid: None }
    }

    /// When something may be taken, if not now.
    pub(crate) fn held_until(&self, now: Instant) -> Option<Instant> {
        let paid = self.paid?;
        let free = paid.checked_sub(Self::AHEAD).unwrap_or(paid);
        (free > now).then_some(free)
    }

    pub(crate) fn take(&mut self, books: usize, now: Instant) {
        let books = u32::try_from(books).unwrap_or(u32::MAX);
        let from = self.paid.map_or(now, |paid| paid.max(now));
        self.paid = Some(after(from, self.each.saturating_mul(books)));
    }
}

#[cfg(test)]
mod tests;
