//! A thread-per-core, synchronous connection engine for Kalshi's WebSocket market data.
//!
//! It keeps a pool of authenticated connections (150 by default: 2 ticker, 2 trade, 2 lifecycle,
//! 144 order book) alive and subscribed, and hands every message to its host with the time it was
//! received and an honest statement of what was missed before it.
//!
//! ```no_run
#![doc = include_str!("../tools/examples/embed.rs")]
//! ```
//!
//! # How it is put together
//! A few pinned threads (*shards*) each run one event loop over their share of the sockets; a
//! *connector* thread makes connections; a *conductor* thread decides what should be connected
//! and subscribed. They talk through bounded queues, share no lock, and no engine thread ever
//! waits for another. Time is an argument everywhere but in one file.
//!
//! # What it promises
//! - Every message carries how many of its subscription were missed before it, whether lost on
//!   the wire or dropped here for want of room: nothing is lost silently.
//! - No bytes from the network panic it, hang it or make it grow without bound.
//! - TLS is always verified; keys and signatures never appear in logs, errors or `Debug`.
//!
//! Facts about the exchange come from Kalshi's WebSocket documentation; where the live exchange
//! differs from it, the code says so.

#![forbid(unsafe_code)]

mod addresses;
mod affinity;
mod arbitration;
mod assign;
mod assignments;
mod auth;
mod backoff;
mod batch;
mod causes;
mod clock;
mod code;
mod command;
mod conductor;
mod config;
mod conflate;
mod connection;
mod connector;
mod cores;
mod coverage;
mod delivery;
mod dialect;
mod endpoint;
mod envelope;
mod error;
mod event;
mod frame;
mod gap;
mod held;
mod hush;
mod ids;
mod lapse;
mod lines;
mod link;
mod mailbox;
mod manager;
mod market;
mod messages;
mod metrics;
mod overflow;
mod partial;
mod placement;
mod pool;
#[cfg(test)]
mod property;
mod pulse;
mod recovery;
mod recovery_stats;
mod registry;
mod request;
mod resolve;
mod sequence;
mod shard;
mod shard_stats;
#[cfg(test)]
mod simulation;
mod socket;
mod spill;
mod spread;
mod stats;
mod subscription;
mod suspicion;
mod thread;
mod tickets;
mod timer;
mod tls;
mod transport;
mod upgrade;
mod wait;
mod warning;
mod watch;
mod watchdog;
mod wiring;

pub use arbitration::{Arbitration, ArbitrationPolicy};
pub use assign::Unplaced;
pub use assignments::{Assignment, Assignments};
pub use auth::Credentials;
pub use batch::{Batch, BatchIter, Continuity, Message, RawMessage};
pub use causes::CauseCount;
pub use clock::Stamp;
pub use code::ExchangeCode;
pub use command::{ErrorCode, ErrorMsg, Outcome, Response, SubscribedMsg};
pub use config::{Config, ConfigBuilder};
pub use coverage::{MarketList, Uncovered, UncoveredMarkets, UncoveredReason};
pub use delivery::{Delivery, Handler};
pub use dialect::Dialect;
pub use error::{
    Cause, ConfigError, KeyError, MessagesError, RecvError, Stage, StartError, TickerError,
};
pub use event::{Event, Events};
pub use gap::GapPolicy;
pub use ids::{CommandId, ConnId, Epoch, Role, Seq, ShardId, Sid, Ticker};
pub use lines::{ArbitrationStats, LineStats};
pub use mailbox::Untold;
pub use manager::{Handle, Manager, StopReport};
pub use market::{MarketState, SubscriptionInfo};
pub use messages::Messages;
pub use overflow::{Overflow, OverflowPolicy};
pub use pool::PoolLayout;
pub use recovery_stats::RecoveryStats;
pub use registry::{
    ChangeKind, ChannelRegistry, MarketChange, MarketStatus, Registry, RegistryHost, StaticRegistry,
};
pub use shard_stats::ShardStats;
pub use spread::Durations;
pub use stats::{Stats, SubscribeErrors};
pub use wait::Wait;
pub use warning::Warning;

/// The README's Rust is compiled by the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
