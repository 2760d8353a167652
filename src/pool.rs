//! The pool's shape: how many connections each role has, and so which number is what.

use serde::Deserialize;

use crate::ids::{ConnId, Role};

/// How many connections each role has; connections are numbered from 1 in this order.
///
/// ```
/// use kalshi_feed::{ConnId, PoolLayout, Role};
/// let pool = PoolLayout::default();
/// assert_eq!(pool.connections(), 150);
/// assert_eq!(pool.role(ConnId::new(6)), Some(Role::Lifecycle));
/// assert_eq!(pool.role(ConnId::new(7)), Some(Role::Orderbook));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct PoolLayout {
    /// Ticker connections. Default: 2.
    pub ticker: u16,
    /// Trade connections. Default: 2.
    pub trade: u16,
    /// Lifecycle connections. Default: 2.
    pub lifecycle: u16,
    /// Order-book connections. Default: 144.
    pub orderbook: u16,
}

impl Default for PoolLayout {
    fn default() -> Self {
        Self::new(2, 2, 2, 144)
    }
}

impl PoolLayout {
    /// The most connections one pool may have.
    pub const CONNECTIONS_MAX: usize = 10_000;

    /// A pool with these numbers of connections.
    pub const fn new(ticker: u16, trade: u16, lifecycle: u16, orderbook: u16) -> Self {
        Self { ticker, trade, lifecycle, orderbook }
    }

    /// How many connections the role has.
    pub const fn of(&self, role: Role) -> u16 {
        match role {
            Role::Ticker => self.ticker,
            Role::Trade => self.trade,
            Role::Lifecycle => self.lifecycle,
            Role::Orderbook => self.orderbook,
        }
    }

    /// All connections.
    pub fn connections(&self) -> usize {
        Role::ALL.iter().map(|&role| usize::from(self.of(role))).sum()
    }

    /// The role of a connection; `None` when the pool has no such connection.
    pub fn role(&self, conn: ConnId) -> Option<Role> {
        let mut last = 0u32;
        let number = u32::from(conn.number());
        Role::ALL.into_iter().find(|&role| {
            last += u32::from(self.of(role));
            number >= 1 && number <= last
        })
    }

    /// All connections with their roles, in order.
    pub fn iter(&self) -> impl Iterator<Item = (ConnId, Role)> + use<> {
        let roles = *self;
        let each = Role::ALL
            .into_iter()
            .flat_map(move |role| std::iter::repeat_n(role, usize::from(roles.of(role))));
        (1u16..).map(ConnId::new).zip(each)
    }
}

/// Which shard a connection lives on: pairs together, so that both lines of a redundant pair
/// share a thread.
pub(crate) fn shard_of(conn: ConnId, shards: usize) -> usize {
    (usize::from(conn.number().saturating_sub(1)) / 2) % shards.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_pool_is_the_missions() {
        let pool = PoolLayout::default();
        let roles: Vec<_> = pool.iter().map(|(_, role)| role).collect();
        assert_eq!(roles.len(), 150);
        for (conn, role) in pool.iter() {
            assert_eq!(pool.role(conn), Some(role));
        }
        assert_eq!(pool.role(ConnId::new(0)), None);
        assert_eq!(pool.role(ConnId::new(151)), None);
    }
}
