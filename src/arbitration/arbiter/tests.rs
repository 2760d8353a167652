//! A pair over two scripted lines in virtual time: the lines, and single things they do.

use std::collections::VecDeque;

use super::*;
use crate::arbitration::Arbitration;
use crate::ids::{Seq, ShardId, Sid};
use crate::sequence::Sequences;

const SID: Sid = Sid::new(1);
const SETTINGS: ArbiterSettings = ArbiterSettings {
    policy: ArbitrationPolicy {
        ticker: Arbitration::FirstWins,
        trade: Arbitration::FirstWins,
        lifecycle: Arbitration::FirstWins,
    },
    window: Duration::from_millis(500),
    messages: 1_000,
};

/// What the exchange puts on one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Frame {
    /// With its number and what it says.
    Data(u64, u64),
    /// A reply: a number and nothing to deliver.
    Reply(u64),
}

/// One line: the exchange's count, what is on its way, and the engine's sequences.
struct Wire {
    up: bool,
    seq: u64,
    /// The last message read.
    read: u64,
    on_way: VecDeque<Frame>,
    sequences: Sequences,
}

struct Pair {
    role: Role,
    arbiter: Arbiter,
    wires: [Wire; 2],
    counters: ArbitrationCounters,
    now: Instant,
    /// How many different things the messages say.
    words: u64,
    held: bool,
    delivered: Vec<u64>,
    told: u64,
    marks: Vec<(Continuity, u64)>,
}

impl Pair {
    fn new(role: Role) -> Self {
        Self::with(role, SETTINGS)
    }

    fn with(role: Role, settings: ArbiterSettings) -> Self {
        let wire = || Wire {
            up: false,
            seq: 0,
            read: 0,
            on_way: VecDeque::new(),
            sequences: Sequences::new(0),
        };
        let mut pair = Self {
            role,
            arbiter: Arbiter::new(role, settings),
            wires: [wire(), wire()],
            counters: ArbitrationCounters::default(),
            now: crate::clock::now(),
            words: u64::MAX,
            held: false,
            delivered: Vec::new(),
            told: 0,
            marks: Vec::new(),
        };
        Line::BOTH.into_iter().for_each(|line| pair.up(line));
        pair
    }

    fn up(&mut self, line: Line) {
        self.arbiter.up(line, &self.counters);
        let wire = &mut self.wires[line.index()];
        (wire.up, wire.seq, wire.read) = (true, 0, 0);
        wire.sequences = Sequences::new(0);
    }

    fn down(&mut self, line: Line) {
        let wire = &mut self.wires[line.index()];
        wire.up = false;
        wire.on_way.clear();
        self.arbiter.down(line, wire.sequences.untold(), self.now, &self.counters);
    }

    /// The exchange sends a message on both lines, but for those it loses.
    fn send(&mut self, says: u64, lost: [bool; 2]) {
        for (wire, lost) in self.wires.iter_mut().zip(lost).filter(|(wire, _)| wire.up) {
            wire.seq += 1;
            if !lost {
                wire.on_way.push_back(Frame::Data(wire.seq, says));
            }
        }
    }

    fn reply(&mut self, line: Line, lost: bool) {
        let wire = &mut self.wires[line.index()];
        wire.seq += 1;
        if !lost {
            wire.on_way.push_back(Frame::Reply(wire.seq));
        }
    }

    /// The engine reads so many frames of a line; the last `drops` that go on find no room.
    fn read(&mut self, line: Line, most: usize, drops: usize) {
        let wire = &mut self.wires[line.index()];
        let mut batch = Buffer::empty(ShardId::new(0), 0);
        batch.received_at.mono = self.now;
        let count = most.min(wire.on_way.len());
        for frame in wire.on_way.drain(..count) {
            match frame {
                Frame::Reply(seq) => drop(wire.sequences.observe(SID, Seq::new(seq))),
                Frame::Data(seq, says) => {
                    wire.read = says;
                    let text = text(self.role, says % self.words);
                    let start = batch.bytes.len();
                    batch.bytes.extend_from_slice(text.as_bytes());
                    let (mut mark, mut number) = ((Continuity::Next, 0), None);
                    if self.role != Role::Ticker {
                        let observed = wire.sequences.observe(SID, Seq::new(seq));
                        let taken = wire.sequences.take(SID, observed);
                        (mark, number) = ((taken.continuity, taken.gap_size), Some(Seq::new(seq)));
                    }
                    batch.entries.push(Entry {
                        start,
                        end: batch.bytes.len(),
                        sid: Some(SID),
                        seq: number,
                        gap_size: mark.1,
                        continuity: mark.0,
                        suspect: false,
                    });
                }
            }
        }
        if batch.entries.is_empty() {
            return;
        }
        let judged = (!self.held).then_some(self.now);
        let look = Look { judged, is_drained: self.wires[line.index()].on_way.is_empty() };
        self.arbiter.judge(line, &mut batch, look, &self.counters);
        let kept = batch.entries.len().saturating_sub(drops);
        self.arbiter.give_back(&batch.entries.split_off(kept));
        for entry in &batch.entries {
            let text = std::str::from_utf8(&batch.bytes[entry.start..entry.end]).unwrap();
            let says = text.rsplit(['-', '"']).find_map(|part| part.parse().ok()).unwrap();
            self.delivered.push(says);
            self.told += entry.gap_size;
            self.marks.push((entry.continuity, entry.gap_size));
        }
    }

    fn later(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
    }

    fn read_all(&mut self) {
        Line::BOTH.into_iter().for_each(|line| self.read(line, usize::MAX, 0));
    }

    /// What is left in the end.
    fn finish(&mut self) -> u64 {
        self.arbiter.finish(&self.counters)
    }

    fn line(&self, line: Line) -> (u64, u64) {
        let counters = self.counters.line(self.role, line).unwrap();
        (counters.first.total(), counters.second.total())
    }
}

fn text(role: Role, says: u64) -> String {
    match role {
        Role::Trade => format!(r#"{{"type":"trade","msg":{{"trade_id":"t-{says}"}}}}"#),
        _ => format!(r#"{{"type":"ticker","sid":1,"msg":{{"Clock":7,"t":"t-{says}"}}}}"#),
    }
}

const NONE: [bool; 2] = [false, false];
const ON_A: [bool; 2] = [true, false];
const ON_B: [bool; 2] = [false, true];
const ON_BOTH: [bool; 2] = [true, true];

#[test]
fn each_message_goes_on_once_and_the_faster_line_wins() {
    for role in [Role::Ticker, Role::Trade, Role::Lifecycle] {
        let mut pair = Pair::new(role);
        for says in 1..=10 {
            pair.send(says, NONE);
            pair.read(Line::B, 1, 0);
            pair.later(5);
            pair.read(Line::A, 1, 0);
        }
        assert_eq!(pair.delivered, (1..=10).collect::<Vec<_>>(), "{role}");
        assert_eq!((pair.line(Line::A), pair.line(Line::B)), ((0, 10), (10, 0)));
        assert_eq!(pair.counters.duplicates_dropped.total(), 10);
        let mut lead = crate::spread::Durations::default();
        pair.counters.line(role, Line::B).unwrap().lead.add_to(&mut lead);
        assert_eq!(lead.count(), 10);
        assert!((5_000_000..6_250_000).contains(&lead.quantile(0.5)), "{lead:?}");
        assert_eq!(pair.marks[0].0, Continuity::First);
        assert!(pair.marks[1..].iter().all(|mark| *mark == (Continuity::Next, 0)));
    }
}

#[test]
fn what_one_line_lost_is_filled_and_what_both_lost_is_told() {
    let mut pair = Pair::new(Role::Trade);
    pair.send(1, NONE);
    pair.send(2, ON_A);
    pair.send(3, ON_BOTH);
    pair.send(4, NONE);
    pair.read_all();
    assert_eq!(pair.delivered, [1, 4, 2]);
    assert_eq!(pair.told, 0, "B has just passed it");
    pair.send(5, ON_B);
    pair.read_all();
    assert_eq!(pair.marks.last(), Some(&(Continuity::Gap, 1)));
    assert_eq!((pair.finish(), pair.counters.missed_by_both.total()), (0, 1));
}

#[test]
fn a_hole_is_told_when_the_window_is_over() {
    let mut pair = Pair::new(Role::Trade);
    pair.send(1, NONE);
    pair.read_all();
    pair.send(2, ON_A);
    pair.send(3, NONE);
    pair.read(Line::A, 9, 0);
    pair.later(499);
    pair.send(4, NONE);
    pair.read(Line::A, 9, 0);
    assert_eq!(pair.told, 0);
    pair.later(1);
    pair.send(5, NONE);
    pair.held = true;
    pair.read(Line::A, 9, 0);
    assert_eq!(pair.told, 0, "while B is held back nothing is said of it");
    pair.held = false;
    pair.send(6, NONE);
    pair.read(Line::A, 9, 0);
    assert_eq!((pair.told, pair.counters.late.total()), (1, 0));
    pair.read(Line::B, 9, 0);
    assert_eq!(pair.delivered, [1, 3, 4, 5, 6, 2], "late is better than never");
    assert_eq!(pair.counters.late.total(), 1);
    assert_eq!(pair.finish(), 0);
}

#[test]
fn a_line_that_is_down_is_not_waited_for_and_comes_back_without_a_gap() {
    let mut pair = Pair::new(Role::Trade);
    pair.send(1, NONE);
    pair.read_all();
    pair.down(Line::B);
    pair.send(2, NONE);
    pair.send(3, ON_A);
    pair.send(4, NONE);
    pair.read_all();
    assert_eq!(pair.marks.last(), Some(&(Continuity::Gap, 1)), "told on the very next");
    pair.up(Line::B);
    pair.send(5, NONE);
    pair.send(6, ON_A);
    pair.send(7, NONE);
    pair.read_all();
    pair.send(8, NONE);
    pair.read_all();
    assert_eq!(pair.delivered, [1, 2, 4, 5, 7, 6, 8]);
    assert_eq!((pair.told, pair.finish()), (1, 0));
    let firsts = pair.marks.iter().filter(|(mark, _)| *mark == Continuity::First);
    assert_eq!(firsts.count(), 1, "the stream was never down");
}

#[test]
fn after_both_were_down_the_stream_begins_anew() {
    let mut pair = Pair::new(Role::Trade);
    pair.send(1, NONE);
    pair.read_all();
    Line::BOTH.into_iter().for_each(|line| pair.down(line));
    Line::BOTH.into_iter().for_each(|line| pair.up(line));
    pair.send(2, NONE);
    pair.read_all();
    assert_eq!(pair.marks, [(Continuity::First, 0), (Continuity::First, 0)]);
}

#[test]
fn replies_that_take_numbers_are_no_loss_seen_or_not() {
    let mut pair = Pair::new(Role::Trade);
    pair.send(1, NONE);
    pair.reply(Line::A, false);
    pair.reply(Line::B, true);
    pair.send(2, NONE);
    pair.reply(Line::A, true);
    pair.send(3, NONE);
    pair.read_all();
    pair.send(4, NONE);
    pair.read_all();
    assert_eq!(pair.delivered, [1, 2, 3, 4]);
    assert_eq!((pair.told, pair.finish()), (0, 0));
}

#[test]
fn what_finds_no_room_is_the_pairs_debt() {
    for role in [Role::Ticker, Role::Trade] {
        let mut pair = Pair::new(role);
        (1..=3).for_each(|says| pair.send(says, NONE));
        pair.read(Line::A, 9, 2);
        assert_eq!(pair.delivered, [1]);
        pair.read(Line::B, 9, 0);
        assert_eq!(pair.delivered, [1], "its copies are not news");
        pair.send(4, NONE);
        pair.read(Line::B, 9, 0);
        assert_eq!(pair.marks.last(), Some(&(Continuity::Gap, 2)));
    }
}

#[test]
fn repeated_numbers_are_dropped_and_a_late_one_fills_its_hole() {
    let mut pair = Pair::new(Role::Trade);
    (1..=4).for_each(|says| pair.send(says, [says == 2, says > 1]));
    pair.wires[0].on_way.extend([Frame::Data(4, 4), Frame::Data(1, 1), Frame::Data(2, 2)]);
    pair.read_all();
    assert_eq!(pair.delivered, [1, 3, 4, 2]);
    assert_eq!(pair.marks.last(), Some(&(Continuity::Backward, 0)));
    pair.send(5, NONE);
    pair.read_all();
    assert_eq!((pair.told, pair.finish()), (0, 0));
}

#[test]
fn what_comes_with_an_old_number_and_finds_no_room_is_lost_all_the_same() {
    let mut pair = Pair::new(Role::Trade);
    pair.send(1, NONE);
    pair.read_all();
    (2..=3).for_each(|says| pair.send(says, [says == 2, says == 2]));
    pair.wires[0].on_way.push_back(Frame::Data(2, 2));
    pair.read(Line::A, 9, 1);
    assert_eq!(pair.delivered, [1, 3]);
    pair.send(4, NONE);
    pair.read_all();
    assert_eq!((pair.told, pair.counters.missed_by_both.total()), (1, 0));
}

#[test]
fn what_is_forgotten_of_the_lines_is_lost_first() {
    let mut pair = Pair::new(Role::Trade);
    pair.send(1, NONE);
    pair.read_all();
    pair.send(2, ON_A);
    pair.send(3, NONE);
    pair.read(Line::A, 9, 1);
    // Three found no room, and of two B will not bring any more.
    pair.arbiter.renew(&pair.counters);
    assert_eq!(pair.finish(), 2);
    assert_eq!(pair.counters.missed_by_both.total(), 1);
}

#[test]
fn what_has_no_identity_goes_on_as_it_is() {
    let mut pair = Pair::new(Role::Trade);
    let mut batch = Buffer::empty(ShardId::new(0), 0);
    batch.bytes.extend_from_slice(b"{\"type\":\"new\"}");
    let entry = Entry {
        start: 0,
        end: batch.bytes.len(),
        sid: None,
        seq: None,
        gap_size: 0,
        continuity: Continuity::Next,
        suspect: false,
    };
    batch.entries.extend([entry, entry]);
    pair.arbiter.judge(
        Line::A,
        &mut batch,
        Look { judged: None, is_drained: true },
        &pair.counters,
    );
    assert_eq!(batch.entries.len(), 2);
}

#[test]
fn memory_is_bounded_and_what_is_forgotten_too_early_is_counted() {
    let mut pair = Pair::with(Role::Trade, ArbiterSettings { messages: 16, ..SETTINGS });
    (1..=100).for_each(|says| pair.send(says, NONE));
    for _ in 0..100 {
        pair.read(Line::A, 1, 0);
    }
    assert!(pair.arbiter.window.len() <= 17);
    assert_eq!(pair.counters.cut_short.total(), 83);
    pair.read(Line::B, usize::MAX, 0);
    assert_eq!(pair.delivered.len(), 100 + 84, "all but those remembered come twice");
}

#[test]
fn time_forgets_only_what_both_lines_could_have_brought() {
    let mut pair = Pair::new(Role::Trade);
    pair.send(1, NONE);
    pair.read_all();
    pair.send(2, NONE);
    pair.read(Line::A, 9, 0);
    // The process stands still; then A is read before B.
    pair.later(60_000);
    pair.send(3, NONE);
    pair.read_all();
    assert_eq!(pair.delivered, [1, 2, 3]);
    // And again, with more than one look takes in.
    (4..=5).for_each(|says| pair.send(says, NONE));
    pair.read(Line::A, 9, 0);
    pair.later(60_000);
    pair.send(6, NONE);
    pair.read(Line::A, 9, 0);
    (0..3).for_each(|_| pair.read(Line::B, 1, 0));
    assert_eq!(pair.delivered, [1, 2, 3, 4, 5, 6]);
    // Nor where a line has never brought all that came.
    (7..=8).for_each(|says| pair.send(says, NONE));
    pair.down(Line::B);
    pair.up(Line::B);
    (9..=11).for_each(|says| pair.send(says, NONE));
    pair.read(Line::A, 9, 0);
    pair.read(Line::B, 1, 0);
    for says in 12..=13 {
        pair.later(60_000);
        pair.send(says, NONE);
        pair.read(Line::A, 9, 0);
    }
    pair.read(Line::B, 9, 0);
    assert_eq!(pair.delivered, (1..=13).collect::<Vec<_>>());
    pair.later(11_000);
    (14..=15).for_each(|says| {
        pair.send(says, NONE);
        pair.read_all();
    });
    assert!(pair.arbiter.window.len() <= 2, "the old ones are gone");
    assert_eq!(pair.counters.cut_short.total(), 0);
}

mod drawn;
mod renewal;
mod repeats;
