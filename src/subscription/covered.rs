//! Which markets are covered follows from what is wanted and what is with the exchange: this tells
//! `coverage` whenever one of the two changes. It decides nothing.

use std::time::{Instant, SystemTime};

use super::member::Member;
use super::{Subscriptions, place_of};
use crate::clock::Stamp;
use crate::coverage::{Since, Uncovered, UncoveredMarkets, UncoveredReason};
use crate::ids::{ConnId, Epoch, Role, widen};
use crate::lapse::Lapse;
use crate::market::{Market, Observed, Slot};

impl Subscriptions {
    /// The same, with the time of both clocks: until then nothing is on the wall clock.
    pub(crate) fn with_clock(mut self, clock: Stamp) -> Self {
        self.coverage.set_clock(clock);
        for member in self.members.iter().filter(|member| member.role.is_global()) {
            let reason = UncoveredReason::NotSubscribed;
            self.coverage.begin_line(member.conn, Since { at: clock.mono, reason });
        }
        self
    }

    /// A shard says when a connection that is lost brought its last data, and what time it is.
    pub(crate) fn heard_last(&mut self, last_data: Instant, clock: Stamp) {
        self.quiet_since = Some(last_data);
        self.coverage.set_clock(clock);
    }

    /// Whether a market is wanted and not known to be with the exchange.
    pub(super) fn lacks(&self, slot: Slot) -> bool {
        self.directory.get(slot).is_some_and(is_lacking)
    }

    /// A market may lack what it did not, or the other way round.
    pub(super) fn follow(&mut self, slot: Slot, lacked: bool, since: Since) {
        let Some(market) = self.directory.get(slot) else { return };
        match (lacked, is_lacking(market)) {
            (false, true) => self.coverage.begin(slot, market.conn(), since),
            (true, false) => {
                let ticker = self.directory.ticker(slot);
                self.coverage.end(slot, market.conn(), ticker, self.now);
            }
            _ => {}
        }
    }

    /// A market is wanted no more, or again, while its subscription is over and nobody has
    /// acknowledged that: what it lacked ends now, or begins now.
    pub(super) fn follow_wish(&mut self, slot: Slot) {
        let Some(market) = self.directory.get(slot) else { return };
        let (conn, wanted, present) =
            (market.conn(), market.wanted, market.observed == Observed::Present);
        let member = conn.and_then(|conn| self.members.get_mut(place_of(conn)));
        let Some(member) = member.filter(|_| present) else { return };
        let Some(at) = over_at(member, Some(slot)) else { return };
        if wanted {
            member.own.over_at.insert(slot, self.now);
        } else {
            self.coverage.begin(slot, conn, ended(at));
            self.coverage.end(slot, conn, self.directory.ticker(slot), self.now);
        }
    }

    /// Since when a market of this connection, or all of it, is lost that is lost now, and why.
    pub(super) fn loss(&self, conn: Option<ConnId>, slot: Option<Slot>) -> Since {
        let member = conn.and_then(|conn| self.members.get(place_of(conn)));
        let quiet_since = self.quiet_since.unwrap_or(self.now).min(self.now);
        match member.and_then(|member| over_at(member, slot)) {
            // Over long before its end was acknowledged, perhaps; and alive until then, however
            // long ago the last data came.
            Some(over) => ended(over),
            None if member.is_some_and(|member| member.live) => ended(self.now),
            None => Since { at: quiet_since, reason: UncoveredReason::Down },
        }
    }

    /// A market that lacks something has another connection, or none.
    pub(super) fn follow_move(&mut self, slot: Slot, from: Option<ConnId>) {
        let to = self.directory.get(slot).filter(|market| is_lacking(market)).map(Market::conn);
        if let Some(to) = to {
            self.coverage.moved(slot, from, to);
        }
    }

    /// A line that names no markets may be open now, or no longer.
    pub(super) fn follow_line(&mut self, conn: ConnId) {
        let Some(role) = self.members.get(place_of(conn)).map(|member| member.role) else { return };
        match (role.is_global(), self.is_open(conn)) {
            (true, true) => self.coverage.end_line(conn, role, self.now),
            (true, false) => {
                let since = self.loss(Some(conn), None);
                self.coverage.begin_line(conn, since);
            }
            (false, _) => {}
        }
    }

    /// Messages of a connection were lost.
    pub(crate) fn lapsed(&mut self, conn: ConnId, epoch: Epoch, lapse: Lapse, clock: Stamp) {
        self.coverage.set_clock(clock);
        let Some(member) = self.members.get(place_of(conn)) else { return };
        let Lapse { start, end, sid, missed, dropped } = lapse;
        // In the legacy dialect each market has a sid of its own.
        let own = sid.and_then(|sid| member.own.by_sid.get(&sid)).copied();
        let markets = match (member.role, own) {
            (Role::Orderbook, Some(slot)) => {
                UncoveredMarkets::of(std::iter::once(self.directory.ticker(slot)))
            }
            (Role::Orderbook, None) => UncoveredMarkets::AllOfConnection(widen(member.present)),
            _ => UncoveredMarkets::AllOfChannel,
        };
        self.coverage.lost(Uncovered {
            conn: Some(conn),
            role: member.role,
            epoch: Some(epoch),
            sid,
            reason: UncoveredReason::Lost { missed, dropped },
            start,
            end: end.max(start),
            markets,
        });
    }

    /// What is to be told of markets that were not covered.
    pub(crate) fn take_uncovered(&mut self, now: Instant) -> Vec<Uncovered> {
        self.coverage.take(now)
    }

    /// Market-milliseconds without coverage since this was last asked.
    pub(crate) fn uncovered_ms(&mut self, now: Instant) -> u64 {
        self.coverage.more_ms(now)
    }

    /// The end: what lacks anything now is told, and nothing after.
    pub(crate) fn end_coverage(&mut self, now: Instant) {
        self.at(now);
        for (slot, ticker, market) in self.directory.iter() {
            let member = market.conn().and_then(|conn| self.members.get(place_of(conn)));
            let over = member.and_then(|member| over_at(member, Some(slot)));
            // Over, and its end not acknowledged yet.
            let over = over.filter(|_| market.wanted && !is_lacking(market));
            over.into_iter().for_each(|at| self.coverage.begin(slot, market.conn(), ended(at)));
            if over.is_some() || is_lacking(market) {
                self.coverage.end(slot, market.conn(), ticker, now);
            }
        }
        for member in &self.members {
            if let Some(at) = member.over_at.filter(|_| member.role.is_global()) {
                self.coverage.begin_line(member.conn, ended(at));
            }
            self.coverage.end_line(member.conn, member.role, now);
        }
        self.coverage.close();
    }
}

fn is_lacking(market: &Market) -> bool {
    market.wanted && market.observed != Observed::Present
}

/// When the subscription of a market on this connection, or of all of it, was over.
fn over_at(member: &Member, slot: Option<Slot>) -> Option<Instant> {
    slot.and_then(|slot| member.own.over_at.get(&slot).copied()).or(member.over_at)
}

fn ended(at: Instant) -> Since {
    Since { at, reason: UncoveredReason::SubscriptionEnded }
}

/// The start of no time.
pub(super) fn no_clock(now: Instant) -> Stamp {
    Stamp { wall: SystemTime::UNIX_EPOCH, mono: now }
}
