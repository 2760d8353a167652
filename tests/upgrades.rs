//! Upgrades that go wrong, over real sockets: rows B.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test may panic and read the clock"
)]

mod support;

use std::time::{Duration, Instant};

use exchange_sim::{Exchange, ExchangeConfig, Mode};
use kalshi_feed::{
    Cause, ConfigBuilder, Event, Manager, PoolLayout, Stage, StartError, StaticRegistry,
};
use support::Rig;

const POOL: PoolLayout = PoolLayout::new(1, 1, 1, 3);

/// An exchange that goes wrong by these rules.
fn exchange(rules: &[&str]) -> ExchangeConfig {
    ExchangeConfig {
        markets: 30,
        rate_per_second: 1_000,
        upgrade_faults: rules.iter().map(|rule| rule.parse().unwrap()).collect(),
        ..ExchangeConfig::default()
    }
}

/// Causes of the attempts that failed so far, with the delay before the next.
fn failures(rig: &mut Rig) -> Vec<(Cause, Duration)> {
    rig.take_aside();
    let failure = |event: &Event| match event {
        Event::AttemptFailed { cause, retry_in, .. } => Some((cause.clone(), *retry_in)),
        _ => None,
    };
    rig.seen.iter().filter_map(failure).collect()
}

/// A start that comes to nothing: the causes, and how many attempts and connections it took.
fn halted(rule: &str) -> Vec<Cause> {
    let mut rig = Rig::prepare(exchange(&[rule]), POOL, |settings| settings);
    let error = rig.manager.start().unwrap_err();
    let StartError::Halted { causes, .. } = error else { panic!("{rule}: {error}") };
    let stats = rig.handle.stats();
    assert!(stats.connection_attempts <= 18, "{rule}: at most three each, {stats:?}");
    // Nobody went anywhere else: a redirect is not followed.
    assert!(rig.exchange.stats().connections_accepted <= stats.connection_attempts, "{rule}");
    rig.take_aside();
    assert!(rig.seen.iter().any(|event| matches!(event, Event::Halted { .. })), "{rule}");
    causes.into_iter().map(|(_, cause)| cause).collect()
}

#[test]
fn b2_a_clock_that_is_off_is_corrected_by_the_exchanges() {
    for skew in [90_000, -150_000_i64] {
        let exchange = ExchangeConfig { clock_skew: skew, ..exchange(&[]) };
        let mut rig = Rig::start(exchange, POOL, |settings| settings);
        rig.all_confirmed(30);
        let stats = rig.handle.stats();
        assert!(stats.clock_corrections > 0);
        assert!((stats.clock_skew_ms - skew).abs() < 5_000, "{} for {skew}", stats.clock_skew_ms);
        assert_eq!(stats.connections_halted, 0);
        let expired = |(cause, _): &(Cause, Duration)| {
            matches!(cause, Cause::Upgrade { status: 401, detail, .. }
                if detail.contains("header_timestamp_expired"))
        };
        let failures = failures(&mut rig);
        assert!(!failures.is_empty() && failures.iter().all(expired), "{failures:?}");
        // Nobody needs to be refused a second time, not even after a loss.
        rig.exchange.cut(&rig.exchange.connections());
        rig.consume_until("all are back", |_| {}, |rig| rig.handle.stats().reconnects == 6);
        let again = self::failures(&mut rig);
        assert_eq!(again.len(), failures.len(), "{again:?}");
    }
}

#[test]
fn b3_what_no_retry_mends_halts_after_three_and_no_redirect_is_followed() {
    for status in [200, 302, 307, 403, 404] {
        for cause in halted(&format!("refused={status}")) {
            assert!(matches!(cause, Cause::Upgrade { status: told, .. } if told == status));
        }
    }
}

#[test]
fn b4_retry_after_is_waited_for_in_either_form_and_capped() {
    let rules = [
        "refused=429 retry_after=1 next=2",
        "refused=503 retry_at=2 next=2",
        "refused=429 retry_after=999999 next=2",
    ];
    let mut rig = Rig::prepare(exchange(&rules), POOL, |settings| {
        settings.reconnect_max(Duration::from_millis(1_800))
    });
    let begun = Instant::now();
    rig.manager.start().unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));
    let failures = failures(&mut rig);
    assert_eq!(failures.len(), 6, "{failures:?}");
    for (cause, retry_in) in failures {
        let Cause::Upgrade { retry_after: Some(asked), .. } = cause else { panic!("{cause}") };
        let most = Duration::from_millis(1_800);
        assert!(retry_in >= asked.min(most) && retry_in <= most, "{cause}: {retry_in:?}");
        assert!(retry_in >= Duration::from_millis(900), "{cause}: {retry_in:?}");
    }
}

#[test]
fn b6_an_answer_a_byte_a_second_ends_at_the_deadline_and_holds_up_nobody() {
    let rules = ["slow=1000 next=1", "half next=1", "silent next=1"];
    let mut rig = Rig::prepare(exchange(&rules), PoolLayout::new(0, 0, 0, 6), |settings| {
        settings.connect_timeout(Duration::from_secs(2)).min_healthy(3)
    });
    rig.manager.start().unwrap();
    // Three of six are up while the others still wait for their answers.
    assert!(failures(&mut rig).is_empty());
    rig.consume_until("all are up", |_| {}, |rig| rig.handle.stats().connections_healthy == 6);
    let failures = failures(&mut rig);
    let upgrading = Cause::Timeout { stage: Stage::Upgrading };
    assert_eq!(failures.len(), 3, "{failures:?}");
    assert!(failures.iter().all(|(cause, _)| *cause == upgrading), "{failures:?}");
}

#[test]
fn b7_an_answer_byte_by_byte_in_time_is_an_answer() {
    let mut rig = Rig::start(exchange(&["slow=1"]), POOL, |settings| settings);
    rig.all_confirmed(30);
    assert_eq!(failures(&mut rig), []);
    let (verdict, _) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
}

#[test]
fn b8_answers_that_are_none_are_told_as_such_and_tried_again() {
    let rules = ["wrong_accept", "no_upgrade", "http10", "garbage"];
    let rules = rules.map(|fault| format!("{fault} next=3"));
    let rules: Vec<_> = rules.iter().map(String::as_str).collect();
    let mut rig = Rig::start(exchange(&rules), POOL, |settings| settings);
    let failures = failures(&mut rig);
    assert_eq!(failures.len(), 12, "{failures:?}");
    let handshake = |(cause, _): &(Cause, Duration)| matches!(cause, Cause::Handshake { .. });
    assert!(failures.iter().all(handshake), "{failures:?}");
    rig.all_confirmed(30);
}

#[test]
fn b9_an_extension_or_subprotocol_nobody_asked_for_halts_after_three() {
    for (rule, named) in [("extension", "permessage-deflate"), ("protocol", "fix")] {
        for cause in halted(rule) {
            assert!(
                matches!(&cause, Cause::Extension { name } if name.contains(named)),
                "{rule}: {cause}"
            );
        }
    }
}

#[test]
fn b10_frames_that_ride_with_the_answer_are_delivered_at_once() {
    // Nothing else is ever sent: no market, no heartbeat, no ping of ours.
    let hour = Duration::from_secs(3_600);
    let quiet = ExchangeConfig {
        mode: Mode::Quiet,
        heartbeat_idle: hour,
        lifecycle_churn_per_minute: 0,
        ..exchange(&[r#"riding={"type":"welcome"}"#])
    };
    let exchange = Exchange::start(quiet).unwrap();
    let settings: ConfigBuilder = support::settings(&exchange, PoolLayout::new(0, 0, 0, 3));
    let mut manager =
        Manager::new(settings.ping_idle(hour).build().unwrap(), StaticRegistry::default());
    let mut messages = manager.messages().unwrap();
    manager.start().unwrap();
    for _ in 0..3 {
        let message = messages.recv_timeout(support::PATIENCE).unwrap();
        assert_eq!(message.data.as_ref(), b"{\"type\":\"welcome\"}\n");
    }
    // The ping that rode along is answered though nothing else is written.
    let begun = Instant::now();
    while exchange.stats().pongs < 3 {
        assert!(begun.elapsed() < support::PATIENCE, "{:?}", exchange.stats());
        std::thread::yield_now();
    }
    assert!(messages.try_recv().is_err());
}

#[test]
fn b11_a_reconnect_is_signed_anew() {
    // A signature is good for two seconds.
    let exchange = ExchangeConfig { clock_past: Duration::from_secs(2), ..exchange(&[]) };
    let mut rig = Rig::start(exchange, POOL, |settings| settings);
    rig.consume_for(Duration::from_millis(2_200), |_| {});
    rig.exchange.cut(&rig.exchange.connections());
    rig.consume_until("all are back", |_| {}, |rig| rig.handle.stats().reconnects == 6);
    let stats = rig.exchange.stats();
    assert_eq!((stats.upgrades_accepted, stats.upgrades_rejected), (12, 0));
    assert_eq!(failures(&mut rig), []);
}
