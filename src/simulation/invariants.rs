//! What must hold at every step, seen from what passes between the parties: I3, I4, I7, I9, I10.
//! It looks at the engine from outside and at the exchange from inside.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::engine::Witness;
use super::exchange::{Exchange, Phase};
use super::network::{Network, SimLink};
use crate::command::Outcome;
use crate::connector::{Dial, Dialed};
use crate::dialect::Dialect;
use crate::error::Cause;
use crate::ids::{ConnId, Epoch};
use crate::mailbox::{Order, Report};

/// How a command ended.
type Fate = Option<Outcome>;

#[derive(Debug, Default)]
pub(super) struct Watch {
    pub(super) now: Duration,
    /// The least time between two attempts that are not a connection's first.
    pub(super) connect_interval: Duration,
    /// The last such attempt, and how many there were.
    pub(super) paced: Option<Duration>,
    pub(super) attempts: u64,
    /// Connections being connected.
    pub(super) dialing: BTreeMap<ConnId, Epoch>,
    /// With a shard, and their sockets.
    pub(super) live: BTreeMap<ConnId, (Epoch, usize)>,
    pub(super) halted: BTreeSet<ConnId>,
    pub(super) commands: BTreeMap<(ConnId, Epoch, u64), Fate>,
    pub(super) adopted: BTreeMap<ConnId, Epoch>,
    /// The epochs the conductor knows to be up, and outcomes of earlier ones that came after.
    pub(super) awaited: BTreeMap<ConnId, Epoch>,
    pub(super) stale: u64,
    /// What passed, for the trace.
    pub(super) told: Vec<String>,
    /// Sockets that filled a place since this was last looked at.
    pub(super) ups: Vec<(usize, ConnId, Epoch)>,
    /// Lost connections: their sockets and causes.
    pub(super) downs: Vec<(usize, Cause)>,
}

impl Watch {
    /// I4, at the end.
    pub(super) fn open_commands(&self) -> usize {
        self.commands.values().filter(|fate| fate.is_none()).count()
    }

    /// I9: no market on two connections, none with more than it may have.
    pub(super) fn check_places(&self, exchange: &Exchange, cap: usize) -> Result<(), String> {
        let strays = exchange.dialect == Dialect::Legacy;
        let mut places: BTreeMap<&String, ConnId> = BTreeMap::new();
        for (&conn, &(_, link)) in &self.live {
            let Some(session) = exchange.sessions.get(link) else { continue };
            if session.phase != Phase::Open {
                continue;
            }
            let mut count = 0;
            for market in session.peer.streams() {
                count += 1;
                // A stray of the legacy dialect may outlive its market's move until it is ended.
                if let Some(other) = places.insert(market, conn).filter(|_| !strays) {
                    return Err(format!("I9: {market} is on {other} and on {conn}"));
                }
            }
            if count > cap && !strays {
                return Err(format!("I9: {count} markets on {conn}"));
            }
        }
        Ok(())
    }

    /// A connection that ended for a reason of the peer's was read to its end; one that was called
    /// silent had been listened to.
    pub(super) fn check_downs(&mut self, network: &Network) -> Result<(), String> {
        for (link, cause) in std::mem::take(&mut self.downs) {
            let socket = &network.sockets[link];
            match cause {
                Cause::PeerClosed { .. } | Cause::Ended | Cause::Reset
                    if socket.read < socket.arrived =>
                {
                    let left = socket.arrived - socket.read;
                    return Err(format!("link {link}: {cause} with {left} bytes unread"));
                }
                Cause::Liveness { message }
                    if message.starts_with("no frame") && !socket.inbox.is_empty() =>
                {
                    return Err(format!("link {link}: {message}, and its bytes unread"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Witness for Watch {
    fn dial(&mut self, dial: &Dial) -> Result<(), String> {
        let &Dial::Begin { conn, epoch, .. } = dial else { return Ok(()) };
        self.told.push(format!("dial {conn}/{epoch}"));
        self.dialing.insert(conn, epoch);
        self.attempts += 1;
        if self.live.contains_key(&conn) || self.halted.contains(&conn) {
            return Err(format!("{conn} is dialled, and needs not be"));
        }
        if epoch > Epoch::new(1) {
            let before = self.paced.replace(self.now);
            if before.is_some_and(|before| self.now - before < self.connect_interval) {
                return Err(format!("I10: attempts at {:?} and {:?}", before, self.now));
            }
        }
        Ok(())
    }

    fn dialed(&mut self, dialed: &Dialed<SimLink>) -> Result<(), String> {
        let (conn, epoch) = match dialed {
            Dialed::Up { adoption, .. } => {
                self.awaited.insert(adoption.conn, adoption.epoch);
                (adoption.conn, adoption.epoch)
            }
            Dialed::Failed { conn, epoch, cause } => {
                self.told.push(format!("{conn}/{epoch} failed: {cause}"));
                (*conn, *epoch)
            }
        };
        if self.dialing.get(&conn) == Some(&epoch) {
            self.dialing.remove(&conn);
        }
        Ok(())
    }

    fn order(&mut self, order: &Order<SimLink>) -> Result<(), String> {
        match order {
            Order::Adopt(adoption) => {
                let (conn, epoch, link) = (adoption.conn, adoption.epoch, adoption.link.link);
                self.told.push(format!("{conn}/{epoch} is up on link {link}"));
                self.ups.push((link, conn, epoch));
                if self.adopted.insert(conn, epoch).is_some_and(|before| before >= epoch) {
                    return Err(format!("I7: {conn} goes back to epoch {epoch}"));
                }
                if self.live.insert(conn, (epoch, link)).is_some() {
                    return Err(format!("I7: {conn} is up twice"));
                }
            }
            Order::Command { conn, epoch, request } => {
                self.told.push(format!("{conn}/{epoch}: {}", request.text));
                let key = (*conn, *epoch, request.id.number());
                if self.commands.insert(key, None).is_some() {
                    return Err(format!("I4: {key:?} twice"));
                }
            }
            Order::Drop { conn, epoch } => self.told.push(format!("drop {conn}/{epoch}")),
            Order::Settled { conn, epoch, last } => {
                self.told.push(format!("{conn}/{epoch} is settled after gap {last}"));
            }
            Order::Listen { .. } | Order::Stop { .. } => {}
        }
        Ok(())
    }

    fn report(&mut self, report: &Report) -> Result<(), String> {
        match report {
            Report::Ended { conn, epoch, ended } => {
                self.told.push(format!("{conn}/{epoch}: {} {:?}", ended.id, ended.outcome));
                self.stale += u64::from(self.awaited.get(conn).is_some_and(|up| up > epoch));
                let fate = self.commands.get_mut(&(*conn, *epoch, ended.id.number()));
                match fate.map(|fate| fate.replace(ended.outcome)) {
                    None => Err(format!("I4: an outcome of nothing: {report:?}")),
                    Some(Some(before)) => Err(format!("I4: {before:?}, and then {report:?}")),
                    Some(None) => Ok(()),
                }
            }
            Report::Late { conn, epoch, ended } => {
                self.told.push(format!("{conn}/{epoch}: {} late, {:?}", ended.id, ended.outcome));
                match self.commands.get(&(*conn, *epoch, ended.id.number())) {
                    Some(Some(Outcome::TimedOut)) => Ok(()),
                    other => Err(format!("I4: late after {other:?}: {report:?}")),
                }
            }
            Report::Down { conn, epoch, cause, .. } => {
                self.told.push(format!("{conn}/{epoch} is down: {cause}"));
                match self.live.remove(conn) {
                    Some((up, link)) if up == *epoch => self.downs.push((link, cause.clone())),
                    other => return Err(format!("I7: {other:?} ended by {report:?}")),
                }
                Ok(())
            }
            Report::SubscriptionEnded { conn, epoch, sid, code } => {
                self.told.push(format!("{conn}/{epoch}: subscription {sid} is over ({code:?})"));
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
