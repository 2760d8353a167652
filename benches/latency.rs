//! Time from the exchange's write to the handler, engine and bare reader in turn; and, apart, the
//! hop of one message through the engine's queue beside bare crossbeam. Paced by an exchange that
//! sleeps between ticks and writes each message as it makes it.
//!
//! `cargo bench --bench latency -- [--rounds N] [--millis N] [--no-sweep] [--json]`

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
use kalshi_feed::{Batch, Delivery, Handler, Manager, StaticRegistry, Wait};
use peers::{Layout, Sim, SimSettings, age, plan};
use serde_json::{Value, json};
use support::plot::{self, Bar};
use support::{FAR, Flags, NEAR, engine, median, round};

/// Order books only: their deltas carry the time in microseconds.
const LAYOUT: Layout = Layout { ticker: 0, trade: 0, lifecycle: 0, orderbook: 150 };
const MARKETS: usize = 150 * 20;
const RATE: u64 = 20_000;
const SWEEP: [u64; 6] = [1_000, 5_000, 20_000, 50_000, 100_000, 200_000];
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

    fn json(&self, beside: &Self) -> Value {
        let mut object = json!({});
        for (name, _) in QUANTILES {
            object[format!("{name}_ns")] = json!(round(self.at(name), 0));
        }
        for name in ["p50", "p90"] {
            object[format!("ratio_{name}")] = json!(round(self.at(name) / beside.at(name), 2));
        }
        object
    }
}

/// Lets the exchange send for a while and records all but the beginning.
fn record(sim: &mut Sim, rate: u64, time: Duration, on: &AtomicBool) {
    sim.tell(&format!("rate {rate}"));
    sim.tell("mode paced");
    std::thread::sleep(time / 5);
    on.store(true, Ordering::Relaxed);
    std::thread::sleep(time);
    on.store(false, Ordering::Relaxed);
    sim.tell("mode quiet");
}

/// One bare reader: epoll, recv, rustls, frame lengths.
fn floor(sim: &mut Sim, rate: u64, time: Duration, spin: bool) -> Histogram<u64> {
    let (on, stop) = (Arc::new(AtomicBool::new(false)), AtomicBool::new(false));
    let (out, seen) = bounded(1);
    let (access, jobs) = (sim.facts.access(), plan(LAYOUT, &sim.facts.markets));
    let mut probe = Probe::new(Arc::clone(&on), out);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let each = |plain: &[u8]| frames(plain, |frame| probe.message(frame));
            peers::read(&access, &jobs, FAR, spin, &stop, each);
        });
        std::thread::sleep(Duration::from_millis(500));
        record(sim, rate, time, &on);
        stop.store(true, Ordering::Relaxed);
    });
    drop(probe);
    seen.recv().unwrap()
}

/// The engine with a handler on its shard.
fn inline(sim: &mut Sim, rate: u64, time: Duration, spin: bool) -> Histogram<u64> {
    let on = Arc::new(AtomicBool::new(false));
    let (out, seen) = bounded(1);
    let wait = if spin { Wait::Spin } else { Wait::Block };
    let config = engine::settings(&sim.facts, LAYOUT, vec![FAR]).wait(wait).build().unwrap();
    let tickers: Vec<_> = sim.facts.markets.iter().map(|name| name.parse().unwrap()).collect();
    let delivery = Delivery::inline({
        let on = Arc::clone(&on);
        move |_| Probe::new(Arc::clone(&on), out.clone())
    });
    let markets = tickers.len() as u64;
    let mut manager = Manager::with_delivery(config, StaticRegistry::new(tickers), delivery);
    manager.start().unwrap();
    engine::until_subscribed(&manager.handle(), LAYOUT.connections() as u64, markets);
    record(sim, rate, time, &on);
    manager.stop(Duration::from_secs(5));
    seen.recv().unwrap()
}

/// Both clients in turn, `rounds` times.
fn pair(sim: &mut Sim, rate: u64, time: Duration, spin: bool, rounds: u64) -> (Figures, Figures) {
    let (mut bare, mut ours) = (Figures::default(), Figures::default());
    for _ in 0..rounds {
        bare.add(&floor(sim, rate, time, spin));
        ours.add(&inline(sim, rate, time, spin));
        println!(
            "{rate}/s {}: bare p50 {:.1} us, engine p50 {:.1} us",
            if spin { "spinning" } else { "blocking" },
            bare.rounds.last().unwrap()[0] / 1e3,
            ours.rounds.last().unwrap()[0] / 1e3
        );
    }
    (bare, ours)
}

fn main() {
    let flags = Flags::read();
    support::need_two_cores();
    let rounds = flags.number("--rounds", 7);
    let time = Duration::from_millis(flags.number("--millis", 1_000));
    let settings = SimSettings {
        core: NEAR,
        markets: MARKETS,
        packing: "single",
        write_through: true,
        connections: LAYOUT.connections(),
    };
    let mut sim = Sim::start(&peers::executable(), settings);
    let (floor, inline) = pair(&mut sim, RATE, time, true, rounds);
    let (sleepy_floor, sleepy_inline) = pair(&mut sim, RATE, time, false, rounds);
    let mut sweep = Vec::new();
    for rate in SWEEP.into_iter().filter(|_| !flags.has("--no-sweep")) {
        let (bare, ours) = pair(&mut sim, rate, time, true, 1);
        sweep.push(json!({
            "rate": rate, "floor_p50_ns": bare.at("p50"), "inline": ours.json(&bare),
        }));
    }
    drop(sim);
    let hop = inside::hop::measure(rounds);
    let bar = |label: &str, figures: &Figures| {
        Bar::new(label, figures.at("p50"), figures.at("p90") - figures.at("p50"))
    };
    plot::bars(
        "latency",
        "Nanoseconds from the exchange's write to the handler, 20,000 messages/s",
        "dark: p50, light: up to p90",
        &[
            bar("bare reader, spinning", &floor),
            bar("kalshi-feed, spinning", &inline),
            bar("bare reader, blocking", &sleepy_floor),
            bar("kalshi-feed, blocking", &sleepy_inline),
        ],
    );
    let object = json!({
        "floor_p50_ns": floor.at("p50"),
        "floor_p90_ns": floor.at("p90"),
        "inline": inline.json(&floor),
        "blocking": { "floor_p50_ns": sleepy_floor.at("p50"),
            "floor_p90_ns": sleepy_floor.at("p90"), "inline": sleepy_inline.json(&sleepy_floor) },
        "hop": hop,
        "channel": Value::Null,
        "sweep": sweep,
        "rounds": rounds,
    });
    if flags.has("--json") {
        println!("{object}");
    } else {
        println!("{object:#}");
    }
}
