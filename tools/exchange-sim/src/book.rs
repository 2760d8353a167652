//! One market's order book: two sides of bids that random changes keep plausible, so that a
//! snapshot and the deltas after it add up. It never formats a message and never knows who listens.

use std::ops::RangeInclusive;

use fastrand::Rng;

/// Prices are in units of 0.0001 dollars; this is one dollar.
pub(crate) const DOLLAR: u16 = 10_000;
/// The usual price step, one cent.
const CENT: u16 = 100;
/// A side never grows beyond its starting depth by more than this.
const EXTRA_LEVELS: usize = 8;

/// Which side of the book.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Yes,
    No,
}

impl Side {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "no",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Yes => Self::No,
            Self::No => Self::Yes,
        }
    }
}

/// Contracts bid at one price. `price` in 0.0001 dollars, `size` in 0.01 contracts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Level {
    pub(crate) price: u16,
    pub(crate) size: u32,
}

/// A signed change of one level, in 0.01 contracts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) side: Side,
    pub(crate) price: u16,
    pub(crate) delta: i64,
}

/// Bids of both sides, worst first, and the running totals a ticker message shows.
#[derive(Debug)]
pub(crate) struct Book {
    yes: Vec<Level>,
    no: Vec<Level>,
    most_levels: u8,
    anchor: u16,
    pub(crate) last_price: u16,
    pub(crate) last_size: u32,
    pub(crate) volume: u64,
    pub(crate) open_interest: u64,
}

impl Book {
    /// The book a market opens with: always the same one for the same seed, so an untouched market
    /// needs no memory for it.
    pub(crate) fn opening(seed: u64, levels: &RangeInclusive<u8>) -> Self {
        let mut rng = Rng::with_seed(seed);
        let anchor = CENT * rng.u16(4..=94);
        let mut book = Self {
            yes: Vec::new(),
            no: Vec::new(),
            most_levels: *levels.end(),
            anchor,
            last_price: anchor,
            last_size: size(&mut rng),
            volume: rng.u64(0..50_000_000),
            open_interest: rng.u64(0..10_000_000),
        };
        let spread = CENT * rng.u16(1..=2);
        book.yes = opening_side(&mut rng, anchor, levels);
        book.no = opening_side(&mut rng, DOLLAR - anchor - spread, levels);
        book
    }

    pub(crate) fn empty() -> Self {
        Self {
            yes: Vec::new(),
            no: Vec::new(),
            most_levels: 0,
            anchor: DOLLAR / 2,
            last_price: 0,
            last_size: 0,
            volume: 0,
            open_interest: 0,
        }
    }

    /// Levels of one side, worst first.
    pub(crate) fn levels(&self, side: Side) -> &[Level] {
        match side {
            Side::Yes => &self.yes,
            Side::No => &self.no,
        }
    }

    pub(crate) fn best(&self, side: Side) -> Option<Level> {
        self.levels(side).last().copied()
    }

    /// Applies one random change and says which.
    pub(crate) fn change(&mut self, rng: &mut Rng) -> Change {
        let side = if rng.bool() { Side::Yes } else { Side::No };
        let ceiling = DOLLAR - self.best(side.other()).map_or(CENT, |level| level.price.max(CENT));
        let room = usize::from(self.most_levels) + EXTRA_LEVELS;
        let anchor = match side {
            Side::Yes => self.anchor,
            Side::No => DOLLAR - self.anchor - CENT,
        };
        let levels = match side {
            Side::Yes => &mut self.yes,
            Side::No => &mut self.no,
        };
        let best = levels.last().map_or(anchor, |level| level.price);
        // Most changes are near the best price; one in sixteen tries to improve it.
        let steps = rng.u16(0..=3) * rng.u16(0..=3);
        let wish = if rng.u8(0..16) == 0 { best + CENT } else { best.saturating_sub(steps * CENT) };
        let price = wish.min(ceiling.saturating_sub(CENT)).max(CENT);
        match levels.binary_search_by_key(&price, |level| level.price) {
            Ok(at) => Change { side, price, delta: alter(levels, at, rng) },
            Err(_) if levels.len() >= room => {
                let at = rng.usize(0..levels.len());
                Change { side, price: levels[at].price, delta: alter(levels, at, rng) }
            }
            Err(at) => {
                let size = size(rng);
                levels.insert(at, Level { price, size });
                Change { side, price, delta: i64::from(size) }
            }
        }
    }

    /// Counts one trade at the best yes price; returns price and size.
    pub(crate) fn trade(&mut self, rng: &mut Rng) -> (u16, u32) {
        let price = self.best(Side::Yes).map_or(self.anchor, |level| level.price);
        let size = size(rng);
        self.last_price = price;
        self.last_size = size;
        self.volume += u64::from(size);
        self.open_interest += u64::from(size / 3);
        (price, size)
    }
}

/// Changes an existing level and returns by how much; a level that reaches zero is gone.
fn alter(levels: &mut Vec<Level>, at: usize, rng: &mut Rng) -> i64 {
    const LARGEST: u32 = 100_000_000;
    let held = levels[at].size;
    let delta = match rng.u8(0..8) {
        0 => -i64::from(held),
        1..=3 => -i64::from(rng.u32(1..=held.max(1))),
        _ if held > LARGEST => -i64::from(held / 2),
        _ => i64::from(size(rng)),
    };
    let now = (i64::from(held) + delta).max(0);
    if now == 0 {
        levels.remove(at);
    } else {
        levels[at].size = u32::try_from(now).unwrap_or(LARGEST);
    }
    delta
}

fn opening_side(rng: &mut Rng, best: u16, levels: &RangeInclusive<u8>) -> Vec<Level> {
    let (low, high) = (*levels.start(), (*levels.end()).max(*levels.start()));
    let count = usize::from(rng.u8(low..=high)).min(usize::from(best / CENT));
    let mut side = Vec::with_capacity(count);
    for step in (0..count).rev() {
        let price = best - CENT * u16::try_from(step).unwrap_or(0);
        side.push(Level { price, size: size(rng) });
    }
    side
}

fn size(rng: &mut Rng) -> u32 {
    // Mostly whole contracts, some fractions, as seen live.
    let contracts = 1 + rng.u32(0..40) * rng.u32(0..40);
    let cents = if rng.u8(0..4) == 0 { rng.u32(0..100) } else { 0 };
    contracts * 100 + cents
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn table(book: &Book, side: Side) -> BTreeMap<u16, i64> {
        book.levels(side).iter().map(|level| (level.price, i64::from(level.size))).collect()
    }

    #[test]
    fn snapshot_plus_changes_is_the_book() {
        for seed in 0..40 {
            let mut rng = Rng::with_seed(seed);
            let mut book = Book::opening(seed, &(0..=6));
            let mut mirror = [table(&book, Side::Yes), table(&book, Side::No)];
            for _ in 0..5_000 {
                let change = book.change(&mut rng);
                let side = &mut mirror[usize::from(change.side == Side::No)];
                let held = side.entry(change.price).or_insert(0);
                *held += change.delta;
                assert_ne!(change.delta, 0);
                assert!(*held >= 0, "a level went below zero");
                if *held == 0 {
                    side.remove(&change.price);
                }
            }
            assert_eq!(mirror, [table(&book, Side::Yes), table(&book, Side::No)]);
        }
    }

    #[test]
    fn books_stay_sorted_uncrossed_and_small() {
        let mut rng = Rng::with_seed(3);
        let mut book = Book::opening(3, &(2..=8));
        for _ in 0..50_000 {
            book.change(&mut rng);
            for side in [Side::Yes, Side::No] {
                assert!(book.levels(side).windows(2).all(|pair| pair[0].price < pair[1].price));
                assert!(book.levels(side).len() <= 16);
            }
            if let (Some(yes), Some(no)) = (book.best(Side::Yes), book.best(Side::No)) {
                assert!(yes.price + no.price < DOLLAR, "crossed");
            }
        }
    }

    #[test]
    fn the_opening_book_is_reproducible() {
        let (one, two) = (Book::opening(9, &(1..=5)), Book::opening(9, &(1..=5)));
        assert_eq!(one.levels(Side::Yes), two.levels(Side::Yes));
        assert_eq!(one.levels(Side::No), two.levels(Side::No));
    }
}
