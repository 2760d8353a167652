//! Starts that cannot succeed, and stops: each says why, and leaves nothing running.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test may panic and read the clock"
)]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use exchange_sim::{Exchange, ExchangeConfig};
use kalshi_feed::{
    Cause, ConfigBuilder, Credentials, Events, Manager, PoolLayout, RecvError, StartError,
    StaticRegistry,
};
use support::{Rig, settings};

const POOL: PoolLayout = PoolLayout::new(1, 1, 1, 3);

fn quiet() -> ExchangeConfig {
    ExchangeConfig { markets: 10, rate_per_second: 100, ..ExchangeConfig::default() }
}

fn failing(adjust: impl FnOnce(&Exchange, ConfigBuilder) -> ConfigBuilder) -> StartError {
    let exchange = Exchange::start(quiet()).unwrap();
    let builder = settings(&exchange, POOL).start_timeout(Duration::from_secs(5));
    let config = adjust(&exchange, builder).build().unwrap();
    let mut manager = Manager::new(config, StaticRegistry::default());
    let (mut messages, events) = (manager.messages().unwrap(), manager.events().unwrap());
    let error = manager.start().unwrap_err();
    assert_eq!(messages.try_recv().unwrap_err(), RecvError::Empty, "it may be started again");
    assert_eq!(last(&events), RecvError::Timeout, "and tells what happens then");
    manager.stop(Duration::from_secs(1));
    assert_eq!(messages.try_recv().unwrap_err(), RecvError::Disconnected);
    assert_eq!(last(&events), RecvError::Disconnected);
    error
}

/// What comes after the last event there is.
fn last(events: &Events) -> RecvError {
    loop {
        if let Err(end) = events.recv_timeout(Duration::ZERO) {
            return end;
        }
    }
}

fn cause(error: &StartError) -> &Cause {
    match error {
        StartError::Timeout { causes, .. } | StartError::Halted { causes, .. } => {
            &causes.first().unwrap().1
        }
        other => panic!("{other}"),
    }
}

#[test]
fn b1_a_wrong_key_halts_at_once_and_names_the_401() {
    let error = failing(|_, settings| {
        let other = Exchange::start(quiet()).unwrap();
        let key = Credentials::from_pem(other.key_id(), other.key_pem().as_bytes()).unwrap();
        settings.credentials(key)
    });
    assert!(matches!(error, StartError::Halted { healthy: 0, .. }), "{error}");
    assert!(matches!(cause(&error), Cause::Upgrade { status: 401, .. }));
    assert!(error.to_string().contains("401 (authentication_error NOT_FOUND)"), "{error}");
}

#[test]
fn b1_a_right_id_with_a_wrong_key_is_told_apart() {
    let error = failing(|exchange, settings| {
        let other = Exchange::start(quiet()).unwrap();
        let pem = other.key_pkcs1_pem().as_bytes();
        settings.credentials(Credentials::from_pem(exchange.key_id(), pem).unwrap())
    });
    assert!(error.to_string().contains("INCORRECT_API_KEY_SIGNATURE"), "{error}");
}

#[test]
fn b3_a_wrong_path_names_the_404() {
    let error =
        failing(|exchange, settings| settings.url(exchange.url().replace("/ws/v2", "/ws/v3")));
    assert!(matches!(cause(&error), Cause::Upgrade { status: 404, .. }), "{error}");
}

#[test]
fn a8_an_untrusted_certificate_is_refused() {
    let error = failing(|_, settings| {
        let other = Exchange::start(quiet()).unwrap();
        settings.ca_pem(other.ca_pem().to_owned())
    });
    assert!(matches!(cause(&error), Cause::Certificate { .. }), "{error}");
}

#[test]
fn a1_an_unresolvable_host_is_named() {
    let error = failing(|_, settings| {
        settings
            .url("wss://no-such-host.invalid/trade-api/ws/v2")
            .start_timeout(Duration::from_secs(1))
    });
    assert!(
        matches!(cause(&error), Cause::Resolve { host, .. } if host == "no-such-host.invalid"),
        "{error}"
    );
}

#[test]
fn a3_a_closed_port_is_named() {
    let error = failing(|_, settings| {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let url = format!("wss://127.0.0.1:{}/trade-api/ws/v2", free.port());
        settings.url(url).start_timeout(Duration::from_secs(1))
    });
    assert!(matches!(cause(&error), Cause::Tcp { .. }), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
}

#[test]
fn a5_a_peer_that_never_answers_runs_into_the_one_deadline() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let error = failing(|_, settings| {
        let url = format!("wss://127.0.0.1:{}/", silent.local_addr().unwrap().port());
        settings
            .url(url)
            .connect_timeout(Duration::from_millis(300))
            .start_timeout(Duration::from_secs(1))
    });
    assert!(matches!(cause(&error), Cause::Timeout { .. }), "{error}");
}

#[test]
fn a_registry_that_fails_fails_the_start() {
    struct Broken;
    impl kalshi_feed::Registry for Broken {
        fn active_markets(&mut self) -> Result<Vec<kalshi_feed::Ticker>, String> {
            Err("the database is away".to_owned())
        }
        fn changes(&mut self) -> crossbeam_channel::Receiver<kalshi_feed::MarketChange> {
            crossbeam_channel::never()
        }
        fn lifecycle(&mut self) -> Option<crossbeam_channel::Sender<kalshi_feed::RawMessage>> {
            None
        }
    }
    let exchange = Exchange::start(quiet()).unwrap();
    let mut manager = Manager::new(settings(&exchange, POOL).build().unwrap(), Broken);
    for _ in 0..2 {
        let error = manager.start().unwrap_err();
        assert_eq!(error, StartError::Registry("the database is away".to_owned()));
    }
}

#[test]
fn a_failed_start_may_be_repeated_and_then_succeed() {
    let mut rig =
        Rig::prepare(quiet(), POOL, |settings| settings.start_timeout(Duration::from_millis(500)));
    rig.exchange.refuse_upgrades(Some(503));
    let error = rig.manager.start().unwrap_err();
    assert!(matches!(error, StartError::Timeout { healthy: 0, .. }), "{error}");
    rig.exchange.refuse_upgrades(None);
    rig.manager.start().unwrap();
    rig.all_confirmed(10);
    rig.consume_for(Duration::from_millis(300), |_| {});
    let (verdict, _) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
    assert!(verdict.delivered > 0);
}

#[test]
fn g1_what_a_failed_start_lost_is_told_by_the_next_and_its_epochs_are_never_used_again() {
    // One connection too many for the exchange: the others stream, and no start can succeed.
    let exchange = ExchangeConfig { max_connections: 5, rate_per_second: 5_000, ..quiet() };
    let mut rig = Rig::prepare(exchange, POOL, |settings| {
        settings.message_buffer(100).start_timeout(Duration::from_secs(1))
    });
    let mut before = BTreeMap::new();
    let mut told = 0;
    for _ in 0..2 {
        let error = rig.manager.start().unwrap_err();
        assert!(matches!(error, StartError::Timeout { .. }), "{error}");
        let mut epochs = before.clone();
        rig.consume_for(Duration::from_millis(100), |message| {
            let (conn, epoch) = (message.conn_id, message.epoch);
            assert!(before.get(&conn).is_none_or(|used| *used < epoch), "{conn}: {epoch} again");
            epochs.insert(conn, epoch);
            told += message.gap_size;
        });
        before = epochs;
    }
    let (verdict, report) = rig.settle();
    let dropped = report.stats.messages_dropped;
    println!("{dropped} dropped, {told} told by messages, {} at the end", report.untold.len());
    assert!(dropped > 100 && told > 0, "{told} of {dropped}");
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
    assert_eq!(verdict.covered, dropped);
}

#[test]
fn j4_a_stop_requested_while_starting_cancels_the_start() {
    let mut rig = Rig::prepare(quiet(), POOL, |settings| settings);
    rig.exchange.refuse_upgrades(Some(503));
    let handle = rig.handle.clone();
    let error = std::thread::scope(|scope| {
        scope.spawn(|| {
            while handle.stats().connection_attempts == 0 {
                std::thread::yield_now();
            }
            handle.request_stop();
        });
        rig.manager.start().unwrap_err()
    });
    assert_eq!(error, StartError::Cancelled);
}

#[test]
fn a_stop_requested_by_anyone_ends_the_stream_for_a_waiting_consumer() {
    let mut rig = Rig::start(quiet(), POOL, |settings| settings);
    rig.all_confirmed(10);
    let mut messages = rig.messages.take().unwrap();
    let consumer = std::thread::spawn(move || {
        while messages.recv().is_ok() {}
        messages.recv_timeout(support::PATIENCE).unwrap_err()
    });
    rig.handle.request_stop();
    assert_eq!(consumer.join().unwrap(), RecvError::Disconnected);
    let begun = std::time::Instant::now();
    while rig.events.recv_timeout(support::PATIENCE) != Err(RecvError::Disconnected) {
        assert!(begun.elapsed() < support::PATIENCE, "whoever waits for events sees the end, too");
    }
    let stats = rig.handle.stats();
    assert_eq!((stats.connections_healthy, stats.subscriptions_total), (0, 0), "before any stop");
    assert_eq!((stats.markets_total, stats.markets_wanted), (0, 10));
    let report = rig.manager.stop(Duration::MAX);
    assert_eq!((report.stuck.len(), report.panicked.len()), (0, 0));
    assert_eq!(report.stats.connections_healthy, 0);
    let asked = std::time::Instant::now();
    assert_eq!(rig.handle.subscription(&"M".parse().unwrap()), None);
    assert!(asked.elapsed() < Duration::from_secs(1), "a stopped engine answers at once");
}

#[test]
fn j3_a_stop_without_a_deadline_still_says_goodbye() {
    let mut rig = Rig::start(quiet(), POOL, |settings| settings);
    let report = rig.manager.stop(Duration::MAX);
    assert_eq!((report.stuck.len(), report.panicked.len()), (0, 0));
    assert!(report.elapsed < support::PATIENCE);
    let closed =
        |record: &&exchange_sim::ConnectionRecord| record.ended == exchange_sim::Ended::PeerClosed;
    let ledger = rig.exchange.ledger();
    assert_eq!(ledger.connections.iter().filter(closed).count(), 6, "{ledger:?}");
}

#[test]
fn changes_reported_during_a_start_that_failed_hold_for_the_next() {
    let mut rig =
        Rig::prepare(quiet(), POOL, |settings| settings.start_timeout(Duration::from_millis(500)));
    let created = kalshi_feed::MarketStatus::Active;
    let ticker: kalshi_feed::Ticker = "KXNEW-1".parse().unwrap();
    let gone: kalshi_feed::Ticker = rig.exchange.active_markets().remove(0).parse().unwrap();
    rig.exchange.refuse_upgrades(Some(503));
    rig.host.send(kalshi_feed::MarketChange::created(ticker.clone(), created)).unwrap();
    rig.host.send(kalshi_feed::MarketChange::settled(gone.clone())).unwrap();
    rig.manager.start().unwrap_err();
    rig.exchange.refuse_upgrades(None);
    rig.manager.start().unwrap();
    rig.all_confirmed(10);
    assert!(rig.handle.subscription(&ticker).is_some());
    assert_eq!(rig.handle.subscription(&gone), None);
}

#[test]
fn j3_stopping_twice_gives_the_same_report_and_starting_again_is_refused() {
    let mut rig = Rig::start(quiet(), POOL, |settings| settings);
    assert_eq!(rig.manager.start(), Err(StartError::AlreadyStarted));
    let first = rig.manager.stop(Duration::from_secs(2));
    let second = rig.manager.stop(Duration::from_secs(2));
    assert_eq!((first.elapsed, first.stats), (second.elapsed, second.stats));
    assert_eq!((first.stuck.len(), first.panicked.len()), (0, 0));
    assert_eq!(rig.manager.start(), Err(StartError::Stopped));
    assert!(rig.manager.messages().is_err(), "taken once");
    let change = kalshi_feed::MarketChange::settled("M".parse().unwrap());
    assert!(rig.host.send(change).is_err(), "nobody takes changes any more, and says so");
}

#[test]
fn unsigned_upgrades_and_plain_text_to_loopback_work() {
    let plain = ExchangeConfig { tls: false, require_signature: false, ..quiet() };
    let exchange = Exchange::start(plain).unwrap();
    let config = kalshi_feed::Config::builder().url(exchange.url()).pool(POOL).build().unwrap();
    let tickers: Vec<_> =
        exchange.active_markets().iter().map(|ticker| ticker.parse().unwrap()).collect();
    let mut manager = Manager::new(config, StaticRegistry::new(tickers));
    let mut messages = manager.messages().unwrap();
    manager.start().unwrap();
    let message = messages.recv_timeout(support::PATIENCE).unwrap();
    assert!(message.data.ends_with(b"\n"), "the exact frame");
}

#[test]
fn j4_every_request_to_stop_cancels_exactly_one_start() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let exchange = Exchange::start(quiet()).unwrap();
    let (mut first, mut second) = (0, 0);
    for round in 0..60_u64 {
        let settings = settings(&exchange, POOL)
            .url(format!("wss://127.0.0.1:{}/", free.port()))
            .start_timeout(Duration::from_millis(20));
        let mut manager = Manager::new(settings.build().unwrap(), StaticRegistry::default());
        let handle = manager.handle();
        // Before the start's end, while it is torn down, and after: all of it.
        let asked = std::time::Instant::now() + Duration::from_micros(18_000 + round * 150);
        let (begun, again) = std::thread::scope(|scope| {
            let asker = scope.spawn(|| {
                while std::time::Instant::now() < asked {
                    std::hint::spin_loop();
                }
                handle.request_stop();
            });
            let begun = manager.start().unwrap_err();
            asker.join().unwrap();
            (begun, manager.start().unwrap_err())
        });
        let cancelled = |error: &StartError| *error == StartError::Cancelled;
        first += u32::from(cancelled(&begun));
        second += u32::from(cancelled(&again));
        assert!(cancelled(&begun) != cancelled(&again), "round {round}: {begun:?}, {again:?}");
    }
    println!("{first} came in time for the first start, {second} were for the second");
}
