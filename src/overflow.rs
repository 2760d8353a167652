//! What happens to messages that find no room in `Messages`, role by role.

use serde::Deserialize;

use crate::ids::Role;

/// What to do with a message that finds no room.
///
/// ```
/// use kalshi_feed::{Config, Overflow};
/// let config = Config::builder().overflow(Overflow::Backpressure).build()?;
/// # Ok::<(), kalshi_feed::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Overflow {
    /// Drop it, and tell how many with the next message of its subscription.
    #[default]
    DropNewest,
    /// Stop reading its connection until there is room. Nothing is dropped here; if it lasts, the
    /// exchange's own buffers overflow, and the exchange says so. What waits so comes before all
    /// that its shard may drop, and takes turns with what it conflates.
    Backpressure,
    /// Of each market keep the newest message until there is room, in the place of the older one
    /// (at most `conflate_markets` and `message_buffer_bytes` for each connection; what is beyond
    /// is dropped). Only for `ticker`, where the newest message says all there is to know.
    ///
    /// What is kept goes out in the order in which it came. Messages left out are dropped messages:
    /// the next one of the subscription tells how many. A pair under
    /// [`FirstWins`](crate::Arbitration::FirstWins) keeps as one: one order, one set of limits, and
    /// the next message of either line tells.
    ConflateByMarket,
}

/// The policy of each role. Lifecycle frames are always held back, never dropped.
///
/// ```
/// use kalshi_feed::{Config, Overflow, OverflowPolicy};
/// let mut policy = OverflowPolicy::default();
/// policy.trade = Overflow::Backpressure;
/// let config = Config::builder().overflow(policy).build()?;
/// # Ok::<(), kalshi_feed::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "Written")]
#[non_exhaustive]
pub struct OverflowPolicy {
    /// Of ticker connections. Default: drop newest.
    pub ticker: Overflow,
    /// Of trade connections. Default: drop newest.
    pub trade: Overflow,
    /// Of order-book connections. Default: drop newest.
    pub orderbook: Overflow,
}

impl OverflowPolicy {
    /// The policy of a role.
    pub fn of(&self, role: Role) -> Overflow {
        match role {
            Role::Ticker => self.ticker,
            Role::Trade => self.trade,
            Role::Orderbook => self.orderbook,
            Role::Lifecycle => Overflow::Backpressure,
        }
    }
}

impl OverflowPolicy {
    /// Whether a role conflates whose older messages say something the newest does not.
    pub(crate) fn conflates_too_much(&self) -> bool {
        [self.trade, self.orderbook].contains(&Overflow::ConflateByMarket)
    }
}

impl From<Overflow> for OverflowPolicy {
    fn from(all: Overflow) -> Self {
        Self { ticker: all, trade: all, orderbook: all }
    }
}

/// In a file: one word for all, or a table.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "overflow: write \"drop-newest\", \"backpressure\" or, for ticker alone, \
                 \"conflate-by-market\"; one word for all roles, or a table of ticker, trade and \
                 orderbook"
)]
enum Written {
    All(Overflow),
    Each(Each),
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Each {
    ticker: Overflow,
    trade: Overflow,
    orderbook: Overflow,
}

impl From<Written> for OverflowPolicy {
    fn from(written: Written) -> Self {
        match written {
            Written::All(all) => all.into(),
            Written::Each(Each { ticker, trade, orderbook }) => Self { ticker, trade, orderbook },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_or_a_table() {
        let all: OverflowPolicy = serde_json::from_str("\"backpressure\"").unwrap();
        assert_eq!(all, Overflow::Backpressure.into());
        let each: OverflowPolicy = serde_json::from_str(r#"{"trade":"backpressure"}"#).unwrap();
        assert_eq!((each.ticker, each.trade), (Overflow::DropNewest, Overflow::Backpressure));
        assert!(serde_json::from_str::<OverflowPolicy>(r#"{"trades":"backpressure"}"#).is_err());
        assert_eq!(each.of(Role::Lifecycle), Overflow::Backpressure);
        let ticker: OverflowPolicy =
            serde_json::from_str(r#"{"ticker":"conflate-by-market"}"#).unwrap();
        assert_eq!(
            (ticker.ticker, ticker.trade),
            (Overflow::ConflateByMarket, Overflow::DropNewest)
        );
    }
}
