//! Client commands: reads one text message into a command, or the error code that answers it. Pure:
//! it knows neither connections nor markets.

use serde_json::{Map, Value};

/// Longest ticker accepted, in bytes.
const MAX_TICKER: usize = 128;
/// Most channels or sids in one command: each is answered by a frame of its own.
const MAX_TARGETS: usize = 1_000;

/// The exchange's error codes, as far as commands can cause them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    UnableToProcess = 1,
    ParamsRequired = 2,
    ChannelsRequired = 3,
    SidsRequired = 4,
    UnknownCommand = 5,
    UnknownSid = 7,
    UnknownChannel = 8,
    InvalidParameter = 11,
    OneSidRequired = 12,
    UnsupportedAction = 13,
    TickerRequired = 14,
    ActionRequired = 15,
    MarketLimit = 26,
    TooManyRequests = 27,
}

impl Code {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::UnableToProcess => "Unable to process message",
            Self::ParamsRequired => "Params required",
            Self::ChannelsRequired => "Channels required",
            Self::SidsRequired => "Subscription IDs required",
            Self::UnknownCommand => "Unknown command",
            Self::UnknownSid => "Unknown subscription ID",
            Self::UnknownChannel => "Unknown channel name",
            Self::InvalidParameter => "Invalid parameter",
            Self::OneSidRequired => "Exactly one subscription ID is required",
            Self::UnsupportedAction => "Unsupported action",
            Self::TickerRequired => "Market Ticker required",
            Self::ActionRequired => "Action required",
            Self::MarketLimit => "Subscription market limit exceeded",
            Self::TooManyRequests => "Too many requests",
        }
    }
}

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
    Unsubscribe {
        sids: Vec<u64>,
    },
    /// The sid is checked before action and tickers, so those stay unjudged here.
    Update {
        sid: u64,
        action: Option<String>,
        tickers: Vec<String>,
    },
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

/// A message that is not a command.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) id: u64,
    pub(crate) code: Code,
}

/// Reads one client message.
pub(crate) fn parse(text: &[u8]) -> Result<Request, Refusal> {
    let Ok(Value::Object(message)) = serde_json::from_slice(text) else {
        return Err(Refusal { id: 0, code: Code::UnableToProcess });
    };
    let id = match message.get("id") {
        None | Some(Value::Null) => 0,
        Some(value) => match value.as_u64() {
            Some(id) => id,
            None => {
                return Err(Refusal { id: 0, code: Code::InvalidParameter });
            }
        },
    };
    match command(&message) {
        Ok(command) => Ok(Request { id, command }),
        Err(code) => Err(Refusal { id, code }),
    }
}

fn command(message: &Map<String, Value>) -> Result<Command, Code> {
    let name = message.get("cmd").and_then(Value::as_str).unwrap_or_default();
    if !matches!(name, "subscribe" | "unsubscribe" | "update_subscription") {
        return Err(Code::UnknownCommand);
    }
    let params = match message.get("params") {
        None | Some(Value::Null) => return Err(Code::ParamsRequired),
        Some(Value::Object(params)) => params,
        Some(_) => return Err(Code::InvalidParameter),
    };
    match name {
        "subscribe" => subscribe(params).map(Command::Subscribe),
        "unsubscribe" => match params.get("sids") {
            None | Some(Value::Null) => Err(Code::SidsRequired),
            Some(sids) => match numbers(sids)? {
                sids if sids.is_empty() => Err(Code::SidsRequired),
                sids if sids.len() > MAX_TARGETS => Err(Code::InvalidParameter),
                sids => Ok(Command::Unsubscribe { sids }),
            },
        },
        _ => update(params),
    }
}

fn subscribe(params: &Map<String, Value>) -> Result<Subscribe, Code> {
    let channels = match params.get("channels") {
        None | Some(Value::Null) => return Err(Code::ChannelsRequired),
        Some(channels) => strings(channels)?,
    };
    if channels.is_empty() {
        return Err(Code::ChannelsRequired);
    }
    if channels.len() > MAX_TARGETS {
        return Err(Code::InvalidParameter);
    }
    // Selection by market id is not offered here.
    if params.contains_key("market_id") || params.contains_key("market_ids") {
        return Err(Code::InvalidParameter);
    }
    Ok(Subscribe {
        channels,
        tickers: tickers(params)?,
        skip_ticker_ack: flag(params, "skip_ticker_ack")?,
        send_initial_snapshot: flag(params, "send_initial_snapshot")?,
    })
}

fn update(params: &Map<String, Value>) -> Result<Command, Code> {
    let sid = match (params.get("sid"), params.get("sids")) {
        (Some(sid), None) => sid.as_u64().ok_or(Code::InvalidParameter)?,
        (None, Some(sids)) => match numbers(sids)?.as_slice() {
            [sid] => *sid,
            _ => return Err(Code::OneSidRequired),
        },
        _ => return Err(Code::OneSidRequired),
    };
    let action = match params.get("action") {
        None | Some(Value::Null) => None,
        Some(action) => Some(action.as_str().ok_or(Code::InvalidParameter)?.to_owned()),
    };
    Ok(Command::Update { sid, action, tickers: tickers(params)? })
}

fn tickers(params: &Map<String, Value>) -> Result<Vec<String>, Code> {
    let list = match (params.get("market_ticker"), params.get("market_tickers")) {
        (Some(_), Some(_)) => return Err(Code::InvalidParameter),
        (Some(one), None) => vec![one.as_str().ok_or(Code::InvalidParameter)?.to_owned()],
        (None, Some(many)) => strings(many)?,
        (None, None) => Vec::new(),
    };
    if list.iter().any(|ticker| ticker.is_empty() || ticker.len() > MAX_TICKER) {
        return Err(Code::InvalidParameter);
    }
    Ok(list)
}

fn flag(params: &Map<String, Value>, name: &str) -> Result<bool, Code> {
    params.get(name).map_or(Ok(false), |value| value.as_bool().ok_or(Code::InvalidParameter))
}

fn strings(value: &Value) -> Result<Vec<String>, Code> {
    let list = value.as_array().ok_or(Code::InvalidParameter)?;
    list.iter().map(|item| item.as_str().map(str::to_owned).ok_or(Code::InvalidParameter)).collect()
}

fn numbers(value: &Value) -> Result<Vec<u64>, Code> {
    let list = value.as_array().ok_or(Code::InvalidParameter)?;
    list.iter().map(|item| item.as_u64().ok_or(Code::InvalidParameter)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_name_the_exchange_code() {
        let cases: [(&str, u64, Code); 20] = [
            ("", 0, Code::UnableToProcess),
            ("[1]", 0, Code::UnableToProcess),
            ("{\"id\":1", 0, Code::UnableToProcess),
            ("{\"id\":-1,\"cmd\":\"subscribe\"}", 0, Code::InvalidParameter),
            ("{\"id\":1}", 1, Code::UnknownCommand),
            ("{\"id\":1,\"cmd\":\"dance\",\"params\":{}}", 1, Code::UnknownCommand),
            ("{\"id\":1,\"cmd\":\"subscribe\"}", 1, Code::ParamsRequired),
            ("{\"id\":1,\"cmd\":\"subscribe\",\"params\":[]}", 1, Code::InvalidParameter),
            ("{\"id\":1,\"cmd\":\"subscribe\",\"params\":{}}", 1, Code::ChannelsRequired),
            (r#"{"id":1,"cmd":"subscribe","params":{"channels":[]}}"#, 1, Code::ChannelsRequired),
            (r#"{"id":1,"cmd":"subscribe","params":{"channels":[1]}}"#, 1, Code::InvalidParameter),
            (
                r#"{"id":1,"cmd":"subscribe","params":{"channels":["ticker"],"market_ticker":"A","market_tickers":["B"]}}"#,
                1,
                Code::InvalidParameter,
            ),
            (
                r#"{"id":1,"cmd":"subscribe","params":{"channels":["ticker"],"skip_ticker_ack":1}}"#,
                1,
                Code::InvalidParameter,
            ),
            (
                r#"{"id":1,"cmd":"subscribe","params":{"channels":["ticker"],"market_ids":["x"]}}"#,
                1,
                Code::InvalidParameter,
            ),
            (r#"{"id":2,"cmd":"unsubscribe","params":{}}"#, 2, Code::SidsRequired),
            (r#"{"id":2,"cmd":"unsubscribe","params":{"sids":[]}}"#, 2, Code::SidsRequired),
            (r#"{"id":2,"cmd":"unsubscribe","params":{"sids":["1"]}}"#, 2, Code::InvalidParameter),
            (r#"{"id":3,"cmd":"update_subscription","params":{}}"#, 3, Code::OneSidRequired),
            (
                r#"{"id":3,"cmd":"update_subscription","params":{"sids":[1,2]}}"#,
                3,
                Code::OneSidRequired,
            ),
            (
                r#"{"id":3,"cmd":"update_subscription","params":{"sid":1,"sids":[1]}}"#,
                3,
                Code::OneSidRequired,
            ),
        ];
        for (text, id, code) in cases {
            assert_eq!(parse(text.as_bytes()), Err(Refusal { id, code }), "{text}");
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
        let got = parse(text.as_bytes()).unwrap();
        assert_eq!(got, Request { id: 1, command: Command::Subscribe(want) });
        let text = r#"{"cmd":"update_subscription","params":{"sids":[4],"action":"add_markets","market_ticker":"C"}}"#;
        let got = parse(text.as_bytes()).unwrap();
        let action = Some("add_markets".to_owned());
        let command = Command::Update { sid: 4, action, tickers: vec!["C".into()] };
        assert_eq!(got, Request { id: 0, command });
    }

    #[test]
    fn deep_nesting_is_refused_not_followed() {
        let text = "[".repeat(100_000);
        assert!(parse(text.as_bytes()).is_err());
        let text = format!("{{\"id\":1,\"cmd\":{}", "[".repeat(100_000));
        assert!(parse(text.as_bytes()).is_err());
    }
}
