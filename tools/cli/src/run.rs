//! `run`: the engine against a real exchange, each message a JSON line, until the time is up or
//! the user ends it. It never interprets market data.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use kalshi_feed::{
    ChannelRegistry, Events, Handle, Manager, MarketChange, RawMessage, RegistryHost, Stats,
    StopReport,
};

use crate::args::Run;
use crate::consumer::{self, Consumed, Handler};
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::latency::LiveLatency;
use crate::lifecycle::{Fate, fate};
use crate::output::Output;
use crate::roster::Roster;
use crate::summary::{Measured, Summary};
use crate::view::View;

/// Between two looks at the engine.
const LOOK: Duration = Duration::from_millis(50);
/// How long the engine may take to stop.
const STOP: Duration = Duration::from_secs(5);
/// How long the engine may take to accept a market change; longer only when it has stopped.
const ACCEPT: Duration = Duration::from_secs(2);
/// Lifecycle frames waiting for the writer; when full the engine reads those lines no further.
const LIFECYCLE_QUEUE: usize = 1_024;

/// Runs the engine.
///
/// # Errors
/// Bad settings, an exchange that cannot be reached, or an output that cannot be written.
pub(crate) fn run(flags: &Run) -> Result<(), Failure> {
    let settings = flags.engine.apply(flags.exchange.settings()?);
    let config = flags.policies.apply(settings).build()?;
    let markets = match &flags.markets_file {
        Some(path) => crate::markets::read(path)?,
        None => {
            let note = "kalshi-feed: no --markets-file: no order books will be subscribed\n";
            io::stderr().write_all(note.as_bytes()).unwrap_or_default();
            BTreeSet::new()
        }
    };
    let output = Output::open(&flags.output)?;
    let interrupt = Interrupt::install()?;
    let begun = Instant::now();
    let (registry, host) = ChannelRegistry::new(markets, LIFECYCLE_QUEUE, LIFECYCLE_QUEUE);
    let mut session =
        Session::start(flags, Manager::new(config, registry), host, output, &interrupt)?;
    let ended = session.stream(flags.duration, &interrupt);
    let outcome = session.finish()?;
    let summary = outcome.summary(begun.elapsed());
    outcome.verdict(ended, |wrong| {
        if flags.json {
            summary.print(true)
        } else if flags.output == Path::new("-") {
            // Stdout has the messages.
            io::stderr().write_all(summary.text().as_bytes()).unwrap_or_default();
            Ok(())
        } else {
            summary.print(false)
        }
        .and(wrong)
    })
}

/// Writes what comes, lifecycle frames too.
#[derive(Debug)]
struct Writer {
    output: Output,
    frames: Receiver<RawMessage>,
    changes: Sender<MarketChange>,
}

impl Writer {
    /// Lifecycle frames, in the order each line received them; markets that are over are dropped.
    fn lifecycle(&mut self) -> Result<(), Failure> {
        while let Ok(frame) = self.frames.try_recv() {
            self.output.write(&frame)?;
            if let Some((ticker, Fate::Over)) = fate(&frame.data)
                && self.changes.send_timeout(MarketChange::settled(ticker), ACCEPT).is_err()
            {
                log::info!("the engine takes no market changes any more");
            }
        }
        Ok(())
    }
}

impl Handler for Writer {
    fn message(&mut self, message: &RawMessage, _age: Duration) -> Result<(), Failure> {
        self.output.write(message)?;
        self.lifecycle()
    }

    fn idle(&mut self) -> Result<(), Failure> {
        self.lifecycle()?;
        self.output.flush()
    }

    fn end(&mut self) -> Result<(), Failure> {
        self.idle()
    }
}

/// Why the streaming ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// As asked: the time was up, or the user ended it.
    AsAsked,
    /// The writer ended.
    Writer,
    /// No connection is left that anything is tried for.
    AllHalted,
}

/// Everything that runs.
struct Session {
    manager: Manager,
    handle: Handle,
    events: Events,
    consumer: JoinHandle<Consumed<Writer>>,
    view: View,
    roster: Roster,
}

impl Session {
    fn start(
        flags: &Run,
        mut manager: Manager,
        host: RegistryHost,
        output: Output,
        interrupt: &Interrupt,
    ) -> Result<Self, Failure> {
        let (messages, events) = (manager.messages()?, manager.events()?);
        let handle = manager.handle();
        let live = LiveLatency::default();
        let (changes, frames) = host.split();
        let writer = Writer { output, frames, changes };
        let consumer = consumer::spawn(messages, writer, (!flags.json).then(|| live.clone()))
            .map_err(|error| Failure::job(format!("cannot start the writer: {error}")))?;
        interrupt.start(&mut manager)?;
        crate::view::warn(&handle.warnings());
        let view = View::new(handle.clone(), live, flags.duration, flags.json || clashes(flags));
        Ok(Self { manager, handle, events, consumer, view, roster: Roster::default() })
    }

    fn stream(&mut self, duration: Duration, interrupt: &Interrupt) -> Ended {
        let begun = Instant::now();
        loop {
            let now = Instant::now();
            self.take_events();
            self.view.tick(now);
            if self.consumer.is_finished() {
                return Ended::Writer;
            }
            let over = !duration.is_zero() && now.duration_since(begun) >= duration;
            if over || interrupt.asked() {
                return Ended::AsAsked;
            }
            let stats = self.handle.stats();
            if stats.connections_healthy == 0 && stats.connections_halted == stats.connections_total
            {
                return Ended::AllHalted;
            }
            interrupt.sleep_until(now + LOOK);
        }
    }

    fn take_events(&mut self) {
        while let Ok(event) = self.events.try_recv() {
            self.roster.note(&event);
        }
    }

    fn finish(mut self) -> Result<Outcome, Failure> {
        let live = self.handle.stats();
        let roster = std::mem::take(&mut self.roster);
        let report = self.manager.stop(STOP);
        let consumed =
            self.consumer.join().map_err(|_| Failure::job("the writer ended by a bug"))?;
        let last = self.handle.stats();
        Ok(Outcome { live, last, report, consumed, roster })
    }
}

/// Whether a live view would be drawn into the messages.
fn clashes(flags: &Run) -> bool {
    use std::io::IsTerminal;
    flags.output == Path::new("-") && io::stdout().is_terminal()
}

/// What came of a run.
struct Outcome {
    /// Before the stop.
    live: Stats,
    /// After everything.
    last: Stats,
    report: StopReport,
    consumed: Consumed<Writer>,
    roster: Roster,
}

impl Outcome {
    fn summary(&self, wall: Duration) -> Summary {
        let measured =
            Measured { wall, consumer_cpu: self.consumed.cpu, latency: self.consumed.latency };
        Summary::new(&self.live, &self.last, measured)
    }

    /// Whether the job was done; `print` shows the summary first, unless nobody reads it.
    fn verdict(
        self,
        ended: Ended,
        print: impl FnOnce(Result<(), Failure>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut wrong = Vec::new();
        let live = &self.live;
        if ended == Ended::AllHalted {
            wrong.push(format!("every connection was given up{}", self.roster.trouble()));
        } else if live.connections_healthy != live.connections_total {
            wrong.push(format!(
                "{} of {} connections were healthy at the end{}",
                live.connections_healthy,
                live.connections_total,
                self.roster.trouble()
            ));
        }
        // More than wanted: one that is over is being unsubscribed just now.
        if live.markets_total < live.markets_wanted {
            wrong.push(format!(
                "{} of {} markets were confirmed{}",
                live.markets_total,
                live.markets_wanted,
                self.roster.refusal()
            ));
        }
        wrong.extend(crate::failure::threads(&self.report, &self.roster));
        match self.consumed.outcome {
            Err(Failure::ReaderLeft) => return Err(Failure::ReaderLeft),
            Err(failure) => wrong.insert(0, failure.to_string()),
            Ok(()) => {}
        }
        print(if wrong.is_empty() { Ok(()) } else { Err(Failure::job(wrong.join("; "))) })
    }
}
