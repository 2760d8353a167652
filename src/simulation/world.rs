//! The event loop: engine, network, exchange and host on one thread, in virtual time. The earliest
//! thing happens, the clock stands there, and what must hold is looked at.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use super::books::Suspects;
use super::engine::{CONDUCTOR, Engine, SHARDS, Settings};
use super::exchange::{Exchange, Phase};
use super::faults::{Fault, Faults};
use super::host::Host;
use super::invariants::Watch;
use super::network::{CONNECTOR, Event, Network};
use super::pairs::PairTotals;
use crate::dialect::Dialect;
use crate::error::Cause;
use crate::event::Event as Told;
use crate::ids::{ConnId, Role, widen};
use crate::mailbox::Control;
use crate::registry::{MarketChange, MarketStatus};
use crate::timer::Next;

/// How often the world looks whether all is well.
const LOOK: Duration = Duration::from_millis(250);
/// The longest a thread sleeps in its poll.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// A host that nothing was dropped for so long keeps up.
const KEEPS_UP: Duration = Duration::from_secs(3);
/// Turns at one time before that is called a loop without end.
const TURNS_MAX: u32 = 20_000;

pub(super) struct World {
    pub(super) network: Rc<RefCell<Network>>,
    pub(super) exchange: Exchange,
    pub(super) engine: Engine,
    pub(super) watch: Watch,
    pub(super) host: Host,
    pub(super) settings: Settings,
    /// Markets the registry wants.
    pub(super) wanted: BTreeSet<String>,
    /// When each party has its next turn, if it asked for one, and until when it is not scheduled.
    due: Vec<Option<Duration>>,
    pub(super) asleep_until: Vec<Duration>,
    done: Vec<bool>,
    turns: (Duration, u32),
    pub(super) steps: u64,
    /// Since when everything should be well and stay so.
    pub(super) settled: Option<Duration>,
    /// Messages dropped so far, and when the last of them was seen to be.
    dropped: (u64, Duration),
    pub(super) events: Vec<Told>,
    /// Bugs of the engine's that were put there one by one.
    pub(super) bugs: u64,
    /// What became of what pairs brought.
    pub(super) paired: PairTotals,
    /// How far apart a seed's mishaps are, at most, in milliseconds.
    pub(super) mishaps_ms: u64,
}

impl World {
    pub(super) fn new(settings: Settings, faults: Faults, markets: u16) -> Self {
        let network = Rc::new(RefCell::new(Network::new(faults, SHARDS + settings.shards)));
        let wanted: BTreeSet<String> = (0..markets).map(name).collect();
        let (engine, messages) = Engine::new(&settings, &network, wanted.iter().cloned());
        let shared = settings.config.dialect == Dialect::Live;
        let suspects = Suspects::new(settings.config.gap_policy, shared);
        let host = Host::new(messages, engine.registry.clone(), suspects);
        let parties = engine.parties();
        let watch =
            Watch { connect_interval: settings.config.connect_interval, ..Watch::default() };
        network.borrow_mut().later(LOOK, Event::Looks);
        Self {
            exchange: Exchange::new(settings.config.dialect, 3, Duration::from_millis(400)),
            network,
            engine,
            watch,
            host,
            settings,
            wanted,
            due: vec![Some(Duration::ZERO); parties],
            asleep_until: vec![Duration::ZERO; parties],
            done: vec![false; parties],
            turns: (Duration::ZERO, 0),
            steps: 0,
            settled: None,
            dropped: (0, Duration::ZERO),
            events: Vec::new(),
            bugs: 0,
            paired: PairTotals::default(),
            mishaps_ms: 1_500,
        }
    }

    pub(super) fn now(&self) -> Duration {
        self.network.borrow().now()
    }

    /// Goes on until this time.
    pub(super) fn run_until(&mut self, end: Duration) -> Result<(), String> {
        while self.advance(end)? {}
        self.network.borrow_mut().clock.now = end;
        Ok(())
    }

    /// Goes on until this holds, or fails at this time.
    pub(super) fn run_till(
        &mut self,
        end: Duration,
        mut holds: impl FnMut(&mut Self) -> Result<(), String>,
    ) -> Result<(), String> {
        loop {
            let problem = match holds(self) {
                Ok(()) => return Ok(()),
                Err(problem) => problem,
            };
            if self.now() >= end {
                return Err(problem);
            }
            let next = (self.now() + LOOK).min(end);
            self.run_until(next)?;
        }
    }

    /// The next thing happens, if it is before `end`.
    fn advance(&mut self, end: Duration) -> Result<bool, String> {
        let parties = self.due.iter().enumerate();
        let party = parties.filter_map(|(party, due)| due.map(|due| (due, party))).min();
        let event = self.network.borrow().agenda.next_at();
        let at = match (party, event) {
            (Some((due, _)), Some(event)) => due.min(event),
            (Some((at, _)), None) | (None, Some(at)) => at,
            (None, None) => return Ok(false),
        };
        if at >= end {
            return Ok(false);
        }
        self.count_turn(at)?;
        self.network.borrow_mut().clock.now = at;
        self.watch.now = at;
        match party {
            Some((due, party)) if event.is_none_or(|event| due < event) => self.turn(party)?,
            _ => {
                let event = self.network.borrow_mut().agenda.pop_due(at);
                event.map_or(Ok(()), |event| self.happen(event))?;
            }
        }
        self.attend()?;
        Ok(true)
    }

    fn count_turn(&mut self, at: Duration) -> Result<(), String> {
        self.steps += 1;
        self.turns = if self.turns.0 == at { (at, self.turns.1 + 1) } else { (at, 0) };
        if self.turns.1 > TURNS_MAX { Err("a loop without end".to_owned()) } else { Ok(()) }
    }

    /// One turn of one party.
    fn turn(&mut self, party: usize) -> Result<(), String> {
        let now = self.now();
        let stamp = self.network.borrow().clock.stamp();
        let overlaps = self.network.borrow_mut().faults.strikes(Fault::TurnOverlaps);
        let next = self.engine.step(party, stamp, overlaps, &mut self.watch)?;
        if party >= SHARDS {
            self.check_budget(party)?;
        }
        self.due[party] = match next {
            Next::Now => Some(now + Duration::from_micros(20)),
            Next::At(at) => {
                let due = at.map(|at| self.network.borrow().clock.since_start(at));
                self.engine.deaf.then_some(now + WAIT_MAX).into_iter().chain(due).min()
            }
            Next::Done => {
                self.done[party] = true;
                None
            }
        };
        self.settle_turn()?;
        self.check_bugs()?;
        self.check_deadline(party, next)?;
        self.delay(party);
        self.network.borrow_mut().close_dropped();
        if party >= SHARDS && next != Next::Now {
            self.check_unread(party)?;
        }
        self.due[party] = self.due[party].map(|due| due.max(self.asleep_until[party]).max(now));
        Ok(())
    }

    /// The party's next turn may come late.
    fn delay(&mut self, party: usize) {
        let network = &mut *self.network.borrow_mut();
        let lost = party >= SHARDS && network.has_dropped();
        let most = if lost && network.faults.strikes(Fault::PausedAtLoss) {
            4_000
        } else if network.faults.strikes(Fault::TurnDelayed) {
            [30, 30, 30, 2_000][network.faults.below(4)]
        } else {
            return;
        };
        let until = network.now() + network.faults.between_ms(1, most);
        self.asleep_until[party] = self.asleep_until[party].max(until);
    }

    /// Goes through what a turn brought.
    fn settle_turn(&mut self) -> Result<(), String> {
        for (link, conn, epoch) in std::mem::take(&mut self.watch.ups) {
            self.exchange.ledger.up(link, conn, epoch);
        }
        let now = self.now();
        for line in std::mem::take(&mut self.watch.told) {
            self.network.borrow_mut().trace.note(now, format_args!("{line}"));
        }
        let silent = |cause: &Cause| {
            let Cause::Liveness { message } = cause else { return false };
            self.settings.config.silent_reconnect && message.starts_with("no data")
        };
        if self.settled.is_some()
            && let Some((link, cause)) = self.watch.downs.iter().find(|(_, cause)| !silent(cause))
        {
            return Err(format!("link {link} is lost when all is well: {cause}"));
        }
        self.watch.check_downs(&self.network.borrow())?;
        for event in self.engine.events.try_iter() {
            if let Told::Halted { conn, .. } = &event {
                self.watch.halted.insert(*conn);
            }
            self.events.push(event);
        }
        Ok(())
    }

    /// I3: whoever is not at an end has a time at which something happens by itself.
    fn check_deadline(&self, party: usize, next: Next) -> Result<(), String> {
        let at = match next {
            Next::Now | Next::Done => return Ok(()),
            Next::At(at) => at.map(|at| self.network.borrow().clock.since_start(at)),
        };
        let needs = match party {
            CONDUCTOR => {
                let total = self.settings.pool.connections();
                self.watch.live.len() + self.watch.halted.len() < total
            }
            CONNECTOR => !self.watch.dialing.is_empty(),
            shard => self.watch.live.keys().any(|&conn| self.shard_of(conn) == shard),
        };
        // The longest wait of all, and the answer to a ping.
        let config = &self.settings.config;
        let most = config.reconnect_max.max(config.ping_idle) + config.connect_timeout;
        let late = at.is_none_or(|at| at > self.now() + most);
        match needs && late && !self.engine.is_in_transit() {
            true => Err(format!("I3: party {party} waits until {at:?}")),
            false => Ok(()),
        }
    }

    fn shard_of(&self, conn: ConnId) -> usize {
        SHARDS + crate::pool::shard_of(conn, self.settings.shards)
    }

    /// I12: no connection has more reads in a turn than its budget.
    fn check_budget(&self, party: usize) -> Result<(), String> {
        for (&conn, &(_, link)) in &self.watch.live {
            let reads = self.network.borrow_mut().take_reads(link, party);
            if reads > self.settings.config.turn_budget {
                return Err(format!("I12: {conn} has {reads} reads in a turn"));
            }
        }
        Ok(())
    }

    /// A shard that goes to sleep leaves nothing unread that no edge will tell of.
    fn check_unread(&self, party: usize) -> Result<(), String> {
        let network = self.network.borrow();
        for (&conn, &(epoch, link)) in &self.watch.live {
            let left = network.sockets[link].inbox.len();
            let shard = &self.engine.shards[party - SHARDS];
            if self.shard_of(conn) == party
                && left > 0
                && network.sockets[link].open
                && !network.is_ready(party)
                && !shard.holds(conn)
                && !self.done[party]
            {
                return Err(format!("{conn}/{epoch}: {left} bytes are left to nobody"));
            }
        }
        Ok(())
    }

    /// Wakes whoever has something to look at.
    fn attend(&mut self) -> Result<(), String> {
        let now = self.now();
        self.network.borrow_mut().close_dropped();
        for party in 0..self.due.len() {
            let called = self.engine.is_called(party) || self.network.borrow().is_ready(party);
            if called && !self.done[party] {
                let soon = now + Duration::from_millis(1);
                if self.due[party].is_none_or(|due| due > soon.max(self.asleep_until[party])) {
                    let by = self.network.borrow_mut().faults.between_ms(0, 1);
                    self.due[party] = Some((now + by).max(self.asleep_until[party]));
                }
            }
        }
        if self.backlog() > 0 && !std::mem::replace(&mut self.host.is_due, true) {
            let at = (now + self.host.interval).max(self.host.asleep_until);
            self.network.borrow_mut().agenda.add(at, Event::HostLooks);
        }
        let waits = !self.engine.registry.lifecycle().is_empty();
        if waits && !std::mem::replace(&mut self.host.is_registry_due, true) {
            let at = (now + Duration::from_millis(1)).max(self.host.registry_asleep_until);
            self.network.borrow_mut().agenda.add(at, Event::RegistryLooks);
        }
        Ok(())
    }

    /// Messages handed over and not taken yet.
    fn backlog(&self) -> u64 {
        let shards = self.engine.counters.shards.iter();
        let forwarded: u64 = shards.map(|shard| shard.messages_forwarded.total()).sum();
        forwarded - self.engine.counters.consumed.total()
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        if matches!(event, Event::Mishap) {
            let by =
                self.network.borrow_mut().faults.between_ms(self.mishaps_ms / 4, self.mishaps_ms);
            self.network.borrow_mut().later(by, Event::Mishap);
            self.mishap();
            return Ok(());
        }
        let network = &mut *self.network.borrow_mut();
        let exchange = &mut self.exchange;
        let stalled = exchange.stalled_until;
        let of_exchange = matches!(
            event,
            Event::Reaches { .. }
                | Event::Sends { .. }
                | Event::Feeds
                | Event::Pings { .. }
                | Event::Carries { .. }
                | Event::Finishes { .. }
                | Event::Replies { .. }
        );
        if of_exchange && stalled > network.now() {
            network.agenda.add(stalled, event);
            return Ok(());
        }
        match event {
            Event::Connected { link, refused } => network.connected(link, refused),
            Event::Arrives { link, part } => network.arrived(link, part),
            Event::Unblocked { link } => network.unblock(link),
            Event::Resolved { ok } => network.resolved(ok),
            Event::Reaches { link, part } => exchange.reached(link, part, network),
            Event::Sends { link } => exchange.stream(link, network),
            Event::Feeds => exchange.feed(network),
            Event::Pings { link } => exchange.ping(link, network),
            Event::Replies { link } => exchange.reply_late(link, network),
            Event::Carries { link } | Event::Finishes { link } => {
                match event {
                    Event::Carries { .. } => exchange.carry(link, network),
                    _ => exchange.finish(link, network),
                }
                let cap = self.settings.config.markets_per_connection;
                self.watch.check_places(exchange, cap)?;
            }
            Event::HostLooks => {
                self.host.is_due = false;
                if self.host.asleep_until <= network.now() {
                    self.host.look(self.host.batch, exchange, network)?;
                }
            }
            Event::RegistryLooks => {
                self.host.is_registry_due = false;
                if self.host.registry_asleep_until <= network.now() {
                    self.host.listen(exchange, network)?;
                }
            }
            Event::Looks => {
                network.later(LOOK, Event::Looks);
                let cap = self.settings.config.markets_per_connection;
                self.watch.check_places(exchange, cap)?;
                return self.check_bounds();
            }
            Event::Mishap => {}
        }
        Ok(())
    }

    /// From now on wake-ups are lost.
    pub(super) fn lose_wakes(&mut self) {
        self.engine.deaf = true;
        let soon = self.now() + WAIT_MAX;
        for due in &mut self.due {
            *due = Some(due.map_or(soon, |due| due.min(soon)));
        }
    }

    /// What its sleep puts off.
    pub(super) fn defer(&mut self, party: usize) {
        self.due[party] = self.due[party].map(|due| due.max(self.asleep_until[party]));
    }

    /// I1: no shard fails by a bug that was not put there.
    fn check_bugs(&self) -> Result<(), String> {
        let shards = self.engine.counters.shards.iter();
        let restarts: u64 = shards.map(|shard| shard.restarts.total()).sum();
        let meant = self.struck(Fault::ShardFails) + self.bugs;
        if restarts > meant { Err(format!("I1: {restarts} restarts of {meant}")) } else { Ok(()) }
    }

    /// I2.
    fn check_bounds(&self) -> Result<(), String> {
        let (backlog, most) = (self.backlog(), self.settings.config.message_buffer);
        let lost: u64 =
            self.engine.counters.shards.iter().map(|shard| shard.reports_lost.total()).sum();
        match backlog > widen(most) || lost > 0 {
            true => Err(format!("I2: {backlog} of {most} messages wait, {lost} reports lost")),
            false => Ok(()),
        }
    }

    // The registry.

    /// A market comes, or goes.
    pub(super) fn change(&mut self, number: u16) {
        let market = name(number);
        let ticker = market.parse().unwrap();
        let change = if self.wanted.remove(&market) {
            MarketChange::settled(ticker)
        } else {
            self.wanted.insert(market);
            MarketChange::created(ticker, MarketStatus::Active)
        };
        self.engine.registry.try_send(change).unwrap();
        self.engine.call(CONDUCTOR);
    }

    // The end.

    /// Nothing goes wrong any more.
    pub(super) fn end_faults(&mut self) {
        let network = &mut *self.network.borrow_mut();
        network.faults.active = false;
        (0..network.sockets.len()).for_each(|link| network.unblock(link));
        let now = network.now();
        self.asleep_until.iter_mut().for_each(|until| *until = now);
        self.due.iter_mut().flatten().for_each(|due| *due = (*due).min(now + LOOK));
        (self.host.asleep_until, self.host.registry_asleep_until) = (now, now);
        (self.host.batch, self.host.interval) = (usize::MAX, Duration::from_micros(100));
        network.later(Duration::ZERO, Event::HostLooks);
        network.later(Duration::ZERO, Event::RegistryLooks);
    }

    /// I3 and I9 at rest: everything is live, and every wanted market streams once.
    pub(super) fn check_well(&mut self) -> Result<(), String> {
        if self.exchange.stalled_until > self.now() {
            return Err("I3: the exchange is stalled".to_owned());
        }
        let halted = &self.watch.halted;
        let mut streams = Vec::new();
        for (conn, role) in self.settings.pool.iter().filter(|(conn, _)| !halted.contains(conn)) {
            let Some((_, link)) = self.watch.live.get(&conn) else {
                return Err(format!("I3: {conn} ({role}) is not live"));
            };
            let session = &self.exchange.sessions[*link];
            if session.phase != Phase::Open || self.network.borrow().sockets[*link].severed {
                return Err(format!("I3: {conn} ({role}) is open at one end only"));
            }
            if self.network.borrow().sockets[*link].last_to_us > self.now() + LOOK * 4 {
                return Err(format!("I3: {conn} ({role}) stands still"));
            }
            let asked = session.pinged.is_some_and(|since| since + LOOK * 4 < self.now());
            if asked {
                return Err(format!("I3: {conn} ({role}) owes an answer to a ping"));
            }
            let channel = self.settings.config.dialect.channel(role);
            let open = session.peer.subscriptions.values().any(|sub| sub.channel == channel);
            if role.is_global() && !open {
                return Err(format!("I3: {conn} ({role}) is not subscribed"));
            }
            streams.extend(session.peer.streams().cloned());
        }
        streams.sort();
        let books = self
            .settings
            .pool
            .iter()
            .filter(|&(conn, role)| role == Role::Orderbook && !halted.contains(&conn));
        let room = books.count() * self.settings.config.markets_per_connection;
        let all_fit = room >= self.wanted.len();
        if all_fit && !streams.iter().eq(self.wanted.iter()) {
            return Err(format!("I3: {streams:?} stream instead of {:?}", self.wanted));
        }
        let suspect = self.engine.counters.control.recovery.snapshot().suspect_markets;
        if suspect > 0 && self.keeps_up() {
            return Err(format!("I3: {suspect} markets are suspect when all is well"));
        }
        let confirmed = self.engine.counters.control.markets.total();
        if all_fit && confirmed != widen(self.wanted.len()) {
            return Err(format!("I3: {confirmed} confirmed of {}", self.wanted.len()));
        }
        Ok(())
    }

    /// Whether nothing was dropped just now: a host with too little room makes its books suspect
    /// again and again.
    fn keeps_up(&mut self) -> bool {
        let shards = &self.engine.counters.shards;
        let dropped = shards.iter().map(|shard| shard.messages_dropped.total()).sum();
        if dropped > self.dropped.0 {
            self.dropped = (dropped, self.now());
        }
        self.dropped.1 + KEEPS_UP <= self.now()
    }

    /// I11, and the final account.
    pub(super) fn stop(&mut self) -> Result<(), String> {
        self.settled = None;
        let (now, deadline) = (self.now(), Duration::from_secs(2));
        let until = self.network.borrow().clock.mono() + deadline;
        self.engine.control.try_send(Control::Stop { until }).unwrap();
        self.network.borrow_mut().trace.note(now, format_args!("stop"));
        self.attend()?;
        self.run_till(now + deadline + LOOK, |world| {
            let running = world.done.iter().position(|done| !done);
            running.map_or(Ok(()), |party| Err(format!("I11: party {party} does not end")))
        })?;
        self.engine.drain(&mut self.watch)?;
        self.settle_turn()?;
        self.close_books()?;
        let open = self.watch.open_commands();
        if open > 0 || !self.watch.live.is_empty() {
            return Err(format!("I4: {open} commands without an outcome, {:?}", self.watch.live));
        }
        self.check_untold()
    }

    /// The host takes the rest, and the ledger is closed.
    fn close_books(&mut self) -> Result<(), String> {
        let network = &mut *self.network.borrow_mut();
        self.host.look(usize::MAX, &mut self.exchange, network)?;
        self.host.listen(&mut self.exchange, network)?;
        for link in 0..self.exchange.ledger.links() {
            if self.exchange.ledger.conn(link).is_some_and(|conn| self.host.pairs.judges(conn)) {
                continue;
            }
            let read = network.sockets[link].read;
            self.exchange.ledger.finish(link, read);
        }
        Ok(())
    }

    /// What no message could tell any more, the stop's report does.
    fn check_untold(&mut self) -> Result<(), String> {
        let shards = std::mem::take(&mut self.engine.shards);
        let untold: Vec<_> = shards.into_iter().flat_map(|shard| shard.into_untold()).collect();
        self.close_pairs(&untold)?;
        for (conn, role) in self.settings.pool.iter() {
            if self.host.pairs.judges(conn) {
                continue;
            }
            let of_conn = untold.iter().filter(|untold| untold.conn_id == conn);
            let told: u64 = of_conn.map(|untold| untold.messages).sum();
            let owed = self.exchange.ledger.owed(conn);
            if told != owed {
                return Err(format!("I5: {conn} ({role}) tells of {told} at the end, owes {owed}"));
            }
        }
        Ok(())
    }

    pub(super) fn struck(&self, fault: Fault) -> u64 {
        self.network.borrow().faults.struck(fault)
    }
}

pub(super) fn name(number: u16) -> String {
    format!("M{number}")
}
