//! The exchange over real sockets, seen by a plain rustls client that shares nothing with it.

#![allow(
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod client;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use client::{Client, Event, sign_headers};
use exchange_sim::{AckOrder, Audit, Ended, Exchange, ExchangeConfig, Mode};
use serde_json::{Value, json};

fn quiet() -> ExchangeConfig {
    ExchangeConfig {
        markets: 40,
        mode: Mode::Quiet,
        lifecycle_churn_per_minute: 0,
        ..ExchangeConfig::default()
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen within 10 s");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Sides of a book as a client rebuilds it: price text to hundredths of contracts.
type Books = BTreeMap<String, [BTreeMap<String, i64>; 2]>;

fn hundredths(text: &str) -> i64 {
    let (whole, cents) = text.split_once('.').unwrap();
    let value = whole.trim_start_matches('-').parse::<i64>().unwrap() * 100;
    let value = value + cents.parse::<i64>().unwrap();
    if text.starts_with('-') { -value } else { value }
}

fn apply(books: &mut Books, frame: &Value) {
    let msg = &frame["msg"];
    let ticker = msg["market_ticker"].as_str().unwrap().to_owned();
    match frame["type"].as_str().unwrap() {
        "orderbook_snapshot" => {
            let side = |key: &str| {
                let levels = msg[key].as_array().cloned().unwrap_or_default();
                let level = |level: &Value| {
                    let price = level[0].as_str().unwrap().to_owned();
                    (price, hundredths(level[1].as_str().unwrap()))
                };
                levels.iter().map(level).collect()
            };
            books.insert(ticker, [side("yes_dollars_fp"), side("no_dollars_fp")]);
        }
        "orderbook_delta" => {
            let book = books.get_mut(&ticker).expect("a delta without its snapshot");
            let side = &mut book[usize::from(msg["side"] == "no")];
            let price = msg["price_dollars"].as_str().unwrap().to_owned();
            let held = side.entry(price.clone()).or_insert(0);
            *held += hundredths(msg["delta_fp"].as_str().unwrap());
            assert!(*held >= 0, "a level below zero");
            if *held == 0 {
                side.remove(&price);
            }
        }
        other => panic!("{other} is not book data"),
    }
}

#[test]
fn two_channels_get_two_sids_and_snapshots_come_first() {
    let exchange = Exchange::start(quiet()).unwrap();
    let mut client = Client::connect(&exchange);
    let markets = exchange.active_markets();
    client.subscribe(1, &["orderbook_delta", "trade"], &markets[..3]);
    let first = client.json();
    let second = client.json();
    let ack =
        |channel, sid| json!({"type":"subscribed","id":1,"msg":{"channel":channel,"sid":sid}});
    assert_eq!(first, ack("orderbook_delta", 1));
    assert_eq!(second, ack("trade", 2));
    for seq in 1..=3 {
        let snapshot = client.json();
        assert_eq!(
            (&snapshot["type"], &snapshot["seq"]),
            (&"orderbook_snapshot".into(), &seq.into())
        );
        assert_eq!(snapshot["sid"], 1);
    }
    assert_eq!(exchange.subscribed_markets(client.local_addr()), markets[..3]);

    client.subscribe(2, &["orderbook_delta"], &markets[2..4]);
    let ok = client.json();
    assert_eq!(
        (&ok["type"], &ok["id"], &ok["sid"], &ok["seq"]),
        (&"ok".into(), &2.into(), &1.into(), &4.into())
    );
    assert_eq!(ok["msg"]["market_tickers"].as_array().unwrap().len(), 4);
    let snapshot = client.json();
    assert_eq!(snapshot["msg"]["market_ticker"], markets[3].as_str());
    assert_eq!(snapshot["seq"], 5);

    client.send(&json!({"id":3,"cmd":"update_subscription","params":{
        "sids":[1],"action":"delete_markets","market_tickers":[markets[0]]}}));
    let ok = client.json();
    assert_eq!(ok["seq"], 6);
    assert_eq!(ok["msg"]["market_tickers"].as_array().unwrap().len(), 3);

    client.send(&json!({"id":4,"cmd":"unsubscribe","params":{"sids":[1,2,9]}}));
    assert_eq!(client.json(), json!({"type":"unsubscribed","id":4,"sid":1,"seq":7}));
    assert_eq!(client.json(), json!({"type":"unsubscribed","id":4,"sid":2,"seq":1}));
    assert_eq!(client.json()["msg"]["code"], 7);
    assert!(exchange.subscribed_markets(client.local_addr()).is_empty());

    client.subscribe(5, &["orderbook_delta"], &["NEVER-LISTED".to_owned()]);
    assert_eq!(client.json()["msg"]["sid"], 3);
    let snapshot = client.json();
    assert_eq!(snapshot["seq"], 1);
    assert!(snapshot["msg"].get("yes_dollars_fp").is_none());
}

#[test]
fn snapshots_first_and_skipped_lists() {
    let config = ExchangeConfig { ack_order: AckOrder::SnapshotsFirst, tls: false, ..quiet() };
    let exchange = Exchange::start(config).unwrap();
    let mut client = Client::connect(&exchange);
    let markets = exchange.active_markets();
    client.send(&json!({"id":1,"cmd":"subscribe","params":{
        "channels":["orderbook_delta"],"market_tickers":[markets[0]],"skip_ticker_ack":true}}));
    assert_eq!(client.json()["type"], "subscribed");
    assert_eq!(client.json()["type"], "orderbook_snapshot");
    client.send(&json!({"id":2,"cmd":"update_subscription","params":{
        "sid":1,"action":"add_markets","market_ticker":markets[1]}}));
    assert_eq!(client.json()["type"], "orderbook_snapshot");
    assert_eq!(client.json(), json!({"type":"ok","id":2,"sid":1,"seq":3,"msg":{}}));
}

#[test]
fn errors_have_integer_codes_and_scoped_ones_take_a_number() {
    let exchange = Exchange::start(quiet()).unwrap();
    let mut client = Client::connect(&exchange);
    let markets = exchange.active_markets();
    client.subscribe(1, &["market_lifecycle", "orderbook_delta", "ticker"], &markets[..1]);
    let mut codes = Vec::new();
    let mut sids = Vec::new();
    for _ in 0..3 {
        let frame = client.json();
        codes.extend(frame["msg"]["code"].as_i64());
        sids.extend(frame["msg"]["sid"].as_i64());
    }
    assert_eq!((codes, sids), (vec![8], vec![1, 2]));
    assert_eq!(client.json()["type"], "orderbook_snapshot");
    let cases = [
        (
            json!({"sid":1}),
            json!({"type":"error","id":2,"sid":1,"seq":2,"msg":{"code":15,"msg":"Action required"}}),
        ),
        (
            json!({"sid":1,"action":"fly","market_ticker":"A"}),
            json!({"type":"error","id":2,"sid":1,"seq":3,"msg":{"code":13,"msg":"Unsupported action"}}),
        ),
        (
            json!({"sid":1,"action":"add_markets"}),
            json!({"type":"error","id":2,"sid":1,"seq":4,"msg":{"code":14,"msg":"Market Ticker required"}}),
        ),
        (
            json!({"sid":2,"action":"add_markets"}),
            json!({"type":"error","id":2,"sid":2,"msg":{"code":14,"msg":"Market Ticker required"}}),
        ),
        (
            json!({"sid":7,"action":"add_markets"}),
            json!({"type":"error","id":2,"msg":{"code":7,"msg":"Unknown subscription ID"}}),
        ),
    ];
    for (params, want) in cases {
        client.send(&json!({"id":2,"cmd":"update_subscription","params":params}));
        assert_eq!(client.json(), want);
    }
    client.send(&json!({"id":3,"cmd":"subscribe","params":{"channels":["orderbook_delta"]}}));
    assert_eq!(client.json()["msg"]["code"], 14);
}

#[test]
fn deltas_are_contiguous_and_keep_the_book_right() {
    let config = ExchangeConfig {
        markets: 20,
        rate_per_second: 50_000,
        lifecycle_churn_per_minute: 0,
        ..ExchangeConfig::default()
    };
    let exchange = Exchange::start(config).unwrap();
    let markets = exchange.active_markets();
    let mut client = Client::connect(&exchange);
    let mut audit = Audit::default();
    audit.up(7, 1, client.local_addr());
    client.subscribe(1, &["orderbook_delta"], &markets[..10]);
    assert_eq!(client.json()["type"], "subscribed");
    let (mut books, mut expected, mut deltas) = (Books::new(), 1, 0);
    let mut deleted = false;
    while deltas < 20_000 {
        let frame = client.json();
        assert_eq!(frame["seq"], expected);
        expected += 1;
        if frame["type"] == "ok" {
            deleted = true;
            continue;
        }
        audit.delivered(7, 1, 1, frame["seq"].as_u64(), 0, b"");
        apply(&mut books, &frame);
        if frame["type"] == "orderbook_delta" {
            deltas += 1;
            assert!(!(deleted && frame["msg"]["market_ticker"] == markets[0].as_str()));
            assert_eq!(frame["msg"]["ts"].as_str().unwrap().len(), 27);
        }
        if deltas == 5_000 && !deleted {
            client.send(&json!({"id":2,"cmd":"update_subscription","params":{
                "sids":[1],"action":"delete_markets","market_tickers":[markets[0]]}}));
        }
    }
    assert!(deleted);
    exchange.set_mode(Mode::Quiet);
    let last = exchange.ledger().connections[0].sids[0].last_number;
    while expected <= last {
        let frame = client.json();
        audit.delivered(7, 1, 1, frame["seq"].as_u64(), 0, b"");
        apply(&mut books, &frame);
        expected += 1;
    }
    // What the exchange shows now is what the deltas added up to.
    client.send(&json!({"id":3,"cmd":"unsubscribe","params":{"sids":[1]}}));
    assert_eq!(client.json()["type"], "unsubscribed");
    client.subscribe(4, &["orderbook_delta"], &markets[1..10]);
    assert_eq!(client.json()["msg"]["sid"], 2);
    let mut fresh = Books::new();
    for seq in 1..=9 {
        let frame = client.json();
        audit.delivered(7, 1, 2, Some(seq), 0, b"");
        apply(&mut fresh, &frame);
    }
    books.remove(&markets[0]);
    assert_eq!(books, fresh);
    let verdict = audit.settle(&exchange.ledger());
    assert_eq!((verdict.unaccounted, verdict.findings.clone()), (0, Vec::new()));
    assert_eq!(verdict.sent, verdict.delivered);
}

#[test]
fn tickers_have_a_clock_and_no_seq_and_trades_a_seq() {
    let config = ExchangeConfig { rate_per_second: 5_000, ..quiet() };
    let exchange = Exchange::start(ExchangeConfig { mode: Mode::Paced, ..config }).unwrap();
    let mut client = Client::connect(&exchange);
    client.subscribe(1, &["ticker", "trade"], &[]);
    let (mut clock, mut seq) = (0, 0);
    while clock < 100 || seq < 100 {
        let frame = client.json();
        match frame["type"].as_str().unwrap() {
            "ticker" => {
                clock += 1;
                assert_eq!(frame["msg"]["Clock"], clock);
                assert!(frame.get("seq").is_none());
            }
            "trade" => {
                seq += 1;
                assert_eq!(frame["seq"], seq);
            }
            other => assert_eq!(other, "subscribed"),
        }
    }
}

#[test]
fn lifecycle_tells_what_the_controls_do() {
    let exchange = Exchange::start(quiet()).unwrap();
    let mut client = Client::connect(&exchange);
    client.subscribe(1, &["market_lifecycle_v2"], &[]);
    assert_eq!(client.json()["type"], "subscribed");
    let made = exchange.create_markets(2);
    exchange.deactivate_markets(&made[..1]);
    assert_eq!(exchange.active_markets().len(), 41);
    exchange.activate_markets(&made[..1]);
    exchange.settle_markets(&made);
    assert_eq!(exchange.active_markets().len(), 40);
    let want = [
        (0, "created"),
        (0, "activated"),
        (1, "created"),
        (1, "activated"),
        (0, "deactivated"),
        (0, "activated"),
        (0, "determined"),
        (0, "settled"),
        (1, "determined"),
        (1, "settled"),
    ];
    for (at, (market, event)) in want.into_iter().enumerate() {
        let frame = client.json();
        assert_eq!(frame["seq"], at + 1);
        assert_eq!(frame["msg"]["event_type"], event);
        assert_eq!(frame["msg"]["market_ticker"], made[market].as_str());
    }
}

#[test]
fn churn_keeps_the_number_of_active_markets() {
    let config = ExchangeConfig { lifecycle_churn_per_minute: 6_000, ..quiet() };
    let exchange = Exchange::start(config).unwrap();
    let mut client = Client::connect(&exchange);
    client.subscribe(1, &["market_lifecycle_v2"], &[]);
    let mut seen = std::collections::BTreeSet::new();
    let kinds =
        ["created", "activated", "deactivated", "determined", "settled", "metadata_updated"];
    let mut seq = 0;
    while !kinds.iter().all(|kind| seen.contains(*kind)) {
        let frame = client.json();
        if frame["type"] == "subscribed" {
            continue;
        }
        seq += 1;
        assert_eq!(frame["seq"], seq);
        seen.insert(frame["msg"]["event_type"].as_str().unwrap_or("event").to_owned());
    }
    let made = exchange.create_markets(3).len();
    assert!(exchange.stop_traffic(Duration::from_secs(5)));
    assert_eq!(exchange.active_markets().len(), 40 + made);
}

#[test]
fn pings_are_answered_and_idle_sockets_get_heartbeats() {
    let config = ExchangeConfig { heartbeat_idle: Duration::from_millis(100), ..quiet() };
    let exchange = Exchange::start(config).unwrap();
    let mut client = Client::connect(&exchange);
    client.frame(0x89, b"are you there");
    assert_eq!(client.next(), Event::Pong(b"are you there".to_vec()));
    let asked = Instant::now();
    assert_eq!(client.next(), Event::Ping(b"heartbeat".to_vec()));
    assert!(asked.elapsed() >= Duration::from_millis(90), "the socket was not idle");
    client.frame(0x8a, b"heartbeat");
    assert_eq!(client.next(), Event::Ping(b"heartbeat".to_vec()));
}

#[test]
fn refused_upgrades_say_why() {
    let exchange = Exchange::start(ExchangeConfig { max_connections: 1, ..quiet() }).unwrap();
    let path = "/trade-api/ws/v2";
    let status = |headers: &str, path: &str| Client::attempt(&exchange, path, headers).err();
    let body = |refused: Option<(u16, String)>| refused.unwrap_or_default();
    let (code, text) = body(status("", path));
    assert_eq!(code, 401);
    assert!(text.contains("token_authentication_failure") && text.contains("\r\nDate: "));
    let good = sign_headers(&exchange, path);
    let unsigned: String = good
        .lines()
        .filter(|line| !line.contains("SIGNATURE"))
        .map(|line| format!("{line}\r\n"))
        .collect();
    assert!(body(status(&unsigned, path)).1.contains("signature_is_missing_from_headers"));
    let stranger = good.replace(exchange.key_id(), "11111111-2222-4333-8444-555555555555");
    assert!(body(status(&stranger, path)).1.contains("NOT_FOUND"));
    let (code, text) = body(status(&sign_headers(&exchange, "/other"), path));
    assert_eq!(code, 401);
    assert!(text.contains("INCORRECT_API_KEY_SIGNATURE"));
    assert_eq!(body(status(&good, "/")).0, 404);
    exchange.refuse_upgrades(Some(503));
    assert_eq!(body(status(&good, path)).0, 503);
    exchange.refuse_upgrades(None);
    let one = Client::connect(&exchange);
    assert_eq!(body(status(&good, path)).0, 429);
    drop(one);
    until("the place is free again", || exchange.connections().is_empty());
    drop(Client::connect(&exchange));
    assert!(exchange.stats().upgrades_rejected >= 7);
}

#[test]
fn a_cut_is_a_reset_and_a_close_is_not() {
    let exchange = Exchange::start(quiet()).unwrap();
    let (mut cut, mut closed) = (Client::connect(&exchange), Client::connect(&exchange));
    assert_eq!(exchange.connections(), [cut.local_addr(), closed.local_addr()]);
    assert_eq!(exchange.cut(&[cut.local_addr()]), 1);
    assert_eq!(cut.next(), Event::Reset);
    assert_eq!(exchange.close(&[closed.local_addr()], 1012), 1);
    assert_eq!(closed.next(), Event::Close(1012));
    closed.frame(0x88, &1012_u16.to_be_bytes());
    assert_eq!(closed.next(), Event::End);
    let mut silent = Client::connect(&exchange);
    assert_eq!(exchange.close(&[silent.local_addr()], 1001), 1);
    assert_eq!(silent.next(), Event::Close(1001));
    assert_eq!(silent.next(), Event::End);
    let mut polite = Client::connect(&exchange);
    polite.frame(0x88, &1000_u16.to_be_bytes());
    assert_eq!(polite.next(), Event::Close(1000));
    assert_eq!(polite.next(), Event::End);
    let mut rude = Client::connect(&exchange);
    rude.raw(&[0x81, 0x01, b'x']);
    assert_eq!(rude.next(), Event::Close(1002));
    until("all are gone", || exchange.connections().is_empty());
    let ended: Vec<Ended> =
        exchange.ledger().connections.iter().map(|connection| connection.ended).collect();
    let want = [
        Ended::Cut,
        Ended::ServerClosed(1012),
        Ended::ServerClosed(1001),
        Ended::PeerClosed,
        Ended::ServerClosed(1002),
    ];
    assert_eq!(ended, want);
}

#[test]
fn a_reader_that_stops_is_bounded_and_loses_nothing() {
    let config = ExchangeConfig {
        markets: 10,
        rate_per_second: 1_000_000,
        lifecycle_churn_per_minute: 0,
        tls: false,
        ..ExchangeConfig::default()
    };
    let exchange = Exchange::start(config).unwrap();
    let mut client = Client::connect(&exchange);
    client.subscribe(1, &["orderbook_delta", "ticker"], &exchange.active_markets());
    let mut last = 0;
    // Nothing is read until the exchange has stopped making frames for us.
    until("the bound is reached", || {
        let sent = exchange.stats().data_frames_sent;
        std::thread::sleep(Duration::from_millis(100));
        let stuck = sent > 1_000 && sent == last;
        last = sent;
        stuck
    });
    assert!(!exchange.stop_traffic(Duration::from_millis(50)));
    let ledger = exchange.ledger();
    let mut audit = Audit::default();
    audit.up(1, 1, client.local_addr());
    let total: u64 = ledger.connections[0].sids.iter().map(|sid| sid.last_number).sum();
    let mut read = 0;
    while read < total {
        let Event::Text(text) = client.next() else { panic!("not text") };
        let frame: Value = serde_json::from_slice(&text).unwrap();
        if let Some(sid) = frame["sid"].as_u64() {
            audit.delivered(1, 1, sid, frame["seq"].as_u64(), 0, &text);
            read += 1;
        }
    }
    let verdict = audit.settle(&ledger);
    assert_eq!((verdict.sent, verdict.unaccounted), (total, 0), "{:?}", verdict.findings);
}

#[test]
fn bursts_feed_every_connection_and_sessions_resume() {
    let config = ExchangeConfig { mode: Mode::Burst, ..quiet() };
    let exchange = Exchange::start(config).unwrap();
    let markets = exchange.active_markets();
    let mut clients: Vec<Client> = (0..4).map(|_| Client::connect(&exchange)).collect();
    let resumed = exchange.stats().resumed_handshakes;
    for (at, client) in clients.iter_mut().enumerate() {
        client.subscribe(1, &["orderbook_delta"], &markets[at * 10..at * 10 + 10]);
    }
    for client in &mut clients {
        let mut seq = 0;
        while seq < 5_000 {
            let frame = client.json();
            if let Some(number) = frame["seq"].as_u64() {
                seq += 1;
                assert_eq!(number, seq);
            }
        }
    }
    assert!(exchange.stats().data_frames_sent >= 20_000);
    // Each client had read its ticket by now.
    drop(Client::connect(&exchange));
    assert_eq!(exchange.stats().resumed_handshakes, resumed + 1);
}

#[test]
fn settled_markets_stream_on_only_when_asked_to() {
    for stream_on in [false, true] {
        let config = ExchangeConfig {
            settled_markets_stream: stream_on,
            mode: Mode::Paced,
            rate_per_second: 5_000,
            ..quiet()
        };
        let exchange = Exchange::start(config).unwrap();
        let markets = exchange.active_markets();
        let mut client = Client::connect(&exchange);
        client.subscribe(1, &["orderbook_delta"], &markets[..2]);
        assert_eq!(client.json()["type"], "subscribed");
        exchange.settle_markets(&markets[..1]);
        let before = exchange.ledger().connections[0].sids.first().map_or(0, |sid| sid.last_number);
        let (mut settled, mut seen) = (0, 0);
        while seen < 500 {
            let frame = client.json();
            if frame["seq"].as_u64().is_some_and(|seq| seq > before.max(2)) {
                seen += 1;
                settled += u32::from(frame["msg"]["market_ticker"] == markets[0].as_str());
            }
        }
        assert_eq!(settled > 0, stream_on);
    }
}
