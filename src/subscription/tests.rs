//! Desired and observed against a model of the exchange: whatever the order of changes, replies,
//! timeouts, refusals and reconnects, once they stop every wanted market is with the exchange
//! exactly once, and no other is.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const FIRST: u16 = 2;
const BOOKS: u16 = 3;
const MARKETS: u16 = 12;

fn pool() -> impl Iterator<Item = (ConnId, Role)> {
    let books = (FIRST..FIRST + BOOKS).map(|n| (ConnId::new(n), Role::Orderbook));
    std::iter::once((ConnId::new(1), Role::Trade)).chain(books)
}

fn ticker(number: u16) -> Ticker {
    format!("M{number}").parse().unwrap()
}

/// One connection of the model exchange: the live protocol's rules, nothing else.
#[derive(Default)]
struct Peer {
    sid: Option<Sid>,
    next_sid: u64,
    markets: BTreeSet<Ticker>,
    in_flight: Vec<Request>,
    live: bool,
}

impl Peer {
    /// Carries a request out, as the exchange would.
    fn apply(&mut self, request: &Request) -> (Outcome, Option<Sid>) {
        let unknown = (Outcome::Rejected { code: UNKNOWN_SUBSCRIPTION }, None);
        match request {
            Request::Subscribe { markets, .. } => {
                if self.sid.is_none() {
                    self.next_sid += 1;
                    self.sid = Some(Sid::new(self.next_sid));
                }
                self.markets.extend(markets.iter().cloned());
                (Outcome::Ok, self.sid)
            }
            _ if request.sid() != self.sid => unknown,
            Request::Add { markets, .. } => {
                self.markets.extend(markets.iter().cloned());
                (Outcome::Ok, self.sid)
            }
            Request::Delete { markets, .. } => {
                for market in markets {
                    self.markets.remove(market);
                }
                (Outcome::Ok, self.sid)
            }
            Request::Unsubscribe { .. } => {
                self.markets.clear();
                (Outcome::Ok, self.sid.take())
            }
        }
    }
}

struct World {
    subscriptions: Subscriptions,
    peers: Vec<Peer>,
    wanted: BTreeSet<Ticker>,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let limits = CommandLimits { chunk: 3, in_flight: 2 };
        Self {
            subscriptions: Subscriptions::new(pool(), 100, limits),
            peers: pool().map(|_| Peer::default()).collect(),
            wanted: BTreeSet::new(),
            now: crate::clock::now(),
        }
    }

    fn conn(index: usize) -> ConnId {
        ConnId::new(u16::try_from(index).unwrap() + 1)
    }

    fn want(&mut self, number: u16) {
        self.wanted.insert(ticker(number));
        self.subscriptions.want(&ticker(number));
    }

    fn unwant(&mut self, number: u16) {
        self.wanted.remove(&ticker(number));
        self.subscriptions.unwant(&ticker(number));
    }

    fn pump(&mut self) {
        self.subscriptions.place();
        for index in 0..self.peers.len() {
            while let Some(request) = self.subscriptions.next_request(Self::conn(index), self.now) {
                assert!(self.peers[index].live, "nothing is sent to the dead");
                assert!(request.markets().len() <= 3);
                self.peers[index].in_flight.push(request);
                assert!(self.peers[index].in_flight.len() <= 2);
            }
        }
    }

    fn up(&mut self, index: usize) {
        if !self.peers[index].live {
            self.peers[index] = Peer { live: true, ..Peer::default() };
            self.subscriptions.up(Self::conn(index));
        }
    }

    fn down(&mut self, index: usize) {
        if std::mem::take(&mut self.peers[index].live) {
            for request in std::mem::take(&mut self.peers[index].in_flight) {
                let lost = Outcome::ConnectionLost;
                self.subscriptions.ended(Self::conn(index), &request, lost, None, self.now);
            }
            self.subscriptions.down(Self::conn(index));
        }
    }

    /// The oldest command of a connection ends in one of several ways.
    fn end(&mut self, index: usize, how: u8) {
        if self.peers[index].in_flight.is_empty() {
            return;
        }
        let request = self.peers[index].in_flight.remove(0);
        let (outcome, sid) = match how {
            0 => (Outcome::TimedOut, None),
            1 => {
                // Carried out, but the reply is lost.
                self.peers[index].apply(&request);
                (Outcome::TimedOut, None)
            }
            2 => (Outcome::Rejected { code: 27 }, None),
            3 => {
                self.peers[index].apply(&request);
                (Outcome::Rejected { code: 18 }, None)
            }
            _ => self.peers[index].apply(&request),
        };
        self.subscriptions.ended(Self::conn(index), &request, outcome, sid, self.now);
    }

    /// The exchange ends a subscription by itself.
    fn terminate(&mut self, index: usize) {
        if let Some(sid) = self.peers[index].sid.take() {
            self.peers[index].markets.clear();
            self.subscriptions.renew(Self::conn(index), sid, self.now);
        }
    }

    fn quiesce(&mut self) {
        for _ in 0..200 {
            self.now += Duration::from_secs(60);
            self.pump();
            for index in 0..self.peers.len() {
                self.up(index);
                while !self.peers[index].in_flight.is_empty() {
                    self.end(index, 9);
                }
            }
        }
    }

    fn check(&self) {
        let held: Vec<_> =
            self.peers[1..].iter().flat_map(|peer| peer.markets.iter().cloned()).collect();
        let distinct: BTreeSet<_> = held.iter().cloned().collect();
        assert_eq!(held.len(), distinct.len(), "no market is held twice");
        assert_eq!(distinct, self.wanted);
        assert!(self.peers[0].sid.is_some(), "the global line is open");
        let count = widen(self.wanted.len());
        assert_eq!(self.subscriptions.totals(), (count, count));
        assert_eq!(self.subscriptions.all().len(), self.wanted.len(), "no record is left over");
        for (index, peer) in self.peers.iter().enumerate().skip(1) {
            let load = self.subscriptions.assigner.load(Self::conn(index));
            assert_eq!(load, peer.markets.len(), "loads are what is held");
            if peer.markets.is_empty() {
                assert_eq!(peer.sid, None, "an empty subscription is ended");
            }
        }
    }
}

#[test]
fn a_thousand_changes_of_one_market_cost_one_command() {
    let mut world = World::new();
    world.up(1);
    for _ in 0..1_000 {
        world.want(1);
        world.unwant(1);
    }
    world.want(1);
    world.pump();
    assert_eq!(world.peers[1].in_flight.len(), 1);
    assert_eq!(world.peers[1].in_flight[0].markets(), [ticker(1)]);
}

#[test]
fn dropping_one_market_leaves_the_others_alone() {
    let mut world = World::new();
    world.up(1);
    (0..3).for_each(|number| world.want(number));
    world.quiesce();
    world.unwant(1);
    world.pump();
    let deletes = world.peers.iter().flat_map(|peer| &peer.in_flight);
    let kinds: Vec<_> = deletes
        .map(|r| matches!(r, Request::Delete { .. } | Request::Unsubscribe { .. }))
        .collect();
    assert_eq!(kinds, [true]);
    world.quiesce();
    world.check();
}

#[test]
fn markets_spread_evenly_over_what_is_healthy() {
    let mut world = World::new();
    world.up(1);
    world.up(2);
    world.up(3);
    (0..MARKETS).for_each(|number| world.want(number));
    world.quiesce();
    let loads: Vec<_> = world.peers[1..].iter().map(|peer| peer.markets.len()).collect();
    assert_eq!(loads, [4, 4, 4]);
}

#[test]
fn a_reconnect_replays_what_is_wanted_then() {
    let mut world = World::new();
    world.up(1);
    (0..5).for_each(|number| world.want(number));
    world.quiesce();
    world.down(1);
    world.unwant(0);
    world.want(7);
    world.quiesce();
    world.check();
}

#[test]
fn markets_of_a_connection_given_up_move_to_the_others() {
    let mut world = World::new();
    (1..=3).for_each(|index| world.up(index));
    (0..MARKETS).for_each(|number| world.want(number));
    world.quiesce();
    world.unwant(0);
    world.down(2);
    world.peers[2].markets.clear();
    world.subscriptions.abandon(World::conn(2));
    for _ in 0..50 {
        world.now += Duration::from_secs(60);
        world.pump();
        for index in [1, 3] {
            while !world.peers[index].in_flight.is_empty() {
                world.end(index, 9);
            }
        }
    }
    let loads: Vec<_> = world.peers[1..].iter().map(|peer| peer.markets.len()).collect();
    assert_eq!(loads.iter().sum::<usize>(), usize::from(MARKETS) - 1, "{loads:?}");
    assert_eq!((loads[1], world.subscriptions.totals().1), (0, u64::from(MARKETS) - 1));
}

#[test]
fn an_exchange_that_ends_every_subscription_is_not_asked_without_pause() {
    let mut world = World::new();
    world.up(1);
    world.want(1);
    world.pump();
    let mut commands = 0;
    let begun = world.now;
    while world.now < begun + Duration::from_secs(3_600) {
        while !world.peers[1].in_flight.is_empty() {
            commands += 1;
            world.end(1, 9);
            world.pump();
        }
        world.terminate(1);
        world.now += Duration::from_millis(500);
        world.pump();
    }
    assert!((100..400).contains(&commands), "{commands} in an hour");
}

#[test]
fn markets_that_come_and_go_while_there_is_no_room_are_forgotten() {
    let mut world = World::new();
    world.want(0);
    for number in 1..20_000 {
        world.want(number);
        world.unwant(number);
        world.pump();
    }
    assert!(world.subscriptions.all().len() < 3_000, "{}", world.subscriptions.all().len());
    world.quiesce();
    world.check();
}

proptest! {
    #![proptest_config(crate::property::cases(3_000))]

    #[test]
    fn any_order_of_events_ends_as_desired(
        steps in prop::collection::vec((0u8..10, 0u16..MARKETS, 0u8..8), 1..120),
    ) {
        let mut world = World::new();
        for (what, number, how) in steps {
            let index = usize::from(number) % world.peers.len();
            match what {
                0..=2 => world.want(number),
                3 => world.unwant(number),
                4 => world.up(index),
                5 => world.down(index),
                6 | 7 => world.end(index, how),
                8 => world.terminate(index),
                _ => world.now += Duration::from_secs(u64::from(how)),
            }
            world.pump();
        }
        world.quiesce();
        world.check();
    }
}
