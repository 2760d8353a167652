//! What the summary says of gaps that were repaired: how many markets, and how long their books
//! were out of step. It measures nothing.

use std::fmt::Write as _;

use kalshi_feed::Durations;
use serde::Serialize;

/// How long markets were suspect, each known to a quarter of a power of two.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Spread {
    /// Markets.
    pub(crate) count: u64,
    pub(crate) p50: u64,
    pub(crate) p99: u64,
    pub(crate) max: u64,
}

impl Spread {
    pub(crate) fn of(times: &Durations) -> Self {
        Self {
            count: times.count(),
            p50: times.quantile(0.5),
            p99: times.quantile(0.99),
            max: times.quantile(1.0),
        }
    }

    /// One line for people.
    pub(crate) fn write(&self, out: &mut String) -> std::fmt::Result {
        let [p50, p99, max] = [self.p50, self.p99, self.max].map(crate::view::micros);
        let count = self.count;
        writeln!(out, "              {count} markets in step after p50 {p50}, p99 {p99}, max {max}")
    }
}
