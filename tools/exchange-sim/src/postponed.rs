//! What is to be sent later: late replies and the ends of subscriptions, in order of their time. It
//! sends nothing and reads no clock.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::answer::Reply;
use crate::code::Code;

/// What to do when its time has come.
#[derive(Debug)]
pub(crate) enum Due {
    /// Answer the command with this id.
    Reply { id: u64, reply: Reply },
    /// End a stream with an error nobody asked for.
    Terminate { stream: u32, code: Code },
}

/// One entry: for which connection, and what.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) slot: u32,
    /// Tells the connection apart from a later one in the same slot.
    pub(crate) accept_number: u64,
    pub(crate) due: Due,
}

/// Everything that waits.
#[derive(Debug, Default)]
pub(crate) struct Postponed {
    /// By time, then by age.
    entries: BTreeMap<(Instant, u64), Entry>,
    serial: u64,
}

impl Postponed {
    pub(crate) fn push(&mut self, at: Instant, entry: Entry) {
        self.serial += 1;
        self.entries.insert((at, self.serial), entry);
    }

    /// The oldest entry whose time has come.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<Entry> {
        let first = self.entries.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.entries.first_key_value().map(|(&(at, _), _)| at)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn entries_come_out_by_time_then_age_and_never_early() {
        let now = Instant::now();
        let at = |millis| now + Duration::from_millis(millis);
        let mut postponed = Postponed::default();
        for (id, millis) in [(1, 30), (2, 10), (3, 10), (4, 20)] {
            let due = Due::Reply { id, reply: Reply::List };
            postponed.push(at(millis), Entry { slot: 0, accept_number: 1, due });
        }
        assert_eq!(postponed.next_due(), Some(at(10)));
        assert!(postponed.pop(at(9)).is_none());
        let mut order = Vec::new();
        while let Some(entry) = postponed.pop(at(30)) {
            if let Due::Reply { id, .. } = entry.due {
                order.push(id);
            }
        }
        assert_eq!(order, [2, 3, 4, 1]);
        assert!(postponed.is_empty());
    }
}
