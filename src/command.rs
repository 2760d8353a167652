//! Commands of one connection and the replies to them: who asked what, until when, and how it
//! ended. Every command ends exactly once. Pure; ids are never reused within an epoch.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::ids::{CommandId, Sid};
use crate::request::Request;

/// How a command ended.
///
/// ```
/// use kalshi_feed::Outcome;
/// assert!(Outcome::Ok.is_ok());
/// assert!(!Outcome::Rejected { code: 14 }.is_ok());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// The exchange confirmed it.
    Ok,
    /// The exchange refused it, with this code (Kalshi's WebSocket documentation, "Error codes").
    Rejected {
        /// The code; -1 when it was not a number.
        code: i64,
    },
    /// No reply came within the subscribe timeout. The exchange may have carried it out.
    TimedOut,
    /// The connection ended first.
    ConnectionLost,
}

impl Outcome {
    /// Whether the exchange confirmed it.
    pub fn is_ok(self) -> bool {
        self == Self::Ok
    }
}

/// A reply to a command, as the exchange sent it.
///
/// ```
/// let text = r#"{"type":"subscribed","id":1,"msg":{"channel":"trade","sid":2}}"#;
/// let response: kalshi_feed::Response = serde_json::from_str(text)?;
/// assert_eq!(response.kind, "subscribed");
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Deserialize, Serialize)]
#[non_exhaustive]
pub struct Response {
    /// The command's id; none in an error the exchange sent on its own.
    #[serde(default)]
    pub id: Option<i64>,
    /// `subscribed`, `unsubscribed`, `ok` or `error`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The subscription, where the exchange names it beside the message.
    #[serde(default)]
    pub sid: Option<i64>,
    /// The message: a [`SubscribedMsg`], an [`ErrorMsg`], or what else the type says.
    #[serde(default)]
    pub msg: serde_json::Value,
}

/// The message of a `subscribed` reply.
///
/// ```
/// let msg: kalshi_feed::SubscribedMsg = serde_json::from_str(r#"{"channel":"trade","sid":2}"#)?;
/// assert_eq!((msg.channel.as_str(), msg.sid), ("trade", 2));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[non_exhaustive]
pub struct SubscribedMsg {
    /// The subscription's number on this connection.
    pub sid: i64,
    /// The channel's name.
    pub channel: String,
}

/// The message of an `error` reply: the live exchange's `{code: integer, msg}` or the older
/// `{code: text, message}`.
///
/// ```
/// use kalshi_feed::{ErrorCode, ErrorMsg};
/// let live: ErrorMsg = serde_json::from_str(r#"{"code":14,"msg":"Market Ticker required"}"#)?;
/// assert_eq!(live.code, ErrorCode::Int(14));
/// let old: ErrorMsg = serde_json::from_str(r#"{"code":"INVALID","message":"no"}"#)?;
/// assert_eq!(old.message, "no");
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[non_exhaustive]
pub struct ErrorMsg {
    /// What kind of error.
    pub code: ErrorCode,
    /// For people.
    #[serde(alias = "msg", default)]
    pub message: String,
}

/// An error's code in either dialect.
///
/// ```
/// assert_eq!(kalshi_feed::ErrorCode::Int(14).number(), Some(14));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum ErrorCode {
    /// The live exchange's.
    Int(i64),
    /// The older description's.
    Text(String),
}

impl ErrorCode {
    /// The number, if it is one.
    pub fn number(&self) -> Option<i64> {
        match self {
            Self::Int(number) => Some(*number),
            Self::Text(text) => text.parse().ok(),
        }
    }
}

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) id: CommandId,
    pub(crate) request: Request,
    pub(crate) outcome: Outcome,
    /// The subscription the exchange confirmed.
    pub(crate) sid: Option<Sid>,
}

#[derive(Debug)]
struct Pending {
    id: CommandId,
    request: Request,
    deadline: Instant,
}

/// The commands of one connection's epoch.
#[derive(Debug)]
pub(crate) struct Commands {
    /// In order of id, which is order of deadline: all wait equally long.
    pending: VecDeque<Pending>,
    next_id: u64,
    timeout: Duration,
}

impl Commands {
    pub(crate) fn new(timeout: Duration) -> Self {
        Self { pending: VecDeque::new(), next_id: 1, timeout }
    }

    /// Gives the request an id and a deadline; returns the text to send.
    pub(crate) fn issue(&mut self, request: Request, now: Instant) -> String {
        let id = CommandId::new(self.next_id);
        self.next_id += 1;
        let text = request.text(id);
        let deadline = now.checked_add(self.timeout).unwrap_or(now);
        self.pending.push_back(Pending { id, request, deadline });
        text
    }

    /// Matches a reply with its command; `None` when no command waits for it (unknown, late or
    /// doubled: the caller counts it).
    pub(crate) fn reply(&mut self, response: &Response, sid: Option<Sid>) -> Option<Ended> {
        let id = u64::try_from(response.id?).ok().filter(|&id| id > 0)?;
        let index = self.pending.iter().position(|pending| pending.id.number() == id)?;
        let outcome = outcome_of(response);
        let sid = sid.or_else(|| subscribed_sid(response));
        if outcome.is_ok() && sid.is_none() && self.needs_sid(index) {
            // It confirms a subscription without naming it: no use, and not what was promised.
            return None;
        }
        let Pending { id, request, .. } = self.pending.remove(index)?;
        Some(Ended { id, request, outcome, sid })
    }

    fn needs_sid(&self, index: usize) -> bool {
        let request = self.pending.get(index).map(|pending| &pending.request);
        matches!(request, Some(Request::Subscribe { .. }))
    }

    /// The next command whose time is up.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<Ended> {
        if self.next_deadline()? > now {
            return None;
        }
        self.end_first(Outcome::TimedOut)
    }

    /// The next command that ends because the connection does.
    pub(crate) fn lose(&mut self) -> Option<Ended> {
        self.end_first(Outcome::ConnectionLost)
    }

    /// When the next command's time is up.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.pending.front().map(|pending| pending.deadline)
    }

    /// Gives every open command this much more time: while the engine itself holds back reading,
    /// a missing reply says nothing about the exchange.
    pub(crate) fn postpone(&mut self, by: Duration) {
        for pending in &mut self.pending {
            pending.deadline = pending.deadline.checked_add(by).unwrap_or(pending.deadline);
        }
    }

    fn end_first(&mut self, outcome: Outcome) -> Option<Ended> {
        let Pending { id, request, .. } = self.pending.pop_front()?;
        Some(Ended { id, request, outcome, sid: None })
    }
}

fn outcome_of(response: &Response) -> Outcome {
    if response.kind != "error" {
        return Outcome::Ok;
    }
    Outcome::Rejected { code: error_code(response).unwrap_or(-1) }
}

/// The code of an `error` frame, if it has a number.
pub(crate) fn error_code(response: &Response) -> Option<i64> {
    ErrorMsg::deserialize(&response.msg).ok()?.code.number()
}

fn subscribed_sid(response: &Response) -> Option<Sid> {
    let named = SubscribedMsg::deserialize(&response.msg).ok().map(|msg| msg.sid);
    let number = u64::try_from(named.or(response.sid)?).ok()?;
    Some(Sid::new(number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Role;

    fn commands() -> (Commands, Instant) {
        (Commands::new(Duration::from_secs(5)), crate::clock::now())
    }

    fn response(text: &str) -> Response {
        serde_json::from_str(text).unwrap()
    }

    fn subscribe() -> Request {
        Request::Subscribe { role: Role::Trade, markets: vec![] }
    }

    #[test]
    fn a_command_ends_once_by_its_reply() {
        let (mut commands, now) = commands();
        commands.issue(subscribe(), now);
        let reply = response(r#"{"type":"subscribed","id":1,"msg":{"channel":"trade","sid":2}}"#);
        let ended = commands.reply(&reply, None).unwrap();
        assert_eq!((ended.outcome, ended.sid), (Outcome::Ok, Some(Sid::new(2))));
        assert!(commands.reply(&reply, None).is_none(), "a doubled reply ends nothing");
        assert!(commands.lose().is_none());
    }

    #[test]
    fn a_merged_subscribe_is_answered_by_ok() {
        let (mut commands, now) = commands();
        commands.issue(subscribe(), now);
        let reply = response(r#"{"type":"ok","id":1,"sid":3,"seq":9,"msg":{}}"#);
        let ended = commands.reply(&reply, Some(Sid::new(3))).unwrap();
        assert_eq!((ended.outcome, ended.sid), (Outcome::Ok, Some(Sid::new(3))));
    }

    #[test]
    fn unknown_missing_and_zero_ids_end_nothing() {
        let (mut commands, now) = commands();
        commands.issue(subscribe(), now);
        for text in [
            r#"{"type":"ok","id":2,"sid":1,"msg":{}}"#,
            r#"{"type":"ok","sid":1,"msg":{}}"#,
            r#"{"type":"ok","id":0,"sid":1,"msg":{}}"#,
            r#"{"type":"ok","id":-1,"sid":1,"msg":{}}"#,
            r#"{"type":"ok","id":1,"msg":[]}"#,
        ] {
            assert!(commands.reply(&response(text), None).is_none(), "{text}");
        }
        assert_eq!(commands.lose().unwrap().outcome, Outcome::ConnectionLost);
    }

    #[test]
    fn a_refusal_carries_the_code_of_either_dialect() {
        for (text, code) in [
            (r#"{"type":"error","id":1,"msg":{"code":14,"msg":"Market Ticker required"}}"#, 14),
            (r#"{"type":"error","id":1,"msg":{"code":"INVALID","message":"no"}}"#, -1),
            (r#"{"type":"error","id":1}"#, -1),
        ] {
            let (mut commands, now) = commands();
            commands.issue(subscribe(), now);
            let ended = commands.reply(&response(text), None).unwrap();
            assert_eq!(ended.outcome, Outcome::Rejected { code });
        }
    }

    #[test]
    fn time_runs_out_in_order_and_ids_are_not_reused() {
        let (mut commands, now) = commands();
        commands.issue(subscribe(), now);
        commands.issue(subscribe(), now + Duration::from_secs(1));
        assert!(commands.expire(now + Duration::from_secs(4)).is_none());
        let ended = commands.expire(now + Duration::from_secs(5)).unwrap();
        assert_eq!((ended.id, ended.outcome), (CommandId::new(1), Outcome::TimedOut));
        assert!(commands.expire(now + Duration::from_secs(5)).is_none());
        assert!(commands.issue(subscribe(), now).contains("\"id\":3"));
    }
}
