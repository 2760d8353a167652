//! What each connection should hold and what it holds: desired and observed, kept apart, and the
//! next command that brings them closer. Pure; the conductor feeds it changes, comings and goings
//! and outcomes, and sends the requests it asks for.
//!
//! A market is in one place or none. It is queued on its connection while desired and observed
//! differ and nothing about it is in flight; what to do is decided when it is taken off the
//! queue, so a thousand changes of one market cost one command. On the live exchange all markets
//! of a connection share one sid: the first list opens it, others are added to it, single markets
//! are deleted from it, and it is unsubscribed when the last one goes.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::assign::{Assigner, Unplaced};
use crate::command::Outcome;
use crate::ids::{ConnId, Role, Sid, Ticker, widen};
use crate::market::{Change, Market, Need, Observed, SubscriptionInfo};
use crate::request::Request;
use crate::timer::after;

/// Entries of markets wanted no more that may wait to be forgotten.
const UNPLACED_DEAD_MAX: usize = 1_024;
/// Command texts stay under this many bytes of tickers.
const COMMAND_BYTES_MAX: usize = 64_000;
/// Delay after trouble: the first, and the longest.
const TROUBLE_DELAY: Duration = Duration::from_secs(1);
const TROUBLE_DELAY_MAX: Duration = Duration::from_secs(60);
/// So long without any, trouble is forgotten; the delays start from the beginning.
const TROUBLE_OVER: Duration = Duration::from_secs(120);
/// The exchange's code for a command it did not finish in time: carried out or not.
const COMMAND_TIMEOUT: i64 = 18;
/// The exchange's code for a sid it does not know.
const UNKNOWN_SUBSCRIPTION: i64 = 7;

/// A connection's subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    Closed,
    Opening,
    Open { sid: Sid, renew: bool },
    Closing { sid: Sid },
}

impl Line {
    fn sid(self) -> Option<Sid> {
        match self {
            Self::Open { sid, .. } | Self::Closing { sid } => Some(sid),
            Self::Closed | Self::Opening => None,
        }
    }
}

#[derive(Clone, Debug)]
struct Member {
    role: Role,
    live: bool,
    line: Line,
    markets: Vec<usize>,
    queue: VecDeque<usize>,
    /// How many of its markets are wanted.
    wanted: usize,
    in_flight: usize,
    /// Nothing is sent before this time, after trouble.
    hold: Option<Instant>,
    /// Refusals and subscriptions that ended by themselves, and when the last one was.
    troubles: u32,
    troubled: Option<Instant>,
    /// The code of the last refusal to open.
    refused: Option<i64>,
}

impl Member {
    /// A refusal, or a subscription that ended: nothing more is sent for a while that doubles
    /// each time, so that no exchange can make us repeat ourselves without pause.
    fn trouble(&mut self, now: Instant) {
        self.troubles = if self.is_calm(now) { 0 } else { self.troubles };
        let doubled = TROUBLE_DELAY * 2u32.saturating_pow(self.troubles.min(10));
        self.hold = Some(after(now, doubled.min(TROUBLE_DELAY_MAX)));
        self.troubles = self.troubles.saturating_add(1);
        self.troubled = Some(now);
    }

    /// Whether there was no trouble for so long that it is forgotten.
    fn is_calm(&self, now: Instant) -> bool {
        self.troubled.is_none_or(|last| after(last, TROUBLE_OVER) <= now)
    }
}

/// Bounds of the commands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CommandLimits {
    pub(crate) chunk: usize,
    pub(crate) in_flight: usize,
}

/// Desired and observed subscriptions of the whole pool.
#[derive(Debug)]
pub(crate) struct Subscriptions {
    markets: Vec<Market>,
    free: Vec<usize>,
    index: HashMap<Ticker, usize>,
    members: Vec<Member>,
    /// Wanted, without a connection yet; some of them wanted no more.
    unplaced: VecDeque<usize>,
    /// How many of those are wanted no more.
    unplaced_dead: usize,
    assigner: Assigner,
    limits: CommandLimits,
    wanted: u64,
    confirmed: u64,
}

impl Subscriptions {
    pub(crate) fn new(
        pool: impl Iterator<Item = (ConnId, Role)>,
        markets_per_connection: usize,
        limits: CommandLimits,
    ) -> Self {
        let roles: Vec<_> = pool.collect();
        let books = roles.iter().filter(|(_, role)| *role == Role::Orderbook);
        let first = books.clone().next().map_or(ConnId::new(1), |&(conn, _)| conn);
        let assigner = Assigner::new(first, books.count(), markets_per_connection);
        let members = roles.iter().map(|&(_, role)| Member {
            role,
            live: false,
            line: Line::Closed,
            markets: Vec::new(),
            queue: VecDeque::new(),
            wanted: 0,
            in_flight: 0,
            hold: None,
            troubles: 0,
            troubled: None,
            refused: None,
        });
        Self {
            markets: Vec::new(),
            free: Vec::new(),
            index: HashMap::new(),
            members: members.collect(),
            unplaced: VecDeque::new(),
            unplaced_dead: 0,
            assigner,
            limits,
            wanted: 0,
            confirmed: 0,
        }
    }

    // What should be.

    /// The registry wants this market's book.
    pub(crate) fn want(&mut self, ticker: &Ticker) {
        let index = match self.index.get(ticker) {
            Some(&index) => index,
            None => self.insert(ticker),
        };
        self.change(index, true);
    }

    /// The registry wants it no more.
    pub(crate) fn unwant(&mut self, ticker: &Ticker) {
        if let Some(&index) = self.index.get(ticker) {
            self.change(index, false);
        }
    }

    fn insert(&mut self, ticker: &Ticker) -> usize {
        let market = Market::new(ticker.clone());
        let index = match self.free.pop() {
            Some(index) => {
                if let Some(place) = self.markets.get_mut(index) {
                    *place = market;
                }
                index
            }
            None => {
                self.markets.push(market);
                self.markets.len() - 1
            }
        };
        self.index.insert(ticker.clone(), index);
        index
    }

    fn change(&mut self, index: usize, wanted: bool) {
        let Some(market) = self.markets.get_mut(index) else {
            return;
        };
        if market.wanted == wanted {
            return;
        }
        market.wanted = wanted;
        self.wanted = if wanted { self.wanted + 1 } else { self.wanted - 1 };
        let (place, queued) = (market.place, market.queued);
        match place.and_then(|(conn, _)| self.member(conn)) {
            Some(member) => {
                member.wanted = if wanted { member.wanted + 1 } else { member.wanted - 1 };
            }
            None if queued && wanted => self.unplaced_dead -= 1,
            None if queued => self.unplaced_dead += 1,
            None => {}
        }
        self.enqueue(index);
        self.forget_dead();
    }

    /// Markets that came and went while there was no room do not stay in memory for it.
    fn forget_dead(&mut self) {
        if self.unplaced_dead < UNPLACED_DEAD_MAX || self.unplaced_dead * 2 < self.unplaced.len() {
            return;
        }
        for index in std::mem::take(&mut self.unplaced) {
            if self.markets.get(index).is_some_and(|market| market.wanted) {
                self.unplaced.push_back(index);
            } else {
                self.release(index);
            }
        }
        self.unplaced_dead = 0;
    }

    /// Queues a market where it belongs, once.
    fn enqueue(&mut self, index: usize) {
        let Some(market) = self.markets.get_mut(index) else {
            return;
        };
        if std::mem::replace(&mut market.queued, true) {
            return;
        }
        let place = market.place;
        match place.and_then(|(conn, _)| self.member(conn)) {
            Some(member) => member.queue.push_back(index),
            None => self.unplaced.push_back(index),
        }
    }

    /// Gives waiting markets a connection while there is one; says why it stopped, if it did
    /// before all had one.
    pub(crate) fn place(&mut self) -> Option<Unplaced> {
        while let Some(&index) = self.unplaced.front() {
            let market = self.markets.get(index)?;
            if !market.wanted {
                self.unplaced.pop_front();
                self.unplaced_dead -= 1;
                self.release(index);
                continue;
            }
            let conn = match self.assigner.place() {
                Ok(conn) => conn,
                Err(reason) => return Some(reason),
            };
            self.unplaced.pop_front();
            let member = self.member(conn)?;
            member.markets.push(index);
            member.wanted += 1;
            let position = member.markets.len() - 1;
            if let Some(market) = self.markets.get_mut(index) {
                market.place = Some((conn, position));
                market.queued = false;
            }
            self.enqueue(index);
        }
        None
    }

    /// Forgets a market that is neither wanted nor with the exchange.
    fn release(&mut self, index: usize) {
        let Some(market) = self.markets.get_mut(index) else {
            return;
        };
        market.queued = false;
        let ticker = market.ticker.clone();
        if let Some((conn, position)) = market.place.take() {
            self.assigner.unplace(conn);
            let moved = self.member(conn).and_then(|member| {
                member.markets.swap_remove(position);
                member.markets.get(position).copied()
            });
            if let Some(moved) = moved.and_then(|moved| self.markets.get_mut(moved)) {
                moved.place = Some((conn, position));
            }
        }
        self.index.remove(&ticker);
        self.free.push(index);
    }

    // What is.

    /// The connection is live in a new epoch: nothing is subscribed on it yet.
    pub(crate) fn up(&mut self, conn: ConnId) {
        if let Some(member) = self.member(conn) {
            member.live = true;
        }
        self.assigner.health(conn, true);
    }

    /// Nothing more can be sent on the connection; `down` follows.
    pub(crate) fn losing(&mut self, conn: ConnId) {
        if let Some(member) = self.member(conn) {
            member.live = false;
        }
        self.assigner.health(conn, false);
    }

    /// The connection is gone and its subscription with it: all its markets are queued again.
    pub(crate) fn down(&mut self, conn: ConnId) {
        self.losing(conn);
        let Some(member) = self.member(conn) else {
            return;
        };
        member.line = Line::Closed;
        member.in_flight = 0;
        member.hold = None;
        member.troubles = 0;
        member.troubled = None;
        member.refused = None;
        self.forget_all(conn);
    }

    /// The connection is given up: its markets look for another.
    pub(crate) fn abandon(&mut self, conn: ConnId) {
        self.down(conn);
        let Some(member) = self.member(conn) else { return };
        let markets = std::mem::take(&mut member.markets);
        member.queue.clear();
        member.wanted = 0;
        for index in markets {
            self.assigner.unplace(conn);
            let Some(market) = self.markets.get_mut(index) else { continue };
            (market.place, market.queued) = (None, false);
            if market.wanted { self.enqueue(index) } else { self.release(index) }
        }
    }

    /// Every market of the connection is off the exchange.
    fn forget_all(&mut self, conn: ConnId) {
        let Some(markets) = self.member(conn).map(|member| member.markets.clone()) else { return };
        for index in markets {
            self.settle(index, Some(Observed::Absent));
        }
    }

    /// Nothing is in flight about a market any more, and this is what is known of it now, if
    /// anything new is. If it needs something it queues; if it needs nothing ever, it goes.
    fn settle(&mut self, index: usize, observed: Option<Observed>) {
        let Some(market) = self.markets.get_mut(index) else { return };
        market.in_flight = None;
        let new = observed.unwrap_or(market.observed);
        let was = std::mem::replace(&mut market.observed, new);
        let (need, queued) = (market.need(true), market.queued);
        match (was == Observed::Present, new == Observed::Present) {
            (false, true) => self.confirmed += 1,
            (true, false) => self.confirmed -= 1,
            _ => {}
        }
        match need {
            Need::Nothing => {}
            Need::Add | Need::Delete => self.enqueue(index),
            // One still queued is released when it is taken off the queue.
            Need::Release if queued => {}
            Need::Release => self.release(index),
        }
    }

    /// The subscription is over or out of step: it is ended and opened anew.
    pub(crate) fn renew(&mut self, conn: ConnId, sid: Sid, now: Instant) {
        if let Some(member) = self.member(conn)
            && matches!(member.line, Line::Open { sid: open, .. } if open == sid)
        {
            member.line = Line::Open { sid, renew: true };
            // Once in a while it is renewed at once; books should not wait.
            let calm = member.is_calm(now);
            member.trouble(now);
            member.hold = member.hold.filter(|_| !calm);
        }
    }

    // What to do.

    /// The next command for this connection, if it may have one now. It counts as in flight.
    pub(crate) fn next_request(&mut self, conn: ConnId, now: Instant) -> Option<Request> {
        let limit = self.limits.in_flight;
        let member = self.member(conn)?;
        if !member.live || member.in_flight >= limit || member.hold.is_some_and(|hold| hold > now) {
            return None;
        }
        let (role, line, idle) = (member.role, member.line, member.in_flight == 0);
        // An order-book subscription whose last wanted market is gone.
        let unwanted = !role.is_global() && member.wanted == 0;
        let request = match line {
            Line::Opening | Line::Closing { .. } => return None,
            Line::Closed if role.is_global() => Request::Subscribe { role, markets: Vec::new() },
            Line::Closed => {
                let (markets, _) = self.take(conn, false)?;
                Request::Subscribe { role, markets }
            }
            Line::Open { sid, renew } if renew || unwanted => {
                // Alone, so that what it ends is settled.
                idle.then_some(Request::Unsubscribe { sid })?
            }
            Line::Open { sid, .. } => match self.take(conn, true)? {
                (markets, Change::Add) => Request::Add { sid, markets },
                (markets, Change::Delete) => Request::Delete { sid, markets },
            },
        };
        self.sent(conn, &request);
        Some(request)
    }

    fn sent(&mut self, conn: ConnId, request: &Request) {
        let Some(member) = self.member(conn) else { return };
        member.in_flight += 1;
        match request {
            Request::Subscribe { .. } => member.line = Line::Opening,
            Request::Unsubscribe { sid } => member.line = Line::Closing { sid: *sid },
            Request::Add { .. } | Request::Delete { .. } => {}
        }
    }

    /// Takes markets off the queue that all need the same. The others keep their place.
    fn take(&mut self, conn: ConnId, open: bool) -> Option<(Vec<Ticker>, Change)> {
        let chunk = self.limits.chunk;
        let (mut taken, mut later) = (Vec::new(), Vec::new());
        let (mut kind, mut bytes) = (None, 0);
        while taken.len() < chunk && later.len() < chunk && bytes < COMMAND_BYTES_MAX {
            let Some(index) = self.member(conn)?.queue.pop_front() else { break };
            let Some(market) = self.markets.get_mut(index) else { continue };
            let change = match market.need(open) {
                Need::Add => Change::Add,
                Need::Delete => Change::Delete,
                Need::Release => {
                    self.release(index);
                    continue;
                }
                Need::Nothing => {
                    market.queued = false;
                    continue;
                }
            };
            if *kind.get_or_insert(change) != change {
                later.push(index);
                continue;
            }
            market.queued = false;
            market.in_flight = Some(change);
            bytes += market.ticker.as_str().len() + 3;
            taken.push(market.ticker.clone());
        }
        let member = self.member(conn)?;
        for index in later.into_iter().rev() {
            member.queue.push_front(index);
        }
        Some((taken, kind?))
    }

    /// A command ended.
    pub(crate) fn ended(
        &mut self,
        conn: ConnId,
        request: &Request,
        outcome: Outcome,
        sid: Option<Sid>,
        now: Instant,
    ) {
        let Some(member) = self.member(conn) else {
            return;
        };
        member.in_flight = member.in_flight.saturating_sub(1);
        match outcome {
            Outcome::ConnectionLost => return self.losing(conn),
            Outcome::Ok => member.refused = None,
            Outcome::TimedOut => {}
            // What it does not know is what ends a renewal; otherwise it is trouble too.
            Outcome::Rejected { code: UNKNOWN_SUBSCRIPTION }
                if matches!(request, Request::Unsubscribe { .. }) => {}
            Outcome::Rejected { code } => {
                member.trouble(now);
                member.refused = Some(code);
            }
        }
        let line = member.line;
        // A refusal says that this command was not carried out: what was known stays.
        let learned = match outcome {
            Outcome::TimedOut | Outcome::Rejected { code: COMMAND_TIMEOUT } => {
                Some(Observed::Unknown)
            }
            _ => None,
        };
        match (request, outcome) {
            (Request::Subscribe { markets, .. }, Outcome::Ok) => {
                member.line = sid.map_or(Line::Closed, |sid| Line::Open { sid, renew: false });
                self.settle_all(markets, Some(Observed::Present));
            }
            (Request::Subscribe { markets, .. }, _) => {
                member.line = Line::Closed;
                self.settle_all(markets, learned);
            }
            // Of a subscription closed meanwhile: its markets were settled then.
            _ if request.sid() != line.sid() => {}
            (_, Outcome::Rejected { code: UNKNOWN_SUBSCRIPTION })
            | (Request::Unsubscribe { .. }, Outcome::Ok) => self.closed(conn),
            (Request::Add { markets, .. }, Outcome::Ok) => {
                self.settle_all(markets, Some(Observed::Present));
            }
            (Request::Delete { markets, .. }, Outcome::Ok) => {
                self.settle_all(markets, Some(Observed::Absent));
            }
            (Request::Add { markets, .. } | Request::Delete { markets, .. }, _) => {
                self.settle_all(markets, learned);
            }
            (Request::Unsubscribe { sid }, _) => {
                // Ended or not, we do not know; asking again finds out.
                member.line = Line::Open { sid: *sid, renew: true };
            }
        }
    }

    /// The exchange has no subscription of ours on this connection any more.
    fn closed(&mut self, conn: ConnId) {
        if let Some(member) = self.member(conn) {
            member.line = Line::Closed;
        }
        self.forget_all(conn);
    }

    fn settle_all(&mut self, tickers: &[Ticker], observed: Option<Observed>) {
        for ticker in tickers {
            if let Some(&index) = self.index.get(ticker) {
                self.settle(index, observed);
            }
        }
    }

    // Questions.

    /// When a refused connection may be tried again, if one with something to say is held.
    pub(crate) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let held = self.members.iter().filter(|member| member.live);
        held.filter_map(|member| member.hold).filter(|&hold| hold > now).min()
    }

    /// Whether the connection's subscription is open.
    pub(crate) fn is_open(&self, conn: ConnId) -> bool {
        let member = self.members.get(place_of(conn));
        member.is_some_and(|member| matches!(member.line, Line::Open { .. }))
    }

    /// The code with which the exchange last refused to open it.
    pub(crate) fn refused(&self, conn: ConnId) -> Option<i64> {
        self.members.get(place_of(conn))?.refused
    }

    /// Open subscriptions.
    pub(crate) fn open(&self) -> u64 {
        let open = |member: &&Member| matches!(member.line, Line::Open { .. });
        widen(self.members.iter().filter(open).count())
    }

    /// Markets wanted, and markets confirmed by the exchange.
    pub(crate) fn totals(&self) -> (u64, u64) {
        (self.wanted, self.confirmed)
    }

    /// Where a market is.
    pub(crate) fn info(&self, ticker: &Ticker) -> Option<SubscriptionInfo> {
        let &index = self.index.get(ticker)?;
        self.markets.get(index).map(|market| self.info_of(market))
    }

    /// Where every market is, in order of first mention.
    pub(crate) fn all(&self) -> Vec<SubscriptionInfo> {
        let known = |index: &usize, market: &&Market| self.index.get(&market.ticker) == Some(index);
        let markets = self.markets.iter().enumerate();
        markets
            .filter(|(index, market)| known(index, market))
            .map(|(_, market)| self.info_of(market))
            .collect()
    }

    fn info_of(&self, market: &Market) -> SubscriptionInfo {
        let conn = market.place.map(|(conn, _)| conn);
        let member = conn.and_then(|conn| self.members.get(place_of(conn)));
        let sid = member.and_then(|member| member.line.sid());
        SubscriptionInfo { ticker: market.ticker.clone(), conn, sid, state: market.state() }
    }

    fn member(&mut self, conn: ConnId) -> Option<&mut Member> {
        self.members.get_mut(place_of(conn))
    }
}

/// A connection's place in the list; none for number zero.
fn place_of(conn: ConnId) -> usize {
    usize::from(conn.number()).wrapping_sub(1)
}

#[cfg(test)]
mod tests;
