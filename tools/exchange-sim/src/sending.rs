//! Sending every kind of data frame to whoever listens. It never reads a clock for pacing and never
//! touches a connection.

use std::sync::Arc;

use crate::book::Book;
use crate::client::{Client, Data};
use crate::clock::Stamp;
use crate::config::Dialect;
use crate::contents::{LineCopy, Recorder};
use crate::data_faults::DataFaults;
use crate::market::{MarketId, State};
use crate::names;
use crate::payload::{self, Happening, Subject, Trade};
use crate::subscription::Channel;
use crate::venue::{News, Venue};

impl Venue {
    /// Sends a market's next order-book change to its listeners; returns the frames sent. While one
    /// listener is stalled or over its bound the market stands still, because a book cannot skip a
    /// change.
    pub(crate) fn send_delta(&mut self, id: MarketId) -> usize {
        let Self { universe, clients, rng, stamps, head, tail, dirty, counts, data_faults, .. } =
            self;
        let mut listening = 0;
        for listener in universe.market(id).listeners() {
            let Some(Some(client)) = clients.get(listener.client as usize) else {
                continue;
            };
            let stream = &client.streams[listener.stream as usize];
            if stream.channel == Channel::Orderbook {
                if client.out.over_bound() || stream.stalled {
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
        let data = Data { kind: "orderbook_delta", id: 0, tail };
        for listener in market.listeners() {
            let Some(Some(client)) = clients.get_mut(listener.client as usize) else {
                continue;
            };
            if client.streams[listener.stream as usize].channel == Channel::Orderbook {
                client.data(listener.stream, data, head, data_faults);
                touch(client, listener.client, dirty);
            }
        }
        counts.data_frames += listening as u64;
        listening
    }

    /// Sends a market's ticker to its listeners, or to one client only; returns the frames sent.
    pub(crate) fn send_ticker(&mut self, id: MarketId, only: Option<u32>) -> usize {
        self.universe.book(id);
        // No two say the same, so that a copy can be told from another message.
        self.latest = Stamp::now().after(self.latest);
        let subject = Subject {
            ticker: &self.universe.market(id).ticker,
            market_id: self.universe.uuid(id),
            stamp: self.latest,
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

    /// Sends the prepared tail to a market's listeners on a channel that may skip messages. Those
    /// who follow the whole channel get one and the same message.
    fn spread(&mut self, id: MarketId, channel: Channel, only: Option<u32>) -> usize {
        let Self { universe, clients, head, tail, dirty, counts, data_faults, contents, .. } = self;
        let data = Data { kind: channel.name(), id: 0, tail };
        let mut sent = 0;
        for listener in universe.market(id).listeners() {
            let Some(Some(client)) = clients.get_mut(listener.client as usize) else {
                continue;
            };
            let target = &client.streams[listener.stream as usize];
            let wanted = target.channel == channel && !target.all && !target.stalled;
            let asked = only.is_none_or(|only| only == listener.client);
            if wanted && asked && !client.out.over_bound() {
                client.data(listener.stream, data, head, data_faults);
                touch(client, listener.client, dirty);
                sent += 1;
            }
        }
        let lines: &[(u32, u32)] = match channel {
            Channel::Ticker => &self.all_tickers,
            _ => &self.all_trades,
        };
        if !lines.is_empty() {
            let tools = Tools { head, dirty, data_faults, contents };
            sent += to_lines(clients, lines, channel, data, tools);
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
            let data = Data { kind: "orderbook_snapshot", id: 0, tail };
            client.data(stream, data, head, &mut self.data_faults);
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
        let Self { universe, clients, head, tail, counts, data_faults, .. } = self;
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
            let data = Data { kind: "orderbook_snapshot", id, tail };
            client.data(stream, data, head, data_faults);
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
        let (data_faults, contents) = (&mut self.data_faults, &mut self.contents);
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
            let (kind, channel) = match rules.dialect {
                Dialect::Live => {
                    payload::lifecycle(item.happening, &item.ticker, seconds, tail);
                    (item.happening.kind(), Channel::Lifecycle)
                }
                Dialect::Legacy => {
                    let was = item.was.status();
                    let told = payload::status(item.happening, was, &item.ticker, seconds, tail);
                    if told.is_none() {
                        continue;
                    }
                    (Channel::LegacyLifecycle.name(), Channel::LegacyLifecycle)
                }
            };
            let data = Data { kind, id: 0, tail };
            let tools = Tools { head, dirty, data_faults, contents };
            counts.data_frames += to_lines(clients, lifecycles, channel, data, tools) as u64;
        }
        false
    }
}

/// What sending to lines needs beside them.
struct Tools<'a> {
    head: &'a mut Vec<u8>,
    dirty: &'a mut Vec<u32>,
    data_faults: &'a mut DataFaults,
    contents: &'a mut Recorder,
}

/// Sends one message to all who follow a whole channel and have room; returns how many.
fn to_lines(
    clients: &mut [Option<Client>],
    lines: &[(u32, u32)],
    channel: Channel,
    data: Data<'_>,
    tools: Tools<'_>,
) -> usize {
    let Tools { head, dirty, data_faults, contents } = tools;
    // Without `seq`, the running number is part of the message: the same on all lines.
    let number = |&(slot, at): &(u32, u32)| {
        let client = clients.get(slot as usize)?.as_ref()?;
        Some(client.streams.get(at as usize)?.number())
    };
    let next = if channel.sequenced() {
        None
    } else {
        lines.iter().filter_map(number).max().map(|latest| latest + 1)
    };
    let mut sent = 0;
    for &(slot, at) in lines {
        let Some(Some(client)) = clients.get_mut(slot as usize) else {
            continue;
        };
        let stream = &mut client.streams[at as usize];
        if stream.channel != channel || stream.stalled || client.out.over_bound() {
            continue;
        }
        if let Some(next) = next {
            stream.jump(next);
        }
        let (line, sid) = (stream.line, stream.sid);
        let became = client.data(at, data, head, data_faults);
        touch(client, slot, dirty);
        sent += 1;
        if contents.is_on() {
            contents.copy(LineCopy {
                line,
                peer: client.peer,
                accept_number: client.accept_number,
                sid,
                number: became.number,
                written: became.written,
            });
        }
    }
    contents.finish(channel.name(), data.tail);
    sent
}

fn touch(client: &mut Client, slot: u32, dirty: &mut Vec<u32>) {
    if !client.dirty {
        client.dirty = true;
        dirty.push(slot);
    }
}
