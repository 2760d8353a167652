//! How messages reach the host: through the [`Messages`](crate::Messages) queue, or by a call on
//! the shard's own thread for hosts that want no hop between threads.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use crate::batch::Batch;
use crate::ids::ShardId;
use crate::mailbox::Report;
use crate::stats::ShardCounters;
use crate::watch::{Slow, Watch};

/// Takes messages on a shard's own thread and core: whatever time it takes, the shard's sockets
/// wait. It lives and dies on that thread. A panic in it is caught: its shard closes its
/// connections and is reported lost, the other shards go on. Each call is timed; one that takes
/// longer than `handler_slow_threshold` is reported ([`Event::HandlerSlow`](crate::Event)).
///
/// Any `FnMut(&Batch)` is one.
///
/// ```
/// use kalshi_feed::{Batch, Handler};
///
/// #[derive(Default)]
/// struct Count(u64);
/// impl Handler for Count {
///     fn on_batch(&mut self, batch: &Batch<'_>) {
///         self.0 += batch.len() as u64;
///     }
/// }
/// ```
pub trait Handler {
    /// Called once for each socket read that brought messages.
    fn on_batch(&mut self, batch: &Batch<'_>);
}

impl<F: FnMut(&Batch<'_>)> Handler for F {
    fn on_batch(&mut self, batch: &Batch<'_>) {
        self(batch);
    }
}

/// A shard's handler, and the watch over it.
pub(crate) struct Inline {
    handler: Box<dyn Handler>,
    watch: Watch,
}

/// The handler panicked: whatever state it is in, it must not be called again.
pub(crate) struct Panicked;

impl Inline {
    /// Calls the handler, and counts the call and the time it took by `now`.
    pub(crate) fn call(
        &mut self,
        batch: &Batch<'_>,
        counters: &ShardCounters,
        now: impl Fn() -> Instant,
    ) -> Result<(), Panicked> {
        let begun = now();
        let call = AssertUnwindSafe(|| self.handler.on_batch(batch));
        let outcome = catch_unwind(call).map_err(|_| Panicked);
        let took = now().saturating_duration_since(begun);
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        counters.handler_calls.add(1);
        counters.handler_busy_ns.add(nanoseconds);
        counters.handler_ns_max.raise(nanoseconds);
        counters.handler_slow.add(u64::from(self.watch.note(took)));
        outcome
    }

    /// Tells the conductor of slow calls, if it is time to; when it will be, if it is not.
    pub(crate) fn tell(
        &mut self,
        shard: ShardId,
        reports: &Sender<Report>,
        now: Instant,
    ) -> Option<Instant> {
        // The queue's places are for what must be told at once; this is counted, and can wait.
        let room = reports.capacity().is_none_or(|places| reports.len() < places / 2);
        self.watch.tell(now, |Slow { calls, took }| {
            room && reports.try_send(Report::HandlerSlow { shard, took, calls }).is_ok()
        })
    }
}

type Factory = dyn Fn(ShardId) -> Box<dyn Handler> + Send + Sync;

/// How messages reach the host.
///
/// ```no_run
/// use kalshi_feed::{Batch, Config, Delivery, Manager, StaticRegistry};
/// let config = Config::builder().build()?;
/// let delivery = Delivery::inline(|shard| {
///     let mut messages = 0;
///     move |batch: &Batch<'_>| {
///         messages += batch.len();
///         println!("shard {shard}: {messages}");
///     }
/// });
/// let manager = Manager::with_delivery(config, StaticRegistry::default(), delivery);
/// # Ok::<(), kalshi_feed::ConfigError>(())
/// ```
#[derive(Clone, Default)]
pub struct Delivery {
    inline: Option<Arc<Factory>>,
}

impl Delivery {
    /// Through [`Messages`](crate::Messages): the default.
    pub fn channel() -> Self {
        Self::default()
    }

    /// By a handler on each shard's own thread; `factory` is called there, once for each shard,
    /// and again should a bug of the engine's make a shard start anew.
    /// There is no queue then, so nothing is ever dropped for want of room.
    pub fn inline<H: Handler + 'static>(
        factory: impl Fn(ShardId) -> H + Send + Sync + 'static,
    ) -> Self {
        Self { inline: Some(Arc::new(move |shard| Box::new(factory(shard)))) }
    }

    /// The handler of one shard, made on its thread.
    pub(crate) fn handler(&self, shard: ShardId, slow: Duration) -> Option<Inline> {
        let handler = self.inline.as_ref().map(|factory| factory(shard));
        handler.map(|handler| Inline { handler, watch: Watch::new(slow) })
    }

    pub(crate) fn is_inline(&self) -> bool {
        self.inline.is_some()
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_inline() { "Delivery::inline" } else { "Delivery::channel" })
    }
}
