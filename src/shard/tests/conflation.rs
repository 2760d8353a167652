//! `Overflow::ConflateByMarket` on a shard: the newest of each market, in order, and every message
//! left out told.

use super::*;
use crate::messages::Handoff;
use crate::overflow::Overflow;

const TICKER: ConnId = ConnId::new(1);

fn ticker(market: &str, number: u64) -> Vec<u8> {
    text(&format!(
        "{{\"type\":\"ticker\",\"sid\":3,\"msg\":{{\"market_ticker\":\"{market}\",\"n\":{number}}}}}\n"
    ))
}

fn tickers(first: u64, markets: &str) -> Chunk {
    let numbered = (first..).zip(markets.chars());
    Chunk::Bytes(numbered.flat_map(|(n, market)| ticker(&market.to_string(), n)).collect())
}

fn world(message_buffer: usize) -> World {
    let ticker = Overflow::ConflateByMarket;
    World::with(message_buffer, OverflowPolicy { ticker, ..OverflowPolicy::default() })
}

type Got = (u32, u64, Continuity, u64);

fn taken(world: &mut World, most: usize) -> Vec<Got> {
    let next = std::iter::from_fn(|| world.messages.try_recv().ok());
    let got = next.take(most).map(|message| {
        let data: serde_json::Value = serde_json::from_slice(&message.data).unwrap();
        let number = data["msg"]["n"].as_u64().unwrap();
        (message.epoch.number(), number, message.continuity, message.gap_size)
    });
    got.collect()
}

/// Forwarded, dropped, conflated, kept.
fn counted(world: &World) -> [u64; 4] {
    let ShardCounters {
        messages_forwarded,
        messages_dropped,
        messages_conflated,
        messages_kept,
        ..
    } = &**world.counters;
    [messages_forwarded, messages_dropped, messages_conflated, messages_kept].map(|c| c.total())
}

#[test]
fn while_the_host_lags_the_newest_of_each_market_waits_in_order() {
    use Continuity::{First, Gap, Next};
    let mut world = world(2);
    let peer = world.adopt(TICKER, 1, Vec::new(), 0.0);
    world.give(TICKER, &peer, vec![tickers(1, "ABABC")], 1.0);
    assert_eq!(counted(&world), [2, 0, 0, 3], "the first two found room");
    world.give(TICKER, &peer, vec![tickers(6, "AAD")], 2.0);
    assert_eq!(counted(&world), [2, 2, 2, 4]);
    world.give(TICKER, &peer, vec![tickers(9, "EB")], 2.5);
    assert_eq!(counted(&world), [2, 4, 3, 4], "a fifth market is one too many");
    assert_eq!(taken(&mut world, 9), [(1, 1, First, 0), (1, 2, Next, 0)]);
    let received_at = world.start + Duration::from_secs(1);
    world.settle(3.0);
    let kept = world.messages.try_recv().unwrap();
    assert_eq!((kept.gap_size, kept.continuity), (2, Gap));
    assert_eq!(kept.received_at.mono, received_at, "when it was read, not when it went out");
    assert_eq!(taken(&mut world, 9), [(1, 7, Gap, 1)]);
    // What comes now waits its turn.
    world.give(TICKER, &peer, vec![tickers(11, "C")], 4.0);
    assert_eq!(taken(&mut world, 9), [(1, 8, Next, 0), (1, 10, Gap, 1)]);
    world.settle(4.1);
    assert_eq!(taken(&mut world, 9), [(1, 11, Next, 0)]);
    assert_eq!(counted(&world), [7, 4, 3, 0]);
    world.settle(9.0);
    let shard = ShardId::new(0);
    let told = world.told();
    assert_eq!(told[0], Event::OverflowBegan { shard });
    assert!(
        matches!(told[1..], [Event::OverflowEnded { dropped: 4, conflated: 3, .. }]),
        "{told:?}"
    );
}

#[test]
fn what_is_kept_outlives_its_connection_and_goes_out_before_the_next_epoch() {
    use Continuity::{First, Gap};
    let mut world = world(1);
    let peer = world.adopt(TICKER, 1, Vec::new(), 0.0);
    world.give(TICKER, &peer, vec![tickers(1, "ABAB"), Chunk::End], 1.0);
    let again = world.adopt(TICKER, 2, Vec::new(), 2.0);
    world.give(TICKER, &again, vec![tickers(5, "BC")], 3.0);
    let mut got = Vec::new();
    for quarter in 0..8 {
        got.extend(taken(&mut world, 1));
        world.settle(4.0 + f64::from(quarter) / 4.0);
    }
    let want = [(1, 1, First, 0), (1, 3, Gap, 1), (2, 5, First, 1), (2, 6, Continuity::Next, 0)];
    assert_eq!(got, want);
}

#[test]
fn what_was_lost_last_is_told_by_the_next_message_whenever_it_comes() {
    let mut world = world(2);
    let peer = world.adopt(TICKER, 1, Vec::new(), 0.0);
    world.give(TICKER, &peer, vec![tickers(1, "ABCDEFGH")], 1.0);
    taken(&mut world, 9);
    world.settle(2.0);
    taken(&mut world, 9);
    world.settle(2.5);
    taken(&mut world, 9);
    assert_eq!(counted(&world), [6, 2, 0, 0]);
    world.give(TICKER, &peer, vec![tickers(9, "A")], 3.0);
    assert_eq!(taken(&mut world, 9), [(1, 9, Continuity::Gap, 2)]);
}

#[test]
fn what_is_kept_at_the_stop_goes_out_where_there_is_room_and_is_told_where_there_is_none() {
    let mut world = world(2);
    let peer = world.adopt(TICKER, 1, Vec::new(), 0.0);
    world.give(TICKER, &peer, vec![tickers(1, "ABCDEFA")], 1.0);
    world.orders.send(Order::Stop { until: world.start + Duration::from_secs(2) }).unwrap();
    world.settle(1.2);
    assert_eq!(taken(&mut world, 9).len(), 2);
    world.settle(1.3);
    world.settle(2.5);
    assert_eq!(world.next, Next::Done);
    assert_eq!(taken(&mut world, 9).len(), 2);
    assert_eq!(counted(&world), [4, 3, 0, 0]);
    assert_eq!(world.untold(), 3);
}

#[test]
fn a_host_that_went_away_leaves_nothing_kept() {
    let mut world = world(1);
    let peer = world.adopt(TICKER, 1, Vec::new(), 0.0);
    world.give(TICKER, &peer, vec![tickers(1, "ABC")], 1.0);
    let (_, messages) = Handoff::new(1, 1, 1 << 24);
    drop(std::mem::replace(&mut world.messages, messages));
    world.settle(2.0);
    assert_eq!(counted(&world), [3, 0, 0, 0], "as good as handed over");
}
