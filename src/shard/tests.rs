//! The shard over a scripted network in virtual time: no socket, no TLS, no clock.

use std::net::SocketAddr;

use crossbeam_channel::bounded;

use super::*;
use crate::batch::Continuity;
use crate::clock::Stamp;
use crate::command::Outcome;
use crate::ids::Ticker;
use crate::messages::{Handoff, Messages};

/// What the scripted peer does next.
enum Chunk {
    Bytes(Vec<u8>),
    End,
    Reset,
}

/// Our end of a scripted connection.
struct FakeLink {
    inbound: Receiver<Chunk>,
    outbound: Sender<Vec<u8>>,
    blocked: Receiver<bool>,
    refuses: bool,
}

/// The peer's end.
struct Peer {
    chunks: Sender<Chunk>,
    sent: Receiver<Vec<u8>>,
    block: Sender<bool>,
}

struct FakeNet {
    ready: Receiver<Ready>,
    now: Receiver<Instant>,
    at: Instant,
}

impl Transport for FakeNet {
    type Link = FakeLink;

    fn dial(&mut self, _: SocketAddr) -> Result<FakeLink, Cause> {
        Err(Cause::Reset)
    }
    fn register(&mut self, _: &mut FakeLink, _: usize) -> Result<(), Cause> {
        Ok(())
    }
    fn deregister(&mut self, _: &mut FakeLink) {}
    fn connected(&mut self, _: &mut FakeLink) -> Result<bool, Cause> {
        Ok(true)
    }
    fn secure(&mut self, _: &mut FakeLink) -> Result<bool, Cause> {
        Ok(true)
    }
    fn resumed(&self, _: &FakeLink) -> Option<bool> {
        None
    }
    fn receive(&mut self, link: &mut FakeLink, plain: &mut Vec<u8>) -> Result<Received, Cause> {
        match link.inbound.try_recv() {
            Ok(Chunk::Bytes(bytes)) => {
                plain.extend(bytes);
                Ok(Received::Some { more: !link.inbound.is_empty(), at: self.stamp() })
            }
            Ok(Chunk::End) => Ok(Received::Ended),
            Ok(Chunk::Reset) => Err(Cause::Reset),
            Err(_) => Ok(Received::Blocked),
        }
    }
    fn send(&mut self, link: &mut FakeLink, bytes: &mut Vec<u8>) -> Result<bool, Cause> {
        while let Ok(refuses) = link.blocked.try_recv() {
            link.refuses = refuses;
        }
        if bytes.is_empty() {
            return Ok(true);
        }
        if link.refuses {
            return Ok(false);
        }
        link.outbound.send(std::mem::take(bytes)).unwrap();
        Ok(true)
    }
    fn local_addr(&self, _: &FakeLink) -> Option<SocketAddr> {
        None
    }
    fn wait(&mut self, _: Option<Duration>, ready: &mut Vec<Ready>) -> std::io::Result<()> {
        while let Ok(now) = self.now.try_recv() {
            self.at = now;
        }
        ready.extend(self.ready.try_iter());
        Ok(())
    }
    fn stamp(&self) -> Stamp {
        Stamp { wall: std::time::SystemTime::UNIX_EPOCH, mono: self.at }
    }
}

/// A shard with one connection of each role (1 ticker, 2 trade, 3 lifecycle, 4 and 5 books).
struct World {
    shard: Shard<FakeNet>,
    orders: Sender<Order<FakeLink>>,
    reports: Receiver<Report>,
    ready: Sender<Ready>,
    clock: Sender<Instant>,
    messages: Messages,
    registry: Receiver<RawMessage>,
    counters: Arc<CachePadded<ShardCounters>>,
    start: Instant,
    next: Next,
}

const POOL: PoolLayout = PoolLayout::new(1, 1, 1, 2);
const BOOK: ConnId = ConnId::new(4);

impl World {
    fn new(message_buffer: usize) -> Self {
        Self::with(message_buffer, OverflowPolicy::default())
    }

    fn with(message_buffer: usize, overflow: OverflowPolicy) -> Self {
        let (handoff, messages) = Handoff::new(1, message_buffer, 1 << 24);
        let (orders, order_receiver) = bounded(1_000);
        let (report_sender, reports) = bounded(1_000);
        let (ready, ready_receiver) = bounded(1_000);
        let (clock, now) = bounded(1_000);
        let (sink, registry) = bounded(2);
        let start = crate::clock::now();
        let counters = Arc::default();
        let second = Duration::from_secs(1);
        let shard = Shard::new(ShardParts {
            id: ShardId::new(0),
            shards: 1,
            transport: FakeNet { ready: ready_receiver, now, at: start },
            settings: LinkSettings {
                message_bytes_max: 1 << 20,
                outgoing_bytes_max: 1 << 16,
                subscribe_timeout: 5 * second,
                ping_idle: 15 * second,
                pong_timeout: 10 * second,
                write_timeout: 10 * second,
            },
            orders: order_receiver,
            reports: report_sender,
            outlet: handoff.outlet(ShardId::new(0)).unwrap(),
            pool: POOL,
            overflow,
            delivery: Delivery::channel(),
            counters: Arc::clone(&counters),
        });
        orders.send(Order::Listen { sink }).unwrap();
        let next = Next::Now;
        Self { shard, orders, reports, ready, clock, messages, registry, counters, start, next }
    }

    /// One turn at this time.
    fn step(&mut self, seconds: f64) {
        let now = self.start + Duration::from_secs_f64(seconds);
        self.clock.send(now).unwrap();
        self.shard.wait(None).unwrap();
        self.next = self.shard.step(now);
    }

    /// Turns at this time until nothing is left to do.
    fn settle(&mut self, seconds: f64) {
        self.step(seconds);
        while self.next == Next::Now {
            self.step(seconds);
        }
    }

    /// When the shard wants to be called next, in seconds.
    fn due(&self) -> f64 {
        match self.next {
            Next::At(Some(due)) => due.saturating_duration_since(self.start).as_secs_f64(),
            other => panic!("{other:?}"),
        }
    }

    fn adopt(&mut self, conn: ConnId, epoch: u32, unread: Vec<u8>, seconds: f64) -> Peer {
        let (chunks, inbound) = bounded(10_000);
        let (outbound, sent) = bounded(10_000);
        let (block, blocked) = bounded(10);
        let link = FakeLink { inbound, outbound, blocked, refuses: false };
        let role = POOL.role(conn).unwrap();
        let adoption = Adoption { conn, epoch: Epoch::new(epoch), role, link, unread };
        self.orders.send(Order::Adopt(Box::new(adoption))).unwrap();
        self.settle(seconds);
        Peer { chunks, sent, block }
    }

    /// The peer does something, and the shard's poll hears of it.
    fn give(&mut self, conn: ConnId, peer: &Peer, chunks: Vec<Chunk>, seconds: f64) {
        for chunk in chunks {
            peer.chunks.send(chunk).unwrap();
        }
        let token = self.shard.index(conn).unwrap();
        self.ready.send(Ready { token, read_closed: false }).unwrap();
        self.settle(seconds);
    }

    fn subscribe(&mut self, seconds: f64) {
        let market: Ticker = "M".parse().unwrap();
        let request = Request::Subscribe { role: Role::Orderbook, markets: vec![market] };
        self.orders.send(Order::Command { conn: BOOK, epoch: Epoch::new(1), request }).unwrap();
        self.settle(seconds);
    }

    fn downs(&self) -> Vec<Cause> {
        let cause = |report| match report {
            Report::Down { cause, .. } => Some(cause),
            _ => None,
        };
        self.reports.try_iter().filter_map(cause).collect()
    }

    fn received(&mut self) -> Vec<RawMessage> {
        std::iter::from_fn(|| self.messages.try_recv().ok()).collect()
    }
}

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first, 126];
    bytes.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn text(json: &str) -> Vec<u8> {
    frame(0x81, json.as_bytes())
}

fn delta(seq: u64) -> Vec<u8> {
    text(&format!(
        "{{\"type\":\"orderbook_delta\",\"sid\":1,\"seq\":{seq},\"msg\":{{\"s\":\"x\"}}}}\n"
    ))
}

fn ok(id: u64, seq: u64) -> Vec<u8> {
    text(&format!(r#"{{"type":"ok","id":{id},"sid":1,"seq":{seq},"msg":{{}}}}"#))
}

/// Opcodes of the frames sent, and the texts.
fn opcodes(peer: &Peer) -> Vec<u8> {
    peer.sent.try_iter().map(|bytes| bytes[0] & 0x0F).collect()
}

#[test]
fn a_frame_cut_anywhere_arrives_whole() {
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
fn frames_that_came_with_the_upgrade_need_no_event() {
    let mut world = World::new(10);
    let _peer = world.adopt(BOOK, 1, delta(1), 0.0);
    assert_eq!(world.received().len(), 1);
}

#[test]
fn what_came_before_the_end_is_delivered_before_it() {
    for (end, cause) in [(Chunk::End, Cause::Ended), (Chunk::Reset, Cause::Reset)] {
        let mut world = World::new(10);
        let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
        world.give(BOOK, &peer, vec![Chunk::Bytes(delta(1)), end], 1.0);
        assert_eq!(world.received().len(), 1);
        assert_eq!(world.downs(), [cause]);
    }
}

#[test]
fn messages_before_a_violation_stand_and_nothing_after_it() {
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    let bytes = [delta(1), frame(0xC1, b"rsv"), delta(2)].concat();
    world.give(BOOK, &peer, vec![Chunk::Bytes(bytes)], 1.0);
    assert_eq!(world.received().len(), 1);
    assert!(matches!(world.downs()[..], [Cause::Protocol { .. }]));
}

#[test]
fn a_quiet_connection_is_asked_and_then_given_up() {
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
fn any_frame_is_a_sign_of_life() {
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
fn after_a_long_pause_what_waits_is_read_before_anyone_is_given_up() {
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.settle(15.0);
    world.give(BOOK, &peer, vec![Chunk::Bytes(delta(1))], 75.0);
    assert!(world.downs().is_empty());
    assert_eq!(world.received().len(), 1);
}

#[test]
fn a_peer_that_takes_no_bytes_is_given_up() {
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    peer.block.send(true).unwrap();
    world.give(BOOK, &peer, vec![Chunk::Bytes(frame(0x89, b"heartbeat"))], 1.0);
    assert!((world.due() - 11.0).abs() < 0.001);
    world.settle(11.0);
    assert!(matches!(world.downs()[..], [Cause::Liveness { .. }]));
}

#[test]
fn a_flood_of_pings_from_a_peer_that_reads_nothing_is_bounded() {
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    peer.block.send(true).unwrap();
    let flood = frame(0x89, &[b'p'; 125]).repeat(1_000);
    world.give(BOOK, &peer, vec![Chunk::Bytes(flood)], 1.0);
    assert!(matches!(world.downs()[..], [Cause::Liveness { .. }]));
}

#[test]
fn a_command_ends_by_its_reply_by_time_or_by_loss_each_once() {
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
fn a_command_for_an_epoch_that_is_over_ends_as_lost() {
    let mut world = World::new(10);
    world.subscribe(1.0);
    let report = world.reports.try_recv().unwrap();
    let Report::Ended { ended, .. } = report else { panic!("{report:?}") };
    assert_eq!(ended.outcome, Outcome::ConnectionLost);
}

#[test]
fn acknowledgements_count_in_the_sequence_and_are_not_delivered() {
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
fn one_that_floods_gets_one_read_a_turn() {
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
fn a_terminal_error_is_told_once_however_often_it_is_said() {
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.subscribe(0.0);
    let error =
        r#"{"type":"error","sid":1,"msg":{"code":25,"msg":"Subscription buffer overflow"}}"#;
    let bytes = [ok(1, 1), text(error).repeat(500)].concat();
    world.give(BOOK, &peer, vec![Chunk::Bytes(bytes)], 1.0);
    let ended =
        |report: &Report| matches!(report, Report::SubscriptionEnded { code: Some(25), .. });
    assert_eq!(world.reports.try_iter().filter(ended).count(), 1);
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
    let last = world.reports.try_iter().last().unwrap();
    let Report::Stopped { untold } = last else { panic!("{last:?}") };
    assert_eq!(untold.iter().map(|untold| untold.messages).sum::<u64>(), 5);
    assert_eq!(world.received().len(), 2);
}

#[test]
fn a_stop_says_goodbye_takes_what_still_comes_and_tells_what_it_could_not() {
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
    let last = world.reports.try_iter().last().unwrap();
    let Report::Stopped { untold } = last else { panic!("{last:?}") };
    assert_eq!(untold.iter().map(|untold| untold.messages).sum::<u64>(), 4);
}

#[test]
fn a_peer_that_never_says_goodbye_is_left_after_a_second() {
    let mut world = World::new(2);
    let _peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.orders.send(Order::Stop { until: world.start + Duration::from_secs(9) }).unwrap();
    world.settle(2.0);
    assert!((world.due() - 3.0).abs() < 0.001);
    world.settle(3.0);
    assert_eq!(world.next, Next::Done);
    assert_eq!(world.downs(), [Cause::Stopped]);
}
