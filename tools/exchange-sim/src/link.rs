//! One TCP connection: socket, optional TLS, and how far its conversation has come. Moves bytes; it
//! never decides what they say.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use rustls::{HandshakeKind, ServerConfig, ServerConnection};
use socket2::SockRef;

use crate::config::Packing;
use crate::frame::Reader;
use crate::ledger::Ended;
use crate::liveliness::Trickle;
use crate::manners::Manners;
use crate::outbox::Outbox;

/// Plaintext given to TLS at a time: four full records.
const TLS_CHUNK: usize = 64 * 1024;

/// How far the conversation has come.
#[derive(Debug)]
pub(crate) enum Stage {
    /// TLS handshake and HTTP request; the request's bytes so far.
    Upgrading(Vec<u8>),
    /// The answer to the upgrade goes out byte by byte.
    Trickling(Trickle),
    Open,
    /// Nothing more is said; waits for the client to go.
    Mute,
    /// Our Close is queued; waits for the client's. The deadline is armed once all is written.
    AwaitClose {
        write_by: Instant,
        until: Option<Instant>,
    },
    /// Writes what is queued, then FIN.
    Finishing {
        by: Instant,
    },
    /// FIN sent; reads until the client's, so that no reset destroys what it has not read yet.
    Lingering {
        until: Instant,
    },
}

/// What reading brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fill {
    Bytes(usize),
    Blocked,
    /// FIN or TLS close_notify.
    End,
    /// Reset, or bytes that are not TLS.
    Broken,
}

/// What comes when all is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Farewell {
    /// close_notify and FIN.
    Polite,
    Fin,
    Reset,
    /// Half of one more TLS record, and FIN.
    HalfRecord,
    /// Bytes that are no TLS, and FIN.
    Garbage,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Link {
    socket: TcpStream,
    tls: Option<Box<ServerConnection>>,
    pub(crate) stage: Stage,
    pub(crate) reader: Reader,
    pub(crate) accepted: Instant,
    pub(crate) last_sent: Instant,
    pub(crate) last_ping: Instant,
    pub(crate) manners: Manners,
    pub(crate) farewell: Farewell,
    /// The client's end is known to be gone, though nothing was read from it.
    pub(crate) hung_up: bool,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// TLS records made of what was queued.
    pub(crate) records: u64,
    packing: Packing,
    pub(crate) ended: Ended,
}

impl Link {
    pub(crate) fn new(
        socket: TcpStream,
        tls: Option<Arc<ServerConfig>>,
        packing: Packing,
        now: Instant,
    ) -> Result<Self, rustls::Error> {
        let mut tls = tls.map(ServerConnection::new).transpose()?.map(Box::new);
        if let Some(tls) = &mut tls {
            // What it is given in one go is bounded here, and must never be taken in part.
            tls.set_buffer_limit(None);
        }
        Ok(Self {
            socket,
            tls,
            stage: Stage::Upgrading(Vec::new()),
            reader: Reader::default(),
            accepted: now,
            last_sent: now,
            last_ping: now,
            manners: Manners::default(),
            farewell: Farewell::Polite,
            hung_up: false,
            readable: true,
            writable: true,
            records: 0,
            packing,
            ended: Ended::Open,
        })
    }

    pub(crate) fn socket(&mut self) -> &mut TcpStream {
        &mut self.socket
    }

    pub(crate) fn resumed(&self) -> bool {
        let kind = self.tls.as_ref().and_then(|tls| tls.handshake_kind());
        kind == Some(HandshakeKind::Resumed)
    }

    /// Reads some plaintext into `into`.
    pub(crate) fn fill(&mut self, into: &mut [u8]) -> Fill {
        let Some(tls) = &mut self.tls else {
            return outcome(self.socket.read(into), &mut self.readable);
        };
        loop {
            match tls.reader().read(into) {
                Ok(0) => return Fill::End,
                Ok(count) => return Fill::Bytes(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // The stream ended without close_notify.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Fill::End,
                Err(_) => return Fill::Broken,
            }
            match outcome(tls.read_tls(&mut self.socket), &mut self.readable) {
                // End of TCP: one more turn of the reader says whether TLS agrees.
                Fill::Bytes(_) | Fill::End => {}
                other => return other,
            }
            if tls.process_new_packets().is_err() {
                // The alert says why; that it goes out is a courtesy.
                drop(tls.write_tls(&mut self.socket));
                return Fill::Broken;
            }
        }
    }

    /// Whether TLS has bytes of its own to write, a handshake's for example.
    pub(crate) fn wants_write(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Writes what is queued until all is in the kernel (true) or the socket is full (false).
    pub(crate) fn flush(&mut self, out: &mut Outbox, now: Instant) -> io::Result<bool> {
        loop {
            let result = match &mut self.tls {
                Some(tls) if tls.wants_write() => tls.write_tls(&mut self.socket),
                Some(_) | None if !out.is_due() => return Ok(true),
                Some(tls) if tls.is_handshaking() => return Ok(true),
                Some(tls) => {
                    let mut given = 0;
                    while given < TLS_CHUNK && out.is_due() {
                        let chunk = match self.packing {
                            Packing::Stream => {
                                let pending = out.pending();
                                pending.get(..TLS_CHUNK).unwrap_or(pending)
                            }
                            packing => out.record(packing),
                        };
                        self.records += chunk.len().div_ceil(1 << 14) as u64;
                        let taken = tls.writer().write(chunk)?;
                        out.consume(taken);
                        given += taken;
                    }
                    continue;
                }
                None => {
                    let written = self.socket.write(out.pending());
                    if let Ok(count) = written {
                        out.consume(count);
                    }
                    written
                }
            };
            match result {
                Ok(_) => self.last_sent = now,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.writable = false;
                    return Ok(false);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends close_notify and FIN; what was queued must have been flushed.
    pub(crate) fn finish(&mut self, linger: Duration, now: Instant) {
        // A socket too full for the last bytes still carries the FIN.
        match (self.farewell, &mut self.tls) {
            (Farewell::Polite, Some(tls)) => {
                tls.send_close_notify();
                drop(tls.write_tls(&mut self.socket));
            }
            (Farewell::HalfRecord, Some(tls)) => {
                let mut record = Vec::new();
                drop(tls.writer().write(&[0x81, 9, b'n', b'e', b'v', b'e', b'r', b' ', b'c']));
                drop(tls.write_tls(&mut record));
                record.truncate(record.len() / 2);
                drop(self.socket.write(&record));
            }
            (Farewell::Garbage, _) => drop(self.socket.write(b"220 what is this? \r\n")),
            _ => {}
        }
        drop(self.socket.shutdown(Shutdown::Write));
        self.stage = Stage::Lingering { until: now + linger };
    }

    /// Changes the keys it encrypts with, and asks the client to do the same (TLS 1.3).
    pub(crate) fn renew_keys(&mut self) -> bool {
        self.tls.as_mut().is_some_and(|tls| tls.refresh_traffic_keys().is_ok())
    }

    /// Makes dropping the socket a TCP reset.
    pub(crate) fn arm_reset(&self) {
        drop(SockRef::from(&self.socket).set_linger(Some(Duration::ZERO)));
    }

    /// Whether data frames may be generated for it.
    pub(crate) fn open(&self) -> bool {
        matches!(self.stage, Stage::Open)
    }
}

fn outcome(read: io::Result<usize>, readable: &mut bool) -> Fill {
    match read {
        Ok(0) => Fill::End,
        Ok(count) => Fill::Bytes(count),
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            *readable = false;
            Fill::Blocked
        }
        Err(error) if error.kind() == ErrorKind::Interrupted => Fill::Bytes(0),
        Err(_) => Fill::Broken,
    }
}
