//! The redundant pairs of a shard whose copies are arbitrated. Both lines of a pair are neighbours
//! on one shard, so nothing is shared. It finds the pair a connection belongs to, and decides
//! nothing about messages.

use std::time::Instant;

use super::Shard;
use crate::arbitration::{Arbiter, ArbiterSettings, Arbitration, Look};
use crate::batch::{Buffer, Entry};
use crate::clock::Stamp;
use crate::ids::{ConnId, Role, widen};
use crate::lines::Line;
use crate::link::Link;
use crate::mailbox::Untold;
use crate::stats::ShardCounters;
use crate::transport::Transport;

/// One arbiter for each two places; none at all where nothing is arbitrated.
#[derive(Debug, Default)]
pub(crate) struct Pairs {
    arbiters: Vec<Option<Box<Arbiter>>>,
    /// All sockets have been looked at since.
    judged: Option<Instant>,
}

impl Pairs {
    /// The arbiters of a shard with these connections, pair by pair.
    pub(super) fn new(
        connections: impl Iterator<Item = (ConnId, Role)>,
        settings: ArbiterSettings,
    ) -> Self {
        let firsts = connections.step_by(2);
        let arbiters: Vec<_> = firsts
            .map(|(_, role)| {
                let arbitrated = settings.policy.of(role) == Arbitration::FirstWins;
                arbitrated.then(|| Box::new(Arbiter::new(role, settings)))
            })
            .collect();
        let any = arbiters.iter().any(Option::is_some);
        Self { arbiters: if any { arbiters } else { Vec::new() }, judged: None }
    }

    /// The arbiter of the connection at this place, and which of its lines that is.
    #[inline]
    pub(super) fn of(&mut self, index: usize) -> Option<(&mut Arbiter, Line)> {
        let arbiter = self.arbiters.get_mut(index / 2)?.as_mut()?;
        Some((arbiter, if index.is_multiple_of(2) { Line::A } else { Line::B }))
    }

    /// Where the connection at this place keeps what finds no room, and whether with the other line
    /// of its pair: one stream has one order.
    pub(super) fn home(&self, index: usize) -> (usize, bool) {
        let is_pair = self.arbiters.get(index / 2).is_some_and(Option::is_some);
        (if is_pair { index & !1 } else { index }, is_pair)
    }

    /// Nothing that lived here can be trusted.
    pub(super) fn renew(&mut self, counters: &ShardCounters) {
        let counters = &counters.arbitration;
        self.arbiters.iter_mut().flatten().for_each(|arbiter| arbiter.renew(counters));
    }

    /// A turn begins; the one before it began at `judged`.
    pub(super) fn begin_turn(&mut self, judged: Instant) {
        self.judged = Some(judged);
    }

    /// Takes second copies out of a batch; `is_held` if its other line may not be read now,
    /// `is_drained` if nothing of this one waits in its socket.
    #[inline]
    pub(super) fn judge(
        &mut self,
        index: usize,
        batch: &mut Buffer,
        (is_held, is_drained): (bool, bool),
        counters: &ShardCounters,
    ) {
        let judged = self.judged.filter(|_| !is_held);
        if let Some((arbiter, line)) = self.of(index) {
            arbiter.judge(line, batch, Look { judged, is_drained }, &counters.arbitration);
        }
    }

    /// Messages of this connection were not handed over.
    pub(super) fn dropped(
        &mut self,
        index: usize,
        link: &mut Link,
        entries: &[Entry],
        at: Stamp,
        counters: &ShardCounters,
    ) {
        match self.of(index) {
            None => link.dropped(entries, at, counters),
            Some((arbiter, _)) => {
                counters.messages_dropped.add(widen(entries.len()));
                link.note_dropped(entries, at);
                arbiter.give_back(entries);
            }
        }
    }

    /// A connection is lost. Whether its pair takes over what it owes.
    pub(super) fn lost(&mut self, index: usize, link: &Link, counters: &ShardCounters) -> bool {
        let now = self.judged;
        let (Some((arbiter, line)), Some(now)) = (self.of(index), now) else { return false };
        arbiter.down(line, link.sequences.untold(), now, &counters.arbitration);
        true
    }
}

impl<T: Transport> Shard<T> {
    /// Whether the other line of this one's pair is held back.
    pub(super) fn is_other_held(&self, index: usize) -> bool {
        if self.pairs.arbiters.is_empty() {
            return false;
        }
        self.slots.get(index ^ 1).is_some_and(|slot| !slot.held.is_nothing())
    }

    /// What pairs lost and could not tell before the end.
    pub(super) fn settle_pairs(&mut self) {
        for (arbiter, slots) in self.pairs.arbiters.iter_mut().zip(self.slots.chunks(2)) {
            let (Some(arbiter), Some(slot)) = (arbiter, slots.first()) else { continue };
            let messages = arbiter.finish(&self.counters.arbitration);
            if messages > 0 {
                let (conn_id, epoch) = (slot.conn, slot.epoch);
                self.untold.push(Untold { conn_id, epoch, sid: None, messages });
            }
        }
    }
}
