//! How a shard goes on after a panic of its own: nothing that lived here can be trusted, so every
//! connection is closed and told to be lost, what was in hand or kept counts as lost, and the rest
//! is as new. What it cleans up may be what is broken, so each piece is guarded by itself. One that
//! only fails again is given up. A batch given to the outlet counts as handed over. A handler's
//! panic is not its business.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::{Scratch, Shard, State};
use crate::batch::Buffer;
use crate::error::Cause;
use crate::event::Event;
use crate::ids::widen;
use crate::mailbox::Report;
use crate::messages::LARGE_BYTES;
use crate::timer::{Alarm, Next};
use crate::transport::Transport;

/// Restarts in a row, each so soon after the one before that no connection can have come up
/// meanwhile: the bug is in the shard and not in what it was sent, and would strike for ever.
const IN_A_ROW_MAX: u32 = 16;
const SOON: Duration = Duration::from_millis(10);

/// How often the shard failed of late.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Failures {
    last: Option<Instant>,
    in_a_row: u32,
}

impl Failures {
    /// It failed again. Whether there is hope.
    fn note(&mut self, now: Instant) -> bool {
        let last = self.last.replace(now);
        let soon = last.is_some_and(|last| now.saturating_duration_since(last) < SOON);
        self.in_a_row = if soon { self.in_a_row.saturating_add(1) } else { 1 };
        self.in_a_row < IN_A_ROW_MAX
    }
}

impl<T: Transport> Shard<T> {
    /// One turn; a panic in it costs the connections, and not the thread.
    pub(crate) fn turn(&mut self, now: Instant) -> Next {
        // Whatever state a panic leaves, `restart` looks at little but what it replaces.
        catch_unwind(AssertUnwindSafe(|| self.step(now))).unwrap_or_else(|_| self.restart(now))
    }

    fn restart(&mut self, now: Instant) -> Next {
        self.counters.restarts.add(1);
        let scratch = Scratch { plain: Vec::with_capacity(LARGE_BYTES), ..Scratch::default() };
        let Scratch { in_hand, .. } = std::mem::replace(&mut self.scratch, scratch);
        self.ready.clear();
        self.held_back.clear();
        let slots = self.slots.iter().enumerate();
        let holding = slots.filter(|(_, slot)| !slot.held.is_nothing());
        self.held_back.extend(holding.map(|(index, _)| index));
        self.alarm = Alarm::default();
        if let Some(batch) = in_hand {
            self.write_off_batch(&batch);
        }
        for index in 0..self.slots.len() {
            self.write_off(index);
        }
        // Only now: while the lines end, the pair tells what neither of them brought.
        self.pairs.renew(&self.counters);
        for gauge in [&self.counters.connections, &self.counters.silent, &self.counters.lagging] {
            gauge.set(0);
        }
        let (hope, id) = (self.failures.note(now), self.id);
        if !hope || !self.renew_handler() {
            let why = if hope { "its new handler panicked" } else { "it only fails again" };
            log::error!("shard {id} failed by a bug: please report it; it is given up: {why}");
            self.state = State::Failed;
            return Next::Done;
        }
        log::error!("shard {id} failed by a bug: please report it; it is restarted");
        // What is held is offered again, and every other deadline found anew.
        self.alarm.arm(self.transport.now());
        self.tell(Event::ShardRestarted { shard: id });
        Next::Now
    }

    /// Whether there is a handler again, where there was one. The host's code may panic here too.
    fn renew_handler(&mut self) -> bool {
        let (old, id, slow) = (self.inline.take(), self.id, self.handler_slow_threshold);
        self.guarded(|_| drop(old));
        self.guarded(|shard| shard.inline = shard.delivery.handler(id, slow))
    }

    /// The messages of a read that were not handed over yet.
    fn write_off_batch(&mut self, batch: &Buffer) {
        let Some(index) = self.index(batch.conn) else { return };
        let told = self.guarded(|shard| {
            let slot = shard.slots.get_mut(index);
            let Some((_, link)) = slot.and_then(|slot| slot.live.as_mut()) else { return };
            let (entries, at) = (&batch.entries, batch.received_at);
            shard.pairs.dropped(index, link, entries, at, &shard.counters);
        });
        if !told {
            let debts = batch.entries.iter().map(|entry| entry.mark().debt());
            self.owe(index, debts.fold(0, u64::saturating_add));
        }
    }

    /// Ends a connection, with what it kept and what it owes.
    fn write_off(&mut self, index: usize) {
        let cause = || Cause::Local { message: "its shard failed by a bug".to_owned() };
        self.guarded(|shard| shard.drop_kept(index));
        let untold = self.live(index).map_or(0, |link| link.sequences.untold());
        let told = self.guarded(|shard| shard.lose(index, cause()));
        if !told {
            let owed = self.slots.get(index).map_or(0, |slot| slot.owed);
            self.owe(index, untold.saturating_sub(owed));
        }
        let Some(slot) = self.slots.get_mut(index) else { return };
        (slot.queued, slot.kept) = (false, None);
        // Taken over or lost just when it happened: the conductor still believes in it.
        if std::mem::take(&mut slot.up) {
            let (conn, epoch, heard) = (slot.conn, slot.epoch, false);
            let (at, cause) = (self.transport.stamp(), cause());
            let last_data = at.mono;
            self.report(Report::Down { conn, epoch, cause, heard, last_data, at });
        }
    }

    /// What is kept is lost with the state it was kept in; its debts go where they always go.
    fn drop_kept(&mut self, index: usize) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        let Some(kept) = &slot.kept else { return };
        let (lost, first) = (widen(kept.len()), kept.first_read());
        let at = self.transport.stamp();
        if let (Some((_, link)), 1..) = (&mut slot.live, lost) {
            link.note_dropped_some(lost, first, at);
        }
        self.counters.messages_dropped.add(lost);
        self.counters.messages_kept.subtract(lost);
        self.end_conflation(index);
    }

    /// Does what may panic, too. Whether it did not.
    fn guarded(&mut self, act: impl FnOnce(&mut Self)) -> bool {
        catch_unwind(AssertUnwindSafe(|| act(self))).is_ok()
    }
}
