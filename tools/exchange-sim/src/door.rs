//! A listening address that can be shut, so that connecting is refused, and opened again. It
//! accepts; what becomes of the connections is not its business.

use std::io;
use std::net::SocketAddr;

use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};

/// A listener, or the place of one.
#[derive(Debug)]
pub(crate) struct Door {
    address: SocketAddr,
    listener: Option<TcpListener>,
}

impl Door {
    /// Listens on an address; port 0 picks a free one.
    pub(crate) fn open(wanted: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(wanted)?;
        Ok(Self { address: listener.local_addr()?, listener: Some(listener) })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match &mut self.listener {
            Some(listener) => registry.register(listener, token, Interest::READABLE),
            None => Ok(()),
        }
    }

    /// Opens or shuts it. Shut, it refuses, and resets what it has not accepted yet.
    pub(crate) fn set_open(
        &mut self,
        open: bool,
        registry: &Registry,
        token: Token,
    ) -> io::Result<()> {
        if !open {
            self.listener = None;
        } else if self.listener.is_none() {
            self.listener = Some(TcpListener::bind(self.address)?);
            self.register(registry, token)?;
        }
        Ok(())
    }

    /// The next connection; `WouldBlock` when there is none.
    pub(crate) fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        match &self.listener {
            Some(listener) => listener.accept(),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}
