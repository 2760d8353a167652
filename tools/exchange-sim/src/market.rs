//! The market universe: tickers, states, popularity, books, and who listens to which market. Adding
//! or removing a listener never scans other markets. It never writes a frame.

use std::hash::{BuildHasher, RandomState};
use std::ops::RangeInclusive;
use std::sync::Arc;

use fastrand::Rng;
use hashbrown::HashTable;

use crate::book::Book;
use crate::names;

/// Index of a market; reused after a market is forgotten.
pub(crate) type MarketId = u32;

const NOWHERE: u32 = u32::MAX;

/// Life of a market.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// A name somebody subscribed to that the exchange does not list.
    Unlisted,
    Active,
    Paused,
    Determined,
    Settled,
}

impl State {
    /// The mission's word for it.
    pub(crate) fn status(self) -> &'static str {
        match self {
            Self::Unlisted => "",
            Self::Active => "active",
            Self::Paused => "inactive",
            Self::Determined => "determined",
            Self::Settled => "finalized",
        }
    }
}

/// One listener of a market: which connection, which of its streams, and where in the stream's list
/// of members the market stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listener {
    pub(crate) client: u32,
    pub(crate) stream: u32,
    pub(crate) position: u32,
}

/// Most markets have one listener at most; those need no allocation.
#[derive(Debug, Default)]
enum Listeners {
    #[default]
    None,
    One(Listener),
    Many(Vec<Listener>),
}

impl Listeners {
    fn as_slice(&self) -> &[Listener] {
        match self {
            Self::None => &[],
            Self::One(listener) => std::slice::from_ref(listener),
            Self::Many(list) => list,
        }
    }

    fn as_mut_slice(&mut self) -> &mut [Listener] {
        match self {
            Self::None => &mut [],
            Self::One(listener) => std::slice::from_mut(listener),
            Self::Many(list) => list,
        }
    }

    fn push(&mut self, listener: Listener) {
        *self = match std::mem::take(self) {
            Self::None => Self::One(listener),
            Self::One(first) => Self::Many(vec![first, listener]),
            Self::Many(mut list) => {
                list.push(listener);
                Self::Many(list)
            }
        };
    }

    fn remove(&mut self, client: u32, stream: u32) -> Option<Listener> {
        let at = self
            .as_slice()
            .iter()
            .position(|listener| listener.client == client && listener.stream == stream)?;
        match self {
            Self::Many(list) => {
                let gone = list.swap_remove(at);
                if list.is_empty() {
                    *self = Self::None;
                }
                Some(gone)
            }
            Self::One(listener) => {
                let gone = *listener;
                *self = Self::None;
                Some(gone)
            }
            Self::None => None,
        }
    }
}

/// One market. Small, because there can be a million of them.
#[derive(Debug)]
pub(crate) struct Market {
    pub(crate) ticker: Arc<str>,
    pub(crate) state: State,
    rank: u32,
    wanted: u32,
    listeners: Listeners,
    book: Option<Box<Book>>,
}

impl Market {
    pub(crate) fn listeners(&self) -> &[Listener] {
        self.listeners.as_slice()
    }
}

/// All markets.
#[derive(Debug)]
pub(crate) struct Universe {
    markets: Vec<Market>,
    free: Vec<MarketId>,
    by_ticker: HashTable<MarketId>,
    hasher: RandomState,
    /// Markets that stream, hottest first: the position is the popularity.
    ranked: Vec<MarketId>,
    /// Markets that stream and have a listener of their own.
    wanted: Vec<MarketId>,
    named: u64,
    seed: u64,
    levels: RangeInclusive<u8>,
    settled_stream: bool,
}

impl Universe {
    pub(crate) fn new(seed: u64, levels: RangeInclusive<u8>, settled_stream: bool) -> Self {
        Self {
            markets: Vec::new(),
            free: Vec::new(),
            by_ticker: HashTable::new(),
            hasher: RandomState::new(),
            ranked: Vec::new(),
            wanted: Vec::new(),
            named: 0,
            seed,
            levels,
            settled_stream,
        }
    }

    /// Lists a new active market at a random popularity and returns it.
    pub(crate) fn create(&mut self, rng: &mut Rng) -> MarketId {
        let ticker = loop {
            let name = names::ticker(self.named);
            self.named += 1;
            // A client may have subscribed to a name before it was listed.
            match self.find(&name) {
                Some(id) if self.market(id).state == State::Unlisted => {
                    self.start(id, rng);
                    return id;
                }
                Some(_) => {}
                None => break name,
            }
        };
        let id = self.insert(&ticker);
        self.start(id, rng);
        id
    }

    /// The market of that name; one nobody lists is remembered as long as somebody listens to it.
    pub(crate) fn find_or_note(&mut self, ticker: &str) -> MarketId {
        self.find(ticker).unwrap_or_else(|| self.insert(ticker))
    }

    pub(crate) fn find(&self, ticker: &str) -> Option<MarketId> {
        let hash = self.hasher.hash_one(ticker);
        let same = |&id: &MarketId| *self.markets[id as usize].ticker == *ticker;
        self.by_ticker.find(hash, same).copied()
    }

    /// Whether a stream listens to the market of that name.
    pub(crate) fn has_listener(&self, ticker: &str, client: u32, stream: u32) -> bool {
        let listens = |listener: &Listener| (listener.client, listener.stream) == (client, stream);
        self.find(ticker).is_some_and(|id| self.market(id).listeners().iter().any(listens))
    }

    pub(crate) fn market(&self, id: MarketId) -> &Market {
        &self.markets[id as usize]
    }

    /// The market's book, made now if it was never touched.
    pub(crate) fn book(&mut self, id: MarketId) -> &mut Book {
        let seed = self.book_seed(id);
        let levels = &self.levels;
        let market = &mut self.markets[id as usize];
        market.book.get_or_insert_with(|| Box::new(Book::opening(seed, levels)))
    }

    /// Runs `look` on the market's book as it stands, without making an untouched one permanent.
    pub(crate) fn look<R>(&self, id: MarketId, look: impl FnOnce(&Market, &Book) -> R) -> R {
        let market = self.market(id);
        match (&market.book, market.state) {
            (Some(book), _) => look(market, book),
            (None, State::Unlisted) => look(market, &Book::empty()),
            (None, _) => look(market, &Book::opening(self.book_seed(id), &self.levels)),
        }
    }

    /// The UUID the exchange shows as `market_id`.
    pub(crate) fn uuid(&self, id: MarketId) -> u128 {
        names::uuid(self.seed, id)
    }

    /// Whether data frames are generated for it.
    pub(crate) fn streams(&self, id: MarketId) -> bool {
        self.market(id).rank != NOWHERE
    }

    pub(crate) fn activate(&mut self, id: MarketId, rng: &mut Rng) {
        self.start(id, rng);
    }

    /// Stops a market's stream and puts it into a state that is not active.
    pub(crate) fn halt(&mut self, id: MarketId, state: State) {
        self.markets[id as usize].state = state;
        let over = matches!(state, State::Determined | State::Settled);
        if !(over && self.settled_stream && self.market(id).wanted != NOWHERE) {
            self.unrank(id);
        }
        self.forget_if_idle(id);
    }

    /// Adds a listener; false if that stream already listens.
    pub(crate) fn listen(&mut self, id: MarketId, listener: Listener) -> bool {
        let listeners = &mut self.markets[id as usize].listeners;
        let known = listeners
            .as_slice()
            .iter()
            .any(|other| other.client == listener.client && other.stream == listener.stream);
        if known {
            return false;
        }
        listeners.push(listener);
        self.want(id);
        true
    }

    /// Removes a listener; returns the position the market had in the stream's list.
    pub(crate) fn unlisten(&mut self, id: MarketId, client: u32, stream: u32) -> Option<u32> {
        let gone = self.markets[id as usize].listeners.remove(client, stream)?;
        if self.market(id).listeners().is_empty() {
            self.unwant(id);
            if !matches!(self.market(id).state, State::Active) {
                self.unrank(id);
            }
            self.forget_if_idle(id);
        }
        Some(gone.position)
    }

    /// Records that a market moved within a stream's list.
    pub(crate) fn moved(&mut self, id: MarketId, client: u32, stream: u32, position: u32) {
        let listeners = self.markets[id as usize].listeners.as_mut_slice();
        let found = listeners
            .iter_mut()
            .find(|listener| listener.client == client && listener.stream == stream);
        if let Some(listener) = found {
            listener.position = position;
        }
    }

    /// A streaming market drawn by popularity: the chance falls as one over the rank.
    pub(crate) fn draw_popular(&self, rng: &mut Rng) -> Option<MarketId> {
        let count = self.ranked.len();
        let draw = ((count as f64 + 1.0).ln() * rng.f64()).exp() as usize;
        self.ranked.get(draw.saturating_sub(1).min(count.checked_sub(1)?)).copied()
    }

    /// A streaming market somebody listens to, drawn evenly.
    pub(crate) fn draw_wanted(&self, rng: &mut Rng) -> Option<MarketId> {
        let count = self.wanted.len();
        (count > 0).then(|| self.wanted[rng.usize(0..count)])
    }

    pub(crate) fn anybody_listens(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// An active market drawn evenly.
    pub(crate) fn draw_active(&self, rng: &mut Rng) -> Option<MarketId> {
        let count = self.ranked.len();
        let start = rng.usize(0..count.max(1));
        let (before, from) = self.ranked.split_at(start.min(count));
        from.iter().chain(before).copied().find(|&id| self.market(id).state == State::Active)
    }

    /// Tickers of the active markets, sorted.
    pub(crate) fn active(&self) -> Vec<String> {
        let mut tickers: Vec<String> = self
            .markets
            .iter()
            .filter(|market| market.state == State::Active)
            .map(|market| market.ticker.to_string())
            .collect();
        tickers.sort_unstable();
        tickers
    }

    /// Every market that is known.
    pub(crate) fn markets(&self) -> impl Iterator<Item = &Market> {
        self.markets.iter()
    }

    /// Names held, listed or not; freed places apart.
    pub(crate) fn len(&self) -> usize {
        self.by_ticker.len()
    }

    fn book_seed(&self, id: MarketId) -> u64 {
        names::mix(self.seed ^ (u64::from(id) << 20))
    }

    fn insert(&mut self, ticker: &str) -> MarketId {
        let market = Market {
            ticker: Arc::from(ticker),
            state: State::Unlisted,
            rank: NOWHERE,
            wanted: NOWHERE,
            listeners: Listeners::None,
            book: None,
        };
        let id = match self.free.pop() {
            Some(id) => {
                self.markets[id as usize] = market;
                id
            }
            None => {
                self.markets.push(market);
                (self.markets.len() - 1) as MarketId
            }
        };
        let Self { by_ticker, hasher, markets, .. } = self;
        let hash_of = |&id: &MarketId| hasher.hash_one(&*markets[id as usize].ticker);
        by_ticker.insert_unique(hasher.hash_one(ticker), id, hash_of);
        id
    }

    fn start(&mut self, id: MarketId, rng: &mut Rng) {
        self.markets[id as usize].state = State::Active;
        if self.market(id).rank == NOWHERE {
            // At a random place, so that popularity has nothing to do with age or name.
            let last = self.ranked.len();
            let at = rng.usize(0..=last);
            self.ranked.push(id);
            self.ranked.swap(at, last);
            for place in [at, last] {
                let id = self.ranked[place];
                self.markets[id as usize].rank = place as u32;
            }
        }
        if !self.market(id).listeners().is_empty() {
            self.want(id);
        }
    }

    fn unrank(&mut self, id: MarketId) {
        let at = std::mem::replace(&mut self.markets[id as usize].rank, NOWHERE);
        if at != NOWHERE {
            self.ranked.swap_remove(at as usize);
            if let Some(&moved) = self.ranked.get(at as usize) {
                self.markets[moved as usize].rank = at;
            }
        }
        self.unwant(id);
    }

    fn want(&mut self, id: MarketId) {
        let market = &mut self.markets[id as usize];
        if market.rank != NOWHERE && market.wanted == NOWHERE {
            market.wanted = self.wanted.len() as u32;
            self.wanted.push(id);
        }
    }

    fn unwant(&mut self, id: MarketId) {
        let at = std::mem::replace(&mut self.markets[id as usize].wanted, NOWHERE);
        if at != NOWHERE {
            self.wanted.swap_remove(at as usize);
            if let Some(&moved) = self.wanted.get(at as usize) {
                self.markets[moved as usize].wanted = at;
            }
        }
    }

    /// Forgets a market that is over, or was never listed, once nobody listens to it. A client that
    /// asks for it again finds a name that streams nothing, which is what it was.
    pub(crate) fn forget_if_idle(&mut self, id: MarketId) {
        let Self { by_ticker, hasher, markets, free, .. } = self;
        let market = &mut markets[id as usize];
        let over = matches!(market.state, State::Unlisted | State::Settled);
        if !over || !market.listeners().is_empty() {
            return;
        }
        let hash = hasher.hash_one(&*market.ticker);
        if let Ok(entry) = by_ticker.find_entry(hash, |&other| other == id) {
            entry.remove();
            market.book = None;
            market.ticker = Arc::from("");
            market.state = State::Settled;
            free.push(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn universe(count: usize) -> (Universe, Rng) {
        let mut rng = Rng::with_seed(1);
        let mut universe = Universe::new(1, 2..=4, false);
        for _ in 0..count {
            universe.create(&mut rng);
        }
        (universe, rng)
    }

    fn check(universe: &Universe) {
        for (at, &id) in universe.ranked.iter().enumerate() {
            assert_eq!(universe.market(id).rank as usize, at);
        }
        for (at, &id) in universe.wanted.iter().enumerate() {
            assert_eq!(universe.market(id).wanted as usize, at);
            assert!(!universe.market(id).listeners().is_empty());
        }
    }

    #[test]
    fn names_are_unique_and_popularity_is_heavy_tailed() {
        let (universe, mut rng) = universe(5_000);
        let mut active = universe.active();
        active.dedup();
        assert_eq!(active.len(), 5_000);
        let mut hits = vec![0_u32; 5_000];
        for _ in 0..100_000 {
            hits[universe.draw_popular(&mut rng).unwrap() as usize] += 1;
        }
        hits.sort_unstable_by(|a, b| b.cmp(a));
        let top: u32 = hits[..50].iter().sum();
        let bottom: u32 = hits[2_500..].iter().sum();
        assert!(top > 40_000, "the hottest percent must carry much of the traffic: {top}");
        assert!(bottom < 15_000, "the cold half must be nearly silent: {bottom}");
    }

    #[test]
    fn random_listening_keeps_every_index_right() {
        let (mut universe, mut rng) = universe(200);
        let mut model: Vec<(u32, u32)> = Vec::new();
        for _ in 0..20_000 {
            let id = rng.u32(0..200);
            let client = rng.u32(0..5);
            match rng.u8(0..5) {
                0 | 1 if universe.find(&universe.market(id).ticker.clone()).is_some() => {
                    let fresh = universe.listen(id, Listener { client, stream: 0, position: 7 });
                    assert_eq!(fresh, !model.contains(&(id, client)));
                    if fresh {
                        model.push((id, client));
                    }
                }
                2 => {
                    let known = model.iter().position(|&pair| pair == (id, client));
                    let gone = universe.unlisten(id, client, 0);
                    assert_eq!(gone.is_some(), known.is_some());
                    if let Some(at) = known {
                        model.swap_remove(at);
                    }
                }
                3 => universe.halt(id, State::Paused),
                _ if universe.market(id).state == State::Paused => {
                    universe.activate(id, &mut rng);
                }
                _ => {}
            }
        }
        check(&universe);
    }

    #[test]
    fn a_settled_market_is_forgotten_with_its_last_listener() {
        let (mut universe, _) = universe(3);
        let id = 1;
        let ticker = universe.market(id).ticker.to_string();
        universe.listen(id, Listener { client: 0, stream: 0, position: 0 });
        universe.halt(id, State::Settled);
        assert!(universe.find(&ticker).is_some());
        assert!(!universe.streams(id));
        universe.unlisten(id, 0, 0);
        assert!(universe.find(&ticker).is_none());
        let other = universe.find_or_note("NEVER-LISTED");
        assert_eq!(other, id, "the place is reused");
        universe.look(other, |_, book| assert!(book.best(crate::book::Side::Yes).is_none()));
        check(&universe);
    }

    #[test]
    fn a_settled_market_streams_on_when_asked_to() {
        let mut rng = Rng::with_seed(1);
        let mut universe = Universe::new(1, 2..=4, true);
        let id = universe.create(&mut rng);
        universe.listen(id, Listener { client: 0, stream: 0, position: 0 });
        universe.halt(id, State::Settled);
        assert!(universe.streams(id));
        assert!(universe.active().is_empty());
        universe.unlisten(id, 0, 0);
        assert!(universe.find(names::ticker(0).as_str()).is_none());
        check(&universe);
    }

    #[test]
    fn an_untouched_market_is_small() {
        assert!(std::mem::size_of::<Market>() <= 72, "{}", std::mem::size_of::<Market>());
    }
}
