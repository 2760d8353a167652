//! What is counted of recoveries: by the plan, in the counters, and as the host reads it. It asks
//! for no book: that is `recovery`.

use serde::Serialize;

use crate::spread::{Durations, Spread};
use crate::stats::Counter;

/// Counted by the plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RecoveryTotals {
    pub(crate) started: u64,
    pub(crate) completed: u64,
    pub(crate) requests: u64,
    pub(crate) failed: u64,
    pub(crate) books_asked: u64,
    pub(crate) reopened: u64,
}

/// Published by the conductor.
#[derive(Debug, Default)]
pub(crate) struct RecoveryCounters {
    suspect_markets: Counter,
    started: Counter,
    completed: Counter,
    requests: Counter,
    failed: Counter,
    books_asked: Counter,
    reopened: Counter,
    markets_recovered: Counter,
    times: Spread,
}

impl RecoveryCounters {
    pub(crate) fn publish(&self, suspects: u64, totals: &RecoveryTotals) {
        self.suspect_markets.set(suspects);
        self.started.set(totals.started);
        self.completed.set(totals.completed);
        self.requests.set(totals.requests);
        self.failed.set(totals.failed);
        self.books_asked.set(totals.books_asked);
        self.reopened.set(totals.reopened);
    }

    /// A market is sound after so long.
    pub(crate) fn recovered(&self, took: std::time::Duration) {
        self.markets_recovered.add(1);
        self.times.add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    /// The engine has stopped.
    pub(crate) fn nothing_is_live(&self) {
        self.suspect_markets.set(0);
    }

    pub(crate) fn snapshot(&self) -> RecoveryStats {
        let mut times = Durations::default();
        self.times.add_to(&mut times);
        RecoveryStats {
            suspect_markets: self.suspect_markets.total(),
            started: self.started.total(),
            completed: self.completed.total(),
            requests: self.requests.total(),
            failed: self.failed.total(),
            books_asked: self.books_asked.total(),
            reopened: self.reopened.total(),
            markets_recovered: self.markets_recovered.total(),
            times,
        }
    }
}

/// What was done about gaps in order-book subscriptions, under a
/// [`GapPolicy`](crate::GapPolicy) that does something.
///
/// ```
/// # fn show(stats: &kalshi_feed::Stats) {
/// let recovery = &stats.recovery;
/// println!("{} markets suspect, {} recoveries", recovery.suspect_markets, recovery.started);
/// println!("half of the books within {} ns", recovery.times.quantile(0.5));
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RecoveryStats {
    /// Markets whose books are suspect now.
    pub suspect_markets: u64,
    /// Recoveries begun: each is of one connection, from its first suspect market to its last.
    pub started: u64,
    /// Recoveries at whose end no market of the connection was suspect. Those missing here were cut
    /// short by the end of their connection, or are going on.
    pub completed: u64,
    /// Commands that asked for fresh snapshots.
    pub requests: u64,
    /// Those that were refused or not answered in full in time.
    pub failed: u64,
    /// Snapshots asked for.
    pub books_asked: u64,
    /// Subscriptions opened anew to get fresh snapshots.
    pub reopened: u64,
    /// Markets whose books came back in step.
    pub markets_recovered: u64,
    /// How long each of those was suspect.
    #[serde(skip)]
    pub times: Durations,
}
