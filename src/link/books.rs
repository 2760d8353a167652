//! What a link knows of order books: which came, which are out of step, and what of that is still
//! to be told to the conductor. It asks for no book.

use std::time::Instant;

use super::{BOOKS_BYTES_MAX, Link, Note};
use crate::command::Answer;
use crate::envelope::Envelope;
use crate::gap::Gaps;
use crate::ids::{Seq, Sid};
use crate::sequence::Observed;
use crate::suspicion::market_of;

impl Link {
    /// A book: whoever asked for it has it, and the conductor hears whose it is.
    pub(super) fn book(
        &mut self,
        text: &[u8],
        envelope: &Envelope,
        observed: Observed,
        notes: &mut Vec<Note>,
    ) {
        if let Some(id) = envelope.id
            && let Answer::Ended(ended) = self.commands.book(id)
        {
            notes.push(Note::Ended(ended));
        }
        let Some(ticker) = market_of(text) else { return };
        let fresh = match (observed, envelope.sid, envelope.seq) {
            _ if self.suspicion.is_none() => true,
            (Observed::Contiguous | Observed::Gap(_), Some(sid), Some(seq)) => {
                self.suspicion.book(sid, seq, &ticker)
            }
            _ => false,
        };
        if fresh && self.books.len() < BOOKS_BYTES_MAX {
            self.books.push_str(&ticker);
            self.books.push('\n');
        }
    }

    /// Messages of this sid up to this number are lost: what came before proves nothing.
    pub(super) fn gap(&mut self, sid: Sid, last: Seq, at: Instant) {
        if self.suspicion.gap(sid, last, at) {
            self.put_books_aside();
            self.commands.gap(at);
        }
    }

    pub(super) fn broken(&mut self, sid: Sid, at: Instant) {
        if self.suspicion.broken(sid, at) {
            self.put_books_aside();
        }
    }

    fn put_books_aside(&mut self) {
        if self.books_before.len() < BOOKS_BYTES_MAX {
            self.books_before.push_str(&self.books);
        } else {
            self.books_read = self.books_read.min(self.books_before.len());
        }
        self.books.clear();
    }

    /// A read begins: the books so far are not of it.
    pub(super) fn begin_books(&mut self) {
        self.books_read = self.books_before.len().saturating_add(self.books.len());
    }

    /// Some of the last read's messages were not handed over: no book of it mends anything, for it
    /// may be one of those.
    pub(super) fn forget_books(&mut self) {
        if self.suspicion.follows() {
            let before = self.books_before.len();
            self.books_before.truncate(self.books_read);
            self.books.truncate(self.books_read.saturating_sub(before));
        }
    }

    pub(super) fn retire(&mut self, sid: Sid) {
        self.sequences.retire(sid);
        self.suspicion.retire(sid);
    }

    /// Every market that this gap and those before it made suspect is sound.
    pub(crate) fn settled(&mut self, last: u64) {
        self.suspicion.settled(last);
    }

    /// Whether there is something to tell of gaps or books.
    pub(crate) fn has_news(&self) -> bool {
        !self.books.is_empty() || self.suspicion.has_untold()
    }

    /// The time before which it is not told, if there is one.
    pub(crate) fn news_after(&self) -> Option<Instant> {
        self.suspicion.told_after()
    }

    /// What there is to tell, in this order: books, gaps, and the books that came after them.
    pub(crate) fn take_news(&mut self, now: Instant) -> (String, Option<Gaps>, String) {
        let before = std::mem::take(&mut self.books_before);
        (before, self.suspicion.take_untold(now), std::mem::take(&mut self.books))
    }
}
