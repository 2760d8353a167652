//! Gaps as a shard sees them: which messages are called suspect, and what the conductor hears, in
//! which order.

use super::*;
use crate::mailbox::BOOK_REPORTS_MAX;
use crate::request::Ask;
use crate::suspicion::SuspicionSettings;

fn following(message_buffer: usize) -> World {
    World::set(message_buffer, OverflowPolicy::default(), |settings| {
        settings.suspicion =
            SuspicionSettings { follows: true, single: false, markets_max: 100, sids_max: 32 };
    })
}

fn of(kind: &str, seq: u64, market: &str) -> Vec<u8> {
    text(&format!(
        r#"{{"type":"orderbook_{kind}","sid":1,"seq":{seq},"msg":{{"market_ticker":"{market}"}}}}"#
    ))
}

/// Gaps, their last number, and books, in the order in which they were told.
fn news(world: &World) -> Vec<String> {
    let told = |report| match report {
        Report::Gaps { gaps, .. } => {
            let sids: Vec<u64> = gaps.sids.iter().map(|sid| sid.number()).collect();
            Some(format!("gap {} of {sids:?}", gaps.last))
        }
        Report::Books { tickers, .. } => Some(tickers.trim().replace('\n', " ")),
        _ => None,
    };
    world.reports.try_iter().filter_map(told).collect()
}

fn marks(world: &mut World) -> Vec<(u64, bool)> {
    let seq = |message: &RawMessage| message.seq.unwrap().number();
    world.received().iter().map(|message| (seq(message), message.suspect)).collect()
}

fn settled(world: &mut World, last: u64, seconds: f64) {
    let order = Order::Settled { conn: BOOK, epoch: Epoch::new(1), last };
    world.orders.send(order).unwrap();
    world.settle(seconds);
}

#[test]
fn f1_messages_are_suspect_from_a_gap_until_their_markets_books() {
    let mut world = following(100);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    let before = [of("snapshot", 1, "A"), of("snapshot", 2, "B"), of("delta", 3, "A")].concat();
    world.give(BOOK, &peer, vec![Chunk::Bytes(before)], 1.0);
    let after = [
        of("delta", 5, "A"),
        of("snapshot", 6, "A"),
        of("delta", 7, "A"),
        of("delta", 8, "B"),
        of("snapshot", 8, "B"),
        of("delta", 9, "B"),
    ];
    world.give(BOOK, &peer, vec![Chunk::Bytes(after.concat())], 2.0);
    let expected = [
        (1, false),
        (2, false),
        (3, false),
        (5, true),
        (6, false),
        (7, false),
        (8, true),
        (8, true), // a duplicate proves nothing
        (9, true),
    ];
    assert_eq!(marks(&mut world), expected);
    assert_eq!(news(&world), ["A B", "gap 1 of [1]", "A"]);
    settled(&mut world, 7, 2.5);
    world.give(BOOK, &peer, vec![Chunk::Bytes(of("delta", 10, "B"))], 3.0);
    assert_eq!(marks(&mut world), [(10, true)], "that was no gap of ours");
    settled(&mut world, 1, 3.5);
    world.give(BOOK, &peer, vec![Chunk::Bytes(of("delta", 11, "B"))], 4.0);
    assert_eq!(marks(&mut world), [(11, false)]);
}

#[test]
fn f1_what_finds_no_room_is_a_gap_too_and_a_lost_book_mends_nothing() {
    let mut world = following(2);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    let burst = [of("delta", 1, "A"), of("delta", 2, "A"), of("snapshot", 3, "A")].concat();
    world.give(BOOK, &peer, vec![Chunk::Bytes(burst)], 1.0);
    assert_eq!(marks(&mut world), [(1, false), (2, false)]);
    world.give(BOOK, &peer, vec![Chunk::Bytes(of("delta", 4, "A"))], 2.0);
    assert_eq!(marks(&mut world), [(4, true)]);
    world.give(BOOK, &peer, vec![Chunk::Bytes(of("snapshot", 5, "A"))], 3.0);
    assert_eq!(marks(&mut world), [(5, false)]);
    assert_eq!(news(&world), ["gap 1 of [1]", "A"], "not the first of them");
}

#[test]
fn f1_a_book_that_finds_no_room_is_not_told_amid_a_recovery() {
    let mut world = following(2);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    let lossy = [of("snapshot", 1, "A"), of("delta", 3, "B")].concat();
    world.give(BOOK, &peer, vec![Chunk::Bytes(lossy)], 1.0);
    assert_eq!(news(&world), ["A", "gap 1 of [1]"], "that one went out before the gap");
    let lossy = [of("snapshot", 4, "A"), of("delta", 6, "A"), of("snapshot", 7, "B")].concat();
    world.give(BOOK, &peer, vec![Chunk::Bytes(lossy)], 2.0);
    assert_eq!(marks(&mut world), [(1, false), (3, true)]);
    assert_eq!(news(&world), ["gap 5 of [1]"], "neither the one before the gap nor the other");
    let books = [of("snapshot", 8, "A"), of("snapshot", 9, "B")].concat();
    world.give(BOOK, &peer, vec![Chunk::Bytes(books)], 3.0);
    assert_eq!(marks(&mut world), [(8, false), (9, false)]);
    assert_eq!(news(&world), ["A B"]);
}

#[test]
fn f1_books_of_reads_before_are_told_whatever_becomes_of_the_next() {
    let mut world = following(2);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.give(BOOK, &peer, vec![Chunk::Bytes(of("delta", 2, "A"))], 1.0);
    assert_eq!(news(&world), ["gap 1 of [1]"]);
    // The second gap is told a little later, and with it what was to be told by then.
    let lossy = [of("delta", 4, "B"), of("snapshot", 5, "A")].concat();
    marks(&mut world);
    world.give(BOOK, &peer, vec![Chunk::Bytes(lossy)], 1.01);
    world.give(BOOK, &peer, vec![Chunk::Bytes(of("snapshot", 6, "B"))], 1.02);
    world.settle(1.06);
    world.settle(1.06);
    assert_eq!(news(&world), ["A", "gap 3 of [1]"], "B's found no room");
}

#[test]
fn f9_gaps_are_told_together_while_the_conductor_has_much_to_do() {
    let mut world = following(10_000);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.give(BOOK, &peer, vec![Chunk::Bytes(of("delta", 1, "A"))], 1.0);
    let report = || Report::Books { conn: BOOK, epoch: Epoch::new(9), tickers: "x".to_owned() };
    while world.reports.len() < BOOK_REPORTS_MAX {
        world.shard.reports.send(report()).unwrap();
    }
    for round in 1..=100 {
        let frames = [of("delta", round * 10, "A"), of("snapshot", round * 10 + 1, "A")].concat();
        world.give(BOOK, &peer, vec![Chunk::Bytes(frames)], 2.0);
    }
    assert_eq!(world.reports.len(), BOOK_REPORTS_MAX);
    assert!(news(&world).iter().all(|told| told == "x"));
    let due = world.due();
    assert!(due < 2.01, "told soon, {due}");
    world.settle(due);
    world.settle(due + 0.001);
    let told = news(&world);
    assert_eq!(told[1..], ["gap 100 of [1]", "A"], "{told:?}");
    assert!(told[0].split(' ').all(|market| market == "A") && told.len() == 3);
}

#[test]
fn f1_a_book_that_may_be_lost_is_missed_within_a_fifth_of_the_time() {
    let mut world = following(100);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.give(BOOK, &peer, vec![Chunk::Bytes(of("delta", 1, "A"))], 0.5);
    world.ask(Ask::Books(crate::ids::Sid::new(1)), 1.0);
    world.give(BOOK, &peer, vec![Chunk::Bytes(of("delta", 3, "A"))], 1.5);
    assert!((world.due() - 2.5).abs() < 0.001, "{}", world.due());
    news(&world);
    world.settle(2.5);
    let ended = world.reports.try_iter().find_map(|report| match report {
        Report::Ended { ended, .. } => Some(ended.outcome),
        _ => None,
    });
    assert_eq!(ended, Some(crate::command::Outcome::TimedOut));
}

#[test]
fn e10_a_subscription_the_exchange_ends_is_a_gap_and_the_next_one_mends_it() {
    let mut world = following(100);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.subscribe(0.0);
    let subscribed = text(r#"{"type":"subscribed","id":1,"msg":{"channel":"x","sid":1}}"#);
    world.give(BOOK, &peer, vec![Chunk::Bytes([subscribed, of("snapshot", 1, "A")].concat())], 1.0);
    let ended = text(r#"{"type":"error","sid":1,"seq":2,"msg":{"code":25,"msg":"no"}}"#);
    world.give(BOOK, &peer, vec![Chunk::Bytes([ended, of("snapshot", 3, "A")].concat())], 2.0);
    assert_eq!(marks(&mut world), [(1, false), (3, true)]);
    let other =
        text(r#"{"type":"orderbook_snapshot","sid":2,"seq":1,"msg":{"market_ticker":"A"}}"#);
    world.give(BOOK, &peer, vec![Chunk::Bytes(other)], 3.0);
    assert_eq!(marks(&mut world), [(1, false)]);
    assert_eq!(news(&world), ["A", "gap 1 of [1]", "A"]);
}

#[test]
fn e10_so_is_one_whose_end_is_told_by_an_answer() {
    let mut world = following(100);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.subscribe(0.0);
    let subscribed = text(r#"{"type":"subscribed","id":1,"msg":{"channel":"x","sid":1}}"#);
    world.give(BOOK, &peer, vec![Chunk::Bytes([subscribed, of("snapshot", 1, "A")].concat())], 1.0);
    world.ask(Ask::Books(crate::ids::Sid::new(1)), 1.5);
    let ended = text(r#"{"type":"error","id":2,"sid":1,"seq":2,"msg":{"code":10,"msg":"no"}}"#);
    world.give(BOOK, &peer, vec![Chunk::Bytes([ended, of("snapshot", 3, "A")].concat())], 2.0);
    assert_eq!(marks(&mut world), [(1, false), (3, true)]);
    assert_eq!(news(&world), ["A", "gap 1 of [1]"]);
}

#[test]
fn f1_a_gap_may_be_told_before_the_reply_that_says_whose_sid_it_is() {
    let mut world = following(100);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.subscribe(0.0);
    let subscribed = text(r#"{"type":"subscribed","id":1,"msg":{"channel":"x","sid":1}}"#);
    world.give(BOOK, &peer, vec![Chunk::Bytes([subscribed, of("delta", 2, "A")].concat())], 1.0);
    assert_eq!(marks(&mut world), [(2, true)]);
    let told: Vec<_> = world.reports.try_iter().collect();
    assert!(matches!(told[..], [Report::Gaps { .. }, Report::Ended { .. }]), "{told:?}");
}

#[test]
fn a_gap_elsewhere_than_in_order_books_is_followed_up_by_nobody() {
    let mut world = following(100);
    let trade = POOL.iter().find(|&(_, role)| role == Role::Trade).unwrap().0;
    let peer = world.adopt(trade, 1, Vec::new(), 0.0);
    let frame = |seq| text(&format!(r#"{{"type":"trade","sid":1,"seq":{seq},"msg":{{"a":"b"}}}}"#));
    world.give(trade, &peer, vec![Chunk::Bytes([frame(1), frame(5)].concat())], 1.0);
    assert_eq!(marks(&mut world), [(1, false), (5, false)]);
    assert!(news(&world).is_empty());
}
