//! Looks up the exchange's addresses on a thread of its own, because the system's lookup blocks
//! for as long as it likes. That thread is never joined: it ends when its queue does. The
//! connector starts it, so it is kept on the same cores.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};

use crate::error::Cause;

/// Interrupts the wait of another thread.
pub(crate) type Wake = Arc<dyn Fn() + Send + Sync>;

/// What a lookup gave.
pub(crate) type Lookup = Result<Vec<SocketAddr>, Cause>;

/// Where the connector asks for addresses. At most one lookup is under way.
pub(crate) trait Resolver {
    /// Asks, unless an answer is still due.
    fn ask(&mut self);
    /// The answer, if one has come.
    fn answer(&mut self) -> Option<Lookup>;
}

/// The system's name service.
pub(crate) struct SystemResolver {
    host: String,
    port: u16,
    /// Our end's address, when it is not the routes' to choose.
    own: Option<IpAddr>,
    wake: Wake,
    state: State,
}

enum State {
    /// The host is an address: no thread needed.
    Fixed(SocketAddr, bool),
    Idle,
    Asked(Receiver<Lookup>),
}

impl SystemResolver {
    /// A resolver of one host that calls `wake` when an answer is there.
    pub(crate) fn new((host, port): (&str, u16), own: Option<IpAddr>, wake: Wake) -> Self {
        let state = match host.parse::<IpAddr>() {
            Ok(address) => State::Fixed(SocketAddr::new(address, port), false),
            Err(_) => State::Idle,
        };
        Self { host: host.to_owned(), port, own, wake, state }
    }
}

impl Resolver for SystemResolver {
    fn ask(&mut self) {
        match &mut self.state {
            State::Fixed(_, asked) => {
                *asked = true;
                (self.wake)();
            }
            State::Asked(_) => {}
            State::Idle => {
                let (sender, receiver) = bounded(1);
                self.state = State::Asked(receiver);
                let (host, wake) = (self.host.clone(), Arc::clone(&self.wake));
                spawn_lookup((host, self.port), self.own, sender, wake);
            }
        }
    }

    fn answer(&mut self) -> Option<Lookup> {
        match &mut self.state {
            State::Fixed(address, asked) => std::mem::take(asked).then(|| Ok(vec![*address])),
            State::Idle => None,
            State::Asked(receiver) => {
                let answer = match receiver.try_recv() {
                    Err(TryRecvError::Empty) => return None,
                    Ok(answer) => answer,
                    Err(TryRecvError::Disconnected) => {
                        Err(Cause::Local { message: "no thread for a name lookup".to_owned() })
                    }
                };
                self.state = State::Idle;
                Some(answer)
            }
        }
    }
}

/// Those that can be reached from our end's address.
fn reachable(found: Vec<SocketAddr>, own: Option<IpAddr>) -> Result<Vec<SocketAddr>, String> {
    if found.is_empty() {
        return Err("no address".to_owned());
    }
    let same = |peer: &SocketAddr| own.is_none_or(|own| own.is_ipv4() == peer.is_ipv4());
    let addresses: Vec<_> = found.into_iter().filter(same).collect();
    match own.filter(|_| addresses.is_empty()) {
        Some(own) => Err(format!("no address that bind_address {own} can reach; name another")),
        None => Ok(addresses),
    }
}

fn spawn_lookup(
    (host, port): (String, u16),
    own: Option<IpAddr>,
    sender: Sender<Lookup>,
    wake: Wake,
) {
    let lookup = move || {
        let found = (host.as_str(), port).to_socket_addrs();
        let answer = found
            .map_err(|error| error.to_string())
            .and_then(|found| reachable(found.collect(), own))
            .map_err(|message| Cause::Resolve { host, message });
        // The connector may be gone by now; then nobody needs the answer.
        sender.try_send(answer).unwrap_or_default();
        wake();
    };
    let builder = std::thread::Builder::new().name("kf-resolver".to_owned());
    // Without a thread the sender is dropped, which `answer` reports.
    drop(builder.spawn(lookup));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_our_ends_family_are_tried() {
        let (four, six) = (([127, 0, 0, 1], 1).into(), "[::1]:1".parse().unwrap());
        let own = Some([127, 0, 0, 2].into());
        assert_eq!(reachable(vec![six, four], None).unwrap(), [six, four]);
        assert_eq!(reachable(vec![six, four], own).unwrap(), [four]);
        assert!(reachable(vec![six], own).unwrap_err().contains("bind_address 127.0.0.2"));
        assert_eq!(reachable(vec![], own).unwrap_err(), "no address");
    }
}
