//! How messages reach the host: through the [`Messages`](crate::Messages) queue, or by a call on
//! the shard's own thread for hosts that want no hop between threads.

use std::fmt;
use std::sync::Arc;

use crate::batch::Batch;
use crate::ids::ShardId;

/// Takes messages on a shard's own thread and core: whatever time it takes, the shard's sockets
/// wait. It lives and dies on that thread. A panic in it is caught: its shard closes its
/// connections and is reported lost, the other shards go on.
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

    /// By a handler on each shard's own thread; `factory` is called there, once for each shard.
    /// There is no queue then, so nothing is ever dropped for want of room.
    pub fn inline<H: Handler + 'static>(
        factory: impl Fn(ShardId) -> H + Send + Sync + 'static,
    ) -> Self {
        Self { inline: Some(Arc::new(move |shard| Box::new(factory(shard)))) }
    }

    /// The handler of one shard, made on its thread.
    pub(crate) fn handler(&self, shard: ShardId) -> Option<Box<dyn Handler>> {
        self.inline.as_ref().map(|factory| factory(shard))
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
