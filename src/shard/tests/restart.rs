//! Row G5: a shard that fails by a bug goes on.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use super::world::*;
use super::*;
use crate::event::Event;
use crate::overflow::Overflow;

/// What the conductor was told: lost connections, commands ended, restarts.
fn told(world: &World) -> (Vec<(u16, u32)>, usize, usize) {
    let (mut downs, mut ended, mut restarts) = (Vec::new(), 0, 0);
    for report in world.reports.try_iter() {
        match report {
            Report::Down { conn, epoch, cause: Cause::Local { message }, .. } => {
                assert!(message.contains("bug"), "{message}");
                downs.push((conn.number(), epoch.number()));
            }
            Report::Ended { ended: end, .. } => {
                assert_eq!(end.outcome, crate::command::Outcome::ConnectionLost);
                ended += 1;
            }
            Report::Tell(Event::ShardRestarted { .. }) => restarts += 1,
            Report::Lapse { .. } | Report::Tell(Event::OverflowEnded { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    (downs, ended, restarts)
}

#[test]
fn g5_a_bug_amid_a_turn_costs_the_shards_connections_and_not_the_shard() {
    let mut world = World::new(100);
    let other = ConnId::new(5);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    let calm = world.adopt(other, 7, Vec::new(), 0.0);
    world.subscribe(0.0);
    world.give(BOOK, &peer, vec![Chunk::Bytes(delta(1))], 1.0);
    peer.chunks.send(Chunk::Panics).unwrap();
    calm.chunks.send(Chunk::Bytes(delta(1))).unwrap();
    for conn in [BOOK, other] {
        let token = world.shard.index(conn).unwrap();
        world.ready.send(Ready { token, read_closed: false }).unwrap();
    }
    world.survive(2.0);
    assert_eq!(told(&world), (vec![(4, 1), (5, 7)], 1, 1));
    assert!(calm.chunks.send(Chunk::End).is_err(), "its socket is closed");
    let counters = &world.counters;
    assert_eq!((counters.restarts.total(), counters.connections.total()), (1, 0));
    assert_eq!(world.received().len(), 1, "what was handed over before stays so");
    // And all begins anew.
    let peer = world.adopt(BOOK, 2, Vec::new(), 3.0);
    world.give(BOOK, &peer, vec![Chunk::Bytes(delta(1))], 4.0);
    let received = world.received();
    let [message] = &received[..] else { panic!("{received:?}") };
    assert_eq!((message.epoch, message.continuity), (Epoch::new(2), Continuity::First));
    world.settle(19.0);
    assert!(opcodes(&peer).contains(&0x9), "its deadlines are armed");
    assert_eq!(world.counters.connections.total(), 1);
}

#[test]
fn g5_a_connection_that_was_just_taken_over_is_told_to_be_lost_too() {
    let mut world = World::new(100);
    world.bugs.register.store(true, Relaxed);
    world.entrust(BOOK, 3, Vec::new());
    world.survive(1.0);
    assert_eq!(told(&world), (vec![(4, 3)], 0, 1));
    world.survive(2.0);
    assert_eq!(told(&world), (vec![], 0, 0), "once");
}

#[test]
fn g5_a_restarted_shard_has_a_new_handler_and_a_stop_goes_on_stopping() {
    let mut world = World::new(100);
    let (made, makings) = crossbeam_channel::bounded(9);
    world.shard.delivery = Delivery::inline(move |shard| {
        made.send(shard).unwrap();
        |_: &Batch<'_>| {}
    });
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    peer.chunks.send(Chunk::Panics).unwrap();
    let token = world.shard.index(BOOK).unwrap();
    world.ready.send(Ready { token, read_closed: false }).unwrap();
    world.orders.send(Order::Stop { until: world.start + Duration::from_secs(9) }).unwrap();
    world.survive(1.0);
    assert_eq!(makings.try_iter().count(), 1);
    assert_eq!(world.next, Next::Done);
    assert!(matches!(world.reports.try_iter().last(), Some(Report::Stopped)));
}

/// A connection of the shard meets a bug.
fn strike(world: &mut World, conn: ConnId, peer: &Peer, seconds: f64) {
    peer.chunks.send(Chunk::Panics).unwrap();
    let token = world.shard.index(conn).unwrap();
    world.ready.send(Ready { token, read_closed: false }).unwrap();
    world.survive(seconds);
}

/// The first message of the connection's next epoch.
fn first_of_next(world: &mut World, conn: ConnId, epoch: u32, chunk: Chunk) -> RawMessage {
    let peer = world.adopt(conn, epoch, Vec::new(), 30.0);
    world.give(conn, &peer, vec![chunk], 30.1);
    let mut received = world.received();
    assert_eq!(received.len(), 1, "{received:?}");
    received.pop().unwrap()
}

#[test]
fn g5_a_read_that_was_in_hand_is_told_as_lost() {
    let mut world = World::new(100);
    let (seen, handled) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (gaps, count) = (Arc::clone(&seen), Arc::clone(&handled));
    world.shard.delivery = Delivery::inline(move |_| {
        let (gaps, count) = (Arc::clone(&gaps), Arc::clone(&count));
        move |batch: &Batch<'_>| {
            count.fetch_add(widen(batch.len()), Relaxed);
            gaps.fetch_add(batch.iter().map(|message| message.gap_size).sum(), Relaxed);
        }
    });
    world.shard.inline = world.shard.delivery.handler(ShardId::new(0), Duration::from_secs(1));
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.give(BOOK, &peer, vec![Chunk::Bytes(delta(1))], 1.0);
    // Of the next read, which tells of two lost before it, nothing reaches the handler.
    peer.chunks.send(Chunk::Bytes([delta(4), delta(5)].concat())).unwrap();
    let token = world.shard.index(BOOK).unwrap();
    world.ready.send(Ready { token, read_closed: false }).unwrap();
    world.bugs.now.store(true, Relaxed);
    world.survive(2.0);
    assert_eq!(world.counters.restarts.total(), 1);
    let peer = world.adopt(BOOK, 2, Vec::new(), 3.0);
    world.give(BOOK, &peer, vec![Chunk::Bytes(delta(1))], 4.0);
    assert_eq!((handled.load(Relaxed), seen.load(Relaxed)), (2, 4));
    let counters = &world.counters;
    assert_eq!((counters.messages_received.total(), counters.messages_dropped.total()), (4, 2));
}

#[test]
fn g5_what_was_kept_is_told_as_lost_and_strikes_no_second_time() {
    let ticker = Overflow::ConflateByMarket;
    let mut world = World::with(1, OverflowPolicy { ticker, ..OverflowPolicy::default() });
    let conn = ConnId::new(1);
    let tickers = |markets: &str| {
        let one = |market| {
            let json = format!(
                r#"{{"type":"ticker","sid":3,"msg":{{"market_ticker":"{market}","n":1}}}}"#
            );
            text(&json)
        };
        Chunk::Bytes(markets.chars().flat_map(one).collect())
    };
    let peer = world.adopt(conn, 1, Vec::new(), 0.0);
    world.give(conn, &peer, vec![tickers("ABCB")], 1.0);
    assert_eq!(world.counters.messages_kept.total(), 2);
    strike(&mut world, conn, &peer, 2.0);
    assert_eq!(world.received().len(), 1, "what had found room");
    assert!(world.shard.slots.iter().all(|slot| slot.kept.is_none()));
    let next = first_of_next(&mut world, conn, 2, tickers("A"));
    assert_eq!((next.continuity, next.gap_size), (Continuity::First, 3));
    let counters = &world.counters;
    let counted = [&counters.messages_received, &counters.messages_forwarded];
    assert_eq!(counted.map(|counter| counter.total()), [5, 2]);
    assert_eq!((counters.messages_dropped.total(), counters.messages_kept.total()), (3, 0));
}

#[test]
fn g5_a_bug_while_the_first_is_cleaned_up_costs_neither_the_thread_nor_an_account() {
    let mut world = World::new(1);
    let other = ConnId::new(5);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    let _calm = world.adopt(other, 7, Vec::new(), 0.0);
    world.give(BOOK, &peer, vec![Chunk::Bytes([delta(1), delta(2), delta(3)].concat())], 1.0);
    world.told();
    world.bugs.deregister.store(true, Relaxed);
    strike(&mut world, BOOK, &peer, 2.0);
    let (downs, _, restarts) = told(&world);
    assert_eq!((downs, restarts), (vec![(4, 1), (5, 7)], 1));
    assert_eq!(world.received().len(), 1);
    let next = first_of_next(&mut world, BOOK, 2, Chunk::Bytes(delta(1)));
    assert_eq!((next.continuity, next.gap_size), (Continuity::First, 2));
}

#[test]
fn g5_a_pair_tells_what_neither_line_had_brought() {
    let mut world = World::pair(100, OverflowPolicy::default());
    let trade = |seq: u64, id: u64| {
        let msg = format!(r#"{{"trade_id":"t-{id}","x":1}}"#);
        Chunk::Bytes(text(&format!(r#"{{"type":"trade","sid":1,"seq":{seq},"msg":{msg}}}"#)))
    };
    let (a, b) = (ConnId::new(1), ConnId::new(2));
    let line_a = world.adopt(a, 1, Vec::new(), 0.0);
    let line_b = world.adopt(b, 1, Vec::new(), 0.0);
    world.give(a, &line_a, vec![trade(1, 1)], 1.0);
    world.give(b, &line_b, vec![trade(1, 1)], 1.0);
    // The second and the third are missing on A, and B may have them yet.
    world.give(a, &line_a, vec![trade(4, 4)], 1.1);
    assert!(world.received().iter().all(|message| message.gap_size == 0));
    strike(&mut world, a, &line_a, 1.2);
    let next = first_of_next(&mut world, b, 2, trade(1, 9));
    assert_eq!((next.continuity, next.gap_size), (Continuity::First, 2));
}

#[test]
fn g5_a_shard_that_only_fails_again_is_given_up() {
    let mut world = World::new(100);
    let _peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    // Whenever there is an order; it is never taken.
    world.bugs.cpu.store(true, Relaxed);
    world.orders.send(Order::Drop { conn: BOOK, epoch: Epoch::new(9) }).unwrap();
    world.survive(1.0);
    assert_eq!(world.next, Next::Done);
    assert!(world.shard.is_failed());
    assert_eq!(world.counters.restarts.total(), 16);
    assert_eq!(told(&world).0, [(4, 1)], "once");
}

#[test]
fn g5_a_hosts_code_that_panics_while_handlers_are_renewed_is_contained() {
    struct Stubborn;
    impl crate::delivery::Handler for Stubborn {
        fn on_batch(&mut self, _: &Batch<'_>) {}
    }
    impl Drop for Stubborn {
        fn drop(&mut self) {
            panic!("a host's bug, put here on purpose");
        }
    }
    for (makes_another, next) in [(true, None), (false, Some(Next::Done))] {
        let mut world = World::new(100);
        world.shard.inline = Delivery::inline(|_| Stubborn).handler(ShardId::new(0), Duration::MAX);
        world.shard.delivery = Delivery::inline(move |_| {
            assert!(makes_another, "a host's bug, put here on purpose");
            |_: &Batch<'_>| {}
        });
        let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
        strike(&mut world, BOOK, &peer, 1.0);
        assert_eq!(world.shard.is_failed(), !makes_another);
        assert_eq!(told(&world).0, [(4, 1)]);
        assert!(next.is_none_or(|next| next == world.next));
    }
}
