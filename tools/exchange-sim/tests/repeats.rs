//! The auditor under faults of data: frames withheld, repeated, sent under older numbers, numbers
//! started anew; and the judge of redundant lines.

#![allow(
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use std::net::SocketAddr;

use exchange_sim::{
    Arbitration, Audit, ConnectionRecord, Content, Contents, Ended, Ledger, LineCopy, NumberRange,
    Renumbering, SidRecord,
};
use fastrand::Rng;

fn peer() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 1_000))
}

/// An exchange's side of one sid: what it puts on the wire, and its record.
struct Sender {
    record: SidRecord,
    number: u64,
    /// Number and whether it is data, of what was written.
    wire: Vec<(u64, bool)>,
}

impl Sender {
    fn new(sequenced: bool) -> Self {
        let record = SidRecord {
            sid: 1,
            channel: "trade".to_owned(),
            sequenced,
            last_number: 0,
            control_slots: Vec::new(),
            withheld: Vec::new(),
            renumbered: Vec::new(),
            first_position: 1,
            last_position: 0,
        };
        Self { record, number: 0, wire: Vec::new() }
    }

    fn slot(&mut self) -> NumberRange {
        self.record.last_number += 1;
        self.record.last_position += 1;
        NumberRange { first: self.record.last_number, last: self.record.last_number }
    }

    fn renumber(&mut self, from: u64, number: u64) {
        self.record.renumbered.retain(|known| known.from != from);
        self.record.renumbered.push(Renumbering { from, number });
    }

    fn send(&mut self, written: bool) {
        let slot = self.slot();
        self.number += 1;
        if written {
            self.wire.push((self.number, true));
        } else {
            self.record.withheld.push(slot);
        }
    }

    fn answer(&mut self) {
        let slot = self.slot();
        self.number += 1;
        self.record.control_slots.push(slot);
        self.wire.push((self.number, false));
    }

    fn again(&mut self, number: u64) {
        let slot = self.slot().first;
        self.renumber(slot, number);
        self.renumber(slot + 1, self.number + 1);
        self.wire.push((number, true));
    }

    /// Whether the last frame was written: only behind such a one numbers are used again.
    fn may_repeat(&self) -> bool {
        let last = self.record.last_number;
        self.number > 0 && self.record.withheld.last().is_none_or(|at| at.last < last)
    }

    fn restart(&mut self) {
        if self.may_repeat() {
            self.number = 0;
            self.renumber(self.record.last_number + 1, 1);
        }
    }

    fn ledger(self, ended: Ended) -> Ledger {
        let peer = peer();
        let sids = vec![self.record];
        Ledger {
            connections: vec![ConnectionRecord {
                accept_number: 1,
                peer,
                upgraded: true,
                unnumbered: 0,
                ended,
                sids,
            }],
        }
    }
}

/// An honest client: numbers above all seen before show holes; repeats are worth nothing.
#[derive(Default)]
struct Receiver {
    audit: Audit,
    seen: u64,
    owed: u64,
}

impl Receiver {
    fn take(&mut self, number: u64, data: bool, keep: bool) {
        let fresh = number > self.seen;
        if fresh {
            self.owed += number - self.seen - 1;
            self.seen = number;
        }
        match (data, keep) {
            (true, true) => {
                let gap = std::mem::take(&mut self.owed);
                self.audit.delivered(1, 1, 1, Some(number), gap, b"");
            }
            (true, false) => self.owed += u64::from(fresh),
            (false, _) => {}
        }
    }

    fn finish(mut self) -> Audit {
        self.audit.up(1, 1, peer());
        self.audit.owed(1, 1, 1, self.owed);
        self.audit
    }
}

fn random_wire(rng: &mut Rng) -> Sender {
    let mut sender = Sender::new(true);
    for _ in 0..rng.usize(0..120) {
        match rng.u8(0..20) {
            0..2 => sender.send(false),
            2 => sender.answer(),
            3 if sender.may_repeat() => sender.again(sender.number),
            4 if sender.may_repeat() => sender.again(rng.u64(1..=sender.number)),
            5 if rng.u8(0..4) == 0 => sender.restart(),
            _ => sender.send(true),
        }
    }
    sender
}

#[test]
fn honest_clients_settle_under_every_fault_of_data() {
    let (mut repeats, mut hidden) = (0, 0);
    for seed in 0..3_000 {
        let mut rng = Rng::with_seed(seed);
        let sender = random_wire(&mut rng);
        let lossy = rng.bool();
        let mut receiver = Receiver::default();
        for &(number, data) in &sender.wire {
            let keep = !(lossy && rng.u8(0..5) == 0);
            receiver.take(number, data, keep);
        }
        repeats += sender.record.renumbered.len();
        let verdict = receiver.finish().settle(&sender.ledger(Ended::ServerClosed(1_000)));
        assert_eq!(verdict.unaccounted, 0, "seed {seed}: {:?}", verdict.findings);
        let sum = verdict.delivered + verdict.covered + verdict.undetectable;
        assert_eq!(sum, verdict.sent, "seed {seed}: {verdict:?}");
        hidden += verdict.undetectable;
    }
    assert!(repeats > 1_000 && hidden > 500, "{repeats} {hidden}");
}

/// A client that hands one fresh message less over without a word is always found out.
#[test]
fn a_swallowed_message_is_found_among_repeats() {
    let mut caught = 0;
    for seed in 0..2_000 {
        let mut rng = Rng::with_seed(seed);
        let sender = random_wire(&mut rng);
        let (mut receiver, mut swallowed) = (Receiver::default(), false);
        for (at, &(number, data)) in sender.wire.iter().enumerate() {
            let fresh = number > receiver.seen;
            // Its repeat right behind it makes up for it.
            let next = sender.wire[at + 1..].iter().find(|(_, data)| *data);
            let made_up = next.is_some_and(|&(next, _)| next == number);
            if data && fresh && !made_up && !swallowed && rng.u8(0..20) == 0 {
                receiver.take(number, false, false);
                swallowed = true;
                continue;
            }
            receiver.take(number, data, true);
        }
        let verdict = receiver.finish().settle(&sender.ledger(Ended::ServerClosed(1_000)));
        assert_eq!(verdict.unaccounted > 0, swallowed, "seed {seed}: {verdict:?}");
        caught += u32::from(swallowed);
    }
    assert!(caught > 1_000, "{caught}");
}

#[test]
fn a_repeat_is_no_licence_to_deliver_twice() {
    for (copies, unaccounted) in [(1, 0), (2, 0), (3, 1)] {
        let mut sender = Sender::new(true);
        sender.send(true);
        sender.again(1);
        sender.send(true);
        let mut receiver = Receiver::default();
        (0..copies).for_each(|_| receiver.take(1, true, true));
        receiver.take(2, true, true);
        let verdict = receiver.finish().settle(&sender.ledger(Ended::Open));
        assert_eq!(verdict.unaccounted, unaccounted, "{copies}: {verdict:?}");
    }
}

#[test]
fn what_is_withheld_last_shows_nowhere() {
    let mut sender = Sender::new(true);
    sender.send(true);
    sender.send(false);
    sender.send(false);
    let mut receiver = Receiver::default();
    receiver.take(1, true, true);
    let verdict = receiver.finish().settle(&sender.ledger(Ended::Open));
    assert_eq!((verdict.undetectable, verdict.unaccounted), (2, 0), "{verdict:?}");
}

#[test]
fn a_repeated_ticker_is_a_message_like_any_other() {
    for (told, unaccounted) in [(1, 0), (0, 1)] {
        let mut sender = Sender::new(false);
        sender.send(true);
        sender.again(1);
        sender.send(true);
        let mut audit = Audit::default();
        audit.up(1, 1, peer());
        audit.delivered(1, 1, 1, Some(1), 0, b"");
        audit.delivered(1, 1, 1, Some(2), told, b"");
        let verdict = audit.settle(&sender.ledger(Ended::Open));
        assert_eq!(verdict.unaccounted, unaccounted, "{verdict:?}");
    }
}

fn frame(content: u64) -> Vec<u8> {
    format!("{{\"type\":\"trade\",\"sid\":1,\"seq\":9,\"msg\":{{\"trade_id\":\"{content}\"}}}}\n")
        .into_bytes()
}

/// Contents `1..=n` on two lines; `lost` names line and content of those withheld.
fn contents(n: u64, lost: &[(u8, u64)]) -> Contents {
    let content = |number: u64| {
        let copy = |line: u8| LineCopy {
            line,
            peer: peer(),
            accept_number: line.into(),
            sid: 1,
            number,
            written: !lost.contains(&(line, number)),
        };
        let identity = Content::identity_of(&frame(number)).unwrap();
        Content { channel: "trade", identity, copies: vec![copy(1), copy(2)] }
    };
    Contents { list: (1..=n).map(content).collect(), truncated: false }
}

fn judge(delivered: &[(u64, u64)], contents: &Contents) -> (u64, u64, u64) {
    let mut account = Arbitration::default();
    for &(content, gap) in delivered {
        account.delivered("trade", gap, &frame(content));
    }
    let verdict = account.settle("trade", contents);
    let sum = verdict.delivered + verdict.covered + verdict.undetectable;
    if verdict.unaccounted == 0 {
        assert_eq!(sum, verdict.sent);
        assert!(verdict.findings.is_empty());
    }
    (verdict.unaccounted, verdict.lost_on_all, verdict.lost_on_some)
}

#[test]
fn merged_lines_owe_only_what_all_of_them_lost() {
    let sent = contents(5, &[(1, 2), (2, 3), (1, 4), (2, 4)]);
    let all = [(1, 0), (2, 0), (3, 0), (5, 1)];
    assert_eq!(judge(&all, &sent), (0, 1, 2));
    let turned = [(1, 0), (3, 0), (2, 0), (5, 1)];
    assert_eq!(judge(&turned, &sent).0, 0, "lines may overtake each other");
    assert_eq!(judge(&[(1, 0), (2, 0), (3, 0), (5, 0)], &sent).0, 1, "not told");
    assert_eq!(judge(&[(1, 0), (2, 0), (3, 0), (5, 2)], &sent).0, 2, "told too much, too early");
    assert_eq!(judge(&[(1, 0), (2, 1), (3, 0), (5, 0)], &sent).0, 1, "told too early");
    assert_eq!(judge(&[(1, 0), (3, 0), (5, 1)], &sent).0, 1, "2 was there to be had");
    assert_eq!(judge(&[(1, 0), (1, 0), (2, 0), (3, 0), (5, 1)], &sent).0, 1, "twice");
    assert_eq!(judge(&[(1, 0), (9, 0), (2, 0), (3, 0), (5, 1)], &sent).0, 1, "never sent");
}

#[test]
fn of_two_that_say_the_same_the_one_written_nowhere_was_not_handed_over() {
    let mut sent = contents(4, &[(1, 1), (2, 1)]);
    sent.list[0].identity = sent.list[2].identity;
    assert_eq!(judge(&[(2, 1), (3, 0), (4, 0)], &sent), (0, 1, 0));
    assert_eq!(judge(&[(2, 0), (3, 0), (4, 1)], &sent), (0, 1, 0));
    assert_eq!(judge(&[(2, 1), (3, 0), (3, 0), (4, 0)], &sent).0, 1, "twice");
    sent.list[0].identity = Content::identity_of(&frame(1)).unwrap();
    assert_eq!(judge(&[(1, 0), (2, 0), (3, 0), (4, 1)], &sent).0, 1, "written nowhere");
}

#[test]
fn of_two_that_say_the_same_the_earlier_may_come_late_by_the_line_that_lags() {
    let mut sent = contents(200, &[(1, 1), (1, 150), (2, 150)]);
    sent.list[0].identity = sent.list[199].identity;
    // The line that lost the first is a hundred ahead of the one that brings it.
    let ahead = (2..=100).map(|content| (content, 0));
    let behind = (101..=200).filter(|&content| content != 150);
    let behind = behind.map(|content| (content, u64::from(content == 160)));
    let all: Vec<(u64, u64)> = ahead.chain([(200, 0)]).chain(behind).collect();
    assert_eq!(judge(&all, &sent), (0, 1, 1));
}

#[test]
fn what_all_lines_lost_at_the_end_shows_nowhere() {
    let sent = contents(3, &[(1, 3), (2, 3)]);
    assert_eq!(judge(&[(1, 0), (2, 0)], &sent), (0, 1, 0));
    let mut account = Arbitration::default();
    account.delivered("trade", 0, &frame(1));
    account.owed("trade", 1);
    let verdict = account.settle("trade", &sent);
    assert_eq!((verdict.unaccounted, verdict.covered, verdict.undetectable), (0, 1, 1));
}

#[test]
fn messages_without_a_number_may_come_once_each() {
    for (handed_over, unaccounted) in [(0, 0), (2, 0), (3, 1)] {
        let mut ledger = Sender::new(true).ledger(Ended::Open);
        ledger.connections[0].unnumbered = 2;
        let mut audit = Audit::default();
        audit.up(1, 1, peer());
        (0..handed_over).for_each(|_| audit.delivered(1, 1, 0, None, 0, b"{}"));
        let verdict = audit.settle(&ledger);
        assert_eq!(verdict.unaccounted, unaccounted, "{verdict:?}");
    }
}
