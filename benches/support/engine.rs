//! kalshi-feed as one more client of the benches: its own threads, a consumer on a core of its
//! choice. CPU is that of all its threads, read when they have come to rest.

use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use kalshi_feed::{
    Config, ConfigBuilder, Credentials, Handle, Manager, Messages, Overflow, PoolLayout,
    StaticRegistry, Stats,
};
use peers::{Cores, Facts, Layout, Outcome, pin, thread_cpu, touch};

/// Longest wait for any step of a run.
const PATIENCE: Duration = Duration::from_secs(120);
/// Nothing received for so long: all that was sent has been taken.
const QUIET: Duration = Duration::from_millis(100);

/// How the consumer takes messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taking {
    /// A batch at a time, lent.
    Lent,
    /// One at a time, copied out.
    Owned,
}

/// One run of the engine.
pub(crate) struct Run {
    pub(crate) layout: Layout,
    pub(crate) cores: Cores,
    pub(crate) shards: usize,
    pub(crate) taking: Taking,
    pub(crate) messages: u64,
    /// What is set otherwise than `settings` has it.
    pub(crate) tune: fn(ConfigBuilder) -> ConfigBuilder,
}

/// Settings against this exchange: the defaults, but for bounds that wait rather than drop.
pub(crate) fn settings(facts: &Facts, layout: Layout, cores: Vec<usize>) -> ConfigBuilder {
    let Layout { ticker, trade, lifecycle, orderbook } = layout;
    Config::builder()
        .url(facts.url.clone())
        .ca_pem(facts.ca_pem.clone())
        .credentials(Credentials::from_pem(&facts.key_id, facts.key_pem.as_bytes()).unwrap())
        .pool(PoolLayout::new(ticker, trade, lifecycle, orderbook))
        .min_healthy(layout.connections())
        .cores(cores)
        .overflow(Overflow::Backpressure)
        .start_timeout(PATIENCE)
}

/// Measures the engine over `run.messages`.
pub(crate) fn engine(facts: &Facts, run: &Run, go: impl FnOnce(), halt: impl FnOnce()) -> Outcome {
    let tickers = facts.markets.iter().map(|ticker| ticker.parse().unwrap());
    let tickers: Vec<_> = if run.layout.orderbook > 0 { tickers.collect() } else { Vec::new() };
    let markets = tickers.len() as u64;
    let config = settings(facts, run.layout, vec![run.cores.io; run.shards]);
    let config = (run.tune)(config).build().unwrap();
    let mut manager = Manager::new(config, StaticRegistry::new(tickers));
    let messages = manager.messages().unwrap();
    let handle = manager.handle();
    let (begin, begun) = bounded(1);
    let (mark, marked) = bounded(1);
    let (core, wanted, taking) = (run.cores.consumer, run.messages, run.taking);
    let consumer = std::thread::spawn(move || {
        pin(core);
        let mut tally = Tally::default();
        // The snapshots first, until told that the exchange is about to send.
        take(messages, taking, &mut tally, |tally| {
            if tally.began.is_none() && begun.try_recv().is_ok() {
                tally.began = Some((thread_cpu(), tally.count));
            }
            if let Some((_, from)) = tally.began
                && tally.count >= from + wanted
            {
                mark.try_send(()).unwrap_or_default();
            }
        });
        tally
    });
    manager.start().unwrap();
    until_subscribed(&handle, run.layout.connections() as u64, markets);
    let before = (handle.stats(), threads_cpu());
    begin.send(()).unwrap();
    let began = Instant::now();
    go();
    marked.recv_timeout(PATIENCE).expect("messages come in time");
    let wall = began.elapsed();
    halt();
    let after = (at_rest(&handle), threads_cpu());
    let report = manager.stop(Duration::from_secs(5));
    let tally = consumer.join().unwrap();
    assert!(report.stuck.is_empty() && report.panicked.is_empty(), "{report:?}");
    // CPU is for everything received until rest; scaled to the messages asked for.
    let received = (after.0.messages_received - before.0.messages_received) as f64;
    let share = wanted as f64 / received;
    let (consumer_cpu, from) = tally.began.unwrap();
    let consumed = (tally.count - from) as f64;
    Outcome {
        messages: wanted as f64,
        io: (after.1 - before.1).mul_f64(share),
        consumer: (tally.cpu - consumer_cpu).mul_f64(wanted as f64 / consumed),
        wall,
        lost: after.0.messages_missed + after.0.messages_dropped,
    }
}

/// What the consumer saw.
#[derive(Debug, Default)]
struct Tally {
    count: u64,
    sum: u64,
    began: Option<(Duration, u64)>,
    cpu: Duration,
}

impl Tally {
    fn add(&mut self, data: &[u8], sid: u64, seq: u64, gap: u64) {
        self.sum = self.sum.wrapping_add(touch(data) ^ sid ^ seq ^ gap);
        self.count += 1;
    }
}

/// Takes messages until the engine has stopped; `look` is called after every batch, or message.
fn take(
    mut messages: Messages,
    taking: Taking,
    tally: &mut Tally,
    mut look: impl FnMut(&mut Tally),
) {
    match taking {
        Taking::Lent => {
            while let Ok(batch) = messages.recv_batch() {
                look(tally);
                for message in batch {
                    let sid = message.sid.map_or(0, |sid| sid.number());
                    let seq = message.seq.map_or(0, |seq| seq.number());
                    tally.add(message.data, sid, seq, message.gap_size);
                }
                std::hint::black_box(batch.received_at());
            }
        }
        Taking::Owned => {
            while let Ok(message) = messages.recv() {
                if tally.count.is_multiple_of(64) || tally.began.is_none() {
                    look(tally);
                }
                let sid = message.sid.map_or(0, |sid| sid.number());
                let seq = message.seq.map_or(0, |seq| seq.number());
                tally.add(&message.data, sid, seq, message.gap_size);
                std::hint::black_box(message.received_at);
            }
        }
    }
    tally.cpu = thread_cpu();
    std::hint::black_box(tally.sum);
}

/// Waits until all is subscribed and the answers have been taken.
pub(crate) fn until_subscribed(handle: &Handle, connections: u64, markets: u64) {
    let begun = Instant::now();
    loop {
        let stats = handle.stats();
        let ready = stats.connections_healthy == connections
            && stats.markets_total == markets
            && stats.subscriptions_total == connections;
        if ready {
            at_rest(handle);
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "not all subscribed: {stats:#?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until everything received has been taken and nothing more comes.
fn at_rest(handle: &Handle) -> Stats {
    let (mut last, mut since) = (handle.stats(), Instant::now());
    let begun = Instant::now();
    loop {
        std::thread::sleep(Duration::from_millis(5));
        let stats = handle.stats();
        // Without a queue nothing counts as taken by the host.
        let taken =
            stats.messages_consumed == stats.messages_forwarded || stats.messages_consumed == 0;
        if stats.bytes_received != last.bytes_received || !taken {
            since = Instant::now();
        }
        if since.elapsed() >= QUIET {
            return stats;
        }
        assert!(begun.elapsed() < PATIENCE, "it does not come to rest: {stats:#?}");
        last = stats;
    }
}

/// CPU time of all the engine's threads, from the kernel: exact while they sleep.
pub(crate) fn threads_cpu() -> Duration {
    let mut sum = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let read = |name| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        if read("comm").starts_with("kf-") {
            let spent = read("schedstat");
            sum += spent.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0);
        }
    }
    Duration::from_nanos(sum)
}
