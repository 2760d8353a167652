//! What is asked of the exchange, and what its answers lead to: rows E of the fault matrix, by the
//! first letters of their names, and both dialects.

use super::*;
use crate::market::MarketState;

#[test]
fn e3_a_late_reply_is_reconciled() {
    let mut world = World::new(settings(Dialect::Live));
    world.up(1);
    holding(&mut world, 1);
    world.want(1, 0);
    world.pump();
    world.peers[1].take(Fate::Slow);
    world.pass(6);
    world.unwant(1);
    world.flow();
    // The exchange adds it now, after it was deleted; only the late reply tells.
    assert_eq!(loads(&world)[0], 1);
    world.quiesce();
    world.check_settled();
}

#[test]
fn e3_an_overtaken_reply_says_nothing_of_a_subscription_that_has_ended_since() {
    let mut world = World::new(settings(Dialect::Live));
    world.up(1);
    (0..2).for_each(|number| world.want(number, 0));
    world.pump();
    world.peers[1].take(Fate::Carried);
    let overtaken = world.peers[1].outbox.pop_front().unwrap();
    world.pass(6);
    world.flow();
    assert!(world.peers[1].terminate(true, true, 25));
    world.deliver(1);
    // These go first when it is opened anew, and the two have to wait.
    (2..7).for_each(|number| world.want(number, 9));
    world.pump();
    world.peers[1].take(Fate::Carried);
    world.deliver(1);
    world.pump();
    world.peers[1].outbox.push_back(overtaken);
    world.deliver(1);
    world.quiesce();
    world.check_settled();
}

#[test]
fn e3_a_subscription_opened_late_is_found_when_the_other_has_ended() {
    let mut world = World::new(settings(Dialect::Live));
    world.up(1);
    (0..2).for_each(|number| world.want(number, 0));
    world.pump();
    world.peers[1].take(Fate::Slow);
    world.pass(6);
    for _ in ["it is asked for, and not there", "so it is opened"] {
        world.pump();
        world.peers[1].take(Fate::Carried);
        world.deliver(1);
    }
    assert!(world.peers[1].terminate(true, false, 10));
    world.deliver(1);
    world.pump();
    world.unwant(1);
    world.peers[1].finish();
    world.deliver(1);
    world.peers[1].take(Fate::Carried);
    world.deliver(1);
    assert_eq!(loads(&world)[0], 2, "opened late, beside the one that is no more");
    world.quiesce();
    world.check_settled();
}

#[test]
fn e3_a_late_reply_that_overtakes_a_newer_one_leaves_its_market_in_doubt() {
    for both_late in [false, true] {
        let mut world = World::new(settings(Dialect::Live));
        world.up(1);
        holding(&mut world, 1);
        world.want(1, 0);
        world.pump();
        world.peers[1].take(Fate::Slow);
        world.pass(6);
        world.unwant(1);
        world.pump();
        // Deleted, and then added; what is said of the second comes first.
        world.peers[1].take(Fate::Carried);
        world.peers[1].finish();
        world.peers[1].outbox.swap(0, 1);
        if both_late {
            world.pass(6);
        }
        world.deliver(1);
        world.deliver(1);
        assert_eq!(loads(&world)[0], 2, "nobody wants it, and it streams");
        assert_eq!(state(&mut world, 1), Some(MarketState::Uncertain));
        world.quiesce();
        world.check_settled();
    }
}

#[test]
fn e4_what_timed_out_is_uncertain_and_asked_again() {
    let mut world = World::new(settings(Dialect::Live));
    world.up(1);
    holding(&mut world, 1);
    world.want(1, 0);
    world.pump();
    world.peers[1].take(Fate::Lost);
    world.pass(5);
    assert_eq!(state(&mut world, 1), Some(MarketState::Uncertain));
    world.flow();
    assert_eq!(state(&mut world, 1), Some(MarketState::Subscribed));
}

#[test]
fn e4_a_subscribe_that_timed_out_is_looked_for_not_repeated() {
    for fate in [Fate::Unheard, Fate::Lost] {
        let mut world = World::new(settings(Dialect::Live));
        world.up(1);
        world.want(0, 0);
        world.pump();
        world.peers[1].take(fate);
        world.pass(5);
        world.named();
        world.flow();
        let sent = world.named();
        assert_eq!(count(&sent, "list_subscriptions").0, 1, "{sent:?}");
        let again = count(&sent, "subscribe").0;
        assert_eq!(again, usize::from(fate == Fate::Lost), "{sent:?}");
        world.quiesce();
        world.check_settled();
    }
}

#[test]
fn e9_ids_begin_anew_with_each_epoch_and_old_ends_mean_nothing() {
    let mut world = World::new(settings(Dialect::Live));
    world.up(1);
    holding(&mut world, 1);
    world.down(1);
    world.up(1);
    world.flow();
    world.quiesce();
    world.check_settled();
}

#[test]
fn e10_terminal_errors_end_the_subscription_and_open_it_anew() {
    for (code, silent) in [(25, true), (25, false), (10, true), (10, false)] {
        let mut world = World::new(settings(Dialect::Live));
        world.up(1);
        holding(&mut world, 6);
        world.named();
        assert!(world.peers[1].terminate(false, silent, code));
        world.deliver(1);
        world.flow();
        let sent = world.named();
        assert_eq!(count(&sent, "unsubscribe").0, 1, "{sent:?}");
        assert_eq!(loads(&world)[0], 6, "at once, the first time");
    }
}

#[test]
fn e10_an_exchange_that_ends_every_subscription_is_not_asked_without_pause() {
    let mut world = World::new(settings(Dialect::Live));
    world.up(1);
    world.want(1, 0);
    for _ in 0..3_600 {
        world.flow();
        world.peers[1].terminate(false, true, 25);
        world.deliver(1);
        world.pass(1);
    }
    let subscribes = count(&world.named(), "subscribe").0;
    assert!((50..200).contains(&subscribes), "{subscribes} in an hour");
}

#[test]
fn e10_what_does_not_fit_goes_to_other_connections() {
    let mut world = World::up_all();
    world.peers[1].limit = 2;
    holding(&mut world, 12);
    assert_eq!(loads(&world), [2, 5, 5]);
    let commands: usize = world.peers[1].taken.values().sum();
    assert!(commands < 12, "{commands} to find the limit");
    world.unwant(0);
    world.want(12, 0);
    world.quiesce();
    world.check_settled();
}

#[test]
fn e10_too_many_requests_slow_that_connection_down() {
    let mut world = World::up_all();
    (0..12).for_each(|number| world.want(number, 0));
    world.pump();
    world.peers[1].take(Fate::Refused(27));
    world.deliver(1);
    world.named();
    world.pump();
    assert!(world.named().iter().all(|(index, ..)| *index != 1), "not now");
    let due = world.plan.next_deadline(world.now).unwrap() - world.now;
    assert_eq!(due, Duration::from_millis(100));
    world.now += due;
    world.pump();
    assert_eq!(world.named().iter().filter(|(index, ..)| *index == 1).count(), 1);
    world.quiesce();
    world.check_settled();
}

#[test]
fn e10_a_command_the_exchange_did_not_finish_is_reconciled() {
    for fate in [Fate::Timeout, Fate::Refused(18)] {
        let mut world = World::new(settings(Dialect::Live));
        world.up(1);
        (0..6).for_each(|number| world.want(number, 0));
        for _ in 0..4 {
            world.pump();
            world.peers[1].take(fate);
            world.deliver(1);
        }
        world.quiesce();
        world.check_settled();
    }
}

#[test]
fn e10_a_subscription_there_already_is_found_and_used() {
    for lists in [true, false] {
        let mut world = World::new(settings(Dialect::Live));
        world.up(1);
        world.peers[1].lists = lists;
        world.want(0, 0);
        world.pump();
        world.peers[1].take(Fate::Unheard);
        world.pass(5);
        world.pump();
        world.peers[1].take(Fate::Refused(6));
        world.deliver(1);
        world.quiesce();
        world.check_settled();
        let lost = !world.peers[1].taken.contains_key("list_subscriptions");
        assert_eq!(lost, !lists, "where nothing tells the sid, a new connection does");
    }
}

#[test]
fn e10_the_market_the_exchange_does_not_like_is_found_and_told_and_the_rest_kept() {
    let settings =
        SubscriptionSettings { chunk: 500, markets_per_connection: 500, ..settings(Dialect::Live) };
    let mut plan = Subscriptions::new(pool(), settings, crate::clock::now());
    let mut now = crate::clock::now();
    let conn = ConnId::new(2);
    plan.up(conn);
    (0..499).for_each(|number| plan.want(&format!("M{number}"), 0, now));
    plan.want("BAD", 0, now);
    plan.place(now);
    let mut commands = 0;
    let mut sid = None;
    let mut refused = Vec::new();
    while plan.totals().1 < 499 || refused.is_empty() {
        while let Some(Step::Send(request)) = plan.next(conn, now) {
            commands += 1;
            assert!(commands < 30);
            let bad = request.text.contains("BAD");
            sid = sid.or_else(|| (!bad).then_some(Sid::new(1)));
            let code = ExchangeCode::InvalidParameter;
            let outcome = if bad {
                crate::command::Outcome::Rejected { code }
            } else {
                crate::command::Outcome::Ok
            };
            let (id, expects) = (request.id, request.expects);
            let ended = crate::command::Ended { id, expects, outcome, sid, detail: None };
            plan.ended(conn, &ended, now);
        }
        refused.extend(plan.take_refusals());
        now = plan.next_deadline(now).unwrap();
    }
    let (ticker, code) = ("BAD".parse().unwrap(), ExchangeCode::InvalidParameter);
    assert_eq!(refused, [Refusal { conn, ticker, code }]);
    // Asked for again after minutes, and not before.
    let until = now + Duration::from_secs(300);
    while now < until {
        assert!(
            plan.next(conn, now)
                .is_none_or(|step| matches!(step, Step::Send(r) if !r.text.contains("BAD")))
        );
        now += Duration::from_secs(10);
        plan.tick(now);
    }
    now += Duration::from_secs(10);
    plan.tick(now);
    assert!(matches!(plan.next(conn, now), Some(Step::Send(r)) if r.text.contains("BAD")));
}

#[test]
fn e10_a_refusal_for_good_is_a_long_hold() {
    let mut world = World::new(settings(Dialect::Live));
    world.up(0);
    world.pump();
    world.peers[0].take(Fate::Refused(9));
    world.deliver(0);
    assert_eq!(world.plan.refused(World::conn(0)), Some(ExchangeCode::AuthenticationRequired));
    let due = world.plan.next_deadline(world.now).unwrap() - world.now;
    assert_eq!(due, Duration::from_secs(60));
    world.quiesce();
    assert!(world.plan.is_open(World::conn(0)));
}

#[test]
fn e11_nothing_is_asked_of_a_connection_that_is_not_live_or_leaves_too_much_unanswered() {
    let mut world = World::new(settings(Dialect::Live));
    holding(&mut world, 3);
    assert!(world.named().is_empty());
    world.up(1);
    holding(&mut world, 4);
    world.want(8, 0);
    for _ in 0..20 {
        world.pump();
        while !world.peers[1].inbox.is_empty() {
            world.peers[1].take(Fate::Lost);
        }
        world.pass(5);
    }
    // One asked again every five seconds, and each counted for a minute.
    let asked = world.named().len();
    assert!(asked <= 3 + 20, "{asked}");
    world.quiesce();
    world.check_settled();
}

// Books that do not come.

#[test]
fn a_market_without_a_book_five_seconds_after_its_acknowledgement_is_asked_for_once() {
    let mut world = World::new(settings(Dialect::Live));
    world.up(1);
    holding(&mut world, 3);
    world.plan.books_came(World::conn(1), "M0\nM2\nunknown\n", world.now);
    world.named();
    world.pass(4);
    world.flow();
    assert!(world.named().is_empty());
    world.pass(1);
    world.flow();
    let sent = world.named();
    assert_eq!(count(&sent, "get_snapshot"), (1, 1), "{sent:?}");
    assert_eq!(sent[0].2, ["M1"]);
    world.pass(60);
    world.flow();
    assert!(world.named().is_empty(), "once");
}

// The legacy dialect.

#[test]
fn legacy_each_market_has_a_subscription_of_its_own() {
    let mut world = World::new(settings(Dialect::Legacy));
    (0..4).for_each(|index| world.up(index));
    holding(&mut world, 6);
    let sent = world.named();
    assert_eq!(count(&sent, "subscribe"), (7, 6), "{sent:?}");
    assert_eq!(world.plan.open(), 7);
    world.unwant(2);
    world.flow();
    let sent = world.named();
    assert_eq!((sent.len(), count(&sent, "unsubscribe").0), (1, 1), "{sent:?}");
    world.quiesce();
    world.check_settled();
}

#[test]
fn legacy_a_subscription_nobody_knows_is_ended() {
    for lists in [true, false] {
        let mut world = World::new(settings(Dialect::Legacy));
        world.up(1);
        world.peers[1].lists = lists;
        world.want(0, 0);
        world.pump();
        world.peers[1].take(Fate::Unheard);
        world.pass(5);
        world.unwant(0);
        world.quiesce();
        world.check_settled();
    }
}

#[test]
fn legacy_a_late_reply_tells_whose_the_sid_is() {
    let mut world = World::new(settings(Dialect::Legacy));
    world.up(1);
    world.want(0, 0);
    world.pump();
    world.peers[1].take(Fate::Slow);
    world.pass(6);
    world.pump();
    world.peers[1].finish();
    world.deliver(1);
    assert_eq!(state(&mut world, 0), Some(MarketState::Subscribed));
    world.quiesce();
    world.check_settled();
}

#[test]
fn legacy_a_late_reply_that_overtakes_a_list_is_not_forgotten_over_it() {
    let mut world = World::new(settings(Dialect::Legacy));
    world.up(1);
    world.want(0, 0);
    world.pump();
    world.peers[1].take(Fate::Slow);
    world.pass(6);
    world.unwant(0);
    world.pump();
    // Listed, and then subscribed; what is said of the second comes first.
    world.peers[1].take(Fate::Carried);
    world.peers[1].finish();
    world.overtake(1);
    world.deliver(1);
    world.deliver(1);
    assert_eq!(loads(&world)[0], 1, "nobody wants it, and it streams");
    world.quiesce();
    world.check_settled();
}

/// A subscribe given up before the exchange takes it, and the question that follows it.
fn given_up() -> World {
    let mut world = World::new(settings(Dialect::Legacy));
    world.up(1);
    world.want(0, 0);
    world.pump();
    world.pass(6);
    world.pump();
    world
}

#[test]
fn legacy_a_stray_that_is_found_out_to_be_a_markets_while_it_is_ended() {
    let mut world = given_up();
    // Subscribed and listed; the list comes first, and the sid in it seems to be nobody's.
    world.peers[1].take(Fate::Carried);
    world.peers[1].take(Fate::Carried);
    world.overtake(1);
    world.deliver(1);
    world.pump();
    world.unwant(0);
    world.quiesce();
    world.check_settled();
}

#[test]
fn legacy_a_late_reply_tells_of_a_stray_that_has_ended_since() {
    let mut world = given_up();
    world.peers[1].take(Fate::Carried);
    let late = world.peers[1].outbox.pop_front().unwrap();
    world.peers[1].take(Fate::Carried);
    world.deliver(1);
    world.pump();
    // The stray is ended; its market, asked for too early, is there already, then not.
    world.peers[1].take(Fate::Slow);
    world.peers[1].take(Fate::Carried);
    world.peers[1].finish();
    world.deliver(1);
    world.deliver(1);
    world.peers[1].outbox.push_back(late);
    world.deliver(1);
    assert_eq!(state(&mut world, 0), Some(MarketState::Uncertain));
    world.quiesce();
    world.check_settled();
}

#[test]
fn legacy_an_overtaken_reply_names_a_sid_that_may_be_over() {
    let mut world = World::new(settings(Dialect::Legacy));
    world.up(1);
    world.want(0, 0);
    world.pump();
    world.peers[1].take(Fate::Carried);
    let overtaken = world.peers[1].outbox.pop_front().unwrap();
    world.pass(6);
    world.flow();
    world.peers[1].outbox.push_back(overtaken);
    world.deliver(1);
    world.quiesce();
    world.check_settled();
}
