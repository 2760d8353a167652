//! Who is in the pool, as the events tell it: addresses, epochs, troubles. It decides nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use kalshi_feed::{Cause, ConnId, Event, ExchangeCode, Role};

/// A live connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) conn: ConnId,
    pub(crate) role: Role,
    pub(crate) epoch: u32,
    pub(crate) address: SocketAddr,
}

/// The pool by its events.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    live: BTreeMap<ConnId, Member>,
    trouble: Option<(ConnId, Cause)>,
    refused: Option<(ConnId, ExchangeCode, usize)>,
    thread_lost: Option<String>,
}

impl Roster {
    /// Takes an event in.
    pub(crate) fn note(&mut self, event: &Event) {
        match event {
            Event::Up { conn, role, epoch, local_addr } => {
                let member = Member {
                    conn: *conn,
                    role: *role,
                    epoch: epoch.number(),
                    address: *local_addr,
                };
                self.live.insert(*conn, member);
            }
            Event::Down { conn, epoch, cause, .. } => {
                if self.live.get(conn).is_some_and(|member| member.epoch <= epoch.number()) {
                    self.live.remove(conn);
                }
                self.trouble = Some((*conn, cause.clone()));
            }
            Event::AttemptFailed { conn, cause, .. } | Event::Halted { conn, cause, .. } => {
                self.trouble = Some((*conn, cause.clone()));
            }
            Event::Refused { conn, code, markets, .. } => {
                self.refused = Some((*conn, *code, *markets));
            }
            Event::ThreadLost { thread } => self.thread_lost = Some(thread.clone()),
            _ => {}
        }
    }

    /// The live connections, by number.
    pub(crate) fn live(&self) -> impl Iterator<Item = &Member> {
        self.live.values()
    }

    /// The live connection in this place.
    pub(crate) fn member(&self, conn: ConnId) -> Option<&Member> {
        self.live.get(&conn)
    }

    /// What last went wrong with a connection, for people.
    pub(crate) fn trouble(&self) -> String {
        match &self.trouble {
            Some((conn, cause)) => format!("; last: connection {conn}: {cause}"),
            None => String::new(),
        }
    }

    /// What the exchange last refused, for people.
    pub(crate) fn refusal(&self) -> String {
        match self.refused {
            Some((conn, code, markets)) => format!(
                "; last: connection {conn}: a command of {markets} markets refused with code {code}"
            ),
            None => String::new(),
        }
    }

    /// A thread of the engine that ended by a bug.
    pub(crate) fn thread_lost(&self) -> Option<&str> {
        self.thread_lost.as_deref()
    }
}
