//! Life and death of connections by the clock: silence, pauses, halves of messages, floods.

use super::world::*;
use super::*;

/// A delta the exchange says it sent at this second of the world's.
fn stamped(seq: u64, second: u64) -> Vec<u8> {
    let ms = (1_793_534_400 + second) * 1_000;
    text(&format!(
        r#"{{"type":"orderbook_delta","sid":1,"seq":{seq},"msg":{{"s":"x","ts_ms":{ms}}}}}"#
    ))
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn h2_after_a_pause_what_waits_is_read_before_anyone_is_given_up() {
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.settle(15.0);
    assert_eq!(opcodes(&peer), [0x9]);
    // Stopped for a minute while it waited; the wait ends with nothing to show for it.
    world.step(75.0);
    assert!(world.downs().is_empty());
    assert_eq!(world.next, Next::Now, "another look at the sockets, at once");
    world.give(BOOK, &peer, vec![Chunk::Bytes(delta(1))], 75.0);
    assert!(world.downs().is_empty());
    assert_eq!(world.received().len(), 1);
}

#[test]
fn h2_a_pause_between_the_wait_and_the_turn_is_no_reason_either() {
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.settle(14.0);
    world.step(90.0);
    // The ping goes out only now, so its answer has all its time.
    world.settle(90.0);
    assert_eq!(opcodes(&peer), [0x9]);
    world.settle(99.9);
    assert!(world.downs().is_empty());
    world.settle(100.0);
    assert!(matches!(world.downs()[..], [Cause::Liveness { .. }]));
}

#[test]
fn h2_more_to_read_is_read_first_however_much_it_is() {
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.settle(15.0);
    // A long message in many pieces; only with the last of them is there a whole frame.
    let bytes = frame(0x81, &[b'a'; 60_000]);
    let pieces = bytes.chunks(1_000).map(|piece| Chunk::Bytes(piece.to_vec())).collect();
    world.give(BOOK, &peer, pieces, 80.0);
    assert!(world.downs().is_empty());
    assert_eq!(world.received().len(), 1);
}

#[test]
fn h1_a_step_of_the_wall_clock_ends_nobody() {
    for (step, back) in [(seconds(3_600), false), (seconds(3_600), true)] {
        let mut world = World::new(100);
        let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
        world.subscribe(0.0);
        world.give(BOOK, &peer, vec![Chunk::Bytes(delta(1))], 1.0);
        world.wall = if back { world.wall - step } else { world.wall + step };
        for second in 2..=4_u32 {
            let at = f64::from(second);
            world.give(BOOK, &peer, vec![Chunk::Bytes(delta(u64::from(second)))], at);
        }
        assert!((world.due() - 5.0).abs() < 0.001, "the command's deadline, not the clock's");
        world.settle(18.9);
        assert!(opcodes(&peer).iter().all(|&opcode| opcode != 0x9));
        world.settle(19.0);
        assert!(opcodes(&peer).contains(&0x9), "fifteen quiet seconds, as ever");
        assert!(world.downs().is_empty());
        let walls: Vec<_> = world.received().iter().map(|m| m.received_at.wall).collect();
        assert_eq!(walls[1] > walls[0], !back, "only what people see has changed");
    }
}

#[test]
fn c9_a_message_in_fragments_that_never_ends_is_given_up_though_pings_come() {
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    let begin = frame(0x01, b"{\"type\":");
    world.give(BOOK, &peer, vec![Chunk::Bytes(begin)], 1.0);
    for second in 2..=20 {
        let more = [frame(0x89, b"heartbeat"), frame(0x00, b"\"x")].concat();
        world.give(BOOK, &peer, vec![Chunk::Bytes(more)], f64::from(second));
    }
    assert!(world.downs().is_empty());
    world.settle(21.0);
    assert!(
        matches!(&world.downs()[..], [Cause::Liveness { message }] if message.contains("part"))
    );
}

#[test]
fn c9_fragments_that_end_in_time_may_go_on_for_ever() {
    let mut world = World::new(1_000);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.give(BOOK, &peer, vec![Chunk::Bytes(frame(0x01, b"a"))], 0.0);
    for second in 1..100 {
        // One ends and the next begins within the same read.
        let more = [frame(0x80, b"b"), frame(0x01, b"a")].concat();
        world.give(BOOK, &peer, vec![Chunk::Bytes(more)], f64::from(second));
    }
    assert!(world.downs().is_empty());
    assert_eq!(world.received().len(), 99);
}

#[test]
fn c9_a_frame_in_tiny_pieces_is_not_copied_with_each() {
    for (size, piece) in [(300, 1), (4_000, 1), (9_000, 1), (60_000, 7)] {
        let mut world = World::new(10);
        let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
        let payload = vec![b'a'; size];
        let bytes = [delta(1), frame(0x81, &payload), delta(2)].concat();
        let pieces: Vec<_> = bytes.chunks(piece).map(|p| Chunk::Bytes(p.to_vec())).collect();
        world.give(BOOK, &peer, pieces, 1.0);
        let received = world.received();
        assert_eq!(received.len(), 3);
        assert_eq!(received[1].data.as_ref(), payload);
        assert_eq!(world.counters.bytes_received.total(), crate::ids::widen(bytes.len()));
        // At most a few kilobytes for each of the three, whatever the number of reads.
        let copied = world.copied.load(std::sync::atomic::Ordering::Relaxed);
        assert!(copied <= 3 * 4_300, "{copied} bytes went before those read, of {size}");
    }
}

#[test]
fn d12_a_silent_subscription_is_told_once_and_lives() {
    let mut world = World::new(1_000);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.subscribe(0.0);
    world.give(BOOK, &peer, vec![Chunk::Bytes([ok(1, 1), delta(2)].concat())], 1.0);
    // The socket lives on pings alone, for two hours.
    for ten in 1..720 {
        let at = f64::from(ten * 10);
        world.give(BOOK, &peer, vec![Chunk::Bytes(frame(0x89, b"heartbeat"))], at);
        assert_eq!(world.counters.silent.total(), u64::from(ten >= 7));
        let told = world.told();
        match ten {
            7 => assert!(
                matches!(&told[..], [Event::Silent { conn: BOOK, quiet_for, .. }]
                    if *quiet_for == seconds(69)),
                "{told:?}"
            ),
            _ => assert!(told.is_empty(), "{told:?}"),
        }
    }
    world.give(BOOK, &peer, vec![Chunk::Bytes(delta(3))], 7_201.0);
    let told = world.told();
    assert!(
        matches!(&told[..], [Event::Heard { quiet_for, .. }] if *quiet_for == seconds(7_200)),
        "{told:?}"
    );
    let counters = &world.counters;
    assert_eq!((counters.silent.total(), counters.silences.total()), (0, 1));
}

#[test]
fn d12_a_connection_without_a_subscription_is_not_called_silent() {
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    for ten in 1..60 {
        let at = f64::from(ten * 10);
        world.give(BOOK, &peer, vec![Chunk::Bytes(frame(0x89, b"heartbeat"))], at);
    }
    assert!(world.told().is_empty());
}

#[test]
fn d12_a_silent_one_is_given_up_where_that_is_asked_for() {
    let policy = OverflowPolicy::default();
    let mut world = World::set(10, policy, |settings| settings.silent_reconnect = true);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.subscribe(0.0);
    world.give(BOOK, &peer, vec![Chunk::Bytes(ok(1, 1))], 1.0);
    for ten in 1..=6 {
        let at = f64::from(ten * 10);
        world.give(BOOK, &peer, vec![Chunk::Bytes(frame(0x89, b"heartbeat"))], at);
    }
    assert!(world.downs().is_empty());
    world.settle(61.0);
    assert!(
        matches!(&world.downs()[..], [Cause::Liveness { message }] if message.contains("no data"))
    );
    assert_eq!(world.counters.silent.total(), 0);
}

#[test]
fn lag_is_told_when_it_begins_and_when_it_ends() {
    let mut world = World::new(1_000);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    let mut told = Vec::new();
    // How many seconds late each second's message is.
    for (second, late) in [0, 1, 9, 9, 10, 9, 3, 2, 0].into_iter().enumerate() {
        let second = u64::try_from(second).unwrap() + 100;
        let message = stamped(second, second - late);
        let at = f64::from(u32::try_from(second).unwrap());
        world.give(BOOK, &peer, vec![Chunk::Bytes(message)], at);
        told.extend(world.told());
    }
    assert!(
        matches!(
            &told[..],
            [Event::Lagging { lag, .. }, Event::CaughtUp { lag: end, .. }]
                if (*lag, *end) == (seconds(9), seconds(2))
        ),
        "{told:?}"
    );
    let counters = &world.counters;
    assert_eq!((counters.lagging.total(), counters.lag_ms.total()), (0, 0));
    assert_eq!(counters.lag_ms_max.total(), 10_000);
}

#[test]
fn an_overflow_is_told_when_it_begins_and_when_it_is_over() {
    let mut world = World::new(2);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    for read in 0..3 {
        let burst: Vec<u8> = (read * 5 + 1..=read * 5 + 5).flat_map(delta).collect();
        world.give(BOOK, &peer, vec![Chunk::Bytes(burst)], 1.0);
    }
    let shard = ShardId::new(0);
    assert_eq!(world.told(), [Event::OverflowBegan { shard }]);
    world.settle(1.9);
    assert!(world.told().is_empty());
    world.settle(2.1);
    world.settle(2.1);
    let lasted = Duration::ZERO;
    assert_eq!(world.told(), [Event::OverflowEnded { shard, lasted, dropped: 13, conflated: 0 }]);
}

#[test]
fn d10_a_flood_of_pings_is_answered_and_holds_nobody_up() {
    let mut world = World::new(100);
    let other = ConnId::new(5);
    let (flooding, calm) =
        (world.adopt(BOOK, 1, Vec::new(), 0.0), world.adopt(other, 1, Vec::new(), 0.0));
    let ping = frame(0x89, b"heartbeat");
    for _ in 0..100 {
        flooding.chunks.send(Chunk::Bytes(ping.repeat(100))).unwrap();
    }
    calm.chunks.send(Chunk::Bytes(delta(1))).unwrap();
    for conn in [BOOK, other] {
        let token = world.shard.index(conn).unwrap();
        world.ready.send(Ready { token, read_closed: false }).unwrap();
    }
    world.step(1.0);
    assert_eq!(world.received().len(), 1, "the other one's turn comes in the same turn");
    world.settle(1.0);
    let pongs: usize = flooding.sent.try_iter().map(|bytes| bytes.len()).sum();
    assert_eq!(pongs, 10_000 * (2 + 4 + 9), "each ping is answered, and flushed");
    assert!(world.downs().is_empty());
}

#[test]
fn a_turn_that_takes_too_long_is_told_of() {
    let mut world = World::new(10);
    world.step(0.0);
    world.shard.turn_took(Duration::from_millis(50));
    world.shard.turn_took(Duration::from_millis(80));
    world.step(0.1);
    world.shard.turn_took(Duration::from_millis(60));
    world.step(0.2);
    let shard = ShardId::new(0);
    let stalled = |ms, turns| Event::ShardStalled { shard, took: Duration::from_millis(ms), turns };
    assert_eq!(world.told(), [stalled(80, 1)]);
    world.settle(1.2);
    world.settle(1.2);
    assert_eq!(world.told(), [stalled(60, 1)], "at most once a second");
    assert_eq!(world.counters.cycles_slow.total(), 2);
}

#[test]
fn c6_an_end_within_a_frame_delivers_nothing_of_it() {
    for end in [Chunk::End, Chunk::Reset] {
        let mut world = World::new(10);
        let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
        let cut = delta(2);
        let bytes = [delta(1), cut[..cut.len() - 1].to_vec()].concat();
        world.give(BOOK, &peer, vec![Chunk::Bytes(bytes), end], 1.0);
        let seqs: Vec<_> = world.received().iter().map(|m| m.seq.unwrap().number()).collect();
        assert_eq!(seqs, [1]);
        assert!(matches!(world.downs()[..], [Cause::Ended | Cause::Reset]));
    }
}

#[test]
fn c2_bad_utf8_ends_the_connection_whole_or_split_over_fragments() {
    let split = [frame(0x01, b"{\xc3"), frame(0x80, b"\x28}")].concat();
    for bytes in [frame(0x81, b"{\"a\":\"\xff\"}"), split] {
        let mut world = World::new(10);
        let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
        world.give(BOOK, &peer, vec![Chunk::Bytes([delta(1), bytes, delta(2)].concat())], 1.0);
        assert_eq!(world.received().len(), 1);
        let downs = world.downs();
        assert!(
            matches!(&downs[..], [Cause::Protocol { message }] if message.contains("UTF-8")),
            "{downs:?}"
        );
    }
    // A code point split over fragments is none the worse for it.
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    let bytes = [frame(0x01, b"{\"\xc3"), frame(0x80, b"\xa9\":1}")].concat();
    world.give(BOOK, &peer, vec![Chunk::Bytes(bytes)], 1.0);
    assert_eq!(world.received()[0].data.as_ref(), "{\"é\":1}".as_bytes());
}

#[test]
fn c7_what_is_not_text_is_counted_and_empty_text_is_delivered() {
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    let bytes = [frame(0x82, b"bin"), frame(0x8A, b"nobody asked"), frame(0x81, b"")].concat();
    world.give(BOOK, &peer, vec![Chunk::Bytes(bytes)], 1.0);
    let received = world.received();
    assert_eq!((received.len(), received[0].data.len()), (1, 0));
    let counters = &world.counters;
    assert_eq!((counters.binary_frames.total(), counters.control_frames.total()), (1, 1));
    assert_eq!(counters.unreadable.total(), 1);
    assert!(world.downs().is_empty());
}

#[test]
fn h3_what_is_due_together_is_done_in_order_once_each() {
    let mut world = World::new(10);
    let peers: Vec<_> =
        (1..=5).map(|conn| world.adopt(ConnId::new(conn), 1, Vec::new(), 0.0)).collect();
    world.settle(15.0);
    assert!(peers.iter().all(|peer| opcodes(peer) == [0x9]), "one ping each");
    world.settle(25.0);
    let reports: Vec<_> = world.reports.try_iter().collect();
    let ended: Vec<_> = reports
        .iter()
        .filter_map(|report| match report {
            Report::Down { conn, .. } => Some(conn.number()),
            _ => None,
        })
        .collect();
    assert_eq!(ended, [1, 2, 3, 4, 5]);
}

#[test]
fn j6_a_day_of_nothing_but_pings_drifts_by_nothing() {
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    let (mut pings, mut at) = (0_u32, 0.0);
    while at < 86_400.0 {
        at = world.due();
        world.settle(at);
        for opcode in opcodes(&peer) {
            assert_eq!(opcode, 0x9);
            pings += 1;
            let pong = frame(0x8A, b"kalshi-feed");
            world.give(BOOK, &peer, vec![Chunk::Bytes(pong)], at);
        }
        assert!(world.downs().is_empty());
    }
    assert_eq!(pings, 86_400 / 15, "one each fifteen seconds, to the second");
}

/// A Close with this payload is told with this code, and answered.
fn closed_with(payload: &[u8], expected: Option<u16>) {
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.give(BOOK, &peer, vec![Chunk::Bytes(frame(0x88, payload))], 1.0);
    let downs = world.downs();
    assert!(
        matches!(&downs[..], [Cause::PeerClosed { code, .. }] if *code == expected),
        "{payload:?}: {downs:?}"
    );
    assert_eq!(opcodes(&peer), [0x8], "and answered");
}

#[test]
fn d4_a_close_that_finds_fault_with_us_is_told_with_its_code_and_reason() {
    for code in [1002_u16, 1007, 1009] {
        let payload = [&code.to_be_bytes(), &b"why"[..]].concat();
        closed_with(&payload, Some(code));
        let shown = Cause::PeerClosed { code: Some(code), reason: "why".into() }.to_string();
        assert!(shown.contains(&code.to_string()) && shown.contains("why"), "{shown}");
    }
}

#[test]
fn d5_every_close_there_is_is_told_with_its_code() {
    for (payload, expected) in [
        (&b""[..], None),
        (&[0x03, 0xE8][..], Some(1000)),
        (&[0x0F, 0xA1, b'x'][..], Some(4001)),
        // No such codes on the wire (RFC 6455, 7.4): the library calls them a violation.
        (&[0x03, 0xE7][..], Some(1002)),
        (&[0x03, 0xED][..], Some(1002)),
        (&[0x03, 0xEE][..], Some(1002)),
        (&[0x13, 0x88][..], Some(1002)),
    ] {
        closed_with(payload, expected);
    }
    let mut world = World::new(10);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.give(BOOK, &peer, vec![Chunk::Bytes(frame(0x88, b"x"))], 1.0);
    assert!(matches!(world.downs()[..], [Cause::Protocol { .. }]));
}

#[test]
fn i3_every_phase_of_a_live_connection_has_a_deadline() {
    // At the latest then; it may look earlier, and find nothing to do.
    let by = |due: f64, expected: f64| assert!(due < expected + 0.001, "{due}");
    let mut world = World::with(1, crate::overflow::Overflow::Backpressure.into());
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    by(world.due(), 15.0); // quiet
    world.settle(15.0);
    by(world.due(), 25.0); // pinged
    world.give(BOOK, &peer, vec![Chunk::Bytes(vec![0x81])], 16.0);
    by(world.due(), 25.0); // part of a message, which has until 36
    world.give(BOOK, &peer, vec![Chunk::Bytes(delta(1)[1..].to_vec())], 17.0);
    by(world.due(), 32.0); // quiet again
    world.subscribe(18.0);
    by(world.due(), 23.0); // a command under way
    world.give(BOOK, &peer, vec![Chunk::Bytes([delta(2), delta(3)].concat())], 19.0);
    assert!(world.due() < 20.0, "held back: soon offered again");
    world.orders.send(Order::Stop { until: world.start + seconds(60) }).unwrap();
    world.received();
    world.settle(20.0);
    assert!(world.due() <= 21.0, "closing: {}", world.due());
}

#[test]
fn c8_whatever_json_comes_is_delivered_as_it_is_and_its_number_checked_if_readable() {
    let mut world = World::new(100);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    let deep = format!(r#"{{"type":"x","msg":{}1{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
    let texts = [
        r#"{"type":"orderbook_delta","sid":1,"seq":1,"msg":{"market_ticker":"A\"B"}}"#,
        r#"{"seq":2,"msg":{"sid":9,"seq":9},"sid":1,"type":"orderbook_delta"}"#,
        r#"{"type":"orderbook_delta","sid":"1","seq":3,"msg":{}}"#,
        r#"{"type":"orderbook_delta","sid":1,"seq":99999999999999999999999,"msg":{}}"#,
        r#"{"type":"never_heard_of","sid":1,"seq":3,"msg":{}}"#,
        r#"{"type":"orderbook_delta","sid":1,"seq":4"#,
        "\u{feff}{\"type\":\"orderbook_delta\",\"sid\":1,\"seq\":4}",
        &deep,
        r#"{"type":"orderbook_delta","type":"trade","sid":1,"sid":1,"seq":6,"msg":{}}"#,
    ];
    for text in texts {
        world.give(BOOK, &peer, vec![Chunk::Bytes(super::world::text(text))], 1.0);
    }
    let received = world.received();
    let whole: Vec<_> = received.iter().map(|message| message.data.as_ref()).collect();
    assert_eq!(whole, texts.map(str::as_bytes));
    let numbers: Vec<_> =
        received.iter().map(|m| (m.seq.map(|seq| seq.number()), m.gap_size)).collect();
    assert_eq!(numbers[..2], [(Some(1), 0), (Some(2), 0)]);
    assert_eq!((numbers[4].0, numbers[5].0, numbers[6].0), (Some(3), None, None));
    assert!(received.iter().all(|message| message.epoch == Epoch::new(1)));
    assert!(world.counters.unreadable.total() >= 2 && world.counters.unknown_types.total() >= 1);
    assert!(world.downs().is_empty(), "and nothing ends");
}

#[test]
fn a_lapse_that_has_to_wait_keeps_no_shard_spinning() {
    let mut world = World::new(100);
    let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
    world.give(BOOK, &peer, vec![Chunk::Bytes([delta(1), delta(5)].concat())], 1.0);
    let half = world.shard.reports.capacity().unwrap() / 2;
    while world.reports.len() < half {
        world.shard.reports.send(Report::RegistryHungUp).unwrap();
    }
    world.step(2.5);
    world.step(2.5);
    assert_ne!(world.next, Next::Now, "nothing can be told yet");
    let due = world.due();
    assert!((due - 2.501).abs() < 0.000_1, "{due}");
    world.reports.try_iter().for_each(drop);
    world.settle(due);
    world.settle(due + 0.001);
    let lapse = world.reports.try_iter().find_map(|report| match report {
        Report::Lapse { lapse, .. } => Some(lapse.missed),
        _ => None,
    });
    assert_eq!(lapse, Some(3));
}

#[test]
fn a_connection_that_is_lost_tells_when_its_last_data_came_whatever_its_sids() {
    for single_sids in [0, 100] {
        let mut world = World::set(100, OverflowPolicy::default(), |settings| {
            settings.single_sids = single_sids;
        });
        let peer = world.adopt(BOOK, 1, Vec::new(), 0.0);
        for (seq, second) in [(1, 1.0), (2, 5.0)] {
            world.give(BOOK, &peer, vec![Chunk::Bytes(delta(seq))], second);
        }
        world.give(BOOK, &peer, vec![Chunk::End], 9.0);
        let last = world.reports.try_iter().find_map(|report| match report {
            Report::Down { last_data, .. } => Some(last_data),
            _ => None,
        });
        assert_eq!(last, Some(world.start + seconds(5)));
    }
}
