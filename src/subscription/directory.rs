//! The table of markets: their records, their ticker texts, and the index that finds one by its
//! text. It knows nothing of connections.
//!
//! A market costs its record (28 bytes), its text, and 5 bytes of index for each place of tables
//! that are at most seven eighths full. Nothing is allocated for a market by itself, and nothing
//! large is ever moved: all of it grows in small pieces, since what grows as a whole is half empty
//! afterwards, or leaves holes behind that nothing else fits into.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

#[cfg(test)]
use crate::ids::widen;
use crate::market::{Market, Slot};

/// Records of one piece.
const RECORDS: usize = 1_024;
/// Bytes of text of one piece.
const TEXT_BYTES: usize = 16 << 10;
/// Parts of the index; each grows by itself.
const TABLES: usize = 64;
/// Texts given back are squeezed out once they are this many bytes and a third of all.
const DEAD_BYTES_MIN: usize = 1 << 16;

#[derive(Debug)]
pub(crate) struct Directory {
    /// Full pieces, but for the last.
    records: Vec<Vec<Market>>,
    /// Records given back, linked through `next`.
    free: Option<Slot>,
    texts: Texts,
    dead: usize,
    index: Vec<HashTable<Slot>>,
    hasher: RandomState,
}

/// Texts one behind the other; none goes over the end of a piece.
#[derive(Debug, Default)]
struct Texts {
    pieces: Vec<String>,
}

impl Texts {
    /// Where the text is from now on; `None` when there are 4 GiB already.
    fn push(&mut self, text: &str) -> Option<u32> {
        let fits = |piece: &String| piece.len() + text.len() <= TEXT_BYTES;
        if !self.pieces.last().is_some_and(fits) {
            self.pieces.push(String::with_capacity(TEXT_BYTES));
        }
        let before = (self.pieces.len() - 1) * TEXT_BYTES;
        let piece = self.pieces.last_mut()?;
        let start = u32::try_from(before + piece.len()).ok()?;
        piece.push_str(text);
        Some(start)
    }

    fn get(&self, start: u32, length: u8) -> &str {
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        let (piece, from) = (self.pieces.get(start / TEXT_BYTES), start % TEXT_BYTES);
        piece.and_then(|text| text.get(from..from + usize::from(length))).unwrap_or_default()
    }

    /// Bytes in use, as good as exactly.
    fn bytes(&self) -> usize {
        let full = self.pieces.len().saturating_sub(1) * TEXT_BYTES;
        full + self.pieces.last().map_or(0, String::len)
    }
}

impl Default for Directory {
    fn default() -> Self {
        Self {
            records: Vec::new(),
            free: None,
            texts: Texts::default(),
            dead: 0,
            index: (0..TABLES).map(|_| HashTable::new()).collect(),
            hasher: RandomState::new(),
        }
    }
}

/// A slot's piece and its place there; out of range for no slot.
fn place(slot: Slot) -> (usize, usize) {
    let place = usize::try_from(slot.0).unwrap_or(usize::MAX);
    (place / RECORDS, place % RECORDS)
}

/// Which part of the index; by bits that the part itself makes no use of.
fn part(hash: u64) -> usize {
    usize::try_from(hash >> 48).unwrap_or_default() % TABLES
}

impl Directory {
    /// The market of this ticker.
    pub(crate) fn find(&self, ticker: &str) -> Option<Slot> {
        let hash = self.hasher.hash_one(ticker);
        let table = self.index.get(part(hash))?;
        table.find(hash, |&slot| self.ticker(slot) == ticker).copied()
    }

    /// A record for a ticker that has none; `None` when 4 GiB of tickers are known.
    pub(crate) fn insert(&mut self, ticker: &str) -> Option<Slot> {
        let length = u8::try_from(ticker.len()).ok()?;
        let market = Market::new(self.texts.push(ticker)?, length);
        let slot = self.record(market)?;
        let hash = self.hasher.hash_one(ticker);
        let Self { records, texts, index, hasher, .. } = self;
        let hash_of = |slot: &Slot| hasher.hash_one(ticker_in(records, texts, *slot));
        index.get_mut(part(hash))?.insert_unique(hash, slot, hash_of);
        Some(slot)
    }

    fn record(&mut self, market: Market) -> Option<Slot> {
        if let Some(slot) = self.free {
            let (piece, index) = place(slot);
            let record = self.records.get_mut(piece)?.get_mut(index)?;
            self.free = Some(record.next).filter(|&next| next != Slot::NONE);
            *record = market;
            return Some(slot);
        }
        if self.records.last().is_none_or(|piece| piece.len() == RECORDS) {
            self.records.push(Vec::with_capacity(RECORDS));
        }
        let before = (self.records.len() - 1) * RECORDS;
        let piece = self.records.last_mut()?;
        let slot = Slot(u32::try_from(before + piece.len()).ok()?);
        piece.push(market);
        Some(slot)
    }

    /// Forgets a market.
    pub(crate) fn remove(&mut self, slot: Slot) {
        let hash = self.hasher.hash_one(self.ticker(slot));
        let table = self.index.get_mut(part(hash));
        if let Some(Ok(entry)) = table.map(|table| table.find_entry(hash, |&known| known == slot)) {
            entry.remove();
        }
        let next = self.free.unwrap_or(Slot::NONE);
        let Some(record) = self.get_mut(slot) else { return };
        let length = std::mem::take(&mut record.length);
        record.next = next;
        self.free = Some(slot);
        self.dead += usize::from(length);
        self.squeeze();
    }

    /// Squeezes dead texts out, when they are many: cheap for each market that left.
    fn squeeze(&mut self) {
        if self.dead < DEAD_BYTES_MIN || self.dead < self.texts.bytes() / 3 {
            return;
        }
        let old = std::mem::take(&mut self.texts);
        for record in self.records.iter_mut().flatten().filter(|record| record.length > 0) {
            let start = self.texts.push(old.get(record.start, record.length));
            record.start = start.unwrap_or(u32::MAX);
        }
        self.dead = 0;
    }

    /// A market's record; none for one that was forgotten.
    pub(crate) fn get(&self, slot: Slot) -> Option<&Market> {
        let (piece, index) = place(slot);
        self.records.get(piece)?.get(index).filter(|record| record.length > 0)
    }

    pub(crate) fn get_mut(&mut self, slot: Slot) -> Option<&mut Market> {
        let (piece, index) = place(slot);
        self.records.get_mut(piece)?.get_mut(index).filter(|record| record.length > 0)
    }

    /// A market's ticker.
    pub(crate) fn ticker(&self, slot: Slot) -> &str {
        ticker_in(&self.records, &self.texts, slot)
    }

    /// All markets known, in order of their records.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Slot, &str, &Market)> {
        let known = (0..).zip(self.records.iter().flatten());
        let known = known.filter(|(_, record)| record.length > 0);
        known.map(|(place, record)| {
            (Slot(place), self.texts.get(record.start, record.length), record)
        })
    }

    /// How many markets are known.
    pub(crate) fn len(&self) -> usize {
        self.index.iter().map(HashTable::len).sum()
    }

    /// Bytes set aside for all of it.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> u64 {
        let records = self.records.len() * RECORDS * size_of::<Market>();
        let texts = self.texts.pieces.len() * TEXT_BYTES;
        let index: usize = self.index.iter().map(HashTable::allocation_size).sum();
        widen(records + texts + index)
    }
}

fn ticker_in<'a>(records: &[Vec<Market>], texts: &'a Texts, slot: Slot) -> &'a str {
    let (piece, index) = place(slot);
    let record = records.get(piece).and_then(|piece| piece.get(index));
    record.map_or("", |record| texts.get(record.start, record.length))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(crate::property::cases(200))]

        /// Against a set, with texts of every length, squeezed now and then.
        #[test]
        fn agrees_with_a_set(steps in prop::collection::vec((any::<bool>(), 0u32..400), 1..2_000)) {
            let mut directory = Directory::default();
            let mut naive = BTreeSet::new();
            for (add, number) in steps {
                let length = usize::try_from(number % 100).unwrap();
                let ticker = format!("M{number}-{}", "X".repeat(length));
                match (directory.find(&ticker), add) {
                    (None, true) => {
                        let slot = directory.insert(&ticker).unwrap();
                        prop_assert_eq!(directory.ticker(slot), ticker.as_str());
                        prop_assert!(naive.insert(ticker));
                    }
                    (Some(slot), false) => {
                        directory.remove(slot);
                        prop_assert!(naive.remove(&ticker));
                    }
                    (found, _) => prop_assert_eq!(found.is_some(), naive.contains(&ticker)),
                }
                prop_assert_eq!(directory.len(), naive.len());
            }
            let texts = directory.iter().map(|(_, text, _)| text.to_owned());
            let known: BTreeSet<String> = texts.collect();
            prop_assert_eq!(known, naive);
        }
    }

    #[test]
    fn a_table_that_churns_does_not_grow() {
        let mut directory = Directory::default();
        let mut most = 0;
        for round in 0..200_000u32 {
            let slot = directory.insert(&format!("KXDEMO-26NOV01-T{round:07}")).unwrap();
            assert!(slot.0 < 2);
            if round % 2 == 1 {
                directory.remove(slot);
                directory.remove(Slot(1 - slot.0));
            }
            most = most.max(directory.bytes());
        }
        assert!(most < 300_000, "{most}");
    }
}
