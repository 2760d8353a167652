//! The bytes the engine sends: command texts and the upgrade request. Pure.
//!
//! Command shapes are those of Kalshi's WebSocket documentation ("Subscribe", "Update
//! subscription", "Unsubscribe", "List subscriptions"): `market_tickers` lists, `sids` with
//! exactly one sid for an update, `skip_ticker_ack` so that acknowledgements do not repeat
//! thousands of tickers. The legacy dialect names one `market_ticker` instead.

use serde::Serialize;
use tungstenite::http;

use crate::auth::Credentials;
use crate::dialect::Dialect;
use crate::endpoint::Endpoint;
use crate::error::Cause;
use crate::ids::{CommandId, Role, Sid};

/// A command on its way to the exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// Unique within its connection's epoch, from 1.
    pub(crate) id: CommandId,
    pub(crate) text: String,
    pub(crate) expects: Expects,
}

/// What answers a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expects {
    /// A subscription and its sid: `subscribed`, or `ok` when it merged into one there was.
    Subscription,
    /// The end of this subscription.
    End(Sid),
    /// An `ok`.
    Done,
    /// This many frames with its id, books as a rule.
    Books(u32),
    /// The connection's subscriptions.
    List,
}

/// What a command says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Open the role's subscription, with markets for order books.
    Subscribe,
    /// Add markets to it.
    Add(Sid),
    /// Take markets out of it, leaving the others alone.
    Delete(Sid),
    /// Send the books of these markets once more.
    Books(Sid),
    /// End it, with all its markets.
    Unsubscribe(Sid),
    /// Name all subscriptions.
    List,
}

impl Ask {
    /// The subscription it is about, if that is open already.
    pub(crate) fn sid(self) -> Option<Sid> {
        match self {
            Self::Subscribe | Self::List => None,
            Self::Add(sid) | Self::Delete(sid) | Self::Books(sid) | Self::Unsubscribe(sid) => {
                Some(sid)
            }
        }
    }

    /// The command about these markets, under the given id.
    pub(crate) fn request(
        self,
        id: CommandId,
        (dialect, role): (Dialect, Role),
        markets: &[&str],
    ) -> Request {
        let command = match self {
            Self::Subscribe => {
                Command { id, cmd: "subscribe", params: Some(subscribe(dialect, role, markets)) }
            }
            Self::Add(sid) => update(id, sid, "add_markets", markets),
            Self::Delete(sid) => update(id, sid, "delete_markets", markets),
            Self::Books(sid) => update(id, sid, "get_snapshot", markets),
            Self::Unsubscribe(sid) => Command {
                id,
                cmd: "unsubscribe",
                params: Some(Params { sids: Some([sid]), ..Params::default() }),
            },
            Self::List => Command { id, cmd: "list_subscriptions", params: None },
        };
        let expects = match self {
            Self::Subscribe => Expects::Subscription,
            Self::Add(_) | Self::Delete(_) => Expects::Done,
            Self::Books(_) => Expects::Books(u32::try_from(markets.len()).unwrap_or(u32::MAX)),
            Self::Unsubscribe(sid) => Expects::End(sid),
            Self::List => Expects::List,
        };
        // Strings, numbers and lists: serialising them cannot fail.
        let text = serde_json::to_string(&command).unwrap_or_default();
        Request { id, text, expects }
    }
}

fn subscribe<'a>(dialect: Dialect, role: Role, markets: &'a [&'a str]) -> Params<'a> {
    let params = Params { channels: Some([dialect.channel(role)]), ..Params::default() };
    match (dialect, markets) {
        (Dialect::Legacy, [market]) => Params { market_ticker: Some(market), ..params },
        (Dialect::Live, [_, ..]) => {
            Params { market_tickers: markets, skip_ticker_ack: Some(true), ..params }
        }
        _ => params,
    }
}

fn update<'a>(
    id: CommandId,
    sid: Sid,
    action: &'static str,
    markets: &'a [&'a str],
) -> Command<'a> {
    let params = Params {
        sids: Some([sid]),
        action: Some(action),
        market_tickers: markets,
        ..Params::default()
    };
    Command { id, cmd: "update_subscription", params: Some(params) }
}

#[derive(Serialize)]
struct Command<'a> {
    id: CommandId,
    cmd: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    params: Option<Params<'a>>,
}

#[derive(Default, Serialize)]
struct Params<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    channels: Option<[&'static str; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sids: Option<[Sid; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    market_ticker: Option<&'a str>,
    #[serde(skip_serializing_if = "<[&str]>::is_empty")]
    market_tickers: &'a [&'a str],
    #[serde(skip_serializing_if = "Option::is_none")]
    skip_ticker_ack: Option<bool>,
}

/// One upgrade request: the bytes to send, and what its answer is read with.
pub(crate) struct Upgrade {
    pub(crate) bytes: Vec<u8>,
    pub(crate) asked_with: AskedWith,
}

/// What of a request the reader of its answer must know.
#[derive(Default)]
pub(crate) struct AskedWith {
    /// The answer must prove to have seen it.
    pub(crate) key: String,
    /// Must not be shown, should the answer repeat them; empty without credentials.
    pub(crate) key_id: String,
    pub(crate) signature: String,
}

impl Upgrade {
    /// Builds and signs a request. The signature goes in by our own hand at the end: the library
    /// logs the requests it formats, and a signature has no place in a log.
    pub(crate) fn new(
        endpoint: &Endpoint,
        credentials: Option<&Credentials>,
        unix_ms: u64,
    ) -> Result<Self, Cause> {
        let request = http::Request::builder()
            .uri(&endpoint.path)
            .header("Host", endpoint.authority())
            .header("Connection", "Upgrade")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", tungstenite::handshake::client::generate_key())
            .header("User-Agent", concat!("kalshi-feed/", env!("CARGO_PKG_VERSION")))
            .body(())
            .map_err(|error| local(&error))?;
        let (mut bytes, key) = tungstenite::handshake::client::generate_request(request)
            .map_err(|error| local(&error))?;
        let mut asked_with = AskedWith { key, ..AskedWith::default() };
        if let Some(credentials) = credentials {
            asked_with.key_id = credentials.key_id().to_owned();
            let signature = credentials.sign(unix_ms, &endpoint.path).ok_or_else(|| {
                Cause::Local { message: "signing failed: no randomness".to_owned() }
            })?;
            bytes.truncate(bytes.len().saturating_sub(2)); // the empty line
            let headers = format!(
                "KALSHI-ACCESS-KEY: {}\r\nKALSHI-ACCESS-TIMESTAMP: {unix_ms}\r\n\
                 KALSHI-ACCESS-SIGNATURE: {signature}\r\n\r\n",
                credentials.key_id()
            );
            bytes.extend_from_slice(headers.as_bytes());
            asked_with.signature = signature;
        }
        Ok(Self { bytes, asked_with })
    }
}

fn local(error: &dyn std::fmt::Display) -> Cause {
    Cause::Local { message: format!("cannot build the upgrade request: {error}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_the_documented_shapes() {
        let sid = Sid::new(1);
        let live = [
            (
                Ask::Subscribe,
                Role::Orderbook,
                &["A", "B-T3.00"][..],
                r#"{"id":7,"cmd":"subscribe","params":{"channels":["orderbook_delta"],"market_tickers":["A","B-T3.00"],"skip_ticker_ack":true}}"#,
            ),
            (
                Ask::Subscribe,
                Role::Lifecycle,
                &[],
                r#"{"id":7,"cmd":"subscribe","params":{"channels":["market_lifecycle_v2"]}}"#,
            ),
            (
                Ask::Add(sid),
                Role::Orderbook,
                &["C"],
                r#"{"id":7,"cmd":"update_subscription","params":{"sids":[1],"action":"add_markets","market_tickers":["C"]}}"#,
            ),
            (
                Ask::Delete(sid),
                Role::Orderbook,
                &["a\"b"],
                r#"{"id":7,"cmd":"update_subscription","params":{"sids":[1],"action":"delete_markets","market_tickers":["a\"b"]}}"#,
            ),
            (
                Ask::Books(sid),
                Role::Orderbook,
                &["C"],
                r#"{"id":7,"cmd":"update_subscription","params":{"sids":[1],"action":"get_snapshot","market_tickers":["C"]}}"#,
            ),
            (
                Ask::Unsubscribe(sid),
                Role::Orderbook,
                &[],
                r#"{"id":7,"cmd":"unsubscribe","params":{"sids":[1]}}"#,
            ),
            (Ask::List, Role::Orderbook, &[], r#"{"id":7,"cmd":"list_subscriptions"}"#),
        ];
        let text = |ask: Ask, dialect, role, markets: &[&str]| {
            ask.request(CommandId::new(7), (dialect, role), markets).text
        };
        for (ask, role, markets, expected) in live {
            let expected = expected.replace("a\"b", "a\\\"b");
            assert_eq!(text(ask, Dialect::Live, role, markets), expected);
        }
        assert_eq!(
            text(Ask::Subscribe, Dialect::Legacy, Role::Orderbook, &["A"]),
            r#"{"id":7,"cmd":"subscribe","params":{"channels":["orderbook_delta"],"market_ticker":"A"}}"#
        );
        assert_eq!(
            text(Ask::Subscribe, Dialect::Legacy, Role::Lifecycle, &[]),
            r#"{"id":7,"cmd":"subscribe","params":{"channels":["market_lifecycle"]}}"#
        );
    }
}
