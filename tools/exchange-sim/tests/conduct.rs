//! What the exchange does wrong on purpose with upgrades and on single connections, seen by a plain
//! client; and that the ledger settles afterwards.

#![allow(
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

#[allow(dead_code, reason = "each test file uses part of the client")]
mod client;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use client::{Client, Event, sign_headers};
use exchange_sim::{
    Audit, Break, Ended, Exchange, ExchangeConfig, Manners, Mode, Oddity, Pings, UpgradeRule,
};
use serde_json::{Value, json};

const PATH: &str = "/trade-api/ws/v2";

fn quiet() -> ExchangeConfig {
    ExchangeConfig {
        markets: 20,
        mode: Mode::Quiet,
        lifecycle_churn_per_minute: 0,
        tls: false,
        ..ExchangeConfig::default()
    }
}

fn with(rules: &[&str]) -> Exchange {
    let upgrade_faults = rules.iter().map(|rule| rule.parse().unwrap()).collect();
    Exchange::start(ExchangeConfig { upgrade_faults, ..quiet() }).unwrap()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen within 10 s");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A signed request on a plain socket.
fn ask(exchange: &Exchange) -> TcpStream {
    let mut socket = TcpStream::connect(exchange.local_addr()).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let headers = sign_headers(exchange, PATH);
    let request = format!(
        "GET {PATH} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
    );
    socket.write_all(request.as_bytes()).unwrap();
    socket
}

/// Everything that comes before the end or 300 ms of silence, and whether it was silence.
fn answer(exchange: &Exchange) -> (String, Option<ErrorKind>) {
    let mut socket = ask(exchange);
    let (mut bytes, mut chunk) = (Vec::new(), [0; 4_096]);
    let end = loop {
        match socket.read(&mut chunk) {
            Ok(0) => break None,
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
            Err(error) => break Some(error.kind()),
        }
    };
    (String::from_utf8_lossy(&bytes).into_owned(), end)
}

#[test]
fn b1_to_b5_refusals_come_as_often_as_asked_for() {
    let exchange = with(&[
        "refused=401 body=INCORRECT_API_KEY_SIGNATURE next=2",
        "refused=403 next=1",
        "refused=429 retry_after=7 next=1",
        "refused=503 retry_at=30 next=1",
        "refused=302 next=1",
        "refused=200 next=1",
    ]);
    let want = [
        ("401 Unauthorized", "INCORRECT_API_KEY_SIGNATURE"),
        ("401 Unauthorized", "INCORRECT_API_KEY_SIGNATURE"),
        ("403 Forbidden", "Forbidden\n"),
        ("429 Too Many Requests", "\r\nRetry-After: 7\r\n"),
        ("503 Service Unavailable", " GMT\r\n"),
        ("302 Found", "\r\nLocation: /elsewhere\r\n"),
        ("200 OK", "request_failed"),
    ];
    for (status, text) in want {
        let (got, end) = answer(&exchange);
        assert!(got.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{got}");
        assert!(got.contains(text) && end.is_none(), "{got}");
    }
    drop(Client::connect(&exchange));
    assert_eq!(exchange.stats().upgrades_rejected, 7);
    exchange.inject_upgrade("refused=502 for=150".parse().unwrap());
    assert!(answer(&exchange).0.contains("502 Bad Gateway"));
    until("the period is over", || answer(&exchange).0.contains(" 101 "));
}

#[test]
fn b2_a_skewed_clock_refuses_and_tells_its_date() {
    let exchange = with(&[]);
    exchange.set_clock_skew(120_000);
    let (text, _) = answer(&exchange);
    assert!(text.contains("401") && text.contains("header_timestamp_expired"), "{text}");
    let date = |text: &str| {
        let line = text.lines().find(|line| line.starts_with("Date: ")).unwrap();
        let clock = line.split(' ').nth(5).unwrap();
        clock.split(':').fold(0, |sum, part| sum * 60 + part.parse::<u64>().unwrap())
    };
    let ahead = date(&text);
    exchange.set_clock_skew(0);
    let (text, _) = answer(&exchange);
    assert!(text.contains(" 101 "), "{text}");
    let skew = (ahead + 86_400 - date(&text)) % 86_400;
    assert!((118..=121).contains(&skew), "{skew}");
    exchange.set_clock_skew(-30_000);
    assert!(answer(&exchange).0.contains(" 101 "), "half a minute ahead is tolerated");
}

#[test]
fn b8_b9_wrong_answers_are_wrong_in_one_place() {
    let exchange = with(&[]);
    let (honest, _) = answer(&exchange);
    assert!(honest.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
    let cases = [
        ("wrong_accept", "Accept: xs3pPLMB"),
        ("extension", "Sec-WebSocket-Extensions: permessage-deflate\r\n"),
        ("protocol", "Sec-WebSocket-Protocol: fix\r\n"),
        ("http10", "HTTP/1.0 101 "),
        ("garbage", "what is this?"),
    ];
    for (rule, text) in cases {
        exchange.inject_upgrade(rule.parse().unwrap());
        let (got, _) = answer(&exchange);
        assert!(got.contains(text), "{rule}: {got}");
        exchange.clear_upgrade_faults();
    }
    exchange.inject_upgrade("no_upgrade next=1".parse().unwrap());
    assert!(!answer(&exchange).0.contains("Upgrade: websocket"));
}

#[test]
fn b6_answers_can_be_slow_cut_short_or_never_come() {
    let exchange = with(&["silent next=1", "half next=1", "reset next=1", "slow=1 next=1"]);
    assert_eq!(answer(&exchange), (String::new(), Some(ErrorKind::WouldBlock)));
    let (half, end) = answer(&exchange);
    assert!(half.starts_with("HTTP/1.1 101") && !half.contains("\r\n\r\n"), "{half}");
    assert_eq!(end, Some(ErrorKind::WouldBlock));
    assert_eq!(answer(&exchange).1, Some(ErrorKind::ConnectionReset));
    let asked = Instant::now();
    let mut client = Client::connect(&exchange);
    assert!(asked.elapsed() >= Duration::from_millis(100), "a hundred bytes take their time");
    client.frame(0x89, b"x");
    assert_eq!(client.next(), Event::Pong(b"x".to_vec()));
    until("those in suspense are gone", || exchange.connections().len() == 1);
    // Each byte of the answer was a TLS record of its own.
    let tls = ExchangeConfig { tls: true, ..quiet() };
    let exchange = Exchange::start(tls).unwrap();
    exchange.inject_upgrade("slow=0 next=1".parse().unwrap());
    drop(Client::connect(&exchange));
    assert!(exchange.stats().records_sent > 100);
}

#[test]
fn b10_frames_ride_with_the_answer() {
    let rule: UpgradeRule = "riding={\"type\":\"hello\"}".parse().unwrap();
    for tls in [true, false] {
        let exchange =
            Exchange::start(ExchangeConfig { tls, upgrade_faults: vec![rule.clone()], ..quiet() })
                .unwrap();
        let mut client = Client::connect(&exchange);
        assert!(!client.unfinished().is_empty(), "they came in the same read");
        assert_eq!(client.next(), Event::Ping(b"heartbeat".to_vec()));
        assert_eq!(client.json(), json!({"type":"hello"}));
        assert_eq!(exchange.stats().records_sent, u64::from(tls));
        client.frame(0x8a, b"heartbeat");
        until("the pong is counted", || exchange.stats().pongs == 1);
    }
}

#[test]
fn d7_d9_d10_pings_pongs_and_closes_as_its_manners_are() {
    let exchange = Exchange::start(ExchangeConfig {
        heartbeat_idle: Duration::from_millis(60),
        manners: "pings=never no_pong no_close".parse().unwrap(),
        ..quiet()
    })
    .unwrap();
    let mut client = Client::connect(&exchange);
    let peer = client.local_addr();
    client.frame(0x89, b"x");
    client.expect_silence(Duration::from_millis(200));
    assert_eq!(client.next(), Event::Silence, "neither ping nor pong");
    let often = Manners { pings: Pings::Every(Duration::from_millis(30)), ..Manners::default() };
    assert_eq!(exchange.set_manners_of(&[peer], often), 1);
    for _ in 0..3 {
        assert_eq!(client.next(), Event::Ping(b"heartbeat".to_vec()));
    }
    exchange.set_manners("pings=flood/50000".parse().unwrap());
    let begun = Instant::now();
    for _ in 0..5_000 {
        assert_eq!(client.next(), Event::Ping(b"heartbeat".to_vec()));
    }
    assert!(begun.elapsed() < Duration::from_secs(2));
    exchange.set_manners("pings=never no_close".parse().unwrap());
    client.frame(0x89, b"last");
    while client.next() != Event::Pong(b"last".to_vec()) {}
    client.frame(0x88, &1000_u16.to_be_bytes());
    assert_eq!(client.next(), Event::Silence, "no answer to a Close");
    drop(client);
    until("it is gone", || exchange.ledger().connections[0].ended == Ended::PeerClosed);
}

#[test]
fn d11_a_deaf_exchange_blocks_its_clients_writes() {
    let exchange = with(&[]);
    let mut client = Client::connect(&exchange);
    let peer = client.local_addr();
    exchange.set_manners_of(&[peer], Manners { read: false, ..Manners::default() });
    let socket = client.socket();
    socket.set_nonblocking(true).unwrap();
    let full = (0..100_000).any(|_| {
        let ping = [0x89, 0x84, 0, 0, 0, 0, b'd', b'e', b'a', b'f'].repeat(1_000);
        (&socket).write(&ping).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    });
    assert!(full, "somebody reads");
    // It hears again, or its client leaves unheard.
    exchange.set_manners(Manners::default());
    socket.set_nonblocking(false).unwrap();
    assert_eq!(client.next(), Event::Pong(b"deaf".to_vec()));
    exchange.set_manners("deaf".parse().unwrap());
    drop((client, socket));
    until("it is gone", || exchange.connections().is_empty());
}

#[test]
fn c3_messages_in_fragments_are_the_same_messages() {
    for tls in [true, false] {
        let exchange = Exchange::start(ExchangeConfig {
            tls,
            manners: "fragments=100/ping".parse().unwrap(),
            mode: Mode::Paced,
            ..quiet()
        })
        .unwrap();
        let mut client = Client::connect(&exchange);
        let mut audit = Audit::default();
        audit.up(1, 1, client.local_addr());
        client.subscribe(1, &["orderbook_delta"], &exchange.active_markets());
        let (mut message, mut pieces, mut pings, mut last) = (Vec::new(), 0, 0, 0);
        while last < 200 {
            let (first, payload) = client.whole_frame().unwrap();
            if first == 0x89 {
                pings += 1;
                continue;
            }
            assert!(payload.len() <= 100 && (first & 0x0f == 1) == message.is_empty());
            message.extend(payload);
            pieces += 1;
            if first & 0x80 != 0 {
                let frame: Value = serde_json::from_slice(&std::mem::take(&mut message)).unwrap();
                if let Some(seq) = frame["seq"].as_u64() {
                    audit.delivered(1, 1, 1, Some(seq), 0, b"");
                    assert_eq!(seq, last + 1);
                    last = seq;
                }
            }
        }
        assert!(pings >= 200 && pieces > 500, "{pings} {pieces}");
        audit.down(1, 1);
        exchange.cut(&[client.local_addr()]);
        assert_eq!(audit.settle(&exchange.ledger()).unaccounted, 0);
    }
}

#[test]
fn c1_frames_out_of_the_ordinary_come_as_they_are() {
    let exchange = with(&[]);
    let mut client = Client::connect(&exchange);
    let peer = client.local_addr();
    let cases: [(Oddity, u8, usize); 9] = [
        (Oddity::Reserved, 0xc1, 1),
        (Oddity::UnknownOpcode, 0x83, 1),
        (Oddity::LongPing, 0x89, 126),
        (Oddity::StrayContinuation, 0x80, 1),
        (Oddity::BadUtf8, 0x81, 2),
        (Oddity::ShortClose, 0x88, 1),
        (Oddity::Binary, 0x82, 3),
        (Oddity::EmptyText, 0x81, 0),
        (Oddity::Pong, 0x8a, 1),
    ];
    for (oddity, first, length) in cases {
        assert_eq!(exchange.send_odd(&[peer], &oddity), 1);
        let (got, payload) = client.whole_frame().unwrap();
        assert_eq!((got, payload.len()), (first, length), "{oddity:?}");
    }
    exchange.send_odd(&[peer], &Oddity::Close(1005));
    assert_eq!(client.next(), Event::Close(1005));
    exchange.send_odd(&[peer], &Oddity::Length(1 << 63));
    client.expect_silence(Duration::from_millis(100));
    assert_eq!(client.next(), Event::Silence);
    assert_eq!(client.unfinished().len(), 10, "a header and nothing behind it");
}

#[test]
fn c6_d6_ends_without_a_close() {
    let cases = [
        (Break::Fin, Event::End, false),
        (Break::Truncated, Event::End, false),
        (Break::MidFrame, Event::End, true),
        (Break::MidFrameReset, Event::Reset, true),
    ];
    for tls in [true, false] {
        for (how, end, half) in &cases {
            let config =
                ExchangeConfig { tls, mode: Mode::Paced, rate_per_second: 5_000, ..quiet() };
            let exchange = Exchange::start(config).unwrap();
            let mut client = Client::connect(&exchange);
            let mut audit = Audit::default();
            audit.up(1, 1, client.local_addr());
            client.subscribe(1, &["orderbook_delta"], &exchange.active_markets());
            let mut take = |client: &mut Client| match client.next() {
                Event::Text(text) => {
                    let frame: Value = serde_json::from_slice(&text).unwrap();
                    if let Some(seq) = frame["seq"].as_u64() {
                        audit.delivered(1, 1, 1, Some(seq), 0, b"");
                    }
                    None
                }
                event => Some(event),
            };
            (0..500).for_each(|_| assert_eq!(take(&mut client), None));
            assert_eq!(exchange.break_off(&[client.local_addr()], *how), 1);
            let got = std::iter::from_fn(|| Some(take(&mut client))).flatten().next();
            assert_eq!(got.as_ref(), Some(end), "{how:?} {tls}");
            assert_eq!(client.unfinished().len(), if *half { 100 } else { 0 }, "{how:?} {tls}");
            drop(client);
            // Everything before the end was there to be read: no down event needed.
            let verdict = audit.settle(&exchange.ledger());
            assert_eq!((verdict.unaccounted, verdict.sent), (0, verdict.delivered), "{how:?}");
        }
    }
}
