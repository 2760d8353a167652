//! What the log may never show. Alone in its process, which has one logger.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test may panic and read the clock"
)]

mod support;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use exchange_sim::{Exchange, ExchangeConfig};
use kalshi_feed::{Event, PoolLayout};
use support::Rig;

const POOL: PoolLayout = PoolLayout::new(1, 1, 1, 5);
/// A signature has 344 characters of base64; nothing else in a log has so many in a row.
const SIGNATURE_CHARS: usize = 300;

/// Reads every line and keeps none.
#[derive(Default)]
struct Reader {
    secrets: OnceLock<Vec<String>>,
    lines: AtomicU64,
    leaks: AtomicU64,
}

static READER: OnceLock<Reader> = OnceLock::new();

fn reader() -> &'static Reader {
    READER.get_or_init(Reader::default)
}

fn has_signature(text: &str) -> bool {
    let base64 = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=');
    // A dump of bytes is as long, but in sixteen digits.
    let beyond_hex = |run: &str| {
        run.contains(|c| ('g'..='z').contains(&c)) && run.contains(|c| ('G'..='Z').contains(&c))
    };
    text.split(|c| !base64(c)).any(|run| run.len() >= SIGNATURE_CHARS && beyond_hex(run))
}

fn leaks(text: &str) -> bool {
    let secrets = reader().secrets.get().map(Vec::as_slice).unwrap_or_default();
    has_signature(text) || secrets.iter().any(|secret| text.contains(secret.as_str()))
}

impl log::Log for Reader {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        let text = record.args().to_string();
        self.lines.fetch_add(1, Ordering::Relaxed);
        if leaks(&text) {
            self.leaks.fetch_add(1, Ordering::Relaxed);
            eprintln!("a secret in the log: {} {}", record.target(), record.level());
        }
    }
    fn flush(&self) {}
}

/// The lines of a key that are the key.
fn secrets(exchange: &Exchange) -> Vec<String> {
    let pem = [exchange.key_pem(), exchange.key_pkcs1_pem()].concat();
    let lines = pem.lines().filter(|line| line.len() > 40 && !line.contains("-----"));
    lines.map(str::to_owned).collect()
}

#[test]
fn j7_no_secret_at_any_level_in_a_loop_of_refusals() {
    log::set_logger(reader()).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    let exchange = ExchangeConfig { markets: 50, rate_per_second: 500, ..Default::default() };
    let mut rig = Rig::prepare(exchange, POOL, |settings| settings);
    let known = secrets(&rig.exchange);
    assert!(known.len() > 20);
    assert!(has_signature(&"qZ/9".repeat(86)), "the reader can see");
    reader().secrets.set(known).unwrap();
    rig.manager.start().unwrap();
    rig.all_confirmed(50);
    let shown = format!("{:?} {:?}", rig.manager, rig.handle);
    assert!(!leaks(&shown), "{shown}");
    // Every connection is cut, and refused for as long as five hundred attempts take.
    rig.exchange.refuse_upgrades(Some(503));
    rig.exchange.cut(&rig.exchange.connections());
    rig.consume_until(
        "five hundred attempts were refused",
        |_| {},
        |rig| {
            let failed = |event: &&Event| matches!(event, Event::AttemptFailed { .. });
            rig.seen.iter().filter(failed).count() >= 500
        },
    );
    rig.exchange.refuse_upgrades(Some(401));
    rig.consume_until("all are halted", |_| {}, |rig| rig.handle.stats().connections_halted == 8);
    let events = format!("{:?}", rig.seen);
    assert!(!leaks(&events));
    let report = rig.manager.stop(Duration::from_secs(2));
    assert!(!leaks(&format!("{report:?}")));
    assert!(reader().lines.load(Ordering::Relaxed) > 500, "the libraries' lines were read, too");
    assert_eq!(reader().leaks.load(Ordering::Relaxed), 0);
}
