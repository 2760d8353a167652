//! One connection as the venue sees it: its subscriptions and its outgoing bytes. It numbers and
//! queues data frames, wrongly where a fault says so; it decides nothing about what they say.

use std::net::SocketAddr;

use crate::data_faults::{DataFault, DataFaults};
use crate::flood::Shelf;
use crate::outbox::Outbox;
use crate::pair::Route;
use crate::payload;
use crate::subscription::Stream;

/// One connection.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) accept_number: u64,
    pub(crate) peer: SocketAddr,
    /// How it came through the proxy, if it did.
    pub(crate) route: Option<Route>,
    pub(crate) upgraded: bool,
    pub(crate) out: Outbox,
    pub(crate) streams: Vec<Stream>,
    pub(crate) shelf: Shelf,
    /// Late replies it still waits for.
    pub(crate) late: u32,
    /// Its Close is queued: nothing may follow.
    pub(crate) muted: bool,
    /// Messages written for it that carry no number.
    pub(crate) unnumbered: u64,
    /// Data frames written for it, over all its streams.
    position: u64,
    pub(crate) dirty: bool,
}

/// A data frame without its numbers.
#[derive(Clone, Copy)]
pub(crate) struct Data<'a> {
    pub(crate) kind: &'a str,
    /// The command it answers; 0 = none.
    pub(crate) id: u64,
    /// Everything behind the envelope.
    pub(crate) tail: &'a [u8],
}

/// What became of a data frame.
#[derive(Clone, Copy)]
pub(crate) struct Sent {
    pub(crate) number: u64,
    pub(crate) written: bool,
}

impl Client {
    pub(crate) fn new(accept_number: u64, peer: SocketAddr, route: Option<Route>) -> Self {
        Self {
            accept_number,
            // A client is known by its own address, not by the proxy's.
            peer: route.as_ref().map_or(peer, |route| route.client),
            route,
            upgraded: false,
            out: Outbox::default(),
            streams: Vec::new(),
            shelf: Shelf::default(),
            late: 0,
            muted: false,
            unnumbered: 0,
            position: 0,
            dirty: false,
        }
    }

    /// Queues a data frame of one stream under its next number. `head` is scratch.
    pub(crate) fn data(
        &mut self,
        stream: u32,
        data: Data<'_>,
        head: &mut Vec<u8>,
        faults: &mut DataFaults,
    ) -> Sent {
        let place = &mut self.streams[stream as usize];
        let fate = faults.fate(place);
        match fate {
            Some(DataFault::Drop) => return Sent { number: place.withhold(), written: false },
            Some(DataFault::Restart) => place.jump(1),
            _ => {}
        }
        self.position += 1;
        let number = place.take_data(self.position);
        self.write(stream, number, data, head);
        let again = match fate {
            Some(DataFault::Duplicate) => Some(number),
            Some(DataFault::Backward(by)) => Some(number.saturating_sub(by).max(1)),
            _ => None,
        };
        if let Some(again) = again {
            self.position += 1;
            self.streams[stream as usize].repeat(again, self.position);
            self.write(stream, again, data, head);
        }
        Sent { number, written: true }
    }

    fn write(&mut self, stream: u32, number: u64, data: Data<'_>, head: &mut Vec<u8>) {
        let stream = &self.streams[stream as usize];
        head.clear();
        if !stream.channel.sequenced() {
            payload::clocked_head(data.kind, stream.sid, number, head);
        } else if data.id == 0 {
            payload::sequenced_head(data.kind, stream.sid, number, head);
        } else {
            payload::answering_head(data.kind, data.id, stream.sid, number, head);
        }
        self.out.text(head, data.tail);
    }
}
