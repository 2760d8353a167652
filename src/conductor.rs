//! The control thread: what should be. It takes the registry's changes, keeps the life of every
//! connection, says when to connect, hands finished connections to their shards, and sends them
//! the commands that bring observed subscriptions to the desired ones. It touches no socket, and
//! never waits on anybody's queue.

mod markets;
mod recoveries;
mod start;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, never};

use crate::assign::Unplaced;
use crate::backoff::{Backoff, Pacer};
use crate::connection::{Connection, State, Verdict};
use crate::connector::{Dial, Dialed};
use crate::dialect::Dialect;
use crate::error::{Cause, StartError};
use crate::event::Event;
use crate::hush::Hush;
use crate::ids::{ConnId, Epoch, Role, ShardId, Ticker, widen};
use crate::mailbox::{Control, Inputs, Lost, Mailbox, Order, Report};
use crate::pool::shard_of;
use crate::registry::{Registry, Wish};
use crate::stats::Counters;
use crate::subscription::Subscriptions;
use crate::timer::{Next, after, earlier};
use crate::watchdog::Watchdog;

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
    pub(crate) dialect: Dialect,
    /// Whether each command's end is an event.
    pub(crate) command_events: bool,
    pub(crate) seed: u64,
    /// Set by any thread that wants the end.
    pub(crate) stop_requested: Arc<AtomicBool>,
    /// Told once how the start went.
    pub(crate) started: Sender<Result<(), StartError>>,
}

/// What a start that failed leaves to the next one.
#[derive(Debug, Default)]
pub(crate) struct Leftovers {
    /// Changes the registry reported, the last state of each market.
    remembered: BTreeMap<Ticker, Wish>,
    /// The last epoch of each connection.
    epochs: Vec<Epoch>,
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
    /// Shards whose threads have ended.
    shards_lost: BTreeSet<ShardId>,
    watchdog: Watchdog,
    has_started: bool,
    /// Log lines of which there would be many at once.
    hushed_lost: Hush,
    hushed_failed: Hush,
    hushed_refused: Hush,
    /// The cause of the last halt that was logged.
    halted_by: Option<Cause>,
    /// Why markets wait for a connection, if any do; told when it changes.
    unplaced: Option<Unplaced>,
    /// Changes taken during the start, the last state of each market.
    remembered: BTreeMap<Ticker, Wish>,
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
            shards_lost: BTreeSet::new(),
            watchdog: Watchdog::default(),
            has_started: false,
            hushed_lost: Hush::default(),
            hushed_failed: Hush::default(),
            hushed_refused: Hush::default(),
            halted_by: None,
            unplaced: None,
            remembered: BTreeMap::new(),
            parts,
        }
    }

    /// Asks the registry for its markets, its changes and its ears.
    pub(crate) fn begin(
        &mut self,
        registry: &mut dyn Registry,
        Leftovers { remembered, epochs }: Leftovers,
        now: Instant,
    ) {
        for (connection, epoch) in self.connections.iter_mut().zip(epochs) {
            connection.begin_after(epoch);
        }
        match registry.active_markets() {
            Ok(markets) => {
                for ticker in &markets {
                    let priority = registry.priority(ticker);
                    self.parts.subscriptions.want(ticker.as_str(), priority, now);
                }
            }
            Err(message) => {
                self.remembered = remembered;
                self.answer_start(Err(StartError::Registry(message)));
                self.phase = Phase::Failed;
                return;
            }
        }
        self.remembered = remembered;
        for (ticker, &wish) in &self.remembered {
            markets::change(&mut self.parts.subscriptions, ticker, wish, now);
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

    /// What the next start needs to know, should this one have failed.
    pub(crate) fn into_leftovers(self) -> Leftovers {
        let epochs = self.connections.iter().map(|connection| connection.epoch).collect();
        Leftovers { remembered: self.remembered, epochs }
    }

    /// One turn.
    pub(crate) fn step(&mut self, now: Instant) -> Next {
        self.take_control(now);
        self.take_lost(now);
        self.take_dialed(now);
        let busy = self.take_reports(now) | self.take_changes(now);
        if let Phase::Stopping { until } = self.phase {
            let done = self.shards_running == 0 || until <= now;
            return if done { Next::Done } else { Next::At(Some(until)) };
        }
        if self.phase == Phase::Failed {
            return Next::At(None);
        }
        self.expire(now);
        self.dial_due(now);
        self.parts.subscriptions.tick(now);
        self.place(now);
        self.request(now);
        self.judge_start(now);
        self.tell_uncovered(now);
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
        let plan = earlier(self.parts.subscriptions.next_deadline(now), self.unsettled_due(now));
        earlier(earlier(due, start), plan)
    }

    // What comes in.

    fn take_control(&mut self, now: Instant) {
        while let Ok(control) = self.parts.inputs.control.try_recv() {
            match control {
                Control::Wake => {}
                Control::Stop { until } => self.stop(until, now),
                Control::Subscription { ticker, reply } => {
                    // The asker may have gone; then nobody needs the answer.
                    let info = self.parts.subscriptions.info(&ticker, now);
                    reply.try_send(info).unwrap_or_default();
                }
                Control::Assignments { reply } => {
                    let all = self.parts.subscriptions.assignments(now);
                    reply.try_send(all).unwrap_or_default();
                }
            }
        }
        // Behind the queue: whoever found it full had set the flag before. The manager clears it.
        if self.parts.stop_requested.load(Ordering::Acquire) {
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
        self.parts.subscriptions.end_coverage(now);
        self.tell_uncovered(now);
        self.phase = Phase::Stopping { until: after(until.max(now), Duration::from_millis(50)) };
        self.parts.connector.send(Dial::Stop);
        for shard in &self.parts.shards {
            shard.send(Order::Stop { until });
        }
    }

    fn take_dialed(&mut self, now: Instant) {
        while let Some(dialed) = taken(&mut self.parts.inputs.dialed) {
            match dialed {
                Dialed::Up { adoption, local_addr } => {
                    let (conn, epoch, role) = (adoption.conn, adoption.epoch, adoption.role);
                    if self.awaits(conn, epoch) {
                        self.pacer.speed_up();
                        self.up(conn, now);
                        self.event(Event::Up { conn, role, epoch, local_addr });
                        self.order(conn, Order::Adopt(adoption), now);
                    }
                }
                Dialed::Failed { conn, epoch, cause } => {
                    if self.awaits(conn, epoch) {
                        self.pacer.heed(&cause);
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
                    self.early_gap(conn, epoch, now);
                }
                Report::Late { conn, epoch, ended } if self.is_current(conn, epoch) => {
                    log::debug!("connection {conn}: late reply to command {}", ended.id);
                    self.parts.subscriptions.late(conn, &ended, now);
                    self.early_gap(conn, epoch, now);
                }
                Report::Books { conn, epoch, tickers } if self.is_current(conn, epoch) => {
                    self.books_came(conn, epoch, &tickers, now);
                }
                Report::Gaps { conn, epoch, gaps } if self.is_current(conn, epoch) => {
                    self.gap(conn, epoch, &gaps, now);
                }
                Report::SubscriptionEnded { conn, epoch, sid, code }
                    if self.is_current(conn, epoch) =>
                {
                    self.parts.subscriptions.renew(conn, sid, now);
                    self.event(Event::SubscriptionEnded { conn, epoch, code });
                }
                Report::Lapse { conn, epoch, lapse, at } if self.is_current(conn, epoch) => {
                    self.parts.subscriptions.lapsed(conn, epoch, lapse, at);
                    self.tell_uncovered(now);
                }
                Report::Down { conn, epoch, cause, heard, last_data, at }
                    if self.is_current(conn, epoch) =>
                {
                    self.parts.subscriptions.heard_last(last_data, at);
                    self.lost(conn, epoch, cause, heard, now);
                }
                Report::Tell(event) => self.event(event),
                Report::RegistryHungUp => self.event(Event::RegistryHungUp),
                Report::HandlerSlow { shard, took, calls } => {
                    log::warn!("shard {shard}: {calls} slow handler calls, of up to {took:.1?}");
                    self.event(Event::HandlerSlow { shard, took, calls });
                }
                Report::Stopped => {
                    self.shards_running = self.shards_running.saturating_sub(1);
                }
                // Of an epoch that is over: told and settled already.
                Report::Ended { .. }
                | Report::Late { .. }
                | Report::Books { .. }
                | Report::Gaps { .. }
                | Report::SubscriptionEnded { .. }
                | Report::Lapse { .. }
                | Report::Down { .. } => {}
            }
        }
        true
    }

    fn is_current(&self, conn: ConnId, epoch: Epoch) -> bool {
        self.connection(conn)
            .is_some_and(|connection| connection.epoch == epoch && connection.is_live())
    }

    /// A thread has ended. A shard's connections are lost for good; without the connector, no
    /// attempt will be answered, and the next order to it tells so.
    fn take_lost(&mut self, now: Instant) {
        while let Ok(Lost { thread, shard }) = self.parts.inputs.lost.try_recv() {
            self.event(Event::ThreadLost { thread });
            let Some(shard) = shard else { continue };
            self.shards_running = self.shards_running.saturating_sub(1);
            self.shards_lost.insert(shard);
            let shards = self.parts.shards.len();
            let ids: Vec<_> = self.connections.iter().map(|connection| connection.conn).collect();
            for conn in ids {
                if shard_of(conn, shards) == usize::from(shard.number()) {
                    self.orphan(conn, now);
                }
            }
        }
    }

    /// Looks whether every shard still has its turns.
    pub(crate) fn look_after_shards(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Stopping { .. }) {
            return;
        }
        let counters = Arc::clone(&self.parts.counters);
        let lost = &self.shards_lost;
        let turns = (0..).zip(&counters.shards).map(|(number, shard)| {
            (!lost.contains(&ShardId::new(number))).then(|| shard.cycles.total())
        });
        for (shard, lasted) in self.watchdog.look(turns, now) {
            log::error!("shard {shard} has had no turn for {lasted:.1?}: its handler, or a bug");
            self.event(Event::ShardStuck { shard, lasted });
        }
    }

    fn orphan(&mut self, conn: ConnId, now: Instant) {
        let Some(connection) = self.connection(conn) else {
            return;
        };
        if matches!(connection.state, State::Halted) {
            return; // Its shard told its end before, or we found nobody to take an order.
        }
        let (epoch, live) = (connection.epoch, connection.is_live());
        let cause = Cause::Local { message: "its shard's thread has ended".to_owned() };
        if live {
            self.lost(conn, epoch, cause.clone(), false, now);
        }
        self.halt(conn, cause, now);
    }

    // The life of connections.

    fn up(&mut self, conn: ConnId, now: Instant) {
        let Some(connection) = self.connection_mut(conn) else {
            return;
        };
        let returned = connection.up(now);
        log::debug!("connection {conn} ({}) is live, epoch {}", connection.role, connection.epoch);
        if returned {
            self.parts.counters.control.reconnect(conn);
        }
        self.parts.subscriptions.up(conn);
    }

    fn lost(&mut self, conn: ConnId, epoch: Epoch, cause: Cause, heard: bool, now: Instant) {
        let Some(role) = self.connection(conn).map(|connection| connection.role) else {
            return;
        };
        if let Some(more) = self.hushed_lost.allows(now) {
            log::info!("connection {conn} ({role}) lost: {cause}{more}");
        }
        self.parts.subscriptions.down(conn, now);
        self.parts.counters.control.connections_lost.note(&cause);
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
        if attempt_failed {
            self.parts.counters.control.attempts_failed.note(&cause);
        }
        match verdict {
            Verdict::Retry(retry_in) if attempt_failed => {
                if let Some(more) = self.hushed_failed.allows(now) {
                    log::info!(
                        "connection {conn} ({role}): {cause}; again in {retry_in:.1?}{more}"
                    );
                }
                self.event(Event::AttemptFailed { conn, role, epoch, cause, retry_in });
            }
            Verdict::Retry(_) => {}
            Verdict::Halt => self.halt(conn, cause, now),
        }
    }

    fn halt(&mut self, conn: ConnId, cause: Cause, now: Instant) {
        let Some(connection) = self.connection_mut(conn) else {
            return;
        };
        connection.state = State::Halted;
        connection.cause = Some(cause.clone());
        let role = connection.role;
        self.parts.subscriptions.abandon(conn, now);
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
            let (conn, role, first) = (next.conn, next.role, next.is_untried());
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
                self.halt(conn, Cause::Local { message }, now);
            }
        }
    }

    fn order(&mut self, conn: ConnId, order: Order<L>, now: Instant) {
        let shard = self.parts.shards.get(shard_of(conn, self.parts.shards.len()));
        if !shard.is_some_and(|mailbox| mailbox.send(order)) {
            self.orphan(conn, now);
        }
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
        control.markets_unplaced.set(self.parts.subscriptions.waiting());
        control.subscriptions.set(self.parts.subscriptions.open());
        let (suspects, recoveries) = self.parts.subscriptions.recoveries();
        control.recovery.publish(suspects, &recoveries);
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

#[cfg(test)]
mod tests;
