//! The cut in the middle of a demo: which connections are reset, and whether each came back with
//! a snapshot of each of its markets. It never looks at order books.

use std::collections::{BTreeMap, BTreeSet};

use kalshi_feed::{ConnId, Continuity, Handle, PoolLayout, RawMessage, Role, Seq, Untold};
use serde::Serialize;

use crate::roster::{Member, Roster};

/// What order-book connections brought, by connection and epoch.
#[derive(Clone, Debug, Default)]
pub(crate) struct Books(BTreeMap<(u16, u32), Brought>);

/// What a connection brought in an epoch.
#[derive(Clone, Debug, Default)]
struct Brought {
    /// Tickers whose snapshot was delivered.
    snapshots: BTreeSet<String>,
    /// Messages that were told as lost.
    lost: u64,
}

impl Books {
    /// A message of an order-book connection was delivered.
    pub(crate) fn delivered(&mut self, message: &RawMessage) {
        let of = (message.conn_id.number(), message.epoch.number());
        if message.gap_size > 0 {
            self.lost(of, lost_since(message.continuity, message.seq, message.gap_size));
        }
        if let Some(ticker) = snapshot_ticker(&message.data) {
            self.0.entry(of).or_default().snapshots.insert(ticker.to_owned());
        }
    }

    /// What the engine reported at its stop. Without a sid it is what an earlier epoch left.
    pub(crate) fn owed(&mut self, untold: &Untold) {
        if untold.sid.is_some() {
            self.lost((untold.conn_id.number(), untold.epoch.number()), untold.messages);
        }
    }

    fn lost(&mut self, of: (u16, u32), messages: u64) {
        let lost = &mut self.0.entry(of).or_default().lost;
        *lost = lost.saturating_add(messages);
    }
}

/// How many of those a message tells as lost were of its own epoch: the first of a sequence tells
/// what earlier epochs left as well, and its own can be no more than the numbers before it.
fn lost_since(continuity: Continuity, seq: Option<Seq>, gap_size: u64) -> u64 {
    match continuity {
        Continuity::First => gap_size.min(seq.map_or(0, Seq::number).saturating_sub(1)),
        _ => gap_size,
    }
}

/// What came of a cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct CutResult {
    /// Connections asked for, of those that can be cut.
    pub(crate) requested: usize,
    /// Connections reset.
    pub(crate) cut: usize,
    /// Of those, live again, in a later epoch.
    pub(crate) live_again: usize,
    /// Order-book markets of the cut connections that are still theirs.
    pub(crate) markets: usize,
    /// Of those, with a snapshot in the new epoch.
    pub(crate) snapshots: usize,
    /// Of the others, so many may be among the messages their connections told as lost since.
    pub(crate) excused: usize,
    /// Returns to live since the cut.
    pub(crate) reconnects: u64,
}

impl CutResult {
    /// Whether everything came back, or was told as lost. Of messages whose loss nobody could
    /// notice, so many, each may have been a snapshot, too.
    pub(crate) fn is_whole(&self, unnoticed: u64) -> bool {
        let lacking = self.markets.saturating_sub(self.snapshots).saturating_sub(self.excused);
        let excused = u64::try_from(lacking).is_ok_and(|lacking| lacking <= unnoticed);
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

    /// What came of it, by where the markets are now and what the consumer saw.
    pub(crate) fn result(
        &self,
        roster: &Roster,
        now: &BTreeSet<(ConnId, String)>,
        books: &Books,
        reconnects: u64,
    ) -> CutResult {
        let mut result = CutResult {
            requested: self.requested,
            cut: self.done,
            live_again: self.live_again(roster),
            reconnects: reconnects.saturating_sub(self.reconnects_before),
            ..CutResult::default()
        };
        for member in &self.members {
            let conn = member.conn.number();
            let later = (conn, member.epoch.saturating_add(1))..=(conn, u32::MAX);
            let later: Vec<_> = books.0.range(later).map(|(_, brought)| brought).collect();
            // Markets that ended or moved meanwhile are no longer theirs to bring back.
            let theirs =
                |market: &&(ConnId, String)| market.0 == member.conn && now.contains(*market);
            let has = |(_, ticker): &&(ConnId, String)| {
                later.iter().any(|brought| brought.snapshots.contains(ticker))
            };
            let markets = self.markets.iter().filter(theirs).count();
            let snapshots = self.markets.iter().filter(theirs).filter(has).count();
            let lost = later.iter().fold(0, |sum: u64, brought| sum.saturating_add(brought.lost));
            let lost = usize::try_from(lost).unwrap_or(usize::MAX);
            result.markets += markets;
            result.snapshots += snapshots;
            // Each message that was lost may have been a snapshot.
            result.excused += markets.saturating_sub(snapshots).min(lost);
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

/// How many connections can be cut.
pub(crate) fn most(spare: bool) -> usize {
    let layout = PoolLayout::default();
    let pairs = Role::ALL.into_iter().filter(|role| role.is_global()).count();
    let books = layout.iter().filter(|&(_, role)| role == Role::Orderbook).count();
    if spare { books + pairs } else { layout.connections() }
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
fn snapshot_ticker(data: &[u8]) -> Option<&str> {
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
        let layout = PoolLayout::default();
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
        assert_eq!((chosen.len(), most(true), most(false)), (147, 147, 150));
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
        let mut books = Books::default();
        let mut see = |epoch: u32, names: &[&str]| {
            let names = names.iter().map(|&name| name.to_owned());
            books.0.entry((before.conn.number(), epoch)).or_default().snapshots.extend(names);
            cut.result(&roster, &now, &books, 4)
        };
        see(1, &["A", "B"]);
        let result = see(2, &["A"]);
        assert_eq!((result.markets, result.snapshots, result.reconnects), (2, 1, 1));
        assert!(!result.is_whole(0));
        assert!(result.is_whole(1), "it may be the one whose loss nobody could notice");
        assert!(see(2, &["B"]).is_whole(0));
    }

    #[test]
    fn a_snapshot_may_be_what_its_own_connection_lost_since_the_cut() {
        let (before, other) = (pool().remove(10), pool().remove(11));
        let market = |member: Member, name: &str| (member.conn, name.to_owned());
        let markets = vec![market(before, "A"), market(before, "B"), market(other, "C")];
        let now = markets.iter().cloned().collect();
        let members = vec![before, other];
        let cut = Cut { requested: 2, done: 2, members, markets, reconnects_before: 0 };
        let roster = Roster::default();
        let mut books = Books::default();
        let mut lose = |member: Member, epoch: u32, messages: u64| {
            books.lost((member.conn.number(), epoch), messages);
            let result = cut.result(&roster, &now, &books, 2);
            assert_eq!((result.markets, result.snapshots), (3, 0));
            result.excused
        };
        assert_eq!(lose(before, 1, 9), 0, "that was before");
        assert_eq!(lose(before, 2, 1), 1);
        assert_eq!(lose(before, 3, 9), 2, "there were no more");
        assert_eq!(lose(other, 2, 1), 3);
    }

    #[test]
    fn what_an_earlier_epoch_left_was_lost_before() {
        let seq = |number| Some(Seq::new(number));
        assert_eq!(lost_since(Continuity::First, seq(1), 50), 0);
        assert_eq!(lost_since(Continuity::First, seq(4), 50), 3);
        assert_eq!(lost_since(Continuity::First, None, 50), 0);
        assert_eq!(lost_since(Continuity::Gap, seq(4), 2), 2);
    }
}
