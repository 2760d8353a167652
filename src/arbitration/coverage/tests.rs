//! Holes of two lines, line by line and slot by slot.

use super::*;

const WINDOW: Duration = Duration::from_millis(500);

struct Pair {
    coverage: Coverage,
    start: Instant,
}

impl Pair {
    fn new() -> Self {
        let mut coverage = Coverage::new(WINDOW);
        Line::BOTH.into_iter().for_each(|line| assert_eq!(coverage.up(line), 0));
        Self { coverage, start: crate::clock::now() }
    }

    fn at(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    /// A message after so many missing slots.
    fn first(&mut self, line: Line, missing: u64) -> Spot {
        let at = self.start;
        let (spot, lost) = self.coverage.pass(line, missing, true, at);
        assert_eq!(lost, 0);
        spot
    }

    /// The second copy of one the other line brought there; says what turns out to be lost.
    fn second(&mut self, line: Line, missing: u64, first: Spot) -> u64 {
        self.first(line, missing);
        self.coverage.align(line, first) + self.coverage.settle(None)
    }

    /// Both lines bring one message.
    fn meet(&mut self) {
        let spot = self.first(Line::A, 0);
        assert_eq!(self.second(Line::B, 0, spot), 0);
    }
}

#[test]
fn what_one_line_lost_the_other_fills() {
    let mut pair = Pair::new();
    pair.meet();
    let after = pair.first(Line::A, 2);
    assert_eq!(pair.coverage.settle(None), 0, "B may still bring them");
    pair.first(Line::B, 0);
    pair.first(Line::B, 0);
    assert_eq!(pair.second(Line::B, 0, after), 0);
}

#[test]
fn what_both_lost_is_told_once_in_full_or_in_part() {
    let mut pair = Pair::new();
    pair.meet();
    // Numbers 2 to 5 are missing on A, 4 to 6 on B.
    let six = pair.first(Line::A, 4);
    let _ = (pair.first(Line::B, 0), pair.first(Line::B, 0));
    let seven = pair.first(Line::A, 0);
    assert_eq!(pair.coverage.settle(None), 0);
    assert_eq!(pair.second(Line::B, 3, seven), 2);
    assert_ne!(six, seven);
    pair.meet();
    assert_eq!(pair.coverage.finish(), 0);
}

#[test]
fn a_hole_waits_for_the_window_and_no_longer() {
    let mut pair = Pair::new();
    pair.meet();
    pair.first(Line::A, 3);
    assert_eq!(pair.coverage.settle(Some(pair.at(499))), 0);
    assert_eq!(pair.coverage.settle(Some(pair.at(500))), 3);
    assert_eq!(pair.coverage.settle(Some(pair.at(9_000))), 0);
    // B brings them after all: late, and nothing to tell any more.
    pair.first(Line::B, 0);
    assert!(pair.coverage.is_late(Line::B));
    pair.first(Line::B, 1);
    assert_eq!(pair.coverage.settle(None), 0, "a hole of B in what was told");
}

#[test]
fn nobody_is_held_to_the_window_who_could_not_read() {
    let mut pair = Pair::new();
    pair.meet();
    pair.first(Line::A, 3);
    let now = pair.at(60_000);
    pair.coverage.excuse(now);
    assert_eq!(pair.coverage.settle(Some(now)), 0);
    assert_eq!(pair.coverage.settle(Some(pair.at(60_500))), 3);
}

#[test]
fn a_line_alone_tells_at_once() {
    let mut pair = Pair::new();
    pair.meet();
    // B is ahead by two, of which A lacks the first, and goes.
    let _ = (pair.first(Line::B, 0), pair.first(Line::B, 0));
    assert_eq!(pair.coverage.down(Line::B), 0);
    // A lacks both and one more that B never brought.
    pair.first(Line::A, 3);
    assert_eq!(pair.coverage.settle(None), 1);
    pair.first(Line::A, 7);
    assert_eq!(pair.coverage.settle(None), 7);
}

#[test]
fn a_reconnect_makes_no_gap_and_fills_what_it_brings() {
    let mut pair = Pair::new();
    pair.meet();
    pair.coverage.down(Line::B);
    for _ in 0..50 {
        pair.first(Line::A, 0);
    }
    assert_eq!(pair.coverage.up(Line::B), 0);
    let first = pair.first(Line::A, 0);
    assert_eq!(pair.second(Line::B, 0, first), 0);
    // Placed anew: holes are told apart again.
    let after = pair.first(Line::A, 2);
    pair.first(Line::B, 1);
    assert_eq!(pair.second(Line::B, 0, after), 1);
}

#[test]
fn what_was_lost_on_the_one_while_the_other_was_away_is_lost() {
    let mut pair = Pair::new();
    pair.meet();
    pair.coverage.down(Line::B);
    assert_eq!(pair.coverage.up(Line::B), 0);
    // Back, but where is not known yet: 2 and 3 are missing on A, and B begins with 3.
    let four = pair.first(Line::A, 2);
    assert_eq!(pair.coverage.settle(None), 0);
    pair.first(Line::B, 0);
    assert_eq!(pair.second(Line::B, 0, four), 1);
}

#[test]
fn a_line_that_comes_back_ahead_is_placed_by_the_one_behind() {
    let mut pair = Pair::new();
    pair.meet();
    pair.coverage.down(Line::B);
    assert_eq!(pair.coverage.up(Line::B), 0);
    let (three, _) = (pair.first(Line::B, 0), pair.first(Line::B, 0));
    // A brings 2, and then what B brought first.
    pair.first(Line::A, 0);
    assert_eq!(pair.second(Line::A, 0, three), 0);
    pair.first(Line::A, 1);
    assert_eq!(pair.coverage.settle(None), 0, "four was brought by B");
    let seven = pair.first(Line::B, 2);
    assert_eq!(pair.second(Line::A, 1, seven), 1, "of five and six five was brought by A");
}

#[test]
fn a_slot_that_was_no_message_is_no_loss() {
    let mut pair = Pair::new();
    pair.meet();
    // A lost an acknowledgement, and B nothing at all.
    let after = pair.first(Line::A, 1);
    assert_eq!(pair.second(Line::B, 0, after), 0);
    // And the other way round: B behind, and B ahead.
    let after = pair.first(Line::A, 0);
    assert_eq!(pair.second(Line::B, 1, after), 0);
    let after = pair.first(Line::B, 1);
    assert_eq!(pair.second(Line::A, 0, after), 0);
    pair.meet();
    assert_eq!(pair.coverage.finish(), 0);
    // With a message lost on both beside it.
    let after = pair.first(Line::A, 2);
    assert_eq!(pair.second(Line::B, 1, after), 1);
    pair.meet();
    assert_eq!(pair.coverage.finish(), 0);
}

#[test]
fn lines_that_change_places_make_no_gap() {
    let mut pair = Pair::new();
    for _ in 0..100 {
        // A: x y z, B: y x z.
        let (x, y, z) = (pair.first(Line::A, 0), pair.first(Line::A, 0), pair.first(Line::A, 0));
        assert_eq!([y, x, z].map(|spot| pair.second(Line::B, 0, spot)), [0; 3]);
    }
    assert_eq!(pair.coverage.finish(), 0);
}

#[test]
fn holes_from_before_the_other_line_was_there_are_lost() {
    let mut pair = Pair::new();
    // A was there first and has nothing; B lacks its second, and A begins with B's third.
    pair.first(Line::B, 0);
    let three = pair.first(Line::B, 1);
    assert_eq!(pair.second(Line::A, 0, three), 1);
    assert_eq!(pair.coverage.finish(), 0);
}

#[test]
fn what_a_line_brought_in_an_earlier_stint_is_not_what_the_other_lacks_now() {
    let mut coverage = Coverage::new(WINDOW);
    let start = crate::clock::now();
    coverage.up(Line::B);
    for _ in 0..5 {
        coverage.pass(Line::B, 0, true, start);
    }
    coverage.down(Line::B);
    coverage.up(Line::B);
    coverage.up(Line::A);
    let mut pair = Pair { coverage, start };
    // A brings one, three and four, and B begins with four.
    pair.first(Line::A, 0);
    pair.first(Line::A, 1);
    let four = pair.first(Line::A, 0);
    assert_eq!(pair.second(Line::B, 0, four), 1);
}

#[test]
fn holes_a_line_comes_to_after_the_other_was_away_are_lost() {
    let mut pair = Pair::new();
    pair.meet();
    // A is away for the next three and back for the fourth, before B brings any of them.
    pair.coverage.down(Line::A);
    assert_eq!(pair.coverage.up(Line::A), 0);
    let five = pair.first(Line::A, 0);
    let six = pair.first(Line::A, 0);
    pair.first(Line::B, 0);
    // B lacks the third.
    pair.first(Line::B, 1);
    assert_eq!(pair.second(Line::B, 0, five), 1);
    assert_eq!(pair.second(Line::B, 0, six), 0);
}

#[test]
fn a_line_that_went_before_the_other_came_so_far_still_tells_what_it_brought() {
    let mut pair = Pair::new();
    let spots: Vec<_> = (0..4).map(|_| pair.first(Line::B, 0)).collect();
    assert_eq!(pair.coverage.down(Line::B), 0);
    // A is behind, and lacks two of those.
    assert_eq!(pair.second(Line::A, 0, spots[0]), 0);
    assert_eq!(pair.second(Line::A, 2, spots[3]), 0);
    pair.first(Line::A, 1);
    assert_eq!(pair.coverage.settle(None), 1, "which B did not bring");
}

#[test]
fn a_line_that_went_before_the_other_brought_anything_is_placed_by_it_yet() {
    let mut pair = Pair::new();
    // B has one, three and five, and goes; A, behind, has all but the fourth.
    assert!(!pair.coverage.is_placed(Line::B));
    let one = pair.first(Line::B, 0);
    let three = pair.first(Line::B, 1);
    let five = pair.first(Line::B, 1);
    assert_eq!(pair.coverage.down(Line::B), 0, "A may bring two and four yet");
    assert_eq!(pair.second(Line::A, 0, one), 0);
    pair.first(Line::A, 0);
    assert_eq!(pair.second(Line::A, 0, three), 0);
    assert_eq!(pair.second(Line::A, 1, five), 1);
    assert_eq!(pair.coverage.finish(), 0);
}

#[test]
fn what_a_line_that_went_lacked_is_told_where_nobody_can_place_it() {
    let gone = || {
        let mut pair = Pair::new();
        pair.first(Line::B, 0);
        pair.first(Line::B, 3);
        assert!(!pair.coverage.is_placed(Line::B));
        assert_eq!(pair.coverage.down(Line::B), 0);
        pair
    };
    let mut pair = gone();
    assert_eq!(pair.coverage.settle(Some(pair.at(499))), 0);
    assert_eq!(pair.coverage.settle(Some(pair.at(500))), 3, "the window is over");
    let mut pair = gone();
    assert_eq!(pair.coverage.up(Line::B), 3, "it is back, and somewhere else");
    let mut pair = gone();
    assert_eq!(pair.coverage.down(Line::A), 3, "nobody is left");
    let mut pair = gone();
    assert_eq!(pair.coverage.finish(), 3);
}

#[test]
fn an_old_number_fills_the_hole_it_came_from() {
    let mut pair = Pair::new();
    pair.meet();
    // Two and three are missing on A; two comes late, and B lacks three.
    let four = pair.first(Line::A, 2);
    assert!(pair.coverage.fill(Line::A, 2));
    pair.first(Line::B, 0);
    assert_eq!(pair.second(Line::B, 1, four), 1);
}

#[test]
fn what_came_late_by_its_own_line_makes_the_hole_smaller() {
    let mut pair = Pair::new();
    pair.meet();
    pair.first(Line::A, 2);
    assert!(pair.coverage.fill(Line::A, 1));
    assert_eq!(pair.coverage.settle(Some(pair.at(500))), 1);
    assert!(!pair.coverage.fill(Line::A, 2), "nothing waits any more");
}

#[test]
fn holes_without_end_are_bounded_and_told() {
    let mut pair = Pair::new();
    pair.meet();
    let mut lost = 0;
    for _ in 0..10_000 {
        lost += pair.coverage.pass(Line::A, 1, true, pair.start).1;
    }
    assert_eq!(pair.coverage.tracks[0].holes.len(), HOLES_MAX);
    assert_eq!(lost + pair.coverage.finish(), 10_000);
}

#[test]
fn numbers_no_exchange_would_send_do_no_harm() {
    let mut pair = Pair::new();
    for (a, b) in [(u64::MAX, 0), (0, u64::MAX), (u64::MAX, u64::MAX), (5, 0), (1 << 62, 1 << 62)] {
        let spot = pair.coverage.pass(Line::A, a, true, pair.start).0;
        pair.coverage.pass(Line::B, b, true, pair.start);
        pair.coverage.align(Line::B, spot);
        pair.coverage.settle(Some(pair.at(1_000)));
        pair.coverage.down(Line::A);
        pair.coverage.up(Line::A);
    }
    pair.coverage.finish();
}

#[test]
fn f6_a_hole_as_wide_as_numbers_go_is_lost_and_runs_over_nothing() {
    // The last of them would have the pair's number 0, behind the highest there is.
    for missing in [u64::MAX - ORIGIN, u64::MAX, u64::MAX - 1] {
        let mut pair = Pair::new();
        pair.meet();
        let at = pair.start;
        let (_, lost) = pair.coverage.pass(Line::A, missing, true, at);
        assert_eq!(lost, missing - MISSING_MAX, "what nobody can catch up on");
        assert!(pair.coverage.fill(Line::A, 1), "one came late");
        let rest = pair.coverage.finish();
        assert_eq!(rest, MISSING_MAX - 1, "neither brought it");
    }
}

#[test]
fn however_often_a_line_was_away_nothing_of_that_counts_as_brought() {
    let mut track = Track::default();
    let due = crate::clock::now();
    let aways: Vec<_> = (0..3 * ABSENCES_MAX)
        .map(|_| {
            // Ten that it brought, then ten that it was not there for.
            track.reach += 10;
            let (first, last) = (track.reach + 1, track.reach + 10);
            track.miss(last);
            track.reach = last;
            Hole { first, last, due }
        })
        .collect();
    assert_eq!(track.absences.len(), ABSENCES_MAX);
    for away in aways {
        assert_eq!(track.lacks(away), 10);
    }
}

#[test]
fn holes_that_touch_and_old_numbers_without_end_cost_little() {
    let (mut pair, now) = (Pair::new(), crate::clock::now());
    pair.meet();
    pair.coverage.pass(Line::A, 1 << 20, true, now);
    (0..3_000).for_each(|number| assert!(pair.coverage.fill(Line::A, 2 + 5 * number)));
    assert!(pair.coverage.tracks[0].holes.len() <= HOLES_MAX);
    for _ in 0..3_000 {
        pair.coverage.pass(Line::A, 1, false, now);
    }
    let track = &pair.coverage.tracks[0];
    assert!(track.holes.len() <= HOLES_MAX);
    let first = track.holes.back().unwrap().first - 100;
    assert_eq!(track.next_brought(first), first, "not known, for want of a look");
    let hole = Hole { first: 7, last: u64::MAX, due: now };
    let track = Track { holes: VecDeque::from([hole]), ..Track::default() };
    assert_eq!((track.next_brought(6), track.next_brought(8)), (6, 8));
}
