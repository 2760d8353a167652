//! One sid of one connection: its channel, its running number, its markets, and which numbers went
//! to control frames. It never writes a frame and never looks a market up.

use std::time::{Duration, Instant};

use crate::config::Dialect;
use crate::ledger::{NumberRange, Renumbering, SidRecord};
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
    /// Its place among the connections that follow the whole channel, from 1; 0 = it does not.
    pub(crate) line: u8,
    /// It sends nothing on its own for now.
    pub(crate) stalled: bool,
    /// The last slot taken, and the number on it.
    slot: u64,
    number: u64,
    control: Vec<NumberRange>,
    withheld: Vec<NumberRange>,
    renumbered: Vec<Renumbering>,
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
            line: 0,
            stalled: false,
            slot: 0,
            number: 0,
            control: Vec::new(),
            withheld: Vec::new(),
            renumbered: Vec::new(),
            positions: (0, 0),
            window: None,
        }
    }

    /// The number of the next data frame: `seq`, or `Clock` on channels without. `position` counts
    /// the data frames written on the whole connection, from 1.
    pub(crate) fn take_data(&mut self, position: u64) -> u64 {
        self.place(position);
        self.take()
    }

    /// The number of a data frame that will not be written.
    pub(crate) fn withhold(&mut self) -> u64 {
        let number = self.take();
        extend(&mut self.withheld, self.slot);
        number
    }

    /// A data frame is written under a number that was used already.
    pub(crate) fn repeat(&mut self, number: u64, position: u64) {
        self.place(position);
        self.slot += 1;
        self.renumber(self.slot, number);
        self.renumber(self.slot + 1, self.number + 1);
    }

    /// The next number is this one.
    pub(crate) fn jump(&mut self, next: u64) {
        if next != self.number + 1 {
            self.number = next - 1;
            self.renumber(self.slot + 1, next);
        }
    }

    /// Whether numbers can start again: something was sent, and the last of it written, so that
    /// nobody mistakes the first of the new ones for what is missing.
    pub(crate) fn may_restart(&self) -> bool {
        self.slot > 0 && self.withheld.last().is_none_or(|range| range.last < self.slot)
    }

    /// The last number taken.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    fn take(&mut self) -> u64 {
        self.slot += 1;
        self.number += 1;
        self.number
    }

    fn place(&mut self, position: u64) {
        if self.positions.0 == 0 {
            self.positions.0 = position;
        }
        self.positions.1 = position;
    }

    fn renumber(&mut self, from: u64, number: u64) {
        if self.renumbered.last().is_some_and(|last| last.from == from) {
            self.renumbered.pop();
        }
        self.renumbered.push(Renumbering { from, number });
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
        let number = self.take();
        extend(&mut self.control, self.slot);
        Some(number)
    }

    pub(crate) fn record(&self) -> SidRecord {
        SidRecord {
            sid: self.sid,
            channel: self.channel.name().to_owned(),
            sequenced: self.channel.sequenced(),
            last_number: self.slot,
            control_slots: self.control.clone(),
            withheld: self.withheld.clone(),
            renumbered: self.renumbered.clone(),
            first_position: self.positions.0,
            last_position: self.positions.1,
        }
    }
}

/// Adds the next higher number to ascending ranges.
fn extend(ranges: &mut Vec<NumberRange>, number: u64) {
    match ranges.last_mut() {
        Some(range) if range.last + 1 == number => range.last = number,
        _ => ranges.push(NumberRange { first: number, last: number }),
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
    fn slots_go_on_when_numbers_do_not() {
        let mut stream = Stream::new(1, Channel::Trade, false);
        assert!(!stream.may_restart());
        assert_eq!((stream.take_data(1), stream.take_data(2), stream.withhold()), (1, 2, 3));
        assert!(!stream.may_restart());
        assert_eq!(stream.take_data(3), 4);
        stream.repeat(4, 4);
        assert_eq!(stream.take_data(5), 5);
        stream.jump(1);
        assert_eq!((stream.take_data(6), stream.take_control()), (1, Some(2)));
        let record = stream.record();
        let at = |from, number| Renumbering { from, number };
        assert_eq!(record.renumbered, [at(5, 4), at(6, 5), at(7, 1)]);
        assert_eq!(record.withheld, [NumberRange { first: 3, last: 3 }]);
        assert_eq!((record.last_number, record.last_position), (8, 6));
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
