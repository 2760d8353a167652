//! A shard over a scripted network in virtual time: no socket, no TLS, no clock. What the tests
//! share; nothing here asserts.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::SystemTime;

use crossbeam_channel::bounded;

use super::super::*;
use crate::arbitration::{ArbiterSettings, Arbitration};
use crate::clock::Stamp;
use crate::dialect::Dialect;
use crate::ids::CommandId;
use crate::mailbox::Adoption;
use crate::messages::{Handoff, Messages};
use crate::pulse::PulseSettings;
use crate::request::Ask;
use crate::suspicion::SuspicionSettings;

/// What the scripted peer does next.
pub(super) enum Chunk {
    Bytes(Vec<u8>),
    End,
    Reset,
    /// Bytes, and behind them what is no TLS.
    Spoilt(Vec<u8>),
    /// A bug, as the thing that reads it will have it.
    Panics,
}

/// Our end of a scripted connection.
pub(super) struct FakeLink {
    inbound: Receiver<Chunk>,
    outbound: Sender<Vec<u8>>,
    blocked: Receiver<bool>,
    refuses: bool,
}

/// The peer's end.
pub(super) struct Peer {
    pub(super) chunks: Sender<Chunk>,
    pub(super) sent: Receiver<Vec<u8>>,
    pub(super) block: Sender<bool>,
}

pub(super) struct FakeNet {
    ready: Receiver<Ready>,
    now: Receiver<Stamp>,
    at: Stamp,
    copied: Arc<AtomicUsize>,
    bugs: Arc<Bugs>,
}

/// Where bugs strike, put there on purpose; all but `cpu` once.
#[derive(Default)]
pub(super) struct Bugs {
    pub(super) register: AtomicBool,
    pub(super) deregister: AtomicBool,
    pub(super) now: AtomicBool,
    /// With every look.
    pub(super) cpu: AtomicBool,
}

fn strike(bug: &AtomicBool) {
    assert!(!bug.swap(false, Ordering::Relaxed), "a bug, put here on purpose");
}

impl Transport for FakeNet {
    type Link = FakeLink;

    fn dial(&mut self, _: SocketAddr) -> Result<FakeLink, Cause> {
        Err(Cause::Reset)
    }
    fn register(&mut self, _: &mut FakeLink, _: usize) -> Result<(), Cause> {
        strike(&self.bugs.register);
        Ok(())
    }
    fn deregister(&mut self, _: &mut FakeLink) {
        strike(&self.bugs.deregister);
    }
    fn connected(&mut self, _: &mut FakeLink) -> Result<bool, Cause> {
        Ok(true)
    }
    fn secure(&mut self, _: &mut FakeLink) -> Result<bool, Cause> {
        Ok(true)
    }
    fn resumed(&self, _: &FakeLink) -> Option<bool> {
        None
    }
    fn receive(&mut self, link: &mut FakeLink, plain: &mut Vec<u8>) -> Result<Received, Cause> {
        self.copied.fetch_add(plain.len(), Ordering::Relaxed);
        match link.inbound.try_recv() {
            Ok(Chunk::Bytes(bytes)) => {
                plain.extend(bytes);
                Ok(Received::Some { more: !link.inbound.is_empty(), at: self.stamp() })
            }
            Ok(Chunk::Panics) => panic!("a bug, put here on purpose"),
            Ok(Chunk::Spoilt(bytes)) => {
                plain.extend(bytes);
                Err(Cause::Tls { message: "cannot decrypt".to_owned() })
            }
            Ok(Chunk::End) => Ok(Received::Ended),
            Ok(Chunk::Reset) => Err(Cause::Reset),
            Err(_) => Ok(Received::Blocked),
        }
    }
    fn send(&mut self, link: &mut FakeLink, bytes: &mut Vec<u8>) -> Result<Sent, Cause> {
        while let Ok(refuses) = link.blocked.try_recv() {
            link.refuses = refuses;
        }
        if bytes.is_empty() {
            return Ok(Sent::All);
        }
        if link.refuses {
            return Ok(Sent::None);
        }
        link.outbound.send(std::mem::take(bytes)).unwrap();
        Ok(Sent::All)
    }
    fn local_addr(&self, _: &FakeLink) -> Option<SocketAddr> {
        None
    }
    fn wait(&mut self, _: Option<Duration>, ready: &mut Vec<Ready>) -> std::io::Result<()> {
        while let Ok(now) = self.now.try_recv() {
            self.at = now;
        }
        ready.extend(self.ready.try_iter());
        Ok(())
    }
    fn now(&self) -> Instant {
        strike(&self.bugs.now);
        self.at.mono
    }
    fn cpu(&self) -> crate::clock::CpuTime {
        assert!(!self.bugs.cpu.load(Ordering::Relaxed), "a bug, put here on purpose");
        crate::clock::CpuTime::default()
    }
    fn stamp(&self) -> Stamp {
        self.at
    }
}

/// A shard with one connection of each role (1 ticker, 2 trade, 3 lifecycle, 4 and 5 books).
pub(super) struct World {
    pub(super) shard: Shard<FakeNet>,
    pool: PoolLayout,
    pub(super) orders: Sender<Order<FakeLink>>,
    pub(super) reports: Receiver<Report>,
    pub(super) ready: Sender<Ready>,
    pub(super) clock: Sender<Stamp>,
    /// What people's clocks said at `start`.
    pub(super) wall: SystemTime,
    /// Bytes that went before those of a read.
    pub(super) copied: Arc<AtomicUsize>,
    pub(super) bugs: Arc<Bugs>,
    pub(super) messages: Messages,
    pub(super) registry: Receiver<RawMessage>,
    pub(super) counters: Arc<CachePadded<ShardCounters>>,
    pub(super) start: Instant,
    pub(super) next: Next,
    /// The last command's id.
    pub(super) asked: u64,
}

pub(super) const POOL: PoolLayout = PoolLayout::new(1, 1, 1, 2);
pub(super) const BOOK: ConnId = ConnId::new(4);

impl World {
    pub(super) fn new(message_buffer: usize) -> Self {
        Self::with(message_buffer, OverflowPolicy::default())
    }

    pub(super) fn with(message_buffer: usize, overflow: OverflowPolicy) -> Self {
        Self::set(message_buffer, overflow, |_| {})
    }

    pub(super) fn set(
        message_buffer: usize,
        overflow: OverflowPolicy,
        adjust: impl FnOnce(&mut LinkSettings),
    ) -> Self {
        Self::build(POOL, Arbitration::Both, message_buffer, overflow, adjust)
    }

    /// A shard with the two lines of a pair of trades (1 and 2), arbitrated.
    pub(super) fn pair(message_buffer: usize, overflow: OverflowPolicy) -> Self {
        let pool = PoolLayout::new(0, 2, 0, 0);
        Self::build(pool, Arbitration::FirstWins, message_buffer, overflow, |_| {})
    }

    /// The same of tickers, which keep what finds no room.
    pub(super) fn ticker_pair(message_buffer: usize) -> Self {
        let pool = PoolLayout::new(2, 0, 0, 0);
        let ticker = Overflow::ConflateByMarket;
        let overflow = OverflowPolicy { ticker, ..OverflowPolicy::default() };
        Self::build(pool, Arbitration::FirstWins, message_buffer, overflow, |_| {})
    }

    fn build(
        pool: PoolLayout,
        arbitration: Arbitration,
        message_buffer: usize,
        overflow: OverflowPolicy,
        adjust: impl FnOnce(&mut LinkSettings),
    ) -> Self {
        let (handoff, messages) = Handoff::new(1, message_buffer, 1 << 24);
        let (orders, order_receiver) = bounded(1_000);
        let (report_sender, reports) = bounded(1_000);
        let (ready, ready_receiver) = bounded(1_000);
        let (clock, now) = bounded(1_000);
        let (sink, registry) = bounded(2);
        let start = crate::clock::now();
        let counters = Arc::default();
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_793_534_400);
        let copied = Arc::new(AtomicUsize::new(0));
        let at = Stamp { wall, mono: start };
        let mut settings = settings();
        adjust(&mut settings);
        let bugs: Arc<Bugs> = Arc::default();
        let net = FakeNet {
            ready: ready_receiver,
            now,
            at,
            copied: Arc::clone(&copied),
            bugs: Arc::clone(&bugs),
        };
        let shard = Shard::new(ShardParts {
            id: ShardId::new(0),
            shards: 1,
            transport: net,
            settings,
            orders: order_receiver,
            reports: report_sender,
            outlet: handoff.outlet(ShardId::new(0)).unwrap(),
            pool,
            overflow,
            conflate: Limits { markets: 4, bytes: 1 << 16 },
            arbitration: ArbiterSettings {
                policy: arbitration.into(),
                window: Duration::from_millis(500),
                messages: 1_000,
            },
            delivery: Delivery::channel(),
            turn_budget: 1,
            handler_slow_threshold: Duration::from_millis(1),
            stall_threshold: Duration::from_millis(50),
            counters: Arc::clone(&counters),
        });
        orders.send(Order::Listen { sink }).unwrap();
        let next = Next::Now;
        Self {
            shard,
            pool,
            orders,
            reports,
            ready,
            clock,
            wall,
            copied,
            bugs,
            messages,
            registry,
            counters,
            start,
            next,
            asked: 0,
        }
    }

    /// One turn at this time.
    pub(super) fn step(&mut self, seconds: f64) {
        let now = self.start + Duration::from_secs_f64(seconds);
        let wall = self.wall + Duration::from_secs_f64(seconds);
        self.clock.send(Stamp { wall, mono: now }).unwrap();
        self.shard.wait(None).unwrap();
        self.next = self.shard.step(now);
    }

    /// Turns as the thread has them, bugs and all, until nothing is left to do.
    pub(super) fn survive(&mut self, seconds: f64) {
        let now = self.start + Duration::from_secs_f64(seconds);
        loop {
            self.shard.wait(None).unwrap();
            self.next = self.shard.turn(now);
            if self.next != Next::Now {
                return;
            }
        }
    }

    /// Turns at this time until nothing is left to do.
    pub(super) fn settle(&mut self, seconds: f64) {
        self.step(seconds);
        while self.next == Next::Now {
            self.step(seconds);
        }
    }

    /// When the shard wants to be called next, in seconds.
    pub(super) fn due(&self) -> f64 {
        match self.next {
            Next::At(Some(due)) => due.saturating_duration_since(self.start).as_secs_f64(),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn adopt(
        &mut self,
        conn: ConnId,
        epoch: u32,
        unread: Vec<u8>,
        seconds: f64,
    ) -> Peer {
        let peer = self.entrust(conn, epoch, unread);
        self.settle(seconds);
        peer
    }

    /// A connection comes for the shard, which has not looked yet.
    pub(super) fn entrust(&mut self, conn: ConnId, epoch: u32, unread: Vec<u8>) -> Peer {
        let (chunks, inbound) = bounded(10_000);
        let (outbound, sent) = bounded(10_000);
        let (block, blocked) = bounded(10);
        let link = FakeLink { inbound, outbound, blocked, refuses: false };
        let role = self.pool.role(conn).unwrap();
        let adoption = Adoption { conn, epoch: Epoch::new(epoch), role, link, unread };
        self.orders.send(Order::Adopt(Box::new(adoption))).unwrap();
        Peer { chunks, sent, block }
    }

    /// The peer does something, and the shard's poll hears of it.
    pub(super) fn give(&mut self, conn: ConnId, peer: &Peer, chunks: Vec<Chunk>, seconds: f64) {
        for chunk in chunks {
            peer.chunks.send(chunk).unwrap();
        }
        let token = self.shard.index(conn).unwrap();
        self.ready.send(Ready { token, read_closed: false }).unwrap();
        self.settle(seconds);
    }

    pub(super) fn subscribe(&mut self, seconds: f64) {
        self.ask(Ask::Subscribe, seconds);
    }

    /// One more command of the plan.
    pub(super) fn ask(&mut self, ask: Ask, seconds: f64) {
        self.asked += 1;
        let id = CommandId::new(self.asked);
        let request = ask.request(id, (Dialect::Live, Role::Orderbook), &["M"]);
        self.orders.send(Order::Command { conn: BOOK, epoch: Epoch::new(1), request }).unwrap();
        self.settle(seconds);
    }

    pub(super) fn untold(self) -> u64 {
        let last = self.reports.try_iter().last();
        assert!(matches!(last, Some(Report::Stopped)), "{last:?}");
        self.shard.into_untold().iter().map(|untold| untold.messages).sum()
    }

    pub(super) fn downs(&self) -> Vec<Cause> {
        let cause = |report| match report {
            Report::Down { cause, .. } => Some(cause),
            _ => None,
        };
        self.reports.try_iter().filter_map(cause).collect()
    }

    /// What the host was told.
    pub(super) fn told(&self) -> Vec<Event> {
        let told = |report| match report {
            Report::Tell(event) => Some(event),
            _ => None,
        };
        self.reports.try_iter().filter_map(told).collect()
    }

    pub(super) fn received(&mut self) -> Vec<RawMessage> {
        std::iter::from_fn(|| self.messages.try_recv().ok()).collect()
    }
}

fn settings() -> LinkSettings {
    let second = Duration::from_secs(1);
    LinkSettings {
        message_bytes_max: 1 << 20,
        outgoing_bytes_max: 1 << 16,
        subscribe_timeout: 5 * second,
        keep_responses: false,
        dialect: Dialect::Live,
        single_sids: 0,
        ping_idle: 15 * second,
        pong_timeout: 10 * second,
        write_timeout: 10 * second,
        message_timeout: 20 * second,
        pulse: PulseSettings { silent_after: 60 * second, lag_threshold: 5 * second },
        silent_reconnect: false,
        suspicion: SuspicionSettings::default(),
    }
}

pub(super) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first, 126];
    bytes.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    bytes.extend(payload);
    bytes
}

pub(super) fn text(json: &str) -> Vec<u8> {
    frame(0x81, json.as_bytes())
}

pub(super) fn delta(seq: u64) -> Vec<u8> {
    text(&format!(
        "{{\"type\":\"orderbook_delta\",\"sid\":1,\"seq\":{seq},\"msg\":{{\"s\":\"x\"}}}}\n"
    ))
}

pub(super) fn ok(id: u64, seq: u64) -> Vec<u8> {
    text(&format!(r#"{{"type":"ok","id":{id},"sid":1,"seq":{seq},"msg":{{}}}}"#))
}

/// Opcodes of the frames sent, and the texts.
pub(super) fn opcodes(peer: &Peer) -> Vec<u8> {
    peer.sent.try_iter().map(|bytes| bytes[0] & 0x0F).collect()
}
