//! What a host can have done about a gap in an order-book subscription, and what a shard tells of
//! one. It finds no gap and mends none: `sequence` sees them, `suspicion` knows which books are out
//! of step by them, `recovery` gets those back in step, `lapse` keeps when they were.

use std::time::Instant;

use serde::Deserialize;

use crate::ids::Sid;

/// What is done when messages of an order-book subscription were lost: on the wire, here for want
/// of room, or because the exchange ended the subscription (codes 25 and 10).
///
/// A sequence number is shared by all markets of a subscription, so a gap makes all of their
/// books suspect. A market's book is sound again when a snapshot has passed whose number is above
/// the last gap.
///
/// ```
/// use kalshi_feed::{Config, GapPolicy};
/// let config = Config::builder().gap_policy(GapPolicy::Resnapshot).build()?;
/// # Ok::<(), kalshi_feed::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum GapPolicy {
    /// The next message says how many were lost; nothing else is done.
    #[default]
    Flag,
    /// Fresh snapshots of the subscription's markets are asked for, the stream going on; after
    /// several rounds in vain the subscription is opened anew.
    Resnapshot,
    /// The subscription is ended and opened anew, which brings fresh snapshots.
    Resubscribe,
}

impl GapPolicy {
    /// Whether something is done.
    pub(crate) fn repairs(self) -> bool {
        self != Self::Flag
    }
}

/// Gaps of a connection since they were last told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gaps {
    /// Where.
    pub(crate) sids: Vec<Sid>,
    /// The number of the last of them in its epoch.
    pub(crate) last: u64,
    /// When the first of them was seen.
    pub(crate) since: Instant,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_one_word() {
        for (text, policy) in [
            ("\"flag\"", GapPolicy::Flag),
            ("\"resnapshot\"", GapPolicy::Resnapshot),
            ("\"resubscribe\"", GapPolicy::Resubscribe),
        ] {
            assert_eq!(serde_json::from_str::<GapPolicy>(text).unwrap(), policy);
        }
        assert!(serde_json::from_str::<GapPolicy>("\"repair\"").is_err());
    }
}
