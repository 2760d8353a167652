//! A message, owned or lent, and the batch it travels in: what one socket read gave. Passive:
//! shapes and views, no queue and no decision.

use std::ops::Range;

use bytes::Bytes;
use serde::Serialize;

use crate::clock::Stamp;
use crate::ids::{ConnId, Epoch, Role, Seq, ShardId, Sid};
use crate::sequence::Mark;

/// Where a message stands in its subscription's sequence.
///
/// ```
/// # fn show(message: &kalshi_feed::RawMessage) {
/// if message.continuity == kalshi_feed::Continuity::First {
///     // A new subscription or a reconnect: start this connection's books anew.
/// }
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Continuity {
    /// The first of its subscription in this epoch; the stream before it was down.
    First,
    /// The one after the last.
    Next,
    /// Messages were missed before it; `gap_size` says how many.
    Gap,
    /// The exchange sent this number before.
    Duplicate,
    /// The exchange sent an older number.
    Backward,
}

/// One market-data message, as it came from the exchange.
///
/// ```
/// # fn show(message: &kalshi_feed::RawMessage) {
/// if message.seq_gap {
///     eprintln!("connection {} missed {}", message.conn_id, message.gap_size);
/// }
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RawMessage {
    /// The exact frame, trailing newline kept. Pins no other memory.
    pub data: Bytes,
    /// The connection it came from, 1 to 150 in the default pool.
    pub conn_id: ConnId,
    /// Which socket of that connection.
    pub epoch: Epoch,
    /// What the connection is for.
    pub role: Role,
    /// The exchange's subscription number, where the frame has one.
    pub sid: Option<Sid>,
    /// Its place in the subscription's sequence, where the frame has one (tickers have none).
    pub seq: Option<Seq>,
    /// When the socket read that brought it returned.
    pub received_at: Stamp,
    /// Whether messages of this subscription were missed before this one: `gap_size > 0`.
    pub seq_gap: bool,
    /// How many were missed and will never come, lost on the wire or dropped here.
    pub gap_size: u64,
    /// Where it stands in the sequence.
    pub continuity: Continuity,
    /// Whether its market's book is known to be out of step: messages were lost, and no fresh
    /// snapshot of the market has come since ([`GapPolicy`](crate::GapPolicy)). The snapshot that
    /// mends it is not suspect itself. Of order books only, and always false under the gap policy
    /// `Flag`, which repairs nothing and so tracks no repair.
    pub suspect: bool,
}

/// One message's place in a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) sid: Option<Sid>,
    pub(crate) seq: Option<Seq>,
    pub(crate) gap_size: u64,
    pub(crate) continuity: Continuity,
    pub(crate) suspect: bool,
}

/// What one socket read gave, as it travels: the bytes received, and where in them the messages
/// lie.
#[derive(Debug)]
pub(crate) struct Buffer {
    pub(crate) shard: ShardId,
    pub(crate) conn: ConnId,
    pub(crate) epoch: Epoch,
    pub(crate) role: Role,
    pub(crate) received_at: Stamp,
    pub(crate) bytes: Vec<u8>,
    pub(crate) entries: Vec<Entry>,
    /// The room it takes between shard and consumer.
    pub(crate) charge: Charge,
}

impl Entry {
    /// The message at `range` that follows the last one of its sid.
    #[inline]
    pub(crate) fn next(range: Range<usize>, sid: Sid, seq: Seq) -> Self {
        let (Range { start, end }, sid, seq) = (range, Some(sid), Some(seq));
        Self { start, end, sid, seq, gap_size: 0, continuity: Continuity::Next, suspect: false }
    }

    /// What goes back to the sequence if the message is not handed over.
    pub(crate) fn mark(&self) -> Mark {
        Mark { continuity: self.continuity, gap_size: self.gap_size }
    }
}

impl Buffer {
    /// One with room for so many bytes, of no connection yet.
    pub(crate) fn empty(shard: ShardId, bytes: usize) -> Box<Self> {
        Box::new(Self {
            shard,
            conn: ConnId::new(0),
            epoch: Epoch::new(0),
            role: Role::Orderbook,
            received_at: crate::clock::stamp(),
            bytes: Vec::with_capacity(bytes),
            entries: Vec::with_capacity(16),
            charge: Charge::default(),
        })
    }

    /// The message at `entry`, lent.
    pub(crate) fn message(&self, entry: &Entry) -> Message<'_> {
        Message {
            data: self.bytes.get(entry.start..entry.end).unwrap_or_default(),
            conn_id: self.conn,
            epoch: self.epoch,
            role: self.role,
            sid: entry.sid,
            seq: entry.seq,
            received_at: self.received_at,
            seq_gap: entry.gap_size > 0,
            gap_size: entry.gap_size,
            continuity: entry.continuity,
            suspect: entry.suspect,
        }
    }
}

/// A message lent out of a [`Batch`]: the fields of a [`RawMessage`], its bytes still where they
/// were received.
///
/// ```
/// # fn show(message: &kalshi_feed::Message<'_>) {
/// let owned: kalshi_feed::RawMessage = message.to_owned();
/// assert_eq!(message.data, &owned.data[..]);
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Message<'a> {
    /// The exact frame, trailing newline kept.
    pub data: &'a [u8],
    /// The connection it came from.
    pub conn_id: ConnId,
    /// Which socket of that connection.
    pub epoch: Epoch,
    /// What the connection is for.
    pub role: Role,
    /// The exchange's subscription number, where the frame has one.
    pub sid: Option<Sid>,
    /// Its place in the subscription's sequence, where the frame has one.
    pub seq: Option<Seq>,
    /// When the socket read that brought it returned.
    pub received_at: Stamp,
    /// Whether messages of this subscription were missed before this one.
    pub seq_gap: bool,
    /// How many were missed and will never come.
    pub gap_size: u64,
    /// Where it stands in the sequence.
    pub continuity: Continuity,
    /// Whether its market's book is known to be out of step.
    pub suspect: bool,
}

impl Message<'_> {
    /// The message, copied out.
    #[must_use]
    pub fn to_owned(&self) -> RawMessage {
        RawMessage {
            data: Bytes::copy_from_slice(self.data),
            conn_id: self.conn_id,
            epoch: self.epoch,
            role: self.role,
            sid: self.sid,
            seq: self.seq,
            received_at: self.received_at,
            seq_gap: self.seq_gap,
            gap_size: self.gap_size,
            continuity: self.continuity,
            suspect: self.suspect,
        }
    }
}

/// The messages of one socket read, lent: one connection, one epoch, one receive time.
///
/// ```no_run
/// # fn run(mut messages: kalshi_feed::Messages) -> Result<(), kalshi_feed::RecvError> {
/// loop {
///     for message in messages.recv_batch()? {
///         println!("{}: {} bytes", message.conn_id, message.data.len());
///     }
/// }
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    buffer: &'a Buffer,
    /// Messages before this one were taken one by one.
    first: usize,
}

impl<'a> Batch<'a> {
    pub(crate) fn new(buffer: &'a Buffer, first: usize) -> Self {
        Self { buffer, first }
    }

    /// How many messages there are; never none.
    pub fn len(&self) -> usize {
        self.buffer.entries.len().saturating_sub(self.first)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The connection.
    pub fn conn_id(&self) -> ConnId {
        self.buffer.conn
    }

    /// When the socket read that brought them returned.
    pub fn received_at(&self) -> Stamp {
        self.buffer.received_at
    }

    /// The messages, in the order they were received.
    pub fn iter(&self) -> BatchIter<'a> {
        let entries = self.buffer.entries.get(self.first..).unwrap_or_default();
        BatchIter { buffer: self.buffer, entries: entries.iter() }
    }
}

impl<'a> IntoIterator for Batch<'a> {
    type Item = Message<'a>;
    type IntoIter = BatchIter<'a>;

    fn into_iter(self) -> BatchIter<'a> {
        self.iter()
    }
}

/// The messages of a [`Batch`], one after another.
///
/// ```
/// # fn show(batch: kalshi_feed::Batch<'_>) {
/// let bytes: usize = batch.iter().map(|message| message.data.len()).sum();
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct BatchIter<'a> {
    buffer: &'a Buffer,
    entries: std::slice::Iter<'a, Entry>,
}

impl<'a> Iterator for BatchIter<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        self.entries.next().map(|entry| self.buffer.message(entry))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.entries.size_hint()
    }
}

impl ExactSizeIterator for BatchIter<'_> {}

/// Room taken: messages and byte units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Charge {
    pub(crate) messages: u32,
    pub(crate) units: u32,
}

impl Charge {
    pub(crate) const fn pack(self) -> u64 {
        #[expect(clippy::as_conversions, reason = "widening u32 to u64 in a const fn")]
        {
            ((self.messages as u64) << 32) | self.units as u64
        }
    }

    /// What is left of it after `other`, if there is so much.
    pub(crate) fn minus(self, other: Self) -> Option<Self> {
        let messages = self.messages.checked_sub(other.messages)?;
        Some(Self { messages, units: self.units.checked_sub(other.units)? })
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        let messages = self.messages.saturating_add(other.messages);
        Self { messages, units: self.units.saturating_add(other.units) }
    }

    pub(crate) fn times(self, count: u32) -> Self {
        let times = |one: u32| one.saturating_mul(count);
        Self { messages: times(self.messages), units: times(self.units) }
    }

    /// One of so many equal parts.
    pub(crate) fn part(self, of: u32) -> Self {
        let part = |whole: u32| whole.checked_div(of).unwrap_or(0);
        Self { messages: part(self.messages), units: part(self.units) }
    }

    pub(crate) fn unpack(word: u64) -> Self {
        let half = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        Self { messages: half(word >> 32), units: half(word) }
    }
}
