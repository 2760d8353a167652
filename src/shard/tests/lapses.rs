//! When messages were lost: since when they may have been, and until when.

use std::time::SystemTime;

use super::world::*;
use super::*;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// From when to when messages were lost.
fn lapses(world: &World) -> Vec<(SystemTime, SystemTime)> {
    let lapse = |report| match report {
        Report::Lapse { lapse, .. } => Some((lapse.start, lapse.end)),
        _ => None,
    };
    world.reports.try_iter().filter_map(lapse).collect()
}

fn delta_of(sid: u64, seq: u64) -> Vec<u8> {
    text(&format!(r#"{{"type":"orderbook_delta","sid":{sid},"seq":{seq},"msg":{{"s":"x"}}}}"#))
}

#[test]
fn a_gap_is_as_old_as_its_subscriptions_last_data_where_each_market_has_one() {
    let trade = POOL.iter().find(|&(_, role)| role == Role::Trade).unwrap().0;
    for (conn, single_sids, since) in [(BOOK, 0, 7), (BOOK, 100, 5), (trade, 100, 7)] {
        let mut world = World::set(100, OverflowPolicy::default(), |settings| {
            settings.single_sids = single_sids;
        });
        let peer = world.adopt(conn, 1, Vec::new(), 0.0);
        let wall = world.wall;
        let mut give = |bytes, second| {
            world.give(conn, &peer, vec![Chunk::Bytes(bytes)], second);
            world.settle(second + 1.5);
            world.settle(second + 1.5);
            lapses(&world)
        };
        give(delta_of(1, 1), 5.0);
        give(delta_of(2, 1), 7.0);
        for (seq, second, since) in [(3, 9u32, since), (5, 11, 9)] {
            let told = give(delta_of(1, seq), f64::from(second));
            let at = |since| wall + seconds(since);
            assert_eq!(told, [(at(since), at(second.into()))], "{conn}, {single_sids}");
        }
    }
}

#[test]
fn nothing_of_a_subscription_was_lost_before_it_was_opened() {
    let mut world = World::new(100);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.subscribe(0.5);
    let subscribed = |id, sid| {
        let msg = format!(r#"{{"channel":"orderbook_delta","sid":{sid}}}"#);
        text(&format!(r#"{{"type":"subscribed","id":{id},"msg":{msg}}}"#))
    };
    let over = text(r#"{"type":"error","sid":1,"seq":2,"msg":{"code":25,"msg":"no"}}"#);
    world.give(BOOK, &peer, vec![Chunk::Bytes([subscribed(1, 1), delta(1)].concat())], 1.0);
    world.give(BOOK, &peer, vec![Chunk::Bytes(over)], 2.0);
    world.subscribe(3.0);
    world.give(BOOK, &peer, vec![Chunk::Bytes(subscribed(2, 2))], 4.0);
    world.give(BOOK, &peer, vec![Chunk::Bytes(delta_of(2, 2))], 5.0);
    world.settle(6.5);
    world.settle(6.5);
    assert_eq!(lapses(&world), [(world.wall + seconds(4), world.wall + seconds(5))]);
}

#[test]
fn what_is_dropped_came_after_the_data_before_it_however_late_it_is_read() {
    let mut world = World::new(3);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.give(BOOK, &peer, vec![Chunk::Bytes(delta(1))], 1.0);
    // The process stood still meanwhile: the socket is read in parts, the last finds no room.
    let parts = [delta(2), delta(3), [delta(4), delta(5)].concat()];
    world.give(BOOK, &peer, parts.map(Chunk::Bytes).into(), 60.0);
    world.settle(61.5);
    world.settle(61.5);
    assert_eq!(lapses(&world), [(world.wall + seconds(1), world.wall + seconds(60))]);
}

/// What a stop at 2 s tells of messages lost: how many of each interval, from when to when; how
/// many of the overflow.
fn told_at_a_stop(
    mut world: World,
    (conn, peer): (ConnId, &Peer),
) -> (Vec<(u64, SystemTime, SystemTime)>, Vec<u64>) {
    world.orders.send(Order::Stop { until: world.start + seconds(9) }).unwrap();
    world.settle(2.0);
    world.give(conn, peer, vec![Chunk::Bytes(frame(0x88, &[0x03, 0xE8]))], 2.5);
    world.settle(3.0);
    assert_eq!(world.next, Next::Done);
    let (mut lapses, mut overflows) = (Vec::new(), Vec::new());
    for report in world.reports.try_iter() {
        match report {
            Report::Lapse { lapse, .. } => lapses.push((lapse.dropped, lapse.start, lapse.end)),
            Report::Tell(Event::OverflowEnded { dropped, .. }) => overflows.push(dropped),
            Report::Stopped => return (lapses, overflows),
            _ => {}
        }
    }
    panic!("it has not stopped")
}

#[test]
fn what_is_held_back_at_a_stop_has_an_interval_and_the_overflow_an_end() {
    let mut world = World::with(2, Overflow::Backpressure.into());
    let wall = world.wall;
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.give(BOOK, &peer, vec![Chunk::Bytes([delta(1), delta(2)].concat())], 0.5);
    world.give(BOOK, &peer, vec![Chunk::Bytes([delta(3), delta(4)].concat())], 1.0);
    let lost = (2, wall + Duration::from_millis(500), wall + seconds(3));
    assert_eq!(told_at_a_stop(world, (BOOK, &peer)), (vec![lost], vec![2]));
}

#[test]
fn what_is_kept_at_a_stop_has_an_interval_and_the_overflow_an_end() {
    let ticker = Overflow::ConflateByMarket;
    let mut world = World::with(1, OverflowPolicy { ticker, ..OverflowPolicy::default() });
    let (wall, conn) = (world.wall, ConnId::new(1));
    let peer = world.adopt(conn, 1, Vec::new(), 0.0);
    let of = |market| {
        text(&format!(r#"{{"type":"ticker","sid":1,"msg":{{"market_ticker":"{market}"}}}}"#))
    };
    world.give(conn, &peer, vec![Chunk::Bytes([of("A"), of("B")].concat())], 1.0);
    world.give(conn, &peer, vec![Chunk::Bytes(of("C"))], 1.5);
    let lost = (2, wall + seconds(1), wall + seconds(3));
    assert_eq!(told_at_a_stop(world, (conn, &peer)), (vec![lost], vec![2]));
}
