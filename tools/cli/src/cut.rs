//! The cut in the middle of a demo: which connections are reset, and whether each came back with
//! a snapshot of each of its markets. It never looks at order books.

use std::collections::{BTreeMap, BTreeSet};

use kalshi_feed::{ConnId, Handle, Role};
use serde::Serialize;

use crate::roster::{Member, Roster};

/// Tickers whose snapshot was delivered, by connection and epoch.
pub(crate) type Snapshots = BTreeMap<(u16, u32), BTreeSet<String>>;

/// What came of a cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct CutResult {
    /// Connections asked for.
    pub(crate) requested: usize,
    /// Connections reset.
    pub(crate) cut: usize,
    /// Of those, live again, in a later epoch.
    pub(crate) live_again: usize,
    /// Order-book markets of the cut connections that are still theirs.
    pub(crate) markets: usize,
    /// Of those, with a snapshot in the new epoch.
    pub(crate) snapshots: usize,
    /// Returns to live since the cut.
    pub(crate) reconnects: u64,
}

impl CutResult {
    /// Whether everything came back. Of messages that were lost and told, so many, each may have
    /// been a snapshot.
    pub(crate) fn is_whole(&self, lost: u64) -> bool {
        let lacking = u64::try_from(self.markets.saturating_sub(self.snapshots));
        let excused = lacking.is_ok_and(|lacking| lacking <= lost);
        self.cut == self.requested && self.live_again == self.cut && excused
    }
}

/// A cut that was made.
#[derive(Clone, Debug)]
pub(crate) struct Cut {
    requested: usize,
    done: usize,
    members: Vec<Member>,
    markets: Vec<(ConnId, String)>,
    reconnects_before: u64,
}

impl Cut {
    /// Resets `requested` connections of all roles with `reset`, which returns how many there were.
    /// `spare`: of redundant lines one of each pair lives on.
    pub(crate) fn make(
        requested: usize,
        spare: bool,
        roster: &Roster,
        handle: &Handle,
        reset: impl FnOnce(&[std::net::SocketAddr]) -> usize,
    ) -> Self {
        let members = choose(requested, spare, roster.live().copied().collect());
        let cut: BTreeSet<ConnId> = members.iter().map(|member| member.conn).collect();
        let markets = assigned(handle).into_iter().filter(|(conn, _)| cut.contains(conn)).collect();
        let reconnects_before = handle.stats().reconnects;
        let addresses: Vec<_> = members.iter().map(|member| member.address).collect();
        let done = reset(&addresses);
        Self { requested, done, members, markets, reconnects_before }
    }

    /// How many are live again.
    pub(crate) fn live_again(&self, roster: &Roster) -> usize {
        let is_back = |before: &&Member| {
            roster.member(before.conn).is_some_and(|now| now.epoch > before.epoch)
        };
        self.members.iter().filter(is_back).count()
    }

    /// How many were cut.
    pub(crate) fn done(&self) -> usize {
        self.done
    }

    /// What came of it, by where the markets are now and the snapshots the consumer saw.
    pub(crate) fn result(
        &self,
        roster: &Roster,
        now: &BTreeSet<(ConnId, String)>,
        snapshots: &Snapshots,
        reconnects: u64,
    ) -> CutResult {
        let epochs: BTreeMap<ConnId, u32> =
            self.members.iter().map(|member| (member.conn, member.epoch)).collect();
        // Markets that ended or moved meanwhile are no longer theirs to bring back.
        let markets = self.markets.iter().filter(|market| now.contains(market));
        let mut result = CutResult {
            requested: self.requested,
            cut: self.done,
            live_again: self.live_again(roster),
            reconnects: reconnects.saturating_sub(self.reconnects_before),
            ..CutResult::default()
        };
        for (conn, ticker) in markets {
            result.markets += 1;
            let first = epochs.get(conn).map_or(0, |epoch| epoch.saturating_add(1));
            let later = snapshots.range((conn.number(), first)..=(conn.number(), u32::MAX));
            let mut tickers = later.map(|(_, tickers)| tickers);
            result.snapshots += usize::from(tickers.any(|tickers| tickers.contains(ticker)));
        }
        result
    }
}

/// Which market each connection has.
pub(crate) fn assigned(handle: &Handle) -> BTreeSet<(ConnId, String)> {
    let place = |market: kalshi_feed::Assignment<'_>| {
        market.conn.map(|conn| (conn, market.ticker.to_owned()))
    };
    handle.assignments().iter().filter_map(place).collect()
}

/// One of each role first, then evenly over the rest.
fn choose(count: usize, spare: bool, mut live: Vec<Member>) -> Vec<Member> {
    let mut chosen = Vec::new();
    for role in Role::ALL {
        if chosen.len() < count
            && let Some(at) = live.iter().position(|member| member.role == role)
        {
            chosen.push(live.remove(at));
        }
    }
    live.retain(|member| !spare || member.role == Role::Orderbook);
    let missing = count.saturating_sub(chosen.len()).min(live.len());
    let places = (0..missing).map(|n| n * live.len() / missing.max(1));
    chosen.extend(places.filter_map(|at| live.get(at).copied()));
    chosen
}

/// The ticker of an order-book snapshot; `None` for other frames.
pub(crate) fn snapshot_ticker(data: &[u8]) -> Option<&str> {
    const TYPE: &[u8] = b"{\"type\":\"orderbook_snapshot\"";
    const TICKER: &[u8] = b"\"market_ticker\":\"";
    if !data.starts_with(TYPE) {
        return None;
    }
    let at = data.windows(TICKER.len()).position(|window| window == TICKER)?;
    let text = data.get(at + TICKER.len()..)?;
    let end = text.iter().position(|&byte| byte == b'"')?;
    std::str::from_utf8(text.get(..end)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Vec<Member> {
        let layout = kalshi_feed::PoolLayout::default();
        let member = |(conn, role): (ConnId, Role)| Member {
            conn,
            role,
            epoch: 1,
            address: ([127, 0, 0, 1], 10_000 + conn.number()).into(),
        };
        layout.iter().map(member).collect()
    }

    #[test]
    fn the_chosen_are_distinct_and_of_all_roles() {
        for count in [0, 1, 4, 20, 149, 150, 400] {
            let chosen = choose(count, false, pool());
            assert_eq!(chosen.len(), count.min(150));
            let distinct: BTreeSet<_> = chosen.iter().map(|member| member.conn).collect();
            assert_eq!(distinct.len(), chosen.len());
            let roles: BTreeSet<_> = chosen.iter().map(|member| member.role).collect();
            assert_eq!(roles.len(), count.min(4));
        }
    }

    #[test]
    fn one_line_of_each_pair_can_be_spared() {
        let chosen = choose(400, true, pool());
        assert_eq!(chosen.len(), 147);
        for role in [Role::Ticker, Role::Trade, Role::Lifecycle] {
            assert_eq!(chosen.iter().filter(|member| member.role == role).count(), 1);
        }
    }

    #[test]
    fn snapshots_name_their_market() {
        let snapshot =
            br#"{"type":"orderbook_snapshot","sid":1,"seq":1,"msg":{"market_ticker":"A-1","yes":[]}}"#;
        assert_eq!(snapshot_ticker(snapshot), Some("A-1"));
        let delta = br#"{"type":"orderbook_delta","sid":1,"seq":1,"msg":{"market_ticker":"A-1"}}"#;
        assert_eq!(snapshot_ticker(delta), None);
    }

    #[test]
    fn only_snapshots_of_the_new_epoch_count() {
        let before = pool().remove(10);
        let mut roster = Roster::default();
        roster.note(&kalshi_feed::Event::Up {
            conn: before.conn,
            role: before.role,
            epoch: kalshi_feed::Epoch::new(2),
            local_addr: before.address,
        });
        let market = |name: &str| (before.conn, name.to_owned());
        let cut = Cut {
            requested: 1,
            done: 1,
            members: vec![before],
            markets: vec![market("A"), market("B"), market("SETTLED")],
            reconnects_before: 3,
        };
        let now = BTreeSet::from([market("A"), market("B"), market("NEW")]);
        let seen = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let conn = before.conn.number();
        let mut snapshots = Snapshots::from([((conn, 1), seen(&["A", "B"]))]);
        snapshots.insert((conn, 2), seen(&["A"]));
        let result = cut.result(&roster, &now, &snapshots, 4);
        assert_eq!((result.markets, result.snapshots, result.reconnects), (2, 1, 1));
        assert!(!result.is_whole(0));
        assert!(result.is_whole(1), "it may be the one that was lost");
        snapshots.insert((conn, 2), seen(&["A", "B"]));
        assert!(cut.result(&roster, &now, &snapshots, 4).is_whole(0));
    }
}
