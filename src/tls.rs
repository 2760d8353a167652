//! TLS over memory, behind a thin adapter: bytes of the socket in, plaintext out, bytes to send
//! collected. It owns no socket, and everything of the TLS library that changes with its version
//! is here, in `tickets`, and nowhere else.
//!
//! Records are decrypted where they were received and copied once, to where the plaintext goes on
//! from: no allocation for a record, none for a message.

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
}

impl Tls {
    /// Begins a connection to the host of this name; its hello waits in `outgoing`.
    pub(crate) fn new(config: &TlsConfig, name: ServerName<'static>) -> Result<Self, Cause> {
        let mut outgoing = Vec::new();
        let connection = config.0.connect(name).build(&mut outgoing).map_err(cause_of)?;
        Ok(Self { connection, outgoing, tail: Vec::new() })
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

    /// Puts what waits for its rest at the front of `scratch`, and says how long that is: receive
    /// behind it.
    pub(crate) fn resume(&self, scratch: &mut [u8]) -> usize {
        if let Some(front) = scratch.get_mut(..self.tail.len()) {
            front.copy_from_slice(&self.tail);
        }
        self.tail.len()
    }

    /// Decrypts `bytes`, which begin with what `resume` put there, and appends the plaintext.
    /// True when the peer has closed its side. After an error nothing more may be read; an alert
    /// waits to be sent, and what was decrypted before it stands.
    pub(crate) fn read(&mut self, bytes: &mut [u8], plain: &mut Vec<u8>) -> Result<bool, Cause> {
        let mut input = SliceInput::new(bytes);
        let mut handler = self.connection.read_tls(&mut input, &mut self.outgoing);
        while let Some(payload) = handler.next_payload() {
            plain.extend_from_slice(payload.map_err(cause_of)?.bytes());
        }
        let closed = handler.state().peer_has_closed();
        let rest = input.into_used();
        self.tail.clear();
        let rest = bytes.get(rest..).unwrap_or_default();
        if rest.len() > TAIL_BYTES_MAX {
            return Err(Cause::Tls { message: "a handshake message without end".into() });
        }
        self.tail.extend_from_slice(rest);
        Ok(closed)
    }
}

fn cause_of(error: Error) -> Cause {
    match error {
        Error::InvalidCertificate(reason) => Cause::Certificate { message: reason.to_string() },
        error => Cause::Tls { message: error.to_string() },
    }
}
