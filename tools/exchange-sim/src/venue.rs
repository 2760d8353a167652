//! The trading venue without its sockets: clients with their subscriptions and outgoing bytes, the
//! market universe, and the sending of every kind of data frame to whoever listens. It never reads
//! a clock for pacing and never touches a connection.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use fastrand::Rng;

use crate::book::Book;
use crate::clock::{Stamp, StampWriter};
use crate::config::{Dialect, ExchangeConfig};
use crate::faults::VerbCounts;
use crate::flood::Shelf;
use crate::frame::Opcode;
use crate::ledger::{ConnectionRecord, Ended};
use crate::market::{Listener, MarketId, State, Universe};
use crate::names;
use crate::outbox::Outbox;
use crate::pair::Route;
use crate::payload::{self, Happening, Subject, Trade};
use crate::postponed::Postponed;
use crate::rules::Rules;
use crate::subscription::{Channel, Stream};

/// One connection as the venue sees it.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) accept_number: u64,
    pub(crate) peer: SocketAddr,
    /// How it came through the proxy, if it did.
    route: Option<Route>,
    pub(crate) upgraded: bool,
    pub(crate) out: Outbox,
    pub(crate) streams: Vec<Stream>,
    pub(crate) shelf: Shelf,
    /// Late replies it still waits for.
    pub(crate) late: u32,
    /// Its Close is queued: nothing may follow.
    pub(crate) muted: bool,
    /// Data frames queued for it, over all its streams.
    position: u64,
    dirty: bool,
}

impl Client {
    /// Queues a data frame of one stream under its next number.
    pub(crate) fn data(&mut self, stream: u32, kind: &str, head: &mut Vec<u8>, tail: &[u8]) {
        self.position += 1;
        let stream = &mut self.streams[stream as usize];
        let number = stream.take_data(self.position);
        head.clear();
        if stream.channel.sequenced() {
            payload::sequenced_head(kind, stream.sid, number, head);
        } else {
            payload::clocked_head(kind, stream.sid, number, head);
        }
        self.out.frame(Opcode::Text, head, tail);
    }

    /// The same for a data frame that answers the command with this id.
    fn answering(&mut self, stream: u32, kind: &str, id: u64, head: &mut Vec<u8>, tail: &[u8]) {
        self.position += 1;
        let stream = &mut self.streams[stream as usize];
        let number = stream.take_data(self.position);
        head.clear();
        payload::answering_head(kind, id, stream.sid, number, head);
        self.out.frame(Opcode::Text, head, tail);
    }
}

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
struct News {
    happening: Happening,
    was: State,
    ticker: Arc<str>,
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
    dirty: Vec<u32>,
    news: VecDeque<News>,
}

impl Venue {
    pub(crate) fn new(config: &ExchangeConfig) -> Self {
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
        self.clients[slot] = Some(Client {
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
            position: 0,
            dirty: false,
        });
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
            client.out.frame(Opcode::Text, &self.tail, &[]);
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

    /// Sends a market's next order-book change to its listeners; returns the frames sent. While one
    /// listener is over its bound the market stands still, because a book cannot skip a change.
    pub(crate) fn send_delta(&mut self, id: MarketId) -> usize {
        let Self { universe, clients, rng, stamps, head, tail, dirty, counts, .. } = self;
        let mut listening = 0;
        for listener in universe.market(id).listeners() {
            let Some(Some(client)) = clients.get(listener.client as usize) else {
                continue;
            };
            if client.streams[listener.stream as usize].channel == Channel::Orderbook {
                if client.out.over_bound() {
                    return 0;
                }
                listening += 1;
            }
        }
        if listening == 0 {
            return 0;
        }
        let change = universe.book(id).change(rng);
        let (market, market_id) = (universe.market(id), universe.uuid(id));
        let subject = Subject { ticker: &market.ticker, market_id, stamp: Stamp::now() };
        tail.clear();
        payload::delta(&subject, change, stamps, tail);
        for listener in market.listeners() {
            let Some(Some(client)) = clients.get_mut(listener.client as usize) else {
                continue;
            };
            if client.streams[listener.stream as usize].channel == Channel::Orderbook {
                client.data(listener.stream, "orderbook_delta", head, tail);
                touch(client, listener.client, dirty);
            }
        }
        counts.data_frames += listening as u64;
        listening
    }

    /// Sends a market's ticker to its listeners, or to one client only; returns the frames sent.
    pub(crate) fn send_ticker(&mut self, id: MarketId, only: Option<u32>) -> usize {
        self.universe.book(id);
        let subject = Subject {
            ticker: &self.universe.market(id).ticker,
            market_id: self.universe.uuid(id),
            stamp: Stamp::now(),
        };
        let (stamps, tail) = (&mut self.stamps, &mut self.tail);
        tail.clear();
        self.universe.look(id, |_, book| payload::ticker(&subject, book, stamps, tail));
        self.spread(id, Channel::Ticker, only)
    }

    /// Sends a trade of a market to its listeners, or to one client only; returns the frames sent.
    pub(crate) fn send_trade(&mut self, id: MarketId, only: Option<u32>) -> usize {
        let (yes_price, size) = self.universe.book(id).trade(&mut self.rng);
        let bits = (u128::from(self.rng.u64(..)) << 64) | u128::from(self.rng.u64(..));
        let taker = if self.rng.bool() { crate::book::Side::Yes } else { crate::book::Side::No };
        let trade = Trade { id: names::version4(bits), yes_price, size, taker };
        self.tail.clear();
        let ticker = &self.universe.market(id).ticker;
        payload::trade(ticker, Stamp::now(), &trade, &mut self.tail);
        self.spread(id, Channel::Trade, only)
    }

    /// Sends the prepared tail to a market's listeners on a channel that may skip messages.
    fn spread(&mut self, id: MarketId, channel: Channel, only: Option<u32>) -> usize {
        let Self { universe, clients, head, tail, dirty, counts, .. } = self;
        let everywhere: &[(u32, u32)] = match channel {
            Channel::Ticker => &self.all_tickers,
            _ => &self.all_trades,
        };
        let own = universe.market(id).listeners().iter();
        let own = own.map(|listener| (listener.client, listener.stream, false));
        let all = everywhere.iter().map(|&(client, stream)| (client, stream, true));
        let mut sent = 0;
        for (slot, stream, all) in own.chain(all) {
            let Some(Some(client)) = clients.get_mut(slot as usize) else {
                continue;
            };
            let target = &client.streams[stream as usize];
            let wanted = target.channel == channel && target.all == all;
            if wanted && only.is_none_or(|only| only == slot) && !client.out.over_bound() {
                client.data(stream, channel.name(), head, tail);
                touch(client, slot, dirty);
                sent += 1;
            }
        }
        counts.data_frames += sent as u64;
        sent
    }

    /// Sends the snapshot of one market on one stream.
    pub(crate) fn send_snapshot(&mut self, slot: u32, stream: u32, id: MarketId) {
        let market_id = self.universe.uuid(id);
        let (tail, head) = (&mut self.tail, &mut self.head);
        tail.clear();
        self.universe.look(id, |market, book| {
            payload::snapshot(&market.ticker, market_id, book, tail);
        });
        if let Some(Some(client)) = self.clients.get_mut(slot as usize) {
            client.data(stream, "orderbook_snapshot", head, tail);
            self.counts.data_frames += 1;
        }
        self.mark(slot);
    }

    /// Answers a command with the books of markets, subscribed to or not. A subscription that has
    /// ended meanwhile has no numbers left for them.
    pub(crate) fn send_answers(&mut self, slot: u32, stream: u32, id: u64, tickers: &[String]) {
        if !self.stream(slot, stream).is_some_and(|stream| stream.live) {
            return;
        }
        let Self { universe, clients, head, tail, counts, .. } = self;
        let Some(Some(client)) = clients.get_mut(slot as usize) else {
            return;
        };
        for ticker in tickers {
            tail.clear();
            match universe.find(ticker) {
                Some(market) => universe.look(market, |known, book| {
                    payload::snapshot(&known.ticker, universe.uuid(market), book, tail);
                }),
                None => payload::snapshot(ticker, names::uuid(0, 0), &Book::empty(), tail),
            }
            client.answering(stream, "orderbook_snapshot", id, head, tail);
            counts.data_frames += 1;
        }
        self.mark(slot);
    }

    /// Queues a lifecycle message for everybody who listens to the lifecycle channel.
    pub(crate) fn announce(&mut self, happening: Happening, was: State, ticker: &Arc<str>) {
        if !self.lifecycles.is_empty() {
            self.news.push_back(News { happening, was, ticker: Arc::clone(ticker) });
        }
    }

    /// Sends queued lifecycle messages, for as long as every listener has room. With `force`, those
    /// without room are passed over. Returns whether some are left.
    pub(crate) fn send_news(&mut self, force: bool) -> bool {
        let Self { clients, lifecycles, news, head, tail, dirty, counts, rules, .. } = self;
        let seconds = Stamp::now().seconds();
        while !news.is_empty() {
            let full = |&(slot, _): &(u32, u32)| {
                let client = clients.get(slot as usize).and_then(Option::as_ref);
                client.is_some_and(|client| client.out.over_bound())
            };
            if !force && lifecycles.iter().any(full) {
                return true;
            }
            let Some(item) = news.pop_front() else { break };
            tail.clear();
            let kind = match rules.dialect {
                Dialect::Live => {
                    payload::lifecycle(item.happening, &item.ticker, seconds, tail);
                    item.happening.kind()
                }
                Dialect::Legacy => {
                    let was = item.was.status();
                    let told = payload::status(item.happening, was, &item.ticker, seconds, tail);
                    if told.is_none() {
                        continue;
                    }
                    Channel::LegacyLifecycle.name()
                }
            };
            for &(slot, stream) in lifecycles.iter() {
                let Some(Some(client)) = clients.get_mut(slot as usize) else {
                    continue;
                };
                if !client.out.over_bound() {
                    client.data(stream, kind, head, tail);
                    touch(client, slot, dirty);
                    counts.data_frames += 1;
                }
            }
        }
        false
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

fn touch(client: &mut Client, slot: u32, dirty: &mut Vec<u32>) {
    if !client.dirty {
        client.dirty = true;
        dirty.push(slot);
    }
}

fn record(client: &Client, ended: Ended) -> ConnectionRecord {
    ConnectionRecord {
        accept_number: client.accept_number,
        peer: client.peer,
        upgraded: client.upgraded,
        ended,
        sids: client.streams.iter().map(Stream::record).collect(),
    }
}
