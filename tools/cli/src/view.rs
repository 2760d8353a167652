//! What stderr shows while a job runs: a table that refreshes in place on a terminal, a line now
//! and then elsewhere, nothing with --json. It only reads counters.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::time::{Duration, Instant};

use kalshi_feed::{Handle, Stats, Warning};

use crate::latency::LiveLatency;
use crate::summary::per_second;

const TABLE_EVERY: Duration = Duration::from_millis(250);
const LINE_EVERY: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Table,
    Lines,
    Silent,
}

/// The live view.
#[derive(Debug)]
pub(crate) struct View {
    style: Style,
    handle: Handle,
    latency: LiveLatency,
    begun: Instant,
    total: Duration,
    next: Instant,
    before: Option<(Instant, u64, u64)>,
    drawn: usize,
}

/// Whether stderr is somebody's terminal.
pub(crate) fn on_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Shows what the engine warned of, where a live view has silenced the logs.
pub(crate) fn warn(warnings: &[Warning]) {
    if log::max_level() >= log::LevelFilter::Warn {
        return;
    }
    for warning in warnings {
        // With stderr gone there is nobody to show anything to.
        writeln!(io::stderr(), "warning: {warning}").unwrap_or_default();
    }
}

impl View {
    /// A view of the engine from now on; `total` is zero for no end.
    pub(crate) fn new(handle: Handle, latency: LiveLatency, total: Duration, silent: bool) -> Self {
        let style = match (silent, on_terminal()) {
            (true, _) => Style::Silent,
            (false, true) => Style::Table,
            (false, false) => Style::Lines,
        };
        let begun = Instant::now();
        Self { style, handle, latency, begun, total, next: begun, before: None, drawn: 0 }
    }

    /// Shows the state, if it is time to.
    pub(crate) fn tick(&mut self, now: Instant) {
        if self.style == Style::Silent || now < self.next {
            return;
        }
        let stats = self.handle.stats();
        let rates = self.rates(&stats, now);
        let (every, text) = if self.style == Style::Table {
            (TABLE_EVERY, self.table(&stats, rates, now))
        } else {
            (LINE_EVERY, self.line(&stats, rates, now))
        };
        self.next = now + every;
        let mut screen = String::new();
        if self.drawn > 0 {
            // Back to the table's first line.
            write!(screen, "\x1b[{}A", self.drawn).unwrap_or_default();
        }
        for line in text.lines() {
            let clear = if self.style == Style::Table { "\x1b[2K" } else { "" };
            writeln!(screen, "{clear}{line}").unwrap_or_default();
        }
        if self.style == Style::Table {
            self.drawn = text.lines().count();
        }
        // With stderr gone there is nobody to show anything to.
        io::stderr().write_all(screen.as_bytes()).unwrap_or_default();
    }

    /// Messages and bytes a second since the last look.
    fn rates(&mut self, stats: &Stats, now: Instant) -> (f64, f64) {
        let current = (now, stats.messages_received, stats.bytes_received);
        let (then, messages, bytes) = self.before.replace(current).unwrap_or(current);
        let seconds = now.saturating_duration_since(then).as_secs_f64();
        (
            per_second(stats.messages_received.saturating_sub(messages), seconds),
            per_second(stats.bytes_received.saturating_sub(bytes), seconds) / 1e6,
        )
    }

    fn clock(&self, now: Instant) -> String {
        let elapsed = now.saturating_duration_since(self.begun).as_secs_f64();
        if self.total.is_zero() {
            format!("{elapsed:.1} s, until Ctrl-C")
        } else {
            format!("{elapsed:.1} / {:.1} s", self.total.as_secs_f64())
        }
    }

    fn line(&self, stats: &Stats, (messages, megabytes): (f64, f64), now: Instant) -> String {
        let (p50, p99) = self.latency.read();
        format!(
            "{}: {}/{} connections, {}/{} markets, {messages:.0} messages/s, {megabytes:.1} MB/s, \
             {} dropped, {} gaps, {} suspect, {} reconnects, p50 {} p99 {}",
            self.clock(now),
            stats.connections_healthy,
            stats.connections_total,
            stats.markets_total,
            stats.markets_wanted,
            stats.messages_dropped,
            stats.sequence_gaps,
            stats.recovery.suspect_markets,
            stats.reconnects,
            micros(p50),
            micros(p99)
        )
    }

    fn table(&self, stats: &Stats, (messages, megabytes): (f64, f64), now: Instant) -> String {
        let (p50, p99) = self.latency.read();
        let mut roles = String::new();
        for (role, count) in stats.connections_healthy_by_role {
            write!(roles, "  {role} {count}").unwrap_or_default();
        }
        let mut text = format!(
            "elapsed      {}\n\
             connections  {} of {}:{roles}\n\
             markets      {} of {} confirmed\n\
             traffic      {messages:.0} messages/s  {megabytes:.1} MB/s\n\
             losses       {} dropped  {} gaps  {} markets suspect  {} reconnects\n\
             latency      p50 {}  p99 {}\n",
            self.clock(now),
            stats.connections_healthy,
            stats.connections_total,
            stats.markets_total,
            stats.markets_wanted,
            stats.messages_dropped,
            stats.sequence_gaps,
            stats.recovery.suspect_markets,
            stats.reconnects,
            micros(p50),
            micros(p99)
        );
        for shard in &stats.shards {
            let core = shard.core.map_or_else(|| "-".to_owned(), |core| core.to_string());
            writeln!(
                text,
                "shard {:<6} core {core}  {} connections  {:.0} % busy",
                shard.shard,
                shard.connections,
                shard.busy_ratio * 100.0
            )
            .unwrap_or_default();
        }
        text
    }
}

/// Nanoseconds, for people.
pub(crate) fn micros(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.1} us", ns as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        _ => format!("{:.2} s", ns as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units_people_read() {
        assert_eq!(micros(999), "999 ns");
        assert_eq!(micros(1_500), "1.5 us");
        assert_eq!(micros(2_340_000), "2.3 ms");
        assert_eq!(micros(3_000_000_000), "3.00 s");
    }
}
