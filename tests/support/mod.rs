//! What the end-to-end tests share: an exchange, a manager connected to it, and the audit that
//! holds what was delivered against what was sent. Every wait has a deadline.

#![allow(
    dead_code,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::panic,
    reason = "each test file uses a part of this; tests read clocks and may panic"
)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use exchange_sim::{Arbitration, Audit, Exchange, ExchangeConfig, LineVerdict, Verdict};
use kalshi_feed::{
    ChannelRegistry, Config, ConfigBuilder, ConnId, Credentials, Delivery, Epoch, Event, Events,
    Handle, Manager, Messages, PoolLayout, RawMessage, RecvError, RegistryHost, Role, StopReport,
};

/// Longest any single wait of a test may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// An exchange and a manager connected to it.
pub(crate) struct Rig {
    pub(crate) exchange: Exchange,
    pub(crate) manager: Manager,
    pub(crate) handle: Handle,
    pub(crate) messages: Option<Messages>,
    pub(crate) events: Events,
    pub(crate) host: RegistryHost,
    pub(crate) audit: Audit,
    /// The account of roles whose lines are one stream; those are not in `audit`.
    pub(crate) streams: Option<Arbitration>,
    pub(crate) seen: Vec<Event>,
    /// Our end of every connection's live epoch.
    pub(crate) live: BTreeMap<ConnId, (Epoch, std::net::SocketAddr)>,
}

/// The settings a test starts from: everything of the given exchange, reconnects without delay.
pub(crate) fn settings(exchange: &Exchange, pool: PoolLayout) -> ConfigBuilder {
    let key = exchange.key_pem().as_bytes();
    Config::builder()
        .url(exchange.url())
        .ca_pem(exchange.ca_pem().to_owned())
        .credentials(Credentials::from_pem(exchange.key_id(), key).unwrap())
        .pool(pool)
        .shards(2)
        .pin(false)
        .min_healthy(pool.connections())
        .reconnect_initial(Duration::from_millis(20))
        .reconnect_max(Duration::from_millis(200))
        .connect_interval(Duration::from_millis(1))
        .seed(7)
}

impl Rig {
    /// A started manager; `adjust` may change its settings first.
    pub(crate) fn start(
        exchange: ExchangeConfig,
        pool: PoolLayout,
        adjust: impl FnOnce(ConfigBuilder) -> ConfigBuilder,
    ) -> Self {
        let mut rig = Self::prepare(exchange, pool, adjust);
        rig.manager.start().unwrap();
        rig
    }

    /// The same, not started yet.
    pub(crate) fn prepare(
        exchange: ExchangeConfig,
        pool: PoolLayout,
        adjust: impl FnOnce(ConfigBuilder) -> ConfigBuilder,
    ) -> Self {
        Self::with_delivery(exchange, pool, adjust, Delivery::channel())
    }

    /// The same, with messages taking another way.
    pub(crate) fn with_delivery(
        exchange: ExchangeConfig,
        pool: PoolLayout,
        adjust: impl FnOnce(ConfigBuilder) -> ConfigBuilder,
        delivery: Delivery,
    ) -> Self {
        let exchange = Exchange::start(exchange).unwrap();
        let config = adjust(settings(&exchange, pool)).build().unwrap();
        let markets = exchange.active_markets();
        let markets = markets.iter().map(|ticker| ticker.parse().unwrap());
        let (registry, host) = ChannelRegistry::new(markets, 1_024, 1_024);
        let mut manager = Manager::with_delivery(config, registry, delivery);
        Self {
            handle: manager.handle(),
            messages: manager.messages().ok(),
            events: manager.events().unwrap(),
            host,
            audit: Audit::default(),
            streams: None,
            seen: Vec::new(),
            live: BTreeMap::new(),
            manager,
            exchange,
        }
    }

    /// Takes messages, lifecycle frames and events until `done` says so.
    pub(crate) fn consume_until(
        &mut self,
        what: &str,
        mut each: impl FnMut(&RawMessage),
        mut done: impl FnMut(&Self) -> bool,
    ) {
        let begun = Instant::now();
        while !done(self) {
            assert!(
                begun.elapsed() < PATIENCE,
                "no end of waiting until {what}: {:?}",
                self.handle.stats()
            );
            for _ in 0..1_000 {
                match self.take(Duration::from_millis(5)) {
                    Ok(message) => each(&message),
                    Err(_) => break,
                }
            }
            self.take_aside();
        }
    }

    /// The next message, audited.
    fn take(&mut self, timeout: Duration) -> Result<RawMessage, RecvError> {
        let Some(messages) = &mut self.messages else {
            std::thread::yield_now();
            return Err(RecvError::Empty);
        };
        let message = messages.recv_timeout(timeout)?;
        self.enter(&message);
        Ok(message)
    }

    fn enter(&mut self, message: &RawMessage) {
        match &mut self.streams {
            Some(streams) if message.role != Role::Orderbook => {
                streams.delivered(message.role.channel(), message.gap_size, &message.data);
            }
            _ => audit(&mut self.audit, message),
        }
    }

    /// Events and lifecycle frames waiting now.
    pub(crate) fn take_aside(&mut self) {
        while let Ok(event) = self.events.try_recv() {
            match &event {
                Event::Up { conn, epoch, local_addr, .. } => {
                    self.audit.up(conn.number(), epoch.number(), *local_addr);
                    self.live.insert(*conn, (*epoch, *local_addr));
                }
                Event::Down { conn, epoch, .. } => {
                    self.audit.down(conn.number(), epoch.number());
                    if self.live.get(conn).is_some_and(|(live, _)| live == epoch) {
                        self.live.remove(conn);
                    }
                }
                _ => {}
            }
            self.seen.push(event);
        }
        while let Ok(message) = self.host.lifecycle().try_recv() {
            self.enter(&message);
        }
    }

    /// Waits until every market wanted is confirmed, and what is live has been told of.
    pub(crate) fn all_confirmed(&mut self, markets: u64) {
        self.consume_until(
            "all markets are confirmed",
            |_| {},
            |rig| {
                let stats = rig.handle.stats();
                (stats.markets_total, stats.markets_wanted) == (markets, markets)
                    && u64::try_from(rig.live.len()) == Ok(stats.connections_healthy)
            },
        );
    }

    /// Takes whatever comes for this long.
    pub(crate) fn consume_for(&mut self, time: Duration, each: impl FnMut(&RawMessage)) {
        let end = Instant::now() + time;
        self.consume_until("the time is over", each, |_| Instant::now() >= end);
    }

    /// Takes this many messages a second for this long, however many there are.
    pub(crate) fn consume_slowly(&mut self, per_second: u32, time: Duration) {
        let (begun, pace) = (Instant::now(), Duration::from_secs(1) / per_second);
        let mut due = begun;
        while begun.elapsed() < time {
            let wait = due.saturating_duration_since(Instant::now());
            // Slow on purpose: nothing is waited for here.
            std::thread::sleep(wait.min(Duration::from_millis(20)));
            while due <= Instant::now() && self.take(Duration::ZERO).is_ok() {
                due += pace;
            }
            due = due.max(Instant::now());
            self.take_aside();
        }
    }

    /// Stops the traffic, takes what is under way, stops the manager, and settles the account.
    pub(crate) fn settle(&mut self) -> (Verdict, StopReport) {
        let report = self.finish();
        for untold in &report.untold {
            let sid = untold.sid.map_or(0, |sid| sid.number());
            self.audit.owed(untold.conn_id.number(), untold.epoch.number(), sid, untold.messages);
        }
        (self.audit.settle(&self.exchange.ledger()), report)
    }

    /// The same where lines are one stream: the account of the order books, and of each stream.
    pub(crate) fn settle_streams(&mut self) -> (Verdict, BTreeMap<Role, LineVerdict>, StopReport) {
        let report = self.finish();
        let roles = [Role::Ticker, Role::Trade, Role::Lifecycle];
        let mut streams = self.streams.take().unwrap();
        for untold in &report.untold {
            let role = PoolLayout::default().role(untold.conn_id).unwrap();
            let (conn, epoch) = (untold.conn_id.number(), untold.epoch.number());
            match roles.contains(&role) {
                true => streams.owed(role.channel(), untold.messages),
                false => {
                    let sid = untold.sid.map_or(0, |sid| sid.number());
                    self.audit.owed(conn, epoch, sid, untold.messages);
                }
            }
        }
        let mut ledger = self.exchange.ledger();
        for record in &mut ledger.connections {
            record.sids.retain(|sid| sid.channel == Role::Orderbook.channel());
        }
        let contents = self.exchange.contents();
        let settled = roles.map(|role| (role, streams.settle(role.channel(), &contents)));
        (self.audit.settle(&ledger), BTreeMap::from(settled), report)
    }

    fn finish(&mut self) -> StopReport {
        let begun = Instant::now();
        // What is held back must be taken before the exchange can write the rest.
        while !self.exchange.stop_traffic(Duration::from_millis(20)) {
            assert!(begun.elapsed() < PATIENCE, "the exchange could not write everything");
            self.consume_for(Duration::from_millis(20), |_| {});
        }
        let mut quiet = (0, Instant::now());
        self.consume_until(
            "the engine is idle",
            |_| {},
            |rig| {
                let received = rig.handle.stats().bytes_received;
                if received != quiet.0 {
                    quiet = (received, Instant::now());
                }
                quiet.1.elapsed() > Duration::from_millis(300)
            },
        );
        let report = self.manager.stop(Duration::from_secs(3));
        while self.take(Duration::ZERO).is_ok() {}
        self.take_aside();
        report
    }
}

pub(crate) fn audit(audit: &mut Audit, message: &RawMessage) {
    audit.delivered(
        message.conn_id.number(),
        message.epoch.number(),
        message.sid.map_or(0, |sid| sid.number()),
        message.seq.map(|seq| seq.number()),
        message.gap_size,
        &message.data,
    );
}
