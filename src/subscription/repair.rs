//! Books that are out of step: which markets a gap is about, and what is sent to get them back in
//! step. How often and when is `recovery`'s to say.

use std::time::{Duration, Instant};

use super::member::{Flight, Line};
use super::plan::{Filling, Taken};
use super::reply::Verdict;
use super::{Subscriptions, place_of};
use crate::code::Action;
use crate::command::Ended;
use crate::gap::{GapPolicy, Gaps};
use crate::ids::{ConnId, Sid, Ticker, widen};
use crate::market::{Change, Market, Observed, Slot};
use crate::recovery::{Act, Allowance, Answered, Pick, Recovery};
use crate::recovery_stats::RecoveryTotals;
use crate::request::{Ask, Request};
use crate::timer::{after, earlier};

/// Markets named in one event.
pub(crate) const MARKETS_TOLD_MAX: usize = 1_000;
/// Time beside twice that of a reply, for the books of what is opened anew.
const REOPENED: Duration = Duration::from_secs(1);

/// What the whole pool has of it.
#[derive(Debug)]
pub(super) struct Repairs {
    policy: GapPolicy,
    allowance: Allowance,
    /// The place after the connection that had its turn last.
    turn: usize,
    pub(super) totals: RecoveryTotals,
}

/// Markets that have become suspect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Suspected {
    /// The subscription, where it is one.
    pub(crate) sid: Option<Sid>,
    pub(crate) markets: Vec<Ticker>,
}

/// Markets that are sound again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recovered {
    /// Each with the time it was suspect.
    pub(crate) markets: Vec<(Ticker, Duration)>,
    /// How many of the connection's are suspect still.
    pub(crate) left: u64,
}

impl Repairs {
    pub(super) fn new(policy: GapPolicy, per_second: usize) -> Self {
        let allowance = Allowance::new(per_second);
        Self { policy, allowance, turn: 0, totals: RecoveryTotals::default() }
    }

    fn take(&mut self, conn: ConnId, books: usize, now: Instant) {
        self.allowance.take(books, now);
        self.turn = usize::from(conn.number());
    }

    /// These come without being asked for, and count all the same; but what the exchange ends runs
    /// up no debt for which all others would have to wait.
    pub(super) fn come_anew(&mut self, books: usize, now: Instant) {
        if self.allowance.held_until(now).is_none() {
            self.allowance.take(books, now);
        }
    }
}

impl Subscriptions {
    /// The places of all connections in the order in which they are to be asked what is next:
    /// so each has its turn, however little may be asked for.
    pub(crate) fn in_turn(&self) -> impl Iterator<Item = usize> + use<> {
        let turn = self.repairs.turn;
        (turn..self.members.len()).chain(0..turn.min(self.members.len()))
    }

    /// Messages of a connection's order books were lost.
    pub(crate) fn gap(&mut self, conn: ConnId, gaps: &Gaps, now: Instant) -> Option<Suspected> {
        self.at(now);
        let single = self.is_single_member(conn);
        let member = self.members.get_mut(place_of(conn))?;
        let slots = match single {
            true => member.own.lost(gaps),
            false => member.markets(&self.directory),
        };
        let directory = &self.directory;
        let touched = slots.into_iter().filter(|&slot| {
            // One that is overdue may have been added without our knowing.
            let adding = |m: &Market| m.asked == Some(Change::Add) || m.overdue > 0;
            directory.get(slot).is_some_and(|m| m.observed != Observed::Absent || adding(m))
        });
        let (new, begins) = member.repair.gap(gaps.last, touched, gaps.since, now);
        self.repairs.totals.started += u64::from(begins);
        let told = new.iter().filter_map(|&slot| self.directory.ticker(slot).parse().ok());
        let markets: Vec<Ticker> = told.collect();
        let sid = Some(gaps.sids.as_slice()).filter(|sids| sids.len() == 1);
        let sid = sid.and_then(|sids| sids.first().copied());
        (!markets.is_empty()).then_some(Suspected { sid, markets })
    }

    /// Gaps told before it was known which markets they are about, and now it is.
    pub(crate) fn take_early_gap(&mut self, conn: ConnId) -> Option<Gaps> {
        self.member(conn)?.own.take_early()
    }

    /// Books of these markets came, one ticker a line; says which of them were suspect.
    pub(super) fn repaired(&mut self, conn: ConnId, tickers: &str, now: Instant) -> Recovered {
        let mut markets = Vec::new();
        let mut left = 0;
        if let Some(member) = self.members.get_mut(place_of(conn))
            && member.repair.suspects() > 0
        {
            for ticker in tickers.lines() {
                let slot = self.directory.find(ticker);
                let sound = slot.and_then(|slot| member.repair.sound(slot, now));
                let Some((since, last)) = sound else { continue };
                self.repairs.totals.completed += u64::from(last);
                let took = now.saturating_duration_since(since);
                markets.extend(ticker.parse::<Ticker>().ok().map(|ticker| (ticker, took)));
            }
            left = widen(member.repair.suspects());
        }
        Recovered { markets, left }
    }

    /// The market leaves its connection, or is refused there: nothing of it is suspect any more.
    pub(super) fn excuse(&mut self, conn: ConnId, slot: Slot) {
        let now = after(self.born, Duration::from_millis(100) * self.tenths);
        if let Some(member) = self.member(conn) {
            let last = member.repair.gone(slot, now);
            self.repairs.totals.completed += u64::from(last);
        }
    }

    /// What is asked for, or begun, to get books back in step.
    pub(super) fn repair(&mut self, conn: ConnId, now: Instant) -> Option<Request> {
        let single = self.is_single_member(conn);
        let (policy, patience) = match single {
            true => (GapPolicy::Resubscribe, self.patience()),
            false => (self.repairs.policy, self.patience()),
        };
        let member = self.members.get_mut(place_of(conn))?;
        if member.repair.suspects() == 0 || self.repairs.allowance.held_until(now).is_some() {
            return None;
        }
        let shared = !single && member.repair.always_reopens(policy);
        let first = member.first(Change::Add);
        if shared && first.is_some_and(|slot| member.repair.is_suspect(slot)) {
            // What is being opened anew is not all open yet, and would be begun again.
            member.repair.wait_on(now);
        }
        let mut filling = Filling::new(member.pace.chunk());
        let directory = &self.directory;
        let act = member.repair.next(policy, patience, now, |slot| {
            let here = |market: &Market| {
                market.wanted && market.observed == Observed::Present && market.asked.is_none()
            };
            match directory.get(slot).filter(|market| here(market)) {
                None => Pick::Skip,
                Some(_) if filling.add(directory.ticker(slot)) => Pick::Take,
                Some(_) => Pick::Full,
            }
        })?;
        match act {
            Act::Ask(markets) => {
                let sid = member.line.sid()?;
                self.repairs.take(conn, markets.len(), now);
                self.repairs.totals.requests += 1;
                self.repairs.totals.books_asked += widen(markets.len());
                let taken = Taken { markets, ..Taken::nothing() };
                let request = self.send(conn, Ask::Books(sid), taken, now)?;
                self.member(conn)?.repair.asked(request.id);
                Some(request)
            }
            Act::Reopen(markets) => {
                self.repairs.take(conn, markets.len(), now);
                self.repairs.totals.reopened += 1;
                self.reopen(conn, &markets);
                None
            }
        }
    }

    /// Ends the subscription, or each market's own, so that it is opened anew.
    fn reopen(&mut self, conn: ConnId, markets: &[Slot]) {
        if !self.is_single_member(conn) {
            if let Some(member) = self.member(conn)
                && let Line::Open { sid, .. } = member.line
            {
                member.line = Line::Open { sid, renew: true };
            }
            return;
        }
        for &slot in markets {
            let market = self.directory.get_mut(slot);
            let here = |market: &&mut Market| {
                market.observed == Observed::Present && market.asked.is_none()
            };
            if let Some(market) = market.filter(here) {
                market.renew = true;
                self.file(slot);
            }
        }
    }

    /// The subscription is no more: what is suspect comes with the next.
    pub(super) fn reopening(&mut self, conn: ConnId) {
        let (patience, now) = (self.patience(), self.now);
        if let Some(member) = self.member(conn) {
            member.repair.reopening(patience, now);
        }
    }

    /// A command has ended. Whether it was one that asked for suspect books.
    pub(super) fn repair_ended(
        &mut self,
        conn: ConnId,
        flight: &Flight,
        verdict: Verdict,
        ended: &Ended,
    ) {
        let Some(member) = self.member(conn) else { return };
        let how = match verdict {
            Verdict::Refused(_, Action::Refuse) => Answered::Never,
            _ => Answered::Over,
        };
        let ours = matches!(flight.ask, Ask::Books(_)) && member.repair.answered(ended.id, how);
        self.repairs.totals.failed += u64::from(ours && verdict != Verdict::Done);
    }

    fn patience(&self) -> Duration {
        self.settings.subscribe_timeout.saturating_mul(2).saturating_add(REOPENED)
    }

    /// When `repair` has something to do for a connection.
    pub(super) fn repair_due(&self, repair: &Recovery<Slot>, now: Instant) -> Option<Instant> {
        let held = self.repairs.allowance.held_until(now).filter(|_| repair.suspects() > 0);
        earlier(repair.due().filter(|&at| at > now), held)
    }

    /// The last gap of a connection after which nothing is suspect, if its shard does not know.
    pub(crate) fn unsettled(&self, conn: ConnId) -> Option<u64> {
        self.members.get(place_of(conn))?.repair.unsettled()
    }

    /// Its shard has been told.
    pub(crate) fn settled(&mut self, conn: ConnId) {
        if let Some(member) = self.member(conn) {
            member.repair.settled();
        }
    }

    /// How many markets are suspect, and what was done about gaps so far.
    pub(crate) fn recoveries(&self) -> (u64, RecoveryTotals) {
        let suspects = self.members.iter().map(|member| member.repair.suspects()).sum();
        (widen(suspects), self.repairs.totals)
    }
}
