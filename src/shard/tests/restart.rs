//! Row G5: a shard that fails by a bug goes on.

use super::world::*;
use super::*;

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
    world.register_panics.store(true, std::sync::atomic::Ordering::Relaxed);
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
