//! How fast an exchange that refuses, ends and answers nonsense is asked: trouble slows a
//! connection down, each incident once, and nothing makes it ask without pause.

use super::*;

#[test]
fn e10_subscriptions_of_single_markets_that_end_together_are_opened_anew_at_once() {
    let mut world = World::new(settings(Dialect::Legacy));
    world.up(1);
    holding(&mut world, 7);
    (0..7).for_each(|_| assert!(world.peers[1].terminate(false, false, 10)));
    (0..7).for_each(|_| world.deliver(1));
    assert_eq!(loads(&world)[0], 0);
    world.flow();
    assert_eq!(loads(&world)[0], 7, "one incident");
}

#[test]
fn e10_commands_under_way_when_a_subscription_ends_are_part_of_the_same_incident() {
    let mut world = World::new(settings(Dialect::Live));
    world.up(1);
    holding(&mut world, 4);
    (4..12).for_each(|number| world.want(number, 0));
    world.pump();
    assert!(world.peers[1].terminate(false, true, 10));
    (0..2).for_each(|_| world.peers[1].take(Fate::Refused(17)));
    (0..3).for_each(|_| world.deliver(1));
    world.flow();
    assert_eq!(loads(&world)[0], 12, "at once, the first time");
}

#[test]
fn e10_an_exchange_that_finishes_nothing_in_time_is_not_asked_without_pause() {
    let worlds = [
        (Dialect::Live, Fate::Refused(18)),
        (Dialect::Live, Fate::Timeout),
        (Dialect::Legacy, Fate::Refused(18)),
    ];
    for (dialect, fate) in worlds {
        let mut world = World::new(settings(dialect));
        world.up(1);
        (0..6).for_each(|number| world.want(number, 0));
        for _ in 0..3_600 {
            for _ in 0..20 {
                world.pump();
                world.peers[1].take(fate);
                world.deliver(1);
            }
            world.pass(1);
        }
        let asked = world.named().len();
        assert!((200..500).contains(&asked), "{asked} in an hour, {fate:?}");
        world.quiesce();
        world.check_settled();
    }
}

#[test]
fn legacy_an_exchange_that_gives_all_markets_the_same_sid_is_not_asked_without_pause() {
    let mut now = crate::clock::now();
    let mut plan = Subscriptions::new(pool(), settings(Dialect::Legacy), now);
    let (conn, sid) = (World::conn(1), Sid::new(1));
    plan.up(conn);
    (0..3).for_each(|number| plan.want(&ticker(number), 0, now));
    plan.place(now);
    let mut asked = 0;
    for second in 0..3_600 {
        if second == 1_800 {
            plan.unwant(&ticker(0), now);
            plan.unwant(&ticker(1), now);
        }
        for _ in 0..20 {
            plan.tick(now);
            let Some(Step::Send(request)) = plan.next(conn, now) else { break };
            asked += 1;
            let channel = "orderbook_delta".to_owned();
            let listed = vec![crate::command::Listed { channel, sid: sid.number() }];
            let detail = crate::command::Detail { listed, responses: Vec::new() };
            let ended = crate::command::Ended {
                id: request.id,
                expects: request.expects,
                outcome: crate::command::Outcome::Ok,
                sid: Some(sid),
                detail: Some(Box::new(detail)),
            };
            plan.ended(conn, &ended, now);
        }
        now += Duration::from_secs(1);
    }
    assert!(asked < 400, "{asked} in an hour");
    let left = plan.assignments(now).iter().count();
    assert_eq!((left, plan.totals()), (1, (1, 1)), "two are gone, and one is there");
}
