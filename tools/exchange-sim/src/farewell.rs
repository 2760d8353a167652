//! How connections end from the exchange's side: reset, closed in good order, or broken off without
//! a Close; and what is sent out of the ordinary before. It holds no state of its own.

use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Instant;

use crate::frame::{self, Opcode};
use crate::ledger::Ended;
use crate::link::{Farewell, Link, Stage};
use crate::oddity::Oddity;
use crate::server::{Server, WRITE_DEADLINE};

/// An end without a Close, after everything queued.
///
/// As a text: `fin`, `truncated`, `mid_frame`, `mid_frame_reset`, `mid_record` or `garbage`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// TLS says goodbye, then FIN.
    Fin,
    /// FIN in the middle of TLS.
    Truncated,
    /// Half a frame, then FIN in the middle of TLS.
    MidFrame,
    /// Half a frame, then a reset.
    MidFrameReset,
    /// Half a TLS record, then FIN.
    MidRecord,
    /// Bytes that are no TLS, then FIN.
    Garbage,
}

impl FromStr for Break {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fin" => Ok(Self::Fin),
            "truncated" => Ok(Self::Truncated),
            "mid_frame" => Ok(Self::MidFrame),
            "mid_frame_reset" => Ok(Self::MidFrameReset),
            "mid_record" => Ok(Self::MidRecord),
            "garbage" => Ok(Self::Garbage),
            other => Err(format!(
                "`{other}` is no end: give fin, truncated, mid_frame, mid_frame_reset, \
                 mid_record or garbage"
            )),
        }
    }
}

/// The first part of a frame that says it is longer.
fn half_a_frame() -> Vec<u8> {
    let mut whole = Vec::new();
    let begin = b"{\"type\":\"orderbook_delta\",\"sid\":1,\"seq\":";
    frame::write(Opcode::Text, begin, &[b' '; 300], &mut whole);
    whole.truncate(100);
    whole
}

impl Server {
    /// Queues a Close behind everything else. `wait`: for the client's Close, before the FIN.
    pub(crate) fn start_close(&mut self, slot: u32, code: u16, wait: bool) {
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
        let slots = self.open_slots(peers);
        for &slot in &slots {
            self.start_close(slot, code, true);
        }
        slots.len()
    }

    /// Ends connections without a Close.
    pub(crate) fn break_off(&mut self, peers: &[SocketAddr], how: Break) -> usize {
        let slots = self.open_slots(peers);
        for &slot in &slots {
            self.venue.mute(slot);
            let (Some(Some(link)), Some(client)) =
                (self.links.get_mut(slot as usize), self.venue.client(slot))
            else {
                continue;
            };
            link.farewell = match how {
                Break::Fin => Farewell::Polite,
                Break::Truncated | Break::MidFrame => Farewell::Fin,
                Break::MidFrameReset => Farewell::Reset,
                Break::MidRecord => Farewell::HalfRecord,
                Break::Garbage => Farewell::Garbage,
            };
            // 1006 stands for the end of a connection without a Close.
            link.ended = match how {
                Break::MidFrameReset => Ended::Cut,
                _ => Ended::ServerClosed(1006),
            };
            link.stage = Stage::Finishing { by: Instant::now() + WRITE_DEADLINE };
            if matches!(how, Break::MidFrame | Break::MidFrameReset) {
                client.out.raw(&half_a_frame());
            }
            self.venue.mark(slot);
        }
        slots.len()
    }

    /// Changes the keys of connections.
    pub(crate) fn renew_keys(&mut self, peers: &[SocketAddr]) -> usize {
        let mut renewed = 0;
        for slot in self.open_slots(peers) {
            let link = self.links.get_mut(slot as usize).and_then(Option::as_mut);
            renewed += usize::from(link.is_some_and(Link::renew_keys));
            self.venue.mark(slot);
        }
        renewed
    }

    /// Queues a frame as it is.
    pub(crate) fn send_odd(&mut self, peers: &[SocketAddr], oddity: &Oddity) -> usize {
        let slots = self.open_slots(peers);
        for &slot in &slots {
            if let Some(client) = self.venue.client(slot) {
                client.out.raw(&oddity.bytes());
                client.unnumbered += u64::from(oddity.is_message());
                self.venue.mark(slot);
            }
        }
        slots.len()
    }

    /// Places of the connections with these addresses that have not begun to end.
    fn open_slots(&self, peers: &[SocketAddr]) -> Vec<u32> {
        let mut slots = self.slots(peers);
        slots.retain(|&slot| {
            let link = self.links.get(slot as usize).and_then(Option::as_ref);
            link.is_some_and(Link::open)
        });
        slots
    }
}
