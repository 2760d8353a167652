//! The life of one place in the pool, as a pure state machine: what to do when an attempt starts,
//! succeeds, fails, or a live connection is lost. No socket, no clock, no queue.
//!
//! ```text
//! Idle ─► Attempting{stage} ─► Live{epoch, since} ─► Waiting{until} ─► Attempting …
//!              └────────── fails ──────────────────────┘      └─► Halted{cause}
//! ```
//! `Attempting` covers resolving, connecting, securing and upgrading: the connector drives those
//! and enforces one deadline over all of them; ours is a second later, should it fail to report.

use std::time::{Duration, Instant};

use crate::backoff::Backoff;
use crate::error::{Cause, Disposition};
use crate::ids::{ConnId, Epoch, Role};
use crate::timer::after;

/// Live this long, and heard from, a connection has proven itself: its attempts count from zero.
const STABLE: Duration = Duration::from_secs(30);
/// Failures in a row after which a cause that an operator should see to halts the connection.
const FAILURES_MAX: u32 = 3;
/// How much later than the connector's our own deadline of an attempt is.
const ATTEMPT_GRACE: Duration = Duration::from_secs(1);

/// Where a connection is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Never tried.
    Idle,
    /// An attempt is under way until `deadline` at the latest.
    Attempting { deadline: Instant },
    /// Upgraded and on its shard.
    Live { since: Instant },
    /// The next attempt is due.
    Waiting { until: Instant },
    /// Nothing more is tried.
    Halted,
}

/// What came of an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Another attempt after this delay.
    Retry(Duration),
    /// None any more.
    Halt,
}

/// One place in the pool.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub(crate) conn: ConnId,
    pub(crate) role: Role,
    pub(crate) epoch: Epoch,
    /// The last epoch of an earlier run.
    before: Epoch,
    pub(crate) state: State,
    /// Why it is not live, if it is not.
    pub(crate) cause: Option<Cause>,
    /// Whether it was ever live: the next time is a reconnect.
    pub(crate) was_live: bool,
    /// Retries since it last proved itself.
    attempt: u32,
    /// Failures in a row of the kind that halts.
    grave: u32,
}

impl Connection {
    pub(crate) fn new(conn: ConnId, role: Role) -> Self {
        Self {
            conn,
            role,
            epoch: Epoch::new(0),
            before: Epoch::new(0),
            state: State::Idle,
            cause: None,
            was_live: false,
            attempt: 0,
            grave: 0,
        }
    }

    /// Its epochs begin after this one: messages of that may still wait for the host.
    pub(crate) fn begin_after(&mut self, epoch: Epoch) {
        (self.epoch, self.before) = (epoch, epoch);
    }

    /// Whether it was never tried in this run.
    pub(crate) fn is_untried(&self) -> bool {
        self.epoch == self.before
    }

    /// When something must happen by itself.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Attempting { deadline } => Some(deadline),
            State::Waiting { until } => Some(until),
            State::Idle | State::Live { .. } | State::Halted => None,
        }
    }

    /// Whether an attempt is due.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        match self.state {
            State::Idle => true,
            State::Waiting { until } => until <= now,
            State::Attempting { .. } | State::Live { .. } | State::Halted => false,
        }
    }

    pub(crate) fn is_live(&self) -> bool {
        matches!(self.state, State::Live { .. })
    }

    /// Whether its first attempt has ended, one way or the other.
    pub(crate) fn is_settled(&self) -> bool {
        match self.state {
            State::Idle => false,
            State::Attempting { .. } => {
                self.epoch.number() > self.before.number().saturating_add(1)
            }
            State::Live { .. } | State::Waiting { .. } | State::Halted => true,
        }
    }

    /// Begins an attempt: a new epoch.
    pub(crate) fn begin(&mut self, now: Instant, connect_timeout: Duration) -> Epoch {
        self.epoch = Epoch::new(self.epoch.number().saturating_add(1));
        let deadline = after(after(now, connect_timeout), ATTEMPT_GRACE);
        self.state = State::Attempting { deadline };
        self.epoch
    }

    /// The attempt succeeded. True when this is a return rather than the first time.
    pub(crate) fn up(&mut self, now: Instant) -> bool {
        self.state = State::Live { since: now };
        self.cause = None;
        std::mem::replace(&mut self.was_live, true)
    }

    /// The attempt failed, or the live connection was lost.
    pub(crate) fn down(
        &mut self,
        cause: Cause,
        heard: bool,
        now: Instant,
        backoff: &Backoff,
        random: &mut fastrand::Rng,
    ) -> Verdict {
        if let State::Live { since } = self.state
            && now.saturating_duration_since(since) >= STABLE
        {
            // A life of its own, however quiet, ends a row of failures.
            self.grave = 0;
            self.attempt = if heard { 0 } else { self.attempt };
        }
        let disposition = cause.disposition();
        self.cause = Some(cause);
        self.grave = match disposition {
            Disposition::HaltAfterThree => self.grave.saturating_add(1),
            _ => 0,
        };
        let delay = match disposition {
            Disposition::Halt => None,
            Disposition::HaltAfterThree if self.grave >= FAILURES_MAX => None,
            Disposition::RetrySoon => Some(backoff.delay(self.attempt, random)),
            Disposition::BackOff | Disposition::ClockTrouble | Disposition::HaltAfterThree => {
                self.attempt = self.attempt.max(1);
                Some(backoff.delay(self.attempt, random))
            }
            Disposition::RetryAfter(least) => {
                let drawn = backoff.delay(self.attempt.max(1), random);
                Some(drawn.max(least.min(backoff.max)))
            }
        };
        self.attempt = self.attempt.saturating_add(1);
        match delay {
            Some(delay) => {
                self.state = State::Waiting { until: after(now, delay) };
                Verdict::Retry(delay)
            }
            None => {
                self.state = State::Halted;
                Verdict::Halt
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Script {
        connection: Connection,
        backoff: Backoff,
        random: fastrand::Rng,
        start: Instant,
    }

    impl Script {
        fn new() -> Self {
            let second = Duration::from_secs(1);
            Self {
                connection: Connection::new(ConnId::new(7), Role::Orderbook),
                backoff: Backoff { initial: second, max: 300 * second, factor: 2.0 },
                random: fastrand::Rng::with_seed(1),
                start: crate::clock::now(),
            }
        }

        fn at(&self, seconds: u64) -> Instant {
            self.start + Duration::from_secs(seconds)
        }

        fn begin(&mut self, seconds: u64) -> Epoch {
            let now = self.at(seconds);
            self.connection.begin(now, Duration::from_secs(10))
        }

        fn up(&mut self, seconds: u64) -> bool {
            let now = self.at(seconds);
            self.connection.up(now)
        }

        fn down(&mut self, seconds: u64, cause: Cause) -> Verdict {
            let now = self.at(seconds);
            self.connection.down(cause, true, now, &self.backoff, &mut self.random)
        }
    }

    fn refused() -> Cause {
        Cause::Upgrade { status: 403, detail: String::new(), retry_after: None }
    }

    /// Who moves a state on if nothing ever happens again.
    fn moved_on_by(state: &State) -> &'static str {
        match state {
            State::Idle => "due at once",
            State::Attempting { .. } | State::Waiting { .. } => "its own deadline",
            State::Live { .. } => "its link's deadline, on its shard",
            State::Halted => "an operator",
        }
    }

    #[test]
    fn i3_every_state_but_the_last_is_moved_on_by_somebody() {
        let mut script = Script::new();
        let far = script.at(1_000_000);
        let mut met = Vec::new();
        let mut check = |script: &Script| {
            let connection = &script.connection;
            let by = moved_on_by(&connection.state);
            met.push(by);
            let deadline = connection.deadline();
            assert_eq!(deadline.is_some(), by == "its own deadline", "{connection:?}");
            assert!(deadline.is_none_or(|deadline| deadline < far));
            let waits = matches!(connection.state, State::Idle | State::Waiting { .. });
            assert_eq!(connection.is_due(far), waits, "{connection:?}");
        };
        check(&script);
        script.begin(0);
        assert_eq!(script.connection.deadline(), Some(script.at(11)));
        check(&script);
        script.up(1);
        check(&script);
        script.down(2, Cause::Reset);
        assert!(script.connection.deadline().unwrap() <= script.at(3));
        check(&script);
        script.begin(4);
        script.down(5, Cause::Stopped);
        check(&script);
        met.dedup();
        assert_eq!(met.len(), 5, "{met:?}");
    }

    #[test]
    fn epochs_grow_with_every_attempt() {
        let mut script = Script::new();
        assert_eq!(script.begin(0), Epoch::new(1));
        script.down(1, Cause::Reset);
        assert_eq!(script.begin(2), Epoch::new(2));
        assert!(!script.up(3), "never live before");
        script.down(4, Cause::Ended);
        script.begin(5);
        assert!(script.up(6), "a return");
    }

    #[test]
    fn after_a_start_that_failed_the_first_attempt_is_the_first_again_with_a_new_epoch() {
        let mut script = Script::new();
        script.connection.begin_after(Epoch::new(5));
        assert!(script.connection.is_untried());
        assert_eq!(script.begin(0), Epoch::new(6));
        assert!(!script.connection.is_untried() && !script.connection.is_settled());
        script.down(1, Cause::Reset);
        script.begin(2);
        assert!(script.connection.is_settled(), "markets wait for the first attempt alone");
    }

    #[test]
    fn j2_a_flapping_server_does_not_reset_the_backoff() {
        let mut script = Script::new();
        for round in 0..10 {
            script.begin(round * 6);
            script.up(round * 6);
            script.down(round * 6 + 3, Cause::Ended);
        }
        assert_eq!(script.connection.attempt, 10);
        script.begin(100);
        script.up(100);
        script.down(130, Cause::Ended);
        assert_eq!(script.connection.attempt, 1, "thirty seconds live prove it");
    }

    #[test]
    fn b3_what_an_operator_must_see_halts_after_three_in_a_row() {
        let mut script = Script::new();
        for round in 0..2 {
            script.begin(round);
            assert!(matches!(script.down(round, refused()), Verdict::Retry(_)));
        }
        script.begin(3);
        assert_eq!(script.down(3, refused()), Verdict::Halt);
        assert!(!script.connection.is_due(script.at(1_000_000)));
    }

    #[test]
    fn an_interrupted_row_of_failures_starts_over() {
        let mut script = Script::new();
        for round in 0..20 {
            script.begin(round);
            let cause = if round % 3 == 2 { Cause::Reset } else { refused() };
            assert!(matches!(script.down(round, cause), Verdict::Retry(_)));
        }
    }

    #[test]
    fn d3_a_close_for_policy_halts_after_three_in_a_row_though_each_came_after_going_live() {
        let policy = || Cause::PeerClosed { code: Some(1008), reason: String::new() };
        let mut script = Script::new();
        for round in 0..2 {
            script.begin(round);
            script.up(round);
            assert!(matches!(script.down(round, policy()), Verdict::Retry(_)));
        }
        script.begin(3);
        script.up(3);
        script.down(40, policy());
        assert_eq!(script.connection.grave, 1, "thirty seconds live prove it");
        for round in 50..52 {
            script.begin(round);
            script.up(round);
            script.down(round, policy());
        }
        assert_eq!(script.connection.state, State::Halted);
    }

    #[test]
    fn b1_a_bad_key_halts_at_once() {
        let mut script = Script::new();
        script.begin(0);
        let cause = Cause::Upgrade {
            status: 401,
            detail: "authentication_error NOT_FOUND".to_owned(),
            retry_after: None,
        };
        assert_eq!(script.down(0, cause), Verdict::Halt);
    }

    #[test]
    fn b4_retry_after_is_honoured_and_capped() {
        for (asked, least, most) in [(7, 7, 7), (999_999, 300, 300)] {
            let mut script = Script::new();
            script.begin(0);
            let retry_after = Some(Duration::from_secs(asked));
            let cause = Cause::Upgrade { status: 429, detail: String::new(), retry_after };
            let Verdict::Retry(delay) = script.down(0, cause) else { panic!("halted") };
            assert!((least..=most).contains(&delay.as_secs()), "{delay:?}");
        }
    }
}
