//! Commands of one connection and the replies to them: who asked what, until when, and how it
//! ended. Every command ends exactly once. Pure; ids are never reused within an epoch.
//!
//! A command that ended without a reply is remembered: should the reply come after all, it says
//! what the exchange did, and whoever keeps the account must hear it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::code::ExchangeCode;
use crate::envelope::{Envelope, Kind};
use crate::ids::{CommandId, Sid};
use crate::request::Expects;
use crate::timer::after;

/// Commands of one connection without a reply, in time or not, that are remembered. The engine
/// asks nothing more while there are so many.
pub(crate) const UNANSWERED_MAX: usize = 32;

/// How a command ended.
///
/// ```
/// use kalshi_feed::{ExchangeCode, Outcome};
/// assert!(Outcome::Ok.is_ok());
/// assert!(!Outcome::Rejected { code: ExchangeCode::TickerRequired }.is_ok());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// The exchange confirmed it.
    Ok,
    /// The exchange refused it (Kalshi's WebSocket documentation, "Error codes").
    Rejected {
        /// Why.
        code: ExchangeCode,
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
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
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
/// use kalshi_feed::{ErrorCode, ExchangeCode};
/// assert_eq!(ErrorCode::Int(14).code(), ExchangeCode::TickerRequired);
/// assert_eq!(ErrorCode::Text("too_many_requests".into()).code(), ExchangeCode::TooManyRequests);
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
    /// What it means.
    pub fn code(&self) -> ExchangeCode {
        match self {
            Self::Int(number) => ExchangeCode::from(*number),
            Self::Text(text) => ExchangeCode::from_text(text),
        }
    }
}

/// A subscription the exchange says there is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Listed {
    pub(crate) channel: String,
    pub(crate) sid: u64,
}

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) id: CommandId,
    pub(crate) expects: Expects,
    pub(crate) outcome: Outcome,
    /// The subscription the exchange named.
    pub(crate) sid: Option<Sid>,
    /// What few commands have.
    pub(crate) detail: Option<Box<Detail>>,
}

/// What few commands have.
#[derive(Debug, Default)]
pub(crate) struct Detail {
    /// The subscriptions that were asked for.
    pub(crate) listed: Vec<Listed>,
    /// The reply that ended it, where the host wants it.
    pub(crate) responses: Vec<Response>,
}

impl Ended {
    /// One that could not even be sent.
    pub(crate) fn lost(id: CommandId, expects: Expects) -> Self {
        Self { id, expects, outcome: Outcome::ConnectionLost, sid: None, detail: None }
    }

    pub(crate) fn listed(&self) -> &[Listed] {
        self.detail.as_ref().map_or(&[], |detail| &detail.listed)
    }
}

/// What a reply meant.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The command ended.
    Ended(Ended),
    /// The command had ended without a reply; this is what came of it.
    Late(Ended),
    /// One of several.
    Part,
    /// No command waits for it: unknown, doubled, or not what its command can be answered by.
    Unknown,
}

#[derive(Debug)]
struct Pending {
    id: CommandId,
    expects: Expects,
    deadline: Instant,
    detail: Option<Box<Detail>>,
}

/// The commands of one connection's epoch.
#[derive(Debug)]
pub(crate) struct Commands {
    /// In order of id. All wait equally long, but for books that may be lost.
    pending: VecDeque<Pending>,
    /// Ended without a reply.
    overdue: VecDeque<(CommandId, Expects)>,
    timeout: Duration,
    /// Whether the replies are kept.
    keep: bool,
}

impl Commands {
    pub(crate) fn new(timeout: Duration, keep: bool) -> Self {
        Self { pending: VecDeque::new(), overdue: VecDeque::new(), timeout, keep }
    }

    /// The command is sent now.
    pub(crate) fn issue(&mut self, id: CommandId, expects: Expects, now: Instant) {
        let deadline = after(now, self.timeout);
        self.pending.push_back(Pending { id, expects, deadline, detail: None });
    }

    /// Reads a reply, as much of it as matters: an acknowledgement may list all markets of its
    /// subscription, though we ask it not to, and nobody needs that list.
    pub(crate) fn read(&self, text: &[u8], envelope: &Envelope) -> Option<Response> {
        let plain = envelope.kind == Kind::Ok && envelope.sid.is_some() && !self.keep;
        let id = envelope.id.filter(|&id| plain && self.expects(id) != Some(Expects::List));
        match id.and_then(|id| i64::try_from(id.number()).ok()) {
            Some(id) => {
                let (kind, msg) = ("ok".to_owned(), serde_json::Value::Null);
                Some(Response { id: Some(id), kind, sid: None, msg })
            }
            None => serde_json::from_slice(text).ok(),
        }
    }

    /// What answers a command that waits for a reply, or did.
    fn expects(&self, id: CommandId) -> Option<Expects> {
        let pending = self.pending.iter().map(|pending| (pending.id, pending.expects));
        let mut known = pending.chain(self.overdue.iter().copied());
        known.find(|&(known, _)| known == id).map(|(_, expects)| expects)
    }

    /// Matches a reply with its command.
    pub(crate) fn reply(&mut self, response: Response, sid: Option<Sid>) -> Answer {
        let id = response.id.and_then(|id| u64::try_from(id).ok());
        let Some(id) = id.filter(|&id| id > 0).map(CommandId::new) else { return Answer::Unknown };
        let sid = sid.or_else(|| named_sid(&response));
        if let Some(index) = self.pending.iter().position(|pending| pending.id == id) {
            return self.answer(index, response, sid);
        }
        let Some(index) = self.overdue.iter().position(|&(overdue, _)| overdue == id) else {
            return Answer::Unknown;
        };
        let expects = self.overdue.get(index).map(|&(_, expects)| expects);
        let Some((expects, outcome)) =
            expects.and_then(|expects| Some((expects, outcome(expects, &response, sid)?)))
        else {
            return Answer::Unknown;
        };
        self.overdue.remove(index);
        Answer::Late(Ended { id, expects, outcome, sid, detail: None })
    }

    fn answer(&mut self, index: usize, response: Response, sid: Option<Sid>) -> Answer {
        let Some(pending) = self.pending.get_mut(index) else { return Answer::Unknown };
        let Some(outcome) = outcome(pending.expects, &response, sid) else {
            return Answer::Unknown;
        };
        if pending.expects == Expects::List && outcome.is_ok() {
            pending.detail.get_or_insert_default().listed = listed(&response).unwrap_or_default();
        }
        if self.keep {
            pending.detail.get_or_insert_default().responses.push(response);
        }
        self.end(index, outcome, sid).map_or(Answer::Unknown, Answer::Ended)
    }

    /// A data frame that carries a command's id: a book that was asked for.
    pub(crate) fn book(&mut self, id: CommandId) -> Answer {
        let Some(index) = self.pending.iter().position(|pending| pending.id == id) else {
            return Answer::Unknown;
        };
        match self.pending.get_mut(index).map(|pending| &mut pending.expects) {
            Some(Expects::Books(left)) if *left > 1 => {
                *left -= 1;
                Answer::Part
            }
            Some(Expects::Books(_)) => {
                self.end(index, Outcome::Ok, None).map_or(Answer::Unknown, Answer::Ended)
            }
            _ => Answer::Unknown,
        }
    }

    fn end(&mut self, index: usize, outcome: Outcome, sid: Option<Sid>) -> Option<Ended> {
        let Pending { id, expects, detail, .. } = self.pending.remove(index)?;
        Some(Ended { id, expects, outcome, sid, detail })
    }

    /// Messages were lost, perhaps books that were asked for: those that are still to come have
    /// a fifth of the time left.
    pub(crate) fn gap(&mut self, now: Instant) {
        let soon = after(now, self.timeout / 5);
        for pending in &mut self.pending {
            if matches!(pending.expects, Expects::Books(_)) {
                pending.deadline = pending.deadline.min(soon);
            }
        }
    }

    /// The next command whose time is up.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<Ended> {
        let index = self.pending.iter().position(|pending| pending.deadline <= now)?;
        let ended = self.end(index, Outcome::TimedOut, None)?;
        self.overdue.push_back((ended.id, ended.expects));
        if self.overdue.len() > UNANSWERED_MAX {
            self.overdue.pop_front();
        }
        Some(ended)
    }

    /// The next command that ends because the connection does.
    pub(crate) fn lose(&mut self) -> Option<Ended> {
        self.end(0, Outcome::ConnectionLost, None)
    }

    /// When the next command's time is up.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.pending.iter().map(|pending| pending.deadline).min()
    }

    /// Gives every open command this much more time: while the engine itself holds back reading,
    /// a missing reply says nothing about the exchange.
    pub(crate) fn postpone(&mut self, by: Duration) {
        for pending in &mut self.pending {
            pending.deadline = after(pending.deadline, by);
        }
    }
}

/// How a reply ends a command; none when it is not one that can.
fn outcome(expects: Expects, response: &Response, sid: Option<Sid>) -> Option<Outcome> {
    let kind = response.kind.as_str();
    if kind == "error" {
        let code = error_code(response).unwrap_or(ExchangeCode::Unreadable);
        return Some(Outcome::Rejected { code });
    }
    let fits = match expects {
        // A second subscribe merges into the first and is answered `ok`. One that names no
        // subscription is no use, and not what was promised.
        Expects::Subscription => matches!(kind, "subscribed" | "ok") && sid.is_some(),
        Expects::End(_) => matches!(kind, "unsubscribed" | "ok"),
        Expects::Done | Expects::Books(_) => kind == "ok",
        Expects::List => kind == "ok" && listed(response).is_some(),
    };
    fits.then_some(Outcome::Ok)
}

/// The code of an `error` frame, if it has one.
pub(crate) fn error_code(response: &Response) -> Option<ExchangeCode> {
    Some(ErrorMsg::deserialize(&response.msg).ok()?.code.code())
}

fn named_sid(response: &Response) -> Option<Sid> {
    let named = SubscribedMsg::deserialize(&response.msg).ok().map(|msg| msg.sid);
    let number = u64::try_from(named.or(response.sid)?).ok()?;
    Some(Sid::new(number))
}

fn listed(response: &Response) -> Option<Vec<Listed>> {
    Vec::deserialize(&response.msg).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUBSCRIPTION: Expects = Expects::Subscription;

    fn commands() -> (Commands, Instant) {
        (Commands::new(Duration::from_secs(5), false), crate::clock::now())
    }

    fn response(text: &str) -> Response {
        serde_json::from_str(text).unwrap()
    }

    fn issue(commands: &mut Commands, id: u64, expects: Expects, now: Instant) {
        commands.issue(CommandId::new(id), expects, now);
    }

    /// The reply's effect on the one command there is.
    fn ended(commands: &mut Commands, text: &str, sid: Option<u64>) -> Ended {
        match commands.reply(response(text), sid.map(Sid::new)) {
            Answer::Ended(ended) => ended,
            other => panic!("{text}: {other:?}"),
        }
    }

    const SUBSCRIBED: &str = r#"{"type":"subscribed","id":1,"msg":{"channel":"trade","sid":2}}"#;

    #[test]
    fn f1_books_that_may_be_lost_are_not_waited_for_as_long() {
        let (mut commands, now) = commands();
        let after = |ms| now + Duration::from_millis(ms);
        issue(&mut commands, 1, Expects::Done, now);
        issue(&mut commands, 2, Expects::Books(2), now);
        commands.gap(after(500));
        commands.gap(after(900));
        assert_eq!(commands.next_deadline(), Some(after(1_500)));
        assert!(commands.expire(after(1_499)).is_none());
        assert_eq!(commands.expire(after(1_500)).unwrap().id, CommandId::new(2));
        assert_eq!(commands.next_deadline(), Some(after(5_000)), "others have all their time");
        issue(&mut commands, 3, Expects::Books(2), after(100));
        commands.gap(after(4_900));
        assert_eq!(commands.next_deadline(), Some(after(5_000)));
    }

    #[test]
    fn e2_a_doubled_reply_ends_nothing() {
        let (mut commands, now) = commands();
        issue(&mut commands, 1, SUBSCRIPTION, now);
        let ended = ended(&mut commands, SUBSCRIBED, None);
        assert_eq!((ended.outcome, ended.sid), (Outcome::Ok, Some(Sid::new(2))));
        assert!(matches!(commands.reply(response(SUBSCRIBED), None), Answer::Unknown));
        assert!(commands.lose().is_none());
    }

    #[test]
    fn e7_a_merged_subscribe_is_answered_by_ok() {
        let (mut commands, now) = commands();
        issue(&mut commands, 1, SUBSCRIPTION, now);
        let reply = r#"{"type":"ok","id":1,"sid":3,"seq":9,"msg":{}}"#;
        let ended = ended(&mut commands, reply, Some(3));
        assert_eq!((ended.outcome, ended.sid), (Outcome::Ok, Some(Sid::new(3))));
    }

    #[test]
    fn e1_unknown_missing_and_zero_ids_and_unfit_replies_end_nothing() {
        let (mut commands, now) = commands();
        issue(&mut commands, 1, SUBSCRIPTION, now);
        for text in [
            r#"{"type":"ok","id":2,"sid":1,"msg":{}}"#,
            r#"{"type":"ok","sid":1,"msg":{}}"#,
            r#"{"type":"ok","id":0,"sid":1,"msg":{}}"#,
            r#"{"type":"ok","id":-1,"sid":1,"msg":{}}"#,
            r#"{"type":"ok","id":1,"msg":[]}"#,
            r#"{"type":"unsubscribed","id":1,"sid":1}"#,
            r#"{"type":"surprise","id":1,"sid":1}"#,
        ] {
            let answer = commands.reply(response(text), None);
            assert!(matches!(answer, Answer::Unknown), "{text}: {answer:?}");
        }
        assert_eq!(commands.lose().unwrap().outcome, Outcome::ConnectionLost);
    }

    #[test]
    fn a_refusal_carries_the_code_of_either_dialect() {
        for (text, code) in [
            (
                r#"{"type":"error","id":1,"msg":{"code":14,"msg":"Market Ticker required"}}"#,
                ExchangeCode::TickerRequired,
            ),
            (
                r#"{"id":1,"type":"error","msg":{"code":"already_subscribed","message":"no"}}"#,
                ExchangeCode::AlreadySubscribed,
            ),
            (
                r#"{"type":"error","id":1,"msg":{"code":"ODD","message":"no"}}"#,
                ExchangeCode::Unreadable,
            ),
            (r#"{"type":"error","id":1}"#, ExchangeCode::Unreadable),
        ] {
            let (mut commands, now) = commands();
            issue(&mut commands, 1, SUBSCRIPTION, now);
            let ended = ended(&mut commands, text, None);
            assert_eq!(ended.outcome, Outcome::Rejected { code });
        }
    }

    #[test]
    fn e4_time_runs_out_once_and_in_order() {
        let (mut commands, now) = commands();
        issue(&mut commands, 1, SUBSCRIPTION, now);
        issue(&mut commands, 2, SUBSCRIPTION, now + Duration::from_secs(1));
        assert!(commands.expire(now + Duration::from_secs(4)).is_none());
        let ended = commands.expire(now + Duration::from_secs(5)).unwrap();
        assert_eq!((ended.id, ended.outcome), (CommandId::new(1), Outcome::TimedOut));
        assert!(commands.expire(now + Duration::from_secs(5)).is_none());
    }

    #[test]
    fn e3_a_late_reply_is_told_as_late_and_once() {
        let (mut commands, now) = commands();
        issue(&mut commands, 1, SUBSCRIPTION, now);
        commands.expire(now + Duration::from_secs(5)).unwrap();
        let Answer::Late(late) = commands.reply(response(SUBSCRIBED), None) else {
            panic!("not late")
        };
        assert_eq!(
            (late.id, late.outcome, late.sid),
            (CommandId::new(1), Outcome::Ok, Some(Sid::new(2)))
        );
        assert!(matches!(commands.reply(response(SUBSCRIBED), None), Answer::Unknown));
    }

    #[test]
    fn commands_without_a_reply_are_not_remembered_without_end() {
        let (mut commands, now) = commands();
        for id in 1..=1_000 {
            issue(&mut commands, id, SUBSCRIPTION, now);
            commands.expire(now + Duration::from_secs(5)).unwrap();
        }
        assert_eq!(commands.overdue.len(), UNANSWERED_MAX);
    }

    /// Replies of one command that asks for three books, in every mixture: the frames' number, then
    /// what ends it.
    #[test]
    fn e6_a_command_of_many_replies_ends_when_all_are_in_or_time_is_up() {
        let error = r#"{"type":"error","id":1,"msg":{"code":14,"msg":"no"}}"#;
        let ok = r#"{"type":"ok","id":1,"sid":1,"seq":4,"msg":{}}"#;
        let refused = Outcome::Rejected { code: ExchangeCode::TickerRequired };
        for (books, reply, expected) in [
            (3, None, Outcome::Ok),
            (2, Some(ok), Outcome::Ok),
            (0, Some(ok), Outcome::Ok),
            (2, Some(error), refused),
            (0, Some(error), refused),
            (2, None, Outcome::TimedOut),
        ] {
            let (mut commands, now) = commands();
            issue(&mut commands, 1, Expects::Books(3), now);
            let mut outcomes = Vec::new();
            for _ in 0..books {
                match commands.book(CommandId::new(1)) {
                    Answer::Ended(ended) => outcomes.push(ended.outcome),
                    Answer::Part => {}
                    other => panic!("{other:?}"),
                }
            }
            if let Some(text) = reply {
                outcomes.push(ended(&mut commands, text, None).outcome);
            }
            outcomes
                .extend(commands.expire(now + Duration::from_secs(5)).map(|ended| ended.outcome));
            assert_eq!(outcomes, [expected], "{books} {reply:?}");
            assert!(matches!(commands.book(CommandId::new(1)), Answer::Unknown));
        }
    }

    #[test]
    fn a_list_names_subscriptions_and_nothing_else_is_one() {
        let (mut commands, now) = commands();
        issue(&mut commands, 1, Expects::List, now);
        let wrong = response(r#"{"type":"ok","id":1,"sid":1,"msg":{}}"#);
        assert!(matches!(commands.reply(wrong, None), Answer::Unknown));
        let text = r#"{"type":"ok","id":1,"msg":[{"channel":"trade","sid":3}]}"#;
        let ended = ended(&mut commands, text, None);
        assert_eq!(ended.listed(), [Listed { channel: "trade".into(), sid: 3 }]);
    }

    #[test]
    fn e7_the_list_in_an_acknowledgement_is_read_only_where_the_host_wants_it() {
        let text = r#"{"type":"ok","id":1,"sid":3,"seq":9,"msg":{"market_tickers":["A","B"]}}"#;
        for keep in [false, true] {
            for expects in [Expects::Done, SUBSCRIPTION, Expects::List] {
                let mut commands = Commands::new(Duration::from_secs(5), keep);
                issue(&mut commands, 1, expects, crate::clock::now());
                let envelope = Envelope::read(text.as_bytes());
                let reply = commands.read(text.as_bytes(), &envelope).unwrap();
                assert_eq!(reply.msg.is_null(), !keep && expects != Expects::List);
                let answer = commands.reply(reply, envelope.sid);
                let ended = matches!(answer, Answer::Ended(Ended { outcome: Outcome::Ok, .. }));
                assert_eq!(ended, expects != Expects::List, "{answer:?}");
            }
        }
    }

    #[test]
    fn replies_are_kept_where_the_host_wants_them() {
        let mut commands = Commands::new(Duration::from_secs(5), true);
        issue(&mut commands, 1, SUBSCRIPTION, crate::clock::now());
        let ended = ended(&mut commands, SUBSCRIBED, None);
        assert_eq!(ended.detail.unwrap().responses, [response(SUBSCRIBED)]);
    }
}
