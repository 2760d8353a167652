//! The shard over a scripted network in virtual time.

mod commands;
mod conflated_pairs;
mod conflation;
mod lapses;
mod liveness;
mod pairs;
mod restart;
mod suspects;
mod world;

use alloc_tracker::{Allocator, Session};

use super::*;
use crate::batch::Continuity;
use crate::overflow::Overflow;
use world::*;

#[global_allocator]
static ALLOCATOR: Allocator<std::alloc::System> = Allocator::system();

#[test]
fn c3_a_frame_cut_anywhere_arrives_whole() {
    let bytes = [delta(1), delta(2)].concat();
    for cut in 1..bytes.len() {
        let mut world = World::new(10);
        let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
        let (head, tail) = bytes.split_at(cut);
        world.give(BOOK, &peer, vec![Chunk::Bytes(head.to_vec())], 1.0);
        world.give(BOOK, &peer, vec![Chunk::Bytes(tail.to_vec())], 2.0);
        let seqs: Vec<_> = world.received().iter().map(|m| m.seq.unwrap().number()).collect();
        assert_eq!(seqs, [1, 2], "cut at {cut}");
        assert_eq!(world.counters.bytes_received.total(), crate::ids::widen(bytes.len()));
    }
}

#[test]
fn b10_frames_that_came_with_the_upgrade_need_no_event() {
    let mut world = World::new(10);
    let _peer = world.adopt(BOOK, 1, delta(1), 0.0);
    assert_eq!(world.received().len(), 1);
}

#[test]
fn d6_what_came_before_the_end_is_delivered_before_it() {
    for (end, cause) in [(Chunk::End, Cause::Ended), (Chunk::Reset, Cause::Reset)] {
        let mut world = World::new(10);
        let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
        world.give(BOOK, &peer, vec![Chunk::Bytes(delta(1)), end], 1.0);
        assert_eq!(world.received().len(), 1);
        assert_eq!(world.downs(), [cause]);
    }
}

#[test]
fn a10_what_was_decrypted_before_the_garbage_stands_and_no_part_of_a_message_does() {
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    let cut = delta(2);
    let bytes = [delta(1), cut[..cut.len() - 1].to_vec()].concat();
    world.give(BOOK, &peer, vec![Chunk::Spoilt(bytes)], 1.0);
    assert_eq!(world.received().len(), 1);
    assert!(matches!(world.downs()[..], [Cause::Tls { .. }]));
}

#[test]
fn c1_messages_before_a_violation_stand_and_nothing_after_it() {
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    let bytes = [delta(1), frame(0xC1, b"rsv"), delta(2)].concat();
    world.give(BOOK, &peer, vec![Chunk::Bytes(bytes)], 1.0);
    assert_eq!(world.received().len(), 1);
    assert!(matches!(world.downs()[..], [Cause::Protocol { .. }]));
}

#[test]
fn who_holds_back_much_is_not_passed_by_those_with_little() {
    let mut world = World::with(4, Overflow::Backpressure.into());
    let other = ConnId::new(5);
    let big = world.adopt(BOOK, 1, Vec::new(), 0.0);
    let small = world.adopt(other, 1, Vec::new(), 0.0);
    world.give(other, &small, vec![Chunk::Bytes([delta(1), delta(2)].concat())], 1.0);
    world.give(BOOK, &big, vec![Chunk::Bytes([delta(1), delta(2), delta(3)].concat())], 1.0);
    assert!(world.shard.holds(BOOK));
    // One place is free now, and each time the host takes a message.
    let mut taken = Vec::new();
    for step in 3u32..=12 {
        let at = f64::from(step);
        world.give(other, &small, vec![Chunk::Bytes(delta(u64::from(step)))], at);
        taken.extend(world.messages.try_recv().map(|m| (m.conn_id, m.seq.unwrap().number())));
        world.settle(at + 0.5);
    }
    let of = |conn| taken.iter().filter(|&&(id, _)| id == conn).count();
    assert_eq!((of(BOOK), of(other)), (3, 7), "{taken:?}");
    assert!(world.counters.messages_dropped.total() == 0 && !world.shard.holds(BOOK));
}

#[test]
fn who_drops_nothing_is_not_passed_by_those_who_may() {
    let (trade, ticker) = (Overflow::Backpressure, Overflow::ConflateByMarket);
    let mut world = World::with(4, OverflowPolicy { trade, ticker, ..OverflowPolicy::default() });
    let (ticks, trades) = (ConnId::new(1), ConnId::new(2));
    let [tick_peer, trade_peer, book_peer] =
        [ticks, trades, BOOK].map(|conn| world.adopt(conn, 1, Vec::new(), 0.0));
    world.give(BOOK, &book_peer, vec![Chunk::Bytes((1..=4).flat_map(delta).collect())], 1.0);
    let trade = |seq| text(&format!(r#"{{"type":"trade","sid":1,"seq":{seq},"msg":{{"s":"x"}}}}"#));
    let tick = text(r#"{"type":"ticker","sid":1,"msg":{"market_ticker":"A"}}"#);
    world.give(trades, &trade_peer, vec![Chunk::Bytes([trade(1), trade(2)].concat())], 2.0);
    assert!(world.shard.holds(trades));
    let mut taken = Vec::new();
    for step in 5u32..=12 {
        taken.extend(world.messages.try_recv().map(|message| message.conn_id.number()));
        // Whoever may drop is there first.
        world.give(BOOK, &book_peer, vec![Chunk::Bytes(delta(step.into()))], f64::from(step));
        world.give(ticks, &tick_peer, vec![Chunk::Bytes(tick.clone())], f64::from(step));
    }
    assert_eq!(taken, [4, 4, 4, 4, 1, 2, 2, 4], "and then the others are served again");
    assert!(!world.shard.holds(trades));
}

#[test]
fn who_keeps_the_newest_takes_turns_with_who_drops_nothing() {
    let (orderbook, ticker) = (Overflow::Backpressure, Overflow::ConflateByMarket);
    let mut world =
        World::with(4, OverflowPolicy { orderbook, ticker, ..OverflowPolicy::default() });
    let ticks = ConnId::new(1);
    let [tick_peer, book_peer] = [ticks, BOOK].map(|conn| world.adopt(conn, 1, Vec::new(), 0.0));
    world.give(BOOK, &book_peer, vec![Chunk::Bytes((1..=60).flat_map(delta).collect())], 1.0);
    let tick = text(r#"{"type":"ticker","sid":1,"msg":{"market_ticker":"A"}}"#);
    let mut taken = Vec::new();
    for step in 2u32..=9 {
        taken.extend(world.messages.try_recv().map(|message| message.conn_id.number()));
        world.give(ticks, &tick_peer, vec![Chunk::Bytes(tick.clone())], f64::from(step));
    }
    assert!(world.shard.holds(BOOK), "all the time");
    assert!(taken.contains(&1) && taken.contains(&4), "{taken:?}");
}

#[test]
fn d8_a_quiet_connection_is_asked_and_then_given_up() {
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    assert!((world.due() - 15.0).abs() < 0.001);
    world.settle(15.0);
    assert_eq!(opcodes(&peer), [0x9]);
    assert!((world.due() - 25.0).abs() < 0.001);
    world.settle(25.0);
    assert!(matches!(world.downs()[..], [Cause::Liveness { .. }]));
}

#[test]
fn d9_any_frame_is_a_sign_of_life() {
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.settle(15.0);
    world.give(BOOK, &peer, vec![Chunk::Bytes(frame(0x8A, b"kalshi-feed"))], 24.0);
    world.settle(25.0);
    assert!(world.downs().is_empty());
    world.settle(38.9);
    assert_eq!(opcodes(&peer), [0x9], "not asked again before fifteen quiet seconds");
    world.settle(39.0);
    assert_eq!(opcodes(&peer), [0x9]);
}

#[test]
fn d11_a_peer_that_takes_no_bytes_is_given_up() {
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    peer.block.send(true).unwrap();
    world.give(BOOK, &peer, vec![Chunk::Bytes(frame(0x89, b"heartbeat"))], 1.0);
    assert!((world.due() - 11.0).abs() < 0.001);
    world.settle(11.0);
    assert!(matches!(world.downs()[..], [Cause::Liveness { .. }]));
}

#[test]
fn d11_a_flood_of_pings_from_a_peer_that_reads_nothing_is_bounded() {
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    peer.block.send(true).unwrap();
    let flood = frame(0x89, &[b'p'; 125]).repeat(1_000);
    world.give(BOOK, &peer, vec![Chunk::Bytes(flood)], 1.0);
    assert!(matches!(world.downs()[..], [Cause::Liveness { .. }]));
}

#[test]
fn what_finds_no_room_is_told_by_the_next_message_or_the_next_epoch() {
    let mut world = World::new(2);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    let burst: Vec<u8> = (1..=5).flat_map(delta).collect();
    world.give(BOOK, &peer, vec![Chunk::Bytes(burst)], 1.0);
    assert_eq!(world.received().len(), 2);
    // One more is lost on the wire: number 6.
    world.give(BOOK, &peer, vec![Chunk::Bytes(delta(7))], 2.0);
    let told: Vec<_> = world.received().iter().map(|m| (m.continuity, m.gap_size)).collect();
    assert_eq!(told, [(Continuity::Gap, 4)]);
    let burst: Vec<u8> = (8..=12).flat_map(delta).collect();
    world.give(BOOK, &peer, vec![Chunk::Bytes(burst), Chunk::End], 3.0);
    world.received();
    let again = world.adopt(BOOK, 2, Vec::new(), 4.0);
    world.give(BOOK, &again, vec![Chunk::Bytes(delta(1))], 5.0);
    let told: Vec<_> = world.received().iter().map(|m| (m.continuity, m.gap_size)).collect();
    assert_eq!(told, [(Continuity::First, 3)]);
    assert_eq!(world.counters.messages_dropped.total(), 6);
}

#[test]
fn f6_a_number_that_is_none_is_delivered_and_counts_for_nothing() {
    let mut world = World::new(20);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    let odd = ["0", "-1", "\"7\"", "1.5", "null", "18446744073709551616"].map(|seq| {
        text(&format!(r#"{{"type":"orderbook_delta","sid":1,"seq":{seq},"msg":{{}}}}"#))
    });
    let absent = text(r#"{"type":"orderbook_delta","sid":1,"msg":{}}"#);
    let bytes = [delta(1), odd.concat(), absent, delta(2)].concat();
    world.give(BOOK, &peer, vec![Chunk::Bytes(bytes)], 1.0);
    let received = world.received();
    assert_eq!((received.len(), received.iter().map(|m| m.gap_size).sum::<u64>()), (9, 0));
    assert_eq!(received[8].continuity, Continuity::Next);
    assert_eq!(world.counters.sequence_gaps.total(), 0);
    // The highest number there is leaves a hole of all the others, and ends nothing.
    world.give(BOOK, &peer, vec![Chunk::Bytes([delta(u64::MAX), delta(0)].concat())], 2.0);
    let told: Vec<_> = world.received().iter().map(|m| (m.continuity, m.gap_size)).collect();
    assert_eq!(told, [(Continuity::Gap, u64::MAX - 3), (Continuity::Backward, 0)]);
    assert!(world.downs().is_empty());
}

#[test]
fn g4_one_that_floods_gets_one_read_a_turn() {
    let mut world = World::new(10_000);
    let other = ConnId::new(5);
    let (flooding, calm) =
        (world.adopt(BOOK, 1, Vec::new(), 0.0), world.adopt(other, 1, Vec::new(), 0.0));
    for seq in 1..=100 {
        flooding.chunks.send(Chunk::Bytes(delta(seq))).unwrap();
    }
    calm.chunks.send(Chunk::Bytes(delta(1))).unwrap();
    for conn in [BOOK, other] {
        let token = world.shard.index(conn).unwrap();
        world.ready.send(Ready { token, read_closed: false }).unwrap();
    }
    world.step(1.0);
    let conns: Vec<_> = world.received().iter().map(|m| m.conn_id.number()).collect();
    assert_eq!(conns, [4, 5]);
    world.settle(1.0);
    assert_eq!(world.received().len(), 99, "and comes back without another event");
}

#[test]
fn a_full_registry_holds_the_connection_back_and_loses_nothing() {
    let mut world = World::new(10);
    let lifecycle = ConnId::new(3);
    let peer = world.adopt(lifecycle, 1, Vec::new(), 0.0);
    let event = |seq| {
        text(&format!(r#"{{"type":"market_lifecycle_v2","sid":1,"seq":{seq},"msg":{{"e":"x"}}}}"#))
    };
    let burst: Vec<u8> = (1..=5).flat_map(event).collect();
    world.give(lifecycle, &peer, vec![Chunk::Bytes(burst)], 1.0);
    world.give(lifecycle, &peer, vec![Chunk::Bytes(event(6))], 1.0);
    assert_eq!(world.counters.lifecycle_forwarded.total(), 2);
    assert_eq!(world.counters.messages_received.total(), 5, "reading is held back");
    // Far beyond every deadline: it still shows signs of life, and is not given up.
    for second in 2..60 {
        world.step(f64::from(second));
    }
    assert!(world.downs().is_empty());
    assert!(opcodes(&peer).iter().filter(|&&opcode| opcode == 0xA).count() >= 5);
    let mut seqs = Vec::new();
    for second in 60..70 {
        seqs.extend(world.registry.try_iter().map(|m| m.seq.unwrap().number()));
        world.settle(f64::from(second));
    }
    assert_eq!(seqs, [1, 2, 3, 4, 5, 6]);
    assert!(world.downs().is_empty());
}

#[test]
fn back_pressure_drops_nothing_and_reads_on_when_there_is_room() {
    let mut world = World::with(4, crate::overflow::Overflow::Backpressure.into());
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    // A read of three fits, the next of three waits whole, and one of nine goes in parts.
    let burst = |seqs: std::ops::RangeInclusive<u64>| Chunk::Bytes(seqs.flat_map(delta).collect());
    world.give(BOOK, &peer, vec![burst(1..=3), burst(4..=6), burst(7..=15), burst(16..=16)], 1.0);
    let mut seqs = Vec::new();
    for second in 2..40 {
        // Every other second the host takes one message.
        if second % 2 == 0 {
            let message = world.messages.try_recv();
            seqs.extend(message.map(|m| (m.seq.unwrap().number(), m.gap_size)));
        }
        world.settle(f64::from(second));
    }
    assert_eq!(seqs, (1..=16).map(|seq| (seq, 0)).collect::<Vec<_>>());
    assert!(world.downs().is_empty());
    assert_eq!(world.counters.messages_dropped.total(), 0);
}

#[test]
fn what_back_pressure_holds_at_the_end_is_told() {
    let mut world = World::with(2, crate::overflow::Overflow::Backpressure.into());
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.give(BOOK, &peer, vec![Chunk::Bytes((1..=2).flat_map(delta).collect())], 1.0);
    world.give(BOOK, &peer, vec![Chunk::Bytes((3..=7).flat_map(delta).collect())], 1.0);
    world.orders.send(Order::Stop { until: world.start + Duration::from_secs(2) }).unwrap();
    world.settle(1.5);
    world.settle(2.5);
    assert_eq!(world.next, Next::Done);
    assert_eq!(world.received().len(), 2);
    assert_eq!(world.untold(), 5);
}

#[test]
fn j3_a_stop_says_goodbye_takes_what_still_comes_and_tells_what_it_could_not() {
    let mut world = World::new(2);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    let burst: Vec<u8> = (1..=5).flat_map(delta).collect();
    world.give(BOOK, &peer, vec![Chunk::Bytes(burst)], 1.0);
    world.orders.send(Order::Stop { until: world.start + Duration::from_secs(9) }).unwrap();
    world.settle(2.0);
    assert_eq!(opcodes(&peer), [0x8]);
    let goodbye = [delta(6), frame(0x88, &[0x03, 0xE8])].concat();
    world.give(BOOK, &peer, vec![Chunk::Bytes(goodbye)], 2.5);
    assert_eq!(world.next, Next::Done);
    assert_eq!(world.untold(), 4);
}

#[test]
fn the_debt_of_a_connection_that_is_down_at_the_stop_is_told() {
    let mut world = World::new(2);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    let burst: Vec<u8> = (1..=5).flat_map(delta).collect();
    world.give(BOOK, &peer, vec![Chunk::Bytes(burst), Chunk::End], 1.0);
    world.orders.send(Order::Stop { until: world.start + Duration::from_secs(9) }).unwrap();
    world.settle(2.0);
    assert_eq!(world.untold(), 3);
}

#[test]
fn c9_a_frame_that_never_ends_is_no_sign_of_life() {
    let mut world = World::new(2);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.give(BOOK, &peer, vec![Chunk::Bytes(vec![0x81, 126, 0xFF, 0xFF])], 1.0);
    for second in 2..60 {
        if world.shard.live(world.shard.index(BOOK).unwrap()).is_some() {
            world.give(BOOK, &peer, vec![Chunk::Bytes(vec![b'a'])], f64::from(second));
        }
    }
    assert!(matches!(world.downs()[..], [Cause::Liveness { .. }]));
}

#[test]
fn a_drop_that_no_sid_can_tell_of_is_told_by_the_next_subscription() {
    let mut world = World::new(1);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    let lost = [delta(1), text("not json")].concat();
    world.give(BOOK, &peer, vec![Chunk::Bytes(lost)], 1.0);
    world.received();
    world.orders.send(Order::Stop { until: world.start + Duration::from_secs(9) }).unwrap();
    world.settle(2.0);
    world.settle(3.1);
    assert_eq!(world.untold(), 1);
}

#[test]
fn d7_a_peer_that_never_says_goodbye_is_left_after_a_second() {
    let mut world = World::new(2);
    let _peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.orders.send(Order::Stop { until: world.start + Duration::from_secs(9) }).unwrap();
    world.settle(2.0);
    assert!((world.due() - 3.0).abs() < 0.001);
    world.settle(3.0);
    assert_eq!(world.next, Next::Done);
    assert_eq!(world.downs(), [Cause::Stopped]);
}

#[test]
fn the_steady_state_allocates_nothing_from_plaintext_to_the_lent_batch() {
    const READS: u64 = 10_000;
    const MESSAGES: u64 = 102;
    let mut world = World::new(10_000);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    let token = world.shard.index(BOOK).unwrap();
    for read in 0..READS {
        let seqs = read * MESSAGES + 1..=(read + 1) * MESSAGES;
        peer.chunks.send(Chunk::Bytes(seqs.flat_map(delta).collect())).unwrap();
    }
    world.ready.send(Ready { token, read_closed: false }).unwrap();
    let mut turn = |reads: u64| {
        let mut received = 0;
        for _ in 0..reads {
            world.step(1.0);
            while let Ok(batch) = world.messages.try_recv_batch() {
                received += batch.iter().filter(|m| m.gap_size == 0 && !m.data.is_empty()).count();
            }
        }
        received
    };
    let warm = 100;
    turn(warm);
    let session = Session::new().no_stdout().no_file();
    let span = session.operation("steady state").measure_thread().iterations(1);
    let received = turn(READS - warm);
    drop(span);
    assert_eq!(crate::ids::widen(received), (READS - warm) * MESSAGES);
    let spent = session.to_report();
    assert!(spent.operations().all(|(_, spent)| spent.total_allocations_count() == 0), "{spent}");
}

#[test]
fn a_connection_reads_within_its_budget_and_then_waits_its_turn() {
    for (budget, turns) in [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5, 5, 5]), (9, [5, 5, 5, 5, 5])] {
        let mut world = World::new(100);
        world.shard.turn_budget = budget;
        let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
        for seq in 1..=5 {
            peer.chunks.send(Chunk::Bytes(delta(seq))).unwrap();
        }
        let token = world.shard.index(BOOK).unwrap();
        world.ready.send(Ready { token, read_closed: false }).unwrap();
        let received = turns.map(|_| {
            world.step(0.1);
            world.counters.messages_received.total()
        });
        assert_eq!(received, turns, "a budget of {budget}");
    }
}
