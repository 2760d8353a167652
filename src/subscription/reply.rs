//! What the end of a command means: for the subscription, for its markets, and for how the
//! connection is asked from now on.

use std::time::Instant;

use super::member::{Flight, Line, Overdue};
use super::{LIMIT_FORGOTTEN, Refusal, Subscriptions, place_of};
use crate::code::{Action, ExchangeCode};
use crate::command::{Ended, Listed, Outcome};
use crate::dialect::Dialect;
use crate::ids::{ConnId, Role, Sid, Ticker};
use crate::market::{Change, Observed, Slot};
use crate::request::Ask;
use crate::timer::after;

/// A reply that has not come after so many times the time a reply may take will never come, and
/// its command is not carried out any more.
const OVERDUE_TIMES: u32 = 12;

/// What is known once a command has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Done,
    /// Carried out or not.
    Unknown,
    Refused(ExchangeCode, Action),
}

impl Verdict {
    pub(super) fn of(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Ok => Self::Done,
            Outcome::TimedOut | Outcome::ConnectionLost => Self::Unknown,
            Outcome::Rejected { code } => match code.action() {
                Action::Reconcile => Self::Unknown,
                action => Self::Refused(code, action),
            },
        }
    }
}

impl Subscriptions {
    /// A command ended; returns how many markets it named.
    pub(crate) fn ended(&mut self, conn: ConnId, ended: &Ended, now: Instant) -> usize {
        self.at(now);
        let until = after(now, self.settings.subscribe_timeout.saturating_mul(OVERDUE_TIMES));
        let Some(member) = self.members.get_mut(place_of(conn)) else { return 0 };
        let Some(flight) = member.land(ended.id) else { return 0 };
        let markets = flight.markets.len();
        match ended.outcome {
            // All of its markets are settled when it is down.
            Outcome::ConnectionLost => {
                self.losing(conn);
                return markets;
            }
            Outcome::Ok => {
                member.pace.went_well();
                if !matches!(flight.ask, Ask::List | Ask::Books(_)) {
                    member.pace.moved_on();
                }
                member.refused = None;
            }
            // It changes nothing, whenever it is carried out.
            Outcome::TimedOut if matches!(flight.ask, Ask::Books(_)) => {}
            Outcome::TimedOut => {
                // It may be carried out yet; its markets stay where they are until that is over.
                for &slot in &flight.markets {
                    if let Some(market) = self.directory.get_mut(slot) {
                        market.overdue = market.overdue.saturating_add(1);
                    }
                }
                member.overdue.push_back(Overdue { flight: flight.clone(), until });
            }
            // Answered at once it would be repeated at once, again and again; how often books are
            // asked for is bounded anyway, and nothing else need wait for them.
            Outcome::Rejected { code }
                if code.action() == Action::Reconcile && !matches!(flight.ask, Ask::Books(_)) =>
            {
                member.pace.stalled(now);
            }
            Outcome::Rejected { .. } => {}
        }
        let verdict = Verdict::of(ended.outcome);
        self.repair_ended(conn, &flight, verdict, ended);
        if self.is_single_member(conn) {
            self.single_ended(conn, flight, verdict, ended, now);
        } else {
            self.shared_ended(conn, (flight, verdict), ended, now);
        }
        self.follow_line(conn);
        markets
    }

    fn shared_ended(
        &mut self,
        conn: ConnId,
        (flight, verdict): (Flight, Verdict),
        ended: &Ended,
        now: Instant,
    ) {
        let Some(member) = self.members.get_mut(place_of(conn)) else { return };
        match (flight.ask, verdict) {
            (Ask::Subscribe, Verdict::Done) => {
                member.line = Line::Closed;
                ended.sid.into_iter().for_each(|sid| member.opened(sid));
                member.repair.wait_on(now);
                self.settle_flight(&flight, Observed::Present);
                self.expect_books(conn, flight.markets, now);
            }
            (Ask::Subscribe, Verdict::Unknown) => {
                member.line = Line::Unsure { taken: false };
                self.settle_all(&flight.markets, Some(Observed::Unknown));
            }
            (Ask::Subscribe, Verdict::Refused(_, Action::Find)) => {
                member.line = Line::Unsure { taken: true };
                member.pace.trouble_once(now);
                self.settle_all(&flight.markets, Some(Observed::Unknown));
            }
            (Ask::Subscribe, Verdict::Refused(code, action)) => {
                // One that was given up may have been carried out meanwhile.
                let taken = member.present > 0;
                member.line = if taken { Line::Unsure { taken } } else { Line::Closed };
                member.refused = Some(code);
                self.refuse(conn, flight, (code, action), now);
            }
            (Ask::List, verdict) => self.asked(conn, verdict, ended.listed(), now),
            // Of a subscription closed meanwhile: its markets were settled then.
            (ask, _) if ask.sid() != member.line.sid() => {}
            (Ask::Books(_), Verdict::Refused(_, Action::Slow)) => member.pace.too_fast(now),
            (_, Verdict::Refused(_, Action::Reopen)) => {
                if !matches!(flight.ask, Ask::Unsubscribe(_)) {
                    member.pace.trouble_once(now);
                }
                self.closed(conn);
            }
            (
                Ask::Add(sid) | Ask::Delete(sid) | Ask::Books(sid),
                Verdict::Refused(_, Action::Renew),
            ) => self.spoilt(conn, sid, &flight, now),
            (Ask::Books(_), _) => {}
            (Ask::Unsubscribe(_), Verdict::Done) => self.closed(conn),
            (Ask::Unsubscribe(sid), verdict) => {
                // Ended or not, we do not know; asking again finds out.
                member.line = Line::Open { sid, renew: true };
                if let Verdict::Refused(code, action) = verdict {
                    self.refuse(conn, flight, (code, action), now);
                }
            }
            (Ask::Add(_), Verdict::Done | Verdict::Refused(_, Action::Find)) => {
                self.settle_flight(&flight, Observed::Present);
                self.expect_books(conn, flight.markets, now);
            }
            (Ask::Delete(_), Verdict::Done) => self.settle_flight(&flight, Observed::Absent),
            (Ask::Add(_) | Ask::Delete(_), Verdict::Unknown) => {
                self.settle_all(&flight.markets, Some(Observed::Unknown));
            }
            (Ask::Add(_) | Ask::Delete(_), Verdict::Refused(code, action)) => {
                self.refuse(conn, flight, (code, action), now);
            }
        }
    }

    /// The answer is that the line's subscription is over.
    fn spoilt(&mut self, conn: ConnId, sid: Sid, flight: &Flight, now: Instant) {
        let Some(member) = self.member(conn) else { return };
        member.line = Line::Open { sid, renew: true };
        member.over_at = member.over_at.or(Some(now));
        member.pace.trouble_once(now);
        // Of markets whose books were asked for, something else may be asked.
        if !matches!(flight.ask, Ask::Books(_)) {
            self.settle_all(&flight.markets, None);
        }
    }

    /// The command was carried out, and this is what it leads to, unless an older one came after.
    fn settle_flight(&mut self, flight: &Flight, observed: Observed) {
        for &slot in &flight.markets {
            let sure = !flight.doubted.contains(&slot);
            self.settle(slot, Some(if sure { observed } else { Observed::Unknown }));
        }
    }

    /// The exchange said which subscriptions there are, or would not.
    fn asked(&mut self, conn: ConnId, verdict: Verdict, listed: &[Listed], now: Instant) {
        let dialect = self.settings.dialect;
        let Some(member) = self.member(conn) else { return };
        let taken = matches!(member.line, Line::Asking { taken: true });
        match verdict {
            Verdict::Done => {
                let channel = dialect.channel(member.role);
                match listed.iter().find(|listed| listed.channel == channel) {
                    Some(listed) => member.opened(Sid::new(listed.sid)),
                    None => self.closed(conn),
                }
            }
            Verdict::Unknown => member.line = Line::Unsure { taken },
            Verdict::Refused(_, action) => {
                member.line = Line::Unsure { taken };
                match action {
                    // It does not know the question.
                    Action::Refuse => self.lists = false,
                    Action::Slow => member.pace.too_fast(now),
                    _ => member.pace.trouble(now),
                }
            }
        }
    }

    /// A reply came for a command that had ended without one: this is what the exchange did, and
    /// it did it just now.
    pub(crate) fn late(&mut self, conn: ConnId, ended: &Ended, now: Instant) {
        self.at(now);
        let single = self.is_single_member(conn);
        let Some(member) = self.member(conn) else { return };
        let Some(flight) = member.land_late(ended.id) else { return };
        self.unpin(&flight.markets);
        if single {
            self.single_late(conn, &flight, ended);
        } else {
            self.shared_late(conn, &flight, ended);
        }
        self.follow_line(conn);
        flight.markets.iter().for_each(|&slot| self.file(slot));
    }

    fn shared_late(&mut self, conn: ConnId, flight: &Flight, ended: &Ended) {
        let Some(member) = self.member(conn) else { return };
        match Verdict::of(ended.outcome) {
            Verdict::Done => {}
            Verdict::Unknown => return self.shared_late_unknown(conn, flight),
            Verdict::Refused(_, action) => {
                if let (Ask::Unsubscribe(sid), Action::Reopen) = (flight.ask, action)
                    && member.line.sid() == Some(sid)
                {
                    self.closed(conn);
                }
                return;
            }
        }
        let observed = match flight.ask {
            // It has ended since, and the reply was overtaken.
            Ask::Subscribe if ended.sid <= member.ended => return,
            Ask::Subscribe => {
                match (member.line, ended.sid) {
                    (Line::Closed | Line::Unsure { .. }, Some(sid)) => member.opened(sid),
                    // There is one beside the line's, or before it: to be looked for.
                    (line, sid) if line.sid() != sid => member.other = sid,
                    _ => {}
                }
                Observed::Present
            }
            Ask::Unsubscribe(sid) if member.line.sid() == Some(sid) => return self.closed(conn),
            Ask::Add(sid) if member.line.sid() == Some(sid) => Observed::Present,
            Ask::Delete(sid) if member.line.sid() == Some(sid) => Observed::Absent,
            Ask::Add(_) | Ask::Delete(_) | Ask::Unsubscribe(_) | Ask::Books(_) | Ask::List => {
                return;
            }
        };
        let newer = member.doubt(flight);
        for &slot in &flight.markets {
            let was = self.directory.get(slot).map(|market| market.observed);
            let overtaken = newer.contains(&slot) || flight.doubted.contains(&slot);
            // Done before or after what is known or asked since: nobody can say.
            let sure = was == Some(Observed::Unknown) && !overtaken;
            let observed = if sure || was == Some(observed) { observed } else { Observed::Unknown };
            self.learn(slot, observed);
        }
    }

    /// The exchange gave it up just now, and may have carried it out: what it names is asked about
    /// once more.
    fn shared_late_unknown(&mut self, conn: ConnId, flight: &Flight) {
        let Some(member) = self.member(conn) else { return };
        let sid = flight.ask.sid();
        if sid.is_some() && sid != member.line.sid() {
            return;
        }
        if flight.ask == Ask::Subscribe && member.line == Line::Closed {
            member.line = Line::Unsure { taken: false };
        }
        member.doubt(flight);
        flight.markets.iter().for_each(|&slot| self.learn(slot, Observed::Unknown));
    }

    /// The line's subscription is no more. Unless there is another, the exchange has none of ours
    /// on this connection.
    fn closed(&mut self, conn: ConnId) {
        let Some(member) = self.member(conn) else { return };
        let sid = member.line.sid();
        member.ended = member.ended.max(sid);
        member.over = None;
        if member.other.take().is_some_and(|other| Some(other) > member.ended) {
            member.line = Line::Unsure { taken: false };
            self.doubt_all(conn);
            return self.over_is_known(conn);
        }
        member.line = Line::Closed;
        self.forget_all(conn);
        self.reopening(conn);
        self.over_is_known(conn);
    }

    /// Whatever was lost with the line's subscription is known to be.
    fn over_is_known(&mut self, conn: ConnId) {
        self.follow_line(conn);
        if let Some(member) = self.member(conn) {
            member.over_at = None;
            member.own.over_at.clear();
        }
    }

    /// A subscription is over or out of step: it is ended and opened anew.
    pub(crate) fn renew(&mut self, conn: ConnId, sid: Sid, now: Instant) {
        self.at(now);
        if self.is_single_member(conn) {
            return self.renew_single(conn, sid, now);
        }
        let Some(member) = self.members.get_mut(place_of(conn)) else { return };
        member.over = Some(sid);
        match member.line.sid() {
            Some(line) if line == sid => member.over_at = member.over_at.or(Some(now)),
            Some(_) => {}
            None => member.over_at = Some(now),
        }
        match member.line {
            Line::Open { sid: open, renew: false } if open == sid => {
                member.opened(sid);
                member.pace.trouble_once(now);
                self.repairs.come_anew(member.repair.suspects(), now);
            }
            // What a late reply said was on it is not, if that is the one.
            Line::Opening | Line::Unsure { .. } | Line::Asking { .. } => {
                for slot in member.markets(&self.directory) {
                    let market = self.directory.get(slot);
                    if market.is_some_and(|market| market.observed == Observed::Present) {
                        self.learn(slot, Observed::Unknown);
                    }
                }
            }
            Line::Open { .. } | Line::Closed | Line::Closing { .. } => {}
        }
    }

    // Refusals. What was known of the markets stays: the command was not carried out.

    pub(super) fn refuse(
        &mut self,
        conn: ConnId,
        flight: Flight,
        (code, action): (ExchangeCode, Action),
        now: Instant,
    ) {
        let Some(member) = self.member(conn) else { return };
        match action {
            Action::Isolate if !flight.markets.is_empty() => {
                return self.isolate(conn, flight, code);
            }
            Action::Split if matches!(flight.ask, Ask::Subscribe | Ask::Add(_)) => {
                return self.split(conn, &flight, now);
            }
            Action::Slow => member.pace.too_fast(now),
            Action::Refuse => member.pace.refused(now),
            Action::Isolate
            | Action::Split
            | Action::Find
            | Action::Reopen
            | Action::Renew
            | Action::Reconcile => member.pace.trouble(now),
        }
        self.settle_all(&flight.markets, None);
    }

    /// One of these markets may be the reason: each half is asked for by itself, down to the one.
    fn isolate(&mut self, conn: ConnId, flight: Flight, code: ExchangeCode) {
        let Flight { ask, mut markets, .. } = flight;
        if let [slot] = markets[..] {
            return self.hold(conn, slot, code);
        }
        let change = match ask {
            Ask::Delete(_) => Change::Delete,
            _ => Change::Add,
        };
        let second = markets.split_off(markets.len() / 2);
        if let Some(member) = self.member(conn) {
            member.suspects.extend([(change, second), (change, markets)]);
        }
    }

    /// This market is refused by itself: it waits, and the host is told.
    fn hold(&mut self, conn: ConnId, slot: Slot, code: ExchangeCode) {
        if let Some(market) = self.directory.get_mut(slot) {
            market.held = true;
        }
        self.excuse(conn, slot);
        self.settle(slot, None);
        if let Ok(ticker) = self.directory.ticker(slot).parse::<Ticker>() {
            self.refusals.push(Refusal { conn, ticker, code });
        }
    }

    /// The list was too long for the room there is: shorter ones fill it, and what does not fit
    /// goes to other connections.
    fn split(&mut self, conn: ConnId, flight: &Flight, now: Instant) {
        let Some(member) = self.members.get_mut(place_of(conn)) else { return };
        if member.pace.halve(flight.markets.len()) {
            return self.settle_all(&flight.markets, None);
        }
        for &slot in &flight.markets {
            if let Some(market) = self.directory.get_mut(slot) {
                // It may be there for all we know, and goes nowhere else before it is not.
                market.renew = market.observed == Observed::Unknown;
            }
            self.settle(slot, None);
        }
        let Some(member) = self.members.get_mut(place_of(conn)) else { return };
        let asked = member.flights.iter().filter(|f| matches!(f.ask, Ask::Subscribe | Ask::Add(_)));
        let suspects = member.suspects.iter().filter(|(change, _)| *change == Change::Add);
        let asked = asked.map(|flight| flight.markets.len()).sum::<usize>()
            + suspects.map(|(_, markets)| markets.len()).sum::<usize>();
        let room = member.present + asked;
        member.limited_until = Some(after(now, LIMIT_FORGOTTEN));
        let waiting = member.waiting(&self.directory);
        self.assigner.limit(conn, Some(room));
        for slot in waiting {
            match self.directory.get(slot) {
                Some(market) if market.observed != Observed::Absent => {}
                Some(market) if market.overdue == 0 => self.displace(slot),
                // A command that would add it may be carried out yet.
                _ => {
                    if let Some(member) = self.member(conn) {
                        member.pace.trouble(now);
                    }
                }
            }
        }
    }

    pub(super) fn is_single_member(&self, conn: ConnId) -> bool {
        let role = self.members.get(place_of(conn)).map(|member| member.role);
        self.settings.dialect == Dialect::Legacy && role == Some(Role::Orderbook)
    }
}
