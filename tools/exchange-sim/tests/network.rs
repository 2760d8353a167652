//! The proxy between clients and the exchange: what each fault does to the bytes, and that the
//! ledger knows what was lost on the way and what was not.

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

use std::net::TcpStream;
use std::time::{Duration, Instant};

use client::{Client, Event};
use exchange_sim::{Audit, Ended, Exchange, ExchangeConfig, Flow, Lane, Mode, Verdict, Wire};
use serde_json::Value;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn config(wire: Wire) -> ExchangeConfig {
    ExchangeConfig {
        markets: 20,
        mode: Mode::Quiet,
        lifecycle_churn_per_minute: 0,
        proxy: Some(wire),
        ..ExchangeConfig::default()
    }
}

fn start(wire: Wire) -> Exchange {
    Exchange::start(config(wire)).unwrap()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen within 10 s");
        std::thread::sleep(ms(2));
    }
}

/// Reads frames into an account until the connection ends, or `most` were read.
fn read(client: &mut Client, audit: &mut Audit, epoch: u32, most: usize) -> Option<Event> {
    for _ in 0..most {
        match client.next() {
            Event::Text(text) => {
                let frame: Value = serde_json::from_slice(&text).unwrap();
                let data = !matches!(frame["type"].as_str(), Some("subscribed" | "ok" | "error"));
                if let Some(sid) = frame["sid"].as_u64().filter(|_| data) {
                    audit.delivered(1, epoch, sid, frame["seq"].as_u64(), 0, &text);
                }
            }
            Event::Ping(_) => {}
            end => return Some(end),
        }
    }
    None
}

fn clean(verdict: &Verdict) {
    assert_eq!((verdict.unaccounted, &verdict.findings), (0, &Vec::new()), "{verdict:?}");
    assert_eq!(verdict.sent, verdict.delivered + verdict.covered);
}

#[test]
fn it_passes_everything_on_and_clients_keep_their_addresses() {
    for tls in [true, false] {
        let exchange = Exchange::start(ExchangeConfig {
            tls,
            mode: Mode::Paced,
            rate_per_second: 50_000,
            ..config(Wire::default())
        })
        .unwrap();
        assert_ne!(exchange.local_addr(), exchange.direct_addr());
        let mut clients: Vec<Client> = (0..3).map(|_| Client::connect(&exchange)).collect();
        let mut addresses: Vec<_> = clients.iter().map(Client::local_addr).collect();
        assert_eq!(exchange.connections(), addresses);
        let mut wired = exchange.wired();
        addresses.sort_unstable();
        wired.sort_unstable();
        assert_eq!(wired, addresses);
        let markets = exchange.active_markets();
        let mut audit = Audit::default();
        for (at, client) in clients.iter_mut().enumerate() {
            audit.up(1, at as u32, client.local_addr());
            client.subscribe(1, &["orderbook_delta", "trade"], &markets);
        }
        for (at, client) in clients.iter_mut().enumerate() {
            assert_eq!(read(client, &mut audit, at as u32, 3_000), None);
        }
        exchange.set_mode(Mode::Quiet);
        let all = exchange.connections();
        assert_eq!(exchange.close(&all, 1001), 3);
        for (at, client) in clients.iter_mut().enumerate() {
            let end = read(client, &mut audit, at as u32, usize::MAX);
            assert_eq!(end, Some(Event::Close(1001)));
            client.frame(0x88, &1001_u16.to_be_bytes());
            assert_eq!(client.next(), Event::End);
        }
        drop(clients);
        until("all are gone", || exchange.wired().is_empty());
        let ledger = exchange.ledger();
        let ended: Vec<Ended> = ledger.connections.iter().map(|record| record.ended).collect();
        assert_eq!(ended, [Ended::ServerClosed(1001); 3]);
        clean(&audit.settle(&ledger));
    }
}

#[test]
fn latency_and_jitter_delay_and_slices_and_bandwidth_only_slow_down() {
    let exchange = start(Wire::default());
    let mut client = Client::connect(&exchange);
    let mut round = || {
        let asked = Instant::now();
        client.frame(0x89, b"x");
        assert_eq!(client.next(), Event::Pong(b"x".to_vec()));
        asked.elapsed()
    };
    round();
    let lane = Lane { latency: ms(30), jitter: ms(10), ..Lane::default() };
    assert!(exchange.set_wire(Wire::both(lane)));
    assert!(round() >= ms(60), "latency counts both ways");
    let down = Lane { latency: ms(80), ..Lane::default() };
    exchange.set_wire(Wire { to_client: down, ..Wire::default() });
    let took = round();
    assert!(took >= ms(80), "{took:?}");
    exchange.set_wire(Wire::default());
    round();
    // A snapshot of some kilobytes: whole, byte by byte, and through a straw.
    let markets = exchange.active_markets();
    let mut fetch = |id: u64, channel: &str| {
        let asked = Instant::now();
        client.subscribe(id, &[channel], &markets);
        let replies = if channel == "orderbook_delta" { 1 + markets.len() } else { 1 };
        (0..replies).for_each(|_| drop(client.json()));
        asked.elapsed()
    };
    let slice = Lane { slice: Some(1), ..Lane::default() };
    exchange.set_wire(Wire::both(slice));
    fetch(1, "ticker");
    let straw = Lane { bandwidth: Some(40_000), ..Lane::default() };
    exchange.set_wire(Wire { to_client: straw, ..Wire::default() });
    let took = fetch(2, "orderbook_delta");
    let bytes = exchange.stats().bytes_sent;
    assert!(bytes > 4_000 && took >= ms(80), "{bytes} bytes in {took:?}");
}

/// A busy connection that is broken in some way, then a second one in peace; how the first one
/// ended for its client, and how much it lost.
fn broken(wire: Wire, break_it: impl Fn(&Exchange, &mut Client)) -> (Option<Event>, u64) {
    let busy = ExchangeConfig { mode: Mode::Paced, rate_per_second: 20_000, ..config(wire) };
    let exchange = Exchange::start(busy).unwrap();
    let markets = exchange.active_markets();
    let mut audit = Audit::default();
    let mut client = Client::connect(&exchange);
    audit.up(1, 1, client.local_addr());
    client.subscribe(1, &["orderbook_delta", "ticker", "trade"], &markets);
    let mut end = read(&mut client, &mut audit, 1, 1_000);
    break_it(&exchange, &mut client);
    client.expect_silence(ms(500));
    end = end.or_else(|| read(&mut client, &mut audit, 1, usize::MAX));
    drop(client);
    exchange.set_wire(Wire::default());
    let mut client = Client::connect(&exchange);
    audit.up(1, 2, client.local_addr());
    client.subscribe(1, &["orderbook_delta"], &markets);
    assert_eq!(read(&mut client, &mut audit, 2, 500), None);
    until("the first connection is gone", || exchange.connections().len() == 1);
    exchange.set_mode(Mode::Quiet);
    let all = exchange.connections();
    exchange.close(&all, 1000);
    assert_eq!(read(&mut client, &mut audit, 2, usize::MAX), Some(Event::Close(1000)));
    let ledger = exchange.ledger();
    assert!(ledger.connections[0].ended.may_lose_tail(), "{:?}", ledger.connections[0].ended);
    // What was lost is excused by the down event and by nothing else.
    let silent = audit.settle(&ledger).unaccounted;
    audit.down(1, 1);
    let verdict = audit.settle(&ledger);
    clean(&verdict);
    assert_eq!(verdict.covered, silent);
    (end, silent)
}

#[test]
fn a_reset_on_the_way_is_seen_on_both_sides() {
    let (end, _) = broken(Wire::default(), |exchange, client| {
        assert_eq!(exchange.reset(&[client.local_addr()]), 1);
        assert_eq!(exchange.reset(&[client.local_addr()]), 0);
    });
    assert_eq!(end, Some(Event::Reset));
}

#[test]
fn a_limit_cuts_in_the_middle_of_a_record() {
    let limit = Lane { limit: Some(200_001), ..Lane::default() };
    let (end, lost) = broken(Wire { to_client: limit, ..Wire::default() }, |_, _| {});
    // TLS says that the end came too early; the client shows it as an end.
    assert_eq!(end, Some(Event::End));
    assert!(lost > 0);
}

#[test]
fn a_black_hole_is_silent_and_stays_so() {
    let (end, lost) = broken(Wire::default(), |exchange, client| {
        assert_eq!(exchange.set_wire_of(&[client.local_addr()], Wire::black_hole()), 1);
    });
    assert_eq!(end, Some(Event::Silence));
    assert!(lost > 1_000, "{lost}");
}

#[test]
fn one_direction_alone_can_be_deaf() {
    let exchange = start(Wire::default());
    let mut client = Client::connect(&exchange);
    let hole = Lane { flow: Flow::BlackHole, ..Lane::default() };
    exchange.set_wire(Wire { to_exchange: hole, ..Wire::default() });
    client.frame(0x89, b"lost");
    assert_eq!(exchange.close(&[client.local_addr()], 1012), 1);
    assert_eq!(client.next(), Event::Close(1012));
    assert_eq!(client.next(), Event::End);
}

#[test]
fn the_exchange_can_die_behind_a_black_hole() {
    let exchange = start(Wire::default());
    let mut client = Client::connect(&exchange);
    let peer = client.local_addr();
    exchange.set_wire(Wire::black_hole());
    assert_eq!(exchange.cut(&[peer]), 1);
    until("the exchange has forgotten it", || exchange.connections().is_empty());
    client.expect_silence(ms(300));
    assert_eq!(client.next(), Event::Silence);
    assert_eq!(exchange.wired(), [peer]);
    // When the way is open again the client hears that nobody is there.
    exchange.set_wire(Wire::default());
    assert_eq!(client.next(), Event::Reset);
    until("the proxy has forgotten it", || exchange.wired().is_empty());
}

#[test]
fn connecting_into_a_black_hole_gets_no_answer() {
    let exchange = start(Wire::black_hole());
    let socket = TcpStream::connect(exchange.local_addr()).unwrap();
    until("it is accepted", || exchange.wired() == [socket.local_addr().unwrap()]);
    assert_eq!(exchange.stats().upgrades_accepted, 0);
    drop(socket);
    until("it is gone", || exchange.wired().is_empty());
    exchange.set_wire(Wire::default());
    drop(Client::connect(&exchange));
}

#[test]
fn a_stall_loses_nothing() {
    let busy =
        ExchangeConfig { mode: Mode::Paced, rate_per_second: 20_000, ..config(Wire::default()) };
    let exchange = Exchange::start(busy).unwrap();
    let mut client = Client::connect(&exchange);
    let mut audit = Audit::default();
    audit.up(1, 1, client.local_addr());
    client.subscribe(1, &["orderbook_delta"], &exchange.active_markets());
    assert_eq!(read(&mut client, &mut audit, 1, 1_000), None);
    exchange.set_wire(Wire::stalled());
    let sent = exchange.stats().data_frames_sent;
    until("frames have piled up", || exchange.stats().data_frames_sent > sent + 2_000);
    exchange.set_wire(Wire::default());
    let client = std::thread::spawn(move || {
        let mut audit = audit;
        let end = read(&mut client, &mut audit, 1, usize::MAX);
        (end, audit)
    });
    assert!(exchange.stop_traffic(Duration::from_secs(10)), "not everything got through");
    let all = exchange.connections();
    assert_eq!(exchange.close(&all, 1000), 1);
    let (end, audit) = client.join().unwrap();
    assert_eq!(end, Some(Event::Close(1000)));
    let verdict = audit.settle(&exchange.ledger());
    clean(&verdict);
    assert_eq!((verdict.covered, verdict.sent > sent + 2_000), (0, true));
}

#[test]
fn a_slow_close_comes_late() {
    let exchange = start(Wire { slow_close: ms(200), ..Wire::default() });
    let mut client = Client::connect(&exchange);
    let asked = Instant::now();
    assert_eq!(exchange.cut(&[client.local_addr()]), 1);
    assert_eq!(client.next(), Event::Reset);
    assert!(asked.elapsed() >= ms(200));
}

#[test]
fn a_shut_door_refuses_and_opens_again() {
    for proxy in [None, Some(Wire::default())] {
        let exchange =
            Exchange::start(ExchangeConfig { proxy, ..config(Wire::default()) }).unwrap();
        let mut client = Client::connect(&exchange);
        assert!(exchange.set_listening(false));
        let refused = TcpStream::connect(exchange.local_addr()).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        client.frame(0x89, b"still there");
        assert_eq!(client.next(), Event::Pong(b"still there".to_vec()));
        assert!(exchange.set_listening(true));
        drop(Client::connect(&exchange));
    }
}

#[test]
fn without_a_proxy_there_is_no_wire() {
    let exchange =
        Exchange::start(ExchangeConfig { proxy: None, ..config(Wire::default()) }).unwrap();
    assert!(!exchange.set_wire(Wire::stalled()));
    assert_eq!(exchange.local_addr(), exchange.direct_addr());
    assert!(exchange.wired().is_empty());
}
