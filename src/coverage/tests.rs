//! Intervals by example, and their sum against a list that looks at every market every millisecond.

use proptest::prelude::*;

use super::*;
use crate::ids::widen;

const CONN: Option<ConnId> = Some(ConnId::new(1));

fn stamp() -> Stamp {
    crate::clock::stamp()
}

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn down(at: Instant) -> Since {
    Since { at, reason: UncoveredReason::Down }
}

fn listed(uncovered: &Uncovered) -> Vec<&str> {
    match &uncovered.markets {
        UncoveredMarkets::Listed(list) => list.iter().collect(),
        other => panic!("{other:?}"),
    }
}

impl Coverage {
    /// These are the markets that are not covered, and no other is thought to be.
    pub(crate) fn check(&self, lacking: &[(Slot, Option<ConnId>)]) {
        assert_eq!(self.open, widen(lacking.len()));
        let mut groups = vec![0; self.groups.len()];
        for (_, conn) in lacking.iter().filter(|(slot, _)| !self.others.contains_key(slot)) {
            groups[place(*conn)] += 1;
        }
        let held = self.groups.iter().map(|group| group.map_or(0, |group| group.markets));
        assert_eq!(held.collect::<Vec<_>>(), groups);
        let known = |slot: &Slot| lacking.iter().any(|(lacking, _)| lacking == slot);
        assert!(self.others.keys().all(known));
    }
}

#[test]
fn markets_that_went_together_and_come_back_together_are_one_event() {
    let clock = stamp();
    let mut coverage = Coverage::new(2, clock);
    let at = |after| clock.mono + ms(after);
    (0..3).for_each(|slot| coverage.begin(Slot(slot), CONN, down(at(1_000))));
    assert_eq!((coverage.others.len(), coverage.market_ms(at(2_000))), (0, 3_000));
    coverage.end(Slot(0), CONN, "A", at(3_000));
    coverage.end(Slot(1), CONN, "B", at(3_050));
    assert_eq!(coverage.take(at(3_099)), []);
    assert_eq!(coverage.due(), Some(at(3_100)));
    let told = coverage.take(at(3_100));
    assert_eq!((told.len(), listed(&told[0])), (1, vec!["A", "B"]));
    assert_eq!((told[0].conn, told[0].reason), (CONN, UncoveredReason::Down));
    assert_eq!((told[0].start, told[0].end), (clock.wall + ms(1_000), clock.wall + ms(3_050)));
    coverage.end(Slot(2), CONN, "C", at(9_000));
    assert_eq!(listed(&coverage.take(at(9_100))[0]), ["C"]);
    assert_eq!(coverage.market_ms(at(20_000)), 2_000 + 2_050 + 8_000);
    assert!(coverage.groups.iter().all(Option::is_none), "nothing is kept of what is well");
}

#[test]
fn an_interval_goes_on_when_its_market_moves() {
    let clock = stamp();
    let mut coverage = Coverage::new(2, clock);
    let at = |after| clock.mono + ms(after);
    let wanted = Since { at: at(100), reason: UncoveredReason::NotSubscribed };
    coverage.begin(Slot(7), None, wanted);
    coverage.begin(Slot(8), CONN, down(at(200)));
    coverage.moved(Slot(7), None, CONN);
    coverage.end(Slot(7), CONN, "A", at(500));
    let told = coverage.take(at(600));
    assert_eq!((told[0].conn, told[0].reason), (CONN, UncoveredReason::NotSubscribed));
    assert_eq!(told[0].start, clock.wall + ms(100));
}

#[test]
fn no_event_lists_more_than_it_may() {
    let clock = stamp();
    let mut coverage = Coverage::new(1, clock);
    let count = 2 * u32::try_from(LISTED_MAX).unwrap() + 1;
    (0..count).for_each(|slot| coverage.begin(Slot(slot), CONN, down(clock.mono)));
    (0..count).for_each(|slot| coverage.end(Slot(slot), CONN, "M", clock.mono + ms(5)));
    let told = coverage.take(clock.mono + ms(200));
    let lengths: Vec<_> = told.iter().map(|one| listed(one).len()).collect();
    assert_eq!(lengths, [LISTED_MAX, LISTED_MAX, 1]);
}

#[test]
fn a_wall_clock_that_steps_is_followed() {
    let clock = stamp();
    let mut coverage = Coverage::new(1, clock);
    coverage.begin(Slot(1), CONN, down(clock.mono + ms(10)));
    let hour = Duration::from_secs(3_600);
    coverage.set_clock(Stamp { wall: clock.wall + hour, mono: clock.mono + ms(20) });
    coverage.end(Slot(1), CONN, "A", clock.mono + ms(30));
    let told = coverage.take(clock.mono + ms(500));
    assert_eq!(told[0].start, clock.wall + hour - ms(10));
    assert_eq!(told[0].end, clock.wall + hour + ms(10));
}

proptest! {
    #![proptest_config(crate::property::cases(500))]

    /// Markets come, go down, move and come back in any order: each interval told is one that was,
    /// none is told twice, and the sum is that of all.
    #[test]
    fn agrees_with_a_list_of_intervals(
        steps in prop::collection::vec((0u32..8, 0u8..4, 0u16..3, 0u64..200), 1..200),
    ) {
        let clock = stamp();
        let mut coverage = Coverage::new(2, clock);
        let mut open: [Option<(u64, Option<ConnId>)>; 8] = [None; 8];
        let (mut now, mut sum, mut expected) = (0, 0, Vec::new());
        let mut told = Vec::new();
        for (slot, event, conn, later) in steps {
            now += later;
            let at = clock.mono + ms(now);
            let conn = (conn > 0).then(|| ConnId::new(conn));
            let place = usize::try_from(slot).unwrap();
            match (event, open[place]) {
                (0, None) => {
                    coverage.begin(Slot(slot), conn, down(at));
                    open[place] = Some((now, conn));
                }
                (1, Some((since, from))) => {
                    coverage.moved(Slot(slot), from, conn);
                    open[place] = Some((since, conn));
                }
                (2, Some((since, conn))) => {
                    coverage.end(Slot(slot), conn, &slot.to_string(), at);
                    open[place] = None;
                    sum += now - since;
                    expected.push((slot.to_string(), clock.wall + ms(since), clock.wall + ms(now)));
                }
                _ => told.extend(coverage.take(at)),
            }
            let open: u64 = open.iter().flatten().map(|(since, _)| now - since).sum();
            prop_assert_eq!(coverage.market_ms(at), sum + open);
        }
        told.extend(coverage.take(clock.mono + ms(now + 1_000)));
        let mut count = 0;
        for one in &told {
            for ticker in listed(one) {
                count += 1;
                let fits = |(market, start, end): &(String, SystemTime, SystemTime)| {
                    let late = one.end.duration_since(*end).unwrap_or(Duration::MAX);
                    market == ticker && *start == one.start && late <= TOGETHER
                };
                let place = expected.iter().position(fits);
                prop_assert!(place.is_some(), "{:?} never was", one);
                expected.swap_remove(place.unwrap());
            }
        }
        prop_assert!(expected.is_empty(), "{:?} not told", expected);
        prop_assert!(widen(count) <= 200);
    }
}
