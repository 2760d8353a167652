//! The handle's controls over the network between clients and the exchange. They do nothing
//! themselves but pass the calls on.

use std::net::SocketAddr;

use crate::exchange::Exchange;
use crate::proxy::Proxy;
use crate::wire::Wire;

impl Exchange {
    /// What the network does from now on, on the connections there are and on new ones. Returns
    /// whether there is a proxy ([`crate::ExchangeConfig::proxy`]) to do it.
    pub fn set_wire(&self, wire: Wire) -> bool {
        self.on_proxy(move |proxy| proxy.set_wire(wire)).is_some()
    }

    /// What it does from now on with the connections of these clients. Returns how many there were.
    pub fn set_wire_of(&self, peers: &[SocketAddr], wire: Wire) -> usize {
        let peers = peers.to_vec();
        self.on_proxy(move |proxy| proxy.set_wire_of(&peers, wire)).unwrap_or(0)
    }

    /// The network resets connections on both sides; what is on its way is lost. Returns how many
    /// there were.
    pub fn reset(&self, peers: &[SocketAddr]) -> usize {
        let peers = peers.to_vec();
        self.on_proxy(move |proxy| proxy.reset(&peers)).unwrap_or(0)
    }

    /// Client addresses of everything the proxy holds, connections not upgraded among them.
    #[must_use]
    pub fn wired(&self) -> Vec<SocketAddr> {
        self.on_proxy(|proxy| proxy.peers()).unwrap_or_default()
    }

    /// Whether connecting is possible: with `false` it is refused, as by a host where nobody
    /// listens; connections there are go on. Returns whether it now is as asked.
    #[must_use = "another program may have taken the port meanwhile"]
    pub fn set_listening(&self, open: bool) -> bool {
        let done = match &self.proxy {
            Some(proxy) => proxy.ask(move |proxy| proxy.set_open(open)),
            None => self.ask(move |server| server.set_open(open)),
        };
        match done {
            Some(Ok(())) => true,
            Some(Err(error)) => {
                log::warn!("the exchange cannot listen again: {error}");
                false
            }
            None => false,
        }
    }

    fn on_proxy<R: Send + 'static>(
        &self,
        order: impl FnOnce(&mut Proxy) -> R + Send + 'static,
    ) -> Option<R> {
        self.proxy.as_ref()?.ask(order)
    }
}
