//! The pure path, from the plaintext of one read to the batch a host was lent, and its stages one
//! by one, each over a number of messages. It counts nothing itself.

use std::hint::black_box;
use std::ops::Range;
use std::time::Duration;

use crate::batch::{Buffer, Continuity, Entry};
use crate::clock::{self, Stamp};
use crate::envelope::Envelope;
use crate::frame::{Framer, Incoming};
use crate::ids::{ConnId, Epoch, Role, Seq, ShardId, Sid};
use crate::link::{Link, LinkSettings};
use crate::messages::{Handoff, LARGE_BYTES, Messages, Outlet};
use crate::pulse::PulseSettings;
use crate::sequence::Sequences;
use crate::stats::ShardCounters;
use crate::suspicion::SuspicionSettings;

/// Deltas in one full TLS record.
const PACKED: usize = 60;
/// Messages prepared, however few of them are used: so preparing costs the same in every run.
pub(crate) const MESSAGES_MAX: usize = 400 * PACKED;
/// The first number of the sequence: all have six digits.
const SEQ_FIRST: usize = 100_000;
const SID: Sid = Sid::new(2);
const PLACE: (ConnId, Epoch, Role) = (ConnId::new(1), Epoch::new(1), Role::Orderbook);

/// What is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The path, 60 messages a read: a busy connection.
    Packed,
    /// The path, one message a read: a quiet one.
    Single,
    /// Frames cut out of the plaintext, UTF-8 checked.
    Framing,
    /// Type, sid and seq read.
    Envelope,
    /// The sequence checked, the mark made.
    Sequence,
    /// A batch taken, its entries written, the batch given back.
    Append,
    /// The same, and the batch handed over, lent to the consumer, and returned.
    Lend,
}

impl Stage {
    pub(crate) const ALL: [Self; 7] = [
        Self::Packed,
        Self::Single,
        Self::Framing,
        Self::Envelope,
        Self::Sequence,
        Self::Append,
        Self::Lend,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Packed => "packed",
            Self::Single => "single",
            Self::Framing => "framing",
            Self::Envelope => "envelope",
            Self::Sequence => "sequence",
            Self::Append => "append",
            Self::Lend => "append+lend",
        }
    }

    /// Whether it is the whole path, and so judged.
    pub(crate) fn is_path(self) -> bool {
        matches!(self, Self::Packed | Self::Single)
    }

    /// Does the work of this many messages.
    pub(crate) fn run(self, messages: usize) {
        let per_read = if self == Self::Single { 1 } else { PACKED };
        let feed = Feed::new(per_read);
        let reads = messages / per_read;
        match self {
            Self::Packed | Self::Single => Rig::new().path(&feed, reads),
            Self::Framing => framing(&feed, reads),
            Self::Envelope => envelope(&feed, messages),
            Self::Sequence => sequence(messages),
            Self::Append => Rig::new().append(&feed, reads, false),
            Self::Lend => Rig::new().append(&feed, reads, true),
        }
    }
}

/// Frames as they come out of TLS, every one as long as the others.
struct Feed {
    bytes: Vec<u8>,
    frame_bytes: usize,
    per_read: usize,
}

impl Feed {
    /// Header of a text frame of 126 bytes and more.
    const HEADER: usize = 4;

    fn new(per_read: usize) -> Self {
        let text = format!(
            "{{\"type\":\"orderbook_delta\",\"sid\":2,\"seq\":{SEQ_FIRST},\"msg\":\
             {{\"market_ticker\":\"KXBTCD-26NOV2317-T95499.99\",\"market_id\":\
             \"c94ba8d1-5f4e-4a3b-9d35-7f5d0a0a6a61\",\"price_dollars\":\"0.4700\",\
             \"delta_fp\":\"-3.00\",\"side\":\"yes\",\"ts\":\"2026-11-01T12:00:00.957081Z\",\
             \"ts_ms\":1793534400957}}}}\n"
        );
        let length = u16::try_from(text.len()).unwrap().to_be_bytes();
        let frame = [&[0x81, 126], &length[..], text.as_bytes()].concat();
        let place = text.find(&SEQ_FIRST.to_string()).unwrap() + Self::HEADER;
        let mut bytes = frame.repeat(MESSAGES_MAX);
        for (number, frame) in bytes.chunks_exact_mut(frame.len()).enumerate() {
            let mut rest = SEQ_FIRST + number;
            for digit in frame[place..place + 6].iter_mut().rev() {
                *digit = b'0' + (rest % 10) as u8;
                rest /= 10;
            }
        }
        Self { bytes, frame_bytes: frame.len(), per_read }
    }

    /// The plaintext of one read after the other.
    fn reads(&self, count: usize) -> impl Iterator<Item = &[u8]> {
        self.bytes.chunks_exact(self.frame_bytes * self.per_read).take(count)
    }

    fn texts(&self, count: usize) -> impl Iterator<Item = &[u8]> {
        self.bytes.chunks_exact(self.frame_bytes).take(count).map(|frame| &frame[Self::HEADER..])
    }

    /// Where the texts of a read lie.
    fn ranges(&self) -> impl Iterator<Item = Range<usize>> {
        (0..self.per_read)
            .map(|at| at * self.frame_bytes + Self::HEADER..(at + 1) * self.frame_bytes)
    }
}

/// Shard side and consumer side of one queue.
struct Rig {
    outlet: Outlet,
    messages: Messages,
    counters: ShardCounters,
    plain: Vec<u8>,
    rest: Vec<Entry>,
    stamp: Stamp,
}

impl Rig {
    fn new() -> Self {
        let (handoff, messages) = Handoff::new(1, 10_000, 64 << 20);
        let outlet = handoff.outlet(ShardId::new(0)).unwrap();
        let plain = Vec::with_capacity(LARGE_BYTES);
        let counters = ShardCounters::default();
        Self { outlet, messages, counters, plain, rest: Vec::new(), stamp: clock::stamp() }
    }

    /// What a shard does with a read once it is decrypted, and a consumer with the batch.
    fn path(&mut self, feed: &Feed, reads: usize) {
        let second = Duration::from_secs(1);
        let settings = LinkSettings {
            message_bytes_max: 1 << 20,
            outgoing_bytes_max: 1 << 16,
            subscribe_timeout: 5 * second,
            keep_responses: false,
            dialect: crate::dialect::Dialect::Live,
            single_sids: 0,
            ping_idle: 15 * second,
            pong_timeout: 10 * second,
            write_timeout: 10 * second,
            message_timeout: 20 * second,
            pulse: PulseSettings { silent_after: 60 * second, lag_threshold: 5 * second },
            silent_reconnect: false,
            suspicion: SuspicionSettings::default(),
        };
        let mut link = Link::new(PLACE, 0, Vec::new(), settings, self.stamp.mono);
        let mut notes = Vec::new();
        for read in feed.reads(reads) {
            let mut batch = self.batch(read);
            link.digest(&mut batch, &mut notes, &self.counters).unwrap();
            self.hand_over(batch, feed.per_read);
        }
        let received = self.counters.messages_received.total();
        assert_eq!(received, (reads * feed.per_read) as u64, "every message came through");
        assert!(notes.is_empty());
    }

    fn append(&mut self, feed: &Feed, reads: usize, lend: bool) {
        for (number, read) in feed.reads(reads).enumerate() {
            let mut batch = self.batch(read);
            for Range { start, end } in feed.ranges() {
                let (sid, seq) = (Some(SID), Some(Seq::new(black_box(number as u64))));
                let continuity = Continuity::Next;
                let suspect = false;
                batch.entries.push(Entry {
                    start,
                    end,
                    sid,
                    seq,
                    gap_size: 0,
                    continuity,
                    suspect,
                });
            }
            if lend {
                self.hand_over(batch, feed.per_read);
            } else {
                self.outlet.recycle(black_box(batch));
            }
        }
    }

    fn batch(&mut self, read: &[u8]) -> Box<Buffer> {
        self.plain.clear();
        self.plain.extend_from_slice(black_box(read));
        self.outlet.batch(&mut self.plain, PLACE, self.stamp)
    }

    fn hand_over(&mut self, batch: Box<Buffer>, count: usize) {
        let handed = self.outlet.send(batch, &mut self.rest);
        assert_eq!(handed.messages, count, "the consumer keeps up");
        for message in self.messages.try_recv_batch().unwrap() {
            black_box(message);
        }
    }
}

fn framing(feed: &Feed, reads: usize) {
    let (mut framer, mut outgoing) = (Framer::new(1 << 20), Vec::new());
    for read in feed.reads(reads) {
        let (mut at, mut count) = (0, 0);
        while let Some(incoming) = framer.next(black_box(read), &mut at, &mut outgoing).unwrap() {
            assert!(matches!(black_box(incoming), Incoming::Text(_)));
            count += 1;
        }
        assert_eq!(count, feed.per_read);
    }
}

fn envelope(feed: &Feed, messages: usize) {
    for text in feed.texts(messages) {
        assert_eq!(black_box(Envelope::read(black_box(text))).sid, Some(SID));
    }
}

fn sequence(messages: usize) {
    let mut sequences = Sequences::new(0);
    for seq in 1..=messages {
        let seq = Seq::new(black_box(seq as u64));
        if !sequences.advance(SID, seq) {
            let observed = sequences.observe(SID, seq);
            black_box(sequences.take(SID, observed));
        }
    }
}
