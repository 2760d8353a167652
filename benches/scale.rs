//! What a message costs as connections grow: the same total of messages of the same kind over 10,
//! 150, 500 and 1,500 order-book connections, and over 150 with 1, 2 and 4 shards.
//!
//! `cargo bench --bench scale -- [--messages N] [--rounds N] [--json]`

#![allow(
    clippy::as_conversions,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a measurement fails by panicking"
)]

mod support;

use peers::{Cores, Layout, Outcome, Sim, SimSettings, Task, plan};
use serde_json::json;
use support::engine::{Run, Taking, engine};
use support::plot::{self, Bar};
use support::{FAR, Flags, NEAR, median, pick, round};

/// Divisible by every number of connections but one, and two markets each for the most.
const MARKETS: usize = 3_000;
/// Connections and shards of each measurement.
const POINTS: [(u16, usize); 6] = [(10, 1), (150, 1), (500, 1), (1_500, 1), (150, 2), (150, 4)];
/// Fewer would leave the sockets' buffers no time to fill.
const MESSAGES: u64 = 1_500_000;

struct Point {
    connections: u16,
    shards: usize,
    engine: Vec<f64>,
    floor: Vec<f64>,
}

impl Point {
    fn label(&self) -> String {
        let plural = if self.shards == 1 { "" } else { "s" };
        format!("{} connections, {} shard{plural}", self.connections, self.shards)
    }

    /// One run of the engine, and beside it one of the floor.
    fn measure(&mut self, sim: &mut Sim, messages: u64, frame_bytes: f64) {
        let layout = Layout { ticker: 0, trade: 0, lifecycle: 0, orderbook: self.connections };
        let cores = Cores { io: FAR, consumer: NEAR };
        let facts = sim.facts.clone();
        let sim = std::cell::RefCell::new(sim);
        let go = || {
            sim.borrow_mut().tell("mode flood");
        };
        let halt = || {
            sim.borrow_mut().tell("mode quiet");
        };
        let (access, jobs) = (facts.access(), plan(layout, &facts.markets));
        let task = Task { access: &access, jobs: &jobs, cores, messages };
        let floor = peers::floor(&task, frame_bytes, go, halt);
        self.floor.push(floor.ns());
        let (shards, taking, tune) = (self.shards, Taking::Lent, std::convert::identity);
        let run = Run { layout, cores, shards, taking, messages, tune };
        let Outcome { lost, .. } = {
            let outcome = engine(&facts, &run, go, halt);
            self.engine.push(outcome.ns());
            eprintln!(
                "{}: {:.0} ns, floor {:.0} ns, {:.2} M/s",
                self.label(),
                outcome.ns(),
                floor.ns(),
                outcome.rate() / 1e6
            );
            outcome
        };
        assert_eq!(lost, 0, "messages were lost");
    }
}

fn main() {
    let flags = Flags::read();
    support::need_two_cores();
    let most = POINTS.iter().map(|point| usize::from(point.0)).max().unwrap();
    peers::raise_file_limit(most + 64);
    let messages = flags.number("--messages", MESSAGES);
    let rounds = flags.number("--rounds", 5);
    let settings = SimSettings {
        core: NEAR,
        markets: MARKETS,
        packing: "whole",
        write_through: false,
        connections: most,
    };
    let mut sim = Sim::start(&peers::executable(), settings);
    let mut points: Vec<_> = POINTS
        .iter()
        .map(|&(connections, shards)| {
            let (engine, floor) = (Vec::new(), Vec::new());
            Point { connections, shards, engine, floor }
        })
        .collect();
    let before = sim.tell("stats");
    let mut warm_up = Point { connections: 10, shards: 1, engine: vec![], floor: vec![] };
    warm_up.measure(&mut sim, messages / 5, 270.0);
    let frame_bytes = support::shape(&mut sim, before).frame_bytes;
    for _ in 0..rounds {
        for point in &mut points {
            point.measure(&mut sim, messages, frame_bytes);
        }
    }
    report(&flags, &points, messages);
}

fn report(flags: &Flags, points: &[Point], messages: u64) {
    let bars: Vec<_> =
        points.iter().map(|point| Bar::new(point.label(), median(&point.engine), 0.0)).collect();
    plot::bars(
        "scale",
        "CPU nanoseconds per delivered message",
        "kalshi-feed, all threads and the consumer; the same total of messages at every point",
        &bars,
    );
    let at = |connections: u16, shards: usize| {
        points.iter().find(|point| (point.connections, point.shards) == (connections, shards))
    };
    let ns = |connections, shards| median(&at(connections, shards).unwrap().engine);
    let mut all = json!({
        "ratio_1500_150": round(ns(1_500, 1) / ns(150, 1), 2),
        "messages": messages,
    });
    for point in points {
        let (engine, floor) = (median(&point.engine), median(&point.floor));
        let at = match point.shards {
            1 => point.connections.to_string(),
            shards => format!("{}_on_{shards}_shards", point.connections),
        };
        all["ns_at"][&at] = json!(round(engine, 1));
        all["floor_ns_at"][&at] = json!(round(floor, 1));
    }
    support::tell("scale", flags, &pick(&all, &["ns_at", "ratio_1500_150"]), all.clone());
}
