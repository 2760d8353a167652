//! Looks up the exchange's addresses on a thread of its own, because the system's lookup blocks
//! for as long as it likes. That thread is never joined: it ends when its queue does. The
//! connector starts it, so it is kept on the same cores.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use crossbeam_channel::{Receiver, TryRecvError, bounded};

use crate::error::Cause;

/// How long a lookup may take until another is begun beside it.
const PATIENCE: Duration = Duration::from_secs(60);
/// Lookups under way at a time, those that hang among them.
const LOOKUPS_MAX: usize = 4;

/// Interrupts the wait of another thread.
pub(crate) type Wake = Arc<dyn Fn() + Send + Sync>;

/// What a lookup gave.
pub(crate) type Lookup = Result<Vec<SocketAddr>, Cause>;

/// Where the connector asks for addresses.
pub(crate) trait Resolver {
    /// Asks, unless an answer is still due and may well come.
    fn ask(&mut self, now: Instant);
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
    /// Oldest first.
    under_way: ArrayVec<Receiver<Lookup>, LOOKUPS_MAX>,
    state: State,
}

/// Blocks for as long as it likes.
type LookUp = fn(&str, u16) -> io::Result<Vec<SocketAddr>>;

enum State {
    /// The host is an address: no thread needed.
    Fixed(SocketAddr, bool),
    Idle,
    /// An answer is due since.
    Asked(Instant),
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
        let (host, under_way) = (host.to_owned(), ArrayVec::new());
        Self { host, port, own, wake, lookup: system, under_way, state }
    }

    /// Takes the answer of whichever lookup has one; one that was given up on may still bring it.
    fn take_answer(&mut self) -> Option<Lookup> {
        for index in 0..self.under_way.len() {
            let answer = match self.under_way.get(index)?.try_recv() {
                Err(TryRecvError::Empty) => continue,
                Ok(answer) => answer,
                Err(TryRecvError::Disconnected) => {
                    let message = "the thread of a name lookup has ended by a bug".to_owned();
                    Err(Cause::Local { message })
                }
            };
            self.under_way.remove(index);
            return Some(answer);
        }
        None
    }
}

impl Resolver for SystemResolver {
    fn ask(&mut self, now: Instant) {
        match &mut self.state {
            State::Fixed(_, asked) => {
                *asked = true;
                return (self.wake)();
            }
            State::Asked(since) if now.saturating_duration_since(*since) < PATIENCE => return,
            State::Asked(_) => log::warn!(
                "a lookup of {} has taken longer than {PATIENCE:?}; is the name service well?",
                self.host
            ),
            State::Idle | State::Refused(_) => {}
        }
        self.state = State::Asked(now);
        if self.under_way.is_full() {
            return;
        }
        let place = (self.host.clone(), self.port);
        match spawn_lookup(place, self.own, self.lookup, Arc::clone(&self.wake)) {
            Ok(lookup) => self.under_way.push(lookup),
            Err(error) => self.state = State::Refused(error),
        }
    }

    fn answer(&mut self) -> Option<Lookup> {
        let answer = match &mut self.state {
            State::Fixed(address, asked) => {
                return std::mem::take(asked).then(|| Ok(vec![*address]));
            }
            State::Refused(error) => {
                let message = format!("no thread for a name lookup: {error}");
                Err(Cause::Local { message })
            }
            State::Idle | State::Asked(_) => self.take_answer()?,
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
        resolver.ask(crate::clock::now());
        (resolver, wakes)
    }

    const SOON: Duration = Duration::from_secs(30);

    fn hangs(_: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
        loop {
            std::thread::park();
        }
    }

    #[test]
    fn a1_a_lookup_that_hangs_blocks_nobody_and_is_not_asked_twice() {
        let (mut resolver, wakes) = asked(hangs);
        let now = crate::clock::now();
        for _ in 0..1_000 {
            resolver.ask(now + PATIENCE / 2);
            assert_eq!(resolver.answer(), None);
        }
        assert!(wakes.is_empty());
        assert_eq!(resolver.under_way.len(), 1);
    }

    #[test]
    fn a1_a_lookup_that_hangs_for_long_is_not_the_last() {
        let (mut resolver, wakes) = asked(hangs);
        let now = crate::clock::now();
        resolver.ask(now + 2 * PATIENCE);
        resolver.lookup = |_, port| Ok(vec![([10, 0, 0, 1], port).into()]);
        resolver.ask(now + 4 * PATIENCE);
        wakes.recv_timeout(SOON).unwrap();
        assert_eq!(resolver.answer(), Some(Ok(vec![([10, 0, 0, 1], 443).into()])));
        assert_eq!(resolver.answer(), None);
        // However many hang, there are never more than a few.
        resolver.lookup = hangs;
        for round in 3..20 {
            resolver.ask(now + 2 * round * PATIENCE);
            assert_eq!(resolver.answer(), None);
        }
        assert_eq!(resolver.under_way.len(), LOOKUPS_MAX);
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
        resolver.ask(crate::clock::now());
        wakes.recv_timeout(SOON).unwrap();
        assert!(matches!(resolver.answer(), Some(Err(Cause::Resolve { .. }))));
    }
}
