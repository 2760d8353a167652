//! The program: every control line is understood and answered with the totals, every flag of the
//! faults is read, and what is neither ends it with a sentence.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

fn start(flags: &[&str]) -> Child {
    let mut program = Command::new(env!("CARGO_BIN_EXE_exchange-sim"));
    let program = program.args(["--control", "--markets", "50", "--mode", "quiet"]).args(flags);
    let piped = program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    piped.spawn().unwrap()
}

#[test]
fn every_control_line_is_answered() {
    let mut program = start(&[
        "--wire",
        "latency=1 down slice=9",
        "--upgrade-fault",
        "refused=429 retry_after=7 next=3",
        "--data-fault",
        "sequenced drop p=0.001 for=20000",
        "--line-delay",
        "trade/2 5/20",
        "--manners",
        "pings=never no_close",
        "--clock-skew",
        "-2000",
    ]);
    let mut lines = BufReader::new(program.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    let mut stdin = program.stdin.take().unwrap();
    assert_eq!(next().get("markets"), Some(&50.into()));
    let commands = [
        "stats",
        "mode paced",
        "rate 9",
        "fault any lost p=0.1",
        "faults clear",
        "data ticker/1 drop next=2",
        "data clear",
        "delay trade/1 5",
        "upgrade silent next=1",
        "upgrade clear",
        "skew -30000",
        "listen off",
        "listen on",
        "wire black_hole",
        "wire open",
        "reset",
        "reset 2",
        "manners pings=flood/9",
        "manners",
        "odd masked",
        "odd length=9",
        "break mid_frame",
        "break fin 1",
        "close 1012",
        "close 1001 3",
        "cut",
        "cut 2",
        "stall ticker on",
        "stall ticker off",
        "terminate 25",
        "market_cap 9",
        "command_cap 9",
        "command_cap none",
        "bad 14 A B",
        "bad none",
        "create 2",
        "settle 1",
    ];
    for command in commands {
        writeln!(stdin, "{command}").unwrap();
        let totals = next();
        assert!(totals.get("data_withheld").is_some(), "{command}: {totals}");
    }
    drop(stdin);
    assert!(next().get("frames_sent").is_some());
    assert!(program.wait().unwrap().success());
}

#[test]
fn what_is_no_control_line_ends_it_with_a_sentence() {
    for line in ["dance", "rate fast", "data nothing", "close", "reset x", "wire latency=1"] {
        let mut program = start(&[]);
        writeln!(program.stdin.take().unwrap(), "{line}").unwrap();
        let output = program.wait_with_output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && told.starts_with("exchange-sim: "), "{line}: {told}");
    }
    let output = start(&["--wire", "fast"]).wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}
