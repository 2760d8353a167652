//! Tuning: socket options, arrival times, cores, and slow handlers, over real connections.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test may panic and read the clock"
)]

mod support;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use exchange_sim::ExchangeConfig;
use kalshi_feed::{Batch, Delivery, Event, PoolLayout, RawMessage, ShardId, Wait, Warning};
use support::Rig;

const POOL: PoolLayout = PoolLayout::new(2, 2, 2, 4);
const OWN: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

fn exchange() -> ExchangeConfig {
    ExchangeConfig { markets: 50, rate_per_second: 2_000, ..ExchangeConfig::default() }
}

/// How long before its read a message says it was received.
fn lead(message: &RawMessage) -> Duration {
    let age = message.received_at.mono.elapsed();
    let read = SystemTime::now() - age;
    read.duration_since(message.received_at.wall).unwrap_or_default()
}

/// The part of the messages that were received well before they were read, in percent.
fn early(rig: &mut Rig) -> usize {
    let (mut all, mut early) = (0, 0);
    rig.consume_for(Duration::from_secs(1), |message| {
        all += 1;
        early += usize::from(lead(message) > Duration::from_micros(1));
    });
    assert!(all > 500, "{all} messages");
    early * 100 / all
}

#[test]
fn a_connection_works_with_every_option_on() {
    let mut rig = Rig::start(exchange(), POOL, |settings| {
        settings
            .receive_buffer_bytes(64 << 10)
            .busy_poll_us(50)
            .tcp_user_timeout(Duration::from_secs(5))
            .bind_address(OWN)
            .bind_interface("lo".to_owned())
            .kernel_timestamps(true)
            .turn_budget(4)
    });
    rig.all_confirmed(50);
    let peers = rig.exchange.connections();
    assert_eq!(peers.len(), 10);
    assert!(peers.iter().all(|peer| peer.ip() == OWN), "{peers:?}");
    assert!(rig.live.values().all(|(_, local)| local.ip() == OWN), "{:?}", rig.live);
    let early = early(&mut rig);
    assert!(early > 90, "{early} % have the kernel's time");
    // Polling the card is a privilege this test may not have; then it is said, and nothing else.
    for warning in rig.manager.warnings() {
        let text = warning.to_string();
        assert!(text.starts_with("busy_poll_us: the kernel refused 50"), "{text}");
    }
    let (verdict, _) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
}

#[test]
fn the_time_of_the_read_is_the_default_and_a_cut_buffer_is_told() {
    let mut rig = Rig::start(exchange(), POOL, |settings| settings.receive_buffer_bytes(1 << 30));
    let early = early(&mut rig);
    assert!(early < 50, "{early} % were received before they were read");
    assert!(rig.exchange.connections().iter().all(|peer| peer.ip() != OWN));
    let warnings = rig.handle.warnings();
    let [Warning::Setting { setting: "receive_buffer_bytes", problem }] = warnings.as_slice()
    else {
        panic!("{warnings:?}");
    };
    assert!(problem.contains("net.core.rmem_max=1073741824"), "{problem}");
}

/// The threads of this process with this name: the cores each may run on.
fn masks(name: &str) -> BTreeSet<String> {
    let mut masks = BTreeSet::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        // A thread may end while we look at it.
        let status = std::fs::read_to_string(task.unwrap().path().join("status"));
        let status = status.unwrap_or_default();
        let field = |key: &str| status.lines().find_map(|line| line.strip_prefix(key));
        if field("Name:\t") == Some(name) {
            masks.extend(field("Cpus_allowed_list:\t").map(str::to_owned));
        }
    }
    masks
}

/// This thread's cores, as the system lists them, and the last of them.
fn own_cores() -> (String, usize) {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:\t")).unwrap();
    let last = mask.rsplit([',', '-']).next().unwrap();
    (mask.to_owned(), last.parse().unwrap())
}

#[test]
fn shards_stay_on_their_core_and_the_others_keep_off() {
    let (mask, last) = own_cores();
    let rig = Rig::start(exchange(), POOL, |settings| {
        settings.pin(true).shards(2).cores(vec![last, last])
    });
    let cores: Vec<_> = rig.handle.stats().shards.iter().map(|shard| shard.core).collect();
    assert_eq!(cores, [Some(last), Some(last)]);
    for shard in ["kf-shard-0", "kf-shard-1"] {
        assert!(masks(shard).contains(&last.to_string()), "{:?}", masks(shard));
    }
    let warnings = rig.manager.warnings();
    let shards = vec![ShardId::new(0), ShardId::new(1)];
    assert!(warnings.contains(&Warning::SharedCore { core: last, shards }), "{warnings:?}");
    if mask == last.to_string() {
        assert!(warnings.contains(&Warning::NoControlCore), "{warnings:?}");
        return;
    }
    for control in ["kf-conductor", "kf-connector"] {
        let mut masks = masks(control);
        // Other tests of this process pin nothing: their threads have all its cores.
        masks.remove(&mask);
        assert_eq!(masks.len(), 1, "{control}: {masks:?}");
        let kept = masks.first().unwrap();
        assert!(kept.split([',', '-']).all(|core| core != last.to_string()), "{control}: {kept}");
    }
}

#[test]
fn a_slow_handler_is_told_of_once_a_second() {
    const SLOW: Duration = Duration::from_millis(3);
    const ONE: ShardId = ShardId::new(1);
    let armed = Arc::new(AtomicBool::new(false));
    let trigger = Arc::clone(&armed);
    let delivery = Delivery::inline(move |shard| {
        let armed = Arc::clone(&armed);
        move |_: &Batch<'_>| {
            let begun = Instant::now();
            let slow = shard == ONE && armed.load(Ordering::Relaxed);
            while slow && begun.elapsed() < SLOW {
                std::hint::spin_loop();
            }
        }
    });
    let threshold = Duration::from_millis(2);
    let adjust = |settings: kalshi_feed::ConfigBuilder| {
        settings.wait(Wait::Block).handler_slow_threshold(threshold)
    };
    let mut rig = Rig::with_delivery(exchange(), POOL, adjust, delivery);
    rig.manager.start().unwrap();
    rig.all_confirmed(50);
    let begun = Instant::now();
    trigger.store(true, Ordering::Relaxed);
    let of_one =
        |event: &&Event| matches!(event, Event::HandlerSlow { shard, .. } if *shard == ONE);
    let told = |rig: &Rig| rig.seen.iter().filter(of_one).cloned().collect::<Vec<_>>();
    rig.consume_until("it is told twice", |_| {}, |rig| told(rig).len() >= 2);
    let (events, elapsed) = (told(&rig), begun.elapsed());
    assert!(elapsed > Duration::from_millis(900), "{elapsed:?}: {events:?}");
    for event in &events {
        let Event::HandlerSlow { took, calls, .. } = event else { panic!("{event:?}") };
        assert!(*took > threshold && *calls >= 1, "{event:?}");
    }
    let stats = rig.manager.stop(Duration::from_secs(3)).stats;
    let slow = &stats.shards[1];
    assert!(slow.handler_slow > 10 && slow.handler_slow <= slow.handler_calls, "{slow:?}");
    assert!(slow.handler_slowest_ns >= 3_000_000, "{slow:?}");
    assert!(slow.handler_busy_ns >= slow.handler_slow * 2_000_000, "{slow:?}");
    let calls: u64 = stats.shards.iter().map(|shard| shard.handler_calls).sum();
    assert_eq!(stats.handler_calls, calls);
    assert!(stats.prometheus().contains("conn_manager_handler_slow_total"));
}
