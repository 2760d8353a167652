//! How property tests run: a fixed seed, so that a failure repeats; `PROPTEST_RNG_SEED` and
//! `PROPTEST_CASES` widen the hunt.

use proptest::test_runner::{Config, RngSeed};

/// This many cases, unless the environment asks for more.
pub(crate) fn cases(count: u32) -> Config {
    let asked = std::env::var("PROPTEST_CASES").is_ok();
    let seeded = std::env::var("PROPTEST_RNG_SEED").is_ok();
    let default = Config::default();
    Config {
        cases: if asked { default.cases } else { count },
        rng_seed: if seeded { default.rng_seed } else { RngSeed::Fixed(20_261_123) },
        failure_persistence: None,
        ..default
    }
}
