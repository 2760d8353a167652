//! How a shard goes on after a panic of its own: nothing that lived here can be trusted, so every
//! connection is closed and told to be lost, and the rest is as new. A handler's panic is not its
//! business.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use super::{Scratch, Shard};
use crate::error::Cause;
use crate::event::Event;
use crate::mailbox::Report;
use crate::messages::LARGE_BYTES;
use crate::timer::{Alarm, Next};
use crate::transport::Transport;

impl<T: Transport> Shard<T> {
    /// One turn; a panic in it costs the connections, and not the thread.
    pub(crate) fn turn(&mut self, now: Instant) -> Next {
        // Whatever state a panic leaves, `restart` looks at nothing but what it replaces.
        catch_unwind(AssertUnwindSafe(|| self.step(now))).unwrap_or_else(|_| {
            log::error!("shard {} failed by a bug: please report it; it is restarted", self.id);
            self.restart();
            Next::Now
        })
    }

    fn restart(&mut self) {
        self.counters.restarts.add(1);
        self.scratch = Scratch { plain: Vec::with_capacity(LARGE_BYTES), ..Scratch::default() };
        self.ready.clear();
        self.pairs.renew();
        self.alarm = Alarm::default();
        self.inline = self.delivery.handler(self.id, self.handler_slow_threshold);
        let cause = || Cause::Local { message: "its shard failed by a bug".to_owned() };
        for index in 0..self.slots.len() {
            self.lose(index, cause());
            let Some(slot) = self.slots.get_mut(index) else { continue };
            slot.queued = false;
            // Taken over or lost just when it happened: the conductor still believes in it.
            if std::mem::take(&mut slot.up) {
                let (conn, epoch, heard) = (slot.conn, slot.epoch, false);
                let (at, cause) = (self.transport.stamp(), cause());
                let last_data = at.mono;
                self.report(Report::Down { conn, epoch, cause, heard, last_data, at });
            }
        }
        // What is held is offered again, and every other deadline found anew.
        self.alarm.arm(self.transport.now());
        for gauge in [&self.counters.connections, &self.counters.silent, &self.counters.lagging] {
            gauge.set(0);
        }
        self.tell(Event::ShardRestarted { shard: self.id });
    }
}
