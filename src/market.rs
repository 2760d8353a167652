//! One market: whether it is wanted, what is known of it at the exchange, and what is being
//! asked. From these three follows what it needs next.

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
    /// Not with the exchange: waiting for a connection or a command.
    Waiting,
    /// The command is in flight.
    Subscribing,
    /// The exchange has confirmed it.
    Subscribed,
    /// The command that ends it is in flight.
    Unsubscribing,
    /// A command about it had no answer: it may be with the exchange or not. It is asked again.
    Uncertain,
}

/// Where a market is.
///
/// ```
/// # fn show(info: &kalshi_feed::SubscriptionInfo) {
/// println!("{} is {:?}", info.ticker, info.state);
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SubscriptionInfo {
    /// The market.
    pub ticker: Ticker,
    /// The connection it is assigned to.
    pub conn: Option<ConnId>,
    /// The subscription it shares with the other markets of that connection.
    pub sid: Option<Sid>,
    /// How far it is.
    pub state: MarketState,
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
    /// Neither wanted nor at the exchange: it can be forgotten.
    Release,
}

/// The record of one market.
#[derive(Clone, Debug)]
pub(crate) struct Market {
    pub(crate) ticker: Ticker,
    /// Its connection, and its place among that connection's members.
    pub(crate) place: Option<(ConnId, usize)>,
    pub(crate) wanted: bool,
    pub(crate) observed: Observed,
    pub(crate) in_flight: Option<Change>,
    /// In its connection's queue, or in the queue of those without a connection.
    pub(crate) queued: bool,
}

impl Market {
    pub(crate) fn new(ticker: Ticker) -> Self {
        Self {
            ticker,
            place: None,
            wanted: false,
            observed: Observed::Absent,
            in_flight: None,
            queued: false,
        }
    }

    /// What it needs next. Without an `open` subscription a market that may be at the exchange is
    /// added even if it is not wanted: that tells the sid, and then it can be deleted.
    pub(crate) fn need(&self, open: bool) -> Need {
        if self.in_flight.is_some() {
            return Need::Nothing;
        }
        match (self.wanted, self.observed) {
            (true, Observed::Absent | Observed::Unknown) => Need::Add,
            (false, Observed::Unknown) if !open => Need::Add,
            (false, Observed::Present | Observed::Unknown) => Need::Delete,
            (false, Observed::Absent) => Need::Release,
            (true, Observed::Present) => Need::Nothing,
        }
    }

    pub(crate) fn state(&self) -> MarketState {
        match (self.in_flight, self.observed) {
            (Some(Change::Add), _) => MarketState::Subscribing,
            (Some(Change::Delete), _) => MarketState::Unsubscribing,
            (None, Observed::Absent) => MarketState::Waiting,
            (None, Observed::Present) => MarketState::Subscribed,
            (None, Observed::Unknown) => MarketState::Uncertain,
        }
    }
}
