//! What a whole shard thread allocates in the steady state: polls, reads, decryption, frames,
//! sequences, delivery. Counted on that thread alone, by the handler that runs on it. (That the
//! hand-off to another thread adds none is shown where the shard can be driven by hand.)
//!
//! The handler is slow, so that the sockets never run dry and reads are as large as they get.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test may panic and read the clock"
)]

mod support;

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use alloc_tracker::{Allocator, Session, ThreadSpan};
use crossbeam_channel::{Sender, bounded};
use exchange_sim::{ExchangeConfig, Mode, Packing};
use kalshi_feed::{Batch, Delivery, Handler, PoolLayout};
use support::Rig;

#[global_allocator]
static ALLOCATOR: Allocator<std::alloc::System> = Allocator::system();

/// Messages before every buffer has found its size.
const WARM_UP: u64 = 100_000;
/// Messages that count, at least.
const MESSAGES: u64 = 200_000;
/// What TLS may allocate in all, whatever the records: for a key that changes, say.
const SLACK: u64 = 100;
/// What the host takes over each batch.
const HANDLING: Duration = Duration::from_micros(300);

/// What the test tells the handler to do at its next batch.
const PASS: u64 = 0;
const COUNT: u64 = 1;
const END: u64 = 2;

/// Counts its thread's allocations from one batch to another.
struct Meter {
    orders: Arc<AtomicU64>,
    out: Sender<Counted>,
    counting: Option<(Session, ThreadSpan)>,
    messages: u64,
}

#[derive(Debug, PartialEq, Eq)]
struct Counted {
    messages: u64,
    allocations: u64,
}

fn allocations(session: &Session) -> u64 {
    session.to_report().operations().map(|(_, found)| found.total_allocations_count()).sum()
}

impl Handler for Meter {
    fn on_batch(&mut self, batch: &Batch<'_>) {
        match (self.orders.load(Ordering::Acquire), self.counting.take()) {
            (COUNT, None) => {
                let session = Session::new().no_stdout().no_file();
                let span = session.operation("steady state").measure_thread().iterations(1);
                self.counting = Some((session, span));
            }
            (END, Some((session, span))) => {
                drop(span);
                let counted =
                    Counted { messages: self.messages, allocations: allocations(&session) };
                self.out.send(counted).unwrap();
            }
            (_, counting) => self.counting = counting,
        }
        std::thread::sleep(HANDLING);
        if self.counting.is_some() {
            self.messages += u64::try_from(batch.len()).unwrap();
        }
    }
}

/// Lets the exchange send until the engine has had this many more, and waits until all is taken.
fn send(rig: &mut Rig, messages: u64) {
    let before = rig.handle.stats().messages_received;
    rig.exchange.resume_traffic();
    rig.consume_until(
        "the messages have come",
        |_| {},
        |rig| rig.handle.stats().messages_received >= before + messages,
    );
    assert!(rig.exchange.stop_traffic(support::PATIENCE));
    let sent = rig.exchange.stats().data_frames_sent;
    rig.consume_until("all is taken", |_| {}, |rig| rig.handle.stats().messages_received == sent);
}

/// What a shard's thread allocates over so many messages, and the records that brought them.
fn measure(tls: bool) -> (Counted, u64) {
    let orders = Arc::new(AtomicU64::new(PASS));
    let (out, counted) = bounded(1);
    let delivery = Delivery::inline({
        let orders = Arc::clone(&orders);
        move |_| {
            let (orders, out) = (Arc::clone(&orders), out.clone());
            Meter { orders, out, counting: None, messages: 0 }
        }
    });
    let exchange = ExchangeConfig {
        markets: 100,
        mode: Mode::Flood,
        packing: Packing::Whole,
        lifecycle_churn_per_minute: 0,
        tls,
        ..ExchangeConfig::default()
    };
    let pool = PoolLayout::new(1, 1, 1, 2);
    let mut rig = Rig::with_delivery(exchange, pool, |settings| settings.shards(1), delivery);
    assert!(rig.exchange.stop_traffic(support::PATIENCE));
    rig.manager.start().unwrap();
    rig.all_confirmed(100);
    send(&mut rig, WARM_UP);
    let before = rig.exchange.stats();
    orders.store(COUNT, Ordering::Release);
    send(&mut rig, MESSAGES);
    let after = rig.exchange.stats();
    orders.store(END, Ordering::Release);
    send(&mut rig, 1);
    let counted = counted.recv().unwrap();
    assert_eq!(counted.messages, after.data_frames_sent - before.data_frames_sent);
    assert!(counted.messages >= MESSAGES, "{counted:?}");
    (counted, after.records_sent - before.records_sent)
}

#[test]
fn over_tls_a_shard_allocates_nothing_for_records_or_messages() {
    let (Counted { messages, allocations }, records) = measure(true);
    println!("TLS: {messages} messages, {records} records, {allocations} allocations");
    assert!(allocations <= SLACK, "{allocations} allocations for {records} records");
}

#[test]
fn over_plain_tcp_a_shard_allocates_nothing() {
    // A path that allocates does so every time. Once may be an event: on a busy machine a turn is
    // stalled, and that is told.
    let counted = (0..3).map(|_| {
        let (Counted { messages, allocations }, _) = measure(false);
        println!("TCP: {messages} messages, {allocations} allocations");
        allocations
    });
    assert!(counted.into_iter().any(|allocations| allocations == 0));
}

#[test]
fn the_allocations_of_a_thread_are_seen() {
    let session = Session::new().no_stdout().no_file();
    let span = session.operation("one box").measure_thread().iterations(1);
    drop(black_box(Box::new(black_box(1))));
    drop(span);
    assert_eq!(allocations(&session), 1);
}
