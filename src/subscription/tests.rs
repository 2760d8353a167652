//! Desired and observed against a model of the exchange: whatever the order of changes, replies,
//! timeouts, refusals and reconnects, once they stop every wanted market is with the exchange
//! exactly once, and no other is.

mod asking;
mod covering;
mod pacing;
mod placing;
mod repairing;
mod world;

use proptest::prelude::*;

use super::*;
use crate::simulation::peer::Fate;
use world::*;

/// What may become of a command, as often as it stands here.
const FATES: [Fate; 23] = [
    Fate::Carried,
    Fate::Carried,
    Fate::Carried,
    Fate::Carried,
    Fate::Carried,
    Fate::Carried,
    Fate::Unheard,
    Fate::Lost,
    Fate::Slow,
    Fate::Slow,
    Fate::SlowTimeout,
    Fate::Doubled,
    Fate::Timeout,
    Fate::Refused(18),
    Fate::Refused(27),
    Fate::Refused(26),
    Fate::Refused(14),
    Fate::Refused(10),
    Fate::Refused(25),
    Fate::Refused(1),
    Fate::Refused(8),
    Fate::Refused(99),
    Fate::Refused(17),
];

/// The rules of one world.
fn worlds() -> impl Strategy<Value = World> {
    let dialect = prop::sample::select(vec![Dialect::Live, Dialect::Live, Dialect::Legacy]);
    (dialect, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(dialect, migrates, limited, lists)| {
            let migrate_after = migrates.then_some(Duration::from_secs(20));
            let mut world = World::new(SubscriptionSettings { migrate_after, ..settings(dialect) });
            for peer in &mut world.peers {
                peer.lists = lists;
            }
            if limited {
                world.peers[2].limit = 3;
            }
            world
        },
    )
}

fn run(world: &mut World, steps: &[(u8, u16, u8)]) {
    for &(what, number, how) in steps {
        let index = usize::from(number) % world.peers.len();
        let market = number % MARKETS;
        match what {
            0..=2 => world.want(market, how % 3),
            3 | 4 => world.unwant(market),
            5 | 6 => world.up(index),
            7 => world.down(index),
            8..=12 => world.peers[index].take(FATES[usize::from(how) % FATES.len()]),
            13 => world.peers[index].finish(),
            14..=17 => world.deliver(index),
            21 => world.overtake(index),
            18 => {
                world.peers[index].terminate(
                    how % 2 == 0,
                    how % 4 < 2,
                    i64::from(10 + how % 2 * 15),
                );
            }
            _ => world.pass(u64::from(how % 8)),
        }
        world.pump();
    }
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let limits: Vec<_> = self.peers.iter().map(|peer| peer.limit).collect();
        write!(f, "{:?}, {limits:?}, lists: {}", self.plan.settings, self.peers[0].lists)
    }
}

proptest! {
    #![proptest_config(crate::property::cases(10_000))]

    #[test]
    fn any_order_of_events_ends_as_desired(
        mut world in worlds(),
        steps in prop::collection::vec((0u8..22, 0u16..420, 0u8..230), 1..120),
    ) {
        run(&mut world, &steps);
        world.quiesce();
        world.check_settled();
    }

    /// One market that comes and goes beside another, and nothing wrong but the time and the order
    /// of replies.
    #[test]
    fn e3_replies_late_and_in_any_order_end_as_desired(
        dialect in prop::sample::select(vec![Dialect::Live, Dialect::Live, Dialect::Legacy]),
        steps in prop::collection::vec(0u8..8, 1..40),
    ) {
        let mut world = World::new(settings(dialect));
        world.up(1);
        holding(&mut world, 1);
        for what in steps {
            match what {
                0 if world.wanted.contains_key(&ticker(1)) => world.unwant(1),
                0 => world.want(1, 0),
                1 | 2 => world.peers[1].take(Fate::Carried),
                3 => world.peers[1].take(Fate::Slow),
                4 => world.peers[1].finish(),
                5 => world.deliver(1),
                6 => {
                    let last = world.peers[1].outbox.pop_back();
                    last.into_iter().for_each(|reply| world.peers[1].outbox.push_front(reply));
                    world.deliver(1);
                }
                _ => world.pass(6),
            }
            world.pump();
        }
        world.quiesce();
        world.check_settled();
    }
}
