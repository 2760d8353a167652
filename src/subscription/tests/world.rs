//! The plan, the commands of each connection and the model exchange, put together; and what must
//! hold of them, always and at the end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::super::*;
use crate::command::{Answer, Commands, Ended, Outcome, Response, error_code};
use crate::ids::CommandId;
use crate::market::MarketState;
use crate::request::Expects;
use crate::simulation::peer::{Fate, Peer};

pub(super) const FIRST: u16 = 2;
pub(super) const BOOKS: u16 = 3;
/// Markets of the schedules; the last is one the exchange does not like.
pub(super) const MARKETS: u16 = 14;
pub(super) const CHUNK: usize = 4;
pub(super) const IN_FLIGHT: usize = 2;
const TIMEOUT: Duration = Duration::from_secs(5);
/// An overtaken command is carried out within this many seconds.
const SLOW_MAX: u64 = 40;

pub(super) fn pool() -> impl Iterator<Item = (ConnId, Role)> {
    let books = (FIRST..FIRST + BOOKS).map(|n| (ConnId::new(n), Role::Orderbook));
    std::iter::once((ConnId::new(1), Role::Lifecycle)).chain(books)
}

pub(super) fn ticker(number: u16) -> String {
    if number + 1 == MARKETS { format!("BAD{number}") } else { format!("M{number}") }
}

pub(super) fn settings(dialect: Dialect) -> SubscriptionSettings {
    SubscriptionSettings {
        dialect,
        chunk: CHUNK,
        in_flight: IN_FLIGHT,
        markets_per_connection: 100,
        migrate_after: None,
        subscribe_timeout: TIMEOUT,
        gap_policy: GapPolicy::Flag,
        recovery_rate: 1_000,
    }
}

/// Our side of a connection, as its shard keeps it.
pub(super) struct Client {
    pub(super) live: bool,
    commands: Commands,
    /// Commands without an outcome yet; the ids used so far are the numbers below `next`.
    open: BTreeSet<CommandId>,
    next: u64,
    /// Sids told to be over.
    told: BTreeSet<Sid>,
    /// Which sid each command was about.
    about: BTreeMap<CommandId, u64>,
    /// Sids said to be over, or told to end before: only those may be ended while a wanted market
    /// is on them.
    pub(super) troubled: BTreeSet<u64>,
}

pub(super) struct World {
    pub(super) plan: Subscriptions,
    pub(super) peers: Vec<Peer>,
    pub(super) clients: Vec<Client>,
    pub(super) wanted: BTreeMap<String, u8>,
    pub(super) now: Instant,
    /// Texts sent, for tests that look at them.
    pub(super) sent: VecDeque<(usize, String)>,
}

impl World {
    pub(super) fn new(settings: SubscriptionSettings) -> Self {
        let now = crate::clock::now();
        let client = |_| Client {
            live: false,
            commands: Commands::new(TIMEOUT, false),
            open: BTreeSet::new(),
            next: 1,
            told: BTreeSet::new(),
            about: BTreeMap::new(),
            troubled: BTreeSet::new(),
        };
        Self {
            plan: Subscriptions::new(pool(), settings, now),
            peers: pool().map(|_| Peer::new(settings.dialect, usize::MAX)).collect(),
            clients: pool().map(client).collect(),
            wanted: BTreeMap::new(),
            now,
            sent: VecDeque::new(),
        }
    }

    /// A live-dialect world whose order-book connections are all up.
    pub(super) fn up_all() -> Self {
        let mut world = Self::new(settings(Dialect::Live));
        (0..world.peers.len()).for_each(|index| world.up(index));
        world
    }

    pub(super) fn conn(index: usize) -> ConnId {
        ConnId::new(u16::try_from(index).unwrap() + 1)
    }

    pub(super) fn want(&mut self, number: u16, priority: u8) {
        self.wanted.insert(ticker(number), priority);
        self.plan.want(&ticker(number), priority, self.now);
    }

    pub(super) fn unwant(&mut self, number: u16) {
        self.wanted.remove(&ticker(number));
        self.plan.unwant(&ticker(number), self.now);
    }

    pub(super) fn up(&mut self, index: usize) {
        if !self.clients[index].live {
            self.peers[index].reset();
            let client = &mut self.clients[index];
            (client.live, client.next) = (true, 1);
            client.commands = Commands::new(TIMEOUT, false);
            client.told.clear();
            client.about.clear();
            client.troubled.clear();
            self.plan.up(Self::conn(index));
        }
    }

    pub(super) fn down(&mut self, index: usize) {
        if std::mem::take(&mut self.clients[index].live) {
            self.peers[index].reset();
            while let Some(ended) = self.clients[index].commands.lose() {
                self.ended(index, ended);
            }
            assert!(self.clients[index].open.is_empty(), "each command has an outcome");
            self.plan.down(Self::conn(index), self.now);
        }
    }

    fn ended(&mut self, index: usize, ended: Ended) {
        assert!(self.clients[index].open.remove(&ended.id), "one outcome each: {ended:?}");
        self.plan.ended(Self::conn(index), &ended, self.now);
    }

    /// What the conductor does at the end of each of its turns.
    pub(super) fn pump(&mut self) {
        self.plan.tick(self.now);
        self.plan.place(self.now);
        for index in self.plan.in_turn() {
            while let Some(step) = self.plan.next(Self::conn(index), self.now) {
                assert!(self.clients[index].live, "nothing is sent to the dead");
                match step {
                    Step::Send(request) => self.issue(index, request),
                    Step::Reconnect => self.down(index),
                }
            }
        }
        self.check_always();
    }

    fn issue(&mut self, index: usize, request: crate::request::Request) {
        let client = &mut self.clients[index];
        assert_eq!(request.id, CommandId::new(client.next), "ids are not used twice");
        client.next += 1;
        client.open.insert(request.id);
        assert!(client.open.len() <= IN_FLIGHT);
        client.commands.issue(request.id, request.expects, self.now);
        let command: serde_json::Value = serde_json::from_str(&request.text).unwrap();
        let named = command["params"]["market_tickers"].as_array().map_or(0, Vec::len);
        assert!(named <= CHUNK, "{command}");
        self.check_spared(index, request.id, &command);
        self.peers[index].inbox.push_back(command);
        self.sent.push_back((index, request.text));
    }

    /// Whole subscriptions are ended only when nothing on them is wanted or they are broken: all
    /// other markets go on streaming.
    fn check_spared(&mut self, index: usize, id: CommandId, command: &serde_json::Value) {
        let Some(sid) = command["params"]["sids"][0].as_u64() else { return };
        let client = &mut self.clients[index];
        client.about.insert(id, sid);
        if command["cmd"] != "unsubscribe" {
            return;
        }
        let markets = self.peers[index].subscriptions.get(&sid).map(|sub| &sub.markets);
        let wanted = |market: &&String| self.wanted.contains_key(*market);
        let spoilt = markets.into_iter().flatten().find(wanted);
        let live = self.plan.settings.dialect == Dialect::Live;
        if live && client.troubled.insert(sid) {
            assert_eq!(spoilt, None, "it streams and is wanted, and {command} ends it");
        }
    }

    /// The oldest reply reaches us.
    pub(super) fn deliver(&mut self, index: usize) {
        let Some(said) = self.peers[index].outbox.pop_front() else { return };
        let response: Response = serde_json::from_value(said).unwrap();
        let sid = response.sid.map(|sid| Sid::new(u64::try_from(sid).unwrap()));
        let code = error_code(&response);
        let id = response.id.and_then(|id| u64::try_from(id).ok()).map(CommandId::new);
        let asked = id.is_some_and(|id| self.clients[index].open.contains(&id));
        if code.is_some_and(ExchangeCode::is_terminal) {
            let client = &mut self.clients[index];
            let about = id.and_then(|id| client.about.get(&id).copied());
            client.troubled.extend(about.or(sid.map(Sid::number)));
        }
        match self.clients[index].commands.reply(response, sid) {
            Answer::Ended(ended) => {
                self.reopen(index, &ended);
                self.ended(index, ended);
            }
            Answer::Late(ended) => {
                self.reopen(index, &ended);
                self.plan.late(Self::conn(index), &ended, self.now);
            }
            Answer::Part => {}
            Answer::Unknown => {
                assert!(!asked, "a reply to an open command was not understood: {id:?}");
                let terminal = code.is_some_and(ExchangeCode::is_terminal);
                if let Some(sid) = sid.filter(|_| terminal)
                    && self.clients[index].told.insert(sid)
                {
                    self.plan.renew(Self::conn(index), sid, self.now);
                }
            }
        }
    }

    /// The second reply under way comes before the first. The end of a subscription stays where it
    /// is: one that comes before the acknowledgement is told behind it, by the connection's shard.
    pub(super) fn overtake(&mut self, index: usize) {
        let replies = &mut self.peers[index].outbox;
        let answers = replies.iter().take(2).filter(|reply| reply.get("id").is_some());
        if answers.count() == 2 {
            replies.swap(0, 1);
        }
    }

    /// A sid acknowledged anew may end anew.
    fn reopen(&mut self, index: usize, ended: &Ended) {
        if let (Expects::Subscription, Outcome::Ok, Some(sid)) =
            (ended.expects, ended.outcome, ended.sid)
        {
            self.clients[index].told.remove(&sid);
        }
    }

    pub(super) fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        for index in 0..self.peers.len() {
            for (_, age) in &mut self.peers[index].slow {
                *age += seconds;
            }
            while self.peers[index].slow.front().is_some_and(|&(_, age)| age > SLOW_MAX) {
                self.peers[index].finish();
            }
            while let Some(ended) = self.clients[index].commands.expire(self.now) {
                self.ended(index, ended);
            }
        }
    }

    /// Everything under way arrives, and nothing goes wrong.
    pub(super) fn flow(&mut self) {
        for _ in 0..10_000 {
            self.pump();
            let mut idle = true;
            for index in 0..self.peers.len() {
                while !self.peers[index].outbox.is_empty() {
                    idle = false;
                    self.deliver(index);
                }
                while !self.peers[index].inbox.is_empty() {
                    idle = false;
                    self.peers[index].take(Fate::Carried);
                }
                while !self.peers[index].slow.is_empty() {
                    idle = false;
                    self.peers[index].finish();
                }
            }
            if idle {
                return;
            }
        }
        panic!("asked without end: {:?}", self.sent.iter().rev().take(9).collect::<Vec<_>>());
    }

    /// Faults stop, everybody comes back, and time passes.
    pub(super) fn quiesce(&mut self) {
        for _ in 0..60 {
            (0..self.peers.len()).for_each(|index| self.up(index));
            self.flow();
            self.pass(11);
        }
        self.flow();
    }

    /// What holds whatever is under way.
    fn check_always(&self) {
        let mut places: BTreeMap<&String, BTreeSet<usize>> = BTreeMap::new();
        for (index, peer) in self.peers.iter().enumerate() {
            for market in peer.streams() {
                places.entry(market).or_default().insert(index);
            }
        }
        // A stray of the legacy dialect may outlive its market's move until it is ended.
        let live = self.plan.settings.dialect == Dialect::Live;
        for (market, places) in places {
            assert!(places.len() == 1 || !live, "{market} is on connections {places:?}");
        }
        self.check_confirmed();
        let all = self.plan.directory.iter();
        let (mut wanted, mut confirmed, mut waiting) = (0, 0, 0);
        for (_, ticker, market) in all {
            wanted += u64::from(market.wanted);
            confirmed += u64::from(market.observed == Observed::Present);
            waiting += u64::from(market.conn == 0);
            assert_eq!(market.wanted, self.wanted.contains_key(ticker));
        }
        let all = self.plan.directory.iter();
        let lacking = all.filter(|(_, _, m)| m.wanted && m.observed != Observed::Present);
        let lacking: Vec<_> = lacking.map(|(slot, _, market)| (slot, market.conn())).collect();
        self.plan.coverage.check(&lacking);
        assert_eq!(self.plan.totals(), (wanted, confirmed));
        assert_eq!(self.plan.waiting(), waiting);
        assert_eq!(wanted, widen(self.wanted.len()));
    }

    /// A market that counts as confirmed streams, unless something about it is under way.
    fn check_confirmed(&self) {
        for (_, ticker, market) in self.plan.directory.iter() {
            let sure = market.observed == Observed::Present
                && market.asked.is_none()
                && market.overdue == 0
                && !market.renew;
            let Some(conn) = market.conn().filter(|_| sure) else { continue };
            let (peer, member) = (&self.peers[place_of(conn)], &self.plan.members[place_of(conn)]);
            let open = matches!(member.line, Line::Open { renew: false, .. });
            let told = peer.outbox.is_empty();
            if told && (open || self.plan.is_single_member(conn)) {
                assert!(peer.streams().any(|streams| streams == ticker), "{ticker} is silent");
            }
        }
    }

    /// The invariant, once everything has settled.
    pub(super) fn check_settled(&mut self) {
        let mut streams: Vec<_> =
            self.peers.iter().flat_map(|peer| peer.streams().cloned()).collect();
        streams.sort();
        let welcome = |ticker: &&String| !ticker.starts_with("BAD");
        let due: Vec<_> = self.wanted.keys().filter(welcome).cloned().collect();
        assert_eq!(streams, due, "what streams is what is wanted, once");
        assert!(!self.peers[0].subscriptions.is_empty(), "the global line is open");
        for info in self.plan.assignments(self.now).iter() {
            let expected = match welcome(&&info.ticker.to_owned()) {
                true => MarketState::Subscribed,
                false => MarketState::Refused,
            };
            assert_eq!(info.state, expected, "{info:?}");
        }
        // One the exchange will not even delete is asked about for as long as it may be there.
        let refused = |ticker: &str, market: &Market| ticker.starts_with("BAD") && market.held;
        let unwanted = self.plan.directory.iter().filter(|(_, _, market)| !market.wanted);
        let left: Vec<_> = unwanted.filter(|(_, ticker, m)| !refused(ticker, m)).collect();
        assert!(left.is_empty(), "no record is left over: {left:?}");
        for (index, peer) in self.peers.iter().enumerate().skip(1) {
            let placed = self.plan.assignments(self.now);
            let placed = placed.iter().filter(|info| info.conn == Some(Self::conn(index))).count();
            assert_eq!(self.plan.assigner.load(Self::conn(index)), placed);
            if placed == 0 {
                assert!(peer.subscriptions.is_empty(), "an empty subscription is ended");
            }
        }
    }

    /// The markets named by what was sent since this was last asked.
    pub(super) fn named(&mut self) -> Vec<(usize, String, Vec<String>)> {
        let sent = std::mem::take(&mut self.sent);
        sent.into_iter()
            .map(|(index, text)| {
                let command: serde_json::Value = serde_json::from_str(&text).unwrap();
                let params = &command["params"];
                let action = params["action"].as_str().or(command["cmd"].as_str()).unwrap();
                let markets = params["market_tickers"].as_array().cloned().unwrap_or_default();
                let one = params["market_ticker"].as_str().map(str::to_owned);
                let markets = markets.iter().map(|name| name.as_str().unwrap().to_owned());
                (index, action.to_owned(), markets.chain(one).collect())
            })
            .collect()
    }
}

/// Markets 0 to `count`, wanted.
pub(super) fn holding(world: &mut World, count: u16) {
    (0..count).for_each(|number| world.want(number, 0));
    world.flow();
}

pub(super) fn state(world: &mut World, number: u16) -> Option<MarketState> {
    let ticker: Ticker = ticker(number).parse().unwrap();
    world.plan.info(&ticker, world.now).map(|info| info.state)
}

pub(super) fn loads(world: &World) -> Vec<usize> {
    world.peers[1..].iter().map(|peer| peer.streams().count()).collect()
}

/// How many commands of this kind, and markets in them.
pub(super) fn count(sent: &[(usize, String, Vec<String>)], action: &str) -> (usize, usize) {
    let of_kind = sent.iter().filter(|(_, name, _)| name == action);
    (of_kind.clone().count(), of_kind.map(|(_, _, markets)| markets.len()).sum())
}
