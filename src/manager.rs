//! The host's face of the engine: puts the threads together at start, takes them apart at stop.
//! It does no work of its own in between.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, never};

use crate::assignments::Assignments;
use crate::backoff::Backoff;
use crate::clock;
use crate::conductor::{Conductor, ConductorParts, Leftovers};
use crate::config::Config;
use crate::connector::Connector;
use crate::cores::{self, CoreFacts};
use crate::delivery::Delivery;
use crate::error::{MessagesError, StartError};
use crate::event::{Event, Events};
use crate::ids::Ticker;
use crate::mailbox::{Control, Inputs, Untold, shard_name};
use crate::market::SubscriptionInfo;
use crate::messages::{Handoff, Messages, Room};
use crate::registry::Registry;
use crate::shard::Shard;
use crate::stats::{Counters, Stats};
use crate::subscription::{SubscriptionSettings, Subscriptions};
use crate::thread::{self, CONDUCTOR, CONNECTOR, Seat};
use crate::timer::after;
use crate::transport::TcpLink;
use crate::wait::Wait;
use crate::warning::{Warning, Warnings};
use crate::wiring::{Mailboxes, Wiring};

/// How long a question to the conductor may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Questions waiting for the conductor.
const CONTROL_MAX: usize = 64;
/// No stop is waited for longer than this, whatever was asked.
const STOP_MAX: Duration = Duration::from_secs(3_600);
/// How long the drop of a running manager may take.
const DROP_DEADLINE: Duration = Duration::from_secs(1);

/// The connection manager: keeps the pool connected and subscribed, and hands every message to
/// the host.
///
/// ```no_run
/// use std::time::Duration;
/// use kalshi_feed::{Config, Credentials, Manager, StaticRegistry};
///
/// let config = Config::builder()
///     .credentials(Credentials::from_pem_file("my-key-id", "kalshi.pem")?)
///     .build()?;
/// let markets = StaticRegistry::new(["KXBTCD-26NOV2317-T95499.99".parse()?]);
/// let mut manager = Manager::new(config, markets);
/// let mut messages = manager.messages()?;
/// manager.start()?;
/// for message in messages.by_ref().take(1_000) {
///     println!("{} {:?} {}", message.conn_id, message.seq, message.gap_size);
/// }
/// manager.stop(Duration::from_secs(2));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Manager {
    config: Config,
    registry: Option<Box<dyn Registry>>,
    counters: Arc<Counters>,
    /// Until the stop: its end of the channel is what keeps `Messages` open.
    handoff: Option<Handoff>,
    room: Arc<Room>,
    messages: Option<Messages>,
    /// The same for `Events`.
    event_sender: Option<Sender<Event>>,
    events: Option<Events>,
    control: (Sender<Control>, Receiver<Control>),
    phase: Phase,
    delivery: Delivery,
    flags: Arc<Flags>,
    warnings: Arc<Warnings>,
    leftovers: Leftovers,
    /// Lost in a start that failed: the shards of the next one tell it.
    untold: Vec<Untold>,
}

enum Phase {
    Idle,
    Running(Box<Running>),
    Stopped(Box<StopReport>),
}

/// The threads of a started engine.
struct Running {
    conductor: JoinHandle<Option<Option<Luggage>>>,
    /// The shards, which tell at their end what they could not tell before, and the connector.
    others: Vec<JoinHandle<Vec<Untold>>>,
    ended: Receiver<String>,
    names: Vec<String>,
}

/// What the conductor's thread takes along and, if the start fails, leaves behind for another.
/// Gone once a start has succeeded: then the end of that run is the end of `Messages`, of `Events`,
/// and of whoever reports changes.
struct Luggage {
    registry: Box<dyn Registry>,
    handoff: Handoff,
    events: Sender<Event>,
    leftovers: Leftovers,
}

/// What any thread may look at or set.
#[derive(Debug, Default)]
struct Flags {
    running: AtomicBool,
    stop_requested: Arc<AtomicBool>,
}

/// Takes back, however the conductor's thread ends, that it runs and what says "now".
struct Runs {
    flags: Arc<Flags>,
    counters: Arc<Counters>,
}

impl Drop for Runs {
    fn drop(&mut self) {
        self.flags.running.store(false, Ordering::Release);
        self.counters.nothing_is_live();
    }
}

/// What came of a stop.
///
/// ```no_run
/// # fn stop(manager: &mut kalshi_feed::Manager) {
/// let report = manager.stop(std::time::Duration::from_secs(2));
/// assert!(report.stuck.is_empty());
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StopReport {
    /// How long it took.
    pub elapsed: Duration,
    /// Threads that had not ended by the deadline, by name; they are left to themselves.
    pub stuck: Vec<String>,
    /// Threads that ended by a bug, by name.
    pub panicked: Vec<String>,
    /// Messages lost that no later message could tell of.
    pub untold: Vec<Untold>,
    /// Everything counted, after the last thread ended.
    pub stats: Stats,
}

/// A handle to a manager, for any thread.
///
/// ```no_run
/// # fn watch(manager: &kalshi_feed::Manager) {
/// let handle = manager.handle();
/// std::thread::spawn(move || println!("{} live", handle.stats().connections_healthy));
/// # }
/// ```
#[derive(Clone)]
pub struct Handle {
    counters: Arc<Counters>,
    room: Arc<Room>,
    control: Sender<Control>,
    flags: Arc<Flags>,
    warnings: Arc<Warnings>,
}

impl Handle {
    /// Everything counted, read now. Touches no engine thread.
    pub fn stats(&self) -> Stats {
        self.counters.snapshot(self.room.is_closed())
    }

    /// What costs latency, or was asked for and could not be had, so far: as
    /// [`Manager::warnings`].
    pub fn warnings(&self) -> Vec<Warning> {
        self.warnings.all()
    }

    /// Where a market is; `None` when it is unknown or the engine is not running. Asks the
    /// conductor; `None`, too, if it has not answered within 2 s or 64 questions wait already.
    pub fn subscription(&self, ticker: &Ticker) -> Option<SubscriptionInfo> {
        let ticker = ticker.clone();
        self.ask(|reply| Control::Subscription { ticker, reply }).flatten()
    }

    /// Where every known market is; empty when the engine is not running. Asks the conductor, and
    /// no shard is held up; empty, too, if it has not answered within 2 s or 64 questions wait
    /// already. A million markets take about 80 MB.
    pub fn assignments(&self) -> Assignments {
        self.ask(|reply| Control::Assignments { reply }).unwrap_or_default()
    }

    fn ask<T>(&self, question: impl FnOnce(Sender<T>) -> Control) -> Option<T> {
        if !self.flags.running.load(Ordering::Acquire) {
            return None;
        }
        let (reply, answer) = bounded(1);
        self.control.try_send(question(reply)).ok()?;
        answer.recv_timeout(ANSWER_TIMEOUT).ok()
    }

    /// Asks the engine to stop, as [`Manager::stop`] would with a deadline of 1 s, and returns at
    /// once. [`Messages`] and [`Events`] then end; call `stop` for the report. Before a start it
    /// makes that start end as cancelled.
    pub fn request_stop(&self) {
        if !self.flags.stop_requested.swap(true, Ordering::AcqRel) {
            // Only to wake the conductor: if its queue is full it is about to empty it, and looks
            // at the flag after that.
            self.control.try_send(Control::Wake).unwrap_or_default();
        }
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

impl Manager {
    /// A manager that has not started. No thread, no socket yet.
    pub fn new(config: Config, registry: impl Registry + 'static) -> Self {
        Self::with_delivery(config, registry, Delivery::channel())
    }

    /// A manager whose messages take another way than the queue.
    pub fn with_delivery(
        config: Config,
        registry: impl Registry + 'static,
        delivery: Delivery,
    ) -> Self {
        let settings = &config.settings;
        let (handoff, messages) =
            Handoff::new(config.shards(), settings.message_buffer, settings.message_buffer_bytes);
        let counters = Counters::new(config.pool(), config.shards(), messages.consumed());
        let (event_sender, events) = Events::new(settings.event_buffer);
        Self {
            registry: Some(Box::new(registry)),
            counters: Arc::new(counters),
            room: handoff.room(),
            handoff: Some(handoff),
            messages: Some(messages),
            event_sender: Some(event_sender),
            events: Some(events),
            control: bounded(CONTROL_MAX),
            phase: Phase::Idle,
            delivery,
            flags: Arc::default(),
            warnings: Arc::default(),
            leftovers: Leftovers::default(),
            untold: Vec::new(),
            config,
        }
    }

    /// The stream of messages, once, before or after `start`.
    ///
    /// # Errors
    /// [`MessagesError::Taken`] the second time, [`MessagesError::Inline`] when messages go to
    /// inline handlers.
    pub fn messages(&mut self) -> Result<Messages, MessagesError> {
        if self.delivery.is_inline() {
            return Err(MessagesError::Inline);
        }
        self.messages.take().ok_or(MessagesError::Taken)
    }

    /// The stream of events, once, before or after `start`.
    ///
    /// # Errors
    /// [`MessagesError::Taken`] the second time.
    pub fn events(&mut self) -> Result<Events, MessagesError> {
        self.events.take().ok_or(MessagesError::Taken)
    }

    /// A handle for other threads.
    pub fn handle(&self) -> Handle {
        Handle {
            counters: Arc::clone(&self.counters),
            room: Arc::clone(&self.room),
            control: self.control.0.clone(),
            flags: Arc::clone(&self.flags),
            warnings: Arc::clone(&self.warnings),
        }
    }

    /// What costs latency, or was asked for and could not be had, in the order it was found: the
    /// shards' cores at `start`, socket options with the first connection, a lost pin whenever it
    /// is lost. Each is logged once as a warning, too.
    pub fn warnings(&self) -> Vec<Warning> {
        self.warnings.all()
    }

    /// Starts the threads and waits, at most `start_timeout`, until `min_healthy` connections are
    /// live and one line of each global role is acknowledged. The rest go on being tried. Messages
    /// come meanwhile: start the thread that takes them first.
    ///
    /// # Errors
    /// [`StartError`]; everything begun is torn down, and `start` may be called again. Epochs go
    /// on from there, and what was lost is told with the next message of its connection.
    pub fn start(&mut self) -> Result<(), StartError> {
        match self.phase {
            Phase::Idle => {}
            Phase::Running(_) => return Err(StartError::AlreadyStarted),
            Phase::Stopped(_) => return Err(StartError::Stopped),
        }
        if self.flags.stop_requested.swap(false, Ordering::AcqRel) {
            return Err(StartError::Cancelled);
        }
        let (started, verdict) = bounded(1);
        // Before the thread that takes it back.
        self.flags.running.store(true, Ordering::Release);
        let running = self.spawn(started).inspect_err(|_| {
            self.flags.running.store(false, Ordering::Release);
        });
        self.phase = Phase::Running(Box::new(running?));
        // The conductor answers by itself; its thread gone is the only other way out.
        let verdict = verdict.recv().unwrap_or_else(|_| {
            Err(StartError::Threads("the conductor's thread ended by a bug".to_owned()))
        });
        if verdict == Err(StartError::Cancelled) {
            // That was its answer. One that comes from now on is for the next start, and so is
            // one that came too late for a start that failed by itself.
            self.flags.stop_requested.store(false, Ordering::Release);
        }
        if verdict.is_err() {
            let StopReport { stuck, untold, .. } = self.tear_down(Duration::from_secs(1));
            if !stuck.is_empty() {
                log::error!("threads of a start that failed have not ended: {stuck:?}");
            }
            self.untold = untold;
            self.phase = Phase::Idle;
        }
        verdict
    }

    /// Stops: Close frames out, last messages handed over where there is room, threads joined.
    /// Returns by `deadline` or a little after; what had not ended by then is named in the report.
    /// A second stop gives the same report.
    pub fn stop(&mut self, deadline: Duration) -> StopReport {
        if let Phase::Stopped(report) = &self.phase {
            return StopReport::clone(report);
        }
        let report = self.tear_down(deadline);
        // The consumers see the end once they have taken what is left, and whoever reports changes
        // sees that nobody takes them any more.
        (self.handoff, self.event_sender) = (None, None);
        self.registry = None;
        self.phase = Phase::Stopped(Box::new(report.clone()));
        report
    }

    /// Builds the threads' parts and starts them. What was started before an error ends by
    /// itself: its queues are gone.
    fn spawn(&mut self, started: Sender<Result<(), StartError>>) -> Result<Running, StartError> {
        let (Some(handoff), Some(events)) = (&self.handoff, self.event_sender.clone()) else {
            return Err(StartError::Stopped);
        };
        self.inspect_cores();
        let (counters, delivery) = (&self.counters, &self.delivery);
        let told = events.clone();
        let wiring = Wiring::new(&self.config, counters, handoff, delivery, &self.warnings, told);
        let wiring = wiring.map_err(threads)?;
        let Wiring { shards, connector, mailboxes, dialed, reports, lost, exits, ended } = wiring;
        let control = self.control.1.clone();
        let inputs = Inputs { control, changes: never(), dialed, reports, lost };
        let (mut others, mut names) = (Vec::new(), Vec::new());
        let wait = self.config.settings.wait;
        for (shard, core) in shards.into_iter().zip(&self.config.placement.shards) {
            let (id, counters) = (shard.id, Arc::clone(&shard.counters));
            let name = shard_name(id);
            let (told, warnings) = (exits.clone(), Arc::clone(&self.warnings));
            let seat = Seat { shard: id, core: *core, wait };
            let untold = self.untold.clone();
            let make = move || Shard::new(shard).owing(&untold);
            let run = move || thread::run_shard(make, seat, &counters, &told, &warnings);
            others.push(
                thread::spawn(Builder::new(), &name, Some(id), &exits, run).map_err(threads)?,
            );
            names.push(name);
        }
        let counters = Arc::clone(&self.counters);
        let (confine, told) = (self.confine(), exits.clone());
        let run = move || {
            confine();
            let cpu = &counters.control.connector_cpu_ns;
            thread::run_connector(Connector::new(connector), cpu, &told);
            Vec::new()
        };
        let connector = thread::spawn(Builder::new(), CONNECTOR, None, &exits, run);
        others.push(connector.map_err(threads)?);
        let parts = self.conductor_parts(inputs, mailboxes, started, events);
        let Some(luggage) = self.pack() else { return Err(StartError::Stopped) };
        let (counters, flags) = (Arc::clone(&self.counters), Arc::clone(&self.flags));
        let confine = self.confine();
        let run = move |Luggage { mut registry, handoff, events, leftovers }| {
            confine();
            let runs = Runs { flags, counters: Arc::clone(&counters) };
            let mut conductor = Conductor::new(parts, clock::now());
            conductor.begin(&mut *registry, leftovers, clock::now());
            let cpu = &counters.control.conductor_cpu_ns;
            let conductor = thread::run_conductor(conductor, cpu);
            drop(runs);
            // After a start that succeeded this run's end is that of `Messages` and `Events`,
            // whoever ended it and whether or not anyone ever joins this thread.
            let again = !conductor.has_started();
            let leftovers = conductor.into_leftovers();
            again.then_some(Luggage { registry, handoff, events, leftovers })
        };
        let conductor = thread::spawn_with(Builder::new(), CONDUCTOR, &exits, luggage, run);
        let conductor = conductor.map_err(|(error, luggage)| {
            self.unpack(luggage);
            threads(error)
        })?;
        names.extend([CONNECTOR.to_owned(), CONDUCTOR.to_owned()]);
        self.untold.clear();
        Ok(Running { conductor, others, ended, names })
    }

    /// What the conductor's thread takes along; nothing after a stop.
    fn pack(&mut self) -> Option<Luggage> {
        let (registry, handoff) = (self.registry.take()?, self.handoff.take()?);
        let (events, leftovers) = (self.event_sender.take()?, std::mem::take(&mut self.leftovers));
        Some(Luggage { registry, handoff, events, leftovers })
    }

    fn unpack(&mut self, luggage: Option<Luggage>) {
        if let Some(Luggage { registry, handoff, events, leftovers }) = luggage {
            (self.registry, self.handoff) = (Some(registry), Some(handoff));
            (self.event_sender, self.leftovers) = (Some(events), leftovers);
        }
    }

    /// What spoils the shards' cores.
    fn inspect_cores(&self) {
        let placement = &self.config.placement;
        let root = Path::new(cores::SYSFS);
        let facts: Vec<_> =
            placement.cores().into_iter().map(|core| CoreFacts::read(root, core)).collect();
        let spinning = self.config.settings.wait != Wait::Block;
        for warning in placement.spoiled(&facts, spinning) {
            self.warnings.add(warning);
        }
    }

    /// Keeps the thread that calls it off the shards' cores.
    fn confine(&self) -> impl FnOnce() + Send + 'static {
        let (cores, warnings) = (self.config.placement.control.clone(), Arc::clone(&self.warnings));
        move || thread::confine(&cores, &warnings)
    }

    fn conductor_parts(
        &self,
        inputs: Inputs<TcpLink>,
        (connector, shards): Mailboxes,
        started: Sender<Result<(), StartError>>,
        events: Sender<Event>,
    ) -> ConductorParts<TcpLink> {
        let settings = &self.config.settings;
        ConductorParts {
            inputs,
            connector,
            shards,
            events,
            counters: Arc::clone(&self.counters),
            subscriptions: Subscriptions::new(
                settings.pool.iter(),
                SubscriptionSettings::new(settings),
                clock::now(),
            )
            .with_clock(clock::stamp()),
            backoff: Backoff {
                initial: settings.reconnect_initial,
                max: settings.reconnect_max,
                factor: settings.reconnect_factor,
            },
            connect_interval: settings.connect_interval,
            connect_timeout: settings.connect_timeout,
            start_timeout: settings.start_timeout,
            min_healthy: self.config.min_healthy,
            dialect: settings.dialect,
            command_events: settings.command_events,
            seed: settings.seed.unwrap_or_else(|| fastrand::u64(..)),
            stop_requested: Arc::clone(&self.flags.stop_requested),
            started,
        }
    }

    fn tear_down(&mut self, deadline: Duration) -> StopReport {
        let begun = clock::now();
        let until = after(begun, deadline.min(STOP_MAX));
        let (mut stuck, mut panicked) = (Vec::new(), Vec::new());
        let mut untold = std::mem::take(&mut self.untold);
        let phase = std::mem::replace(&mut self.phase, Phase::Idle);
        if let Phase::Running(running) = phase {
            // Blocks for no longer than the conductor needs to take a question.
            if self.flags.running.load(Ordering::Acquire) {
                self.control.0.send_deadline(Control::Stop { until }, until).unwrap_or_default();
            }
            stuck = await_threads(&running, after(until, Duration::from_millis(250)));
            if !stuck.iter().any(|name| name == CONDUCTOR) {
                match running.conductor.join() {
                    Ok(luggage) => self.unpack(luggage.flatten()),
                    Err(_) => panicked.push(CONDUCTOR.to_owned()),
                }
            }
            for other in running.others {
                let name = other.thread().name().unwrap_or_default().to_owned();
                if stuck.contains(&name) {
                    continue;
                }
                match other.join() {
                    Ok(told) => untold.extend(told),
                    Err(_) => panicked.push(name),
                }
            }
        }
        self.flags.running.store(false, Ordering::Release);
        // An old question is not for the next start.
        while self.control.1.try_recv().is_ok() {}
        self.counters.nothing_is_live();
        let elapsed = clock::now().saturating_duration_since(begun);
        let stats = self.counters.snapshot(self.room.is_closed());
        StopReport { elapsed, stuck, panicked, untold, stats }
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        if matches!(self.phase, Phase::Running(_)) {
            self.stop(DROP_DEADLINE);
        }
    }
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manager").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Waits for the threads to end; the names of those that did not.
fn await_threads(running: &Running, until: Instant) -> Vec<String> {
    let mut waiting = running.names.clone();
    while !waiting.is_empty() {
        match running.ended.recv_deadline(until) {
            Ok(name) => waiting.retain(|waits| *waits != name),
            Err(_) => break,
        }
    }
    waiting
}

fn threads(error: std::io::Error) -> StartError {
    StartError::Threads(error.to_string())
}
