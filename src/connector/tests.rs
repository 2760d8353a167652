//! The connector over a scripted network in virtual time: rows A and B of what can go wrong.

mod world;

use super::*;
use crate::error::Disposition;
use world::*;

fn resolve() -> Cause {
    Cause::Resolve { host: "exchange.test".into(), message: "no such host".into() }
}

#[test]
fn a1_unknown_host_backs_off() {
    let mut world = World::new(None);
    world.answer.send(Err(resolve())).unwrap();
    world.begin(ONE, 1, 0.0);
    let cause = world.cause();
    assert_eq!(cause, resolve());
    assert_eq!(cause.disposition(), Disposition::RetrySoon, "with the backoff's growing delay");
    assert_eq!(world.due(), None, "nothing under way");
}

#[test]
fn a1_a_lookup_that_hangs_has_the_attempts_deadline() {
    let mut world = World::new(None);
    world.begin(ONE, 1, 0.0);
    assert_eq!((world.asked.len(), world.due()), (1, Some(10.0)));
    world.step(9.9);
    assert!(world.dialed.is_empty());
    world.step(10.0);
    assert_eq!(world.cause(), Cause::Timeout { stage: Stage::Resolving });
}

#[test]
fn a1_without_the_name_service_the_last_addresses_go_on_being_used() {
    let mut world = World::new(None);
    let first = world.dial(1, &[A], 0.0);
    world.connect(&first, Err(Cause::Reset), 0.0);
    world.cause();
    // It refuses: on with what is known, at once.
    world.answer.send(Err(resolve())).unwrap();
    world.begin(ONE, 2, 20.0);
    let second = world.peers.try_recv().unwrap();
    assert_eq!(second.address, A.into());
    world.connect(&second, Err(Cause::Reset), 20.0);
    world.cause();
    // It hangs: on with what is known after a quarter of the time.
    world.begin(ONE, 3, 40.0);
    assert_eq!(world.due(), Some(42.5));
    world.step(42.4);
    assert!(world.peers.is_empty());
    world.step(42.5);
    assert_eq!(world.peers.try_recv().unwrap().address, A.into());
    assert_eq!(world.due(), Some(50.0));
}

#[test]
fn a2_nobody_at_the_first_address_and_the_next_one_has_time_left() {
    let mut world = World::new(None);
    let first = world.dial(1, &[A, B], 0.0);
    assert_eq!((first.address, world.due()), (A.into(), Some(5.0)));
    world.step(4.9);
    assert!(world.peers.is_empty());
    world.step(5.0);
    let second = world.peers.try_recv().unwrap();
    assert_eq!((second.address, world.due()), (B.into(), Some(10.0)));
    assert!(first.sent.try_recv().is_err_and(|error| error.is_disconnected()), "given up");
    let request = world.reach_upgrade(&second, 6.0);
    let answer = filled_in(&switching(""), &request);
    world.give(&second, Chunk::Bytes(answer), 7.0);
    assert!(matches!(world.dialed.try_recv(), Ok(Dialed::Up { .. })));
    // The next attempt begins where the last one succeeded.
    assert_eq!(world.dial(2, &[A, B], 20.0).address, B.into());
}

#[test]
fn a2_every_address_has_its_share_and_all_together_the_one_deadline() {
    let mut world = World::new(None);
    world.dial(1, &[A, B, C], 0.0);
    let mut dues = vec![world.due().unwrap()];
    while world.dialed.is_empty() {
        let due = world.due().unwrap();
        world.step(due);
        dues.extend(world.due());
    }
    let near = |at: f64, expected: f64| (at - expected).abs() < 0.001;
    assert!(near(dues[0], 10.0 / 3.0) && near(dues[1], 20.0 / 3.0) && near(dues[2], 10.0));
    assert_eq!((dues.len(), world.peers.len()), (3, 2));
    assert_eq!(world.cause(), Cause::Timeout { stage: Stage::Connecting });
}

#[test]
fn a3_a_refused_connection_moves_on_at_once_and_the_last_refusal_is_told() {
    let refused = |address: ([u8; 4], u16)| Cause::Tcp {
        address: SocketAddr::from(address).to_string(),
        message: "refused".into(),
    };
    let mut world = World::new(None);
    let first = world.dial(1, &[A, B], 0.0);
    world.connect(&first, Err(refused(A)), 0.0);
    let second = world.peers.try_recv().unwrap();
    assert_eq!(second.address, B.into());
    world.connect(&second, Err(refused(B)), 0.0);
    let cause = world.cause();
    assert_eq!(cause, refused(B));
    assert_eq!(cause.disposition(), Disposition::RetrySoon);
}

#[test]
fn a4_a_black_hole_ends_at_the_deadline_and_leaves_nothing_open() {
    let mut world = World::new(None);
    let peer = world.dial(1, &[A], 0.0);
    assert_eq!(world.due(), Some(10.0));
    world.step(10.0);
    assert_eq!(world.cause(), Cause::Timeout { stage: Stage::Connecting });
    assert!(peer.sent.try_recv().is_err_and(|error| error.is_disconnected()));
    assert_eq!(world.due(), None);
}

#[test]
fn a5_silence_after_tcp_ends_at_the_same_deadline() {
    let mut world = World::new(None);
    let peer = world.dial(1, &[A, B], 0.0);
    world.connect(&peer, Ok(()), 4.0);
    assert_eq!(world.due(), Some(10.0), "one deadline, not one for each stage");
    world.step(10.0);
    assert_eq!(world.cause(), Cause::Timeout { stage: Stage::Securing });
    assert_eq!(world.dial(2, &[A, B], 20.0).address, B.into(), "somewhere else next time");
}

#[test]
fn a6_a_reset_during_tls_or_the_upgrade_is_a_reset() {
    let mut world = World::new(None);
    let peer = world.dial(1, &[A], 0.0);
    world.connect(&peer, Ok(()), 0.0);
    world.secure(&peer, Err(Cause::Reset), 0.0);
    assert_eq!(world.cause(), Cause::Reset);
    let peer = world.dial(2, &[A], 20.0);
    world.reach_upgrade(&peer, 20.0);
    world.give(&peer, Chunk::Fails(Cause::Reset), 20.0);
    assert_eq!(world.cause(), Cause::Reset);
    assert_eq!(Cause::Reset.disposition(), Disposition::RetrySoon);
}

/// What is told of a handshake that fails for this cause.
fn insecure(cause: &Cause) -> Cause {
    let mut world = World::new(None);
    let peer = world.dial(1, &[A], 0.0);
    world.connect(&peer, Ok(()), 0.0);
    world.secure(&peer, Err(cause.clone()), 0.0);
    world.cause()
}

#[test]
fn a7_a_fatal_alert_backs_off() {
    let alert = Cause::Tls { message: "received fatal alert: HandshakeFailure".into() };
    assert_eq!(insecure(&alert), alert);
    assert!(is_back_off(&alert));
}

#[test]
fn a8_a_certificate_nobody_vouches_for_halts_after_three() {
    let certificate = Cause::Certificate { message: "expired".into() };
    assert_eq!(insecure(&certificate), certificate);
    assert_eq!(certificate.disposition(), Disposition::HaltAfterThree);
}

#[test]
fn a10_bytes_that_are_no_tls_back_off() {
    let garbage = Cause::Tls { message: "cannot decrypt peer's message".into() };
    let mut world = World::new(None);
    let peer = world.dial(1, &[A], 0.0);
    world.reach_upgrade(&peer, 0.0);
    world.give(&peer, Chunk::Fails(garbage.clone()), 0.0);
    let cause = world.cause();
    assert!(is_back_off(&cause));
    assert_eq!(cause, garbage);
}

#[test]
fn a11_without_descriptors_left_it_backs_off() {
    let local = Cause::Local { message: "too many open files".into() };
    let mut world = World::new(None);
    world.refuse.send(local.clone()).unwrap();
    world.answer.send(Ok(vec![A.into()])).unwrap();
    world.begin(ONE, 1, 0.0);
    let cause = world.cause();
    assert!(is_back_off(&cause));
    assert_eq!(cause, local);
    world.dial(2, &[A], 20.0);
}

/// Refusals of these statuses are told with them, and lead to this.
fn refused(statuses: &[u16], disposition: Disposition) {
    let mut world = World::new(None);
    for (epoch, &status) in (1..).zip(statuses) {
        let answer =
            format!("HTTP/1.1 {status} No\r\nLocation: wss://elsewhere.test/\r\n\r\nsorry");
        let cause = cause(world.answered(epoch, answer.as_bytes()));
        let Cause::Upgrade { status: told, ref detail, .. } = cause else { panic!("{cause}") };
        assert_eq!((told, detail.as_str()), (status, "sorry"));
        assert_eq!(cause.disposition(), disposition, "{status}");
        assert!(world.peers.is_empty(), "a redirect is not followed");
    }
}

#[test]
fn b1_a_refused_key_halts_at_once() {
    refused(&[401], Disposition::Halt);
}

#[test]
fn b3_what_no_retry_mends_halts_after_three_and_no_redirect_is_followed() {
    refused(&[403, 404, 200, 301, 302, 307, 308], Disposition::HaltAfterThree);
}

#[test]
fn b5_an_exchange_in_trouble_is_backed_off_from() {
    refused(&[429, 500, 502, 503, 504], Disposition::BackOff);
}

const KEY_ID: &str = "a-key-id-of-36-characters-such-as-ids";

fn credentials() -> Credentials {
    let config = exchange_sim::ExchangeConfig { markets: 1, ..Default::default() };
    let exchange = exchange_sim::Exchange::start(config).unwrap();
    Credentials::from_pem(KEY_ID, exchange.key_pem().as_bytes()).unwrap()
}

fn sent_ms(request: &str) -> u64 {
    assert_eq!(header(request, "KALSHI-ACCESS-KEY"), KEY_ID);
    header(request, "KALSHI-ACCESS-TIMESTAMP").parse().unwrap()
}

#[test]
fn b11_what_was_sent_to_prove_who_we_are_is_not_shown_when_a_refusal_repeats_it() {
    let mut world = World::new(Some(credentials()));
    let peer = world.dial(1, &[A], 0.0);
    let request = world.reach_upgrade(&peer, 0.0);
    let signature = header(&request, "KALSHI-ACCESS-SIGNATURE").to_owned();
    let echo = format!("you sent {KEY_ID} and {signature}: /trade-api/ws/v2 is closed");
    let text = format!("HTTP/1.1 403 No\r\nContent-Length: {}\r\n\r\n{echo}", echo.len());
    world.give(&peer, Chunk::Bytes(text.into()), 0.0);
    let Cause::Upgrade { status, detail, .. } = world.cause() else { panic!("no refusal") };
    let shown = "you sent [withheld] and [withheld]: /trade-api/ws/v2 is closed";
    assert_eq!((status, detail.as_str()), (403, shown));
}

#[test]
fn b11_every_attempt_is_signed_anew_and_says_nothing_else() {
    let mut world = World::new(Some(credentials()));
    let mut requests = Vec::new();
    for (epoch, second) in [(1, 0.0), (2, 3.0)] {
        let peer = world.dial(epoch, &[A], second);
        requests.push(world.reach_upgrade(&peer, second));
        world.give(&peer, Chunk::End, second);
        assert_eq!(world.cause(), Cause::Ended);
    }
    let [first, second] = &requests[..] else { panic!() };
    assert_eq!(sent_ms(second), sent_ms(first) + 3_000);
    for name in ["KALSHI-ACCESS-SIGNATURE", "Sec-WebSocket-Key"] {
        assert_ne!(header(first, name), header(second, name), "{name}");
    }
    let names = |request: &str| -> Vec<String> {
        let lines = request.lines().skip(1).filter_map(|line| line.split_once(": "));
        let mut names: Vec<_> = lines.map(|(name, _)| name.to_ascii_lowercase()).collect();
        names.sort();
        names
    };
    let expected = [
        "connection",
        "host",
        "kalshi-access-key",
        "kalshi-access-signature",
        "kalshi-access-timestamp",
        "sec-websocket-key",
        "sec-websocket-version",
        "upgrade",
        "user-agent",
    ];
    assert_eq!(names(first), expected);
}

#[test]
fn b2_a_refused_time_is_corrected_by_the_servers_date() {
    let mut world = World::new(Some(credentials()));
    let peer = world.dial(1, &[A], 0.0);
    let first = world.reach_upgrade(&peer, 0.0);
    assert_eq!(sent_ms(&first), 1_793_534_400_000);
    // By the exchange it is a minute and a half later.
    world.give(&peer, Chunk::Bytes(EXPIRED.into()), 0.0);
    assert_eq!(world.cause().disposition(), Disposition::ClockTrouble);
    let counters = &world.counters;
    assert_eq!(counters.clock_corrections.total(), 1);
    assert_eq!(counters.clock_skew_ms.total().cast_signed(), 90_000);
    let peer = world.dial(2, &[A], 2.0);
    let second = world.reach_upgrade(&peer, 2.0);
    assert_eq!(sent_ms(&second), 1_793_534_400_000 + 2_000 + 90_000);
    for name in ["KALSHI-ACCESS-SIGNATURE", "Sec-WebSocket-Key"] {
        assert_ne!(header(&first, name), header(&second, name));
    }
}

#[test]
fn j9_corrections_and_lookups_that_fail_are_a_line_a_second() {
    let mut world = World::new(Some(credentials()));
    let lines = crate::hush::tests::lines_of(|| {
        for round in 1..=40 {
            let seconds = f64::from(round) / 20.0;
            let peer = world.dial(round, &[A], seconds);
            world.reach_upgrade(&peer, seconds);
            world.give(&peer, Chunk::Bytes(EXPIRED.into()), seconds);
            world.answer.send(Err(resolve())).unwrap();
            world.step(seconds);
        }
    });
    assert_eq!(world.counters.clock_corrections.total(), 40);
    for what in ["signing by its time", "going on with the addresses known"] {
        let told = lines.iter().filter(|line| line.contains(what)).count();
        assert!((1..=3).contains(&told), "{told} lines in two seconds: {lines:?}");
    }
}

/// A refusal of our time; by the exchange it is 12:01:30.
const EXPIRED: &str = "HTTP/1.1 401 Unauthorized\r\nDate: Sun, 01 Nov 2026 12:01:30 GMT\r\n\
    Content-Length: 46\r\n\r\n{\"error\":{\"code\":\"header_timestamp_expired\"}}\r\n";

/// A refusal of our time, after this much of its head; by the exchange it is 12:01:30.
fn expired(head: &str) -> Chunk {
    let text = format!(
        "HTTP/1.1 401 Unauthorized\r\nDate: Sun, 01 Nov 2026 12:01:30 GMT\r\n{head}\r\n\
         {{\"error\":{{\"code\":\"header_timestamp_expired\"}}}}"
    );
    Chunk::Bytes(text.into())
}

#[test]
fn b2_a_refused_time_without_a_length_on_a_socket_kept_open_is_corrected_within_a_second() {
    let mut world = World::new(Some(credentials()));
    let peer = world.dial(1, &[A], 0.0);
    world.reach_upgrade(&peer, 0.0);
    world.give(&peer, expired(""), 0.5);
    assert_eq!((world.due(), world.dialed.len()), (Some(1.5), 0), "the body may go on");
    world.step(1.5);
    assert_eq!(world.cause().disposition(), Disposition::ClockTrouble);
    assert!(peer.sent.try_recv().is_err_and(|error| error.is_disconnected()), "given up");
    assert_eq!(world.due(), None);
    let peer = world.dial(2, &[A], 2.0);
    let second = world.reach_upgrade(&peer, 2.0);
    let by_its_clock = 1_793_534_400_000 + 90_000 + 1_500;
    assert_eq!(sent_ms(&second), by_its_clock, "1.5 s after its date came, not after it was read");
}

#[test]
fn b2_a_refused_time_whose_body_never_comes_in_full_is_corrected_at_the_deadline() {
    let mut world = World::new(Some(credentials()));
    let peer = world.dial(1, &[A], 0.0);
    world.reach_upgrade(&peer, 0.0);
    world.give(&peer, expired("Content-Length: 500\r\n"), 0.0);
    world.give(&peer, Chunk::Bytes(b" ".to_vec()), 5.0);
    assert_eq!(world.due(), Some(10.0), "a body with a length has all the time there is");
    world.step(10.0);
    assert_eq!(world.cause().disposition(), Disposition::ClockTrouble);
    assert_eq!(world.counters.clock_corrections.total(), 1);
    assert_eq!(world.counters.clock_skew_ms.total().cast_signed(), 90_000, "as the date came");
}

#[test]
fn b3_an_answer_that_has_no_body_is_over_with_its_head() {
    let mut world = World::new(None);
    for (epoch, status) in (1..).zip([204, 304]) {
        let peer = world.dial(epoch, &[A], 0.0);
        world.reach_upgrade(&peer, 0.0);
        let head = format!("HTTP/1.1 {status} No\r\n\r\n");
        world.give(&peer, Chunk::Bytes(head.into()), 0.0);
        let cause = world.cause();
        assert!(matches!(cause, Cause::Upgrade { status: told, .. } if told == status), "{cause}");
    }
}

#[test]
fn b4_a_refusal_on_a_socket_kept_open_says_soon_when_to_come_back() {
    let mut world = World::new(None);
    let peer = world.dial(1, &[A], 0.0);
    world.reach_upgrade(&peer, 0.0);
    world.give(&peer, Chunk::Bytes(b"HTTP/1.1 429 No\r\nRetry-After: 7\r\n".to_vec()), 2.0);
    assert_eq!(world.due(), Some(10.0), "the head is not there yet");
    world.give(&peer, Chunk::Bytes(b"\r\n".to_vec()), 3.0);
    assert_eq!(world.due(), Some(4.0));
    world.step(4.0);
    assert_eq!(world.cause().disposition(), Disposition::RetryAfter(Duration::from_secs(7)));
}

#[test]
fn b6_a_refusal_that_trickles_on_has_no_longer_for_it() {
    let mut world = World::new(None);
    for (epoch, head_at, end) in [(1, 0.5, 1.5), (2, 29.25, 30.0)] {
        let peer = world.dial(epoch, &[A], f64::from(epoch - 1) * 20.0);
        world.reach_upgrade(&peer, head_at);
        world.give(&peer, Chunk::Bytes(b"HTTP/1.1 503 No\r\n\r\n".to_vec()), head_at);
        for byte in 0..3 {
            world.give(&peer, Chunk::Bytes(b"y".to_vec()), head_at + 0.25 * f64::from(byte));
            assert_eq!((world.due(), world.dialed.len()), (Some(end), 0), "not put off");
        }
        world.give(&peer, Chunk::Bytes(b"y".to_vec()), end);
        let cause = world.cause();
        let Cause::Upgrade { status: 503, ref detail, .. } = cause else { panic!("{cause}") };
        assert_eq!(detail, "yyyy");
    }
}

#[test]
fn b4_retry_after_comes_through_as_seconds_or_as_a_date() {
    let mut world = World::new(None);
    // The world's wall clock is at 12:01:40 and 12:03:20 by then.
    let table = [(1, "7", Some(7)), (2, "Sun, 01 Nov 2026 12:03:50 GMT", Some(30)), (3, "", None)];
    for (epoch, value, expected) in table {
        let answer = format!("HTTP/1.1 429 No\r\nRetry-After: {value}\r\n\r\n");
        let cause = cause(world.answered(epoch, answer.as_bytes()));
        let Cause::Upgrade { retry_after, .. } = cause else { panic!("{cause}") };
        assert_eq!(retry_after, expected.map(Duration::from_secs), "{value}");
    }
}

#[test]
fn b6_an_answer_a_byte_a_second_ends_at_the_deadline_and_holds_up_nobody() {
    let mut world = World::new(None);
    let slow = world.dial(1, &[A], 0.0);
    world.reach_upgrade(&slow, 0.0);
    for (second, byte) in (1..10).zip(switching("")) {
        world.give(&slow, Chunk::Bytes(vec![byte]), f64::from(second));
    }
    world.answer.send(Ok(vec![B.into()])).unwrap();
    world.begin(ConnId::new(2), 1, 9.0);
    let other = world.peers.try_recv().unwrap();
    let request = world.reach_upgrade(&other, 9.0);
    let answer = filled_in(&switching(""), &request);
    world.give(&other, Chunk::Bytes(answer), 9.0);
    assert!(matches!(world.dialed.try_recv(), Ok(Dialed::Up { .. })));
    world.step(10.0);
    assert_eq!(world.cause(), Cause::Timeout { stage: Stage::Upgrading });
}

#[test]
fn b7_an_answer_byte_by_byte_in_time_is_an_answer() {
    let mut world = World::new(None);
    let peer = world.dial(1, &[A], 0.0);
    let request = world.reach_upgrade(&peer, 0.0);
    let answer = filled_in(&switching(""), &request);
    for byte in answer {
        world.give(&peer, Chunk::Bytes(vec![byte]), 1.0);
    }
    assert!(matches!(world.dialed.try_recv(), Ok(Dialed::Up { .. })));
}

#[test]
fn b8_an_answer_that_is_none_backs_off() {
    let mut world = World::new(None);
    let whole = String::from_utf8(switching("")).unwrap();
    let many: String = (0..200).map(|n| format!("x-{n}: y\r\n")).collect();
    let table = [
        whole.replace("ACCEPT", "AAAA"),
        whole.replace("Upgrade: websocket\r\n", ""),
        whole.replace("HTTP/1.1", "HTTP/1.0"),
        "SSH-2.0-OpenSSH_9.2\r\n\r\n".to_owned(),
        whole.replace("\r\n\r\n", &format!("\r\n{many}\r\n")),
        format!("HTTP/1.1 101 Switching Protocols\r\nx: {}", "y".repeat(70_000)),
        "HTTP/1.1 101 Switch".to_owned(),
    ];
    for (epoch, answer) in (1..).zip(table) {
        let cause = cause(world.answered(epoch, answer.as_bytes()));
        assert!(matches!(cause, Cause::Handshake { .. }), "{epoch}: {cause}");
        assert!(is_back_off(&cause));
    }
}

#[test]
fn b9_an_extension_or_subprotocol_nobody_asked_for_halts_after_three() {
    let mut world = World::new(None);
    let table = ["Sec-WebSocket-Extensions: permessage-deflate", "Sec-WebSocket-Protocol: chat"];
    for (epoch, extra) in (1..).zip(table) {
        let cause = cause(world.answered(epoch, &switching(&format!("{extra}\r\n"))));
        assert!(matches!(cause, Cause::Extension { .. }), "{cause}");
        assert_eq!(cause.disposition(), Disposition::HaltAfterThree);
    }
}

#[test]
fn b10_what_comes_behind_the_101_goes_along_to_the_shard() {
    let mut world = World::new(None);
    let answer = [switching(""), b"\x81\x02{}".to_vec()].concat();
    let Dialed::Up { adoption, .. } = world.answered(1, &answer[..]) else { panic!() };
    assert_eq!(adoption.unread, b"\x81\x02{}");
}

#[test]
fn i3_every_stage_of_an_attempt_has_the_one_deadline() {
    let mut world = World::new(None);
    world.begin(ONE, 1, 0.0);
    assert_eq!(world.due(), Some(10.0), "resolving");
    let peer = world.dial(2, &[A], 20.0);
    assert_eq!(world.due(), Some(30.0), "connecting");
    world.connect(&peer, Ok(()), 21.0);
    assert_eq!(world.due(), Some(30.0), "securing");
    world.secure(&peer, Ok(()), 22.0);
    assert_eq!(world.due(), Some(30.0), "upgrading");
    world.give(&peer, Chunk::Bytes(b"HTTP/1.1 ".to_vec()), 29.0);
    assert_eq!(world.due(), Some(30.0), "still upgrading");
    world.step(30.0);
    assert_eq!((world.cause(), world.due()), (Cause::Timeout { stage: Stage::Upgrading }, None));
}
