//! The program stopped for a while by the system, as a laptop's lid or a machine's migration
//! would: it goes on with every connection it had.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "tests fail by panicking and read clocks"
)]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use exchange_sim::{Exchange, ExchangeConfig};

const PATIENCE: Duration = Duration::from_secs(30);
/// How long it is stopped: ten times what a connection may be silent.
const PAUSE: Duration = Duration::from_secs(4);

/// Ends the program with the test, however that ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        signal(&self.0, "CONT");
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").arg(format!("-{name}")).arg(child.id().to_string()).status();
    assert!(sent.is_ok_and(|status| status.success()), "no kill -{name}");
}

/// Waits until `done`, or until the time is over.
fn wait(time: Duration, mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + time;
    while Instant::now() < end {
        if done() {
            return true;
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    false
}

#[test]
fn h2_a_process_stopped_for_a_while_gives_nobody_up() {
    let exchange = Exchange::start(ExchangeConfig {
        markets: 50,
        rate_per_second: 500,
        ..ExchangeConfig::default()
    })
    .unwrap();
    let folder =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("pause-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let config = format!(
        "url = {:?}\nca_file = {:?}\nkey_id = {:?}\nkey_file = {:?}\npin = false\nshards = 2\n\
         ping_idle = \"200ms\"\npong_timeout = \"200ms\"\n\
         reconnect_initial = \"10ms\"\nreconnect_max = \"50ms\"\n",
        exchange.url(),
        write("ca.pem", exchange.ca_pem()),
        exchange.key_id(),
        write("key.pem", exchange.key_pem()),
    );
    let markets = write("markets.txt", &exchange.active_markets().join("\n"));
    let child = Command::new(env!("CARGO_BIN_EXE_kalshi-feed"))
        .args(["run", "--config", &write("config.toml", &config), "--markets-file", &markets])
        .args(["--output", "none", "--duration", "0"])
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let child = Running(child);
    let all_live = || exchange.connections().len() == 150 && exchange.stats().book_markets == 50;
    assert!(wait(PATIENCE, all_live), "{:?}", exchange.stats());
    for _ in 0..2 {
        // A quiet second: every connection waits in its poll, half of them pinged or about to be.
        wait(Duration::from_secs(1), || false);
        signal(&child.0, "STOP");
        wait(PAUSE, || false);
        signal(&child.0, "CONT");
        wait(Duration::from_secs(1), || false);
    }
    let stats = exchange.stats();
    assert_eq!(stats.upgrades_accepted, 150, "nobody came back, since nobody had gone: {stats:?}");
    assert_eq!(exchange.connections().len(), 150);
    drop(child);
    drop(std::fs::remove_dir_all(&folder));
}
