//! What has come of a frame, or of a message in several, until the rest comes. Pure: bytes and the
//! time are arguments.

use std::time::{Duration, Instant};

use crate::frame::Framer;
use crate::timer::after;

/// Once a frame's front has been copied so much, however many reads that took, its pieces are
/// gathered rather than copied with every read.
const GATHER_BYTES: usize = 4 << 10;
/// A gathered frame's buffer is not kept beyond this size.
const BYTES_KEPT: usize = 64 << 10;

/// The front of a frame.
pub(crate) struct Partial {
    bytes: Vec<u8>,
    /// It came with the upgrade and was never looked at.
    unread: bool,
    /// How many bytes it lacks to a whole frame, when the pieces are gathered; else nothing.
    missing: usize,
    /// The frames before this one, and how much was copied to keep its front.
    frame: u64,
    copied: usize,
    /// The message of which only part has come, and since when.
    unfinished: Option<(u64, Instant)>,
}

impl Partial {
    /// What came with the upgrade.
    pub(crate) fn new(unread: Vec<u8>) -> Self {
        let unlooked = !unread.is_empty();
        Self { bytes: unread, unread: unlooked, missing: 0, frame: 0, copied: 0, unfinished: None }
    }

    /// What goes before the bytes of the next read.
    pub(crate) fn front(&self) -> &[u8] {
        if self.missing > 0 { &[] } else { &self.bytes }
    }

    /// Takes what was read behind `front`, which was this long. True when there is something to
    /// digest; then `plain` holds all of it. However many pieces a frame comes in, what is copied
    /// for it is bounded by its size and a few kilobytes.
    pub(crate) fn gather(&mut self, plain: &mut Vec<u8>, front: usize) -> bool {
        let fresh = plain.len().saturating_sub(front);
        if self.missing == 0 {
            return fresh > 0 || self.unread;
        }
        self.bytes.extend_from_slice(plain);
        self.missing = self.missing.saturating_sub(fresh);
        if self.missing > 0 {
            return false;
        }
        plain.clear();
        plain.extend_from_slice(&self.bytes);
        true
    }

    /// Keeps what was left of the bytes when every whole frame was taken out.
    pub(crate) fn keep(&mut self, rest: &[u8], framer: &Framer, now: Instant) {
        self.unread = false;
        self.bytes.clear();
        self.bytes.shrink_to(BYTES_KEPT);
        self.bytes.extend_from_slice(rest);
        if self.frame != framer.frames() {
            (self.frame, self.copied) = (framer.frames(), 0);
        }
        self.copied = self.copied.saturating_add(rest.len());
        self.missing = if self.copied < GATHER_BYTES { 0 } else { framer.missing(rest) };
        self.unfinished = framer.unfinished(rest).map(|message| match self.unfinished {
            Some((same, since)) if same == message => (message, since),
            _ => (message, now),
        });
    }

    /// Until when the message must be whole, if it may take this long.
    pub(crate) fn due(&self, limit: Duration) -> Option<Instant> {
        self.unfinished.map(|(_, since)| after(since, limit))
    }

    /// Nothing was read for a while, on purpose.
    pub(crate) fn excuse(&mut self, now: Instant) {
        self.unfinished = self.unfinished.map(|(message, _)| (message, now));
    }
}
