//! The exchange's error codes: what each means, and what the engine does about it. The table is
//! the policy; nothing else in the engine compares numbers.

use std::fmt;

use serde::{Serialize, Serializer};

/// What the engine does about a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// The subscription exists already: find out its sid.
    Find,
    /// The sid is no more: what was on it is subscribed anew.
    Reopen,
    /// The subscription is over, though the sid may still be taken: end it and open it anew.
    Renew,
    /// Too many markets: halve the list, then move what does not fit.
    Split,
    /// Too many commands: leave more time between them.
    Slow,
    /// Carried out or not, nobody knows: find out or repeat.
    Reconcile,
    /// A market it names may be the reason: halve the list until the one is found.
    Isolate,
    /// Asking again soon changes nothing: wait long, and tell.
    Refuse,
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal $text:literal $action:ident;)+) => {
        /// Why the exchange refused a command or ended a subscription (Kalshi's WebSocket
        /// documentation, "Error codes"; 16 and 17 are retired there, 6 means a duplicate before
        /// October 2025, 29 is known from other clients only).
        ///
        /// ```
        /// use kalshi_feed::ExchangeCode;
        /// assert_eq!(ExchangeCode::from(25), ExchangeCode::BufferOverflow);
        /// assert_eq!(ExchangeCode::from(99).number(), Some(99));
        /// assert_eq!(ExchangeCode::MarketLimit.to_string(), "26");
        /// ```
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum ExchangeCode {
            $($(#[doc = $doc])+ $name,)+
            /// A number this list does not have.
            Other(i64),
            /// Neither a number nor a text this list knows.
            Unreadable,
        }

        impl ExchangeCode {
            /// The number; none when the exchange gave none.
            pub fn number(self) -> Option<i64> {
                match self {
                    $(Self::$name => Some($number),)+
                    Self::Other(number) => Some(number),
                    Self::Unreadable => None,
                }
            }

            /// The exchange's words for it; empty when it is none of its own.
            pub fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                    Self::Other(_) | Self::Unreadable => "",
                }
            }

            /// What to do about it.
            pub(crate) fn action(self) -> Action {
                match self {
                    $(Self::$name => Action::$action,)+
                    // It may be about one market; finding out keeps the others.
                    Self::Other(_) | Self::Unreadable => Action::Isolate,
                }
            }

            const NAMED: &'static [Self] = &[$(Self::$name),+];
        }

        impl From<i64> for ExchangeCode {
            fn from(number: i64) -> Self {
                match number {
                    $($number => Self::$name,)+
                    other => Self::Other(other),
                }
            }
        }
    };
}

codes! {
    /// It could not make sense of the message.
    UnableToProcess = 1 "Unable to process message" Isolate;
    /// A command without parameters.
    ParamsRequired = 2 "Params required" Refuse;
    /// A subscribe without channels.
    ChannelsRequired = 3 "Channels required" Refuse;
    /// An unsubscribe without sids.
    SubscriptionIdsRequired = 4 "Subscription IDs required" Refuse;
    /// No such command.
    UnknownCommand = 5 "Unknown command" Refuse;
    /// The channel is subscribed already.
    AlreadySubscribed = 6 "Already subscribed" Find;
    /// No such sid on this connection.
    UnknownSubscription = 7 "Unknown subscription ID" Reopen;
    /// No such channel, or one that was removed.
    UnknownChannel = 8 "Unknown channel name" Refuse;
    /// The channel needs a signed upgrade.
    AuthenticationRequired = 9 "Authentication required" Refuse;
    /// The channel failed; the subscription is over.
    ChannelError = 10 "Channel error" Renew;
    /// A value is malformed.
    InvalidParameter = 11 "Invalid parameter" Isolate;
    /// An update must name one sid.
    OneSubscriptionRequired = 12 "Exactly one subscription ID is required" Refuse;
    /// No such action.
    UnsupportedAction = 13 "Unsupported action" Refuse;
    /// No market was named, or none it could use.
    TickerRequired = 14 "Market Ticker required" Isolate;
    /// An update without an action.
    ActionRequired = 15 "Action required" Refuse;
    /// No such market.
    MarketNotFound = 16 "Market not found" Isolate;
    /// The exchange failed; the subscription is over.
    InternalError = 17 "Internal error" Renew;
    /// The exchange did not finish in time; carried out or not.
    CommandTimeout = 18 "Command timeout" Reconcile;
    /// Sharding of the communications channel.
    ShardFactorNotPositive = 19 "shard_factor must be > 0" Refuse;
    /// Sharding of the communications channel.
    ShardFactorRequired = 20 "shard_factor is required when shard_key is set" Refuse;
    /// Sharding of the communications channel.
    ShardKeyOutOfRange = 21 "shard_key must be >= 0 and < shard_factor" Refuse;
    /// Sharding of the communications channel.
    ShardFactorTooLarge = 22 "shard_factor must be <= 100" Refuse;
    /// A channel this engine does not use.
    MatchIdsRequired = 23 "Match IDs required" Refuse;
    /// A channel this engine does not use.
    IndexIdsRequired = 24 "Index IDs required" Refuse;
    /// We read too slowly, or too much came at once; the subscription is over.
    BufferOverflow = 25 "Subscription buffer overflow" Renew;
    /// The subscription would hold more markets than it may.
    MarketLimit = 26 "Subscription market limit exceeded" Split;
    /// More commands on the subscription than it may have.
    TooManyRequests = 27 "Too many requests" Slow;
    /// A channel this engine does not use.
    UnderlyingTickersRequired = 28 "Underlying tickers required" Refuse;
    /// A parameter this engine does not send.
    InvalidUpdateInterval = 29 "Invalid update interval" Refuse;
}

impl ExchangeCode {
    /// Reads a code given as text: a number, or the exchange's words in any spelling
    /// (`already_subscribed`, `ALREADY SUBSCRIBED`).
    pub(crate) fn from_text(text: &str) -> Self {
        if let Ok(number) = text.parse::<i64>() {
            return Self::from(number);
        }
        let same = |code: &&Self| letters(code.text()).eq(letters(text));
        Self::NAMED.iter().find(same).copied().unwrap_or(Self::Unreadable)
    }

    /// Whether it says that the subscription it names is over.
    pub(crate) fn is_terminal(self) -> bool {
        self.action() == Action::Renew
    }
}

/// Letters and digits alone, without case.
fn letters(text: &str) -> impl Iterator<Item = u8> + '_ {
    text.bytes().filter(u8::is_ascii_alphanumeric).map(|byte| byte.to_ascii_lowercase())
}

impl fmt::Display for ExchangeCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number() {
            Some(number) => number.fmt(f),
            None => f.write_str("unreadable"),
        }
    }
}

impl Serialize for ExchangeCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.number().serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e10_every_code_has_a_meaning_and_an_action() {
        use Action::*;
        let table = [
            (1..=1, Isolate),
            (2..=5, Refuse),
            (6..=6, Find),
            (7..=7, Reopen),
            (8..=9, Refuse),
            (10..=10, Renew),
            (11..=11, Isolate),
            (12..=13, Refuse),
            (14..=14, Isolate),
            (15..=15, Refuse),
            (16..=16, Isolate),
            (17..=17, Renew),
            (18..=18, Reconcile),
            (19..=24, Refuse),
            (25..=25, Renew),
            (26..=26, Split),
            (27..=27, Slow),
            (28..=29, Refuse),
            (30..=40, Isolate),
        ];
        for (numbers, action) in table {
            for number in numbers {
                let code = ExchangeCode::from(number);
                assert_eq!((code.number(), code.action()), (Some(number), action), "{code:?}");
                assert_eq!(code.text().is_empty(), number > 29, "{code:?}");
            }
        }
    }

    #[test]
    fn texts_are_understood_in_any_spelling() {
        for (text, code) in [
            ("already_subscribed", ExchangeCode::AlreadySubscribed),
            ("ALREADY_SUBSCRIBED", ExchangeCode::AlreadySubscribed),
            ("Unknown subscription ID", ExchangeCode::UnknownSubscription),
            ("25", ExchangeCode::BufferOverflow),
            ("99", ExchangeCode::Other(99)),
            ("", ExchangeCode::Unreadable),
            ("INVALID", ExchangeCode::Unreadable),
        ] {
            assert_eq!(ExchangeCode::from_text(text), code, "{text}");
        }
    }
}
