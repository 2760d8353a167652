//! The program's control lines: reads one and passes it to the exchange; and what the process has
//! used up. It prints nothing.

use exchange_sim::{BadTickers, Exchange};

/// What can be told.
const HELP: &str = "use mode M, rate R, stats, fault RULE, faults clear, market_cap N, \
    command_cap N|none, bad CODE TICKER..., bad none, terminate CODE, cut [N], settle N \
    or create N";

/// Carries out one control line.
///
/// # Errors
/// A sentence, when the line is none.
pub(crate) fn obey(exchange: &Exchange, line: &str) -> Result<(), String> {
    let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
    let wrong = || format!("`{line}` is not a command: {HELP}");
    let count = || rest.parse::<usize>().map_err(|_| wrong());
    match (name, rest) {
        ("stats", "") => {}
        ("mode", _) => exchange.set_mode(rest.parse()?),
        ("rate", _) => exchange.set_rate(rest.parse().map_err(|_| wrong())?),
        ("faults", "clear") => exchange.clear_faults(),
        ("fault", _) => exchange.inject(rest.parse()?),
        ("market_cap", _) => exchange.set_market_cap(count()?),
        ("command_cap", "none") => exchange.set_command_cap(None),
        ("command_cap", _) => exchange.set_command_cap(Some(rest.parse().map_err(|_| wrong())?)),
        ("bad", "none") => exchange.set_bad_tickers(BadTickers::default()),
        ("bad", _) => {
            let (code, tickers) = rest.split_once(' ').ok_or_else(wrong)?;
            let tickers = tickers.split_whitespace().map(str::to_owned).collect();
            exchange
                .set_bad_tickers(BadTickers { code: code.parse().map_err(|_| wrong())?, tickers });
        }
        ("terminate", _) => {
            exchange.terminate_books(rest.parse().map_err(|_| wrong())?);
        }
        ("cut", "") => {
            exchange.cut(&exchange.connections());
        }
        ("cut", _) => {
            let mut peers = exchange.connections();
            peers.truncate(count()?);
            exchange.cut(&peers);
        }
        ("create", _) => {
            exchange.create_markets(count()?);
        }
        ("settle", _) => {
            let mut markets = exchange.active_markets();
            markets.truncate(count()?);
            exchange.settle_markets(&markets);
        }
        _ => return Err(wrong()),
    }
    Ok(())
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
