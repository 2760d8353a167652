//! The table of markets: their records, their ticker texts in one piece of memory, and the index
//! that finds one by its text. It knows nothing of connections.
//!
//! A market costs its record (28 bytes), its text, and 5 bytes of index for each place of a table
//! that is at most seven eighths full. Nothing is allocated for a market by itself.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

#[cfg(test)]
use crate::ids::widen;
use crate::market::{Market, Slot};

/// Texts given back are squeezed out once they are this many bytes and a third of all.
const DEAD_BYTES_MIN: usize = 1 << 16;

#[derive(Debug, Default)]
pub(crate) struct Directory {
    records: Vec<Market>,
    /// Records given back, linked through `next`.
    free: Option<Slot>,
    text: String,
    dead: usize,
    index: HashTable<Slot>,
    hasher: RandomState,
}

/// A place in a list of that length; out of range for no slot.
fn place(slot: Slot) -> usize {
    usize::try_from(slot.0).unwrap_or(usize::MAX)
}

/// How much more room a full list of this length gets: an eighth at a time, since what is
/// doubled is half empty.
fn growth(length: usize) -> usize {
    length / 8 + 1_024
}

impl Directory {
    /// The market of this ticker.
    pub(crate) fn find(&self, ticker: &str) -> Option<Slot> {
        let hash = self.hasher.hash_one(ticker);
        self.index.find(hash, |&slot| self.ticker(slot) == ticker).copied()
    }

    /// A record for a ticker that has none; `None` when 4 GiB of tickers are known.
    pub(crate) fn insert(&mut self, ticker: &str) -> Option<Slot> {
        let start = u32::try_from(self.text.len()).ok()?;
        let market = Market::new(start, u8::try_from(ticker.len()).ok()?);
        if self.text.capacity() - self.text.len() < ticker.len() {
            self.text.reserve_exact(growth(self.text.len()));
        }
        self.text.push_str(ticker);
        let slot = match self.free {
            Some(slot) => {
                let record = self.records.get_mut(place(slot))?;
                self.free = Some(record.next).filter(|&next| next != Slot::NONE);
                *record = market;
                slot
            }
            None => {
                let slot = Slot(u32::try_from(self.records.len()).ok()?);
                if self.records.len() == self.records.capacity() {
                    self.records.reserve_exact(growth(self.records.len()));
                }
                self.records.push(market);
                slot
            }
        };
        let Self { records, text, index, hasher, .. } = self;
        let hash = |slot: &Slot| hasher.hash_one(ticker_in(records, text, *slot));
        index.insert_unique(hasher.hash_one(ticker), slot, hash);
        Some(slot)
    }

    /// Forgets a market.
    pub(crate) fn remove(&mut self, slot: Slot) {
        let hash = self.hasher.hash_one(self.ticker(slot));
        if let Ok(entry) = self.index.find_entry(hash, |&known| known == slot) {
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
        if self.dead < DEAD_BYTES_MIN || self.dead < self.text.len() / 3 {
            return;
        }
        let live = self.text.len().saturating_sub(self.dead);
        let old = std::mem::replace(&mut self.text, String::with_capacity(live + growth(live)));
        for record in &mut self.records {
            let start = self.text.len();
            self.text.push_str(text_of(record, &old));
            record.start = u32::try_from(start).unwrap_or(u32::MAX);
        }
        self.dead = 0;
    }

    /// A market's record; none for one that was forgotten.
    pub(crate) fn get(&self, slot: Slot) -> Option<&Market> {
        self.records.get(place(slot)).filter(|record| record.length > 0)
    }

    pub(crate) fn get_mut(&mut self, slot: Slot) -> Option<&mut Market> {
        self.records.get_mut(place(slot)).filter(|record| record.length > 0)
    }

    /// A market's ticker.
    pub(crate) fn ticker(&self, slot: Slot) -> &str {
        ticker_in(&self.records, &self.text, slot)
    }

    /// All markets known, in order of their records.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Slot, &str, &Market)> {
        let known = (0..).zip(&self.records).filter(|(_, record)| record.length > 0);
        known.map(|(place, record)| (Slot(place), text_of(record, &self.text), record))
    }

    /// How many markets are known.
    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    /// Bytes set aside for all of it.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> u64 {
        let records = self.records.capacity() * size_of::<Market>();
        widen(records + self.text.capacity() + self.index.allocation_size())
    }
}

fn ticker_in<'a>(records: &[Market], text: &'a str, slot: Slot) -> &'a str {
    records.get(place(slot)).map_or("", |record| text_of(record, text))
}

fn text_of<'a>(record: &Market, text: &'a str) -> &'a str {
    let start = usize::try_from(record.start).unwrap_or(usize::MAX);
    text.get(start..start.saturating_add(usize::from(record.length))).unwrap_or_default()
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
