//! One event loop over a share of the connections: the hot path. Owns its sockets, their TLS,
//! frames and sequences; nothing else ever touches them. Never blocks outside `wait`, never reads
//! a clock, never decides which market belongs where.
//!
//! `step` is the table of contents: orders, ready connections, timers. What the conductor must
//! know goes out as reports; the queue for them is sized so that it cannot fill.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError};
use crossbeam_utils::CachePadded;

use crate::arbitration::ArbiterSettings;
use crate::batch::{Batch, Buffer, Entry, RawMessage};
use crate::clock::Stamp;
use crate::conflate::{Conflated, Limits};
use crate::delivery::{Delivery, Inline, Panicked};
use crate::error::Cause;
use crate::event::Event;
use crate::held::Held;
use crate::ids::{ConnId, Epoch, Role, ShardId, widen};
use crate::link::{Link, LinkSettings, Note};
use crate::mailbox::{BOOK_REPORTS_MAX, Order, Report, Untold};
use crate::messages::{LARGE_BYTES, Outlet};
use crate::overflow::{Overflow, OverflowPolicy};
use crate::pool::{PoolLayout, shard_of};
use crate::spill::Spill;
use crate::stats::ShardCounters;
use crate::timer::{Alarm, Moment, Next, after};
use crate::transport::{Ready, Received, Sent, Transport};
use crate::watch::Watch;
use pairs::Pairs;
use restart::Failures;

/// How soon a full registry queue is tried again.
const HELD_RETRY: Duration = Duration::from_millis(1);

/// A connection's place on its shard.
struct Slot<L> {
    conn: ConnId,
    /// The live connection, if there is one.
    live: Option<(L, Link)>,
    /// Lost and untold, for the next epoch's first message.
    owed: u64,
    /// The last epoch there was.
    epoch: Epoch,
    /// The end of that epoch has still to be told.
    up: bool,
    /// What found no room and must not be dropped; nothing is read meanwhile.
    held: Held,
    /// The newest message of each market, while there is no room for them; of a pair that is
    /// arbitrated, at its first line.
    kept: Option<Box<Conflated>>,
    /// On the list of those to drive without waiting for an event.
    queued: bool,
    /// The peer has shut its side.
    read_closed: bool,
    /// Sending failed; what can still be read is read before the connection is lost.
    broken: Option<Cause>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    Stopping {
        until: Instant,
    },
    Stopped,
    /// The host's handler panicked: nothing more can be delivered here.
    Failed,
}

/// The loop's state.
pub(crate) struct Shard<T: Transport> {
    transport: T,
    slots: Vec<Slot<T::Link>>,
    id: ShardId,
    shards: usize,
    settings: LinkSettings,
    orders: Receiver<Order<T::Link>>,
    reports: Sender<Report>,
    outlet: Outlet,
    overflow: OverflowPolicy,
    conflate: Limits,
    pairs: Pairs,
    inline: Option<Inline>,
    delivery: Delivery,
    handler_slow_threshold: Duration,
    turn_budget: usize,
    lifecycle: Option<Sender<RawMessage>>,
    counters: Arc<CachePadded<ShardCounters>>,
    ready: VecDeque<usize>,
    /// Those that hold something back, in the order in which they will be served.
    held_back: VecDeque<usize>,
    alarm: Alarm,
    /// When the last turn was.
    turned: Option<Instant>,
    /// Turns that took too long.
    stalls: Watch,
    spill: Spill,
    /// Of those who wait for room, those who keep the newest are next.
    kept_next: bool,
    state: State,
    failures: Failures,
    untold: Vec<Untold>,
    scratch: Scratch,
}

/// Buffers reused from one connection to the next.
#[derive(Default)]
struct Scratch {
    plain: Vec<u8>,
    rest: Vec<Entry>,
    notes: Vec<Note>,
    events: Vec<Ready>,
    held_back: VecDeque<usize>,
    /// What a read gave, until it is handed over: known whatever happens meanwhile.
    in_hand: Option<Box<Buffer>>,
}

/// What a shard is made of.
pub(crate) struct ShardParts<T: Transport> {
    pub(crate) id: ShardId,
    pub(crate) shards: usize,
    pub(crate) transport: T,
    pub(crate) settings: LinkSettings,
    pub(crate) orders: Receiver<Order<T::Link>>,
    pub(crate) reports: Sender<Report>,
    pub(crate) outlet: Outlet,
    pub(crate) pool: PoolLayout,
    pub(crate) overflow: OverflowPolicy,
    /// What a connection keeps at most under `Overflow::ConflateByMarket`.
    pub(crate) conflate: Limits,
    pub(crate) arbitration: ArbiterSettings,
    pub(crate) delivery: Delivery,
    /// Reads of one connection in one turn.
    pub(crate) turn_budget: usize,
    pub(crate) handler_slow_threshold: Duration,
    pub(crate) stall_threshold: Duration,
    pub(crate) counters: Arc<CachePadded<ShardCounters>>,
}

impl<T: Transport> Shard<T> {
    pub(crate) fn new(parts: ShardParts<T>) -> Self {
        let own = usize::from(parts.id.number());
        let connections =
            || parts.pool.iter().filter(|&(conn, _)| shard_of(conn, parts.shards) == own);
        let pairs = Pairs::new(connections(), parts.arbitration);
        let slots = connections()
            .map(|(conn, _)| Slot {
                conn,
                live: None,
                owed: 0,
                epoch: Epoch::new(0),
                up: false,
                held: Held::Nothing,
                kept: None,
                queued: false,
                read_closed: false,
                broken: None,
            })
            .collect();
        Self {
            transport: parts.transport,
            slots,
            id: parts.id,
            shards: parts.shards,
            settings: parts.settings,
            orders: parts.orders,
            reports: parts.reports,
            outlet: parts.outlet,
            overflow: parts.overflow,
            conflate: parts.conflate,
            pairs,
            inline: parts.delivery.handler(parts.id, parts.handler_slow_threshold),
            delivery: parts.delivery,
            handler_slow_threshold: parts.handler_slow_threshold,
            turn_budget: parts.turn_budget,
            lifecycle: None,
            counters: parts.counters,
            ready: VecDeque::new(),
            held_back: VecDeque::new(),
            alarm: Alarm::default(),
            turned: None,
            stalls: Watch::new(parts.stall_threshold),
            spill: Spill::default(),
            kept_next: false,
            state: State::Running,
            failures: Failures::default(),
            untold: Vec::new(),
            scratch: Scratch { plain: Vec::with_capacity(LARGE_BYTES), ..Scratch::default() },
        }
    }

    /// Which one it is.
    pub(crate) fn id(&self) -> ShardId {
        self.id
    }

    /// Whether it ended because the host's handler panicked.
    pub(crate) fn is_failed(&self) -> bool {
        self.state == State::Failed
    }

    /// Whether a connection is held back, and does not read what comes.
    #[cfg(test)]
    pub(crate) fn holds(&self, conn: ConnId) -> bool {
        let slot = self.index(conn).and_then(|index| self.slots.get(index));
        slot.is_some_and(|slot| !slot.held.is_nothing())
    }

    /// Whether connections wait to be driven.
    pub(crate) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Waits for events or the timeout, and queues the connections that have something. The only
    /// place that blocks.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>) -> std::io::Result<()> {
        let mut events = std::mem::take(&mut self.scratch.events);
        let result = self.transport.wait(timeout, &mut events);
        for Ready { token, read_closed } in events.drain(..) {
            if let Some(slot) = self.slots.get_mut(token) {
                slot.read_closed |= read_closed;
            }
            self.queue(token);
        }
        self.scratch.events = events;
        result
    }

    /// One turn.
    pub(crate) fn step(&mut self, now: Instant) -> Next {
        let judged = self.turned.replace(now).unwrap_or(now);
        self.pairs.begin_turn(judged);
        self.take_orders(now);
        self.drive_ready(now);
        self.run_timers(Moment { judged, now });
        self.tell_slow(now);
        self.finish_stopping(now);
        self.outlet.flush();
        match self.state {
            State::Stopped | State::Failed => Next::Done,
            _ if !self.ready.is_empty() || !self.orders.is_empty() => Next::Now,
            _ => match self.alarm.due() {
                // Due, and judged once the sockets have been looked at again.
                Some(due) if due <= now => Next::Now,
                due => Next::At(due),
            },
        }
    }

    /// Drives each connection that is ready now, within its budget; those with more to give
    /// queue again.
    fn drive_ready(&mut self, now: Instant) {
        for _ in 0..self.ready.len() {
            let Some(index) = self.ready.pop_front() else {
                return;
            };
            if let Some(slot) = self.slots.get_mut(index) {
                slot.queued = false;
            }
            let mut reads = 1..=self.turn_budget;
            if reads.all(|_| self.drive(index, now)) {
                self.queue(index);
            }
        }
    }

    /// Reads once, digests, hands over, sends. Whether another read may give more.
    fn drive(&mut self, index: usize, now: Instant) -> bool {
        if self.state == State::Failed {
            return false;
        }
        self.serve_held_first(index, now);
        let Some(slot) = self.slots.get_mut(index) else {
            return false;
        };
        let Some((socket, link)) = &mut slot.live else {
            return false;
        };
        if !slot.held.is_nothing() {
            link.hold(now);
            self.alarm.arm(after(now, HELD_RETRY));
            return false;
        }
        let plain = &mut self.scratch.plain;
        plain.clear();
        plain.extend_from_slice(link.partial.front());
        let front = plain.len();
        let received = self.transport.receive(socket, plain);
        let bytes = plain.len().saturating_sub(front);
        self.counters.bytes_received.add(widen(bytes));
        let fresh = link.partial.gather(plain, front);
        let (read_closed, broken) = (slot.read_closed, slot.broken.clone());
        let at = match received {
            Ok(Received::Some { at, .. }) => at,
            _ => self.transport.stamp(),
        };
        let is_drained = !matches!(received, Ok(Received::Some { more: true, .. }));
        link.looked(bytes, is_drained);
        let verdict = if fresh { self.digest(index, at, is_drained) } else { Ok(()) };
        let (mut again, mut ending) = (false, None);
        match (verdict, received) {
            (Err(cause), _) | (Ok(()), Err(cause)) => ending = Some(cause),
            (Ok(()), Ok(Received::Ended)) => ending = Some(broken.unwrap_or(Cause::Ended)),
            (Ok(()), Ok(Received::Blocked)) => ending = broken,
            (Ok(()), Ok(Received::Some { more, .. })) => again = more || read_closed,
        }
        self.flush(index, now);
        if let Some(cause) = ending {
            self.lose(index, cause);
        }
        again
    }

    /// Digests the plaintext in scratch into one batch and hands it over; `is_drained` if the
    /// socket had no more.
    fn digest(&mut self, index: usize, stamp: Stamp, is_drained: bool) -> Result<(), Cause> {
        let is_other_held = self.is_other_held(index);
        let Some((_, link)) = self.slots.get_mut(index).and_then(|slot| slot.live.as_mut()) else {
            return Ok(());
        };
        let counters = &*self.counters;
        let Scratch { plain, rest, notes, in_hand, .. } = &mut self.scratch;
        let batch = self.outlet.batch(plain, (link.conn, link.epoch, link.role), stamp);
        let batch = in_hand.insert(batch);
        let verdict = link.digest(batch, notes, counters);
        self.pairs.judge(index, batch, (is_other_held, is_drained), counters);
        let lapse = link.lapses.due();
        let inline = self.inline.as_mut().filter(|_| link.role != Role::Lifecycle);
        if let (Some(inline), count @ 1..) = (inline, widen(batch.entries.len())) {
            let outcome = inline.call(&Batch::new(batch, 0), counters, || self.transport.now());
            counters.messages_forwarded.add(count);
            batch.entries.clear();
            match outcome {
                Ok(()) => counters.messages_consumed.add(count),
                Err(Panicked) => {
                    log::error!("the handler of shard {} panicked", self.id);
                    self.state = State::Failed;
                }
            }
        }
        let Some(batch) = in_hand.take() else { return verdict };
        if batch.entries.is_empty() {
            self.outlet.recycle(batch);
        } else {
            match self.overflow.of(link.role) {
                Overflow::Backpressure => {
                    let held = if link.role == Role::Lifecycle {
                        Held::for_registry(batch, &mut self.outlet)
                    } else {
                        Held::ForHost(batch)
                    };
                    self.offer(index, held, stamp.mono);
                }
                Overflow::ConflateByMarket => self.conflate(index, batch, stamp.mono),
                Overflow::DropNewest => {
                    let handed = self.outlet.send(batch, rest);
                    counters.messages_forwarded.add(widen(handed.messages));
                    if !rest.is_empty() {
                        self.pairs.dropped(index, link, rest, stamp, counters);
                        let dropped = widen(rest.len());
                        self.spilled(dropped, 0, stamp.mono);
                    }
                }
            }
        }
        if let Some(due) = lapse {
            self.alarm.arm(due);
        }
        self.deliver_notes(index);
        verdict
    }

    /// Hands over what must not be dropped, as far as there is room and nobody came before it.
    /// Whatever is left is held, and the connection with it; once nothing is, it reads on.
    fn offer(&mut self, index: usize, held: Held, now: Instant) {
        if held.is_nothing() {
            return;
        }
        let (left, hung_up) = if self.is_behind(&held) {
            (held, false)
        } else {
            held.offer(&mut self.outlet, &mut self.lifecycle, &self.counters)
        };
        let Some(slot) = self.slots.get_mut(index) else { return };
        slot.held = left;
        let (free, for_host) = (slot.held.is_nothing(), slot.held.is_for_host());
        let mut resumed = false;
        if let Some((_, link)) = &mut slot.live {
            if free { resumed = link.release(now) } else { link.hold(now) }
        }
        if resumed {
            // No edge will tell of what waited in the socket meanwhile.
            self.queue(index);
            if let Some((arbiter, _)) = self.pairs.of(index) {
                arbiter.excuse(now);
            }
        }
        if !free {
            self.outlet.speak_for(self.outlet.is_spoken_for() || for_host);
            self.held_back.push_back(index);
            self.alarm.arm(after(now, HELD_RETRY));
            self.spilled(0, 0, now);
        }
        if hung_up {
            self.report(Report::RegistryHungUp);
        }
    }

    /// Whether others wait for the same room. Who comes late has to wait, however little it is:
    /// or those with much to hand over would find no room for ever.
    fn is_behind(&self, held: &Held) -> bool {
        let slots = self.held_back.iter().filter_map(|&index| self.slots.get(index));
        slots.into_iter().any(|slot| slot.held.is_for_same(held))
    }

    /// Sends what is waiting to be sent.
    fn flush(&mut self, index: usize, now: Instant) {
        let Some(slot) = self.slots.get_mut(index).filter(|slot| slot.broken.is_none()) else {
            return;
        };
        let Some((socket, link)) = &mut slot.live else {
            return;
        };
        match self.transport.send(socket, &mut link.outgoing) {
            Ok(sent) => {
                link.sent(sent, now);
                if sent != Sent::All {
                    self.alarm.arm(link.deadline());
                }
            }
            Err(cause) => {
                // What came before the end is still the host's: read on until nothing comes.
                link.outgoing.clear();
                slot.broken = Some(cause);
                slot.read_closed = true;
                self.queue(index);
            }
        }
    }

    fn lose(&mut self, index: usize, cause: Cause) {
        // While stopping, the end of a connection is what we asked for.
        let cause = if self.state == State::Running { cause } else { Cause::Stopped };
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        let Some((mut socket, mut link)) = slot.live.take() else {
            return;
        };
        link.forget(&self.counters);
        self.transport.deregister(&mut socket);
        drop(socket);
        let (conn, epoch, heard) = (link.conn, link.epoch, link.heard());
        let (last_data, at) = (link.last_data(), self.transport.stamp());
        let lapse = link.lapses.finish();
        if self.pairs.lost(index, &link, &self.counters) {
            // Its pair tells what it owes.
        } else if self.state == State::Running {
            slot.owed = slot.owed.saturating_add(link.sequences.untold());
        } else {
            let untold = link.sequences.untold_by_sid();
            self.untold.extend(untold.map(|(sid, messages)| Untold {
                conn_id: conn,
                epoch,
                sid,
                messages,
            }));
        }
        if let Some(lapse) = lapse {
            self.report(Report::Lapse { conn, epoch, lapse, at });
        }
        while let Some(ended) = link.lose_command() {
            self.report(Report::Ended { conn, epoch, ended });
        }
        let live = self.counters.connections.total().saturating_sub(1);
        self.counters.connections.set(live);
        if let Some(slot) = self.slots.get_mut(index) {
            slot.up = false;
        }
        self.report(Report::Down { conn, epoch, cause, heard, last_data, at });
    }

    fn deliver_notes(&mut self, index: usize) {
        self.tell_news(index);
        if !self.scratch.notes.is_empty() {
            self.tell_notes(index);
        }
        self.tell_ends(index);
    }

    fn tell_notes(&mut self, index: usize) {
        let Some(link) = self.live(index) else {
            return;
        };
        let (conn, epoch, role) = (link.conn, link.epoch, link.role);
        let mut notes = std::mem::take(&mut self.scratch.notes);
        for note in notes.drain(..) {
            self.report(match note {
                Note::Ended(ended) => Report::Ended { conn, epoch, ended },
                Note::Late(ended) => Report::Late { conn, epoch, ended },
                Note::SubscriptionEnded { sid, code } => {
                    Report::SubscriptionEnded { conn, epoch, sid, code }
                }
                Note::Sign(sign) => {
                    self.tell(Event::of_sign(sign, conn, role, epoch));
                    continue;
                }
            });
        }
        self.scratch.notes = notes;
    }

    /// Tells which subscriptions are over; as many as there are now is no reason to hurry.
    fn tell_ends(&mut self, index: usize) {
        let Some(link) = self.live(index).filter(|link| link.has_over()) else { return };
        let (conn, epoch) = (link.conn, link.epoch);
        while self.reports.len() < BOOK_REPORTS_MAX {
            let Some((sid, code)) = self.live(index).and_then(Link::next_over) else { return };
            self.report(Report::SubscriptionEnded { conn, epoch, sid, code });
        }
        let now = self.turned.unwrap_or_else(|| self.transport.now());
        self.alarm.arm(after(now, HELD_RETRY));
    }

    /// Tells what was lost and whose books came, unless so much waits to be told that it can wait
    /// too.
    fn tell_news(&mut self, index: usize) {
        let busy = self.reports.len() >= BOOK_REPORTS_MAX;
        let turned = self.turned;
        let Some(link) = self.live(index).filter(|link| link.has_news()) else { return };
        let now = turned.unwrap_or(link.deadline());
        let later = link.news_after().filter(|&later| later > now);
        if let Some(later) = later.or(busy.then_some(after(now, HELD_RETRY))) {
            return self.alarm.arm(later);
        }
        let (conn, epoch, (before, gaps, tickers)) = (link.conn, link.epoch, link.take_news(now));
        if !before.is_empty() {
            self.report(Report::Books { conn, epoch, tickers: before });
        }
        if let Some(gaps) = gaps {
            self.report(Report::Gaps { conn, epoch, gaps });
            // Books that were asked for are waited for less long from now on.
            self.arm(index);
        }
        if !tickers.is_empty() {
            self.report(Report::Books { conn, epoch, tickers });
        }
    }

    fn report(&self, report: Report) {
        // Sized so that it cannot be full; the conductor gone means we are about to be told so.
        if let Err(TrySendError::Full(report)) = self.reports.try_send(report) {
            self.counters.reports_lost.add(1);
            log::error!("report queue full, lost {report:?}: please report this bug");
        }
    }

    fn queue(&mut self, index: usize) {
        if let Some(slot) = self.slots.get_mut(index)
            && slot.live.is_some()
            && !slot.queued
        {
            slot.queued = true;
            self.ready.push_back(index);
        }
    }

    fn arm(&mut self, index: usize) {
        if let Some(deadline) = self.live(index).map(|link| link.deadline()) {
            self.alarm.arm(deadline);
        }
    }

    fn live(&mut self, index: usize) -> Option<&mut Link> {
        self.slots.get_mut(index)?.live.as_mut().map(|(_, link)| link)
    }

    /// The place of a connection on this shard: pair by pair.
    fn index(&self, conn: ConnId) -> Option<usize> {
        let place = usize::from(conn.number().checked_sub(1)?);
        let index = (place / 2 / self.shards.max(1)) * 2 + place % 2;
        self.slots.get(index).filter(|slot| slot.conn == conn).map(|_| index)
    }
}

mod ending;
mod keep;
mod orders;
mod pairs;
mod restart;
#[cfg(test)]
mod tests;
mod timers;
