//! The program as its users run it: exit codes, sentences, the summary, and the lines it writes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail by panicking, and helpers outside #[test] functions are tests too"
)]

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use exchange_sim::{Exchange, ExchangeConfig};
use serde_json::Value;

const MARKETS: usize = 200;

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kalshi-feed"));
    command
        .env_remove("KALSHI_KEY_ID")
        .env_remove("KALSHI_KEY_FILE")
        .env_remove("RUST_LOG")
        // Failing fast is what these tests are about.
        .env("WS_RECONNECT_INITIAL", "10ms")
        .env("WS_RECONNECT_MAX", "50ms")
        .stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    program().args(args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn last_line(output: &[u8]) -> Value {
    let text = std::str::from_utf8(output).unwrap();
    serde_json::from_str(text.lines().last().expect("no summary")).unwrap()
}

fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no count"))
}

/// A directory of this test alone.
fn directory(test: &str) -> PathBuf {
    let path =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-{}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// An exchange, and what a client needs to know of it, as files.
struct Venue {
    exchange: Exchange,
    directory: PathBuf,
}

impl Venue {
    fn open(test: &str, rate: u64) -> Self {
        let exchange = Exchange::start(ExchangeConfig {
            markets: MARKETS,
            rate_per_second: rate,
            ..ExchangeConfig::default()
        })
        .unwrap();
        let directory = directory(test);
        let venue = Self { exchange, directory };
        venue.write("ca.pem", venue.exchange.ca_pem());
        venue.write("key.pem", venue.exchange.key_pem());
        venue.write("markets.txt", &venue.exchange.active_markets().join("\n"));
        venue
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.directory.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).to_str().unwrap().to_owned()
    }

    /// Arguments for this exchange.
    fn args(&self, job: &str) -> Vec<String> {
        let mut args = vec![
            job.to_owned(),
            "--url".into(),
            self.exchange.url(),
            "--ca-file".into(),
            self.path("ca.pem"),
            "--key-id".into(),
            self.exchange.key_id().to_owned(),
            "--key-file".into(),
            self.path("key.pem"),
        ];
        if job == "run" {
            args.extend(["--markets-file".into(), self.path("markets.txt")]);
        }
        args
    }

    fn command(&self, job: &str, more: &[&str]) -> Command {
        let mut command = program();
        command.args(self.args(job)).args(more);
        command
    }

    fn run(&self, job: &str, more: &[&str]) -> Output {
        self.command(job, more).output().unwrap()
    }
}

impl Drop for Venue {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.directory).unwrap_or_default();
    }
}

/// Ends a program that a failing test would leave behind.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().unwrap_or_default();
        self.0.wait().map(drop).unwrap_or_default();
    }
}

#[test]
fn a_demo_does_its_job_and_says_so() {
    let output = run(&["demo", "--duration", "3s", "--markets", "200", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let summary = last_line(&output.stdout);
    assert_eq!(summary["connections_total"], 150);
    assert_eq!(summary["connections_healthy"], 150);
    assert_eq!(summary["markets_total"], 200);
    assert_eq!(summary["ledger"]["unaccounted"], 0);
    assert_eq!(summary["mode"], "paced");
    assert_eq!(summary["rate"], 20_000);
    let parts =
        ["messages_forwarded", "messages_dropped", "lifecycle_forwarded", "lifecycle_discarded"];
    let sum: u64 = parts.iter().map(|&key| count(&summary[key])).sum();
    assert_eq!(count(&summary["messages_received"]), sum);
    assert_eq!(summary["messages_consumed"], summary["messages_forwarded"]);
    assert_eq!(summary["ledger"]["covered"], summary["messages_dropped"]);
    assert!(count(&summary["wire_latency_ns"]["p50"]) > 0);
    assert!(count(&summary["latency_ns"]["p99"]) >= count(&summary["latency_ns"]["p50"]));
}

/// The cores each thread with this name of the process may run on, and the one it runs on.
fn threads(process: u32, name: &str) -> Vec<(String, String)> {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{process}/task")) else { return Vec::new() };
    let of = |task: PathBuf| {
        let status = std::fs::read_to_string(task.join("status")).ok()?;
        let field = |key: &str| status.lines().find_map(|line| line.strip_prefix(key));
        let allowed = field("Cpus_allowed_list:\t").filter(|_| field("Name:\t") == Some(name))?;
        // proc(5): the 39th field of stat; the 2nd, in brackets, may hold spaces.
        let stat = std::fs::read_to_string(task.join("stat")).ok()?;
        let core = stat.rsplit_once(") ")?.1.split(' ').nth(36)?;
        Some((allowed.to_owned(), core.to_owned()))
    };
    tasks.filter_map(|task| of(task.ok()?.path())).collect()
}

#[test]
fn a_spinning_demo_says_which_core_it_really_runs_on() {
    // The last core this test may use, as the system lists them.
    let own = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:\t")).unwrap();
    let last = own.rsplit([',', '-']).next().unwrap();
    let args = ["demo", "--cores", last, "--spin", "--json", "--duration", "3s", "--rate", "500"];
    let mut command = program();
    command.args(args).args(["--markets", "100", "--bind-address", "127.0.0.2"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut running = Running(child);
    let mut found = Vec::new();
    while running.0.try_wait().unwrap().is_none() {
        let now = threads(running.0.id(), "kf-shard-0");
        found.extend(now.into_iter().filter(|(allowed, _)| allowed == last));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let (mut shown, mut said) = (Vec::new(), String::new());
    running.0.stdout.take().unwrap().read_to_end(&mut shown).unwrap();
    running.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(running.0.wait().unwrap().success(), "{said}");
    let summary = last_line(&shown);
    assert_eq!(summary["shards"].as_array().unwrap().len(), 1);
    assert_eq!(summary["shards"][0]["core"].to_string(), last);
    assert!(found.len() > 10, "seen {} times pinned to {last}", found.len());
    assert!(found.iter().all(|(_, core)| core == last), "{found:?}");
}

#[test]
fn cut_connections_come_back_with_their_markets() {
    let output = run(&[
        "demo",
        "--duration",
        "4s",
        "--markets",
        "400",
        "--rate",
        "2000",
        "--cut",
        "12",
        "--json",
    ]);
    let summary = last_line(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{} {summary}", stderr(&output));
    let cut = &summary["cut"];
    assert_eq!(
        (&cut["requested"], &cut["cut"], &cut["live_again"]),
        (&12.into(), &12.into(), &12.into())
    );
    assert_eq!(cut["snapshots"], cut["markets"]);
    assert!(count(&cut["markets"]) > 0);
    assert_eq!(cut["reconnects"], 12);
}

#[test]
fn bad_usage_is_named_and_exits_2() {
    let directory = directory("usage");
    let file = |name: &str, text: &str| {
        let path = directory.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (empty, odd) = (file("empty.txt", "# none\n"), file("odd.txt", "KXA-1\ntwo words\n"));
    let (key, config) =
        (file("key.pem", "not a key\n"), file("feed.toml", "chunk = 5\nspeed = 9\n"));
    let cases: &[(&[&str], &[&str])] = &[
        (&["demo", "--shards", "0"], &["shards", "0 is outside 1 to 64"]),
        (&["demo", "--cores", "4095"], &["core 4095", "not among those allowed"]),
        (&["demo", "--wait", "sleep"], &["--wait", "adaptive:50us"]),
        (&["demo", "--wait", "block", "--spin"], &["--wait", "--spin"]),
        (&["demo", "--turn-budget", "0"], &["turn_budget", "0 is outside 1 to 1024"]),
        (&["demo", "--bind-address", "192.0.2.1"], &["bind_address", "ip -br address"]),
        (&["demo", "--bind-interface", "nosuch"], &["bind_interface", "ip -br link"]),
        (&["demo", "--tcp-user-timeout", "10us"], &["tcp_user_timeout", "10µs is outside"]),
        (&["demo", "--mode", "wild"], &["--mode", "burst"]),
        (&["demo", "--duration", "soon"], &["--duration", "write 10s"]),
        (&["run", "--markets-file", "/nowhere/m.txt"], &["markets-file", "/nowhere/m.txt"]),
        (&["run", "--markets-file", &empty], &["markets-file", "empty.txt", "no market"]),
        (&["run", "--markets-file", &odd], &["odd.txt line 2", "white space"]),
        (&["run", "--ca-file", "/nowhere/ca.pem"], &["ca_file", "/nowhere/ca.pem"]),
        (&["run", "--key-id", "k", "--key-file", "/nowhere/k.pem"], &["/nowhere/k.pem"]),
        (&["run", "--key-id", "k", "--key-file", &key], &["no private key found"]),
        (&["run", "--key-id", "k"], &["key_file", "missing"]),
        (&["run", "--config", "/nowhere/f.toml"], &["config", "/nowhere/f.toml"]),
        (&["run", "--config", &config], &["feed.toml line 2", "unknown field `speed`"]),
        (&["run", "--url", "http://localhost/"], &["url", "use wss://"]),
        (&["run", "--output", "/nowhere/out.jsonl"], &["output", "/nowhere/out.jsonl"]),
        (&["check", "--url", "nonsense"], &["url", "nonsense"]),
        (&["fly"], &["fly"]),
    ];
    for (args, words) in cases {
        let output = run(args);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        for word in *words {
            assert!(said.contains(word), "{args:?} does not say {word:?}: {said}");
        }
        assert!(output.stdout.is_empty(), "{args:?}");
    }
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn lines_match_the_summary() {
    let venue = Venue::open("lines", 4_000);
    let out = venue.path("feed.jsonl");
    let output = venue.run("run", &["--duration", "3s", "--output", &out, "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let summary = last_line(&output.stdout);
    let text = std::fs::read_to_string(&out).unwrap();
    check_lines(&text, &summary);
    // Each lifecycle event comes on both lines.
    let over = text.matches("\\\"event_type\\\":\\\"determined\\\"").count() / 2;
    let markets = usize::try_from(count(&summary["markets_total"])).unwrap();
    assert!(over > 0, "the exchange settles markets all the time");
    assert!(
        (MARKETS - over - 1..MARKETS).contains(&markets),
        "{markets} of {MARKETS}, {over} over"
    );
}

#[test]
fn on_stdout_the_summary_is_the_last_line() {
    let venue = Venue::open("stdout", 1_000);
    let output = venue.run("run", &["--duration", "2s", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    let (lines, last) = text.trim_end().rsplit_once('\n').unwrap();
    check_lines(lines, &serde_json::from_str(last).unwrap());
}

fn check_lines(text: &str, summary: &Value) {
    let handed = count(&summary["messages_consumed"]) + count(&summary["lifecycle_forwarded"]);
    assert_eq!(u64::try_from(text.lines().count()).unwrap(), handed);
    let (mut roles, mut last) =
        (std::collections::BTreeSet::new(), std::collections::BTreeMap::new());
    for line in text.lines() {
        assert!(line.starts_with("{\"conn_id\":"), "{line}");
        let value: Value = serde_json::from_str(line).unwrap();
        let data = value["data"].as_str().unwrap();
        assert!(data.ends_with('\n'));
        let frame: Value = serde_json::from_str(data).unwrap();
        assert_eq!(frame["sid"], value["sid"]);
        roles.insert(value["role"].as_str().unwrap().to_owned());
        if let Some(seq) = value["seq"].as_u64() {
            let sid = (count(&value["conn_id"]), count(&value["epoch"]), count(&value["sid"]));
            let before = last.insert(sid, seq).unwrap_or(0);
            assert!(seq > before, "out of order: {line}");
        }
    }
    assert_eq!(roles.len(), 4, "all roles have lines: {roles:?}");
}

#[test]
fn a_wrong_key_is_named_and_exits_1() {
    let venue = Venue::open("wrong-key", 100);
    let other =
        Exchange::start(ExchangeConfig { markets: 1, ..ExchangeConfig::default() }).unwrap();
    venue.write("key.pem", other.key_pem());
    let output = venue.run("run", &["--duration", "2s", "--output", "none"]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("401") && said.contains("private key"), "{said}");
    assert!(!said.contains("PRIVATE KEY-"), "{said}");
    let output = venue.run("check", &[]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("upgrade failed") && said.contains("401"), "{said}");
}

#[test]
fn an_exchange_that_cannot_be_reached_is_named_and_exits_1() {
    let venue = Venue::open("unreachable", 100);
    let config = venue.write("feed.toml", "start_timeout = \"5s\"\nconnect_timeout = \"2s\"\n");
    let here = venue.exchange.url();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refused = format!("wss://localhost:{}/trade-api/ws/v2", free.port());
    let lost = here.replace("/trade-api/ws/v2", "/elsewhere");
    let cases = [
        ("wss://exchange.invalid/trade-api/ws/v2", ["exchange.invalid", "url"]),
        (refused.as_str(), [": Connection refused", "port"]),
        (lost.as_str(), ["404", "path"]),
    ];
    for (url, words) in cases {
        let output = program()
            .args(["run", "--config", &config, "--url", url, "--output", "none"])
            .args(["--ca-file", &venue.path("ca.pem"), "--key-file", &venue.path("key.pem")])
            .args(["--key-id", venue.exchange.key_id()])
            .output()
            .unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{url}: {said}");
        for word in words {
            assert!(said.contains(word), "{url} does not say {word:?}: {said}");
        }
    }
}

#[test]
fn a_check_says_how_far_it_came() {
    let venue = Venue::open("check", 100);
    let output = venue.run("check", &["--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let verdict = last_line(&output.stdout);
    assert_eq!(verdict["ok"], true);
    assert_eq!(verdict["steps"].as_array().unwrap().len(), 5);
    let tuned = ["--json", "--receive-buffer-bytes", "1073741824", "--spin"];
    let verdict = last_line(&venue.run("check", &tuned).stdout);
    assert_eq!(verdict["ok"], true);
    let warnings = verdict["warnings"].to_string();
    assert!(warnings.contains("receive_buffer_bytes: the kernel granted"), "{warnings}");
    let other =
        Exchange::start(ExchangeConfig { markets: 1, ..ExchangeConfig::default() }).unwrap();
    venue.write("ca.pem", other.ca_pem());
    let output = venue.run("check", &[]);
    assert_eq!(output.status.code(), Some(1));
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(
        shown.contains("TCP          ok\nTLS          failed\nupgrade      not reached"),
        "{shown}"
    );
    assert!(stderr(&output).contains("TLS failed: TLS certificate refused"), "{}", stderr(&output));
}

#[test]
fn ctrl_c_ends_a_run_early_with_its_summary() {
    let venue = Venue::open("ctrl-c", 1_000);
    let mut command = venue.command("run", &["--json"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut running = Running(child);
    let mut lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
    // Messages come once the engine has started; after one of each market's all are confirmed.
    let mut snapshots = 0;
    while snapshots < MARKETS {
        let line = lines.next().expect("ended early").unwrap();
        snapshots += usize::from(line.contains("orderbook_snapshot"));
    }
    let process = running.0.id().to_string();
    assert!(Command::new("kill").args(["-INT", &process]).status().unwrap().success());
    let last = lines.map(Result::unwrap).last().expect("no summary");
    let summary: Value = serde_json::from_str(&last).unwrap();
    assert!(count(&summary["messages_consumed"]) >= 200);
    let status = running.0.wait().unwrap();
    let mut said = String::new();
    running.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(status.code(), Some(0), "{said}");
}

#[test]
fn j4_a_sigterm_during_the_start_ends_it_at_once_and_says_so() {
    let venue = Venue::open("sigterm", 1_000);
    venue.exchange.refuse_upgrades(Some(503));
    let mut command = venue.command("run", &["--json"]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut running = Running(child);
    while venue.exchange.stats().upgrades_rejected < 150 {
        assert!(running.0.try_wait().unwrap().is_none(), "ended early");
        std::thread::yield_now();
    }
    let process = running.0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &process]).status().unwrap().success());
    let mut said = String::new();
    running.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let status = running.0.wait().unwrap();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("stopped before the connections were live"), "{said}");
    assert!(venue.exchange.connections().is_empty());
}

#[test]
fn a_reader_that_leaves_ends_it_quietly() {
    let venue = Venue::open("pipe", 1_000);
    let mut command = venue.command("run", &[]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut running = Running(child);
    let mut lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
    lines.next().expect("ended early").unwrap();
    drop(lines);
    let status = running.0.wait().unwrap();
    let mut said = String::new();
    running.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(!said.contains("kalshi-feed: "), "{said}");
}

#[test]
fn a_full_disk_is_named() {
    let venue = Venue::open("full", 1_000);
    let output = venue.run("run", &["--output", "/dev/full", "--json"]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("/dev/full") && said.contains("No space left"), "{said}");
}

#[test]
fn help_shows_examples() {
    for job in ["demo", "run", "check"] {
        let output = run(&[job, "--help"]);
        assert_eq!(output.status.code(), Some(0));
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(
            shown.contains("Example") && shown.contains(&format!("kalshi-feed {job}")),
            "{shown}"
        );
    }
}
