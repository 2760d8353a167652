//! What a host can know of order books by what reaches it: a market is out of step from a gap of
//! its subscription until its next book. Held against what each message says of itself. Of the
//! live dialect, where a subscription's markets share its numbers.

use std::collections::{BTreeMap, BTreeSet};

use crate::batch::{Continuity, RawMessage};
use crate::gap::GapPolicy;
use crate::ids::{ConnId, Epoch, Role, Sid};

#[derive(Debug, Default)]
struct Books {
    known: BTreeSet<String>,
    suspect: BTreeSet<String>,
}

#[derive(Debug, Default)]
pub(super) struct Suspects {
    policy: GapPolicy,
    shared: bool,
    books: BTreeMap<(ConnId, Epoch, Sid), Books>,
    /// Messages that were said to be suspect.
    pub(super) marked: u64,
    /// Books that ended it.
    pub(super) mended: u64,
}

impl Suspects {
    pub(super) fn new(policy: GapPolicy, shared: bool) -> Self {
        Self { policy, shared, ..Self::default() }
    }

    /// A message reached the host. `bookless`: the exchange withheld the market's book when it
    /// was added, so nobody can say what state it is in.
    pub(super) fn take(
        &mut self,
        message: &RawMessage,
        bookless: impl Fn(&str) -> bool,
    ) -> Result<(), String> {
        self.marked += u64::from(message.suspect);
        if message.suspect && (!self.policy.repairs() || message.role != Role::Orderbook) {
            return Err("it is called suspect for nothing".to_owned());
        }
        let of_book = message.role == Role::Orderbook && self.policy.repairs() && self.shared;
        let (true, Some(sid)) = (of_book, message.sid) else { return Ok(()) };
        let text: serde_json::Value =
            serde_json::from_slice(&message.data).map_err(|error| error.to_string())?;
        let market = text["msg"]["market_ticker"].as_str().unwrap_or_default();
        let books = self.books.entry((message.conn_id, message.epoch, sid)).or_default();
        if message.gap_size > 0 && message.continuity != Continuity::First {
            books.suspect = books.known.clone();
        }
        books.known.insert(market.to_owned());
        let fresh = !matches!(message.continuity, Continuity::Duplicate | Continuity::Backward);
        if fresh && text["type"] == "orderbook_snapshot" && books.suspect.remove(market) {
            self.mended += 1;
        }
        match books.suspect.contains(market) && !message.suspect && !bookless(market) {
            true => Err(format!("{market} is suspect, and its message does not say so")),
            false => Ok(()),
        }
    }
}
