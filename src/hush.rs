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
pub(crate) mod tests {
    use std::cell::RefCell;

    use super::*;

    thread_local! {
        static LINES: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
    }

    /// Keeps the lines of the thread that asked for them.
    struct Keeper;

    impl log::Log for Keeper {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }
        fn log(&self, record: &log::Record<'_>) {
            LINES.with_borrow_mut(|lines| {
                lines.as_mut().map(|lines| lines.push(record.args().to_string()))
            });
        }
        fn flush(&self) {}
    }

    /// What this thread logs while `act` runs, warnings and errors.
    pub(crate) fn lines_of(act: impl FnOnce()) -> Vec<String> {
        // The first of several tests sets it.
        log::set_logger(&Keeper).unwrap_or_default();
        log::set_max_level(log::LevelFilter::Warn);
        LINES.set(Some(Vec::new()));
        act();
        LINES.take().unwrap_or_default()
    }

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
