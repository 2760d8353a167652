//! Sockets in virtual time, between the engine's transport and the exchange: bytes take time, come
//! in pieces, stop coming, end. Edges as mio tells them: one event when something arrives, none
//! for what was there before. It knows nothing of what the bytes say.

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::clock::{Agenda, Clock};
use super::faults::{Fault, Faults};
use super::trace::Trace;
use crate::clock::{CpuTime, Stamp};
use crate::error::Cause;
use crate::resolve::{Lookup, Resolver};
use crate::transport::{Ready, Received, Sent, Transport};

/// Who waits for events: the connector, then the shards.
pub(super) const CONNECTOR: usize = 1;

/// What is on its way.
#[derive(Debug)]
pub(super) enum Part {
    Bytes(Vec<u8>),
    Fin,
    Reset,
}

/// What is to happen.
#[derive(Debug)]
pub(super) enum Event {
    Connected {
        link: usize,
        refused: bool,
    },
    /// At our end.
    Arrives {
        link: usize,
        part: Part,
    },
    /// At the exchange's end.
    Reaches {
        link: usize,
        part: Part,
    },
    Unblocked {
        link: usize,
    },
    Resolved {
        ok: bool,
    },
    /// The exchange's turn, on one connection.
    Sends {
        link: usize,
    },
    /// Its turn, on both lines of pairs.
    Feeds,
    Pings {
        link: usize,
    },
    Carries {
        link: usize,
    },
    Finishes {
        link: usize,
    },
    Replies {
        link: usize,
    },
    /// Something goes wrong.
    Mishap,
    HostLooks,
    RegistryLooks,
    /// The world looks whether all is well.
    Looks,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Socket {
    /// Whose poll watches it, and under which token.
    watch: Option<(usize, usize)>,
    connected: Option<bool>,
    pub(super) inbox: Vec<u8>,
    /// Bytes that came to our end, and bytes the engine read.
    pub(super) arrived: u64,
    pub(super) read: u64,
    /// How many by when.
    pub(super) read_by: Vec<(Duration, u64)>,
    /// Reads since this was last set to none.
    reads: usize,
    /// How it ended, once that is known at our end.
    ending: Option<Part>,
    /// The engine still has its end.
    pub(super) open: bool,
    /// Bytes that are taken before no more are.
    window: Option<usize>,
    wants_room: bool,
    /// Nothing passes any more.
    pub(super) severed: bool,
    /// Nothing passes in either direction before what was sent last.
    pub(super) last_to_us: Duration,
    last_to_peer: Duration,
    /// When something last came to our end.
    pub(super) heard: Duration,
}

/// All that is under way.
pub(super) struct Network {
    pub(super) clock: Clock,
    pub(super) agenda: Agenda<Event>,
    pub(super) faults: Faults,
    pub(super) trace: Trace,
    pub(super) sockets: Vec<Socket>,
    /// By who waits for them.
    ready: Vec<VecDeque<Ready>>,
    /// Links the engine has dropped.
    gone: (Sender<usize>, Receiver<usize>),
    /// The most that one read gives.
    pub(super) read_bytes: usize,
    /// A lookup is under way, and an answer waits.
    asked: bool,
    answer: Option<Lookup>,
    addresses: u8,
    /// Whether the name service ever answers.
    pub(super) name_service: bool,
    /// Reading this link is a bug of the engine's, the next time.
    pub(super) panics: Option<usize>,
    /// Addresses where nobody answers.
    pub(super) black_holes: BTreeSet<SocketAddr>,
}

impl Network {
    pub(super) fn new(faults: Faults, waiters: usize) -> Self {
        Self {
            clock: Clock::new(),
            agenda: Agenda::new(),
            faults,
            trace: Trace::new(),
            sockets: Vec::new(),
            ready: vec![VecDeque::new(); waiters],
            gone: bounded(100_000),
            read_bytes: 512,
            asked: false,
            answer: None,
            addresses: 2,
            name_service: true,
            panics: None,
            black_holes: BTreeSet::new(),
        }
    }

    pub(super) fn now(&self) -> Duration {
        self.clock.now
    }

    pub(super) fn later(&mut self, by: Duration, event: Event) {
        self.agenda.add(self.clock.now + by, event);
    }

    /// Whether somebody's poll would return at once.
    pub(super) fn is_ready(&self, waiter: usize) -> bool {
        let answered = waiter == CONNECTOR && self.answer.is_some();
        answered || self.ready.get(waiter).is_some_and(|ready| !ready.is_empty())
    }

    /// Whether the engine has just dropped a link.
    pub(super) fn has_dropped(&self) -> bool {
        !self.gone.1.is_empty()
    }

    /// How often this one has read of the link since this was last asked.
    pub(super) fn take_reads(&mut self, link: usize, waiter: usize) -> usize {
        let socket = &mut self.sockets[link];
        let own = socket.watch.is_some_and(|(watcher, _)| watcher == waiter);
        if own { std::mem::take(&mut socket.reads) } else { 0 }
    }

    /// Links the engine dropped are closed.
    pub(super) fn close_dropped(&mut self) {
        while let Ok(link) = self.gone.1.try_recv() {
            self.sockets[link].open = false;
            self.sockets[link].watch = None;
            self.depart(link, Part::Fin);
        }
    }

    /// A bug of the engine's strikes this waiter, or does not.
    fn fail(&mut self, waiter: usize, surely: bool) {
        if waiter > CONNECTOR && (self.faults.strikes(Fault::ShardFails) || surely) {
            // A panic that says nothing: it is what was meant.
            std::panic::resume_unwind(Box::new("a bug, put here on purpose"));
        }
    }

    fn latency(&mut self) -> Duration {
        if self.faults.strikes(Fault::Delayed) {
            return self.faults.between_ms(5, 900);
        }
        self.faults.between_ms(1, 3)
    }

    /// The exchange sends.
    pub(super) fn transmit(&mut self, link: usize, part: Part) {
        if let Part::Bytes(bytes) = &part
            && bytes.len() > 1
            && self.faults.strikes(Fault::Sliced)
        {
            let at = 1 + self.faults.below(bytes.len() - 1);
            let (front, rest) = bytes.split_at(at);
            self.arrive(link, Part::Bytes(front.to_vec()));
            return self.transmit(link, Part::Bytes(rest.to_vec()));
        }
        self.arrive(link, part);
    }

    fn arrive(&mut self, link: usize, part: Part) {
        let at = (self.clock.now + self.latency()).max(self.sockets[link].last_to_us);
        self.sockets[link].last_to_us = at;
        self.agenda.add(at, Event::Arrives { link, part });
    }

    /// When so many bytes of it had been read.
    pub(super) fn read_at(&self, link: usize, bytes: u64) -> Option<Duration> {
        let reads = &self.sockets[link].read_by;
        reads.get(reads.partition_point(|(_, read)| *read < bytes)).map(|(at, _)| *at)
    }

    /// Nothing that is sent from now on arrives before so long.
    pub(super) fn stall(&mut self, link: usize, by: Duration) {
        let socket = &mut self.sockets[link];
        socket.last_to_us = socket.last_to_us.max(self.clock.now + by);
    }

    /// Something comes to our end.
    pub(super) fn arrived(&mut self, link: usize, part: Part) {
        let now = self.clock.now;
        let socket = &mut self.sockets[link];
        if socket.severed || !socket.open || socket.ending.is_some() {
            return;
        }
        socket.heard = now;
        let read_closed = !matches!(part, Part::Bytes(_));
        match part {
            Part::Bytes(bytes) => {
                socket.arrived += crate::ids::widen(bytes.len());
                socket.inbox.extend_from_slice(&bytes);
            }
            end => socket.ending = Some(end),
        }
        self.tell(link, read_closed);
    }

    pub(super) fn connected(&mut self, link: usize, refused: bool) {
        if self.sockets[link].open {
            self.sockets[link].connected = Some(!refused);
            self.tell(link, refused);
        }
    }

    /// An edge.
    fn tell(&mut self, link: usize, read_closed: bool) {
        if let Some((waiter, token)) = self.sockets[link].watch {
            self.ready[waiter].push_back(Ready { token, read_closed });
        }
    }

    /// The engine's bytes go on their way.
    fn depart(&mut self, link: usize, part: Part) {
        if self.sockets[link].severed {
            return;
        }
        let at = (self.clock.now + self.latency()).max(self.sockets[link].last_to_peer);
        self.sockets[link].last_to_peer = at;
        self.agenda.add(at, Event::Reaches { link, part });
    }

    /// The peer takes no more bytes than these.
    pub(super) fn block(&mut self, link: usize, bytes: usize) {
        self.sockets[link].window = Some(bytes);
    }

    pub(super) fn unblock(&mut self, link: usize) {
        self.sockets[link].window = None;
        if std::mem::take(&mut self.sockets[link].wants_room) {
            self.tell(link, false);
        }
    }

    pub(super) fn resolved(&mut self, ok: bool) {
        self.asked = false;
        let cause = Cause::Resolve { host: "exchange.test".into(), message: "none".into() };
        let all = (1..=self.addresses).map(|last| ([10, 0, 0, last], 443).into());
        self.answer = Some(if ok { Ok(all.collect()) } else { Err(cause) });
    }
}

/// The engine's end of a connection.
pub(super) struct SimLink {
    pub(super) link: usize,
    gone: Sender<usize>,
}

impl Drop for SimLink {
    fn drop(&mut self) {
        self.gone.try_send(self.link).unwrap_or_default();
    }
}

/// The network as one thread sees it.
#[derive(Clone)]
pub(super) struct SimNet {
    pub(super) network: Rc<RefCell<Network>>,
    pub(super) waiter: usize,
}

impl Transport for SimNet {
    type Link = SimLink;

    fn dial(&mut self, address: SocketAddr) -> Result<SimLink, Cause> {
        let network = &mut *self.network.borrow_mut();
        let link = network.sockets.len();
        network.sockets.push(Socket {
            watch: None,
            connected: None,
            inbox: Vec::new(),
            arrived: 0,
            read: 0,
            read_by: Vec::new(),
            reads: 0,
            ending: None,
            open: true,
            window: None,
            wants_room: false,
            severed: false,
            last_to_us: Duration::ZERO,
            last_to_peer: Duration::ZERO,
            heard: network.clock.now,
        });
        network.trace.note(network.clock.now, format_args!("dial {link} {address}"));
        let nobody = network.black_holes.contains(&address);
        if !nobody && !network.faults.strikes(Fault::ConnectHangs) {
            let refused = network.faults.strikes(Fault::ConnectRefused);
            let by = network.latency();
            network.later(by, Event::Connected { link, refused });
        }
        Ok(SimLink { link, gone: network.gone.0.clone() })
    }

    fn register(&mut self, link: &mut SimLink, token: usize) -> Result<(), Cause> {
        let network = &mut *self.network.borrow_mut();
        network.fail(self.waiter, false);
        // What is there already makes no event: whoever takes it over must look.
        let socket = &mut network.sockets[link.link];
        (socket.watch, socket.reads) = (Some((self.waiter, token)), 0);
        Ok(())
    }

    fn deregister(&mut self, link: &mut SimLink) {
        self.network.borrow_mut().sockets[link.link].watch = None;
    }

    fn connected(&mut self, link: &mut SimLink) -> Result<bool, Cause> {
        match self.network.borrow().sockets[link.link].connected {
            None => Ok(false),
            Some(true) => Ok(true),
            Some(false) => {
                Err(Cause::Tcp { address: "10.0.0.1".into(), message: "refused".into() })
            }
        }
    }

    fn secure(&mut self, _: &mut SimLink) -> Result<bool, Cause> {
        Ok(true)
    }

    fn resumed(&self, _: &SimLink) -> Option<bool> {
        None
    }

    fn receive(&mut self, link: &mut SimLink, plain: &mut Vec<u8>) -> Result<Received, Cause> {
        let network = &mut *self.network.borrow_mut();
        let panics = network.panics.take_if(|panics| *panics == link.link).is_some();
        network.fail(self.waiter, panics);
        let (at, most) = (network.clock.stamp(), network.read_bytes);
        let socket = &mut network.sockets[link.link];
        socket.reads += 1;
        if socket.inbox.is_empty() {
            return match socket.ending {
                None => Ok(Received::Blocked),
                Some(Part::Reset) => Err(Cause::Reset),
                Some(_) => Ok(Received::Ended),
            };
        }
        let count = socket.inbox.len().min(most);
        plain.extend_from_slice(&socket.inbox[..count]);
        socket.inbox.drain(..count);
        socket.read += crate::ids::widen(count);
        socket.read_by.push((network.clock.now, socket.read));
        Ok(Received::Some { more: count == most, at })
    }

    fn send(&mut self, link: &mut SimLink, bytes: &mut Vec<u8>) -> Result<Sent, Cause> {
        if bytes.is_empty() {
            return Ok(Sent::All);
        }
        let network = &mut *self.network.borrow_mut();
        let socket = &mut network.sockets[link.link];
        if matches!(socket.ending, Some(Part::Reset)) {
            return Err(Cause::Reset);
        }
        let count = socket.window.map_or(bytes.len(), |room| room.min(bytes.len()));
        socket.window = socket.window.map(|room| room - count);
        let taken: Vec<u8> = bytes.drain(..count).collect();
        socket.wants_room |= !bytes.is_empty();
        if count > 0 {
            network.depart(link.link, Part::Bytes(taken));
        }
        Ok(match (bytes.is_empty(), count > 0) {
            (true, _) => Sent::All,
            (false, true) => Sent::Some,
            (false, false) => Sent::None,
        })
    }

    fn local_addr(&self, link: &SimLink) -> Option<SocketAddr> {
        Some(([127, 0, 0, 1], u16::try_from(link.link % 60_000).unwrap()).into())
    }

    fn wait(&mut self, _: Option<Duration>, ready: &mut Vec<Ready>) -> std::io::Result<()> {
        ready.extend(self.network.borrow_mut().ready[self.waiter].drain(..));
        Ok(())
    }

    fn stamp(&self) -> Stamp {
        self.network.borrow().clock.stamp()
    }

    fn now(&self) -> Instant {
        self.network.borrow().clock.mono()
    }

    fn cpu(&self) -> CpuTime {
        CpuTime::default()
    }
}

impl Resolver for SimNet {
    fn ask(&mut self, _: Instant) {
        let network = &mut *self.network.borrow_mut();
        if !std::mem::replace(&mut network.asked, true) {
            let slow = network.faults.strikes(Fault::ResolveSlow);
            let by =
                if slow { network.faults.between_ms(100, 5_000) } else { Duration::from_millis(1) };
            let ok = !network.faults.strikes(Fault::ResolveFails);
            if network.name_service {
                network.later(by, Event::Resolved { ok });
            }
        }
    }

    fn answer(&mut self) -> Option<Lookup> {
        self.network.borrow_mut().answer.take()
    }
}
