//! A world of which everything is drawn from one number. What was added later is drawn apart from
//! all else, so that the stories of seeds without it are what they were.

use std::time::Duration;

use super::engine::Settings;
use super::faults::{Fault, Faults};
use super::feed::Feed;
use super::network::Event;
use super::pairs::Pairs;
use super::world::World;
use crate::arbitration::{Arbitration, ArbitrationPolicy};
use crate::dialect::Dialect;
use crate::gap::GapPolicy;
use crate::ids::Role;
use crate::overflow::{Overflow, OverflowPolicy};
use crate::pool::PoolLayout;

/// Seeds that failed before there were pairs, and go on testing what they tested.
const UNPAIRED: [u64; 6] = [0x15e, 0xcaa, 0x493, 0x250, 0x35662, 0x200044];

impl World {
    /// Everything about it drawn from one number.
    pub(super) fn drawn(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let pool = PoolLayout::new(1, 1, 1, random.u16(1..=5));
        let shards = random.usize(1..=3);
        let mut settings = Settings::short(pool, shards, random.u64(..));
        let config = &mut settings.config;
        config.overflow = overflow(&mut random);
        if conflates(seed) {
            config.overflow.ticker = Overflow::ConflateByMarket;
        }
        config.turn_budget = random.usize(1..=3);
        config.message_buffer = [8, 40, 400][random.usize(0..3)];
        config.migrate_after = random.bool().then(|| Duration::from_secs(3));
        config.silent_reconnect = random.u8(0..4) == 0;
        config.dialect = [Dialect::Live, Dialect::Live, Dialect::Legacy][random.usize(0..3)];
        config.gap_policy = gap_policy(seed);
        config.recovery_rate = [2, 20, 10_000][random.clone().usize(0..3)];
        let markets = random.u16(1..=pool.orderbook * 8);
        let paired = is_paired(seed).then(|| pair(&mut settings, seed));
        let mut world = Self::new(settings, Faults::drawn(random.fork()), markets);
        world.network.borrow_mut().read_bytes = [64, 300, 4_096][random.usize(0..3)];
        world.exchange.burst = random.usize(1..=6);
        world.exchange.interval = Duration::from_millis(random.u64(100..1_500));
        world.mishaps_ms = random.u64(200..3_000);
        let mut apart = fastrand::Rng::with_seed(seed ^ 0x5AFE);
        if apart.u8(0..6) == 0 {
            world.engine.forgiving = true;
            world.network.borrow_mut().faults.set(Fault::ShardFails, apart.u32(1..=6));
        }
        world.network.borrow_mut().later(Duration::from_millis(700), Event::Mishap);
        if let Some(random) = paired {
            world.pair_up(random);
        }
        world
    }

    /// The exchange has pairs to feed, and more befalls their lines.
    fn pair_up(&mut self, mut random: fastrand::Rng) {
        let Settings { config, pool, .. } = &self.settings;
        let policy = config.arbitration;
        let arbitrated = |role: &Role| policy.of(*role) == Arbitration::FirstWins;
        let roles: Vec<_> = Role::ALL.into_iter().filter(arbitrated).collect();
        self.exchange.feed = Some(Feed::new(roles, config.dialect));
        self.host.pairs = Pairs::new(pool.iter().filter(|(_, role)| arbitrated(role)));
        let network = &mut *self.network.borrow_mut();
        for (fault, most) in [
            (Fault::LineLoses, 300),
            (Fault::PairLoses, 100),
            (Fault::LineStalls, 100),
            (Fault::LineCut, 60),
            (Fault::PairCut, 30),
        ] {
            let rate = if random.bool() { random.u32(1..=most) } else { 0 };
            network.faults.set(fault, rate);
        }
        if random.u8(0..3) == 0 {
            self.engine.forgiving = true;
            network.faults.set(Fault::ShardFails, random.u32(1..=6));
        }
        network.later(Duration::from_millis(100), Event::Feeds);
    }
}

/// Whatever finds no room: dropped, or held back, by role.
fn overflow(random: &mut fastrand::Rng) -> OverflowPolicy {
    let mut draw = || if random.bool() { Overflow::DropNewest } else { Overflow::Backpressure };
    let mut policy = OverflowPolicy::default();
    (policy.ticker, policy.trade, policy.orderbook) = (draw(), draw(), draw());
    policy
}

/// Whether tickers are conflated: drawn apart from all else, so that the other stories are what
/// they were.
fn conflates(seed: u64) -> bool {
    fastrand::Rng::with_seed(seed ^ 0xC0F).u8(0..3) == 0
}

/// What is done about gaps: drawn apart from all else, so that the stories of seeds without a
/// policy are what they were.
fn gap_policy(seed: u64) -> GapPolicy {
    let policies = [GapPolicy::Flag, GapPolicy::Resnapshot, GapPolicy::Resubscribe];
    policies[fastrand::Rng::with_seed(seed ^ 0x6A9).usize(0..policies.len())]
}

/// Whether its global roles have two lines each, which are arbitrated.
fn is_paired(seed: u64) -> bool {
    !UNPAIRED.contains(&seed) && fastrand::Rng::with_seed(seed ^ 0x2A1B).u8(0..4) == 0
}

/// Two lines of each global role, arbitrated: all of them, or some.
fn pair(settings: &mut Settings, seed: u64) -> fastrand::Rng {
    let mut random = fastrand::Rng::with_seed(seed ^ 0xB0_7D1E);
    settings.pool = PoolLayout::new(2, 2, 2, settings.pool.orderbook);
    let config = &mut settings.config;
    let mut policy = ArbitrationPolicy::from(Arbitration::FirstWins);
    if random.u8(0..3) == 0 {
        for of_role in [&mut policy.ticker, &mut policy.trade, &mut policy.lifecycle] {
            *of_role = if random.bool() { Arbitration::Both } else { Arbitration::FirstWins };
        }
    }
    config.arbitration = policy;
    config.arbitration_window = Duration::from_millis([50, 500, 2_000][random.usize(0..3)]);
    // Conflated tickers of pairs are judged by nobody yet.
    let conflated = config.overflow.ticker == Overflow::ConflateByMarket;
    if conflated && policy.ticker == Arbitration::FirstWins {
        config.overflow.ticker = Overflow::DropNewest;
    }
    random
}
