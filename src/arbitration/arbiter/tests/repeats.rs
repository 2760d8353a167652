//! Messages that say what an earlier one said: a market paused, resumed and paused. Only their
//! numbers tell them apart.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::drawn::{Account, Step};
use super::*;

/// Messages that are ten apart say the same; the first has come on both lines.
fn pair() -> Pair {
    let mut pair = Pair { words: 10, ..Pair::new(Role::Lifecycle) };
    pair.send(1, NONE);
    pair.read_all();
    pair
}

#[test]
fn what_comes_after_its_hole_was_told_is_not_taken_for_the_next_in_the_same_words() {
    let mut pair = pair();
    pair.send(2, ON_B);
    pair.send(3, NONE);
    pair.send(12, NONE);
    pair.read(Line::B, 2, 0);
    pair.later(600);
    pair.send(5, NONE);
    pair.read(Line::B, 1, 0);
    assert_eq!(pair.told, 1, "the hole is over");
    pair.read(Line::A, 4, 0);
    assert_eq!(pair.delivered, [1, 3, 2, 5, 2]);
    assert_eq!(pair.counters.late.total(), 1);
}

#[test]
fn a_hole_that_was_given_up_leaves_the_next_in_the_same_words_its_own() {
    let mut pair = pair();
    pair.send(2, ON_A);
    pair.read(Line::B, 1, 0);
    pair.send(3, NONE);
    pair.read(Line::A, 1, 0);
    pair.later(600);
    pair.send(4, NONE);
    pair.read(Line::A, 1, 0);
    pair.send(12, ON_B);
    pair.send(6, NONE);
    pair.read_all();
    assert_eq!(pair.delivered, [1, 2, 3, 4, 2, 6]);
    assert_eq!((pair.told, pair.finish()), (0, 0));
}

#[test]
fn numbers_that_jump_make_no_other_messages() {
    for line in Line::BOTH {
        let mut pair = pair();
        pair.wires[line.index()].seq += 100;
        for says in 2..40 {
            pair.send(says, NONE);
            pair.later(280);
            pair.read_all();
        }
        assert_eq!(pair.delivered.len(), 39, "{line:?}");
        assert_eq!((pair.told, pair.finish()), (0, 0), "{line:?}");
    }
}

#[test]
fn numbers_that_jump_beside_a_loss_are_found_out() {
    for (line, lost) in [(Line::A, ON_B), (Line::B, ON_A)] {
        let mut pair = pair();
        pair.wires[line.index()].seq += 100;
        for says in 2..80 {
            pair.send(says, if says == 2 { lost } else { NONE });
            pair.later(280);
            pair.read_all();
        }
        let twice = pair.delivered.len() - 79;
        assert!(twice < 8, "{line:?}: {twice}");
        let told = pair.told + pair.finish();
        assert!(told <= 100, "{line:?}: {told}");
    }
}

#[test]
fn words_from_while_a_line_was_away_are_not_those_it_begins_with() {
    let mut pair = pair();
    pair.down(Line::B);
    (2..=4).for_each(|says| pair.send(says, NONE));
    pair.read_all();
    pair.up(Line::B);
    pair.send(12, NONE);
    pair.read(Line::B, 1, 0);
    pair.read(Line::A, 1, 0);
    pair.send(6, ON_BOTH);
    pair.send(7, NONE);
    pair.read(Line::B, 1, 0);
    pair.read(Line::A, 1, 0);
    pair.send(8, NONE);
    pair.read_all();
    assert_eq!(pair.delivered, [1, 2, 3, 4, 2, 7, 8]);
    assert_eq!((pair.told, pair.finish()), (1, 0));
}

#[test]
fn words_of_a_stint_before_are_not_those_of_a_message_now() {
    for lost in [NONE, ON_A] {
        let mut pair = pair();
        pair.down(Line::A);
        pair.up(Line::A);
        pair.send(2, ON_B);
        (3..=4).for_each(|says| pair.send(says, NONE));
        pair.read_all();
        pair.later(1_000);
        pair.down(Line::A);
        pair.up(Line::A);
        pair.send(12, lost);
        pair.read(Line::B, 1, 0);
        (5..=6).for_each(|says| pair.send(says, NONE));
        pair.read_all();
        assert_eq!(pair.delivered, [1, 2, 3, 4, 2, 5, 6]);
        assert_eq!((pair.told, pair.finish()), (0, 0));
    }
}

#[test]
fn a_line_that_is_back_ahead_has_later_messages_than_the_one_behind() {
    let mut pair = pair();
    pair.down(Line::A);
    pair.arbiter.up(Line::A, &pair.counters);
    // Sent before it has subscribed.
    pair.send(2, NONE);
    pair.up(Line::A);
    (3..=3).chain(12..=12).chain(5..=5).for_each(|says| pair.send(says, NONE));
    pair.read(Line::A, 9, 0);
    pair.read(Line::B, 9, 0);
    assert_eq!(pair.delivered, [1, 3, 2, 5, 2]);
    assert_eq!((pair.told, pair.finish()), (0, 0));
}

#[test]
fn a_line_that_is_back_has_later_messages_than_those_before_it_subscribed() {
    let mut pair = pair();
    pair.down(Line::A);
    pair.up(Line::A);
    pair.send(2, ON_A);
    pair.wires[0].seq = 0;
    pair.read(Line::B, 1, 0);
    (3..=3).chain(12..=12).chain(5..=5).for_each(|says| pair.send(says, NONE));
    pair.read(Line::A, 9, 0);
    pair.read(Line::B, 9, 0);
    assert_eq!(pair.delivered, [1, 2, 3, 2, 5]);
    assert_eq!((pair.told, pair.finish()), (0, 0));
}

#[test]
fn a_line_that_was_up_first_may_begin_last() {
    let mut pair = Pair::new(Role::Lifecycle);
    (1..=3).for_each(|says| pair.send(says, ON_A));
    pair.wires[0].seq = 0;
    pair.read_all();
    pair.send(4, NONE);
    pair.read(Line::B, 1, 0);
    pair.read(Line::A, 1, 0);
    assert_eq!(pair.delivered, [1, 2, 3, 4]);
}

#[test]
fn a_line_that_is_back_takes_nothing_from_the_one_behind() {
    for met in [true, false] {
        let mut pair = Pair::new(Role::Lifecycle);
        if met {
            pair.send(1, NONE);
            pair.read_all();
            pair.down(Line::B);
            pair.up(Line::B);
        }
        (2..=7).for_each(|says| pair.send(says, NONE));
        pair.read(Line::A, 9, 0);
        pair.down(Line::A);
        pair.up(Line::A);
        pair.read(Line::B, 9, 0);
        pair.send(8, NONE);
        pair.read_all();
        let first = if met { 1 } else { 2 };
        assert_eq!(pair.delivered, (first..=8).collect::<Vec<_>>());
    }
}

#[test]
fn a_frame_that_comes_again_takes_no_later_copy_in_the_same_words() {
    for lost in [NONE, ON_B] {
        let mut pair = pair();
        pair.send(2, lost);
        pair.send(3, NONE);
        pair.send(12, NONE);
        pair.read(Line::B, 3, 0);
        pair.wires[0].on_way.insert(1, Frame::Data(2, 2));
        pair.read(Line::A, 4, 0);
        let expected: &[u64] = if lost == NONE { &[1, 2, 3, 2] } else { &[1, 3, 2, 2] };
        assert_eq!(pair.delivered, expected);
        assert_eq!((pair.told, pair.finish()), (0, 0));
    }
}

#[test]
fn what_came_late_takes_no_later_message_in_the_same_words() {
    let mut pair = pair();
    pair.send(2, ON_B);
    pair.send(3, NONE);
    pair.wires[0].on_way.make_contiguous().swap(0, 1);
    pair.read_all();
    pair.send(12, ON_A);
    pair.send(5, NONE);
    pair.read_all();
    pair.send(6, NONE);
    pair.read_all();
    assert_eq!(pair.delivered, [1, 3, 2, 5, 2, 6]);
    assert_eq!((pair.told, pair.finish()), (0, 0));
}

/// What is drawn, over few words: each is handed over as often as any line brought it. No line
/// loses all that lies between two messages of the same words, which would leave nothing to tell
/// them apart by. Where lines lag for longer than a hole waits, too much may be told.
fn check(steps: &[Step], words: u64, lagging: bool) -> Result<(), TestCaseError> {
    let mut pair = Pair { words, ..Pair::new(Role::Lifecycle) };
    let mut account = Account::new();
    account.take(&mut pair, Step::Send(NONE));
    pair.read_all();
    let mut in_a_row = [0; 2];
    for &step in steps {
        account.take(&mut pair, sparing(step, words, &mut in_a_row));
        let (told, lost) = (pair.told, account.lost());
        prop_assert!(lagging || told <= lost, "{told} of {lost}");
    }
    for _ in 0..2 {
        account.take(&mut pair, Step::Send(NONE));
        pair.read_all();
    }
    let mut times = BTreeMap::<u64, i64>::new();
    pair.delivered.iter().for_each(|word| *times.entry(*word).or_default() += 1);
    let brought = (1..=account.sent).filter(|says| !account.lost_on_all.contains(says));
    brought.for_each(|says| *times.entry(says % words).or_default() -= 1);
    prop_assert!(times.values().all(|&times| times == 0), "{times:?}");
    let (told, lost) = (pair.told + pair.finish(), account.lost());
    prop_assert!(told == lost || lagging && told > lost, "{told} of {lost}");
    prop_assert!(lagging || pair.counters.late.total() == 0);
    Ok(())
}

/// The step, unless a line would lose as many in a row as there are words.
fn sparing(step: Step, words: u64, in_a_row: &mut [u64; 2]) -> Step {
    let Step::Send(mut lost) = step else { return step };
    for (lost, in_a_row) in lost.iter_mut().zip(in_a_row) {
        *lost &= *in_a_row + 1 < words;
        *in_a_row = if *lost { *in_a_row + 1 } else { 0 };
    }
    Step::Send(lost)
}

/// Two lines that stay up, lose and lag, by so many milliseconds at most.
fn steps(later_ms: u64) -> impl Strategy<Value = Vec<Step>> {
    let line = prop::sample::select(Line::BOTH.to_vec());
    let lost = prop::bool::weighted(0.2);
    prop::collection::vec(
        prop_oneof![
            12 => [lost, lost].prop_map(Step::Send),
            1 => line.clone().prop_map(|line| Step::Reply(line, false)),
            8 => (line.clone(), 1usize..6).prop_map(|(l, most)| Step::Read(l, most, 0)),
            2 => (0..later_ms).prop_map(Step::Later),
        ],
        1..200,
    )
}

proptest! {
    #![proptest_config(crate::property::cases(3_000))]

    #[test]
    fn what_is_said_again_is_a_message_of_its_own(steps in steps(5), words in 2u64..8) {
        check(&steps, words, false)?;
    }

    #[test]
    fn what_is_said_again_is_handed_over_however_late(steps in steps(700), words in 2u64..8) {
        check(&steps, words, true)?;
    }
}
