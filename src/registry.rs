//! The Market Registry's side of the contract: which markets are active, what changes, and where
//! lifecycle frames go. The engine asks; it never decides which markets matter.

use crossbeam_channel::{Receiver, SendError, Sender, TrySendError, bounded, never};
use serde::Deserialize;

use crate::batch::RawMessage;
use crate::ids::Ticker;

/// A market's status as far as subscribing goes: order books of active markets are wanted.
///
/// ```
/// use kalshi_feed::MarketStatus;
/// assert!(MarketStatus::Active.is_active());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum MarketStatus {
    /// Created, not open yet.
    Initialized,
    /// Open, trading paused.
    Inactive,
    /// Trading.
    Active,
    /// Past its close.
    Closed,
    /// The outcome is known.
    Determined,
    /// Paid out.
    Settled,
}

impl MarketStatus {
    /// Whether its order book is wanted.
    pub fn is_active(self) -> bool {
        self == Self::Active
    }
}

/// What the last change of a market says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) wanted: bool,
    pub(crate) priority: u8,
}

/// What happened to a market.
///
/// ```
/// use kalshi_feed::{ChangeKind, MarketStatus};
/// assert!(ChangeKind::Created { status: MarketStatus::Active }.wants_market());
/// assert!(!ChangeKind::Settled.wants_market());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChangeKind {
    /// It exists.
    Created {
        /// Its first status.
        status: MarketStatus,
    },
    /// Its status changed.
    StatusChange {
        /// From.
        old: MarketStatus,
        /// To.
        new: MarketStatus,
    },
    /// It is over.
    Settled,
}

impl ChangeKind {
    /// Whether its order book is wanted from now on.
    pub fn wants_market(self) -> bool {
        match self {
            Self::Created { status } | Self::StatusChange { new: status, .. } => status.is_active(),
            Self::Settled => false,
        }
    }
}

/// One change the registry reports.
///
/// ```
/// use kalshi_feed::{MarketChange, MarketStatus};
/// let change = MarketChange::created("KXDEMO-26NOV01-T50".parse()?, MarketStatus::Active);
/// assert_eq!(change.priority, 0);
/// # Ok::<(), kalshi_feed::TickerError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MarketChange {
    /// Which market.
    pub ticker: Ticker,
    /// What happened.
    pub kind: ChangeKind,
    /// How much the market matters: those with more are given a connection and subscribed before
    /// those with less, at first and after each reconnect. The last change counts. Default: 0.
    pub priority: u8,
}

impl MarketChange {
    /// The market exists, with this status.
    pub fn created(ticker: Ticker, status: MarketStatus) -> Self {
        Self { ticker, kind: ChangeKind::Created { status }, priority: 0 }
    }

    /// The market's status changed.
    pub fn status_change(ticker: Ticker, old: MarketStatus, new: MarketStatus) -> Self {
        Self { ticker, kind: ChangeKind::StatusChange { old, new }, priority: 0 }
    }

    /// The market is over.
    pub fn settled(ticker: Ticker) -> Self {
        Self { ticker, kind: ChangeKind::Settled, priority: 0 }
    }

    pub(crate) fn wish(&self) -> Wish {
        Wish { wanted: self.kind.wants_market(), priority: self.priority }
    }

    /// The same change, with a priority.
    #[must_use]
    pub fn priority(mut self, priority: u8) -> Self {
        self.priority = priority;
        self
    }
}

/// Where the engine learns which markets to hold. Its methods are called on the conductor's thread
/// at each start, and must not block.
///
/// ```
/// use crossbeam_channel::{Receiver, Sender, never};
/// use kalshi_feed::{MarketChange, RawMessage, Registry, Ticker};
///
/// struct Two;
/// impl Registry for Two {
///     fn active_markets(&mut self) -> Result<Vec<Ticker>, String> {
///         Ok(vec!["A".parse().unwrap(), "B".parse().unwrap()])
///     }
///     fn changes(&mut self) -> Receiver<MarketChange> { never() }
///     fn lifecycle(&mut self) -> Option<Sender<RawMessage>> { None }
/// }
/// ```
pub trait Registry: Send {
    /// The markets whose order books are wanted now.
    ///
    /// # Errors
    /// A sentence for people; `start` fails with it.
    fn active_markets(&mut self) -> Result<Vec<Ticker>, String>;

    /// How much a market of that list matters; see [`MarketChange::priority`]. Asked once for each.
    /// Default: 0.
    fn priority(&mut self, _ticker: &Ticker) -> u8 {
        0
    }

    /// Changes from now on. The engine takes them as fast as they come, so a bounded channel
    /// blocks its sender only for moments. A hung-up sender means no more changes.
    fn changes(&mut self) -> Receiver<MarketChange>;

    /// Where the frames of the lifecycle connections go: a bounded channel. When it is full the
    /// engine stops reading those connections; nothing is dropped while the receiver lives. `None`
    /// discards them, counted.
    fn lifecycle(&mut self) -> Option<Sender<RawMessage>>;
}

/// A fixed list of markets.
///
/// ```
/// use kalshi_feed::StaticRegistry;
/// let registry = StaticRegistry::new(["KXDEMO-26NOV01-T50".parse()?]);
/// # Ok::<(), kalshi_feed::TickerError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct StaticRegistry {
    markets: Vec<Ticker>,
}

impl StaticRegistry {
    /// A registry of these markets, for good.
    pub fn new(markets: impl IntoIterator<Item = Ticker>) -> Self {
        Self { markets: markets.into_iter().collect() }
    }
}

impl Registry for StaticRegistry {
    fn active_markets(&mut self) -> Result<Vec<Ticker>, String> {
        Ok(self.markets.clone())
    }

    fn changes(&mut self) -> Receiver<MarketChange> {
        never()
    }

    fn lifecycle(&mut self) -> Option<Sender<RawMessage>> {
        None
    }
}

/// A registry the host feeds: it sends changes in and takes lifecycle frames out.
///
/// ```
/// use kalshi_feed::{ChannelRegistry, MarketChange, MarketStatus};
/// let (registry, host) = ChannelRegistry::new([], 1_024, 1_024);
/// host.send(MarketChange::created("A".parse()?, MarketStatus::Active))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ChannelRegistry {
    markets: Vec<Ticker>,
    changes: Receiver<MarketChange>,
    lifecycle: Sender<RawMessage>,
}

/// The host's end of a [`ChannelRegistry`].
///
/// ```
/// # let (registry, host) = kalshi_feed::ChannelRegistry::new([], 16, 16);
/// assert!(host.lifecycle().is_empty());
/// ```
#[derive(Clone, Debug)]
pub struct RegistryHost {
    changes: Sender<MarketChange>,
    lifecycle: Receiver<RawMessage>,
}

impl ChannelRegistry {
    /// A registry that starts with `markets`, takes up to `changes` waiting changes before it
    /// blocks their sender, and holds up to `lifecycle` frames the host has not taken. Zero
    /// counts as one.
    pub fn new(
        markets: impl IntoIterator<Item = Ticker>,
        changes: usize,
        lifecycle: usize,
    ) -> (Self, RegistryHost) {
        let (change_sender, change_receiver) = bounded(changes.max(1));
        let (frame_sender, frame_receiver) = bounded(lifecycle.max(1));
        let registry = Self {
            markets: markets.into_iter().collect(),
            changes: change_receiver,
            lifecycle: frame_sender,
        };
        (registry, RegistryHost { changes: change_sender, lifecycle: frame_receiver })
    }
}

impl RegistryHost {
    /// Reports a change; waits while the engine has not taken earlier ones.
    ///
    /// # Errors
    /// The change itself, when the engine has stopped.
    pub fn send(&self, change: MarketChange) -> Result<(), SendError<MarketChange>> {
        self.changes.send(change)
    }

    /// Reports a change without waiting.
    ///
    /// # Errors
    /// The change itself, when the queue is full or the engine has stopped.
    pub fn try_send(&self, change: MarketChange) -> Result<(), TrySendError<MarketChange>> {
        self.changes.try_send(change)
    }

    /// The lifecycle frames, in the order each connection received them. Once every receiver is
    /// dropped the engine discards such frames, counts them and says so in an event.
    pub fn lifecycle(&self) -> &Receiver<RawMessage> {
        &self.lifecycle
    }

    /// The two ends apart, for hosts that use them in different threads.
    pub fn split(self) -> (Sender<MarketChange>, Receiver<RawMessage>) {
        (self.changes, self.lifecycle)
    }
}

impl Registry for ChannelRegistry {
    fn active_markets(&mut self) -> Result<Vec<Ticker>, String> {
        Ok(self.markets.clone())
    }

    fn changes(&mut self) -> Receiver<MarketChange> {
        self.changes.clone()
    }

    fn lifecycle(&mut self) -> Option<Sender<RawMessage>> {
        Some(self.lifecycle.clone())
    }
}
