//! The room, the hand-off and the lending, on one thread and on many.

use super::*;
use crate::batch::Continuity;
use crate::ids::Seq;

const CONN: ConnId = ConnId::new(1);

fn fill(outlet: &mut Outlet, messages: usize) -> Box<Buffer> {
    let stamp = crate::clock::stamp();
    let mut received = vec![b'm'; messages];
    let mut batch = outlet.batch(&mut received, (CONN, Epoch::new(1), Role::Trade), stamp);
    for index in 0..messages {
        batch.entries.push(Entry {
            start: index,
            end: index + 1,
            sid: None,
            seq: Some(Seq::new(widen(index))),
            gap_size: 0,
            continuity: Continuity::Next,
            suspect: false,
        });
    }
    batch
}

fn handoff(messages: usize, bytes: usize) -> (Handoff, Outlet, Messages) {
    let (handoff, messages) = Handoff::new(1, messages, bytes);
    let outlet = handoff.outlet(ShardId::new(0)).unwrap();
    (handoff, outlet, messages)
}

#[test]
fn the_first_that_fit_are_handed_over() {
    let (_handoff, mut outlet, mut messages) = handoff(5, 1 << 20);
    let mut rest = Vec::new();
    let batch = fill(&mut outlet, 3);
    assert_eq!(outlet.send(batch, &mut rest).messages, 3);
    let batch = fill(&mut outlet, 4);
    assert_eq!(outlet.send(batch, &mut rest).messages, 2);
    assert_eq!(rest.len(), 2);
    let batch = fill(&mut outlet, 1);
    assert_eq!(outlet.send(batch, &mut rest).messages, 0);
    for _ in 0..5 {
        messages.try_recv().unwrap();
    }
    assert_eq!(messages.try_recv().unwrap_err(), RecvError::Empty);
    let batch = fill(&mut outlet, 5);
    assert_eq!(outlet.send(batch, &mut rest).messages, 5, "all room came back");
}

#[test]
fn room_that_is_spoken_for_is_for_those_that_drop_nothing() {
    let (_handoff, mut outlet, mut messages) = handoff(4, 1 << 20);
    let mut rest = Vec::new();
    outlet.speak_for(true);
    let batch = fill(&mut outlet, 2);
    assert_eq!((outlet.send(batch, &mut rest).messages, rest.len()), (0, 2));
    let batch = fill(&mut outlet, 6);
    let (sent, left) = outlet.offer(batch);
    assert_eq!((sent, left.unwrap().entries.len()), (4, 2));
    messages.try_recv_batch().unwrap();
    messages.try_recv_batch().unwrap_err();
    outlet.speak_for(false);
    let batch = fill(&mut outlet, 2);
    assert_eq!(outlet.send(batch, &mut rest).messages, 2);
}

#[test]
fn full_reads_go_together_and_a_small_one_waits_for_nothing() {
    let (_handoff, mut outlet, mut messages) = handoff(1_000_000, 1 << 30);
    let mut rest = Vec::new();
    let mut send = |outlet: &mut Outlet, count| {
        let batch = fill(outlet, count);
        assert_eq!(outlet.send(batch, &mut rest).messages, count);
    };
    send(&mut outlet, TOGETHER_BYTES);
    assert_eq!(messages.try_recv_batch().unwrap_err(), RecvError::Empty);
    send(&mut outlet, 1);
    assert_eq!(messages.try_recv_batch().unwrap().len(), TOGETHER_BYTES, "in their order");
    assert_eq!(messages.try_recv_batch().unwrap().len(), 1);
    for _ in 0..TOGETHER_MAX {
        assert_eq!(messages.try_recv_batch().unwrap_err(), RecvError::Empty);
        send(&mut outlet, TOGETHER_BYTES);
    }
    for _ in 0..TOGETHER_MAX {
        assert_eq!(messages.try_recv_batch().unwrap().len(), TOGETHER_BYTES);
    }
    send(&mut outlet, TOGETHER_BYTES);
    outlet.flush();
    assert_eq!(messages.try_recv_batch().unwrap().len(), TOGETHER_BYTES);
    send(&mut outlet, TOGETHER_BYTES);
    drop(outlet);
    assert_eq!(messages.try_recv_batch().unwrap().len(), TOGETHER_BYTES, "nothing is kept back");
}

#[test]
fn bytes_are_bounded_by_capacity() {
    let each = SMALL_BYTES + entry_bytes(16);
    let (_handoff, mut outlet, mut messages) = handoff(1_000, 2 * each);
    let mut rest = Vec::new();
    let batch = fill(&mut outlet, 1);
    assert_eq!(outlet.send(batch, &mut rest).messages, 1);
    let batch = fill(&mut outlet, 1);
    assert_eq!(outlet.send(batch, &mut rest).messages, 1);
    let batch = fill(&mut outlet, 1);
    assert_eq!(outlet.send(batch, &mut rest).messages, 0);
    messages.recv().unwrap();
    let batch = fill(&mut outlet, 1);
    assert_eq!(outlet.send(batch, &mut rest).messages, 1);
}

#[test]
fn i2_the_list_of_a_batchs_messages_takes_room_too_and_is_not_kept_for_ever() {
    // Empty messages: two bytes each on the wire.
    const EMPTY: usize = LARGE_BYTES / 2;
    let (_handoff, mut outlet, mut messages) = handoff(1 << 20, 8 << 20);
    let mut rest = Vec::new();
    let mut sent = 0;
    let empty = |outlet: &mut Outlet| {
        let mut batch = fill(outlet, SMALL_BYTES + 1);
        let entry = batch.entries[0];
        batch.bytes = Vec::with_capacity(LARGE_BYTES);
        batch.entries.resize(EMPTY, entry);
        batch
    };
    loop {
        let batch = empty(&mut outlet);
        match outlet.send(batch, &mut rest).messages {
            0 => break,
            messages => sent += messages,
        }
    }
    assert!((EMPTY..=8 << 20 >> 6).contains(&sent), "{sent} of 64 bytes each in 8 MiB");
    outlet.flush();
    while messages.try_recv_batch().is_ok() {}
    while let Ok(batch) = outlet.returns.try_recv() {
        outlet.recycle(batch);
    }
    let large = empty(&mut outlet);
    outlet.recycle(large);
    let small = fill(&mut outlet, SMALL_BYTES);
    outlet.recycle(small);
    for (pool, most) in [(&outlet.large, LARGE_ENTRIES), (&outlet.small, SMALL_ENTRIES)] {
        assert!(!pool.is_empty());
        assert!(pool.iter().all(|batch| batch.entries.capacity() <= most));
    }
}

#[test]
fn empty_batches_come_back_and_are_used_again() {
    let (_handoff, mut outlet, mut messages) = handoff(10, 1 << 20);
    let mut rest = Vec::new();
    let batch = fill(&mut outlet, 1);
    let address: *const Buffer = &raw const *batch;
    outlet.send(batch, &mut rest);
    messages.recv().unwrap();
    // The others of the first ones come before it.
    let batches: Vec<_> = (0..SMALL_AT_FIRST).map(|_| fill(&mut outlet, 1)).collect();
    assert!(batches.iter().any(|batch| &raw const **batch == address));
}

#[test]
fn what_other_shards_took_ahead_starves_none() {
    let (handoff, mut messages) = Handoff::new(2, 1_000, 1 << 20);
    let mut outlets = [0, 1].map(|shard| handoff.outlet(ShardId::new(shard)).unwrap());
    let mut rest = Vec::new();
    for outlet in &mut outlets {
        let batch = fill(outlet, 1);
        assert_eq!(outlet.send(batch, &mut rest).messages, 1);
        messages.recv().unwrap();
        assert_eq!(messages.try_recv().unwrap_err(), RecvError::Empty);
        assert_ne!(outlet.ahead, Charge::default(), "it took room ahead");
    }
    // The largest that is ever offered at once, in a buffer larger than all the room.
    let [first, _] = &mut outlets;
    let batch = fill(first, 2_000);
    let batch = Box::new(Buffer { bytes: Vec::with_capacity(1 << 21), ..*batch });
    let (sent, left) = first.offer(batch);
    assert!(sent > 900 && left.is_some(), "{sent}");
    first.flush();
    while messages.try_recv().is_ok() {}
    drop(outlets);
    assert_eq!(handoff.room().taken.load(Ordering::Relaxed), 0, "all room came back");
}

#[test]
fn whatever_its_size_a_batch_fits_when_nothing_waits() {
    let (_handoff, mut outlet, _messages) = handoff(10, SMALL_BYTES);
    let large = fill(&mut outlet, 10);
    let mut large = Box::new(Buffer { bytes: Vec::with_capacity(1 << 20), ..*large });
    large.bytes.extend_from_slice(b"mmmmmmmmmm");
    assert_eq!(outlet.offer(large).0, 10);
    let more = fill(&mut outlet, 1);
    assert_eq!(outlet.offer(more).0, 0);
}

#[test]
fn a_batch_goes_in_part_where_others_leave_no_room_for_all_of_it() {
    let (_handoff, mut outlet, mut messages) = handoff(4, 1 << 20);
    let others = fill(&mut outlet, 3);
    assert_eq!(outlet.offer(others).0, 3);
    let mut batch = fill(&mut outlet, 7);
    batch.bytes.copy_from_slice(b"abcdefg");
    // As one put together from fragments lies: behind those that came after it.
    batch.entries.swap(0, 6);
    let mut left = Some(batch);
    let mut parts = Vec::new();
    let mut got = String::new();
    while let Some(batch) = left.take() {
        assert!(parts.len() < 9, "{parts:?}");
        let (sent, rest) = outlet.offer(batch);
        (left, _) = (rest, parts.push(sent));
        outlet.flush();
        while let Ok(message) = messages.try_recv() {
            got.push_str(std::str::from_utf8(&message.data).unwrap());
        }
    }
    assert_eq!(got, "mmmgbcdefa");
    assert_eq!(parts.iter().sum::<usize>(), 7);
    assert_eq!(parts[0], 1, "the one place there was: {parts:?}");
}

#[test]
fn a_message_larger_than_a_small_buffer_goes_by_itself() {
    let (_handoff, mut outlet, mut messages) = handoff(4, 1 << 20);
    let others = fill(&mut outlet, 2);
    outlet.offer(others);
    let mut batch = fill(&mut outlet, 3);
    batch.bytes.resize(2 * SMALL_BYTES, b'x');
    batch.entries[1].end = batch.bytes.len();
    let (sent, rest) = outlet.offer(batch);
    assert_eq!(sent, 2, "as many as there are places");
    outlet.flush();
    let lengths = |messages: &mut Messages| {
        let taken = std::iter::from_fn(|| messages.try_recv().ok());
        taken.map(|message| message.data.len()).collect::<Vec<_>>()
    };
    assert_eq!(lengths(&mut messages), [1, 1, 1, 2 * SMALL_BYTES - 1]);
    let (sent, rest) = outlet.offer(rest.unwrap());
    assert!(sent == 1 && rest.is_none());
    outlet.flush();
    assert_eq!(lengths(&mut messages), [1]);
}

#[test]
fn a_lent_batch_goes_back_when_the_next_is_asked_for() {
    let (_handoff, mut outlet, mut messages) = handoff(5, 1 << 20);
    let mut rest = Vec::new();
    let batch = fill(&mut outlet, 5);
    outlet.send(batch, &mut rest);
    assert_eq!(messages.recv().unwrap().seq, Some(Seq::new(0)));
    let lent = messages.recv_batch().unwrap();
    let seqs: Vec<_> = lent.iter().map(|message| message.seq.unwrap().number()).collect();
    assert_eq!((lent.len(), seqs), (4, vec![1, 2, 3, 4]));
    let batch = fill(&mut outlet, 1);
    assert_eq!(outlet.send(batch, &mut rest).messages, 0, "its room is still taken");
    assert_eq!(messages.try_recv_batch().unwrap_err(), RecvError::Empty);
    let batch = fill(&mut outlet, 5);
    assert_eq!(outlet.send(batch, &mut rest).messages, 5);
    assert_eq!(messages.recv_batch().unwrap().len(), 5);
    let timeout = Duration::from_millis(1);
    assert_eq!(messages.recv_batch_timeout(timeout).unwrap_err(), RecvError::Timeout);
    assert_eq!(messages.consumed().total(), 10);
}

#[test]
fn a_consumer_gone_takes_everything_as_abandoned() {
    let (handoff, mut outlet, mut messages) = handoff(4, 1 << 20);
    let consumed = messages.consumed();
    let mut rest = Vec::new();
    let batch = fill(&mut outlet, 4);
    outlet.send(batch, &mut rest);
    messages.recv().unwrap();
    drop(messages);
    assert!(handoff.room().is_closed());
    let batch = fill(&mut outlet, 9);
    assert_eq!(outlet.send(batch, &mut rest).messages, 9);
    assert!(rest.is_empty());
    assert_eq!(consumed.total(), 1);
}

#[test]
fn a_message_pins_nothing_and_outlives_its_batch() {
    let (_handoff, mut outlet, mut messages) = handoff(4, 1 << 20);
    let batch = fill(&mut outlet, 2);
    outlet.send(batch, &mut Vec::new());
    let kept: Vec<_> = std::iter::from_fn(|| messages.try_recv().ok()).collect();
    drop(messages);
    assert!(kept.iter().all(|message| &message.data[..] == b"m"));
}

#[test]
fn many_threads_never_exceed_the_room() {
    let (handoff, _outlet, mut messages) = handoff(64, 1 << 20);
    let handed: usize = std::thread::scope(|scope| {
        let senders: Vec<_> = (0..4)
            .map(|_| {
                let mut outlet = handoff.outlet(ShardId::new(0)).unwrap();
                scope.spawn(move || {
                    let mut rest = Vec::new();
                    (0..2_000)
                        .map(|n| {
                            let batch = fill(&mut outlet, 1 + n % 7);
                            outlet.send(batch, &mut rest).messages
                        })
                        .sum::<usize>()
                })
            })
            .collect();
        let mut received = 0;
        while senders.iter().any(|sender| !sender.is_finished()) {
            received += usize::from(messages.try_recv().is_ok());
        }
        while messages.try_recv().is_ok() {
            received += 1;
        }
        let handed: usize = senders.into_iter().map(|sender| sender.join().unwrap()).sum();
        assert_eq!(handed, received);
        handed
    });
    assert!(handed >= 64);
    assert_eq!(messages.room.taken.load(Ordering::Relaxed), 0);
}
