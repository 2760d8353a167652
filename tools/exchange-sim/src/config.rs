//! What an exchange is started with: plain values, their units and defaults. It never does
//! anything.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use crate::data_faults::DataRule;
use crate::faults::{BadTickers, FaultRule};
use crate::lines::LineDelay;
use crate::manners::Manners;
use crate::security::Security;
use crate::upgrade_faults::UpgradeRule;
use crate::wire::Wire;

/// Settings of one simulated exchange.
#[derive(Clone, Debug)]
pub struct ExchangeConfig {
    /// Address to listen on. Default 127.0.0.1, port 0 (any free one).
    pub listen: SocketAddr,
    /// Active markets at the start. Default 2000.
    pub markets: usize,
    /// Data frames a second summed over all connections, for [`Mode::Paced`]. Default 20 000.
    pub rate_per_second: u64,
    /// How traffic is generated. Default [`Mode::Paced`].
    pub mode: Mode,
    /// Seed of all generated traffic. Default 1.
    pub seed: u64,
    /// Upgraded connections accepted at a time; the next upgrade is answered 429. Default 200.
    pub max_connections: usize,
    /// A ping with payload `heartbeat` goes out after this long without sending anything on a
    /// connection. Default 10 s.
    pub heartbeat_idle: Duration,
    /// How far a signature's timestamp may lie in the past. Default 15 s.
    pub clock_past: Duration,
    /// How far a signature's timestamp may lie in the future. Default 60 s.
    pub clock_future: Duration,
    /// Whether an upgrade without credentials is refused. Default true. When false, an upgrade that
    /// carries credentials is still checked.
    pub require_signature: bool,
    /// Market swaps (one created, one settled) a minute in the background; pauses and other
    /// lifecycle events come along at a lower rate. Default 60; 0 = no background lifecycle events.
    pub lifecycle_churn_per_minute: u32,
    /// Whether a settled market keeps streaming deltas to connections still subscribed to it.
    /// Default false.
    pub settled_markets_stream: bool,
    /// Levels on each side of an opening book. Default 2 to 8.
    pub snapshot_levels: RangeInclusive<u8>,
    /// Whether `ok` comes before or after the snapshots a command causes. Default
    /// [`AckOrder::AckFirst`].
    pub ack_order: AckOrder,
    /// Which description of the exchange it follows. Default [`Dialect::Live`].
    pub dialect: Dialect,
    /// What a `subscribe` to a channel the connection has already does. Default
    /// [`Duplicates::Merge`]; in [`Dialect::Legacy`] a market's second one is always refused.
    pub duplicate_subscribe: Duplicates,
    /// Whether `get_snapshot` is answered with an `ok` after its snapshots. Default false.
    pub snapshot_ok: bool,
    /// Most markets of one subscription; adding more is answered with error 26 and adds nothing.
    /// Default 500 000, the live exchange's limit per session.
    pub markets_per_subscription: usize,
    /// Most commands a second on one subscription; more are answered with error 27 and not carried
    /// out. Default none.
    pub commands_per_second: Option<u32>,
    /// Tickers no command may name. Default none.
    pub bad_tickers: BadTickers,
    /// What goes wrong with commands; the first rule that strikes counts. Default nothing.
    pub faults: Vec<FaultRule>,
    /// What goes wrong with upgrades; the first rule that strikes counts. Default nothing.
    pub upgrade_faults: Vec<UpgradeRule>,
    /// How far the exchange's clock is ahead of the machine's, in milliseconds, behind if negative;
    /// see [`crate::Exchange::set_clock_skew`]. Default 0.
    pub clock_skew: i64,
    /// How it behaves on connections beside what it says there. Default well.
    pub manners: Manners,
    /// What goes wrong with data; the first rule that strikes counts. Default nothing.
    pub data_faults: Vec<DataRule>,
    /// Lines that are held back. Default none.
    pub line_delays: Vec<LineDelay>,
    /// Whether every message of the channels followed whole is kept, with its copies, for
    /// [`crate::Exchange::contents`]. Default false.
    pub record_contents: bool,
    /// How frames are packed into TLS records. Default [`Packing::Stream`].
    pub packing: Packing,
    /// In paced mode: whether each event is written to its sockets before the next is made, rather
    /// than once a tick, so that its time is the time of the write. Default false.
    pub write_through: bool,
    /// Clients connect through a proxy that does this to their bytes at first;
    /// [`crate::Exchange::set_wire`] changes it. Default none: they connect directly.
    pub proxy: Option<Wire>,
    /// TLS. Default true; false serves plain `ws://`.
    pub tls: bool,
    /// How that TLS is. Default as good as the live one's.
    pub security: Security,
}

impl Default for ExchangeConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            markets: 2_000,
            rate_per_second: 20_000,
            mode: Mode::Paced,
            seed: 1,
            max_connections: 200,
            heartbeat_idle: Duration::from_secs(10),
            clock_past: Duration::from_secs(15),
            clock_future: Duration::from_secs(60),
            require_signature: true,
            lifecycle_churn_per_minute: 60,
            settled_markets_stream: false,
            snapshot_levels: 2..=8,
            ack_order: AckOrder::AckFirst,
            dialect: Dialect::Live,
            duplicate_subscribe: Duplicates::Merge,
            snapshot_ok: false,
            markets_per_subscription: 500_000,
            commands_per_second: None,
            bad_tickers: BadTickers::default(),
            faults: Vec::new(),
            upgrade_faults: Vec::new(),
            clock_skew: 0,
            manners: Manners::default(),
            data_faults: Vec::new(),
            line_delays: Vec::new(),
            record_contents: false,
            packing: Packing::Stream,
            write_through: false,
            proxy: None,
            tls: true,
            security: Security::default(),
        }
    }
}

/// How traffic is generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Mode {
    /// At the configured rate, sleeping between ticks of about a millisecond.
    #[default]
    Paced,
    /// As fast as each socket takes bytes.
    Burst,
    /// As fast as each socket takes bytes, from frames prepared once: their numbers are right,
    /// their contents repeat. For measuring readers, which it outruns.
    Flood,
    /// No data frames; snapshots, answers, heartbeats and controls still work.
    Quiet,
}

impl fmt::Display for Mode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Paced => "paced",
            Self::Burst => "burst",
            Self::Flood => "flood",
            Self::Quiet => "quiet",
        })
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "paced" => Ok(Self::Paced),
            "burst" => Ok(Self::Burst),
            "flood" => Ok(Self::Flood),
            "quiet" => Ok(Self::Quiet),
            other => {
                Err(format!("mode `{other}` does not exist: use paced, burst, flood or quiet"))
            }
        }
    }
}

/// How frames are packed into TLS records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Packing {
    /// Full records of 16 KiB; a frame may begin in one and end in the next.
    #[default]
    Stream,
    /// As many whole frames as a record holds.
    Whole,
    /// One frame a record.
    Single,
}

impl fmt::Display for Packing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Stream => "stream",
            Self::Whole => "whole",
            Self::Single => "single",
        })
    }
}

impl FromStr for Packing {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "stream" => Ok(Self::Stream),
            "whole" => Ok(Self::Whole),
            "single" => Ok(Self::Single),
            other => Err(format!("packing `{other}` does not exist: use stream, whole or single")),
        }
    }
}

/// Order of a command's `ok` and the snapshots it causes; unknown for the live exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum AckOrder {
    /// The `ok` first.
    #[default]
    AckFirst,
    /// The snapshots first.
    SnapshotsFirst,
}

/// Which description of the exchange is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Dialect {
    /// What the live exchange does: one sid per channel and connection, lists, integer codes.
    #[default]
    Live,
    /// The mission's page: one ticker per `subscribe` and one sid for it, `unsubscribe` to remove
    /// it, the channel `market_lifecycle` with `status_change`, text codes.
    Legacy,
}

/// What a repeated `subscribe` to a channel does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Duplicates {
    /// It merges into the first (live since October 2025).
    #[default]
    Merge,
    /// It is answered with error 6, "Already subscribed", and adds nothing (before that).
    Refuse,
}
