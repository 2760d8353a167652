//! Looks up the exchange's addresses on a thread of its own, because the system's lookup blocks
//! for as long as it likes. That thread is never joined: it ends when its queue does.

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
    pub(crate) fn new(host: &str, port: u16, wake: Wake) -> Self {
        let state = match host.parse::<IpAddr>() {
            Ok(address) => State::Fixed(SocketAddr::new(address, port), false),
            Err(_) => State::Idle,
        };
        Self { host: host.to_owned(), port, wake, state }
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
                spawn_lookup(self.host.clone(), self.port, sender, Arc::clone(&self.wake));
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

fn spawn_lookup(host: String, port: u16, sender: Sender<Lookup>, wake: Wake) {
    let lookup = move || {
        let found = (host.as_str(), port).to_socket_addrs();
        let answer = match found.map(Iterator::collect::<Vec<_>>) {
            Ok(addresses) if !addresses.is_empty() => Ok(addresses),
            Ok(_) => Err(Cause::Resolve { host, message: "no address".to_owned() }),
            Err(error) => Err(Cause::Resolve { host, message: error.to_string() }),
        };
        // The connector may be gone by now; then nobody needs the answer.
        sender.try_send(answer).unwrap_or_default();
        wake();
    };
    let builder = std::thread::Builder::new().name("kf-resolver".to_owned());
    // Without a thread the sender is dropped, which `answer` reports.
    drop(builder.spawn(lookup));
}
