//! Keeps one kind of log line from flooding the log: one a second goes through and says how many
//! were withheld before it. Pure: the time is an argument.

use std::fmt;
use std::time::{Duration, Instant};

use crate::timer::after;

const INTERVAL: Duration = Duration::from_secs(1);

/// One kind of line.
#[derive(Debug, Default)]
pub(crate) struct Hush {
    next: Option<Instant>,
    withheld: u64,
}

/// How many lines were withheld, for the end of the one that goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Withheld(u64);

impl fmt::Display for Withheld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 { Ok(()) } else { write!(f, " ({} more like it before)", self.0) }
    }
}

impl Hush {
    /// Whether a line may be written now.
    pub(crate) fn allows(&mut self, now: Instant) -> Option<Withheld> {
        if self.next.is_some_and(|next| now < next) {
            self.withheld = self.withheld.saturating_add(1);
            return None;
        }
        self.next = Some(after(now, INTERVAL));
        Some(Withheld(std::mem::take(&mut self.withheld)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn j9_one_line_a_second_and_the_others_counted() {
        let start = crate::clock::now();
        let mut hush = Hush::default();
        let lines: Vec<_> = (0..3_000u64)
            .filter_map(|ms| hush.allows(start + Duration::from_millis(ms)))
            .map(|withheld| withheld.to_string())
            .collect();
        let more = " (999 more like it before)";
        assert_eq!(lines, ["", more, more]);
    }
}
