//! Which market goes where, and when: rows M of the fault matrix, by the first letters of their
//! names, and what a market costs.

use proptest::prelude::*;

use super::*;
use crate::market::MarketState;

#[test]
fn m1_a_thousand_changes_of_one_market_cost_one_command() {
    let mut world = World::new(settings(Dialect::Live));
    world.up(1);
    for _ in 0..1_000 {
        world.want(1, 0);
        world.unwant(1);
    }
    world.want(1, 0);
    world.pump();
    let sent = world.named();
    assert_eq!(count(&sent, "subscribe"), (1, 1), "{sent:?}");
}

#[test]
fn m1_a_burst_goes_out_in_full_lists_within_the_cap() {
    let settings = SubscriptionSettings {
        chunk: 500,
        markets_per_connection: 7_500,
        in_flight: 4,
        ..settings(Dialect::Live)
    };
    let mut plan = Subscriptions::new(pool(), settings, crate::clock::now());
    let now = crate::clock::now();
    (2..5).for_each(|conn| plan.up(ConnId::new(conn)));
    for number in 0..7_500 * usize::from(BOOKS) + 10 {
        plan.want(&format!("KXDEMO-26NOV01-T{number}"), 0, now);
    }
    assert_eq!(plan.place(now), Some(Unplaced::PoolFull));
    assert_eq!(plan.waiting(), 10);
    let text = |step: Option<Step>| match step {
        Some(Step::Send(request)) => request.text,
        other => panic!("{other:?}"),
    };
    let first = text(plan.next(ConnId::new(2), now));
    // Bounded by bytes before it is by count: a shard writes it in one turn.
    assert!(first.matches("KXDEMO").count() > 150);
    assert!(first.len() < 4_300, "{}", first.len());
}

proptest! {
    #![proptest_config(crate::property::cases(500))]

    /// Against the obvious model: a set of what is wanted, and so many places.
    #[test]
    fn m1_adds_and_removes_in_any_order_have_their_net_effect_within_the_cap(
        steps in prop::collection::vec((0u8..8, 0u16..40, 0u8..3), 1..200),
        cap in 1usize..12,
    ) {
        let small = SubscriptionSettings { markets_per_connection: cap, ..settings(Dialect::Live) };
        let mut world = World::new(small);
        (0..4).for_each(|index| world.up(index));
        for (what, number, priority) in steps {
            match what {
                0..=3 => world.want(100 + number, priority),
                4..=6 => world.unwant(100 + number),
                _ => world.flow(),
            }
            world.pump();
            prop_assert!(loads(&world).iter().all(|&load| load <= cap), "{:?}", loads(&world));
        }
        world.flow();
        let streams: Vec<_> = world.peers.iter().flat_map(|peer| peer.streams()).collect();
        prop_assert!(streams.iter().all(|market| world.wanted.contains_key(*market)));
        let room = cap * usize::from(BOOKS);
        prop_assert_eq!(streams.len(), world.wanted.len().min(room));
        let left = world.wanted.len() - streams.len();
        prop_assert_eq!(world.plan.waiting(), widen(left));
    }
}

#[test]
fn m2_what_was_in_flight_when_the_connection_fell_is_replayed_in_bulk() {
    let mut world = World::new(settings(Dialect::Live));
    world.up(1);
    holding(&mut world, 5);
    world.want(7, 0);
    world.unwant(0);
    world.pump();
    world.down(1);
    world.unwant(1);
    world.want(8, 0);
    world.named();
    world.up(1);
    world.flow();
    let sent = world.named();
    assert_eq!(count(&sent, "subscribe"), (1, 4), "{sent:?}");
    assert_eq!(count(&sent, "add_markets"), (1, 1), "{sent:?}");
    world.quiesce();
    world.check_settled();
}

#[test]
fn m3_what_finds_no_room_waits_is_counted_and_is_placed_when_there_is_some() {
    let small = SubscriptionSettings { markets_per_connection: 2, ..settings(Dialect::Live) };
    let mut world = World::new(small);
    world.want(0, 0);
    assert_eq!(world.plan.place(world.now), Some(Unplaced::NoHealthyConnections));
    assert_eq!(state(&mut world, 0), Some(MarketState::Unplaced));
    (1..=3).for_each(|index| world.up(index));
    holding(&mut world, 8);
    assert_eq!(world.plan.place(world.now), Some(Unplaced::PoolFull));
    assert_eq!((world.plan.waiting(), loads(&world)), (2, vec![2, 2, 2]));
    world.unwant(0);
    world.unwant(1);
    world.flow();
    assert_eq!((world.plan.waiting(), world.plan.place(world.now)), (0, None));
    world.quiesce();
    world.check_settled();
}

#[test]
fn m3_markets_that_come_and_go_while_there_is_no_room_leave_nothing_behind() {
    let mut world = World::new(settings(Dialect::Live));
    for _ in 0..5_000 {
        (0..10).for_each(|number| world.want(number, 1));
        (0..10).for_each(|number| world.unwant(number));
        assert_eq!(world.plan.directory.len(), 0);
    }
    assert!(world.plan.directory.bytes() < 200_000, "{}", world.plan.directory.bytes());
}

#[test]
fn m4_dropping_one_market_deletes_it_and_leaves_the_others_alone() {
    let mut world = World::new(settings(Dialect::Live));
    world.up(1);
    holding(&mut world, 3);
    world.named();
    world.unwant(1);
    world.flow();
    let sent = world.named();
    assert_eq!(sent.len(), 1, "{sent:?}");
    assert_eq!(count(&sent, "delete_markets"), (1, 1));
    let left: Vec<_> = world.peers[1].streams().cloned().collect();
    assert_eq!(left, ["M0", "M2"]);
}

#[test]
fn m4_the_last_market_takes_the_subscription_along() {
    let mut world = World::new(settings(Dialect::Live));
    world.up(1);
    holding(&mut world, 2);
    world.named();
    world.unwant(0);
    world.unwant(1);
    world.flow();
    let sent = world.named();
    assert_eq!((sent.len(), count(&sent, "unsubscribe")), (1, (1, 0)), "{sent:?}");
}

#[test]
fn m5_doubled_and_unknown_changes_change_nothing() {
    let mut world = World::up_all();
    world.unwant(3);
    assert_eq!(world.plan.directory.len(), 0);
    holding(&mut world, 3);
    world.named();
    (0..3).for_each(|number| world.want(number, 0));
    world.unwant(9);
    world.flow();
    assert_eq!((world.named(), world.plan.totals()), (vec![], (3, 3)));
}

#[test]
fn markets_spread_evenly_over_what_is_healthy_and_stay_there() {
    let mut world = World::up_all();
    holding(&mut world, 12);
    assert_eq!(loads(&world), [4, 4, 4]);
    world.down(2);
    world.flow();
    assert_eq!(loads(&world), [4, 0, 4], "they wait for their own");
    world.up(2);
    world.flow();
    assert_eq!(loads(&world), [4, 4, 4]);
}

#[test]
fn markets_of_a_connection_given_up_move_to_the_others() {
    let mut world = World::up_all();
    holding(&mut world, 12);
    world.unwant(0);
    world.down(2);
    world.plan.abandon(World::conn(2), world.now);
    world.flow();
    assert_eq!((loads(&world).iter().sum::<usize>(), loads(&world)[1]), (11, 0));
}

#[test]
fn markets_of_a_connection_that_stays_down_move_once_and_are_not_fought_over() {
    let after = Some(Duration::from_secs(20));
    let mut world =
        World::new(SubscriptionSettings { migrate_after: after, ..settings(Dialect::Live) });
    (0..4).for_each(|index| world.up(index));
    holding(&mut world, 12);
    world.down(2);
    world.pass(19);
    world.flow();
    assert_eq!(loads(&world), [4, 0, 4]);
    assert_eq!(world.plan.next_deadline(world.now), Some(world.now + Duration::from_secs(1)));
    world.pass(1);
    world.flow();
    assert_eq!(loads(&world), [6, 0, 6]);
    world.up(2);
    world.want(12, 0);
    world.quiesce();
    assert_eq!(loads(&world), [6, 1, 6]);
    world.check_settled();
}

#[test]
fn in_a_general_outage_no_market_moves() {
    let after = Some(Duration::from_secs(20));
    let mut world =
        World::new(SubscriptionSettings { migrate_after: after, ..settings(Dialect::Live) });
    (0..4).for_each(|index| world.up(index));
    holding(&mut world, 12);
    (1..4).for_each(|index| world.down(index));
    world.pass(3_600);
    world.up(1);
    world.flow();
    assert_eq!(loads(&world), [4, 0, 0]);
}

#[test]
fn those_that_matter_most_go_first_at_first_and_after_a_storm() {
    let mut world = World::new(settings(Dialect::Live));
    world.up(1);
    (0..12).for_each(|number| world.want(number, u8::try_from(number % 3).unwrap()));
    for _ in 0..2 {
        world.named();
        world.flow();
        let order: Vec<String> =
            world.named().into_iter().flat_map(|(_, _, names)| names).collect();
        let ranks: Vec<u8> = order.iter().map(|name| world.wanted[name]).collect();
        assert_eq!(ranks, [2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0], "{order:?}");
        world.down(1);
        world.up(1);
    }
}

#[test]
fn a_priority_changed_while_waiting_counts() {
    let mut world = World::new(settings(Dialect::Live));
    (0..12).for_each(|number| world.want(number, 0));
    world.want(9, 200);
    world.up(1);
    world.pump();
    assert_eq!(world.named()[0].2[0], "M9");
}

#[test]
fn a_million_markets_cost_less_than_a_hundred_bytes_each() {
    const MARKETS: u64 = 200_000;
    let settings = SubscriptionSettings {
        chunk: 500,
        markets_per_connection: 1 << 20,
        ..settings(Dialect::Live)
    };
    let now = crate::clock::now();
    let mut plan = Subscriptions::new(pool(), settings, now);
    (2..5).for_each(|conn| plan.up(ConnId::new(conn)));
    for number in 0..MARKETS {
        plan.want(&format!("KXBTCD-26NOV2317-T{number:08}"), 0, now);
    }
    plan.place(now);
    for conn in (2..5).map(ConnId::new) {
        while let Some(Step::Send(request)) = plan.next(conn, now) {
            let (id, expects) = (request.id, request.expects);
            let (outcome, sid) = (crate::command::Outcome::Ok, Some(Sid::new(1)));
            let ended = crate::command::Ended { id, expects, outcome, sid, detail: None };
            plan.ended(conn, &ended, now);
        }
    }
    assert_eq!(plan.totals(), (MARKETS, MARKETS));
    // All else is by connection or by command under way: lists are threaded through the table.
    let bytes = plan.directory.bytes() / MARKETS;
    println!("{bytes} bytes a market, 26 of them its ticker");
    assert!(bytes < 100, "{bytes} bytes a market");
}
