//! Commands that go wrong, over real sockets: replies late, lost, doubled, strange or refused, and
//! markets that change all the while. Whatever happened, each market wanted ends up on exactly one
//! connection, no other on any, and every frame is accounted for.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may panic and read the clock"
)]

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use exchange_sim::{BadTickers, Dialect, Duplicates, ExchangeConfig};
use kalshi_feed::{MarketChange, MarketStatus, PoolLayout, Ticker};
use support::Rig;

/// Markets at the start, and how many are created and settled meanwhile.
const MARKETS: usize = 120;
const CHANGED: usize = 40;
const ALL: u64 = 120;

fn exchange(faults: &[&str]) -> ExchangeConfig {
    ExchangeConfig {
        markets: MARKETS,
        rate_per_second: 2_000,
        lifecycle_churn_per_minute: 0,
        faults: faults.iter().map(|rule| rule.parse().unwrap()).collect(),
        ..ExchangeConfig::default()
    }
}

fn start(exchange: ExchangeConfig) -> Rig {
    let dialect = match exchange.dialect {
        Dialect::Live => kalshi_feed::Dialect::Live,
        Dialect::Legacy => kalshi_feed::Dialect::Legacy,
    };
    Rig::start(exchange, PoolLayout::new(1, 1, 1, 4), |settings| {
        settings.dialect(dialect).chunk(8).subscribe_timeout(Duration::from_millis(300))
    })
}

/// What the exchange streams, connection by connection.
fn held(rig: &Rig) -> Vec<String> {
    let peers = rig.exchange.connections();
    peers.into_iter().flat_map(|peer| rig.exchange.subscribed_markets(peer)).collect()
}

fn change(rig: &mut Rig) -> BTreeSet<String> {
    let first = rig.exchange.active_markets();
    let created = rig.exchange.create_markets(CHANGED);
    let ticker = |text: &String| text.parse::<Ticker>().unwrap();
    for (new, old) in created.iter().zip(&first) {
        rig.host.send(MarketChange::created(ticker(new), MarketStatus::Active)).unwrap();
        rig.host.send(MarketChange::settled(ticker(old))).unwrap();
    }
    first.into_iter().skip(CHANGED).chain(created).collect()
}

/// The whole story under these faults: the end state is exact, nothing is unaccounted for.
fn survives(exchange: ExchangeConfig) -> Rig {
    let mut rig = start(exchange);
    rig.all_confirmed(ALL);
    let wanted = change(&mut rig);
    rig.all_confirmed(ALL);
    rig.consume_until(
        "the exchange holds what is wanted",
        |_| {},
        |rig| {
            let held = held(rig);
            held.len() == wanted.len() && held.into_iter().collect::<BTreeSet<_>>() == wanted
        },
    );
    assert_eq!(rig.exchange.doubled_markets(), Vec::<String>::new());
    let (verdict, _) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
    assert!(rig.exchange.stats().faults > 0, "something did go wrong");
    rig
}

#[test]
fn e1_replies_to_nobody_complete_nothing() {
    let rig = survives(exchange(&["add_markets stray=999999", "delete_markets nameless"]));
    assert!(rig.handle.stats().replies_unmatched > 0);
}

#[test]
fn e2_a_doubled_reply_counts_once() {
    let rig = survives(exchange(&["any doubled"]));
    assert!(rig.handle.stats().replies_unmatched + rig.handle.stats().replies_late > 0);
}

#[test]
fn e3_late_reply_is_reconciled() {
    let rig = survives(exchange(&["any late=600 next=6"]));
    assert!(rig.handle.stats().commands_timed_out > 0);
}

#[test]
fn e4_what_times_out_is_asked_again_and_lost_replies_lose_no_market() {
    survives(exchange(&["any lost p=0.2"]));
    survives(exchange(&["any ignored p=0.2"]));
}

#[test]
fn e5_data_may_come_before_its_acknowledgement() {
    survives(exchange(&["any data_first"]));
}

#[test]
fn e7_a_subscribe_that_merges_is_answered_ok_and_understood() {
    // Its first reply is lost, so that the repeated one meets the subscription it made.
    survives(exchange(&["subscribe lost next=4"]));
}

#[test]
fn e7_code_6_means_that_we_have_it() {
    let refusing = ExchangeConfig {
        duplicate_subscribe: Duplicates::Refuse,
        ..exchange(&["subscribe lost next=4"])
    };
    survives(refusing);
}

#[test]
fn e7_code_6_means_that_we_have_it_in_the_legacy_dialect_too() {
    let legacy =
        ExchangeConfig { dialect: Dialect::Legacy, ..exchange(&["subscribe refused=6 next=4"]) };
    survives(legacy);
}

#[test]
fn e8_commands_in_flight_when_a_connection_falls_lose_no_market() {
    let mut rig = start(exchange(&["any late=200 p=0.5"]));
    for _ in 0..3 {
        rig.consume_for(Duration::from_millis(100), |_| {});
        rig.exchange.cut(&rig.exchange.connections());
    }
    rig.all_confirmed(ALL);
    let (verdict, _) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
}

#[test]
fn e10_a_subscription_that_ends_is_opened_again() {
    for code in [10, 25] {
        let mut rig = start(exchange(&[]));
        rig.all_confirmed(ALL);
        assert_eq!(rig.exchange.terminate_books(code), 4);
        rig.consume_until(
            "the exchange streams all again",
            |_| {},
            |rig| held(rig).len() == MARKETS && rig.handle.stats().markets_total == ALL,
        );
        let (verdict, _) = rig.settle();
        assert_eq!(verdict.unaccounted, 0, "code {code}: {:#?}", verdict.findings);
    }
}

#[test]
fn e10_an_outcome_unknown_is_found_out() {
    survives(exchange(&["any timed_out p=0.3"]));
}

#[test]
fn e10_too_many_markets_spill_over() {
    // 120 markets fit on four connections of 40 only when they spill.
    let capped =
        ExchangeConfig { markets_per_subscription: 40, ..exchange(&["any doubled next=1"]) };
    survives(capped);
}

#[test]
fn e10_too_fast_slows_that_subscription_down() {
    let capped =
        ExchangeConfig { commands_per_second: Some(3), ..exchange(&["any doubled next=1"]) };
    survives(capped);
}

#[test]
fn e10_a_bad_ticker_is_told_apart_and_the_others_stay() {
    let mut rig = start(exchange(&[]));
    rig.all_confirmed(ALL);
    let created = rig.exchange.create_markets(CHANGED);
    let bad: Vec<String> = created.iter().take(2).cloned().collect();
    rig.exchange.set_bad_tickers(BadTickers { code: 11, tickers: bad.iter().cloned().collect() });
    for text in &created {
        rig.host.send(MarketChange::created(text.parse().unwrap(), MarketStatus::Active)).unwrap();
    }
    let good = MARKETS + CHANGED - bad.len();
    rig.consume_until(
        "all but the bad ones are confirmed",
        |_| {},
        |rig| {
            rig.handle.stats().markets_total == u64::try_from(good).unwrap()
                && rig.handle.stats().markets_refused == 2
        },
    );
    assert_eq!(held(&rig).len(), good);
    let (verdict, _) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
}

#[test]
fn f7_replies_take_slots_and_make_no_gap() {
    let mut rig = start(exchange(&[]));
    rig.all_confirmed(ALL);
    change(&mut rig);
    rig.all_confirmed(ALL);
    let (verdict, report) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
    assert_eq!(report.stats.sequence_gaps, 0);
    assert!(report.stats.replies > 20, "{}", report.stats.replies);
}

#[test]
fn m4_a_market_removed_leaves_the_others_alone() {
    let mut rig = start(exchange(&[]));
    rig.all_confirmed(ALL);
    let gone = rig.exchange.active_markets().remove(0);
    rig.host.send(MarketChange::settled(gone.parse().unwrap())).unwrap();
    rig.all_confirmed(ALL - 1);
    assert!(!held(&rig).contains(&gone));
    assert_eq!(held(&rig).len(), MARKETS - 1);
    assert_eq!(rig.exchange.stats().verbs.unsubscribe, 0, "never the whole subscription");
    let (verdict, _) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
}

#[test]
fn the_legacy_dialect_streams_one_sid_a_market() {
    let legacy = ExchangeConfig { dialect: Dialect::Legacy, ..exchange(&[]) };
    let mut rig = start(legacy);
    rig.all_confirmed(ALL);
    change(&mut rig);
    rig.all_confirmed(ALL);
    assert_eq!(rig.handle.stats().subscriptions_total, ALL + 3);
    let (verdict, _) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
}

#[test]
fn a_burst_of_created_then_settled_leaves_nothing_behind() {
    let quick = ExchangeConfig { rate_per_second: 2_000, ..exchange(&[]) };
    let mut rig = start(quick);
    rig.all_confirmed(ALL);
    let host = rig.host.clone();
    let sender = std::thread::spawn(move || {
        let tickers = || (0..100_000).map(|n| format!("KXBURST-{n}").parse::<Ticker>().unwrap());
        for ticker in tickers() {
            host.send(MarketChange::created(ticker, MarketStatus::Active)).unwrap();
        }
        tickers().for_each(|ticker| host.send(MarketChange::settled(ticker)).unwrap());
    });
    rig.consume_until("the burst is over", |_| {}, |_| sender.is_finished());
    sender.join().unwrap();
    rig.consume_until(
        "only the first are held",
        |_| {},
        |rig| {
            let stats = rig.handle.stats();
            stats.markets_wanted == ALL && stats.markets_total == ALL && held(rig).len() == MARKETS
        },
    );
    let (verdict, report) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
    assert_eq!(report.stats.messages_dropped, 0);
}
