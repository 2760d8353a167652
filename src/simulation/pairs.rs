//! The oracle of arbitrated pairs, by content: whatever a live line brought reaches the host once,
//! or is told as missing; what neither line brought, and a number shows, is told. It knows the wire
//! and the contents, and nothing of how the engine lays one line's numbers to the other's.
//!
//! Told is never less than was lost. It may be more by what the other line brought after all, when
//! the arbitration window was over, and by what was missing on a line of which nothing had shown
//! yet where it is: before it brought the first message that the other line brought, too.
//!
//! In the legacy dialect a line may have two subscriptions of its channel for a while, and brings
//! all twice: such a pair tells at least of what it dropped, and is held to no more.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::feed::{Content, Feed};
use super::ledger::Ledger;
use super::network::Network;
use super::world::World;
use crate::batch::{Continuity, RawMessage};
use crate::ids::{ConnId, Role, widen};
use crate::mailbox::Untold;
use crate::overflow::Overflow;

/// First copies are remembered so long: what the exchange says again later is news.
const REMEMBERED: Duration = Duration::from_secs(10);

/// What became of the contents of pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PairTotals {
    /// Contents that some line was to bring.
    pub(super) said: u64,
    pub(super) delivered: u64,
    /// Of those, lost on one line and brought by the other.
    pub(super) filled: u64,
    /// Brought, and dropped here.
    pub(super) dropped: u64,
    /// Lost on every line that was there, as a number shows.
    pub(super) lost: u64,
    pub(super) told: u64,
    /// Told at most, beyond what was lost.
    pub(super) doubtful: u64,
    /// Old numbers that came again when they may have been forgotten.
    pub(super) repeated: u64,
}

impl PairTotals {
    pub(super) fn add(&mut self, other: &Self) {
        self.said += other.said;
        self.delivered += other.delivered;
        self.filled += other.filled;
        self.dropped += other.dropped;
        self.lost += other.lost;
        self.told += other.told;
        self.doubtful += other.doubtful;
        self.repeated += other.repeated;
    }
}

/// One pair's.
#[derive(Debug, Default)]
struct Stream {
    /// When what was delivered was read.
    delivered: BTreeMap<u64, Instant>,
    told: u64,
    begun: bool,
}

#[derive(Debug, Default)]
pub(super) struct Pairs {
    streams: BTreeMap<Role, Stream>,
    lines: BTreeMap<ConnId, Role>,
    epochs: BTreeMap<ConnId, u32>,
}

/// What was read of one subscription of one line.
#[derive(Debug, Default)]
struct Stint {
    conn: Option<ConnId>,
    /// Contents, and where among `passed`.
    brought: BTreeMap<u64, usize>,
    /// Numbers, zero for none, and when they were read.
    passed: Vec<(u64, Duration)>,
    /// Contents that came again, and when.
    again: Vec<(u64, Duration)>,
    /// When the same line began another, if it did.
    until: Option<Duration>,
    /// The first content that both lines brought in turn, each while this was its subscription.
    met: Option<u64>,
}

impl Stint {
    /// When a content was read here, and when a number above its own was, if that came before.
    fn of(&self, content: u64, number: Option<u64>) -> (Option<Duration>, Option<Duration>) {
        let here = self.brought.get(&content).copied();
        let passed = |number| self.passed.iter().position(|(seq, _)| *seq > number);
        let passed = number.and_then(passed);
        let shown = passed.filter(|passed| here.is_none_or(|here| *passed < here));
        let at = |place: usize| self.passed[place].1;
        (here.map(at), shown.map(at))
    }

    /// When a content was read here with the highest number so far.
    fn in_turn(&self, content: u64) -> Option<Duration> {
        let &place = self.brought.get(&content)?;
        let (seq, at) = self.passed[place];
        self.passed[..place].iter().all(|(before, _)| *before < seq).then_some(at)
    }

    /// Whether both lines brought a content in turn while they had these subscriptions.
    fn meets(&self, other: &Self, content: u64) -> bool {
        let (Some(one), Some(two)) = (self.in_turn(content), other.in_turn(content)) else {
            return false;
        };
        let ends = self.until.into_iter().chain(other.until);
        self.conn != other.conn && ends.min().is_none_or(|end| one.max(two) < end)
    }
}

/// What is known when all is over.
pub(super) struct End<'a> {
    pub(super) feed: &'a Feed,
    pub(super) ledger: &'a Ledger,
    pub(super) network: &'a Network,
    /// How long a hole waits for the other line.
    pub(super) window: Duration,
    /// What the engine says neither line brought.
    pub(super) missed: u64,
}

impl Pairs {
    /// The oracle of these lines.
    pub(super) fn new(lines: impl Iterator<Item = (ConnId, Role)>) -> Self {
        let lines: BTreeMap<_, _> = lines.collect();
        let streams = lines.values().map(|&role| (role, Stream::default())).collect();
        Self { streams, lines, epochs: BTreeMap::new() }
    }

    pub(super) fn judges(&self, conn: ConnId) -> bool {
        self.lines.contains_key(&conn)
    }

    /// The host, or the registry, took a message of a pair.
    pub(super) fn delivered(
        &mut self,
        message: &RawMessage,
        (feed, ledger): (&Feed, &Ledger),
        read: impl Fn(usize) -> u64,
    ) -> Result<(), String> {
        let epoch = self.epochs.entry(message.conn_id).or_default();
        if message.epoch.number() < *epoch {
            return Err(format!("after one of epoch {epoch}"));
        }
        *epoch = message.epoch.number();
        let (link, slip) = ledger.find(message).ok_or("never sent")?;
        if slip.end > read(link) {
            return Err("before it was read".to_owned());
        }
        let told = message.gap_size;
        if message.sid.map(|sid| sid.number()) != Some(slip.sid)
            || message.seq.map(|seq| seq.number()) != slip.seq
            || message.seq_gap != (told > 0)
        {
            return Err("with the wrong numbers".to_owned());
        }
        let stream = self.streams.get_mut(&message.role).ok_or("of no pair")?;
        let old = matches!(message.continuity, Continuity::Duplicate | Continuity::Backward);
        let first = message.continuity == Continuity::First;
        if !old && !std::mem::replace(&mut stream.begun, true) && !first {
            return Err("the first does not say so".to_owned());
        }
        if !old && !first && (message.continuity == Continuity::Gap) != (told > 0) {
            return Err("a gap that is none, or the other way round".to_owned());
        }
        stream.told += told;
        let at = message.received_at.mono;
        let content = number(&message.data);
        if let Some(before) = stream.delivered.insert(content, at) {
            let doubled = feed.contents.get(&content).is_some_and(Content::is_doubled);
            if !doubled && (!old || before + REMEMBERED > at) {
                return Err(format!("a second copy, {:?} after the first", at - before));
            }
        }
        Ok(())
    }

    /// All is over. Takes what each connection could not tell, and the roles that drop nothing.
    pub(super) fn close(
        &self,
        end: &End<'_>,
        untold: impl Fn(ConnId) -> u64,
        holds_back: impl Fn(Role) -> bool,
    ) -> Result<PairTotals, String> {
        let (mut all, mut any_doubled) = (PairTotals::default(), false);
        for (&role, stream) in &self.streams {
            let of_role = |conn| self.lines.get(&conn) == Some(&role);
            let lines = self.lines.keys().filter(|&&conn| of_role(conn));
            let left = lines.map(|&conn| untold(conn)).sum::<u64>();
            let mut sum = end.account(role, stream, &end.stints(of_role))?;
            sum.told = stream.told + left;
            let (least, most) = (sum.dropped + sum.lost, sum.dropped + sum.lost + sum.doubtful);
            let doubled = end.feed.of(role).any(|(_, content)| content.is_doubled());
            any_doubled |= doubled;
            if !doubled && !(least..=most).contains(&sum.told) {
                return Err(format!("I6: {role} tells not {least} to {most}: {sum:?}"));
            }
            if holds_back(role) && sum.dropped > left {
                return Err(format!("I6: {role} drops what it was to hold back: {sum:?}"));
            }
            if role == Role::Ticker && sum.told != sum.dropped {
                return Err(format!("I6: {role} tells of what no number shows: {sum:?}"));
            }
            all.add(&sum);
        }
        let least = all.dropped + end.missed;
        let most = if any_doubled { u64::MAX } else { least + all.repeated };
        match (least..=most).contains(&all.told) {
            true => Ok(all),
            false => Err(format!("I6: pairs missed {}: {all:?}", end.missed)),
        }
    }
}

impl End<'_> {
    /// What was read, subscription by subscription.
    fn stints(&self, of_role: impl Fn(ConnId) -> bool) -> BTreeMap<(usize, u64), Stint> {
        let mut stints: BTreeMap<(usize, u64), Stint> = BTreeMap::new();
        for link in 0..self.ledger.links() {
            let Some(conn) = self.ledger.conn(link).filter(|&conn| of_role(conn)) else { continue };
            for slip in self.ledger.slips(link) {
                let Some(at) = self.network.read_at(link, slip.end) else { break };
                let stint = stints.entry((link, slip.sid)).or_default();
                stint.conn = Some(conn);
                stint.passed.push((slip.seq.unwrap_or(0), at));
                let place = stint.passed.len() - 1;
                if let Some(content) = slip.data.as_deref().map(number)
                    && *stint.brought.entry(content).or_insert(place) < place
                {
                    stint.again.push((content, at));
                }
            }
        }
        let ends: Vec<_> =
            stints.iter().map(|(&key, stint)| self.next(key, stint, &stints)).collect();
        stints.values_mut().zip(ends).for_each(|(stint, until)| stint.until = until);
        let met = |stint: &Stint| {
            let both = |n: &&u64| stints.values().any(|other| stint.meets(other, **n));
            stint.brought.keys().find(both).copied()
        };
        let all: Vec<_> = stints.values().map(met).collect();
        stints.values_mut().zip(all).for_each(|(stint, met)| stint.met = met);
        stints
    }

    /// When the line of a stint had its next subscription, or at least its next socket.
    fn next(
        &self,
        (link, sid): (usize, u64),
        stint: &Stint,
        stints: &BTreeMap<(usize, u64), Stint>,
    ) -> Option<Duration> {
        let socket =
            (link + 1..self.ledger.links()).find(|&next| self.ledger.conn(next) == stint.conn);
        let socket = socket.and_then(|next| self.network.read_at(next, 1));
        let later = stints.range((link, sid + 1)..(link + 1, 0)).next();
        earlier(socket, later.map(|(_, later)| later.passed[0].1))
    }

    fn account(
        &self,
        role: Role,
        stream: &Stream,
        stints: &BTreeMap<(usize, u64), Stint>,
    ) -> Result<PairTotals, String> {
        let mut sum = PairTotals::default();
        for (n, content) in self.feed.of(role) {
            let delivered = stream.delivered.contains_key(&n);
            let (mut brought, mut missing, mut unsure) = (None, None, false);
            for given in &content.given {
                let Some(stint) = stints.get(&(given.link, given.sid)) else { continue };
                let (here, shown) = stint.of(n, given.seq);
                brought = earlier(brought, here);
                missing = earlier(missing, shown);
                let somewhere = here.is_some() || shown.is_some();
                // Its own line brought it with an old number, perhaps when both had passed it.
                unsure |= here.is_some() && shown.is_some();
                unsure |= somewhere && stint.met.is_none_or(|met| n < met);
            }
            if delivered && brought.is_none() {
                return Err(format!("I6: {n} was delivered and never read"));
            }
            let again = |stint: &Stint| {
                let again = stint.again.iter().filter(|(content, _)| *content == n);
                again
                    .filter(|(_, at)| brought.is_some_and(|first| first + REMEMBERED <= *at))
                    .count()
            };
            sum.repeated += stints.values().map(again).map(widen).sum::<u64>();
            sum.said += u64::from(!content.given.is_empty());
            sum.delivered += u64::from(delivered);
            sum.dropped += u64::from(brought.is_some() && !delivered);
            match (brought, missing) {
                (Some(brought), Some(missing)) => {
                    sum.filled += u64::from(delivered);
                    sum.doubtful += u64::from(unsure || brought >= missing + self.window);
                }
                (None, Some(_)) => {
                    sum.lost += 1;
                    // Each line may tell of it, as long as nothing shows that it is the same.
                    let more = if unsure { widen(content.given.len()) - 1 } else { 0 };
                    sum.doubtful += more;
                }
                _ => {}
            }
        }
        // What was said again much later may find no room, too.
        sum.doubtful += sum.repeated;
        Ok(sum)
    }
}

impl World {
    /// All that pairs brought is accounted for.
    pub(super) fn close_pairs(&mut self, untold: &[Untold]) -> Result<(), String> {
        let Some(feed) = &self.exchange.feed else { return Ok(()) };
        let shards = self.engine.counters.shards.iter();
        let config = &self.settings.config;
        let end = End {
            feed,
            ledger: &self.exchange.ledger,
            network: &self.network.borrow(),
            window: config.arbitration_window,
            missed: shards.map(|shard| shard.arbitration.missed_by_both.total()).sum(),
        };
        let of_conn = |conn| untold.iter().filter(move |untold| untold.conn_id == conn);
        let untold = |conn| of_conn(conn).map(|untold| untold.messages).sum();
        let holds_back = |role| config.overflow.of(role) == Overflow::Backpressure;
        self.paired = self.host.pairs.close(&end, untold, holds_back)?;
        Ok(())
    }
}

fn earlier(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    one.into_iter().chain(other).min()
}

/// What a content says of itself.
fn number(text: &[u8]) -> u64 {
    let text = std::str::from_utf8(text).unwrap();
    let (_, rest) = text.split_once("\"n\":").unwrap();
    rest.split(',').next().unwrap().parse().unwrap()
}
