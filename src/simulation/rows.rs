//! Rows of the fault matrix over the whole engine, scripted: one thing goes wrong, at a time of
//! the script's choice. By the first letters of their names.

mod lasting;
mod making;

use std::time::Duration;

use super::engine::Settings;
use super::exchange::Phase;
use super::faults::{Fault, Faults};
use super::network::Part;
use super::world::World;
use crate::config::Config;
use crate::error::Cause;
use crate::event::Event;
use crate::ids::{ConnId, Epoch};
use crate::pool::PoolLayout;

const SMALL: PoolLayout = PoolLayout::new(1, 1, 1, 3);

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A world in which nothing goes wrong by itself, all of it up.
fn world(settings: Settings, markets: u16) -> World {
    let faults = Faults::none(fastrand::Rng::with_seed(settings.seed));
    let mut world = World::new(settings, faults, markets);
    world.run_till(seconds(60), World::check_well).unwrap();
    world
}

fn small() -> World {
    world(Settings::short(SMALL, 2, 7), 12)
}

fn well_within(world: &mut World, limit: Duration) {
    let end = world.now() + limit;
    world.run_till(end, World::check_well).unwrap();
}

fn pass(world: &mut World, time: Duration) {
    let end = world.now() + time;
    world.run_until(end).unwrap();
}

impl World {
    /// From now on it strikes this often.
    fn set(&self, fault: Fault, per_mille: u32) {
        self.network.borrow_mut().faults.set(fault, per_mille);
    }

    fn link(&self, conn: u16) -> usize {
        self.watch.live[&ConnId::new(conn)].1
    }

    /// The exchange's end of a connection ends so.
    fn end(&mut self, conn: u16, part: Part) {
        let link = self.link(conn);
        self.exchange.end(link, part, &mut self.network.borrow_mut());
    }

    fn downs(&self) -> usize {
        self.events.iter().filter(|event| matches!(event, Event::Down { .. })).count()
    }
}

#[test]
fn d8_a_half_open_connection_is_noticed_in_time_and_no_other_suffers() {
    let mut world = small();
    let link = world.link(5);
    world.network.borrow_mut().sockets[link].severed = true;
    let config = &world.settings.config;
    let limit = config.ping_idle + config.pong_timeout + seconds(1);
    pass(&mut world, limit);
    let down = world.events.iter().find_map(|event| match event {
        Event::Down { conn, cause, .. } => Some((conn.number(), cause.clone())),
        _ => None,
    });
    assert!(matches!(down, Some((5, Cause::Liveness { .. }))), "{down:?}");
    well_within(&mut world, seconds(3));
    assert_eq!(world.downs(), 1);
    world.stop().unwrap();
}

#[test]
fn f1_each_number_that_never_came_is_told_once_and_nothing_is_asked_for() {
    let mut world = small();
    let commands = world.watch.commands.len();
    world.set(Fault::Withheld, 20);
    pass(&mut world, seconds(60));
    world.end_faults();
    pass(&mut world, seconds(10));
    assert_eq!((world.downs(), world.watch.commands.len()), (0, commands));
    world.stop().unwrap();
    let totals = world.exchange.ledger.totals;
    assert!(totals.missing > 10, "{totals:?}");
    assert_eq!((totals.told, totals.dropped), (totals.missing, 0));
}

#[test]
fn f4_a_reconnect_begins_anew_and_tells_of_no_gap() {
    let mut world = small();
    pass(&mut world, seconds(10));
    let before = world.exchange.ledger.totals;
    world.end(2, Part::Reset);
    world.end(4, Part::Reset);
    pass(&mut world, seconds(1));
    well_within(&mut world, seconds(10));
    pass(&mut world, seconds(10));
    let epochs = |conn| world.watch.live[&ConnId::new(conn)].0;
    assert_eq!((epochs(2), epochs(4), epochs(3)), (Epoch::new(2), Epoch::new(2), Epoch::new(1)));
    world.stop().unwrap();
    let after = world.exchange.ledger.totals;
    assert_eq!((after.told, after.missing, after.dropped), (0, 0, 0));
    assert!(after.delivered > before.delivered + 100, "{after:?}");
}

#[test]
fn f9_a_storm_of_gaps_is_told_number_by_number_and_starts_no_storm_of_ours() {
    let mut world = small();
    world.exchange.burst = 20;
    let commands = world.watch.commands.len();
    world.set(Fault::Withheld, 500);
    pass(&mut world, seconds(60));
    assert_eq!((world.downs(), world.watch.commands.len()), (0, commands));
    world.end_faults();
    world.stop().unwrap();
    let totals = world.exchange.ledger.totals;
    assert!(totals.missing > 2_000, "{totals:?}");
    assert_eq!(totals.told, totals.missing, "to the last one, but for the tail");
}

#[test]
fn g5_a_shard_that_fails_by_a_bug_comes_back_with_all_its_markets() {
    let mut world = small();
    world.engine.forgiving = true;
    for conn in [1, 4, 5] {
        let link = world.link(conn);
        world.network.borrow_mut().panics = Some(link);
        world.bugs += 1;
        pass(&mut world, seconds(5));
        well_within(&mut world, seconds(10));
    }
    let restarted = |event: &&Event| matches!(event, Event::ShardRestarted { .. });
    assert_eq!(world.events.iter().filter(restarted).count(), 3);
    // Pairs 1 and 2, 5 and 6 are with the one shard, 3 and 4 with the other.
    let downs: Vec<_> = world
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Down { conn, cause: Cause::Local { .. }, .. } => Some(conn.number()),
            _ => None,
        })
        .collect();
    assert_eq!(downs, [1, 2, 5, 6, 3, 4, 1, 2, 5, 6]);
    assert_eq!(world.downs(), 10, "and for no other reason");
    world.stop().unwrap();
}

#[test]
fn h1_an_hour_forth_and_back_on_peoples_clock_moves_no_timer() {
    // The same life with a clock that jumps and with one that does not; that the exchange's times
    // are an hour off would be told, and is not what this is about.
    let live = |jumps: bool| {
        let mut settings = Settings::short(SMALL, 2, 7);
        settings.config.lag_threshold = Duration::ZERO;
        let mut world = world(settings, 12);
        for hours in [1, 0, -1, 0, 1] {
            if jumps {
                world.network.borrow_mut().clock.wall_shift = hours * 3_600;
            }
            pass(&mut world, seconds(10));
        }
        // Quiet enough for pings of ours to be due.
        (world.exchange.burst, world.exchange.pings) = (0, false);
        pass(&mut world, seconds(30));
        assert_eq!(world.downs(), 0, "{:?}", world.events);
        world.check_well().unwrap();
        let trace = &world.network.borrow().trace;
        (trace.hash, trace.lines, world.exchange.ledger.totals.delivered)
    };
    assert_eq!(live(true), live(false));
}

#[test]
fn h3_what_is_due_in_one_tick_is_done_once_each_and_in_the_same_order_every_time() {
    let live = || {
        let mut world = small();
        (world.exchange.burst, world.exchange.pings) = (0, false);
        for conn in 1..=6 {
            let link = world.link(conn);
            world.network.borrow_mut().sockets[link].severed = true;
        }
        // Nobody has a turn for a minute; then every timer there is is overdue at once.
        (0..world.asleep_until.len()).for_each(|party| world.sleep(party, seconds(60)));
        pass(&mut world, seconds(60));
        let before = world.steps;
        pass(&mut world, seconds(5));
        let steps = world.steps - before;
        let downs = world.events.iter().filter_map(|event| match event {
            Event::Down { conn, cause: Cause::Liveness { .. }, .. } => Some(conn.number()),
            _ => None,
        });
        let downs: Vec<_> = downs.collect();
        well_within(&mut world, seconds(10));
        world.stop().unwrap();
        let hash = world.network.borrow().trace.hash;
        (downs, steps, hash)
    };
    let (downs, steps, hash) = live();
    for shard in 0..2 {
        let own = downs.iter().filter(|conn| (**conn - 1) / 2 % 2 == shard).copied();
        let expected: Vec<_> = (1..=6).filter(|conn| (conn - 1) / 2 % 2 == shard).collect();
        assert_eq!(own.collect::<Vec<u16>>(), expected, "of shard {shard}");
    }
    assert_eq!(downs.len(), 6, "{downs:?}");
    assert!(steps < 300, "{steps} turns and events");
    assert_eq!(live(), (downs, steps, hash));
}

#[test]
fn g6_with_every_wake_up_lost_all_is_done_a_second_later() {
    let mut world = small();
    world.lose_wakes();
    // To the connector, to the shard, and a command and its like.
    world.end(4, Part::Reset);
    for number in [0, 1, 20, 21] {
        world.change(number);
    }
    well_within(&mut world, seconds(10));
    assert_eq!(world.downs(), 1);
    world.stop().unwrap();
}

#[test]
fn h2_a_process_stopped_while_it_waits_for_pongs_gives_nobody_up_that_sent_them() {
    let mut world = small();
    // Nothing comes but the answers to our pings, and those are on their way for long.
    (world.exchange.burst, world.exchange.pings) = (0, false);
    world.set(Fault::Delayed, 1_000);
    for _ in 0..40 {
        pass(&mut world, Duration::from_millis(300));
        (0..world.asleep_until.len()).for_each(|party| world.sleep(party, seconds(60)));
        pass(&mut world, Duration::from_millis(60_100));
        assert_eq!(world.downs(), 0, "{:?}", world.events);
    }
    world.end_faults();
    well_within(&mut world, seconds(1));
    world.stop().unwrap();
}

#[test]
fn j1_all_are_cut_and_refused_for_five_minutes_and_come_back_at_a_civil_pace() {
    let mut settings = Settings::short(PoolLayout::new(2, 2, 2, 24), 3, 11);
    settings.config = Config::builder().message_buffer(100_000);
    let mut world = world(settings, 200);
    let attempts = world.watch.attempts;
    world.befall(Fault::MassDrop);
    world.set(Fault::UpgradeUnavailable, 1_000);
    pass(&mut world, seconds(300));
    assert!(world.watch.live.is_empty());
    assert!(world.watch.attempts - attempts < 600, "{}", world.watch.attempts);
    world.set(Fault::UpgradeUnavailable, 0);
    // The longest delay, and the way in.
    well_within(&mut world, seconds(300 + 20));
    world.stop().unwrap();
}

#[test]
fn j2_an_exchange_that_flaps_for_ten_minutes_is_not_hammered() {
    let mut settings = Settings::short(SMALL, 2, 3);
    settings.config = Config::builder().message_buffer(100_000);
    let mut world = world(settings, 20);
    let mut halves = Vec::new();
    for _ in 0..2 {
        let before = world.watch.attempts;
        for _ in 0..50 {
            world.befall(Fault::MassDrop);
            world.set(Fault::ConnectRefused, 1_000);
            pass(&mut world, seconds(3));
            world.set(Fault::ConnectRefused, 0);
            pass(&mut world, seconds(3));
        }
        halves.push(world.watch.attempts - before);
    }
    assert!(halves[1] < halves[0], "ever rarer: {halves:?}");
    well_within(&mut world, seconds(320));
    world.stop().unwrap();
}

#[test]
fn j6_a_quiet_day_passes_with_pings_alone() {
    let mut settings = Settings::short(PoolLayout::new(1, 0, 1, 1), 1, 5);
    settings.config = Config::builder();
    let mut world = world(settings, 3);
    world.exchange.burst = 0;
    world.exchange.interval = seconds(3_600);
    let commands = world.watch.commands.len();
    pass(&mut world, seconds(24 * 3_600));
    assert_eq!((world.downs(), world.watch.commands.len()), (0, commands));
    assert_eq!(world.watch.attempts, 3, "one each, the day before");
    world.check_well().unwrap();
    world.stop().unwrap();
}
