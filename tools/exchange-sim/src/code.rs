//! The exchange's error codes: their numbers, their texts, and the names the mission's dialect
//! gives them. It never decides which one applies.

/// An error code, by its number (Kalshi's WebSocket documentation, "Error codes").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Code(pub(crate) u8);

/// Texts of the codes 1, 2, 3 …; 6, 16 and 17 are retired and 29 was seen in one client only.
const TEXTS: [&str; 29] = [
    "Unable to process message",
    "Params required",
    "Channels required",
    "Subscription IDs required",
    "Unknown command",
    "Already subscribed",
    "Unknown subscription ID",
    "Unknown channel name",
    "Authentication required",
    "Channel error",
    "Invalid parameter",
    "Exactly one subscription ID is required",
    "Unsupported action",
    "Market Ticker required",
    "Action required",
    "Market not found",
    "Internal error",
    "Command timeout",
    "shard_factor must be > 0",
    "shard_factor is required when shard_key is set",
    "shard_key must be >= 0 and < shard_factor",
    "shard_factor must be <= 100",
    "Match IDs required",
    "Index IDs required",
    "Subscription buffer overflow",
    "Subscription market limit exceeded",
    "Too many requests",
    "Underlying tickers required",
    "Invalid update interval",
];

impl Code {
    pub(crate) const UNABLE_TO_PROCESS: Self = Self(1);
    pub(crate) const PARAMS_REQUIRED: Self = Self(2);
    pub(crate) const CHANNELS_REQUIRED: Self = Self(3);
    pub(crate) const SIDS_REQUIRED: Self = Self(4);
    pub(crate) const UNKNOWN_COMMAND: Self = Self(5);
    pub(crate) const ALREADY_SUBSCRIBED: Self = Self(6);
    pub(crate) const UNKNOWN_SID: Self = Self(7);
    pub(crate) const UNKNOWN_CHANNEL: Self = Self(8);
    pub(crate) const INVALID_PARAMETER: Self = Self(11);
    pub(crate) const ONE_SID_REQUIRED: Self = Self(12);
    pub(crate) const UNSUPPORTED_ACTION: Self = Self(13);
    pub(crate) const TICKER_REQUIRED: Self = Self(14);
    pub(crate) const ACTION_REQUIRED: Self = Self(15);
    pub(crate) const COMMAND_TIMEOUT: Self = Self(18);
    pub(crate) const MARKET_LIMIT: Self = Self(26);
    pub(crate) const TOO_MANY_REQUESTS: Self = Self(27);

    /// The words of the live exchange.
    pub(crate) fn text(self) -> &'static str {
        let place = usize::from(self.0).checked_sub(1);
        place.and_then(|place| TEXTS.get(place)).copied().unwrap_or("Unknown error")
    }

    /// The code as a text, for the mission's dialect: its words in lower case, joined by `_`.
    pub(crate) fn name(self) -> String {
        let words = self.text().split(|letter: char| !letter.is_ascii_alphanumeric());
        let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
        words.join("_").to_lowercase()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_text() {
        assert_eq!(Code(1).text(), "Unable to process message");
        assert_eq!(Code(14).text(), "Market Ticker required");
        assert_eq!(Code(26).text(), "Subscription market limit exceeded");
        assert_eq!(Code(29).text(), "Invalid update interval");
        for unknown in [0, 30, 255] {
            assert_eq!(Code(unknown).text(), "Unknown error");
        }
    }

    #[test]
    fn names_are_made_of_the_texts() {
        assert_eq!(Code::ALREADY_SUBSCRIBED.name(), "already_subscribed");
        assert_eq!(Code::UNKNOWN_CHANNEL.name(), "unknown_channel_name");
        assert_eq!(Code(19).name(), "shard_factor_must_be_0");
    }
}
