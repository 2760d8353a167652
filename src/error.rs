//! What can go wrong, named by culprit. Errors of the host's making (configuration, start) are
//! typed per call; what happens to a connection is a [`Cause`], and `Cause::disposition` is the
//! whole reconnect policy in one `match`.

use std::path::PathBuf;
use std::time::Duration;

use crate::code::ExchangeCode;
use crate::ids::ConnId;

/// Why a ticker text was refused.
///
/// ```
/// use kalshi_feed::{Ticker, TickerError};
/// assert_eq!("".parse::<Ticker>(), Err(TickerError::Empty));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TickerError {
    /// No text at all.
    #[error("a market ticker is empty; give its text, such as KXBTCD-26NOV2317-T95499.99")]
    Empty,
    /// More than 128 bytes.
    #[error("a market ticker has {bytes} bytes; the longest accepted is 128")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// White space or a control character.
    #[error("a market ticker holds {found:?}; remove white space and control characters")]
    Character {
        /// The first such character.
        found: char,
    },
}

/// Why a configuration was refused: the setting, what is wrong with it, what to do.
///
/// ```
/// let error = kalshi_feed::Config::builder().shards(0).build().unwrap_err();
/// assert!(error.to_string().contains("shards"));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A setting has a value that cannot work.
    #[error("{setting}: {problem}")]
    Invalid {
        /// The setting's name, as in the builder and in a configuration file.
        setting: &'static str,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A file named in the configuration could not be read.
    #[error(
        "{setting}: cannot read {}: {error}; check the path and its permissions",
        path.display()
    )]
    Unreadable {
        /// The setting's name.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The private key cannot be used.
    #[error("key: {0}")]
    Key(#[from] KeyError),
}

/// Why a private key was refused. Never shows the key.
///
/// ```
/// use kalshi_feed::{Credentials, KeyError};
/// let error = Credentials::from_pem("key-id", b"not a key").unwrap_err();
/// assert!(matches!(error, KeyError::Pem));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// No PEM private key in the text.
    #[error(
        "no private key found; give an unencrypted PEM file that starts with \
         BEGIN RSA PRIVATE KEY or BEGIN PRIVATE KEY"
    )]
    Pem,
    /// An encrypted PEM key.
    #[error("the private key is encrypted; decrypt it first, for example with openssl pkey")]
    Encrypted,
    /// A PEM key that is not RSA, or is damaged, or too short.
    #[error("the private key is not an RSA key of 2048 to 8192 bits; use the key Kalshi gave you")]
    NotRsa,
    /// No key id.
    #[error("the key id is empty or has characters a header cannot carry; copy it from Kalshi")]
    Id,
}

/// Why [`Manager::start`](crate::Manager::start) did not succeed. Everything it began was torn
/// down; it may be called again unless the manager was stopped.
///
/// ```
/// # fn show(error: kalshi_feed::StartError) {
/// eprintln!("could not start: {error}");
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// When the time was up, too few connections were live or a global line was not acknowledged.
    #[error("not up in time, with {healthy} connections live{}", lacking(causes))]
    Timeout {
        /// Connections live at that moment.
        healthy: usize,
        /// The last cause of each connection that was not.
        causes: Vec<(ConnId, Cause)>,
    },
    /// So many connections halted that `min_healthy` cannot be reached without an operator.
    #[error("connecting cannot succeed without an operator{}", most_common(causes))]
    Halted {
        /// Connections live at that moment.
        healthy: usize,
        /// The last cause of each connection that was not.
        causes: Vec<(ConnId, Cause)>,
    },
    /// The exchange refused a global subscription on every line, so that asking again changes
    /// nothing, or until the time was up though enough connections were live.
    #[error("the exchange refused to subscribe {channel} (code {code}); check the dialect and url")]
    GlobalRejected {
        /// The channel's name.
        channel: &'static str,
        /// Why.
        code: ExchangeCode,
    },
    /// The registry could not give its markets.
    #[error("the market registry failed: {0}")]
    Registry(String),
    /// The operating system refused threads, sockets or event queues.
    #[error("could not set up the engine's threads: {0}")]
    Threads(String),
    /// A stop was requested while starting.
    #[error("stopped while starting")]
    Cancelled,
    /// The manager is already running.
    #[error("already started")]
    AlreadyStarted,
    /// The manager was stopped; make a new one.
    #[error("a stopped manager cannot be started again; make a new one")]
    Stopped,
}

/// What was missing when the time was up.
fn lacking(causes: &[(ConnId, Cause)]) -> String {
    if causes.is_empty() {
        return "; an answer to a subscription or a connection is still due".to_owned();
    }
    most_common(causes)
}

/// The cause most connections share, said once.
fn most_common(causes: &[(ConnId, Cause)]) -> String {
    let mut counts: Vec<(&Cause, usize)> = Vec::new();
    for (_, cause) in causes {
        match counts.iter_mut().find(|(known, _)| *known == cause) {
            Some((_, count)) => *count += 1,
            None => counts.push((cause, 1)),
        }
    }
    match counts.into_iter().max_by_key(|(_, count)| *count) {
        Some((cause, count)) => format!("; {count} of the others: {cause}"),
        None => String::new(),
    }
}

/// Why [`Manager::messages`](crate::Manager::messages) or
/// [`Manager::events`](crate::Manager::events) gave nothing.
///
/// ```
/// println!("{}", kalshi_feed::MessagesError::Taken);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MessagesError {
    /// It was taken before: there is one consumer.
    #[error("already taken: there is one consumer; share it on the host's side")]
    Taken,
    /// Messages go to inline handlers.
    #[error("messages go to the inline handlers; use Delivery::channel for a queue")]
    Inline,
}

/// Why no message came.
///
/// ```
/// println!("{}", kalshi_feed::RecvError::Disconnected);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecvError {
    /// None is waiting now (`try_recv`).
    #[error("no message is waiting")]
    Empty,
    /// None came in time (`recv_timeout`).
    #[error("no message came in time")]
    Timeout,
    /// The engine has stopped and everything it left was taken.
    #[error("the engine has stopped and no message is left")]
    Disconnected,
}

/// A step of connecting.
///
/// ```
/// assert_eq!(kalshi_feed::Stage::Securing.to_string(), "TLS handshake");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Looking up the host's addresses.
    Resolving,
    /// TCP.
    Connecting,
    /// TLS.
    Securing,
    /// The HTTP upgrade.
    Upgrading,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Resolving => "name lookup",
            Self::Connecting => "TCP connect",
            Self::Securing => "TLS handshake",
            Self::Upgrading => "WebSocket upgrade",
        })
    }
}

/// Why an attempt failed or a live connection ended; the variant names the culprit.
///
/// ```
/// use kalshi_feed::Cause;
/// let cause = Cause::PeerClosed { code: Some(1001), reason: String::new() };
/// assert_eq!(cause.to_string(), "the exchange closed the connection (code 1001)");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// The host name has no usable address.
    #[error("cannot resolve {host}: {message}; check the url and the name service")]
    Resolve {
        /// The name looked up.
        host: String,
        /// What the resolver said.
        message: String,
    },
    /// The TCP connection failed or was reset.
    #[error("TCP to {address}: {message}; check the address, the port and the network")]
    Tcp {
        /// The peer.
        address: String,
        /// What the system said.
        message: String,
    },
    /// TLS failed for a reason other than the certificate.
    #[error("TLS: {message}")]
    Tls {
        /// What the TLS library said.
        message: String,
    },
    /// The peer's certificate is not trusted.
    #[error("TLS certificate refused: {message}; give the right CA file or check the host name")]
    Certificate {
        /// What the TLS library said.
        message: String,
    },
    /// The exchange answered the upgrade with another status than 101.
    #[error("the exchange refused the upgrade with {status}{}", upgrade_hint(*status, detail))]
    Upgrade {
        /// HTTP status.
        status: u16,
        /// The answer's error code and details, shortened; empty when it had none.
        detail: String,
        /// What `Retry-After` asked for.
        retry_after: Option<Duration>,
    },
    /// The answer to the upgrade is not one a WebSocket server may give.
    #[error("not a WebSocket answer: {message}; check the url")]
    Handshake {
        /// What is wrong with it.
        message: String,
    },
    /// The exchange switched on an extension we did not ask for.
    #[error("the exchange switched on the extension {name:?}, which was not asked for")]
    Extension {
        /// The header's value.
        name: String,
    },
    /// A step of connecting took longer than `connect_timeout` allows in all.
    #[error("no answer in time during the {stage}")]
    Timeout {
        /// The step.
        stage: Stage,
    },
    /// The exchange sent a Close frame.
    #[error("the exchange closed the connection{}{}", close_code(*code), close_reason(reason))]
    PeerClosed {
        /// Its code; none when the frame was empty.
        code: Option<u16>,
        /// Its reason, shortened.
        reason: String,
    },
    /// The stream ended without a Close frame (FIN).
    #[error("the connection ended without a Close frame")]
    Ended,
    /// The peer reset the connection.
    #[error("the connection was reset by the peer")]
    Reset,
    /// The bytes received break the WebSocket protocol or its limits.
    #[error("protocol violation: {message}")]
    Protocol {
        /// Which rule.
        message: String,
    },
    /// Nothing was heard in time, or the peer would not take our bytes.
    #[error("{message}")]
    Liveness {
        /// Which deadline passed.
        message: String,
    },
    /// Our side failed: out of descriptors, a socket option refused, a thread gone.
    #[error("local failure: {message}")]
    Local {
        /// What failed.
        message: String,
    },
    /// We are stopping.
    #[error("stopped")]
    Stopped,
}

fn upgrade_hint(status: u16, detail: &str) -> String {
    let hint = match status {
        401 if detail.contains("header_timestamp_expired") => "; set this machine's clock",
        401 => "; check the key id and the private key",
        403 => "; this key or address may not connect",
        404 => "; check the url's path (it is /trade-api/ws/v2)",
        429 => "; too many connections or attempts",
        _ => "",
    };
    if detail.is_empty() { hint.to_owned() } else { format!(" ({detail}){hint}") }
}

fn close_code(code: Option<u16>) -> String {
    code.map(|code| format!(" (code {code})")).unwrap_or_default()
}

fn close_reason(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}

/// What the engine does about a [`Cause`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disposition {
    /// Come back soon: the first retry may be immediate, jitter aside.
    RetrySoon,
    /// Back off: never less than the second step of the backoff.
    BackOff,
    /// Wait at least this long.
    RetryAfter(Duration),
    /// Our clock is off: the skew was corrected, sign again after backing off.
    ClockTrouble,
    /// Back off; give up after the third in a row.
    HaltAfterThree,
    /// Give up until an operator acts.
    Halt,
}

impl Cause {
    /// The whole reconnect policy.
    pub(crate) fn disposition(&self) -> Disposition {
        match self {
            Self::Resolve { .. } | Self::Tcp { .. } | Self::Ended | Self::Reset => {
                Disposition::RetrySoon
            }
            Self::Upgrade { status, detail, retry_after } => match (status, retry_after) {
                (401, _) if detail.contains("header_timestamp_expired") => {
                    Disposition::ClockTrouble
                }
                (401, _) => Disposition::Halt,
                (200..=399 | 403 | 404, _) => Disposition::HaltAfterThree,
                (_, Some(delay)) => Disposition::RetryAfter(*delay),
                (_, None) => Disposition::BackOff,
            },
            Self::PeerClosed { code, .. } => match code {
                Some(1008 | 4000..=4999) => Disposition::HaltAfterThree,
                None | Some(1000 | 1001 | 1012) => Disposition::RetrySoon,
                _ => Disposition::BackOff,
            },
            Self::Certificate { .. } | Self::Extension { .. } => Disposition::HaltAfterThree,
            Self::Timeout { .. }
            | Self::Tls { .. }
            | Self::Handshake { .. }
            | Self::Protocol { .. }
            | Self::Liveness { .. }
            | Self::Local { .. } => Disposition::BackOff,
            Self::Stopped => Disposition::Halt,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upgrade(status: u16, detail: &str, retry_after: Option<u64>) -> Cause {
        Cause::Upgrade {
            status,
            detail: detail.into(),
            retry_after: retry_after.map(Duration::from_secs),
        }
    }

    fn closed(code: u16) -> Cause {
        Cause::PeerClosed { code: Some(code), reason: String::new() }
    }

    /// Closes with these codes lead to this.
    fn closes(codes: &[u16], expected: Disposition) {
        for &code in codes {
            assert_eq!(closed(code).disposition(), expected, "{code}");
        }
    }

    #[test]
    fn d1_who_goes_away_in_good_order_is_soon_called_again() {
        closes(&[1000, 1001, 1012], Disposition::RetrySoon);
    }

    #[test]
    fn d2_who_is_in_trouble_is_backed_off_from() {
        closes(&[1011, 1013], Disposition::BackOff);
    }

    #[test]
    fn d3_who_refuses_us_by_policy_is_an_operators_matter() {
        closes(&[1008, 4000, 4001, 4999], Disposition::HaltAfterThree);
    }

    #[test]
    fn d4_who_finds_fault_with_our_frames_is_backed_off_from() {
        closes(&[1002, 1007, 1009], Disposition::BackOff);
    }

    #[test]
    fn the_policy_is_the_designs_table() {
        use Disposition::*;
        let table = [
            (Cause::Ended, RetrySoon),
            (Cause::Reset, RetrySoon),
            (closed(1005), BackOff),
            (Cause::PeerClosed { code: None, reason: String::new() }, RetrySoon),
            (upgrade(401, "authentication_error NOT_FOUND", None), Halt),
            (upgrade(401, "header_timestamp_expired", None), ClockTrouble),
            (upgrade(403, "", None), HaltAfterThree),
            (upgrade(404, "", None), HaltAfterThree),
            (upgrade(302, "", None), HaltAfterThree),
            (upgrade(429, "", None), BackOff),
            (upgrade(429, "", Some(7)), RetryAfter(Duration::from_secs(7))),
            (upgrade(403, "", Some(7)), HaltAfterThree),
            (upgrade(503, "", None), BackOff),
            (Cause::Certificate { message: String::new() }, HaltAfterThree),
            (Cause::Extension { name: String::new() }, HaltAfterThree),
            (Cause::Liveness { message: String::new() }, BackOff),
        ];
        for (cause, expected) in table {
            assert_eq!(cause.disposition(), expected, "{cause:?}");
        }
    }
}
