//! Whether a start has succeeded, and if not, what was missing.

use std::time::Instant;

use super::{Conductor, Phase};
use crate::code::{Action, ExchangeCode};
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
        // What asking again cannot change ends the start at once; the rest may pass.
        let verdict = if let Some(rejected) = self.rejected_global(is_final) {
            Err(rejected)
        } else if healthy >= self.parts.min_healthy && self.globals_are_open() {
            Ok(())
        } else if possible < self.parts.min_healthy {
            Err(StartError::Halted { healthy, causes: self.causes() })
        } else if until <= now {
            // While other connections are missing, their causes say more than what may pass.
            let enough = healthy >= self.parts.min_healthy;
            let rejected = self.rejected_global(|_| true).filter(|_| enough);
            Err(rejected.unwrap_or_else(|| StartError::Timeout { healthy, causes: self.causes() }))
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

    /// A global channel that the exchange refused on every line, with such a code.
    fn rejected_global(&self, counts: fn(ExchangeCode) -> bool) -> Option<StartError> {
        self.global_roles().find_map(|role| {
            let mut refusals = self
                .of_role(role)
                .map(|conn| self.parts.subscriptions.refused(conn).filter(|code| counts(*code)));
            let code = refusals.next().flatten()?;
            let channel = self.parts.dialect.channel(role);
            let all = refusals.all(|refusal| refusal.is_some());
            all.then_some(StartError::GlobalRejected { channel, code })
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

/// Whether asking again soon changes nothing.
fn is_final(code: ExchangeCode) -> bool {
    code.action() == Action::Refuse
}
