//! Which markets were not covered, from when to when: the intervals a host may want to fill from
//! elsewhere. `subscription::covered` tells it of markets, `lapse` of losses; it looks for neither.
//! Pure: the time is an argument. It keeps nothing for a market that is covered, and of those that
//! are not only a number, as long as all of a connection have been so since the same moment.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use crate::clock::Stamp;
use crate::ids::{ConnId, Epoch, Role, Sid, widen};
use crate::market::Slot;
use crate::timer::{after, earlier};

/// Markets of one connection whose intervals begin together and end within this time are told of
/// together.
const TOGETHER: Duration = Duration::from_millis(100);
/// The most markets told of together.
const LISTED_MAX: usize = 512;

/// Why markets were not covered.
///
/// ```
/// # fn show(uncovered: &kalshi_feed::Uncovered) {
/// if let kalshi_feed::UncoveredReason::Lost { missed, dropped } = uncovered.reason {
///     println!("{missed} lost on the way, {dropped} dropped here");
/// }
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum UncoveredReason {
    /// Wanted, and not subscribed yet.
    NotSubscribed,
    /// Their connection was down: from the last data it brought.
    Down,
    /// Their subscription ended, or may have, while the connection lived.
    SubscriptionEnded,
    /// Messages were lost.
    Lost {
        /// On the way here, by the exchange's numbers.
        missed: u64,
        /// Here, for want of room.
        dropped: u64,
    },
}

/// The markets an interval is about.
///
/// ```
/// # fn show(markets: &kalshi_feed::UncoveredMarkets) {
/// match markets {
///     kalshi_feed::UncoveredMarkets::Listed(list) => list.iter().for_each(|m| println!("{m}")),
///     other => println!("{other:?}"),
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum UncoveredMarkets {
    /// All that were subscribed on the connection, by number;
    /// [`Handle::assignments`](crate::Handle::assignments) tells which those are. Counted when the
    /// interval is told: markets that are being added by then have intervals of their own.
    AllOfConnection(u64),
    /// Any market: of a channel that is subscribed without naming markets. The other line of the
    /// pair may have had what this one had not.
    AllOfChannel,
    /// These.
    Listed(MarketList),
}

impl UncoveredMarkets {
    pub(crate) fn of<'a>(tickers: impl Iterator<Item = &'a str>) -> Self {
        let (mut lines, mut count) = (String::new(), 0);
        for ticker in tickers {
            lines.push_str(ticker);
            lines.push('\n');
            count += 1;
        }
        Self::Listed(MarketList { lines: lines.into_boxed_str(), count })
    }

    /// How many order-book markets these are.
    fn count(&self) -> u64 {
        match self {
            Self::AllOfConnection(markets) => *markets,
            Self::AllOfChannel => 0,
            Self::Listed(list) => widen(list.count),
        }
    }
}

/// Tickers, at most 512 of them.
///
/// ```
/// # fn show(list: &kalshi_feed::MarketList) {
/// println!("{} markets, the first is {:?}", list.len(), list.iter().next());
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarketList {
    /// One a line.
    lines: Box<str>,
    count: usize,
}

impl MarketList {
    /// The tickers.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.lines.lines()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// An interval in which markets were not covered: what the exchange sent of them between `start`
/// and `end`, if anything, was not or not all delivered.
///
/// Told when it is over. Intervals of a connection that begin together and end within 100 ms of
/// each other are one event, with the latest end; losses less than a second apart are one interval.
///
/// ```
/// # fn show(event: &kalshi_feed::Event) {
/// if let kalshi_feed::Event::Uncovered(uncovered) = event {
///     println!("{:?} to {:?}: {:?}", uncovered.start, uncovered.end, uncovered.markets);
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Uncovered {
    /// The connection they are on; none while they had none.
    pub conn: Option<ConnId>,
    /// What it is for.
    pub role: Role,
    /// For lost messages: of which socket.
    pub epoch: Option<Epoch>,
    /// For lost messages: of which subscription, if of one alone.
    pub sid: Option<Sid>,
    /// Why.
    pub reason: UncoveredReason,
    /// The last moment before it at which they were covered, on the wall clock.
    pub start: SystemTime,
    /// From when on they are covered again, on the wall clock.
    pub end: SystemTime,
    /// Which.
    pub markets: UncoveredMarkets,
}

/// Since when, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Since {
    pub(crate) at: Instant,
    pub(crate) reason: UncoveredReason,
}

/// Markets of one connection that are uncovered since the same moment.
#[derive(Clone, Copy, Debug)]
struct Group {
    since: Since,
    markets: u64,
}

/// Intervals that are over and wait for others that end with them.
#[derive(Debug)]
struct Ending {
    first: Instant,
    last: Instant,
    lines: String,
    count: usize,
}

/// The order-book markets that are not covered now, and what is to be told of those that were not.
#[derive(Debug)]
pub(crate) struct Coverage {
    /// Both clocks, as read last.
    clock: Stamp,
    born: Instant,
    /// By connection number; zero for none.
    groups: Vec<Option<Group>>,
    /// By connection number: lines that name no markets, and since when they bring nothing.
    lines: Vec<Option<Since>>,
    /// Those that are uncovered since another moment than their group.
    others: BTreeMap<Slot, Since>,
    /// How many are uncovered now, and the sum of the moments since when, in ms.
    open: u64,
    open_since_ms: u64,
    /// What is over, in market-milliseconds.
    closed_ms: u64,
    /// What was counted of all so far.
    counted_ms: u64,
    endings: BTreeMap<(ConnId, Since), Ending>,
    /// The first of them is due.
    due: Option<Instant>,
    told: Vec<Uncovered>,
    /// Nothing more is covered, on purpose.
    over: bool,
}

impl Coverage {
    pub(crate) fn new(connections: usize, clock: Stamp) -> Self {
        Self {
            clock,
            born: clock.mono,
            groups: vec![None; connections + 1],
            lines: vec![None; connections + 1],
            others: BTreeMap::new(),
            open: 0,
            open_since_ms: 0,
            closed_ms: 0,
            counted_ms: 0,
            endings: BTreeMap::new(),
            due: None,
            told: Vec::new(),
            over: false,
        }
    }

    /// Both clocks were read.
    pub(crate) fn set_clock(&mut self, clock: Stamp) {
        self.clock = clock;
    }

    /// A market is not covered from now on. It must not be told of twice.
    pub(crate) fn begin(&mut self, slot: Slot, conn: Option<ConnId>, since: Since) {
        if self.over {
            return;
        }
        self.open += 1;
        self.open_since_ms += self.ms(since.at);
        self.attach(slot, conn, since);
    }

    /// A market that was not covered is again, or need not be any more.
    pub(crate) fn end(&mut self, slot: Slot, conn: Option<ConnId>, ticker: &str, now: Instant) {
        let since = if self.over { None } else { self.detach(slot, conn) };
        let Some(since) = since else { return };
        let begun = self.ms(since.at);
        self.open = self.open.saturating_sub(1);
        self.open_since_ms = self.open_since_ms.saturating_sub(begun);
        let ended = self.ms(now).max(begun);
        self.closed_ms = self.closed_ms.saturating_add(ended - begun);
        let key = (conn.unwrap_or(ConnId::new(0)), since);
        let fresh = || Ending { first: now, last: now, lines: String::new(), count: 0 };
        let ending = self.endings.entry(key).or_insert_with(fresh);
        ending.last = ending.last.max(now);
        ending.lines.push_str(ticker);
        ending.lines.push('\n');
        ending.count += 1;
        self.due = earlier(self.due, Some(after(ending.first, TOGETHER)));
        if ending.count >= LISTED_MAX
            && let Some(ending) = self.endings.remove(&key)
        {
            self.tell(key, ending);
        }
    }

    /// A market that is not covered has another connection now, or none.
    pub(crate) fn moved(&mut self, slot: Slot, from: Option<ConnId>, to: Option<ConnId>) {
        if let Some(since) = self.detach(slot, from) {
            self.attach(slot, to, since);
        }
    }

    /// A line that names no markets brings nothing from now on, if it did before.
    pub(crate) fn begin_line(&mut self, conn: ConnId, since: Since) {
        if let Some(line @ None) = self.lines.get_mut(place(Some(conn)))
            && !self.over
        {
            *line = Some(since);
        }
    }

    /// A line that names no markets brings everything again, or need not any more.
    pub(crate) fn end_line(&mut self, conn: ConnId, role: Role, now: Instant) {
        let line = self.lines.get_mut(place(Some(conn)));
        let Some(since) = line.and_then(Option::take) else { return };
        self.told.push(Uncovered {
            conn: Some(conn),
            role,
            epoch: None,
            sid: None,
            reason: since.reason,
            start: self.wall(since.at),
            end: self.wall(now.max(since.at)),
            markets: UncoveredMarkets::AllOfChannel,
        });
    }

    /// Messages of a connection were lost; so many markets are subscribed on it.
    pub(crate) fn lost(&mut self, uncovered: Uncovered) {
        let time = uncovered.end.duration_since(uncovered.start).unwrap_or_default();
        let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let market_ms = ms.saturating_mul(uncovered.markets.count());
        self.closed_ms = self.closed_ms.saturating_add(market_ms);
        self.told.push(uncovered);
    }

    /// The end: nothing more is told but what is over.
    pub(crate) fn close(&mut self) {
        self.over = true;
    }

    /// When `take` has something.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// What is to be told now.
    pub(crate) fn take(&mut self, now: Instant) -> Vec<Uncovered> {
        if self.due.is_some_and(|due| due <= now) || (self.over && !self.endings.is_empty()) {
            self.due = None;
            for (key, ending) in std::mem::take(&mut self.endings) {
                let due = after(ending.first, TOGETHER);
                if due <= now || self.over {
                    self.tell(key, ending);
                } else {
                    self.due = earlier(self.due, Some(due));
                    self.endings.insert(key, ending);
                }
            }
        }
        std::mem::take(&mut self.told)
    }

    /// Market-milliseconds without coverage so far, those of now included.
    pub(crate) fn market_ms(&self, now: Instant) -> u64 {
        let open = self.open.saturating_mul(self.ms(now)).saturating_sub(self.open_since_ms);
        self.closed_ms.saturating_add(open)
    }

    /// How many more those are than when this was last asked.
    pub(crate) fn more_ms(&mut self, now: Instant) -> u64 {
        let total = self.market_ms(now);
        total.saturating_sub(std::mem::replace(&mut self.counted_ms, total))
    }

    fn tell(&mut self, (conn, since): (ConnId, Since), ending: Ending) {
        let markets = MarketList { lines: ending.lines.into_boxed_str(), count: ending.count };
        self.told.push(Uncovered {
            conn: Some(conn).filter(|conn| conn.number() > 0),
            role: Role::Orderbook,
            epoch: None,
            sid: None,
            reason: since.reason,
            start: self.wall(since.at),
            end: self.wall(ending.last),
            markets: UncoveredMarkets::Listed(markets),
        });
    }

    fn attach(&mut self, slot: Slot, conn: Option<ConnId>, since: Since) {
        let Some(group) = self.groups.get_mut(place(conn)) else { return };
        match group {
            Some(group) if group.since == since => group.markets += 1,
            Some(_) => drop(self.others.insert(slot, since)),
            None => *group = Some(Group { since, markets: 1 }),
        }
    }

    fn detach(&mut self, slot: Slot, conn: Option<ConnId>) -> Option<Since> {
        if let Some(since) = self.others.remove(&slot) {
            return Some(since);
        }
        let group = self.groups.get_mut(place(conn))?;
        let Group { since, markets } = group.as_mut()?;
        let since = *since;
        *markets -= 1;
        if *markets == 0 {
            *group = None;
        }
        Some(since)
    }

    /// Milliseconds since the beginning.
    fn ms(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.born).as_millis();
        u64::try_from(since).unwrap_or(u64::MAX)
    }

    fn wall(&self, at: Instant) -> SystemTime {
        let Stamp { wall, mono } = self.clock;
        let ahead = wall.checked_add(at.saturating_duration_since(mono));
        let back =
            ahead.and_then(|at_least| at_least.checked_sub(mono.saturating_duration_since(at)));
        back.unwrap_or(wall)
    }
}

fn place(conn: Option<ConnId>) -> usize {
    conn.map_or(0, |conn| usize::from(conn.number()))
}

#[cfg(test)]
#[path = "coverage/tests.rs"]
mod tests;
