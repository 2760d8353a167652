//! The statistics as Prometheus text, under the names the mission's family of programs uses. The
//! host serves it where it serves its own.

use std::fmt::{Display, Write};
use std::time::Duration;

use crate::lines::LineStats;
use crate::stats::Stats;

impl Stats {
    /// The figures in Prometheus' text exposition format, version 0.0.4.
    ///
    /// ```
    /// # fn serve(handle: &kalshi_feed::Handle) {
    /// let text = handle.stats().prometheus();
    /// assert!(text.contains("conn_manager_connections_total 150"));
    /// # }
    /// ```
    pub fn prometheus(&self) -> String {
        let mut page = Page::default();
        page.gauge("connections_total", "Connections in the pool.");
        page.sample("", self.connections_total);
        page.gauge("connections_healthy", "Connections live now, by role.");
        for (role, count) in &self.connections_healthy_by_role {
            page.sample(&format!("role=\"{role}\""), count);
        }
        page.gauge("subscriptions_total", "Subscriptions confirmed and open.");
        page.sample("", self.subscriptions_total);
        page.gauge("markets_total", "Order-book markets confirmed.");
        page.sample("", self.markets_total);
        page.gauge("markets_unplaced", "Order-book markets without a connection.");
        page.sample("", self.markets_unplaced);
        for (name, help, count) in [
            ("messages_received_total", "Data messages received.", self.messages_received),
            ("messages_forwarded_total", "Handed to the host.", self.messages_forwarded),
            ("messages_dropped_total", "Dropped for want of room.", self.messages_dropped),
            (
                "messages_conflated_total",
                "Of those, for a newer one of their market.",
                self.messages_conflated,
            ),
            ("sequence_gaps_total", "Holes in sequences, on the wire.", self.sequence_gaps),
            ("messages_missed_total", "Slots in those holes.", self.messages_missed),
            ("lifecycle_forwarded_total", "Handed to the registry.", self.lifecycle_forwarded),
            ("lifecycle_discarded_total", "Nobody listened for.", self.lifecycle_discarded),
            ("markets_refused_total", "Markets refused by themselves.", self.markets_refused),
            (
                "no_healthy_connections_total",
                "Times markets began to wait: no connection was live.",
                self.no_healthy_connections,
            ),
            ("pool_full_total", "Times markets began to wait: all were full.", self.pool_full),
            ("commands_timed_out_total", "Commands without reply.", self.commands_timed_out),
            ("events_dropped_total", "Events without room.", self.events_dropped),
            ("shard_restarts_total", "Shards restarted after a bug.", self.shard_restarts),
            ("handler_calls_total", "Calls of inline handlers.", self.handler_calls),
            ("handler_slow_total", "Calls over the threshold.", self.handler_slow),
        ] {
            page.counter(name, help);
            page.sample("", count);
        }
        page.counter("handler_busy_seconds_total", "Time spent in inline handlers.");
        page.sample("", Duration::from_nanos(self.handler_busy_ns).as_secs_f64());
        page.gauge("handler_slowest_seconds", "The longest call of an inline handler.");
        page.sample("", Duration::from_nanos(self.handler_slowest_ns).as_secs_f64());
        self.recoveries(&mut page);
        self.health(&mut page);
        self.lines(&mut page);
        page.counter("reconnects_total", "Returns to live, by connection.");
        for (conn, role, count) in &self.reconnects_by_connection {
            page.sample(&format!("conn_id=\"{conn}\",role=\"{role}\""), count);
        }
        page.counter("subscribe_errors_total", "Commands refused, by channel and code.");
        for error in &self.subscribe_errors_by_code {
            let labels = format!("channel=\"{}\",error_code=\"{}\"", error.channel, error.code);
            page.sample(&labels, error.count);
        }
        page.text
    }

    /// What was done about gaps.
    fn recoveries(&self, page: &mut Page) {
        let recovery = &self.recovery;
        page.gauge("suspect_markets", "Markets whose books may be wrong after a gap.");
        page.sample("", recovery.suspect_markets);
        for (name, help, count) in [
            ("recoveries_total", "Recoveries of a connection's books begun.", recovery.started),
            ("recoveries_completed_total", "Those that left no book suspect.", recovery.completed),
            ("recovery_requests_total", "Commands for fresh snapshots.", recovery.requests),
            ("recovery_failures_total", "Those refused or unanswered.", recovery.failed),
            ("recovery_books_asked_total", "Snapshots asked for.", recovery.books_asked),
            ("recovery_reopened_total", "Subscriptions opened anew for it.", recovery.reopened),
            ("markets_recovered_total", "Markets back in step.", recovery.markets_recovered),
        ] {
            page.counter(name, help);
            page.sample("", count);
        }
        page.gauge("recovery_seconds", "How long markets were suspect.");
        for (part, label) in [(0.5, "0.5"), (0.99, "0.99"), (1.0, "1")] {
            let time = Duration::from_nanos(recovery.times.quantile(part)).as_secs_f64();
            page.sample(&format!("quantile=\"{label}\""), time);
        }
    }

    /// What came of arbitrating between redundant lines.
    fn lines(&self, page: &mut Page) {
        let stats = &self.arbitration;
        for (name, help, count) in [
            ("duplicates_dropped_total", "Second copies dropped.", stats.duplicates_dropped),
            ("missed_by_both_total", "Slots neither line brought.", stats.missed_by_both),
            ("lines_late_total", "Delivered after they were told missing.", stats.late),
            ("lines_cut_short_total", "Forgotten before their second copy.", stats.cut_short),
        ] {
            page.counter(name, help);
            page.sample("", count);
        }
        let labels = |line: &LineStats| {
            let LineStats { conn_id, role, .. } = line;
            format!("conn_id=\"{conn_id}\",role=\"{role}\"")
        };
        page.counter("line_first_total", "Messages a line brought first.");
        for line in &stats.lines {
            page.sample(&labels(line), line.first);
        }
        page.counter("line_second_total", "Messages the other line had brought.");
        for line in &stats.lines {
            page.sample(&labels(line), line.second);
        }
        page.begin("line_lead_seconds", "How far a line was ahead, when it was.", "histogram");
        for line in &stats.lines {
            let labels = labels(line);
            for power in 3..=9 {
                let ns = 10_u64.pow(power);
                let seconds = Duration::from_nanos(ns).as_secs_f64();
                let count = line.lead.at_most(ns);
                page.part("bucket", &format!("{labels},le=\"{seconds}\""), count);
            }
            page.part("bucket", &format!("{labels},le=\"+Inf\""), line.lead.count());
            page.part("sum", &labels, Duration::from_nanos(line.lead_ns).as_secs_f64());
            page.part("count", &labels, line.lead.count());
        }
    }

    /// How the connections and the shards are.
    fn health(&self, page: &mut Page) {
        page.counter("uncovered_market_seconds_total", "Order-book markets without coverage.");
        page.sample("", self.uncovered_market_seconds);
        page.counter("clock_corrections_total", "Our time refused, the exchange's believed.");
        page.sample("", self.clock_corrections);
        page.counter("attempts_failed_total", "Attempts to connect that failed, by cause.");
        for counted in &self.attempts_failed_by_cause {
            page.sample(&format!("cause=\"{}\"", counted.cause), counted.count);
        }
        page.counter("connections_lost_total", "Live connections lost, by cause.");
        for counted in &self.connections_lost_by_cause {
            page.sample(&format!("cause=\"{}\"", counted.cause), counted.count);
        }
        page.counter("tls_handshakes_total", "TLS handshakes, in full or resumed.");
        page.sample("kind=\"full\"", self.tls_full);
        page.sample("kind=\"resumed\"", self.tls_resumed);
        page.gauge("connections_halted", "Connections that wait for an operator.");
        page.sample("", self.connections_halted);
        page.gauge("connections_silent", "Connections without data for too long.");
        page.sample("", self.connections_silent);
        page.gauge("connections_lagging", "Connections whose data comes late.");
        page.sample("", self.connections_lagging);
        page.gauge("feed_lag_seconds", "How late data comes, by the newest sample.");
        page.sample("", Duration::from_millis(self.feed_lag_ms).as_secs_f64());
        page.counter("shard_cycles_slow_total", "Turns over the threshold, by shard.");
        for shard in &self.shards {
            page.sample(&format!("shard=\"{}\"", shard.shard), shard.cycles_slow);
        }
        page.gauge("shard_cycle_max_seconds", "The longest turn, by shard.");
        for shard in &self.shards {
            let longest = Duration::from_nanos(shard.cycle_ns_max).as_secs_f64();
            page.sample(&format!("shard=\"{}\"", shard.shard), longest);
        }
    }
}

/// A page being written: the metric under way, and the text so far.
#[derive(Default)]
struct Page {
    text: String,
    name: String,
}

impl Page {
    fn gauge(&mut self, name: &str, help: &str) {
        self.begin(name, help, "gauge");
    }

    fn counter(&mut self, name: &str, help: &str) {
        self.begin(name, help, "counter");
    }

    fn begin(&mut self, name: &str, help: &str, kind: &str) {
        self.name = format!("conn_manager_{name}");
        let name = &self.name;
        // Writing to a string cannot fail.
        writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}").unwrap_or_default();
    }

    fn sample(&mut self, labels: &str, value: impl Display) {
        let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        writeln!(self.text, "{}{labels} {value}", self.name).unwrap_or_default();
    }

    /// One of the series of a histogram.
    fn part(&mut self, part: &str, labels: &str, value: impl Display) {
        writeln!(self.text, "{}_{part}{{{labels}}} {value}", self.name).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use crate::code::ExchangeCode;
    use crate::error::Cause;
    use crate::ids::{ConnId, Role};
    use crate::lines::Line;
    use crate::pool::PoolLayout;
    use crate::recovery_stats::RecoveryTotals;
    use crate::stats::Counters;

    #[test]
    fn the_missions_names_are_kept() {
        let counters = Counters::new(PoolLayout::default(), 2, Arc::default());
        counters.control.reconnect(ConnId::new(7));
        counters.control.subscribe_error(Role::Orderbook, ExchangeCode::TickerRequired);
        counters.shards[1].messages_received.add(3);
        counters.control.attempts_failed.note(&Cause::Reset);
        counters.control.connections_lost.note(&Cause::Ended);
        counters.shards[0].handler_busy_ns.add(1_500_000_000);
        counters.shards[1].handler_busy_ns.add(1_000_000_000);
        counters.shards[1].handler_ns_max.raise(2_000_000);
        let totals = RecoveryTotals { started: 1, ..RecoveryTotals::default() };
        counters.control.recovery.publish(2, &totals);
        let line = counters.shards[1].arbitration.line(Role::Trade, Line::B).unwrap();
        line.first.add(4);
        [20_000, 3_000_000].into_iter().for_each(|ns| line.led(Duration::from_nanos(ns)));
        counters.shards[1].arbitration.duplicates_dropped.add(6);
        let text = counters.snapshot(false).prometheus();
        for line in [
            "conn_manager_connections_total 150",
            "conn_manager_connections_healthy{role=\"orderbook\"} 0",
            "conn_manager_messages_received_total 3",
            "conn_manager_sequence_gaps_total 0",
            "conn_manager_attempts_failed_total{cause=\"reset\"} 1",
            "conn_manager_connections_lost_total{cause=\"ended\"} 1",
            "conn_manager_suspect_markets 2",
            "conn_manager_recoveries_total 1",
            "conn_manager_recovery_seconds{quantile=\"0.5\"} 0",
            "conn_manager_duplicates_dropped_total 6",
            "conn_manager_line_first_total{conn_id=\"4\",role=\"trade\"} 4",
            "conn_manager_line_lead_seconds_bucket{conn_id=\"4\",role=\"trade\",le=\"0.0001\"} 1",
            "conn_manager_line_lead_seconds_bucket{conn_id=\"4\",role=\"trade\",le=\"+Inf\"} 2",
            "conn_manager_line_lead_seconds_sum{conn_id=\"4\",role=\"trade\"} 0.00302",
            "conn_manager_line_lead_seconds_count{conn_id=\"4\",role=\"trade\"} 2",
            "conn_manager_handler_busy_seconds_total 2.5",
            "conn_manager_handler_slowest_seconds 0.002",
            "conn_manager_markets_unplaced 0",
            "conn_manager_pool_full_total 0",
            "conn_manager_no_healthy_connections_total 0",
            "conn_manager_reconnects_total{conn_id=\"7\",role=\"orderbook\"} 1",
            "conn_manager_subscribe_errors_total{channel=\"orderbook_delta\",error_code=\"14\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }
}
