//! One sid of one connection: its channel, its running number, its markets, and which numbers went
//! to control frames. It never writes a frame and never looks a market up.

use std::time::{Duration, Instant};

use crate::config::Dialect;
use crate::ledger::{NumberRange, SidRecord};
use crate::market::MarketId;

/// Channels a client can subscribe to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Channel {
    Orderbook,
    Ticker,
    Trade,
    Lifecycle,
    /// The mission's lifecycle channel, without `seq`.
    LegacyLifecycle,
    /// A channel that exists and is silent here: its name and whether it is sequenced.
    Silent(&'static str, bool),
}

impl Channel {
    /// `None` for names the exchange does not know, among them the live one's removed
    /// `market_lifecycle`.
    pub(crate) fn from_name(name: &str, dialect: Dialect) -> Option<Self> {
        if dialect == Dialect::Legacy {
            return match name {
                "market_lifecycle" => Some(Self::LegacyLifecycle),
                "orderbook_delta" | "ticker" | "trade" => Self::from_name(name, Dialect::Live),
                _ => None,
            };
        }
        Some(match name {
            "orderbook_delta" => Self::Orderbook,
            "ticker" => Self::Ticker,
            "trade" => Self::Trade,
            "market_lifecycle_v2" => Self::Lifecycle,
            "multivariate_market_lifecycle" => Self::Silent("multivariate_market_lifecycle", true),
            "communications" => Self::Silent("communications", true),
            "order_group_updates" => Self::Silent("order_group_updates", true),
            "fill" => Self::Silent("fill", false),
            "user_orders" => Self::Silent("user_orders", false),
            "market_positions" => Self::Silent("market_positions", false),
            _ => return None,
        })
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Orderbook => "orderbook_delta",
            Self::Ticker => "ticker",
            Self::Trade => "trade",
            Self::Lifecycle => "market_lifecycle_v2",
            Self::LegacyLifecycle => "market_lifecycle",
            Self::Silent(name, _) => name,
        }
    }

    /// Whether its frames carry `seq`.
    pub(crate) fn sequenced(self) -> bool {
        match self {
            Self::Orderbook | Self::Trade | Self::Lifecycle => true,
            Self::Ticker | Self::LegacyLifecycle => false,
            Self::Silent(_, sequenced) => sequenced,
        }
    }

    /// Whether a list of tickers means anything to it.
    pub(crate) fn filtered(self) -> bool {
        matches!(
            self,
            Self::Orderbook
                | Self::Ticker
                | Self::Trade
                | Self::Silent("fill" | "user_orders" | "market_positions", _)
        )
    }
}

/// One subscription of one connection.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) sid: u64,
    pub(crate) channel: Channel,
    /// False once unsubscribed; kept for the ledger.
    pub(crate) live: bool,
    /// Every market rather than a list.
    pub(crate) all: bool,
    /// `ok` replies omit the list of markets.
    pub(crate) skip_ticker_ack: bool,
    pub(crate) members: Vec<MarketId>,
    last: u64,
    control: Vec<NumberRange>,
    /// Where on the connection its first and last data frames went out; 0 = none did.
    positions: (u64, u64),
    /// The second in which commands are counted, and how many it had.
    window: Option<(Instant, u32)>,
}

impl Stream {
    pub(crate) fn new(sid: u64, channel: Channel, skip_ticker_ack: bool) -> Self {
        Self {
            sid,
            channel,
            live: true,
            all: false,
            skip_ticker_ack,
            members: Vec::new(),
            last: 0,
            control: Vec::new(),
            positions: (0, 0),
            window: None,
        }
    }

    /// The number of the next data frame: `seq`, or `Clock` on channels without. `position` counts
    /// the data frames of the whole connection, from 1.
    pub(crate) fn take_data(&mut self, position: u64) -> u64 {
        if self.positions.0 == 0 {
            self.positions.0 = position;
        }
        self.positions.1 = position;
        self.last += 1;
        self.last
    }

    /// Counts a command; false if it is one too many for this second.
    pub(crate) fn admits(&mut self, most: Option<u32>, now: Instant) -> bool {
        let Some(most) = most else { return true };
        let (since, count) = match self.window {
            Some((since, count)) if now < since + Duration::from_secs(1) => (since, count),
            _ => (now, 0),
        };
        self.window = Some((since, count.saturating_add(1)));
        count < most
    }

    /// The `seq` of the next control frame; `None` on channels without seq.
    pub(crate) fn take_control(&mut self) -> Option<u64> {
        if !self.channel.sequenced() {
            return None;
        }
        self.last += 1;
        match self.control.last_mut() {
            Some(range) if range.last + 1 == self.last => range.last = self.last,
            _ => self.control.push(NumberRange { first: self.last, last: self.last }),
        }
        Some(self.last)
    }

    pub(crate) fn record(&self) -> SidRecord {
        SidRecord {
            sid: self.sid,
            channel: self.channel.name().to_owned(),
            sequenced: self.channel.sequenced(),
            last_number: self.last,
            control_slots: self.control.clone(),
            withheld: Vec::new(),
            first_position: self.positions.0,
            last_position: self.positions.1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_and_control_share_one_numbering() {
        let mut stream = Stream::new(1, Channel::Orderbook, false);
        assert_eq!(stream.take_data(1), 1);
        assert_eq!(stream.take_control(), Some(2));
        assert_eq!(stream.take_control(), Some(3));
        assert_eq!(stream.take_data(2), 4);
        assert_eq!(stream.take_control(), Some(5));
        let record = stream.record();
        assert_eq!((record.last_number, record.first_position, record.last_position), (5, 1, 2));
        let ranges = [NumberRange { first: 2, last: 3 }, NumberRange { first: 5, last: 5 }];
        assert_eq!(record.control_slots, ranges);
    }

    #[test]
    fn ticker_control_frames_take_no_number() {
        let mut stream = Stream::new(1, Channel::Ticker, false);
        assert_eq!(stream.take_data(3), 1);
        assert_eq!(stream.take_control(), None);
        assert_eq!(stream.take_data(4), 2);
    }

    #[test]
    fn removed_channels_are_unknown() {
        for name in ["market_lifecycle", "ticker_v2", "multivariate", ""] {
            assert_eq!(Channel::from_name(name, Dialect::Live), None, "{name}");
        }
        for name in ["orderbook_delta", "ticker", "trade", "market_lifecycle_v2", "fill"] {
            assert_eq!(Channel::from_name(name, Dialect::Live).map(Channel::name), Some(name));
        }
    }

    #[test]
    fn the_missions_page_has_four_channels() {
        for name in ["orderbook_delta", "ticker", "trade", "market_lifecycle"] {
            assert_eq!(Channel::from_name(name, Dialect::Legacy).map(Channel::name), Some(name));
        }
        for name in ["market_lifecycle_v2", "fill", ""] {
            assert_eq!(Channel::from_name(name, Dialect::Legacy), None, "{name}");
        }
        assert!(!Channel::LegacyLifecycle.sequenced());
    }

    #[test]
    fn commands_are_counted_by_the_second() {
        let mut stream = Stream::new(1, Channel::Orderbook, false);
        let now = Instant::now();
        let at = |millis| now + Duration::from_millis(millis);
        let mut admitted = |millis| stream.admits(Some(2), at(millis));
        let got = [admitted(0), admitted(1), admitted(2), admitted(999), admitted(1_000)];
        assert_eq!(got, [true, true, false, false, true]);
        assert!((0..50).all(|_| stream.admits(None, now)));
    }
}
