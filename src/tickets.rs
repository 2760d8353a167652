//! TLS session tickets of the whole pool, so that a reconnect storm resumes instead of paying 150
//! full handshakes. Shards put tickets in, the connector takes them out, no lock between: rustls'
//! own store keeps eight behind a mutex. One pool speaks to one host, so the name is not a key.

use std::fmt;
use std::sync::atomic::{AtomicU16, Ordering};

use crossbeam_queue::ArrayQueue;
use rustls::client::{ClientSessionKey, ClientSessionStore, Tls12Session, Tls13Session};
use rustls::crypto::kx::NamedGroup;

/// Keeps the newest tickets, twice as many as there are connections.
pub(crate) struct TicketStore {
    tickets: ArrayQueue<Tls13Session>,
    sessions: ArrayQueue<Tls12Session>,
    /// The key-exchange group the host chose last; zero for none.
    group: AtomicU16,
}

impl TicketStore {
    pub(crate) fn new(connections: usize) -> Self {
        Self {
            tickets: ArrayQueue::new(connections.saturating_mul(2).max(2)),
            sessions: ArrayQueue::new(1),
            group: AtomicU16::new(0),
        }
    }
}

impl ClientSessionStore for TicketStore {
    fn set_kx_hint(&self, _: ClientSessionKey<'static>, group: NamedGroup) {
        self.group.store(u16::from(group), Ordering::Relaxed);
    }

    fn kx_hint(&self, _: &ClientSessionKey<'_>) -> Option<NamedGroup> {
        match self.group.load(Ordering::Relaxed) {
            0 => None,
            code => Some(NamedGroup::from(code)),
        }
    }

    fn set_tls12_session(&self, _: ClientSessionKey<'static>, value: Tls12Session) {
        self.sessions.force_push(value);
    }

    fn tls12_session(&self, _: &ClientSessionKey<'_>) -> Option<Tls12Session> {
        let session = self.sessions.pop()?;
        self.sessions.force_push(session.clone());
        Some(session)
    }

    fn remove_tls12_session(&self, _: &ClientSessionKey<'static>) {
        self.sessions.pop();
    }

    fn insert_tls13_ticket(&self, _: ClientSessionKey<'static>, value: Tls13Session) {
        // Full: the oldest goes.
        self.tickets.force_push(value);
    }

    fn take_tls13_ticket(&self, _: &ClientSessionKey<'static>) -> Option<Tls13Session> {
        self.tickets.pop()
    }
}

impl fmt::Debug for TicketStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TicketStore({} of {})", self.tickets.len(), self.tickets.capacity())
    }
}
