//! TLS over memory, behind a thin adapter: bytes of the socket in, plaintext out, bytes to send
//! collected. It owns no socket, and everything of the TLS library that changes with its version
//! is here, in `tickets`, and nowhere else.
//!
//! Records are decrypted where they were received, and their plaintext is closed up there: no other
//! copy, no allocation for a record, none for a message.

use std::ops::Range;
use std::sync::Arc;

use rustls::client::{ClientConfig, ClientSide, Resumption};
use rustls::error::Error;
use rustls::pki_types::ServerName;
use rustls::{Connection, HandshakeKind, RootCertStore, SliceInput, Tcp};

use crate::error::Cause;
use crate::tickets::TicketStore;

/// A part of a record, or of a handshake message in several, that may wait for the rest.
pub(crate) const TAIL_BYTES_MAX: usize = 64 << 10;
/// What is encrypted at once.
const WRITE_BYTES: usize = 16 << 10;

/// What every connection of the pool shares: verified certificates, tickets.
#[derive(Clone, Debug)]
pub(crate) struct TlsConfig(Arc<ClientConfig>);

impl TlsConfig {
    /// Trusts these authorities and keeps tickets enough for `connections`.
    pub(crate) fn new(roots: RootCertStore, connections: usize) -> Result<Self, Cause> {
        let provider = Arc::new(rustls_ring::DEFAULT_PROVIDER);
        let mut config = ClientConfig::builder(provider)
            .with_root_certificates(roots)
            .with_no_client_auth()
            .map_err(cause_of)?;
        config.resumption = Resumption::store(Arc::new(TicketStore::new(connections)));
        Ok(Self(Arc::new(config)))
    }
}

/// One TLS connection.
pub(crate) struct Tls {
    connection: Connection<ClientSide, Tcp>,
    /// Encrypted, to be sent.
    outgoing: Vec<u8>,
    /// Received, not yet a whole record.
    tail: Vec<u8>,
    /// Where in what was received the plaintext of the last read lies; kept for its memory.
    places: Vec<Range<usize>>,
}

impl Tls {
    /// Begins a connection to the host of this name; its hello waits in `outgoing`.
    pub(crate) fn new(config: &TlsConfig, name: ServerName<'static>) -> Result<Self, Cause> {
        let mut outgoing = Vec::new();
        let connection = config.0.connect(name).build(&mut outgoing).map_err(cause_of)?;
        Ok(Self { connection, outgoing, tail: Vec::new(), places: Vec::new() })
    }

    pub(crate) fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Whether the handshake resumed a session.
    pub(crate) fn resumed(&self) -> Option<bool> {
        let kind = self.connection.handshake_kind()?;
        Some(matches!(kind, HandshakeKind::Resumed | HandshakeKind::ResumedWithHelloRetryRequest))
    }

    /// What is to be sent; take off the front what was.
    pub(crate) fn outgoing(&mut self) -> &mut Vec<u8> {
        &mut self.outgoing
    }

    /// Encrypts some of `bytes`, unless enough is waiting to be sent, and takes it off the front.
    pub(crate) fn write(&mut self, bytes: &mut Vec<u8>) -> Result<(), Cause> {
        if !self.outgoing.is_empty() {
            return Ok(());
        }
        let some = bytes.get(..bytes.len().min(WRITE_BYTES)).unwrap_or_default();
        self.connection.write(some.into(), &mut self.outgoing).map_err(cause_of)?;
        bytes.drain(..some.len());
        Ok(())
    }

    /// What waits for its rest: the next bytes belong behind it.
    pub(crate) fn tail(&self) -> &[u8] {
        &self.tail
    }

    /// Puts plaintext in the place of `bytes` from `begin` on, which are `tail` and what was
    /// received behind it. True when the peer has closed its side. After an error nothing more may
    /// be read; an alert waits to be sent, and what was decrypted before it stands.
    pub(crate) fn read(&mut self, bytes: &mut Vec<u8>, begin: usize) -> Result<bool, Cause> {
        let received = bytes.get_mut(begin..).unwrap_or_default();
        let address = received.as_ptr().addr();
        let mut input = SliceInput::new(received);
        let mut handler = self.connection.read_tls(&mut input, &mut self.outgoing);
        let mut failure = None;
        while let Some(payload) = handler.next_payload() {
            match payload {
                Ok(payload) => self.places.extend(place(payload.bytes(), address)),
                Err(error) => failure = Some(cause_of(error)),
            }
        }
        let closed = handler.state().peer_has_closed();
        let used = input.into_used();
        let rest = received.get(used..).unwrap_or_default();
        self.tail.clear();
        if rest.len() <= TAIL_BYTES_MAX {
            self.tail.extend_from_slice(rest);
        } else {
            let message = "a handshake message without end".to_owned();
            failure = failure.or(Some(Cause::Tls { message }));
        }
        close_up(bytes, begin, self.places.drain(..));
        failure.map_or(Ok(closed), Err)
    }
}

/// Where `part`, decrypted in place, lies in what begins at `address`; an empty one lies nowhere.
fn place(part: &[u8], address: usize) -> Option<Range<usize>> {
    let start = part.as_ptr().addr().checked_sub(address).filter(|_| !part.is_empty())?;
    Some(start..start.saturating_add(part.len()))
}

/// Keeps of the bytes from `begin` on those at these places, each behind the one before, without
/// what is between them.
fn close_up(bytes: &mut Vec<u8>, begin: usize, places: impl Iterator<Item = Range<usize>>) {
    let mut end = begin;
    for place in places {
        let place = begin.saturating_add(place.start)..begin.saturating_add(place.end);
        if end <= place.start && place.end <= bytes.len() {
            let length = place.len();
            bytes.copy_within(place, end);
            end += length;
        }
    }
    bytes.truncate(end);
}

fn cause_of(error: Error) -> Cause {
    match error {
        Error::InvalidCertificate(reason) => Cause::Certificate { message: reason.to_string() },
        error => Cause::Tls { message: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_apart_is_closed_up() {
        let mut bytes = b"ab-cde--fg-h".to_vec();
        close_up(&mut bytes, 2, [1..4, 6..8, 9..10].into_iter());
        assert_eq!(bytes, b"abcdefgh");
        close_up(&mut bytes, 2, [4..9, 4..5, 0..1, usize::MAX..usize::MAX].into_iter());
        assert_eq!(bytes, b"abg", "neither from beyond the end nor over what was kept");
    }
}
