//! What each connection should hold and what it holds: desired and observed, kept apart, and the
//! next command that brings them closer. Pure; the conductor feeds it changes, comings and goings
//! and outcomes, and sends the requests it asks for.
//!
//! The invariant: a market is in one place or none, and in exactly one list there, by what it
//! needs; whatever the order of changes, replies (late ones too), timeouts and reconnects, once
//! they stop every wanted market is with the exchange once, and no other is. So a thousand changes
//! of one market cost one command, each change costs the same whatever the number of markets, and
//! what is asked next is always the first of a list.
//!
//! On the live exchange all markets of a connection share one sid: the first list opens it, others
//! are added to it, single markets are deleted from it, and it is unsubscribed when the last one
//! goes. In the legacy dialect each market has a sid of its own.
//!
//! Parts: `covered` since when a market is covered or not, `directory` the table, `list` the lists
//! in it, `member` one connection, `pace` how fast it may be asked, `plan` what to ask next,
//! `repair` what gaps call for, `reply` what answers mean, `single` the legacy dialect.

mod covered;
mod directory;
mod list;
mod member;
mod pace;
mod plan;
mod repair;
mod reply;
mod single;

use std::time::{Duration, Instant};

use self::directory::Directory;
use self::list::Ranks;
use self::member::{Line, Member};
pub(crate) use self::plan::Step;
use self::repair::Repairs;
pub(crate) use self::repair::{MARKETS_TOLD_MAX, Suspected};
use crate::assign::{Assigner, Unplaced};
use crate::assignments::Assignments;
use crate::code::ExchangeCode;
use crate::config::ConfigBuilder;
use crate::coverage::{Coverage, Since, UncoveredReason};
use crate::dialect::Dialect;
use crate::gap::GapPolicy;
use crate::ids::{ConnId, Role, Sid, Ticker, widen};
use crate::market::{Market, Need, Observed, Shelf, Slot, SubscriptionInfo};
use crate::timer::{after, earlier};

/// A market refused by itself is asked for again after this long, in tenths of a second.
const HELD_TENTHS: u32 = 3_000;
/// A limit the exchange set is tried again after this long.
const LIMIT_FORGOTTEN: Duration = Duration::from_secs(600);

/// What it needs to know of the configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SubscriptionSettings {
    pub(crate) dialect: Dialect,
    /// Markets in one command.
    pub(crate) chunk: usize,
    /// Commands in flight on one connection.
    pub(crate) in_flight: usize,
    pub(crate) markets_per_connection: usize,
    /// How long a connection may be down before its markets move.
    pub(crate) migrate_after: Option<Duration>,
    pub(crate) subscribe_timeout: Duration,
    pub(crate) gap_policy: GapPolicy,
    /// Snapshots asked for after gaps in a second, over all connections.
    pub(crate) recovery_rate: usize,
}

impl SubscriptionSettings {
    pub(crate) fn new(settings: &ConfigBuilder) -> Self {
        Self {
            dialect: settings.dialect,
            chunk: settings.chunk,
            in_flight: settings.commands_in_flight,
            markets_per_connection: settings.markets_per_connection,
            migrate_after: settings.migrate_after,
            subscribe_timeout: settings.subscribe_timeout,
            gap_policy: settings.gap_policy,
            recovery_rate: settings.recovery_rate,
        }
    }
}

/// A market the exchange refused by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) conn: ConnId,
    pub(crate) ticker: Ticker,
    pub(crate) code: ExchangeCode,
}

/// Desired and observed subscriptions of the whole pool.
#[derive(Debug)]
pub(crate) struct Subscriptions {
    directory: Directory,
    members: Vec<Member>,
    /// Wanted, without a connection yet.
    unplaced: Ranks,
    waiting: u64,
    assigner: Assigner,
    settings: SubscriptionSettings,
    wanted: u64,
    confirmed: u64,
    repairs: Repairs,
    coverage: Coverage,
    /// When the connection that is being taken down brought its last data.
    quiet_since: Option<Instant>,
    /// To be told to the host.
    refusals: Vec<Refusal>,
    /// Whether the exchange names its subscriptions when asked; believed until it refuses.
    lists: bool,
    born: Instant,
    /// The time of the event being dealt with.
    now: Instant,
    /// The time of the event being dealt with, in tenths of a second since `born`.
    tenths: u32,
}

impl Subscriptions {
    pub(crate) fn new(
        pool: impl Iterator<Item = (ConnId, Role)>,
        settings: SubscriptionSettings,
        now: Instant,
    ) -> Self {
        let roles: Vec<_> = pool.collect();
        let books = roles.iter().filter(|(_, role)| *role == Role::Orderbook);
        let first = books.clone().next().map_or(ConnId::new(1), |&(conn, _)| conn);
        let assigner = Assigner::new(first, books.count(), settings.markets_per_connection);
        let member = |&(conn, role)| Member::new(conn, role, settings.chunk);
        Self {
            directory: Directory::default(),
            members: roles.iter().map(member).collect(),
            unplaced: Ranks::default(),
            waiting: 0,
            assigner,
            settings,
            wanted: 0,
            confirmed: 0,
            repairs: Repairs::new(settings.gap_policy, settings.recovery_rate),
            coverage: Coverage::new(roles.len(), covered::no_clock(now)),
            quiet_since: None,
            refusals: Vec::new(),
            lists: true,
            born: now,
            now,
            tenths: 0,
        }
    }

    /// An event at this time begins.
    fn at(&mut self, now: Instant) {
        let tenths = now.saturating_duration_since(self.born).as_millis() / 100;
        self.tenths = u32::try_from(tenths).unwrap_or(u32::MAX);
        self.now = now;
    }

    // What should be.

    /// The registry wants this market's book, this much.
    pub(crate) fn want(&mut self, ticker: &str, priority: u8, now: Instant) {
        self.at(now);
        let slot = self.directory.find(ticker).or_else(|| self.directory.insert(ticker));
        match slot {
            Some(slot) => self.change(slot, true, priority),
            None => log::error!("no memory for more markets: {ticker} is not subscribed"),
        }
    }

    /// The registry wants it no more.
    pub(crate) fn unwant(&mut self, ticker: &str, now: Instant) {
        self.at(now);
        if let Some(slot) = self.directory.find(ticker) {
            self.change(slot, false, 0);
        }
    }

    fn change(&mut self, slot: Slot, wanted: bool, priority: u8) {
        let same =
            |market: &Market| market.wanted == wanted && (market.priority == priority || !wanted);
        if self.directory.get(slot).is_none_or(same) {
            return;
        }
        // It leaves its list by the priority it joined with.
        self.shelve(slot, Shelf::Nowhere);
        let lacked = self.lacks(slot);
        let Some(market) = self.directory.get_mut(slot) else { return };
        market.priority = priority;
        let conn = market.conn();
        if std::mem::replace(&mut market.wanted, wanted) != wanted {
            market.held = false;
            self.wanted = if wanted { self.wanted + 1 } else { self.wanted - 1 };
            if let Some(member) = conn.and_then(|conn| self.member(conn)) {
                member.wanted = if wanted { member.wanted + 1 } else { member.wanted - 1 };
            }
            self.follow_wish(slot);
        }
        let since = Since { at: self.now, reason: UncoveredReason::NotSubscribed };
        self.follow(slot, lacked, since);
        self.file(slot);
    }

    /// Puts a market on the list of what it needs; forgets it if that is nothing, for good.
    fn file(&mut self, slot: Slot) {
        let Some(market) = self.directory.get(slot) else { return };
        // Without a sid nothing can be said about a single subscription: the exchange is asked.
        let unsure = self.is_single(market) && market.observed == Observed::Unknown;
        let shelf = match (market.need(), market.conn) {
            (Need::Release, _) => return self.release(slot),
            (_, 0) => Shelf::Unplaced,
            (Need::Nothing, _) => Shelf::Rest,
            (Need::Patience, _) => Shelf::Held,
            (Need::Add | Need::Delete, _) if unsure => Shelf::Rest,
            (Need::Add, _) => Shelf::Adds,
            (Need::Delete, _) => Shelf::Deletes,
        };
        self.shelve(slot, shelf);
    }

    /// Moves a market from the list it is in to another.
    fn shelve(&mut self, slot: Slot, shelf: Shelf) {
        let Some(market) = self.directory.get_mut(slot) else { return };
        let from = std::mem::replace(&mut market.shelf, shelf);
        if from == shelf {
            return;
        }
        let (conn, rank) = (market.conn(), market.priority);
        if from == Shelf::Unplaced {
            self.unplaced.remove(&mut self.directory, slot, rank);
            self.waiting -= 1;
        }
        if let Some(member) = conn.and_then(|conn| self.members.get_mut(place_of(conn))) {
            member.unshelve(&mut self.directory, slot, from, rank);
            member.shelve(&mut self.directory, slot, shelf, rank);
        }
        if shelf == Shelf::Unplaced {
            self.unplaced.push(&mut self.directory, slot, rank);
            self.waiting += 1;
        }
    }

    /// Forgets a market that is neither wanted nor with the exchange.
    fn release(&mut self, slot: Slot) {
        self.shelve(slot, Shelf::Nowhere);
        if let Some(conn) = self.directory.get(slot).and_then(Market::conn) {
            self.excuse(conn, slot);
            self.assigner.unplace(conn);
        }
        self.directory.remove(slot);
    }

    /// Gives waiting markets a connection while there is one, those that matter most first; says
    /// why it stopped, if it did before all had one.
    pub(crate) fn place(&mut self, now: Instant) -> Option<Unplaced> {
        self.at(now);
        while let Some(slot) = self.unplaced.first() {
            let conn = match self.assigner.place() {
                Ok(conn) => conn,
                Err(reason) => return Some(reason),
            };
            self.shelve(slot, Shelf::Nowhere);
            let tenths = self.tenths;
            if let Some(market) = self.directory.get_mut(slot) {
                (market.conn, market.since) = (conn.number(), tenths);
            }
            if let Some(member) = self.member(conn) {
                member.wanted += 1;
            }
            self.follow_move(slot, None);
            self.file(slot);
        }
        None
    }

    /// Takes a market off its connection, where nothing is known of it: it looks for another.
    fn displace(&mut self, slot: Slot) {
        self.shelve(slot, Shelf::Nowhere);
        let tenths = self.tenths;
        let Some(market) = self.directory.get_mut(slot) else { return };
        let (conn, wanted) = (market.conn(), market.wanted);
        (market.conn, market.since) = (0, tenths);
        if let Some(conn) = conn {
            self.excuse(conn, slot);
            self.assigner.unplace(conn);
            if let Some(member) = self.member(conn).filter(|_| wanted) {
                member.wanted -= 1;
            }
        }
        self.follow_move(slot, conn);
        self.file(slot);
    }

    // What is.

    /// The connection is live in a new epoch: nothing is subscribed on it yet.
    pub(crate) fn up(&mut self, conn: ConnId) {
        if let Some(member) = self.member(conn) {
            (member.live, member.down_since) = (true, None);
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

    /// The connection is gone and its subscriptions with it: all its markets wait to be added.
    pub(crate) fn down(&mut self, conn: ConnId, now: Instant) {
        self.at(now);
        self.losing(conn);
        let Some(member) = self.member(conn) else { return };
        for overdue in std::mem::take(&mut member.overdue) {
            self.unpin(&overdue.flight.markets);
        }
        self.forget_all(conn);
        self.assigner.limit(conn, None);
        if let Some(member) = self.member(conn) {
            member.reset();
            member.down_since = member.down_since.or(Some(now));
        }
        self.follow_line(conn);
        self.quiet_since = None;
    }

    /// The connection is given up: its markets look for another.
    pub(crate) fn abandon(&mut self, conn: ConnId, now: Instant) {
        self.down(conn, now);
        self.depart(conn);
    }

    fn depart(&mut self, conn: ConnId) {
        let Some(member) = self.members.get(place_of(conn)) else { return };
        for slot in member.markets(&self.directory) {
            self.displace(slot);
        }
    }

    /// Every market of the connection is off the exchange.
    fn forget_all(&mut self, conn: ConnId) {
        self.settle_everything(conn, |_| Observed::Absent);
    }

    /// What is known of the connection's markets is known no more.
    fn doubt_all(&mut self, conn: ConnId) {
        self.settle_everything(conn, |was| match was {
            Observed::Absent => Observed::Absent,
            Observed::Present | Observed::Unknown => Observed::Unknown,
        });
    }

    fn settle_everything(&mut self, conn: ConnId, observed: fn(Observed) -> Observed) {
        let Some(member) = self.members.get_mut(place_of(conn)) else { return };
        member.suspects.clear();
        member.due.clear();
        member.bookless.clear();
        // What still comes of commands under way says nothing about them any more.
        member.flights.iter_mut().for_each(|flight| flight.markets.clear());
        for slot in member.markets(&self.directory) {
            let was = self.directory.get(slot).map(|market| market.observed);
            self.settle(slot, was.map(observed));
        }
    }

    /// Nothing is being asked about a market any more, and this is what is known of it now, if
    /// anything new is.
    fn settle(&mut self, slot: Slot, observed: Option<Observed>) {
        if let Some(market) = self.directory.get_mut(slot) {
            market.asked = None;
            let observed = observed.unwrap_or(market.observed);
            self.learn(slot, observed);
        }
    }

    fn settle_all(&mut self, slots: &[Slot], observed: Option<Observed>) {
        slots.iter().for_each(|&slot| self.settle(slot, observed));
    }

    /// This is what is known of a market now.
    fn learn(&mut self, slot: Slot, observed: Observed) {
        let (tenths, lacked) = (self.tenths, self.lacks(slot));
        let Some(market) = self.directory.get_mut(slot) else { return };
        market.since = tenths;
        let was = std::mem::replace(&mut market.observed, observed);
        if observed == Observed::Absent {
            (market.booked, market.renew) = (false, false);
        }
        let conn = market.conn();
        let (before, after) = (was == Observed::Present, observed == Observed::Present);
        self.confirmed = self.confirmed + u64::from(after) - u64::from(before);
        if let Some(member) = conn.and_then(|conn| self.member(conn)) {
            member.present = member.present + usize::from(after) - usize::from(before);
        }
        self.follow(slot, lacked, self.loss(conn, Some(slot)));
        self.file(slot);
    }

    /// Commands about these markets are waited for no more.
    fn unpin(&mut self, slots: &[Slot]) {
        for &slot in slots {
            if let Some(market) = self.directory.get_mut(slot) {
                market.overdue = market.overdue.saturating_sub(1);
            }
        }
    }

    /// Does what is due by time alone.
    pub(crate) fn tick(&mut self, now: Instant) {
        self.at(now);
        for index in 0..self.members.len() {
            let Some(member) = self.members.get_mut(index) else { return };
            let conn = member.conn;
            if member.limited_until.is_some_and(|until| until <= now) {
                member.limited_until = None;
                self.assigner.limit(conn, None);
            }
            self.expire_overdue(conn, now);
            self.release_held(conn);
            self.check_books(conn, now);
            self.migrate(conn, now);
        }
    }

    fn expire_overdue(&mut self, conn: ConnId, now: Instant) {
        while let Some(member) = self.member(conn)
            && member.overdue.front().is_some_and(|overdue| overdue.until <= now)
            && let Some(overdue) = member.overdue.pop_front()
        {
            let reopening = member.repair.is_reopening();
            self.unpin(&overdue.flight.markets);
            for &slot in &overdue.flight.markets {
                self.file(slot);
                // It is not there after all, and no gap was about it; unless all come anew.
                let absent = |m: &&Market| {
                    m.overdue == 0 && m.observed == Observed::Absent && m.asked.is_none()
                };
                if !reopening && self.directory.get(slot).filter(absent).is_some() {
                    self.excuse(conn, slot);
                }
            }
        }
    }

    /// Markets refused long ago are asked for again.
    fn release_held(&mut self, conn: ConnId) {
        while let Some(slot) = self.members.get(place_of(conn)).and_then(Member::first_held) {
            let tenths = self.tenths;
            let Some(market) = self.directory.get_mut(slot) else { return };
            if market.since.saturating_add(HELD_TENTHS) > tenths {
                return;
            }
            market.held = false;
            self.file(slot);
        }
    }

    /// Markets of a connection that stays down move, while that is the exception.
    fn migrate(&mut self, conn: ConnId, now: Instant) {
        let due = self.members.get(place_of(conn)).and_then(|member| self.migrates_at(member));
        if due.is_some_and(|due| due <= now) && self.assigner.most_are_healthy() {
            self.depart(conn);
        }
    }

    fn migrates_at(&self, member: &Member) -> Option<Instant> {
        let since = member.down_since.filter(|_| member.wanted > 0 && !member.live)?;
        Some(after(since, self.settings.migrate_after?))
    }

    /// When `tick` or `next` has something to do.
    pub(crate) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let deadline = |member: &Member| {
            let held = member.first_held().and_then(|slot| self.directory.get(slot));
            let held = held.map(|market| market.since.saturating_add(HELD_TENTHS));
            let held = held.map(|tenths| after(self.born, Duration::from_millis(100) * tenths));
            let live = [
                member.pace.held_until(now),
                member.search_at.filter(|_| !member.suspects.is_empty()),
                member.due.front().map(|due| due.at),
                member.overdue.front().map(|overdue| overdue.until),
                member.limited_until,
                self.repair_due(&member.repair, now),
                held,
            ];
            let live = live.into_iter().flatten().filter(|&at| member.live && at > now).min();
            earlier(live, self.migrates_at(member).filter(|&at| at > now))
        };
        earlier(
            self.members.iter().filter_map(deadline).min(),
            self.coverage.due().filter(|&due| due > now),
        )
    }

    // Questions.

    /// Whether the connection's subscription is open.
    pub(crate) fn is_open(&self, conn: ConnId) -> bool {
        let member = self.members.get(place_of(conn));
        member.is_some_and(|member| matches!(member.line, Line::Open { .. }))
    }

    /// The code with which the exchange last refused to open it.
    pub(crate) fn refused(&self, conn: ConnId) -> Option<ExchangeCode> {
        self.members.get(place_of(conn))?.refused
    }

    /// Open subscriptions.
    pub(crate) fn open(&self) -> u64 {
        let open = |member: &Member| {
            usize::from(matches!(member.line, Line::Open { .. })) + member.own.by_sid.len()
        };
        widen(self.members.iter().map(open).sum())
    }

    /// Markets wanted, and markets confirmed by the exchange.
    pub(crate) fn totals(&self) -> (u64, u64) {
        (self.wanted, self.confirmed)
    }

    /// Markets wanted that have no connection.
    pub(crate) fn waiting(&self) -> u64 {
        self.waiting
    }

    /// Markets refused by themselves since this was last asked.
    pub(crate) fn take_refusals(&mut self) -> Vec<Refusal> {
        std::mem::take(&mut self.refusals)
    }

    /// Where a market is.
    pub(crate) fn info(&mut self, ticker: &Ticker, now: Instant) -> Option<SubscriptionInfo> {
        self.at(now);
        let slot = self.directory.find(ticker.as_str())?;
        let market = self.directory.get(slot)?;
        Some(SubscriptionInfo {
            ticker: ticker.clone(),
            conn: market.conn(),
            sid: self.sid_of(slot, market),
            state: market.state(),
            age: Duration::from_millis(100) * self.tenths.saturating_sub(market.since),
        })
    }

    /// Where every market is.
    pub(crate) fn assignments(&mut self, now: Instant) -> Assignments {
        self.at(now);
        let mut all = Assignments::with_capacity(self.directory.len());
        for (slot, ticker, market) in self.directory.iter() {
            let sid = self.sid_of(slot, market);
            let tenths = self.tenths.saturating_sub(market.since);
            all.push(ticker, market.conn(), sid, market.state(), tenths);
        }
        all
    }

    fn sid_of(&self, slot: Slot, market: &Market) -> Option<Sid> {
        let member = self.members.get(place_of(market.conn()?))?;
        member.line.sid().or_else(|| member.own.by_market.get(&slot).copied())
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
