//! The engine under the oracle: an exchange in a process of its own, a consumer that keeps account
//! of every message, and the account settled in the end. It measures nothing itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use exchange_sim::{Audit, Ledger, Verdict};
use kalshi_feed::{
    ChannelRegistry, ConfigBuilder, ConnId, Epoch, Event, Events, Handle, Manager, Messages,
    RegistryHost, Role, Ticker,
};
use peers::{Sim, pin};

use super::engine::settings;
use super::{FAR, NEAR, POOL};

/// Longest wait for any step.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(1);
/// Nothing came for so long: the engine is at rest.
const QUIET: Duration = Duration::from_millis(300);
/// Changes and lifecycle frames that may wait.
const QUEUE: usize = 65_536;

/// What the consumer has seen of one connection, for others to read.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// The epoch of its last message.
    epoch: AtomicU64,
    /// Books that came in this epoch.
    books: AtomicU64,
    /// Messages it was told it missed, over all epochs.
    missed: AtomicU64,
}

/// A running engine, its consumer, and the account.
pub(crate) struct Audited {
    pub(crate) handle: Handle,
    /// Live connections and their addresses.
    pub(crate) live: BTreeMap<ConnId, (Epoch, Role, SocketAddr)>,
    /// Connections that went down, each time.
    pub(crate) downs: Vec<ConnId>,
    manager: Manager,
    events: Events,
    host: RegistryHost,
    consumer: JoinHandle<Audit>,
    seen: Arc<Vec<Seen>>,
    audit: Audit,
    markets: u64,
}

impl Audited {
    /// Connects the default pool, has the exchange send, and waits until everything streams.
    pub(crate) fn start(
        sim: &mut Sim,
        adjust: impl FnOnce(ConfigBuilder) -> ConfigBuilder,
    ) -> Self {
        let facts = sim.facts.clone();
        let config = adjust(settings(&facts, POOL, vec![FAR])).build().unwrap();
        let tickers = facts.markets.iter().map(|ticker| ticker.parse::<Ticker>().unwrap());
        let (registry, host) = ChannelRegistry::new(tickers, QUEUE, QUEUE);
        let mut manager = Manager::new(config, registry);
        let (messages, events) = (manager.messages().unwrap(), manager.events().unwrap());
        let seen: Vec<_> = (0..=POOL.connections()).map(|_| Seen::default()).collect();
        let seen = Arc::new(seen);
        let shown = Arc::clone(&seen);
        let consumer = std::thread::spawn(move || consume(messages, &shown));
        manager.start().unwrap();
        pin(NEAR);
        let mut audited = Self {
            handle: manager.handle(),
            live: BTreeMap::new(),
            downs: Vec::new(),
            manager,
            events,
            host,
            consumer,
            seen,
            audit: Audit::default(),
            markets: facts.markets.len() as u64,
        };
        sim.tell("mode paced");
        audited.until("all streams", Self::is_whole);
        audited
    }

    /// Takes what the engine tells, until this holds.
    pub(crate) fn until(&mut self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let begun = Instant::now();
        while !holds(self) {
            assert!(
                begun.elapsed() < PATIENCE,
                "no end of waiting until {what}: {:#?}",
                self.handle.stats()
            );
            std::thread::sleep(LOOK);
            self.listen();
        }
    }

    /// The same for a while.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = Instant::now() + time;
        self.until("the time is over", |_| Instant::now() >= end);
    }

    /// Everything is live and subscribed, every market's book has come in its connection's present
    /// epoch, and every connection but the lifecycle's, which has little to say, streams.
    pub(crate) fn is_whole(&self) -> bool {
        let heard = |(conn, (epoch, role, _)): (&ConnId, &(Epoch, Role, SocketAddr))| {
            let last = self.of(*conn).epoch.load(Ordering::Acquire);
            *role == Role::Lifecycle || last == u64::from(epoch.number())
        };
        if self.live.len() < POOL.connections() || !self.live.iter().all(heard) {
            return false;
        }
        let books = self.seen.iter().map(|seen| seen.books.load(Ordering::Relaxed)).sum::<u64>();
        let stats = self.handle.stats();
        let all = POOL.connections() as u64;
        (stats.connections_healthy, stats.subscriptions_total) == (all, all)
            && (stats.markets_total, stats.markets_wanted) == (self.markets, self.markets)
            && books >= self.markets
    }

    /// Messages these connections were told they missed, so far.
    pub(crate) fn missed(&self, conns: impl Iterator<Item = ConnId>) -> u64 {
        conns.map(|conn| self.of(conn).missed.load(Ordering::Relaxed)).sum()
    }

    fn of(&self, conn: ConnId) -> &Seen {
        &self.seen[usize::from(conn.number())]
    }

    fn listen(&mut self) {
        while let Ok(event) = self.events.try_recv() {
            match event {
                Event::Up { conn, role, epoch, local_addr } => {
                    self.audit.up(conn.number(), epoch.number(), local_addr);
                    self.live.insert(conn, (epoch, role, local_addr));
                }
                Event::Down { conn, epoch, .. } => {
                    self.audit.down(conn.number(), epoch.number());
                    self.downs.push(conn);
                    if self.live.get(&conn).is_some_and(|(live, ..)| *live == epoch) {
                        self.live.remove(&conn);
                    }
                }
                Event::Halted { conn, cause, .. } => panic!("connection {conn} halted: {cause}"),
                _ => {}
            }
        }
        while let Ok(frame) = self.host.lifecycle().try_recv() {
            let sid = frame.sid.map_or(0, |sid| sid.number());
            let seq = frame.seq.map(|seq| seq.number());
            let (conn, epoch) = (frame.conn_id.number(), frame.epoch.number());
            self.audit.delivered(conn, epoch, sid, seq, frame.gap_size, &frame.data);
        }
    }

    /// Traffic off, everything taken, the engine stopped, the account settled.
    pub(crate) fn settle(mut self, sim: &mut Sim) -> Verdict {
        let mut untold = Vec::new();
        let ledger = sim.settle(|| {
            self.until_quiet();
            let report = self.manager.stop(Duration::from_secs(5));
            assert!(report.stuck.is_empty() && report.panicked.is_empty(), "{report:?}");
            untold = report.untold;
        });
        self.listen();
        let dropped = self.handle.stats().events_dropped;
        assert_eq!(dropped, 0, "events were dropped: the account cannot be settled");
        let consumed = self.consumer.join().unwrap();
        for untold in untold {
            let sid = untold.sid.map_or(0, |sid| sid.number());
            let (conn, epoch) = (untold.conn_id.number(), untold.epoch.number());
            self.audit.owed(conn, epoch, sid, untold.messages);
        }
        self.audit.merge(consumed);
        let ledger: Ledger = serde_json::from_str(&ledger).unwrap();
        let verdict = self.audit.settle(&ledger);
        assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
        verdict
    }

    fn until_quiet(&mut self) {
        let (mut received, mut since) = (0, Instant::now());
        let quiet = move |audited: &Self| {
            let stats = audited.handle.stats();
            let taken = stats.messages_consumed == stats.messages_forwarded;
            if stats.bytes_received != received || !taken {
                (received, since) = (stats.bytes_received, Instant::now());
            }
            since.elapsed() > QUIET
        };
        self.until("the engine is at rest", quiet);
    }
}

/// Takes every message to the account until the engine has stopped.
fn consume(mut messages: Messages, seen: &[Seen]) -> Audit {
    pin(NEAR);
    let mut audit = Audit::default();
    while let Ok(batch) = messages.recv_batch() {
        let seen = &seen[usize::from(batch.conn_id().number())];
        for message in batch {
            let (conn, epoch) = (message.conn_id.number(), message.epoch.number());
            let sid = message.sid.map_or(0, |sid| sid.number());
            let seq = message.seq.map(|seq| seq.number());
            audit.delivered(conn, epoch, sid, seq, message.gap_size, message.data);
            if seen.epoch.load(Ordering::Relaxed) != u64::from(epoch) {
                seen.books.store(0, Ordering::Relaxed);
                seen.epoch.store(u64::from(epoch), Ordering::Release);
            }
            if message.data.starts_with(b"{\"type\":\"orderbook_snapshot\"") {
                seen.books.fetch_add(1, Ordering::Relaxed);
            }
            seen.missed.fetch_add(message.gap_size, Ordering::Relaxed);
        }
    }
    audit
}
