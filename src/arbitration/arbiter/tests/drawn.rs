//! Many drawn lives of a pair's lines, held against what a naive account of them says.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// What happens next.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Send([bool; 2]),
    Reply(Line, bool),
    Read(Line, usize, usize),
    Later(u64),
    /// A line goes and comes back, some steps later.
    Down(Line),
    Up(Line),
}

fn steps(loss: u32, replies: bool) -> impl Strategy<Value = Vec<Step>> {
    let line = prop::sample::select(Line::BOTH.to_vec());
    let lost = prop::bool::weighted(f64::from(loss) / 100.0);
    let lost_reply = prop::bool::weighted(if replies { 0.2 } else { 0.0 });
    let goes = move |line| if replies { Step::Later(0) } else { Step::Down(line) };
    prop::collection::vec(
        prop_oneof![
            12 => [lost, lost].prop_map(Step::Send),
            1 => (line.clone(), lost_reply).prop_map(|(line, lost)| Step::Reply(line, lost)),
            8 => (line.clone(), 1usize..6).prop_map(|(l, most)| Step::Read(l, most, 0)),
            1 => (line.clone(), 1usize..6, 1usize..3).prop_map(|(l, m, d)| Step::Read(l, m, d)),
            2 => (0u64..5).prop_map(Step::Later),
            1 => line.clone().prop_map(goes),
            2 => line.prop_map(Step::Up),
        ],
        1..400,
    )
}

/// The naive account: for each message the lines it was sent on, and on which it was lost.
#[derive(Default)]
pub(super) struct Account {
    pub(super) sent: u64,
    lost: [BTreeSet<u64>; 2],
    pub(super) lost_on_all: BTreeSet<u64>,
    /// Since which message each line is up.
    since: [u64; 2],
    dropped: u64,
    /// Replies lost, which may be taken for messages.
    replies: u64,
    /// Lines went before it was known where they were.
    unplaced: bool,
}

impl Account {
    /// Of lines that are both up from the first message on.
    pub(super) fn new() -> Self {
        Self { since: [1, 1], ..Self::default() }
    }

    /// What must be told.
    pub(super) fn lost(&self) -> u64 {
        self.dropped + crate::ids::widen(self.lost_on_all.len())
    }

    /// What may be told: a lost reply shifts the numbers of what was lost after it, until a message
    /// both lines bring.
    fn most_told(&self) -> u64 {
        if self.replies > 0 || self.unplaced { u64::MAX } else { self.lost() }
    }

    pub(super) fn take(&mut self, pair: &mut Pair, step: Step) {
        match step {
            Step::Send(lost) => {
                self.sent += 1;
                let up = [pair.wires[0].up, pair.wires[1].up];
                let all = up.iter().zip(lost).all(|(&up, lost)| !up || lost);
                if all {
                    self.lost_on_all.insert(self.sent);
                }
                for (list, lost) in self.lost.iter_mut().zip(lost) {
                    list.extend(lost.then_some(self.sent));
                }
                pair.send(self.sent, lost);
            }
            Step::Reply(line, lost) if pair.wires[line.index()].up => {
                self.replies += u64::from(lost);
                pair.reply(line, lost);
            }
            Step::Reply(..) => {}
            Step::Read(line, most, drops) => {
                let before = pair.delivered.len();
                let (first, _) = pair.line(line);
                pair.read(line, most, drops);
                let went_on = pair.line(line).0 - first;
                self.dropped += went_on - crate::ids::widen(pair.delivered.len() - before);
            }
            Step::Later(ms) => pair.later(ms),
            Step::Down(line) => {
                // What is on its way on this line the other has, too.
                let (own, other) = (&pair.wires[line.index()], &pair.wires[line.other().index()]);
                let says = |frame: &Frame| match frame {
                    Frame::Data(_, says) => Some(*says),
                    Frame::Reply(_) => None,
                };
                let on_way: Vec<u64> = own.on_way.iter().filter_map(says).collect();
                // Or was lost where nothing after it was read.
                let oldest = own.read.max(self.since[line.index()] - 1) + 1;
                // A line that goes before it brought anything the other had was nowhere: what it
                // alone brought may be told as lost, too.
                let is_placed = |line| pair.arbiter.coverage.is_placed(line);
                self.unplaced |= own.up && !Line::BOTH.into_iter().all(is_placed);
                if own.up && other.up && self.since[line.other().index()] <= oldest {
                    let lost =
                        on_way.iter().filter(|says| self.lost[line.other().index()].contains(says));
                    self.lost_on_all.extend(lost);
                    self.lost[line.index()].extend(&on_way);
                    pair.down(line);
                }
            }
            Step::Up(line) if !pair.wires[line.index()].up => {
                pair.up(line);
                self.since[line.index()] = self.sent + 1;
            }
            Step::Up(_) => {}
        }
    }
}

fn check(steps: &[Step]) -> Result<(), TestCaseError> {
    // Numbers that shift and lines that reconnect make no other messages of what is the same.
    [Role::Trade, Role::Lifecycle].into_iter().try_for_each(|role| check_role(role, steps))
}

fn check_role(role: Role, steps: &[Step]) -> Result<(), TestCaseError> {
    let mut pair = Pair::new(role);
    let mut account = Account::new();
    account.take(&mut pair, Step::Send(NONE));
    pair.read_all();
    for &step in steps {
        account.take(&mut pair, step);
        prop_assert!(pair.told <= account.most_told());
    }
    for line in Line::BOTH {
        account.take(&mut pair, Step::Up(line));
    }
    for _ in 0..2 {
        account.take(&mut pair, Step::Send(NONE));
        pair.read_all();
    }
    let mut times = BTreeMap::new();
    pair.delivered.iter().for_each(|says| *times.entry(*says).or_insert(0) += 1);
    // Where words may be repeated, numbers that shift may make two messages of one.
    let once = role == Role::Trade || account.replies == 0;
    prop_assert!(!once || times.values().all(|&times| times == 1), "twice: {times:?}");
    let reached = account.sent - crate::ids::widen(account.lost_on_all.len());
    let accounted = crate::ids::widen(times.len()) + account.dropped;
    prop_assert!(accounted == reached || !once && accounted > reached, "{accounted} of {reached}");
    let told = pair.told + pair.finish();
    let (lost, most) = (account.lost(), account.most_told());
    prop_assert!((lost..=most).contains(&told), "{told} of {lost}");
    prop_assert_eq!(pair.counters.late.total(), 0);
    Ok(())
}

proptest! {
    #![proptest_config(crate::property::cases(3_000))]

    /// Two lossy lines that lag, drop, reply and reconnect: each message one of them brought goes
    /// on exactly once, and what is told is exactly what neither brought and what found no room.
    #[test]
    fn lossy_lines_make_one_whole_stream(steps in steps(10, false)) {
        check(&steps)?;
    }

    #[test]
    fn very_lossy_lines_make_one_honest_stream(steps in steps(45, false)) {
        check(&steps)?;
    }

    /// Replies that are lost take numbers, too: what is told is never less than what was lost.
    /// (Where a line also ends before the other shows what they were, that cannot be known.)
    #[test]
    fn lost_replies_hide_no_loss(steps in steps(20, true)) {
        check(&steps)?;
    }
}
