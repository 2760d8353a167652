//! What every peer does with a message, and how it is measured: envelope, sequence, hand-off by one
//! send, a consumer that touches each message, thread CPU clocks around exactly the messages that
//! count. It owns no socket.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::clock::{Stamp, pin, thread_cpu};
use crate::setup::{Access, Job};

/// Messages between I/O thread and consumer; the engine's default bound too.
const QUEUE: usize = 10_000;
/// Longest wait for any step of a run.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where the client's threads run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cores {
    /// The I/O thread.
    pub io: usize,
    /// The consumer.
    pub consumer: usize,
}

/// One run of one client.
#[derive(Debug)]
pub struct Task<'a> {
    /// Where to connect.
    pub access: &'a Access,
    /// What to subscribe to.
    pub jobs: &'a [Job],
    /// Where to run.
    pub cores: Cores,
    /// Messages that count.
    pub messages: u64,
}

/// What a run took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Messages that counted.
    pub messages: f64,
    /// CPU of the I/O side for them.
    pub io: Duration,
    /// CPU of the consumer for them.
    pub consumer: Duration,
    /// Wall time.
    pub wall: Duration,
    /// Messages that never came.
    pub lost: u64,
}

impl Outcome {
    /// CPU nanoseconds a message, all threads.
    #[must_use]
    pub fn ns(&self) -> f64 {
        (self.io + self.consumer).as_nanos() as f64 / self.messages
    }

    /// Messages a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.messages / self.wall.as_secs_f64()
    }
}

/// A message on its way to the consumer.
#[derive(Debug)]
pub(crate) struct Handed<P> {
    data: P,
    conn: u32,
    sid: u64,
    seq: u64,
    gap: u64,
    at: Stamp,
}

/// The I/O side of a peer: takes messages, counts, hands over.
#[derive(Debug)]
pub struct Io<P> {
    sender: Sender<Handed<P>>,
    /// The last number of each connection's sids.
    last: Vec<Vec<u64>>,
    begin: u64,
    end: u64,
    count: u64,
    began: Duration,
    lost: u64,
    done: Sender<(Duration, u64)>,
    stop: Arc<AtomicBool>,
}

impl<P: AsRef<[u8]>> Io<P> {
    /// Takes one text message, whose UTF-8 was checked, of one connection.
    pub(crate) fn message(&mut self, conn: usize, data: P, at: Stamp) {
        let (sid, seq) = envelope(data.as_ref());
        let gap = self.gap(conn, sid, seq);
        self.lost += gap;
        let handed = Handed { data, conn: conn as u32, sid, seq, gap, at };
        // The consumer goes first only when the run is over.
        self.sender.send(handed).unwrap_or_default();
        self.count += 1;
        if self.count == self.begin {
            self.began = thread_cpu();
        } else if self.count == self.end {
            self.done.send((thread_cpu() - self.began, self.lost)).expect("the run goes on");
        }
    }

    fn gap(&mut self, conn: usize, sid: u64, seq: u64) -> u64 {
        if seq == 0 {
            return 0;
        }
        let sids = &mut self.last[conn];
        if sids.len() <= sid as usize {
            sids.resize(sid as usize + 1, 0);
        }
        let last = &mut sids[sid as usize];
        let gap = seq.saturating_sub(*last + 1);
        *last = seq.max(*last);
        gap
    }

    /// Whether the run is over.
    pub(crate) fn over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Sid and seq of a frame, zero for none: from its first bytes where it looks as expected, by a
/// parse otherwise.
fn envelope(frame: &[u8]) -> (u64, u64) {
    scan(frame).unwrap_or_else(|| {
        let value: serde_json::Value = serde_json::from_slice(frame).unwrap_or_default();
        let number = |name: &str| value[name].as_u64().unwrap_or(0);
        (number("sid"), number("seq"))
    })
}

fn scan(frame: &[u8]) -> Option<(u64, u64)> {
    let rest = frame.strip_prefix(b"{\"type\":\"")?;
    let end = rest.iter().take(40).position(|&byte| byte == b'"')?;
    let (sid, rest) = digits(rest[end..].strip_prefix(b"\",\"sid\":")?)?;
    let (seq, rest) = match rest.strip_prefix(b",\"seq\":") {
        Some(after) => digits(after)?,
        None => (0, rest),
    };
    rest.starts_with(b",\"msg\":{").then_some((sid, seq))
}

fn digits(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let count = bytes.iter().take(18).take_while(|byte| byte.is_ascii_digit()).count();
    let (number, rest) = bytes.split_at(count);
    let value = number.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    (count > 0).then_some((value, rest))
}

/// What every consumer does with a payload.
#[must_use]
pub fn touch(data: &[u8]) -> u64 {
    let ends = data.first().zip(data.last());
    ends.map_or(0, |(first, last)| u64::from(*first) + u64::from(*last)) + data.len() as u64
}

/// Runs a peer: `client` on the I/O core until the run is over, a consumer on the other; `go` is
/// called when all are subscribed, `halt` when the last message that counts has come.
pub(crate) fn run<P: AsRef<[u8]> + Send + 'static>(
    task: &Task<'_>,
    client: impl FnOnce(&Access, &[Job], Io<P>) + Send,
    go: impl FnOnce(),
    halt: impl FnOnce(),
) -> Outcome {
    let begin: u64 = task.jobs.iter().map(Job::answers).sum();
    let end = begin + task.messages;
    let (sender, receiver) = bounded(QUEUE);
    let (io_done, io_result) = bounded(1);
    let (consumer_done, consumer_result) = bounded(2);
    let stop = Arc::new(AtomicBool::new(false));
    let io = Io {
        sender,
        last: vec![Vec::new(); task.jobs.len()],
        begin,
        end,
        count: 0,
        began: Duration::ZERO,
        lost: 0,
        done: io_done,
        stop: Arc::clone(&stop),
    };
    let cores = task.cores;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            pin(cores.consumer);
            consume(&receiver, begin, end, &consumer_done);
        });
        scope.spawn(move || {
            pin(cores.io);
            client(task.access, task.jobs, io);
        });
        let wait = || consumer_result.recv_timeout(PATIENCE).expect("messages come in time");
        wait();
        let began = Instant::now();
        go();
        let consumer = wait();
        let wall = began.elapsed();
        let (io, lost) = io_result.recv_timeout(PATIENCE).expect("the I/O side is ahead");
        stop.store(true, Ordering::Relaxed);
        halt();
        Outcome { messages: task.messages as f64, io, consumer, wall, lost }
    })
}

/// Touches every message; tells when all are subscribed, and the CPU time of those that count.
fn consume<P: AsRef<[u8]>>(
    receiver: &Receiver<Handed<P>>,
    begin: u64,
    end: u64,
    done: &Sender<Duration>,
) {
    let (mut count, mut sum, mut began) = (0, 0_u64, Duration::ZERO);
    while let Ok(message) = receiver.recv() {
        let numbers = message.sid ^ message.seq ^ message.gap ^ u64::from(message.conn);
        sum = sum.wrapping_add(touch(message.data.as_ref()) ^ numbers);
        std::hint::black_box(message.at);
        count += 1;
        if count == begin || count == end {
            if count == begin {
                began = thread_cpu();
            }
            done.send(thread_cpu() - began).expect("the run goes on");
        }
    }
    std::hint::black_box(sum);
}
