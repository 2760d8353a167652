//! The registry's changes on their way in, and what follows from them on its way out: which
//! connection a market gets, which commands go, and what is told of their ends.

use std::time::Instant;

use super::{Conductor, TAKEN_PER_STEP, taken};
use crate::assign::Unplaced;
use crate::command::{Ended, Outcome};
use crate::connection::Connection;
use crate::event::Event;
use crate::ids::{ConnId, Epoch, Role, Ticker};
use crate::mailbox::Order;
use crate::registry::Wish;
use crate::subscription::{Refusal, Step, Subscriptions};

impl<L> Conductor<L> {
    /// Changes coalesce per market as they are taken: the last state wins.
    pub(super) fn take_changes(&mut self, now: Instant) -> bool {
        for _ in 0..TAKEN_PER_STEP {
            let Some(told) = taken(&mut self.parts.inputs.changes) else { return false };
            let wish = told.wish();
            change(&mut self.parts.subscriptions, &told.ticker, wish, now);
            if !self.has_started {
                // Should this start fail, the next one asks the registry for its list again, which
                // may be older than this change.
                self.remembered.insert(told.ticker, wish);
            }
        }
        true
    }

    /// Gives markets their connections.
    pub(super) fn place(&mut self, now: Instant) {
        if !self.placing {
            let mut books = self.connections.iter().filter(|c| c.role == Role::Orderbook);
            self.placing = books.all(Connection::is_settled);
        }
        if !self.placing {
            return;
        }
        let reason = self.parts.subscriptions.place(now);
        if std::mem::replace(&mut self.unplaced, reason) == reason {
            return;
        }
        let control = &self.parts.counters.control;
        match reason {
            Some(Unplaced::NoHealthyConnections) => control.no_healthy_connections.add(1),
            Some(Unplaced::PoolFull) => control.pool_full.add(1),
            None => {}
        }
        if let Some(reason) = reason {
            let markets = self.parts.subscriptions.waiting();
            self.event(Event::Unplaced { reason, markets });
        }
    }

    /// Tells of markets that were not covered.
    pub(super) fn tell_uncovered(&mut self, now: Instant) {
        for uncovered in self.parts.subscriptions.take_uncovered(now) {
            self.event(Event::Uncovered(Box::new(uncovered)));
        }
        let more = self.parts.subscriptions.uncovered_ms(now);
        self.parts.counters.control.uncovered_market_ms.add(more);
    }

    /// Sends every connection the commands it may have now.
    pub(super) fn request(&mut self, now: Instant) {
        for index in self.parts.subscriptions.in_turn() {
            let Some(connection) = self.connections.get(index) else { return };
            let (conn, epoch) = (connection.conn, connection.epoch);
            while let Some(step) = self.parts.subscriptions.next(conn, now) {
                let order = match step {
                    Step::Send(request) => Order::Command { conn, epoch, request },
                    Step::Reconnect => Order::Drop { conn, epoch },
                };
                self.order(conn, order, now);
            }
            self.settle(conn, epoch, now);
        }
    }

    pub(super) fn ended(&mut self, conn: ConnId, epoch: Epoch, ended: Ended, now: Instant) {
        let role = self.connection(conn).map(|connection| connection.role);
        let markets = self.parts.subscriptions.ended(conn, &ended, now);
        match (ended.outcome, role) {
            (Outcome::Rejected { code }, Some(role)) => {
                self.parts.counters.control.subscribe_error(role, code);
                self.event(Event::Refused { conn, epoch, code, markets });
            }
            (Outcome::TimedOut, _) => self.parts.counters.control.commands_timed_out.add(1),
            _ => {}
        }
        for Refusal { conn, ticker, code } in self.parts.subscriptions.take_refusals() {
            if let Some(more) = self.hushed_refused.allows(now) {
                log::warn!("connection {conn}: the exchange refuses {ticker} (code {code}){more}");
            }
            self.parts.counters.control.markets_refused.add(1);
            self.event(Event::MarketRefused { conn, ticker, code });
        }
        log::debug!("connection {conn}: command {} ended: {:?}", ended.id, ended.outcome);
        if self.parts.command_events {
            let (id, outcome) = (ended.id, ended.outcome);
            let responses = ended.detail.map(|detail| detail.responses).unwrap_or_default();
            self.event(Event::Command { conn, epoch, id, outcome, responses });
        }
    }
}

pub(super) fn change(
    subscriptions: &mut Subscriptions,
    ticker: &Ticker,
    Wish { wanted, priority }: Wish,
    now: Instant,
) {
    if wanted {
        subscriptions.want(ticker.as_str(), priority, now);
    } else {
        subscriptions.unwant(ticker.as_str(), now);
    }
}
