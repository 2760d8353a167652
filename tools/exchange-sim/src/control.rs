//! The program's control lines: reads one and passes it to the exchange; and what the process has
//! used up. It prints nothing.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use exchange_sim::{BadTickers, Exchange};

/// What can be told.
const HELP: &str = "use stats, mode M, rate R, fault RULE, faults clear, data RULE, data clear, \
    delay DELAY, upgrade RULE, upgrade clear, skew MS, listen on|off, wire WIRE, reset [N], \
    reset_of ADDRESS..., manners MANNERS, odd FRAME, break HOW [N], close CODE [N], cut [N], \
    cut_of ADDRESS..., stall CHANNEL on|off, terminate CODE, market_cap N, command_cap N|none, \
    bad CODE TICKER..., bad none, create N, settle N, rest or ledger FILE";
/// How long `rest` may take.
const REST: Duration = Duration::from_secs(20);

/// Carries out one control line.
///
/// # Errors
/// A sentence, when the line is none.
pub(crate) fn obey(exchange: &Exchange, line: &str) -> Result<(), String> {
    let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
    let done = match name {
        "fault" | "faults" | "market_cap" | "command_cap" | "bad" | "terminate" => {
            commands(exchange, name, rest)
        }
        "upgrade" | "skew" | "listen" | "wire" | "reset" | "reset_of" => {
            network(exchange, name, rest)
        }
        "manners" | "odd" | "break" | "close" | "cut" | "cut_of" | "stall" => {
            conduct(exchange, name, rest)
        }
        _ => market(exchange, name, rest),
    };
    match done {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("`{line}` is not a command: {HELP}")),
        Err(sentence) => Err(sentence),
    }
}

/// What is sent. Like all of these: false if the line is none.
fn market(exchange: &Exchange, name: &str, rest: &str) -> Result<bool, String> {
    match (name, rest) {
        ("stats", "") => {}
        ("mode", _) => exchange.set_mode(rest.parse()?),
        ("rate", _) => match rest.parse() {
            Ok(rate) => exchange.set_rate(rate),
            Err(_) => return Ok(false),
        },
        ("data", "clear") => exchange.clear_data_faults(),
        ("data", _) => exchange.inject_data(rest.parse()?),
        ("delay", _) => exchange.set_line_delay(rest.parse()?),
        ("create", _) => match rest.parse() {
            Ok(count) => drop(exchange.create_markets(count)),
            Err(_) => return Ok(false),
        },
        ("settle", _) => {
            let Ok(count) = rest.parse() else { return Ok(false) };
            let mut markets = exchange.active_markets();
            markets.truncate(count);
            exchange.settle_markets(&markets);
        }
        ("rest", "") => {
            if !exchange.stop_traffic(REST) {
                return Err(format!("frames are still queued after {REST:?}"));
            }
        }
        ("ledger", path) if !path.is_empty() => write_ledger(exchange, Path::new(path))?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// How commands are answered.
fn commands(exchange: &Exchange, name: &str, rest: &str) -> Result<bool, String> {
    match (name, rest) {
        ("faults", "clear") => exchange.clear_faults(),
        ("fault", _) => exchange.inject(rest.parse()?),
        ("market_cap", _) => match rest.parse() {
            Ok(markets) => exchange.set_market_cap(markets),
            Err(_) => return Ok(false),
        },
        ("command_cap", "none") => exchange.set_command_cap(None),
        ("command_cap", _) => match rest.parse() {
            Ok(commands) => exchange.set_command_cap(Some(commands)),
            Err(_) => return Ok(false),
        },
        ("bad", "none") => exchange.set_bad_tickers(BadTickers::default()),
        ("bad", _) => {
            let Some((code, tickers)) = rest.split_once(' ') else { return Ok(false) };
            let Ok(code) = code.parse() else { return Ok(false) };
            let tickers = tickers.split_whitespace().map(str::to_owned).collect();
            exchange.set_bad_tickers(BadTickers { code, tickers });
        }
        ("terminate", _) => match rest.parse() {
            Ok(code) => drop(exchange.terminate_books(code)),
            Err(_) => return Ok(false),
        },
        _ => return Ok(false),
    }
    Ok(true)
}

/// How connections are made, and what is between.
fn network(exchange: &Exchange, name: &str, rest: &str) -> Result<bool, String> {
    match (name, rest) {
        ("upgrade", "clear") => exchange.clear_upgrade_faults(),
        ("upgrade", _) => exchange.inject_upgrade(rest.parse()?),
        ("skew", _) => match rest.parse() {
            Ok(millis) => exchange.set_clock_skew(millis),
            Err(_) => return Ok(false),
        },
        ("listen", "on" | "off") => {
            if !exchange.set_listening(rest == "on") {
                return Err("the address cannot be listened on again".to_owned());
            }
        }
        ("wire", _) => {
            if !exchange.set_wire(rest.parse()?) {
                return Err("there is no proxy: start with --wire".to_owned());
            }
        }
        ("reset_of", _) => {
            let Some(peers) = named(rest) else { return Ok(false) };
            exchange.reset(&peers);
        }
        ("reset", _) => match oldest(exchange, rest) {
            Some(peers) => drop(exchange.reset(&peers)),
            None => return Ok(false),
        },
        _ => return Ok(false),
    }
    Ok(true)
}

/// What happens on connections there are.
fn conduct(exchange: &Exchange, name: &str, rest: &str) -> Result<bool, String> {
    let (what, count) = rest.split_once(' ').unwrap_or((rest, ""));
    let peers = oldest(exchange, count);
    match (name, peers) {
        ("manners", _) => exchange.set_manners(rest.parse()?),
        ("odd", _) => drop(exchange.send_odd(&exchange.connections(), &rest.parse()?)),
        ("break", Some(peers)) => drop(exchange.break_off(&peers, what.parse()?)),
        ("close", Some(peers)) => match what.parse() {
            Ok(code) => drop(exchange.close(&peers, code)),
            Err(_) => return Ok(false),
        },
        ("cut", _) => match oldest(exchange, rest) {
            Some(peers) => drop(exchange.cut(&peers)),
            None => return Ok(false),
        },
        ("cut_of", _) => {
            let Some(peers) = named(rest) else { return Ok(false) };
            exchange.cut(&peers);
        }
        ("stall", _) if matches!(count, "on" | "off") => {
            for holding in exchange.holdings().iter().filter(|held| held.channel == what) {
                exchange.stall(holding.peer, holding.sid, count == "on");
            }
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// The clients at these addresses.
fn named(addresses: &str) -> Option<Vec<SocketAddr>> {
    addresses.split(' ').map(|address| address.parse().ok()).collect()
}

/// Puts what was sent so far into a file, for an audit elsewhere.
fn write_ledger(exchange: &Exchange, path: &Path) -> Result<(), String> {
    let text = serde_json::to_string(&exchange.ledger()).map_err(|error| error.to_string());
    text.and_then(|text| std::fs::write(path, text).map_err(|error| error.to_string()))
        .map_err(|error| format!("cannot write the ledger to {}: {error}", path.display()))
}

/// The oldest so many connections; all of them without a number.
fn oldest(exchange: &Exchange, count: &str) -> Option<Vec<SocketAddr>> {
    let mut peers = exchange.connections();
    if !count.is_empty() {
        peers.truncate(count.parse().ok()?);
    }
    Some(peers)
}

/// CPU time of all threads so far, in seconds; 0 where the system does not tell.
pub(crate) fn cpu_seconds() -> f64 {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else {
        return 0.0;
    };
    let nanoseconds = tasks.flatten().filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<f64>().ok()
    });
    nanoseconds.sum::<f64>() / 1e9
}

/// Resident memory now, in bytes; 0 where the system does not tell.
pub(crate) fn rss_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1_024
}
