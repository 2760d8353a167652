//! The real conductor, connector and shards, wired as in a process but stepped by hand, each by
//! itself. What passes from one to the other is seen on its way.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, never};

use super::network::{CONNECTOR, Network, SimLink, SimNet};
use crate::backoff::Backoff;
use crate::clock::Stamp;
use crate::conductor::{Conductor, ConductorParts, Leftovers};
use crate::config::{Config, ConfigBuilder};
use crate::conflate::Limits;
use crate::connector::{Connector, ConnectorParts, Dial, Dialed};
use crate::delivery::Delivery;
use crate::dialect::Dialect;
use crate::endpoint::Endpoint;
use crate::event::Event;
use crate::ids::{ShardId, Ticker};
use crate::link::LinkSettings;
use crate::mailbox::{
    Control, Inputs, Mailbox, Order, Report, dial_queue_size, order_queue_size, report_queue_size,
};
use crate::messages::{Handoff, Messages};
use crate::pool::PoolLayout;
use crate::pulse::PulseSettings;
use crate::registry::{ChannelRegistry, RegistryHost};
use crate::shard::{Shard, ShardParts};
use crate::stats::Counters;
use crate::subscription::{SubscriptionSettings, Subscriptions};
use crate::timer::Next;
use crate::wiring::{arbiter_settings, suspicion_settings};

/// The parties: the conductor, the connector, and the shards from here on.
pub(super) const CONDUCTOR: usize = 0;
pub(super) const SHARDS: usize = 2;
/// Reports the conductor takes in one step.
const TAKEN_PER_STEP: usize = 1_024;

/// A queue that is looked into on its way: what comes out of the one end goes on into the other
/// when its reader has its turn.
struct Hatch<T> {
    outer: Receiver<T>,
    inner: Sender<T>,
    capacity: usize,
}

impl<T> Hatch<T> {
    fn new(capacity: usize) -> (Sender<T>, Self, Receiver<T>) {
        let (sender, outer) = bounded(capacity);
        let (inner, receiver) = bounded(capacity);
        (sender, Self { outer, inner, capacity }, receiver)
    }

    fn waiting(&self) -> usize {
        self.outer.len() + self.inner.len()
    }

    /// Lets up to so many through, each of them seen.
    fn pass(
        &self,
        most: usize,
        mut seen: impl FnMut(&T) -> Result<(), String>,
    ) -> Result<(), String> {
        if self.waiting() > self.capacity {
            return Err(format!("I2: {} in a queue of {}", self.waiting(), self.capacity));
        }
        while self.inner.len() < most
            && let Ok(item) = self.outer.try_recv()
        {
            seen(&item)?;
            self.inner.try_send(item).map_err(|_| "I2: a queue is full".to_owned())?;
        }
        Ok(())
    }
}

/// What a run is set to.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) config: ConfigBuilder,
    pub(super) pool: PoolLayout,
    pub(super) shards: usize,
    pub(super) seed: u64,
}

impl Settings {
    /// The product's, with the times shortened so that a minute holds a life.
    pub(super) fn short(pool: PoolLayout, shards: usize, seed: u64) -> Self {
        let seconds = Duration::from_secs;
        let config = Config::builder()
            .connect_timeout(seconds(4))
            .subscribe_timeout(seconds(2))
            .start_timeout(seconds(10))
            .reconnect_max(seconds(8))
            .ping_idle(seconds(5))
            .pong_timeout(seconds(3))
            .write_timeout(seconds(3))
            .message_timeout(seconds(6))
            .silent_after(seconds(10))
            .chunk(4)
            .commands_in_flight(2)
            .markets_per_connection(8)
            .conflate_markets(2)
            .message_buffer(200);
        Self { config, pool, shards, seed }
    }

    fn link(&self) -> LinkSettings {
        let config = &self.config;
        LinkSettings {
            message_bytes_max: 1 << 16,
            outgoing_bytes_max: 1 << 16,
            subscribe_timeout: config.subscribe_timeout,
            keep_responses: false,
            dialect: config.dialect,
            single_sids: match config.dialect {
                Dialect::Live => 0,
                Dialect::Legacy => config.markets_per_connection * 2,
            },
            ping_idle: config.ping_idle,
            pong_timeout: config.pong_timeout,
            write_timeout: config.write_timeout,
            message_timeout: config.message_timeout,
            pulse: PulseSettings {
                silent_after: config.silent_after,
                lag_threshold: config.lag_threshold,
            },
            silent_reconnect: config.silent_reconnect,
            suspicion: suspicion_settings(config),
        }
    }
}

pub(super) struct Engine {
    pub(super) conductor: Conductor<SimLink>,
    connector: Connector<SimNet, SimNet>,
    pub(super) shards: Vec<Shard<SimNet>>,
    dials: Hatch<Dial>,
    dialed: Hatch<Dialed<SimLink>>,
    orders: Vec<Hatch<Order<SimLink>>>,
    reports: Hatch<Report>,
    pub(super) control: Sender<Control>,
    pub(super) events: Receiver<Event>,
    pub(super) counters: Arc<Counters>,
    pub(super) registry: RegistryHost,
    wakes: Vec<Arc<AtomicBool>>,
    /// Shards that fail by a bug are restarted, as their threads do; else it ends the run.
    pub(super) forgiving: bool,
    /// No wake-up of the connector or a shard ever arrives.
    pub(super) deaf: bool,
}

/// Sees what passes between the parties.
pub(super) trait Witness {
    fn dial(&mut self, dial: &Dial) -> Result<(), String>;
    fn dialed(&mut self, dialed: &Dialed<SimLink>) -> Result<(), String>;
    fn order(&mut self, order: &Order<SimLink>) -> Result<(), String>;
    fn report(&mut self, report: &Report) -> Result<(), String>;
}

impl Engine {
    pub(super) fn new(
        settings: &Settings,
        network: &Rc<RefCell<Network>>,
        markets: impl Iterator<Item = String>,
    ) -> (Self, Messages) {
        let (config, pool) = (&settings.config, settings.pool);
        let connections = pool.connections();
        let parties = SHARDS + settings.shards;
        let wakes: Vec<_> = (0..parties).map(|_| Arc::new(AtomicBool::new(false))).collect();
        let (handoff, messages) = Handoff::new(settings.shards, config.message_buffer, 1 << 24);
        let counters = Arc::new(Counters::new(pool, settings.shards, messages.consumed()));
        let (reports_in, reports, report_receiver) =
            Hatch::new(report_queue_size(connections, config.commands_in_flight));
        let parts = Common { settings, network, wakes: &wakes, counters: &counters };
        let (shards, orders, boxes) = parts.shards(&handoff, &reports_in);
        let (dial_sender, dials, dial_receiver) = Hatch::new(dial_queue_size(connections));
        let (dialed_sender, dialed, dialed_receiver) = Hatch::new(dial_queue_size(connections));
        let connector = parts.connector(dial_receiver, dialed_sender);
        let (control, control_receiver) = bounded(64);
        let (event_sender, events) = bounded(100_000);
        let stamp = network.borrow().clock.stamp();
        let now = stamp.mono;
        let inputs = Inputs {
            control: control_receiver,
            changes: never(),
            dialed: dialed_receiver,
            reports: report_receiver,
            lost: never(),
        };
        let connector_box = Mailbox { orders: dial_sender, wake: parts.wake(CONNECTOR) };
        let ends = (inputs, connector_box, boxes);
        let parts = conductor_parts(settings, ends, event_sender, &counters, stamp);
        let mut conductor = Conductor::new(parts, now);
        let markets = markets.map(|name| name.parse::<Ticker>().unwrap());
        let (mut registry, host) = ChannelRegistry::new(markets, 1_024, 16);
        conductor.begin(&mut registry, Leftovers::default(), now);
        let engine = Self {
            conductor,
            connector,
            shards,
            dials,
            dialed,
            orders,
            reports,
            control,
            events,
            counters,
            registry: host,
            wakes,
            forgiving: false,
            deaf: false,
        };
        (engine, messages)
    }

    pub(super) fn parties(&self) -> usize {
        self.wakes.len()
    }

    /// Whether the party has been woken, or would not have gone to sleep.
    pub(super) fn is_called(&self, party: usize) -> bool {
        let woken = self.wakes[party].swap(false, Ordering::Relaxed);
        let waiting = match party {
            CONDUCTOR => {
                !self.control.is_empty() || self.dialed.waiting() + self.reports.waiting() > 0
            }
            CONNECTOR => self.dials.waiting() > 0,
            shard => self.orders[shard - SHARDS].waiting() > 0,
        };
        // A queue makes nobody but the conductor look into it: that takes a wake-up.
        (woken && !(self.deaf && party != CONDUCTOR)) || (waiting && party == CONDUCTOR)
    }

    /// Whether something is on its way from one party to another, so that they differ.
    pub(super) fn is_in_transit(&self) -> bool {
        let orders = self.orders.iter().map(Hatch::waiting).sum::<usize>();
        orders + self.dials.waiting() + self.dialed.waiting() + self.reports.waiting() > 0
    }

    /// Wakes a party.
    pub(super) fn call(&self, party: usize) {
        self.wakes[party].store(true, Ordering::Relaxed);
    }

    /// One turn of one party. `overlaps`: what others send it comes when it has just looked.
    pub(super) fn step(
        &mut self,
        party: usize,
        stamp: Stamp,
        overlaps: bool,
        witness: &mut impl Witness,
    ) -> Result<Next, String> {
        let now: Instant = stamp.mono;
        match party {
            CONDUCTOR => {
                if !overlaps {
                    self.dialed.pass(usize::MAX, |dialed| witness.dialed(dialed))?;
                    self.reports.pass(TAKEN_PER_STEP, |report| witness.report(report))?;
                }
                let next = self.conductor.step(now);
                self.dials.pass(usize::MAX, |dial| witness.dial(dial))?;
                let left = self.reports.waiting() > 0;
                Ok(if left && next != Next::Done { Next::Now } else { next })
            }
            CONNECTOR => {
                self.connector.wait(None).map_err(|error| error.to_string())?;
                Ok(self.connector.step(stamp))
            }
            shard => {
                let (hatch, shard) =
                    (&self.orders[shard - SHARDS], &mut self.shards[shard - SHARDS]);
                if overlaps && hatch.waiting() > 0 {
                    self.wakes[party].store(true, Ordering::Relaxed);
                } else {
                    hatch.pass(usize::MAX, |order| witness.order(order))?;
                }
                shard.wait(None).map_err(|error| error.to_string())?;
                Ok(if self.forgiving { shard.turn(now) } else { shard.step(now) })
            }
        }
    }

    /// What was still on its way when all had ended.
    pub(super) fn drain(&mut self, witness: &mut impl Witness) -> Result<(), String> {
        self.reports.pass(usize::MAX, |report| witness.report(report))
    }
}

/// What the parties are made from.
struct Common<'a> {
    settings: &'a Settings,
    network: &'a Rc<RefCell<Network>>,
    wakes: &'a [Arc<AtomicBool>],
    counters: &'a Arc<Counters>,
}

type Shards = (Vec<Shard<SimNet>>, Vec<Hatch<Order<SimLink>>>, Vec<Mailbox<Order<SimLink>>>);

impl Common<'_> {
    fn wake(&self, party: usize) -> crate::resolve::Wake {
        let flag = Arc::clone(&self.wakes[party]);
        Arc::new(move || flag.store(true, Ordering::Relaxed))
    }

    fn net(&self, waiter: usize) -> SimNet {
        SimNet { network: Rc::clone(self.network), waiter }
    }

    fn shards(&self, handoff: &Handoff, reports: &Sender<Report>) -> Shards {
        let Settings { config, pool, shards: count, .. } = self.settings;
        let (mut shards, mut orders, mut boxes) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..*count {
            let size = order_queue_size(pool.connections(), config.commands_in_flight);
            let (sender, hatch, receiver) = Hatch::new(size);
            let id = ShardId::new(u16::try_from(number).unwrap());
            shards.push(Shard::new(ShardParts {
                id,
                shards: *count,
                transport: self.net(SHARDS + number),
                settings: self.settings.link(),
                orders: receiver,
                reports: reports.clone(),
                outlet: handoff.outlet(id).unwrap(),
                pool: *pool,
                overflow: config.overflow,
                conflate: Limits::new(config),
                arbitration: arbiter_settings(config),
                delivery: Delivery::channel(),
                turn_budget: config.turn_budget,
                handler_slow_threshold: config.handler_slow_threshold,
                stall_threshold: config.stall_threshold,
                counters: Arc::clone(&self.counters.shards[number]),
            }));
            boxes.push(Mailbox { orders: sender, wake: self.wake(SHARDS + number) });
            orders.push(hatch);
        }
        (shards, orders, boxes)
    }

    fn connector(
        &self,
        orders: Receiver<Dial>,
        reports: Sender<Dialed<SimLink>>,
    ) -> Connector<SimNet, SimNet> {
        Connector::new(ConnectorParts {
            transport: self.net(CONNECTOR),
            resolver: self.net(CONNECTOR),
            endpoint: Endpoint::parse("wss://exchange.test/trade-api/ws/v2").unwrap(),
            credentials: None,
            connect_timeout: self.settings.config.connect_timeout,
            connections: self.settings.pool.connections(),
            orders,
            reports,
            counters: Arc::clone(&self.counters.control),
        })
    }
}

type Ends = (Inputs<SimLink>, Mailbox<Dial>, Vec<Mailbox<Order<SimLink>>>);

fn conductor_parts(
    settings: &Settings,
    (inputs, connector, shards): Ends,
    events: Sender<Event>,
    counters: &Arc<Counters>,
    clock: Stamp,
) -> ConductorParts<SimLink> {
    let now = clock.mono;
    let config = &settings.config;
    let plan = SubscriptionSettings::new(config);
    ConductorParts {
        inputs,
        connector,
        shards,
        events,
        counters: Arc::clone(counters),
        subscriptions: Subscriptions::new(settings.pool.iter(), plan, now).with_clock(clock),
        backoff: Backoff {
            initial: config.reconnect_initial,
            max: config.reconnect_max,
            factor: config.reconnect_factor,
        },
        connect_interval: config.connect_interval,
        connect_timeout: config.connect_timeout,
        start_timeout: config.start_timeout,
        min_healthy: 1,
        dialect: config.dialect,
        command_events: false,
        seed: settings.seed,
        stop_requested: Arc::default(),
        started: bounded(1).0,
    }
}
