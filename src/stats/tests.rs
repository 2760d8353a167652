//! Sums of what shards count.

use super::*;

#[test]
fn f6_as_many_missing_slots_as_there_are_numbers_overflow_no_sum() {
    let pool = PoolLayout::new(0, 2, 0, 2);
    let counters = Counters::new(pool, 2, Arc::default());
    for shard in &counters.shards {
        shard.messages_missed.add_slots(u64::MAX - 1);
        shard.messages_missed.add_slots(u64::MAX - 1);
        shard.arbitration.missed_by_both.add_slots(u64::MAX);
        shard.arbitration.missed_by_both.add_slots(1);
    }
    let stats = counters.snapshot(false);
    assert_eq!(stats.messages_missed, u64::MAX, "a count that is at its end stays there");
    assert_eq!(stats.arbitration.missed_by_both, u64::MAX);
}
