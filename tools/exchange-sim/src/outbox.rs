//! Bytes on their way to one client, in order, some of them held back for a while. It never writes
//! them anywhere itself.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::config::Packing;
use crate::frame::{self, Opcode};
use crate::manners::Fragments;

/// Above this many bytes no data is generated for a client and its commands are not read.
pub(crate) const BOUND: usize = 4 << 20;
/// Capacity kept when empty.
const KEPT: usize = 1 << 18;

/// The most plaintext in one TLS record.
const RECORD: usize = 1 << 14;

/// How long bytes are held back.
#[derive(Debug)]
struct Delay {
    base: Duration,
    jitter: Duration,
    rng: Rng,
}

/// A queue of plaintext.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    head: usize,
    delay: Option<Delay>,
    /// Bytes held back, oldest first: until when, and how many.
    held: VecDeque<(Instant, usize)>,
    holding: usize,
    fragments: Option<Fragments>,
}

impl Outbox {
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.head
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn over_bound(&self) -> bool {
        self.len() > BOUND
    }

    /// The bytes that may be written now.
    pub(crate) fn pending(&self) -> &[u8] {
        self.bytes.get(self.head..self.bytes.len() - self.holding).unwrap_or_default()
    }

    /// Whether bytes may be written now.
    pub(crate) fn is_due(&self) -> bool {
        self.len() > self.holding
    }

    /// From now on every frame is held back by `base` and up to `jitter` more; none of both ends
    /// it. The order stays.
    pub(crate) fn set_delay(&mut self, base: Duration, jitter: Duration, seed: u64) {
        let delay = Delay { base, jitter, rng: Rng::with_seed(seed) };
        self.delay = (base + jitter > Duration::ZERO).then_some(delay);
    }

    /// Lets go what was held back until now; returns whether there was anything.
    pub(crate) fn release(&mut self, now: Instant) -> bool {
        let before = self.holding;
        while let Some(&(until, count)) = self.held.front()
            && until <= now
        {
            self.held.pop_front();
            self.holding -= count;
        }
        self.holding < before
    }

    /// When the next bytes are let go.
    pub(crate) fn next_release(&self) -> Option<Instant> {
        self.held.front().map(|&(until, _)| until)
    }

    /// Holds the last `count` bytes back, if that is what is done now.
    fn hold(&mut self, count: usize) {
        let last = self.held.back().map(|&(until, _)| until);
        let drawn = |delay: &mut Delay| delay.base + delay.jitter.mul_f64(delay.rng.f64());
        let due = self.delay.as_mut().map(|delay| Instant::now() + drawn(delay));
        if let Some(until) = due.max(last) {
            self.held.push_back((until, count));
            self.holding += count;
        }
    }

    /// The front of what is pending that makes the next TLS record; at least one frame.
    pub(crate) fn record(&self, packing: Packing) -> &[u8] {
        let pending = self.pending();
        let mut end = frame::whole_length(pending);
        while packing == Packing::Whole && end < RECORD {
            let more = frame::whole_length(pending.get(end..).unwrap_or_default());
            if more == 0 || end + more > RECORD {
                break;
            }
            end += more;
        }
        pending.get(..end).unwrap_or(pending)
    }

    pub(crate) fn consume(&mut self, count: usize) {
        self.head = (self.head + count).min(self.bytes.len());
        if self.head == self.bytes.len() {
            self.clear();
        } else if self.head >= KEPT && self.head * 2 > self.bytes.len() {
            self.bytes.drain(..self.head);
            self.head = 0;
        }
    }

    pub(crate) fn clear(&mut self) {
        self.head = 0;
        self.bytes.clear();
        self.held.clear();
        self.holding = 0;
        if self.bytes.capacity() > KEPT {
            self.bytes.shrink_to(KEPT);
        }
    }

    /// Uses `spare` as its buffer, if it holds nothing.
    pub(crate) fn borrow(&mut self, spare: &mut Vec<u8>) {
        if self.is_empty() {
            std::mem::swap(&mut self.bytes, spare);
        }
    }

    /// Gives its buffer back as `spare`, if it holds nothing.
    pub(crate) fn give_back(&mut self, spare: &mut Vec<u8>) {
        if self.is_empty() && spare.capacity() < self.bytes.capacity() {
            std::mem::swap(&mut self.bytes, spare);
        }
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.hold(bytes.len());
    }

    pub(crate) fn frame(&mut self, opcode: Opcode, head: &[u8], tail: &[u8]) {
        let before = self.bytes.len();
        frame::write(opcode, head, tail, &mut self.bytes);
        self.hold(self.bytes.len() - before);
    }

    /// A text message, whose payload comes in two pieces.
    pub(crate) fn text(&mut self, head: &[u8], tail: &[u8]) {
        match self.fragments {
            None => self.frame(Opcode::Text, head, tail),
            Some(fragments) => self.in_fragments(fragments, &[head, tail].concat()),
        }
    }

    /// From now on text messages are cut into such frames.
    pub(crate) fn set_fragments(&mut self, fragments: Option<Fragments>) {
        self.fragments = fragments;
    }

    fn in_fragments(&mut self, Fragments { bytes, ping }: Fragments, message: &[u8]) {
        let mut left = message;
        loop {
            let (piece, rest) = left.split_at(bytes.min(left.len()));
            let begins = left.len() == message.len();
            let before = self.bytes.len();
            frame::write_fragment(begins, rest.is_empty(), piece, &mut self.bytes);
            self.hold(self.bytes.len() - before);
            if rest.is_empty() {
                return;
            }
            if begins && ping {
                self.frame(Opcode::Ping, b"between", &[]);
            }
            left = rest;
        }
    }

    pub(crate) fn close(&mut self, code: u16) {
        // 1005 stands for "no code" and is never written.
        let code = code.to_be_bytes();
        let payload: &[u8] = if code == 1005_u16.to_be_bytes() { &[] } else { &code };
        self.frame(Opcode::Close, payload, &[]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_back_comes_later_and_in_order() {
        let mut outbox = Outbox::default();
        outbox.raw(b"a");
        let (base, start) = (Duration::from_secs(60), Instant::now());
        outbox.set_delay(base, Duration::ZERO, 1);
        outbox.raw(b"b");
        outbox.set_delay(Duration::ZERO, Duration::ZERO, 1);
        outbox.raw(b"c");
        assert_eq!((outbox.pending(), outbox.len(), outbox.is_due()), (&b"a"[..], 3, true));
        outbox.consume(1);
        assert!(!outbox.is_due() && !outbox.is_empty());
        assert!(!outbox.release(start + base - Duration::from_secs(1)));
        assert!(outbox.next_release().is_some_and(|due| due >= start + base));
        assert!(outbox.release(Instant::now() + base));
        assert_eq!(outbox.pending(), b"bc");
        outbox.consume(2);
        assert!(outbox.is_empty());
    }

    #[test]
    fn bytes_come_out_in_order() {
        let (mut outbox, mut want, mut got) = (Outbox::default(), Vec::new(), Vec::new());
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..2_000 {
            let bytes: Vec<u8> = (0..rng.usize(0..900)).map(|_| rng.u8(..)).collect();
            outbox.raw(&bytes);
            want.extend_from_slice(&bytes);
            let count = rng.usize(0..=outbox.len());
            got.extend_from_slice(&outbox.pending()[..count]);
            outbox.consume(count);
        }
        got.extend_from_slice(outbox.pending());
        assert_eq!(got, want);
    }
}
