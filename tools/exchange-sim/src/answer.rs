//! The exchange's answers to client commands: carries them out, then sends acknowledgements,
//! snapshots for newly added markets and errors, each under the right sid and number, and wrongly
//! where a fault says so. It reads no socket and no clock.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::code::Code;
use crate::command::{self, Command, Refusal, Subscribe, Update};
use crate::config::{AckOrder, Dialect, Duplicates};
use crate::faults::{CommandFault, Stray};
use crate::market::MarketId;
use crate::postponed::{Due, Entry};
use crate::reply;
use crate::subscription::{Channel, Stream};
use crate::venue::Venue;

/// Most sids one connection can use up.
const MAX_STREAMS: usize = 100_000;
/// Most names held for all clients together beyond which unlisted ones are refused.
const MAX_NAMES: usize = 8_000_000;
/// Most late replies of one connection; beyond, replies are not late.
const MAX_LATE: u32 = 10_000;

/// One answer to a command, still without numbers.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// A subscription was made.
    Subscribed(u32),
    /// A subscription was changed.
    Ok(u32),
    /// A subscription was ended.
    Unsubscribed(u32),
    /// Subscriptions were ended: the mission's one reply for all of a command.
    Removed(Vec<u32>),
    /// The subscriptions there are.
    List,
    /// The books of these markets.
    Snapshots { stream: u32, tickers: Vec<String> },
    /// A refusal, about a stream where one was meant.
    Error { stream: Option<u32>, code: Code },
}

/// Markets new to a stream, and whether to send their tickers.
struct Opening {
    stream: u32,
    fresh: Vec<MarketId>,
    ticker: bool,
}

/// What a command came to.
#[derive(Default)]
struct Outcome {
    replies: Vec<Reply>,
    openings: Vec<Opening>,
}

impl From<Reply> for Outcome {
    fn from(reply: Reply) -> Self {
        Self { replies: vec![reply], openings: Vec::new() }
    }
}

fn refusal(stream: Option<u32>, code: Code) -> Outcome {
    Reply::Error { stream, code }.into()
}

impl Venue {
    /// Answers one text message of a client.
    pub(crate) fn answer(&mut self, slot: u32, text: &[u8], now: Instant) {
        self.counts.commands += 1;
        let request = match command::parse(text, self.rules.dialect) {
            Ok(request) => request,
            Err(Refusal { id, code }) => {
                self.counts.verbs.note(None);
                return self.reply(slot, id, &Reply::Error { stream: None, code });
            }
        };
        let verb = request.command.verb();
        self.counts.verbs.note(verb);
        self.note_in_flight(slot);
        let fault = verb.and_then(|verb| self.rules.faults.strike(verb));
        let outcome = match fault {
            Some(CommandFault::Ignored) => Outcome::default(),
            Some(CommandFault::Refused(code)) => {
                refusal(self.meant(slot, &request.command), Code(code))
            }
            Some(CommandFault::TimedOut) => {
                let stream = self.meant(slot, &request.command);
                let openings = self.carry_out(slot, request.command, now).openings;
                let code = Code::COMMAND_TIMEOUT;
                Outcome { replies: vec![Reply::Error { stream, code }], openings }
            }
            _ => self.carry_out(slot, request.command, now),
        };
        self.deliver(slot, request.id, outcome, fault, now);
    }

    /// Sends what a command came to, as its fault has it.
    fn deliver(
        &mut self,
        slot: u32,
        id: u64,
        outcome: Outcome,
        fault: Option<CommandFault>,
        now: Instant,
    ) {
        let Outcome { mut replies, openings } = outcome;
        let streams: Vec<u32> = replies.iter().filter_map(Reply::stream).collect();
        match fault {
            Some(CommandFault::Lost) => replies.clear(),
            Some(CommandFault::Doubled) => replies.extend(replies.clone()),
            Some(CommandFault::Stray(stray)) => self.stray(slot, stray),
            Some(CommandFault::Late(delay)) => {
                for reply in std::mem::take(&mut replies) {
                    self.postpone(slot, now + delay, Due::Reply { id, reply });
                }
            }
            _ => {}
        }
        let snapshots_first = self.rules.ack_order == AckOrder::SnapshotsFirst;
        let data_first = |reply: &Reply| match reply {
            Reply::Ok(_) => snapshots_first || fault == Some(CommandFault::DataFirst),
            _ => fault == Some(CommandFault::DataFirst),
        };
        for reply in replies.iter().filter(|reply| !data_first(reply)) {
            self.reply(slot, id, reply);
        }
        for opening in &openings {
            self.open_members(slot, opening);
        }
        for reply in replies.iter().filter(|reply| data_first(reply)) {
            self.reply(slot, id, reply);
        }
        if let Some(CommandFault::Terminal { code, after }) = fault {
            for stream in streams {
                self.postpone(slot, now + after, Due::Terminate { stream, code: Code(code) });
            }
        }
    }

    fn carry_out(&mut self, slot: u32, command: Command, now: Instant) -> Outcome {
        match command {
            Command::Subscribe(subscribe) => self.subscribe(slot, &subscribe, now),
            Command::Unsubscribe { sids } => self.unsubscribe(slot, &sids, now),
            Command::Update(update) => self.update(slot, update, now),
            Command::ListSubscriptions => Reply::List.into(),
        }
    }

    /// The stream an update is about: its refusal is sent there.
    fn meant(&self, slot: u32, command: &Command) -> Option<u32> {
        match command {
            Command::Update(update) => self.live_stream(slot, update.sid),
            _ => None,
        }
    }

    fn subscribe(&mut self, slot: u32, command: &Subscribe, now: Instant) -> Outcome {
        let mut outcome = Outcome::default();
        for name in &command.channels {
            let reply = match self.apply(slot, name, command, now) {
                Ok((opening, reply)) => {
                    outcome.openings.push(opening);
                    reply
                }
                Err(code) => Reply::Error { stream: None, code },
            };
            outcome.replies.push(reply);
        }
        outcome
    }

    /// Makes or merges the subscription of one channel.
    fn apply(
        &mut self,
        slot: u32,
        name: &str,
        command: &Subscribe,
        now: Instant,
    ) -> Result<(Opening, Reply), Code> {
        let channel = Channel::from_name(name, self.rules.dialect).ok_or(Code::UNKNOWN_CHANNEL)?;
        if channel == Channel::Orderbook && command.tickers.is_empty() {
            return Err(Code::TICKER_REQUIRED);
        }
        let filtered = channel.filtered() && !command.tickers.is_empty();
        let tickers: &[String] = if filtered { &command.tickers } else { &[] };
        let known = self.subscribed_already(slot, channel, tickers)?;
        self.judge(slot, known, tickers)?;
        if let Some(stream) = known {
            self.admit_command(slot, stream, now)?;
        }
        let client = self.client(slot).ok_or(Code::UNABLE_TO_PROCESS)?;
        let at = match known {
            Some(at) => at as usize,
            None if client.streams.len() >= MAX_STREAMS => return Err(Code::TOO_MANY_REQUESTS),
            None => {
                let sid = client.streams.len() as u64 + 1;
                client.streams.push(Stream::new(sid, channel, command.skip_ticker_ack));
                client.streams.len() - 1
            }
        };
        let stream = &mut client.streams[at];
        stream.skip_ticker_ack |= command.skip_ticker_ack;
        let every = !filtered && !stream.all;
        stream.all |= !filtered;
        let at = at as u32;
        if every {
            self.join_line(slot, at, channel);
        }
        let fresh = self.add_members(slot, at, tickers);
        let opening = Opening { stream: at, fresh, ticker: command.send_initial_snapshot };
        Ok((opening, if known.is_some() { Reply::Ok(at) } else { Reply::Subscribed(at) }))
    }

    /// The stream a `subscribe` merges into, or the error when it may not.
    fn subscribed_already(
        &mut self,
        slot: u32,
        channel: Channel,
        tickers: &[String],
    ) -> Result<Option<u32>, Code> {
        if self.rules.dialect == Dialect::Legacy {
            let known = match tickers.first() {
                Some(ticker) => self.follows(slot, channel, ticker),
                None => self
                    .everywhere(channel)
                    .is_some_and(|list| list.iter().any(|&(client, _)| client == slot)),
            };
            return if known { Err(Code::ALREADY_SUBSCRIBED) } else { Ok(None) };
        }
        let client = self.client(slot).ok_or(Code::UNABLE_TO_PROCESS)?;
        let same = |stream: &Stream| stream.live && stream.channel == channel;
        match client.streams.iter().position(same) {
            Some(_) if self.rules.duplicates == Duplicates::Refuse => Err(Code::ALREADY_SUBSCRIBED),
            at => Ok(at.and_then(|at| u32::try_from(at).ok())),
        }
    }

    /// Whether these markets may be named, and added to a stream.
    fn judge(&self, slot: u32, stream: Option<u32>, tickers: &[String]) -> Result<(), Code> {
        self.judge_names(tickers)?;
        let held = stream.map_or(0, |stream| self.members(slot, stream).len());
        let cap = self.rules.market_cap;
        if held + tickers.len() > cap {
            // Only those that are new count, once each.
            let known = |ticker: &&String| {
                stream.is_some_and(|stream| self.universe.has_listener(ticker, slot, stream))
            };
            let fresh: BTreeSet<&String> = tickers.iter().filter(|ticker| !known(ticker)).collect();
            if held + fresh.len() > cap {
                return Err(Code::MARKET_LIMIT);
            }
        }
        if self.universe.len() + tickers.len() > MAX_NAMES {
            return Err(Code::MARKET_LIMIT);
        }
        Ok(())
    }

    fn judge_names(&self, tickers: &[String]) -> Result<(), Code> {
        let bad = &self.rules.bad;
        if !bad.tickers.is_empty() && tickers.iter().any(|name| bad.tickers.contains(name)) {
            return Err(Code(bad.code));
        }
        Ok(())
    }

    /// Sends what newly added markets start with.
    fn open_members(&mut self, slot: u32, opening: &Opening) {
        let channel =
            self.client(slot).map(|client| client.streams[opening.stream as usize].channel);
        for &id in &opening.fresh {
            match channel {
                Some(Channel::Orderbook) => self.send_snapshot(slot, opening.stream, id),
                Some(Channel::Ticker) if opening.ticker && self.universe.streams(id) => {
                    self.send_ticker(id, Some(slot));
                }
                _ => {}
            }
        }
    }

    fn unsubscribe(&mut self, slot: u32, sids: &[u64], now: Instant) -> Outcome {
        let mut replies = Vec::with_capacity(sids.len());
        let mut ended = Vec::new();
        for &sid in sids {
            let Some(stream) = self.live_stream(slot, sid) else {
                replies.push(Reply::Error { stream: None, code: Code::UNKNOWN_SID });
                continue;
            };
            if let Err(code) = self.admit_command(slot, stream, now) {
                replies.push(Reply::Error { stream: Some(stream), code });
                continue;
            }
            self.end_stream(slot, stream);
            replies.push(Reply::Unsubscribed(stream));
            ended.push(stream);
        }
        if self.rules.dialect == Dialect::Legacy {
            // One reply to a command: what it ended, or else its first error.
            replies.truncate(1);
            if !ended.is_empty() {
                replies = vec![Reply::Removed(ended)];
            }
        }
        Outcome { replies, openings: Vec::new() }
    }

    fn update(&mut self, slot: u32, update: Update, now: Instant) -> Outcome {
        let Some(stream) = self.live_stream(slot, update.sid) else {
            return refusal(None, Code::UNKNOWN_SID);
        };
        let allowed = self.admit_command(slot, stream, now);
        if let Err(code) = allowed.and_then(|()| self.judge_update(slot, stream, &update)) {
            return refusal(Some(stream), code);
        }
        match update.action.as_deref() {
            Some("get_snapshot") => {
                let mut outcome =
                    Outcome::from(Reply::Snapshots { stream, tickers: update.tickers });
                if self.rules.snapshot_ok {
                    outcome.replies.push(Reply::Ok(stream));
                }
                outcome
            }
            Some("delete_markets") => {
                self.remove_members(slot, stream, &update.tickers);
                Reply::Ok(stream).into()
            }
            _ => {
                let fresh = self.add_members(slot, stream, &update.tickers);
                let openings = vec![Opening { stream, fresh, ticker: false }];
                Outcome { replies: vec![Reply::Ok(stream)], openings }
            }
        }
    }

    fn judge_update(&self, slot: u32, stream: u32, update: &Update) -> Result<(), Code> {
        let channel = self.stream(slot, stream).map(|stream| stream.channel);
        let filtered = channel.is_some_and(Channel::filtered);
        let action = update.action.as_deref().ok_or(Code::ACTION_REQUIRED)?;
        match action {
            "add_markets" | "delete_markets" if filtered => {}
            "get_snapshot" if channel == Some(Channel::Orderbook) => {}
            _ => return Err(Code::UNSUPPORTED_ACTION),
        }
        if update.tickers.is_empty() || action == "get_snapshot" && !update.listed {
            return Err(Code::TICKER_REQUIRED);
        }
        match action {
            "add_markets" => self.judge(slot, Some(stream), &update.tickers),
            "get_snapshot" => self.judge_names(&update.tickers),
            _ => Ok(()),
        }
    }

    fn admit_command(&mut self, slot: u32, stream: u32, now: Instant) -> Result<(), Code> {
        let cap = self.rules.command_cap;
        let client = self.client(slot).ok_or(Code::UNABLE_TO_PROCESS)?;
        let admitted = client.streams[stream as usize].admits(cap, now);
        if admitted { Ok(()) } else { Err(Code::TOO_MANY_REQUESTS) }
    }

    fn postpone(&mut self, slot: u32, at: Instant, due: Due) {
        let Some(client) = self.client(slot) else {
            return;
        };
        let late = matches!(due, Due::Reply { .. });
        if late && client.late >= MAX_LATE {
            if let Due::Reply { id, reply } = due {
                self.reply(slot, id, &reply);
            }
            return;
        }
        client.late += u32::from(late);
        let accept_number = client.accept_number;
        self.postponed.push(at, Entry { slot, accept_number, due });
    }

    /// Sends what was postponed until now.
    pub(crate) fn catch_up(&mut self, now: Instant) {
        self.data_faults.at(now);
        self.release(now);
        while let Some(Entry { slot, accept_number, due }) = self.postponed.pop(now) {
            let Some(client) = self.client(slot) else { continue };
            if client.accept_number != accept_number {
                continue;
            }
            client.late = client.late.saturating_sub(u32::from(matches!(due, Due::Reply { .. })));
            if client.muted {
                continue;
            }
            match due {
                Due::Reply { id, reply } => self.reply(slot, id, &reply),
                Due::Terminate { stream, code } => self.terminate(slot, stream, code),
            }
        }
    }

    /// Ends a stream with an error that answers no command; nothing follows on it.
    pub(crate) fn terminate(&mut self, slot: u32, stream: u32, code: Code) {
        if self.stream(slot, stream).is_some_and(|stream| stream.live) {
            self.reply(slot, 0, &Reply::Error { stream: Some(stream), code });
            self.end_stream(slot, stream);
        }
    }

    /// Sends a reply nobody asked for.
    pub(crate) fn stray(&mut self, slot: u32, stray: Stray) {
        self.tail.clear();
        let legacy = self.rules.dialect == Dialect::Legacy;
        match stray {
            Stray::Ok(id) => reply::bare_ok(id, &mut self.tail),
            Stray::Nameless => reply::bare_ok(0, &mut self.tail),
            Stray::Error(id) if legacy => {
                reply::legacy_error(id, None, Code::UNABLE_TO_PROCESS, &mut self.tail);
            }
            Stray::Error(id) => {
                reply::error(id, None, None, Code::UNABLE_TO_PROCESS, &mut self.tail);
            }
        }
        self.queue_control(slot);
    }

    /// Sends one reply, giving it the next number of its stream.
    fn reply(&mut self, slot: u32, id: u64, what: &Reply) {
        if let Reply::Snapshots { stream, tickers } = what {
            return self.send_answers(slot, *stream, id, tickers);
        }
        let Self { universe, clients, tail, rules, counts, .. } = self;
        let Some(Some(client)) = clients.get_mut(slot as usize) else {
            return;
        };
        tail.clear();
        let streams = &mut client.streams;
        match (rules.dialect, what) {
            (Dialect::Live, Reply::Subscribed(at)) => {
                let stream = &streams[*at as usize];
                reply::subscribed(id, stream.channel.name(), stream.sid, tail);
            }
            (Dialect::Legacy, Reply::Subscribed(at)) => {
                let stream = &streams[*at as usize];
                reply::legacy_subscribed(id, stream.channel.name(), stream.sid, tail);
            }
            (_, Reply::Ok(at)) => {
                let stream = &mut streams[*at as usize];
                // A late reply to a stream that has ended takes no number after its last.
                let seq = if stream.live { stream.take_control() } else { None };
                let name = |&member: &MarketId| universe.market(member).ticker.as_ref();
                let list = (!stream.skip_ticker_ack).then(|| stream.members.iter().map(name));
                reply::ok(id, stream.sid, seq, list, tail);
            }
            (_, Reply::Unsubscribed(at)) => {
                let stream = &mut streams[*at as usize];
                let seq = stream.take_control();
                reply::unsubscribed(id, stream.sid, seq, tail);
            }
            (_, Reply::Removed(ended)) => {
                let sids: Vec<u64> = ended.iter().map(|&at| streams[at as usize].sid).collect();
                reply::legacy_unsubscribed(id, &sids, tail);
            }
            (_, Reply::List) => {
                let live = streams.iter().filter(|stream| stream.live);
                reply::list(id, live.map(|stream| (stream.channel.name(), stream.sid)), tail);
            }
            (dialect, Reply::Error { stream, code }) => {
                counts.errors += 1;
                let stream = stream.and_then(|at| streams.get_mut(at as usize));
                write_error(dialect, id, stream, *code, tail);
            }
            (_, Reply::Snapshots { .. }) => return,
        }
        self.queue_control(slot);
    }
}

impl Reply {
    /// The stream a terminal error after it ends.
    fn stream(&self) -> Option<u32> {
        match self {
            Self::Subscribed(stream) | Self::Ok(stream) | Self::Snapshots { stream, .. } => {
                Some(*stream)
            }
            Self::Unsubscribed(_) | Self::Removed(_) | Self::List | Self::Error { .. } => None,
        }
    }
}

fn write_error(
    dialect: Dialect,
    id: u64,
    stream: Option<&mut Stream>,
    code: Code,
    tail: &mut Vec<u8>,
) {
    match (dialect, stream) {
        (Dialect::Legacy, stream) => {
            // The mission's errors name no sid; one that answers nothing would mean nothing then.
            let sid = stream.filter(|_| id == 0).map(|stream| stream.sid);
            reply::legacy_error(id, sid, code, tail);
        }
        (Dialect::Live, Some(stream)) => {
            let seq = if stream.live { stream.take_control() } else { None };
            reply::error(id, Some(stream.sid), seq, code, tail);
        }
        (Dialect::Live, None) => reply::error(id, None, None, code, tail),
    }
}
