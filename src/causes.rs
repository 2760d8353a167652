//! How often attempts failed and connections were lost, by what went wrong. It counts; what follows
//! from a cause is decided elsewhere.

use serde::Serialize;

use crate::error::Cause;
use crate::stats::Counter;

/// The names of causes, as figures carry them.
const NAMES: [&str; 15] = [
    "resolve",
    "tcp",
    "tls",
    "certificate",
    "upgrade",
    "handshake",
    "extension",
    "timeout",
    "closed",
    "ended",
    "reset",
    "protocol",
    "liveness",
    "local",
    "stopped",
];

impl Cause {
    /// Its kind in one word, as statistics and metrics carry it: `resolve`, `tcp`, `tls`,
    /// `certificate`, `upgrade`, `handshake`, `extension`, `timeout`, `closed`, `ended`, `reset`,
    /// `protocol`, `liveness`, `local` or `stopped`.
    ///
    /// ```
    /// assert_eq!(kalshi_feed::Cause::Reset.kind(), "reset");
    /// ```
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Resolve { .. } => "resolve",
            Self::Tcp { .. } => "tcp",
            Self::Tls { .. } => "tls",
            Self::Certificate { .. } => "certificate",
            Self::Upgrade { .. } => "upgrade",
            Self::Handshake { .. } => "handshake",
            Self::Extension { .. } => "extension",
            Self::Timeout { .. } => "timeout",
            Self::PeerClosed { .. } => "closed",
            Self::Ended => "ended",
            Self::Reset => "reset",
            Self::Protocol { .. } => "protocol",
            Self::Liveness { .. } => "liveness",
            Self::Local { .. } => "local",
            Self::Stopped => "stopped",
        }
    }
}

/// How often something happened for one kind of cause.
///
/// ```
/// # fn show(counted: &kalshi_feed::CauseCount) {
/// println!("{} times: {}", counted.count, counted.cause);
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CauseCount {
    /// The kind, as [`Cause::kind`] names it.
    pub cause: &'static str,
    /// How often.
    pub count: u64,
}

/// One counter for each kind.
#[derive(Debug, Default)]
pub(crate) struct ByCause([Counter; NAMES.len()]);

impl ByCause {
    pub(crate) fn note(&self, cause: &Cause) {
        let kind = cause.kind();
        let place = NAMES.iter().zip(&self.0).find(|(name, _)| **name == kind);
        if let Some((_, counter)) = place {
            counter.add(1);
        }
    }

    /// Those that happened at all.
    pub(crate) fn counts(&self) -> Vec<CauseCount> {
        let counts = NAMES.iter().zip(&self.0);
        let counts = counts.map(|(cause, counter)| CauseCount { cause, count: counter.total() });
        counts.filter(|counted| counted.count > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_place_of_its_own() {
        let (text, message) = (String::new, String::new());
        let all = [
            Cause::Resolve { host: text(), message: text() },
            Cause::Tcp { address: text(), message: text() },
            Cause::Tls { message: text() },
            Cause::Certificate { message: text() },
            Cause::Upgrade { status: 503, detail: text(), retry_after: None },
            Cause::Handshake { message: text() },
            Cause::Extension { name: text() },
            Cause::Timeout { stage: crate::error::Stage::Securing },
            Cause::PeerClosed { code: None, reason: text() },
            Cause::Ended,
            Cause::Reset,
            Cause::Protocol { message: text() },
            Cause::Liveness { message: text() },
            Cause::Local { message },
            Cause::Stopped,
        ];
        let counters = ByCause::default();
        for (times, cause) in (1..).zip(&all) {
            (0..times).for_each(|_| counters.note(cause));
        }
        let expected: Vec<_> =
            (1..).zip(NAMES).map(|(count, cause)| CauseCount { cause, count }).collect();
        assert_eq!(counters.counts(), expected);
    }
}
