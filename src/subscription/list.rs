//! Lists threaded through the records of markets: joining, leaving and moving cost the same
//! whatever their length, and nothing is allocated. And lists by priority, highest first.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::directory::Directory;
use crate::market::Slot;

/// Ends of a list whose links are in the records.
#[derive(Clone, Copy, Debug)]
pub(crate) struct List {
    head: Slot,
    tail: Slot,
}

impl Default for List {
    fn default() -> Self {
        Self { head: Slot::NONE, tail: Slot::NONE }
    }
}

impl List {
    pub(crate) fn first(&self) -> Option<Slot> {
        (self.head != Slot::NONE).then_some(self.head)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.head == Slot::NONE
    }

    /// Joins at the end. The market must be in no list.
    pub(crate) fn push(&mut self, directory: &mut Directory, slot: Slot) {
        let last = std::mem::replace(&mut self.tail, slot);
        if let Some(record) = directory.get_mut(slot) {
            (record.prev, record.next) = (last, Slot::NONE);
        }
        match directory.get_mut(last) {
            Some(record) => record.next = slot,
            None => self.head = slot,
        }
    }

    /// Leaves. The market must be in this list.
    pub(crate) fn remove(&mut self, directory: &mut Directory, slot: Slot) {
        let Some(record) = directory.get(slot) else { return };
        let (prev, next) = (record.prev, record.next);
        match directory.get_mut(prev) {
            Some(record) => record.next = next,
            None => self.head = next,
        }
        match directory.get_mut(next) {
            Some(record) => record.prev = prev,
            None => self.tail = prev,
        }
    }

    /// Adds the members to `all`, in order.
    pub(crate) fn collect(&self, directory: &Directory, all: &mut Vec<Slot>) {
        let mut next = self.first();
        while let Some(slot) = next {
            all.push(slot);
            let follows = directory.get(slot).map(|record| record.next);
            next = follows.filter(|&slot| slot != Slot::NONE);
        }
    }
}

/// Lists by priority.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ranks(BTreeMap<Reverse<u8>, List>);

impl Ranks {
    /// The first market of the highest priority.
    pub(crate) fn first(&self) -> Option<Slot> {
        self.0.first_key_value().and_then(|(_, list)| list.first())
    }

    pub(crate) fn push(&mut self, directory: &mut Directory, slot: Slot, priority: u8) {
        self.0.entry(Reverse(priority)).or_default().push(directory, slot);
    }

    /// Leaves the list of the priority it joined with.
    pub(crate) fn remove(&mut self, directory: &mut Directory, slot: Slot, priority: u8) {
        let Some(list) = self.0.get_mut(&Reverse(priority)) else { return };
        list.remove(directory, slot);
        if list.is_empty() {
            self.0.remove(&Reverse(priority));
        }
    }

    pub(crate) fn collect(&self, directory: &Directory, all: &mut Vec<Slot>) {
        self.0.values().for_each(|list| list.collect(directory, all));
    }
}
