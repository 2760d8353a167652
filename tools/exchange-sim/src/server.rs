//! The exchange's thread: one poll loop over listener, controls and connections. It sleeps whenever
//! nothing is due and never waits for any one connection.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use rustls::ServerConfig;
use serde::Serialize;

use crate::churn::Churn;
use crate::config::{ExchangeConfig, Mode};
use crate::conversation::Next;
use crate::door::Door;
use crate::faults::VerbCounts;
use crate::flood;
use crate::ledger::{ConnectionRecord, Ended, Ledger};
use crate::link::{Farewell, Link, Stage};
use crate::manners::Manners;
use crate::pair::Route;
use crate::proxy::Told;
use crate::remote::Order;
use crate::traffic::{self, Traffic};
use crate::upgrade::Gate;
use crate::upgrade_faults::UpgradeFaults;
use crate::venue::Venue;

const LISTENER: Token = Token(0);
pub(crate) const WAKER: Token = Token(1);
const FIRST_SLOT: usize = 2;
/// Pause between two looks at deadlines and idle connections.
pub(crate) const SWEEP: Duration = Duration::from_millis(20);
/// Pause between two turns of the paced generator.
const TICK: Duration = Duration::from_millis(1);
/// Connections that have not upgraded yet, beyond the upgraded ones.
const WAITING_ROOM: usize = 256;
/// Deadline of TLS and HTTP together.
const UPGRADE_DEADLINE: Duration = Duration::from_secs(10);
/// Deadline for what is queued before a Close or FIN.
pub(crate) const WRITE_DEADLINE: Duration = Duration::from_secs(5);
/// Patience for the client's Close after ours, and for the FIN of a client that was refused.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);
/// Patience for the FIN of a client that was served: a slow reader may still have much to read, and
/// letting go of the socket earlier could cost it the rest.
const LINGER: Duration = Duration::from_secs(30);
/// Lifecycle messages wait this long for a listener without room.
const NEWS_PATIENCE: Duration = Duration::from_secs(5);
/// A burst fills each socket by this much a turn.
const BURST_BYTES: usize = 64 * 1024;

/// Running totals of an exchange.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ExchangeStats {
    /// Text frames queued, data and answers.
    pub frames_sent: u64,
    /// Of those, data frames: deltas, snapshots, tickers, trades, lifecycle.
    pub data_frames_sent: u64,
    /// Data frames that took a number and were withheld.
    pub data_withheld: u64,
    /// Data frames written a second time, under their number or an older one.
    pub data_repeated: u64,
    /// Plaintext bytes handed to TLS or the socket.
    pub bytes_sent: u64,
    /// TLS records they made.
    pub records_sent: u64,
    /// Text messages read, commands or not.
    pub commands: u64,
    /// The same by kind.
    pub verbs: VerbCounts,
    /// Commands something was made to go wrong with.
    pub faults: u64,
    /// Errors sent, in answer to commands or not.
    pub errors_sent: u64,
    /// Most commands of one connection waiting for their replies at a time; more than one only
    /// where replies are late.
    pub most_in_flight: u64,
    /// Markets of order-book subscriptions now, summed over all connections.
    pub book_markets: u64,
    /// TCP connections accepted.
    pub connections_accepted: u64,
    /// Upgrades answered with 101.
    pub upgrades_accepted: u64,
    /// Upgrades answered with anything else.
    pub upgrades_rejected: u64,
    /// TLS handshakes of upgraded connections that resumed an earlier session.
    pub resumed_handshakes: u64,
    /// Heartbeat pings sent.
    pub heartbeats: u64,
    /// Pongs read.
    pub pongs: u64,
}

/// Someone who waits for all queued bytes to be in the kernel.
struct Waiter {
    deadline: Instant,
    reply: Sender<bool>,
}

/// Where the exchange hears from.
pub(crate) struct Ears {
    pub(crate) door: Door,
    pub(crate) orders: Receiver<Order<Server>>,
    /// Who is behind the connections of the proxy.
    pub(crate) routes: Receiver<Told>,
}

/// The state of the thread.
pub(crate) struct Server {
    poll: Poll,
    ears: Ears,
    /// Routes of connections that have not been accepted yet.
    routes: BTreeMap<SocketAddr, Route>,
    tls: Option<Arc<ServerConfig>>,
    pub(crate) gate: Gate,
    pub(crate) config: ExchangeConfig,
    pub(crate) venue: Venue,
    pub(crate) links: Vec<Option<Link>>,
    free: Vec<u32>,
    pub(crate) traffic: Traffic,
    pub(crate) churn: Churn,
    pub(crate) refuse: Option<u16>,
    pub(crate) upgrade_faults: UpgradeFaults,
    /// How far its clock is ahead, in milliseconds.
    pub(crate) clock_skew: i64,
    pub(crate) manners: Manners,
    /// Places whose answers go out byte by byte.
    pub(crate) trickling: Vec<u32>,
    pub(crate) stats: ExchangeStats,
    accepted: u64,
    past: Vec<(ConnectionRecord, Option<Route>)>,
    waiters: Vec<Waiter>,
    ready: Vec<u32>,
    flushing: Vec<u32>,
    news_stuck: Option<Instant>,
    pub(crate) stopping: bool,
}

impl Server {
    pub(crate) fn new(
        config: ExchangeConfig,
        gate: Gate,
        tls: Option<Arc<ServerConfig>>,
        poll: Poll,
        mut ears: Ears,
    ) -> io::Result<Self> {
        ears.door.register(poll.registry(), LISTENER)?;
        let now = Instant::now();
        Ok(Self {
            poll,
            ears,
            routes: BTreeMap::new(),
            tls,
            gate,
            venue: Venue::new(&config, now),
            links: Vec::new(),
            free: Vec::new(),
            traffic: Traffic::new(config.mode, config.rate_per_second, now),
            churn: Churn::new(config.lifecycle_churn_per_minute, now),
            refuse: None,
            upgrade_faults: UpgradeFaults::new(config.upgrade_faults.clone(), config.seed, now),
            clock_skew: config.clock_skew,
            manners: config.manners,
            trickling: Vec::new(),
            stats: ExchangeStats::default(),
            accepted: 0,
            past: Vec::new(),
            waiters: Vec::new(),
            ready: Vec::new(),
            flushing: Vec::new(),
            news_stuck: None,
            stopping: false,
            config,
        })
    }

    /// Serves until told to stop.
    pub(crate) fn run(mut self) {
        let mut events = Events::with_capacity(1_024);
        let mut next_sweep = Instant::now();
        let mut busy = false;
        while !self.stopping {
            let timeout = self.timeout(busy, next_sweep);
            match self.poll.poll(&mut events, Some(timeout)) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    log::error!("the exchange's poll failed: {error}");
                    return;
                }
            }
            for event in &events {
                self.note(event);
            }
            self.drive_ready();
            while let Ok(order) = self.ears.orders.try_recv() {
                order(&mut self);
            }
            let now = Instant::now();
            self.venue.catch_up(now);
            self.trickle(now);
            if self.traffic.running {
                self.churn.tick(&mut self.venue, now);
                self.pace(now);
            }
            self.send_news(now);
            busy = self.traffic.bursting() && self.burst(now);
            self.flush_dirty(now);
            if now >= next_sweep {
                next_sweep = now + SWEEP;
                self.sweep(now);
            }
            self.answer_waiters(now);
        }
    }

    fn timeout(&self, busy: bool, next_sweep: Instant) -> Duration {
        if busy || !self.ready.is_empty() {
            return Duration::ZERO;
        }
        let due = [self.venue.postponed.next_due(), self.venue.next_release(), self.next_trickle()];
        let due = due.into_iter().flatten().fold(next_sweep, Instant::min);
        let sweep = due.saturating_duration_since(Instant::now());
        if self.traffic.paced(&self.venue) { sweep.min(TICK) } else { sweep }
    }

    fn note(&mut self, event: &mio::event::Event) {
        match event.token() {
            LISTENER => self.accept(),
            WAKER => {}
            Token(token) => {
                let slot = token - FIRST_SLOT;
                if let Some(Some(link)) = self.links.get_mut(slot) {
                    link.readable |= event.is_readable() || event.is_error();
                    link.writable |= event.is_writable();
                    link.hung_up |= event.is_error() || event.is_read_closed();
                    self.ready.push(slot as u32);
                }
            }
        }
    }

    fn accept(&mut self) {
        loop {
            match self.ears.door.accept() {
                Ok((socket, peer)) => self.admit(socket, peer),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    // Out of descriptors, most likely: the sweep tries again.
                    log::warn!("accept failed: {error}");
                    return;
                }
            }
        }
    }

    fn admit(&mut self, mut socket: TcpStream, peer: SocketAddr) {
        // The proxy tells before it connects.
        self.routes.extend(self.ears.routes.try_iter());
        let route = self.routes.remove(&peer);
        let held = self.links.len() - self.free.len();
        if held >= self.config.max_connections + WAITING_ROOM {
            self.stats.upgrades_rejected += 1;
            return;
        }
        self.accepted += 1;
        self.stats.connections_accepted += 1;
        drop(socket.set_nodelay(true));
        let slot = self.free.pop().unwrap_or_else(|| {
            self.links.push(None);
            (self.links.len() - 1) as u32
        });
        let token = Token(slot as usize + FIRST_SLOT);
        let both = Interest::READABLE | Interest::WRITABLE;
        let registered = self.poll.registry().register(&mut socket, token, both);
        let link = Link::new(socket, self.tls.clone(), self.config.packing, Instant::now());
        let (Ok(()), Ok(link)) = (registered, link) else {
            self.free.push(slot);
            return;
        };
        self.links[slot as usize] = Some(link);
        self.venue.admit(slot, self.accepted, peer, route);
        self.behave(slot, self.manners);
        self.ready.push(slot);
    }

    /// Gives a connection a turn soon.
    pub(crate) fn wake(&mut self, slot: u32) {
        self.ready.push(slot);
    }

    fn drive_ready(&mut self) {
        let mut turn = std::mem::take(&mut self.ready);
        turn.sort_unstable();
        turn.dedup();
        for &slot in &turn {
            match self.converse(slot) {
                Next::Wait => {}
                Next::Again => self.ready.push(slot),
                Next::Drop => {
                    self.drop_link(slot);
                    continue;
                }
            }
            self.flush(slot, Instant::now());
        }
        turn.clear();
        if self.ready.is_empty() {
            self.ready = turn;
        }
    }

    fn flush_dirty(&mut self, now: Instant) {
        let mut turn = std::mem::take(&mut self.flushing);
        self.venue.take_dirty(&mut turn);
        for &slot in &turn {
            self.flush(slot, now);
        }
        turn.clear();
        self.flushing = turn;
    }

    /// Writes what a connection has queued, and takes the step that was waiting for it.
    pub(crate) fn flush(&mut self, slot: u32, now: Instant) {
        let Some(Some(link)) = self.links.get_mut(slot as usize) else {
            return;
        };
        let Some(client) = self.venue.client(slot) else {
            return;
        };
        if !link.writable {
            return;
        }
        let was_full = client.out.over_bound();
        let before = client.out.len();
        let Ok(done) = link.flush(&mut client.out, now) else {
            if link.ended == Ended::Open || !client.out.is_empty() {
                link.ended = Ended::PeerReset;
            }
            return self.drop_link(slot);
        };
        self.stats.bytes_sent += (before - client.out.len()) as u64;
        self.stats.records_sent += std::mem::take(&mut link.records);
        if was_full && !client.out.over_bound() {
            // Its commands were left unread for want of room.
            self.ready.push(slot);
        }
        if !done || !client.out.is_empty() {
            return;
        }
        match &mut link.stage {
            Stage::AwaitClose { until, .. } => {
                until.get_or_insert(now + CLOSE_PATIENCE);
            }
            Stage::Finishing { .. } if link.farewell == Farewell::Reset => {
                link.arm_reset();
                self.drop_link(slot);
            }
            Stage::Finishing { .. } => {
                link.finish(if client.upgraded { LINGER } else { CLOSE_PATIENCE }, now);
            }
            Stage::Upgrading(_)
            | Stage::Trickling(_)
            | Stage::Open
            | Stage::Mute
            | Stage::Lingering { .. } => {}
        }
    }

    fn pace(&mut self, now: Instant) {
        if !self.config.write_through {
            return self.traffic.tick(&mut self.venue, now);
        }
        self.traffic.earn(&self.venue, now);
        while self.traffic.one(&mut self.venue) {
            self.flush_dirty(now);
        }
    }

    /// Fills every socket that takes bytes; returns whether any data was made.
    fn burst(&mut self, now: Instant) -> bool {
        let mut made = false;
        for slot in 0..self.links.len() {
            let takes = |link: &Link| link.open() && link.writable;
            if self.links[slot].as_ref().is_some_and(takes) {
                let slot = slot as u32;
                let flood = self.traffic.mode == Mode::Flood;
                let filled = if flood {
                    flood::fill(&mut self.venue, slot, flood::BYTES)
                } else {
                    traffic::fill(&mut self.venue, slot, BURST_BYTES)
                };
                if filled {
                    made = true;
                    self.flush(slot, now);
                    let spare = &mut self.venue.spare;
                    if let Some(Some(client)) = self.venue.clients.get_mut(slot as usize)
                        && flood
                    {
                        client.out.give_back(spare);
                    }
                }
            }
        }
        made
    }

    fn send_news(&mut self, now: Instant) {
        let force = self.news_stuck.is_some_and(|since| now >= since + NEWS_PATIENCE);
        if !self.venue.send_news(force) {
            self.news_stuck = None;
        } else if self.news_stuck.is_none() {
            self.news_stuck = Some(now);
        }
    }

    /// Deadlines, heartbeats, and accepts that failed.
    fn sweep(&mut self, now: Instant) {
        self.accept();
        for slot in 0..self.links.len() {
            let Some(link) = &mut self.links[slot] else {
                continue;
            };
            let slot = slot as u32;
            match link.stage {
                Stage::Upgrading(_) if now >= link.accepted + UPGRADE_DEADLINE => {
                    self.drop_link(slot);
                }
                Stage::Open => self.ping(slot, now),
                Stage::AwaitClose { until: Some(until), .. } if now >= until => {
                    link.stage = Stage::Finishing { by: now + WRITE_DEADLINE };
                    self.flush(slot, now);
                }
                Stage::AwaitClose { until: None, write_by: by } | Stage::Finishing { by }
                    if now >= by =>
                {
                    // It takes nothing more: what is queued will not arrive.
                    if matches!(link.ended, Ended::ServerClosed(_)) {
                        link.ended = Ended::Cut;
                    }
                    link.arm_reset();
                    self.drop_link(slot);
                }
                Stage::Lingering { until } if now >= until => self.drop_link(slot),
                _ => {}
            }
        }
    }

    pub(crate) fn drop_link(&mut self, slot: u32) {
        let Some(mut link) = self.links.get_mut(slot as usize).and_then(Option::take) else {
            return;
        };
        drop(self.poll.registry().deregister(link.socket()));
        let ended = match (&link.stage, link.ended) {
            (Stage::Upgrading(_), Ended::Open) => Ended::ServerClosed(0),
            (_, Ended::Open) => Ended::PeerReset,
            (_, ended) => ended,
        };
        self.past.extend(self.venue.dismiss(slot, ended));
        self.free.push(slot);
    }

    fn answer_waiters(&mut self, now: Instant) {
        if self.waiters.is_empty() {
            return;
        }
        let queued = |(slot, link): (usize, &Option<Link>)| {
            let pending = |client: &mut crate::client::Client| !client.out.is_empty();
            link.as_ref().is_some_and(Link::wants_write)
                || self.venue.client(slot as u32).is_some_and(pending)
        };
        let full = self.links.iter().enumerate().any(queued);
        let full = full || self.news_stuck.is_some() || !self.venue.postponed.is_empty();
        self.waiters.retain(|waiter| {
            let over = !full || now >= waiter.deadline;
            // A caller that has gone needs no answer, and keeps no place.
            !(over && (waiter.reply.try_send(!full).is_ok() || now >= waiter.deadline))
        });
    }

    /// Stops generating and answers once all queued bytes are in the kernel.
    pub(crate) fn quiesce(&mut self, deadline: Duration, reply: Sender<bool>) {
        let now = Instant::now();
        self.traffic.running = false;
        self.churn.finish(&mut self.venue, now);
        self.waiters.push(Waiter { deadline: now + deadline, reply });
    }

    /// Everything sent so far.
    pub(crate) fn ledger(&self) -> Ledger {
        let mut connections = self.past.clone();
        for (slot, link) in self.links.iter().enumerate() {
            let Some(link) = link else { continue };
            connections.extend(self.venue.record(slot as u32, link.ended));
        }
        let whole = |(record, route): (ConnectionRecord, Option<Route>)| match route {
            Some(route) if route.is_broken() => record.broken(),
            _ => record,
        };
        let mut connections: Vec<_> = connections.into_iter().map(whole).collect();
        connections.sort_unstable_by_key(|record| record.accept_number);
        Ledger { connections }
    }

    pub(crate) fn totals(&self) -> ExchangeStats {
        let (counts, data) = (self.venue.counts, &self.venue.data_faults);
        let data_frames = counts.data_frames + data.repeated - data.withheld;
        ExchangeStats {
            frames_sent: data_frames + counts.control_frames,
            data_frames_sent: data_frames,
            data_withheld: data.withheld,
            data_repeated: data.repeated,
            commands: counts.commands,
            verbs: counts.verbs,
            faults: self.venue.rules.faults.struck,
            errors_sent: counts.errors,
            most_in_flight: counts.most_in_flight,
            book_markets: counts.memberships,
            ..self.stats
        }
    }

    /// Whether it accepts from now on.
    pub(crate) fn set_open(&mut self, open: bool) -> io::Result<()> {
        self.ears.door.set_open(open, self.poll.registry(), LISTENER)
    }

    pub(crate) fn set_mode(&mut self, mode: Mode) {
        self.traffic.mode = mode;
    }
}
