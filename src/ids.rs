//! Identities. Each is its own type, so that a sid can never stand where a sequence number
//! belongs. Nothing here has behaviour beyond naming and printing.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::TickerError;

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident($repr:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name($repr);

        impl $name {
            /// Wraps the bare number.
            pub const fn new(number: $repr) -> Self {
                Self(number)
            }

            /// The bare number.
            pub const fn number(self) -> $repr {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number_id! {
    /// A place in the pool, from 1: the same number as the mission's `ConnID`. It names the place,
    /// not one socket; the sockets that fill it one after another are told apart by [`Epoch`].
    ///
    /// ```
    /// assert_eq!(kalshi_feed::ConnId::new(7).to_string(), "7");
    /// ```
    ConnId(u16)
}
number_id! {
    /// Which attempt at filling a connection's place, from 1. Grows with every attempt, so an
    /// event, a message or a reply of an earlier socket can always be told from a current one.
    ///
    /// ```
    /// use kalshi_feed::Epoch;
    /// assert!(Epoch::new(2) > Epoch::new(1));
    /// ```
    Epoch(u32)
}
number_id! {
    /// The exchange's subscription number. It starts at 1 on every connection, so it means nothing
    /// without its connection and epoch (Kalshi's WebSocket documentation, "Subscribe").
    ///
    /// ```
    /// assert_eq!(kalshi_feed::Sid::new(1).number(), 1);
    /// ```
    Sid(u64)
}
number_id! {
    /// A position in one subscription's sequence, from 1. Snapshots, deltas, trades, lifecycle
    /// frames, acknowledgements and scoped errors all take one; tickers take none.
    ///
    /// ```
    /// assert_eq!(kalshi_feed::Seq::new(42).number(), 42);
    /// ```
    Seq(u64)
}
number_id! {
    /// The client's number for a command, from 1; never reused within an epoch.
    ///
    /// ```
    /// assert_eq!(kalshi_feed::CommandId::new(3).number(), 3);
    /// ```
    CommandId(u64)
}
number_id! {
    /// One pinned event-loop thread, from 0.
    ///
    /// ```
    /// assert_eq!(kalshi_feed::ShardId::new(0).number(), 0);
    /// ```
    ShardId(u16)
}

/// What a connection is for.
///
/// ```
/// use kalshi_feed::Role;
/// assert_eq!(Role::Orderbook.to_string(), "orderbook");
/// assert!(!Role::Orderbook.is_global());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Best prices of all markets; its frames carry no sequence number.
    Ticker,
    /// Trades of all markets.
    Trade,
    /// Life-cycle events of all markets, handed to the registry.
    Lifecycle,
    /// Order books of the markets assigned to the connection.
    Orderbook,
}

impl Role {
    /// All roles, in the order of the pool.
    pub const ALL: [Self; 4] = [Self::Ticker, Self::Trade, Self::Lifecycle, Self::Orderbook];

    /// Whether the subscription covers every market without naming any.
    pub const fn is_global(self) -> bool {
        !matches!(self, Self::Orderbook)
    }

    /// The channel's name on the wire.
    pub const fn channel(self) -> &'static str {
        match self {
            Self::Ticker => "ticker",
            Self::Trade => "trade",
            Self::Lifecycle => "market_lifecycle_v2",
            Self::Orderbook => "orderbook_delta",
        }
    }

    pub(crate) const fn index(self) -> usize {
        match self {
            Self::Ticker => 0,
            Self::Trade => 1,
            Self::Lifecycle => 2,
            Self::Orderbook => 3,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ticker => "ticker",
            Self::Trade => "trade",
            Self::Lifecycle => "lifecycle",
            Self::Orderbook => "orderbook",
        })
    }
}

/// A market's ticker text, shared rather than copied. 1 to 128 bytes, no white space or control
/// characters; beyond that nothing is assumed (real tickers hold dots, whatever the exchange's
/// published pattern says).
///
/// ```
/// use kalshi_feed::Ticker;
/// let ticker: Ticker = "KXBTCD-26NOV2317-T95499.99".parse()?;
/// assert_eq!(ticker.as_str().len(), 26);
/// assert!("two words".parse::<Ticker>().is_err());
/// # Ok::<(), kalshi_feed::TickerError>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticker(Arc<str>);

impl Ticker {
    /// The longest text accepted, in bytes.
    pub const BYTES_MAX: usize = 128;

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Ticker {
    type Err = TickerError;

    fn from_str(text: &str) -> Result<Self, TickerError> {
        if text.is_empty() {
            return Err(TickerError::Empty);
        }
        if text.len() > Self::BYTES_MAX {
            return Err(TickerError::TooLong { bytes: text.len() });
        }
        match text.chars().find(|c| c.is_whitespace() || c.is_control()) {
            Some(found) => Err(TickerError::Character { found }),
            None => Ok(Self(text.into())),
        }
    }
}

impl std::borrow::Borrow<str> for Ticker {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Ticker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Ticker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Serialize for Ticker {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// `usize` to `u64`, which never loses anything on the platforms this builds for.
pub(crate) const fn widen(count: usize) -> u64 {
    const { assert!(usize::BITS <= u64::BITS) };
    #[expect(clippy::as_conversions, reason = "checked at compile time just above")]
    {
        count as u64
    }
}
