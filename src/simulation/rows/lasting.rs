//! Rows C and D: connections that end, or should; and what commands leave behind.

use super::*;
use crate::simulation::wire::{TEXT, frame};

/// Why connections were lost.
fn causes(world: &World) -> Vec<(u16, Cause)> {
    let cause = |event: &Event| match event {
        Event::Down { conn, cause, .. } => Some((conn.number(), cause.clone())),
        _ => None,
    };
    world.events.iter().filter_map(cause).collect()
}

#[test]
fn c6_an_end_within_a_frame_is_an_end_and_delivers_nothing_of_it() {
    let mut world = small();
    for (conn, end) in [(2, Part::Fin), (4, Part::Reset), (5, Part::Fin), (6, Part::Reset)] {
        let link = world.link(conn);
        world.exchange.cut(link, Some(end), &mut world.network.borrow_mut());
    }
    well_within(&mut world, seconds(5));
    let causes = causes(&world);
    let ended = |(_, cause): &(u16, Cause)| matches!(cause, Cause::Ended | Cause::Reset);
    assert!(causes.len() == 4 && causes.iter().all(ended), "{causes:?}");
    // The ledger knows of no such message, and takes none.
    world.stop().unwrap();
}

#[test]
fn c9_a_frame_that_takes_a_minute_is_given_up_though_its_bytes_flow() {
    let mut world = small();
    let link = world.link(4);
    // Nothing else comes between its bytes.
    world.exchange.sessions[link].phase = Phase::Over;
    let begun = world.now();
    for byte in frame(TEXT, &[b'x'; 200]) {
        world.exchange.say(link, vec![byte], None, &mut world.network.borrow_mut());
        pass(&mut world, Duration::from_millis(300));
        if world.downs() > 0 {
            break;
        }
    }
    let causes = causes(&world);
    assert!(
        matches!(&causes[..], [(4, Cause::Liveness { message })] if message.contains("part")),
        "{causes:?}"
    );
    let took = world.now() - begun;
    assert!(took < world.settings.config.message_timeout + seconds(1), "{took:?}");
    well_within(&mut world, seconds(5));
    world.stop().unwrap();
}

#[test]
fn d6_an_end_without_a_close_is_retried_at_once_and_then_ever_more_slowly() {
    let mut world = small();
    world.end(4, Part::Fin);
    well_within(&mut world, Duration::from_millis(1_500));
    world.end(5, Part::Reset);
    world.set(Fault::ConnectRefused, 1_000);
    pass(&mut world, seconds(60));
    let delays: Vec<_> = world
        .events
        .iter()
        .filter_map(|event| match event {
            Event::AttemptFailed { conn, retry_in, .. } if conn.number() == 5 => Some(*retry_in),
            _ => None,
        })
        .collect();
    let config = &world.settings.config;
    // The first delay, below a second, was that of the loss.
    let ceiling =
        |n: i32| config.reconnect_initial.mul_f64(2_f64.powi(n)).min(config.reconnect_max);
    assert!((1..).zip(&delays).all(|(n, delay)| *delay <= ceiling(n)), "{delays:?}");
    assert!(delays.iter().max().unwrap() > &seconds(3), "{delays:?}");
    assert!((5..30).contains(&delays.len()), "{delays:?}");
    world.set(Fault::ConnectRefused, 0);
    well_within(&mut world, seconds(10));
    assert_eq!(causes(&world), [(4, Cause::Ended), (5, Cause::Reset)]);
    world.stop().unwrap();
}

#[test]
fn d7_an_exchange_that_never_answers_our_close_has_a_second() {
    let mut world = small();
    for conn in 1..=6 {
        let link = world.link(conn);
        world.network.borrow_mut().sockets[link].severed = true;
    }
    let asked = world.now();
    world.stop().unwrap();
    let took = world.now() - asked;
    assert!(took >= seconds(1) && took < Duration::from_millis(1_500), "{took:?}");
}

#[test]
fn d9_whatever_comes_from_it_is_life_and_what_we_send_is_not() {
    let mut world = small();
    world.exchange.burst = 0;
    // It never pings: ours are answered.
    world.exchange.pings = false;
    pass(&mut world, seconds(60));
    // It never answers: its own are enough.
    (world.exchange.pings, world.exchange.pongs) = (true, false);
    for conn in 1..=6 {
        let link = world.link(conn);
        world.exchange.ping(link, &mut world.network.borrow_mut());
    }
    pass(&mut world, seconds(60));
    assert_eq!(world.downs(), 0, "{:?}", causes(&world));
    // Neither: our pings alone are no life.
    world.exchange.pings = false;
    pass(&mut world, seconds(10));
    let causes = causes(&world);
    let silent = |(_, cause): &(u16, Cause)| matches!(cause, Cause::Liveness { .. });
    assert!(causes.len() >= 6 && causes.iter().all(silent), "{causes:?}");
    (world.exchange.pings, world.exchange.pongs) = (true, true);
    well_within(&mut world, seconds(20));
    world.stop().unwrap();
}

#[test]
fn d12_a_subscription_that_falls_silent_is_told_of_and_its_socket_lives() {
    let mut world = small();
    let link = world.link(4);
    world.exchange.muted.insert(link);
    pass(&mut world, seconds(60));
    let told = |world: &World, heard: bool| -> Vec<u16> {
        let about = |event: &Event| match event {
            Event::Silent { conn, .. } if !heard => Some(conn.number()),
            Event::Heard { conn, .. } if heard => Some(conn.number()),
            _ => None,
        };
        world.events.iter().filter_map(about).collect()
    };
    assert_eq!((told(&world, false), told(&world, true)), (vec![4], vec![]));
    world.exchange.muted.clear();
    pass(&mut world, seconds(5));
    assert_eq!((told(&world, false), told(&world, true)), (vec![4], vec![4]));
    assert_eq!(world.downs(), 0);
    world.stop().unwrap();
}

#[test]
fn e3_a_market_added_after_it_was_deleted_is_told_of_by_the_late_reply_alone() {
    let mut world = small();
    for _ in 0..10 {
        // Asked for, overtaken, and unwanted meanwhile; the exchange carries it out at some time.
        world.set(Fault::CommandSlow, 1_000);
        world.change(40);
        pass(&mut world, Duration::from_millis(500));
        world.set(Fault::CommandSlow, 0);
        world.change(40);
        pass(&mut world, seconds(20));
        well_within(&mut world, seconds(5));
    }
    assert!(world.struck(Fault::CommandSlow) >= 10);
    world.stop().unwrap();
}
