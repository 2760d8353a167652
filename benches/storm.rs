//! Storms: 100 of 150 connections cut at once, then all of them, with 100,000 markets; all of them
//! with pacing; a thousand cut at random under load. How long until everything streams again, what
//! it cost, and that nothing was lost in silence: the exchange's ledger is settled each time.
//!
//! `cargo bench --bench storm -- [--markets N] [--cuts N] [--seconds N] [--json]`

#![allow(
    clippy::as_conversions,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a measurement fails by panicking, and reads clocks"
)]

mod support;

use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use exchange_sim::Verdict;
use kalshi_feed::{ConnId, Durations};
use peers::{Sim, SimSettings};
use serde_json::{Value, json};
use support::audited::Audited;
use support::plot::{self, Point};
use support::{Flags, NEAR, POOL, pick, round};

/// In the great storms.
const MARKETS: u64 = 100_000;
/// In the others.
const FEWER_MARKETS: u64 = 2_000;
/// Messages a second meanwhile, over all connections.
const RATE: &str = "20000";
/// What is cut at random, and for how long.
const CUTS: u64 = 1_000;
const SECONDS: u64 = 60;
/// Before anything is cut.
const WARM_UP: Duration = Duration::from_secs(5);
/// The window in which attempts are counted.
const WINDOW: Duration = Duration::from_secs(1);
/// What the line of `--json` holds.
const LINE: [&str; 17] = [
    "markets",
    "all_cut_seconds",
    "all_cut_tls_resumed",
    "some_cut_seconds",
    "some_cut_control_us_max",
    "some_cut_spared_lost",
    "storms_unaccounted",
    "paced_seconds",
    "paced_attempts_in_a_second_max",
    "cuts",
    "cuts_unaccounted",
    "rss_mib_before",
    "rss_mib_after",
    "rss_kib_per_second",
    "descriptors_before",
    "descriptors_most",
    "descriptors_after",
];

fn main() {
    let flags = Flags::read();
    support::need_two_cores();
    peers::raise_file_limit(POOL.connections() + 64);
    let markets = flags.number("--markets", MARKETS);
    let cuts = flags.number("--cuts", CUTS);
    let seconds = flags.number("--seconds", SECONDS);
    let executable = peers::executable();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let mut all = json!({ "markets": markets, "load_at_start": load.trim() });
    // Each on a thread of its own, which may then stay on one core.
    let parts: [&(dyn Fn() -> Value + Sync); 3] =
        [&|| storms(&executable, markets), &|| paced(&executable), &|| {
            at_random(&executable, cuts, Duration::from_secs(seconds))
        }];
    for part in parts {
        let part = std::thread::scope(|scope| scope.spawn(part).join().unwrap());
        let Value::Object(part) = part else { panic!("an object") };
        all.as_object_mut().unwrap().extend(part);
    }
    support::tell("storm", &flags, &pick(&all, &LINE), all.clone());
}

fn exchange(executable: &Path, markets: u64, more: &[&str]) -> Sim {
    let setup = SimSettings {
        core: NEAR,
        markets: markets as usize,
        packing: "stream",
        write_through: false,
        connections: POOL.connections(),
    };
    Sim::start_with(executable, setup, &[&["--levels", "1", "--rate", RATE], more].concat())
}

/// Cuts these, and waits until everything streams again; how long that took, and how many markets
/// were confirmed meanwhile.
fn cut(sim: &mut Sim, audited: &mut Audited, conns: &[ConnId]) -> (f64, Vec<Point>) {
    let addresses: Vec<_> = conns.iter().map(|conn| audited.live[conn].2.to_string()).collect();
    audited.downs.clear();
    let mut curve = Vec::new();
    let began = Instant::now();
    sim.tell(&format!("cut_of {}", addresses.join(" ")));
    audited.until("everything is back", |audited| {
        let confirmed = audited.handle.stats().markets_total as f64;
        curve.push(Point { x: began.elapsed().as_secs_f64(), y: confirmed });
        audited.downs.len() >= conns.len() && audited.is_whole()
    });
    (began.elapsed().as_secs_f64(), curve)
}

/// The great storms, with pacing off.
fn storms(executable: &Path, markets: u64) -> Value {
    let mut sim = exchange(executable, markets, &[]);
    let mut audited = Audited::start(&mut sim, |config| config.connect_interval(Duration::ZERO));
    eprintln!("{markets} markets stream");
    audited.pass(WARM_UP);
    let (some, spared): (Vec<_>, Vec<_>) =
        audited.live.keys().copied().partition(|conn| conn.number() % 3 != 0);
    let before = (audited.handle.stats(), audited.missed(spared.iter().copied()));
    let (some_seconds, _) = cut(&mut sim, &mut audited, &some);
    let after = audited.handle.stats();
    eprintln!("{} of {} cut: back after {some_seconds:.2} s", some.len(), POOL.connections());
    let fell = audited.downs.iter().filter(|conn| spared.contains(conn)).count();
    assert_eq!(fell, 0, "who was not cut fell, too");
    audited.pass(WARM_UP);
    let lost = audited.missed(spared.iter().copied()) - before.1;
    let resumed = audited.handle.stats().tls_resumed;
    let all: Vec<_> = audited.live.keys().copied().collect();
    let (all_seconds, curve) = cut(&mut sim, &mut audited, &all);
    eprintln!("all cut: back after {all_seconds:.2} s");
    plot::line("storm", "All 150 cut: confirmed markets over seconds", &curve);
    audited.pass(WARM_UP);
    let last = audited.handle.stats();
    let verdict = audited.settle(&mut sim);
    assert_eq!(lost, 0, "who was not cut lost messages");
    let control = after.control_ns.since(&before.0.control_ns);
    json!({
        "all_cut_seconds": round(all_seconds, 2),
        "all_cut_tls_resumed": last.tls_resumed - resumed,
        "some_cut_seconds": round(some_seconds, 2),
        "some_cut_control_us_max": us(control.quantile(1.0)),
        "some_cut_control_us": spread(&control),
        "some_cut_cycle_us": spread(&after.cycle_ns.since(&before.0.cycle_ns)),
        "some_cut_spared_lost": lost,
        "control_us_max_since_start": us(last.control_ns_max),
        "storms_unaccounted": verdict.unaccounted,
        "storms_ledger": ledger(&verdict),
        "storms_dropped": last.messages_dropped,
    })
}

/// All cut, with the pacing of the defaults: attempts by the connector's clock.
fn paced(executable: &Path) -> Value {
    let mut sim = exchange(executable, FEWER_MARKETS, &[]);
    let mut audited = Audited::start(&mut sim, |config| config);
    audited.pass(WARM_UP);
    let attempts = Attempts::listen();
    let all: Vec<_> = audited.live.keys().copied().collect();
    let (seconds, _) = cut(&mut sim, &mut audited, &all);
    log::set_max_level(log::LevelFilter::Off);
    let times: Vec<Instant> = attempts.try_iter().collect();
    let within = |first: &Instant| {
        let later = times.iter().filter(|time| *time >= first);
        later.take_while(|time| time.saturating_duration_since(*first) <= WINDOW).count()
    };
    let most = times.iter().map(within).max().unwrap_or(0);
    eprintln!("all cut, paced: back after {seconds:.2} s, at most {most} attempts in a second");
    let verdict = audited.settle(&mut sim);
    json!({
        "paced_seconds": round(seconds, 2),
        "paced_attempts": times.len(),
        "paced_attempts_in_a_second_max": most,
        "paced_unaccounted": verdict.unaccounted,
    })
}

/// One after another, drawn from those that are live.
fn at_random(executable: &Path, cuts: u64, time: Duration) -> Value {
    // Something is always on its way, and lost with its connection.
    let mut sim = exchange(executable, FEWER_MARKETS, &["--wire", "latency=5"]);
    let mut audited =
        Audited::start(&mut sim, |config| config.reconnect_max(Duration::from_secs(1)));
    audited.pass(2 * WARM_UP);
    let (rss_before, descriptors_before) = (rss(), descriptors());
    let mut memory = vec![Point { x: 0.0, y: rss_before }];
    let (mut random, mut most) = (fastrand::Rng::with_seed(7), descriptors_before);
    let began = Instant::now();
    for number in 0..cuts {
        let at = began + time.mul_f64(number as f64 / cuts as f64);
        audited
            .until("the next is due", |audited| Instant::now() >= at && !audited.live.is_empty());
        let which = random.usize(..audited.live.len());
        let conn = *audited.live.keys().nth(which).unwrap();
        // Not drawn again before it is back.
        let (.., address) = audited.live.remove(&conn).unwrap();
        sim.tell(&format!("reset_of {address}"));
        let seconds = began.elapsed().as_secs_f64();
        if memory.last().is_some_and(|last| last.x + 1.0 <= seconds) {
            memory.push(Point { x: seconds, y: rss() });
            most = most.max(descriptors());
        }
    }
    let wanted = cuts as usize;
    audited
        .until("everything is back", |audited| audited.downs.len() >= wanted && audited.is_whole());
    audited.until("every descriptor is back", |_| descriptors() <= descriptors_before);
    let (rss_after, descriptors_after) = (rss(), descriptors());
    memory.push(Point { x: began.elapsed().as_secs_f64(), y: rss_after });
    eprintln!("{cuts} cut at random: {rss_before:.1} MiB before, {rss_after:.1} MiB after");
    plot::line("storm_memory", "Cut at random: resident MiB over seconds", &memory);
    let last = audited.handle.stats();
    let verdict = audited.settle(&mut sim);
    json!({
        "cuts": last.reconnects,
        "cuts_unaccounted": verdict.unaccounted,
        "cuts_ledger": ledger(&verdict),
        "cuts_dropped": last.messages_dropped,
        "rss_mib_before": round(rss_before, 1),
        "rss_mib_after": round(rss_after, 1),
        "rss_kib_per_second": round(slope(&memory) * 1_024.0, 1),
        "descriptors_before": descriptors_before,
        "descriptors_most": most,
        "descriptors_after": descriptors_after,
    })
}

/// The attempts to connect, as the connector logs each where it begins it.
struct Attempts(OnceLock<Sender<Instant>>);

static ATTEMPTS: Attempts = Attempts(OnceLock::new());

impl Attempts {
    fn listen() -> Receiver<Instant> {
        let (sender, receiver) = bounded(100_000);
        ATTEMPTS.0.set(sender).expect("once");
        log::set_logger(&ATTEMPTS).unwrap();
        log::set_max_level(log::LevelFilter::Debug);
        receiver
    }
}

impl log::Log for Attempts {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target() == "kalshi_feed::connector"
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) && record.args().to_string().ends_with(" begins") {
            let sender = self.0.get().expect("set before");
            sender.try_send(Instant::now()).expect("room for every attempt");
        }
    }

    fn flush(&self) {}
}

fn us(ns: u64) -> f64 {
    round(ns as f64 / 1e3, 1)
}

/// Upper bounds, in microseconds, known to a quarter of a power of two.
fn spread(durations: &Durations) -> Value {
    let at = |part| us(durations.quantile(part));
    json!({ "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": at(1.0) })
}

fn ledger(verdict: &Verdict) -> Value {
    serde_json::to_value(verdict).unwrap()
}

/// Resident MiB of this process.
fn rss() -> f64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: f64 = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4_096.0 / 1_048_576.0
}

/// Open descriptors of this process, the one that lists them included.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Of the straight line that lies nearest to these points.
fn slope(points: &[Point]) -> f64 {
    let count = points.len() as f64;
    let mean = |of: fn(&Point) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.x), mean(|point| point.y));
    let both: f64 = points.iter().map(|point| (point.x - x) * (point.y - y)).sum();
    both / points.iter().map(|point| (point.x - x).powi(2)).sum::<f64>().max(1e-9)
}
