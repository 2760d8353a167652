//! By which rules commands are judged, as they are set now. It judges nothing itself.

use crate::config::{AckOrder, Dialect, Duplicates, ExchangeConfig};
use crate::faults::{BadTickers, Faults};

/// The rules in force; all but the dialect can change while the exchange runs.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) dialect: Dialect,
    pub(crate) ack_order: AckOrder,
    pub(crate) duplicates: Duplicates,
    pub(crate) snapshot_ok: bool,
    pub(crate) market_cap: usize,
    pub(crate) command_cap: Option<u32>,
    pub(crate) bad: BadTickers,
    pub(crate) faults: Faults,
}

impl Rules {
    pub(crate) fn new(config: &ExchangeConfig) -> Self {
        Self {
            dialect: config.dialect,
            ack_order: config.ack_order,
            duplicates: config.duplicate_subscribe,
            snapshot_ok: config.snapshot_ok,
            market_cap: config.markets_per_subscription,
            command_cap: config.commands_per_second,
            bad: config.bad_tickers.clone(),
            faults: Faults::new(config.faults.clone(), config.seed),
        }
    }
}
