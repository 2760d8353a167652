//! Messages delivered by a call on the shard's own thread.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test may panic and read the clock"
)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::bounded;
use exchange_sim::ExchangeConfig;
use kalshi_feed::{Batch, Delivery, Event, MessagesError, PoolLayout, ShardId};
use support::Rig;

fn exchange() -> ExchangeConfig {
    ExchangeConfig { markets: 100, rate_per_second: 5_000, ..ExchangeConfig::default() }
}

#[test]
fn every_frame_reaches_the_handler_of_its_shard() {
    let (sender, receiver) = bounded(1_000_000);
    let delivery = Delivery::inline(move |shard| {
        let sender = sender.clone();
        move |batch: &Batch<'_>| {
            for message in batch.iter() {
                let pair = u64::from(message.conn_id.number() - 1) / 2;
                assert_eq!(pair % 2, u64::from(shard.number()), "pairs share a shard");
                sender.send(message.to_owned()).unwrap();
            }
        }
    });
    let pool = PoolLayout::new(2, 2, 2, 10);
    let mut rig = Rig::with_delivery(exchange(), pool, |settings| settings, delivery);
    assert_eq!(rig.manager.messages().unwrap_err(), MessagesError::Inline);
    rig.manager.start().unwrap();
    rig.all_confirmed(100);
    rig.consume_for(Duration::from_secs(1), |_| {});
    let mut audit = exchange_sim::Audit::default();
    assert!(rig.exchange.stop_traffic(support::PATIENCE));
    rig.consume_for(Duration::from_millis(500), |_| {});
    let report = rig.manager.stop(Duration::from_secs(3));
    rig.take_aside();
    receiver.try_iter().for_each(|message| support::audit(&mut audit, &message));
    rig.audit.merge(audit);
    let verdict = rig.audit.settle(&rig.exchange.ledger());
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
    assert!(verdict.delivered > 4_000, "{verdict:?}");
    assert_eq!(report.stats.messages_consumed, report.stats.messages_forwarded);
    assert_eq!(report.stats.messages_dropped, 0);
}

#[test]
fn g5_a_handler_that_panics_takes_only_its_shard_along() {
    let armed = Arc::new(AtomicBool::new(false));
    let trigger = Arc::clone(&armed);
    let delivery = Delivery::inline(move |shard| {
        let armed = Arc::clone(&armed);
        move |_: &Batch<'_>| {
            let fatal = shard == ShardId::new(0) && armed.load(Ordering::Relaxed);
            assert!(!fatal, "the handler's own bug");
        }
    });
    let pool = PoolLayout::new(2, 2, 2, 10);
    let mut rig = Rig::with_delivery(exchange(), pool, |settings| settings, delivery);
    rig.manager.start().unwrap();
    trigger.store(true, Ordering::Relaxed);
    let lost = Event::ThreadLost { thread: "kf-shard-0".to_owned() };
    rig.consume_until(
        "the shard is reported lost",
        |_| {},
        |rig| rig.seen.contains(&lost) && rig.handle.stats().connections_halted == 8,
    );
    let before = rig.handle.stats();
    assert_eq!(before.connections_healthy, 8);
    rig.consume_until(
        "the other shard goes on",
        |_| {},
        |rig| rig.handle.stats().messages_consumed > before.messages_consumed + 1_000,
    );
    let report = rig.manager.stop(Duration::from_secs(2));
    assert_eq!((report.stuck.len(), report.panicked.len()), (0, 0));
}

#[test]
fn g5_a_handler_that_does_not_come_back_is_told_of_while_it_hangs() {
    let armed = Arc::new(AtomicBool::new(false));
    let trigger = Arc::clone(&armed);
    let (hold, held) = bounded::<()>(0);
    let delivery = Delivery::inline(move |shard| {
        let (armed, held) = (Arc::clone(&armed), held.clone());
        move |_: &Batch<'_>| {
            if shard == ShardId::new(1) && armed.load(Ordering::Relaxed) {
                // Until the test lets go.
                held.recv().unwrap_or_default();
            }
        }
    });
    let pool = PoolLayout::new(2, 2, 2, 10);
    let mut rig = Rig::with_delivery(exchange(), pool, |settings| settings, delivery);
    rig.manager.start().unwrap();
    trigger.store(true, Ordering::Relaxed);
    let one = ShardId::new(1);
    let stuck = |event: &Event| matches!(event, Event::ShardStuck { shard, .. } if *shard == one);
    rig.consume_until("it is told", |_| {}, |rig| rig.seen.iter().any(stuck));
    drop(hold);
    let goes_on =
        |event: &Event| matches!(event, Event::ShardStalled { shard, .. } if *shard == one);
    rig.consume_until("it goes on", |_| {}, |rig| rig.seen.iter().any(goes_on));
    let about = |event: &&Event| matches!(event, Event::ShardStuck { .. });
    assert_eq!(rig.seen.iter().filter(about).count(), 1, "once, and of no other");
    let report = rig.manager.stop(Duration::from_secs(2));
    assert_eq!((report.stuck.len(), report.panicked.len()), (0, 0));
}
