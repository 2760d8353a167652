//! The queues between the threads: what they carry, how large they must be so that they cannot
//! fill, and waiting on all of the conductor's at once.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Select, Sender, TrySendError};

use crate::assignments::Assignments;
use crate::batch::RawMessage;
use crate::clock::Stamp;
use crate::code::ExchangeCode;
use crate::command::{Ended, UNANSWERED_MAX};
use crate::connector::Dialed;
use crate::error::Cause;
use crate::event::Event;
use crate::gap::Gaps;
use crate::ids::{ConnId, Epoch, Role, ShardId, Sid, Ticker};
use crate::lapse::Lapse;
use crate::market::SubscriptionInfo;
use crate::registry::MarketChange;
use crate::request::Request;
use crate::resolve::Wake;

/// A connection that has just been upgraded, on its way to its shard.
pub(crate) struct Adoption<L> {
    pub(crate) conn: ConnId,
    pub(crate) epoch: Epoch,
    pub(crate) role: Role,
    pub(crate) link: L,
    /// Plaintext that came with the answer to the upgrade.
    pub(crate) unread: Vec<u8>,
}

/// From the conductor to a shard.
pub(crate) enum Order<L> {
    /// Lifecycle frames go here.
    Listen {
        sink: Sender<RawMessage>,
    },
    Adopt(Box<Adoption<L>>),
    Command {
        conn: ConnId,
        epoch: Epoch,
        request: Request,
    },
    /// End the connection: only a new one makes certain what is subscribed.
    Drop {
        conn: ConnId,
        epoch: Epoch,
    },
    /// No book that this gap or an earlier one made suspect is so any more.
    Settled {
        conn: ConnId,
        epoch: Epoch,
        last: u64,
    },
    Stop {
        until: Instant,
    },
}

/// From a shard to the conductor.
#[derive(Debug)]
pub(crate) enum Report {
    Ended {
        conn: ConnId,
        epoch: Epoch,
        ended: Ended,
    },
    /// A reply came to a command that had ended without one.
    Late {
        conn: ConnId,
        epoch: Epoch,
        ended: Ended,
    },
    SubscriptionEnded {
        conn: ConnId,
        epoch: Epoch,
        sid: Sid,
        code: Option<ExchangeCode>,
    },
    /// Books came; one ticker a line.
    Books {
        conn: ConnId,
        epoch: Epoch,
        tickers: String,
    },
    /// Order-book messages were lost.
    Gaps {
        conn: ConnId,
        epoch: Epoch,
        gaps: Gaps,
    },
    Down {
        conn: ConnId,
        epoch: Epoch,
        cause: Cause,
        heard: bool,
        /// When it last brought data, or was adopted; and when this was said.
        last_data: Instant,
        at: Stamp,
    },
    /// Messages of the connection were lost for a while.
    Lapse {
        conn: ConnId,
        epoch: Epoch,
        lapse: Lapse,
        at: Stamp,
    },
    RegistryHungUp,
    /// For the host.
    Tell(Event),
    /// Slow calls of an inline handler since the last such report, and the slowest of them.
    HandlerSlow {
        shard: ShardId,
        took: Duration,
        calls: u64,
    },
    Stopped,
}

/// Messages lost that no later message could tell of, because the engine stopped.
///
/// ```
/// # fn show(untold: &kalshi_feed::Untold) {
/// println!("connection {}: {} more were lost at the end", untold.conn_id, untold.messages);
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Untold {
    /// The connection.
    pub conn_id: ConnId,
    /// Its last epoch.
    pub epoch: Epoch,
    /// The subscription; none for what an earlier epoch left.
    pub sid: Option<Sid>,
    /// How many.
    pub messages: u64,
}

/// From the host's handles.
#[derive(Debug)]
pub(crate) enum Control {
    /// Look at the stop flag.
    Wake,
    Stop {
        until: Instant,
    },
    Subscription {
        ticker: Ticker,
        reply: Sender<Option<SubscriptionInfo>>,
    },
    Assignments {
        reply: Sender<Assignments>,
    },
}

/// A thread that ended and should not have.
#[derive(Debug)]
pub(crate) struct Lost {
    pub(crate) thread: String,
    /// Whose connections went with it.
    pub(crate) shard: Option<ShardId>,
}

impl Lost {
    pub(crate) fn shard(shard: ShardId) -> Self {
        Self { thread: shard_name(shard), shard: Some(shard) }
    }
}

/// What a shard's thread is called.
pub(crate) fn shard_name(shard: ShardId) -> String {
    format!("kf-shard-{shard}")
}

/// A queue to a thread that sleeps in its poll, and what wakes it.
pub(crate) struct Mailbox<O> {
    pub(crate) orders: Sender<O>,
    pub(crate) wake: Wake,
}

impl<O> Mailbox<O> {
    /// False when that thread is gone.
    pub(crate) fn send(&self, order: O) -> bool {
        match self.orders.try_send(order) {
            Ok(()) => {
                (self.wake)();
                true
            }
            Err(TrySendError::Full(_)) => {
                log::error!("an order queue is full: please report this bug");
                false
            }
            Err(TrySendError::Disconnected(_)) => false,
        }
    }
}

/// What comes in.
pub(crate) struct Inputs<L> {
    pub(crate) control: Receiver<Control>,
    pub(crate) changes: Receiver<MarketChange>,
    pub(crate) dialed: Receiver<Dialed<L>>,
    pub(crate) reports: Receiver<Report>,
    /// Threads that ended and should not have.
    pub(crate) lost: Receiver<Lost>,
}

impl<L> Inputs<L> {
    /// Waits until something comes in or the timeout passes.
    pub(crate) fn wait(&self, timeout: Option<Duration>) {
        let mut select = Select::new();
        select.recv(&self.control);
        select.recv(&self.changes);
        select.recv(&self.dialed);
        select.recv(&self.reports);
        select.recv(&self.lost);
        match timeout {
            // Nothing is taken here, so which one is ready does not matter.
            Some(timeout) => drop(select.ready_timeout(timeout)),
            None => drop(select.ready()),
        }
    }
}

/// Books, gaps and ends of subscriptions are told of while fewer reports than this wait.
pub(crate) const BOOK_REPORTS_MAX: usize = 256;
/// `Settled` is ordered while fewer orders than this wait.
pub(crate) const SETTLED_ORDERS_MAX: usize = 64;

/// Reports a shard may have under way: outcomes of the commands in flight and of those sent to an
/// epoch just lost, late replies, its end, and an end of a subscription that belongs before such a
/// reply; and the shard's own farewell. And room for what is told of only while there is more than
/// all that left.
pub(crate) fn report_queue_size(connections: usize, in_flight: usize) -> usize {
    connections
        .saturating_mul(2 * in_flight + UNANSWERED_MAX + 4)
        .saturating_add(256 + BOOK_REPORTS_MAX)
}

/// Orders a shard may have under way: the same arithmetic from the other side.
pub(crate) fn order_queue_size(connections: usize, in_flight: usize) -> usize {
    connections.saturating_mul(2 * in_flight + 3).saturating_add(2 + SETTLED_ORDERS_MAX)
}

/// Dial orders and their answers: one attempt each, and one given up.
pub(crate) fn dial_queue_size(connections: usize) -> usize {
    connections.saturating_mul(2).saturating_add(2)
}
