//! The engine's parts one by one, on one thread: framing, envelope scan, sequence check, and the
//! hand-off of a batch, per batch of as many deltas as a full TLS record holds. The parts are
//! compiled into this program, since no host can reach them.
//!
//! `cargo bench --bench hot_path`

#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    clippy::as_conversions,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::wrong_self_convention,
    reason = "a measurement fails by panicking, and uses a part of the engine's parts"
)]

include!("inside/parts.in");
mod support;

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use support::plot::{self, Bar};

use crate::batch::{Continuity, Entry};
use crate::envelope::Envelope;
use crate::frame::{Framer, Incoming};
use crate::ids::{ConnId, Epoch, Role, Seq, ShardId, Sid};
use crate::messages::Handoff;
use crate::sequence::Sequences;

/// Deltas in one full record.
const FRAMES: usize = 60;

/// A delta as recorded.
fn delta(seq: usize) -> String {
    format!(
        "{{\"type\":\"orderbook_delta\",\"sid\":2,\"seq\":{seq},\"msg\":{{\"market_ticker\":\
         \"KXBTCD-26NOV2317-T95499.99\",\"market_id\":\"c94ba8d1-5f4e-4a3b-9d35-7f5d0a0a6a61\",\
         \"price_dollars\":\"0.4700\",\"delta_fp\":\"-3.00\",\"side\":\"yes\",\"ts\":\
         \"2026-11-01T12:00:00.957081Z\",\"ts_ms\":1793534400957}}}}\n"
    )
}

fn frames() -> Vec<u8> {
    let mut bytes = Vec::new();
    for seq in 0..FRAMES {
        let text = delta(100_000 + seq);
        bytes.extend([0x81, 126]);
        bytes.extend((text.len() as u16).to_be_bytes());
        bytes.extend(text.bytes());
    }
    bytes
}

fn framing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("per_record");
    group.throughput(Throughput::Elements(FRAMES as u64));
    let bytes = frames();
    let (mut framer, mut outgoing) = (Framer::new(1 << 20), Vec::new());
    group.bench_function("framing", |bencher| {
        bencher.iter(|| {
            let (mut at, mut count) = (0, 0);
            while let Ok(Some(Incoming::Text(text))) =
                framer.next(black_box(&bytes), &mut at, &mut outgoing)
            {
                count += black_box(text).len();
            }
            count
        });
    });
    let texts: Vec<_> = (0..FRAMES).map(|seq| delta(100_000 + seq)).collect();
    group.bench_function("envelope", |bencher| {
        bencher.iter(|| {
            for text in &texts {
                black_box(Envelope::read(black_box(text.as_bytes())));
            }
        });
    });
    group.bench_function("envelope_serde_json", |bencher| {
        bencher.iter(|| {
            for text in &texts {
                black_box(serde_json::from_str::<Peer>(black_box(text)).unwrap());
            }
        });
    });
    let (mut sequences, mut seq) = (Sequences::new(0), 0);
    sequences.observe(Sid::new(1), Seq::new(1));
    group.bench_function("sequence", |bencher| {
        bencher.iter(|| {
            for _ in 0..FRAMES {
                seq += 1;
                let observed = sequences.observe(Sid::new(2), Seq::new(black_box(seq)));
                black_box(sequences.take(Sid::new(2), observed));
            }
        });
    });
    group.finish();
}

/// The same fields by serde, for comparison.
#[derive(serde::Deserialize)]
struct Peer {
    #[serde(rename = "type")]
    kind: String,
    sid: Option<u64>,
    seq: Option<u64>,
}

fn hand_off(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("per_record");
    group.throughput(Throughput::Elements(FRAMES as u64));
    let (handoff, mut messages) = Handoff::new(1, 10_000, 64 << 20);
    let mut outlet = handoff.outlet(ShardId::new(0)).unwrap();
    let template = frames();
    let mut bytes = Vec::with_capacity(template.len());
    group.bench_function("hand_off", |bencher| {
        bencher.iter(|| {
            bytes.clear();
            bytes.extend_from_slice(&template);
            let place = (ConnId::new(1), Epoch::new(1), Role::Orderbook);
            let mut buffer = outlet.batch(&mut bytes, place, clock::stamp());
            for at in 0..FRAMES {
                let (start, end) = (at * 4, at * 4 + 200);
                let (sid, seq) = (Some(Sid::new(2)), Some(Seq::new(at as u64)));
                let continuity = Continuity::Next;
                let (gap_size, suspect) = (0, false);
                buffer.entries.push(Entry { start, end, sid, seq, gap_size, continuity, suspect });
            }
            let (sent, rest) = outlet.offer(buffer);
            assert!(sent == FRAMES && rest.is_none());
            for message in messages.try_recv_batch().unwrap() {
                black_box(message);
            }
        });
    });
    group.finish();
}

/// Nanoseconds a message, from the estimates criterion wrote.
fn bars() -> Vec<Bar> {
    let folder = peers::target_dir().join("criterion/per_record");
    let names = ["framing", "envelope", "envelope_serde_json", "sequence", "hand_off"];
    let mut bars = Vec::new();
    for name in names {
        let path = folder.join(name).join("new/estimates.json");
        let Ok(text) = std::fs::read_to_string(path) else { continue };
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let record = value["median"]["point_estimate"].as_f64().unwrap_or(0.0);
        bars.push(Bar::new(name.replace('_', " "), record / FRAMES as f64, 0.0));
    }
    bars
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .output_directory(&peers::target_dir().join("criterion"))
        .configure_from_args();
    framing(&mut criterion);
    hand_off(&mut criterion);
    criterion.final_summary();
    let note = "each part alone, on one thread, 60 deltas at a time";
    plot::bars("hot_path", "Nanoseconds per message, part by part", note, &bars());
}
