//! What the exchange does with bytes from a client, stage by stage: upgrade, frames, the closing
//! handshake; and the controls that end connections. It holds no state of its own.

use std::net::SocketAddr;
use std::time::Instant;

use crate::clock::Stamp;
use crate::frame::{Message, Opcode, Violation};
use crate::ledger::Ended;
use crate::link::{Fill, Stage};
use crate::server::{Server, WRITE_DEADLINE};
use crate::upgrade::{self, Answer, Reading};

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
            Stage::Finishing { .. } | Stage::Lingering { .. } => {}
        }
    }

    fn upgrade(&mut self, slot: u32) {
        let now = Stamp::now();
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
        let Answer { status, bytes } = answer;
        client.out.raw(&bytes);
        if status == 101 {
            let rest = head.get(used..).unwrap_or_default().to_vec();
            client.upgraded = true;
            self.stats.upgrades_accepted += 1;
            self.stats.resumed_handshakes += u64::from(link.resumed());
            link.stage = Stage::Open;
            link.reader.feed(&rest);
            self.messages(slot);
        } else {
            self.stats.upgrades_rejected += 1;
            link.ended = Ended::ServerClosed(status);
            link.stage = Stage::Finishing { by: Instant::now() + WRITE_DEADLINE };
        }
    }

    /// Acts on complete messages; false when the client's bound stops it.
    fn messages(&mut self, slot: u32) -> bool {
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
                (Message::Ping(payload), true) => {
                    if let Some(client) = self.venue.client(slot) {
                        client.out.frame(Opcode::Pong, &payload, &[]);
                    }
                    self.venue.mark(slot);
                }
                (Message::Close(code), true) => {
                    link.ended = Ended::PeerClosed;
                    self.start_close(slot, code, false);
                }
                (Message::Close(_), false) => {
                    link.stage = Stage::Finishing { by: Instant::now() + WRITE_DEADLINE };
                }
                (Message::Text(_) | Message::Ping(_) | Message::Pong, _) => {}
            }
        }
    }

    /// Queues a Close behind everything else. `wait`: for the client's Close, before the FIN.
    fn start_close(&mut self, slot: u32, code: u16, wait: bool) {
        let Some(Some(link)) = self.links.get_mut(slot as usize) else {
            return;
        };
        let by = Instant::now() + WRITE_DEADLINE;
        if matches!(link.stage, Stage::AwaitClose { .. }) {
            link.stage = Stage::Finishing { by };
            return;
        }
        if link.ended == Ended::Open {
            link.ended = Ended::ServerClosed(code);
        }
        link.stage = if wait {
            Stage::AwaitClose { write_by: by, until: None }
        } else {
            Stage::Finishing { by }
        };
        self.venue.mute(slot);
        if let Some(client) = self.venue.client(slot) {
            client.out.close(code);
        }
        self.venue.mark(slot);
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

    /// Resets connections at once.
    pub(crate) fn cut(&mut self, peers: &[SocketAddr]) -> usize {
        let slots = self.slots(peers);
        for &slot in &slots {
            if let Some(Some(link)) = self.links.get_mut(slot as usize) {
                if link.ended != Ended::PeerClosed {
                    link.ended = Ended::Cut;
                }
                link.arm_reset();
            }
            self.drop_link(slot);
        }
        slots.len()
    }

    /// Closes connections in good order.
    pub(crate) fn close(&mut self, peers: &[SocketAddr], code: u16) -> usize {
        let mut slots = self.slots(peers);
        slots.retain(|&slot| {
            let link = self.links.get(slot as usize).and_then(Option::as_ref);
            link.is_some_and(crate::link::Link::open)
        });
        for &slot in &slots {
            self.start_close(slot, code, true);
        }
        slots.len()
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
