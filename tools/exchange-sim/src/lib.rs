//! A stand-in for Kalshi's WebSocket exchange: real TLS, real signatures, real subscription and
//! sequence semantics, plausible traffic; and a ledger of what it sent, with an auditor that
//! settles a client's account against it. It shares no code with the client library it tests.
//!
//! ```
//! use exchange_sim::{Exchange, ExchangeConfig};
//!
//! let exchange = Exchange::start(ExchangeConfig { markets: 50, ..ExchangeConfig::default() })?;
//! assert!(exchange.url().starts_with("wss://localhost:"));
//! assert_eq!(exchange.active_markets().len(), 50);
//! # Ok::<(), exchange_sim::ExchangeError>(())
//! ```

#![allow(
    clippy::as_conversions,
    clippy::indexing_slicing,
    reason = "a test instrument: places come from its own tables, numbers are small; client \
              bytes are read with checked access only"
)]

mod answer;
mod arbitration;
mod audit;
mod book;
mod certificate;
mod churn;
mod client;
mod clock;
mod code;
mod command;
mod config;
mod connection_controls;
mod contents;
mod controls;
mod conversation;
mod data_controls;
mod data_faults;
mod door;
mod exchange;
mod farewell;
mod faults;
mod flood;
mod frame;
mod ledger;
mod lines;
mod link;
mod liveliness;
mod manners;
mod market;
mod names;
mod network;
mod oddity;
mod outbox;
mod pair;
mod payload;
mod pipe;
mod postponed;
mod proxy;
mod remote;
mod reply;
mod rules;
mod security;
mod sending;
mod server;
mod settle;
mod slots;
mod subscription;
mod traffic;
mod upgrade;
mod upgrade_faults;
mod venue;
mod wire;

pub use arbitration::{Arbitration, LineVerdict};
pub use audit::{Audit, Verdict};
pub use config::{AckOrder, Dialect, Duplicates, ExchangeConfig, Mode, Packing};
pub use contents::{Content, Contents, LineCopy};
pub use controls::Holding;
pub use data_faults::{Among, DataFault, DataRule};
pub use exchange::{Exchange, ExchangeError};
pub use farewell::Break;
pub use faults::{BadTickers, CommandFault, FaultRule, Stray, Verb, VerbCounts, When};
pub use ledger::{ConnectionRecord, Ended, Ledger, NumberRange, Renumbering, SidRecord};
pub use lines::{LineDelay, LineHolder};
pub use manners::{Fragments, Manners, Pings};
pub use oddity::Oddity;
pub use security::{Identity, Security};
pub use server::ExchangeStats;
pub use upgrade::Denied;
pub use upgrade_faults::{Refusal, RetryAfter, UpgradeFault, UpgradeRule};
pub use wire::{Flow, Lane, Wire};
