//! Commands over real sockets: snapshots on request, lists of subscriptions, and every way a
//! command can be made to go wrong; after each, the ledger must still settle with nothing amiss.

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

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use client::{Client, Event};
use exchange_sim::{
    Audit, BadTickers, CommandFault, Duplicates, Exchange, ExchangeConfig, FaultRule, Mode, Stray,
    Verb,
};
use serde_json::{Value, json};

fn quiet() -> ExchangeConfig {
    ExchangeConfig {
        markets: 40,
        mode: Mode::Quiet,
        lifecycle_churn_per_minute: 0,
        tls: false,
        ..ExchangeConfig::default()
    }
}

/// One client with its account of what it was handed.
struct Desk {
    exchange: Exchange,
    client: Client,
    audit: Audit,
    markets: Vec<String>,
    next_id: u64,
}

impl Desk {
    fn open(config: ExchangeConfig) -> Self {
        let exchange = Exchange::start(config).unwrap();
        let client = Client::connect(&exchange);
        let mut audit = Audit::default();
        audit.up(7, 1, client.local_addr());
        let markets = exchange.active_markets();
        Self { exchange, client, audit, markets, next_id: 1 }
    }

    /// Sends a command and returns its id.
    fn ask(&mut self, cmd: &str, params: Value) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.client.send(&json!({"id":id,"cmd":cmd,"params":params}));
        id
    }

    fn subscribe(&mut self, markets: std::ops::Range<usize>) -> u64 {
        let tickers = self.markets[markets].to_vec();
        self.ask("subscribe", json!({"channels":["orderbook_delta"],"market_tickers":tickers}))
    }

    fn update(&mut self, sid: u64, action: &str, tickers: &[String]) -> u64 {
        let params = json!({"sids":[sid],"action":action,"market_tickers":tickers});
        self.ask("update_subscription", params)
    }

    /// The next frame; data goes into the account.
    fn next(&mut self) -> Value {
        let frame = self.client.json();
        let kind = frame["type"].as_str().unwrap();
        if let (Some(sid), Some(seq)) = (frame["sid"].as_u64(), frame["seq"].as_u64())
            && kind.starts_with("orderbook")
        {
            self.audit.delivered(7, 1, sid, Some(seq), 0, b"");
        }
        frame
    }

    /// The next so many frames, as `type` and, where there is one, id or code.
    fn kinds(&mut self, count: usize) -> Vec<String> {
        let brief = |frame: Value| {
            let kind = frame["type"].as_str().unwrap().replace("orderbook_", "");
            match (frame["msg"]["code"].as_u64(), frame["id"].as_u64()) {
                (Some(code), _) => format!("{kind} {code}"),
                (None, Some(id)) => format!("{kind} #{id}"),
                (None, None) => kind,
            }
        };
        (0..count).map(|_| self.next()).map(brief).collect()
    }

    /// A subscription to the first markets, everything read.
    fn subscribed(config: ExchangeConfig, count: usize) -> Self {
        let mut desk = Self::open(config);
        desk.subscribe(0..count);
        let frames = desk.kinds(1 + count);
        assert_eq!(frames[0], "subscribed #1");
        desk
    }

    /// Nothing more is on its way, and the ledger says that nothing was lost.
    fn settle(mut self) {
        self.client.frame(0x89, b"end");
        assert_eq!(self.client.next(), Event::Pong(b"end".to_vec()));
        self.check();
    }

    fn check(&self) {
        let verdict = self.audit.settle(&self.exchange.ledger());
        assert_eq!((verdict.unaccounted, verdict.findings.clone()), (0, Vec::new()));
        assert_eq!(verdict.sent, verdict.delivered);
    }

    fn follows(&self) -> usize {
        self.exchange.subscribed_markets(self.client.local_addr()).len()
    }
}

fn until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "within 10 s: {what}");
        std::thread::yield_now();
    }
}

fn fault(config: ExchangeConfig, verb: Verb, what: CommandFault) -> ExchangeConfig {
    ExchangeConfig { faults: vec![FaultRule::next(verb, what, 1)], ..config }
}

#[test]
fn snapshots_on_request_are_replies_and_data_at_once() {
    let mut desk = Desk::subscribed(quiet(), 2);
    let asked = [desk.markets[1].clone(), desk.markets[9].clone(), "NEVER-LISTED".to_owned()];
    let id = desk.update(1, "get_snapshot", &asked);
    for (at, ticker) in asked.iter().enumerate() {
        let frame = desk.next();
        assert_eq!(frame["type"], "orderbook_snapshot");
        assert_eq!((&frame["id"], &frame["sid"]), (&id.into(), &1.into()));
        assert_eq!(
            (&frame["seq"], &frame["msg"]["market_ticker"]),
            (&(at + 3).into(), &ticker[..].into())
        );
        let known = frame["msg"].get("yes_dollars_fp").is_some();
        assert_eq!(known, *ticker != "NEVER-LISTED");
    }
    assert_eq!(desk.follows(), 2, "the subscription is unchanged");
    let stats = desk.exchange.stats();
    assert_eq!((stats.verbs.subscribe, stats.verbs.get_snapshot), (1, 1));
    // The singular form, no list, another channel.
    let one = json!({"sids":[1],"action":"get_snapshot","market_ticker":asked[0]});
    desk.ask("update_subscription", one);
    desk.ask("update_subscription", json!({"sids":[1],"action":"get_snapshot"}));
    desk.ask("subscribe", json!({"channels":["trade"]}));
    desk.update(2, "get_snapshot", &asked);
    assert_eq!(desk.kinds(4), ["error 14", "error 14", "subscribed #5", "error 13"]);
    desk.settle();
}

#[test]
fn an_ok_after_the_snapshots_only_when_asked_for() {
    let mut desk = Desk::subscribed(ExchangeConfig { snapshot_ok: true, ..quiet() }, 1);
    let asked = desk.markets[..2].to_vec();
    desk.update(1, "get_snapshot", &asked);
    assert_eq!(desk.kinds(3), ["snapshot #2", "snapshot #2", "ok #2"]);
    desk.settle();
}

#[test]
fn subscriptions_are_listed_without_their_markets() {
    let mut desk = Desk::open(quiet());
    desk.client.send(&json!({"id":1,"cmd":"list_subscriptions"}));
    assert_eq!(desk.next(), json!({"type":"ok","id":1,"msg":[]}));
    desk.next_id = 2;
    desk.subscribe(0..2);
    desk.ask("subscribe", json!({"channels":["ticker","trade"]}));
    desk.ask("unsubscribe", json!({"sids":[2]}));
    desk.kinds(3 + 2 + 1);
    desk.client.send(&json!({"id":9,"cmd":"list_subscriptions"}));
    let both = json!([{"channel":"orderbook_delta","sid":1},{"channel":"trade","sid":3}]);
    assert_eq!(desk.next(), json!({"type":"ok","id":9,"msg":both}));
    assert_eq!(desk.exchange.stats().verbs.list_subscriptions, 2);
    desk.settle();
}

#[test]
fn a_late_reply_comes_after_its_data_and_keeps_its_place_in_the_numbering() {
    let late = CommandFault::Late(Duration::from_millis(60));
    let mut desk = Desk::subscribed(fault(quiet(), Verb::AddMarkets, late), 1);
    let began = Instant::now();
    let (first, second) = (desk.markets[1..3].to_vec(), desk.markets[3..4].to_vec());
    desk.update(1, "add_markets", &first);
    desk.update(1, "add_markets", &second);
    assert_eq!(desk.kinds(4), ["snapshot", "snapshot", "ok #3", "snapshot"]);
    let ok = desk.next();
    assert!(began.elapsed() >= Duration::from_millis(60));
    assert_eq!((&ok["id"], &ok["seq"]), (&2.into(), &6.into()));
    assert_eq!(desk.exchange.stats().most_in_flight, 2);
    desk.settle();
}

#[test]
fn a_late_subscribed_and_late_snapshots_come_too() {
    let late = CommandFault::Late(Duration::from_millis(20));
    let mut desk = Desk::open(fault(quiet(), Verb::Subscribe, late));
    desk.subscribe(0..2);
    assert_eq!(desk.kinds(3), ["snapshot", "snapshot", "subscribed #1"]);
    desk.exchange.inject(FaultRule::next(Verb::GetSnapshot, late, 1));
    let asked = desk.markets[..1].to_vec();
    desk.update(1, "get_snapshot", &asked);
    desk.update(1, "add_markets", &asked);
    assert_eq!(desk.kinds(2), ["ok #3", "snapshot #2"]);
    // Traffic has not stopped as long as something is still to come.
    desk.exchange.inject(FaultRule::next(Verb::GetSnapshot, late, 1));
    desk.update(1, "get_snapshot", &asked);
    until("it is asked", || desk.exchange.stats().verbs.get_snapshot == 2);
    assert!(desk.exchange.stop_traffic(Duration::from_secs(5)));
    let sent = desk.exchange.ledger().connections[0].sids[0].last_number;
    assert_eq!(sent, 5);
    assert_eq!(desk.kinds(1), ["snapshot #4"]);
    desk.settle();
}

#[test]
fn a_late_reply_to_a_stream_that_ended_takes_no_number() {
    let late = CommandFault::Late(Duration::from_millis(20));
    let mut desk = Desk::subscribed(fault(quiet(), Verb::DeleteMarkets, late), 2);
    let gone = desk.markets[..1].to_vec();
    desk.update(1, "delete_markets", &gone);
    desk.ask("unsubscribe", json!({"sids":[1]}));
    let ended = desk.next();
    assert_eq!(ended, json!({"type":"unsubscribed","id":3,"sid":1,"seq":3}));
    let ok = desk.next();
    assert_eq!((&ok["type"], &ok["id"], ok.get("seq")), (&"ok".into(), &2.into(), None));
    desk.settle();
}

#[test]
fn a_lost_reply_leaves_the_command_applied_and_an_ignored_command_not() {
    let mut desk = Desk::subscribed(fault(quiet(), Verb::AddMarkets, CommandFault::Lost), 1);
    let more = desk.markets[1..3].to_vec();
    desk.update(1, "add_markets", &more);
    assert_eq!(desk.kinds(2), ["snapshot", "snapshot"]);
    assert_eq!(desk.follows(), 3);
    desk.exchange.inject(FaultRule::next(Verb::DeleteMarkets, CommandFault::Ignored, 1));
    desk.update(1, "delete_markets", &more);
    // The next command is answered: nothing came in between, and no number was taken.
    desk.update(1, "delete_markets", &more[..1]);
    let ok = desk.next();
    assert_eq!((&ok["id"], &ok["seq"]), (&4.into(), &4.into()));
    assert_eq!(desk.follows(), 2);
    assert_eq!(desk.exchange.stats().faults, 2);
    desk.settle();
}

#[test]
fn a_lost_subscribed_and_a_lost_unsubscribed_are_applied() {
    let mut desk = Desk::open(fault(quiet(), Verb::Subscribe, CommandFault::Lost));
    desk.subscribe(0..2);
    assert_eq!(desk.kinds(2), ["snapshot", "snapshot"]);
    desk.subscribe(0..2);
    assert_eq!(desk.kinds(1), ["ok #2"]);
    desk.exchange.inject(FaultRule::next(Verb::Unsubscribe, CommandFault::Lost, 1));
    desk.ask("unsubscribe", json!({"sids":[1]}));
    desk.ask("unsubscribe", json!({"sids":[1]}));
    assert_eq!(desk.kinds(1), ["error 7"]);
    desk.settle();
}

#[test]
fn doubled_replies_take_a_number_each() {
    let mut desk = Desk::subscribed(fault(quiet(), Verb::AddMarkets, CommandFault::Doubled), 1);
    let more = desk.markets[1..2].to_vec();
    desk.update(1, "add_markets", &more);
    let frames: Vec<Value> = (0..3).map(|_| desk.next()).collect();
    let seqs: Vec<_> = frames.iter().map(|frame| frame["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, [2, 3, 4]);
    assert_eq!((&frames[0]["type"], &frames[1]["type"]), (&"ok".into(), &"ok".into()));
    for verb in [Verb::GetSnapshot, Verb::Subscribe, Verb::Unsubscribe] {
        desk.exchange.inject(FaultRule::next(verb, CommandFault::Doubled, 1));
    }
    desk.update(1, "get_snapshot", &more);
    desk.ask("subscribe", json!({"channels":["trade"]}));
    desk.ask("unsubscribe", json!({"sids":[1]}));
    let want = [
        "snapshot #3",
        "snapshot #3",
        "subscribed #4",
        "subscribed #4",
        "unsubscribed #5",
        "unsubscribed #5",
    ];
    assert_eq!(desk.kinds(6), want);
    desk.settle();
}

#[test]
fn data_can_come_before_any_reply() {
    let mut desk = Desk::open(fault(quiet(), Verb::Subscribe, CommandFault::DataFirst));
    desk.subscribe(0..2);
    assert_eq!(desk.kinds(3), ["snapshot", "snapshot", "subscribed #1"]);
    desk.exchange.inject(FaultRule::next(Verb::AddMarkets, CommandFault::DataFirst, 1));
    let more = desk.markets[2..3].to_vec();
    desk.update(1, "add_markets", &more);
    assert_eq!(desk.kinds(2), ["snapshot", "ok #2"]);
    desk.settle();
}

#[test]
fn every_code_can_refuse_any_command() {
    let mut desk = Desk::open(quiet());
    let more = desk.markets[1..2].to_vec();
    for (sid, code) in (1..).zip((1..=29).chain([99])) {
        for verb in [Verb::Subscribe, Verb::AddMarkets, Verb::Unsubscribe] {
            desk.exchange.inject(FaultRule::next(verb, CommandFault::Refused(code), 1));
        }
        let refused = format!("error {code}");
        desk.subscribe(0..1);
        assert_eq!(desk.kinds(1), [&refused[..]]);
        assert_eq!(desk.follows(), 0);
        desk.subscribe(0..1);
        desk.kinds(2);
        desk.update(sid, "add_markets", &more);
        let error = desk.next();
        assert_eq!((&error["sid"], &error["seq"]), (&sid.into(), &2.into()), "{error}");
        desk.ask("unsubscribe", json!({"sids":[sid]}));
        assert_eq!(desk.kinds(1), [&refused[..]]);
        assert_eq!(desk.follows(), 1);
        desk.ask("unsubscribe", json!({"sids":[sid]}));
        desk.kinds(1);
    }
    assert_eq!(desk.exchange.stats().errors_sent, 90);
    desk.settle();
}

#[test]
fn a_command_that_timed_out_was_carried_out() {
    let mut desk = Desk::open(fault(quiet(), Verb::Subscribe, CommandFault::TimedOut));
    desk.subscribe(0..2);
    assert_eq!(desk.kinds(3), ["error 18", "snapshot", "snapshot"]);
    desk.exchange.inject(FaultRule::next(Verb::AddMarkets, CommandFault::TimedOut, 1));
    let more = desk.markets[2..4].to_vec();
    desk.update(1, "add_markets", &more);
    let error = desk.next();
    assert_eq!((&error["msg"]["code"], &error["seq"]), (&18.into(), &3.into()));
    desk.kinds(2);
    assert_eq!(desk.follows(), 4);
    desk.settle();
}

#[test]
fn a_terminal_error_takes_a_number_and_ends_its_stream() {
    for code in [10, 25] {
        let terminal = CommandFault::Terminal { code, after: Duration::from_millis(10) };
        let config = ExchangeConfig { mode: Mode::Paced, rate_per_second: 20_000, ..quiet() };
        let mut desk = Desk::open(fault(config, Verb::Subscribe, terminal));
        desk.subscribe(0..3);
        let mut last = 0;
        let error = loop {
            let frame = desk.next();
            if frame["type"] == "error" {
                break frame;
            }
            last = frame["seq"].as_u64().unwrap_or(last);
        };
        let want = json!({"sid":1,"seq":last + 1,"code":code});
        let got = json!({"sid":error["sid"],"seq":error["seq"],"code":error["msg"]["code"]});
        assert_eq!(got, want);
        assert!(error.get("id").is_none());
        // It is gone: nothing more comes on it, and the next subscribe makes another.
        assert_eq!(desk.follows(), 0);
        let id = desk.subscribe(0..1);
        let ack = desk.next();
        assert_eq!((&ack["id"], &ack["msg"]["sid"]), (&id.into(), &2.into()));
        assert!(desk.exchange.stop_traffic(Duration::from_secs(5)));
        let ledger = desk.exchange.ledger();
        let sent = ledger.connections[0].sids[1].last_number;
        for _ in 0..sent {
            assert_eq!(desk.next()["sid"], 2);
        }
        desk.settle();
    }
}

#[test]
fn subscriptions_can_be_ended_by_hand() {
    let mut desk = Desk::subscribed(quiet(), 2);
    let peer = desk.client.local_addr();
    assert!(!desk.exchange.terminate(peer, 2, 25));
    assert!(desk.exchange.terminate(peer, 1, 25));
    assert!(!desk.exchange.terminate(peer, 1, 25));
    desk.subscribe(0..2);
    assert_eq!(desk.exchange.terminate_books(10), 1);
    let want = ["error 25", "subscribed #2", "snapshot", "snapshot", "error 10"];
    assert_eq!(desk.kinds(5), want);
    desk.settle();
}

#[test]
fn the_market_cap_refuses_what_would_exceed_it_and_nothing_else() {
    let config = ExchangeConfig { markets_per_subscription: 4, ..quiet() };
    let mut desk = Desk::open(config);
    desk.subscribe(0..5);
    assert_eq!(desk.kinds(1), ["error 26"]);
    assert!(desk.exchange.holdings().is_empty(), "no empty subscription is left behind");
    desk.subscribe(0..3);
    assert_eq!(desk.kinds(4)[0], "subscribed #2");
    let (over, again) = (desk.markets[2..5].to_vec(), desk.markets[0..4].to_vec());
    desk.update(1, "add_markets", &over);
    assert_eq!(desk.kinds(1), ["error 26"]);
    assert_eq!(desk.follows(), 3, "all or nothing");
    desk.update(1, "add_markets", &again);
    assert_eq!(desk.kinds(2), ["ok #4", "snapshot"], "those there are do not count twice");
    desk.exchange.set_market_cap(5);
    desk.update(1, "add_markets", &over);
    assert_eq!(desk.kinds(2), ["ok #5", "snapshot"]);
    desk.settle();
}

#[test]
fn the_command_cap_refuses_what_comes_too_fast() {
    let config = ExchangeConfig { commands_per_second: Some(2), ..quiet() };
    let mut desk = Desk::subscribed(config, 1);
    let began = Instant::now();
    for at in 1..4 {
        let one = desk.markets[at..=at].to_vec();
        desk.update(1, "add_markets", &one);
    }
    let got = desk.kinds(5);
    // A machine too slow for three commands a second proves nothing either way.
    if began.elapsed() < Duration::from_secs(1) {
        assert_eq!(got, ["ok #2", "snapshot", "ok #3", "snapshot", "error 27"]);
        assert_eq!(desk.follows(), 3);
    }
    desk.exchange.set_command_cap(None);
    let one = desk.markets[9..10].to_vec();
    desk.update(1, "add_markets", &one);
    desk.kinds(2);
    desk.settle();
}

#[test]
fn a_repeated_subscribe_can_be_refused_as_it_once_was() {
    let config = ExchangeConfig { duplicate_subscribe: Duplicates::Refuse, ..quiet() };
    let mut desk = Desk::subscribed(config, 1);
    desk.subscribe(0..2);
    let error = desk.next();
    let msg = json!({"code":6,"msg":"Already subscribed"});
    assert_eq!(error, json!({"type":"error","id":2,"msg":msg}));
    assert_eq!(desk.follows(), 1);
    desk.exchange.set_duplicates(Duplicates::Merge);
    desk.subscribe(0..2);
    assert_eq!(desk.kinds(2), ["ok #3", "snapshot"]);
    desk.settle();
}

#[test]
fn one_bad_ticker_refuses_its_whole_list() {
    for code in [11, 14] {
        let mut desk = Desk::open(quiet());
        let tickers = BTreeSet::from([desk.markets[3].clone()]);
        desk.exchange.set_bad_tickers(BadTickers { code, tickers });
        desk.subscribe(0..5);
        desk.subscribe(0..3);
        let list = desk.markets[3..6].to_vec();
        assert_eq!(desk.kinds(5)[..2], [format!("error {code}"), "subscribed #2".to_owned()]);
        for action in ["add_markets", "get_snapshot"] {
            desk.update(1, action, &list);
            assert_eq!(desk.kinds(1), [format!("error {code}")]);
        }
        desk.update(1, "add_markets", &list[1..]);
        assert_eq!(desk.kinds(3)[0], "ok #5");
        assert_eq!(desk.follows(), 5);
        desk.settle();
    }
}

#[test]
fn strays_come_before_the_reply_or_by_hand() {
    let stray = CommandFault::Stray(Stray::Ok(901));
    let mut desk = Desk::subscribed(fault(quiet(), Verb::AddMarkets, stray), 1);
    let more = desk.markets[1..2].to_vec();
    desk.update(1, "add_markets", &more);
    assert_eq!(desk.kinds(3), ["ok #901", "ok #2", "snapshot"]);
    let peer = desk.client.local_addr();
    assert!(desk.exchange.stray(peer, Stray::Nameless));
    assert!(desk.exchange.stray(peer, Stray::Error(902)));
    assert_eq!(desk.next(), json!({"type":"ok","msg":{}}));
    let msg = json!({"code":1,"msg":"Unable to process message"});
    assert_eq!(desk.next(), json!({"type":"error","id":902,"msg":msg}));
    assert!(!desk.exchange.stray("127.0.0.1:1".parse().unwrap(), Stray::Nameless));
    desk.settle();
}

#[test]
fn holdings_tell_who_follows_what_and_doubles() {
    let mut desk = Desk::subscribed(quiet(), 3);
    let mut other = Client::connect(&desk.exchange);
    other.subscribe(1, &["orderbook_delta", "ticker"], &desk.markets[2..4]);
    for _ in 0..4 {
        other.json();
    }
    let holdings = desk.exchange.holdings();
    let brief: Vec<_> = holdings
        .iter()
        .map(|holding| (holding.peer, holding.sid, holding.channel, holding.markets.len()))
        .collect();
    let (here, there) = (desk.client.local_addr(), other.local_addr());
    let want = [
        (here, 1, "orderbook_delta", 3),
        (there, 1, "orderbook_delta", 2),
        (there, 2, "ticker", 2),
    ];
    assert_eq!(brief, want);
    assert_eq!(desk.exchange.doubled_markets(), desk.markets[2..3]);
    assert_eq!(desk.exchange.stats().book_markets, 5);
    let gone = desk.markets[2..3].to_vec();
    desk.update(1, "delete_markets", &gone);
    desk.kinds(1);
    assert_eq!(desk.exchange.stats().book_markets, 4);
    assert!(desk.exchange.doubled_markets().is_empty());
    drop(other);
    until("its markets are let go of", || desk.exchange.stats().book_markets == 2);
}

#[test]
fn everything_at_once_still_adds_up() {
    let chances = [
        (CommandFault::Late(Duration::from_millis(3)), 0.2),
        (CommandFault::Lost, 0.1),
        (CommandFault::Ignored, 0.1),
        (CommandFault::Doubled, 0.2),
        (CommandFault::DataFirst, 0.2),
        (CommandFault::Refused(27), 0.1),
        (CommandFault::TimedOut, 0.2),
        (CommandFault::Terminal { code: 25, after: Duration::from_millis(2) }, 0.05),
        (CommandFault::Stray(Stray::Ok(99_999)), 0.2),
    ];
    let faults = chances.map(|(what, chance)| FaultRule::chance(what, chance)).to_vec();
    let config =
        ExchangeConfig { faults, mode: Mode::Paced, rate_per_second: 5_000, seed: 11, ..quiet() };
    let mut desk = Desk::open(config);
    let actions = ["add_markets", "delete_markets", "get_snapshot"];
    let mut rng = fastrand::Rng::with_seed(3);
    for turn in 0..600 {
        let at = rng.usize(0..30);
        let list = desk.markets[at..at + 5].to_vec();
        match turn % 5 {
            0 => drop(desk.subscribe(at..at + 5)),
            4 if turn % 35 == 4 => drop(desk.ask("unsubscribe", json!({"sids":[turn / 40 + 1]}))),
            _ => {
                let sid = desk.exchange.holdings().first().map_or(1, |holding| holding.sid);
                desk.update(sid, actions[rng.usize(0..3)], &list);
            }
        }
    }
    until("all is read", || desk.exchange.stats().commands == 600);
    assert!(desk.exchange.stop_traffic(Duration::from_secs(10)));
    let stats = desk.exchange.stats();
    assert!(stats.faults > 200 && stats.data_frames_sent > 500, "{stats:?}");
    for _ in 0..stats.frames_sent {
        desk.next();
    }
    desk.check();
}
