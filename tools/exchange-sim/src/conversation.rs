//! What the exchange does with bytes from a client, stage by stage: upgrade, frames, the closing
//! handshake. It holds no state of its own.

use std::net::SocketAddr;
use std::time::Instant;

use crate::clock::Stamp;
use crate::frame::{Message, Opcode, Violation};
use crate::ledger::Ended;
use crate::link::{Fill, Stage};
use crate::liveliness::Trickle;
use crate::server::{Server, WRITE_DEADLINE};
use crate::upgrade::{self, Reading};
use crate::upgrade_faults::{self, Manner};

/// Bytes read at a time.
const CHUNK: usize = 16 * 1024;
/// Reads of one connection a turn, so that a flood does not starve the others.
const READS: usize = 16;

/// What a connection needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing until the socket or a deadline says so.
    Wait,
    /// Another turn at once.
    Again,
    /// Its end.
    Drop,
}

impl Server {
    /// Reads what a client sent and acts on it.
    pub(crate) fn converse(&mut self, slot: u32) -> Next {
        let mut chunk = [0; CHUNK];
        if let Some(end) = self.unheard(slot) {
            return end;
        }
        for _ in 0..READS {
            if self.held_back(slot) {
                return Next::Wait;
            }
            let Some(Some(link)) = self.links.get_mut(slot as usize) else {
                return Next::Wait;
            };
            // Messages left over from a turn that ran out of room come first.
            if link.open() && !self.messages(slot) {
                return Next::Wait;
            }
            let Some(Some(link)) = self.links.get_mut(slot as usize) else {
                return Next::Wait;
            };
            if !link.readable {
                return Next::Wait;
            }
            match link.fill(&mut chunk) {
                Fill::Bytes(count) => self.digest(slot, chunk.get(..count).unwrap_or_default()),
                Fill::Blocked => return Next::Wait,
                Fill::End => return self.peer_ended(slot, Ended::PeerClosed),
                Fill::Broken => return self.peer_ended(slot, Ended::PeerReset),
            }
        }
        Next::Again
    }

    /// What becomes of a connection that is not read from.
    fn unheard(&mut self, slot: u32) -> Option<Next> {
        let link = self.links.get(slot as usize)?.as_ref()?;
        if link.manners.read || !link.open() {
            return None;
        }
        match link.hung_up {
            true => Some(self.peer_ended(slot, Ended::PeerReset)),
            false => Some(Next::Wait),
        }
    }

    /// Whether a client has so much unread that its commands must wait.
    fn held_back(&mut self, slot: u32) -> bool {
        let open = self.links.get(slot as usize).and_then(Option::as_ref);
        open.is_some_and(crate::link::Link::open)
            && self.venue.client(slot).is_some_and(|client| client.out.over_bound())
    }

    fn digest(&mut self, slot: u32, bytes: &[u8]) {
        let Some(Some(link)) = self.links.get_mut(slot as usize) else {
            return;
        };
        match &mut link.stage {
            Stage::Upgrading(head) => {
                head.extend_from_slice(bytes);
                self.upgrade(slot);
            }
            Stage::Open | Stage::AwaitClose { .. } => {
                link.reader.feed(bytes);
                self.messages(slot);
            }
            Stage::Trickling(_)
            | Stage::Mute
            | Stage::Finishing { .. }
            | Stage::Lingering { .. } => {}
        }
    }

    fn upgrade(&mut self, slot: u32) {
        let now = Stamp::now().skewed(self.clock_skew);
        let open = self.links.iter().flatten().filter(|link| link.open()).count();
        let full = open >= self.config.max_connections;
        let Some(Some(link)) = self.links.get_mut(slot as usize) else {
            return;
        };
        let Some(client) = self.venue.client(slot) else {
            return;
        };
        let Stage::Upgrading(head) = &link.stage else {
            return;
        };
        let (used, mut answer) = match upgrade::read(head, &self.gate, self.refuse, now) {
            Reading::Partial => return,
            Reading::Done { used, answer } => (used, answer),
        };
        if full && answer.status == 101 {
            answer = upgrade::refusal(429, now);
        }
        let rest = head.get(used..).unwrap_or_default().to_vec();
        let fault = self.upgrade_faults.strike(Instant::now());
        let (answer, manner) = upgrade_faults::spoil(fault, answer, now);
        match manner {
            Manner::Slowly(every) => {
                link.stage = Stage::Trickling(Trickle::new(answer, every, rest));
                return self.trickling.push(slot);
            }
            Manner::Reset => {
                link.ended = Ended::ServerClosed(0);
                link.arm_reset();
                self.stats.upgrades_rejected += 1;
                return self.drop_link(slot);
            }
            Manner::AndNoMore => {
                client.out.raw(&answer.bytes);
                link.ended = Ended::ServerClosed(0);
                link.stage = Stage::Mute;
                self.stats.upgrades_rejected += 1;
                return;
            }
            Manner::Whole => client.out.raw(&answer.bytes),
            Manner::Riding(text) => {
                client.out.raw(&answer.bytes);
                client.out.frame(Opcode::Ping, b"heartbeat", &[]);
                if !text.is_empty() {
                    client.out.text(text.as_bytes(), b"\n");
                    client.unnumbered += 1;
                }
            }
        }
        self.answered(slot, answer.status, &rest);
    }

    /// Acts on complete messages; false when the client's bound stops it.
    pub(crate) fn messages(&mut self, slot: u32) -> bool {
        loop {
            if self.held_back(slot) {
                return false;
            }
            let Some(Some(link)) = self.links.get_mut(slot as usize) else {
                return true;
            };
            if !matches!(link.stage, Stage::Open | Stage::AwaitClose { .. }) {
                return true;
            }
            let message = match link.reader.next() {
                Ok(None) => return true,
                Ok(Some(message)) => message,
                Err(Violation(code)) => {
                    self.start_close(slot, code, false);
                    return true;
                }
            };
            match (message, link.open()) {
                (Message::Text(text), true) => self.venue.answer(slot, &text, Instant::now()),
                (Message::Ping(payload), true) if link.manners.answer_pings => {
                    if let Some(client) = self.venue.client(slot) {
                        client.out.frame(Opcode::Pong, &payload, &[]);
                    }
                    self.venue.mark(slot);
                }
                (Message::Close(_), true) if !link.manners.answer_close => {
                    link.ended = Ended::PeerClosed;
                    link.stage = Stage::Mute;
                    self.venue.mute(slot);
                }
                (Message::Close(code), true) => {
                    link.ended = Ended::PeerClosed;
                    self.start_close(slot, code, false);
                }
                (Message::Close(_), false) => {
                    link.stage = Stage::Finishing { by: Instant::now() + WRITE_DEADLINE };
                }
                (Message::Pong, true) => self.stats.pongs += 1,
                (Message::Text(_) | Message::Ping(_) | Message::Pong, _) => {}
            }
        }
    }

    fn peer_ended(&mut self, slot: u32, how: Ended) -> Next {
        let unsent = self.venue.client(slot).is_some_and(|client| !client.out.is_empty());
        if let Some(Some(link)) = self.links.get_mut(slot as usize)
            && (link.ended == Ended::Open
                || (unsent || link.wants_write()) && matches!(link.ended, Ended::ServerClosed(_)))
            && !matches!(link.stage, Stage::Upgrading(_))
        {
            link.ended = how;
        }
        Next::Drop
    }

    /// Places of the open connections with these addresses.
    pub(crate) fn slots(&self, peers: &[SocketAddr]) -> Vec<u32> {
        let mut slots = Vec::with_capacity(peers.len());
        for (slot, link) in self.links.iter().enumerate() {
            let client = self.venue.clients.get(slot).and_then(Option::as_ref);
            let wanted =
                client.is_some_and(|client| client.upgraded && peers.contains(&client.peer));
            if link.is_some() && wanted {
                slots.push(slot as u32);
            }
        }
        slots
    }

    /// Addresses of the open upgraded connections, oldest first.
    pub(crate) fn peers(&self) -> Vec<SocketAddr> {
        let mut peers = Vec::new();
        for (slot, link) in self.links.iter().enumerate() {
            let client = self.venue.clients.get(slot).and_then(Option::as_ref);
            if let (Some(link), Some(client)) = (link, client)
                && link.open()
            {
                peers.push((client.accept_number, client.peer));
            }
        }
        peers.sort_unstable();
        peers.into_iter().map(|(_, peer)| peer).collect()
    }
}
