//! Bytes on their way to one client, in order. It never writes them anywhere itself.

use crate::config::Packing;
use crate::frame::{self, Opcode};

/// Above this many bytes no data is generated for a client and its commands are not read.
pub(crate) const BOUND: usize = 4 << 20;
/// Capacity kept when empty.
const KEPT: usize = 1 << 18;

/// The most plaintext in one TLS record.
const RECORD: usize = 1 << 14;

/// A queue of plaintext.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    head: usize,
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

    pub(crate) fn pending(&self) -> &[u8] {
        self.bytes.get(self.head..).unwrap_or_default()
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
    }

    pub(crate) fn frame(&mut self, opcode: Opcode, head: &[u8], tail: &[u8]) {
        frame::write(opcode, head, tail, &mut self.bytes);
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
