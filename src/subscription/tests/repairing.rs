//! Gaps and what is asked for after them: lists, limits, subscriptions opened anew.

use super::*;
use crate::gap::Gaps;

fn repairing(policy: GapPolicy, dialect: Dialect) -> World {
    let mut world = World::new(SubscriptionSettings { gap_policy: policy, ..settings(dialect) });
    world.up(1);
    holding(&mut world, 10);
    books(&mut world, 1, 0..10);
    world.named();
    world
}

/// Twelve markets on three connections, and so many books asked for in a second.
fn rated(recovery_rate: usize) -> World {
    let settings = SubscriptionSettings {
        gap_policy: GapPolicy::Resnapshot,
        recovery_rate,
        ..settings(Dialect::Live)
    };
    let mut world = World::new(settings);
    (0..world.peers.len()).for_each(|index| world.up(index));
    holding(&mut world, 12);
    for index in 1..4 {
        books(&mut world, index, 0..12);
    }
    world.named();
    world
}

fn books(world: &mut World, index: usize, markets: std::ops::Range<u16>) -> (usize, u64) {
    let tickers: String = markets.map(|number| format!("{}\n", ticker(number))).collect();
    let recovered = world.plan.books_came(World::conn(index), &tickers, world.now);
    (recovered.markets.len(), recovered.left)
}

fn gap(world: &mut World, index: usize, last: u64, sids: &[u64]) -> u64 {
    // For which it may be ended, though it streams.
    world.clients[index].troubled.extend(sids);
    let sids = sids.iter().map(|&sid| Sid::new(sid)).collect();
    let gaps = Gaps { sids, last, since: world.now };
    let suspected = world.plan.gap(World::conn(index), &gaps, world.now);
    suspected.map_or(0, |suspected| widen(suspected.markets.len()))
}

fn suspects(world: &World) -> u64 {
    world.plan.recoveries().0
}

#[test]
fn f1_the_books_of_all_markets_are_asked_for_in_lists() {
    let mut world = repairing(GapPolicy::Resnapshot, Dialect::Live);
    assert_eq!(gap(&mut world, 1, 1, &[1]), 10);
    assert_eq!(gap(&mut world, 1, 2, &[1]), 0, "suspect already");
    world.flow();
    let sent = world.named();
    assert_eq!(count(&sent, "get_snapshot"), (3, 10), "{sent:?}");
    assert_eq!(sent.len(), 3);
    assert_eq!(world.plan.unsettled(World::conn(1)), None);
    assert_eq!(books(&mut world, 1, 0..9), (9, 1));
    assert_eq!(books(&mut world, 1, 0..9), (0, 1));
    // One did not come: it is asked for again, alone.
    world.pass(1);
    world.flow();
    assert_eq!(world.named(), [(1, "get_snapshot".to_owned(), vec!["M9".to_owned()])]);
    assert_eq!(books(&mut world, 1, 9..10), (1, 0));
    assert_eq!(world.plan.unsettled(World::conn(1)), Some(2));
    world.plan.settled(World::conn(1));
    assert_eq!((suspects(&world), world.plan.unsettled(World::conn(1))), (0, None));
    let totals = world.plan.recoveries().1;
    assert_eq!((totals.started, totals.completed, totals.books_asked), (1, 1, 11));
    world.quiesce();
    assert!(world.named().iter().all(|&(index, ..)| index != 1), "nothing more is asked");
}

#[test]
fn markets_that_leave_are_suspect_no_more_and_those_that_are_being_added_are() {
    let mut world = repairing(GapPolicy::Resnapshot, Dialect::Live);
    world.want(10, 0);
    world.pump();
    assert_eq!(gap(&mut world, 1, 1, &[1]), 11);
    (0..9).for_each(|number| world.unwant(number));
    world.flow();
    assert_eq!(suspects(&world), 2);
    world.down(1);
    assert_eq!(suspects(&world), 0, "its subscription is gone, and all comes anew");
    world.up(1);
    world.flow();
    assert_eq!(world.plan.unsettled(World::conn(1)), None);
    let totals = world.plan.recoveries().1;
    assert_eq!((totals.started, totals.completed), (1, 0), "cut short");
}

/// Four markets with the exchange, and two that an overdue command may add yet.
fn two_overdue() -> World {
    let gap_policy = GapPolicy::Resnapshot;
    let mut world = World::new(SubscriptionSettings { gap_policy, ..settings(Dialect::Live) });
    world.up(1);
    (0..2).for_each(|number| world.want(number, 0));
    world.pump();
    world.peers[1].take(Fate::Slow);
    world.pass(6);
    // It is asked for, and not there; then these go first.
    (2..6).for_each(|number| world.want(number, 9));
    for _ in ["the list", "the four"] {
        world.pump();
        world.peers[1].take(Fate::Carried);
        world.deliver(1);
    }
    assert_eq!(loads(&world)[0], 4);
    world
}

#[test]
fn f1_a_market_that_may_have_been_added_unknown_to_us_is_suspect_too() {
    let mut world = two_overdue();
    // The two are there a moment later, and their books come, and then a gap.
    world.peers[1].finish();
    assert_eq!(gap(&mut world, 1, 1, &[1]), 6);
    world.flow();
    assert_eq!(books(&mut world, 1, 2..6), (4, 2));
    world.named();
    world.pass(1);
    world.flow();
    assert_eq!(count(&world.named(), "get_snapshot"), (1, 2));
    assert_eq!(books(&mut world, 1, 0..2), (2, 0));
    world.quiesce();
    world.check_settled();
}

#[test]
fn f1_one_that_can_have_been_added_no_more_is_not_suspect() {
    let mut world = two_overdue();
    assert_eq!(gap(&mut world, 1, 1, &[1]), 6);
    world.plan.tick(world.now + Duration::from_secs(3_600));
    assert_eq!(suspects(&world), 4);
}

#[test]
fn f1_one_that_comes_anew_with_the_others_is_suspect_until_it_has_come() {
    let mut world = repairing(GapPolicy::Resnapshot, Dialect::Live);
    (1..10).for_each(|number| world.want(number, 9));
    world.unwant(0);
    world.pump();
    world.peers[1].take(Fate::Lost);
    world.pass(6);
    world.want(0, 0);
    world.flow();
    books(&mut world, 1, 0..1);
    world.pass(59);
    assert_eq!(gap(&mut world, 1, 1, &[1]), 10);
    world.plan.renew(World::conn(1), Sid::new(1), world.now);
    world.pump();
    world.peers[1].take(Fate::Carried);
    world.deliver(1);
    world.pump();
    // What might have deleted it is over; it waits to be added after the others.
    world.pass(2);
    world.flow();
    assert_eq!(books(&mut world, 1, 0..10), (10, 0));
    world.quiesce();
    world.check_settled();
}

#[test]
fn f1_a_subscription_is_opened_anew_as_the_policy_has_it() {
    let mut world = repairing(GapPolicy::Resubscribe, Dialect::Live);
    gap(&mut world, 1, 1, &[1]);
    world.flow();
    let sent = world.named();
    let kinds: Vec<_> = sent.iter().map(|(_, kind, _)| kind.as_str()).collect();
    assert_eq!(kinds, ["unsubscribe", "subscribe", "add_markets", "add_markets"]);
    assert_eq!(suspects(&world), 10, "until their books come");
    assert_eq!(books(&mut world, 1, 0..10), (10, 0));
    world.quiesce();
    assert!(world.named().iter().all(|&(index, ..)| index != 1), "nothing more is asked");
    world.check_settled();
}

#[test]
fn e10_what_the_exchange_ended_is_opened_anew_once_and_no_book_is_asked_for() {
    for policy in [GapPolicy::Resnapshot, GapPolicy::Resubscribe] {
        let mut world = repairing(policy, Dialect::Live);
        gap(&mut world, 1, 1, &[1]);
        world.plan.renew(World::conn(1), Sid::new(1), world.now);
        world.flow();
        world.pass(1);
        world.flow();
        let sent = world.named();
        let kinds: Vec<_> = sent.iter().map(|(_, kind, _)| kind.as_str()).collect();
        assert_eq!(kinds, ["unsubscribe", "subscribe", "add_markets", "add_markets"]);
        assert_eq!(books(&mut world, 1, 0..9), (9, 1), "{policy:?}");
        // One did not come, and that is not left at that.
        world.clients[1].troubled.insert(2);
        for _ in 0..20 {
            world.pass(1);
            world.flow();
        }
        assert!(!world.named().is_empty(), "{policy:?}");
    }
}

#[test]
fn f1_a_book_lost_while_its_subscription_is_opened_anew_is_asked_for_soon() {
    let mut world = repairing(GapPolicy::Resnapshot, Dialect::Live);
    gap(&mut world, 1, 1, &[1]);
    world.plan.renew(World::conn(1), Sid::new(1), world.now);
    world.flow();
    books(&mut world, 1, 0..4);
    assert_eq!(gap(&mut world, 1, 2, &[2]), 4);
    assert_eq!(books(&mut world, 1, 5..10), (5, 5));
    world.named();
    (0..2).for_each(|_| world.pass(1));
    world.flow();
    world.pass(1);
    world.flow();
    let sent = world.named();
    assert_eq!((sent.len(), count(&sent, "get_snapshot")), (2, (2, 5)), "{sent:?}");
}

#[test]
fn what_is_opened_anew_and_not_all_open_yet_is_not_begun_again() {
    let mut world = repairing(GapPolicy::Resubscribe, Dialect::Live);
    gap(&mut world, 1, 1, &[1]);
    for what in ["the old one is ended", "the new one is open"] {
        world.pump();
        world.peers[1].take(Fate::Carried);
        world.deliver(1);
        assert_eq!(world.peers[1].inbox.len(), 0, "{what}");
    }
    gap(&mut world, 1, 2, &[2]);
    for _ in 0..8 {
        world.pump();
        while !world.peers[1].inbox.is_empty() {
            world.peers[1].take(Fate::Refused(27));
            world.deliver(1);
        }
        world.pass(1);
    }
    world.flow();
    let sent = world.named();
    assert_eq!((count(&sent, "unsubscribe").0, count(&sent, "subscribe").0), (1, 1), "{sent:?}");
    assert!(count(&sent, "add_markets").0 > 4, "{sent:?}");
}

#[test]
fn f1_books_lost_do_not_wait_for_others_to_be_added() {
    let mut world = repairing(GapPolicy::Resubscribe, Dialect::Live);
    gap(&mut world, 1, 1, &[1]);
    world.flow();
    gap(&mut world, 1, 2, &[2]);
    world.named();
    for number in 20..30 {
        world.now += Duration::from_millis(500);
        world.want(number, 0);
        world.flow();
    }
    let sent = world.named();
    assert!(count(&sent, "unsubscribe").0 > 0, "{sent:?}");
}

#[test]
fn f1_books_lost_are_asked_for_though_more_cannot_be_added() {
    let mut world = repairing(GapPolicy::Resnapshot, Dialect::Live);
    gap(&mut world, 1, 1, &[1]);
    world.plan.renew(World::conn(1), Sid::new(1), world.now);
    for _ in ["the old one is ended", "the new one is open"] {
        world.pump();
        world.peers[1].take(Fate::Carried);
        world.deliver(1);
    }
    assert_eq!(gap(&mut world, 1, 2, &[2]), 0);
    world.named();
    for _ in 0..8 {
        world.pump();
        while !world.peers[1].inbox.is_empty() {
            world.peers[1].take(Fate::Refused(27));
            world.deliver(1);
        }
        world.pass(1);
    }
    assert!(count(&world.named(), "get_snapshot").0 > 0);
}

#[test]
fn f1_one_market_of_its_own_does_not_wait_for_another() {
    let mut world = repairing(GapPolicy::Resnapshot, Dialect::Legacy);
    let sid = |world: &mut World, market: &str| {
        world.plan.info(&market.parse().unwrap(), world.now).unwrap().sid.unwrap().number()
    };
    let (first, second) = (sid(&mut world, "M3"), sid(&mut world, "M4"));
    gap(&mut world, 1, 1, &[first]);
    world.flow();
    gap(&mut world, 1, 2, &[second]);
    assert_eq!(books(&mut world, 1, 3..4), (1, 1));
    world.named();
    for _ in 0..3 {
        world.pass(1);
        world.flow();
    }
    let sent = world.named();
    assert_eq!((sent.len(), count(&sent, "unsubscribe").0), (2, 1), "{sent:?}");
    assert_eq!(count(&sent, "subscribe"), (1, 1), "{sent:?}");
    assert_eq!(sent[1].2, ["M4"]);
}

#[test]
fn f9_books_of_what_the_exchange_ended_count_for_the_rate() {
    let mut world = rated(1);
    gap(&mut world, 1, 1, &[1]);
    world.plan.renew(World::conn(1), Sid::new(1), world.now);
    gap(&mut world, 2, 1, &[1]);
    world.flow();
    assert_eq!(count(&world.named(), "get_snapshot"), (0, 0));
    world.pass(4);
    world.flow();
    assert_eq!(count(&world.named(), "get_snapshot"), (1, 4));
}

#[test]
fn rounds_in_vain_end_in_a_new_subscription() {
    let mut world = repairing(GapPolicy::Resnapshot, Dialect::Live);
    gap(&mut world, 1, 1, &[1]);
    let mut sent = Vec::new();
    for _ in 0..6 {
        world.flow();
        sent.extend(world.named());
        world.pass(1);
    }
    assert_eq!(count(&sent, "get_snapshot").0, 3 * 4);
    assert_eq!(count(&sent, "unsubscribe").0, 1);
    assert_eq!(count(&sent, "subscribe").0, 1);
    assert_eq!(books(&mut world, 1, 0..10), (10, 0));
    world.quiesce();
    world.check_settled();
}

#[test]
fn an_exchange_that_does_not_know_the_command_is_asked_once() {
    let mut world = repairing(GapPolicy::Resnapshot, Dialect::Live);
    gap(&mut world, 1, 1, &[1]);
    world.pump();
    world.peers[1].take(Fate::Refused(13));
    world.deliver(1);
    world.flow();
    let sent = world.named();
    assert_eq!((count(&sent, "get_snapshot").0, count(&sent, "unsubscribe").0), (1, 1), "{sent:?}");
}

#[test]
fn f1_a_market_with_a_sid_of_its_own_is_opened_anew_alone() {
    for policy in [GapPolicy::Resnapshot, GapPolicy::Resubscribe] {
        let mut world = repairing(policy, Dialect::Legacy);
        let info = world.plan.info(&"M3".parse().unwrap(), world.now).unwrap();
        let sid = info.sid.unwrap().number();
        assert_eq!(gap(&mut world, 1, 1, &[sid, 999]), 1, "nobody has the other");
        world.flow();
        let kinds: Vec<_> = world.named().into_iter().map(|(_, kind, _)| kind).collect();
        assert_eq!(kinds, ["unsubscribe", "subscribe"]);
        assert_eq!(books(&mut world, 1, 3..4), (1, 0));
        world.quiesce();
        world.check_settled();
    }
}

#[test]
fn gaps_of_sids_that_are_nobodys_are_not_remembered_without_end() {
    let mut world = repairing(GapPolicy::Resnapshot, Dialect::Legacy);
    let sids: Vec<u64> = (1_000..70_000).collect();
    assert_eq!(gap(&mut world, 1, 1, &sids), 0);
    for sid in 69_000..70_000 {
        let slot = crate::market::Slot(u32::try_from(sid).unwrap());
        world.plan.members[1].own.insert(slot, Sid::new(sid));
    }
    let early = world.plan.take_early_gap(World::conn(1)).unwrap();
    assert!(early.sids.len() <= 64 && early.last == 1, "{}", early.sids.len());
    assert_eq!(world.plan.take_early_gap(World::conn(1)), None);
}

#[test]
fn f9_the_rate_holds_over_all_connections() {
    let mut world = rated(4);
    (1..4).for_each(|index| assert_eq!(gap(&mut world, index, 1, &[1]), 4));
    let mut asked = Vec::new();
    for _ in 0..4 {
        world.flow();
        asked.push(count(&world.named(), "get_snapshot").1);
        (1..4).for_each(|index| {
            let named: Vec<String> =
                world.peers[index].streams().filter(|_| asked.len() >= 3).cloned().collect();
            world.plan.books_came(World::conn(index), &named.join("\n"), world.now);
        });
        world.pass(1);
    }
    assert_eq!(asked, [4, 4, 4, 0]);
    assert_eq!(suspects(&world), 0);
}

#[test]
fn e10_an_end_that_answers_a_question_for_books_is_an_end() {
    for code in [10, 17, 25] {
        let mut world = World::new(settings(Dialect::Live));
        world.up(1);
        holding(&mut world, 4);
        world.pass(6);
        world.pump();
        assert_eq!(count(&world.named(), "get_snapshot"), (1, 4));
        world.peers[1].take(Fate::Refused(code));
        world.deliver(1);
        world.flow();
        let kinds: Vec<_> = world.named().into_iter().map(|(_, kind, _)| kind).collect();
        assert_eq!(kinds, ["unsubscribe", "subscribe"], "{code}");
        books(&mut world, 1, 0..4);
        world.quiesce();
        world.check_settled();
    }
}

#[test]
fn f1_books_that_do_not_come_in_time_hold_nothing_else_back() {
    let mut world = repairing(GapPolicy::Resnapshot, Dialect::Live);
    gap(&mut world, 1, 1, &[1]);
    world.pump();
    world.named();
    world.peers[1].take(Fate::Refused(18));
    world.deliver(1);
    world.want(10, 0);
    world.unwant(0);
    world.pump();
    let sent = world.named();
    assert_eq!(count(&sent, "delete_markets"), (1, 1), "at once: {sent:?}");
    // 18 for ever: rounds end, and the subscription is opened anew now and then.
    world.clients[1].troubled.extend(1..1_000);
    let mut asked = 0;
    for _ in 0..600 {
        for _ in 0..20 {
            world.pump();
            let books = world.peers[1].inbox.front();
            let books = books.is_some_and(|command| command["params"]["action"] == "get_snapshot");
            world.peers[1].take(if books { Fate::Refused(18) } else { Fate::Carried });
            world.deliver(1);
        }
        world.pass(1);
        asked += count(&world.named(), "get_snapshot").0;
    }
    assert!((9..600).contains(&asked), "{asked} in ten minutes");
}
