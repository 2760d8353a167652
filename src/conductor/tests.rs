//! The conductor in virtual time, with the connector and the shards played by the test: the life
//! of all connections together, storms and refusals.

use std::collections::VecDeque;

use crossbeam_channel::bounded;

use super::*;
use crate::code::ExchangeCode;
use crate::command::{Ended, Outcome};
use crate::config::Config;
use crate::gap::Gaps;
use crate::mailbox::Adoption;
use crate::pool::PoolLayout;
use crate::subscription::SubscriptionSettings;

const POOL: PoolLayout = PoolLayout::new(2, 2, 2, 144);
const SHARDS: usize = 2;

/// How the exchange takes an attempt.
type Taking = Result<(), Cause>;

/// A conductor of the default pool and settings, and everyone it talks to.
struct World {
    conductor: Conductor<()>,
    dials: Receiver<Dial>,
    shards: Vec<Receiver<Order<()>>>,
    dialed: Sender<Dialed<()>>,
    reports: Sender<Report>,
    lost: Sender<Lost>,
    control: Sender<Control>,
    stop_requested: Arc<AtomicBool>,
    events: Receiver<Event>,
    started: Receiver<Result<(), StartError>>,
    counters: Arc<Counters>,
    start: Instant,
    now: Instant,
    /// Attempts under way, and when they are answered.
    under_way: VecDeque<(Instant, ConnId, Epoch)>,
    /// Every attempt, and its connection.
    attempts: Vec<(Instant, ConnId)>,
    live: BTreeMap<ConnId, Epoch>,
}

impl World {
    fn new() -> Self {
        Self::speaking(Dialect::Live)
    }

    fn speaking(dialect: Dialect) -> Self {
        let settings = Config::builder().dialect(dialect);
        let wake: crate::resolve::Wake = Arc::new(|| {});
        let (dial_sender, dials) = bounded(1_000);
        let (shard_senders, shards): (Vec<_>, Vec<_>) =
            (0..SHARDS).map(|_| bounded(10_000)).unzip();
        let (dialed, dialed_receiver) = bounded(1_000);
        let (reports, report_receiver) = bounded(10_000);
        let (lost, lost_receiver) = bounded(10);
        let (control, control_receiver) = bounded(4);
        let stop_requested: Arc<AtomicBool> = Arc::default();
        let (event_sender, events) = bounded(100_000);
        let (started, start_receiver) = bounded(1);
        let now = crate::clock::now();
        let counters = Arc::new(Counters::new(POOL, SHARDS, Arc::default()));
        let mailbox = |orders| Mailbox { orders, wake: Arc::clone(&wake) };
        let inputs = Inputs {
            control: control_receiver,
            changes: never(),
            dialed: dialed_receiver,
            reports: report_receiver,
            lost: lost_receiver,
        };
        let parts = ConductorParts {
            inputs,
            connector: Mailbox { orders: dial_sender, wake: Arc::clone(&wake) },
            shards: shard_senders.into_iter().map(mailbox).collect(),
            events: event_sender,
            counters: Arc::clone(&counters),
            subscriptions: Subscriptions::new(
                POOL.iter(),
                SubscriptionSettings::new(&settings),
                now,
            ),
            backoff: Backoff {
                initial: settings.reconnect_initial,
                max: settings.reconnect_max,
                factor: settings.reconnect_factor,
            },
            connect_interval: settings.connect_interval,
            connect_timeout: settings.connect_timeout,
            start_timeout: settings.start_timeout,
            min_healthy: 1,
            dialect: settings.dialect,
            command_events: false,
            seed: 11,
            stop_requested: Arc::clone(&stop_requested),
            started,
        };
        Self {
            conductor: Conductor::new(parts, now),
            dials,
            shards,
            dialed,
            reports,
            lost,
            control,
            stop_requested,
            events,
            started: start_receiver,
            counters,
            start: now,
            now,
            under_way: VecDeque::new(),
            attempts: Vec::new(),
            live: BTreeMap::new(),
        }
    }

    /// Runs this long; every attempt is answered after 20 ms, by what `taking` says then.
    fn run(&mut self, time: Duration, mut taking: impl FnMut(Duration, ConnId) -> Taking) {
        let end = self.now + time;
        loop {
            let next = self.conductor.step(self.now);
            for dial in self.dials.try_iter() {
                let Dial::Begin { conn, epoch, .. } = dial else { continue };
                self.attempts.push((self.now, conn));
                self.under_way.push_back((self.now + Duration::from_millis(20), conn, epoch));
            }
            self.shards.iter().for_each(|orders| orders.try_iter().for_each(drop));
            let due = match next {
                Next::Now => self.now,
                Next::At(at) => at.unwrap_or(end).max(self.now),
                Next::Done => return,
            };
            let answer = self.under_way.front().map(|(at, ..)| *at);
            let until = answer.map_or(due, |answer| answer.min(due));
            if until >= end {
                self.now = end;
                return;
            }
            self.now = until;
            while self.under_way.front().is_some_and(|(at, ..)| *at <= until) {
                let (_, conn, epoch) = self.under_way.pop_front().unwrap();
                self.answer(conn, epoch, taking(until - self.start, conn));
            }
        }
    }

    fn answer(&mut self, conn: ConnId, epoch: Epoch, taking: Taking) {
        let role = POOL.role(conn).unwrap();
        self.dialed
            .send(match taking {
                Err(cause) => Dialed::Failed { conn, epoch, cause },
                Ok(()) => {
                    self.live.insert(conn, epoch);
                    let unread = Vec::new();
                    let adoption = Box::new(Adoption { conn, epoch, role, link: (), unread });
                    Dialed::Up { adoption, local_addr: ([127, 0, 0, 1], 1).into() }
                }
            })
            .unwrap();
    }

    /// The exchange answers every command it was sent in this way.
    fn end_all(&mut self, outcome: Outcome) {
        for order in self.shards.iter().flat_map(Receiver::try_iter) {
            let Order::Command { conn, epoch, request } = order else { continue };
            let sid = outcome.is_ok().then_some(crate::ids::Sid::new(1));
            let (id, expects) = (request.id, request.expects);
            let ended = Ended { id, expects, outcome, sid, detail: None };
            self.reports.send(Report::Ended { conn, epoch, ended }).unwrap();
        }
    }

    /// Every live connection for which `which` says so is lost for this cause.
    fn lose(&mut self, cause: &Cause, which: impl Fn(ConnId) -> bool) {
        let lost: Vec<_> =
            self.live.iter().filter(|(conn, _)| which(**conn)).map(|(c, e)| (*c, *e)).collect();
        for (conn, epoch) in lost {
            self.live.remove(&conn);
            let cause = cause.clone();
            let at =
                crate::clock::Stamp { wall: std::time::SystemTime::UNIX_EPOCH, mono: self.now };
            let (heard, last_data) = (true, self.now);
            self.reports.send(Report::Down { conn, epoch, cause, heard, last_data, at }).unwrap();
        }
    }

    /// What each global line's command of this number came to.
    fn end_globals(&mut self, id: u64, outcome: Outcome) {
        for (&conn, &epoch) in self.live.iter().filter(|(conn, _)| conn.number() <= 6) {
            let (id, sid) = (crate::ids::CommandId::new(id), Some(crate::ids::Sid::new(1)));
            let expects = crate::request::Expects::Subscription;
            let ended = Ended { id, expects, outcome, sid, detail: None };
            self.reports.send(Report::Ended { conn, epoch, ended }).unwrap();
        }
    }

    fn seen(&self, which: impl Fn(&Event) -> bool) -> usize {
        self.events.try_iter().filter(|event| which(event)).count()
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn status(status: u16, retry_after: Option<u64>) -> Cause {
    let retry_after = retry_after.map(seconds);
    Cause::Upgrade { status, detail: String::new(), retry_after }
}

/// The most attempts within any second.
fn busiest_second(attempts: &[(Instant, ConnId)]) -> usize {
    let within = |first: Instant| {
        attempts.iter().filter(|(at, _)| (first..first + seconds(1)).contains(at)).count()
    };
    attempts.iter().map(|(at, _)| within(*at)).max().unwrap_or(0)
}

#[test]
fn j1_a_mass_drop_and_five_minutes_of_refusals_end_with_all_live_at_a_civil_pace() {
    let mut world = World::new();
    world.run(seconds(60), |_, _| Ok(()));
    assert_eq!((world.live.len(), world.attempts.len()), (150, 150));
    world.attempts.clear();
    world.lose(&Cause::Reset, |_| true);
    world.run(seconds(300), |_, _| Err(status(503, None)));
    assert!(world.live.is_empty());
    let refused = world.attempts.len();
    world.run(seconds(310), |_, _| Ok(()));
    assert_eq!(world.live.len(), 150, "none is left behind");
    let busiest = busiest_second(&world.attempts);
    println!(
        "{refused} refused, {} attempts in all, {busiest} in one second",
        world.attempts.len()
    );
    assert!(busiest <= 21, "{busiest} in one second");
    // Whoever was refused for five minutes does not come back together: by tens of seconds of the
    // five minutes after, no bucket has twice the mean of those that have any.
    let back = world.now - seconds(310);
    let mut buckets = [0_usize; 31];
    for (at, _) in world.attempts.iter().filter(|(at, _)| *at >= back) {
        buckets[usize::try_from((*at - back).as_secs() / 10).unwrap()] += 1;
    }
    let spread = buckets.iter().filter(|&&count| count > 0).count();
    assert!(spread >= 20, "{buckets:?}");
    assert!(buckets.iter().all(|&count| count <= 2 * 150 / spread + 5), "{buckets:?}");
    let reconnects: u64 = world.counters.control.reconnects.iter().map(|c| c.total()).sum();
    assert_eq!(reconnects, 150);
}

#[test]
fn j2_a_server_that_flaps_does_not_reset_the_backoff() {
    let mut world = World::new();
    for _ in 0..100 {
        world.run(seconds(3), |_, _| Ok(()));
        world.lose(&Cause::Ended, |_| true);
        world.run(seconds(3), |_, _| {
            Err(Cause::Tcp { address: String::new(), message: String::new() })
        });
    }
    let late = world.attempts.iter().filter(|(at, _)| *at >= world.now - seconds(300)).count();
    println!("{} attempts, {late} in the second half", world.attempts.len());
    assert!(late < world.attempts.len() / 3, "ever rarer");
    assert!(world.under_way.len() <= 150);
    // Once it stands still, all come back and prove themselves; then it starts from zero.
    world.run(seconds(400), |_, _| Ok(()));
    assert_eq!(world.live.len(), 150);
    world.attempts.clear();
    world.lose(&Cause::Ended, |_| true);
    world.run(seconds(20), |_, _| Ok(()));
    assert_eq!(world.live.len(), 150, "within a second each, but for the pace");
}

#[test]
fn b1_a_refused_key_halts_all_at_once_and_hammers_nobody() {
    let mut world = World::new();
    let key =
        Cause::Upgrade { status: 401, detail: "authentication_error".into(), retry_after: None };
    world.run(seconds(3_600), |_, _| Err(key.clone()));
    assert_eq!(world.attempts.len(), 150, "one each");
    assert_eq!(world.seen(|event| matches!(event, Event::Halted { .. })), 150);
    assert_eq!(world.counters.control.halted.total(), 150);
}

#[test]
fn b3_a_wrong_path_halts_after_three_each() {
    let mut world = World::new();
    world.run(seconds(3_600), |_, _| Err(status(404, None)));
    assert_eq!(world.attempts.len(), 450);
    assert!(busiest_second(&world.attempts[150..]) <= 21);
}

#[test]
fn b4_too_many_attempts_slow_the_whole_process_and_retry_after_is_kept() {
    let mut world = World::new();
    world.run(seconds(60), |_, _| Ok(()));
    world.lose(&Cause::Reset, |_| true);
    world.attempts.clear();
    world.run(seconds(60), |_, _| Err(status(429, Some(7))));
    let mut last = BTreeMap::new();
    for (at, conn) in &world.attempts {
        if let Some(before) = last.insert(*conn, *at) {
            assert!(*at - before >= seconds(7), "{conn} came back too soon");
        }
    }
    let later: Vec<_> =
        world.attempts.iter().filter(|(at, _)| *at > world.now - seconds(30)).copied().collect();
    assert!(busiest_second(&later) <= 2, "down from twenty a second");
    world.run(seconds(400), |_, _| Ok(()));
    assert_eq!(world.live.len(), 150);
}

#[test]
fn b2_an_expired_time_is_tried_again_and_never_halts() {
    let expired = Cause::Upgrade {
        status: 401,
        detail: "header_timestamp_expired".into(),
        retry_after: None,
    };
    let mut world = World::new();
    world.run(seconds(60), |_, _| Err(expired.clone()));
    world.run(seconds(400), |_, _| Ok(()));
    assert_eq!(world.live.len(), 150);
    assert_eq!(world.seen(|event| matches!(event, Event::Halted { .. })), 0);
}

#[test]
fn d3_policy_closes_halt_only_who_was_closed_three_times() {
    let policy = Cause::PeerClosed { code: Some(1008), reason: String::new() };
    let mut world = World::new();
    for _ in 0..3 {
        world.run(seconds(20), |_, _| Ok(()));
        world.lose(&policy, |conn| conn.number() <= 10);
    }
    world.run(seconds(60), |_, _| Ok(()));
    assert_eq!(world.live.len(), 140);
    assert_eq!(world.counters.control.halted.total(), 10);
}

#[test]
fn g5_a_lost_shard_halts_its_own_connections_and_no_other() {
    let mut world = World::new();
    world.run(seconds(60), |_, _| Ok(()));
    world.lost.send(Lost::shard(crate::ids::ShardId::new(1))).unwrap();
    world.run(seconds(60), |_, _| Ok(()));
    let thread = "kf-shard-1".to_owned();
    let events: Vec<_> = world.events.try_iter().collect();
    assert!(events.contains(&Event::ThreadLost { thread }));
    let halted = events.iter().filter(|event| matches!(event, Event::Halted { .. })).count();
    assert_eq!((halted, world.counters.control.halted.total()), (74, 74));
    let healthy: u64 = world.counters.control.connections_healthy.iter().map(|c| c.total()).sum();
    assert_eq!(healthy, 76, "pairs 1, 3, 5 … live on");
}

#[test]
fn g5_a_connection_of_a_lost_shard_is_halted_once_whichever_end_is_heard_first() {
    let mut world = World::new();
    world.run(seconds(60), |_, _| Ok(()));
    let shards = SHARDS;
    world.lose(&Cause::Stopped, |conn| shard_of(conn, shards) == 1);
    world.run(seconds(1), |_, _| Ok(()));
    world.lost.send(Lost::shard(crate::ids::ShardId::new(1))).unwrap();
    world.run(seconds(60), |_, _| Ok(()));
    assert_eq!(world.counters.control.halted.total(), 74);
    assert_eq!(world.seen(|event| matches!(event, Event::Halted { .. })), 74);
}

#[test]
fn g5_a_lost_connector_is_told_of_and_what_is_live_lives_on() {
    let mut world = World::new();
    world.run(seconds(60), |_, _| Ok(()));
    let thread = "kf-connector".to_owned();
    world.lost.send(Lost { thread: thread.clone(), shard: None }).unwrap();
    world.dials = never();
    world.lose(&Cause::Reset, |conn| conn.number() == 7);
    world.run(seconds(60), |_, _| Ok(()));
    let events: Vec<_> = world.events.try_iter().collect();
    assert!(events.contains(&Event::ThreadLost { thread }));
    let halted: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Halted { conn, cause: Cause::Local { message }, .. } => Some((conn, message)),
            _ => None,
        })
        .collect();
    assert!(
        matches!(&halted[..], [(conn, message)]
        if conn.number() == 7 && message.contains("connector")),
        "{halted:?}"
    );
    let healthy: u64 = world.counters.control.connections_healthy.iter().map(|c| c.total()).sum();
    assert_eq!(healthy, 149);
}

#[test]
fn e10_a_global_subscription_refused_in_passing_does_not_end_the_start() {
    use ExchangeCode::{InternalError, TooManyRequests, UnableToProcess, UnknownChannel};
    for code in [TooManyRequests, InternalError, UnableToProcess, UnknownChannel] {
        for heals in [true, false] {
            let mut world = World::new();
            world.run(seconds(10), |_, _| Ok(()));
            world.end_globals(1, Outcome::Rejected { code });
            world.run(seconds(5), |_, _| Ok(()));
            let rejected = |world: &World| match world.started.try_recv().unwrap() {
                Err(StartError::GlobalRejected { code, .. }) => Some(code),
                other => other.map(|()| None).unwrap(),
            };
            if code == UnknownChannel {
                assert_eq!(rejected(&world), Some(code), "asking again helps nobody");
                continue;
            }
            assert!(world.started.is_empty(), "{code} may pass");
            if heals {
                world.end_globals(2, Outcome::Ok);
                world.run(seconds(1), |_, _| Ok(()));
                assert_eq!(rejected(&world), None);
            } else {
                world.run(seconds(30), |_, _| Ok(()));
                assert_eq!(rejected(&world), Some(code), "it says what was wrong");
            }
        }
    }
}

#[test]
fn e10_a_refusal_in_passing_does_not_hide_why_connections_are_missing() {
    let mut world = World::new();
    world.conductor.parts.min_healthy = 100;
    let taking = |_, conn: ConnId| match conn.number() {
        ..=6 => Ok(()),
        _ => Err(status(503, None)),
    };
    world.run(seconds(10), taking);
    world.end_globals(1, Outcome::Rejected { code: ExchangeCode::TooManyRequests });
    world.run(seconds(30), taking);
    let Err(StartError::Timeout { healthy, causes }) = world.started.try_recv().unwrap() else {
        panic!("of 144 connections nothing is said")
    };
    assert_eq!((healthy, causes.len()), (6, 144));
}

#[test]
fn an_attempt_the_connector_never_answers_is_given_up_a_second_after_its_time() {
    let mut world = World::new();
    world.conductor.step(world.now);
    world.dials.try_iter().for_each(drop);
    world.now += seconds(10);
    world.conductor.step(world.now);
    assert_eq!(world.seen(|_| true), 0);
    world.now += seconds(1);
    world.conductor.step(world.now);
    let failed =
        |event: &Event| matches!(event, Event::AttemptFailed { cause: Cause::Local { .. }, .. });
    assert_eq!(world.seen(failed), 150);
}

#[test]
fn g6_with_the_queue_of_questions_full_a_request_to_stop_is_seen_all_the_same() {
    let mut world = World::new();
    world.run(seconds(60), |_, _| Ok(()));
    let question = || {
        // Whoever asked has gone.
        let (reply, _) = bounded(1);
        Control::Subscription { ticker: "M".parse().unwrap(), reply }
    };
    (0..4).for_each(|_| world.control.try_send(question()).unwrap());
    assert!(world.control.try_send(Control::Wake).is_err(), "bounded");
    world.stop_requested.store(true, Ordering::Release);
    world.conductor.step(world.now);
    assert!(world.control.is_empty());
    let stopped = |order| matches!(order, Order::Stop { .. });
    assert!(world.shards.iter().all(|orders| orders.try_iter().any(stopped)));
    assert!(world.dials.try_iter().any(|dial| matches!(dial, Dial::Stop)));
}

#[test]
fn j9_a_thousand_markets_refused_at_once_are_a_line_a_second() {
    let mut world = World::speaking(Dialect::Legacy);
    world.run(seconds(60), |_, _| Ok(()));
    for number in 0..1_000 {
        world.conductor.parts.subscriptions.want(&format!("M{number}"), 0, world.now);
    }
    let lines = crate::hush::tests::lines_of(|| {
        for _ in 0..1_000 {
            world.now += Duration::from_millis(10);
            world.conductor.step(world.now);
            world.end_all(Outcome::Rejected { code: ExchangeCode::InvalidParameter });
        }
    });
    let refused = world.counters.control.markets_refused.total();
    let told = lines.iter().filter(|line| line.contains("refuses")).count();
    println!("{told} lines of {refused} markets");
    assert!(refused > 500 && (1..=11).contains(&told), "{told} of {refused} in ten seconds");
}

#[test]
fn i7_an_outcome_of_an_earlier_epoch_ends_nothing_in_this_one() {
    let mut world = World::new();
    world.run(seconds(60), |_, _| Ok(()));
    let conn = ConnId::new(7);
    let ended = |outcome, sid| Ended {
        id: crate::ids::CommandId::new(1),
        expects: crate::request::Expects::Subscription,
        outcome,
        sid,
        detail: None,
    };
    world.conductor.parts.subscriptions.want("M", 0, world.now);
    world.run(seconds(1), |_, _| Ok(()));
    world.lose(&Cause::Reset, |_| true);
    world.run(seconds(60), |_, _| Ok(()));
    let (lost, sid) = (ended(Outcome::ConnectionLost, None), Some(crate::ids::Sid::new(1)));
    world.reports.send(Report::Ended { conn, epoch: Epoch::new(1), ended: lost }).unwrap();
    let done = ended(Outcome::Ok, sid);
    world.reports.send(Report::Ended { conn, epoch: Epoch::new(2), ended: done }).unwrap();
    world.run(seconds(1), |_, _| Ok(()));
    assert_eq!(world.counters.control.markets.total(), 1, "the market is confirmed");
}

#[test]
fn f1_all_markets_that_become_suspect_are_named_a_thousand_at_a_time() {
    let mut world = World::new();
    let last = ConnId::new(150);
    world.run(seconds(60), |_, conn| match conn {
        conn if conn == last || conn.number() <= 6 => Ok(()),
        _ => Err(status(503, None)),
    });
    for number in 0..2_500 {
        world.conductor.parts.subscriptions.want(&format!("M{number}"), 0, world.now);
    }
    while world.conductor.parts.subscriptions.totals() != (2_500, 2_500) {
        world.conductor.step(world.now);
        world.end_all(Outcome::Ok);
    }
    world.events.try_iter().for_each(drop);
    let gaps = Gaps { sids: vec![crate::ids::Sid::new(1)], last: 1, since: world.now };
    world.reports.send(Report::Gaps { conn: last, epoch: world.live[&last], gaps }).unwrap();
    world.conductor.step(world.now);
    let named = world.events.try_iter().filter_map(|event| match event {
        Event::Suspect { markets, total: 2_500, .. } => Some(markets),
        _ => None,
    });
    let named: Vec<_> = named.collect();
    assert_eq!(named.iter().map(Vec::len).collect::<Vec<_>>(), [1_000, 1_000, 500]);
    assert_eq!(named.iter().flatten().collect::<std::collections::BTreeSet<_>>().len(), 2_500);
}

#[test]
fn f1_a_gap_told_before_the_reply_that_says_whose_it_is_is_repaired() {
    let mut world = World::speaking(Dialect::Legacy);
    world.run(seconds(60), |_, _| Ok(()));
    let orders = |world: &World| -> Vec<(ConnId, Epoch, crate::request::Request)> {
        let all = world.shards.iter().flat_map(Receiver::try_iter);
        let command = |order| match order {
            Order::Command { conn, epoch, request } => Some((conn, epoch, request)),
            _ => None,
        };
        all.filter_map(command).collect()
    };
    orders(&world);
    world.conductor.parts.subscriptions.want("M", 0, world.now);
    world.conductor.step(world.now);
    let [(conn, epoch, ref request)] = orders(&world)[..] else { panic!() };
    let (sid, id, expects) = (crate::ids::Sid::new(5), request.id, request.expects);
    let gaps = Gaps { sids: vec![sid, crate::ids::Sid::new(6)], last: 1, since: world.now };
    world.reports.send(Report::Gaps { conn, epoch, gaps }).unwrap();
    let ended = Ended { id, expects, outcome: Outcome::Ok, sid: Some(sid), detail: None };
    world.reports.send(Report::Ended { conn, epoch, ended }).unwrap();
    world.conductor.step(world.now);
    assert_eq!(world.seen(|event| matches!(event, Event::Suspect { total: 1, .. })), 1);
    let [(.., ref request)] = orders(&world)[..] else { panic!() };
    assert_eq!(request.expects, crate::request::Expects::End(sid));
    assert_eq!(world.conductor.parts.subscriptions.take_early_gap(conn), None, "once");
}
