//! Takes connections from an address to a finished upgrade: many at once, none blocking, on a
//! thread of its own, because a handshake costs milliseconds that no live connection should wait.
//! A finished one is handed to the conductor, deregistered here, with whatever plaintext came
//! along. One deadline covers all stages of an attempt; of several addresses each gets its share
//! of it, so that one nobody answers at does not take the time of the next.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError};
use crossbeam_utils::CachePadded;

use crate::addresses::Addresses;
use crate::auth::Credentials;
use crate::clock::{Stamp, unix_ms};
use crate::endpoint::Endpoint;
use crate::error::{Cause, Stage};
use crate::hush::Hush;
use crate::ids::{ConnId, Epoch, Role};
use crate::mailbox::Adoption;
use crate::request::{AskedWith, Upgrade};
use crate::resolve::Resolver;
use crate::stats::ControlCounters;
use crate::timer::{Next, after, earlier};
use crate::transport::{Ready, Received, Transport};
use crate::upgrade::{self, Answer};

/// Reads one answer may take at a stretch: far more than any honest one needs, and few enough
/// that a peer sending nothing but empty records cannot hold the thread.
const ANSWER_READS_MAX: usize = 64;

/// How long the body of a refusal is waited for that does not say where it ends, from its head on:
/// what a server has to say it sends at once, and some keep the socket open behind it.
const BODY_WAIT: Duration = Duration::from_secs(1);

/// The part of an attempt's time that a lookup has, when there are addresses known from before.
const LOOKUP_SHARE: u32 = 4;

/// From the conductor.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Dial {
    Begin { conn: ConnId, epoch: Epoch, role: Role },
    Stop,
}

/// To the conductor.
pub(crate) enum Dialed<L> {
    Up { adoption: Box<Adoption<L>>, local_addr: SocketAddr },
    Failed { conn: ConnId, epoch: Epoch, cause: Cause },
}

/// One attempt.
struct Attempt<L> {
    conn: ConnId,
    epoch: Epoch,
    role: Role,
    deadline: Instant,
    /// Where it goes.
    address: Option<SocketAddr>,
    /// The addresses not tried yet.
    others: VecDeque<SocketAddr>,
    progress: Progress<L>,
}

impl<L> Attempt<L> {
    fn take_progress(&mut self) -> Progress<L> {
        std::mem::replace(&mut self.progress, Progress::Resolving { until: None })
    }

    /// When something must be done about it.
    fn due(&self) -> Instant {
        self.progress.until().map_or(self.deadline, |until| until.min(self.deadline))
    }
}

/// How far an attempt is; each stage holds what only it needs.
enum Progress<L> {
    /// Until then, if there are addresses to go on with without an answer.
    Resolving {
        until: Option<Instant>,
    },
    /// Until then: the next address has its share of the time.
    Connecting {
        link: L,
        until: Instant,
    },
    Securing {
        link: L,
    },
    Upgrading(Asked<L>),
}

/// A request on its way, or sent, and what has come in answer.
struct Asked<L> {
    link: L,
    asked_with: AskedWith,
    outgoing: Vec<u8>,
    plain: Vec<u8>,
    /// When the answer began to come: the time that a date in it is to be compared with.
    heard: Option<SystemTime>,
    /// Until then, once a refusal has come whose body does not say where it ends.
    until: Option<Instant>,
}

impl<L> Progress<L> {
    fn stage(&self) -> Stage {
        match self {
            Self::Resolving { .. } => Stage::Resolving,
            Self::Connecting { .. } => Stage::Connecting,
            Self::Securing { .. } => Stage::Securing,
            Self::Upgrading(_) => Stage::Upgrading,
        }
    }

    /// Until when it may stay so, where that is before the attempt's own deadline.
    fn until(&self) -> Option<Instant> {
        match self {
            Self::Resolving { until } => *until,
            Self::Connecting { until, .. } => Some(*until),
            Self::Securing { .. } => None,
            Self::Upgrading(asked) => asked.until,
        }
    }

    /// Why it is over when its time is, and how far the server's clock is ahead, if it says: a
    /// refusal whose body never ended counts all the same.
    fn overdue(&self, wall: SystemTime) -> (Cause, Option<i64>) {
        let timeout = Cause::Timeout { stage: self.stage() };
        let Self::Upgrading(asked) = self else { return (timeout, None) };
        let wall = asked.heard.unwrap_or(wall);
        match upgrade::read(&asked.plain, &asked.asked_with, wall, true) {
            Answer::Refused { cause: cause @ Cause::Upgrade { .. }, ahead_ms } => (cause, ahead_ms),
            _ => (timeout, None),
        }
    }

    fn link(&mut self) -> Option<&mut L> {
        match self {
            Self::Resolving { .. } => None,
            Self::Connecting { link, .. } | Self::Securing { link } => Some(link),
            Self::Upgrading(asked) => Some(&mut asked.link),
        }
    }
}

/// Where a step of an attempt left it.
enum Step<L> {
    /// Waiting for the network.
    Waits(Progress<L>),
    /// On to the next stage at once.
    Goes(Progress<L>),
    Done {
        link: L,
        unread: Vec<u8>,
    },
    Failed {
        link: Option<L>,
        cause: Cause,
    },
}

/// What a connector is made of.
pub(crate) struct ConnectorParts<T: Transport, R: Resolver> {
    pub(crate) transport: T,
    pub(crate) resolver: R,
    pub(crate) endpoint: Endpoint,
    pub(crate) credentials: Option<Credentials>,
    pub(crate) connect_timeout: Duration,
    pub(crate) connections: usize,
    pub(crate) orders: Receiver<Dial>,
    pub(crate) reports: Sender<Dialed<T::Link>>,
    pub(crate) counters: Arc<CachePadded<ControlCounters>>,
}

/// The attempts under way.
pub(crate) struct Connector<T: Transport, R: Resolver> {
    parts: ConnectorParts<T, R>,
    /// By connection number less one.
    attempts: Vec<Option<Attempt<T::Link>>>,
    addresses: Addresses,
    /// How far the exchange's clock is ahead of ours, in milliseconds, once it refused our time.
    skew_ms: i64,
    events: Vec<Ready>,
    stopped: bool,
    hushed_lookups: Hush,
    hushed_clock: Hush,
}

impl<T: Transport, R: Resolver> Connector<T, R> {
    pub(crate) fn new(parts: ConnectorParts<T, R>) -> Self {
        let attempts = (0..parts.connections).map(|_| None).collect();
        Self {
            parts,
            attempts,
            addresses: Addresses::default(),
            skew_ms: 0,
            events: Vec::new(),
            stopped: false,
            hushed_lookups: Hush::default(),
            hushed_clock: Hush::default(),
        }
    }

    /// Waits for events or the timeout. The only place that blocks.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>) -> std::io::Result<()> {
        self.parts.transport.wait(timeout, &mut self.events)
    }

    /// One turn.
    pub(crate) fn step(&mut self, now: Stamp) -> Next {
        self.take_orders(now.mono);
        self.take_addresses(now);
        for Ready { token, .. } in std::mem::take(&mut self.events) {
            self.advance(token, now);
        }
        self.expire(now);
        if self.stopped { Next::Done } else { Next::At(self.deadline()) }
    }

    fn deadline(&self) -> Option<Instant> {
        let deadlines = self.attempts.iter().flatten().map(Attempt::due);
        deadlines.fold(None, |soonest, deadline| earlier(soonest, Some(deadline)))
    }

    fn take_orders(&mut self, now: Instant) {
        loop {
            match self.parts.orders.try_recv() {
                Ok(Dial::Begin { conn, epoch, role }) => {
                    self.discard(place_of(conn));
                    log::debug!("connection {conn} ({role}): attempt {epoch} begins");
                    let attempt = self.attempt(conn, epoch, role, now);
                    if let Some(place) = self.attempts.get_mut(place_of(conn)) {
                        *place = Some(attempt);
                    }
                    self.parts.resolver.ask(now);
                }
                Ok(Dial::Stop) | Err(TryRecvError::Disconnected) => {
                    self.attempts.clear();
                    self.stopped = true;
                    return;
                }
                Err(TryRecvError::Empty) => return,
            }
        }
    }

    fn attempt(&self, conn: ConnId, epoch: Epoch, role: Role, now: Instant) -> Attempt<T::Link> {
        let limit = self.parts.connect_timeout;
        let until = (!self.addresses.is_empty()).then(|| after(now, limit / LOOKUP_SHARE));
        let (deadline, progress) = (after(now, limit), Progress::Resolving { until });
        let (address, others) = (None, VecDeque::new());
        Attempt { conn, epoch, role, deadline, address, others, progress }
    }

    /// Every attempt that waits for addresses goes on with the answer, or with the addresses known
    /// from before.
    fn take_addresses(&mut self, now: Stamp) {
        let Some(answer) = self.parts.resolver.answer() else {
            return;
        };
        match &answer {
            Ok(addresses) => self.addresses.learn(addresses),
            Err(cause) if self.addresses.is_empty() => log::debug!("{cause}"),
            Err(cause) => {
                if let Some(more) = self.hushed_lookups.allows(now.mono) {
                    log::warn!("{cause}; going on with the addresses known{more}");
                }
            }
        }
        for index in 0..self.attempts.len() {
            let Some(place) = self.attempts.get_mut(index) else {
                return;
            };
            let resolving =
                |attempt: &mut Attempt<_>| matches!(attempt.progress, Progress::Resolving { .. });
            let Some(attempt) = place.take_if(resolving) else {
                continue;
            };
            match &answer {
                Err(cause) if self.addresses.is_empty() => {
                    let step = Step::Failed { link: None, cause: cause.clone() };
                    self.follow(attempt, step, now);
                }
                _ => self.dial_known(attempt, now),
            }
        }
    }

    fn dial_known(&mut self, mut attempt: Attempt<T::Link>, now: Stamp) {
        attempt.others = self.addresses.in_order();
        let cause = Cause::Local { message: "no address to connect to".to_owned() };
        let step = self.dial(&mut attempt, cause, now.mono);
        self.follow(attempt, step, now);
    }

    /// Begins TCP to the next address that takes it; without one it has failed, for this cause or
    /// a newer one.
    fn dial(
        &mut self,
        attempt: &mut Attempt<T::Link>,
        mut cause: Cause,
        now: Instant,
    ) -> Step<T::Link> {
        while let Some(address) = attempt.others.pop_front() {
            let dialed = self.parts.transport.dial(address).and_then(|mut link| {
                self.parts.transport.register(&mut link, place_of(attempt.conn))?;
                Ok(link)
            });
            match dialed {
                Ok(link) => {
                    let left = attempt.deadline.saturating_duration_since(now);
                    let shares = u32::try_from(attempt.others.len()).unwrap_or(u32::MAX);
                    let until = after(now, left / shares.saturating_add(1));
                    attempt.address = Some(address);
                    return Step::Waits(Progress::Connecting { link, until });
                }
                Err(refused) => cause = refused,
            }
            self.addresses.failed(address);
        }
        Step::Failed { link: None, cause }
    }

    /// Goes on to the next address, if there is one.
    fn dial_next(
        &mut self,
        attempt: &mut Attempt<T::Link>,
        mut link: T::Link,
        cause: Cause,
        now: Instant,
    ) -> Step<T::Link> {
        self.parts.transport.deregister(&mut link);
        drop(link);
        if let Some(address) = attempt.address {
            self.addresses.failed(address);
        }
        self.dial(attempt, cause, now)
    }

    /// Drives an attempt whose socket has something.
    fn advance(&mut self, index: usize, now: Stamp) {
        let Some(mut attempt) = self.attempts.get_mut(index).and_then(Option::take) else {
            return;
        };
        let progress = attempt.take_progress();
        let step = self.drive(&mut attempt, progress, now);
        self.follow(attempt, step, now);
    }

    /// Takes an attempt as far as it goes now.
    fn follow(&mut self, mut attempt: Attempt<T::Link>, mut step: Step<T::Link>, now: Stamp) {
        loop {
            match step {
                Step::Goes(progress) => step = self.drive(&mut attempt, progress, now),
                Step::Waits(progress) => {
                    attempt.progress = progress;
                    if let Some(place) = self.attempts.get_mut(place_of(attempt.conn)) {
                        *place = Some(attempt);
                    }
                    return;
                }
                Step::Done { link, unread } => return self.hand_over(attempt, link, unread),
                Step::Failed { link, cause } => {
                    if let Some(mut link) = link {
                        self.parts.transport.deregister(&mut link);
                    }
                    let (conn, epoch) = (attempt.conn, attempt.epoch);
                    return self.report(Dialed::Failed { conn, epoch, cause });
                }
            }
        }
    }

    fn drive(
        &mut self,
        attempt: &mut Attempt<T::Link>,
        progress: Progress<T::Link>,
        now: Stamp,
    ) -> Step<T::Link> {
        let transport = &mut self.parts.transport;
        match progress {
            Progress::Resolving { .. } => Step::Waits(progress),
            Progress::Connecting { mut link, until } => match transport.connected(&mut link) {
                Ok(true) => Step::Goes(Progress::Securing { link }),
                Ok(false) => Step::Waits(Progress::Connecting { link, until }),
                Err(cause) => self.dial_next(attempt, link, cause, now.mono),
            },
            Progress::Securing { mut link } => match transport.secure(&mut link) {
                Ok(true) => self.request(link, now.wall),
                Ok(false) => Step::Waits(Progress::Securing { link }),
                Err(cause) => Step::Failed { link: Some(link), cause },
            },
            Progress::Upgrading(asked) => self.upgrade(asked, now),
        }
    }

    fn request(&mut self, link: T::Link, wall: SystemTime) -> Step<T::Link> {
        match self.parts.transport.resumed(&link) {
            Some(true) => self.parts.counters.tls_resumed.add(1),
            Some(false) => self.parts.counters.tls_full.add(1),
            None => {}
        }
        let now_ms = unix_ms(wall).saturating_add_signed(self.skew_ms);
        let credentials = self.parts.credentials.as_ref();
        match Upgrade::new(&self.parts.endpoint, credentials, now_ms) {
            Ok(Upgrade { bytes: outgoing, asked_with }) => {
                let (plain, heard, until) = (Vec::new(), None, None);
                let asked = Asked { link, asked_with, outgoing, plain, heard, until };
                Step::Goes(Progress::Upgrading(asked))
            }
            Err(cause) => Step::Failed { link: Some(link), cause },
        }
    }

    fn upgrade(&mut self, mut asked: Asked<T::Link>, now: Stamp) -> Step<T::Link> {
        let transport = &mut self.parts.transport;
        if let Err(cause) = transport.send(&mut asked.link, &mut asked.outgoing) {
            return Step::Failed { link: Some(asked.link), cause };
        }
        for _ in 0..ANSWER_READS_MAX {
            let received = self.parts.transport.receive(&mut asked.link, &mut asked.plain);
            let ended = !matches!(received, Ok(Received::Some { .. } | Received::Blocked));
            let begun = !asked.plain.is_empty();
            let wall = asked.heard.unwrap_or(now.wall);
            asked.heard = begun.then_some(wall);
            match upgrade::read(&asked.plain, &asked.asked_with, wall, ended && begun) {
                Answer::Accepted { offset } => {
                    let unread = asked.plain.split_off(offset.min(asked.plain.len()));
                    return Step::Done { link: asked.link, unread };
                }
                Answer::Refused { cause, ahead_ms } => {
                    self.note_skew(&cause, ahead_ms, now.mono);
                    return Step::Failed { link: Some(asked.link), cause };
                }
                // From its head on, however much comes after.
                Answer::Endless => asked.until = asked.until.or(Some(after(now.mono, BODY_WAIT))),
                Answer::Partial => {}
            }
            match received {
                Ok(Received::Some { .. }) => {}
                Ok(Received::Blocked) => return Step::Waits(Progress::Upgrading(asked)),
                Ok(Received::Ended) => {
                    return Step::Failed { link: Some(asked.link), cause: Cause::Ended };
                }
                Err(cause) => return Step::Failed { link: Some(asked.link), cause },
            }
        }
        let message = "an answer without end".to_owned();
        Step::Failed { link: Some(asked.link), cause: Cause::Handshake { message } }
    }

    /// The exchange says our time is off: believe its clock from now on.
    fn note_skew(&mut self, cause: &Cause, ahead_ms: Option<i64>, now: Instant) {
        let expired = matches!(cause, Cause::Upgrade { status: 401, detail, .. }
            if detail.contains("header_timestamp_expired"));
        if let Some(ahead_ms) = ahead_ms.filter(|_| expired) {
            self.skew_ms = ahead_ms;
            self.parts.counters.clock_corrections.add(1);
            self.parts.counters.clock_skew_ms.set(ahead_ms.cast_unsigned());
            if let Some(more) = self.hushed_clock.allows(now) {
                log::warn!(
                    "this clock is {ahead_ms} ms off the exchange's; signing by its time{more}"
                );
            }
        }
    }

    fn hand_over(&mut self, attempt: Attempt<T::Link>, mut link: T::Link, unread: Vec<u8>) {
        let Attempt { conn, epoch, role, address, .. } = attempt;
        if let Some(address) = address {
            self.addresses.worked(address);
        }
        self.parts.transport.deregister(&mut link);
        match self.parts.transport.local_addr(&link) {
            Some(local_addr) => {
                let adoption = Box::new(Adoption { conn, epoch, role, link, unread });
                self.report(Dialed::Up { adoption, local_addr });
            }
            None => self.report(Dialed::Failed { conn, epoch, cause: Cause::Reset }),
        }
    }

    fn expire(&mut self, now: Stamp) {
        for index in 0..self.attempts.len() {
            let Some(place) = self.attempts.get_mut(index) else {
                return;
            };
            if let Some(attempt) = place.take_if(|attempt| attempt.due() <= now.mono) {
                self.overdue(attempt, now);
            }
        }
    }

    /// The attempt's time is up, or that of its stage.
    fn overdue(&mut self, mut attempt: Attempt<T::Link>, now: Stamp) {
        let (cause, ahead_ms) = attempt.progress.overdue(now.wall);
        self.note_skew(&cause, ahead_ms, now.mono);
        if attempt.deadline <= now.mono {
            return self.give_up(attempt, cause);
        }
        let step = match attempt.take_progress() {
            Progress::Connecting { link, .. } => {
                self.dial_next(&mut attempt, link, cause, now.mono)
            }
            Progress::Resolving { .. } => return self.dial_known(attempt, now),
            Progress::Upgrading(asked) => Step::Failed { link: Some(asked.link), cause },
            Progress::Securing { link } => Step::Waits(Progress::Securing { link }),
        };
        self.follow(attempt, step, now);
    }

    fn give_up(&mut self, mut attempt: Attempt<T::Link>, cause: Cause) {
        if let Some(address) = attempt.address.filter(|_| matches!(cause, Cause::Timeout { .. })) {
            self.addresses.failed(address);
        }
        if let Some(link) = attempt.progress.link() {
            self.parts.transport.deregister(link);
        }
        self.report(Dialed::Failed { conn: attempt.conn, epoch: attempt.epoch, cause });
    }

    fn discard(&mut self, index: usize) {
        let Some(mut attempt) = self.attempts.get_mut(index).and_then(Option::take) else {
            return;
        };
        if let Some(link) = attempt.progress.link() {
            self.parts.transport.deregister(link);
        }
    }

    fn report(&self, report: Dialed<T::Link>) {
        // Sized for two reports of every connection; each attempt makes one.
        if let Err(TrySendError::Full(_)) = self.parts.reports.try_send(report) {
            log::error!("the connector's report queue is full: please report this bug");
        }
    }
}

fn place_of(conn: ConnId) -> usize {
    usize::from(conn.number()).wrapping_sub(1)
}

#[cfg(test)]
mod tests;
