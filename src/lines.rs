//! What the two lines of a redundant pair are called, and what is counted of them: written by the
//! pair's shard, read by anyone as a snapshot. It decides nothing: that is `arbitration`.

use std::time::Duration;

use serde::Serialize;

use crate::ids::{ConnId, Role};
use crate::pool::PoolLayout;
use crate::spread::{Durations, Spread};
use crate::stats::{Counter, saturating};

/// One of the two lines of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    A,
    B,
}

impl Line {
    pub(crate) const BOTH: [Self; 2] = [Self::A, Self::B];

    pub(crate) const fn index(self) -> usize {
        match self {
            Self::A => 0,
            Self::B => 1,
        }
    }

    pub(crate) const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// Roles that have pairs.
const ROLES: usize = 3;

/// One line's.
#[derive(Debug, Default)]
pub(crate) struct LineCounters {
    pub(crate) first: Counter,
    pub(crate) second: Counter,
    pub(crate) lead: Spread,
    pub(crate) lead_ns: Counter,
}

/// One shard's.
#[derive(Debug, Default)]
pub(crate) struct ArbitrationCounters {
    pub(crate) duplicates_dropped: Counter,
    pub(crate) missed_by_both: Counter,
    pub(crate) late: Counter,
    pub(crate) cut_short: Counter,
    lines: [[LineCounters; 2]; ROLES],
}

impl ArbitrationCounters {
    /// A line's counters; none for a role without pairs.
    pub(crate) fn line(&self, role: Role, line: Line) -> Option<&LineCounters> {
        self.lines.get(role.index())?.get(line.index())
    }
}

/// What came of arbitrating between the lines of redundant pairs
/// ([`Arbitration::FirstWins`](crate::Arbitration::FirstWins)).
///
/// ```
/// # fn show(stats: &kalshi_feed::Stats) {
/// for line in &stats.arbitration.lines {
///     println!("{} {}: first in {:.1} %", line.role, line.conn_id, line.win_rate() * 100.0);
/// }
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ArbitrationStats {
    /// Copies dropped because the message had been delivered before.
    pub duplicates_dropped: u64,
    /// Slots that neither line brought; each is told by a `gap_size`.
    pub missed_by_both: u64,
    /// Messages delivered after they were told as missing: their line was behind by more than
    /// `arbitration_window`.
    pub late: u64,
    /// Messages forgotten for want of room (`arbitration_messages`) before their second copy came.
    /// Should it come, it is delivered.
    pub cut_short: u64,
    /// Line by line; only those that brought anything.
    pub lines: Vec<LineStats>,
}

/// One line of a redundant pair.
///
/// ```
/// # fn show(line: &kalshi_feed::LineStats) {
/// println!("leads by {} ns at the median", line.lead.quantile(0.5));
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LineStats {
    /// The connection.
    pub conn_id: ConnId,
    /// What it is for.
    pub role: Role,
    /// Messages it brought first, those the other line never brought among them.
    pub first: u64,
    /// Messages the other line had brought before.
    pub second: u64,
    /// By how much it was ahead with those it brought first and the other brought, too.
    #[serde(skip)]
    pub lead: Durations,
    /// All of that together, in nanoseconds.
    pub lead_ns: u64,
}

impl LineStats {
    /// The part of what it brought that it brought first, from 0 to 1; zero for nothing.
    pub fn win_rate(&self) -> f64 {
        crate::shard_stats::ratio(self.first, self.first.saturating_add(self.second))
    }
}

impl ArbitrationStats {
    /// The sum over all shards.
    pub(crate) fn sum<'a>(
        pool: PoolLayout,
        shards: impl Iterator<Item = &'a ArbitrationCounters> + Clone,
    ) -> Self {
        let total = |of: fn(&ArbitrationCounters) -> &Counter| -> u64 {
            saturating(shards.clone().map(of))
        };
        let mut lines = Vec::new();
        for role in Role::ALL {
            let connections = pool.iter().filter(|&(_, of)| of == role);
            for ((conn_id, _), line) in connections.zip(Line::BOTH) {
                let counted = shards.clone().filter_map(|shard| shard.line(role, line));
                let sum = |of: fn(&LineCounters) -> &Counter| saturating(counted.clone().map(of));
                let mut lead = Durations::default();
                counted.clone().for_each(|line| line.lead.add_to(&mut lead));
                let stats = LineStats {
                    conn_id,
                    role,
                    first: sum(|line| &line.first),
                    second: sum(|line| &line.second),
                    lead,
                    lead_ns: sum(|line| &line.lead_ns),
                };
                if stats.first > 0 || stats.second > 0 {
                    lines.push(stats);
                }
            }
        }
        Self {
            duplicates_dropped: total(|shard| &shard.duplicates_dropped),
            missed_by_both: total(|shard| &shard.missed_by_both),
            late: total(|shard| &shard.late),
            cut_short: total(|shard| &shard.cut_short),
            lines,
        }
    }
}

impl LineCounters {
    /// It was so much ahead with a message.
    pub(crate) fn led(&self, by: Duration) {
        let ns = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.lead.add(ns);
        self.lead_ns.add(ns);
    }
}
