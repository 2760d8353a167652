//! The handle on a running exchange: starts its thread, passes control calls to it, stops it. It
//! does no network work itself.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use mio::{Poll, Waker};
use thiserror::Error;

use crate::certificate::{self, ApiKey};
use crate::churn;
use crate::config::{ExchangeConfig, Mode};
use crate::door::Door;
use crate::ledger::Ledger;
use crate::proxy::{self, Proxy};
use crate::remote::{self, Remote};
use crate::server::{Ears, ExchangeStats, Server, WAKER};
use crate::subscription::Channel;
use crate::upgrade::{Gate, PATH};

/// Why an exchange could not start.
#[derive(Debug, Error)]
pub enum ExchangeError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; choose a free local address or port 0")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// Keys or certificates could not be made.
    #[error("cannot make the exchange's keys: {0}")]
    Keys(String),
    /// The thread or its poll could not be made.
    #[error("cannot start the exchange's thread: {0}")]
    Thread(io::Error),
}

/// A running exchange. Dropping it stops it.
#[derive(Debug)]
pub struct Exchange {
    address: SocketAddr,
    tls: bool,
    ca_pem: String,
    key: Keys,
    /// Where its own door is, behind the proxy if there is one.
    direct: SocketAddr,
    pub(crate) proxy: Option<Remote<Proxy>>,
    server: Remote<Server>,
}

/// What a client needs to sign; kept out of debug output.
struct Keys(ApiKey);

impl std::fmt::Debug for Keys {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Keys({})", self.0.id)
    }
}

impl Exchange {
    /// Starts an exchange on its own thread; when this returns it accepts connections.
    ///
    /// # Errors
    /// The address is taken or not local, or keys or the thread could not be made.
    pub fn start(config: ExchangeConfig) -> Result<Self, ExchangeError> {
        let key = ApiKey::generate()?;
        let (ca_pem, server_tls) = certificate::tls(config.security)?;
        let wanted = config.listen;
        let listen = |source| ExchangeError::Listen { address: wanted, source };
        let front = Door::open(wanted).map_err(listen)?;
        let address = front.address();
        let (told, routes) = proxy::routes();
        let (door, front) = match config.proxy {
            None => (front, None),
            Some(wire) => {
                let door = Door::open(SocketAddr::new(local(address), 0)).map_err(listen)?;
                (door, Some((front, wire)))
            }
        };
        let direct = door.address();
        let proxy = match front {
            None => None,
            Some((front, wire)) => Some(
                Proxy::start(front, direct, told, wire, config.seed)
                    .map_err(ExchangeError::Thread)?,
            ),
        };
        let poll = Poll::new().map_err(ExchangeError::Thread)?;
        let waker = Waker::new(poll.registry(), WAKER).map_err(ExchangeError::Thread)?;
        let (orders, inbox) = remote::orders();
        let gate = Gate {
            key_id: key.id.clone(),
            public_key: key.public.clone(),
            clock_past: config.clock_past,
            clock_future: config.clock_future,
            require_signature: config.require_signature,
        };
        let tls = config.tls;
        let server_tls = tls.then_some(server_tls);
        let ears = Ears { door, orders: inbox, routes };
        let server =
            Server::new(config, gate, server_tls, poll, ears).map_err(ExchangeError::Thread)?;
        let server = Remote::start("exchange-sim", orders, waker, move || server.run())
            .map_err(ExchangeError::Thread)?;
        Ok(Self { address, tls, ca_pem, key: Keys(key), direct, proxy, server })
    }

    /// The address clients connect to: the proxy's, if there is one.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The address that leads past the proxy.
    #[must_use]
    pub fn direct_addr(&self) -> SocketAddr {
        self.direct
    }

    /// The URL a client connects to.
    #[must_use]
    pub fn url(&self) -> String {
        if self.tls {
            format!("wss://localhost:{}{PATH}", self.address.port())
        } else {
            format!("ws://127.0.0.1:{}{PATH}", self.address.port())
        }
    }

    /// The certificate authority to trust, PEM.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The API key's private half, PEM, PKCS#8.
    #[must_use]
    pub fn key_pem(&self) -> &str {
        &self.key.0.pkcs8_pem
    }

    /// The same private key as PKCS#1 PEM.
    #[must_use]
    pub fn key_pkcs1_pem(&self) -> &str {
        &self.key.0.pkcs1_pem
    }

    /// The API key's id.
    #[must_use]
    pub fn key_id(&self) -> &str {
        &self.key.0.id
    }

    /// Tickers of the markets that are active now, sorted.
    #[must_use]
    pub fn active_markets(&self) -> Vec<String> {
        self.ask(|server| server.venue.universe.active()).unwrap_or_default()
    }

    /// Client addresses of the open upgraded connections, oldest first.
    #[must_use]
    pub fn connections(&self) -> Vec<SocketAddr> {
        self.ask(|server| server.peers()).unwrap_or_default()
    }

    /// Resets connections at once, without a Close frame; what was queued is dropped. Returns how
    /// many there were.
    pub fn cut(&self, peers: &[SocketAddr]) -> usize {
        let peers = peers.to_vec();
        self.ask(move |server| server.cut(&peers)).unwrap_or(0)
    }

    /// Writes what is queued, then a Close frame with this code, then FIN after the client's Close
    /// or one second. Returns how many connections there were.
    pub fn close(&self, peers: &[SocketAddr], code: u16) -> usize {
        let peers = peers.to_vec();
        self.ask(move |server| server.close(&peers, code)).unwrap_or(0)
    }

    /// Sets the data frames a second of [`Mode::Paced`], over all connections.
    pub fn set_rate(&self, per_second: u64) {
        self.tell(move |server| server.traffic.rate = per_second);
    }

    /// Sets how traffic is generated.
    pub fn set_mode(&self, mode: Mode) {
        self.tell(move |server| server.set_mode(mode));
    }

    /// Lists and opens `n` new markets: `created`, then `activated` for each. Returns their
    /// tickers.
    pub fn create_markets(&self, n: usize) -> Vec<String> {
        self.ask(move |server| {
            (0..n).map(|_| churn::create(&mut server.venue).to_string()).collect()
        })
        .unwrap_or_default()
    }

    /// Pauses active markets.
    pub fn deactivate_markets(&self, tickers: &[String]) {
        self.on_markets(tickers, churn::pause);
    }

    /// Resumes paused markets.
    pub fn activate_markets(&self, tickers: &[String]) {
        self.on_markets(tickers, churn::resume);
    }

    /// Determines, then settles markets.
    pub fn settle_markets(&self, tickers: &[String]) {
        self.on_markets(tickers, |venue, id| {
            churn::determine(venue, id);
            churn::settle(venue, id);
        });
    }

    /// Answers every upgrade with this status, until called with `None`.
    pub fn refuse_upgrades(&self, status: Option<u16>) {
        self.tell(move |server| server.refuse = status);
    }

    /// Order-book tickers the connection from `peer` is subscribed to, sorted.
    #[must_use]
    pub fn subscribed_markets(&self, peer: SocketAddr) -> Vec<String> {
        self.ask(move |server| subscribed(server, peer)).unwrap_or_default()
    }

    /// Completes background market changes, stops generating traffic (commands are still answered)
    /// and waits until everything queued is in the kernel. False if that took longer than
    /// `deadline`.
    #[must_use = "false means that frames are still queued"]
    pub fn stop_traffic(&self, deadline: Duration) -> bool {
        let by = Instant::now() + deadline;
        let (reply, answer) = bounded(1);
        self.tell(move |server| server.quiesce(deadline, reply));
        let written = self.server.wait(&answer).unwrap_or(false);
        let Some(proxy) = self.proxy.as_ref().filter(|_| written) else {
            return written;
        };
        let left = by.saturating_duration_since(Instant::now());
        let (reply, answer) = bounded(1);
        proxy.ask(move |proxy| proxy.quiesce(left, reply));
        proxy.wait(&answer).unwrap_or(false)
    }

    /// Generates traffic again.
    pub fn resume_traffic(&self) {
        self.tell(|server| server.traffic.running = true);
    }

    /// A copy of what was sent so far.
    #[must_use]
    pub fn ledger(&self) -> Ledger {
        self.ask(|server| server.ledger()).unwrap_or_default()
    }

    /// Running totals.
    #[must_use]
    pub fn stats(&self) -> ExchangeStats {
        self.ask(|server| server.totals()).unwrap_or_default()
    }

    /// Stops the exchange; every connection is dropped.
    pub fn stop(self) {
        drop(self);
    }

    fn on_markets(
        &self,
        tickers: &[String],
        act: impl Fn(&mut crate::venue::Venue, u32) + Send + 'static,
    ) {
        let tickers = tickers.to_vec();
        self.tell(move |server| {
            for ticker in &tickers {
                server.churn.forget(ticker);
                if let Some(id) = server.venue.universe.find(ticker) {
                    act(&mut server.venue, id);
                }
            }
        });
    }

    /// Runs something on the exchange's thread and waits until it is done; returns at once if the
    /// thread has died.
    pub(crate) fn tell(&self, order: impl FnOnce(&mut Server) + Send + 'static) {
        self.ask(order);
    }

    pub(crate) fn ask<R: Send + 'static>(
        &self,
        order: impl FnOnce(&mut Server) -> R + Send + 'static,
    ) -> Option<R> {
        self.server.ask(order)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        // The proxy goes last: what the exchange's end does to clients passes through it.
        self.server.join(|server| server.stopping = true);
        if let Some(proxy) = &mut self.proxy {
            proxy.join(Proxy::stop);
        }
    }
}

/// An address to connect to a listener of this machine by.
fn local(address: SocketAddr) -> std::net::IpAddr {
    match address {
        SocketAddr::V4(any) if any.ip().is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(any) if any.ip().is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        other => other.ip(),
    }
}

fn subscribed(server: &Server, peer: SocketAddr) -> Vec<String> {
    let mut tickers = Vec::new();
    for client in server.venue.clients.iter().flatten().filter(|client| client.peer == peer) {
        let book = |stream: &&crate::subscription::Stream| {
            stream.live && stream.channel == Channel::Orderbook
        };
        for stream in client.streams.iter().filter(book) {
            let name = |&id: &u32| server.venue.universe.market(id).ticker.to_string();
            tickers.extend(stream.members.iter().map(name));
        }
    }
    tickers.sort_unstable();
    tickers
}
