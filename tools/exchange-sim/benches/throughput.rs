//! How fast the exchange makes frames, TLS included, on its one thread. Run by hand:
//! `cargo bench -p exchange-sim`

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
use exchange_sim::{Exchange, ExchangeConfig, Mode};

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

/// Takes bytes off the sockets without decrypting them.
fn drain(sockets: Vec<TcpStream>, over: Arc<AtomicBool>) {
    for socket in &sockets {
        socket.set_nonblocking(true).unwrap();
    }
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

fn measure(label: &str, mode: Mode, rate: u64, connections: usize) {
    let config = ExchangeConfig {
        markets: 20_000,
        mode: Mode::Quiet,
        rate_per_second: rate,
        lifecycle_churn_per_minute: 0,
        ..ExchangeConfig::default()
    };
    let exchange = Exchange::start(config).unwrap();
    let markets = exchange.active_markets();
    let share = markets.len() / connections;
    let mut clients = Vec::new();
    for at in 0..connections {
        let mut client = Client::connect(&exchange);
        client.subscribe(1, &["orderbook_delta"], &markets[at * share..(at + 1) * share]);
        for _ in 0..=share {
            client.json();
        }
        clients.push(client);
    }
    let over = Arc::new(AtomicBool::new(false));
    let sockets = clients.iter().map(Client::socket).collect();
    let reader = std::thread::spawn({
        let over = Arc::clone(&over);
        move || drain(sockets, over)
    });
    let (before, cpu, began) = (exchange.stats(), cpu_seconds(), Instant::now());
    exchange.set_mode(mode);
    std::thread::sleep(Duration::from_secs(3));
    let (after, spent) = (exchange.stats(), began.elapsed().as_secs_f64());
    let cpu = cpu_seconds() - cpu;
    over.store(true, Ordering::Relaxed);
    reader.join().unwrap();
    let frames = (after.data_frames_sent - before.data_frames_sent) as f64;
    println!(
        "{label}: {:.0} frames/s, {:.0} MB/s, {:.0} ns CPU a frame, core busy {:.0} %",
        frames / spent,
        (after.bytes_sent - before.bytes_sent) as f64 / spent / 1e6,
        cpu / frames * 1e9,
        cpu / spent * 100.0
    );
}

fn frames_a_second() {
    measure("paced 20k/s, 144 connections", Mode::Paced, 20_000, 144);
    measure("paced 300k/s, 144 connections", Mode::Paced, 300_000, 144);
    measure("paced 2M/s, 144 connections", Mode::Paced, 2_000_000, 144);
    measure("burst, 144 connections", Mode::Burst, 0, 144);
    measure("burst, 4 connections", Mode::Burst, 0, 4);
}

fn auditor_cost() {
    let mut audit = exchange_sim::Audit::default();
    let began = Instant::now();
    let count = 20_000_000_u64;
    for number in 0..count {
        let conn = (number % 150 + 1) as u16;
        audit.delivered(conn, 1, 1, Some(number / 150 + 1), 0, b"");
    }
    println!("delivered: {:.1} ns a call", began.elapsed().as_secs_f64() * 1e9 / count as f64);
}

fn main() {
    frames_a_second();
    auditor_cost();
}
