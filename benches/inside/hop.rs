//! One message at a time from a shard's side to the consumer's, two pinned threads, through the
//! engine's own queue; and the same through bare crossbeam. It judges the hop alone.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{TryRecvError, bounded};
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::batch::{Continuity, Entry};
use crate::clock::Stamp;
use crate::ids::{ConnId, Epoch, Role, Seq, ShardId, Sid};
use crate::messages::{Handoff, Outlet};
use crate::support::{FAR, NEAR, median, round};

/// Messages of one round.
const MESSAGES: u64 = 20_000;
/// Pause between two of them: each finds an empty queue.
const PAUSE: Duration = Duration::from_micros(5);
/// Enough for a consumer to fall asleep.
const LONG_PAUSE: Duration = Duration::from_micros(100);
/// As long as a delta.
const BYTES: usize = 270;

/// Rounds of each, interleaved; medians of their p50 and p90.
pub(crate) fn measure(rounds: u64) -> Value {
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    let (mut sleepy, mut sleepy_bare) = (Vec::new(), Vec::new());
    for turn in 1..=rounds {
        bare.push(crossbeam(PAUSE, true));
        ours.push(engine(PAUSE, true));
        sleepy_bare.push(crossbeam(LONG_PAUSE, false));
        sleepy.push(engine(LONG_PAUSE, false));
        let p50 = |rounds: &[Histogram<u64>]| rounds.last().unwrap().value_at_quantile(0.5);
        eprintln!(
            "hop, round {turn} of {rounds}: crossbeam p50 {} ns, engine {}; asleep {} and {}",
            p50(&bare),
            p50(&ours),
            p50(&sleepy_bare),
            p50(&sleepy)
        );
    }
    let middle = |rounds: &[Histogram<u64>], quantile: f64| {
        let at = |seen: &Histogram<u64>| seen.value_at_quantile(quantile) as f64;
        median(&rounds.iter().map(at).collect::<Vec<_>>())
    };
    let object = |ours: &[_], bare: &[_]| {
        json!({
            "p50_ns": middle(ours, 0.5), "crossbeam_p50_ns": middle(bare, 0.5),
            "p90_ns": middle(ours, 0.9), "crossbeam_p90_ns": middle(bare, 0.9),
            "ratio": round(middle(ours, 0.5) / middle(bare, 0.5), 2),
        })
    };
    let mut spinning = object(&ours, &bare);
    spinning["blocking"] = object(&sleepy, &sleepy_bare);
    spinning
}

/// Sends one message after another with a pause after each; `taken` tells how many have arrived,
/// so that no message ever waits behind another.
fn send(pause: Duration, taken: &AtomicU64, mut one: impl FnMut(u64)) {
    for number in 0..MESSAGES {
        one(number);
        let until = Instant::now() + pause;
        while Instant::now() < until || taken.load(Ordering::Acquire) <= number {
            std::hint::spin_loop();
        }
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(1_000_000_000, 3).unwrap()
}

/// Runs the two sides on their cores.
fn run(
    send: impl FnOnce() + Send,
    take: impl FnOnce(&mut Histogram<u64>) + Send,
) -> Histogram<u64> {
    let mut seen = histogram();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            peers::pin(NEAR);
            take(&mut seen);
        });
        scope.spawn(|| {
            peers::pin(FAR);
            send();
        });
    });
    seen
}

fn crossbeam(pause: Duration, spin: bool) -> Histogram<u64> {
    let (sender, receiver) = bounded::<Stamp>(10_000);
    let taken = AtomicU64::new(0);
    let send = || {
        let sender = sender;
        send(pause, &taken, |_| sender.send(crate::clock::stamp()).unwrap());
    };
    run(send, |seen| {
        loop {
            let stamp = if spin {
                receiver.try_recv()
            } else {
                receiver.recv().map_err(|_| TryRecvError::Disconnected)
            };
            match stamp {
                Ok(stamp) => {
                    seen.saturating_record(stamp.mono.elapsed().as_nanos() as u64);
                    taken.fetch_add(1, Ordering::Release);
                }
                Err(TryRecvError::Empty) => std::hint::spin_loop(),
                Err(TryRecvError::Disconnected) => return,
            }
        }
    })
}

fn engine(pause: Duration, spin: bool) -> Histogram<u64> {
    let (handoff, mut messages) = Handoff::new(1, 10_000, 64 << 20);
    let mut outlet = handoff.outlet(ShardId::new(0)).unwrap();
    drop(handoff);
    let taken = AtomicU64::new(0);
    let send = || {
        let mut bytes = Vec::with_capacity(BYTES);
        send(pause, &taken, |number| hand_over(&mut outlet, &mut bytes, number));
        drop(outlet);
    };
    run(send, |seen| {
        loop {
            let batch = if spin { messages.try_recv_batch() } else { messages.recv_batch() };
            match batch {
                Ok(batch) => {
                    for message in batch.iter() {
                        let age = message.received_at.mono.elapsed();
                        seen.saturating_record(age.as_nanos() as u64);
                    }
                    taken.fetch_add(batch.len() as u64, Ordering::Release);
                }
                Err(crate::error::RecvError::Empty) => std::hint::spin_loop(),
                Err(_) => return,
            }
        }
    })
}

/// What a shard does with one message of one read.
pub(crate) fn hand_over(outlet: &mut Outlet, bytes: &mut Vec<u8>, number: u64) {
    bytes.resize(BYTES, b'x');
    let place = (ConnId::new(1), Epoch::new(1), Role::Orderbook);
    let mut buffer = outlet.batch(bytes, place, crate::clock::stamp());
    buffer.entries.push(Entry {
        start: 0,
        end: BYTES,
        sid: Some(Sid::new(1)),
        seq: Some(Seq::new(number + 1)),
        gap_size: 0,
        continuity: Continuity::Next,
        suspect: false,
    });
    let (sent, rest) = outlet.offer(buffer);
    assert!(sent == 1 && rest.is_none(), "the consumer keeps up");
}
