//! What a connection is asked next, and for which markets.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::member::{Flight, Line};
use super::repair::Recovered;
use super::{Subscriptions, place_of};
use crate::command::UNANSWERED_MAX;
use crate::dialect::Dialect;
use crate::ids::{ConnId, Role};
use crate::market::{Change, Market, Need, Observed, Shelf, Slot};
use crate::request::{Ask, Request};
use crate::timer::after;

/// Tickers of one command, in bytes: what a shard writes in one turn, in some 40 microseconds.
const COMMAND_BYTES_MAX: usize = 4_000;
/// Time between two commands that look for a market the exchange does not like.
const SEARCH_SPACING: Duration = Duration::from_millis(25);

/// What is to be done with a connection.
#[derive(Debug)]
pub(crate) enum Step {
    Send(Request),
    /// What it is subscribed to cannot be found out: only a new connection makes that certain.
    Reconnect,
}

/// Markets of one command.
pub(super) struct Taken {
    pub(super) change: Change,
    pub(super) markets: Vec<Slot>,
    pub(super) search: bool,
}

/// How full a command's list is, by count and bytes.
pub(super) struct Filling {
    left: usize,
    bytes: usize,
}

impl Filling {
    pub(super) fn new(markets_max: usize) -> Self {
        Self { left: markets_max, bytes: 0 }
    }

    /// Adds a ticker; false when there is no room for it.
    pub(super) fn add(&mut self, ticker: &str) -> bool {
        if self.left == 0 || self.bytes >= COMMAND_BYTES_MAX {
            return false;
        }
        self.left -= 1;
        self.bytes += ticker.len() + 3;
        true
    }
}

impl Subscriptions {
    /// What is next for this connection, if it may be asked anything now. What is sent counts as
    /// in flight.
    pub(crate) fn next(&mut self, conn: ConnId, now: Instant) -> Option<Step> {
        self.at(now);
        let in_flight = self.settings.in_flight;
        let member = self.members.get_mut(place_of(conn))?;
        let open = member.flights.len();
        let silent = member.overdue.len().saturating_add(open) >= UNANSWERED_MAX;
        let held = member.pace.held_until(now).is_some();
        if !member.live || held || silent || open >= in_flight {
            return None;
        }
        if self.settings.dialect == Dialect::Legacy && member.role == Role::Orderbook {
            return self.next_single(conn, now);
        }
        if !self.lists && matches!(member.line, Line::Unsure { .. }) {
            self.losing(conn);
            return Some(Step::Reconnect);
        }
        self.next_shared(conn, now).map(Step::Send)
    }

    fn next_shared(&mut self, conn: ConnId, now: Instant) -> Option<Request> {
        if matches!(self.member(conn)?.line, Line::Open { renew: false, .. })
            && let Some(request) = self.repair(conn, now)
        {
            return Some(request);
        }
        let member = self.member(conn)?;
        let (line, idle, global) =
            (member.line, member.flights.is_empty(), member.role.is_global());
        let unwanted = !global && member.wanted == 0;
        match line {
            Line::Opening | Line::Closing { .. } | Line::Asking { .. } => None,
            Line::Unsure { taken } => {
                member.line = idle.then_some(Line::Asking { taken })?;
                self.send(conn, Ask::List, Taken::nothing(), now)
            }
            Line::Closed => {
                let taken =
                    if global { Taken::nothing() } else { self.take(conn, &[Change::Add], now)? };
                self.member(conn)?.line = Line::Opening;
                self.send(conn, Ask::Subscribe, taken, now)
            }
            // Alone, so that what it ends is settled.
            Line::Open { sid, renew } if renew || unwanted => {
                member.line = idle.then_some(Line::Closing { sid })?;
                self.send(conn, Ask::Unsubscribe(sid), Taken::nothing(), now)
            }
            Line::Open { sid, .. } => {
                if let Some(taken) = self.take(conn, &[Change::Delete, Change::Add], now) {
                    let ask = match taken.change {
                        Change::Add => Ask::Add(sid),
                        Change::Delete => Ask::Delete(sid),
                    };
                    return self.send(conn, ask, taken, now);
                }
                let books = self.take_bookless(conn)?;
                self.send(conn, Ask::Books(sid), books, now)
            }
        }
    }

    /// Writes the command and counts it as in flight.
    pub(super) fn send(
        &mut self,
        conn: ConnId,
        ask: Ask,
        taken: Taken,
        now: Instant,
    ) -> Option<Request> {
        let member = self.members.get_mut(place_of(conn))?;
        let id = member.next_id();
        let Taken { markets, search, .. } = taken;
        let tickers: Vec<&str> = markets.iter().map(|&slot| self.directory.ticker(slot)).collect();
        let request = ask.request(id, (self.settings.dialect, member.role), &tickers);
        member.flights.push(Flight { id, ask, markets, search, doubted: BTreeSet::new() });
        member.pace.sent(now);
        Some(request)
    }

    /// Markets that all wait for the same one of these changes; deletions first, since they make
    /// room.
    fn take(&mut self, conn: ConnId, changes: &[Change], now: Instant) -> Option<Taken> {
        if let Some(taken) = self.take_suspects(conn, changes, now) {
            return Some(taken);
        }
        let chunk = self.settings.chunk;
        changes.iter().find_map(|&change| {
            let most = match change {
                Change::Add => self.member(conn)?.pace.chunk(),
                Change::Delete => chunk,
            };
            let mut markets = Vec::new();
            let mut filling = Filling::new(most);
            while let Some(slot) = self.members.get(place_of(conn))?.first(change)
                && filling.add(self.directory.ticker(slot))
            {
                self.ask_about(slot, change);
                markets.push(slot);
            }
            (!markets.is_empty()).then_some(Taken { change, markets, search: false })
        })
    }

    /// The market is being asked about from now on.
    pub(super) fn ask_about(&mut self, slot: Slot, change: Change) {
        let tenths = self.tenths;
        if let Some(market) = self.directory.get_mut(slot) {
            (market.asked, market.since) = (Some(change), tenths);
        }
        self.shelve(slot, Shelf::Rest);
    }

    /// A list that was refused as part of a longer one: one at a time, and not too fast.
    fn take_suspects(&mut self, conn: ConnId, changes: &[Change], now: Instant) -> Option<Taken> {
        let member = self.member(conn)?;
        if member.searches() || member.search_at.is_some_and(|at| at > now) {
            return None;
        }
        loop {
            let member = self.member(conn)?;
            member.suspects.last().filter(|(change, _)| changes.contains(change))?;
            let (change, mut markets) = member.suspects.pop()?;
            markets.retain(|&slot| self.is_still_asked(slot, change));
            if !markets.is_empty() {
                self.member(conn)?.search_at = Some(after(now, SEARCH_SPACING));
                return Some(Taken { change, markets, search: true });
            }
        }
    }

    /// Whether a suspect still needs what was asked for; if not, it needs something else.
    fn is_still_asked(&mut self, slot: Slot, change: Change) -> bool {
        let Some(market) = self.directory.get_mut(slot) else { return false };
        market.asked = None;
        let needs = match market.need() {
            Need::Add => change == Change::Add,
            Need::Delete => change == Change::Delete,
            Need::Nothing | Need::Patience | Need::Release => false,
        };
        if needs {
            market.asked = Some(change);
        } else {
            self.file(slot);
        }
        needs
    }

    // Books that did not come.

    /// Books of these markets are due: acknowledged now, they must come soon.
    pub(super) fn expect_books(&mut self, conn: ConnId, markets: Vec<Slot>, now: Instant) {
        let at = after(now, self.settings.subscribe_timeout);
        if let Some(member) = self.member(conn).filter(|member| member.role == Role::Orderbook) {
            member.due.push_back(super::member::Due { at, markets });
        }
    }

    /// Books of these markets came; one ticker a line. Says which of them were suspect.
    pub(crate) fn books_came(&mut self, conn: ConnId, tickers: &str, now: Instant) -> Recovered {
        for ticker in tickers.lines() {
            let slot = self.directory.find(ticker);
            let market = slot.and_then(|slot| self.directory.get_mut(slot));
            if let Some(market) = market.filter(|market| market.conn() == Some(conn)) {
                market.booked = true;
            }
        }
        self.repaired(conn, tickers, now)
    }

    /// Notes the markets whose books are overdue. Each is asked for once.
    pub(super) fn check_books(&mut self, conn: ConnId, now: Instant) {
        while let Some(member) = self.members.get_mut(place_of(conn))
            && member.due.front().is_some_and(|due| due.at <= now)
            && let Some(due) = member.due.pop_front()
        {
            for slot in due.markets {
                let Some(market) = self.directory.get_mut(slot) else { continue };
                if lacks_book(market, conn) {
                    market.booked = true;
                    member.bookless.push(slot);
                }
            }
        }
    }

    fn take_bookless(&mut self, conn: ConnId) -> Option<Taken> {
        let member = self.members.get_mut(place_of(conn))?;
        let from = member.bookless.len().saturating_sub(member.pace.chunk());
        let mut markets = member.bookless.split_off(from);
        let here = |slot: &Slot| {
            let market = self.directory.get(*slot);
            market.is_some_and(|market| {
                market.conn() == Some(conn) && market.observed == Observed::Present
            })
        };
        markets.retain(here);
        (!markets.is_empty()).then_some(Taken { markets, ..Taken::nothing() })
    }
}

fn lacks_book(market: &Market, conn: ConnId) -> bool {
    let here = market.conn() == Some(conn) && market.observed == Observed::Present;
    here && market.asked.is_none() && !market.booked
}

impl Taken {
    /// A command that names no market.
    pub(super) fn nothing() -> Self {
        Self { change: Change::Add, markets: Vec::new(), search: false }
    }

    /// A command about one market.
    pub(super) fn one(slot: Slot) -> Self {
        Self { markets: vec![slot], ..Self::nothing() }
    }
}
