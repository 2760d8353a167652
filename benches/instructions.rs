//! Instructions a message costs on the pure path (plaintext in, lent batch out), counted by
//! callgrind and held against `benches/instructions.json`: a guard that needs no quiet machine. It
//! runs itself under valgrind over two numbers of messages; the difference has no start-up in it.
//!
//! `cargo bench --bench instructions`            fails when the path costs over 3 % more
//! `cargo bench --bench instructions -- --renew` writes what it costs now

#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    clippy::as_conversions,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::wrong_self_convention,
    reason = "a measurement fails by panicking, and uses a part of the engine's parts"
)]

mod inside {
    //! The engine's own parts; see `parts.in` and `link.in`.
    pub(crate) mod stages;
}
include!("inside/parts.in");
include!("inside/link.in");
mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use serde::{Deserialize, Serialize};

use crate::inside::stages::{MESSAGES_MAX, Stage};
use crate::support::plot::{self, Bar};
use crate::support::{Flags, round};

/// The path may cost this much more than the baseline says.
const TOLERANCE: f64 = 0.03;
const MESSAGES_FEW: usize = MESSAGES_MAX / 4;
const RENEW: &str = "cargo bench --bench instructions -- --renew";

/// Instructions a message by stage, and the compiler that made them.
#[derive(Deserialize, Serialize)]
struct Baseline {
    rustc: String,
    host: String,
    instructions_per_message: BTreeMap<String, f64>,
}

impl Baseline {
    fn path() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.json")
    }

    fn read() -> Option<Self> {
        let text = std::fs::read_to_string(Self::path()).ok()?;
        Some(serde_json::from_str(&text).expect("the baseline is what --renew wrote"))
    }

    /// What this program costs now.
    fn measure() -> Self {
        let count = |stage: Stage| (stage.name().to_owned(), per_message(stage));
        let (rustc, host) = compiler();
        let instructions_per_message = Stage::ALL.into_iter().map(count).collect();
        Self { rustc, host, instructions_per_message }
    }

    fn at(&self, stage: Stage) -> Option<f64> {
        self.instructions_per_message.get(stage.name()).copied()
    }

    fn write(&self) {
        let text = serde_json::to_string_pretty(self).unwrap() + "\n";
        std::fs::write(Self::path(), text).expect("the baseline can be written");
        println!("written: {}", Self::path().display());
    }
}

/// The compiler this was built by: cargo's, told on its own.
fn compiler() -> (String, String) {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output().expect("rustc tells its version");
    let text = String::from_utf8(output.stdout).unwrap();
    let host = text.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    (text.lines().next().unwrap().to_owned(), host.to_owned())
}

/// What each further message costs.
fn per_message(stage: Stage) -> f64 {
    let few = collect(stage, MESSAGES_FEW);
    let many = collect(stage, MESSAGES_MAX);
    round((many - few) / (MESSAGES_MAX - MESSAGES_FEW) as f64, 2)
}

/// Runs this program over so many messages under callgrind, which says how many instructions.
fn collect(stage: Stage, messages: usize) -> f64 {
    let folder = peers::target_dir().join("bench");
    std::fs::create_dir_all(&folder).unwrap();
    let out = folder.join(format!("callgrind.{}.out", stage.name()));
    let output = Command::new("valgrind")
        .arg("--tool=callgrind")
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe().unwrap())
        .args(["--run", stage.name(), "--messages", &messages.to_string()])
        // Valgrind counts each turn of a `rep movsb`, which the processor does by the cache line.
        .env("GLIBC_TUNABLES", "glibc.cpu.hwcaps=-ERMS,-FSRM")
        .output()
        .expect("valgrind is installed (apt-get install valgrind)");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {told}", stage.name());
    let collected = told.lines().find_map(|line| line.split("Collected : ").nth(1));
    collected.and_then(|count| count.trim().parse().ok()).unwrap_or_else(|| panic!("{told}"))
}

/// Shows the costs beside the baseline's, and says whether it stands.
fn judge(now: &Baseline, then: Option<&Baseline>) -> ExitCode {
    println!("{:<12} {:>10} {:>10} {:>9}", "", "now", "baseline", "change");
    let (mut worse, mut better) = (false, false);
    for stage in Stage::ALL {
        let new = now.at(stage).unwrap();
        let old = then.and_then(|then| then.at(stage)).unwrap_or(f64::NAN);
        let change = new / old - 1.0;
        println!("{:<12} {new:>10.2} {old:>10.2} {:>+8.2}%", stage.name(), change * 100.0);
        worse |= stage.is_path() && change > TOLERANCE;
        better |= stage.is_path() && change < -TOLERANCE;
    }
    let Some(then) = then else {
        println!("there is no baseline; to write one: {RENEW}");
        return ExitCode::FAILURE;
    };
    if (&now.rustc, &now.host) != (&then.rustc, &then.host) {
        println!("not judged: the baseline is of {} on {},", then.rustc, then.host);
        println!("this is {} on {}; to renew it: {RENEW}", now.rustc, now.host);
        return ExitCode::SUCCESS;
    }
    if worse {
        println!("the path costs over {:.0} % more instructions a message", TOLERANCE * 100.0);
        println!("than the baseline; if that is the price of something: {RENEW}");
        return ExitCode::FAILURE;
    }
    if better {
        println!("the path got cheaper; to hold the gain: {RENEW}");
    }
    ExitCode::SUCCESS
}

fn draw(now: &Baseline) {
    let bar = |stage: Stage| Bar::new(stage.name(), now.at(stage).unwrap(), 0.0);
    let note = "packed and single: the whole path, 60 messages a read and one; below, stages alone";
    plot::bars("instructions", "Instructions per message", note, &Stage::ALL.map(bar));
}

fn main() -> ExitCode {
    let flags = Flags::read();
    if let Some(name) = flags.text("--run") {
        let stage = Stage::ALL.into_iter().find(|stage| stage.name() == name).unwrap();
        stage.run(flags.number("--messages", 0) as usize);
        return ExitCode::SUCCESS;
    }
    let now = Baseline::measure();
    draw(&now);
    let verdict = judge(&now, Baseline::read().as_ref());
    if flags.has("--renew") {
        now.write();
        return ExitCode::SUCCESS;
    }
    verdict
}
