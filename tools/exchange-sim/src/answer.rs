//! The exchange's answers to client commands: acknowledgements, snapshots for newly added markets,
//! errors, each under the right sid and number. It reads no socket.

use crate::command::{self, Code, Command, Refusal, Subscribe};
use crate::config::AckOrder;
use crate::frame::Opcode;
use crate::market::MarketId;
use crate::payload;
use crate::subscription::{Channel, Stream};
use crate::venue::Venue;

/// Most market subscriptions of one sid (the live exchange's limit per session).
const MAX_MEMBERS: usize = 500_000;
/// Most sids one connection can use up.
const MAX_STREAMS: usize = 10_000;
/// Most names held for all clients together beyond which unlisted ones are refused.
const MAX_NAMES: usize = 8_000_000;

/// One channel of a `subscribe`, applied and not yet answered.
struct Applied {
    stream: u32,
    merged: bool,
    fresh: Vec<MarketId>,
}

impl Venue {
    /// Answers one text message of a client.
    pub(crate) fn answer(&mut self, slot: u32, text: &[u8]) {
        self.counts.commands += 1;
        match command::parse(text) {
            Err(Refusal { id, code }) => self.error(slot, id, None, code),
            Ok(request) => match request.command {
                Command::Subscribe(subscribe) => self.subscribe(slot, request.id, &subscribe),
                Command::Unsubscribe { sids } => {
                    for sid in sids {
                        self.unsubscribe(slot, request.id, sid);
                    }
                }
                Command::Update { sid, action, tickers } => {
                    self.update(slot, request.id, sid, action.as_deref(), &tickers);
                }
            },
        }
    }

    fn subscribe(&mut self, slot: u32, id: u64, command: &Subscribe) {
        let mut applied = Vec::new();
        for name in &command.channels {
            match self.apply(slot, name, command) {
                Ok(done) => applied.push(done),
                Err(code) => self.error(slot, id, None, code),
            }
        }
        let snapshots_first = self.ack_order == AckOrder::SnapshotsFirst;
        for done in applied.iter().filter(|done| !(done.merged && snapshots_first)) {
            self.acknowledge(slot, id, done);
        }
        for done in &applied {
            self.open_members(slot, done.stream, &done.fresh, command.send_initial_snapshot);
        }
        for done in applied.iter().filter(|done| done.merged && snapshots_first) {
            self.acknowledge(slot, id, done);
        }
    }

    /// Makes or merges the subscription of one channel.
    fn apply(&mut self, slot: u32, name: &str, command: &Subscribe) -> Result<Applied, Code> {
        let channel = Channel::from_name(name).ok_or(Code::UnknownChannel)?;
        if channel == Channel::Orderbook && command.tickers.is_empty() {
            return Err(Code::TickerRequired);
        }
        let held = self.universe.len();
        let client = self.client(slot).ok_or(Code::UnableToProcess)?;
        let known =
            client.streams.iter().position(|stream| stream.live && stream.channel == channel);
        let at = match known {
            Some(at) => at,
            None if client.streams.len() >= MAX_STREAMS => return Err(Code::TooManyRequests),
            None => {
                let sid = client.streams.len() as u64 + 1;
                client.streams.push(Stream::new(sid, channel, command.skip_ticker_ack));
                client.streams.len() - 1
            }
        };
        let stream = &mut client.streams[at];
        let filtered = channel.filtered() && !command.tickers.is_empty();
        if filtered && too_many(stream, &command.tickers, held) {
            return Err(Code::MarketLimit);
        }
        stream.skip_ticker_ack |= command.skip_ticker_ack;
        let every = !filtered && !stream.all;
        stream.all |= !filtered;
        let at = at as u32;
        if every {
            match channel {
                Channel::Ticker => self.all_tickers.push((slot, at)),
                Channel::Trade => self.all_trades.push((slot, at)),
                Channel::Lifecycle => self.lifecycles.push((slot, at)),
                Channel::Orderbook | Channel::Silent(..) => {}
            }
        }
        let tickers: &[String] = if filtered { &command.tickers } else { &[] };
        let fresh = self.add_members(slot, at, tickers);
        Ok(Applied { stream: at, merged: known.is_some(), fresh })
    }

    fn acknowledge(&mut self, slot: u32, id: u64, done: &Applied) {
        if done.merged {
            return self.ok(slot, id, done.stream);
        }
        self.reply(slot, done.stream, |stream, _, out| {
            payload::subscribed(id, stream.channel.name(), stream.sid, out);
        });
    }

    /// Sends what a newly added market starts with.
    fn open_members(&mut self, slot: u32, stream: u32, fresh: &[MarketId], ticker: bool) {
        let channel = self.client(slot).map(|client| client.streams[stream as usize].channel);
        for &id in fresh {
            match channel {
                Some(Channel::Orderbook) => self.send_snapshot(slot, stream, id),
                Some(Channel::Ticker) if ticker && self.universe.streams(id) => {
                    self.send_ticker(id, Some(slot));
                }
                _ => {}
            }
        }
    }

    fn unsubscribe(&mut self, slot: u32, id: u64, sid: u64) {
        let Some(stream) = self.live_stream(slot, sid) else {
            return self.error(slot, id, None, Code::UnknownSid);
        };
        self.end_stream(slot, stream);
        self.reply(slot, stream, |stream, _, out| {
            let seq = stream.take_control();
            payload::unsubscribed(id, stream.sid, seq, out);
        });
    }

    fn update(&mut self, slot: u32, id: u64, sid: u64, action: Option<&str>, tickers: &[String]) {
        let Some(stream) = self.live_stream(slot, sid) else {
            return self.error(slot, id, None, Code::UnknownSid);
        };
        let held = self.universe.len();
        let Some(client) = self.client(slot) else {
            return;
        };
        let target = &client.streams[stream as usize];
        let filtered = target.channel.filtered();
        let problem = match action {
            None => Some(Code::ActionRequired),
            Some("add_markets" | "delete_markets") if filtered && tickers.is_empty() => {
                Some(Code::TickerRequired)
            }
            Some("add_markets") if filtered && too_many(target, tickers, held) => {
                Some(Code::MarketLimit)
            }
            Some("add_markets" | "delete_markets") if filtered => None,
            Some(_) => Some(Code::UnsupportedAction),
        };
        if let Some(code) = problem {
            return self.error(slot, id, Some(stream), code);
        }
        if action == Some("delete_markets") {
            self.remove_members(slot, stream, tickers);
            return self.ok(slot, id, stream);
        }
        let fresh = self.add_members(slot, stream, tickers);
        if self.ack_order == AckOrder::AckFirst {
            self.ok(slot, id, stream);
            self.open_members(slot, stream, &fresh, false);
        } else {
            self.open_members(slot, stream, &fresh, false);
            self.ok(slot, id, stream);
        }
    }

    fn live_stream(&mut self, slot: u32, sid: u64) -> Option<u32> {
        let client = self.client(slot)?;
        let at = client.streams.iter().position(|stream| stream.live && stream.sid == sid)?;
        u32::try_from(at).ok()
    }

    fn ok(&mut self, slot: u32, id: u64, stream: u32) {
        self.reply(slot, stream, |stream, universe, out| {
            let seq = stream.take_control();
            let list = (!stream.skip_ticker_ack).then(|| {
                stream.members.iter().map(|&member| universe.market(member).ticker.as_ref())
            });
            payload::ok(id, stream.sid, seq, list, out);
        });
    }

    /// Answers with an error, scoped to a stream where one is meant.
    fn error(&mut self, slot: u32, id: u64, stream: Option<u32>, code: Code) {
        if let Some(stream) = stream {
            return self.reply(slot, stream, |stream, _, out| {
                let seq = stream.take_control();
                payload::error(id, Some(stream.sid), seq, code as u64, code.text(), out);
            });
        }
        self.tail.clear();
        payload::error(id, None, None, code as u64, code.text(), &mut self.tail);
        self.queue_control(slot);
    }

    fn reply(
        &mut self,
        slot: u32,
        stream: u32,
        write: impl FnOnce(&mut Stream, &crate::market::Universe, &mut Vec<u8>),
    ) {
        let Self { universe, clients, tail, .. } = self;
        let Some(Some(client)) = clients.get_mut(slot as usize) else {
            return;
        };
        tail.clear();
        write(&mut client.streams[stream as usize], universe, tail);
        self.queue_control(slot);
    }

    fn queue_control(&mut self, slot: u32) {
        if let Some(Some(client)) = self.clients.get_mut(slot as usize) {
            client.out.frame(Opcode::Text, &self.tail, &[]);
            self.counts.control_frames += 1;
        }
        self.mark(slot);
    }
}

fn too_many(stream: &Stream, tickers: &[String], held: usize) -> bool {
    stream.members.len() + tickers.len() > MAX_MEMBERS || held + tickers.len() > MAX_NAMES
}
