//! The legacy dialect's order books: one subscription for each market. Which market a sid is for,
//! only the command that opened it tells; a sid that came of a command nobody heard the end of
//! belongs to nobody, and is ended.

use std::collections::BTreeSet;
use std::time::Instant;

use super::member::{Flight, OwnSids};
use super::plan::{Step, Taken};
use super::reply::Verdict;
use super::{Subscriptions, place_of};
use crate::code::Action;
use crate::command::{Ended, Listed};
use crate::dialect::Dialect;
use crate::ids::{ConnId, Role, Sid};
use crate::market::{Change, Market, Observed, Slot};
use crate::request::Ask;

impl Subscriptions {
    /// Whether a market has a subscription of its own.
    pub(super) fn is_single(&self, market: &Market) -> bool {
        self.settings.dialect == Dialect::Legacy && market.conn > 0
    }

    pub(super) fn next_single(&mut self, conn: ConnId, now: Instant) -> Option<Step> {
        let lists = self.lists;
        let member = self.member(conn)?;
        if member.flights.iter().any(|flight| flight.ask == Ask::List) {
            return None;
        }
        if member.own.unsure {
            // Alone, so that what it tells is not changing.
            if !member.flights.is_empty() {
                return None;
            }
            if !lists {
                self.losing(conn);
                return Some(Step::Reconnect);
            }
            return self.send(conn, Ask::List, Taken::nothing(), now).map(Step::Send);
        }
        if let Some(sid) = member.own.strays.pop() {
            return self.send(conn, Ask::Unsubscribe(sid), Taken::nothing(), now).map(Step::Send);
        }
        self.repair(conn, now);
        let member = self.member(conn)?;
        let (ask, slot, change) = match member.first(Change::Delete) {
            Some(slot) => {
                let sid = *member.own.by_market.get(&slot)?;
                (Ask::Unsubscribe(sid), slot, Change::Delete)
            }
            None => (Ask::Subscribe, member.first(Change::Add)?, Change::Add),
        };
        self.ask_about(slot, change);
        self.send(conn, ask, Taken::one(slot), now).map(Step::Send)
    }

    pub(super) fn single_ended(
        &mut self,
        conn: ConnId,
        flight: Flight,
        verdict: Verdict,
        ended: &Ended,
        now: Instant,
    ) {
        let slot = flight.markets.first().copied();
        let Some(member) = self.members.get_mut(place_of(conn)) else { return };
        match (flight.ask, verdict) {
            (Ask::Subscribe, Verdict::Done) => {
                if let (Some(slot), Some(sid)) = (slot, ended.sid) {
                    self.adopt(conn, slot, sid);
                    self.settle(slot, Some(Observed::Present));
                }
            }
            (Ask::Subscribe, Verdict::Unknown | Verdict::Refused(_, Action::Find)) => {
                member.own.unsure = true;
                if verdict != Verdict::Unknown {
                    member.pace.trouble_once(now);
                }
                self.settle_all(&flight.markets, Some(Observed::Unknown));
            }
            (Ask::Unsubscribe(sid), Verdict::Done | Verdict::Refused(_, Action::Reopen)) => {
                if slot.is_none() {
                    member.own.note_end(sid);
                }
                // A stray may have been found out to be a market's, of which more is asked.
                self.dismiss(conn, sid, slot.is_some());
                // Its sid may have been dismissed before.
                self.settle_all(&flight.markets, None);
            }
            (Ask::Unsubscribe(sid), Verdict::Unknown) => {
                self.keep_stray(conn, slot, sid);
                // Ended or not: wanted again or not, it is ended once more.
                if let Some(market) = slot.and_then(|slot| self.directory.get_mut(slot)) {
                    market.renew = true;
                }
                self.settle_all(&flight.markets, None);
            }
            // Listed before or after what was heard meanwhile: asked again.
            (Ask::List, Verdict::Done) if !flight.doubted.is_empty() => {}
            (Ask::List, Verdict::Done) => self.listed_singles(conn, ended.listed()),
            (Ask::List, Verdict::Unknown) => {}
            (Ask::List, Verdict::Refused(_, Action::Refuse)) => self.lists = false,
            (ask, Verdict::Refused(code, action)) => {
                if let Ask::Unsubscribe(sid) = ask {
                    self.keep_stray(conn, slot, sid);
                }
                self.refuse(conn, flight, (code, action), now);
            }
            _ => {}
        }
    }

    pub(super) fn single_late(&mut self, conn: ConnId, flight: &Flight, ended: &Ended) {
        match Verdict::of(ended.outcome) {
            Verdict::Done => {}
            Verdict::Unknown => {
                // The exchange gave it up just now, and may have carried it out.
                if let Some(member) = self.member(conn) {
                    member.own.unsure = true;
                }
                return;
            }
            Verdict::Refused(..) => return,
        }
        match (flight.ask, flight.markets.first(), ended.sid) {
            (Ask::Subscribe, Some(&slot), Some(sid)) => {
                let was = self.directory.get(slot).map(|market| market.observed);
                let Some(member) = self.member(conn) else { return };
                let newer = member.doubt(flight).contains(&slot);
                // It was a stray to us, and has ended since.
                if member.own.ended.contains(&sid) {
                    member.own.unsure |= was == Some(Observed::Unknown);
                    return;
                }
                if was == Some(Observed::Unknown) && !newer {
                    self.adopt(conn, slot, sid);
                    return self.learn(slot, Observed::Present);
                }
                // Overtaken, perhaps ended since: the exchange is asked.
                member.own.unsure = true;
                if was != Some(Observed::Present) {
                    self.adopt(conn, slot, sid);
                    self.learn(slot, Observed::Unknown);
                }
            }
            (Ask::Unsubscribe(sid), slot, _) => {
                if let Some(member) = self.member(conn).filter(|_| slot.is_none()) {
                    member.own.note_end(sid);
                }
                self.dismiss(conn, sid, false);
            }
            _ => {}
        }
    }

    /// The market's subscription has this sid. One it had before is a stray now. If another market
    /// had this sid, the exchange contradicts itself, and is asked, but not without pause.
    fn adopt(&mut self, conn: ConnId, slot: Slot, sid: Sid) {
        let now = self.now;
        let Some(member) = self.member(conn) else { return };
        let old = member.own.by_market.get(&slot).copied().filter(|&old| old != sid);
        if let Some(old) = old {
            member.own.remove(old);
            member.own.strays.push(old);
        }
        if let Some(robbed) = member.own.insert(slot, sid) {
            member.own.unsure = true;
            member.pace.trouble_once(now);
            self.learn(robbed, Observed::Unknown);
        }
    }

    /// The subscription is no more, and its market, if it has one, is not subscribed.
    fn dismiss(&mut self, conn: ConnId, sid: Sid, settled: bool) {
        let Some(slot) = self.member(conn).and_then(|member| member.own.remove(sid)) else {
            return;
        };
        if settled {
            self.settle(slot, Some(Observed::Absent));
        } else {
            self.learn(slot, Observed::Absent);
        }
        if let Some(member) = self.member(conn) {
            member.own.over_at.remove(&slot);
        }
    }

    /// A stray that was not ended is ended later; a market's own sid stays with it.
    fn keep_stray(&mut self, conn: ConnId, slot: Option<Slot>, sid: Sid) {
        if slot.is_none()
            && let Some(member) = self.member(conn)
        {
            member.own.strays.push(sid);
        }
    }

    /// The exchange said which subscriptions there are: those nobody knows are ended, those that
    /// are missing are opened again.
    fn listed_singles(&mut self, conn: ConnId, listed: &[Listed]) {
        let channel = self.settings.dialect.channel(Role::Orderbook);
        let Some(member) = self.members.get_mut(place_of(conn)) else { return };
        let ours = listed.iter().filter(|listed| listed.channel == channel);
        let there: BTreeSet<Sid> = ours.map(|listed| Sid::new(listed.sid)).collect();
        let OwnSids { by_sid, strays, unsure, .. } = &mut member.own;
        *unsure = false;
        *strays = there.iter().filter(|sid| !by_sid.contains_key(sid)).copied().collect();
        let gone: Vec<Sid> = by_sid.keys().filter(|sid| !there.contains(sid)).copied().collect();
        for sid in gone {
            self.dismiss(conn, sid, true);
        }
        let Some(member) = self.members.get(place_of(conn)) else { return };
        for slot in member.markets(&self.directory) {
            let market = self.directory.get(slot);
            if market.is_some_and(|market| market.observed == Observed::Unknown) {
                let own = self.members.get(place_of(conn)).map(|member| &member.own);
                let known = own.is_some_and(|own| own.by_market.contains_key(&slot));
                let observed = if known { Observed::Present } else { Observed::Absent };
                self.settle(slot, Some(observed));
            }
        }
    }

    /// One market's subscription is over or out of step.
    pub(super) fn renew_single(&mut self, conn: ConnId, sid: Sid, now: Instant) {
        let Some(member) = self.member(conn) else { return };
        let Some(&slot) = member.own.by_sid.get(&sid) else { return };
        member.pace.trouble_once(now);
        member.own.over_at.entry(slot).or_insert(now);
        if let Some(market) = self.directory.get_mut(slot) {
            market.renew = true;
        }
        self.file(slot);
    }
}
