//! The mission's dialect over real sockets: one sid per market, text codes, its own lifecycle
//! channel; and a ledger that stays exact with many sids side by side.

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

use std::collections::BTreeMap;
use std::time::Duration;

use client::{Client, Event};
use exchange_sim::{
    Audit, CommandFault, ConnectionRecord, Dialect, Ended, Exchange, ExchangeConfig, FaultRule,
    Ledger, Mode, SidRecord, Verb,
};
use serde_json::{Value, json};

fn legacy() -> ExchangeConfig {
    ExchangeConfig {
        dialect: Dialect::Legacy,
        markets: 40,
        mode: Mode::Quiet,
        lifecycle_churn_per_minute: 0,
        tls: false,
        ..ExchangeConfig::default()
    }
}

fn subscribe(client: &mut Client, id: u64, channel: &str, ticker: Option<&str>) {
    let mut params = json!({"channels":[channel]});
    if let Some(ticker) = ticker {
        params["market_ticker"] = ticker.into();
    }
    client.send(&json!({"id":id,"cmd":"subscribe","params":params}));
}

fn error(id: u64, code: &str, message: &str) -> Value {
    json!({"id":id,"type":"error","msg":{"code":code,"message":message}})
}

#[test]
fn every_market_has_its_sid_and_a_second_subscribe_is_refused() {
    let exchange = Exchange::start(legacy()).unwrap();
    let markets = exchange.active_markets();
    let mut client = Client::connect(&exchange);
    for (id, ticker) in (1..).zip(&markets[..3]) {
        subscribe(&mut client, id, "orderbook_delta", Some(ticker));
        let msg = json!({"sid":id,"channel":"orderbook_delta"});
        assert_eq!(client.json(), json!({"id":id,"type":"subscribed","msg":msg}));
        let snapshot = client.json();
        assert_eq!((&snapshot["sid"], &snapshot["seq"]), (&id.into(), &1.into()));
        assert_eq!(snapshot["msg"]["market_ticker"], ticker.as_str());
    }
    let already = |id| error(id, "already_subscribed", "Already subscribed");
    subscribe(&mut client, 4, "orderbook_delta", Some(&markets[1]));
    assert_eq!(client.json(), already(4));
    // Another channel of the same market is another subscription.
    subscribe(&mut client, 5, "trade", Some(&markets[1]));
    assert_eq!(client.json()["msg"]["sid"], 4);
    subscribe(&mut client, 6, "ticker", None);
    assert_eq!(client.json()["msg"]["sid"], 5);
    subscribe(&mut client, 7, "ticker", None);
    assert_eq!(client.json(), already(7));

    client.send(&json!({"id":8,"cmd":"unsubscribe","params":{"sids":[2,3,77]}}));
    assert_eq!(client.json(), json!({"id":8,"type":"unsubscribed","msg":{"sids":[2,3]}}));
    assert_eq!(exchange.subscribed_markets(client.local_addr()), markets[..1]);
    client.send(&json!({"id":9,"cmd":"unsubscribe","params":{"sids":[2]}}));
    assert_eq!(client.json(), error(9, "unknown_subscription_id", "Unknown subscription ID"));
    subscribe(&mut client, 10, "orderbook_delta", Some(&markets[1]));
    assert_eq!(client.json()["msg"]["sid"], 6);
}

#[test]
fn what_the_page_does_not_know_is_refused_with_a_text() {
    let exchange = Exchange::start(legacy()).unwrap();
    let mut client = Client::connect(&exchange);
    let list = json!({"channels":["orderbook_delta"],"market_tickers":["A"]});
    client.send(&json!({"id":1,"cmd":"subscribe","params":list}));
    assert_eq!(client.json(), error(1, "invalid_parameter", "Invalid parameter"));
    subscribe(&mut client, 2, "market_lifecycle_v2", None);
    assert_eq!(client.json(), error(2, "unknown_channel_name", "Unknown channel name"));
    subscribe(&mut client, 3, "orderbook_delta", None);
    assert_eq!(client.json(), error(3, "market_ticker_required", "Market Ticker required"));
    for cmd in ["update_subscription", "list_subscriptions"] {
        client.send(&json!({"id":4,"cmd":cmd,"params":{"sids":[1]}}));
        assert_eq!(client.json(), error(4, "unknown_command", "Unknown command"));
    }
}

#[test]
fn its_lifecycle_tells_status_changes() {
    let exchange = Exchange::start(legacy()).unwrap();
    let mut client = Client::connect(&exchange);
    subscribe(&mut client, 1, "market_lifecycle", None);
    assert_eq!(client.json()["type"], "subscribed");
    let made = exchange.create_markets(1);
    exchange.deactivate_markets(&made);
    exchange.activate_markets(&made);
    exchange.settle_markets(&made);
    let want = [
        ("created", "", "active"),
        ("status_change", "active", "inactive"),
        ("status_change", "inactive", "active"),
        ("status_change", "active", "determined"),
        ("settled", "determined", "finalized"),
    ];
    for (number, (event, old, new)) in (1..).zip(want) {
        let frame = client.json();
        assert_eq!((&frame["type"], &frame["sid"]), (&"market_lifecycle".into(), &1.into()));
        assert!(frame.get("seq").is_none());
        let msg = &frame["msg"];
        assert_eq!(msg["market_ticker"], made[0].as_str());
        let got = json!([msg["Clock"], msg["event_type"], msg["old_status"], msg["new_status"]]);
        assert_eq!(got, json!([number, event, old, new]));
    }
}

#[test]
fn faults_speak_its_language() {
    let refused = FaultRule::next(Verb::Subscribe, CommandFault::Refused(26), 1);
    let exchange = Exchange::start(ExchangeConfig { faults: vec![refused], ..legacy() }).unwrap();
    let markets = exchange.active_markets();
    let mut client = Client::connect(&exchange);
    subscribe(&mut client, 1, "orderbook_delta", Some(&markets[0]));
    let text = "Subscription market limit exceeded";
    assert_eq!(client.json(), error(1, "subscription_market_limit_exceeded", text));
    // A reply that is lost leaves a sid nobody was told; the data tells.
    exchange.inject(FaultRule::next(Verb::Subscribe, CommandFault::Lost, 1));
    subscribe(&mut client, 2, "orderbook_delta", Some(&markets[0]));
    assert_eq!(client.json()["sid"], 1);
    subscribe(&mut client, 3, "orderbook_delta", Some(&markets[0]));
    assert_eq!(client.json()["msg"]["code"], "already_subscribed");
    assert!(exchange.terminate(client.local_addr(), 1, 25));
    let code =
        json!({"code":"subscription_buffer_overflow","message":"Subscription buffer overflow"});
    assert_eq!(client.json(), json!({"type":"error","sid":1,"msg":code}));
    exchange.inject(FaultRule::next(Verb::Unsubscribe, CommandFault::Doubled, 1));
    subscribe(&mut client, 4, "orderbook_delta", Some(&markets[1]));
    client.send(&json!({"id":5,"cmd":"unsubscribe","params":{"sids":[2]}}));
    for want in ["subscribed", "orderbook_snapshot", "unsubscribed", "unsubscribed"] {
        assert_eq!(client.json()["type"], want);
    }
}

/// Reads everything until the connection ends, each data frame into the account; `lose` says which
/// sids' frames to leave out after their first.
fn drain(client: &mut Client, audit: &mut Audit, epoch: u32, lose: impl Fn(u64) -> bool) -> u64 {
    let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
    let mut read = 0;
    while let Event::Text(text) = client.next() {
        let frame: Value = serde_json::from_slice(&text).unwrap();
        let Some(sid) = frame["sid"].as_u64() else { continue };
        let count = counts.entry(sid).or_default();
        *count += 1;
        if !(lose(sid) && *count > 1) {
            audit.delivered(7, epoch, sid, frame["seq"].as_u64(), 0, &text);
            read += 1;
        }
    }
    read
}

#[test]
fn many_sids_side_by_side_settle_exactly() {
    for lossy in [false, true] {
        let config = ExchangeConfig { mode: Mode::Paced, rate_per_second: 40_000, ..legacy() };
        let exchange = Exchange::start(config).unwrap();
        let markets = exchange.active_markets();
        let mut audit = Audit::default();
        for epoch in 1..=2 {
            let mut client = Client::connect(&exchange);
            audit.up(7, epoch, client.local_addr());
            for (id, ticker) in (1..).zip(&markets[..20]) {
                subscribe(&mut client, id, "orderbook_delta", Some(ticker));
            }
            while exchange.stats().data_frames_sent < u64::from(epoch) * 5_000 {
                std::thread::sleep(Duration::from_millis(5));
            }
            let peer = client.local_addr();
            // The first ends by a reset, with sids in all states of progress.
            let ended =
                if epoch == 1 { exchange.cut(&[peer]) } else { exchange.close(&[peer], 1000) };
            assert_eq!(ended, 1);
            let read = drain(&mut client, &mut audit, epoch, |sid| lossy && sid == 3);
            audit.down(7, epoch);
            assert!(read > 100 || epoch == 1, "{read}");
        }
        let verdict = audit.settle(&exchange.ledger());
        if lossy {
            assert!(verdict.unaccounted > 0, "a sid that lost its tail is found out");
        } else {
            assert_eq!((verdict.unaccounted, verdict.findings.clone()), (0, Vec::new()));
        }
        assert_eq!(verdict.sent, verdict.delivered + verdict.covered + verdict.unaccounted);
    }
}

/// One connection that was cut, with these sids: their last numbers and positions.
fn cut(sids: &[(u64, (u64, u64))]) -> (Audit, Ledger) {
    let peer = "127.0.0.1:1001".parse().unwrap();
    let sids = (1..).zip(sids).map(|(sid, &(last_number, positions))| SidRecord {
        sid,
        channel: "orderbook_delta".to_owned(),
        sequenced: true,
        last_number,
        control_slots: Vec::new(),
        withheld: Vec::new(),
        renumbered: Vec::new(),
        first_position: positions.0,
        last_position: positions.1,
    });
    let sids = sids.collect();
    let record = ConnectionRecord {
        accept_number: 1,
        peer,
        upgraded: true,
        unnumbered: 0,
        ended: Ended::Cut,
        sids,
    };
    let mut audit = Audit::default();
    audit.up(7, 1, peer);
    audit.down(7, 1);
    (audit, Ledger { connections: vec![record] })
}

#[test]
fn a_tail_is_excused_only_if_nothing_sent_later_arrived() {
    // Sid 1 ends at the connection's 10th frame; sid 2 begins at its 2nd and ends at its 20th.
    for (delivered, unaccounted) in [(1, 0), (9, 0), (10, 4)] {
        let (mut audit, ledger) = cut(&[(5, (1, 10)), (10, (2, 20))]);
        audit.delivered(7, 1, 1, Some(1), 0, b"");
        for number in 1..=delivered {
            audit.delivered(7, 1, 2, Some(number), 0, b"");
        }
        assert_eq!(audit.settle(&ledger).unaccounted, unaccounted, "{delivered} of sid 2");
    }
}

#[test]
fn a_message_tells_only_of_sids_that_ended_before_it() {
    for (began, unaccounted) in [(11, 0), (3, 2)] {
        // Sid 1 lost its last two; the first message of sid 2 says so.
        let (mut audit, ledger) = cut(&[(5, (1, 10)), (1, (began, began))]);
        for number in 1..=3 {
            audit.delivered(7, 1, 1, Some(number), 0, b"");
        }
        audit.delivered(7, 1, 2, Some(1), 2, b"");
        assert_eq!(audit.settle(&ledger).unaccounted, unaccounted, "began at {began}");
    }
}
