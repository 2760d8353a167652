//! What a link keeps of losses: since when they may have been, and what is given back of messages
//! that were not handed over.

use std::time::Instant;

use super::Link;
use crate::batch::Entry;
use crate::clock::Stamp;
use crate::ids::{Role, Sid, widen};
use crate::stats::ShardCounters;

/// More than the kernel keeps for a socket nobody reads.
const BACKLOG_MAX: usize = 16 << 20;

/// When data came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Came {
    /// When the link began.
    pub(super) began: Instant,
    /// The last data, or the beginning.
    pub(super) last: Instant,
    /// The last data before the present read with nothing left in the socket behind it: whatever
    /// is read now came since, however late it is read.
    before: Instant,
    /// The last read left nothing in the socket.
    is_drained: bool,
    /// While it does not: a read, and how many bytes were read since.
    mark: Instant,
    bytes: usize,
}

impl Came {
    /// So many bytes were read; `is_drained` if the socket had no more.
    #[inline]
    fn read(&mut self, bytes: usize, is_drained: bool) {
        if self.is_drained {
            (self.before, self.mark, self.bytes) = (self.last, self.last, 0);
        } else if self.bytes >= BACKLOG_MAX {
            // No more than that can have waited then: all of it has been read.
            (self.before, self.mark, self.bytes) = (self.mark, self.last, 0);
        }
        self.bytes = self.bytes.saturating_add(bytes);
        self.is_drained = is_drained;
    }

    pub(super) fn new(now: Instant) -> Self {
        Self { began: now, last: now, before: now, is_drained: true, mark: now, bytes: 0 }
    }
}

impl Link {
    /// So many bytes were read; `is_drained` if the socket had no more.
    #[inline]
    pub(crate) fn looked(&mut self, bytes: usize, is_drained: bool) {
        self.came.read(bytes, is_drained);
    }

    /// Gives back messages that were not handed over.
    pub(crate) fn dropped(&mut self, entries: &[Entry], at: Stamp, counters: &ShardCounters) {
        self.note_dropped(entries, at);
        self.forget_books();
        counters.messages_dropped.add(widen(entries.len()));
        for entry in entries {
            match entry.sid {
                Some(sid) => self.sequences.give_back(sid, entry.mark()),
                None => self.sequences.owe(entry.mark().debt()),
            }
            if let (Some(sid), Some(seq), 1..) = (entry.sid, entry.seq, entry.mark().debt()) {
                self.gap(sid, seq, at.mono);
            }
        }
    }

    /// Messages that were read last, at `at`, found no room.
    pub(crate) fn note_dropped(&mut self, entries: &[Entry], at: Stamp) {
        self.lapses.dropped(entries, self.came.before, at);
    }

    /// The same of messages of which only the number is known, and when the first was read, if that
    /// was before.
    pub(crate) fn note_dropped_some(&mut self, dropped: u64, first: Option<Instant>, at: Stamp) {
        let since = first.map_or(self.came.before, |first| first.min(self.came.before));
        self.lapses.dropped_some(dropped, since, at);
    }

    /// Data came with the last read.
    pub(super) fn came(&mut self, entries: &[Entry], at: Instant) {
        self.came.last = at;
        if self.has_many_sids() {
            let whole = if self.came.is_drained { at } else { self.came.before };
            self.sequences.heard(entries, whole);
        }
    }

    /// The time before which nothing of this sid was missing yet.
    pub(super) fn lost_since(&self, sid: Sid) -> Instant {
        let heard = self.sequences.heard_at(sid);
        if self.has_many_sids() {
            heard.unwrap_or(self.came.began)
        } else {
            // Until it was opened there was nothing to be lost.
            heard.map_or(self.came.before, |opened| opened.max(self.came.before))
        }
    }

    /// Whether each market has a sid of its own.
    fn has_many_sids(&self) -> bool {
        self.settings.single_sids > 0 && self.role == Role::Orderbook
    }

    /// When data last came, or the link began.
    pub(crate) fn last_data(&self) -> Instant {
        self.came.last
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_backlog_without_end_is_no_older_than_what_can_wait() {
        let start = crate::clock::now();
        let at = |second| start + Duration::from_secs(second);
        let mut came = Came::new(start);
        for second in 1..=100 {
            came.read(1 << 20, false);
            came.last = at(second);
            assert!(second >= 33 || came.before == start, "read at {second} it may be that old");
            assert!(came.before + Duration::from_secs(33) >= came.last, "{second}");
        }
        came.read(10, true);
        came.last = at(200);
        came.read(10, true);
        assert_eq!(came.before, at(200));
    }
}
