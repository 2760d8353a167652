//! What subscribing every market costs the exchange: CPU a market, bytes a market, TLS and
//! snapshots included. Run by hand: `cargo bench -p exchange-sim --bench commands`

#![allow(
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    dead_code,
    reason = "a measurement fails by panicking and uses part of the client"
)]

#[path = "../tests/client/mod.rs"]
mod client;

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use client::Client;
use exchange_sim::{Dialect, Exchange, ExchangeConfig, Mode};
use serde_json::json;

const CONNECTIONS: usize = 144;
const CHUNK: usize = 500;

/// CPU seconds of the exchange's thread.
fn cpu_seconds() -> f64 {
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let read = |name| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        if read("comm").trim() == "exchange-sim" {
            let stat = read("schedstat");
            let nanos: f64 = stat.split(' ').next().unwrap().parse().unwrap();
            return nanos / 1e9;
        }
    }
    0.0
}

fn rss_bytes() -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<f64>().unwrap() * 1_024.0
}

/// Takes bytes off the sockets without decrypting them.
fn drain(sockets: Vec<TcpStream>, over: Arc<AtomicBool>) {
    let mut chunk = vec![0; 1 << 18];
    while !over.load(Ordering::Relaxed) {
        for mut socket in &sockets {
            match socket.read(&mut chunk) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// The commands of one connection, one text after the other.
fn commands(dialect: Dialect, tickers: &[String]) -> Vec<serde_json::Value> {
    if dialect == Dialect::Legacy {
        let one = |(id, ticker): (u64, &String)| {
            let params = json!({"channels":["orderbook_delta"],"market_ticker":ticker});
            json!({"id":id,"cmd":"subscribe","params":params})
        };
        return (1..).zip(tickers).map(one).collect();
    }
    let chunk = |(id, list): (u64, &[String])| {
        let mut params = json!({"market_tickers":list,"skip_ticker_ack":true});
        let cmd = if id == 1 { "subscribe" } else { "update_subscription" };
        if id == 1 {
            params["channels"] = json!(["orderbook_delta"]);
        } else {
            params["sids"] = json!([1]);
            params["action"] = json!("add_markets");
        }
        json!({"id":id,"cmd":cmd,"params":params})
    };
    (1..).zip(tickers.chunks(CHUNK)).map(chunk).collect()
}

fn measure(label: &str, dialect: Dialect, markets: usize) {
    let config = ExchangeConfig {
        markets,
        dialect,
        mode: Mode::Quiet,
        lifecycle_churn_per_minute: 0,
        ..ExchangeConfig::default()
    };
    let empty = rss_bytes();
    let exchange = Exchange::start(config).unwrap();
    let tickers = exchange.active_markets();
    let listed = rss_bytes();
    let share = markets.div_ceil(CONNECTIONS);
    let mut clients: Vec<Client> = (0..CONNECTIONS).map(|_| Client::connect(&exchange)).collect();
    let sockets: Vec<_> = clients.iter().map(Client::socket).collect();
    let over = Arc::new(AtomicBool::new(false));
    let drainer = std::thread::spawn({
        let over = Arc::clone(&over);
        for socket in &sockets {
            socket.set_nonblocking(true).unwrap();
        }
        move || drain(sockets, over)
    });
    let (before, cpu, began) = (rss_bytes(), cpu_seconds(), Instant::now());
    for (client, tickers) in clients.iter_mut().zip(tickers.chunks(share)) {
        for command in commands(dialect, tickers) {
            client.send(&command);
        }
    }
    while exchange.stats().book_markets < markets as u64 {
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(exchange.stop_traffic(Duration::from_secs(60)));
    let (cpu, wall) = (cpu_seconds() - cpu, began.elapsed().as_secs_f64());
    let count = markets as f64;
    let sent = exchange.stats().bytes_sent as f64;
    println!(
        "{label}: {:.2} us CPU a market, {wall:.2} s wall, {:.0} bytes sent a market; listing them \
         {:.0} bytes a market with their names copied once, subscribing {:.0} more",
        cpu / count * 1e6,
        sent / count,
        (listed - empty) / count,
        (rss_bytes() - before) / count
    );
    over.store(true, Ordering::Relaxed);
    drainer.join().unwrap();
}

fn main() {
    measure("live, lists of 500", Dialect::Live, 1_080_000);
    measure("legacy, one by one", Dialect::Legacy, 144_000);
}
