//! The floor: epoll, one 64 KiB recv, rustls, and the plaintext is discarded. What any client of
//! this feed must spend. It looks at no frame: it counts bytes, or shows plaintext to a bench.

use std::io::{BufRead as _, ErrorKind, Read as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use rustls::ClientConnection;

use crate::clock::{pin, thread_cpu};
use crate::setup::{Access, Job};
use crate::work::{Outcome, Task};

/// What one `recv` asks for.
const RECV: usize = 64 << 10;
/// No byte for so long: all answers to the subscriptions have come.
const QUIET: Duration = Duration::from_millis(200);
/// How often a sleeping reader looks whether to stop.
const LOOK: Duration = Duration::from_millis(50);
/// Longest wait for the run.
const PATIENCE: Duration = Duration::from_secs(120);

/// Measures it over as many bytes as `task.messages` frames of `frame_bytes` make.
pub fn floor(task: &Task<'_>, frame_bytes: f64, go: impl FnOnce(), halt: impl FnOnce()) -> Outcome {
    let wanted = (task.messages as f64 * frame_bytes) as u64;
    let (ready, begun) = bounded(1);
    let (done, result) = bounded(1);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            pin(task.cores.io);
            let mut reader = Reader::connect(task.access, task.jobs);
            let mut bytes = 0;
            while reader.turn(QUIET, &mut |_| {}) {}
            let before = thread_cpu();
            ready.send(()).expect("the run goes on");
            while bytes < wanted {
                reader.turn(PATIENCE, &mut |plain| bytes += plain.len() as u64);
            }
            done.send((thread_cpu() - before, bytes)).expect("the run goes on");
        });
        begun.recv_timeout(PATIENCE).expect("subscriptions are answered in time");
        let began = Instant::now();
        go();
        let (io, bytes) = result.recv_timeout(PATIENCE).expect("messages come in time");
        let wall = began.elapsed();
        halt();
        let messages = bytes as f64 / frame_bytes;
        Outcome { messages, io, consumer: Duration::ZERO, wall, lost: 0 }
    })
}

/// Reads on the calling thread, pinned to `core`, until told to stop: `ready` is called when all
/// are subscribed, `each` sees the plaintext, one TLS record at a time. A spinning reader never
/// sleeps.
pub fn read(
    access: &Access,
    jobs: &[Job],
    (core, spin): (usize, bool),
    stop: &AtomicBool,
    ready: impl FnOnce(),
    mut each: impl FnMut(&[u8]),
) {
    pin(core);
    let mut reader = Reader::connect(access, jobs);
    while reader.turn(QUIET, &mut |_| {}) {}
    ready();
    let timeout = if spin { Duration::ZERO } else { LOOK };
    while !stop.load(Ordering::Relaxed) {
        reader.turn(timeout, &mut each);
    }
}

struct Reader {
    poll: Poll,
    events: Events,
    links: Vec<(TcpStream, ClientConnection)>,
    scratch: Vec<u8>,
}

impl Reader {
    fn connect(access: &Access, jobs: &[Job]) -> Self {
        let poll = Poll::new().expect("a poll");
        let mut links = Vec::new();
        for (index, job) in jobs.iter().enumerate() {
            let link = access.link(job);
            link.socket.set_nonblocking(true).expect("a non-blocking socket");
            let mut socket = TcpStream::from_std(link.socket);
            let registry = poll.registry();
            registry.register(&mut socket, Token(index), Interest::READABLE).expect("a place");
            links.push((socket, link.tls));
        }
        let events = Events::with_capacity(1_024);
        Self { poll, events, links, scratch: vec![0; RECV] }
    }

    /// Waits and takes what has come; false when nothing did.
    fn turn(&mut self, timeout: Duration, each: &mut impl FnMut(&[u8])) -> bool {
        let Self { poll, events, links, scratch } = self;
        if let Err(error) = poll.poll(events, Some(timeout)) {
            assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}");
        }
        for event in &*events {
            let (socket, tls) = &mut links[event.token().0];
            drain(socket, tls, scratch, each);
        }
        !events.is_empty()
    }
}

/// Reads until a read comes short, as the engine does.
fn drain(
    socket: &mut TcpStream,
    tls: &mut ClientConnection,
    scratch: &mut [u8],
    each: &mut impl FnMut(&[u8]),
) {
    loop {
        let count = match socket.read(scratch) {
            Ok(0) => panic!("the exchange hung up"),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => panic!("{error}"),
        };
        let mut bytes = &scratch[..count];
        while !bytes.is_empty() {
            tls.read_tls(&mut bytes).expect("room in TLS");
            tls.process_new_packets().expect("good TLS");
            let mut reader = tls.reader();
            while let Ok(chunk) = reader.fill_buf() {
                let length = chunk.len();
                if length == 0 {
                    break;
                }
                each(chunk);
                reader.consume(length);
            }
        }
        if count < scratch.len() {
            return;
        }
    }
}
