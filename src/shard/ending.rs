//! How a shard ends: Close frames out, reading on for a while, and what could not be told before
//! the end put on record. It decides nothing about connections that go on.

use std::time::{Duration, Instant};

use super::{Shard, Slot, State};
use crate::error::Cause;
use crate::held::Held;
use crate::lapse::Lapses;
use crate::mailbox::{Report, Untold};
use crate::sequence::Mark;
use crate::timer::after;
use crate::transport::Transport;

/// How long a close may take.
const CLOSE_GRACE: Duration = Duration::from_secs(1);

impl<T: Transport> Shard<T> {
    pub(super) fn stop(&mut self, until: Instant, now: Instant) {
        let until = until.min(after(now, CLOSE_GRACE));
        self.state = State::Stopping { until };
        for index in 0..self.slots.len() {
            let closed = self.live(index).map(|link| link.close(until));
            match closed {
                None => {}
                Some(Ok(())) => self.flush(index, now),
                Some(Err(cause)) => self.lose(index, cause),
            }
        }
        self.alarm.arm(until);
    }

    pub(super) fn finish_stopping(&mut self, now: Instant) {
        let State::Stopping { until } = self.state else {
            return;
        };
        let busy = |slot: &Slot<T::Link>| {
            slot.live.is_some() || !slot.held.is_nothing() || slot.kept.is_some()
        };
        if until > now && self.slots.iter().any(busy) {
            return;
        }
        self.settle_all();
        self.state = State::Stopped;
        self.report(Report::Stopped);
    }

    /// Ends every connection, and tells what no later message can.
    fn settle_all(&mut self) {
        // Nobody waits any more.
        self.outlet.speak_for(false);
        for index in 0..self.slots.len() {
            self.abandon_held(index);
            self.abandon_kept(index);
            self.lose(index, Cause::Stopped);
            self.tell_debt(index);
        }
        self.settle_pairs();
        if let Some(over) = self.spill.finish() {
            self.tell_over(over);
        }
    }

    /// What a connection that is down owes, no next epoch will tell.
    fn tell_debt(&mut self, index: usize) {
        let Some(slot) = self.slots.get_mut(index).filter(|slot| slot.owed > 0) else { return };
        let (conn_id, epoch, messages) = (slot.conn, slot.epoch, std::mem::take(&mut slot.owed));
        self.untold.push(Untold { conn_id, epoch, sid: None, messages });
    }

    /// Takes over what shards before it could not tell, for the next message of each connection.
    pub(crate) fn owing(mut self, untold: &[Untold]) -> Self {
        for untold in untold {
            let Some(index) = self.index(untold.conn_id) else { continue };
            self.owe(index, untold.messages);
            if let Some(slot) = self.slots.get_mut(index) {
                slot.epoch = slot.epoch.max(untold.epoch);
            }
        }
        self
    }

    /// Lost, and for the connection's next message to tell, or its pair's.
    pub(super) fn owe(&mut self, index: usize, messages: u64) {
        if let Some((arbiter, _)) = self.pairs.of(index) {
            return arbiter.take_back(false, messages);
        }
        if let Some(slot) = self.slots.get_mut(index) {
            slot.owed = slot.owed.saturating_add(messages);
        }
    }

    /// What was lost and could not be told before the end.
    pub(crate) fn into_untold(mut self) -> Vec<Untold> {
        if self.state == State::Running {
            self.state = State::Failed;
        }
        // Nothing is left here after an orderly stop.
        self.settle_all();
        self.untold
    }

    fn abandon_held(&mut self, index: usize) {
        let arbitrated = self.pairs.of(index).is_some();
        let debt = |mark: Mark| if arbitrated { mark.first_copy_debt() } else { mark.debt() };
        let Some(slot) = self.slots.get_mut(index) else { return };
        let held = std::mem::replace(&mut slot.held, Held::Nothing);
        let lost = held.abandon(&mut self.outlet, &self.counters, &mut self.untold, debt);
        self.abandoned(index, lost, None);
    }

    /// So many messages of a connection were lost at the end, the first of them read at `first`, or
    /// with the last read.
    pub(super) fn abandoned(&mut self, index: usize, lost: u64, first: Option<Instant>) {
        if lost == 0 {
            return;
        }
        let at = self.transport.stamp();
        self.spilled(lost, 0, at.mono);
        let Some(slot) = self.slots.get_mut(index) else { return };
        if let Some((_, link)) = &mut slot.live {
            return link.note_dropped_some(lost, first, at);
        }
        // Its peer has said goodbye already.
        let (conn, epoch, mut lapses) = (slot.conn, slot.epoch, Lapses::default());
        lapses.dropped_some(lost, first.unwrap_or(at.mono), at);
        if let Some(lapse) = lapses.finish() {
            self.report(Report::Lapse { conn, epoch, lapse, at });
        }
    }
}
