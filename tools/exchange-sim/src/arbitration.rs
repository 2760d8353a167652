//! The judge of redundant lines: holds what a client handed over of a channel, copies merged,
//! against the record of what was sent on its lines. It shares no type with any client and knows
//! messages only by what they say.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;

use crate::contents::{Content, Contents};

const MOST_FINDINGS: usize = 50;
/// Of messages that say the same and were not all handed over, one that lies so far back is not the
/// one handed over now.
const FAR_BACK: usize = 64;

/// A client's account of channels it follows on several lines and hands over once.
#[derive(Clone, Debug, Default)]
pub struct Arbitration {
    /// By channel: what was handed over, in order, and how much each said was missed before it.
    delivered: BTreeMap<String, Vec<(u64, u64)>>,
    owed: BTreeMap<String, u64>,
}

/// One channel settled. Nothing is wrong exactly if `unaccounted` is 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LineVerdict {
    /// Messages sent, each counted once however many copies it had.
    pub sent: u64,
    /// Of those, handed over.
    pub delivered: u64,
    /// Of those, not handed over, and told.
    pub covered: u64,
    /// Of those, withheld on every line where no number shows it.
    pub undetectable: u64,
    /// Missing and not told, told and not missing, told before anything was missing, handed over
    /// more than once, or never sent.
    pub unaccounted: u64,
    /// Messages withheld on every line they were meant for, those undetectable included.
    pub lost_on_all: u64,
    /// Messages withheld on some line and written on another.
    pub lost_on_some: u64,
    /// What is wrong, at most 50 entries.
    #[serde(skip)]
    pub findings: Vec<String>,
}

impl Arbitration {
    /// A message of this channel was handed over, whatever line it came from: the whole frame.
    /// `gap_size` is what the client said was missed before it.
    pub fn delivered(&mut self, channel: &str, gap_size: u64, frame: &[u8]) {
        // A frame that says nothing has an identity no message has.
        let identity = Content::identity_of(frame).unwrap_or(0);
        match self.delivered.get_mut(channel) {
            Some(list) => list.push((identity, gap_size)),
            None => drop(self.delivered.insert(channel.to_owned(), vec![(identity, gap_size)])),
        }
    }

    /// At its stop the client reported `missed` messages of this channel as lost that no message
    /// told of.
    pub fn owed(&mut self, channel: &str, missed: u64) {
        *self.owed.entry(channel.to_owned()).or_default() += missed;
    }

    /// Adds another consumer's account to this one, as taken after it.
    pub fn merge(&mut self, other: Self) {
        for (channel, list) in other.delivered {
            self.delivered.entry(channel).or_default().extend(list);
        }
        for (channel, missed) in other.owed {
            self.owed(&channel, missed);
        }
    }

    /// Compares one channel's account with what was sent on its lines. It supposes that at every
    /// time one of them was up, and that the client has taken all it was to get.
    #[must_use]
    pub fn settle(&self, channel: &str, contents: &Contents) -> LineVerdict {
        let sent: Vec<&Content> =
            contents.list.iter().filter(|content| content.channel == channel).collect();
        let mut verdict = LineVerdict { sent: sent.len() as u64, ..LineVerdict::default() };
        if contents.truncated {
            verdict.blame(1, || "the record of contents is not complete".to_owned());
        }
        let mut places: BTreeMap<u64, VecDeque<usize>> = BTreeMap::new();
        // What was written nowhere was not handed over, though another that says the same may be.
        for (at, content) in sent.iter().enumerate().filter(|(_, content)| content.written()) {
            places.entry(content.identity).or_default().push_back(at);
        }
        let delivered = self.delivered.get(channel).map_or(&[][..], Vec::as_slice);
        let mut left: BTreeMap<u64, usize> = BTreeMap::new();
        delivered.iter().for_each(|(identity, _)| *left.entry(*identity).or_default() += 1);
        let mut arrived = vec![false; sent.len()];
        let mut order = Vec::with_capacity(delivered.len());
        let mut reached = 0;
        for &(identity, gap) in delivered {
            let left = left.entry(identity).or_default();
            let place = places.get_mut(&identity).map(|places| next(places, *left, reached));
            *left -= 1;
            reached = place.flatten().map_or(reached, |at| at.max(reached));
            match place {
                Some(Some(at)) => arrived[at] = true,
                Some(None) => verdict.blame(1, || format!("{identity:x} handed over twice")),
                None => verdict.blame(1, || format!("{identity:x} handed over, never sent")),
            }
            order.push((place.flatten(), gap));
        }
        let hidden = hidden(&sent, channel);
        let missing: Vec<bool> =
            arrived.iter().zip(&hidden).map(|(arrived, hidden)| !arrived && !hidden).collect();
        let told = verdict.told_in_order(&order, &missing);
        let told = told + self.owed.get(channel).copied().unwrap_or(0);
        verdict.sum_up(&sent, &arrived, &hidden);
        let missed = missing.iter().filter(|missing| **missing).count() as u64;
        verdict.covered = missed.min(told);
        verdict.blame(missed.abs_diff(told), || format!("{missed} missing, {told} told"));
        verdict
    }
}

/// Which of the messages that say the same was handed over, when others up to `reached` have been
/// and so many of these, this one included, are to come.
fn next(places: &mut VecDeque<usize>, left: usize, reached: usize) -> Option<usize> {
    while places.len() > left && places.front().is_some_and(|at| at + FAR_BACK < reached) {
        places.pop_front();
    }
    places.pop_front()
}

/// Which messages nobody can know were lost: withheld wherever they were meant for, and no number
/// behind them was ever written on any of those lines.
fn hidden(sent: &[&Content], channel: &str) -> Vec<bool> {
    let sequenced = !matches!(channel, "ticker" | "market_lifecycle");
    let mut last_written: BTreeMap<(u64, u64), u64> = BTreeMap::new();
    for copy in sent.iter().flat_map(|content| &content.copies).filter(|copy| copy.written) {
        let last = last_written.entry((copy.accept_number, copy.sid)).or_default();
        *last = copy.number.max(*last);
    }
    let shows = |content: &&Content| {
        content.copies.iter().any(|copy| {
            let last = last_written.get(&(copy.accept_number, copy.sid));
            sequenced && last.is_some_and(|&last| last > copy.number)
        })
    };
    sent.iter().map(|content| !content.written() && !shows(content)).collect()
}

impl LineVerdict {
    fn blame(&mut self, count: u64, finding: impl FnOnce() -> String) {
        self.unaccounted += count;
        if count > 0 && self.findings.len() < MOST_FINDINGS {
            self.findings.push(finding());
        }
    }

    /// What the messages told. Nobody may tell of more than was missing among what was sent before
    /// the latest message handed over so far.
    fn told_in_order(&mut self, order: &[(Option<usize>, u64)], missing: &[bool]) -> u64 {
        let (mut told, mut reached, mut before) = (0, 0, 0);
        for &(place, gap) in order {
            if let Some(at) = place.filter(|&at| at >= reached) {
                before += missing[reached..at].iter().filter(|missing| **missing).count() as u64;
                reached = at;
            }
            told += gap;
            if gap > 0 && told > before {
                self.blame(told - before, || format!("{told} told when {before} were missing"));
            }
        }
        told
    }

    fn sum_up(&mut self, sent: &[&Content], arrived: &[bool], hidden: &[bool]) {
        for ((content, &arrived), &hidden) in sent.iter().zip(arrived).zip(hidden) {
            self.delivered += u64::from(arrived);
            self.undetectable += u64::from(hidden && !arrived);
            let withheld = content.copies.iter().any(|copy| !copy.written);
            self.lost_on_all += u64::from(!content.written());
            self.lost_on_some += u64::from(withheld && content.written());
        }
    }
}
