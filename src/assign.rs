//! Which order-book connection a market goes to: the healthy one with the fewest markets, the
//! lowest number among equals. Deterministic; O(log connections) per change, whatever the number
//! of markets.

use std::collections::BTreeSet;

use crate::ids::ConnId;

/// Loads of the order-book connections.
#[derive(Clone, Debug)]
pub(crate) struct Assigner {
    /// Load of each connection, by place in the list.
    lines: Vec<Line>,
    /// The healthy ones that are not full, least loaded first.
    open: BTreeSet<(usize, ConnId)>,
    markets_max: usize,
    first: u16,
    healthy: usize,
}

#[derive(Clone, Copy, Debug)]
struct Line {
    load: usize,
    healthy: bool,
    /// Most markets it may have.
    limit: usize,
}

/// Why a market has no connection now. It waits, and gets one by itself when there is room.
///
/// ```
/// println!("{}", kalshi_feed::Unplaced::PoolFull);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Unplaced {
    /// No order-book connection is live.
    #[error("no order-book connection is live")]
    NoHealthyConnections,
    /// Every live order-book connection has as many markets as it may have.
    #[error("every live order-book connection is full")]
    PoolFull,
}

impl Assigner {
    /// `count` connections numbered from `first`, none healthy yet.
    pub(crate) fn new(first: ConnId, count: usize, markets_max: usize) -> Self {
        Self {
            lines: vec![Line { load: 0, healthy: false, limit: markets_max }; count],
            open: BTreeSet::new(),
            markets_max,
            first: first.number(),
            healthy: 0,
        }
    }

    /// Places one market.
    pub(crate) fn place(&mut self) -> Result<ConnId, Unplaced> {
        let Some((_, conn)) = self.open.first().copied() else {
            return Err(match self.healthy {
                0 => Unplaced::NoHealthyConnections,
                _ => Unplaced::PoolFull,
            });
        };
        self.change(conn, |line| line.load += 1);
        Ok(conn)
    }

    /// One market left its connection.
    pub(crate) fn unplace(&mut self, conn: ConnId) {
        self.change(conn, |line| line.load = line.load.saturating_sub(1));
    }

    /// The connection came or went.
    pub(crate) fn health(&mut self, conn: ConnId, healthy: bool) {
        self.change(conn, |line| line.healthy = healthy);
        self.healthy = self.lines.iter().filter(|line| line.healthy).count();
    }

    /// The exchange lets the connection have no more than this; `None` forgets that.
    pub(crate) fn limit(&mut self, conn: ConnId, limit: Option<usize>) {
        let most = self.markets_max;
        self.change(conn, |line| line.limit = limit.map_or(most, |limit| limit.min(most)));
    }

    /// Whether more than half of the connections are live: then those that are not are the
    /// exception, and may be replaced.
    pub(crate) fn most_are_healthy(&self) -> bool {
        self.healthy * 2 > self.lines.len()
    }

    /// Markets on a connection.
    #[cfg(test)]
    pub(crate) fn load(&self, conn: ConnId) -> usize {
        self.index(conn).and_then(|index| self.lines.get(index)).map_or(0, |line| line.load)
    }

    fn change(&mut self, conn: ConnId, apply: impl FnOnce(&mut Line)) {
        let index = self.index(conn);
        let Some(line) = index.and_then(|index| self.lines.get_mut(index)) else {
            return;
        };
        self.open.remove(&(line.load, conn));
        apply(line);
        if line.healthy && line.load < line.limit {
            self.open.insert((line.load, conn));
        }
    }

    fn index(&self, conn: ConnId) -> Option<usize> {
        conn.number().checked_sub(self.first).map(usize::from)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn conn(number: u16) -> ConnId {
        ConnId::new(number)
    }

    #[test]
    fn m3_no_connection_and_no_room_are_told_apart() {
        let mut assigner = Assigner::new(conn(7), 2, 1);
        assert_eq!(assigner.place(), Err(Unplaced::NoHealthyConnections));
        assigner.health(conn(8), true);
        assert_eq!(assigner.place(), Ok(conn(8)));
        assert_eq!(assigner.place(), Err(Unplaced::PoolFull));
        assigner.unplace(conn(8));
        assert_eq!(assigner.place(), Ok(conn(8)));
        assigner.limit(conn(8), Some(0));
        assigner.unplace(conn(8));
        assert_eq!(assigner.place(), Err(Unplaced::PoolFull));
        assigner.limit(conn(8), None);
        assert_eq!(assigner.place(), Ok(conn(8)));
    }

    proptest! {
        #![proptest_config(crate::property::cases(500))]

        /// Against the obvious way: scan everything each time.
        #[test]
        fn agrees_with_a_scan(steps in prop::collection::vec((0u8..4, 0u16..5), 1..300)) {
            let mut assigner = Assigner::new(conn(7), 5, 6);
            let mut naive = [(0usize, false); 5];
            for (what, place) in steps {
                let index = usize::from(place);
                match what {
                    0 => {
                        let best = naive.iter().enumerate()
                            .filter(|(_, (load, healthy))| *healthy && *load < 6)
                            .min_by_key(|(index, (load, _))| (*load, *index));
                        let expected = best
                            .map(|(index, _)| conn(7 + u16::try_from(index).unwrap()));
                        prop_assert_eq!(assigner.place().ok(), expected);
                        if let Some(found) = expected {
                            naive[usize::from(found.number() - 7)].0 += 1;
                        }
                    }
                    1 => {
                        assigner.unplace(conn(7 + place));
                        naive[index].0 = naive[index].0.saturating_sub(1);
                    }
                    healthy => {
                        assigner.health(conn(7 + place), healthy == 2);
                        naive[index].1 = healthy == 2;
                    }
                }
                for (index, (load, _)) in naive.iter().enumerate() {
                    prop_assert_eq!(assigner.load(conn(7 + u16::try_from(index).unwrap())), *load);
                }
            }
        }
    }
}
