//! What the exchange really sent, as plain numbers: ranges and exceptions, never frames. The
//! auditor compares a client's account with it. It never judges.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Numbers `first..=last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumberRange {
    /// The lowest number of the range.
    pub first: u64,
    /// The highest number of the range.
    pub last: u64,
}

/// From slot `from` on, numbers count up from `number`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renumbering {
    /// The first slot it is about.
    pub from: u64,
    /// The number of that slot.
    pub number: u64,
}

/// How a connection ended, as the exchange knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// It has not.
    Open,
    /// The exchange reset it, dropping what was queued; or the network between lost something of
    /// what was sent, whoever ended it then.
    Cut,
    /// The exchange closed it with this WebSocket code after writing everything queued; for an
    /// upgrade that was refused, the HTTP status; 0 when the connection never got as far.
    ServerClosed(u16),
    /// The client sent Close or FIN first.
    PeerClosed,
    /// The client reset it, or broke TLS.
    PeerReset,
}

impl Ended {
    /// Whether frames the exchange wrote may never have been readable for the client.
    #[must_use]
    pub fn may_lose_tail(self) -> bool {
        matches!(self, Self::Cut | Self::PeerClosed | Self::PeerReset)
    }
}

/// One sid of one connection. Its frames are counted in slots, from 1: the frame's place in the
/// order of its sid. The number on a frame is that of its slot, unless `renumbered` says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SidRecord {
    /// The subscription id.
    pub sid: u64,
    /// The channel's name.
    pub channel: String,
    /// Whether its numbers are `seq` (true) or the ticker's `Clock` (false).
    pub sequenced: bool,
    /// The last slot given to a frame of this sid, data or control; 0 when none was.
    pub last_number: u64,
    /// Slots taken by `ok`, `unsubscribed` and `error` frames, ascending.
    pub control_slots: Vec<NumberRange>,
    /// Slots given to frames that were deliberately never written, ascending.
    pub withheld: Vec<NumberRange>,
    /// Where numbers go on from something else than the number before, ascending.
    pub renumbered: Vec<Renumbering>,
    /// Which of the connection's data frames, counted from 1 over all its sids, was the first of
    /// this sid; 0 when there was none.
    pub first_position: u64,
    /// The same of its last data frame.
    pub last_position: u64,
}

/// One accepted TCP connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionRecord {
    /// Running number of the accept, from 1; tells apart connections that reused an address.
    pub accept_number: u64,
    /// The client's address.
    pub peer: SocketAddr,
    /// Whether the WebSocket upgrade was answered with 101.
    pub upgraded: bool,
    /// How it ended.
    pub ended: Ended,
    /// Messages that belong to no subscription and carry no number: what rode with the 101, and odd
    /// ones that were whole.
    pub unnumbered: u64,
    /// Its subscriptions, by ascending sid, those ended included.
    pub sids: Vec<SidRecord>,
}

impl ConnectionRecord {
    /// The same of a connection on which the network lost bytes.
    pub(crate) fn broken(mut self) -> Self {
        if self.upgraded && !self.ended.may_lose_tail() {
            self.ended = Ended::Cut;
        }
        self
    }

    /// What was sent on one sid.
    pub(crate) fn sid(&self, sid: u64) -> Option<&SidRecord> {
        let at = self.sids.binary_search_by_key(&sid, |record| record.sid).ok()?;
        self.sids.get(at)
    }
}

/// Everything the exchange sent since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// Every accepted connection, by ascending accept number.
    pub connections: Vec<ConnectionRecord>,
}
