//! From when on markets count as not covered: when the exchange ended their subscription, not when
//! that was settled.

use super::*;
use crate::coverage::UncoveredReason::{Down, NotSubscribed, SubscriptionEnded};
use crate::coverage::{Uncovered, UncoveredMarkets, UncoveredReason};

/// What was told: why, of how many markets, and how long that was.
fn told(world: &mut World) -> Vec<(UncoveredReason, usize, Duration)> {
    world.pass(1);
    let one = |told: Uncovered| {
        let markets = match &told.markets {
            UncoveredMarkets::Listed(list) => list.len(),
            _ => 0,
        };
        (told.reason, markets, told.end.duration_since(told.start).unwrap())
    };
    let mut all: Vec<_> = world.plan.take_uncovered(world.now).into_iter().map(one).collect();
    all.sort();
    all
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// With a clock, and this many markets subscribed on the first order-book connection.
fn clocked(dialect: Dialect, markets: u16) -> World {
    let mut world = World::new(settings(dialect));
    let clock = crate::clock::Stamp { wall: std::time::SystemTime::UNIX_EPOCH, mono: world.now };
    world.plan = Subscriptions::new(pool(), world.plan.settings, world.now).with_clock(clock);
    world.up(0);
    world.up(1);
    holding(&mut world, markets);
    world.pass(200);
    told(&mut world);
    world
}

/// The same with one market: its subscription ended, and it was given up four seconds later.
fn ended_and_given_up(dialect: Dialect) -> World {
    let mut world = clocked(dialect, 1);
    assert!(world.peers[1].terminate(false, true, 25));
    world.deliver(1);
    world.pass(4);
    world.unwant(0);
    world
}

#[test]
fn markets_of_a_subscription_that_ended_are_uncovered_from_its_end_on() {
    for dialect in [Dialect::Live, Dialect::Legacy] {
        let mut world = clocked(dialect, 1);
        assert!(world.peers[1].terminate(false, true, 25));
        world.deliver(1);
        world.pump();
        world.peers[1].take(Fate::Lost);
        world.pass(5);
        world.flow();
        assert_eq!(loads(&world)[0], 1);
        assert_eq!(told(&mut world), [(SubscriptionEnded, 1, seconds(5))], "{dialect:?}");
        // One that begins anew begins then.
        world.pass(7);
        assert!(world.peers[1].terminate(false, true, 25));
        world.deliver(1);
        world.pass(2);
        world.flow();
        assert_eq!(told(&mut world), [(SubscriptionEnded, 1, seconds(2))], "{dialect:?}");
    }
}

#[test]
fn markets_whose_connection_is_lost_after_their_subscription_are_uncovered_from_its_end_on() {
    for dialect in [Dialect::Live, Dialect::Legacy] {
        let mut world = clocked(dialect, 2);
        assert!(world.peers[1].terminate(false, true, 10));
        world.deliver(1);
        world.pass(3);
        world.down(1);
        world.pass(4);
        world.up(1);
        world.flow();
        let expected = match dialect {
            Dialect::Live => vec![(SubscriptionEnded, 2, seconds(7))],
            // The other market's lived on.
            Dialect::Legacy => vec![(Down, 1, seconds(4)), (SubscriptionEnded, 1, seconds(7))],
        };
        assert_eq!(told(&mut world), expected, "{dialect:?}");
    }
}

#[test]
fn a_line_without_markets_is_uncovered_from_its_subscriptions_end_on() {
    let mut world = clocked(Dialect::Live, 0);
    assert!(world.peers[0].terminate(false, true, 25));
    world.deliver(0);
    world.pump();
    world.peers[0].take(Fate::Lost);
    world.pass(5);
    world.flow();
    assert_eq!(told(&mut world), [(SubscriptionEnded, 0, seconds(5))]);
}

#[test]
fn an_end_told_in_answer_to_a_command_counts_from_then_on() {
    let mut world = clocked(Dialect::Live, 1);
    world.want(1, 0);
    world.pump();
    world.peers[1].terminate(false, true, 17);
    world.peers[1].outbox.clear();
    world.peers[1].take(Fate::Refused(17));
    world.deliver(1);
    world.pass(4);
    world.flow();
    let added = (NotSubscribed, 1, seconds(4));
    assert_eq!(told(&mut world), [added, (SubscriptionEnded, 1, seconds(4))]);
}

#[test]
fn an_end_that_nobody_has_acknowledged_at_the_stop_is_told_then() {
    for dialect in [Dialect::Live, Dialect::Legacy] {
        let mut world = clocked(dialect, 1);
        for index in [0, 1] {
            assert!(world.peers[index].terminate(false, true, 25));
            world.deliver(index);
        }
        world.pass(3);
        world.plan.end_coverage(world.now);
        let expected = [(SubscriptionEnded, 0, seconds(3)), (SubscriptionEnded, 1, seconds(3))];
        assert_eq!(told(&mut world), expected, "{dialect:?}");
    }
}

#[test]
fn a_market_wanted_no_more_before_the_end_of_its_subscription_is_acknowledged_is_told() {
    for dialect in [Dialect::Live, Dialect::Legacy] {
        let mut world = ended_and_given_up(dialect);
        world.pass(5);
        // Wanted again, and once more not: what lies between is nobody's.
        world.want(0, 0);
        world.pass(2);
        world.unwant(0);
        world.flow();
        let expected = [(SubscriptionEnded, 1, seconds(2)), (SubscriptionEnded, 1, seconds(4))];
        assert_eq!(told(&mut world), expected, "{dialect:?}");
        assert_eq!(world.plan.uncovered_ms(world.now), 6_000);
    }
}

#[test]
fn a_market_wanted_again_before_the_end_of_its_subscription_is_acknowledged_begins_then() {
    for dialect in [Dialect::Live, Dialect::Legacy] {
        let mut world = ended_and_given_up(dialect);
        world.pass(5);
        world.want(0, 0);
        world.pass(1);
        world.flow();
        assert_eq!(loads(&world)[0], 1);
        let expected = [(SubscriptionEnded, 1, seconds(1)), (SubscriptionEnded, 1, seconds(4))];
        assert_eq!(told(&mut world), expected, "{dialect:?}");
        // The next end is another.
        world.pass(7);
        assert!(world.peers[1].terminate(false, true, 25));
        world.deliver(1);
        world.pass(3);
        world.flow();
        assert_eq!(told(&mut world), [(SubscriptionEnded, 1, seconds(3))], "{dialect:?}");
    }
}

#[test]
fn a_market_wanted_again_whose_connection_is_lost_is_uncovered_from_the_wish_on() {
    for dialect in [Dialect::Live, Dialect::Legacy] {
        let mut world = ended_and_given_up(dialect);
        world.pass(5);
        world.want(0, 0);
        world.pass(2);
        // No data has come since before its subscription ended.
        let quiet_since = world.now - seconds(60);
        world.plan.quiet_since = Some(quiet_since);
        world.down(1);
        world.pass(3);
        world.up(1);
        world.flow();
        let expected = [(SubscriptionEnded, 1, seconds(4)), (SubscriptionEnded, 1, seconds(5))];
        assert_eq!(told(&mut world), expected, "{dialect:?}");
    }
}
