//! Rows A and B: connections that do not come about.

use super::*;
use crate::error::Stage;

/// The attempts that failed since the world was well.
fn failures(world: &World) -> Vec<(u16, Cause)> {
    let failure = |event: &Event| match event {
        Event::AttemptFailed { conn, cause, .. } => Some((conn.number(), cause.clone())),
        _ => None,
    };
    world.events.iter().filter_map(failure).collect()
}

/// A connection is cut, and this strikes every attempt.
fn cut_under(world: &mut World, conn: u16, fault: Fault) {
    world.set(fault, 1_000);
    world.end(conn, Part::Reset);
}

#[test]
fn a1_a_name_service_that_is_away_costs_nobody_a_connection() {
    let mut world = small();
    cut_under(&mut world, 4, Fault::ResolveFails);
    // The last addresses go on being used.
    well_within(&mut world, seconds(3));
    // The same with one that hangs: after a quarter of the attempt's time.
    world.set(Fault::ResolveFails, 0);
    world.network.borrow_mut().name_service = false;
    world.end(5, Part::Reset);
    well_within(&mut world, seconds(4));
    assert_eq!(failures(&world), []);
    assert_eq!(world.downs(), 2, "those that were cut");
    world.stop().unwrap();
}

#[test]
fn a2_an_address_where_nobody_answers_costs_its_share_and_no_attempt() {
    let settings = Settings::short(SMALL, 2, 7);
    let limit = settings.config.connect_timeout;
    let mut world = World::new(settings, Faults::none(fastrand::Rng::with_seed(7)), 12);
    let hole = ([10, 0, 0, 1], 443).into();
    world.network.borrow_mut().black_holes.insert(hole);
    world.run_till(limit, World::check_well).unwrap();
    assert_eq!(failures(&world), []);
    assert!(world.now() >= limit / 2, "the other of two had the rest of the time");
    // From now on it is tried last.
    let before = world.now();
    world.end(4, Part::Reset);
    well_within(&mut world, limit / 2);
    assert_eq!(failures(&world), []);
    assert!(world.now() - before < limit / 2);
    world.stop().unwrap();
}

#[test]
fn a4_a_black_hole_ends_at_the_deadline_with_its_socket_closed() {
    let mut world = small();
    let sockets = world.network.borrow().sockets.len();
    cut_under(&mut world, 4, Fault::ConnectHangs);
    let limit = world.settings.config.connect_timeout;
    let mut begun = None;
    while failures(&world).is_empty() {
        if begun.is_none() && world.network.borrow().sockets.len() > sockets {
            begun = Some(world.now());
        }
        pass(&mut world, Duration::from_millis(1));
    }
    let took = world.now() - begun.unwrap();
    assert!(took + Duration::from_millis(10) > limit, "{took:?}");
    assert!(took < limit + Duration::from_millis(10), "{took:?}");
    let stage = Stage::Connecting;
    assert_eq!(failures(&world), [(4, Cause::Timeout { stage })]);
    let open = world.network.borrow().sockets[sockets..].iter().any(|socket| socket.open);
    assert!(!open, "nothing is left open");
    world.set(Fault::ConnectHangs, 0);
    well_within(&mut world, seconds(10));
    assert_eq!(world.downs(), 1);
    world.stop().unwrap();
}

#[test]
fn b6_half_an_answer_ends_at_the_deadline_and_holds_up_nobody() {
    let mut world = small();
    cut_under(&mut world, 4, Fault::UpgradeHangs);
    pass(&mut world, seconds(1));
    // While it waits for its answer, another is cut and comes back.
    world.set(Fault::UpgradeHangs, 0);
    world.end(5, Part::Reset);
    pass(&mut world, seconds(2));
    assert!(world.watch.live.contains_key(&ConnId::new(5)));
    assert!(!world.watch.live.contains_key(&ConnId::new(4)), "still waiting");
    well_within(&mut world, seconds(15));
    let stage = Stage::Upgrading;
    assert_eq!(failures(&world), [(4, Cause::Timeout { stage })]);
    assert_eq!(world.downs(), 2);
    world.stop().unwrap();
}
