//! TLS session tickets of the whole pool, so that a reconnect storm resumes instead of paying 150
//! full handshakes. Shards put tickets in, the connector takes them out, no lock between: rustls'
//! own store keeps eight behind a mutex. One pool speaks to one host, so the name is not a key.

use std::fmt;
use std::sync::atomic::{AtomicU16, Ordering};

use crossbeam_queue::ArrayQueue;
use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;

/// Keeps the newest tickets, twice as many as there are connections.
pub(crate) struct TicketStore {
    tickets: ArrayQueue<Tls13ClientSessionValue>,
    sessions: ArrayQueue<Tls12ClientSessionValue>,
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
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.group.store(u16::from(group), Ordering::Relaxed);
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        match self.group.load(Ordering::Relaxed) {
            0 => None,
            code => Some(NamedGroup::from(code)),
        }
    }

    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.sessions.force_push(value);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        let session = self.sessions.pop()?;
        self.sessions.force_push(session.clone());
        Some(session)
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.sessions.pop();
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        // Full: the oldest goes.
        self.tickets.force_push(value);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.tickets.pop()
    }
}

impl fmt::Debug for TicketStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TicketStore({} of {})", self.tickets.len(), self.tickets.capacity())
    }
}
