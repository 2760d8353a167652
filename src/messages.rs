//! The hand-off to the host: batches in, messages out, bounded by messages and by bytes.
//!
//! A batch is what one socket read gave. Shards reserve room for its messages in one atomic
//! before sending, so the channel itself never fills; the consumer gives the room back, and the
//! empty batch, when it has taken the last message. The room is therefore never less than what
//! the host could still see. No lock of ours, no allocation of ours per message on the shard.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arrayvec::ArrayVec;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};
use crossbeam_utils::CachePadded;

use crate::batch::{Batch, Buffer, Charge, Entry, RawMessage};
use crate::clock::Stamp;
use crate::error::RecvError;
use crate::ids::{ConnId, Epoch, Role, ShardId, widen};
use crate::stats::Counter;

/// Reads shorter than this go into small buffers, so that few bytes never hold a large one.
pub(crate) const SMALL_BYTES: usize = 4 << 10;
/// Large buffers: what one socket read gives at most, with the rest of a record and of a frame
/// that began in the one before.
pub(crate) const LARGE_BYTES: usize = 96 << 10;
/// Messages that empty buffers of either size keep room for: more come only where messages are
/// shorter than any of the exchange's.
const SMALL_ENTRIES: usize = 64;
const LARGE_ENTRIES: usize = 1_024;
/// Empty batches on their way back to one shard; more than this are let go.
const RETURNS_MAX: usize = 256;
/// So many batches at most go to the consumer together, if each holds this many bytes: under a
/// flood one wake-up serves them all, and a message waits for three more reads at most.
const TOGETHER_MAX: usize = 4;
const TOGETHER_BYTES: usize = 16 << 10;
/// The shards together take ahead this part of all the room there is.
const AHEAD_PART: u32 = 32;
/// Small buffers each shard begins with: so many small reads, until it looks what came back.
const SMALL_AT_FIRST: usize = 16;
/// Bytes are accounted in units of this many.
const UNIT_BYTES: usize = 256;

/// The room between shards and consumer, both bounds in one atomic word.
#[derive(Debug)]
pub(crate) struct Room {
    taken: CachePadded<AtomicU64>,
    closed: AtomicBool,
    limit: Charge,
    /// What each shard may take ahead.
    ahead: Charge,
    /// What is left for batches when all have.
    usable: Charge,
}

impl Room {
    fn new(shards: usize, messages: usize, bytes: usize) -> Self {
        let limit = Charge {
            messages: u32::try_from(messages).unwrap_or(u32::MAX),
            units: u32::try_from(bytes / UNIT_BYTES).unwrap_or(u32::MAX),
        };
        let shards = u32::try_from(shards).unwrap_or(u32::MAX).max(1);
        let ahead = limit.part(shards.saturating_mul(AHEAD_PART));
        let parked = ahead.times(shards);
        let usable = limit.minus(parked).unwrap_or(limit);
        Self { taken: CachePadded::default(), closed: AtomicBool::new(false), limit, ahead, usable }
    }

    /// Takes room for up to `messages` in a buffer of `units`: the first that fit, if those are at
    /// least so many; none otherwise.
    fn reserve_at_least(&self, least: u32, messages: u32, units: u32) -> Charge {
        // Whatever its size, a batch fits when nothing else is waiting.
        let units = units.min(self.usable.units);
        let mut granted = Charge::default();
        let grant = |word| {
            let taken = Charge::unpack(word);
            let free = self.limit.messages.saturating_sub(taken.messages);
            let fits = units <= self.limit.units.saturating_sub(taken.units) && least <= free;
            let messages = if fits { messages.min(free) } else { 0 };
            granted = if messages > 0 { Charge { messages, units } } else { Charge::default() };
            // No carry between the halves: neither sum exceeds its limit.
            (messages > 0).then(|| word + granted.pack())
        };
        match self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grant) {
            Ok(_) => granted,
            Err(_) => Charge::default(),
        }
    }

    /// Whether the consumer is gone.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    fn release(&self, charge: Charge) {
        self.taken.fetch_sub(charge.pack(), Ordering::Relaxed);
    }
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Handed {
    /// The first this many were handed over; the rest are the caller's to account for.
    pub(crate) messages: usize,
}

/// One shard's end: makes batches, hands them over, gets empty ones back.
#[derive(Debug)]
#[expect(clippy::vec_box, reason = "batches travel boxed; unboxing would move them each time")]
pub(crate) struct Outlet {
    shard: ShardId,
    room: Arc<Room>,
    sender: Sender<Box<Buffer>>,
    returns: Receiver<Box<Buffer>>,
    small: Vec<Box<Buffer>>,
    large: Vec<Box<Buffer>>,
    /// Room taken ahead, so that a message on its way does not wait for the consumer's cache line.
    ahead: Charge,
    /// Somebody here waits for room and drops nothing: those that may drop get none meanwhile.
    spoken_for: bool,
    /// Full reads that go together, so that one wake-up serves them all.
    waiting: ArrayVec<Box<Buffer>, TOGETHER_MAX>,
}

impl Outlet {
    /// A batch of what was received. A little is copied into a small buffer; of much the buffer
    /// itself is taken, and `received` gets an empty one in its place.
    pub(crate) fn batch(
        &mut self,
        received: &mut Vec<u8>,
        (conn, epoch, role): (ConnId, Epoch, Role),
        received_at: Stamp,
    ) -> Box<Buffer> {
        let small = received.len() <= SMALL_BYTES;
        if if small { self.small.is_empty() } else { self.large.is_empty() } {
            // Only now: looking there costs a cache line the consumer writes.
            while let Ok(batch) = self.returns.try_recv() {
                self.recycle(batch);
            }
        }
        let (pool, class) =
            if small { (&mut self.small, SMALL_BYTES) } else { (&mut self.large, LARGE_BYTES) };
        let mut batch = pool.pop().unwrap_or_else(|| Buffer::empty(self.shard, class));
        (batch.conn, batch.epoch, batch.role) = (conn, epoch, role);
        batch.received_at = received_at;
        if small {
            batch.bytes.extend_from_slice(received);
            received.clear();
        } else {
            std::mem::swap(&mut batch.bytes, received);
        }
        batch
    }

    /// Takes an empty batch back, unless it is neither small nor large or there are enough.
    pub(crate) fn recycle(&mut self, mut batch: Box<Buffer>) {
        batch.bytes.clear();
        batch.entries.clear();
        let (pool, entries) = match batch.bytes.capacity() {
            SMALL_BYTES => (&mut self.small, SMALL_ENTRIES),
            LARGE_BYTES => (&mut self.large, LARGE_ENTRIES),
            _ => return,
        };
        batch.entries.shrink_to(entries);
        if pool.len() < RETURNS_MAX {
            pool.push(batch);
        }
    }

    /// Hands over the whole batch if there is room for it, or else its first messages, as many as
    /// there is room for, copied out. Says how many went, and gives back what is left.
    pub(crate) fn offer(&mut self, mut batch: Box<Buffer>) -> (usize, Option<Box<Buffer>>) {
        let count = batch.entries.len();
        if self.room.is_closed() {
            self.recycle(batch);
            return (count, None);
        }
        let messages = u32::try_from(count).unwrap_or(u32::MAX);
        let charge = self.take_room(messages, messages, units(&batch));
        if charge.messages == messages {
            self.pass_on(batch, charge);
            return (count, None);
        }
        let mut sent = 0;
        while let Some(went) = self.offer_part(&batch, sent) {
            sent += went;
        }
        if sent == count {
            self.recycle(batch);
            return (count, None);
        }
        batch.entries.drain(..sent);
        (sent, Some(batch))
    }

    /// Hands over a few of the messages from `first` on; how many, if any. Nothing is copied
    /// before there is room for it.
    fn offer_part(&mut self, batch: &Buffer, first: usize) -> Option<usize> {
        let of = (batch.conn, batch.epoch, batch.role);
        let mut part = self.batch(&mut Vec::new(), of, batch.received_at);
        let mut bytes: usize = 0;
        for entry in batch.entries.get(first..)?.iter().take(self.free().min(SMALL_ENTRIES)) {
            let more = bytes.saturating_add(entry.end.saturating_sub(entry.start));
            if more > SMALL_BYTES && !part.entries.is_empty() {
                break;
            }
            bytes = more;
            part.entries.push(*entry);
        }
        let messages = u32::try_from(part.entries.len()).unwrap_or(u32::MAX);
        let capacity = bytes.max(part.bytes.capacity());
        let charge = match messages {
            0 => Charge::default(),
            _ => self.take_room(1, messages, units_of(capacity, part.entries.capacity())),
        };
        let granted = usize::try_from(charge.messages).unwrap_or(usize::MAX);
        if granted == 0 {
            self.recycle(part);
            return None;
        }
        let Buffer { bytes: copied, entries, .. } = &mut *part;
        entries.truncate(granted);
        copied.reserve_exact(bytes);
        for entry in entries {
            let start = copied.len();
            copied.extend_from_slice(batch.bytes.get(entry.start..entry.end).unwrap_or_default());
            (entry.start, entry.end) = (start, copied.len());
        }
        self.pass_on(part, charge);
        Some(granted)
    }

    /// Hands over the batch's first messages, as many as there is room for, and leaves the others
    /// in `rest` for the caller. Never waits.
    pub(crate) fn send(&mut self, batch: Box<Buffer>, rest: &mut Vec<Entry>) -> Handed {
        rest.clear();
        self.send_part(batch, |_, left| rest.extend_from_slice(left))
    }

    /// The same, showing the others to the caller while their bytes are still here.
    pub(crate) fn send_part(
        &mut self,
        mut batch: Box<Buffer>,
        left: impl FnOnce(&Buffer, &[Entry]),
    ) -> Handed {
        if self.room.is_closed() {
            // Nobody listens any more: as good as handed over, and counted as abandoned.
            let messages = batch.entries.len();
            self.recycle(batch);
            return Handed { messages };
        }
        if self.spoken_for {
            left(&batch, &batch.entries);
            self.recycle(batch);
            return Handed { messages: 0 };
        }
        let messages = u32::try_from(batch.entries.len()).unwrap_or(u32::MAX);
        let charge = self.take_room(1, messages, units(&batch));
        let granted = usize::try_from(charge.messages).unwrap_or(usize::MAX);
        if let Some(rest) = batch.entries.get(granted..).filter(|rest| !rest.is_empty()) {
            left(&batch, rest);
            batch.entries.truncate(granted);
        }
        if granted == 0 {
            self.recycle(batch);
            return Handed { messages: 0 };
        }
        self.pass_on(batch, charge);
        Handed { messages: granted }
    }

    /// Whether all room is for those that `offer`, and none for those that `send`.
    #[inline]
    pub(crate) fn is_spoken_for(&self) -> bool {
        self.spoken_for
    }

    pub(crate) fn speak_for(&mut self, spoken_for: bool) {
        self.spoken_for = spoken_for;
    }

    /// How many messages would find room now, if they are few bytes and no other shard is faster.
    pub(crate) fn free(&self) -> usize {
        if self.room.is_closed() {
            return usize::MAX;
        }
        let taken = Charge::unpack(self.room.taken.load(Ordering::Relaxed));
        let free = self.room.limit.minus(taken).unwrap_or_default().plus(self.ahead);
        let least = SMALL_BYTES.saturating_add(entry_bytes(SMALL_ENTRIES)) / UNIT_BYTES;
        let fits = usize::try_from(free.units).is_ok_and(|units| units >= least);
        if fits { usize::try_from(free.messages).unwrap_or(usize::MAX) } else { 0 }
    }

    /// Room for `messages` in a buffer of `units`, or for the first that fit if those are `least`.
    fn take_room(&mut self, least: u32, messages: u32, units: u32) -> Charge {
        let wanted = Charge { messages, units };
        if let Some(rest) = self.ahead.minus(wanted) {
            self.ahead = rest;
            return wanted;
        }
        self.give_back_ahead();
        self.room.reserve_at_least(least, messages, units)
    }

    fn give_back_ahead(&mut self) {
        let ahead = std::mem::take(&mut self.ahead);
        if ahead != Charge::default() {
            self.room.release(ahead);
        }
    }

    /// Takes room ahead for the next messages, a small part of all there is.
    fn look_ahead(&mut self) {
        let most = self.room.ahead;
        if self.ahead.messages > most.messages / 2 && self.ahead.units > most.units / 2 {
            return;
        }
        let lacking = most.minus(self.ahead).unwrap_or_default();
        let taken = self.room.reserve_at_least(lacking.messages, lacking.messages, lacking.units);
        self.ahead = self.ahead.plus(taken);
    }

    fn pass_on(&mut self, mut batch: Box<Buffer>, charge: Charge) {
        batch.charge = charge;
        let full = batch.bytes.len() >= TOGETHER_BYTES;
        self.waiting.push(batch);
        if !full || self.waiting.is_full() {
            self.flush();
        }
        self.look_ahead();
    }

    /// Sends what waits; called at the end of each turn.
    pub(crate) fn flush(&mut self) {
        // Cannot be full: there is a place for every message there is room for. A consumer that
        // went away meanwhile makes these messages abandoned.
        for batch in std::mem::take(&mut self.waiting) {
            if let Err(error) = self.sender.try_send(batch) {
                let batch = error.into_inner();
                self.room.release(batch.charge);
                self.recycle(batch);
            }
        }
    }
}

impl Drop for Outlet {
    /// What counts as handed over is, however the shard ends.
    fn drop(&mut self) {
        self.flush();
        self.give_back_ahead();
    }
}

/// What a batch takes of the room for bytes: what it was received in, and the list of its
/// messages.
fn units(batch: &Buffer) -> u32 {
    units_of(batch.bytes.capacity(), batch.entries.capacity())
}

fn units_of(bytes: usize, entries: usize) -> u32 {
    let bytes = bytes.saturating_add(entry_bytes(entries));
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)
}

fn entry_bytes(entries: usize) -> usize {
    entries.saturating_mul(size_of::<Entry>())
}

/// Both ends, and what it takes to make another outlet at each start.
#[derive(Debug)]
pub(crate) struct Handoff {
    room: Arc<Room>,
    sender: Sender<Box<Buffer>>,
    returns: Vec<Receiver<Box<Buffer>>>,
}

impl Handoff {
    /// A hand-off with these bounds, and its consumer's end.
    pub(crate) fn new(shards: usize, messages: usize, bytes: usize) -> (Self, Messages) {
        let room = Arc::new(Room::new(shards, messages, bytes));
        let (sender, receiver) = bounded(messages);
        let (return_senders, returns) = (0..shards).map(|_| bounded(RETURNS_MAX)).unzip();
        let consumer = Messages {
            room: Arc::clone(&room),
            receiver,
            returns: return_senders,
            current: None,
            consumed: Arc::new(CachePadded::default()),
        };
        (Self { room, sender, returns }, consumer)
    }

    /// The end of one shard.
    pub(crate) fn outlet(&self, shard: ShardId) -> Option<Outlet> {
        Some(Outlet {
            shard,
            room: Arc::clone(&self.room),
            sender: self.sender.clone(),
            returns: self.returns.get(usize::from(shard.number()))?.clone(),
            small: (0..SMALL_AT_FIRST).map(|_| Buffer::empty(shard, SMALL_BYTES)).collect(),
            large: Vec::new(),
            ahead: Charge::default(),
            spoken_for: false,
            waiting: ArrayVec::new(),
        })
    }

    /// The room, for those who ask whether anybody listens.
    pub(crate) fn room(&self) -> Arc<Room> {
        Arc::clone(&self.room)
    }
}

/// The host's stream of messages: one consumer, in the order each connection received them.
///
/// Dropping it tells the engine that nobody listens; what was handed over and never taken counts
/// as abandoned. After a stop it yields what is left, then says disconnected.
///
/// ```no_run
/// # fn run(mut messages: kalshi_feed::Messages) {
/// for message in messages {
///     println!("{}: {} bytes", message.conn_id, message.data.len());
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Messages {
    room: Arc<Room>,
    receiver: Receiver<Box<Buffer>>,
    returns: Vec<Sender<Box<Buffer>>>,
    current: Option<(Box<Buffer>, usize)>,
    consumed: Arc<CachePadded<Counter>>,
}

impl Messages {
    /// Waits for the next message.
    ///
    /// # Errors
    /// [`RecvError::Disconnected`] when the engine has stopped and everything was taken.
    pub fn recv(&mut self) -> Result<RawMessage, RecvError> {
        self.next_from(wait)
    }

    /// The next message, if one is waiting.
    ///
    /// # Errors
    /// [`RecvError::Empty`] or [`RecvError::Disconnected`].
    pub fn try_recv(&mut self) -> Result<RawMessage, RecvError> {
        self.next_from(look)
    }

    /// Waits at most `timeout` for the next message.
    ///
    /// # Errors
    /// [`RecvError::Timeout`] or [`RecvError::Disconnected`].
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<RawMessage, RecvError> {
        self.next_from(|receiver| wait_for(receiver, timeout))
    }

    pub(crate) fn consumed(&self) -> Arc<CachePadded<Counter>> {
        Arc::clone(&self.consumed)
    }

    /// Waits for the next batch and lends it: no copy, no allocation. Its buffer and its room go
    /// back to the engine when the next one is asked for. Messages of a batch that `recv` began
    /// are lent first.
    ///
    /// # Errors
    /// [`RecvError::Disconnected`] when the engine has stopped and everything was taken.
    pub fn recv_batch(&mut self) -> Result<Batch<'_>, RecvError> {
        self.batch_from(wait)
    }

    /// The next batch, if one is waiting, lent as by [`recv_batch`](Self::recv_batch).
    ///
    /// # Errors
    /// [`RecvError::Empty`] or [`RecvError::Disconnected`].
    pub fn try_recv_batch(&mut self) -> Result<Batch<'_>, RecvError> {
        self.batch_from(look)
    }

    /// Waits at most `timeout` for the next batch, lent as by [`recv_batch`](Self::recv_batch).
    ///
    /// # Errors
    /// [`RecvError::Timeout`] or [`RecvError::Disconnected`].
    pub fn recv_batch_timeout(&mut self, timeout: Duration) -> Result<Batch<'_>, RecvError> {
        self.batch_from(|receiver| wait_for(receiver, timeout))
    }

    fn next_from(
        &mut self,
        receive: impl FnOnce(&Incoming) -> Received,
    ) -> Result<RawMessage, RecvError> {
        self.fill(receive)?;
        let Some((buffer, next)) = &mut self.current else { return Err(RecvError::Empty) };
        let message = buffer.entries.get(*next).map(|entry| buffer.message(entry).to_owned());
        *next += 1;
        if *next >= buffer.entries.len() {
            self.finish();
        }
        message.ok_or(RecvError::Empty)
    }

    fn batch_from(
        &mut self,
        receive: impl FnOnce(&Incoming) -> Received,
    ) -> Result<Batch<'_>, RecvError> {
        self.fill(receive)?;
        let Some((buffer, next)) = &mut self.current else { return Err(RecvError::Empty) };
        let first = std::mem::replace(next, buffer.entries.len());
        Ok(Batch::new(buffer, first))
    }

    /// Makes sure that a batch with something left in it is at hand.
    fn fill(&mut self, receive: impl FnOnce(&Incoming) -> Received) -> Result<(), RecvError> {
        if self.current.as_ref().is_some_and(|(buffer, next)| *next < buffer.entries.len()) {
            return Ok(());
        }
        self.finish();
        // A batch is never sent empty.
        self.current = Some((receive(&self.receiver)?, 0));
        Ok(())
    }

    /// Gives back the current batch, its room, and counts what was taken of it.
    fn finish(&mut self) {
        let Some((buffer, taken)) = self.current.take() else { return };
        self.consumed.add(widen(taken));
        self.room.release(buffer.charge);
        if let Some(returns) = self.returns.get(usize::from(buffer.shard.number())) {
            // Full: the shard has enough of them, this one is let go.
            returns.try_send(buffer).unwrap_or_default();
        }
    }
}

type Incoming = Receiver<Box<Buffer>>;
type Received = Result<Box<Buffer>, RecvError>;

fn wait(receiver: &Incoming) -> Received {
    receiver.recv().map_err(|_| RecvError::Disconnected)
}

fn look(receiver: &Incoming) -> Received {
    receiver.try_recv().map_err(|error| match error {
        TryRecvError::Empty => RecvError::Empty,
        TryRecvError::Disconnected => RecvError::Disconnected,
    })
}

fn wait_for(receiver: &Incoming, timeout: Duration) -> Received {
    receiver.recv_timeout(timeout).map_err(|error| match error {
        RecvTimeoutError::Timeout => RecvError::Timeout,
        RecvTimeoutError::Disconnected => RecvError::Disconnected,
    })
}

impl Iterator for Messages {
    type Item = RawMessage;

    /// Waits for the next message; ends when the engine has stopped and everything was taken.
    fn next(&mut self) -> Option<RawMessage> {
        self.recv().ok()
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        self.room.closed.store(true, Ordering::Relaxed);
        if let Some((_, taken)) = &self.current {
            self.consumed.add(widen(*taken));
        }
    }
}

#[cfg(test)]
#[path = "messages/tests.rs"]
mod tests;
