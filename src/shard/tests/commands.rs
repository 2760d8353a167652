//! Commands over the scripted network: rows E and F7 of the fault matrix, by the first letters of
//! their names.

use super::*;
use crate::code::ExchangeCode;
use crate::command::Outcome;
use crate::dialect::Dialect;
use crate::request::Ask;

/// What was reported, in short: outcomes, late ones, the ends of subscriptions and of connections.
#[derive(Debug, PartialEq)]
enum Told {
    Ended(u64, Outcome),
    Late(u64, Outcome),
    Over(Option<ExchangeCode>),
    Books(String),
    Down,
}

fn told(world: &World) -> Vec<Told> {
    let told = |report| match report {
        Report::Ended { ended, .. } => Told::Ended(ended.id.number(), ended.outcome),
        Report::Late { ended, .. } => Told::Late(ended.id.number(), ended.outcome),
        Report::SubscriptionEnded { code, .. } => Told::Over(code),
        Report::Books { tickers, .. } => Told::Books(tickers),
        Report::Down { .. } => Told::Down,
        other => panic!("{other:?}"),
    };
    world.reports.try_iter().map(told).collect()
}

/// The book of market M, in answer to a command or to none.
fn book(id: Option<u64>, seq: u64) -> Vec<u8> {
    let id = id.map(|id| format!(r#""id":{id},"#)).unwrap_or_default();
    text(&format!(
        r#"{{"type":"orderbook_snapshot",{id}"sid":1,"seq":{seq},"msg":{{"market_ticker":"M"}}}}"#
    ))
}

fn error(sid: u64, code: u8) -> Vec<u8> {
    text(&format!(r#"{{"type":"error","sid":{sid},"msg":{{"code":{code},"msg":"no"}}}}"#))
}

#[test]
fn e2_e4_a_command_ends_by_its_reply_by_time_or_by_loss_each_once() {
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    (0..3).for_each(|_| world.subscribe(1.0));
    world.give(BOOK, &peer, vec![Chunk::Bytes(ok(1, 1))], 2.0);
    world.give(BOOK, &peer, vec![Chunk::Bytes(ok(1, 2))], 2.0);
    world.settle(6.0);
    world.subscribe(6.5);
    world.give(BOOK, &peer, vec![Chunk::End], 7.0);
    let mut outcomes = Vec::new();
    for report in world.reports.try_iter() {
        match report {
            Report::Ended { ended, .. } => outcomes.push(Some(ended.outcome)),
            Report::Down { .. } => outcomes.push(None),
            other => panic!("{other:?}"),
        }
    }
    let timed_out = Some(Outcome::TimedOut);
    let lost = Some(Outcome::ConnectionLost);
    assert_eq!(outcomes, [Some(Outcome::Ok), timed_out, timed_out, lost, None]);
    assert_eq!(world.counters.replies_unmatched.total(), 1);
}

#[test]
fn e11_a_command_for_an_epoch_that_is_over_ends_as_lost() {
    let mut world = World::new(10);
    world.subscribe(1.0);
    let report = world.reports.try_recv().unwrap();
    let Report::Ended { ended, .. } = report else { panic!("{report:?}") };
    assert_eq!(ended.outcome, Outcome::ConnectionLost);
}

#[test]
fn f7_acknowledgements_count_in_the_sequence_and_are_not_delivered() {
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.subscribe(0.0);
    let bytes = [delta(1), ok(1, 2), delta(3)].concat();
    world.give(BOOK, &peer, vec![Chunk::Bytes(bytes)], 1.0);
    let gaps: Vec<_> = world.received().iter().map(|message| message.gap_size).collect();
    assert_eq!(gaps, [0, 0]);
    assert_eq!(world.counters.sequence_gaps.total(), 0);
}

#[test]
fn e10_a_terminal_error_is_told_once_however_often_it_is_said() {
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.subscribe(0.0);
    let error =
        r#"{"type":"error","sid":1,"msg":{"code":25,"msg":"Subscription buffer overflow"}}"#;
    let bytes = [ok(1, 1), text(error).repeat(500)].concat();
    world.give(BOOK, &peer, vec![Chunk::Bytes(bytes)], 1.0);
    let ended = |report: &Report| {
        matches!(report, Report::SubscriptionEnded { code: Some(ExchangeCode::BufferOverflow), .. })
    };
    assert_eq!(world.reports.try_iter().filter(ended).count(), 1);
}

#[test]
fn e10_a_terminal_error_that_answers_a_command_ends_its_subscription_too() {
    let sid = crate::ids::Sid::new(1);
    let rejected = Outcome::Rejected { code: ExchangeCode::ChannelError };
    let answer = text(r#"{"type":"error","id":2,"sid":1,"msg":{"code":10,"msg":"no"}}"#);
    for ask in [Ask::Add(sid), Ask::Delete(sid), Ask::Books(sid)] {
        let mut world = World::new(10);
        let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
        world.subscribe(1.0);
        world.give(BOOK, &peer, vec![Chunk::Bytes(ok(1, 1))], 2.0);
        world.ask(ask, 3.0);
        told(&world);
        world.give(BOOK, &peer, vec![Chunk::Bytes(answer.clone())], 4.0);
        let over = Told::Over(Some(ExchangeCode::ChannelError));
        assert_eq!(told(&world), [Told::Ended(2, rejected), over], "{ask:?}");
        world.give(BOOK, &peer, vec![Chunk::Bytes(error(1, 10))], 5.0);
        assert_eq!(told(&world), [], "said once more, it is no news");
    }
    // However late it comes.
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.subscribe(1.0);
    world.give(BOOK, &peer, vec![Chunk::Bytes(ok(1, 1))], 2.0);
    world.ask(Ask::Books(sid), 3.0);
    world.settle(8.0);
    told(&world);
    world.give(BOOK, &peer, vec![Chunk::Bytes(answer.clone())], 9.0);
    let over = Told::Over(Some(ExchangeCode::ChannelError));
    assert_eq!(told(&world), [Told::Late(2, rejected), over]);
    // What a refusal to open one is about is not open.
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.subscribe(1.0);
    world.subscribe(1.0);
    world.give(BOOK, &peer, vec![Chunk::Bytes([ok(1, 1), answer].concat())], 2.0);
    assert_eq!(told(&world), [Told::Ended(1, Outcome::Ok), Told::Ended(2, rejected)]);
}

#[test]
fn e1_a_reply_to_nothing_we_asked_here_ends_nothing() {
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    let other = world.adopt(ConnId::new(5), 1, Vec::new(), 0.0);
    world.subscribe(1.0);
    // Unknown, absent, and an id that is another connection's.
    let anonymous = text(r#"{"type":"ok","sid":1,"seq":2,"msg":{}}"#);
    world.give(BOOK, &peer, vec![Chunk::Bytes([ok(7, 1), anonymous].concat())], 2.0);
    world.give(ConnId::new(5), &other, vec![Chunk::Bytes(ok(1, 1))], 2.0);
    assert_eq!(told(&world), []);
    assert_eq!(world.counters.replies_unmatched.total(), 3);
}

#[test]
fn e3_a_reply_after_the_time_is_up_is_told_as_late_and_counted() {
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.subscribe(1.0);
    world.settle(6.0);
    world.give(BOOK, &peer, vec![Chunk::Bytes([ok(1, 1), ok(1, 2)].concat())], 7.0);
    assert_eq!(told(&world), [Told::Ended(1, Outcome::TimedOut), Told::Late(1, Outcome::Ok)]);
    assert_eq!(world.counters.replies_late.total(), 1);
    assert_eq!(world.counters.replies_unmatched.total(), 1);
}

#[test]
fn e5_a_reply_may_come_before_our_write_is_taken_and_data_before_the_reply() {
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    peer.block.send(true).unwrap();
    world.subscribe(1.0);
    let bytes = [delta(1), delta(2), ok(1, 3), delta(4)].concat();
    world.give(BOOK, &peer, vec![Chunk::Bytes(bytes)], 1.5);
    assert_eq!(told(&world), [Told::Ended(1, Outcome::Ok)]);
    let gaps: Vec<_> = world.received().iter().map(|message| message.gap_size).collect();
    assert_eq!(gaps, [0, 0, 0]);
}

#[test]
fn e5_a_subscription_that_ends_before_its_reply_is_told_of_after_it() {
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.subscribe(1.0);
    let bytes = [error(1, 25), error(1, 25), ok(1, 1)].concat();
    world.give(BOOK, &peer, vec![Chunk::Bytes(bytes)], 1.5);
    let over = Told::Over(Some(ExchangeCode::BufferOverflow));
    assert_eq!(told(&world), [Told::Ended(1, Outcome::Ok), over]);
}

#[test]
fn e8_commands_in_flight_end_once_each_before_the_connections_end_is_told() {
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    (0..4).for_each(|_| world.subscribe(1.0));
    world.give(BOOK, &peer, vec![Chunk::Reset], 2.0);
    let lost = |id| Told::Ended(id, Outcome::ConnectionLost);
    assert_eq!(told(&world), [lost(1), lost(2), lost(3), lost(4), Told::Down]);
}

#[test]
fn e9_a_command_of_one_epoch_is_not_sent_in_another() {
    let mut world = World::new(10);
    let first = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.give(BOOK, &first, vec![Chunk::End], 1.0);
    let second = world.adopt(BOOK, 2, Vec::new(), 2.0);
    told(&world);
    world.subscribe(3.0);
    assert_eq!(told(&world), [Told::Ended(1, Outcome::ConnectionLost)]);
    assert!(opcodes(&second).is_empty());
}

#[test]
fn e12_a_command_half_written_when_the_connection_falls_is_lost() {
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    peer.block.send(true).unwrap();
    world.subscribe(1.0);
    world.give(BOOK, &peer, vec![Chunk::Reset], 2.0);
    assert_eq!(told(&world), [Told::Ended(1, Outcome::ConnectionLost), Told::Down]);
}

#[test]
fn f7_replies_errors_and_books_asked_for_take_places_in_the_sequence() {
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.subscribe(0.0);
    world.ask(Ask::Books(crate::ids::Sid::new(1)), 0.0);
    world.ask(Ask::Add(crate::ids::Sid::new(1)), 0.0);
    world.ask(Ask::Unsubscribe(crate::ids::Sid::new(1)), 0.0);
    let refusal = r#"{"type":"error","id":3,"sid":1,"seq":5,"msg":{"code":27,"msg":"no"}}"#;
    let end = r#"{"type":"unsubscribed","id":4,"sid":1,"seq":7}"#;
    let bytes =
        [ok(1, 1), book(None, 2), delta(3), book(Some(2), 4), text(refusal), delta(6), text(end)];
    world.give(BOOK, &peer, vec![Chunk::Bytes(bytes.concat())], 1.0);
    let seqs: Vec<_> =
        world.received().iter().map(|m| (m.seq.unwrap().number(), m.gap_size)).collect();
    assert_eq!(seqs, [(2, 0), (3, 0), (4, 0), (6, 0)], "books asked for are books");
    assert_eq!(world.counters.sequence_gaps.total(), 0);
    let refused = Outcome::Rejected { code: ExchangeCode::TooManyRequests };
    assert_eq!(
        told(&world),
        [
            Told::Books("M\nM\n".to_owned()),
            Told::Ended(1, Outcome::Ok),
            Told::Ended(2, Outcome::Ok),
            Told::Ended(3, refused),
            Told::Ended(4, Outcome::Ok),
        ]
    );
}

#[test]
fn a_connection_whose_subscriptions_cannot_be_made_out_is_ended() {
    let mut world = World::new(10);
    let _peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    for epoch in [7, 1] {
        let epoch = Epoch::new(epoch);
        world.orders.send(Order::Drop { conn: BOOK, epoch }).unwrap();
        world.settle(1.0);
    }
    assert_eq!(told(&world), [Told::Down], "only the epoch that was meant");
}

#[test]
fn long_commands_go_out_one_a_turn() {
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    for id in 1..=3 {
        let markets = vec!["KXBTCD-26NOV2317-T95499.99"; 550];
        let (id, role) = (crate::ids::CommandId::new(id), Role::Orderbook);
        let request = Ask::Subscribe.request(id, (crate::dialect::Dialect::Live, role), &markets);
        let order = Order::Command { conn: BOOK, epoch: Epoch::new(1), request };
        world.orders.send(order).unwrap();
    }
    let mut turns = Vec::new();
    for _ in 0..3 {
        world.step(1.0);
        turns.push(peer.sent.try_iter().count());
    }
    assert_eq!(turns, [1, 1, 1]);
}

#[test]
fn e3_a_late_subscribed_does_not_restart_the_count_of_a_sid_that_has_ended_since() {
    let mut world = World::new(100);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.subscribe(0.0);
    world.give(BOOK, &peer, vec![Chunk::Bytes((1..=8).flat_map(delta).collect())], 1.0);
    world.settle(6.0);
    world.ask(Ask::Unsubscribe(crate::ids::Sid::new(1)), 6.0);
    let gone = text(r#"{"type":"error","id":2,"msg":{"code":7,"msg":"no"}}"#);
    let late = text(r#"{"type":"subscribed","id":1,"msg":{"channel":"x","sid":1}}"#);
    let last = text(r#"{"type":"unsubscribed","id":9,"sid":1,"seq":9}"#);
    world.give(BOOK, &peer, vec![Chunk::Bytes([gone, late, last].concat())], 7.0);
    let other = text(r#"{"type":"trade","sid":2,"seq":1,"msg":{"x":"x"}}"#);
    world.give(BOOK, &peer, vec![Chunk::Bytes(other)], 8.0);
    let gaps: u64 = world.received().iter().map(|message| message.gap_size).sum();
    assert_eq!((gaps, world.counters.sequence_gaps.total()), (0, 0));
    assert!(told(&world).contains(&Told::Late(1, Outcome::Ok)));
}

#[test]
fn e3_a_sid_that_is_listed_after_its_end_counts_on() {
    let mut world = World::new(100);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.subscribe(0.0);
    world.give(BOOK, &peer, vec![Chunk::Bytes([ok(1, 1), delta(2)].concat())], 1.0);
    world.give(BOOK, &peer, vec![Chunk::Bytes(error(1, 25))], 2.0);
    world.ask(Ask::List, 3.0);
    let listed = text(r#"{"type":"ok","id":2,"msg":[{"channel":"orderbook_delta","sid":1}]}"#);
    let last = text(r#"{"type":"unsubscribed","id":9,"sid":1,"seq":3}"#);
    world.give(BOOK, &peer, vec![Chunk::Bytes([listed, last].concat())], 4.0);
    assert_eq!(world.counters.sequence_gaps.total(), 0, "nothing is missing");
}

/// A list of subscriptions in answer to command 1.
fn list(channel: &str, sids: impl IntoIterator<Item = u64>) -> Vec<u8> {
    let each = |sid| format!(r#"{{"channel":"{channel}","sid":{sid}}}"#);
    let all: Vec<_> = sids.into_iter().map(each).collect();
    text(&format!(r#"{{"type":"ok","id":1,"msg":[{}]}}"#, all.join(",")))
}

#[test]
fn e10_as_many_subscriptions_as_there_are_may_end_at_once_and_each_is_told() {
    const ALL: u64 = 1_500;
    let mut world = World::set(100, OverflowPolicy::default(), |settings| {
        (settings.dialect, settings.single_sids) = (Dialect::Legacy, 1_500);
    });
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.ask(Ask::List, 0.0);
    world.give(BOOK, &peer, vec![Chunk::Bytes(list("orderbook_delta", 1..=ALL))], 1.0);
    assert_eq!(told(&world), [Told::Ended(1, Outcome::Ok)]);
    let ends = (1..=ALL).flat_map(|sid| error(sid, 10)).collect();
    world.give(BOOK, &peer, vec![Chunk::Bytes(ends)], 2.0);
    let mut sids = Vec::new();
    while !world.reports.is_empty() {
        assert!(world.reports.len() <= crate::mailbox::BOOK_REPORTS_MAX, "others have room");
        sids.extend(world.reports.try_iter().map(|report| match report {
            Report::SubscriptionEnded { sid, .. } => sid.number(),
            other => panic!("{other:?}"),
        }));
        let due = world.due();
        assert!(sids.len() == 1_500 || due < 3.0, "soon");
        world.settle(due);
    }
    assert_eq!(sids, (1..=ALL).collect::<Vec<_>>());
    assert_eq!(world.counters.reports_lost.total(), 0);
}

#[test]
fn e10_an_end_that_has_to_wait_is_told_before_a_reply_that_names_its_sid() {
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.subscribe(0.0);
    world.give(BOOK, &peer, vec![Chunk::Bytes(ok(1, 1))], 1.0);
    told(&world);
    world.subscribe(1.5);
    while world.reports.len() < crate::mailbox::BOOK_REPORTS_MAX {
        world.shard.reports.send(Report::RegistryHungUp).unwrap();
    }
    world.give(BOOK, &peer, vec![Chunk::Bytes(error(1, 25))], 2.0);
    assert_eq!(world.reports.len(), crate::mailbox::BOOK_REPORTS_MAX);
    world.give(BOOK, &peer, vec![Chunk::Bytes(ok(2, 2))], 2.0);
    let waited = world.reports.try_iter().filter(|r| !matches!(r, Report::RegistryHungUp));
    let sent: Vec<_> = waited.collect();
    assert!(
        matches!(sent[..], [Report::SubscriptionEnded { .. }, Report::Ended { .. }]),
        "{sent:?}"
    );
    world.settle(world.due());
    assert_eq!(told(&world), [], "once");
}

#[test]
fn e10_subscriptions_of_other_channels_are_none_of_ours() {
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.ask(Ask::List, 0.0);
    let listed = r#"{"type":"ok","id":1,"msg":[{"channel":"ticker","sid":7},{"channel":"orderbook_delta","sid":1}]}"#;
    // It names no subscription: ours can only be the one.
    let ended = r#"{"type":"error","msg":{"code":25,"msg":"no"}}"#;
    world.give(BOOK, &peer, vec![Chunk::Bytes([text(listed), text(ended)].concat())], 1.0);
    let over = Told::Over(Some(ExchangeCode::BufferOverflow));
    assert_eq!(told(&world), [Told::Ended(1, Outcome::Ok), over]);
}

#[test]
fn e3_a_list_that_comes_late_closes_nothing() {
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.ask(Ask::List, 0.0);
    world.settle(6.0);
    world.subscribe(6.0);
    world.give(BOOK, &peer, vec![Chunk::Bytes(ok(2, 1))], 6.5);
    world.give(BOOK, &peer, vec![Chunk::Bytes([list("x", []), error(1, 25)].concat())], 7.0);
    let over = Told::Over(Some(ExchangeCode::BufferOverflow));
    let (late, timed_out) = (Told::Late(1, Outcome::Ok), Told::Ended(1, Outcome::TimedOut));
    assert_eq!(told(&world), [timed_out, Told::Ended(2, Outcome::Ok), late, over]);
}
