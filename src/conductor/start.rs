//! Whether a start has succeeded, and if not, what was missing.

use std::time::Instant;

use super::{Conductor, Phase};
use crate::code::ExchangeCode;
use crate::connection::{Connection, State};
use crate::error::{Cause, StartError};
use crate::ids::{ConnId, Role};

impl<L> Conductor<L> {
    pub(super) fn judge_start(&mut self, now: Instant) {
        let Phase::Starting { until } = self.phase else {
            return;
        };
        let healthy = self.connections.iter().filter(|connection| connection.is_live()).count();
        let halted = |c: &&Connection| matches!(c.state, State::Halted);
        let possible = self.connections.len() - self.connections.iter().filter(halted).count();
        let verdict = if let Some((channel, code)) = self.rejected_global() {
            Err(StartError::GlobalRejected { channel, code })
        } else if healthy >= self.parts.min_healthy && self.globals_are_open() {
            Ok(())
        } else if possible < self.parts.min_healthy {
            Err(StartError::Halted { healthy, causes: self.causes() })
        } else if until <= now {
            Err(StartError::Timeout { healthy, causes: self.causes() })
        } else {
            return;
        };
        if verdict.is_ok() {
            self.has_started = true;
            self.remembered.clear();
        }
        self.answer_start(verdict);
        self.phase = Phase::Running;
    }

    pub(super) fn answer_start(&self, verdict: Result<(), StartError>) {
        // The starter may have given up waiting; it tears us down then.
        self.parts.started.try_send(verdict).unwrap_or_default();
    }

    fn globals_are_open(&self) -> bool {
        self.global_roles()
            .all(|role| self.of_role(role).any(|conn| self.parts.subscriptions.is_open(conn)))
    }

    /// A global channel that the exchange refused on every line.
    fn rejected_global(&self) -> Option<(&'static str, ExchangeCode)> {
        self.global_roles().find_map(|role| {
            let mut refusals =
                self.of_role(role).map(|conn| self.parts.subscriptions.refused(conn));
            let first = refusals.next().flatten()?;
            refusals
                .all(|refusal| refusal.is_some())
                .then_some((self.parts.dialect.channel(role), first))
        })
    }

    fn global_roles(&self) -> impl Iterator<Item = Role> + '_ {
        let pool = self.parts.counters.pool;
        Role::ALL.into_iter().filter(move |&role| role.is_global() && pool.of(role) > 0)
    }

    fn of_role(&self, role: Role) -> impl Iterator<Item = ConnId> + '_ {
        let of_role = move |connection: &&Connection| connection.role == role;
        self.connections.iter().filter(of_role).map(|connection| connection.conn)
    }

    fn causes(&self) -> Vec<(ConnId, Cause)> {
        let cause = |connection: &Connection| Some((connection.conn, connection.cause.clone()?));
        self.connections.iter().filter_map(cause).collect()
    }
}
