//! The control plane at full size: a million markets from change to confirmed, a storm in which
//! 100 of 150 connections fall at once, and markets that settle. What each costs in memory, CPU and
//! time, against an exchange in a process of its own.
//!
//! `cargo bench --bench control -- [--markets N] [--json]`

#![allow(
    clippy::as_conversions,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a measurement fails by panicking, and reads clocks"
)]

mod support;

use std::time::{Duration, Instant};

use kalshi_feed::{
    ChannelRegistry, Durations, Handle, Manager, MarketChange, MarketStatus, Messages,
    RegistryHost, Ticker,
};
use peers::{Sim, SimSettings, pin};
use serde_json::{Value, json};
use support::engine::{settings, threads_cpu};
use support::plot::{self, Point};
use support::{FAR, Flags, NEAR, POOL, round};

/// 144 connections of 7,500.
const MARKETS: u64 = 1_080_000;
/// Added last, with the cost of a cycle measured apart.
const ADDED: usize = 100_000;
/// Connections that fall at once.
const CUT: u64 = 100;
/// Markets that settle.
const SETTLED: usize = 100_000;
/// Changes the registry may be ahead of the engine.
const CHANGES: usize = 65_536;
/// How often the confirmed are counted.
const LOOK: Duration = Duration::from_millis(20);
/// Longest wait for any step.
const PATIENCE: Duration = Duration::from_secs(300);

/// What a phase took.
struct Phase {
    seconds: f64,
    /// CPU of the engine's threads for each market.
    cpu_us: f64,
    /// Confirmed markets over time.
    curve: Vec<Point>,
}

/// The engine under measurement.
struct Bench {
    handle: Handle,
    registry: RegistryHost,
}

impl Bench {
    /// Tells of a change of each of these markets from a thread of its own, one by one, so that
    /// none of the memory is the bench's; and waits until `wanted` markets are confirmed.
    fn run(&self, tickers: &[String], change: fn(Ticker) -> MarketChange, wanted: u64) -> Phase {
        let (count, cpu, began) = (tickers.len(), threads_cpu(), Instant::now());
        let curve = std::thread::scope(|scope| {
            scope.spawn(|| {
                pin(NEAR);
                for ticker in tickers {
                    let change = change(ticker.parse().unwrap());
                    self.registry.send(change).expect("the engine runs");
                }
            });
            self.until(began, wanted)
        });
        let cpu = threads_cpu() - cpu;
        Phase {
            seconds: curve.last().map_or(0.0, |point| point.x),
            cpu_us: cpu.as_secs_f64() * 1e6 / count as f64,
            curve,
        }
    }

    fn until(&self, began: Instant, wanted: u64) -> Vec<Point> {
        let mut curve = Vec::new();
        loop {
            let confirmed = self.handle.stats().markets_total;
            curve.push(Point { x: began.elapsed().as_secs_f64(), y: confirmed as f64 });
            if confirmed == wanted {
                return curve;
            }
            assert!(began.elapsed() < PATIENCE, "{:#?}", self.handle.stats());
            std::thread::sleep(LOOK);
        }
    }

    fn all_live(&self) {
        let began = Instant::now();
        while self.handle.stats().connections_healthy < POOL.connections() as u64 {
            assert!(began.elapsed() < PATIENCE, "{:#?}", self.handle.stats());
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until nothing waits to be taken any more.
    fn drained(&self) {
        let mut last = u64::MAX;
        loop {
            let stats = self.handle.stats();
            if stats.messages_received == last
                && stats.messages_consumed == stats.messages_forwarded
            {
                return;
            }
            last = stats.messages_received;
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

fn main() {
    let flags = Flags::read();
    support::need_two_cores();
    let markets = flags.number("--markets", MARKETS);
    let setup = SimSettings {
        core: NEAR,
        markets: markets as usize,
        packing: "stream",
        write_through: false,
        connections: POOL.connections(),
    };
    let mut sim = Sim::start_with(&peers::executable(), setup, &["--levels", "1"]);
    let facts = sim.facts.clone();
    let config = settings(&facts, POOL, vec![FAR]).connect_interval(Duration::ZERO);
    let (registry, host) = ChannelRegistry::new([], CHANGES, CHANGES);
    let mut manager = Manager::new(config.build().unwrap(), registry);
    let messages = manager.messages().unwrap();
    let consumer = std::thread::spawn(move || consume(messages));
    manager.start().unwrap();
    let bench = Bench { handle: manager.handle(), registry: host };
    bench.all_live();
    let (object, curve) = measure(&bench, &mut sim, &facts.markets);
    plot::line("control", "Confirmed markets over seconds", &curve);
    let report = manager.stop(Duration::from_secs(5));
    assert!(report.stuck.is_empty() && report.panicked.is_empty(), "{report:?}");
    consumer.join().unwrap();
    if flags.has("--json") {
        println!("{object}");
    } else {
        println!("{object:#}");
    }
}

/// All phases, one after another: the figures, and the confirmed markets over time.
fn measure(bench: &Bench, sim: &mut Sim, tickers: &[String]) -> (Value, Vec<Point>) {
    let markets = tickers.len() as u64;
    let created = |ticker| MarketChange::created(ticker, MarketStatus::Active);
    let (first, last) = tickers.split_at(tickers.len().saturating_sub(ADDED));
    let before = rss();
    let filling = bench.run(first, created, first.len() as u64);
    eprintln!("{} markets confirmed after {:.2} s", first.len(), filling.seconds);
    let before_adding = bench.handle.stats();
    let adding = bench.run(last, created, markets);
    eprintln!("{} more after {:.2} s", last.len(), adding.seconds);
    let after_adding = bench.handle.stats();
    bench.drained();
    let bytes = rss().saturating_sub(before) as f64 / markets as f64;
    let (lost, back) = storm(bench, sim, markets);
    eprintln!("{lost} lost and back after {back:.2} s");
    let gone = &tickers[..SETTLED.min(tickers.len())];
    let settling = bench.run(gone, MarketChange::settled, markets - gone.len() as u64);
    eprintln!("{} settled after {:.2} s", gone.len(), settling.seconds);
    let per = |phase: &Phase, count: usize| phase.cpu_us * count as f64;
    let cpu = (per(&filling, first.len()) + per(&adding, last.len())) / markets as f64;
    let object = json!({
        "markets": markets,
        "bytes_per_market": round(bytes, 1),
        "cpu_us_per_market": round(cpu, 2),
        "seconds_to_all_confirmed": round(filling.seconds + adding.seconds, 2),
        "storm_markets": lost,
        "storm_seconds": round(back, 2),
        "unsubscribe_us": round(settling.cpu_us, 2),
        "control_us": spread(&after_adding.control_ns.since(&before_adding.control_ns)),
        "cycle_us": spread(&after_adding.cycle_ns.since(&before_adding.cycle_ns)),
        "subscribe_errors": after_adding.subscribe_errors,
    });
    let start = filling.curve.last().map_or(0.0, |point| point.x);
    let more = adding.curve.iter().map(|point| Point { x: point.x + start, y: point.y });
    (object, filling.curve.iter().copied().chain(more).collect())
}

/// Cuts connections; how many markets that took along, and how long until all were back.
fn storm(bench: &Bench, sim: &mut Sim, markets: u64) -> (u64, f64) {
    let began = Instant::now();
    sim.tell(&format!("cut {CUT}"));
    let mut least = markets;
    loop {
        let confirmed = bench.handle.stats().markets_total;
        least = least.min(confirmed);
        if least < markets && confirmed == markets {
            return (markets - least, began.elapsed().as_secs_f64());
        }
        assert!(began.elapsed() < PATIENCE, "{:#?}", bench.handle.stats());
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn consume(mut messages: Messages) -> u64 {
    pin(NEAR);
    let mut count = 0;
    while let Ok(batch) = messages.recv_batch() {
        count += batch.len() as u64;
    }
    count
}

/// Upper bounds, in microseconds, known to a quarter of a power of two.
fn spread(durations: &Durations) -> serde_json::Value {
    let us = |part| round(durations.quantile(part) as f64 / 1e3, 1);
    json!({ "p50": us(0.5), "p90": us(0.9), "p99": us(0.99), "max": us(1.0) })
}

/// Resident bytes of this process.
fn rss() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4_096
}
