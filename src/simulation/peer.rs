//! One connection of a model exchange: the rules of either dialect as the wire has them, text in
//! and text out, and everything that can go wrong with a command. It knows nothing of the engine.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde_json::{Value, json};

use crate::dialect::Dialect;

/// What becomes of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Carried,
    /// Carried out; the reply is lost.
    Unheard,
    /// Neither carried out nor answered.
    Lost,
    /// Overtaken: carried out and answered when `finish` is called.
    Slow,
    /// Carried out; the reply comes twice.
    Doubled,
    /// Refused with this code.
    Refused(i64),
    /// Carried out, and answered with 18 all the same.
    Timeout,
    /// Overtaken, and then that.
    SlowTimeout,
}

/// The exchange's side of a connection.
#[derive(Debug)]
pub(crate) struct Peer {
    dialect: Dialect,
    /// Most markets of one subscription.
    pub(crate) limit: usize,
    /// Whether it names subscriptions when asked.
    pub(crate) lists: bool,
    pub(crate) subscriptions: BTreeMap<u64, Subscription>,
    next_sid: u64,
    pub(crate) inbox: VecDeque<Value>,
    /// Overtaken commands, and their age in seconds.
    pub(crate) slow: VecDeque<(Value, u64)>,
    pub(crate) outbox: VecDeque<Value>,
    /// Commands taken, by name.
    pub(crate) taken: BTreeMap<String, usize>,
}

#[derive(Debug, Default)]
pub(crate) struct Subscription {
    pub(crate) channel: String,
    pub(crate) markets: BTreeSet<String>,
}

const BOOKS: &str = "orderbook_delta";

impl Peer {
    pub(crate) fn new(dialect: Dialect, limit: usize) -> Self {
        Self {
            dialect,
            limit,
            lists: true,
            subscriptions: BTreeMap::new(),
            next_sid: 0,
            inbox: VecDeque::new(),
            slow: VecDeque::new(),
            outbox: VecDeque::new(),
            taken: BTreeMap::new(),
        }
    }

    /// The socket is gone, and with it everything under way.
    pub(crate) fn reset(&mut self) {
        let lists = self.lists;
        *self = Self { lists, ..Self::new(self.dialect, self.limit) };
    }

    /// Every market that streams here, as often as it does.
    pub(crate) fn streams(&self) -> impl Iterator<Item = &String> {
        let books = self.subscriptions.values().filter(|sub| sub.channel == BOOKS);
        books.flat_map(|sub| &sub.markets)
    }

    /// Takes the oldest command there is.
    pub(crate) fn take(&mut self, fate: Fate) {
        let Some(command) = self.inbox.pop_front() else { return };
        *self.taken.entry(command["cmd"].as_str().unwrap().to_owned()).or_default() += 1;
        match fate {
            Fate::Carried => self.carry_out(&command, 1),
            Fate::Doubled => self.carry_out(&command, 2),
            Fate::Unheard => self.carry_out(&command, 0),
            Fate::Lost => {}
            Fate::Slow => self.slow.push_back((command, 0)),
            Fate::SlowTimeout => {
                let mut command = command;
                command["gives_up"] = json!(true);
                self.slow.push_back((command, 0));
            }
            Fate::Refused(code) => {
                let error = self.error(&command, code);
                self.outbox.push_back(error);
            }
            Fate::Timeout => {
                self.carry_out(&command, 0);
                let error = self.error(&command, 18);
                self.outbox.push_back(error);
            }
        }
    }

    /// Carries out the oldest overtaken command.
    pub(crate) fn finish(&mut self) {
        if let Some((command, _)) = self.slow.pop_front() {
            self.carry_out(&command, 1);
        }
    }

    /// The exchange ends the subscription that is first or last of its own accord. `silent`: its
    /// sid stays taken until it is unsubscribed.
    pub(crate) fn terminate(&mut self, last: bool, silent: bool, code: i64) -> bool {
        let sids = self.subscriptions.keys();
        let Some(sid) = (if last { sids.last() } else { sids.min() }).copied() else {
            return false;
        };
        if silent {
            self.subscriptions.get_mut(&sid).unwrap().markets.clear();
        } else {
            self.subscriptions.remove(&sid);
        }
        let error = self.error(&json!({}), code);
        let mut error = error;
        error["sid"] = json!(sid);
        self.outbox.push_back(error);
        true
    }

    fn carry_out(&mut self, command: &Value, replies: usize) {
        let said = self.apply(command).and_then(|said| match command.get("gives_up") {
            Some(_) => Err(18),
            None => Ok(said),
        });
        let said = said.unwrap_or_else(|code| self.error(command, code));
        for _ in 0..replies {
            self.outbox.push_back(said.clone());
        }
    }

    fn error(&self, command: &Value, code: i64) -> Value {
        let msg = match self.dialect {
            Dialect::Live => json!({"code": code, "msg": "no"}),
            Dialect::Legacy => json!({"code": code.to_string(), "message": "no"}),
        };
        let mut error = json!({"type": "error", "msg": msg});
        if let Some(id) = command.get("id") {
            error["id"] = id.clone();
        }
        error
    }

    fn apply(&mut self, command: &Value) -> Result<Value, i64> {
        let id = &command["id"];
        let params = &command["params"];
        match (command["cmd"].as_str().unwrap(), self.dialect) {
            ("subscribe", Dialect::Live) => self.subscribe(id, params),
            ("subscribe", Dialect::Legacy) => self.subscribe_one(id, params),
            ("update_subscription", Dialect::Live) => self.update(id, params),
            ("unsubscribe", dialect) => {
                let sid = params["sids"][0].as_u64().unwrap();
                self.subscriptions.remove(&sid).ok_or(7)?;
                Ok(match dialect {
                    Dialect::Live => json!({"type": "unsubscribed", "id": id, "sid": sid}),
                    Dialect::Legacy => {
                        json!({"id": id, "type": "unsubscribed", "msg": {"sids": [sid]}})
                    }
                })
            }
            ("list_subscriptions", _) if self.lists => {
                let all = self.subscriptions.iter();
                let all: Vec<_> =
                    all.map(|(sid, sub)| json!({"channel": sub.channel, "sid": sid})).collect();
                Ok(json!({"type": "ok", "id": id, "msg": all}))
            }
            _ => Err(5),
        }
    }

    fn open(&mut self, channel: &str) -> u64 {
        self.next_sid += 1;
        let channel = channel.to_owned();
        let subscription = Subscription { channel, markets: BTreeSet::new() };
        self.subscriptions.insert(self.next_sid, subscription);
        self.next_sid
    }

    fn subscribe(&mut self, id: &Value, params: &Value) -> Result<Value, i64> {
        let channel = params["channels"][0].as_str().unwrap();
        let markets = markets(params)?;
        let known = self.subscriptions.iter().find(|(_, sub)| sub.channel == channel);
        let known = known.map(|(&sid, _)| sid);
        let sid = match known {
            Some(sid) => sid,
            None if markets.len() > self.limit => return Err(26),
            None => self.open(channel),
        };
        self.add(sid, markets)?;
        Ok(match known {
            Some(_) => json!({"type": "ok", "id": id, "sid": sid, "msg": {}}),
            None => {
                json!({"type": "subscribed", "id": id, "msg": {"channel": channel, "sid": sid}})
            }
        })
    }

    fn subscribe_one(&mut self, id: &Value, params: &Value) -> Result<Value, i64> {
        let channel = params["channels"][0].as_str().unwrap();
        assert!(params.get("market_tickers").is_none(), "no lists in this dialect");
        let market = params["market_ticker"].as_str();
        if market.is_some_and(|market| market.starts_with("BAD")) {
            return Err(14);
        }
        if market.is_some() && self.streams().count() >= self.limit {
            return Err(26);
        }
        if market.is_some_and(|market| self.streams().any(|streams| streams == market)) {
            return Err(6);
        }
        let sid = self.open(channel);
        let subscription = self.subscriptions.get_mut(&sid).unwrap();
        subscription.markets.extend(market.map(str::to_owned));
        Ok(json!({"id": id, "type": "subscribed", "msg": {"sid": sid, "channel": channel}}))
    }

    fn add(&mut self, sid: u64, markets: Vec<String>) -> Result<(), i64> {
        let limit = self.limit;
        let subscription = self.subscriptions.get_mut(&sid).ok_or(7)?;
        let mut all = subscription.markets.clone();
        all.extend(markets);
        if all.len() > limit {
            return Err(26);
        }
        subscription.markets = all;
        Ok(())
    }

    fn update(&mut self, id: &Value, params: &Value) -> Result<Value, i64> {
        let sid = params["sids"][0].as_u64().unwrap();
        let subscription = self.subscriptions.get_mut(&sid).ok_or(7)?;
        match params["action"].as_str().unwrap() {
            "add_markets" => {
                let markets = markets(params)?;
                self.add(sid, markets)?;
            }
            "delete_markets" => {
                for market in markets(params)? {
                    subscription.markets.remove(&market);
                }
            }
            "get_snapshot" => {}
            action => panic!("{action}"),
        }
        Ok(json!({"type": "ok", "id": id, "sid": sid, "msg": {}}))
    }
}

/// The markets of a command; one the exchange does not like spoils it.
fn markets(params: &Value) -> Result<Vec<String>, i64> {
    let named = params["market_tickers"].as_array();
    let markets: Vec<String> =
        named.into_iter().flatten().map(|name| name.as_str().unwrap().to_owned()).collect();
    if markets.iter().any(|market| market.starts_with("BAD")) { Err(11) } else { Ok(markets) }
}
