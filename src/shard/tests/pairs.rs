//! A pair of lines on one shard, arbitrated: down, up, held back, out of room, restarted, stopped.

use super::world::*;
use super::*;
use crate::batch::Continuity;
use crate::overflow::Overflow;

const A: ConnId = ConnId::new(1);
const B: ConnId = ConnId::new(2);

fn texts_of(messages: impl IntoIterator<Item = (u64, u64)>) -> Vec<u8> {
    let trade = |(seq, id)| {
        text(&format!(
            r#"{{"type":"trade","sid":1,"seq":{seq},"msg":{{"trade_id":"t-{id}","x":1}}}}"#
        ))
    };
    messages.into_iter().flat_map(trade).collect()
}

fn trades(messages: impl IntoIterator<Item = (u64, u64)>) -> Chunk {
    Chunk::Bytes(texts_of(messages))
}

fn ids(messages: &[RawMessage]) -> Vec<u64> {
    let id = |message: &RawMessage| {
        let text = String::from_utf8_lossy(&message.data);
        text.split("t-").nth(1).unwrap().split('"').next().unwrap().parse().unwrap()
    };
    messages.iter().map(id).collect()
}

fn pair(room: usize, overflow: Overflow) -> (World, Peer, Peer) {
    let mut world = World::pair(room, overflow.into());
    let a = world.adopt(A, 1, Vec::new(), 0.0);
    let b = world.adopt(B, 1, Vec::new(), 0.0);
    (world, a, b)
}

#[test]
fn copies_go_out_once_and_a_line_that_is_down_leaves_no_gap() {
    let (mut world, a, b) = pair(100, Overflow::DropNewest);
    world.give(A, &a, vec![trades([(1, 1), (2, 2)])], 1.0);
    world.give(B, &b, vec![trades([(1, 1), (2, 2), (3, 3)]), Chunk::End], 1.0);
    world.give(A, &a, vec![trades([(3, 3), (5, 5)])], 1.1);
    let told = world.received();
    assert_eq!(ids(&told), [1, 2, 3, 5]);
    // Line B is down: nobody else can bring the fourth.
    assert_eq!(told.iter().map(|m| m.gap_size).collect::<Vec<_>>(), [0, 0, 0, 1]);
    let b = world.adopt(B, 2, Vec::new(), 2.0);
    world.give(B, &b, vec![trades([(1, 5), (2, 6)])], 2.1);
    world.give(A, &a, vec![trades([(6, 6), (7, 7)])], 2.1);
    let told = world.received();
    assert_eq!(ids(&told), [6, 7]);
    assert!(told.iter().all(|m| (m.continuity, m.gap_size) == (Continuity::Next, 0)));
    assert_eq!(world.counters.arbitration.duplicates_dropped.total(), 5);
    assert_eq!(world.counters.messages_received.total(), 11);
}

#[test]
fn what_finds_no_room_is_told_by_whichever_line_is_next() {
    let (mut world, a, b) = pair(2, Overflow::DropNewest);
    world.give(A, &a, vec![trades((1..=5).map(|n| (n, n)))], 1.0);
    world.give(B, &b, vec![trades((1..=5).map(|n| (n, n)))], 1.0);
    assert_eq!(ids(&world.received()), [1, 2]);
    world.give(B, &b, vec![trades([(6, 6)])], 1.1);
    let told = world.received();
    assert_eq!((ids(&told), told[0].gap_size), (vec![6], 3));
    // What is lost at the end no message can tell.
    world.give(A, &a, vec![trades((6..=9).map(|n| (n, n)))], 1.2);
    world.orders.send(Order::Stop { until: world.start + Duration::from_secs(9) }).unwrap();
    world.settle(2.0);
    world.settle(3.1);
    assert_eq!(ids(&world.received()), [7, 8]);
    assert_eq!(world.untold(), 1);
}

#[test]
fn a_hole_waits_for_a_line_that_is_held_back() {
    let (mut world, a, b) = pair(4, Overflow::Backpressure);
    world.give(A, &a, vec![trades([(1, 1)])], 1.0);
    world.give(B, &b, vec![trades([(1, 1)]), trades([(2, 2), (3, 3), (4, 4)])], 1.0);
    // B is held back with two more, and has two more to read; A lacks one of those.
    world.give(B, &b, vec![trades([(5, 5), (6, 6)]), trades([(7, 7), (8, 8)])], 1.0);
    let copies = trades([(2, 2), (3, 3), (4, 4), (5, 5), (6, 6)]);
    world.give(A, &a, vec![copies, trades([(8, 8)]), trades([(9, 9)])], 1.0);
    assert!(world.shard.holds(A) && world.shard.holds(B));
    for step in 11..=60 {
        world.step(f64::from(step) / 10.0);
    }
    let mut told = world.received();
    assert_eq!(ids(&told), [1, 2, 3, 4]);
    told.clear();
    for step in 61..=70 {
        world.settle(f64::from(step) / 10.0);
        told.extend(world.received());
    }
    let mut seen = ids(&told);
    seen.sort_unstable();
    assert_eq!(seen, [5, 6, 7, 8, 9], "each once");
    assert!(told.iter().all(|m| m.gap_size == 0), "{told:?}");
    assert_eq!(world.counters.arbitration.late.total(), 0);
}

#[test]
fn a_line_that_waits_behind_the_other_does_not_give_up_on_it() {
    let (mut world, a, b) = pair(4, Overflow::Backpressure);
    world.give(A, &a, vec![trades([(1, 1)])], 1.0);
    world.give(B, &b, vec![trades([(1, 1), (2, 2), (3, 3)])], 1.0);
    // There is room for one: not for the three of B, and so not for the one of A behind a hole.
    world.give(B, &b, vec![trades([(4, 4), (5, 5), (6, 6)]), trades([(7, 7), (8, 8)])], 1.0);
    world.give(A, &a, vec![trades((2..=6).map(|n| (n, n))), trades([(8, 8)])], 1.0);
    assert!(world.shard.holds(B) && world.shard.holds(A));
    assert_eq!(world.messages.try_recv().map(|m| ids(&[m])), Ok(vec![1]));
    world.step(2.0);
    world.give(A, &a, vec![trades([(9, 9)])], 3.0);
    assert!(world.shard.holds(B) && world.shard.holds(A));
    let mut told = world.received();
    for step in 31..=40 {
        world.settle(f64::from(step) / 10.0);
        told.extend(world.received());
    }
    assert_eq!(ids(&told), [2, 3, 4, 5, 6, 8, 7, 9]);
    world.give(A, &a, vec![trades([(10, 10)])], 4.1);
    told.extend(world.received());
    assert!(told.iter().all(|m| m.gap_size == 0), "{told:?}");
    assert_eq!(world.counters.arbitration.late.total(), 0);
}

#[test]
fn what_shards_before_could_not_tell_the_pair_tells_whichever_line_is_first() {
    for [first, second] in [[A, B], [B, A]] {
        let mut world = World::pair(100, OverflowPolicy::default());
        let (conn_id, epoch, sid, messages) = (A, Epoch::new(3), None, 5);
        world.shard = world.shard.owing(&[Untold { conn_id, epoch, sid, messages }]);
        let one = world.adopt(first, 4, Vec::new(), 0.0);
        let two = world.adopt(second, 4, Vec::new(), 0.0);
        world.give(first, &one, vec![trades([(1, 1)])], 1.0);
        world.give(second, &two, vec![trades([(1, 1), (2, 2)])], 1.0);
        let gaps: Vec<_> = world.received().iter().map(|m| (m.continuity, m.gap_size)).collect();
        assert_eq!(gaps, [(Continuity::First, 5), (Continuity::Next, 0)]);
    }
}

#[test]
fn g5_a_shard_that_fails_tells_what_neither_line_of_its_pairs_brought() {
    let (mut world, a, b) = pair(3, Overflow::DropNewest);
    world.give(A, &a, vec![trades([(1, 1)])], 1.0);
    world.give(B, &b, vec![trades([(1, 1), (2, 2)])], 1.0);
    // A lacks three and four, B may bring them yet; six finds no room.
    world.give(A, &a, vec![trades([(2, 2), (5, 5), (6, 6)])], 1.1);
    b.chunks.send(Chunk::Bytes(texts_of([(3, 3)]))).unwrap();
    a.chunks.send(Chunk::Panics).unwrap();
    for conn in [B, A] {
        let token = world.shard.index(conn).unwrap();
        world.ready.send(Ready { token, read_closed: false }).unwrap();
    }
    world.survive(1.2);
    assert_eq!(ids(&world.received()), [1, 2, 5]);
    let a = world.adopt(A, 2, Vec::new(), 2.0);
    let b = world.adopt(B, 2, Vec::new(), 2.0);
    world.give(B, &b, vec![trades([(1, 8)])], 2.1);
    world.give(A, &a, vec![trades([(1, 8), (2, 9)])], 2.1);
    let told = world.received();
    assert_eq!(ids(&told), [8, 9], "each once");
    assert_eq!((told[0].continuity, told[0].gap_size), (Continuity::First, 3));
    assert_eq!((told[1].continuity, told[1].gap_size), (Continuity::Next, 0));
    let untold = stopped(world);
    assert_eq!(untold, 0);
}

#[test]
fn what_is_held_back_at_a_stop_is_told_with_old_numbers_and_new() {
    let (mut world, a, b) = pair(2, Overflow::Backpressure);
    world.give(A, &a, vec![trades([(1, 1), (2, 2)])], 1.0);
    world.give(B, &b, vec![trades([(1, 1), (2, 2)])], 1.0);
    world.give(A, &a, vec![trades([(4, 4), (3, 3)])], 1.1);
    assert!(world.shard.holds(A));
    assert_eq!(stopped(world), 2);
}

/// Stops it, and says what could not be told.
fn stopped(mut world: World) -> u64 {
    world.orders.send(Order::Stop { until: world.start + Duration::from_secs(9) }).unwrap();
    world.settle(8.0);
    world.settle(9.1);
    world.untold()
}
