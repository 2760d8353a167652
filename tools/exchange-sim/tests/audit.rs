//! The auditor's rules, each shown to pass when a loss is told rightly and to fail when it is
//! silent, over-told, delivered twice or carried wrongly.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::net::SocketAddr;

use exchange_sim::{Audit, ConnectionRecord, Ended, Ledger, NumberRange, SidRecord, Verdict};

const CONN: u16 = 7;

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn ranges(list: &[(u64, u64)]) -> Vec<NumberRange> {
    list.iter().map(|&(first, last)| NumberRange { first, last }).collect()
}

fn sid(sid: u64, last_number: u64, control: &[(u64, u64)]) -> SidRecord {
    SidRecord {
        sid,
        channel: "orderbook_delta".to_owned(),
        sequenced: true,
        last_number,
        control_slots: ranges(control),
        withheld: Vec::new(),
        renumbered: Vec::new(),
        first_position: 0,
        last_position: 0,
    }
}

/// A connection whose sids sent one after the other.
fn connection(number: u16, ended: Ended, mut sids: Vec<SidRecord>) -> ConnectionRecord {
    let mut position = 0;
    for sid in &mut sids {
        sid.first_position = position + 1;
        position += sid.last_number;
        sid.last_position = position;
    }
    let peer = address(1_000 + number);
    ConnectionRecord {
        accept_number: number.into(),
        peer,
        upgraded: true,
        unnumbered: 0,
        ended,
        sids,
    }
}

fn ledger(connections: Vec<ConnectionRecord>) -> Ledger {
    Ledger { connections }
}

/// Epoch `n` of the connection came up from the address of ledger connection `n`.
fn up(audit: &mut Audit, epoch: u32) {
    audit.up(CONN, epoch, address(1_000 + u16::try_from(epoch).unwrap()));
}

fn deliver(audit: &mut Audit, epoch: u32, sid: u64, messages: &[(u64, u64)]) {
    for &(number, gap) in messages {
        audit.delivered(CONN, epoch, sid, Some(number), gap, b"");
    }
}

fn run(audit: &mut Audit, epoch: u32, sid: u64, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        audit.delivered(CONN, epoch, sid, Some(number), 0, b"");
    }
}

/// Sent, delivered, covered, unaccounted.
fn sums(verdict: &Verdict) -> [u64; 4] {
    [verdict.sent, verdict.delivered, verdict.covered, verdict.unaccounted]
}

fn one(sid_record: SidRecord, ended: Ended) -> (Audit, Ledger) {
    let mut audit = Audit::default();
    up(&mut audit, 1);
    (audit, ledger(vec![connection(1, ended, vec![sid_record])]))
}

#[test]
fn everything_delivered_is_clean() {
    let (mut audit, book) = one(sid(1, 10, &[(4, 5), (10, 10)]), Ended::Open);
    run(&mut audit, 1, 1, 1..=3);
    run(&mut audit, 1, 1, 6..=9);
    let verdict = audit.settle(&book);
    assert_eq!(sums(&verdict), [7, 7, 0, 0]);
    assert!(verdict.findings.is_empty());
}

#[test]
fn a_gap_must_be_told_exactly() {
    for (told, covered, unaccounted) in [(3, 3, 0), (2, 2, 1), (0, 0, 3), (5, 3, 2)] {
        let (mut audit, book) = one(sid(1, 8, &[]), Ended::Open);
        run(&mut audit, 1, 1, 1..=2);
        deliver(&mut audit, 1, 1, &[(6, told)]);
        run(&mut audit, 1, 1, 7..=8);
        let verdict = audit.settle(&book);
        assert_eq!(sums(&verdict), [8, 5, covered, unaccounted], "told {told}");
        assert_eq!(verdict.findings.is_empty(), unaccounted == 0);
        if unaccounted > 0 {
            let finding = &verdict.findings[0];
            assert!(finding.contains("conn 7 epoch 1 sid 1") && finding.contains('6'), "{finding}");
        }
    }
}

#[test]
fn a_gap_told_where_nothing_is_missing_is_wrong() {
    let (mut audit, book) = one(sid(1, 3, &[]), Ended::Open);
    deliver(&mut audit, 1, 1, &[(1, 0), (2, 1), (3, 0)]);
    assert_eq!(sums(&audit.settle(&book)), [3, 3, 0, 1]);
}

#[test]
fn control_slots_are_nothing_to_miss() {
    // 3 is an answer: between 2 and 5 only 4 is missing.
    for (told, unaccounted) in [(1, 0), (2, 1), (0, 1)] {
        let (mut audit, book) = one(sid(1, 5, &[(3, 3)]), Ended::Open);
        run(&mut audit, 1, 1, 1..=2);
        deliver(&mut audit, 1, 1, &[(5, told)]);
        assert_eq!(audit.settle(&book).unaccounted, unaccounted, "told {told}");
    }
}

#[test]
fn a_withheld_answer_leaves_a_hole_that_must_be_told() {
    for (told, unaccounted) in [(1, 0), (0, 1)] {
        let mut record = sid(1, 3, &[(2, 2)]);
        record.withheld = ranges(&[(2, 2)]);
        let (mut audit, book) = one(record, Ended::Open);
        deliver(&mut audit, 1, 1, &[(1, 0), (3, told)]);
        assert_eq!(audit.settle(&book).unaccounted, unaccounted);
    }
}

#[test]
fn what_is_missing_before_the_first_message_must_be_told() {
    for (told, unaccounted) in [(2, 0), (1, 1), (0, 2), (3, 1)] {
        let (mut audit, book) = one(sid(1, 4, &[]), Ended::Open);
        deliver(&mut audit, 1, 1, &[(3, told), (4, 0)]);
        let verdict = audit.settle(&book);
        assert_eq!(verdict.unaccounted, unaccounted, "told {told}");
        assert_eq!(verdict.covered, told.min(2));
    }
}

#[test]
fn the_tail_of_an_open_or_closed_connection_must_be_told() {
    for ended in [Ended::Open, Ended::ServerClosed(1_001)] {
        for down in [false, true] {
            for (owed, unaccounted) in [(None, 4), (Some(4), 0), (Some(3), 1), (Some(6), 2)] {
                let (mut audit, book) = one(sid(1, 10, &[]), ended);
                run(&mut audit, 1, 1, 1..=6);
                if down {
                    audit.down(CONN, 1);
                }
                if let Some(owed) = owed {
                    audit.owed(CONN, 1, 1, owed);
                }
                let verdict = audit.settle(&book);
                assert_eq!(verdict.unaccounted, unaccounted, "{ended:?} {down} {owed:?}");
                assert_eq!(verdict.covered, owed.unwrap_or(0).min(4));
            }
        }
    }
}

#[test]
fn the_tail_of_a_broken_connection_is_excused_by_its_down() {
    for ended in [Ended::Cut, Ended::PeerReset, Ended::PeerClosed] {
        for (down, unaccounted) in [(true, 0), (false, 4)] {
            let (mut audit, book) = one(sid(1, 10, &[]), ended);
            run(&mut audit, 1, 1, 1..=6);
            if down {
                audit.down(CONN, 1);
            }
            let verdict = audit.settle(&book);
            assert_eq!(verdict.unaccounted, unaccounted, "{ended:?}");
            assert_eq!(verdict.sent, verdict.delivered + verdict.covered + unaccounted);
        }
    }
}

#[test]
fn a_break_does_not_excuse_a_hole_in_the_middle() {
    let (mut audit, book) = one(sid(1, 10, &[]), Ended::Cut);
    deliver(&mut audit, 1, 1, &[(1, 0), (5, 0)]);
    audit.down(CONN, 1);
    assert_eq!(sums(&audit.settle(&book)), [10, 2, 5, 3]);
}

#[test]
fn a_break_does_not_excuse_a_sid_that_was_overtaken() {
    // Sid 1 ended before sid 2 began, and sid 2 arrived: so did all of sid 1.
    let sids = vec![sid(1, 6, &[(6, 6)]), sid(2, 4, &[])];
    let book = ledger(vec![connection(1, Ended::Cut, sids)]);
    let mut audit = Audit::default();
    up(&mut audit, 1);
    audit.down(CONN, 1);
    run(&mut audit, 1, 1, 1..=3);
    run(&mut audit, 1, 2, 1..=2);
    assert_eq!(sums(&audit.settle(&book)), [9, 5, 2, 2]);
    audit.owed(CONN, 1, 1, 2);
    assert_eq!(sums(&audit.settle(&book)), [9, 5, 4, 0]);
}

fn two_epochs(ended: Ended) -> (Audit, Ledger) {
    let book = ledger(vec![
        connection(1, ended, vec![sid(1, 10, &[])]),
        connection(2, Ended::Open, vec![sid(1, 5, &[])]),
    ]);
    let mut audit = Audit::default();
    up(&mut audit, 1);
    up(&mut audit, 2);
    audit.down(CONN, 1);
    run(&mut audit, 1, 1, 1..=6);
    (audit, book)
}

#[test]
fn a_tail_can_be_carried_into_the_next_epoch() {
    // After the exchange's own close exactly the tail; after a cut any part of it.
    let closed = Ended::ServerClosed(1_012);
    let cases = [(closed, 4, 0), (closed, 3, 1), (closed, 5, 1), (closed, 0, 4)];
    let cut = [(Ended::Cut, 4, 0), (Ended::Cut, 2, 0), (Ended::Cut, 0, 0), (Ended::Cut, 5, 1)];
    for (ended, carried, unaccounted) in cases.into_iter().chain(cut) {
        let (mut audit, book) = two_epochs(ended);
        deliver(&mut audit, 2, 1, &[(1, carried), (2, 0), (3, 0), (4, 0), (5, 0)]);
        let verdict = audit.settle(&book);
        assert_eq!(verdict.unaccounted, unaccounted, "{ended:?} {carried}");
        assert_eq!(verdict.delivered, 11);
    }
}

#[test]
fn a_carry_comes_on_top_of_what_is_missing_at_the_start() {
    for (told, unaccounted) in [(6, 0), (7, 1), (5, 1), (2, 4)] {
        let (mut audit, book) = two_epochs(Ended::ServerClosed(1_000));
        deliver(&mut audit, 2, 1, &[(3, told), (4, 0), (5, 0)]);
        assert_eq!(audit.settle(&book).unaccounted, unaccounted, "told {told}");
    }
}

#[test]
fn a_carry_on_a_later_message_is_wrong() {
    let (mut audit, book) = two_epochs(Ended::ServerClosed(1_000));
    deliver(&mut audit, 2, 1, &[(1, 0), (2, 4), (3, 0), (4, 0), (5, 0)]);
    // Four never told, and four told where nothing was missing.
    assert_eq!(audit.settle(&book).unaccounted, 8);
}

#[test]
fn a_carry_told_twice_is_wrong() {
    let (mut audit, book) = two_epochs(Ended::ServerClosed(1_000));
    deliver(&mut audit, 2, 1, &[(1, 4), (2, 0), (3, 0), (4, 0), (5, 0)]);
    audit.owed(CONN, 1, 1, 4);
    assert_eq!(audit.settle(&book).unaccounted, 4);
}

#[test]
fn a_carry_stays_within_its_channel_and_connection() {
    let mut trade = sid(1, 5, &[]);
    trade.channel = "trade".to_owned();
    let book = ledger(vec![
        connection(1, Ended::ServerClosed(1_000), vec![sid(1, 10, &[])]),
        connection(2, Ended::Open, vec![trade]),
    ]);
    let mut audit = Audit::default();
    up(&mut audit, 1);
    up(&mut audit, 2);
    run(&mut audit, 1, 1, 1..=6);
    deliver(&mut audit, 2, 1, &[(1, 4), (2, 0), (3, 0), (4, 0), (5, 0)]);
    assert_eq!(audit.settle(&book).unaccounted, 8);

    let book = ledger(vec![
        connection(1, Ended::ServerClosed(1_000), vec![sid(1, 10, &[])]),
        connection(2, Ended::Open, vec![sid(1, 1, &[])]),
    ]);
    let mut audit = Audit::default();
    up(&mut audit, 1);
    audit.up(8, 1, address(1_002));
    run(&mut audit, 1, 1, 1..=6);
    audit.delivered(8, 1, 1, Some(1), 4, b"");
    assert_eq!(audit.settle(&book).unaccounted, 8);
}

#[test]
fn a_carry_passes_through_epochs_without_messages() {
    let book = ledger(vec![
        connection(1, Ended::ServerClosed(1_000), vec![sid(1, 10, &[])]),
        connection(2, Ended::ServerClosed(1_000), vec![sid(1, 3, &[])]),
        connection(3, Ended::Open, vec![sid(1, 1, &[])]),
    ]);
    for (told, unaccounted) in [(7, 0), (4, 3), (8, 1)] {
        let mut audit = Audit::default();
        for epoch in 1..=3 {
            up(&mut audit, epoch);
        }
        run(&mut audit, 1, 1, 1..=6);
        deliver(&mut audit, 3, 1, &[(1, told)]);
        assert_eq!(audit.settle(&book).unaccounted, unaccounted, "told {told}");
    }
}

#[test]
fn a_carry_explains_first_what_nothing_else_can() {
    // Epoch 1 was closed in order, epoch 2 cut: the carry of 4 belongs to epoch 1.
    let book = ledger(vec![
        connection(1, Ended::ServerClosed(1_000), vec![sid(1, 10, &[])]),
        connection(2, Ended::Cut, vec![sid(1, 3, &[])]),
        connection(3, Ended::Open, vec![sid(1, 1, &[])]),
    ]);
    let mut audit = Audit::default();
    for epoch in 1..=3 {
        up(&mut audit, epoch);
        audit.down(CONN, epoch);
    }
    run(&mut audit, 1, 1, 1..=6);
    deliver(&mut audit, 3, 1, &[(1, 4)]);
    assert_eq!(sums(&audit.settle(&book)), [14, 7, 7, 0]);
}

#[test]
fn a_report_at_the_stop_tells_what_its_sid_took_over() {
    for (under, missed, unaccounted) in [(2, 5, 0), (0, 5, 0), (2, 6, 1), (0, 6, 1), (2, 4, 0)] {
        let mut audit = Audit::default();
        up(&mut audit, 1);
        audit.down(CONN, 1);
        run(&mut audit, 1, 1, 1..=3);
        let sids = vec![sid(1, 6, &[]), sid(2, 2, &[])];
        let book = ledger(vec![connection(1, Ended::PeerClosed, sids)]);
        audit.owed(CONN, 1, under, missed);
        assert_eq!(sums(&audit.settle(&book)), [8, 3, 5, unaccounted], "{missed} under {under}");
    }
}

#[test]
fn nothing_is_delivered_twice() {
    let (mut audit, book) = one(sid(1, 5, &[]), Ended::Open);
    run(&mut audit, 1, 1, 1..=5);
    deliver(&mut audit, 1, 1, &[(3, 0)]);
    let verdict = audit.settle(&book);
    assert_eq!(sums(&verdict), [5, 5, 0, 1]);
    assert!(verdict.findings[0].contains("twice"));
    // A whole overlapping run.
    let (mut audit, book) = one(sid(1, 9, &[]), Ended::Open);
    run(&mut audit, 1, 1, 1..=6);
    run(&mut audit, 1, 1, 4..=9);
    assert_eq!(sums(&audit.settle(&book)), [9, 9, 0, 3]);
}

#[test]
fn nothing_is_delivered_that_was_never_sent() {
    let (mut audit, book) = one(sid(1, 5, &[]), Ended::Open);
    run(&mut audit, 1, 1, 1..=7);
    assert_eq!(sums(&audit.settle(&book)), [5, 5, 0, 2]);
    let (mut audit, book) = one(sid(1, 5, &[]), Ended::Open);
    run(&mut audit, 1, 1, 1..=5);
    deliver(&mut audit, 1, 1, &[(900, 0)]);
    assert_eq!(sums(&audit.settle(&book)), [5, 5, 0, 1]);
    let (mut audit, book) = one(sid(1, 5, &[]), Ended::Open);
    deliver(&mut audit, 1, 1, &[(0, 0)]);
    run(&mut audit, 1, 1, 1..=5);
    assert_eq!(audit.settle(&book).unaccounted, 1);
    // A sid that never existed.
    let (mut audit, book) = one(sid(1, 5, &[]), Ended::Open);
    run(&mut audit, 1, 1, 1..=5);
    run(&mut audit, 1, 2, 1..=3);
    assert_eq!(audit.settle(&book).unaccounted, 3);
}

#[test]
fn answers_are_not_data() {
    let (mut audit, book) = one(sid(1, 5, &[(3, 3)]), Ended::Open);
    run(&mut audit, 1, 1, 1..=5);
    assert_eq!(sums(&audit.settle(&book)), [4, 4, 0, 1]);
    let (mut audit, book) = one(sid(1, 5, &[(5, 5)]), Ended::Open);
    run(&mut audit, 1, 1, 1..=4);
    deliver(&mut audit, 1, 1, &[(5, 0)]);
    assert_eq!(audit.settle(&book).unaccounted, 1);
}

#[test]
fn ticker_numbers_come_from_the_message() {
    let mut record = sid(1, 4, &[]);
    record.sequenced = false;
    record.channel = "ticker".to_owned();
    let text = |number: u64| {
        format!("{{\"type\":\"ticker\",\"sid\":1,\"msg\":{{\"Clock\":{number},\"x\":1}}}}\n")
    };
    for (told, unaccounted) in [(2, 0), (0, 2), (3, 1)] {
        let (mut audit, book) = one(record.clone(), Ended::Open);
        audit.delivered(CONN, 1, 1, None, 0, text(1).as_bytes());
        audit.delivered(CONN, 1, 1, None, told, text(4).as_bytes());
        assert_eq!(audit.settle(&book).unaccounted, unaccounted, "told {told}");
    }
    let (mut audit, book) = one(record, Ended::Open);
    for number in 1..=4 {
        audit.delivered(CONN, 1, 1, None, 0, text(number).as_bytes());
    }
    assert_eq!(audit.settle(&book).unaccounted, 0);
    audit.delivered(CONN, 1, 1, None, 0, b"{\"type\":\"ticker\"}");
    assert_eq!(audit.settle(&book).unaccounted, 1);
}

#[test]
fn withheld_tickers_are_undetectable() {
    let mut record = sid(1, 6, &[]);
    record.sequenced = false;
    record.withheld = ranges(&[(2, 3), (6, 6)]);
    for (told, unaccounted) in [(0, 0), (2, 2)] {
        let (mut audit, book) = one(record.clone(), Ended::Open);
        deliver(&mut audit, 1, 1, &[(1, 0), (4, told), (5, 0)]);
        let verdict = audit.settle(&book);
        assert_eq!(verdict.undetectable, 3);
        assert_eq!(sums(&verdict), [6, 3, 0, unaccounted]);
    }
}

#[test]
fn withheld_sequenced_data_must_be_told() {
    for (told, unaccounted) in [(2, 0), (0, 2)] {
        let mut record = sid(1, 4, &[]);
        record.withheld = ranges(&[(2, 3)]);
        let (mut audit, book) = one(record, Ended::Open);
        deliver(&mut audit, 1, 1, &[(1, 0), (4, told)]);
        let verdict = audit.settle(&book);
        assert_eq!((verdict.undetectable, verdict.unaccounted), (0, unaccounted));
    }
}

#[test]
fn connections_never_reported_up_count() {
    for (ended, unaccounted) in
        [(Ended::Open, 5), (Ended::ServerClosed(1_000), 5), (Ended::Cut, 0), (Ended::PeerReset, 0)]
    {
        let book = ledger(vec![connection(1, ended, vec![sid(1, 5, &[])])]);
        assert_eq!(sums(&Audit::default().settle(&book)), [5, 0, 5 - unaccounted, unaccounted]);
    }
    let mut refused = connection(1, Ended::ServerClosed(401), Vec::new());
    refused.upgraded = false;
    assert_eq!(Audit::default().settle(&ledger(vec![refused])), Verdict::default());
}

#[test]
fn deliveries_without_a_connection_count() {
    let mut audit = Audit::default();
    run(&mut audit, 1, 1, 1..=3);
    assert_eq!(audit.settle(&Ledger::default()).unaccounted, 3);
    up(&mut audit, 1);
    assert_eq!(audit.settle(&Ledger::default()).unaccounted, 3);
    let mut audit = Audit::default();
    audit.owed(CONN, 1, 1, 2);
    assert_eq!(audit.settle(&Ledger::default()).unaccounted, 2);
}

#[test]
fn a_reused_address_goes_to_the_connection_that_fits() {
    let mut first = connection(1, Ended::Cut, vec![sid(1, 3, &[])]);
    let mut second = connection(2, Ended::Open, vec![sid(1, 9, &[])]);
    first.peer = address(5);
    second.peer = address(5);
    let book = ledger(vec![first, second]);
    for turned in [false, true] {
        let mut audit = Audit::default();
        for epoch in if turned { [2, 1] } else { [1, 2] } {
            audit.up(CONN, epoch, address(5));
        }
        audit.down(CONN, 1);
        run(&mut audit, 1, 1, 1..=3);
        run(&mut audit, 2, 1, 1..=9);
        assert_eq!(sums(&audit.settle(&book)), [12, 12, 0, 0], "{turned}");
    }
}

#[test]
fn accounts_of_several_consumers_add_up() {
    let (mut audit, book) = one(sid(1, 100, &[]), Ended::Open);
    let mut other = Audit::default();
    for number in 1..=100 {
        let gap = u64::from(number == 50);
        if number == 49 {
            continue;
        }
        let account = if number % 3 == 0 { &mut audit } else { &mut other };
        account.delivered(CONN, 1, 1, Some(number), gap, b"");
    }
    audit.merge(other);
    assert_eq!(sums(&audit.settle(&book)), [100, 99, 1, 0]);
}

#[test]
fn order_of_calls_does_not_matter() {
    let mut rng = fastrand::Rng::with_seed(4);
    let mut messages: Vec<(u64, u64)> = (1..=200).map(|number| (number, 0)).collect();
    messages.retain(|&(number, _)| !(90..=99).contains(&number));
    for message in &mut messages {
        message.1 = if message.0 == 100 { 10 } else { 0 };
    }
    rng.shuffle(&mut messages);
    let book = ledger(vec![connection(1, Ended::Open, vec![sid(1, 200, &[])])]);
    let mut audit = Audit::default();
    deliver(&mut audit, 1, 1, &messages);
    up(&mut audit, 1);
    assert_eq!(sums(&audit.settle(&book)), [200, 190, 10, 0]);
}

#[test]
fn findings_are_capped_and_the_five_numbers_serialize() {
    let (mut audit, book) = one(sid(1, 1_000, &[]), Ended::Open);
    for number in (1..=1_000).step_by(2) {
        deliver(&mut audit, 1, 1, &[(number, 0)]);
    }
    let verdict = audit.settle(&book);
    assert_eq!(verdict.findings.len(), 50);
    assert_eq!(verdict.unaccounted, 500);
    let text = serde_json::to_string(&verdict).unwrap();
    let want = r#"{"sent":1000,"delivered":500,"covered":0,"undetectable":0,"unaccounted":500}"#;
    assert_eq!(text, want);
}

/// An honest client under random losses, answers and breaks settles at zero; one that swallowed a
/// message and went on never does.
#[test]
fn honest_clients_pass_and_liars_do_not() {
    let mut caught = 0;
    for seed in 0..1_000 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let liar = seed % 2 == 1;
        let mut audit = Audit::default();
        let (mut connections, mut owed, mut swallowed, mut proven) = (Vec::new(), vec![], 0, false);
        let epochs = rng.u32(1..5);
        for epoch in 1..=epochs {
            up(&mut audit, epoch);
            let last = rng.u64(0..60);
            let broken = epoch < epochs && rng.bool();
            let readable = if broken { rng.u64(0..=last) } else { last };
            // Before an epoch's first message a break before it hides how much was carried.
            let (mut control, mut began) = (Vec::new(), false);
            for number in 1..=last {
                if rng.u8(0..10) == 0 {
                    control.push((number, number));
                } else if number > readable {
                    // Lost with the connection.
                } else if rng.u8(0..4) == 0 {
                    owed.push(epoch);
                } else if liar && swallowed == 0 && began {
                    swallowed = epoch;
                } else {
                    let gap = u64::try_from(owed.len()).unwrap();
                    audit.delivered(CONN, epoch, 1, Some(number), gap, b"");
                    owed.clear();
                    began = true;
                    proven |= swallowed == epoch;
                }
            }
            let ended = match (broken, epoch < epochs) {
                (true, _) => Ended::Cut,
                (_, true) => Ended::ServerClosed(1_001),
                _ => Ended::Open,
            };
            if epoch < epochs {
                audit.down(CONN, epoch);
            }
            let number = u16::try_from(epoch).unwrap();
            connections.push(connection(number, ended, vec![sid(1, last, &control)]));
        }
        for epoch in owed {
            audit.owed(CONN, epoch, 1, 1);
        }
        let verdict = audit.settle(&ledger(connections));
        if proven {
            caught += 1;
            assert_ne!(verdict.unaccounted, 0, "seed {seed}: a swallowed message went unnoticed");
        } else if swallowed == 0 {
            assert_eq!(verdict.unaccounted, 0, "seed {seed}: {verdict:?}");
        }
        let told = verdict.delivered + verdict.covered + verdict.unaccounted;
        assert_eq!(told, verdict.sent, "seed {seed}: {verdict:?}");
    }
    assert!(caught > 300, "{caught}");
}
