//! The network between clients and the exchange: a thread that accepts in the exchange's place,
//! connects to it and moves bytes as told. It tells the exchange whose connection each is and which
//! lost bytes on the way; it never looks into the bytes.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use fastrand::Rng;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::door::Door;
use crate::pair::{Need, Pair, Route};
use crate::remote::{self, Order, Remote};
use crate::wire::Wire;

const DOOR: Token = Token(0);
const WAKER: Token = Token(1);
const FIRST: usize = 2;
/// Longest sleep; accepts that failed are tried again.
const SWEEP: Duration = Duration::from_millis(50);
/// Shortest sleep while somebody waits for silence.
const LOOK: Duration = Duration::from_millis(1);
/// Connections held at a time.
const MOST_PAIRS: usize = 4_096;
/// Connections on their way to the exchange that it has not accepted yet.
const MOST_UNTOLD: usize = 8_192;

/// Who is behind a connection of the proxy: its own address there, and the route.
pub(crate) type Told = (SocketAddr, Route);

/// Someone who waits until nothing is on its way.
struct Waiter {
    deadline: Instant,
    reply: Sender<bool>,
}

/// The state of the thread.
pub(crate) struct Proxy {
    poll: Poll,
    door: Door,
    target: SocketAddr,
    orders: Receiver<Order<Self>>,
    told: Sender<Told>,
    wire: Wire,
    pairs: Vec<Option<Pair>>,
    free: Vec<usize>,
    ready: Vec<usize>,
    due: BTreeMap<usize, Instant>,
    waiters: Vec<Waiter>,
    rng: Rng,
    stopping: bool,
}

/// Where the exchange hears who is behind a connection.
pub(crate) fn routes() -> (Sender<Told>, Receiver<Told>) {
    crossbeam_channel::bounded(MOST_UNTOLD)
}

impl Proxy {
    /// Starts the thread behind `door`, on the way to `target`.
    pub(crate) fn start(
        mut door: Door,
        target: SocketAddr,
        told: Sender<Told>,
        wire: Wire,
        seed: u64,
    ) -> io::Result<Remote<Self>> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        door.register(poll.registry(), DOOR)?;
        let (sender, orders) = remote::orders();
        let proxy = Self {
            poll,
            door,
            target,
            orders,
            told,
            wire,
            pairs: Vec::new(),
            free: Vec::new(),
            ready: Vec::new(),
            due: BTreeMap::new(),
            waiters: Vec::new(),
            rng: Rng::with_seed(seed ^ 0x0077_6972_6500),
            stopping: false,
        };
        Remote::start("exchange-wire", sender, waker, move || proxy.run())
    }

    fn run(mut self) {
        let mut events = Events::with_capacity(1_024);
        while !self.stopping {
            match self.poll.poll(&mut events, Some(self.timeout())) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    log::error!("the proxy's poll failed: {error}");
                    return;
                }
            }
            for event in &events {
                self.note(event);
            }
            self.accept();
            while let Ok(order) = self.orders.try_recv() {
                order(&mut self);
            }
            self.drive_ready();
            self.answer_waiters();
        }
    }

    fn timeout(&self) -> Duration {
        if !self.ready.is_empty() {
            return Duration::ZERO;
        }
        let longest = if self.waiters.is_empty() { SWEEP } else { LOOK };
        let first = self.due.values().min();
        first.map_or(longest, |due| due.saturating_duration_since(Instant::now()).min(longest))
    }

    fn note(&mut self, event: &mio::event::Event) {
        let Some(token) = event.token().0.checked_sub(FIRST) else {
            return;
        };
        let (slot, is_client) = (token / 2, token.is_multiple_of(2));
        let Some(Some(pair)) = self.pairs.get_mut(slot) else {
            return;
        };
        let side = if is_client { Some(&mut pair.client) } else { pair.exchange.as_mut() };
        if let Some(side) = side {
            side.readable |= event.is_readable() || event.is_error() || event.is_read_closed();
            side.writable |= event.is_writable();
        }
        pair.client_gone |= is_client && (event.is_error() || event.is_read_closed());
        self.ready.push(slot);
    }

    fn accept(&mut self) {
        loop {
            match self.door.accept() {
                Ok((client, peer)) => {
                    if let Err(error) = self.admit(client, peer) {
                        log::warn!("a client could not be passed on: {error}");
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    log::warn!("the proxy's accept failed: {error}");
                    return;
                }
            }
        }
    }

    fn admit(&mut self, mut client: TcpStream, peer: SocketAddr) -> io::Result<()> {
        if self.pairs.len() - self.free.len() >= MOST_PAIRS {
            return Err(io::Error::other("too many connections"));
        }
        client.set_nodelay(true)?;
        let route = Route { client: peer, broken: Arc::new(AtomicBool::new(false)) };
        let mut exchange = self.connect(&route)?;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.pairs.push(None);
            self.pairs.len() - 1
        });
        let both = Interest::READABLE | Interest::WRITABLE;
        let registry = self.poll.registry();
        registry.register(&mut client, Token(FIRST + 2 * slot), both)?;
        registry.register(&mut exchange, Token(FIRST + 2 * slot + 1), both)?;
        self.pairs[slot] = Some(Pair::new(client, exchange, route, self.wire));
        self.ready.push(slot);
        Ok(())
    }

    /// Connects to the exchange, which hears first who is behind it.
    fn connect(&self, route: &Route) -> io::Result<TcpStream> {
        let socket =
            Socket::new(Domain::for_address(self.target), Type::STREAM, Some(Protocol::TCP))?;
        let any = SocketAddr::new(self.target.ip(), 0);
        socket.bind(&SockAddr::from(any))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        let own = socket.local_addr()?.as_socket().ok_or(ErrorKind::AddrNotAvailable)?;
        self.told.try_send((own, route.clone())).map_err(io::Error::other)?;
        match socket.connect(&SockAddr::from(self.target)) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            // EINPROGRESS, here and on macOS, has no kind of its own.
            Err(error) if matches!(error.raw_os_error(), Some(115 | 36)) => {}
            Err(error) => return Err(error),
        }
        Ok(TcpStream::from_std(socket.into()))
    }

    fn drive_ready(&mut self) {
        let now = Instant::now();
        let mut turn = std::mem::take(&mut self.ready);
        turn.extend(self.due.iter().filter(|(_, due)| **due <= now).map(|(slot, _)| *slot));
        turn.sort_unstable();
        turn.dedup();
        for slot in turn {
            self.due.remove(&slot);
            let Some(Some(pair)) = self.pairs.get_mut(slot) else {
                continue;
            };
            match pair.drive(&mut self.rng, now) {
                Need::Again => self.ready.push(slot),
                Need::At(due) => drop(self.due.insert(slot, due)),
                Need::Wait => {}
                Need::Drop => self.drop_pair(slot),
            }
        }
    }

    fn drop_pair(&mut self, slot: usize) {
        if self.pairs.get_mut(slot).and_then(Option::take).is_some() {
            self.free.push(slot);
        }
    }

    fn answer_waiters(&mut self) {
        if self.waiters.is_empty() {
            return;
        }
        // What the kernel holds counts too: look before saying that there is nothing.
        for (slot, pair) in self.pairs.iter_mut().enumerate() {
            if let Some(pair) = pair {
                pair.client.readable = true;
                if let Some(exchange) = &mut pair.exchange {
                    exchange.readable = true;
                }
                self.ready.push(slot);
            }
        }
        self.drive_ready();
        let idle = self.ready.is_empty() && self.pairs.iter().flatten().all(Pair::is_idle);
        let now = Instant::now();
        self.waiters.retain(|waiter| {
            let over = idle || now >= waiter.deadline;
            !(over && (waiter.reply.try_send(idle).is_ok() || now >= waiter.deadline))
        });
    }

    /// Answers once nothing is on its way that could move.
    pub(crate) fn quiesce(&mut self, deadline: Duration, reply: Sender<bool>) {
        self.waiters.push(Waiter { deadline: Instant::now() + deadline, reply });
    }

    /// What the network does from now on, with connections there are and with new ones.
    pub(crate) fn set_wire(&mut self, wire: Wire) {
        self.wire = wire;
        self.change(|pair| pair.wire = wire, |_| true);
    }

    /// What it does from now on with the connections of these clients; returns how many there were.
    pub(crate) fn set_wire_of(&mut self, peers: &[SocketAddr], wire: Wire) -> usize {
        self.change(|pair| pair.wire = wire, |pair| peers.contains(&pair.peer()))
    }

    fn change(&mut self, act: impl Fn(&mut Pair), meant: impl Fn(&Pair) -> bool) -> usize {
        let mut count = 0;
        for (slot, pair) in self.pairs.iter_mut().enumerate() {
            if let Some(pair) = pair.as_mut().filter(|pair| meant(pair)) {
                act(pair);
                count += 1;
                self.ready.push(slot);
            }
        }
        count
    }

    /// Resets the connections of these clients on both sides; returns how many there were.
    pub(crate) fn reset(&mut self, peers: &[SocketAddr]) -> usize {
        let meant =
            |pair: &Option<Pair>| pair.as_ref().is_some_and(|pair| peers.contains(&pair.peer()));
        let slots: Vec<usize> = self
            .pairs
            .iter()
            .enumerate()
            .filter(|(_, pair)| meant(pair))
            .map(|(at, _)| at)
            .collect();
        for &slot in &slots {
            if let Some(Some(pair)) = self.pairs.get_mut(slot) {
                pair.reset();
            }
            self.drop_pair(slot);
        }
        slots.len()
    }

    /// Client addresses of all connections, those not upgraded included.
    pub(crate) fn peers(&self) -> Vec<SocketAddr> {
        self.pairs.iter().flatten().map(Pair::peer).collect()
    }

    /// Whether it accepts from now on.
    pub(crate) fn set_open(&mut self, open: bool) -> io::Result<()> {
        self.door.set_open(open, self.poll.registry(), DOOR)
    }

    pub(crate) fn stop(&mut self) {
        self.stopping = true;
    }
}
