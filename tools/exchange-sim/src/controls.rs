//! The handle's controls over commands and subscriptions: what goes wrong with them, by which rules
//! they are judged, and who follows what. It does nothing itself but pass the calls on.

use std::net::SocketAddr;

use serde::Serialize;

use crate::code::Code;
use crate::config::{AckOrder, Duplicates};
use crate::exchange::Exchange;
use crate::faults::{BadTickers, FaultRule, Stray};
use crate::market::Listener;
use crate::server::Server;
use crate::subscription::Channel;

/// One subscription that has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holding {
    /// The client's address.
    pub peer: SocketAddr,
    /// The subscription id.
    pub sid: u64,
    /// The channel's name.
    pub channel: &'static str,
    /// Its markets, sorted; empty where it follows all.
    pub markets: Vec<String>,
}

impl Exchange {
    /// Adds a rule of what goes wrong, behind those there are.
    pub fn inject(&self, rule: FaultRule) {
        self.tell(move |server| server.venue.rules.faults.add(rule));
    }

    /// Nothing goes wrong with commands any more; replies already late still come.
    pub fn clear_faults(&self) {
        self.tell(|server| server.venue.rules.faults.clear());
    }

    /// Most markets of one subscription from now on; those that have more keep them.
    pub fn set_market_cap(&self, markets: usize) {
        self.tell(move |server| server.venue.rules.market_cap = markets);
    }

    /// Most commands a second on one subscription from now on.
    pub fn set_command_cap(&self, per_second: Option<u32>) {
        self.tell(move |server| server.venue.rules.command_cap = per_second);
    }

    /// Tickers no command may name from now on.
    pub fn set_bad_tickers(&self, bad: BadTickers) {
        self.tell(move |server| server.venue.rules.bad = bad);
    }

    /// What a repeated `subscribe` does from now on.
    pub fn set_duplicates(&self, duplicates: Duplicates) {
        self.tell(move |server| server.venue.rules.duplicates = duplicates);
    }

    /// The order of `ok` and snapshots from now on.
    pub fn set_ack_order(&self, order: AckOrder) {
        self.tell(move |server| server.venue.rules.ack_order = order);
    }

    /// Ends one subscription with an error of this code (live: 10 or 25) that answers no command.
    /// Returns whether there was one.
    pub fn terminate(&self, peer: SocketAddr, sid: u64, code: u8) -> bool {
        self.ask(move |server| {
            let slot = server.slots(&[peer]).first().copied()?;
            let stream = server.venue.live_stream(slot, sid)?;
            server.venue.terminate(slot, stream, Code(code));
            Some(())
        })
        .flatten()
        .is_some()
    }

    /// Does the same to every order-book subscription of every connection. Returns how many there
    /// were.
    pub fn terminate_books(&self, code: u8) -> usize {
        self.ask(move |server| terminate_books(server, Code(code))).unwrap_or(0)
    }

    /// Sends a client a reply nobody asked for. Returns whether the client is there.
    pub fn stray(&self, peer: SocketAddr, stray: Stray) -> bool {
        self.ask(move |server| {
            let slot = server.slots(&[peer]).first().copied();
            slot.map(|slot| server.venue.stray(slot, stray))
        })
        .flatten()
        .is_some()
    }

    /// Every subscription that has not ended, by age of the connection, then by sid.
    #[must_use]
    pub fn holdings(&self) -> Vec<Holding> {
        self.ask(|server| holdings(server)).unwrap_or_default()
    }

    /// Tickers followed by more than one order-book subscription, sorted: nobody who divides the
    /// markets among connections wants any.
    #[must_use]
    pub fn doubled_markets(&self) -> Vec<String> {
        self.ask(|server| {
            let book = |listener: &&Listener| {
                let stream = server.venue.stream(listener.client, listener.stream);
                stream.is_some_and(|stream| stream.channel == Channel::Orderbook)
            };
            let markets = server.venue.universe.markets();
            let doubled =
                markets.filter(|market| market.listeners().iter().filter(book).count() > 1);
            let mut tickers: Vec<String> =
                doubled.map(|market| market.ticker.to_string()).collect();
            tickers.sort_unstable();
            tickers
        })
        .unwrap_or_default()
    }
}

fn terminate_books(server: &mut Server, code: Code) -> usize {
    let mut books = Vec::new();
    for (slot, client) in (0_u32..).zip(&server.venue.clients) {
        let streams = client.iter().flat_map(|client| (0_u32..).zip(&client.streams));
        let live =
            streams.filter(|(_, stream)| stream.live && stream.channel == Channel::Orderbook);
        books.extend(live.map(|(stream, _)| (slot, stream)));
    }
    for &(slot, stream) in &books {
        server.venue.terminate(slot, stream, code);
    }
    books.len()
}

fn holdings(server: &Server) -> Vec<Holding> {
    let mut clients: Vec<_> = server.venue.clients.iter().flatten().collect();
    clients.sort_unstable_by_key(|client| client.accept_number);
    let mut holdings = Vec::new();
    for client in clients {
        for stream in client.streams.iter().filter(|stream| stream.live) {
            let name = |&id: &u32| server.venue.universe.market(id).ticker.to_string();
            let mut markets: Vec<String> = stream.members.iter().map(name).collect();
            markets.sort_unstable();
            let channel = stream.channel.name();
            holdings.push(Holding { peer: client.peer, sid: stream.sid, channel, markets });
        }
    }
    holdings
}
