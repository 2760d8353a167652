//! How fast, and how much at a time, one connection may be asked: what refusals teach. Pure.

use std::time::{Duration, Instant};

use crate::timer::after;

/// Delay after trouble: the first, and the longest.
const TROUBLE_DELAY: Duration = Duration::from_secs(1);
const TROUBLE_DELAY_MAX: Duration = Duration::from_secs(60);
/// So long without any, trouble is forgotten; the delays start from the beginning.
const TROUBLE_OVER: Duration = Duration::from_secs(120);
/// Time between commands once the exchange says they are too many: the first, and the longest.
const SPACING: Duration = Duration::from_millis(100);
const SPACING_MAX: Duration = Duration::from_secs(10);
/// Doublings until then.
const STALLS_MAX: u32 = 7;
/// Below this, it is as good as none.
const SPACING_MIN: Duration = Duration::from_millis(10);

/// The pace of one connection.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    /// Markets in one command.
    chunk: usize,
    chunk_max: usize,
    /// Nothing is sent before this time, after trouble.
    hold: Option<Instant>,
    /// Refusals and subscriptions that ended by themselves, and when the last one was.
    troubles: u32,
    troubled: Option<Instant>,
    /// Whether anything was sent since: if not, more trouble is of the same incident.
    tried: bool,
    /// Time between two commands, and when the next may go.
    spacing: Duration,
    next: Option<Instant>,
    /// Whether anything was sent since they were last too many.
    hurried: bool,
    /// Commands the exchange had no time for, less those it carried out.
    stalls: u32,
}

impl Pace {
    pub(crate) fn new(chunk_max: usize) -> Self {
        Self {
            chunk: chunk_max,
            chunk_max,
            hold: None,
            troubles: 0,
            troubled: None,
            tried: false,
            spacing: Duration::ZERO,
            next: None,
            hurried: false,
            stalls: 0,
        }
    }

    /// Markets one command may name.
    pub(crate) fn chunk(&self) -> usize {
        self.chunk
    }

    /// Markets a command may name when all is well.
    pub(crate) fn chunk_max(&self) -> usize {
        self.chunk_max
    }

    /// When something may be sent again, if not now.
    pub(crate) fn held_until(&self, now: Instant) -> Option<Instant> {
        let hold = self.hold.filter(|&hold| hold > now);
        let next = self.next.filter(|&next| next > now);
        hold.into_iter().chain(next).max()
    }

    /// A refusal, or a subscription that ended: nothing more is sent for a while that doubles
    /// each time, so that no exchange can make us repeat ourselves without pause. What goes wrong
    /// before anything more is sent counts once, however much it is.
    pub(crate) fn trouble(&mut self, now: Instant) {
        if self.is_calm(now) {
            self.troubles = 0;
        } else if !self.tried {
            self.troubled = Some(now);
            return;
        }
        self.tried = false;
        let doubled = TROUBLE_DELAY.saturating_mul(2u32.saturating_pow(self.troubles.min(10)));
        self.wait(now, doubled.min(TROUBLE_DELAY_MAX));
        self.troubles = self.troubles.saturating_add(1);
        self.troubled = Some(now);
    }

    /// The same, but once in a while it is forgiven at once; books should not wait.
    pub(crate) fn trouble_once(&mut self, now: Instant) {
        let (calm, hold) = (self.is_calm(now), self.hold);
        self.trouble(now);
        if calm {
            self.hold = hold;
        }
    }

    /// Asking again soon changes nothing.
    pub(crate) fn refused(&mut self, now: Instant) {
        self.trouble(now);
        self.wait(now, TROUBLE_DELAY_MAX);
    }

    fn wait(&mut self, now: Instant, delay: Duration) {
        self.hold = self.hold.max(Some(after(now, delay)));
    }

    /// Whether there was no trouble for so long that it is forgotten.
    fn is_calm(&self, now: Instant) -> bool {
        self.troubled.is_none_or(|last| after(last, TROUBLE_OVER) <= now)
    }

    /// The exchange says these are too many commands. What was already on its way says so too,
    /// and counts once.
    pub(crate) fn too_fast(&mut self, now: Instant) {
        if std::mem::take(&mut self.hurried) || self.spacing.is_zero() {
            self.spacing = (self.spacing * 2).clamp(SPACING, SPACING_MAX);
        }
        self.next = Some(after(now, self.spacing));
    }

    /// The exchange did not finish a command in time: a short pause, longer if it goes on so. What
    /// is said during the pause is of commands from before it.
    pub(crate) fn stalled(&mut self, now: Instant) {
        if self.hold.is_none_or(|hold| hold <= now) {
            let pause = SPACING.saturating_mul(2u32.saturating_pow(self.stalls));
            self.wait(now, pause.min(SPACING_MAX));
            self.stalls = self.stalls.saturating_add(1).min(STALLS_MAX);
        }
    }

    /// A command that changes something was carried out.
    pub(crate) fn moved_on(&mut self) {
        self.stalls = self.stalls.saturating_sub(1);
    }

    /// A command was sent.
    pub(crate) fn sent(&mut self, now: Instant) {
        (self.tried, self.hurried) = (true, true);
        if !self.spacing.is_zero() {
            self.next = Some(after(now, self.spacing));
        }
    }

    /// A command was carried out: a little faster.
    pub(crate) fn went_well(&mut self) {
        self.spacing = self.spacing * 7 / 8;
        if self.spacing < SPACING_MIN {
            (self.spacing, self.next) = (Duration::ZERO, None);
        }
    }

    /// A list of this length was too long: the next ones are half of it. False when it cannot be
    /// shorter; then lists may be long again, and something else must give.
    pub(crate) fn halve(&mut self, length: usize) -> bool {
        if length <= 1 {
            self.chunk = self.chunk_max;
            return false;
        }
        self.chunk = self.chunk.min(length / 2).max(1);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(pace: &Pace, now: Instant) -> Duration {
        pace.held_until(now).map_or(Duration::ZERO, |until| until - now)
    }

    #[test]
    fn trouble_doubles_to_a_minute_and_is_forgotten() {
        let mut pace = Pace::new(500);
        let mut now = crate::clock::now();
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            pace.trouble(now);
            assert_eq!(held(&pace, now), Duration::from_secs(seconds));
            now += Duration::from_secs(seconds);
            pace.sent(now);
        }
        now += TROUBLE_OVER;
        pace.trouble_once(now);
        assert_eq!(held(&pace, now), Duration::ZERO);
        pace.sent(now);
        pace.trouble_once(now);
        assert_eq!(held(&pace, now), Duration::from_secs(2));
    }

    #[test]
    fn an_18_is_backed_off_from_though_commands_are_spaced_and_no_more_than_can_be_made_good() {
        let mut pace = Pace::new(500);
        let mut now = crate::clock::now();
        pace.too_fast(now);
        for round in 0..100 {
            now = pace.held_until(now).unwrap_or(now);
            pace.sent(now);
            pace.stalled(now);
            let pause = SPACING.saturating_mul(2u32.saturating_pow(round)).min(SPACING_MAX);
            assert_eq!(held(&pace, now), pause);
        }
        (0..STALLS_MAX).for_each(|_| pace.moved_on());
        now += SPACING_MAX;
        pace.stalled(now);
        assert_eq!(held(&pace, now), SPACING);
    }

    #[test]
    fn what_goes_wrong_before_anything_more_is_sent_counts_once() {
        let mut pace = Pace::new(500);
        let mut now = crate::clock::now();
        pace.sent(now);
        (0..7).for_each(|_| pace.trouble_once(now));
        assert_eq!(held(&pace, now), Duration::ZERO, "forgiven, all of it");
        for seconds in [2, 4] {
            pace.sent(now);
            (0..7).for_each(|_| pace.trouble_once(now));
            (0..7).for_each(|_| pace.trouble(now));
            assert_eq!(held(&pace, now), Duration::from_secs(seconds));
            now += Duration::from_secs(seconds);
        }
        pace.refused(now);
        assert_eq!(held(&pace, now), TROUBLE_DELAY_MAX, "but this is always waited for");
    }

    #[test]
    fn too_many_commands_slow_it_down_and_success_speeds_it_up() {
        let mut pace = Pace::new(500);
        let mut now = crate::clock::now();
        (0..4).for_each(|_| pace.too_fast(now));
        assert_eq!(held(&pace, now), SPACING);
        now += SPACING;
        pace.sent(now);
        assert_eq!(held(&pace, now), SPACING);
        // At once or later, the answer means the same.
        for (later, doubled) in [(SPACING, 2), (Duration::ZERO, 4), (Duration::ZERO, 8)] {
            now += later;
            (0..4).for_each(|_| pace.too_fast(now));
            assert_eq!(held(&pace, now), SPACING * doubled);
            now += SPACING * doubled;
            pace.sent(now);
        }
        (0..40).for_each(|_| pace.went_well());
        assert_eq!(held(&pace, now), Duration::ZERO);
    }

    #[test]
    fn commands_not_finished_in_time_pause_it_ever_longer_until_some_are() {
        let mut pace = Pace::new(500);
        let mut now = crate::clock::now();
        for pause in [1, 2, 4, 8, 16, 32, 64, 100, 100] {
            (0..4).for_each(|_| pace.stalled(now));
            assert_eq!(held(&pace, now), SPACING * pause);
            now += SPACING * pause;
            pace.sent(now);
        }
        (0..9).for_each(|_| pace.moved_on());
        pace.stalled(now);
        assert_eq!(held(&pace, now), SPACING);
    }

    #[test]
    fn lists_too_long_are_halved_down_to_one() {
        let mut pace = Pace::new(500);
        assert!(pace.halve(500) && pace.halve(500));
        assert_eq!(pace.chunk(), 250);
        assert!(pace.halve(2));
        assert_eq!(pace.chunk(), 1);
        assert!(!pace.halve(1));
        assert_eq!(pace.chunk(), 500);
    }
}
