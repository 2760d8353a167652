//! Looks up the exchange's addresses on a thread of its own, because the system's lookup blocks
//! for as long as it likes. That thread is never joined: it ends when its queue does. The
//! connector starts it, so it is kept on the same cores.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use crossbeam_channel::{Receiver, TryRecvError, bounded};

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
    lookup: LookUp,
    state: State,
}

/// Blocks for as long as it likes.
type LookUp = fn(&str, u16) -> io::Result<Vec<SocketAddr>>;

enum State {
    /// The host is an address: no thread needed.
    Fixed(SocketAddr, bool),
    Idle,
    Asked(Receiver<Lookup>),
    /// There was no thread to ask.
    Refused(io::Error),
}

impl SystemResolver {
    /// A resolver of one host that calls `wake` when an answer is there.
    pub(crate) fn new((host, port): (&str, u16), own: Option<IpAddr>, wake: Wake) -> Self {
        let state = match host.parse::<IpAddr>() {
            Ok(address) => State::Fixed(SocketAddr::new(address, port), false),
            Err(_) => State::Idle,
        };
        Self { host: host.to_owned(), port, own, wake, lookup: system, state }
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
            State::Idle | State::Refused(_) => {
                let place = (self.host.clone(), self.port);
                let asked = spawn_lookup(place, self.own, self.lookup, Arc::clone(&self.wake));
                self.state = asked.map_or_else(State::Refused, State::Asked);
            }
        }
    }

    fn answer(&mut self) -> Option<Lookup> {
        let local = |message| Err(Cause::Local { message });
        let answer = match &mut self.state {
            State::Fixed(address, asked) => {
                return std::mem::take(asked).then(|| Ok(vec![*address]));
            }
            State::Idle => return None,
            State::Refused(error) => local(format!("no thread for a name lookup: {error}")),
            State::Asked(receiver) => match receiver.try_recv() {
                Err(TryRecvError::Empty) => return None,
                Ok(answer) => answer,
                Err(TryRecvError::Disconnected) => {
                    local("the thread of a name lookup has ended by a bug".to_owned())
                }
            },
        };
        self.state = State::Idle;
        Some(answer)
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

/// Looks the host up on a thread of its own.
fn spawn_lookup(
    (host, port): (String, u16),
    own: Option<IpAddr>,
    lookup: LookUp,
    wake: Wake,
) -> io::Result<Receiver<Lookup>> {
    let (sender, receiver) = bounded(1);
    let run = move || {
        // However this ends, the connector looks for the answer then.
        let _wakes_last = WakeAtEnd(wake);
        let sender = sender;
        let answer = lookup(&host, port)
            .map_err(|error| error.to_string())
            .and_then(|found| reachable(found, own))
            .map_err(|message| Cause::Resolve { host, message });
        // The connector may be gone by now; then nobody needs the answer.
        sender.try_send(answer).unwrap_or_default();
    };
    std::thread::Builder::new().name("kf-resolver".to_owned()).spawn(run)?;
    Ok(receiver)
}

struct WakeAtEnd(Wake);

impl Drop for WakeAtEnd {
    fn drop(&mut self) {
        (self.0)();
    }
}

fn system(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    (host, port).to_socket_addrs().map(Iterator::collect)
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
    fn asked(lookup: LookUp) -> (SystemResolver, Receiver<()>) {
        let (woken, wakes) = bounded(8);
        let wake: Wake = Arc::new(move || woken.try_send(()).unwrap_or_default());
        let mut resolver = SystemResolver::new(("exchange.test", 443), None, wake);
        resolver.lookup = lookup;
        resolver.ask();
        (resolver, wakes)
    }

    const SOON: std::time::Duration = std::time::Duration::from_secs(30);

    #[test]
    fn a1_a_lookup_that_hangs_blocks_nobody_and_is_not_asked_twice() {
        let (mut resolver, wakes) = asked(|_, _| {
            loop {
                std::thread::park();
            }
        });
        for _ in 0..1_000 {
            resolver.ask();
            assert_eq!(resolver.answer(), None);
        }
        assert!(wakes.is_empty());
    }

    #[test]
    fn a1_an_answer_wakes_and_is_given_once() {
        let (mut resolver, wakes) = asked(|_, port| Ok(vec![([10, 0, 0, 1], port).into()]));
        wakes.recv_timeout(SOON).unwrap();
        assert_eq!(resolver.answer(), Some(Ok(vec![([10, 0, 0, 1], 443).into()])));
        assert_eq!(resolver.answer(), None);
    }

    #[test]
    fn g5_a_lookup_that_panics_is_told_of_and_the_next_one_asked() {
        let (mut resolver, wakes) = asked(|_, _| panic!("a bug, put here on purpose"));
        wakes.recv_timeout(SOON).unwrap();
        let Some(Err(Cause::Local { message })) = resolver.answer() else { panic!() };
        assert!(message.contains("ended by a bug"), "{message}");
        resolver.lookup = |_, _| Err(io::ErrorKind::NotFound.into());
        resolver.ask();
        wakes.recv_timeout(SOON).unwrap();
        assert!(matches!(resolver.answer(), Some(Err(Cause::Resolve { .. }))));
    }
}
