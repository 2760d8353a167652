//! Notices a shard whose loop has stopped turning: an inline handler that does not come back, or a
//! bug of ours. Pure: figures and the time are arguments.

use std::time::{Duration, Instant};

use crate::ids::ShardId;

/// The least time between two looks. A shard turns at least as often.
pub(crate) const LOOK: Duration = Duration::from_secs(1);
/// Looks without a turn in between before a shard is called stuck. Looks, not time: after the
/// whole process was stopped for a while, nobody is stuck.
const LOOKS: u32 = 5;

/// What was last seen of one shard.
#[derive(Clone, Copy, Debug)]
struct Seen {
    turns: u64,
    since: Instant,
    looks: u32,
}

/// The watch over all shards.
#[derive(Debug, Default)]
pub(crate) struct Watchdog {
    next: Option<Instant>,
    shards: Vec<Option<Seen>>,
}

impl Watchdog {
    /// Looks, if it is time to, at each shard's number of turns so far; none for one that is not
    /// expected to turn. Says who is stuck, once, and since when.
    pub(crate) fn look(
        &mut self,
        turns: impl Iterator<Item = Option<u64>>,
        now: Instant,
    ) -> Vec<(ShardId, Duration)> {
        if self.next.is_some_and(|next| now < next) {
            return Vec::new();
        }
        self.next = now.checked_add(LOOK);
        let mut stuck = Vec::new();
        for ((number, turns), place) in (0..).zip(turns).zip(0..) {
            if self.shards.len() <= place {
                self.shards.push(None);
            }
            let Some(seen) = self.shards.get_mut(place) else { continue };
            *seen = match (turns, *seen) {
                (None, _) => None,
                (Some(turns), Some(seen)) if seen.turns == turns => {
                    let looks = seen.looks.saturating_add(1);
                    if looks == LOOKS {
                        let lasted = now.saturating_duration_since(seen.since);
                        stuck.push((ShardId::new(number), lasted));
                    }
                    Some(Seen { looks, ..seen })
                }
                (Some(turns), _) => Some(Seen { turns, since: now, looks: 0 }),
            };
        }
        stuck
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stuck(dog: &mut Watchdog, turns: &[Option<u64>], start: Instant, ms: u64) -> Vec<u16> {
        let now = start + Duration::from_millis(ms);
        let stuck = dog.look(turns.iter().copied(), now);
        stuck.into_iter().map(|(shard, _)| shard.number()).collect()
    }

    #[test]
    fn g5_a_shard_that_no_longer_turns_is_told_of_once() {
        let (mut dog, start) = (Watchdog::default(), crate::clock::now());
        let mut told = Vec::new();
        // The first turns, the second stops at 7, the third has ended.
        for ms in (0..60_000).step_by(250) {
            let turns = [Some(ms), Some(ms.min(7)), None];
            told.extend(stuck(&mut dog, &turns, start, ms).into_iter().map(|shard| (shard, ms)));
        }
        assert_eq!(told, [(1, 6_000)]);
        // It goes on, and stops again.
        assert!(stuck(&mut dog, &[Some(0), Some(8), None], start, 61_000).is_empty());
        for ms in (62_000..70_000).step_by(250) {
            told.extend(
                stuck(&mut dog, &[Some(ms), Some(8), None], start, ms).iter().map(|s| (*s, ms)),
            );
        }
        assert_eq!(told, [(1, 6_000), (1, 66_000)]);
    }

    #[test]
    fn h2_a_process_that_was_stopped_has_nobody_stuck() {
        let (mut dog, start) = (Watchdog::default(), crate::clock::now());
        for round in 0..100 {
            // Whoever looks has its turn before the others have theirs.
            assert!(stuck(&mut dog, &[Some(round / 4)], start, round * 60_000).is_empty());
        }
    }
}
