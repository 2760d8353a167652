//! The edge to the network: TCP and TLS on a mio poll. The connector and the shards reach sockets
//! only through [`Transport`], so that tests can put a scripted network in its place.
//!
//! One large `recv` goes where the plaintext will be, and TLS decrypts it there. Registration is
//! edge-triggered: whoever gets `more` must come back without waiting for another event.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};
use rustix::buffer::spare_capacity;
use rustix::net::{RecvFlags, recv};
use rustls::pki_types::ServerName;

use crate::clock::{self, CpuTime, Stamp};
use crate::error::Cause;
use crate::socket::{ArrivalTimes, SocketOptions, io_cause};
use crate::tls::{Tls, TlsConfig};
use crate::warning::Warnings;

/// What one `recv` asks for at least; at most what the buffer has room for (`LARGE_BYTES`).
pub(crate) const RECV_BYTES: usize = 64 << 10;
/// Events taken from one poll.
const EVENTS_MAX: usize = 1_024;
const WAKER: Token = Token(usize::MAX);

/// What a read gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// Bytes, perhaps none of them plaintext; `more` when another read may give more.
    Some { more: bool, at: Stamp },
    /// Nothing until the next readable event.
    Blocked,
    /// The peer will send nothing more.
    Ended,
}

/// How much of what waited the socket took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    All,
    Some,
    None,
}

impl Sent {
    fn of(all: bool, any: bool) -> Self {
        match (all, any) {
            (true, _) => Self::All,
            (false, true) => Self::Some,
            (false, false) => Self::None,
        }
    }
}

/// A link with something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ready {
    pub(crate) token: usize,
    /// The peer has shut its side: read until the end, whatever a short read suggests.
    pub(crate) read_closed: bool,
}

/// The network as the engine sees it. Nothing here blocks but `wait`.
pub(crate) trait Transport {
    /// One connection, moved between threads once, when the connector hands it over.
    type Link: Send + 'static;

    /// Begins a TCP connection.
    fn dial(&mut self, address: SocketAddr) -> Result<Self::Link, Cause>;
    /// Asks for the link's events under `token`.
    fn register(&mut self, link: &mut Self::Link, token: usize) -> Result<(), Cause>;
    /// Asks for no more of them.
    fn deregister(&mut self, link: &mut Self::Link);
    /// Whether TCP is established.
    fn connected(&mut self, link: &mut Self::Link) -> Result<bool, Cause>;
    /// Drives the TLS handshake; true when it is done.
    fn secure(&mut self, link: &mut Self::Link) -> Result<bool, Cause>;
    /// Whether the handshake resumed a session; none without TLS.
    fn resumed(&self, link: &Self::Link) -> Option<bool>;
    /// Reads once and appends the plaintext.
    fn receive(&mut self, link: &mut Self::Link, plain: &mut Vec<u8>) -> Result<Received, Cause>;
    /// Takes bytes off the front of `bytes` and sends as much as the socket accepts.
    fn send(&mut self, link: &mut Self::Link, bytes: &mut Vec<u8>) -> Result<Sent, Cause>;
    /// Our end's address.
    fn local_addr(&self, link: &Self::Link) -> Option<SocketAddr>;
    /// Waits for events, a wake-up or the timeout.
    fn wait(&mut self, timeout: Option<Duration>, ready: &mut Vec<Ready>) -> io::Result<()>;
    /// The time of a read.
    fn stamp(&self) -> Stamp;
    /// The time, for measuring.
    fn now(&self) -> Instant;
    /// CPU time of the calling thread, for measuring.
    fn cpu(&self) -> CpuTime;
}

/// TCP and TLS.
pub(crate) struct TcpTransport {
    poll: Poll,
    events: Events,
    tls: Option<(TlsConfig, ServerName<'static>)>,
    /// What comes during a handshake.
    scratch: Vec<u8>,
    options: SocketOptions,
    /// Only when reads take the kernel's time of arrival.
    arrivals: Option<ArrivalTimes>,
    warnings: Arc<Warnings>,
}

/// One TCP connection, with TLS unless the url said `ws://`.
pub(crate) struct TcpLink {
    socket: TcpStream,
    peer: SocketAddr,
    tls: Option<Box<Tls>>,
}

impl TcpTransport {
    /// A transport with its own poll, and the waker that interrupts its `wait`.
    pub(crate) fn new(
        tls: Option<(TlsConfig, ServerName<'static>)>,
        options: SocketOptions,
        warnings: Arc<Warnings>,
    ) -> io::Result<(Self, Arc<Waker>)> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let events = Events::with_capacity(EVENTS_MAX);
        let scratch = Vec::new();
        let arrivals = options.kernel_timestamps.then(ArrivalTimes::new);
        Ok((Self { poll, events, tls, scratch, options, arrivals, warnings }, waker))
    }
}

impl Transport for TcpTransport {
    type Link = TcpLink;

    fn dial(&mut self, peer: SocketAddr) -> Result<TcpLink, Cause> {
        let socket = self.options.connect(peer, &self.warnings)?;
        let tls = match &self.tls {
            None => None,
            Some((config, name)) => Some(Box::new(Tls::new(config, name.clone())?)),
        };
        Ok(TcpLink { socket, peer, tls })
    }

    fn register(&mut self, link: &mut TcpLink, token: usize) -> Result<(), Cause> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll
            .registry()
            .register(&mut link.socket, Token(token), interest)
            .map_err(|error| Cause::Local { message: format!("cannot watch a socket: {error}") })
    }

    fn deregister(&mut self, link: &mut TcpLink) {
        // Refused only when it was not registered, and then there is nothing to undo.
        self.poll.registry().deregister(&mut link.socket).unwrap_or_default();
    }

    fn connected(&mut self, link: &mut TcpLink) -> Result<bool, Cause> {
        if let Some(error) = link.socket.take_error().ok().flatten() {
            return Err(io_cause(&error, link.peer));
        }
        match link.socket.peer_addr() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(io_cause(&error, link.peer)),
        }
    }

    fn secure(&mut self, link: &mut TcpLink) -> Result<bool, Cause> {
        let TcpLink { socket, peer, tls: Some(tls) } = link else {
            return Ok(true);
        };
        loop {
            write_out(socket, tls.outgoing(), *peer)?;
            if !tls.is_handshaking() {
                return Ok(true);
            }
            self.scratch.clear();
            self.scratch.extend_from_slice(tls.tail());
            match read(socket, &mut self.scratch, &mut None) {
                Ok((0, _)) => {
                    return Err(Cause::Tls { message: "ended during the handshake".into() });
                }
                Ok(_) => {
                    tls.read(&mut self.scratch, 0).inspect_err(|_| tell_alert(socket, tls))?;
                    if !self.scratch.is_empty() {
                        return Err(Cause::Tls { message: "data before our request".into() });
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io_cause(&error, *peer)),
            }
        }
    }

    fn resumed(&self, link: &TcpLink) -> Option<bool> {
        link.tls.as_ref()?.resumed()
    }

    fn receive(&mut self, link: &mut TcpLink, plain: &mut Vec<u8>) -> Result<Received, Cause> {
        let TcpLink { socket, peer, tls } = link;
        let begin = plain.len();
        plain.extend_from_slice(tls.as_ref().map_or(&[], |tls| tls.tail()));
        let (count, arrived) = match read(socket, plain, &mut self.arrivals) {
            Ok((count, arrived)) if count > 0 => (count, arrived),
            read => {
                plain.truncate(begin);
                return read.map_or_else(|e| nothing_read(&e, *peer), |_| Ok(Received::Ended));
            }
        };
        let mut at = clock::stamp();
        at.wall = arrived.unwrap_or(at.wall);
        let more = count >= RECV_BYTES;
        let Some(tls) = tls else {
            return Ok(Received::Some { more, at });
        };
        if tls.read(plain, begin).inspect_err(|_| tell_alert(socket, tls))? {
            return Ok(Received::Ended);
        }
        if !tls.outgoing().is_empty() {
            write_out(socket, tls.outgoing(), *peer)?;
        }
        Ok(Received::Some { more, at })
    }

    fn send(&mut self, link: &mut TcpLink, bytes: &mut Vec<u8>) -> Result<Sent, Cause> {
        let TcpLink { socket, peer, tls } = link;
        let Some(tls) = tls else {
            return write_out(socket, bytes, *peer);
        };
        let mut any = false;
        loop {
            tls.write(bytes)?;
            let written = write_out(socket, tls.outgoing(), *peer)?;
            any |= written != Sent::None;
            if written != Sent::All || bytes.is_empty() {
                return Ok(Sent::of(written == Sent::All && bytes.is_empty(), any));
            }
        }
    }

    fn local_addr(&self, link: &TcpLink) -> Option<SocketAddr> {
        link.socket.local_addr().ok()
    }

    fn wait(&mut self, timeout: Option<Duration>, ready: &mut Vec<Ready>) -> io::Result<()> {
        let mut timeout = timeout;
        while let Err(error) = self.poll.poll(&mut self.events, timeout) {
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
            // Stopped and continued, perhaps much later: what has come meanwhile is looked at now.
            timeout = Some(Duration::ZERO);
        }
        ready.extend(self.events.iter().filter(|event| event.token() != WAKER).map(|event| {
            let read_closed = event.is_read_closed() || event.is_error();
            Ready { token: event.token().0, read_closed }
        }));
        Ok(())
    }

    fn stamp(&self) -> Stamp {
        clock::stamp()
    }

    fn now(&self) -> Instant {
        clock::now()
    }

    fn cpu(&self) -> CpuTime {
        clock::thread_cpu()
    }
}

/// Reads once and appends; says how much it was, and when it reached this machine if that was
/// asked for.
fn read(
    socket: &TcpStream,
    bytes: &mut Vec<u8>,
    arrivals: &mut Option<ArrivalTimes>,
) -> io::Result<(usize, Option<SystemTime>)> {
    if let Some(arrivals) = arrivals {
        return arrivals.read(socket, bytes);
    }
    if bytes.capacity() - bytes.len() < RECV_BYTES {
        bytes.reserve(RECV_BYTES);
    }
    let (count, _) = recv(socket, spare_capacity(bytes), RecvFlags::empty())?;
    Ok((count, None))
}

/// What it means that a read failed.
fn nothing_read(error: &io::Error, peer: SocketAddr) -> Result<Received, Cause> {
    match error.kind() {
        io::ErrorKind::WouldBlock => Ok(Received::Blocked),
        io::ErrorKind::Interrupted => Ok(Received::Some { more: true, at: clock::stamp() }),
        _ => Err(io_cause(error, peer)),
    }
}

/// Takes off the front of `bytes` what the socket accepts.
fn write_out(socket: &mut TcpStream, bytes: &mut Vec<u8>, peer: SocketAddr) -> Result<Sent, Cause> {
    let mut sent = 0;
    let verdict = loop {
        match bytes.get(sent..) {
            None | Some([]) => break Ok(Sent::All),
            Some(rest) => match socket.write(rest) {
                Ok(0) => break Ok(Sent::of(false, sent > 0)),
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    break Ok(Sent::of(false, sent > 0));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(io_cause(&error, peer)),
            },
        }
    };
    bytes.drain(..sent);
    verdict
}

/// After a TLS error, one try at telling the peer why; the connection ends either way.
fn tell_alert(socket: &mut TcpStream, tls: &mut Tls) {
    socket.write(tls.outgoing()).unwrap_or_default();
}
