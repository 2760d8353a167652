//! The control thread: what should be. It takes the registry's changes, keeps the life of every
//! connection, says when to connect, hands finished connections to their shards, and sends them
//! the commands that bring observed subscriptions to the desired ones. It touches no socket, and
//! never waits on anybody's queue.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, never};

use crate::assign::Unplaced;
use crate::backoff::{Backoff, Pacer};
use crate::command::{Ended, Outcome};
use crate::connection::{Connection, State, Verdict};
use crate::connector::{Dial, Dialed};
use crate::error::{Cause, StartError};
use crate::event::Event;
use crate::ids::{ConnId, Epoch, Role, Ticker, widen};
use crate::mailbox::{Control, Inputs, Mailbox, Order, Report};
use crate::pool::shard_of;
use crate::registry::{MarketChange, Registry};
use crate::stats::Counters;
use crate::subscription::Subscriptions;
use crate::timer::{Next, after, earlier};

/// How long a stop may take that any thread asked for.
const REQUESTED_STOP: Duration = Duration::from_secs(1);
/// Changes and reports taken in one step, so that neither starves the other.
const TAKEN_PER_STEP: usize = 1_024;

/// What a conductor is made of.
pub(crate) struct ConductorParts<L> {
    pub(crate) inputs: Inputs<L>,
    pub(crate) connector: Mailbox<Dial>,
    pub(crate) shards: Vec<Mailbox<Order<L>>>,
    pub(crate) events: Sender<Event>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) subscriptions: Subscriptions,
    pub(crate) backoff: Backoff,
    pub(crate) connect_interval: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) start_timeout: Duration,
    pub(crate) min_healthy: usize,
    pub(crate) seed: u64,
    /// Set by any thread that wants the end.
    pub(crate) stop_requested: Arc<AtomicBool>,
    /// Told once how the start went.
    pub(crate) started: Sender<Result<(), StartError>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Starting {
        until: Instant,
    },
    Running,
    /// The start failed before it began; the stop follows.
    Failed,
    Stopping {
        until: Instant,
    },
}

/// The control thread's state.
pub(crate) struct Conductor<L> {
    parts: ConductorParts<L>,
    connections: Vec<Connection>,
    pacer: Pacer,
    random: fastrand::Rng,
    phase: Phase,
    /// Whether markets are given connections yet: once every first attempt has ended, so that the
    /// first connection to come up does not get them all.
    placing: bool,
    shards_running: usize,
    has_started: bool,
    /// The cause of the last halt that was logged.
    halted_by: Option<Cause>,
    /// Changes taken during the start, the last state of each market.
    remembered: BTreeMap<Ticker, bool>,
}

impl<L> Conductor<L> {
    /// A conductor at its start, with the markets the registry has now.
    pub(crate) fn new(parts: ConductorParts<L>, now: Instant) -> Self {
        let connections =
            parts.counters.pool.iter().map(|(conn, role)| Connection::new(conn, role)).collect();
        Self {
            connections,
            pacer: Pacer::new(parts.connect_interval),
            random: fastrand::Rng::with_seed(parts.seed),
            phase: Phase::Starting { until: after(now, parts.start_timeout) },
            placing: false,
            shards_running: parts.shards.len(),
            has_started: false,
            halted_by: None,
            remembered: BTreeMap::new(),
            parts,
        }
    }

    /// Asks the registry for its markets, its changes and its ears.
    pub(crate) fn begin(
        &mut self,
        registry: &mut dyn Registry,
        remembered: BTreeMap<Ticker, bool>,
    ) {
        match registry.active_markets() {
            Ok(markets) => markets.iter().for_each(|ticker| self.parts.subscriptions.want(ticker)),
            Err(message) => {
                self.remembered = remembered;
                self.answer_start(Err(StartError::Registry(message)));
                self.phase = Phase::Failed;
                return;
            }
        }
        self.remembered = remembered;
        for (ticker, wanted) in &self.remembered {
            change(&mut self.parts.subscriptions, ticker, *wanted);
        }
        self.parts.inputs.changes = registry.changes();
        if let Some(sink) = registry.lifecycle() {
            for shard in &self.parts.shards {
                shard.send(Order::Listen { sink: sink.clone() });
            }
        }
    }

    /// Waits until something comes in or `timeout` passes. The only place that blocks.
    pub(crate) fn wait(&self, timeout: Option<Duration>) {
        self.parts.inputs.wait(timeout);
    }

    /// Whether the start succeeded.
    pub(crate) fn has_started(&self) -> bool {
        self.has_started
    }

    /// What the registry reported during a start that failed.
    pub(crate) fn into_remembered(self) -> BTreeMap<Ticker, bool> {
        self.remembered
    }

    /// One turn.
    pub(crate) fn step(&mut self, now: Instant) -> Next {
        self.take_control(now);
        self.take_lost(now);
        self.take_dialed(now);
        let busy = self.take_reports(now) | self.take_changes();
        if let Phase::Stopping { until } = self.phase {
            let done = self.shards_running == 0 || until <= now;
            return if done { Next::Done } else { Next::At(Some(until)) };
        }
        if self.phase == Phase::Failed {
            return Next::At(None);
        }
        self.expire(now);
        self.dial_due(now);
        self.place();
        self.request(now);
        self.judge_start(now);
        self.publish();
        if busy { Next::Now } else { Next::At(self.deadline(now)) }
    }

    fn deadline(&self, now: Instant) -> Option<Instant> {
        let connections = self.connections.iter().filter_map(Connection::deadline);
        let due = connections.fold(None, |soonest, at| earlier(soonest, Some(at)));
        // A connection may be due and wait only for the pacing.
        let due = due.map(|at| if at <= now { self.pacer.next().unwrap_or(at) } else { at });
        let start = match self.phase {
            Phase::Starting { until } | Phase::Stopping { until } => Some(until),
            Phase::Running | Phase::Failed => None,
        };
        earlier(earlier(due, start), self.parts.subscriptions.next_deadline(now))
    }

    // What comes in.

    fn take_control(&mut self, now: Instant) {
        while let Ok(control) = self.parts.inputs.control.try_recv() {
            match control {
                Control::Wake => {}
                Control::Stop { until } => self.stop(until, now),
                Control::Subscription { ticker, reply } => {
                    // The asker may have gone; then nobody needs the answer.
                    let info = self.parts.subscriptions.info(&ticker);
                    reply.try_send(info).unwrap_or_default();
                }
                Control::Subscriptions { reply } => {
                    reply.try_send(self.parts.subscriptions.all()).unwrap_or_default();
                }
            }
        }
        // Behind the queue: whoever found it full had set the flag before.
        if self.parts.stop_requested.swap(false, Ordering::AcqRel) {
            self.stop(after(now, REQUESTED_STOP), now);
        }
    }

    fn stop(&mut self, until: Instant, now: Instant) {
        if matches!(self.phase, Phase::Stopping { .. }) {
            return;
        }
        if matches!(self.phase, Phase::Starting { .. }) {
            self.answer_start(Err(StartError::Cancelled));
        }
        // The registry is closed first: nothing new begins.
        self.parts.inputs.changes = never();
        self.phase = Phase::Stopping { until: after(until.max(now), Duration::from_millis(50)) };
        self.parts.connector.send(Dial::Stop);
        for shard in &self.parts.shards {
            shard.send(Order::Stop { until });
        }
    }

    /// Changes coalesce per market as they are taken: the last state wins.
    fn take_changes(&mut self) -> bool {
        for _ in 0..TAKEN_PER_STEP {
            let Some(MarketChange { ticker, kind, .. }) = taken(&mut self.parts.inputs.changes)
            else {
                return false;
            };
            change(&mut self.parts.subscriptions, &ticker, kind.wants_market());
            if !self.has_started {
                // Should this start fail, the next one asks the registry for its list again, which
                // may be older than this change.
                self.remembered.insert(ticker, kind.wants_market());
            }
        }
        true
    }

    fn take_dialed(&mut self, now: Instant) {
        while let Some(dialed) = taken(&mut self.parts.inputs.dialed) {
            match dialed {
                Dialed::Up { adoption, local_addr } => {
                    let (conn, epoch, role) = (adoption.conn, adoption.epoch, adoption.role);
                    if self.awaits(conn, epoch) {
                        self.up(conn, now);
                        self.event(Event::Up { conn, role, epoch, local_addr });
                        self.order(conn, Order::Adopt(adoption), now);
                    }
                }
                Dialed::Failed { conn, epoch, cause } => {
                    if self.awaits(conn, epoch) {
                        self.down(conn, cause, false, now);
                    }
                }
            }
        }
    }

    /// Whether this is the attempt we wait for, and not one we gave up.
    fn awaits(&self, conn: ConnId, epoch: Epoch) -> bool {
        let attempting = |connection: &&Connection| {
            connection.epoch == epoch && matches!(connection.state, State::Attempting { .. })
        };
        let running = !matches!(self.phase, Phase::Stopping { .. });
        running && self.connection(conn).filter(attempting).is_some()
    }

    fn take_reports(&mut self, now: Instant) -> bool {
        for _ in 0..TAKEN_PER_STEP {
            let Some(report) = taken(&mut self.parts.inputs.reports) else { return false };
            match report {
                Report::Ended { conn, epoch, ended } if self.is_current(conn, epoch) => {
                    self.ended(conn, epoch, ended, now);
                }
                Report::SubscriptionEnded { conn, epoch, sid, code }
                    if self.is_current(conn, epoch) =>
                {
                    self.parts.subscriptions.renew(conn, sid, now);
                    self.event(Event::SubscriptionEnded { conn, epoch, code });
                }
                Report::Down { conn, epoch, cause, heard } if self.is_current(conn, epoch) => {
                    self.lost(conn, epoch, cause, heard, now);
                }
                Report::RegistryHungUp => self.event(Event::RegistryHungUp),
                Report::HandlerSlow { shard, took, calls } => {
                    log::warn!("shard {shard}: {calls} slow handler calls, of up to {took:.1?}");
                    self.event(Event::HandlerSlow { shard, took, calls });
                }
                Report::Stopped => {
                    self.shards_running = self.shards_running.saturating_sub(1);
                }
                // Of an epoch that is over: told and settled already.
                Report::Ended { .. } | Report::SubscriptionEnded { .. } | Report::Down { .. } => {}
            }
        }
        true
    }

    fn is_current(&self, conn: ConnId, epoch: Epoch) -> bool {
        self.connection(conn)
            .is_some_and(|connection| connection.epoch == epoch && connection.is_live())
    }

    fn ended(&mut self, conn: ConnId, epoch: Epoch, ended: Ended, now: Instant) {
        let role = self.connection(conn).map(|connection| connection.role);
        match ended.outcome {
            Outcome::Rejected { code } => {
                if let Some(role) = role {
                    self.parts.counters.control.subscribe_error(role, code);
                }
                let markets = ended.request.markets().len();
                self.event(Event::Refused { conn, epoch, code, markets });
            }
            Outcome::TimedOut => self.parts.counters.control.commands_timed_out.add(1),
            Outcome::Ok | Outcome::ConnectionLost => {}
        }
        log::debug!("connection {conn}: command {} ended: {:?}", ended.id, ended.outcome);
        self.parts.subscriptions.ended(conn, &ended.request, ended.outcome, ended.sid, now);
    }

    /// A shard thread ended by a panic: its connections are lost for good.
    fn take_lost(&mut self, now: Instant) {
        while let Ok(shard) = self.parts.inputs.lost.try_recv() {
            self.event(Event::ThreadLost { thread: format!("kf-shard-{shard}") });
            self.shards_running = self.shards_running.saturating_sub(1);
            let shards = self.parts.shards.len();
            let ids: Vec<_> = self.connections.iter().map(|connection| connection.conn).collect();
            for conn in ids {
                if shard_of(conn, shards) == usize::from(shard.number()) {
                    self.orphan(conn, now);
                }
            }
        }
    }

    fn orphan(&mut self, conn: ConnId, now: Instant) {
        let Some(connection) = self.connection(conn) else {
            return;
        };
        let (epoch, live) = (connection.epoch, connection.is_live());
        let cause = Cause::Local { message: "its shard's thread has ended".to_owned() };
        if live {
            self.lost(conn, epoch, cause.clone(), false, now);
        }
        self.halt(conn, cause);
    }

    // The life of connections.

    fn up(&mut self, conn: ConnId, now: Instant) {
        let Some(connection) = self.connection_mut(conn) else {
            return;
        };
        let returned = connection.up(now);
        log::info!("connection {conn} ({}) is live, epoch {}", connection.role, connection.epoch);
        if returned {
            self.parts.counters.control.reconnect(conn);
        }
        self.parts.subscriptions.up(conn);
    }

    fn lost(&mut self, conn: ConnId, epoch: Epoch, cause: Cause, heard: bool, now: Instant) {
        let Some(role) = self.connection(conn).map(|connection| connection.role) else {
            return;
        };
        log::info!("connection {conn} ({role}) lost: {cause}");
        self.parts.subscriptions.down(conn);
        self.event(Event::Down { conn, role, epoch, cause: cause.clone() });
        if !matches!(self.phase, Phase::Stopping { .. }) {
            self.down(conn, cause, heard, now);
        }
    }

    fn down(&mut self, conn: ConnId, cause: Cause, heard: bool, now: Instant) {
        let backoff = self.parts.backoff;
        let mut random = self.random.clone();
        let Some(connection) = self.connection_mut(conn) else {
            return;
        };
        let attempt_failed = !connection.is_live();
        let (role, epoch) = (connection.role, connection.epoch);
        let verdict = connection.down(cause.clone(), heard, now, &backoff, &mut random);
        self.random = random;
        match verdict {
            Verdict::Retry(retry_in) if attempt_failed => {
                log::info!("connection {conn} ({role}): {cause}; again in {retry_in:.1?}");
                self.event(Event::AttemptFailed { conn, role, epoch, cause, retry_in });
            }
            Verdict::Retry(_) => {}
            Verdict::Halt => self.halt(conn, cause),
        }
    }

    fn halt(&mut self, conn: ConnId, cause: Cause) {
        let Some(connection) = self.connection_mut(conn) else {
            return;
        };
        connection.state = State::Halted;
        connection.cause = Some(cause.clone());
        let role = connection.role;
        self.parts.subscriptions.abandon(conn);
        // One cause often halts the whole pool at once: it is said once, and the event each time.
        if self.halted_by.as_ref() == Some(&cause) {
            log::debug!("connection {conn} ({role}) halted as well");
        } else {
            log::error!("connection {conn} ({role}) halted: {cause}");
            self.halted_by = Some(cause.clone());
        }
        self.event(Event::Halted { conn, role, cause });
    }

    /// Attempts that neither succeeded nor failed in time: the connector owes us an answer.
    fn expire(&mut self, now: Instant) {
        let overdue: Vec<_> = self
            .connections
            .iter()
            .filter(|c| matches!(c.state, State::Attempting { deadline } if deadline <= now))
            .map(|connection| connection.conn)
            .collect();
        for conn in overdue {
            let message = "the connector did not answer".to_owned();
            self.down(conn, Cause::Local { message }, false, now);
        }
    }

    /// Begins the attempts that are due: each connection's first at once, others one at a time,
    /// the longest overdue first.
    fn dial_due(&mut self, now: Instant) {
        loop {
            let due = self.connections.iter().filter(|connection| connection.is_due(now));
            let Some(next) = due.min_by_key(|connection| connection.deadline()) else {
                return;
            };
            let (conn, role, first) = (next.conn, next.role, next.epoch == Epoch::new(0));
            if !first && !self.pacer.take(now) {
                return;
            }
            let connect_timeout = self.parts.connect_timeout;
            let Some(connection) = self.connection_mut(conn) else {
                return;
            };
            let epoch = connection.begin(now, connect_timeout);
            self.parts.counters.control.attempts.add(1);
            if !self.parts.connector.send(Dial::Begin { conn, epoch, role }) {
                let message = "the connector's thread is gone".to_owned();
                self.halt(conn, Cause::Local { message });
            }
        }
    }

    // Subscriptions.

    fn place(&mut self) {
        if !self.placing {
            let books = self.connections.iter().filter(|c| c.role == Role::Orderbook);
            self.placing = books.clone().all(Connection::is_settled);
        }
        if !self.placing {
            return;
        }
        let control = &self.parts.counters.control;
        match self.parts.subscriptions.place() {
            None => {}
            Some(Unplaced::NoHealthyConnections) => control.no_healthy_connections.add(1),
            Some(Unplaced::PoolFull) => control.pool_full.add(1),
        }
    }

    /// Sends every connection the commands it may have now.
    fn request(&mut self, now: Instant) {
        for index in 0..self.connections.len() {
            let Some(connection) = self.connections.get(index) else {
                return;
            };
            let (conn, epoch) = (connection.conn, connection.epoch);
            while let Some(request) = self.parts.subscriptions.next_request(conn, now) {
                self.order(conn, Order::Command { conn, epoch, request }, now);
            }
        }
    }

    fn order(&mut self, conn: ConnId, order: Order<L>, now: Instant) {
        let shard = self.parts.shards.get(shard_of(conn, self.parts.shards.len()));
        if !shard.is_some_and(|mailbox| mailbox.send(order)) {
            self.orphan(conn, now);
        }
    }

    // The start.

    fn judge_start(&mut self, now: Instant) {
        let Phase::Starting { until } = self.phase else {
            return;
        };
        let healthy = self.connections.iter().filter(|connection| connection.is_live()).count();
        let halted = |c: &&Connection| matches!(c.state, State::Halted);
        let possible = self.connections.len() - self.connections.iter().filter(halted).count();
        let verdict = if let Some((channel, code)) = self.rejected_global() {
            Err(StartError::GlobalRejected { channel, code })
        } else if healthy >= self.parts.min_healthy && self.globals_are_open() {
            Ok(())
        } else if possible < self.parts.min_healthy {
            Err(StartError::Halted { healthy, causes: self.causes() })
        } else if until <= now {
            Err(StartError::Timeout { healthy, causes: self.causes() })
        } else {
            return;
        };
        if verdict.is_ok() {
            self.has_started = true;
            self.remembered.clear();
        }
        self.answer_start(verdict);
        self.phase = Phase::Running;
    }

    fn answer_start(&self, verdict: Result<(), StartError>) {
        // The starter may have given up waiting; it tears us down then.
        self.parts.started.try_send(verdict).unwrap_or_default();
    }

    fn globals_are_open(&self) -> bool {
        self.global_roles()
            .all(|role| self.of_role(role).any(|conn| self.parts.subscriptions.is_open(conn)))
    }

    /// A global channel that the exchange refused on every line.
    fn rejected_global(&self) -> Option<(&'static str, i64)> {
        self.global_roles().find_map(|role| {
            let mut refusals =
                self.of_role(role).map(|conn| self.parts.subscriptions.refused(conn));
            let first = refusals.next().flatten()?;
            refusals.all(|refusal| refusal.is_some()).then_some((role.channel(), first))
        })
    }

    fn global_roles(&self) -> impl Iterator<Item = Role> + '_ {
        let pool = self.parts.counters.pool;
        Role::ALL.into_iter().filter(move |&role| role.is_global() && pool.of(role) > 0)
    }

    fn of_role(&self, role: Role) -> impl Iterator<Item = ConnId> + '_ {
        let of_role = move |connection: &&Connection| connection.role == role;
        self.connections.iter().filter(of_role).map(|connection| connection.conn)
    }

    fn causes(&self) -> Vec<(ConnId, Cause)> {
        let cause = |connection: &Connection| Some((connection.conn, connection.cause.clone()?));
        self.connections.iter().filter_map(cause).collect()
    }

    // What goes out.

    fn publish(&self) {
        let control = &self.parts.counters.control;
        for (role, counter) in Role::ALL.into_iter().zip(&control.connections_healthy) {
            let live = |c: &&Connection| c.role == role && c.is_live();
            counter.set(widen(self.connections.iter().filter(live).count()));
        }
        let halted = |c: &&Connection| matches!(c.state, State::Halted);
        control.halted.set(widen(self.connections.iter().filter(halted).count()));
        let (wanted, confirmed) = self.parts.subscriptions.totals();
        control.markets_wanted.set(wanted);
        control.markets.set(confirmed);
        control.subscriptions.set(self.parts.subscriptions.open());
    }

    fn event(&self, event: Event) {
        if let Err(TrySendError::Full(_)) = self.parts.events.try_send(event) {
            self.parts.counters.control.events_dropped.add(1);
        }
    }

    fn connection(&self, conn: ConnId) -> Option<&Connection> {
        self.connections.get(usize::from(conn.number()).wrapping_sub(1))
    }

    fn connection_mut(&mut self, conn: ConnId) -> Option<&mut Connection> {
        self.connections.get_mut(usize::from(conn.number()).wrapping_sub(1))
    }
}

/// What waits in a queue. A queue whose other end is gone is replaced by one that never has
/// anything, since a hung-up queue counts as ready and would keep us awake for ever.
fn taken<T>(queue: &mut Receiver<T>) -> Option<T> {
    match queue.try_recv() {
        Ok(item) => Some(item),
        Err(TryRecvError::Empty) => None,
        Err(TryRecvError::Disconnected) => {
            *queue = never();
            None
        }
    }
}

fn change(subscriptions: &mut Subscriptions, ticker: &Ticker, wanted: bool) {
    if wanted { subscriptions.want(ticker) } else { subscriptions.unwant(ticker) }
}
