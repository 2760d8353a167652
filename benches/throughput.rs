//! CPU per delivered message over real TLS: the bare floor, kalshi-feed, and clients on the
//! libraries people use, each doing the same work, in interleaved rounds.
//!
//! `cargo bench --bench throughput -- [--messages N] [--rounds N] [--quick] [--json]`; with
//! `--only kalshi_feed` one client alone, for a profiler; with `--policies` the engine alone under
//! each of its policies, beside itself without.

#![allow(
    clippy::as_conversions,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a measurement fails by panicking"
)]

mod support;

use kalshi_feed::{Arbitration, ConfigBuilder, GapPolicy, Overflow, OverflowPolicy};
use peers::{Cores, Outcome, Sim, SimSettings, Task, plan};
use serde_json::{Value, json};
use support::engine::{Run, Taking, engine};
use support::plot::{self, Bar};
use support::{FAR, Flags, NEAR, POOL, Shape, median, pick, round};

/// Markets in all: 20 for each order-book connection.
const MARKETS: usize = 144 * 20;
/// What the line of `--json` holds.
const LINE: [&str; 10] = [
    "floor_ns",
    "kalshi_feed_ns",
    "tokio_tungstenite_ns",
    "tungstenite_mio_ns",
    "fastwebsockets_ns",
    "ratio_floor",
    "ratio_tokio",
    "messages",
    "lost",
    "frames_per_record",
];
/// The clients, by their names in the JSON.
const CLIENTS: [&str; 6] = [
    "floor",
    "kalshi_feed",
    "kalshi_feed_owned",
    "tokio_tungstenite",
    "tungstenite_mio",
    "fastwebsockets",
];

/// The engine under its policies: the first has none, and waits rather than drops.
const POLICIES: [&str; 6] =
    ["off", "drop_newest", "conflate", "resnapshot", "resubscribe", "first_wins"];

/// The settings of a policy.
fn tune(policy: &str) -> fn(ConfigBuilder) -> ConfigBuilder {
    match policy {
        "drop_newest" => |config| config.overflow(Overflow::DropNewest),
        "conflate" => |config| {
            let mut overflow = OverflowPolicy::from(Overflow::Backpressure);
            overflow.ticker = Overflow::ConflateByMarket;
            config.overflow(overflow)
        },
        "resnapshot" => |config| config.gap_policy(GapPolicy::Resnapshot),
        "resubscribe" => |config| config.gap_policy(GapPolicy::Resubscribe),
        "first_wins" => |config| config.arbitration(Arbitration::FirstWins),
        _ => std::convert::identity,
    }
}

/// One setting of packing and cores: all clients in turn, round after round.
struct Series {
    packing: &'static str,
    cores: Cores,
    messages: u64,
    rounds: u64,
    only: Option<String>,
    clients: &'static [&'static str],
}

/// What a series gave, client by client.
struct Figures {
    clients: &'static [&'static str],
    outcomes: Vec<Vec<Outcome>>,
    shape: Shape,
}

impl Figures {
    fn median(&self, name: &str, of: impl Fn(&Outcome) -> f64) -> f64 {
        let at = self.clients.iter().position(|client| *client == name).unwrap();
        median(&self.outcomes[at].iter().map(of).collect::<Vec<_>>())
    }

    fn ns(&self, name: &str) -> f64 {
        self.median(name, Outcome::ns)
    }

    /// The least of all rounds: what other load on the machine disturbs least.
    fn best(&self, name: &str) -> f64 {
        let at = self.clients.iter().position(|client| *client == name).unwrap();
        self.outcomes[at].iter().map(Outcome::ns).fold(f64::NAN, f64::min)
    }

    fn lost(&self) -> u64 {
        self.outcomes.iter().flatten().map(|outcome| outcome.lost).sum()
    }

    fn json(&self) -> Value {
        let mut object = json!({
            "frames_per_record": round(self.shape.frames_per_record, 1),
            "frame_bytes": round(self.shape.frame_bytes, 1),
            "ratio_floor": round(self.ns("kalshi_feed") / self.ns("floor"), 2),
            "ratio_tokio": round(self.ns("kalshi_feed") / self.ns("tokio_tungstenite"), 2),
            "lost": self.lost(),
        });
        // How much faster than the engine the exchange can send: the floor takes what comes.
        let per_second = |name| self.median(name, Outcome::rate);
        object["exchange_headroom"] =
            json!(round(per_second("floor") / per_second("kalshi_feed"), 2));
        for name in CLIENTS {
            object[format!("{name}_ns")] = json!(round(self.ns(name), 1));
            object[format!("{name}_consumer_ns")] =
                json!(round(self.median(name, |o| o.consumer.as_nanos() as f64 / o.messages), 1));
            object[format!("{name}_best_ns")] = json!(round(self.best(name), 1));
            let rate = self.median(name, Outcome::rate);
            object[format!("{name}_per_second")] = json!(rate.round());
        }
        object
    }
}

impl Series {
    fn run(&self, executable: &std::path::Path) -> Figures {
        let settings = SimSettings {
            core: NEAR,
            markets: MARKETS,
            packing: self.packing,
            write_through: false,
            connections: POOL.connections(),
        };
        let mut sim = Sim::start(executable, settings);
        // A short run first: it warms everything up, and tells how long a frame is.
        let before = sim.tell("stats");
        self.client(&mut sim, "kalshi_feed", self.messages / 5, 300.0);
        let frame_bytes = support::shape(&mut sim, before).frame_bytes;
        let mut outcomes = vec![Vec::new(); self.clients.len()];
        let before = sim.tell("stats");
        for turn in 0..self.rounds {
            let wanted = |name: &str| self.only.as_ref().is_none_or(|only| only == name);
            let clients = self.clients.iter().zip(&mut outcomes).filter(|(name, _)| wanted(name));
            for (name, outcomes) in clients {
                let outcome = self.client(&mut sim, name, self.messages, frame_bytes);
                eprintln!(
                    "round {} {name}: {:.0} ns ({:.0} I/O + {:.0} consumer), {:.2} M/s, lost {}",
                    turn + 1,
                    outcome.ns(),
                    outcome.io.as_nanos() as f64 / outcome.messages,
                    outcome.consumer.as_nanos() as f64 / outcome.messages,
                    outcome.rate() / 1e6,
                    outcome.lost
                );
                outcomes.push(outcome);
            }
        }
        Figures { clients: self.clients, outcomes, shape: support::shape(&mut sim, before) }
    }

    fn client(&self, sim: &mut Sim, name: &str, messages: u64, frame_bytes: f64) -> Outcome {
        let facts = sim.facts.clone();
        let (access, jobs) = (facts.access(), plan(POOL, &facts.markets));
        let task = Task { access: &access, jobs: &jobs, cores: self.cores, messages };
        let taking = if name == "kalshi_feed_owned" { Taking::Owned } else { Taking::Lent };
        let (cores, tune) = (self.cores, tune(name));
        let run = Run { layout: POOL, cores, shards: 1, taking, messages, tune };
        let sim = std::cell::RefCell::new(sim);
        let go = || {
            sim.borrow_mut().tell("mode flood");
        };
        let halt = || {
            sim.borrow_mut().tell("mode quiet");
        };
        match name {
            "floor" => peers::floor(&task, frame_bytes, go, halt),
            "tokio_tungstenite" => peers::tokio_tungstenite(&task, go, halt),
            "tungstenite_mio" => peers::tungstenite_mio(&task, go, halt),
            "fastwebsockets" => peers::fastwebsockets(&task, go, halt),
            _ => engine(&facts, &run, go, halt),
        }
    }
}

/// Tells what each policy costs.
fn policies(flags: &Flags, figures: &Figures) {
    let mut all = json!({});
    for name in POLICIES {
        all[format!("{name}_ns")] = json!(round(figures.ns(name), 1));
        let ratio = figures.best(name) / figures.best("off");
        all[format!("{name}_ratio_best")] = json!(round(ratio, 3));
    }
    support::tell("policies", flags, &all, all.clone());
}

fn main() {
    let flags = Flags::read();
    support::need_two_cores();
    peers::raise_file_limit(POOL.connections() + 64);
    let messages = flags.number("--messages", 1_500_000);
    let rounds = flags.number("--rounds", 5);
    let executable = peers::executable();
    let apart = Cores { io: FAR, consumer: NEAR };
    let together = Cores { io: FAR, consumer: FAR };
    let only = flags.text("--only");
    let series = |packing, cores, rounds| {
        let only = only.clone();
        Series { packing, cores, messages, rounds, only, clients: &CLIENTS }
    };
    if flags.has("--policies") {
        let series = Series { clients: &POLICIES, ..series("whole", apart, rounds) };
        return policies(&flags, &series.run(&executable));
    }
    eprintln!("judged: whole frames in 16 KiB records, consumer on the other core");
    let judged = series("whole", apart, rounds).run(&executable);
    let (mut same_core, mut single) = (Value::Null, Value::Null);
    if !flags.has("--quick") {
        eprintln!("consumer on the I/O core");
        same_core = series("whole", together, rounds.min(3)).run(&executable).json();
        eprintln!("one frame per record");
        single = series("single", apart, rounds.min(3)).run(&executable).json();
    }
    let bars: Vec<_> = CLIENTS
        .iter()
        .map(|name| {
            let part = |of: fn(&Outcome) -> std::time::Duration| {
                judged.median(name, |outcome| of(outcome).as_nanos() as f64 / outcome.messages)
            };
            Bar::new(name.replace('_', "-"), part(|o| o.io), part(|o| o.consumer))
        })
        .collect();
    plot::bars(
        "throughput",
        "CPU nanoseconds per delivered message",
        "150 TLS connections, whole frames in 16 KiB records; dark: I/O threads, light: consumer",
        &bars,
    );
    let mut all = judged.json();
    all["messages"] = json!(messages);
    all["rounds"] = json!(rounds);
    all["same_core"] = same_core;
    all["one_frame_per_record"] = single;
    support::tell("throughput", &flags, &pick(&all, &LINE), all.clone());
}
