//! The flags that say what is done about loss. It only turns words into the engine's settings.

use clap::{Args, ValueEnum};
use kalshi_feed::{Arbitration, ConfigBuilder, GapPolicy, Overflow, OverflowPolicy};

/// What the engine does about loss.
#[derive(Clone, Copy, Debug, Default, Args)]
#[command(next_help_heading = "Loss")]
pub(crate) struct Policies {
    /// When the consumer is too slow: drop new messages and say how many, stop reading their
    /// connections, or keep the newest ticker of each market and drop the rest.
    #[arg(long, value_name = "POLICY")]
    pub(crate) overflow: Option<OverflowFlag>,
    /// When order-book messages were lost: flag it, ask for fresh snapshots, or subscribe anew.
    #[arg(long, value_name = "POLICY")]
    pub(crate) gap_policy: Option<GapFlag>,
    /// Of the two lines of ticker, trade and lifecycle: deliver both, or each message once.
    #[arg(long, value_name = "POLICY")]
    pub(crate) arbitrate: Option<ArbitrateFlag>,
}

/// `--arbitrate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ArbitrateFlag {
    /// Both lines are delivered.
    Both,
    /// The first copy is delivered, the second dropped; what one line lost the other fills.
    FirstWins,
}

/// `--overflow`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OverflowFlag {
    /// New messages are dropped; the next of the subscription says how many.
    DropNewest,
    /// Connections are not read until there is room.
    Backpressure,
    /// Of each market the newest ticker is kept; all else is dropped as by drop-newest.
    Conflate,
}

/// `--gap-policy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum GapFlag {
    /// The next message says how many.
    Flag,
    /// Fresh snapshots of the markets whose books may be wrong.
    Resnapshot,
    /// Those markets are subscribed anew.
    Resubscribe,
}

impl Policies {
    /// Puts the flags given over the settings.
    pub(crate) fn apply(&self, mut settings: ConfigBuilder) -> ConfigBuilder {
        if let Some(overflow) = self.overflow {
            settings = match overflow {
                OverflowFlag::DropNewest => settings.overflow(Overflow::DropNewest),
                OverflowFlag::Backpressure => settings.overflow(Overflow::Backpressure),
                OverflowFlag::Conflate => {
                    let mut policy = OverflowPolicy::default();
                    policy.ticker = Overflow::ConflateByMarket;
                    settings.overflow(policy)
                }
            };
        }
        if let Some(gap_policy) = self.gap_policy {
            settings = settings.gap_policy(match gap_policy {
                GapFlag::Flag => GapPolicy::Flag,
                GapFlag::Resnapshot => GapPolicy::Resnapshot,
                GapFlag::Resubscribe => GapPolicy::Resubscribe,
            });
        }
        match self.arbitrate {
            None => settings,
            Some(ArbitrateFlag::Both) => settings.arbitration(Arbitration::Both),
            Some(ArbitrateFlag::FirstWins) => settings.arbitration(Arbitration::FirstWins),
        }
    }

    /// Whether redundant lines become one stream.
    pub(crate) fn is_merged(&self) -> bool {
        self.arbitrate == Some(ArbitrateFlag::FirstWins)
    }
}
