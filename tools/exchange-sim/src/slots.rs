//! The places of a sid's frames on the wire, told apart: data, answers, repeats, and what was never
//! written. A slot is a frame's place in the order of its sid, from 1; its number is the same
//! unless the exchange repeated numbers or jumped. It judges nothing.

use std::borrow::Cow;

use crate::audit::Span;
use crate::ledger::{NumberRange, Renumbering, SidRecord};

/// Ascending, disjoint number ranges with their running totals.
pub(crate) struct Ranges {
    list: Vec<NumberRange>,
    before: Vec<u64>,
    total: u64,
}

impl Ranges {
    pub(crate) fn new(list: impl IntoIterator<Item = NumberRange>) -> Self {
        let list: Vec<NumberRange> = list.into_iter().collect();
        let mut total = 0;
        let mut before = Vec::with_capacity(list.len());
        for range in &list {
            before.push(total);
            total += range.last - range.first + 1;
        }
        Self { list, before, total }
    }

    /// How many of the numbers are at most `number`.
    pub(crate) fn up_to(&self, number: u64) -> u64 {
        let at = self.list.partition_point(|range| range.first <= number);
        let Some(at) = at.checked_sub(1) else {
            return 0;
        };
        let range = self.list[at];
        self.before[at] + number.min(range.last) - range.first + 1
    }

    /// How many are within `first..=last`.
    pub(crate) fn between(&self, first: u64, last: u64) -> u64 {
        self.up_to(last).saturating_sub(self.up_to(first.saturating_sub(1)))
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    pub(crate) fn contains(&self, number: u64) -> bool {
        number > 0 && self.up_to(number) > self.up_to(number - 1)
    }
}

/// The slots of one sid.
pub(crate) struct Slots {
    pub(crate) last: u64,
    /// The last slot of data that was written.
    pub(crate) last_data: u64,
    /// Control frames that were written: nothing to miss there.
    control: Ranges,
    /// Data nobody can miss: what was withheld where no number shows it, and repeats.
    pub(crate) hidden: Ranges,
    /// Of those, the repeats: written, and worth nothing to a client that drops them.
    pub(crate) repeats: Ranges,
}

impl Slots {
    pub(crate) fn of(sid: &SidRecord) -> Self {
        // A withheld control frame leaves a hole like any other.
        let control = subtract(&sid.control_slots, &sid.withheld);
        let repeated = if sid.sequenced { repeated(sid) } else { Vec::new() };
        let repeats = subtract(&subtract(&repeated, &control), &sid.withheld);
        let written = last_outside(sid.last_number, &[&sid.withheld, &repeated]);
        // A hole shows when a higher number than ever comes behind it.
        let shows = if sid.sequenced {
            subtract(&up_to(&sid.withheld, written), &repeated)
        } else {
            Vec::new()
        };
        let mut hidden = subtract(&sid.withheld, &shows);
        hidden.extend_from_slice(&repeats);
        hidden.sort_unstable_by_key(|range| range.first);
        Self {
            last: sid.last_number,
            last_data: last_outside(sid.last_number, &[&sid.withheld, &sid.control_slots]),
            control: Ranges::new(control),
            hidden: Ranges::new(hidden),
            repeats: Ranges::new(repeats),
        }
    }

    /// Data messages a client can miss in `1..=slot`.
    pub(crate) fn up_to(&self, slot: u64) -> u64 {
        let slot = slot.min(self.last);
        slot - self.control.up_to(slot) - self.hidden.up_to(slot)
    }

    /// The same strictly between two slots.
    pub(crate) fn between(&self, after: u64, before: u64) -> u64 {
        self.up_to(before.saturating_sub(1)).saturating_sub(self.up_to(after))
    }
}

/// The part of ascending ranges that is at most `last`.
fn up_to(ranges: &[NumberRange], last: u64) -> Vec<NumberRange> {
    let below = ranges.iter().filter(|range| range.first <= last);
    below.map(|range| NumberRange { first: range.first, last: range.last.min(last) }).collect()
}

/// The highest slot up to `last` that is in none of these; 0 if there is none.
fn last_outside(last: u64, sets: &[&[NumberRange]]) -> u64 {
    let mut at = last;
    loop {
        let covers = |range: &&NumberRange| range.first <= at && at <= range.last;
        let hit = sets.iter().find_map(|set| {
            let near = set.partition_point(|range| range.first <= at);
            near.checked_sub(1).and_then(|near| set.get(near)).filter(covers)
        });
        match hit {
            Some(range) if at > 0 => at = range.first - 1,
            _ => return at,
        }
    }
}

/// What is in `from` and in none of `holes`, both ascending.
fn subtract(from: &[NumberRange], holes: &[NumberRange]) -> Vec<NumberRange> {
    let mut out = Vec::with_capacity(from.len());
    let start = from.first().map_or(0, |range| range.first);
    let mut near = holes.partition_point(|hole| hole.last < start);
    for range in from {
        let mut first = range.first;
        while holes.get(near).is_some_and(|hole| hole.last < first) {
            near += 1;
        }
        for hole in holes[near..].iter().take_while(|hole| hole.first <= range.last) {
            if hole.first > first {
                out.push(NumberRange { first, last: hole.first - 1 });
            }
            first = first.max(hole.last + 1);
        }
        if first <= range.last {
            out.push(NumberRange { first, last: range.last });
        }
    }
    out
}

/// A run of slots with consecutive numbers.
#[derive(Clone, Copy)]
struct Run {
    first: u64,
    last: u64,
    number: u64,
}

impl Run {
    /// The slot of a number.
    fn slot(self, number: u64) -> Option<u64> {
        let slot = self.first + number.checked_sub(self.number)?;
        (slot <= self.last).then_some(slot)
    }
}

fn runs(sid: &SidRecord) -> Vec<Run> {
    let plain = [Renumbering { from: 1, number: 1 }];
    let starts: Vec<Renumbering> = match sid.renumbered.first() {
        Some(first) if first.from == 1 => sid.renumbered.clone(),
        _ => plain.iter().chain(&sid.renumbered).copied().collect(),
    };
    let ends = starts.iter().skip(1).map(|start| start.from - 1).chain([sid.last_number]);
    let run =
        |(start, last): (&Renumbering, u64)| Run { first: start.from, last, number: start.number };
    starts.iter().zip(ends).map(run).filter(|run| run.first <= run.last).collect()
}

/// The runs without what was no data or never written.
fn deliverable(sid: &SidRecord) -> Vec<Run> {
    let mut out = Vec::new();
    for run in runs(sid) {
        let whole = [NumberRange { first: run.first, last: run.last }];
        let left = subtract(&subtract(&whole, &sid.control_slots), &sid.withheld);
        out.extend(left.iter().map(|&NumberRange { first, last }| Run {
            first,
            last,
            number: run.number + first - run.first,
        }));
    }
    out
}

/// Slots whose numbers are not above all before them.
fn repeated(sid: &SidRecord) -> Vec<NumberRange> {
    let (mut seen, mut out) = (0, Vec::new());
    for run in runs(sid) {
        if run.number <= seen {
            let last = run.last.min(run.first + seen - run.number);
            out.push(NumberRange { first: run.first, last });
        }
        seen = seen.max(run.number + run.last - run.first);
    }
    out
}

/// The highest number given to a frame of a sid.
pub(crate) fn highest_number(sid: &SidRecord) -> u64 {
    runs(sid).iter().map(|run| run.number + run.last - run.first).max().unwrap_or(0)
}

/// The slots of what was delivered under its numbers, in the order of delivery. Of a number sent
/// more than once the next slot is meant, or the one before which just as many are missing as were
/// told. Numbers that never were get slots behind the last.
pub(crate) fn of_spans<'a>(spans: &'a [Span], sid: &SidRecord) -> Cow<'a, [Span]> {
    if sid.renumbered.is_empty() {
        return Cow::Borrowed(spans);
    }
    let (runs, slots) = (deliverable(sid), Slots::of(sid));
    let (mut out, mut done, mut never) = (Vec::with_capacity(spans.len()), 0, sid.last_number);
    for span in spans {
        let (mut number, mut told) = (span.first, span.gap_before);
        while number <= span.last {
            let left = span.last - number + 1;
            let (first, count) = match find(&runs, &slots, number, done, told) {
                Some((slot, run)) => (slot, left.min(run.last - slot + 1)),
                None => (never + 1, left),
            };
            let last = first + count - 1;
            out.push(Span { first, last, gap_before: told });
            if first > sid.last_number {
                never = last;
            } else {
                done = last;
            }
            (number, told) = (number + count, 0);
        }
    }
    Cow::Owned(out)
}

fn find(runs: &[Run], slots: &Slots, number: u64, done: u64, told: u64) -> Option<(u64, Run)> {
    let from = runs.partition_point(|run| run.last <= done);
    let slot = |run: &Run| run.slot(number).map(|slot| (slot, *run));
    let mut first = None;
    for (slot, run) in runs[from..].iter().filter_map(slot).filter(|(slot, _)| *slot > done) {
        let missing = slots.between(done, slot);
        if missing == told {
            return Some((slot, run));
        }
        first = first.or(Some((slot, run)));
        if missing > told {
            break;
        }
    }
    first.or_else(|| runs.iter().find_map(slot))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(list: &[(u64, u64)]) -> Vec<NumberRange> {
        list.iter().map(|&(first, last)| NumberRange { first, last }).collect()
    }

    fn record(last_number: u64, renumbered: &[(u64, u64)]) -> SidRecord {
        let start = |&(from, number): &(u64, u64)| Renumbering { from, number };
        SidRecord {
            sid: 1,
            channel: "trade".to_owned(),
            sequenced: true,
            last_number,
            control_slots: Vec::new(),
            withheld: Vec::new(),
            renumbered: renumbered.iter().map(start).collect(),
            first_position: 1,
            last_position: last_number,
        }
    }

    fn spans(list: &[(u64, u64, u64)]) -> Vec<Span> {
        list.iter().map(|&(first, last, gap_before)| Span { first, last, gap_before }).collect()
    }

    #[test]
    fn ranges_are_subtracted() {
        let got = subtract(&ranges(&[(1, 5), (8, 20)]), &ranges(&[(2, 2), (5, 9), (12, 13)]));
        assert_eq!(got, ranges(&[(1, 1), (3, 4), (10, 11), (14, 20)]));
        assert_eq!(last_outside(9, &[&ranges(&[(8, 9)]), &ranges(&[(5, 7)])]), 4);
        assert_eq!(last_outside(2, &[&ranges(&[(1, 2)])]), 0);
    }

    #[test]
    fn numbers_sent_again_are_found_where_they_were_sent() {
        // 1 2 3 3 4 5 1 2 3 4 5 6
        let sid = record(12, &[(4, 3), (5, 4), (7, 1)]);
        assert_eq!(repeated(&sid), ranges(&[(4, 4), (7, 11)]));
        assert_eq!(highest_number(&sid), 6);
        let all = spans(&[(1, 3, 0), (3, 5, 0), (1, 6, 0)]);
        let want = [(1, 3, 0), (4, 4, 0), (5, 6, 0), (7, 12, 0)];
        assert_eq!(of_spans(&all, &sid).as_ref(), spans(&want));
        // The first 3 was lost and the second told so.
        let lost = spans(&[(1, 2, 0), (3, 3, 1), (4, 5, 0)]);
        assert_eq!(of_spans(&lost, &sid)[1], Span { first: 4, last: 4, gap_before: 1 });
        // Nothing has number 9.
        assert_eq!(of_spans(&spans(&[(9, 9, 0)]), &sid)[0].first, 13);
    }

    #[test]
    fn jumps_ahead_are_no_holes() {
        let sid = record(4, &[(1, 7), (3, 20)]);
        let all = spans(&[(7, 8, 0), (20, 21, 0)]);
        assert_eq!(of_spans(&all, &sid).as_ref(), spans(&[(1, 2, 0), (3, 4, 0)]));
        assert_eq!((repeated(&sid), highest_number(&sid)), (Vec::new(), 21));
    }

    #[test]
    fn holes_show_only_before_a_number_above_all() {
        // 1 2 [3] 4 2 [5]: 3 shows, 5 does not.
        let mut sid = record(6, &[(5, 2), (6, 5)]);
        sid.withheld = ranges(&[(3, 3), (6, 6)]);
        let slots = Slots::of(&sid);
        assert_eq!((slots.up_to(6), slots.between(2, 4)), (4, 1));
        assert_eq!((slots.hidden.total(), slots.repeats.total(), slots.last_data), (2, 1, 5));
        sid.sequenced = false;
        assert_eq!(Slots::of(&sid).hidden.total(), 2);
    }
}
