//! The summary a job ends with: stable keys for scripts, a few lines for people. It only counts
//! what others measured.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::time::Duration;

use exchange_sim::Verdict;
use kalshi_feed::{ConnId, LineStats, Role, Stats};
use nix::sys::resource::{UsageWho, getrusage};
use serde::Serialize;

use crate::cut::CutResult;
use crate::failure::Failure;
use crate::latency::Quantiles;
use crate::recoveries::Spread;

/// What there is to say in the end. Scripts depend on the keys: they are only ever added to.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Summary {
    pub(crate) connections_total: u64,
    /// Before the stop.
    pub(crate) connections_healthy: u64,
    /// Before the stop.
    pub(crate) subscriptions_total: u64,
    /// Before the stop.
    pub(crate) markets_total: u64,
    pub(crate) messages_received: u64,
    pub(crate) messages_forwarded: u64,
    pub(crate) messages_consumed: u64,
    pub(crate) messages_dropped: u64,
    pub(crate) messages_abandoned: u64,
    pub(crate) lifecycle_forwarded: u64,
    pub(crate) lifecycle_discarded: u64,
    pub(crate) sequence_gaps: u64,
    pub(crate) messages_missed: u64,
    /// Times order books of a connection were got back in step after gaps.
    pub(crate) recoveries: u64,
    /// Before the stop.
    pub(crate) suspect_markets: u64,
    /// Snapshots asked for, and subscriptions opened anew.
    pub(crate) recovery_snapshots: u64,
    pub(crate) recovery_reopened: u64,
    /// How long order-book markets were not covered, summed over all of them.
    pub(crate) uncovered_market_seconds: f64,
    /// How long markets were suspect.
    pub(crate) recovery_ns: Spread,
    /// Second copies of what redundant lines brought.
    pub(crate) duplicates_dropped: u64,
    pub(crate) reconnects: u64,
    pub(crate) subscribe_errors: u64,
    pub(crate) bytes_received: u64,
    /// From the first thread started to the last one ended.
    pub(crate) wall_seconds: f64,
    /// Engine's and consumer's threads.
    pub(crate) cpu_seconds: f64,
    pub(crate) cpu_ns_per_message: u64,
    /// Of the whole process.
    pub(crate) max_rss_bytes: u64,
    /// Socket read to consumer.
    pub(crate) latency_ns: Quantiles,
    pub(crate) shards: Vec<ShardSummary>,
    /// Only where lines are arbitrated.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) lines: Vec<LineSummary>,
    #[serde(flatten)]
    pub(crate) demo: Option<DemoSummary>,
}

/// One shard.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct ShardSummary {
    pub(crate) core: Option<usize>,
    /// Before the stop.
    pub(crate) connections: u64,
    pub(crate) messages: u64,
    pub(crate) cycles: u64,
    pub(crate) busy_ratio: f64,
}

/// One line of a redundant pair.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LineSummary {
    pub(crate) conn_id: ConnId,
    pub(crate) role: Role,
    /// Messages it brought first.
    pub(crate) first: u64,
    /// Messages the other had brought before.
    pub(crate) second: u64,
    pub(crate) win_rate: f64,
    /// How far it was ahead, when it was.
    pub(crate) lead_p50_ns: u64,
}

/// What only a demo can tell.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct DemoSummary {
    pub(crate) mode: String,
    pub(crate) rate: u64,
    /// Made by the exchange to consumer.
    pub(crate) wire_latency_ns: Quantiles,
    pub(crate) ledger: LedgerSummary,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cut: Option<CutResult>,
}

/// The account settled with the exchange.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct LedgerSummary {
    pub(crate) sent: u64,
    pub(crate) delivered: u64,
    pub(crate) covered: u64,
    pub(crate) undetectable: u64,
    pub(crate) unaccounted: u64,
}

impl From<&Verdict> for LedgerSummary {
    fn from(verdict: &Verdict) -> Self {
        Self {
            sent: verdict.sent,
            delivered: verdict.delivered,
            covered: verdict.covered,
            undetectable: verdict.undetectable,
            unaccounted: verdict.unaccounted,
        }
    }
}

/// What was measured beside the engine's counters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    pub(crate) wall: Duration,
    pub(crate) consumer_cpu: Duration,
    pub(crate) latency: Quantiles,
}

impl Summary {
    /// `live` was read before the stop, `last` after it.
    pub(crate) fn new(live: &Stats, last: &Stats, measured: Measured) -> Self {
        let cpu = Duration::from_nanos(last.cpu_ns).saturating_add(measured.consumer_cpu);
        let cpu_ns = u64::try_from(cpu.as_nanos()).unwrap_or(u64::MAX);
        Self {
            connections_total: live.connections_total,
            connections_healthy: live.connections_healthy,
            subscriptions_total: live.subscriptions_total,
            markets_total: live.markets_total,
            messages_received: last.messages_received,
            messages_forwarded: last.messages_forwarded,
            messages_consumed: last.messages_consumed,
            messages_dropped: last.messages_dropped,
            messages_abandoned: last.messages_abandoned,
            lifecycle_forwarded: last.lifecycle_forwarded,
            lifecycle_discarded: last.lifecycle_discarded,
            sequence_gaps: last.sequence_gaps,
            messages_missed: last.messages_missed,
            recoveries: last.recovery.started,
            suspect_markets: live.recovery.suspect_markets,
            recovery_snapshots: last.recovery.books_asked,
            recovery_reopened: last.recovery.reopened,
            uncovered_market_seconds: last.uncovered_market_seconds,
            recovery_ns: Spread::of(&last.recovery.times),
            duplicates_dropped: last.arbitration.duplicates_dropped,
            reconnects: last.reconnects,
            subscribe_errors: last.subscribe_errors,
            bytes_received: last.bytes_received,
            wall_seconds: thousandths(measured.wall),
            cpu_seconds: thousandths(cpu),
            cpu_ns_per_message: cpu_ns.checked_div(last.messages_consumed).unwrap_or(0),
            max_rss_bytes: max_rss_bytes(),
            latency_ns: measured.latency,
            shards: shards(live, last),
            lines: last.arbitration.lines.iter().map(LineSummary::of).collect(),
            demo: None,
        }
    }

    /// The summary on stdout: one JSON object as the last line, or lines for people.
    ///
    /// # Errors
    /// Nobody reads stdout.
    pub(crate) fn print(&self, json: bool) -> Result<(), Failure> {
        let text = if json { self.json() + "\n" } else { self.text() };
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .map_err(|error| Failure::job(format!("cannot write the summary: {error}")))
    }

    /// One JSON object, one line.
    pub(crate) fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
    }

    /// A few lines for people.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        self.write(&mut text).unwrap_or_default();
        text
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let Self { wall_seconds, cpu_seconds, .. } = self;
        let per_second = per_second(self.messages_consumed, *wall_seconds);
        writeln!(
            out,
            "connections   {} of {} healthy, {} subscriptions, {} markets, {} reconnects",
            self.connections_healthy,
            self.connections_total,
            self.subscriptions_total,
            self.markets_total,
            self.reconnects
        )?;
        writeln!(
            out,
            "messages      {} received, {} consumed ({per_second:.0}/s), {} lifecycle, {} bytes",
            self.messages_received,
            self.messages_consumed,
            self.lifecycle_forwarded + self.lifecycle_discarded,
            self.bytes_received
        )?;
        writeln!(
            out,
            "losses        {} dropped, {} abandoned, {} gaps on the wire ({} missed), {} subscribe errors",
            self.messages_dropped,
            self.messages_abandoned,
            self.sequence_gaps,
            self.messages_missed,
            self.subscribe_errors
        )?;
        if self.recoveries > 0 {
            let (asked, reopened) = (self.recovery_snapshots, self.recovery_reopened);
            write!(out, "recoveries    {}, {asked} snapshots asked for, ", self.recoveries)?;
            writeln!(out, "{reopened} reopened, {} markets suspect", self.suspect_markets)?;
            self.recovery_ns.write(out)?;
        }
        writeln!(
            out,
            "coverage      {:.1} market-seconds not covered, of {} markets",
            self.uncovered_market_seconds, self.markets_total
        )?;
        writeln!(out, "latency       socket read to consumer: {}", figures(self.latency_ns))?;
        if let Some(demo) = &self.demo {
            demo.write(out)?;
        }
        writeln!(
            out,
            "cost          {cpu_seconds:.2} s CPU in {wall_seconds:.2} s, {} ns a message, {} MiB memory at most",
            self.cpu_ns_per_message,
            self.max_rss_bytes >> 20
        )?;
        for line in &self.lines {
            line.write(out)?;
        }
        for (number, shard) in self.shards.iter().enumerate() {
            let core = shard.core.map_or_else(|| "no core".into(), |core| format!("core {core}"));
            writeln!(
                out,
                "shard {number:<7} {core}, {} connections, {} messages, {} turns, {:.0} % busy",
                shard.connections,
                shard.messages,
                shard.cycles,
                shard.busy_ratio * 100.0
            )?;
        }
        Ok(())
    }
}

impl LineSummary {
    fn of(line: &LineStats) -> Self {
        Self {
            conn_id: line.conn_id,
            role: line.role,
            first: line.first,
            second: line.second,
            win_rate: (line.win_rate() * 10_000.0).round() / 10_000.0,
            lead_p50_ns: line.lead.quantile(0.5),
        }
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "line {:<8} {}, first with {} of {} ({:.1} %), then ahead by {} at the median",
            self.conn_id,
            self.role,
            self.first,
            self.first + self.second,
            self.win_rate * 100.0,
            crate::view::micros(self.lead_p50_ns)
        )
    }
}

impl DemoSummary {
    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "              exchange to consumer: {}", figures(self.wire_latency_ns))?;
        let ledger = &self.ledger;
        writeln!(
            out,
            "ledger        {} sent, {} delivered, {} covered, {} undetectable, {} unaccounted",
            ledger.sent, ledger.delivered, ledger.covered, ledger.undetectable, ledger.unaccounted
        )?;
        if let Some(cut) = &self.cut {
            writeln!(
                out,
                "cut           {} of {} cut, {} live again, {} of {} markets with a new snapshot",
                cut.cut, cut.requested, cut.live_again, cut.snapshots, cut.markets
            )?;
        }
        Ok(())
    }
}

fn shards(live: &Stats, last: &Stats) -> Vec<ShardSummary> {
    let both = live.shards.iter().zip(&last.shards);
    both.map(|(live, last)| ShardSummary {
        core: live.core,
        connections: live.connections,
        messages: last.messages,
        cycles: last.cycles,
        busy_ratio: (last.busy_ratio * 10_000.0).round() / 10_000.0,
    })
    .collect()
}

fn figures(latency: Quantiles) -> String {
    let show = |ns: u64| crate::view::micros(ns);
    format!(
        "p50 {}, p99 {}, p99.9 {}, max {}",
        show(latency.p50),
        show(latency.p99),
        show(latency.p999),
        show(latency.max)
    )
}

/// How many a second; zero for no time.
pub(crate) fn per_second(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

fn thousandths(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1_000.0).round() / 1_000.0
}

/// The most memory this process ever held; zero where the system does not tell.
fn max_rss_bytes() -> u64 {
    let kib = getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| usage.max_rss());
    u64::try_from(kib).unwrap_or(0).saturating_mul(1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary() -> Summary {
        let manager = kalshi_feed::Manager::new(
            kalshi_feed::Config::builder().shards(1).build().unwrap(),
            kalshi_feed::StaticRegistry::default(),
        );
        let stats = manager.handle().stats();
        let measured = Measured {
            wall: Duration::from_millis(1_500),
            consumer_cpu: Duration::from_millis(250),
            latency: Quantiles::default(),
        };
        Summary::new(&stats, &stats, measured)
    }

    const KEYS: &str = "connections_total connections_healthy subscriptions_total markets_total \
        messages_received messages_forwarded messages_consumed messages_dropped \
        messages_abandoned lifecycle_forwarded lifecycle_discarded sequence_gaps \
        messages_missed duplicates_dropped recoveries suspect_markets recovery_ns \
        recovery_snapshots recovery_reopened uncovered_market_seconds \
        reconnects subscribe_errors bytes_received wall_seconds cpu_seconds \
        cpu_ns_per_message max_rss_bytes latency_ns shards";

    fn keys(value: &serde_json::Value) -> Vec<&str> {
        value.as_object().unwrap().keys().map(String::as_str).collect()
    }

    fn sorted<'a>(text: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let mut words: Vec<_> = text.split_whitespace().chain(more.iter().copied()).collect();
        words.sort_unstable();
        words
    }

    #[test]
    fn the_keys_are_those_promised() {
        let value = serde_json::to_value(summary()).unwrap();
        assert_eq!(keys(&value), sorted(KEYS, &[]));
        assert_eq!(keys(&value["latency_ns"]), ["max", "p50", "p99", "p999"]);
        let shard = keys(&value["shards"][0]);
        assert_eq!(shard, sorted("core connections messages cycles busy_ratio", &[]));
        assert_eq!(value["wall_seconds"], 1.5);
        assert_eq!(value["cpu_seconds"], 0.25);
    }

    #[test]
    fn a_demo_tells_more() {
        let mut summary = summary();
        summary.demo = Some(DemoSummary {
            mode: "paced".into(),
            rate: 5,
            wire_latency_ns: Quantiles::default(),
            ledger: LedgerSummary::from(&Verdict::default()),
            cut: None,
        });
        let value: serde_json::Value = serde_json::from_str(&summary.json()).unwrap();
        assert_eq!(keys(&value), sorted(KEYS, &["mode", "rate", "wire_latency_ns", "ledger"]));
        let ledger = keys(&value["ledger"]);
        assert_eq!(ledger, sorted("sent delivered covered undetectable unaccounted", &[]));
        assert!(summary.text().contains("unaccounted"));
    }
}
