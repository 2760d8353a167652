//! The trading venue without its sockets: clients with their subscriptions, who listens to what,
//! and the market universe. It never reads a clock for pacing and never touches a connection.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use fastrand::Rng;

use crate::client::Client;
use crate::clock::{Stamp, StampWriter};
use crate::config::ExchangeConfig;
use crate::contents::Recorder;
use crate::data_faults::DataFaults;
use crate::faults::VerbCounts;
use crate::ledger::{ConnectionRecord, Ended};
use crate::lines::LineDelay;
use crate::market::{Listener, MarketId, State, Universe};
use crate::pair::Route;
use crate::payload::Happening;
use crate::postponed::Postponed;
use crate::rules::Rules;
use crate::subscription::{Channel, Stream};

/// A connection for the ledger, and how it came.
pub(crate) type Kept = (ConnectionRecord, Option<Route>);

/// Frames and bytes queued so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) data_frames: u64,
    pub(crate) control_frames: u64,
    pub(crate) commands: u64,
    pub(crate) verbs: VerbCounts,
    /// Error replies and errors that answered nothing.
    pub(crate) errors: u64,
    /// Markets of order-book subscriptions, over all connections.
    pub(crate) memberships: u64,
    /// Most commands of one connection that waited for their replies at a time.
    pub(crate) most_in_flight: u64,
}

/// A lifecycle message that waits to be sent.
#[derive(Clone, Debug)]
pub(crate) struct News {
    pub(crate) happening: Happening,
    pub(crate) was: State,
    pub(crate) ticker: Arc<str>,
}

/// The venue.
#[derive(Debug)]
pub(crate) struct Venue {
    pub(crate) universe: Universe,
    pub(crate) clients: Vec<Option<Client>>,
    /// Streams that get every market's messages: client and stream.
    pub(crate) all_tickers: Vec<(u32, u32)>,
    pub(crate) all_trades: Vec<(u32, u32)>,
    pub(crate) lifecycles: Vec<(u32, u32)>,
    pub(crate) counts: Counts,
    pub(crate) rng: Rng,
    pub(crate) rules: Rules,
    pub(crate) postponed: Postponed,
    pub(crate) head: Vec<u8>,
    pub(crate) tail: Vec<u8>,
    /// A buffer that goes from one client to the next.
    pub(crate) spare: Vec<u8>,
    pub(crate) stamps: StampWriter,
    pub(crate) data_faults: DataFaults,
    pub(crate) contents: Recorder,
    pub(crate) delays: Vec<LineDelay>,
    /// Of the last ticker.
    pub(crate) latest: Stamp,
    pub(crate) dirty: Vec<u32>,
    pub(crate) news: VecDeque<News>,
}

impl Venue {
    pub(crate) fn new(config: &ExchangeConfig, now: Instant) -> Self {
        let levels = config.snapshot_levels.clone();
        let mut rng = Rng::with_seed(config.seed);
        let mut universe = Universe::new(config.seed, levels, config.settled_markets_stream);
        for _ in 0..config.markets {
            universe.create(&mut rng);
        }
        Self {
            universe,
            clients: Vec::new(),
            all_tickers: Vec::new(),
            all_trades: Vec::new(),
            lifecycles: Vec::new(),
            counts: Counts::default(),
            rng,
            rules: Rules::new(config),
            postponed: Postponed::default(),
            head: Vec::with_capacity(256),
            tail: Vec::with_capacity(4_096),
            spare: Vec::new(),
            stamps: StampWriter::new(),
            data_faults: DataFaults::new(config.data_faults.clone(), config.seed, now),
            contents: Recorder::new(config.record_contents),
            delays: config.line_delays.clone(),
            latest: Stamp::now(),
            dirty: Vec::new(),
            news: VecDeque::new(),
        }
    }

    /// Admits a connection at a free place.
    pub(crate) fn admit(
        &mut self,
        slot: u32,
        accept_number: u64,
        peer: SocketAddr,
        route: Option<Route>,
    ) {
        let slot = slot as usize;
        if slot >= self.clients.len() {
            self.clients.resize_with(slot + 1, || None);
        }
        self.clients[slot] = Some(Client::new(accept_number, peer, route));
    }

    pub(crate) fn client(&mut self, slot: u32) -> Option<&mut Client> {
        self.clients.get_mut(slot as usize)?.as_mut()
    }

    pub(crate) fn stream(&self, slot: u32, stream: u32) -> Option<&Stream> {
        self.clients.get(slot as usize)?.as_ref()?.streams.get(stream as usize)
    }

    /// The stream of that sid, if it has not ended.
    pub(crate) fn live_stream(&self, slot: u32, sid: u64) -> Option<u32> {
        // Sids count from 1 and are not used again.
        let at = u32::try_from(sid.checked_sub(1)?).ok()?;
        self.stream(slot, at).filter(|stream| stream.live).map(|_| at)
    }

    pub(crate) fn members(&self, slot: u32, stream: u32) -> &[MarketId] {
        self.stream(slot, stream).map_or(&[], |stream| &stream.members)
    }

    /// Whether a client follows one market on one channel.
    pub(crate) fn follows(&self, slot: u32, channel: Channel, ticker: &str) -> bool {
        let Some(id) = self.universe.find(ticker) else {
            return false;
        };
        self.universe.market(id).listeners().iter().any(|listener| {
            let stream = self.stream(slot, listener.stream);
            listener.client == slot && stream.is_some_and(|stream| stream.channel == channel)
        })
    }

    /// The list of those who get every message of a channel.
    pub(crate) fn everywhere(&mut self, channel: Channel) -> Option<&mut Vec<(u32, u32)>> {
        match channel {
            Channel::Ticker => Some(&mut self.all_tickers),
            Channel::Trade => Some(&mut self.all_trades),
            Channel::Lifecycle | Channel::LegacyLifecycle => Some(&mut self.lifecycles),
            Channel::Orderbook | Channel::Silent(..) => None,
        }
    }

    /// Notes that one more command of a client is being answered.
    pub(crate) fn note_in_flight(&mut self, slot: u32) {
        let waiting = self.client(slot).map_or(0, |client| u64::from(client.late) + 1);
        self.counts.most_in_flight = self.counts.most_in_flight.max(waiting);
    }

    /// Queues the reply prepared as the tail, unless a Close is queued already.
    pub(crate) fn queue_control(&mut self, slot: u32) {
        if let Some(Some(client)) = self.clients.get_mut(slot as usize)
            && !client.muted
        {
            client.out.text(&self.tail, &[]);
            self.counts.control_frames += 1;
        }
        self.mark(slot);
    }

    /// Ends all data for a client; its numbers stay for the ledger.
    pub(crate) fn mute(&mut self, slot: u32) {
        let Some(client) = self.client(slot) else {
            return;
        };
        client.muted = true;
        let count = client.streams.len();
        for stream in 0..count {
            self.end_stream(slot, stream as u32);
        }
    }

    /// Takes a client out, for the ledger.
    pub(crate) fn dismiss(&mut self, slot: u32, ended: Ended) -> Option<Kept> {
        self.mute(slot);
        let client = self.clients.get_mut(slot as usize)?.take()?;
        Some((record(&client, ended), client.route))
    }

    /// The ledger's view of a client that is still there.
    pub(crate) fn record(&self, slot: u32, ended: Ended) -> Option<Kept> {
        let client = self.clients.get(slot as usize)?.as_ref()?;
        Some((record(client, ended), client.route.clone()))
    }

    /// Clients with fresh bytes since the last call.
    pub(crate) fn take_dirty(&mut self, into: &mut Vec<u32>) {
        std::mem::swap(&mut self.dirty, into);
        for &slot in into.iter() {
            if let Some(Some(client)) = self.clients.get_mut(slot as usize) {
                client.dirty = false;
            }
        }
    }

    pub(crate) fn mark(&mut self, slot: u32) {
        if let Some(Some(client)) = self.clients.get_mut(slot as usize)
            && !client.dirty
        {
            client.dirty = true;
            self.dirty.push(slot);
        }
    }

    /// Adds markets to a stream; returns those that are new to it.
    pub(crate) fn add_members(
        &mut self,
        slot: u32,
        stream: u32,
        tickers: &[String],
    ) -> Vec<MarketId> {
        let Self { universe, clients, counts, .. } = self;
        let Some(Some(client)) = clients.get_mut(slot as usize) else {
            return Vec::new();
        };
        let target = &mut client.streams[stream as usize];
        let members = &mut target.members;
        members.reserve(tickers.len());
        let mut fresh = Vec::with_capacity(tickers.len());
        for ticker in tickers {
            let id = universe.find_or_note(ticker);
            let position = members.len() as u32;
            if universe.listen(id, Listener { client: slot, stream, position }) {
                members.push(id);
                fresh.push(id);
            }
        }
        if target.channel == Channel::Orderbook {
            counts.memberships += fresh.len() as u64;
        }
        fresh
    }

    /// Removes markets from a stream.
    pub(crate) fn remove_members(&mut self, slot: u32, stream: u32, tickers: &[String]) {
        let Self { universe, clients, counts, .. } = self;
        let Some(Some(client)) = clients.get_mut(slot as usize) else {
            return;
        };
        let target = &mut client.streams[stream as usize];
        let members = &mut target.members;
        for ticker in tickers {
            let Some(id) = universe.find(ticker) else {
                continue;
            };
            let Some(position) = universe.unlisten(id, slot, stream) else {
                continue;
            };
            counts.memberships -= u64::from(target.channel == Channel::Orderbook);
            members.swap_remove(position as usize);
            if let Some(&moved) = members.get(position as usize) {
                universe.moved(moved, slot, stream, position);
            }
        }
    }

    /// Ends a stream: nobody listens through it any more.
    pub(crate) fn end_stream(&mut self, slot: u32, stream: u32) {
        let Self { universe, clients, counts, .. } = self;
        let Some(Some(client)) = clients.get_mut(slot as usize) else {
            return;
        };
        let ended = &mut client.streams[stream as usize];
        if !ended.live {
            return;
        }
        ended.live = false;
        if ended.channel == Channel::Orderbook {
            counts.memberships -= ended.members.len() as u64;
        }
        for id in std::mem::take(&mut ended.members) {
            universe.unlisten(id, slot, stream);
        }
        for list in [&mut self.all_tickers, &mut self.all_trades, &mut self.lifecycles] {
            list.retain(|&entry| entry != (slot, stream));
        }
    }
}

fn record(client: &Client, ended: Ended) -> ConnectionRecord {
    ConnectionRecord {
        accept_number: client.accept_number,
        peer: client.peer,
        upgraded: client.upgraded,
        ended,
        unnumbered: client.unnumbered,
        sids: client.streams.iter().map(Stream::record).collect(),
    }
}
