//! Loss on purpose, as the demo's users cause it: the account is whole under every policy.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail by panicking, and helpers outside #[test] functions are tests too"
)]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;

/// The summary of a demo that did its job.
fn demo(flags: &str) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_kalshi-feed"))
        .args(["demo", "--json", "--markets", "200"])
        .args(flags.split_whitespace())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8_lossy(&output.stdout);
    let summary: Value = serde_json::from_str(text.lines().last().unwrap_or("null")).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said} {summary}");
    assert_eq!(summary["ledger"]["unaccounted"], 0);
    summary
}

fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no count"))
}

#[test]
fn a_slow_consumer_is_told_of_every_message_it_did_not_get() {
    let summary = demo("--slow-consumer 0.1 --duration 4s");
    let dropped = count(&summary["messages_dropped"]);
    assert!(dropped > 20_000, "it was slow: {dropped}");
    assert_eq!(summary["ledger"]["covered"], dropped);
}

#[test]
fn a_slow_consumer_may_hold_its_connections_back_and_lose_nothing() {
    let summary = demo("--slow-consumer 0.1 --overflow backpressure --duration 4s");
    assert_eq!((count(&summary["messages_dropped"]), &summary["reconnects"]), (0, &0.into()));
    assert_eq!(summary["ledger"]["sent"], summary["ledger"]["delivered"]);
    // Messages waited: in this process and in the sockets.
    assert!(count(&summary["latency_ns"]["p99"]) > 1_000_000_000, "{summary}");
}

#[test]
fn a_slow_consumer_may_have_the_newest_ticker_of_each_market() {
    let summary = demo("--slow-consumer 0.1 --overflow conflate --duration 4s");
    let dropped = count(&summary["messages_dropped"]);
    assert!(dropped > 20_000, "it was slow: {dropped}");
    assert_eq!(summary["ledger"]["covered"], dropped);
    assert!(summary["uncovered_market_seconds"].as_f64().unwrap() > 0.0, "{summary}");
}

#[test]
fn books_a_slow_consumer_puts_out_of_step_are_back_at_the_end() {
    let summary = demo("--slow-consumer 0.1 --gap-policy resnapshot --duration 4s");
    assert!(count(&summary["recovery_snapshots"]) > 100, "{summary}");
    assert_eq!(summary["suspect_markets"], 0);
}

#[test]
fn books_out_of_step_when_ctrl_c_comes_are_back_at_the_end() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kalshi-feed"))
        .args(["demo", "--markets", "200", "--duration", "0"])
        .args(["--drop-rate", "0.05", "--gap-policy", "resubscribe"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let is_amid_a_recovery =
        |line: &String| line.contains(" suspect, ") && !line.contains(" 0 suspect, ");
    let found = lines.any(|line| is_amid_a_recovery(&line));
    let told = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(found && told.unwrap().success());
    let said: Vec<_> = lines.collect();
    let output = child.wait_with_output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said:?} {shown}");
    assert!(shown.contains(" reopened, 0 markets suspect"), "{shown}");
}

#[test]
fn frames_the_exchange_drops_are_told_of() {
    let summary = demo("--drop-rate 0.01 --duration 4s");
    let missed = count(&summary["messages_missed"]);
    assert!(missed > 50, "{missed} were dropped");
    let ledger = &summary["ledger"];
    assert_eq!(count(&ledger["covered"]), missed + count(&summary["messages_dropped"]));
}

#[test]
fn redundant_lines_become_one_stream_whose_gaps_are_those_of_both() {
    let flags = "--arbitrate first-wins --drop-rate 0.02 --cut 6 --rate 10000 --duration 5s";
    let summary = demo(flags);
    let duplicates = count(&summary["duplicates_dropped"]);
    assert!(duplicates > 1_000, "{summary}");
    let parts = [
        "messages_forwarded",
        "messages_dropped",
        "lifecycle_forwarded",
        "lifecycle_discarded",
        "duplicates_dropped",
    ];
    let sum: u64 = parts.iter().map(|&key| count(&summary[key])).sum();
    assert_eq!(count(&summary["messages_received"]), sum);
    let lines = summary["lines"].as_array().unwrap();
    assert_eq!(lines.len(), 6, "{lines:?}");
    for line in lines {
        assert!((0.0..=1.0).contains(&line["win_rate"].as_f64().unwrap()), "{line}");
    }
    let second: u64 = lines.iter().map(|line| count(&line["second"])).sum();
    assert_eq!(second, duplicates);
}

#[test]
fn one_line_of_each_redundant_pair_is_spared_and_asked_for_by_nobody() {
    let summary = demo("--arbitrate first-wins --cut 150 --rate 1000 --duration 8s");
    let cut = &summary["cut"];
    assert_eq!((count(&cut["requested"]), count(&cut["live_again"])), (147, 147), "{cut}");
    assert_eq!((&cut["snapshots"], &cut["excused"]), (&cut["markets"], &0.into()));
}

#[test]
fn a_slow_consumer_of_arbitrated_lines_is_told_of_every_message_it_did_not_get() {
    let summary = demo("--arbitrate first-wins --slow-consumer 0.1 --duration 4s");
    let dropped = count(&summary["messages_dropped"]);
    assert!(dropped > 10_000, "it was slow: {dropped}");
    assert_eq!(summary["ledger"]["covered"], dropped);
}
