//! `demo`: the whole engine against an exchange in this process, and the account of every message
//! settled in the end. It uses nothing of the engine that a host could not.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use exchange_sim::{Among, DataFault, DataRule, Exchange, ExchangeConfig, Mode, Verdict};
use kalshi_feed::{
    ChannelRegistry, Config, Credentials, Event, Events, Handle, Manager, Messages, RawMessage,
    Role, Stats, StopReport, Ticker,
};

use crate::account::Account;
use crate::args::Demo;
use crate::consumer::{self, Consumed, Handler};
use crate::cut::{self, Books, Cut, CutResult};
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::latency::{Latency, LiveLatency, delta_time};
use crate::lifecycle::RegistryThread;
use crate::roster::Roster;
use crate::summary::{DemoSummary, LedgerSummary, Measured, Summary};
use crate::throttle::Throttle;
use crate::view::View;

/// Between two looks at the engine.
const LOOK: Duration = Duration::from_millis(20);
/// Everything must have been still for this long before the stop.
const STILL: Duration = Duration::from_millis(300);
/// The engine may take this long to come to rest, once no book is out of step.
const DRAIN: Duration = Duration::from_secs(10);
/// Books may take this long to come back in step: 11 s for a subscription opened anew in vain, the
/// longest pause of 30 s after it, and time to spare.
const IN_STEP: Duration = Duration::from_secs(60);
/// How long the exchange may take to hand what it has queued to the kernel.
const FLUSH: Duration = Duration::from_secs(10);
/// How long the engine may take to stop.
const STOP: Duration = Duration::from_secs(5);
/// A lifecycle line that came back has subscribed by then; the list is read again.
const RESUBSCRIBED: Duration = Duration::from_secs(1);
/// When to cut in a demo without end.
const CUT_AFTER: Duration = Duration::from_secs(12);
/// Frames are dropped until this long before the end, or until half time of a shorter run.
const WHOLE_AT_LAST: Duration = Duration::from_secs(10);
/// Market changes and lifecycle frames waiting between registry and engine.
const REGISTRY_QUEUE: usize = 8_192;
/// Audit findings shown.
const FINDINGS: usize = 3;

/// Runs the demo.
///
/// # Errors
/// Bad settings, or a job not done: what was not.
pub(crate) fn run(flags: &Demo) -> Result<(), Failure> {
    let interrupt = Interrupt::install()?;
    let begun = Instant::now();
    let mut session = Session::start(flags, &interrupt)?;
    session.stream(flags, &interrupt);
    let outcome = session.finish(flags, &interrupt)?;
    outcome.summary(flags, begun.elapsed()).print(flags.json)?;
    outcome.verdict()
}

/// Takes the messages: account, latencies, books.
#[derive(Debug)]
struct Taker {
    account: Account,
    wire: Latency,
    /// Whether receive times are the kernel's, and not those of the reads the ages count from.
    arrivals: bool,
    /// Only when there is a cut to judge.
    books: Option<Books>,
    /// Only when it is to be slow.
    throttle: Option<Throttle>,
}

impl Handler for Taker {
    fn message(&mut self, message: &RawMessage, age: Duration) -> Result<(), Failure> {
        self.account.delivered(message);
        if message.role == Role::Orderbook {
            if let Some(books) = &mut self.books {
                books.delivered(message);
            }
            if let Some(made) = delta_time(&message.data) {
                // Both clocks are this machine's: earlier than made only by their resolution.
                let since = |time: SystemTime| time.duration_since(made).unwrap_or_default();
                self.wire.record(if self.arrivals {
                    since(SystemTime::now())
                } else {
                    since(message.received_at.wall).saturating_add(age)
                });
            }
        }
        if let Some(throttle) = &mut self.throttle {
            let wait = throttle.taken(Instant::now());
            if !wait.is_zero() {
                std::thread::sleep(wait);
            }
        }
        Ok(())
    }
}

/// Everything that runs during a demo.
struct Session {
    exchange: Arc<Exchange>,
    manager: Manager,
    handle: Handle,
    events: Events,
    registry: RegistryThread,
    consumer: JoinHandle<Consumed<Taker>>,
    view: View,
    roster: Roster,
    /// Ups and downs; the threads' accounts are merged into it.
    account: Account,
    cut: Option<Cut>,
    /// Lets a slow consumer take what waits at full speed.
    hurry: Arc<AtomicBool>,
    /// When the registry should read the exchange's list again.
    reread_at: Option<Instant>,
}

impl Session {
    fn start(flags: &Demo, interrupt: &Interrupt) -> Result<Self, Failure> {
        let exchange = Exchange::start(ExchangeConfig {
            markets: flags.markets,
            rate_per_second: flags.rate,
            mode: flags.mode,
            dialect: match flags.engine.legacy {
                true => exchange_sim::Dialect::Legacy,
                false => exchange_sim::Dialect::Live,
            },
            record_contents: flags.policies.is_merged(),
            ..ExchangeConfig::default()
        });
        let exchange = Arc::new(exchange.map_err(Failure::job)?);
        let credentials = Credentials::from_pem(exchange.key_id(), exchange.key_pem().as_bytes());
        let settings = Config::builder()
            .url(exchange.url())
            .ca_pem(exchange.ca_pem().to_owned())
            .credentials(credentials.map_err(Failure::job)?);
        let config = flags.policies.apply(flags.engine.apply(settings)).build()?;
        let markets = exchange.active_markets();
        let markets: Result<BTreeSet<Ticker>, _> =
            markets.iter().map(|text| text.parse()).collect();
        let markets = markets.map_err(Failure::job)?;
        let (registry, host) =
            ChannelRegistry::new(markets.iter().cloned(), REGISTRY_QUEUE, REGISTRY_QUEUE);
        let mut manager = Manager::new(config, registry);
        let (messages, events) = (manager.messages()?, manager.events()?);
        let handle = manager.handle();
        let live = LiveLatency::default();
        let list = Arc::clone(&exchange);
        let account = Account::new(flags.policies.is_merged(), flags.engine.legacy);
        let lifecycle = account.clone();
        let registry =
            RegistryThread::spawn(host, markets, lifecycle, move || list.active_markets())
                .map_err(|error| Failure::job(format!("cannot start the registry: {error}")))?;
        let (consumer, hurry) = spawn_consumer(messages, flags, account.clone(), &live)?;
        interrupt.start(&mut manager)?;
        crate::view::warn(&handle.warnings());
        Ok(Self {
            exchange,
            manager,
            view: View::new(handle.clone(), live, flags.duration, flags.json),
            handle,
            events,
            registry,
            consumer,
            roster: Roster::default(),
            account,
            cut: None,
            hurry,
            // Markets changed while the lifecycle lines were coming up.
            reread_at: Some(Instant::now()),
        })
    }

    /// Until the time is up or the user ends it.
    fn stream(&mut self, flags: &Demo, interrupt: &Interrupt) {
        let begun = Instant::now();
        let end = (!flags.duration.is_zero()).then(|| begun + flags.duration);
        let cut_at = begun + end.map_or(CUT_AFTER, |_| flags.duration.mul_f64(0.4));
        let mut whole_at = end.map(|_| begun + dropping(flags.duration));
        if flags.drop_rate > 0.0 {
            let drop = DataRule::chance(Among::Sequenced, DataFault::Drop, flags.drop_rate);
            self.exchange.inject_data(drop);
        }
        loop {
            let now = Instant::now();
            self.tend(now);
            if flags.cut > 0 && self.cut.is_none() && now >= cut_at {
                let exchange = &self.exchange;
                let reset = |addresses: &[_]| exchange.cut(addresses);
                let spare = self.account.is_merged();
                let count = to_cut(flags);
                self.cut = Some(Cut::make(count, spare, &self.roster, &self.handle, reset));
            }
            if whole_at.take_if(|at| *at <= now).is_some() {
                self.exchange.clear_data_faults();
            }
            if interrupt.asked() || self.consumer.is_finished() || end.is_some_and(|end| now >= end)
            {
                return;
            }
            interrupt.sleep_until(now + LOOK);
        }
    }

    /// Events, registry, view.
    fn tend(&mut self, now: Instant) {
        self.take_events(now);
        if self.registry.is_stale() {
            self.reread_at = Some(now);
        }
        if self.reread_at.is_some_and(|at| at <= now) {
            self.registry.reread();
            self.reread_at = None;
        }
        self.view.tick(now);
    }

    fn take_events(&mut self, now: Instant) {
        while let Ok(event) = self.events.try_recv() {
            self.roster.note(&event);
            match event {
                Event::Up { conn, role, epoch, local_addr } => {
                    self.account.up(conn, epoch, local_addr);
                    if role == Role::Lifecycle {
                        // What happened while the line was down was told on no line for sure.
                        self.reread_at = Some(now + RESUBSCRIBED);
                    }
                }
                Event::Down { conn, epoch, .. } => self.account.down(conn, epoch),
                _ => {}
            }
        }
    }

    /// Traffic off, engine at rest, engine stopped, account settled.
    fn finish(mut self, flags: &Demo, interrupt: &Interrupt) -> Result<Outcome, Failure> {
        // Books out of step must be able to come back, whenever the end comes.
        self.exchange.clear_data_faults();
        // What is held back for want of room must come through before the exchange can rest.
        self.hurry.store(true, Ordering::Relaxed);
        if !self.exchange.stop_traffic(FLUSH) {
            log::warn!("the exchange still had frames queued after {FLUSH:?}");
        }
        let wanted = self.exchange.active_markets().len();
        self.drain(wanted, interrupt);
        let live = self.handle.stats();
        let assigned = cut::assigned(&self.handle);
        let live_roster = std::mem::take(&mut self.roster);
        let report = self.manager.stop(STOP);
        let consumed =
            self.consumer.join().map_err(|_| Failure::job("the consumer ended by a bug"))?;
        let account =
            self.registry.finish().ok_or_else(|| Failure::job("the registry ended by a bug"))?;
        while let Ok(event) = self.events.try_recv() {
            self.roster.note(&event);
            if let Event::Up { conn, epoch, local_addr, .. } = event {
                self.account.up(conn, epoch, local_addr);
            } else if let Event::Down { conn, epoch, .. } = event {
                self.account.down(conn, epoch);
            }
        }
        report.untold.iter().for_each(|untold| self.account.owed(untold));
        let cut = (flags.cut > 0).then(|| match &self.cut {
            Some(cut) => {
                let mut books = consumed.handler.books.clone().unwrap_or_default();
                report.untold.iter().for_each(|untold| books.owed(untold));
                cut.result(&live_roster, &assigned, &books, live.reconnects)
            }
            None => CutResult { requested: to_cut(flags), ..CutResult::default() },
        });
        self.account.merge(consumed.handler.account.clone());
        self.account.merge(account);
        let verdict = self.account.settle(&self.exchange);
        let last = self.handle.stats();
        Ok(Outcome { live, last, report, consumed, verdict, cut, wanted, roster: live_roster })
    }

    /// Waits until nothing moves any more and everything that was lost is back, books in step
    /// among it: the exchange still answers.
    fn drain(&mut self, wanted: usize, interrupt: &Interrupt) {
        let in_step_by = Instant::now() + IN_STEP;
        let mut until = Instant::now() + DRAIN;
        let suspect = self.handle.stats().recovery.suspect_markets;
        if suspect > 0 {
            log::info!("{suspect} markets are suspect: up to {IN_STEP:?} for their recovery");
        }
        // Reconnected lines have nothing more to miss: the traffic is off.
        if let Some(at) = &mut self.reread_at {
            *at = Instant::now();
        }
        let (mut received, mut still_since) = (u64::MAX, Instant::now());
        loop {
            let now = Instant::now();
            self.tend(now);
            let stats = self.handle.stats();
            let in_step = stats.recovery.suspect_markets == 0;
            if !in_step && now < in_step_by {
                until = now + DRAIN;
            }
            let whole = in_step
                && stats.messages_consumed >= stats.messages_forwarded
                && stats.connections_healthy == stats.connections_total
                && stats.markets_wanted == stats.markets_total
                && u64::try_from(wanted).is_ok_and(|wanted| wanted == stats.markets_total)
                && self.reread_at.is_none()
                && self.cut.as_ref().is_none_or(|cut| cut.live_again(&self.roster) == cut.done());
            if !whole || stats.messages_received != received {
                (received, still_since) = (stats.messages_received, now);
            }
            if now.duration_since(still_since) >= STILL
                || now >= until
                || self.consumer.is_finished()
            {
                return;
            }
            interrupt.sleep_until(now + LOOK);
        }
    }
}

fn spawn_consumer(
    messages: Messages,
    flags: &Demo,
    account: Account,
    live: &LiveLatency,
) -> Result<(JoinHandle<Consumed<Taker>>, Arc<AtomicBool>), Failure> {
    let needed = (flags.mode == Mode::Paced).then_some(flags.rate);
    let throttle = flags.slow_consumer.map(|fraction| Throttle::new(fraction, needed)).unzip();
    let taker = Taker {
        account,
        wire: Latency::new(),
        arrivals: flags.engine.tuning.kernel_timestamps,
        books: (flags.cut > 0).then(Books::default),
        throttle: throttle.0,
    };
    let thread = consumer::spawn(messages, taker, (!flags.json).then(|| live.clone()))
        .map_err(|error| Failure::job(format!("cannot start the consumer: {error}")))?;
    Ok((thread, throttle.1.unwrap_or_default()))
}

/// How many connections to cut.
fn to_cut(flags: &Demo) -> usize {
    flags.cut.min(cut::most(flags.policies.is_merged()))
}

/// How long frames are dropped in a run of this length.
fn dropping(duration: Duration) -> Duration {
    duration.saturating_sub(WHOLE_AT_LAST).max(duration / 2)
}

/// What came of a demo.
struct Outcome {
    /// Before the stop.
    live: Stats,
    /// After everything.
    last: Stats,
    report: StopReport,
    consumed: Consumed<Taker>,
    verdict: Verdict,
    cut: Option<CutResult>,
    /// Markets active at the end.
    wanted: usize,
    roster: Roster,
}

impl Outcome {
    fn summary(&self, flags: &Demo, wall: Duration) -> Summary {
        let measured =
            Measured { wall, consumer_cpu: self.consumed.cpu, latency: self.consumed.latency };
        let mut summary = Summary::new(&self.live, &self.last, measured);
        summary.demo = Some(DemoSummary {
            mode: flags.mode.to_string(),
            rate: flags.rate,
            wire_latency_ns: self.consumed.handler.wire.quantiles(),
            ledger: LedgerSummary::from(&self.verdict),
            cut: self.cut,
        });
        summary
    }

    /// Whether the job was done; what was not, if not.
    fn verdict(self) -> Result<(), Failure> {
        let mut wrong = Vec::new();
        let live = &self.live;
        if live.connections_healthy != live.connections_total {
            wrong.push(format!(
                "{} of {} connections were healthy at the end{}",
                live.connections_healthy,
                live.connections_total,
                self.roster.trouble()
            ));
        }
        if u64::try_from(self.wanted) != Ok(live.markets_total) {
            wrong.push(format!(
                "{} markets were confirmed of {} active{}",
                live.markets_total,
                self.wanted,
                self.roster.refusal()
            ));
        }
        let unnoticed = self.verdict.undetectable;
        if let Some(cut) = self.cut.filter(|cut| !cut.is_whole(unnoticed)) {
            wrong.push(format!(
                "of {} connections to cut {} were cut and {} came back, {} of {} markets had a new \
                 snapshot and {} others may have lost it",
                cut.requested, cut.cut, cut.live_again, cut.snapshots, cut.markets, cut.excused
            ));
        }
        if live.recovery.suspect_markets > 0 {
            let suspect = live.recovery.suspect_markets;
            wrong.push(format!("{suspect} markets were suspect still at the end"));
        }
        if self.verdict.unaccounted > 0 {
            let findings = self.verdict.findings.iter().take(FINDINGS);
            let findings: Vec<_> = findings.map(String::as_str).collect();
            wrong.push(format!(
                "{} messages are unaccounted for: {}",
                self.verdict.unaccounted,
                findings.join("; ")
            ));
        }
        wrong.extend(crate::failure::threads(&self.report, &self.roster));
        if self.last.events_dropped > 0 {
            wrong
                .push(format!("{} events were lost: raise event_buffer", self.last.events_dropped));
        }
        self.consumed.outcome?;
        if wrong.is_empty() { Ok(()) } else { Err(Failure::job(wrong.join("; "))) }
    }
}
