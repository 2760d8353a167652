//! The model exchange: upgrades, heartbeats, commands and a stream of messages, with whatever goes
//! wrong in them. Bytes in, bytes out; it keeps its own ledger and knows nothing of the engine.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use serde_json::{Value, json};
use tungstenite::handshake::derive_accept_key;

use super::faults::Fault;
use super::feed::Feed;
use super::ledger::{Ledger, Slip};
use super::network::{Event, Network, Part};
use super::peer::{Fate, Peer};
use super::wire::{self, CLOSE, PING, PONG, TEXT};
use crate::clock::unix_ms;
use crate::dialect::Dialect;

const PING_INTERVAL: Duration = Duration::from_secs(4);
/// Sent messages remembered for each subscription, to be sent again.
const RECENT: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Upgrading,
    Open,
    Over,
}

/// The exchange's end of one connection.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) phase: Phase,
    inbound: Vec<u8>,
    pub(super) peer: Peer,
    /// The last number used, by sid.
    seqs: BTreeMap<u64, u64>,
    recent: BTreeMap<u64, VecDeque<(u64, Vec<u8>)>>,
    /// Held back to come after the next of its subscription.
    swapped: Option<(u64, u64, Vec<u8>)>,
    /// Replies that come late.
    late: VecDeque<Value>,
    /// A ping without an answer, and since when.
    pub(super) pinged: Option<Duration>,
    /// The client said goodbye.
    pub(super) goodbye: bool,
}

impl Session {
    /// The last number of a subscription that was used up.
    pub(super) fn last_number(&self, sid: u64) -> Option<u64> {
        self.seqs.get(&sid).copied()
    }
}

#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) sessions: Vec<Session>,
    pub(super) ledger: Ledger,
    pub(super) dialect: Dialect,
    pub(super) stalled_until: Duration,
    /// Messages at a time, at most, and the time between.
    pub(super) burst: usize,
    pub(super) interval: Duration,
    /// Whether it sends pings.
    pub(super) pings: bool,
    /// Whether it answers ours.
    pub(super) pongs: bool,
    /// Connections on which it has no messages to send.
    pub(super) muted: BTreeSet<usize>,
    /// Markets that were added and had no book.
    pub(super) bookless: BTreeSet<String>,
    /// What comes on both lines of pairs, if any.
    pub(super) feed: Option<Feed>,
    pub(super) numbered: u64,
}

impl Exchange {
    pub(super) fn new(dialect: Dialect, burst: usize, interval: Duration) -> Self {
        Self {
            sessions: Vec::new(),
            ledger: Ledger::default(),
            dialect,
            stalled_until: Duration::ZERO,
            burst,
            interval,
            pings: true,
            pongs: true,
            muted: BTreeSet::new(),
            bookless: BTreeSet::new(),
            feed: None,
            numbered: 0,
        }
    }

    /// The session on a socket.
    fn session(&mut self, link: usize) -> &mut Session {
        while self.sessions.len() <= link {
            self.sessions.push(Session {
                phase: Phase::Upgrading,
                inbound: Vec::new(),
                peer: Peer::new(self.dialect, usize::MAX),
                seqs: BTreeMap::new(),
                recent: BTreeMap::new(),
                swapped: None,
                late: VecDeque::new(),
                pinged: None,
                goodbye: false,
            });
        }
        &mut self.sessions[link]
    }

    pub(super) fn is_open(&self, link: usize) -> bool {
        self.sessions.get(link).is_some_and(|session| session.phase == Phase::Open)
    }

    /// Something came from the engine.
    pub(super) fn reached(&mut self, link: usize, part: Part, network: &mut Network) {
        match (part, self.session(link).phase) {
            (_, Phase::Over) => {}
            (Part::Fin | Part::Reset, _) => self.sessions[link].phase = Phase::Over,
            (Part::Bytes(bytes), Phase::Upgrading) => {
                self.sessions[link].inbound.extend(bytes);
                if self.sessions[link].inbound.ends_with(b"\r\n\r\n") {
                    let request = std::mem::take(&mut self.sessions[link].inbound);
                    self.answer(link, &String::from_utf8(request).unwrap(), network);
                }
            }
            (Part::Bytes(bytes), Phase::Open) => {
                self.sessions[link].inbound.extend(bytes);
                while self.is_open(link)
                    && let Some((opcode, payload)) = wire::take(&mut self.sessions[link].inbound)
                {
                    self.frame(link, opcode, &payload, network);
                }
            }
        }
    }

    fn answer(&mut self, link: usize, request: &str, network: &mut Network) {
        assert!(request.starts_with("GET /trade-api/ws/v2 HTTP/1.1\r\n"), "{request}");
        let key = request.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: "));
        let accept = derive_accept_key(key.expect("a key").as_bytes());
        let date = httpdate::fmt_http_date(network.clock.exchange_wall());
        let retry_after = 1 + network.faults.below(5);
        let refusal = |status: &str, headers: String, body: &str| {
            let length = body.len();
            format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{headers}\r\n{body}")
        };
        let welcome = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        let faults = &mut network.faults;
        let (answer, ends) = if faults.strikes(Fault::UpgradeExpired) {
            let body = r#"{"error":{"code":"header_timestamp_expired"}}"#;
            (refusal("401 Unauthorized", format!("Date: {date}\r\n"), body), true)
        } else if faults.strikes(Fault::UpgradeTooMany) {
            let headers = format!("Retry-After: {retry_after}\r\n");
            (refusal("429 Too Many Requests", headers, ""), true)
        } else if faults.strikes(Fault::UpgradeUnavailable) {
            (refusal("503 Service Unavailable", String::new(), ""), true)
        } else if faults.strikes(Fault::UpgradeForbidden) {
            (refusal("403 Forbidden", String::new(), ""), true)
        } else if faults.strikes(Fault::UpgradeGarbage) {
            ("SSH-2.0-OpenSSH_9.2\r\n\r\n".to_owned(), true)
        } else if faults.strikes(Fault::UpgradeHangs) {
            (welcome[..welcome.len() - 7].to_owned(), false)
        } else if faults.strikes(Fault::UpgradeCut) {
            (welcome[..welcome.len() / 2].to_owned(), true)
        } else {
            return self.welcome(link, welcome, network);
        };
        network.trace.note(network.now(), format_args!("{link}: {}", &answer[..12]));
        self.say(link, answer.into_bytes(), None, network);
        self.sessions[link].phase = Phase::Over;
        if ends {
            network.transmit(link, Part::Fin);
        }
    }

    fn welcome(&mut self, link: usize, welcome: String, network: &mut Network) {
        self.sessions[link].phase = Phase::Open;
        let mut bytes = welcome.into_bytes();
        if network.faults.strikes(Fault::UpgradeGlued) {
            bytes.extend(wire::frame(PING, b"at once"));
            self.sessions[link].pinged = Some(network.now());
        }
        self.say(link, bytes, None, network);
        if network.faults.strikes(Fault::UpgradeInVain) {
            return self.end(link, Part::Reset, network);
        }
        let first = network.faults.between_ms(0, 4_000);
        network.later(first, Event::Pings { link });
        network.later(self.interval, Event::Sends { link });
    }

    /// Bytes go out, and what they are goes on record.
    pub(super) fn say(
        &mut self,
        link: usize,
        bytes: Vec<u8>,
        slip: Option<Slip>,
        network: &mut Network,
    ) {
        self.ledger.sent(link, bytes.len(), slip);
        network.transmit(link, Part::Bytes(bytes));
    }

    fn frame(&mut self, link: usize, opcode: u8, payload: &[u8], network: &mut Network) {
        match opcode {
            TEXT => {
                let command: Value = serde_json::from_slice(payload).unwrap();
                self.sessions[link].peer.inbox.push_back(command);
                let by = network.faults.between_ms(0, 2);
                network.later(by, Event::Carries { link });
            }
            PING if self.pongs => self.say(link, wire::frame(PONG, payload), None, network),
            PING => {}
            PONG => self.sessions[link].pinged = None,
            CLOSE => {
                self.sessions[link].goodbye = true;
                self.say(link, wire::frame(CLOSE, payload), None, network);
                self.end(link, Part::Fin, network);
            }
            other => panic!("opcode {other}"),
        }
    }

    /// The exchange ends the connection.
    pub(super) fn end(&mut self, link: usize, part: Part, network: &mut Network) {
        self.sessions[link].phase = Phase::Over;
        network.transmit(link, part);
    }

    pub(super) fn close(&mut self, link: usize, code: u16, network: &mut Network) {
        self.say(link, wire::frame(CLOSE, &code.to_be_bytes()), None, network);
        self.end(link, Part::Fin, network);
    }

    /// A frame of which only the front goes out, and perhaps the end of the connection.
    pub(super) fn cut(&mut self, link: usize, ends: Option<Part>, network: &mut Network) {
        let whole = wire::frame(TEXT, br#"{"type":"trade","sid":1,"seq":1,"msg":{"cut":"here"}}"#);
        let front = whole[..1 + network.faults.below(whole.len() - 1)].to_vec();
        self.say(link, front, None, network);
        self.sessions[link].phase = Phase::Over;
        if let Some(end) = ends {
            network.transmit(link, end);
        }
    }

    pub(super) fn malformed(&mut self, link: usize, network: &mut Network) {
        let frames: [&[u8]; 4] =
            [&[0xC1, 1, b'x'], &[0x83, 0], &[0x81, 0x81, 0, 0, 0, 0, b'x'], &[0x81, 2, 0xFF, 0xFE]];
        let frame = frames[network.faults.below(frames.len())].to_vec();
        self.say(link, frame, None, network);
        self.sessions[link].phase = Phase::Over;
    }

    pub(super) fn ping(&mut self, link: usize, network: &mut Network) {
        if !self.is_open(link) || !self.pings {
            return;
        }
        if self.sessions[link].pinged.is_some() {
            return self.end(link, Part::Fin, network);
        }
        self.sessions[link].pinged = Some(network.now());
        self.say(link, wire::frame(PING, b"heartbeat"), None, network);
        network.later(PING_INTERVAL, Event::Pings { link });
    }

    // Commands.

    pub(super) fn carry(&mut self, link: usize, network: &mut Network) {
        if !self.is_open(link) {
            return;
        }
        let faults = &mut network.faults;
        let fates = [
            (Fault::CommandLost, Fate::Lost),
            (Fault::CommandSlow, Fate::Slow),
            (Fault::CommandFails, Fate::Refused([10, 17, 25][faults.below(3)])),
            (Fault::CommandTooLong, Fate::Refused(26)),
            (Fault::CommandTooFast, Fate::Refused(27)),
            (Fault::CommandTimeout, Fate::Timeout),
            (Fault::ReplyLost, Fate::Unheard),
            (Fault::ReplyDoubled, Fate::Doubled),
        ];
        let fate = fates.into_iter().find(|&(fault, _)| faults.strikes(fault));
        let fate = fate.map_or(Fate::Carried, |(_, fate)| fate);
        let command = self.sessions[link].peer.inbox.front().cloned().unwrap();
        let action = command["params"]["action"].as_str().or(command["cmd"].as_str()).unwrap();
        network
            .trace
            .note(network.now(), format_args!("{link}: {} {action} {fate:?}", command["id"]));
        if fate == Fate::Slow {
            let by = network.faults.between_ms(100, 15_000);
            network.later(by, Event::Finishes { link });
        }
        self.apply(link, &command, network, |peer| peer.take(fate));
    }

    pub(super) fn finish(&mut self, link: usize, network: &mut Network) {
        if self.is_open(link)
            && let Some((command, _)) = self.sessions[link].peer.slow.front().cloned()
        {
            network.trace.note(network.now(), format_args!("{link}: {} at last", command["id"]));
            self.apply(link, &command, network, Peer::finish);
        }
    }

    /// Lets the peer do something, and says what follows from it: replies, and books.
    fn apply(
        &mut self,
        link: usize,
        command: &Value,
        network: &mut Network,
        act: impl FnOnce(&mut Peer),
    ) {
        let before = self.streams(link);
        let sids: Vec<u64> = self.sessions[link].peer.subscriptions.keys().copied().collect();
        act(&mut self.sessions[link].peer);
        for sid in sids {
            if !self.sessions[link].peer.subscriptions.contains_key(&sid) {
                self.ledger.ended(link, sid);
            }
        }
        let added: Vec<_> = self.streams(link).difference(&before).cloned().collect();
        let replies = std::mem::take(&mut self.sessions[link].peer.outbox);
        let books = command["params"]["action"] == "get_snapshot";
        for reply in replies {
            if books && reply["type"] == "ok" {
                self.repeat_books(link, command, network);
            } else if network.faults.strikes(Fault::ReplyDelayed) {
                self.sessions[link].late.push_back(reply);
                let by = network.faults.between_ms(50, 6_000);
                network.later(by, Event::Replies { link });
            } else {
                self.reply(link, reply, network);
            }
        }
        if network.faults.strikes(Fault::ReplyStray) {
            self.reply(link, json!({"type": "ok", "id": 9_999_999, "msg": {}}), network);
        }
        if network.faults.strikes(Fault::ResetAfterReply) {
            return self.end(link, Part::Reset, network);
        }
        for (sid, market) in added {
            if network.faults.strikes(Fault::BookWithheld) {
                self.bookless.insert(market);
            } else {
                self.data(link, sid, ("orderbook_snapshot", &market, None), network);
            }
        }
    }

    /// Every market that streams, with its sid.
    fn streams(&self, link: usize) -> BTreeSet<(u64, String)> {
        let subscriptions = self.sessions[link].peer.subscriptions.iter();
        let each = |(&sid, sub): (&u64, &super::peer::Subscription)| {
            sub.markets.iter().map(|market| (sid, market.clone())).collect::<Vec<_>>()
        };
        subscriptions.flat_map(each).collect()
    }

    fn repeat_books(&mut self, link: usize, command: &Value, network: &mut Network) {
        let sid = command["params"]["sids"][0].as_u64().unwrap();
        let Some(known) = self.sessions[link].peer.subscriptions.get(&sid) else { return };
        let known = known.markets.clone();
        let named = command["params"]["market_tickers"].as_array().cloned().unwrap_or_default();
        for market in named.iter().filter_map(Value::as_str).filter(|&name| known.contains(name)) {
            let id = command["id"].as_u64();
            self.data(link, sid, ("orderbook_snapshot", market, id), network);
        }
    }

    /// The oldest late reply.
    pub(super) fn reply_late(&mut self, link: usize, network: &mut Network) {
        if self.is_open(link)
            && let Some(reply) = self.sessions[link].late.pop_front()
        {
            self.reply(link, reply, network);
        }
    }

    fn reply(&mut self, link: usize, mut reply: Value, network: &mut Network) {
        let mut slip = None;
        if let Some(sid) = reply["sid"].as_u64()
            && self.is_sequenced(link, sid)
        {
            let seq = self.number(link, sid);
            reply["seq"] = json!(seq);
            slip = Some(Slip { sid, seq: Some(seq), data: None, end: 0 });
        }
        let text = reply.to_string();
        network.trace.note(network.now(), format_args!("{link}: says {text}"));
        self.say(link, wire::frame(TEXT, text.as_bytes()), slip, network);
    }

    /// Whether messages of the subscription are numbered. One that is over was, unless it was
    /// never heard of.
    fn is_sequenced(&self, link: usize, sid: u64) -> bool {
        let session = &self.sessions[link];
        let channel = session.peer.subscriptions.get(&sid).map(|sub| sub.channel.as_str());
        channel.map_or(session.seqs.contains_key(&sid), |channel| channel != "ticker")
    }

    fn number(&mut self, link: usize, sid: u64) -> u64 {
        let seq = self.sessions[link].seqs.entry(sid).or_default();
        *seq += 1;
        *seq
    }

    /// The exchange ends a subscription of its own accord.
    pub(super) fn terminate(&mut self, link: usize, network: &mut Network) {
        let (last, silent) = (network.faults.below(2) == 0, network.faults.below(2) == 0);
        let code = if silent { 25 } else { 10 };
        let sids: Vec<_> = self.sessions[link].peer.subscriptions.keys().copied().collect();
        let sid = if last { sids.last() } else { sids.first() };
        if let Some(&sid) = sid
            && self.sessions[link].peer.terminate(last, silent, code)
        {
            self.ledger.over(link, sid);
            for reply in std::mem::take(&mut self.sessions[link].peer.outbox) {
                self.reply(link, reply, network);
            }
        }
    }

    // Messages.

    pub(super) fn stream(&mut self, link: usize, network: &mut Network) {
        if !self.is_open(link) {
            return;
        }
        let subscriptions = self.sessions[link].peer.subscriptions.iter();
        let all: Vec<(u64, String, Vec<String>)> = subscriptions
            .map(|(&sid, sub)| (sid, sub.channel.clone(), sub.markets.iter().cloned().collect()))
            .collect();
        for (sid, channel, markets) in all {
            if self.muted.contains(&link) {
                break;
            }
            // It was told to be over: nothing more comes of it, though its number is taken.
            let fed = self.feed.as_ref().is_some_and(|feed| feed.brings(&channel));
            if self.ledger.is_over(link, sid) || fed {
                continue;
            }
            for _ in 0..network.faults.below(self.burst + 1) {
                let market = match (channel.as_str(), markets.as_slice()) {
                    ("orderbook_delta", []) => break,
                    ("orderbook_delta", _) => markets[network.faults.below(markets.len())].clone(),
                    _ => {
                        let of = usize::try_from(self.numbered % 3).unwrap();
                        ["ONE", "TWO", "SIX"][of].to_owned()
                    }
                };
                self.data(link, sid, (&channel, &market, None), network);
            }
        }
        let by = self.interval / 2 + network.faults.between_ms(0, 1 + millis(self.interval));
        network.later(by, Event::Sends { link });
    }

    fn data(
        &mut self,
        link: usize,
        sid: u64,
        (kind, market, id): (&str, &str, Option<u64>),
        network: &mut Network,
    ) {
        self.numbered += 1;
        let (number, ts_ms) = (self.numbered, unix_ms(network.clock.exchange_wall()));
        let id = id.map(|id| format!("\"id\":{id},")).unwrap_or_default();
        let large = network.faults.strikes(Fault::Large);
        let more = "x".repeat(if large { network.faults.below(12_000) } else { 0 });
        let msg = format!(
            "{{\"market_ticker\":\"{market}\",\"n\":{number},\"x\":\"{more}\",\"ts_ms\":{ts_ms}}}"
        );
        self.bring(link, sid, (kind, &id, &msg), false, network);
    }

    /// One message comes on a line, or is lost there and its number used up.
    pub(super) fn bring(
        &mut self,
        link: usize,
        sid: u64,
        (kind, id, msg): (&str, &str, &str),
        lost: bool,
        network: &mut Network,
    ) {
        if kind == "ticker" {
            let text = format!("{{\"type\":\"ticker\",\"sid\":{sid},\"msg\":{msg}}}\n");
            if lost || network.faults.strikes(Fault::Withheld) {
                self.ledger.totals.undetectable += 1;
                return;
            }
            return self.put(link, (sid, None), text.into_bytes(), network);
        }
        let seq = self.number(link, sid);
        let text =
            format!("{{\"type\":\"{kind}\",{id}\"sid\":{sid},\"seq\":{seq},\"msg\":{msg}}}\n");
        if lost || network.faults.strikes(Fault::Withheld) {
            return;
        }
        let text = text.into_bytes();
        if self.sessions[link].swapped.is_none() && network.faults.strikes(Fault::Swapped) {
            self.sessions[link].swapped = Some((sid, seq, text));
            return;
        }
        self.put(link, (sid, Some(seq)), text.clone(), network);
        // What is held back of a subscription that has ended since never comes.
        if let Some((sid, seq, text)) = self.sessions[link].swapped.take()
            && self.sessions[link].peer.subscriptions.contains_key(&sid)
        {
            self.put(link, (sid, Some(seq)), text, network);
        }
        self.again(link, sid, (seq, text), network);
    }

    /// Messages that were sent before may be sent again.
    fn again(&mut self, link: usize, sid: u64, last: (u64, Vec<u8>), network: &mut Network) {
        let recent = self.sessions[link].recent.entry(sid).or_default();
        recent.push_back(last);
        if recent.len() > RECENT {
            recent.pop_front();
        }
        let repeated = if network.faults.strikes(Fault::Repeated) {
            recent.iter().last().cloned().into_iter().collect()
        } else if network.faults.strikes(Fault::Backward) {
            recent.iter().cloned().collect()
        } else {
            Vec::new()
        };
        for (seq, text) in repeated {
            self.put(link, (sid, Some(seq)), text, network);
        }
    }

    fn put(
        &mut self,
        link: usize,
        (sid, seq): (u64, Option<u64>),
        text: Vec<u8>,
        network: &mut Network,
    ) {
        let frame = if network.faults.strikes(Fault::Fragmented) {
            wire::fragments(&text, network.faults.below(text.len()))
        } else {
            wire::frame(TEXT, &text)
        };
        let slip = Slip { sid, seq, data: Some(text), end: 0 };
        self.say(link, frame, Some(slip), network);
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap()
}
