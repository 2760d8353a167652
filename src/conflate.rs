//! The newest message of each market, kept while the host lags: what a ticker connection, or an
//! arbitrated pair of them, holds under `Overflow::ConflateByMarket`. Messages come in, and go out
//! in the order in which their newest content came, each telling exactly what was left out before
//! it. Pure: it sends nothing, and knows neither the time nor how much room there is.
//!
//! What a message has to tell follows from two running sums of its line (one sid of one epoch; of
//! a pair, its stream from one beginning to the next): all that came, and all that was told. So
//! one that is overwritten only leaves the list.

use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::time::Instant;

use hashbrown::HashTable;

use crate::batch::{Buffer, Continuity, Entry};
use crate::clock::Stamp;
use crate::config::ConfigBuilder;
use crate::envelope::{Envelope, Kind};
use crate::ids::{ConnId, Epoch, Seq, Sid, Ticker};
use crate::sequence::Mark;

/// Lines told apart. The exchange has one for each connection at a time; what more come than this
/// is hostile, and dropped.
const LINES_MAX: usize = 64;
/// No place in the list.
const NONE: u32 = u32::MAX;
/// A message's memory is used again for the next one of its market, unless so much were idle.
const IDLE_BYTES: usize = 1 << 10;

/// How much is kept at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) markets: usize,
    pub(crate) bytes: usize,
}

impl Limits {
    pub(crate) fn new(settings: &ConfigBuilder) -> Self {
        Self { markets: settings.conflate_markets, bytes: settings.message_buffer_bytes }
    }
}

/// What became of messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Absorbed {
    /// Kept, each the first of its market.
    pub(crate) kept: u64,
    /// Kept in the place of an older one.
    pub(crate) conflated: u64,
    pub(crate) dropped: u64,
}

/// Lost, and told by no message so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Debt {
    /// Of which epoch and sid; none if of a pair, or of more than could be told apart.
    pub(crate) line: Option<(Epoch, Option<Sid>)>,
    /// The first message of the line is among them.
    pub(crate) first: bool,
    pub(crate) messages: u64,
}

/// Messages that tell of each other's losses.
#[derive(Clone, Debug)]
struct Line {
    /// The epoch; of a pair, how often its stream had begun.
    stint: u32,
    /// None of a pair: one message's loss may be told on either line.
    sid: Option<Sid>,
    /// Messages that came, and what was missed before them.
    sum: u64,
    /// The part of it that the host has or knows of.
    told: u64,
    /// Its first message came, and no message that says so went out.
    first: bool,
    nodes: usize,
}

/// A message that is kept.
#[derive(Debug)]
struct Node {
    data: Vec<u8>,
    /// Where in it its market's ticker lies.
    market: Range<usize>,
    stamp: Stamp,
    conn: ConnId,
    epoch: Epoch,
    sid: Option<Sid>,
    seq: Option<Seq>,
    line: usize,
    continuity: Continuity,
    /// One for itself, unless the exchange only repeated it.
    own: u64,
    /// The sum of its line when it had come.
    sum: u64,
    prev: u32,
    next: u32,
}

enum Fate {
    Kept,
    Conflated,
    Dropped,
}

/// What one connection keeps, or one pair.
#[derive(Debug)]
pub(crate) struct Conflated {
    limits: Limits,
    /// Of a pair, how often its stream began: a stream has no epoch, only its lines have.
    begun: Option<u32>,
    nodes: Vec<Node>,
    free: Vec<u32>,
    index: HashTable<u32>,
    hasher: RandomState,
    head: u32,
    tail: u32,
    bytes: usize,
    lines: Vec<Line>,
    /// The lines as they will be once what `front` gave has gone out.
    trial: Vec<Line>,
    /// Lost of lines beyond those.
    lineless: Debt,
}

impl Conflated {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            begun: None,
            nodes: Vec::new(),
            free: Vec::new(),
            index: HashTable::new(),
            hasher: RandomState::new(),
            head: NONE,
            tail: NONE,
            bytes: 0,
            lines: Vec::new(),
            trial: Vec::new(),
            lineless: Debt { line: None, first: false, messages: 0 },
        }
    }

    /// The same for both lines of a pair, whose copies have been taken out.
    pub(crate) fn of_pair(limits: Limits) -> Self {
        Self { begun: Some(0), ..Self::new(limits) }
    }

    /// How many messages are kept.
    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// When the first of them was read.
    pub(crate) fn first_read(&self) -> Option<Instant> {
        self.node(self.head).map(|node| node.stamp.mono)
    }

    /// Takes messages in, in their order.
    pub(crate) fn absorb(&mut self, batch: &Buffer, entries: &[Entry]) -> Absorbed {
        let mut absorbed = Absorbed::default();
        for entry in entries {
            match self.keep(batch, entry) {
                Fate::Kept => absorbed.kept += 1,
                Fate::Conflated => absorbed.conflated += 1,
                Fate::Dropped => absorbed.dropped += 1,
            }
        }
        absorbed
    }

    fn keep(&mut self, batch: &Buffer, entry: &Entry) -> Fate {
        let (debt, first) = (entry.mark().debt(), entry.continuity == Continuity::First);
        let (stint, sid) = match &mut self.begun {
            None => (batch.epoch.number(), entry.sid),
            Some(begun) => {
                *begun = begun.saturating_add(u32::from(first));
                (*begun, None)
            }
        };
        let place = self.line(stint, sid);
        let Some((place, line)) = place.and_then(|at| Some((at, self.lines.get_mut(at)?))) else {
            self.lineless.first |= first;
            self.lineless.messages = self.lineless.messages.saturating_add(debt);
            return Fate::Dropped;
        };
        line.sum = line.sum.saturating_add(debt);
        line.first |= first;
        let sum = line.sum;
        let data = batch.bytes.get(entry.start..entry.end).unwrap_or_default();
        let Some(market) = market_in(data) else { return Fate::Dropped };
        let at = batch.received_at;
        let Some((slot, fresh)) = self.room_for(data, market, at) else { return Fate::Dropped };
        if let Some(node) = self.node_mut(slot) {
            (node.stamp, node.line) = (at, place);
            (node.conn, node.epoch) = (batch.conn, batch.epoch);
            (node.sid, node.seq) = (entry.sid, entry.seq);
            (node.continuity, node.sum) = (entry.continuity, sum);
            node.own = debt.saturating_sub(entry.gap_size);
        }
        self.push_back(slot);
        if let Some(line) = self.lines.get_mut(place) {
            line.nodes += 1;
        }
        if fresh { Fate::Kept } else { Fate::Conflated }
    }

    /// A node with this content, in no list: that of its market, or a new one if there may be one.
    fn room_for(&mut self, data: &[u8], market: Range<usize>, at: Stamp) -> Option<(u32, bool)> {
        let ticker = data.get(market.clone())?;
        let hash = self.hasher.hash_one(ticker);
        let nodes = &self.nodes;
        let found = self.index.find(hash, |&slot| ticker_at(nodes, slot) == ticker).copied();
        let before = found.and_then(|slot| self.node(slot)).map_or(0, |node| node.data.capacity());
        let bytes = self.bytes.saturating_sub(before).saturating_add(data.len());
        if bytes > self.limits.bytes || (found.is_none() && self.len() >= self.limits.markets) {
            return None;
        }
        let slot = match found {
            Some(slot) => {
                self.unlink(slot);
                slot
            }
            None => self.unused(at)?,
        };
        let node = self.node_mut(slot)?;
        if node.data.capacity() > data.len().saturating_add(IDLE_BYTES) {
            node.data = Vec::new();
        }
        node.data.clear();
        node.data.reserve_exact(data.len());
        node.data.extend_from_slice(data);
        node.market = market;
        let after = node.data.capacity();
        self.bytes = self.bytes.saturating_sub(before).saturating_add(after);
        if found.is_none() {
            let Self { nodes, index, hasher, .. } = self;
            let rehash = |&slot: &u32| hasher.hash_one(ticker_at(nodes, slot));
            index.insert_unique(hash, slot, rehash);
        }
        Some((slot, found.is_none()))
    }

    /// A node that is not in use.
    fn unused(&mut self, stamp: Stamp) -> Option<u32> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        let slot = u32::try_from(self.nodes.len()).ok().filter(|&slot| slot != NONE)?;
        self.nodes.push(Node {
            data: Vec::new(),
            market: 0..0,
            stamp,
            conn: ConnId::new(0),
            epoch: Epoch::new(0),
            sid: None,
            seq: None,
            line: 0,
            continuity: Continuity::Next,
            own: 0,
            sum: 0,
            prev: NONE,
            next: NONE,
        });
        Some(slot)
    }

    /// The first messages of one read, at most so many, as they would go out now; of which
    /// connection and epoch they are, and when they were read. They stay until `commit`.
    pub(crate) fn front(
        &mut self,
        most: usize,
        bytes: &mut Vec<u8>,
        entries: &mut Vec<Entry>,
    ) -> Option<(ConnId, Epoch, Stamp)> {
        let mut next = self.head;
        let read = |node: &Node| (node.conn, node.epoch, node.stamp);
        let first = read(self.node(next)?);
        self.trial.clone_from(&self.lines);
        while let Some(node) = self.nodes.get(place(next)).filter(|_| entries.len() < most) {
            if read(node) != first {
                break;
            }
            let Mark { continuity, gap_size } = tell(&mut self.trial, node)?;
            let start = bytes.len();
            bytes.extend_from_slice(&node.data);
            let (end, sid, seq) = (bytes.len(), node.sid, node.seq);
            // Suspect are only order books.
            let suspect = false;
            entries.push(Entry { start, end, sid, seq, gap_size, continuity, suspect });
            next = node.next;
        }
        Some(first)
    }

    /// The first so many have gone out.
    pub(crate) fn commit(&mut self, count: usize) {
        for _ in 0..count {
            let slot = self.head;
            let Some(node) = self.nodes.get(place(slot)) else { return };
            tell(&mut self.lines, node);
            let hash = self.hasher.hash_one(ticker_at(&self.nodes, slot));
            if let Ok(entry) = self.index.find_entry(hash, |&other| other == slot) {
                entry.remove();
            }
            self.take_out(slot);
            if let Some(node) = self.node_mut(slot) {
                let data = std::mem::take(&mut node.data);
                self.bytes = self.bytes.saturating_sub(data.capacity());
            }
            self.free.push(slot);
        }
    }

    /// What no message that went out has told, those that are kept included.
    pub(crate) fn debts(&self) -> impl Iterator<Item = Debt> + '_ {
        let is_pair = self.begun.is_some();
        let lines = self.lines.iter().map(move |line| Debt {
            line: (!is_pair).then_some((Epoch::new(line.stint), line.sid)),
            first: line.first,
            messages: line.sum.saturating_sub(line.told),
        });
        lines.chain(std::iter::once(self.lineless)).filter(|debt| debt.messages > 0)
    }

    /// The place of a line, made if there is room for it.
    fn line(&mut self, stint: u32, sid: Option<Sid>) -> Option<usize> {
        let same = |line: &Line| line.stint == stint && line.sid == sid;
        if let Some(place) = self.lines.iter().position(same) {
            return Some(place);
        }
        let line = Line { stint, sid, sum: 0, told: 0, first: false, nodes: 0 };
        let settled = |line: &Line| line.nodes == 0 && line.sum == line.told;
        if let Some(place) = self.lines.iter().position(settled) {
            *self.lines.get_mut(place)? = line;
            return Some(place);
        }
        if self.lines.len() >= LINES_MAX {
            return None;
        }
        self.lines.push(line);
        Some(self.lines.len() - 1)
    }

    /// Takes a node out of the list, and out of its line without telling anything.
    fn unlink(&mut self, slot: u32) {
        let line = self.node(slot).map(|node| node.line);
        if let Some(line) = line.and_then(|line| self.lines.get_mut(line)) {
            line.nodes = line.nodes.saturating_sub(1);
        }
        self.take_out(slot);
    }

    fn take_out(&mut self, slot: u32) {
        let Some(node) = self.node(slot) else { return };
        let (prev, next) = (node.prev, node.next);
        match self.node_mut(prev) {
            Some(node) => node.next = next,
            None => self.head = next,
        }
        match self.node_mut(next) {
            Some(node) => node.prev = prev,
            None => self.tail = prev,
        }
    }

    fn push_back(&mut self, slot: u32) {
        let last = std::mem::replace(&mut self.tail, slot);
        if let Some(node) = self.node_mut(slot) {
            (node.prev, node.next) = (last, NONE);
        }
        match self.node_mut(last) {
            Some(node) => node.next = slot,
            None => self.head = slot,
        }
    }

    fn node(&self, slot: u32) -> Option<&Node> {
        self.nodes.get(place(slot))
    }

    fn node_mut(&mut self, slot: u32) -> Option<&mut Node> {
        self.nodes.get_mut(place(slot))
    }
}

fn place(slot: u32) -> usize {
    usize::try_from(slot).unwrap_or(usize::MAX)
}

fn ticker_at(nodes: &[Node], slot: u32) -> &[u8] {
    let node = nodes.get(place(slot));
    node.and_then(|node| node.data.get(node.market.clone())).unwrap_or_default()
}

/// What the message says of what was before it, if it goes out next of its line.
fn tell(lines: &mut [Line], node: &Node) -> Option<Mark> {
    let line = lines.get(node.line)?;
    let (stint, begins) = (line.stint, line.first);
    let repeated = matches!(node.continuity, Continuity::Duplicate | Continuity::Backward);
    let mut gap_size = 0_u64;
    if begins && !repeated {
        // What earlier ones left, of which no message is to come.
        for line in lines.iter_mut().filter(|line| line.nodes == 0 && line.stint < stint) {
            gap_size = gap_size.saturating_add(line.sum.saturating_sub(line.told));
            line.told = line.sum;
        }
    }
    let line = lines.get_mut(node.line)?;
    let before = node.sum.saturating_sub(node.own).saturating_sub(line.told);
    gap_size = gap_size.saturating_add(before);
    line.told = node.sum;
    line.nodes = line.nodes.saturating_sub(1);
    let continuity = match node.continuity {
        repeated @ (Continuity::Duplicate | Continuity::Backward) => repeated,
        _ if std::mem::take(&mut line.first) => Continuity::First,
        _ if gap_size > 0 => Continuity::Gap,
        _ => Continuity::Next,
    };
    Some(Mark { continuity, gap_size })
}

/// Where the market's ticker lies in a ticker message: the only kind of which the newest says all
/// there is to know.
fn market_in(data: &[u8]) -> Option<Range<usize>> {
    const NAME: &[u8] = b"\"market_ticker\":\"";
    if Envelope::read(data).kind != Kind::Ticker {
        return None;
    }
    let start = data.windows(NAME.len()).position(|part| part == NAME)? + NAME.len();
    let rest = data.get(start..)?.iter().take(Ticker::BYTES_MAX + 1);
    let length = rest.clone().position(|&byte| byte == b'"' || byte == b'\\')?;
    // One written with escapes is not recognised.
    (length > 0 && data.get(start + length) == Some(&b'"')).then_some(start..start + length)
}

#[cfg(test)]
#[path = "conflate/tests.rs"]
mod tests;
