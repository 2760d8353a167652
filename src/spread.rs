//! How a duration spreads: counts in buckets a quarter of a power of two wide, written by one
//! thread and read by any. It keeps no single value and takes no lock.

use serde::Serialize;

use crate::stats::Counter;

/// Four for each power of two of nanoseconds up to 2^40, about 18 minutes.
const BUCKETS: usize = 160;

/// The writer's side.
#[derive(Debug)]
pub(crate) struct Spread([Counter; BUCKETS]);

impl Default for Spread {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl Spread {
    /// Counts one duration.
    pub(crate) fn add(&self, ns: u64) {
        if let Some(bucket) = self.0.get(bucket(ns)) {
            bucket.add(1);
        }
    }

    /// What was counted so far, added to `sum`.
    pub(crate) fn add_to(&self, sum: &mut Durations) {
        sum.0.resize(BUCKETS, 0);
        for (sum, counter) in sum.0.iter_mut().zip(&self.0) {
            *sum = sum.wrapping_add(counter.total());
        }
    }
}

/// How durations spread, in nanoseconds; each is known to a quarter of a power of two.
///
/// ```
/// # fn show(stats: &kalshi_feed::Stats) {
/// println!("90 % of turns took at most {} ns", stats.cycle_ns.quantile(0.9));
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Durations(Vec<u64>);

impl Durations {
    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// How many were at most so long, to a quarter of a power of two.
    pub(crate) fn at_most(&self, ns: u64) -> u64 {
        self.0.iter().take(bucket(ns).saturating_add(1)).sum()
    }

    /// Those counted since `earlier` was taken.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let before = earlier.0.iter().copied().chain(std::iter::repeat(0));
        Self(self.0.iter().zip(before).map(|(now, before)| now.saturating_sub(before)).collect())
    }

    /// The upper end, in nanoseconds, of the bucket that holds this part of them (0 to 1); zero
    /// for none.
    pub fn quantile(&self, part: f64) -> u64 {
        #[expect(
            clippy::as_conversions,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a rank; rounding is fine, and a float that does not fit saturates"
        )]
        let rank = (self.count() as f64 * part.clamp(0.0, 1.0)).ceil() as u64;
        let mut seen = 0;
        for (index, count) in self.0.iter().enumerate() {
            seen += count;
            if seen >= rank.max(1) {
                return upper(index);
            }
        }
        0
    }
}

/// The bucket of a value: its power of two, and the two bits below the first.
fn bucket(ns: u64) -> usize {
    let Some(power) = ns.checked_ilog2().filter(|&power| power >= 2) else {
        return usize::try_from(ns).unwrap_or(0);
    };
    let quarter = (ns >> (power - 2)) & 3;
    let index = u64::from(power - 1) * 4 + quarter;
    usize::try_from(index).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

/// The largest value of a bucket.
fn upper(bucket: usize) -> u64 {
    let bucket = u64::try_from(bucket).unwrap_or(0);
    let (power, quarter) = (bucket / 4 + 1, bucket % 4);
    if power < 2 {
        return bucket;
    }
    ((4 + quarter + 1) << (power - 2)) - 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantiles_of_known_values() {
        let spread = Spread::default();
        for ns in 1..=1_000 {
            spread.add(ns * 1_000);
        }
        let mut durations = Durations::default();
        assert_eq!(durations.quantile(0.5), 0, "of nothing");
        spread.add_to(&mut durations);
        assert_eq!(durations.count(), 1_000);
        let within = |part, exact: u64| {
            let said = durations.quantile(part);
            (exact..=exact + exact / 4).contains(&said)
        };
        assert_eq!(durations.since(&durations).count(), 0);
        assert_eq!((durations.at_most(800), durations.at_most(u64::MAX)), (0, 1_000));
        assert_eq!(durations.since(&Durations::default()), durations);
        assert!(within(0.5, 500_000) && within(0.9, 900_000) && within(0.99, 990_000));
    }

    proptest! {
        #![proptest_config(crate::property::cases(2_000))]

        #[test]
        fn a_value_lies_in_its_bucket(ns in 0u64..1 << 40) {
            let index = bucket(ns);
            prop_assert!(ns <= upper(index), "{ns} above {}", upper(index));
            prop_assert!(index == 0 || ns > upper(index - 1), "{ns} below its bucket");
        }

        #[test]
        fn any_value_has_a_bucket(ns: u64) {
            prop_assert!(bucket(ns) < BUCKETS);
        }
    }
}
