//! Frames prepared once and sent over and over under fresh numbers: the cheapest way to fill every
//! socket, for measuring readers. It decides what is sent, never when.

use crate::client::Data;
use crate::clock::Stamp;
use crate::payload::{self, Subject, Trade};
use crate::subscription::Channel;
use crate::venue::Venue;

/// Frames prepared for each stream; few, so that those of all clients stay in the cache.
const SHELF: usize = 16;
/// Most frames of a client at a time.
const MOST: u64 = 10_000;
/// A client's queue is filled by this much: just under four full records of whole frames.
pub(crate) const BYTES: usize = 62 * 1024;

/// A frame without its envelope.
#[derive(Debug)]
struct Prepared {
    stream: u32,
    kind: &'static str,
    tail: Box<[u8]>,
}

/// The prepared frames of one client.
#[derive(Debug, Default)]
pub(crate) struct Shelf {
    frames: Vec<Prepared>,
    next: usize,
    /// Live streams and their members when it was made.
    made_for: (usize, usize),
}

/// Fills one client's queue up to `target` bytes; returns whether any frame was queued.
pub(crate) fn fill(venue: &mut Venue, slot: u32, target: usize) -> bool {
    let mut spare = std::mem::take(&mut venue.spare);
    let Some(client) = venue.client(slot) else {
        return false;
    };
    // One buffer for all clients stays in the cache; it comes back when it is empty again.
    client.out.borrow(&mut spare);
    let live = || client.streams.iter().filter(|stream| stream.live && !stream.stalled);
    let wanted = (live().count(), live().map(|stream| stream.members.len()).sum());
    let mut shelf = std::mem::take(&mut client.shelf);
    if shelf.made_for != wanted {
        shelf = Shelf { frames: prepare(venue, slot), next: 0, made_for: wanted };
    }
    let mut sent = 0;
    let Venue { clients, head, data_faults, .. } = venue;
    if let Some(Some(client)) = clients.get_mut(slot as usize) {
        // Withheld frames fill nothing.
        while client.out.len() < target
            && sent < MOST
            && let Some(frame) = shelf.frames.get(shelf.next)
        {
            let data = Data { kind: frame.kind, id: 0, tail: &frame.tail };
            client.data(frame.stream, data, head, data_faults);
            shelf.next = (shelf.next + 1) % shelf.frames.len();
            sent += 1;
        }
        client.shelf = shelf;
    }
    venue.spare = spare;
    venue.counts.data_frames += sent;
    sent > 0
}

fn prepare(venue: &mut Venue, slot: u32) -> Vec<Prepared> {
    let Some(client) = venue.client(slot) else {
        return Vec::new();
    };
    let streams =
        || (0_u32..).zip(&client.streams).filter(|(_, stream)| stream.live && !stream.stalled);
    let picks: Vec<_> =
        streams().map(|(index, stream)| (index, stream.channel, stream.members.clone())).collect();
    let mut frames = Vec::new();
    for (stream, channel, members) in picks {
        for _ in 0..SHELF {
            let market = match members.len() {
                0 => venue.universe.draw_popular(&mut venue.rng),
                count => members.get(venue.rng.usize(0..count)).copied(),
            };
            let Some(id) = market else { break };
            let Some(tail) = tail(venue, channel, id) else { break };
            frames.push(Prepared { stream, kind: channel.name(), tail });
        }
    }
    venue.rng.shuffle(&mut frames);
    frames
}

fn tail(venue: &mut Venue, channel: Channel, id: u32) -> Option<Box<[u8]>> {
    let mut out = Vec::with_capacity(512);
    let change = venue.universe.book(id).change(&mut venue.rng);
    let (yes_price, size) = venue.universe.book(id).trade(&mut venue.rng);
    let (market, market_id) = (venue.universe.market(id), venue.universe.uuid(id));
    let stamp = Stamp::now();
    let subject = Subject { ticker: &market.ticker, market_id, stamp };
    let stamps = &mut venue.stamps;
    match channel {
        Channel::Orderbook => payload::delta(&subject, change, stamps, &mut out),
        Channel::Ticker => venue.universe.look(id, |_, book| {
            payload::ticker(&subject, book, stamps, &mut out);
        }),
        Channel::Trade => {
            let id = crate::names::version4(u128::from(venue.rng.u64(..)));
            let taker = crate::book::Side::Yes;
            let trade = Trade { id, yes_price, size, taker };
            payload::trade(&market.ticker, stamp, &trade, &mut out);
        }
        Channel::Lifecycle | Channel::LegacyLifecycle | Channel::Silent(..) => return None,
    }
    Some(out.into_boxed_slice())
}
