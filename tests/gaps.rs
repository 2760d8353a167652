//! Numbers that are missing, doubled, old or begin again, over real sockets: each is told as what
//! it is. Rows F1 to F3 of the fault matrix.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may panic and read the clock"
)]

mod support;

use exchange_sim::{Among, DataFault, DataRule, ExchangeConfig};
use kalshi_feed::{Continuity, Event, PoolLayout};
use support::Rig;

fn start() -> Rig {
    let exchange = ExchangeConfig {
        markets: 20,
        rate_per_second: 2_000,
        lifecycle_churn_per_minute: 0,
        ..ExchangeConfig::default()
    };
    let mut rig = Rig::start(exchange, PoolLayout::new(1, 1, 1, 2), |settings| settings);
    rig.all_confirmed(20);
    // The first of every subscription are behind us, and numbers far from where they began.
    rig.consume_until("some came", |_| {}, |rig| rig.handle.stats().messages_received > 2_000);
    rig
}

/// So many data frames of this channel go wrong; all messages until the engine has noticed.
fn befall(
    rig: &mut Rig,
    (channel, fault, count): (&str, DataFault, u32),
    noticed: impl Fn(&Rig) -> bool,
) -> Vec<(Continuity, u64)> {
    let mut seen = Vec::new();
    rig.exchange.inject_data(DataRule::next(Among::Channel(channel.to_owned()), fault, count));
    rig.consume_until(
        "it is noticed",
        |message| seen.push((message.continuity, message.gap_size)),
        noticed,
    );
    // What was counted may not have been taken yet.
    let counted = rig.handle.stats().messages_forwarded;
    let taken = |rig: &Rig| rig.handle.stats().messages_consumed >= counted;
    let each = |message: &kalshi_feed::RawMessage| {
        seen.push((message.continuity, message.gap_size));
    };
    rig.consume_until("all of it is taken", each, taken);
    seen
}

fn settle(rig: &mut Rig) {
    let (verdict, report) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
    assert_eq!(verdict.covered, report.stats.messages_missed + report.stats.messages_dropped);
}

#[test]
fn f1_frames_lost_on_the_wire_are_told_by_the_message_after_them() {
    for lost in [1, 7] {
        let mut rig = start();
        let missed = u64::from(lost);
        let seen = befall(&mut rig, ("trade", DataFault::Drop, lost), |rig| {
            rig.handle.stats().messages_missed >= missed
        });
        let gaps: Vec<_> = seen.iter().filter(|(_, gap)| *gap > 0).collect();
        assert!(gaps.iter().all(|(continuity, _)| *continuity == Continuity::Gap), "{gaps:?}");
        assert_eq!(gaps.iter().map(|(_, gap)| gap).sum::<u64>(), missed);
        settle(&mut rig);
    }
}

#[test]
fn f2_frames_sent_again_are_delivered_as_what_they_are_and_no_gap() {
    let mut rig = start();
    let seen = befall(&mut rig, ("trade", DataFault::Duplicate, 5), |rig| {
        rig.handle.stats().messages_duplicate >= 5
    });
    let of = |seen: &[(Continuity, u64)], which| seen.iter().filter(|(c, _)| *c == which).count();
    assert_eq!(of(&seen, Continuity::Duplicate), 5);
    let seen = befall(&mut rig, ("trade", DataFault::Backward(3), 4), |rig| {
        rig.handle.stats().messages_backward >= 4
    });
    assert_eq!(of(&seen, Continuity::Backward), 4);
    assert_eq!(rig.handle.stats().sequence_gaps, 0, "the count goes on where it was");
    settle(&mut rig);
}

#[test]
fn f3_numbers_that_begin_again_are_called_old_and_the_subscription_is_renewed() {
    let mut rig = start();
    let seen = befall(&mut rig, ("trade", DataFault::Restart, 1), |rig| {
        let ended = |event: &&Event| matches!(event, Event::SubscriptionEnded { code: None, .. });
        rig.seen.iter().filter(ended).count() == 1
    });
    assert!(seen.iter().any(|(continuity, _)| *continuity == Continuity::Backward));
    let mut anew = seen.iter().any(|(continuity, _)| *continuity == Continuity::First);
    let again = rig.handle.stats().messages_received + 500;
    rig.consume_until(
        "it was opened anew",
        |message| anew |= message.continuity == Continuity::First,
        |rig| {
            let stats = rig.handle.stats();
            stats.messages_received > again && stats.subscriptions_total == 5
        },
    );
    assert!(anew, "no first message of the new subscription");
    assert!(rig.handle.stats().messages_backward >= 8);
    let (verdict, _) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
}
