//! One market: whether it is wanted, what is known of it at the exchange, and what is being
//! asked. From these follows what it needs next. Kept small: there may be a million.

use std::time::Duration;

use serde::Serialize;

use crate::ids::{ConnId, Sid, Ticker};

/// How far a market's subscription is.
///
/// ```
/// # fn show(handle: &kalshi_feed::Handle, ticker: &kalshi_feed::Ticker) {
/// if let Some(info) = handle.subscription(ticker) {
///     println!("{:?} on {:?}", info.state, info.conn);
/// }
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum MarketState {
    /// Waiting for a connection: none is healthy, or all are full.
    Unplaced,
    /// On a connection, and waiting for a command.
    Waiting,
    /// The command is in flight.
    Subscribing,
    /// The exchange has confirmed it.
    Subscribed,
    /// The command that ends it is in flight.
    Unsubscribing,
    /// A command about it had no answer: it may be with the exchange or not. It is asked again.
    Uncertain,
    /// The exchange refused this market by itself. It is asked again after minutes.
    Refused,
}

/// Where a market is.
///
/// ```
/// # fn show(info: &kalshi_feed::SubscriptionInfo) {
/// println!("{} is {:?} for {:?}", info.ticker, info.state, info.age);
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SubscriptionInfo {
    /// The market.
    pub ticker: Ticker,
    /// The connection it is assigned to.
    pub conn: Option<ConnId>,
    /// The subscription it is on, shared with the other markets of that connection (its own in
    /// the legacy dialect).
    pub sid: Option<Sid>,
    /// How far it is.
    pub state: MarketState,
    /// For how long it has been that far, to a tenth of a second.
    pub age: Duration,
}

/// What is known of a market at the exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Observed {
    Absent,
    Present,
    /// A command had no answer. A later refusal does not change that.
    Unknown,
}

/// What is being asked of the exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Add,
    Delete,
}

/// What a market needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    Nothing,
    Add,
    Delete,
    /// To wait: it was refused.
    Patience,
    /// Neither wanted nor at the exchange: it can be forgotten.
    Release,
}

/// The list a market is in. Every market is in exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shelf {
    /// None yet.
    Nowhere,
    /// Waiting for a connection.
    Unplaced,
    /// Waiting to be added.
    Adds,
    /// Waiting to be deleted.
    Deletes,
    /// Needs nothing now.
    Rest,
    /// Refused; waiting for its time.
    Held,
}

/// A market's place in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slot(pub(crate) u32);

impl Slot {
    /// No market.
    pub(crate) const NONE: Self = Self(u32::MAX);
}

/// The record of one market: 28 bytes, its text apart.
#[derive(Clone, Debug)]
pub(crate) struct Market {
    /// Where its ticker is in the text.
    pub(crate) start: u32,
    /// Its neighbours in the list it is in.
    pub(crate) next: Slot,
    pub(crate) prev: Slot,
    /// When its state last changed, in tenths of a second.
    pub(crate) since: u32,
    /// Its connection's number, or zero.
    pub(crate) conn: u16,
    pub(crate) length: u8,
    pub(crate) priority: u8,
    pub(crate) wanted: bool,
    pub(crate) observed: Observed,
    pub(crate) asked: Option<Change>,
    pub(crate) shelf: Shelf,
    /// Refused by itself, not long ago.
    pub(crate) held: bool,
    /// Its book came since it was last absent, or was asked for.
    pub(crate) booked: bool,
    /// It must be deleted before it is added anew.
    pub(crate) renew: bool,
    /// Commands about it that ended without a reply and may still be carried out. It keeps its
    /// place meanwhile.
    pub(crate) overdue: u8,
}

const _: () = assert!(size_of::<Market>() == 28, "a million of them are what it is made for");

impl Market {
    pub(crate) fn new(start: u32, length: u8) -> Self {
        Self {
            start,
            next: Slot::NONE,
            prev: Slot::NONE,
            since: 0,
            conn: 0,
            length,
            priority: 0,
            wanted: false,
            observed: Observed::Absent,
            asked: None,
            shelf: Shelf::Nowhere,
            held: false,
            booked: false,
            renew: false,
            overdue: 0,
        }
    }

    /// Its connection, if it has one.
    pub(crate) fn conn(&self) -> Option<ConnId> {
        (self.conn > 0).then(|| ConnId::new(self.conn))
    }

    /// What it needs next.
    pub(crate) fn need(&self) -> Need {
        if self.asked.is_some() {
            return Need::Nothing;
        }
        match (self.wanted, self.observed) {
            (false, Observed::Absent) if self.overdue == 0 => Need::Release,
            (false, Observed::Absent) => Need::Nothing,
            _ if self.held => Need::Patience,
            (true, Observed::Present | Observed::Unknown) if self.renew => Need::Delete,
            (true, Observed::Present) => Need::Nothing,
            (true, Observed::Absent | Observed::Unknown) => Need::Add,
            (false, Observed::Present | Observed::Unknown) => Need::Delete,
        }
    }

    pub(crate) fn state(&self) -> MarketState {
        match (self.asked, self.observed) {
            _ if self.conn == 0 => MarketState::Unplaced,
            _ if self.held => MarketState::Refused,
            (Some(Change::Add), _) => MarketState::Subscribing,
            (Some(Change::Delete), _) => MarketState::Unsubscribing,
            (None, Observed::Absent) => MarketState::Waiting,
            (None, Observed::Present) => MarketState::Subscribed,
            (None, Observed::Unknown) => MarketState::Uncertain,
        }
    }
}
