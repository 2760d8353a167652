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
    pub(crate) fn write(
        &self,
        out: &mut String,
        (recoveries, suspect): (u64, u64),
    ) -> std::fmt::Result {
        writeln!(
            out,
            "recoveries    {recoveries}, {} markets back in step after p50 {}, p99 {}, max {}; \
             {suspect} suspect",
            self.count,
            crate::view::micros(self.p50),
            crate::view::micros(self.p99),
            crate::view::micros(self.max)
        )
    }
}
