//! What the exchange does on connections out of turn: pings, answers that trickle out, and changes
//! of its manners. It reads nothing.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::frame::Opcode;
use crate::ledger::Ended;
use crate::link::Stage;
use crate::manners::{Manners, Pings};
use crate::server::{SWEEP, Server, WRITE_DEADLINE};
use crate::upgrade::Answer;

/// An answer that goes out byte by byte.
#[derive(Debug)]
pub(crate) struct Trickle {
    answer: Answer,
    at: usize,
    every: Duration,
    pub(crate) next: Instant,
    /// What the client sent behind its request.
    rest: Vec<u8>,
}

impl Trickle {
    pub(crate) fn new(answer: Answer, every: Duration, rest: Vec<u8>) -> Self {
        Self { answer, at: 0, every, next: Instant::now(), rest }
    }
}

impl Server {
    /// Pings as its manners have it.
    pub(crate) fn ping(&mut self, slot: u32, now: Instant) {
        let heartbeat_idle = self.config.heartbeat_idle;
        let (Some(Some(link)), Some(client)) =
            (self.links.get_mut(slot as usize), self.venue.client(slot))
        else {
            return;
        };
        let count = match link.manners.pings {
            Pings::Idle => {
                u32::from(now >= link.last_sent + heartbeat_idle && client.out.is_empty())
            }
            Pings::Every(pause) => u32::from(now >= link.last_ping + pause),
            Pings::Flood(a_second) => (a_second / sweeps_a_second()).max(1),
            Pings::Never => 0,
        };
        if count == 0 || client.out.over_bound() {
            return;
        }
        link.last_ping = now;
        for _ in 0..count {
            client.out.frame(Opcode::Ping, b"heartbeat", &[]);
        }
        self.stats.heartbeats += u64::from(count);
        self.flush(slot, now);
    }

    /// Writes the bytes of trickling answers that are due, each on its own.
    pub(crate) fn trickle(&mut self, now: Instant) {
        for slot in std::mem::take(&mut self.trickling) {
            while let Some(byte) = self.next_drop(slot, now) {
                if let Some(client) = self.venue.client(slot) {
                    client.out.raw(&[byte]);
                }
                self.flush(slot, now);
            }
            let Some(Some(link)) = self.links.get_mut(slot as usize) else {
                continue;
            };
            match &mut link.stage {
                Stage::Trickling(trickle) if trickle.at < trickle.answer.bytes.len() => {
                    self.trickling.push(slot);
                }
                Stage::Trickling(trickle) => {
                    let (status, rest) = (trickle.answer.status, std::mem::take(&mut trickle.rest));
                    self.answered(slot, status, &rest);
                }
                _ => {}
            }
        }
    }

    fn next_drop(&mut self, slot: u32, now: Instant) -> Option<u8> {
        let link = self.links.get_mut(slot as usize)?.as_mut()?;
        let Stage::Trickling(trickle) = &mut link.stage else {
            return None;
        };
        let byte = *trickle.answer.bytes.get(trickle.at)?;
        if trickle.next > now {
            return None;
        }
        trickle.at += 1;
        trickle.next += trickle.every;
        Some(byte)
    }

    /// When the next byte of a trickling answer is due.
    pub(crate) fn next_trickle(&self) -> Option<Instant> {
        let due = |&slot: &u32| match &self.links.get(slot as usize)?.as_ref()?.stage {
            Stage::Trickling(trickle) => Some(trickle.next),
            _ => None,
        };
        self.trickling.iter().filter_map(due).min()
    }

    /// An upgrade has been answered: the connection is open, or ends.
    pub(crate) fn answered(&mut self, slot: u32, status: u16, rest: &[u8]) {
        let (Some(Some(link)), Some(client)) =
            (self.links.get_mut(slot as usize), self.venue.client(slot))
        else {
            return;
        };
        if status == 101 {
            client.upgraded = true;
            self.stats.upgrades_accepted += 1;
            self.stats.resumed_handshakes += u64::from(link.resumed());
            link.stage = Stage::Open;
            link.reader.feed(rest);
            self.messages(slot);
        } else {
            self.stats.upgrades_rejected += 1;
            link.ended = Ended::ServerClosed(status);
            link.stage = Stage::Finishing { by: Instant::now() + WRITE_DEADLINE };
        }
    }

    pub(crate) fn set_manners(&mut self, manners: Manners) {
        self.manners = manners;
        for slot in 0..self.links.len() {
            self.behave(slot as u32, manners);
        }
    }

    pub(crate) fn set_manners_of(&mut self, peers: &[SocketAddr], manners: Manners) -> usize {
        let slots = self.slots(peers);
        for &slot in &slots {
            self.behave(slot, manners);
        }
        slots.len()
    }

    /// Behaves so on one connection from now on.
    pub(crate) fn behave(&mut self, slot: u32, manners: Manners) {
        if let (Some(Some(link)), Some(client)) =
            (self.links.get_mut(slot as usize), self.venue.client(slot))
        {
            link.manners = manners;
            client.out.set_fragments(manners.fragments);
            self.wake(slot);
        }
    }
}

fn sweeps_a_second() -> u32 {
    u32::try_from(Duration::from_secs(1).as_millis() / SWEEP.as_millis()).unwrap_or(1).max(1)
}
