//! Recoveries in virtual time, and against a naive model.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const PATIENCE: Duration = Duration::from_secs(11);

/// One connection's books and the commands about them.
struct Books {
    recovery: Recovery<u8>,
    policy: GapPolicy,
    now: Instant,
    ids: u64,
    gaps: u64,
    /// Markets of the list under way.
    list: Vec<u8>,
    /// Lists asked for so far, and reopenings.
    lists: u64,
    reopened: u64,
    /// One that cannot be asked for.
    elsewhere: Option<u8>,
}

impl Books {
    fn new(policy: GapPolicy) -> Self {
        let now = crate::clock::now();
        let recovery = Recovery::default();
        let (list, ids, gaps, lists, reopened) = (Vec::new(), 0, 0, 0, 0);
        Self { recovery, policy, now, ids, gaps, list, lists, reopened, elsewhere: None }
    }

    fn gap(&mut self, markets: impl IntoIterator<Item = u8>) -> (Vec<u8>, bool) {
        self.gaps += 1;
        self.recovery.gap(self.gaps, markets, self.now, self.now)
    }

    fn next(&mut self, most: usize) -> Option<Act<u8>> {
        let (mut left, elsewhere) = (most, self.elsewhere);
        let act = self.recovery.next(self.policy, PATIENCE, self.now, |key| {
            if elsewhere == Some(key) {
                return Pick::Skip;
            }
            if left == 0 {
                return Pick::Full;
            }
            left -= 1;
            Pick::Take
        });
        match &act {
            Some(Act::Ask(list)) => {
                assert!(self.list.is_empty(), "two lists at once");
                self.ids += 1;
                self.recovery.asked(CommandId::new(self.ids));
                self.list = list.clone();
                self.lists += 1;
            }
            Some(Act::Reopen(_)) => self.reopened += 1,
            None => {}
        }
        act
    }

    fn sound(&mut self, market: u8) -> bool {
        self.recovery.sound(market, self.now).is_some()
    }

    /// The list's command ends, with all of its books or without.
    fn answer(&mut self, books: bool) {
        for market in std::mem::take(&mut self.list) {
            if books {
                self.sound(market);
            }
        }
        assert!(self.recovery.answered(CommandId::new(self.ids), Answered::Over));
    }

    /// Everything asked for comes from now on; says how many steps that took, up to 40.
    fn settle(&mut self) -> u32 {
        let mut steps = 0;
        while self.recovery.suspects() > 0 && steps < 40 {
            steps += 1;
            if !self.list.is_empty() {
                self.answer(true);
            } else if let Some(Act::Reopen(all)) = self.wait(100_000) {
                for market in all {
                    self.sound(market);
                }
            }
        }
        steps
    }

    fn pass(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
    }

    /// Waits for what is due, at most so long.
    fn wait(&mut self, ms: u64) -> Option<Act<u8>> {
        let most = self.now + Duration::from_millis(ms);
        loop {
            if let Some(act) = self.next(100) {
                return Some(act);
            }
            self.now = self.recovery.due().filter(|&due| due > self.now && due <= most)?;
        }
    }
}

/// All can be asked for but the first.
fn but_the_first(key: u8) -> Pick {
    if key == 1 { Pick::Skip } else { Pick::Take }
}

impl Books {
    /// What is asked for within a second, and after how many milliseconds.
    fn ask_but_the_first(&mut self) -> Option<(u64, Act<u8>)> {
        (1..=100).map(|tens| tens * 10).find_map(|ms| {
            self.pass(10);
            let act = self.recovery.next(self.policy, PATIENCE, self.now, but_the_first)?;
            Some((ms, act))
        })
    }

    /// Its book comes, and the round is over.
    fn brought(&mut self, market: u8) {
        assert!(self.sound(market));
        let act = self.recovery.next(self.policy, PATIENCE, self.now, but_the_first);
        assert_eq!(act, None);
    }
}

#[test]
fn rounds_that_bring_all_that_could_be_asked_for_are_not_in_vain() {
    let mut books = Books::new(GapPolicy::Resnapshot);
    for _ in 0..40 {
        books.pass(1_001);
        books.gap([1, 2]);
        assert_eq!(books.ask_but_the_first(), Some((10, Act::Ask(vec![2]))));
        books.brought(2);
    }
}

#[test]
fn f9_one_that_cannot_be_asked_for_takes_nothing_from_what_slows_a_storm_down() {
    let mut books = Books::new(GapPolicy::Resnapshot);
    let mut times = Vec::new();
    while times.len() < 12 {
        let gap = books.now;
        books.gap([1, 2]);
        let asked = (0..60).find_map(|_| books.ask_but_the_first());
        assert_eq!(asked.map(|(_, act)| act), Some(Act::Ask(vec![2])));
        books.brought(2);
        times.push((books.now - gap).as_millis());
    }
    assert_eq!(times[..5], [10, 50, 100, 200, 400]);
    assert_eq!(times[11], 30_000, "{times:?}");
}

#[test]
fn rounds_in_vain_count_only_in_a_row() {
    let mut books = Books::new(GapPolicy::Resnapshot);
    for _ in 0..2 * ROUNDS_MAX {
        books.pass(60_000);
        books.gap([1, 2]);
        for came in [false, true] {
            let asked = books.ask_but_the_first();
            assert_eq!(asked.map(|(_, act)| act), Some(Act::Ask(vec![2])));
            if came {
                books.brought(2);
            }
        }
    }
}

#[test]
fn one_that_cannot_be_asked_for_keeps_no_other_waiting() {
    let mut books = Books::new(GapPolicy::Resnapshot);
    books.gap([1]);
    // The command that adds it has no answer for long.
    (0..20).for_each(|_| assert_eq!(books.ask_but_the_first(), None));
    books.gap([1, 2, 3]);
    assert_eq!(books.ask_but_the_first(), Some((10, Act::Ask(vec![2, 3]))));
}

#[test]
fn f1_a_gap_asks_once_for_each_book_list_by_list() {
    let mut books = Books::new(GapPolicy::Resnapshot);
    assert_eq!(books.next(4), None);
    assert_eq!(books.gap(0..10), ((0..10).collect(), true));
    for list in [0..4, 4..8, 8..10] {
        assert_eq!(books.next(4), Some(Act::Ask(list.collect())));
        assert_eq!(books.next(4), None, "one list at a time");
        assert_eq!(books.recovery.unsettled(), None);
        books.answer(true);
    }
    assert_eq!((books.next(4), books.recovery.due()), (None, None));
    assert_eq!((books.recovery.suspects(), books.recovery.unsettled()), (0, Some(1)));
    books.recovery.settled();
    assert_eq!(books.recovery.unsettled(), None);
}

#[test]
fn f9_gaps_amid_a_round_ask_for_nothing_until_it_is_over() {
    let mut books = Books::new(GapPolicy::Resnapshot);
    books.gap(0..4);
    assert_eq!(books.next(100), Some(Act::Ask((0..4).collect())));
    (0..4).for_each(|market| assert!(books.sound(market)));
    books.gap(0..4);
    for _ in 0..1_000 {
        assert_eq!(books.gap(0..4), (Vec::new(), false));
        assert_eq!(books.next(100), None);
    }
    books.list.clear();
    books.answer(false);
    // It came within a second of the calm, so the round begins after a pause.
    assert_eq!(books.next(100), None);
    books.pass(50);
    assert_eq!(books.next(100), Some(Act::Ask((0..4).collect())));
    assert_eq!(books.lists, 2);
}

#[test]
fn f9_a_storm_slows_the_rounds_down_and_then_opens_the_subscription_anew() {
    let mut books = Books::new(GapPolicy::Resnapshot);
    books.gap(0..4);
    let begun = books.now;
    let mut times = Vec::new();
    while books.reopened == 0 {
        if let Some(Act::Ask(_)) = books.wait(60_000) {
            times.push((books.now - begun).as_millis());
            books.answer(true);
            books.gap(0..4);
        }
        assert!(times.len() < 100);
        // All came, so this was not in vain; what is next comes later and later.
        if times.len() == 12 {
            break;
        }
    }
    assert_eq!(times[..6], [0, 50, 150, 350, 750, 1_550]);
    assert!(times[11] - times[10] <= 30_000);

    let mut books = Books::new(GapPolicy::Resnapshot);
    books.gap(0..4);
    for _ in 0..ROUNDS_MAX {
        assert!(matches!(books.wait(60_000), Some(Act::Ask(_))));
        books.answer(false);
    }
    assert_eq!(books.wait(60_000), Some(Act::Reopen((0..4).collect())));
    // Nothing comes of that either: asked for again.
    assert!(matches!(books.wait(60_000), Some(Act::Ask(_))));
}

#[test]
fn what_is_opened_anew_has_its_time_from_the_last_book_on() {
    let mut books = Books::new(GapPolicy::Resubscribe);
    books.gap(0..3);
    assert_eq!(books.next(100), Some(Act::Reopen((0..3).collect())));
    books.pass(10_000);
    assert!(books.sound(0));
    assert_eq!(books.recovery.due(), Some(books.now + PATIENCE));
    books.pass(10_000);
    books.recovery.wait_on(books.now);
    assert_eq!(books.recovery.due(), Some(books.now + PATIENCE), "it is open");
    books.gap([0]);
    assert_eq!(books.next(100), None, "it is being opened anew");
    (0..3).for_each(|market| assert!(books.sound(market)));
    assert_eq!((books.recovery.due(), books.reopened), (None, 1));
}

#[test]
fn what_is_lost_while_it_is_opened_anew_is_not_waited_for_as_long() {
    let mut books = Books::new(GapPolicy::Resnapshot);
    books.gap(0..4);
    books.recovery.reopening(PATIENCE, books.now);
    books.pass(500);
    assert!(books.sound(0));
    books.gap([0]);
    let lost = books.now;
    // The book of another gives it no more time than a book may take.
    books.pass(200);
    assert!(books.sound(1));
    assert_eq!(books.next(100), None);
    books.gap([1]);
    assert_eq!(books.recovery.due(), Some(lost + Duration::from_millis(200) + LOST));
    assert_eq!(books.wait(2_000), Some(Act::Ask((0..4).collect())));
    // Of the next time nothing is lost yet.
    books.answer(false);
    books.recovery.reopening(PATIENCE, books.now);
    assert_eq!(books.recovery.due(), Some(books.now + PATIENCE));
}

#[test]
fn an_exchange_without_the_command_is_asked_once() {
    let mut books = Books::new(GapPolicy::Resnapshot);
    books.gap(0..3);
    books.next(100);
    assert!(!books.recovery.answered(CommandId::new(99), Answered::Never), "not this one");
    assert!(books.recovery.answered(CommandId::new(1), Answered::Never));
    books.list.clear();
    assert!(matches!(books.next(100), Some(Act::Reopen(_))));
    (0..3).for_each(|market| assert!(books.sound(market)));
    books.pass(5_000);
    books.gap(0..3);
    assert!(matches!(books.next(100), Some(Act::Reopen(_))));
}

#[test]
fn a_market_that_is_elsewhere_is_passed_over_and_a_gap_of_none_is_settled_at_once() {
    let mut books = Books::new(GapPolicy::Resnapshot);
    books.gap(0..3);
    let pick = |key| if key == 1 { Pick::Skip } else { Pick::Take };
    let act = books.recovery.next(books.policy, PATIENCE, books.now, pick);
    assert_eq!(act, Some(Act::Ask(vec![0, 2])));
    assert!(books.sound(0) && books.sound(2) && !books.sound(2));
    assert!(books.recovery.gone(1, books.now), "the last of them");
    assert_eq!(books.recovery.unsettled(), Some(1));
    books.recovery.settled();
    books.gap([]);
    assert_eq!((books.recovery.unsettled(), books.recovery.due()), (Some(2), None));
}

proptest! {
    #![proptest_config(crate::property::cases(4_000))]

    /// Whatever comes in whatever order: what is suspect is what a plain map says, one list is
    /// under way at a time, nothing sound is asked for, no round asks for a market twice, and
    /// once gaps stop all is sound again within a bounded number of lists.
    #[test]
    fn agrees_with_a_naive_model(
        policy in prop::sample::select(vec![GapPolicy::Resnapshot, GapPolicy::Resubscribe]),
        steps in prop::collection::vec((0u8..11, 0u8..12, 1usize..6), 1..120),
    ) {
        let mut books = Books::new(policy);
        let mut naive: BTreeMap<u8, Instant> = BTreeMap::new();
        let mut round: BTreeSet<u8> = BTreeSet::new();
        for (what, market, most) in steps {
            match what {
                0 => {
                    let now = books.now;
                    let all = 0..=market;
                    let expected: Vec<u8> =
                        all.clone().filter(|market| !naive.contains_key(market)).collect();
                    prop_assert_eq!(books.gap(all.clone()).0, expected);
                    for market in all {
                        naive.entry(market).or_insert(now);
                    }
                }
                1 | 2 => {
                    let since = books.recovery.sound(market, books.now);
                    prop_assert_eq!(since.map(|(since, _)| since), naive.remove(&market));
                    prop_assert!(since.is_none_or(|(_, last)| last == naive.is_empty()));
                }
                3 => {
                    let last = books.recovery.gone(market, books.now);
                    let was = naive.remove(&market).is_some();
                    prop_assert_eq!(last, was && naive.is_empty());
                }
                4 if !books.list.is_empty() => {
                    let came = books.list.clone();
                    books.answer(most > 2);
                    if most > 2 {
                        naive.retain(|market, _| !came.contains(market));
                    }
                }
                5 => books.pass(u64::from(market) * 100),
                8 => books.recovery.reopening(PATIENCE, books.now),
                9 => books.recovery.wait_on(books.now),
                10 => books.elsewhere = (market < 6).then_some(market),
                _ => {
                    let idle = books.recovery.due().is_some();
                    match books.next(most) {
                        Some(Act::Ask(list)) => {
                            if idle {
                                round.clear();
                            }
                            prop_assert!(list.len() <= most);
                            for market in list {
                                prop_assert!(naive.contains_key(&market), "{} is sound", market);
                                prop_assert!(books.elsewhere != Some(market));
                                prop_assert!(round.insert(market), "{} twice", market);
                            }
                        }
                        Some(Act::Reopen(all)) => {
                            prop_assert!(all.iter().eq(naive.keys()));
                        }
                        None => {}
                    }
                }
            }
            prop_assert_eq!(books.recovery.suspects(), naive.len());
            let settled = books.gaps > 0 && naive.is_empty();
            prop_assert_eq!(books.recovery.unsettled(), settled.then_some(books.gaps));
        }
        books.elsewhere = None;
        prop_assert!(books.settle() < 40, "no end of it");
    }

    /// In any time no more is taken than the rate allows, but for what may be taken ahead and the
    /// last list.
    #[test]
    fn the_allowance_holds(
        per_second in 1usize..20_000,
        takes in prop::collection::vec((0u64..200, 1usize..500), 1..200),
    ) {
        let start = crate::clock::now();
        let (mut now, mut taken) = (start, Vec::new());
        let mut allowance = Allowance::new(per_second);
        for (ms, books) in takes {
            now += Duration::from_millis(ms);
            match allowance.held_until(now) {
                Some(until) => prop_assert!(until > now),
                None => {
                    allowance.take(books, now);
                    taken.push((now, books));
                }
            }
        }
        for (index, &(from, _)) in taken.iter().enumerate() {
            for (last, &(to, list)) in taken.iter().enumerate().skip(index) {
                let sum: usize = taken[index..=last].iter().map(|&(_, books)| books).sum();
                let time = (to - from + Allowance::AHEAD).as_secs_f64();
                #[expect(clippy::as_conversions, reason = "a bound, with room for rounding")]
                let most = (time * per_second as f64) * 1.001 + list as f64 + 1.0;
                #[expect(clippy::as_conversions, reason = "a bound, with room for rounding")]
                let sum = sum as f64;
                prop_assert!(sum <= most, "{} in {} s", sum, time);
            }
        }
    }
}
