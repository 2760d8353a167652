//! What a shard does by the clock: deadlines of its connections, what is held back offered again,
//! and what an operator should know of the shard itself. It reads no clock.

use std::time::{Duration, Instant};

use super::{HELD_RETRY, Shard};
use crate::event::Event;
use crate::held::Held;
use crate::link::Link;
use crate::mailbox::Report;
use crate::overflow::Overflow;
use crate::spill::Over;
use crate::timer::{Moment, after, earlier};
use crate::transport::Transport;
use crate::watch::Slow;

impl<T: Transport> Shard<T> {
    pub(super) fn run_timers(&mut self, moment: Moment) {
        if !self.alarm.ring(moment.judged) {
            return;
        }
        self.serve_waiting(moment.now);
        for index in 0..self.slots.len() {
            self.offer_kept(index, moment.now);
            self.tell_lapse(index, moment.judged);
            self.tick(index, moment);
            if let Some(deadline) = self.deadline(index, moment.now) {
                self.alarm.arm(deadline);
            }
        }
        if let Some(over) = self.spill.tick(moment.judged) {
            self.tell_over(over);
        }
        if let Some(due) = self.spill.due() {
            self.alarm.arm(due);
        }
    }

    fn deadline(&self, index: usize, now: Instant) -> Option<Instant> {
        let slot = self.slots.get(index)?;
        let waits = !slot.held.is_nothing() || slot.kept.is_some();
        let retry = waits.then(|| after(now, HELD_RETRY));
        let link = slot.live.as_ref().map(|(_, link)| link);
        // A lapse that is due and was not told has to wait until there is time for it.
        let lapse = link.and_then(|link| link.lapses.due());
        let lapse = lapse.map(|due| if due > now { due } else { after(now, HELD_RETRY) });
        earlier(retry, earlier(link.map(Link::deadline), lapse))
    }

    /// Tells what was lost lately, once nothing more is and there is time for it.
    fn tell_lapse(&mut self, index: usize, now: Instant) {
        let busy = self.reports.len() >= self.reports.capacity().unwrap_or(0) / 2;
        let Some(link) = self.live(index).filter(|_| !busy) else { return };
        let (conn, epoch) = (link.conn, link.epoch);
        if let Some(lapse) = link.lapses.take(now) {
            let at = self.transport.stamp();
            self.report(Report::Lapse { conn, epoch, lapse, at });
        }
    }

    /// Offers what is held back again, first come first served.
    fn retry_held(&mut self, now: Instant) {
        let mut line = std::mem::take(&mut self.scratch.held_back);
        std::mem::swap(&mut line, &mut self.held_back);
        for index in line.drain(..) {
            let Some(slot) = self.slots.get_mut(index) else { continue };
            let held = std::mem::replace(&mut slot.held, Held::Nothing);
            self.offer(index, held, now);
        }
        self.scratch.held_back = line;
        let mut slots = self.held_back.iter().filter_map(|&index| self.slots.get(index));
        self.outlet.speak_for(slots.any(|slot| slot.held.is_for_host()));
    }

    /// Offers what waits for room. Those who keep the newest of each market do as well: every other
    /// time it is for them first.
    fn serve_waiting(&mut self, now: Instant) {
        if self.outlet.is_spoken_for() && self.outlet.free() > 0 {
            self.kept_next = !self.kept_next;
            if self.kept_next {
                self.outlet.speak_for(false);
                (0..self.slots.len()).for_each(|index| self.offer_kept(index, now));
            }
        }
        self.retry_held(now);
    }

    /// What is to be read here may take room, or be dropped: those that wait for room and drop
    /// nothing come first, or they would find none for as long as this goes on.
    #[inline]
    pub(super) fn serve_held_first(&mut self, index: usize, now: Instant) {
        if self.outlet.is_spoken_for()
            && let Some(role) = self.live(index).map(|link| link.role)
            && self.overflow.of(role) != Overflow::Backpressure
        {
            self.serve_waiting(now);
        }
    }

    fn tick(&mut self, index: usize, moment: Moment) {
        let mut notes = std::mem::take(&mut self.scratch.notes);
        let verdict = self.slots.get_mut(index).and_then(|slot| {
            let (_, link) = slot.live.as_mut()?;
            Some(link.tick(moment, slot.queued, &mut notes, &self.counters))
        });
        self.scratch.notes = notes;
        self.deliver_notes(index);
        match verdict {
            None => {}
            Some(Ok(())) => self.flush(index, moment.now),
            Some(Err(cause)) => self.lose(index, cause),
        }
    }

    /// Tells of slow calls of the handler and of slow turns, if it is time to.
    pub(super) fn tell_slow(&mut self, now: Instant) {
        let told = self.inline.as_mut().map(|inline| inline.tell(self.id, &self.reports, now));
        let (shard, reports) = (self.id, &self.reports);
        let stalled = self.stalls.tell(now, |Slow { calls: turns, took }| {
            reports.try_send(Report::Tell(Event::ShardStalled { shard, took, turns })).is_ok()
        });
        if let Some(later) = earlier(told.flatten(), stalled) {
            self.alarm.arm(later);
        }
    }

    /// Takes note of how long a turn took.
    pub(crate) fn turn_took(&mut self, took: Duration) {
        if self.stalls.note(took) {
            self.counters.cycles_slow.add(1);
        }
    }

    /// Messages found no room: so many were dropped, some of them conflated, or a connection is
    /// held back.
    pub(super) fn spilled(&mut self, dropped: u64, conflated: u64, now: Instant) {
        if self.spill.note(dropped, conflated, now) {
            self.tell(Event::OverflowBegan { shard: self.id });
            self.alarm.arm(after(now, Duration::from_secs(1)));
        }
    }

    pub(super) fn tell_over(&self, Over { lasted, dropped, conflated }: Over) {
        self.tell(Event::OverflowEnded { shard: self.id, lasted, dropped, conflated });
    }

    /// Tells the host something, unless so much is under way to the conductor that there is no
    /// time for it.
    pub(super) fn tell(&self, event: Event) {
        let half_full = self.reports.len() >= self.reports.capacity().unwrap_or(0) / 2;
        if half_full || self.reports.try_send(Report::Tell(event)).is_err() {
            self.counters.events_dropped.add(1);
        }
    }
}
