//! Redundant lines made into one stream over real sockets: each message once, what one line lost
//! filled by the other, what both lost told, and which line wins by how much.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test may panic and read the clock"
)]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use exchange_sim::{Arbitration as Streams, ExchangeConfig, LineVerdict, Mode};
use kalshi_feed::{
    Arbitration, ConfigBuilder, ConnId, LineStats, Overflow, PoolLayout, RawMessage, Role, Stats,
};
use support::Rig;

const GLOBAL: [Role; 3] = [Role::Ticker, Role::Trade, Role::Lifecycle];
const POOL: PoolLayout = PoolLayout::new(2, 2, 2, 2);

/// Much on the redundant lines, little elsewhere.
fn exchange(faults: &[&str]) -> ExchangeConfig {
    ExchangeConfig {
        markets: 500,
        rate_per_second: 4_000,
        lifecycle_churn_per_minute: 6_000,
        record_contents: true,
        data_faults: faults.iter().map(|rule| rule.parse().unwrap()).collect(),
        ..ExchangeConfig::default()
    }
}

/// Both lines of everything lose so much, each on its own.
fn lossy(part: f64) -> Vec<String> {
    let channels = GLOBAL.map(Role::channel);
    let lines = channels.into_iter().flat_map(|channel| [1, 2].map(|line| (channel, line)));
    lines.map(|(channel, line)| format!("{channel}/{line} drop p={part}")).collect()
}

fn start(
    exchange: ExchangeConfig,
    adjust: impl FnOnce(ConfigBuilder) -> ConfigBuilder,
) -> (Rig, BTreeMap<(Role, u8), ConnId>) {
    let mut rig = Rig::prepare(exchange, POOL, |settings| {
        adjust(settings.arbitration(Arbitration::FirstWins))
    });
    rig.streams = Some(Streams::default());
    rig.manager.start().unwrap();
    rig.consume_until("all lines are there", |_| {}, |rig| rig.exchange.lines().len() == 6);
    rig.take_aside();
    // The exchange numbers lines as they are subscribed.
    let role = |name: &str| GLOBAL.into_iter().find(|role| role.channel() == name).unwrap();
    let conn = |peer| rig.live.iter().find(|(_, (_, address))| *address == peer).unwrap();
    let lines = rig.exchange.lines();
    let lines = lines.iter().map(|line| ((role(line.channel), line.line), *conn(line.peer).0));
    let lines = lines.collect();
    (rig, lines)
}

/// Nothing is lost from here on, so that what was shows by what comes after.
fn whole_again(rig: &mut Rig, each: impl FnMut(&RawMessage)) {
    rig.exchange.clear_data_faults();
    rig.consume_for(Duration::from_millis(700), each);
}

fn line(stats: &Stats, conn: ConnId) -> &LineStats {
    stats.arbitration.lines.iter().find(|line| line.conn_id == conn).unwrap()
}

fn clean(role: Role, verdict: &LineVerdict) {
    let findings: &[String] = &verdict.findings;
    assert_eq!((verdict.unaccounted, findings), (0, &[][..]), "{role}: {verdict:?}");
    let sum = verdict.delivered + verdict.covered + verdict.undetectable;
    assert_eq!(sum, verdict.sent, "{role}: {verdict:?}");
}

/// Received is what was handed over, dropped, or came twice.
fn balanced(stats: &Stats) {
    assert_eq!(
        stats.messages_received,
        stats.messages_forwarded
            + stats.messages_dropped
            + stats.lifecycle_forwarded
            + stats.lifecycle_discarded
            + stats.arbitration.duplicates_dropped,
    );
}

#[test]
fn pairs_that_lose_one_in_a_hundred_each_deliver_everything_but_what_both_lost() {
    for (mode, part, seconds) in [(Mode::Paced, 0.1, 3), (Mode::Burst, 0.01, 3)] {
        let faults = lossy(part);
        let faults: Vec<&str> = faults.iter().map(String::as_str).collect();
        let config = ExchangeConfig { mode, ..exchange(&faults) };
        let (mut rig, _) = start(config, |settings| settings.overflow(Overflow::Backpressure));
        let mut gaps: BTreeMap<Role, (u64, u64)> = BTreeMap::new();
        let mut count = |message: &RawMessage| {
            let (told, slots) = gaps.entry(message.role).or_default();
            *told += u64::from(message.seq_gap);
            *slots += message.gap_size;
        };
        rig.consume_for(Duration::from_secs(seconds), &mut count);
        whole_again(&mut rig, &mut count);
        let (books, streams, report) = rig.settle_streams();
        assert_eq!(books.unaccounted, 0, "{:#?}", books.findings);
        let stats = &report.stats;
        balanced(stats);
        assert_eq!((stats.reconnects, stats.arbitration.late), (0, 0));
        let mut lost_on_both = 0;
        for (role, verdict) in &streams {
            clean(*role, verdict);
            let few = mode == Mode::Burst && *role == Role::Lifecycle;
            assert!(few || verdict.lost_on_some > 10, "{role}: {verdict:?}");
            // Gaps only where both lost, and all of those that a number shows.
            let shown = if *role == Role::Ticker { 0 } else { verdict.lost_on_all };
            assert_eq!(verdict.covered + verdict.undetectable, verdict.lost_on_all);
            assert_eq!(verdict.covered, shown, "{role}: {verdict:?}");
            lost_on_both += shown;
            println!(
                "{mode} {part} {role}: {} sent, {} delivered once, {} lost on one line, \
                 {} on both, gaps told {:?}",
                verdict.sent,
                verdict.delivered,
                verdict.lost_on_some,
                verdict.lost_on_all,
                gaps.get(role),
            );
        }
        assert_eq!(stats.arbitration.missed_by_both, lost_on_both);
        assert!(mode == Mode::Burst || lost_on_both > 5, "{streams:?}");
        // Tickers have no number by which to know that no second copy will come.
        let tickers = streams[&Role::Ticker].lost_on_some;
        assert!(stats.arbitration.cut_short <= tickers, "{:?}", stats.arbitration);
    }
}

#[test]
fn win_rates_and_lead_times_are_those_of_the_lines() {
    let faults = ["trade drop p=0.05", "market_lifecycle_v2 drop p=0.05", "ticker drop p=0.05"];
    let delays = ["trade/1 40", "ticker/2 80", "market_lifecycle_v2/2 20"];
    let config = ExchangeConfig {
        line_delays: delays.iter().map(|delay| delay.parse().unwrap()).collect(),
        ..exchange(&faults)
    };
    let (mut rig, lines) = start(config, |settings| settings);
    rig.consume_for(Duration::from_secs(3), |_| {});
    whole_again(&mut rig, |_| {});
    let (_, streams, report) = rig.settle_streams();
    for (role, slow, delay_ms) in
        [(Role::Trade, 1, 40), (Role::Ticker, 2, 80), (Role::Lifecycle, 2, 20)]
    {
        clean(role, &streams[&role]);
        let (slow, fast) = (lines[&(role, slow)], lines[&(role, 3 - slow)]);
        let (slow, fast) = (line(&report.stats, slow), line(&report.stats, fast));
        let lead_ms = |part| fast.lead.quantile(part) / 1_000_000;
        println!(
            "{role}: wins {} of {} ({:.3}) against {} of {} ({:.3}), \
             ahead by {} ms (p10 {}, p90 {})",
            fast.first,
            fast.first + fast.second,
            fast.win_rate(),
            slow.first,
            slow.first + slow.second,
            slow.win_rate(),
            lead_ms(0.5),
            lead_ms(0.1),
            lead_ms(0.9),
        );
        // The slow line is first with what the fast one lost, one in twenty, and no more.
        assert!(fast.win_rate() > 0.99, "{fast:?}");
        assert!((0.01..0.12).contains(&slow.win_rate()), "{slow:?}");
        // Held back by so much, and read when the machine came to it.
        assert!(lead_ms(0.5) >= delay_ms * 9 / 10, "{delay_ms}: {fast:?}");
        assert!(lead_ms(0.1) >= delay_ms / 2 && lead_ms(0.5) < delay_ms + 400, "{fast:?}");
        assert_eq!(slow.lead.count(), 0, "{slow:?}");
    }
}

#[test]
fn a_line_that_is_cut_makes_no_gap_and_the_other_carries_on() {
    let (mut rig, lines) = start(exchange(&["trade drop p=0.02"]), |settings| settings);
    for round in 0..6 {
        let conn = lines[&(Role::Trade, 1 + round % 2)];
        rig.consume_for(Duration::from_millis(200), |_| {});
        let (epoch, address) = rig.live[&conn];
        rig.exchange.cut(&[address]);
        rig.consume_until(
            "the line is back",
            |_| {},
            |rig| {
                rig.live.get(&conn).is_some_and(|(now, _)| *now > epoch)
                    && rig.exchange.lines().len() == 6
            },
        );
        // Time for what was under way on it when it was cut to have come on the other.
        rig.consume_for(Duration::from_millis(100), |_| {});
    }
    whole_again(&mut rig, |_| {});
    let (_, streams, report) = rig.settle_streams();
    assert_eq!(report.stats.reconnects, 6);
    for (role, verdict) in &streams {
        clean(*role, verdict);
        println!("{role}: {verdict:?}");
    }
    balanced(&report.stats);
}

#[test]
fn a_host_that_reads_nothing_for_a_while_is_told_exactly_once_for_both_lines() {
    for overflow in [Overflow::DropNewest, Overflow::Backpressure] {
        let faults = ["trade drop p=0.02"];
        let config = ExchangeConfig { rate_per_second: 20_000, ..exchange(&faults) };
        let (mut rig, _) =
            start(config, |settings| settings.message_buffer(1_000).overflow(overflow));
        rig.consume_for(Duration::from_millis(500), |_| {});
        let messages = rig.messages.take();
        rig.consume_for(Duration::from_secs(2), |_| {});
        rig.messages = messages;
        whole_again(&mut rig, |_| {});
        let (books, streams, report) = rig.settle_streams();
        assert_eq!(books.unaccounted, 0, "{:#?}", books.findings);
        for (role, verdict) in &streams {
            clean(*role, verdict);
            println!("{overflow:?} {role}: {verdict:?}");
        }
        let dropped = report.stats.messages_dropped;
        assert_eq!(dropped > 1_000, overflow == Overflow::DropNewest, "{dropped}");
        balanced(&report.stats);
    }
}

#[test]
fn by_default_both_lines_are_delivered() {
    let mut rig = Rig::start(exchange(&[]), POOL, |settings| settings);
    let mut trades: BTreeMap<ConnId, u64> = BTreeMap::new();
    rig.consume_until(
        "trades have come",
        |message| {
            if message.role == Role::Trade {
                *trades.entry(message.conn_id).or_default() += 1;
            }
        },
        |rig| rig.handle.stats().messages_received > 5_000,
    );
    let (verdict, report) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
    assert!(trades.len() == 2 && trades.values().all(|&count| count > 50), "{trades:?}");
    assert_eq!(report.stats.arbitration.duplicates_dropped, 0);
    assert!(report.stats.arbitration.lines.is_empty());
}
