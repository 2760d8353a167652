//! Virtual time: the two clocks the engine is shown, and what is to happen when. Nothing here
//! passes by itself.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use crate::clock::Stamp;

/// Both clocks. The monotonic one starts wherever the machine's stands, which nobody sees: all
/// that is traced is the time since the start.
#[derive(Debug)]
pub(super) struct Clock {
    start: Instant,
    pub(super) now: Duration,
    /// How far people's clock is off, in seconds.
    pub(super) wall_shift: i64,
}

const WALL: Duration = Duration::from_secs(1_793_534_400);

impl Clock {
    pub(super) fn new() -> Self {
        Self { start: crate::clock::now(), now: Duration::ZERO, wall_shift: 0 }
    }

    pub(super) fn mono(&self) -> Instant {
        self.start + self.now
    }

    pub(super) fn since_start(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.start)
    }

    pub(super) fn stamp(&self) -> Stamp {
        let seconds = i64::try_from((WALL + self.now).as_secs()).unwrap() + self.wall_shift;
        let shifted = Duration::from_secs(u64::try_from(seconds).unwrap());
        Stamp { wall: SystemTime::UNIX_EPOCH + shifted, mono: self.mono() }
    }

    /// What the exchange's clock says.
    pub(super) fn exchange_wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + WALL + self.now
    }
}

/// What is to happen, in order of time, and of asking where that is the same.
#[derive(Debug)]
pub(super) struct Agenda<E> {
    entries: BTreeMap<(Duration, u64), E>,
    asked: u64,
}

impl<E> Agenda<E> {
    pub(super) fn new() -> Self {
        Self { entries: BTreeMap::new(), asked: 0 }
    }

    pub(super) fn add(&mut self, at: Duration, entry: E) {
        self.asked += 1;
        self.entries.insert((at, self.asked), entry);
    }

    pub(super) fn next_at(&self) -> Option<Duration> {
        self.entries.first_key_value().map(|(&(at, _), _)| at)
    }

    pub(super) fn pop_due(&mut self, now: Duration) -> Option<E> {
        let (&(at, _), _) = self.entries.first_key_value()?;
        (at <= now).then(|| self.entries.pop_first().unwrap().1)
    }
}
