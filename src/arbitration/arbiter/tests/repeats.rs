//! Messages that say what an earlier one said: a market paused, resumed and paused. Only their
//! numbers tell them apart.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::drawn::{Account, Step};
use super::*;

/// What is drawn, over few words: each is handed over as often as any line brought it.
fn check(steps: &[Step], words: u64) -> Result<(), TestCaseError> {
    let mut pair = Pair { words, ..Pair::new(Role::Lifecycle) };
    let mut account = Account::new();
    account.take(&mut pair, Step::Send(NONE));
    pair.read_all();
    for &step in steps {
        account.take(&mut pair, step);
        prop_assert!(pair.told <= account.lost(), "{} of {}", pair.told, account.lost());
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
    prop_assert_eq!(pair.told + pair.finish(), account.lost());
    prop_assert_eq!(pair.counters.late.total(), 0);
    Ok(())
}

fn lines_that_stay() -> impl Strategy<Value = Vec<Step>> {
    let line = prop::sample::select(Line::BOTH.to_vec());
    let lost = prop::bool::weighted(0.2);
    prop::collection::vec(
        prop_oneof![
            12 => [lost, lost].prop_map(Step::Send),
            1 => line.clone().prop_map(|line| Step::Reply(line, false)),
            8 => (line.clone(), 1usize..6).prop_map(|(l, most)| Step::Read(l, most, 0)),
            2 => (0u64..5).prop_map(Step::Later),
        ],
        1..200,
    )
}

proptest! {
    #![proptest_config(crate::property::cases(3_000))]

    #[test]
    fn what_is_said_again_is_a_message_of_its_own(steps in lines_that_stay(), words in 1u64..8) {
        check(&steps, words)?;
    }
}
