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
}

#[derive(Clone, Copy, Debug, Default)]
struct Line {
    load: usize,
    healthy: bool,
}

/// Why a market could not be placed now. It waits, and is placed when there is room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unplaced {
    NoHealthyConnections,
    PoolFull,
}

impl Assigner {
    /// `count` connections numbered from `first`, none healthy yet.
    pub(crate) fn new(first: ConnId, count: usize, markets_max: usize) -> Self {
        Self {
            lines: vec![Line::default(); count],
            open: BTreeSet::new(),
            markets_max,
            first: first.number(),
        }
    }

    /// Places one market.
    pub(crate) fn place(&mut self) -> Result<ConnId, Unplaced> {
        let Some((_, conn)) = self.open.first().copied() else {
            let healthy = self.lines.iter().any(|line| line.healthy);
            return Err(if healthy { Unplaced::PoolFull } else { Unplaced::NoHealthyConnections });
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
        if line.healthy && line.load < self.markets_max {
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
    fn no_connection_and_no_room_are_told_apart() {
        let mut assigner = Assigner::new(conn(7), 2, 1);
        assert_eq!(assigner.place(), Err(Unplaced::NoHealthyConnections));
        assigner.health(conn(8), true);
        assert_eq!(assigner.place(), Ok(conn(8)));
        assert_eq!(assigner.place(), Err(Unplaced::PoolFull));
        assigner.unplace(conn(8));
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
