//! Embedding kalshi-feed: connect, subscribe one market, print what comes.

use kalshi_feed::{Config, Credentials, Manager, StaticRegistry};
use std::time::Duration;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = Config::builder()
        .credentials(Credentials::from_pem_file("my-key-id", "kalshi.pem")?)
        .build()?;
    let markets = StaticRegistry::new(["KXBTCD-26NOV2317-T95499.99".parse()?]);
    let mut manager = Manager::new(config, markets);
    let messages = manager.messages()?;
    manager.start()?;
    for message in messages.take(1_000) {
        if message.seq_gap {
            eprintln!("connection {} missed {}", message.conn_id, message.gap_size);
        }
        println!("{}", String::from_utf8_lossy(&message.data));
    }
    println!("{:?}", manager.stop(Duration::from_secs(2)).stats);
    Ok(())
}
