//! The simulator as a program: serves until Ctrl-C or SIGTERM. One JSON line on stdout when it is
//! ready, one with its totals at the end. It never prints a key.

mod control;

use std::fs;
use std::io::{self, BufRead, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use crossbeam_channel::{Receiver, select};
use exchange_sim::{
    BadTickers, DataRule, Dialect, Duplicates, Exchange, ExchangeConfig, FaultRule, LineDelay,
    Manners, Mode, Packing, Security, UpgradeRule, Wire,
};

/// A stand-in for Kalshi's WebSocket exchange on a local address: TLS, signed upgrades, live
/// traffic.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Example: exchange-sim --ca-out ca.pem --key-out key.pem \
    --key-id-out key-id --markets-out markets.txt"
)]
struct Flags {
    /// Address to listen on; port 0 picks a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Active markets at the start.
    #[arg(long, value_name = "N", default_value_t = 2_000)]
    markets: usize,
    /// Data frames a second over all connections, in paced mode.
    #[arg(long, value_name = "R", default_value_t = 20_000)]
    rate: u64,
    /// How traffic is made: paced, burst (as fast as sockets take it), flood (the same from
    /// prepared frames) or quiet.
    #[arg(long, default_value_t = Mode::Paced)]
    mode: Mode,
    /// Seed of all traffic.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Connections at a time; the next upgrade is answered 429.
    #[arg(long, value_name = "N", default_value_t = 200)]
    max_connections: usize,
    /// Market swaps a minute in the background; 0 for none.
    #[arg(long, value_name = "N", default_value_t = 60)]
    churn: u32,
    /// TLS records: stream (full), whole (as many whole frames as fit) or single (one frame).
    #[arg(long, default_value_t = Packing::Stream)]
    packing: Packing,
    /// In paced mode, write each event at once rather than once a tick.
    #[arg(long)]
    write_through: bool,
    /// Speak the mission's dialect: one sid a market, text codes, `market_lifecycle`.
    #[arg(long)]
    legacy: bool,
    /// Levels on each side of an opening book: at most this many, at least a quarter.
    #[arg(long, value_name = "N", default_value_t = 8)]
    levels: u8,
    /// Most markets of one subscription; error 26 beyond.
    #[arg(long, value_name = "N", default_value_t = 500_000)]
    market_cap: usize,
    /// Most commands a second on one subscription; error 27 beyond.
    #[arg(long, value_name = "N")]
    command_cap: Option<u32>,
    /// Answer a repeated subscribe with error 6 instead of merging it.
    #[arg(long)]
    refuse_duplicates: bool,
    /// A ticker that gets every list it is in refused; may be given several times.
    #[arg(long, value_name = "TICKER")]
    bad_ticker: Vec<String>,
    /// The error code of lists with a bad ticker.
    #[arg(long, value_name = "CODE", default_value_t = 14)]
    bad_code: u8,
    /// What goes wrong with commands, for example "add_markets lost p=0.01" or "any late=250
    /// next=3"; may be given several times.
    #[arg(long, value_name = "RULE")]
    fault: Vec<FaultRule>,
    /// Put a proxy in front that does this to the bytes, for example "latency=20 jitter=5" or
    /// "open"; the control line `wire` changes it.
    #[arg(long, value_name = "WIRE")]
    wire: Option<Wire>,
    /// What goes wrong with upgrades, for example "refused=429 retry_after=7 next=3"; may be given
    /// several times.
    #[arg(long, value_name = "RULE")]
    upgrade_fault: Vec<UpgradeRule>,
    /// What goes wrong with data, for example "sequenced drop p=0.001 for=20000" or "trade/2
    /// duplicate"; may be given several times.
    #[arg(long, value_name = "RULE")]
    data_fault: Vec<DataRule>,
    /// Hold a line of a channel back, for example "trade/2 5/20" (5 ms and up to 20 more); may be
    /// given several times.
    #[arg(long, value_name = "DELAY")]
    line_delay: Vec<LineDelay>,
    /// How it behaves, for example "pings=never no_close".
    #[arg(long, default_value = "", hide_default_value = true)]
    manners: Manners,
    /// How its TLS is, for example "tls12 no_tickets" or "certificate=expired".
    #[arg(long, value_name = "TLS", default_value = "", hide_default_value = true)]
    security: Security,
    /// How far its clock is ahead, in milliseconds; behind if negative.
    #[arg(long, value_name = "MS", default_value_t = 0, allow_hyphen_values = true)]
    clock_skew: i64,
    /// Take commands from stdin, one a line, and stop at its end: `stats`, `mode M`, `rate R`,
    /// `fault RULE`, `faults clear`, `data RULE`, `data clear`, `delay DELAY`, `upgrade RULE`,
    /// `upgrade clear`, `skew MS`, `listen on|off`, `wire WIRE`, `reset [N]`, `reset_of
    /// ADDRESS...`, `manners MANNERS`, `odd FRAME`, `break HOW [N]`, `close CODE [N]`, `cut [N]`,
    /// `cut_of ADDRESS...`, `stall CHANNEL on|off`, `terminate CODE`, `market_cap N`, `command_cap
    /// N|none`, `bad CODE TICKER...`, `bad none`, `create N`, `settle N`, `rest` (no more traffic;
    /// what is queued is written), `ledger FILE` (what was sent, as JSON); N = the oldest so many
    /// connections. Each is answered with one line, the totals so far; a line that is none of these
    /// ends the program.
    #[arg(long)]
    control: bool,
    /// Where to write the certificate authority clients must trust (PEM).
    #[arg(long, value_name = "FILE")]
    ca_out: Option<PathBuf>,
    /// Where to write the API key's private half (PEM, PKCS#8).
    #[arg(long, value_name = "FILE")]
    key_out: Option<PathBuf>,
    /// Where to write the API key's id.
    #[arg(long, value_name = "FILE")]
    key_id_out: Option<PathBuf>,
    /// Where to write the active markets, one ticker a line.
    #[arg(long, value_name = "FILE")]
    markets_out: Option<PathBuf>,
}

fn main() -> ExitCode {
    match serve(&Flags::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            // With stderr gone there is nobody to tell.
            drop(writeln!(io::stderr(), "exchange-sim: {sentence}"));
            ExitCode::FAILURE
        }
    }
}

fn serve(flags: &Flags) -> Result<(), String> {
    let (stop, stopped) = crossbeam_channel::bounded(1);
    let on_signal = move || {
        // A second signal finds the first one still waiting: nothing to add.
        stop.try_send(()).unwrap_or_default();
    };
    ctrlc::set_handler(on_signal).map_err(|error| format!("cannot catch Ctrl-C: {error}"))?;
    let exchange = Exchange::start(config(flags)).map_err(|error| error.to_string())?;
    write_files(flags, &exchange)?;
    say(&serde_json::json!({
        "listening": exchange.local_addr().to_string(),
        "url": exchange.url(),
        "markets": flags.markets,
    }))?;
    // A closed channel means that the handler is gone: stop as well.
    let lines = if flags.control { commands()? } else { crossbeam_channel::never() };
    loop {
        select! {
            recv(stopped) -> _ => break,
            recv(lines) -> line => match line {
                Ok(line) => {
                    control::obey(&exchange, &line)?;
                    say_totals(exchange.stats())?;
                }
                Err(_) => break,
            },
        }
    }
    let stats = exchange.stats();
    exchange.stop();
    say_totals(stats)
}

/// The lines of stdin, until it ends.
fn commands() -> Result<Receiver<String>, String> {
    let (sender, lines) = crossbeam_channel::bounded(16);
    let read = move || {
        for line in io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            if sender.send(line).is_err() {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("commands".to_owned()).spawn(read);
    thread.map_err(|error| format!("cannot read stdin: {error}"))?;
    Ok(lines)
}

fn config(flags: &Flags) -> ExchangeConfig {
    let duplicates = if flags.refuse_duplicates { Duplicates::Refuse } else { Duplicates::Merge };
    ExchangeConfig {
        listen: flags.listen,
        markets: flags.markets,
        rate_per_second: flags.rate,
        mode: flags.mode,
        seed: flags.seed,
        max_connections: flags.max_connections,
        packing: flags.packing,
        write_through: flags.write_through,
        lifecycle_churn_per_minute: flags.churn,
        dialect: if flags.legacy { Dialect::Legacy } else { Dialect::Live },
        snapshot_levels: flags.levels / 4..=flags.levels,
        markets_per_subscription: flags.market_cap,
        commands_per_second: flags.command_cap,
        duplicate_subscribe: duplicates,
        bad_tickers: BadTickers {
            code: flags.bad_code,
            tickers: flags.bad_ticker.iter().cloned().collect(),
        },
        faults: flags.fault.clone(),
        proxy: flags.wire,
        upgrade_faults: flags.upgrade_fault.clone(),
        data_faults: flags.data_fault.clone(),
        line_delays: flags.line_delay.clone(),
        manners: flags.manners,
        security: flags.security,
        clock_skew: flags.clock_skew,
        ..ExchangeConfig::default()
    }
}

fn say_totals(stats: exchange_sim::ExchangeStats) -> Result<(), String> {
    let mut line = serde_json::to_value(stats).map_err(|error| format!("totals: {error}"))?;
    if let Some(totals) = line.as_object_mut() {
        totals.insert("cpu_seconds".to_owned(), control::cpu_seconds().into());
        totals.insert("rss_bytes".to_owned(), control::rss_bytes().into());
    }
    say(&line)
}

fn write_files(flags: &Flags, exchange: &Exchange) -> Result<(), String> {
    write(flags.ca_out.as_deref(), "--ca-out", exchange.ca_pem(), 0o644)?;
    write(flags.key_out.as_deref(), "--key-out", exchange.key_pem(), 0o600)?;
    write(flags.key_id_out.as_deref(), "--key-id-out", exchange.key_id(), 0o644)?;
    if flags.markets_out.is_some() {
        let mut list = exchange.active_markets().join("\n");
        list.push('\n');
        write(flags.markets_out.as_deref(), "--markets-out", &list, 0o644)?;
    }
    Ok(())
}

fn write(path: Option<&Path>, flag: &str, text: &str, mode: u32) -> Result<(), String> {
    use std::os::unix::fs::OpenOptionsExt;
    let Some(path) = path else { return Ok(()) };
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(mode);
    let written = options.open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| {
        format!("cannot write {flag} {}: {error}; give a writable path", path.display())
    })
}

fn say(line: &serde_json::Value) -> Result<(), String> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .map_err(|error| format!("cannot write to stdout: {error}"))
}
