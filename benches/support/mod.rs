//! What the benches share: flags, medians, the JSON line, the engine as one more client. It
//! measures nothing itself.

#![allow(
    dead_code,
    clippy::as_conversions,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "each bench uses a part; a measurement fails by panicking, and reads clocks"
)]

pub(crate) mod audited;
pub(crate) mod engine;
pub(crate) mod plot;

use peers::{Layout, Sim};
use serde_json::Value;

/// The core of the exchange and of the consumers.
pub(crate) const NEAR: usize = 0;
/// The core of the I/O threads.
pub(crate) const FAR: usize = 1;
/// The default pool.
pub(crate) const POOL: Layout = Layout { ticker: 2, trade: 2, lifecycle: 2, orderbook: 144 };

/// The command line: what cargo adds is ignored.
pub(crate) struct Flags {
    words: Vec<String>,
}

impl Flags {
    pub(crate) fn read() -> Self {
        Self { words: std::env::args().skip(1).collect() }
    }

    /// Whether a flag is there.
    pub(crate) fn has(&self, flag: &str) -> bool {
        self.words.iter().any(|word| word == flag)
    }

    /// The word after a flag.
    pub(crate) fn text(&self, flag: &str) -> Option<String> {
        let at = self.words.iter().position(|word| word == flag)?;
        Some(self.words.get(at + 1).cloned().unwrap_or_default())
    }

    /// The number after a flag.
    pub(crate) fn number(&self, flag: &str, default: u64) -> u64 {
        self.text(flag).map_or(default, |word| {
            word.replace('_', "")
                .parse()
                .unwrap_or_else(|_| panic!("{flag} wants a number, not {word}"))
        })
    }
}

/// Ends with a sentence where there is only one core.
pub(crate) fn need_two_cores() {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    assert!(cores >= 2, "these figures need two cores, and there is {cores}");
}

/// The middle value; of an even number of them, the mean of the two.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// One decimal is all these figures are worth; two for ratios.
pub(crate) fn round(value: f64, decimals: i32) -> f64 {
    let scale = 10_f64.powi(decimals);
    (value * scale).round() / scale
}

/// These members of an object, where it has them.
pub(crate) fn pick(object: &Value, names: &[&str]) -> Value {
    let found = names.iter().filter_map(|&name| Some((name.to_owned(), object.get(name)?.clone())));
    Value::Object(found.collect())
}

/// Ends a bench: `line` and all there is to know beside it go to `target/bench/<name>.json`; the
/// last line of stdout is `line` when asked for by `--json`, or else all of it, to read.
pub(crate) fn tell(name: &str, flags: &Flags, line: &Value, more: Value) {
    let mut all = line.clone();
    let Value::Object(more) = more else { panic!("an object: {more}") };
    for (name, value) in more {
        all[name] = value;
    }
    let path = peers::target_dir().join("bench").join(format!("{name}.json"));
    std::fs::write(&path, format!("{all:#}\n")).unwrap();
    eprintln!("figures: {}", path.display());
    if flags.has("--json") { println!("{line}") } else { println!("{all:#}") }
}

/// Bytes a frame has on the wire, header included, and frames a TLS record holds: from what the
/// exchange counted between two moments.
pub(crate) struct Shape {
    pub(crate) frame_bytes: f64,
    pub(crate) frames_per_record: f64,
}

/// What the exchange has sent since `before`, on average.
pub(crate) fn shape(sim: &mut Sim, before: peers::Totals) -> Shape {
    let after = sim.tell("stats");
    let frames = (after.frames - before.frames) as f64;
    Shape {
        frame_bytes: (after.bytes - before.bytes) as f64 / frames,
        frames_per_record: frames / (after.records - before.records) as f64,
    }
}
