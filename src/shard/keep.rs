//! Conflation on a shard: what finds no room goes among what its connection keeps, and goes out
//! from there as room comes back. While anything is kept, everything of the connection goes that
//! way, so that the order stands. An arbitrated pair is one stream, and keeps in one place, at its
//! first line. Only ticker connections do. What is kept, and what it tells, `conflate` knows.

use std::time::Instant;

use super::{HELD_RETRY, Scratch, Shard};
use crate::batch::{Buffer, Continuity};
use crate::conflate::{Absorbed, Conflated, Debt};
use crate::ids::{Role, widen};
use crate::mailbox::Untold;
use crate::sequence::Mark;
use crate::timer::after;
use crate::transport::Transport;

impl<T: Transport> Shard<T> {
    /// Hands over what there is room for, and keeps the newest of the rest.
    pub(super) fn conflate(&mut self, index: usize, batch: Box<Buffer>, now: Instant) {
        let (home, is_pair) = self.pairs.home(index);
        let Some(slot) = self.slots.get_mut(home) else { return };
        let (mut absorbed, limits) = (Absorbed::default(), self.conflate);
        let at = batch.received_at;
        if let Some(kept) = &mut slot.kept {
            absorbed = kept.absorb(&batch, &batch.entries);
            self.outlet.recycle(batch);
        } else {
            let handed = self.outlet.send_part(batch, |batch, rest| {
                let new = if is_pair { Conflated::of_pair } else { Conflated::new };
                absorbed = slot.kept.insert(Box::new(new(limits))).absorb(batch, rest);
            });
            self.counters.messages_forwarded.add(widen(handed.messages));
        }
        if slot.kept.is_none() {
            return;
        }
        if let (Some(link), 1..) = (self.live(index), absorbed.dropped) {
            link.note_dropped_some(absorbed.dropped, None, at);
        }
        let lost = absorbed.conflated.saturating_add(absorbed.dropped);
        self.counters.messages_dropped.add(lost);
        self.counters.messages_conflated.add(absorbed.conflated);
        self.counters.messages_kept.add(absorbed.kept);
        if lost > 0 {
            self.spilled(lost, absorbed.conflated, now);
        }
        self.offer_kept(home, now);
    }

    /// Hands over what is kept, in order, as far as there is room.
    pub(super) fn offer_kept(&mut self, index: usize, now: Instant) {
        self.send_kept(index);
        let Some(slot) = self.slots.get_mut(index) else { return };
        match &slot.kept {
            None => {}
            Some(kept) if kept.is_empty() => self.end_conflation(index),
            Some(_) => {
                self.alarm.arm(after(now, HELD_RETRY));
                self.spilled(0, 0, now);
            }
        }
    }

    fn send_kept(&mut self, index: usize) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        let Some(kept) = &mut slot.kept else { return };
        let outlet = &mut self.outlet;
        let Scratch { plain, rest, .. } = &mut self.scratch;
        while !kept.is_empty() {
            let free = outlet.free();
            plain.clear();
            rest.clear();
            if free == 0 || outlet.is_spoken_for() {
                return;
            }
            let Some((conn, epoch, stamp)) = kept.front(free, plain, rest) else { return };
            let count = rest.len();
            let mut batch = outlet.batch(plain, (conn, epoch, Role::Ticker), stamp);
            batch.entries.append(rest);
            let handed = outlet.send(batch, rest);
            kept.commit(handed.messages);
            self.counters.messages_forwarded.add(widen(handed.messages));
            self.counters.messages_kept.subtract(widen(handed.messages));
            if handed.messages < count {
                return;
            }
        }
    }

    /// Nothing is kept any more; what was lost last is told by the next message that comes.
    pub(super) fn end_conflation(&mut self, index: usize) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        let Some(kept) = slot.kept.take() else { return };
        for Debt { line, first, messages } in kept.debts() {
            if let Some((arbiter, _)) = self.pairs.of(index) {
                // The pair tells it, on whichever line comes first.
                arbiter.take_back(first, messages);
                continue;
            }
            match (&mut slot.live, line) {
                (Some((_, link)), Some((epoch, Some(sid)))) if link.epoch == epoch => {
                    let continuity = if first { Continuity::First } else { Continuity::Next };
                    let gap_size = messages.saturating_sub(1);
                    link.sequences.give_back(sid, Mark { continuity, gap_size });
                }
                (Some((_, link)), _) => link.sequences.owe(messages),
                (None, _) => slot.owed = slot.owed.saturating_add(messages),
            }
        }
    }

    /// Nothing is waited for at a stop: what finds no room even now is told as lost.
    pub(super) fn abandon_kept(&mut self, index: usize) {
        self.send_kept(index);
        let Some(slot) = self.slots.get_mut(index) else { return };
        let Some(kept) = slot.kept.take() else { return };
        let (lost, first) = (widen(kept.len()), kept.first_read());
        self.counters.messages_dropped.add(lost);
        self.counters.messages_kept.subtract(lost);
        for Debt { line, first, messages } in kept.debts() {
            if let Some((arbiter, _)) = self.pairs.of(index) {
                arbiter.take_back(first, messages);
                continue;
            }
            let (epoch, sid) = line.unwrap_or((slot.epoch, None));
            self.untold.push(Untold { conn_id: slot.conn, epoch, sid, messages });
        }
        self.abandoned(index, lost, first);
    }
}
