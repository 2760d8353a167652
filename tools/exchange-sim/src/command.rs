//! Client commands: reads one text message into a command, or the error code that answers it. Pure:
//! it knows neither connections nor markets.

use serde_json::{Map, Value};

use crate::code::Code;
use crate::config::Dialect;
use crate::faults::Verb;

/// Longest ticker accepted, in bytes.
const MAX_TICKER: usize = 128;
/// Most channels or sids in one command: each is answered by a frame of its own.
const MAX_TARGETS: usize = 1_000;

/// A command and the id to answer with; 0 = none.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) id: u64,
    pub(crate) command: Command,
}

/// What a client can ask for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Subscribe(Subscribe),
    Unsubscribe { sids: Vec<u64> },
    Update(Update),
    ListSubscriptions,
}

impl Command {
    /// Its kind; none for an update whose action does not exist.
    pub(crate) fn verb(&self) -> Option<Verb> {
        match self {
            Self::Subscribe(_) => Some(Verb::Subscribe),
            Self::Unsubscribe { .. } => Some(Verb::Unsubscribe),
            Self::ListSubscriptions => Some(Verb::ListSubscriptions),
            Self::Update(update) => match update.action.as_deref()? {
                "add_markets" => Some(Verb::AddMarkets),
                "delete_markets" => Some(Verb::DeleteMarkets),
                "get_snapshot" => Some(Verb::GetSnapshot),
                _ => None,
            },
        }
    }
}

/// A `subscribe`.
#[derive(Debug, PartialEq, Eq, Default)]
pub(crate) struct Subscribe {
    pub(crate) channels: Vec<String>,
    /// Empty = every market, where the channel allows it.
    pub(crate) tickers: Vec<String>,
    pub(crate) skip_ticker_ack: bool,
    pub(crate) send_initial_snapshot: bool,
}

/// An `update_subscription`. The sid is checked before action and tickers, so those stay unjudged
/// here.
#[derive(Debug, PartialEq, Eq, Default)]
pub(crate) struct Update {
    pub(crate) sid: u64,
    pub(crate) action: Option<String>,
    pub(crate) tickers: Vec<String>,
    /// Whether the tickers came as `market_tickers`, the only form `get_snapshot` takes.
    pub(crate) listed: bool,
}

/// A message that is not a command.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) id: u64,
    pub(crate) code: Code,
}

/// Reads one client message.
pub(crate) fn parse(text: &[u8], dialect: Dialect) -> Result<Request, Refusal> {
    let Ok(Value::Object(mut message)) = serde_json::from_slice(text) else {
        return Err(Refusal { id: 0, code: Code::UNABLE_TO_PROCESS });
    };
    let id = match message.get("id") {
        None | Some(Value::Null) => 0,
        Some(value) => match value.as_u64() {
            Some(id) => id,
            None => {
                return Err(Refusal { id: 0, code: Code::INVALID_PARAMETER });
            }
        },
    };
    match command(&mut message, dialect) {
        Ok(command) => Ok(Request { id, command }),
        Err(code) => Err(Refusal { id, code }),
    }
}

fn command(message: &mut Map<String, Value>, dialect: Dialect) -> Result<Command, Code> {
    let params = message.remove("params");
    let name = message.get("cmd").and_then(Value::as_str).unwrap_or_default();
    // The mission's page knows no other commands than these two.
    let known = match dialect {
        Dialect::Live => &["subscribe", "unsubscribe", "update_subscription"][..],
        Dialect::Legacy => &["subscribe", "unsubscribe"],
    };
    if name == "list_subscriptions" && dialect == Dialect::Live {
        return Ok(Command::ListSubscriptions);
    }
    if !known.contains(&name) {
        return Err(Code::UNKNOWN_COMMAND);
    }
    let mut params = match params {
        None | Some(Value::Null) => return Err(Code::PARAMS_REQUIRED),
        Some(Value::Object(params)) => params,
        Some(_) => return Err(Code::INVALID_PARAMETER),
    };
    match name {
        "subscribe" => subscribe(&mut params, dialect).map(Command::Subscribe),
        "unsubscribe" => match params.get("sids") {
            None | Some(Value::Null) => Err(Code::SIDS_REQUIRED),
            Some(sids) => match numbers(sids)? {
                sids if sids.is_empty() => Err(Code::SIDS_REQUIRED),
                sids if sids.len() > MAX_TARGETS => Err(Code::INVALID_PARAMETER),
                sids => Ok(Command::Unsubscribe { sids }),
            },
        },
        _ => update(&mut params).map(Command::Update),
    }
}

fn subscribe(params: &mut Map<String, Value>, dialect: Dialect) -> Result<Subscribe, Code> {
    let channels = match params.remove("channels") {
        None | Some(Value::Null) => return Err(Code::CHANNELS_REQUIRED),
        Some(channels) => strings(channels)?,
    };
    if channels.is_empty() {
        return Err(Code::CHANNELS_REQUIRED);
    }
    if channels.len() > MAX_TARGETS {
        return Err(Code::INVALID_PARAMETER);
    }
    // Selection by market id is not offered here; the mission's page subscribes one by one.
    let lists = params.contains_key("market_tickers") && dialect == Dialect::Legacy;
    if lists || params.contains_key("market_id") || params.contains_key("market_ids") {
        return Err(Code::INVALID_PARAMETER);
    }
    Ok(Subscribe {
        channels,
        tickers: tickers(params)?,
        skip_ticker_ack: flag(params, "skip_ticker_ack")?,
        send_initial_snapshot: flag(params, "send_initial_snapshot")?,
    })
}

fn update(params: &mut Map<String, Value>) -> Result<Update, Code> {
    let sid = match (params.get("sid"), params.get("sids")) {
        (Some(sid), None) => sid.as_u64().ok_or(Code::INVALID_PARAMETER)?,
        (None, Some(sids)) => match numbers(sids)?.as_slice() {
            [sid] => *sid,
            _ => return Err(Code::ONE_SID_REQUIRED),
        },
        _ => return Err(Code::ONE_SID_REQUIRED),
    };
    let action = match params.get("action") {
        None | Some(Value::Null) => None,
        Some(action) => Some(action.as_str().ok_or(Code::INVALID_PARAMETER)?.to_owned()),
    };
    let listed = params.contains_key("market_tickers");
    Ok(Update { sid, action, tickers: tickers(params)?, listed })
}

fn tickers(params: &mut Map<String, Value>) -> Result<Vec<String>, Code> {
    let list = match (params.remove("market_ticker"), params.remove("market_tickers")) {
        (Some(_), Some(_)) => return Err(Code::INVALID_PARAMETER),
        (Some(Value::String(one)), None) => vec![one],
        (Some(_), None) => return Err(Code::INVALID_PARAMETER),
        (None, Some(many)) => strings(many)?,
        (None, None) => Vec::new(),
    };
    if list.iter().any(|ticker| ticker.is_empty() || ticker.len() > MAX_TICKER) {
        return Err(Code::INVALID_PARAMETER);
    }
    Ok(list)
}

fn flag(params: &Map<String, Value>, name: &str) -> Result<bool, Code> {
    params.get(name).map_or(Ok(false), |value| value.as_bool().ok_or(Code::INVALID_PARAMETER))
}

fn strings(value: Value) -> Result<Vec<String>, Code> {
    let Value::Array(list) = value else {
        return Err(Code::INVALID_PARAMETER);
    };
    let text = |item| match item {
        Value::String(text) => Ok(text),
        _ => Err(Code::INVALID_PARAMETER),
    };
    list.into_iter().map(text).collect()
}

fn numbers(value: &Value) -> Result<Vec<u64>, Code> {
    let list = value.as_array().ok_or(Code::INVALID_PARAMETER)?;
    list.iter().map(|item| item.as_u64().ok_or(Code::INVALID_PARAMETER)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_name_the_exchange_code() {
        let cases: [(&str, u64, Code); 20] = [
            ("", 0, Code::UNABLE_TO_PROCESS),
            ("[1]", 0, Code::UNABLE_TO_PROCESS),
            ("{\"id\":1", 0, Code::UNABLE_TO_PROCESS),
            ("{\"id\":-1,\"cmd\":\"subscribe\"}", 0, Code::INVALID_PARAMETER),
            ("{\"id\":1}", 1, Code::UNKNOWN_COMMAND),
            ("{\"id\":1,\"cmd\":\"dance\",\"params\":{}}", 1, Code::UNKNOWN_COMMAND),
            ("{\"id\":1,\"cmd\":\"subscribe\"}", 1, Code::PARAMS_REQUIRED),
            ("{\"id\":1,\"cmd\":\"subscribe\",\"params\":[]}", 1, Code::INVALID_PARAMETER),
            ("{\"id\":1,\"cmd\":\"subscribe\",\"params\":{}}", 1, Code::CHANNELS_REQUIRED),
            (r#"{"id":1,"cmd":"subscribe","params":{"channels":[]}}"#, 1, Code::CHANNELS_REQUIRED),
            (r#"{"id":1,"cmd":"subscribe","params":{"channels":[1]}}"#, 1, Code::INVALID_PARAMETER),
            (
                r#"{"id":1,"cmd":"subscribe","params":{"channels":["ticker"],"market_ticker":"A","market_tickers":["B"]}}"#,
                1,
                Code::INVALID_PARAMETER,
            ),
            (
                r#"{"id":1,"cmd":"subscribe","params":{"channels":["ticker"],"skip_ticker_ack":1}}"#,
                1,
                Code::INVALID_PARAMETER,
            ),
            (
                r#"{"id":1,"cmd":"subscribe","params":{"channels":["ticker"],"market_ids":["x"]}}"#,
                1,
                Code::INVALID_PARAMETER,
            ),
            (r#"{"id":2,"cmd":"unsubscribe","params":{}}"#, 2, Code::SIDS_REQUIRED),
            (r#"{"id":2,"cmd":"unsubscribe","params":{"sids":[]}}"#, 2, Code::SIDS_REQUIRED),
            (r#"{"id":2,"cmd":"unsubscribe","params":{"sids":["1"]}}"#, 2, Code::INVALID_PARAMETER),
            (r#"{"id":3,"cmd":"update_subscription","params":{}}"#, 3, Code::ONE_SID_REQUIRED),
            (
                r#"{"id":3,"cmd":"update_subscription","params":{"sids":[1,2]}}"#,
                3,
                Code::ONE_SID_REQUIRED,
            ),
            (
                r#"{"id":3,"cmd":"update_subscription","params":{"sid":1,"sids":[1]}}"#,
                3,
                Code::ONE_SID_REQUIRED,
            ),
        ];
        for (text, id, code) in cases {
            assert_eq!(parse(text.as_bytes(), Dialect::Live), Err(Refusal { id, code }), "{text}");
        }
    }

    #[test]
    fn commands_are_read() {
        let text = r#"{"id":1,"cmd":"subscribe","params":{"channels":["orderbook_delta","trade"],"market_tickers":["A","B"],"skip_ticker_ack":true}}"#;
        let want = Subscribe {
            channels: vec!["orderbook_delta".into(), "trade".into()],
            tickers: vec!["A".into(), "B".into()],
            skip_ticker_ack: true,
            send_initial_snapshot: false,
        };
        let got = parse(text.as_bytes(), Dialect::Live).unwrap();
        assert_eq!(got, Request { id: 1, command: Command::Subscribe(want) });
        let text = r#"{"cmd":"update_subscription","params":{"sids":[4],"action":"add_markets","market_ticker":"C"}}"#;
        let got = parse(text.as_bytes(), Dialect::Live).unwrap();
        let action = Some("add_markets".to_owned());
        let update = Update { sid: 4, action, tickers: vec!["C".into()], listed: false };
        assert_eq!(got.command.verb(), Some(Verb::AddMarkets));
        assert_eq!(got, Request { id: 0, command: Command::Update(update) });
        let text = r#"{"id":9,"cmd":"list_subscriptions"}"#;
        let got = parse(text.as_bytes(), Dialect::Live).unwrap();
        assert_eq!(got, Request { id: 9, command: Command::ListSubscriptions });
    }

    #[test]
    fn the_missions_page_knows_two_commands_and_no_lists() {
        let read = |text: &str| parse(text.as_bytes(), Dialect::Legacy);
        let text =
            r#"{"id":1,"cmd":"subscribe","params":{"channels":["ticker"],"market_ticker":"A"}}"#;
        let want = Subscribe {
            channels: vec!["ticker".into()],
            tickers: vec!["A".into()],
            ..Subscribe::default()
        };
        assert_eq!(read(text), Ok(Request { id: 1, command: Command::Subscribe(want) }));
        let refused = [
            (r#"{"id":1,"cmd":"list_subscriptions"}"#, Code::UNKNOWN_COMMAND),
            (r#"{"id":1,"cmd":"update_subscription","params":{"sid":1}}"#, Code::UNKNOWN_COMMAND),
            (
                r#"{"id":1,"cmd":"subscribe","params":{"channels":["ticker"],"market_tickers":["A"]}}"#,
                Code::INVALID_PARAMETER,
            ),
        ];
        for (text, code) in refused {
            assert_eq!(read(text), Err(Refusal { id: 1, code }), "{text}");
        }
    }

    #[test]
    fn deep_nesting_is_refused_not_followed() {
        let text = "[".repeat(100_000);
        assert!(parse(text.as_bytes(), Dialect::Live).is_err());
        let text = format!("{{\"id\":1,\"cmd\":{}", "[".repeat(100_000));
        assert!(parse(text.as_bytes(), Dialect::Live).is_err());
    }
}
