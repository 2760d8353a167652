//! `Overflow::ConflateByMarket` on a pair that is arbitrated: one order, one account, one
//! beginning, whichever line brings what.

use proptest::prelude::*;

use super::world::*;
use super::*;
use crate::batch::Continuity::{First, Gap, Next as Follows};
use crate::ids::Sid;

const A: ConnId = ConnId::new(1);
const B: ConnId = ConnId::new(2);

/// The sid is the line's own.
fn ticker(conn: ConnId, (number, market): (u64, u64)) -> Vec<u8> {
    let sid = conn.number() + 4;
    text(&format!(
        "{{\"type\":\"ticker\",\"sid\":{sid},\"msg\":{{\"market_ticker\":\"M{market}\",\"n\":{number}}}}}\n"
    ))
}

fn number(message: &RawMessage) -> u64 {
    let data: serde_json::Value = serde_json::from_slice(&message.data).unwrap();
    data["msg"]["n"].as_u64().unwrap()
}

/// Who brought a content first, and after how many beginnings of the stream.
#[derive(Clone, Copy, Debug)]
struct Brought {
    number: u64,
    conn: ConnId,
    epoch: u32,
    stint: u32,
}

struct Line {
    conn: ConnId,
    epoch: u32,
    /// None while it is down.
    peer: Option<Peer>,
    /// The next content it brings.
    at: u64,
}

/// Two lines that bring the same, and what the host has of it.
struct Pair {
    world: World,
    lines: [Line; 2],
    /// The market of each content.
    contents: Vec<u64>,
    brought: Vec<Brought>,
    stint: u32,
    seconds: f64,
    received: u64,
    /// The host knows of so many contents: has them, or was told that it has not.
    known: usize,
    begun: u32,
}

impl Pair {
    fn new(room: usize) -> Self {
        let world = World::ticker_pair(room);
        let line = |conn| Line { conn, epoch: 0, peer: None, at: 0 };
        let mut pair = Self {
            world,
            lines: [line(A), line(B)],
            contents: Vec::new(),
            brought: Vec::new(),
            stint: 1,
            seconds: 0.0,
            received: 0,
            known: 0,
            begun: 0,
        };
        pair.up(0, 0);
        pair.up(1, 0);
        pair
    }

    fn pass(&mut self, seconds: f64) {
        self.seconds += seconds;
        self.world.settle(self.seconds);
    }

    /// The exchange says something of each of these markets.
    fn say(&mut self, markets: &[u64]) {
        self.contents.extend(markets);
    }

    fn end(&self) -> u64 {
        widen(self.contents.len())
    }

    /// A line brings its next contents in one read.
    fn bring(&mut self, line: usize, most: u64) {
        let end = self.end();
        let Line { conn, epoch, peer, at } = &mut self.lines[line];
        let range = *at..end.min(*at + most);
        let Some(peer) = peer.as_ref().filter(|_| !range.is_empty()) else { return };
        let mut bytes = Vec::new();
        for number in range.clone() {
            let market = self.contents[usize::try_from(number).unwrap()];
            bytes.extend(ticker(*conn, (number, market)));
            if self.brought.last().is_none_or(|last| last.number < number) {
                let (conn, epoch, stint) = (*conn, *epoch, self.stint);
                self.brought.push(Brought { number, conn, epoch, stint });
            }
        }
        *at = range.end;
        self.received += range.end - range.start;
        self.world.give(*conn, peer, vec![Chunk::Bytes(bytes)], self.seconds);
    }

    fn down(&mut self, line: usize) {
        let Some(peer) = self.lines[line].peer.take() else { return };
        self.world.give(self.lines[line].conn, &peer, vec![Chunk::End], self.seconds);
        if self.lines.iter().all(|line| line.peer.is_none()) {
            // What neither brought, neither will; without numbers nobody knows of it.
            self.stint += 1;
            let end = self.end();
            self.lines.iter_mut().for_each(|line| line.at = end);
        }
    }

    /// A line is there again, and has missed some of what the other brought meanwhile.
    fn up(&mut self, line: usize, missed: u64) {
        if self.lines[line].peer.is_some() {
            return;
        }
        let other = self.lines[1 - line].at;
        let Line { conn, epoch, peer, at } = &mut self.lines[line];
        *at = (*at + missed).min(other.max(*at));
        *epoch += 1;
        *peer = Some(self.world.adopt(*conn, *epoch, Vec::new(), self.seconds));
    }

    /// A line meets a bug, and both are lost with what they kept.
    fn strike(&mut self, line: usize) {
        let Line { conn, peer, .. } = &self.lines[line];
        let (token, peer) = (self.world.shard.index(*conn).unwrap(), peer.as_ref().unwrap());
        peer.chunks.send(Chunk::Panics).unwrap();
        self.world.ready.send(Ready { token, read_closed: false }).unwrap();
        self.world.survive(self.seconds);
        self.lines.iter_mut().for_each(|line| line.peer = None);
        self.stint += 1;
    }

    /// Both lines are lost at once, and come back.
    fn begin_anew(&mut self) {
        self.down(0);
        self.down(1);
        self.up(1, 0);
        self.up(0, 0);
    }

    /// The host takes so many, and looks whether they are what it must get next.
    fn take(&mut self, most: usize) -> Vec<(u64, Continuity, u64)> {
        let messages: Vec<_> =
            std::iter::from_fn(|| self.world.messages.try_recv().ok()).take(most).collect();
        for message in &messages {
            let number = number(message);
            let place = self.brought.iter().position(|brought| brought.number == number).unwrap();
            let brought = self.brought[place];
            assert!(place >= self.known, "{number} comes late or twice: {message:?}");
            assert_eq!(message.gap_size, widen(place - self.known), "{brought:?} {message:?}");
            let gap = if message.gap_size > 0 { Gap } else { Follows };
            let continuity = if brought.stint > self.begun { First } else { gap };
            assert_eq!(message.continuity, continuity, "{brought:?} {message:?}");
            assert_eq!((message.conn_id, message.epoch.number()), (brought.conn, brought.epoch));
            let sid = u64::from(brought.conn.number() + 4);
            assert_eq!(message.sid, Some(Sid::new(sid)), "{message:?}");
            (self.known, self.begun) = (place + 1, brought.stint);
        }
        messages.iter().map(|m| (number(m), m.continuity, m.gap_size)).collect()
    }

    /// All is over: what the host does not know of is told in the end, and the counters agree.
    fn stop(mut self, most: usize) {
        self.take(most);
        let until = self.world.start + Duration::from_secs_f64(self.seconds + 0.5);
        self.world.orders.send(Order::Stop { until }).unwrap();
        self.pass(0.1);
        self.take(most);
        if self.world.next != Next::Done {
            self.pass(2.0);
        }
        assert_eq!(self.world.next, Next::Done);
        self.take(usize::MAX);
        let ShardCounters { messages_forwarded, messages_dropped, messages_kept, .. } =
            &**self.world.counters;
        let copies = self.world.counters.arbitration.duplicates_dropped.total();
        let (forwarded, dropped) = (messages_forwarded.total(), messages_dropped.total());
        assert_eq!(forwarded + dropped + copies, self.received);
        assert_eq!(messages_kept.total(), 0);
        assert_eq!(self.world.untold(), widen(self.brought.len() - self.known));
    }
}

#[test]
fn an_older_message_that_is_kept_never_follows_a_newer_one_of_the_other_line() {
    let mut pair = Pair::new(1);
    pair.say(&[9, 1, 2, 1]);
    // Room for the first; two more of them wait, and the newer one comes by the other line.
    pair.bring(0, 3);
    pair.bring(1, 4);
    assert_eq!(pair.take(1), [(0, First, 0)]);
    pair.pass(0.1);
    assert_eq!(pair.take(1), [(2, Gap, 1)]);
    pair.pass(0.1);
    pair.say(&[1]);
    // Whoever brings what comes next: it waits behind what is kept.
    pair.bring(1, 1);
    assert_eq!(pair.take(1), [(3, Follows, 0)]);
    pair.pass(0.1);
    assert_eq!(pair.take(1), [(4, Follows, 0)]);
    pair.stop(1);
}

#[test]
fn the_first_of_a_stream_is_told_though_its_carrier_was_conflated_away() {
    let mut pair = Pair::new(1);
    pair.say(&[9, 8]);
    pair.bring(0, 2);
    pair.begin_anew();
    pair.say(&[1, 1]);
    // The first is line B's, the one that takes its place line A's.
    pair.bring(1, 1);
    pair.bring(0, 2);
    assert_eq!(pair.take(1), [(0, First, 0)]);
    pair.pass(0.1);
    assert_eq!(pair.take(1), [(1, Follows, 0)], "of the stream before");
    pair.pass(0.1);
    assert_eq!(pair.take(1), [(3, First, 1)]);
    pair.stop(1);
}

#[test]
fn the_first_of_a_stream_is_told_though_its_carrier_was_dropped() {
    let mut pair = Pair::new(1);
    pair.say(&[0, 1, 2, 3, 4]);
    pair.bring(0, 5);
    pair.begin_anew();
    pair.say(&[7]);
    // Four markets are kept: there is no place for a fifth.
    pair.bring(1, 1);
    for number in 0..5 {
        assert_eq!(pair.take(1)[0].0, number);
        pair.pass(0.1);
    }
    pair.say(&[7]);
    pair.bring(0, 2);
    assert_eq!(pair.take(1), [(6, First, 1)]);
    pair.stop(1);
}

#[test]
fn what_a_pair_kept_when_its_shard_failed_is_told_by_the_first_of_the_next_stream() {
    let mut pair = Pair::new(1);
    pair.say(&[0, 1, 2, 1]);
    pair.bring(0, 3);
    pair.bring(1, 4);
    pair.strike(1);
    pair.up(1, 0);
    pair.up(0, 1);
    pair.say(&[3]);
    assert_eq!(pair.take(2), [(0, First, 0)]);
    pair.bring(1, 1);
    assert_eq!(pair.take(1), [(4, First, 3)]);
    pair.stop(1);
}

proptest! {
    #![proptest_config(crate::property::cases(300))]

    /// Two lines bring the same tickers, one behind the other, go down and come back; the host
    /// takes some now and then. What it gets is in order, each once; what it does not get is told
    /// exactly, and so is each beginning of the stream.
    #[test]
    fn a_pair_that_conflates_is_one_stream(
        room in 1usize..5,
        steps in prop::collection::vec((0u8..15, 0usize..2, 0u64..7), 1..120),
        last in 0usize..4,
    ) {
        let mut pair = Pair::new(room);
        for (event, line, count) in steps {
            match event {
                0..=4 => pair.say(&[count]),
                5..=9 => pair.bring(line, count),
                10 | 11 => {
                    pair.take(usize::try_from(count).unwrap());
                }
                12 => pair.down(line),
                13 => pair.up(line, count),
                _ => pair.begin_anew(),
            }
            pair.pass(0.02);
        }
        pair.stop(last);
    }
}
