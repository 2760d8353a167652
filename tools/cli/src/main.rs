//! The `kalshi-feed` program: parses the flags, sets the logs up, runs one job and turns what
//! came of it into one sentence and an exit code. The jobs themselves live in their own files.

#![allow(clippy::as_conversions, reason = "figures for people: counts become floating-point rates")]

mod account;
mod args;
mod check;
mod consumer;
mod cut;
mod demo;
mod failure;
mod interrupt;
mod latency;
mod lifecycle;
mod markets;
mod output;
mod policies;
mod recoveries;
mod roster;
mod run;
mod settings;
mod summary;
mod throttle;
mod view;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use log::LevelFilter;

use crate::args::{Cli, Command};
use crate::failure::Failure;

fn main() -> ExitCode {
    let cli = Cli::parse();
    logs(&cli);
    let done = match &cli.command {
        Command::Demo(flags) => demo::run(flags),
        Command::Run(flags) => run::run(flags),
        Command::Check(flags) => check::run(flags),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !matches!(failure, Failure::ReaderLeft) {
                // With stderr gone there is nobody to tell.
                writeln!(io::stderr(), "kalshi-feed: {failure}").unwrap_or_default();
            }
            failure.code()
        }
    }
}

/// Logs go to stderr; below a live view only what cannot wait.
fn logs(cli: &Cli) {
    let table = match &cli.command {
        Command::Demo(flags) => !flags.json && view::on_terminal(),
        Command::Run(flags) => !flags.json && view::on_terminal(),
        // The verdict says it all.
        Command::Check(_) => true,
    };
    let level = match (cli.verbose, table) {
        (0, true) => LevelFilter::Off,
        (0, false) => LevelFilter::Warn,
        (1, _) => LevelFilter::Info,
        (_, _) => LevelFilter::Debug,
    };
    env_logger::Builder::new().filter_level(level).parse_default_env().init();
}
