//! The bytes the engine sends: command texts and the upgrade request. Pure.
//!
//! Command shapes are those of Kalshi's WebSocket documentation ("Subscribe", "Update
//! subscription", "Unsubscribe"): `market_tickers` lists, `sids` with exactly one sid for an
//! update, `skip_ticker_ack` so that acknowledgements do not repeat thousands of tickers.

use serde::Serialize;
use tungstenite::http;

use crate::auth::Credentials;
use crate::endpoint::Endpoint;
use crate::error::Cause;
use crate::ids::{CommandId, Role, Sid, Ticker};

/// What the conductor asks a connection to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Open the role's subscription; with no markets for a global one.
    Subscribe { role: Role, markets: Vec<Ticker> },
    /// Add markets to it.
    Add { sid: Sid, markets: Vec<Ticker> },
    /// Take markets out of it, leaving the others alone.
    Delete { sid: Sid, markets: Vec<Ticker> },
    /// End it, with all its markets.
    Unsubscribe { sid: Sid },
}

impl Request {
    /// The markets it is about.
    pub(crate) fn markets(&self) -> &[Ticker] {
        match self {
            Self::Subscribe { markets, .. }
            | Self::Add { markets, .. }
            | Self::Delete { markets, .. } => markets,
            Self::Unsubscribe { .. } => &[],
        }
    }

    /// The subscription it is about, if that is open already.
    pub(crate) fn sid(&self) -> Option<Sid> {
        match self {
            Self::Subscribe { .. } => None,
            Self::Add { sid, .. } | Self::Delete { sid, .. } | Self::Unsubscribe { sid } => {
                Some(*sid)
            }
        }
    }

    /// The JSON text, under the given command id.
    pub(crate) fn text(&self, id: CommandId) -> String {
        let command = match self {
            Self::Subscribe { role, markets } => Command {
                id,
                cmd: "subscribe",
                params: Params {
                    channels: Some([role.channel()]),
                    market_tickers: markets,
                    skip_ticker_ack: (!role.is_global()).then_some(true),
                    ..Params::default()
                },
            },
            Self::Add { sid, markets } => update(id, *sid, "add_markets", markets),
            Self::Delete { sid, markets } => update(id, *sid, "delete_markets", markets),
            Self::Unsubscribe { sid } => Command {
                id,
                cmd: "unsubscribe",
                params: Params { sids: Some([*sid]), ..Params::default() },
            },
        };
        // Strings, numbers and lists: serialising them cannot fail.
        serde_json::to_string(&command).unwrap_or_default()
    }
}

fn update<'a>(id: CommandId, sid: Sid, action: &'static str, markets: &'a [Ticker]) -> Command<'a> {
    let params = Params {
        sids: Some([sid]),
        action: Some(action),
        market_tickers: markets,
        ..Params::default()
    };
    Command { id, cmd: "update_subscription", params }
}

#[derive(Serialize)]
struct Command<'a> {
    id: CommandId,
    cmd: &'static str,
    params: Params<'a>,
}

#[derive(Default, Serialize)]
struct Params<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    channels: Option<[&'static str; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sids: Option<[Sid; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<&'static str>,
    #[serde(skip_serializing_if = "<[Ticker]>::is_empty")]
    market_tickers: &'a [Ticker],
    #[serde(skip_serializing_if = "Option::is_none")]
    skip_ticker_ack: Option<bool>,
}

/// One upgrade request: the bytes to send, and the key its answer must prove to have seen.
pub(crate) struct Upgrade {
    pub(crate) bytes: Vec<u8>,
    pub(crate) key: String,
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
        if let Some(credentials) = credentials {
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
        }
        Ok(Self { bytes, key })
    }
}

fn local(error: &dyn std::fmt::Display) -> Cause {
    Cause::Local { message: format!("cannot build the upgrade request: {error}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tickers(names: &[&str]) -> Vec<Ticker> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn texts_are_the_documented_shapes() {
        let id = CommandId::new(7);
        let sid = Sid::new(1);
        let table = [
            (
                Request::Subscribe { role: Role::Orderbook, markets: tickers(&["A", "B-T3.00"]) },
                r#"{"id":7,"cmd":"subscribe","params":{"channels":["orderbook_delta"],"market_tickers":["A","B-T3.00"],"skip_ticker_ack":true}}"#,
            ),
            (
                Request::Subscribe { role: Role::Lifecycle, markets: vec![] },
                r#"{"id":7,"cmd":"subscribe","params":{"channels":["market_lifecycle_v2"]}}"#,
            ),
            (
                Request::Add { sid, markets: tickers(&["C"]) },
                r#"{"id":7,"cmd":"update_subscription","params":{"sids":[1],"action":"add_markets","market_tickers":["C"]}}"#,
            ),
            (
                Request::Delete { sid, markets: tickers(&["C"]) },
                r#"{"id":7,"cmd":"update_subscription","params":{"sids":[1],"action":"delete_markets","market_tickers":["C"]}}"#,
            ),
            (Request::Unsubscribe { sid }, r#"{"id":7,"cmd":"unsubscribe","params":{"sids":[1]}}"#),
        ];
        for (request, expected) in table {
            assert_eq!(request.text(id), expected);
        }
    }
}
