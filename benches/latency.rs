//! Time from the exchange's write to the handler, engine and bare reader in turn; and, apart, the
//! hop of one message through the engine's queue beside bare crossbeam. Paced by an exchange that
//! sleeps between ticks and writes each message as it makes it.
//!
//! A consumer behind the queue needs a core of its own, and the rest of the machine one more: with
//! four it is judged like the handler. With fewer `--force-channel` shows it, on the exchange's
//! core, asleep between messages, and gives no ratio.
//!
//! `cargo bench --bench latency -- [--rounds N] [--millis N] [--no-sweep] [--force-channel] --json`

#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    clippy::as_conversions,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::wrong_self_convention,
    reason = "a measurement fails by panicking, and uses a part of the engine's parts"
)]

mod inside {
    //! The engine's own parts; see `parts.in`.
    pub(crate) mod hop;
}
include!("inside/parts.in");
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use hdrhistogram::Histogram;
use kalshi_feed::{Batch, Delivery, Handler, Manager, Messages, RecvError, StaticRegistry, Wait};
use peers::{Layout, Sim, SimSettings, age, plan};
use serde_json::{Value, json};
use support::plot::{self, Bar};
use support::{FAR, Flags, NEAR, engine, median, pick, round};

/// Order books only: their deltas carry the time in microseconds.
const LAYOUT: Layout = Layout { ticker: 0, trade: 0, lifecycle: 0, orderbook: 150 };
const MARKETS: usize = 150 * 20;
const RATE: u64 = 20_000;
const SWEEP: [u64; 6] = [1_000, 5_000, 20_000, 50_000, 100_000, 200_000];
/// One for the exchange, one for the shard, one for the consumer, one for all else.
const CORES_TO_JUDGE: usize = 4;
/// The consumer's, where there are so many.
const THIRD: usize = 2;
const QUANTILES: [(&str, f64); 5] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999), ("max", 1.0)];

/// Latencies in nanoseconds, recorded while told to; handed over when it is dropped.
struct Probe {
    seen: Histogram<u64>,
    on: Arc<AtomicBool>,
    out: Sender<Histogram<u64>>,
}

impl Probe {
    fn new(on: Arc<AtomicBool>, out: Sender<Histogram<u64>>) -> Self {
        Self { seen: Histogram::new_with_max(60_000_000_000, 3).unwrap(), on, out }
    }

    fn message(&mut self, data: &[u8]) {
        if let Some(age) = age(data)
            && self.on.load(Ordering::Relaxed)
        {
            self.seen.saturating_record(age.as_nanos() as u64);
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let seen = std::mem::replace(&mut self.seen, Histogram::new(3).unwrap());
        self.out.try_send(seen).unwrap_or_default();
    }
}

impl Handler for Probe {
    fn on_batch(&mut self, batch: &Batch<'_>) {
        for message in batch.iter() {
            self.message(message.data);
        }
    }
}

/// Text frames of one TLS record: the exchange writes each as a record of its own.
fn frames(mut plain: &[u8], mut each: impl FnMut(&[u8])) {
    while let [_, short, rest @ ..] = plain {
        let (length, body) = match (short, rest) {
            (126, [high, low, body @ ..]) => (usize::from(u16::from_be_bytes([*high, *low])), body),
            (..=125, body) => (usize::from(*short), body),
            _ => return,
        };
        let Some((frame, after)) = body.split_at_checked(length) else { return };
        each(frame);
        plain = after;
    }
}

/// What the rounds of one client at one rate gave, quantile by quantile.
#[derive(Default)]
struct Figures {
    rounds: Vec<[f64; QUANTILES.len()]>,
}

impl Figures {
    fn add(&mut self, seen: &Histogram<u64>) {
        self.rounds.push(QUANTILES.map(|(_, at)| seen.value_at_quantile(at) as f64));
    }

    fn at(&self, name: &str) -> f64 {
        let index = QUANTILES.iter().position(|quantile| quantile.0 == name).unwrap();
        median(&self.rounds.iter().map(|round| round[index]).collect::<Vec<_>>())
    }

    fn json(&self, beside: Option<&Self>) -> Value {
        let mut object = json!({});
        for (name, _) in QUANTILES {
            object[format!("{name}_ns")] = json!(round(self.at(name), 0));
        }
        if let Some(beside) = beside {
            for name in ["p50", "p90"] {
                let ratio = self.at(name) / beside.at(name);
                object[format!("ratio_{name}")] = json!(round(ratio, 2));
            }
        }
        object
    }
}

/// How the exchange sends, for how long, and how the reader waits.
#[derive(Clone, Copy)]
struct Pace {
    rate: u64,
    spin: bool,
    time: Duration,
}

/// Who takes what comes through the queue.
#[derive(Clone, Copy)]
struct Consumer {
    core: usize,
    spin: bool,
}

/// Lets the exchange send for a while and records all but the beginning.
fn record(sim: &mut Sim, Pace { rate, time, .. }: Pace, on: &AtomicBool) {
    sim.tell(&format!("rate {rate}"));
    sim.tell("mode paced");
    std::thread::sleep(time / 5);
    on.store(true, Ordering::Relaxed);
    std::thread::sleep(time);
    on.store(false, Ordering::Relaxed);
    sim.tell("mode quiet");
}

/// One bare reader: epoll, recv, rustls, frame lengths.
fn floor(sim: &mut Sim, pace: Pace) -> Histogram<u64> {
    let (on, stop) = (Arc::new(AtomicBool::new(false)), AtomicBool::new(false));
    let (out, seen) = bounded(1);
    let (subscribed, begun) = bounded(1);
    let (access, jobs) = (sim.facts.access(), plan(LAYOUT, &sim.facts.markets));
    let mut probe = Probe::new(Arc::clone(&on), out);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let each = |plain: &[u8]| frames(plain, |frame| probe.message(frame));
            let ready = || subscribed.send(()).unwrap();
            peers::read(&access, &jobs, (FAR, pace.spin), &stop, ready, each);
        });
        begun.recv().unwrap();
        record(sim, pace, &on);
        stop.store(true, Ordering::Relaxed);
    });
    drop(probe);
    seen.recv().unwrap()
}

/// The engine with this delivery, through one stretch of traffic; `ready` gets it before the start.
fn run_engine(
    sim: &mut Sim,
    pace: Pace,
    delivery: Delivery,
    on: &AtomicBool,
    ready: impl FnOnce(&mut Manager),
) {
    let wait = if pace.spin { Wait::Spin } else { Wait::Block };
    let config = engine::settings(&sim.facts, LAYOUT, vec![FAR]).wait(wait).build().unwrap();
    let tickers: Vec<_> = sim.facts.markets.iter().map(|name| name.parse().unwrap()).collect();
    let markets = tickers.len() as u64;
    let mut manager = Manager::with_delivery(config, StaticRegistry::new(tickers), delivery);
    ready(&mut manager);
    manager.start().unwrap();
    engine::until_subscribed(&manager.handle(), LAYOUT.connections() as u64, markets);
    record(sim, pace, on);
    manager.stop(Duration::from_secs(5));
}

/// The engine with a handler on its shard.
fn inline(sim: &mut Sim, pace: Pace) -> Histogram<u64> {
    let on = Arc::new(AtomicBool::new(false));
    let (out, seen) = bounded(1);
    let delivery = Delivery::inline({
        let on = Arc::clone(&on);
        move |_| Probe::new(Arc::clone(&on), out.clone())
    });
    run_engine(sim, pace, delivery, &on, |_| {});
    seen.recv().unwrap()
}

/// The engine with a consumer behind its queue.
fn channel(sim: &mut Sim, pace: Pace, consumer: Consumer) -> Histogram<u64> {
    let on = Arc::new(AtomicBool::new(false));
    let (out, seen) = bounded(1);
    let probe = Probe::new(Arc::clone(&on), out);
    run_engine(sim, pace, Delivery::channel(), &on, |manager| {
        let messages = manager.messages().unwrap();
        std::thread::spawn(move || consume(messages, consumer, probe));
    });
    seen.recv().unwrap()
}

fn consume(mut messages: Messages, consumer: Consumer, mut probe: Probe) {
    peers::pin(consumer.core);
    loop {
        let batch = if consumer.spin { messages.try_recv_batch() } else { messages.recv_batch() };
        match batch {
            Ok(batch) => probe.on_batch(&batch),
            Err(RecvError::Empty) => std::hint::spin_loop(),
            Err(_) => return,
        }
    }
}

/// All clients in turn, `rounds` times: the bare reader, the handler, the consumer if there is one.
fn compare(sim: &mut Sim, pace: Pace, rounds: u64, consumer: Option<Consumer>) -> [Figures; 3] {
    let mut figures = <[Figures; 3]>::default();
    for turn in 1..=rounds {
        let [bare, handler, queued] = &mut figures;
        bare.add(&floor(sim, pace));
        handler.add(&inline(sim, pace));
        if let Some(consumer) = consumer {
            queued.add(&channel(sim, pace, consumer));
        }
        let clients = ["bare", "inline", "channel"].into_iter().zip(&figures);
        let told: Vec<_> = clients
            .filter_map(|(name, figures)| Some((name, figures.rounds.last()?)))
            .map(|(name, [p50, p90, ..])| {
                format!("{name} p50 {:.1} p90 {:.1} us", p50 / 1e3, p90 / 1e3)
            })
            .collect();
        let (rate, wait) = (pace.rate, if pace.spin { "spinning" } else { "blocking" });
        eprintln!("{rate}/s {wait}, round {turn} of {rounds}: {}", told.join(", "));
    }
    figures
}

/// The consumer behind the queue: where there are cores enough, or when asked for.
fn consumer(flags: &Flags) -> Option<Consumer> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores >= CORES_TO_JUDGE {
        Some(Consumer { core: THIRD, spin: true })
    } else if flags.has("--force-channel") {
        eprintln!("the consumer shares the exchange's core: shown, not judged");
        Some(Consumer { core: NEAR, spin: false })
    } else {
        None
    }
}

/// What the channel's figures say; ratios only where it had a core of its own.
fn channel_json(consumer: Option<Consumer>, queued: &Figures, bare: &Figures) -> Option<Value> {
    consumer.map(|Consumer { spin: apart, .. }| queued.json(apart.then_some(bare)))
}

fn main() {
    let flags = Flags::read();
    support::need_two_cores();
    let rounds = flags.number("--rounds", 7);
    let time = Duration::from_millis(flags.number("--millis", 1_000));
    let consumer = consumer(&flags);
    let settings = SimSettings {
        core: NEAR,
        markets: MARKETS,
        packing: "single",
        write_through: true,
        connections: LAYOUT.connections(),
    };
    let mut sim = Sim::start(&peers::executable(), settings);
    let pace = |rate, spin| Pace { rate, spin, time };
    let spinning = compare(&mut sim, pace(RATE, true), rounds, consumer);
    let blocking = compare(&mut sim, pace(RATE, false), rounds, None);
    let mut sweep = Vec::new();
    for rate in SWEEP.into_iter().filter(|_| !flags.has("--no-sweep")) {
        let [bare, ours, _] = compare(&mut sim, pace(rate, true), 1, None);
        sweep.push(json!({
            "rate": rate, "floor_p50_ns": bare.at("p50"), "inline": ours.json(Some(&bare)),
        }));
    }
    drop(sim);
    let hop = inside::hop::measure(rounds);
    draw(&spinning, &blocking, consumer);
    let [floor, inline, queued] = &spinning;
    let quantiles = ["p50_ns", "p90_ns", "p99_ns", "p999_ns", "ratio_p50", "ratio_p90"];
    let channel = channel_json(consumer, queued, floor);
    let line = json!({
        "floor_p50_ns": floor.at("p50"),
        "floor_p90_ns": floor.at("p90"),
        "inline": pick(&inline.json(Some(floor)), &quantiles),
        "hop": pick(&hop, &["p50_ns", "crossbeam_p50_ns", "ratio"]),
        "channel": channel.map(|channel| pick(&channel, &quantiles)),
    });
    let [sleepy_floor, sleepy_inline, _] = &blocking;
    let more = json!({
        "spinning": { "floor": floor.json(None), "inline": inline.json(Some(floor)) },
        "blocking": { "floor": sleepy_floor.json(None),
            "inline": sleepy_inline.json(Some(sleepy_floor)) },
        "hop": hop,
        "sweep": sweep,
        "rounds": rounds,
    });
    support::tell("latency", &flags, &line, more);
}

fn draw(spinning: &[Figures; 3], blocking: &[Figures; 3], consumer: Option<Consumer>) {
    let bar = |label: &str, figures: &Figures| {
        Bar::new(label, figures.at("p50"), figures.at("p90") - figures.at("p50"))
    };
    let mut bars = vec![
        bar("bare reader, spinning", &spinning[0]),
        bar("kalshi-feed, spinning", &spinning[1]),
        bar("bare reader, blocking", &blocking[0]),
        bar("kalshi-feed, blocking", &blocking[1]),
    ];
    if consumer.is_some() {
        bars.push(bar("kalshi-feed, channel", &spinning[2]));
    }
    let title = "Nanoseconds from the exchange's write to the handler, 20,000 messages/s";
    plot::bars("latency", title, "dark: p50, light: up to p90", &bars);
}
