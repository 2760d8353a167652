//! What the conductor orders a shard to do: take a connection over, send a command, give one up,
//! stop. One that writes to a socket a turn, so that a burst of them cannot hold up the others.

use std::time::Instant;

use super::{Shard, State};
use crate::command::Ended;
use crate::error::Cause;
use crate::ids::{ConnId, Epoch, widen};
use crate::link::Link;
use crate::mailbox::{Adoption, Order, Report};
use crate::request::Request;
use crate::transport::Transport;

/// Orders taken in one step, if they cost nothing.
const ORDERS_PER_STEP: usize = 8;

impl<T: Transport> Shard<T> {
    /// Carries out what the conductor wants, a little in each turn; measured, since it keeps
    /// messages waiting.
    pub(super) fn take_orders(&mut self, now: Instant) {
        let before = (!self.orders.is_empty()).then(|| self.transport.cpu());
        self.carry_out_orders(now);
        if let Some(before) = before {
            let spent = self.transport.cpu().0.saturating_sub(before.0);
            self.counters.control_ns_max.raise(spent);
            self.counters.control_ns.add(spent);
        }
    }

    fn carry_out_orders(&mut self, now: Instant) {
        for _ in 0..ORDERS_PER_STEP {
            match self.orders.try_recv() {
                Ok(Order::Listen { sink }) => self.lifecycle = Some(sink),
                Ok(Order::Adopt(adoption)) => return self.adopt(*adoption, now),
                // Short or long, most of what it costs is the system call.
                Ok(Order::Command { conn, epoch, request }) => {
                    return self.command(conn, epoch, request, now);
                }
                Ok(Order::Drop { conn, epoch }) => self.give_up(conn, epoch),
                Ok(Order::Settled { conn, epoch, last }) => {
                    let index = self.index(conn);
                    let live = index.and_then(|index| self.live(index));
                    if let Some(link) = live.filter(|link| link.epoch == epoch) {
                        link.settled(last);
                    }
                }
                Ok(Order::Stop { until }) => self.stop(until, now),
                Err(crossbeam_channel::TryRecvError::Empty) => return,
                Err(crossbeam_channel::TryRecvError::Disconnected) => {
                    // The conductor is gone: nobody could tell us to stop any more.
                    if self.state == State::Running {
                        self.stop(now, now);
                    }
                    return;
                }
            }
        }
    }

    fn adopt(&mut self, adoption: Adoption<T::Link>, now: Instant) {
        let Adoption { conn, epoch, role, link: mut socket, unread } = adoption;
        let Some(index) = self.index(conn) else {
            return;
        };
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        (slot.epoch, slot.up) = (epoch, true);
        let owed = std::mem::take(&mut slot.owed);
        let watched = self.transport.register(&mut socket, index);
        self.counters.bytes_received.add(widen(unread.len()));
        let link = Link::new((conn, epoch, role), owed, unread, self.settings, now);
        slot.live = Some((socket, link));
        slot.read_closed = false;
        slot.broken = None;
        if let Some((arbiter, line)) = self.pairs.of(index) {
            arbiter.up(line, &self.counters.arbitration);
        }
        self.counters.connections.add(1);
        match (watched, self.state) {
            (Ok(()), State::Running) => {
                self.arm(index);
                // Neither what waits in the socket nor what is unread will make an event.
                self.queue(index);
            }
            (Ok(()), _) => self.lose(index, Cause::Stopped),
            (Err(cause), _) => self.lose(index, cause),
        }
    }

    fn command(&mut self, conn: ConnId, epoch: Epoch, request: Request, now: Instant) {
        let index = self.index(conn);
        let live = index.and_then(|index| self.live(index)).filter(|link| link.epoch == epoch);
        let (Some(index), Some(link)) = (index, live) else {
            // Its connection was lost meanwhile: it ends as every command of it did.
            let ended = Ended::lost(request.id, request.expects);
            self.report(Report::Ended { conn, epoch, ended });
            return;
        };
        match link.command(request, now) {
            Ok(()) => {
                self.arm(index);
                self.flush(index, now);
            }
            Err(cause) => self.lose(index, cause),
        }
    }

    /// Ends a connection whose subscriptions cannot be made out any more.
    fn give_up(&mut self, conn: ConnId, epoch: Epoch) {
        let index = self.index(conn);
        let live = index.and_then(|index| self.live(index)).filter(|link| link.epoch == epoch);
        if let (Some(index), true) = (index, live.is_some()) {
            let message = "what is subscribed cannot be found out; a new connection is certain";
            self.lose(index, Cause::Liveness { message: message.to_owned() });
        }
    }
}
