//! Which copy of a message reaches the host where two redundant lines bring the same, role by
//! role. The policy, and the parts that carry it out: identity (what a message says), window (who
//! brought it first), coverage (what neither line brought), arbiter (all of that for one pair).

use serde::Deserialize;

use crate::ids::Role;
use crate::pool::PoolLayout;

mod arbiter;
mod coverage;
mod identity;
mod window;

pub(crate) use arbiter::{Arbiter, ArbiterSettings, Look};

/// What to do with the second copy of a message that two lines bring.
///
/// ```
/// use kalshi_feed::{Arbitration, Config};
/// let config = Config::builder().arbitration(Arbitration::FirstWins).build()?;
/// # Ok::<(), kalshi_feed::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Arbitration {
    /// Deliver it too: both lines are delivered, told apart by `conn_id`.
    #[default]
    Both,
    /// Drop and count it. The pair counts as one stream: what one line lost the other fills, and
    /// `gap_size` tells only what neither brought.
    FirstWins,
}

/// The policy of each role that has redundant lines.
///
/// ```
/// use kalshi_feed::{Arbitration, ArbitrationPolicy, Config};
/// let mut policy = ArbitrationPolicy::default();
/// policy.trade = Arbitration::FirstWins;
/// let config = Config::builder().arbitration(policy).build()?;
/// # Ok::<(), kalshi_feed::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "Written")]
#[non_exhaustive]
pub struct ArbitrationPolicy {
    /// Of the ticker lines. Default: both.
    pub ticker: Arbitration,
    /// Of the trade lines. Default: both.
    pub trade: Arbitration,
    /// Of the lifecycle lines. Default: both.
    pub lifecycle: Arbitration,
}

impl ArbitrationPolicy {
    /// The policy of a role; order books have no redundant lines.
    pub fn of(&self, role: Role) -> Arbitration {
        match role {
            Role::Ticker => self.ticker,
            Role::Trade => self.trade,
            Role::Lifecycle => self.lifecycle,
            Role::Orderbook => Arbitration::Both,
        }
    }

    /// Whether the pool has the lines it takes: two of the role, next to each other on one shard.
    pub(crate) fn check(&self, pool: PoolLayout) -> Result<(), String> {
        let mut before = 0u32;
        for role in Role::ALL {
            let lines = pool.of(role);
            if self.of(role) == Arbitration::FirstWins {
                if lines != 2 {
                    return Err(format!("{role} has {lines} connections; first-wins takes two"));
                }
                if !before.is_multiple_of(2) {
                    return Err(format!(
                        "the two {role} connections would live on two shards; give the roles \
                         before it an even number of connections"
                    ));
                }
            }
            before += u32::from(lines);
        }
        Ok(())
    }
}

impl From<Arbitration> for ArbitrationPolicy {
    fn from(all: Arbitration) -> Self {
        Self { ticker: all, trade: all, lifecycle: all }
    }
}

/// In a file: one word for all, or a table.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "arbitration: write \"both\" or \"first-wins\"; one word for all roles, or a table \
                 of ticker, trade and lifecycle"
)]
enum Written {
    All(Arbitration),
    Each(Each),
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Each {
    ticker: Arbitration,
    trade: Arbitration,
    lifecycle: Arbitration,
}

impl From<Written> for ArbitrationPolicy {
    fn from(written: Written) -> Self {
        match written {
            Written::All(all) => all.into(),
            Written::Each(Each { ticker, trade, lifecycle }) => Self { ticker, trade, lifecycle },
        }
    }
}

#[cfg(test)]
mod tests;
