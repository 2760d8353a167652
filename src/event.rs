//! What an operator or host must know, as a bounded stream that never holds the engine up: when
//! it is full, new events are dropped and counted.

use std::net::SocketAddr;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};

use crate::assign::Unplaced;
use crate::code::ExchangeCode;
use crate::command::{Outcome, Response};
use crate::coverage::Uncovered;
use crate::error::{Cause, RecvError};
use crate::ids::{CommandId, ConnId, Epoch, Role, ShardId, Sid, Ticker};
use crate::pulse::Sign;

/// Something happened that is not a message. The order between events and messages is not
/// promised; both name their connection and epoch.
///
/// ```
/// # fn show(event: &kalshi_feed::Event) {
/// match event {
///     kalshi_feed::Event::Halted { conn, cause, .. } => eprintln!("{conn} needs you: {cause}"),
///     other => println!("{other:?}"),
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// A connection is live.
    Up {
        /// Which place in the pool.
        conn: ConnId,
        /// Its role.
        role: Role,
        /// Which socket of that place.
        epoch: Epoch,
        /// Our end of it.
        local_addr: SocketAddr,
    },
    /// A live connection ended.
    Down {
        /// Which place in the pool.
        conn: ConnId,
        /// Its role.
        role: Role,
        /// Which socket of that place.
        epoch: Epoch,
        /// Why.
        cause: Cause,
    },
    /// An attempt to connect failed; another follows.
    AttemptFailed {
        /// Which place in the pool.
        conn: ConnId,
        /// Its role.
        role: Role,
        /// Which attempt.
        epoch: Epoch,
        /// Why.
        cause: Cause,
        /// How long until the next.
        retry_in: Duration,
    },
    /// A connection is given up until an operator acts: nothing more is tried.
    Halted {
        /// Which place in the pool.
        conn: ConnId,
        /// Its role.
        role: Role,
        /// Why.
        cause: Cause,
    },
    /// The exchange refused a command of this connection; it is tried again.
    Refused {
        /// Which place in the pool.
        conn: ConnId,
        /// Which socket of that place.
        epoch: Epoch,
        /// Why.
        code: ExchangeCode,
        /// How many markets the command named.
        markets: usize,
    },
    /// The exchange refused this market by itself. Others go on without it; it is asked for again
    /// after five minutes, or at once when it is wanted anew.
    MarketRefused {
        /// Which place in the pool.
        conn: ConnId,
        /// The market.
        ticker: Ticker,
        /// Why.
        code: ExchangeCode,
    },
    /// Markets wait for a connection. They get one by themselves when there is room.
    Unplaced {
        /// Why there is none.
        reason: Unplaced,
        /// How many markets wait.
        markets: u64,
    },
    /// A command ended. Only with the setting `command_events`.
    Command {
        /// Which place in the pool.
        conn: ConnId,
        /// Which socket of that place.
        epoch: Epoch,
        /// The command's id.
        id: CommandId,
        /// How it ended.
        outcome: Outcome,
        /// The exchange's reply that ended it: one, or none if none came in time, or if it was
        /// answered by the books it asked for.
        responses: Vec<Response>,
    },
    /// The exchange ended a subscription, or its sequence restarted; it is renewed.
    SubscriptionEnded {
        /// Which place in the pool.
        conn: ConnId,
        /// Which socket of that place.
        epoch: Epoch,
        /// Why; none when the sequence restarted.
        code: Option<ExchangeCode>,
    },
    /// Messages were lost, and the books of these markets may be wrong. Only under a
    /// [`GapPolicy`](crate::GapPolicy) that does something about it; it is being done. A market
    /// that was suspect already is not told again.
    Suspect {
        /// Which place in the pool.
        conn: ConnId,
        /// Which socket of that place.
        epoch: Epoch,
        /// The subscription that lost messages; none when several did (of single markets, in the
        /// legacy dialect).
        sid: Option<Sid>,
        /// The markets, at most a thousand; more are told in several events.
        markets: Vec<Ticker>,
        /// How many there are in all of those events.
        total: u64,
    },
    /// A fresh snapshot of each of these markets has passed: their books are sound again. Markets
    /// that left their connection meanwhile, and those of a connection that ended, are not told.
    Recovered {
        /// Which place in the pool.
        conn: ConnId,
        /// Which socket of that place.
        epoch: Epoch,
        /// The markets, at most a thousand.
        markets: Vec<Ticker>,
        /// How long they were suspect, the longest of them.
        took: Duration,
        /// How many of the connection's markets are suspect still. At zero the recovery is over.
        left: u64,
    },
    /// Nobody takes lifecycle frames any more; they are discarded and counted.
    RegistryHungUp,
    /// An inline handler took longer than `handler_slow_threshold`, and its shard's sockets waited.
    /// Told at once, then at most once a second for each shard.
    HandlerSlow {
        /// Whose handler.
        shard: ShardId,
        /// The slowest call since the last such event.
        took: Duration,
        /// How many calls since then were slow.
        calls: u64,
    },
    /// A live connection has brought no data for `silent_after`, though subscribed. It lives, and
    /// is left alone unless `silent_reconnect` is set. Told once for each silence.
    Silent {
        /// Which place in the pool.
        conn: ConnId,
        /// Its role.
        role: Role,
        /// Which socket of that place.
        epoch: Epoch,
        /// Since its last data, or since it was subscribed.
        quiet_for: Duration,
    },
    /// A silent connection has brought data again. (A silence may also end with its connection.)
    Heard {
        /// Which place in the pool.
        conn: ConnId,
        /// Its role.
        role: Role,
        /// Which socket of that place.
        epoch: Epoch,
        /// How long the silence was.
        quiet_for: Duration,
    },
    /// Data comes late: its times (`ts_ms`) lie more than `lag_threshold` before our clock. Either
    /// the exchange, the way or this process cannot keep up, or this machine's clock is off.
    Lagging {
        /// Which place in the pool.
        conn: ConnId,
        /// Its role.
        role: Role,
        /// Which socket of that place.
        epoch: Epoch,
        /// How late.
        lag: Duration,
    },
    /// Data no longer comes late: by less than half of `lag_threshold`.
    CaughtUp {
        /// Which place in the pool.
        conn: ConnId,
        /// Its role.
        role: Role,
        /// Which socket of that place.
        epoch: Epoch,
        /// How late.
        lag: Duration,
    },
    /// Messages of a shard find no room: by policy they are dropped or conflated, or their
    /// connections are held back.
    OverflowBegan {
        /// Whose.
        shard: ShardId,
    },
    /// Every message of the shard has found room for a second, or the engine stops.
    OverflowEnded {
        /// Whose.
        shard: ShardId,
        /// From the first message without room to the last.
        lasted: Duration,
        /// Messages dropped meanwhile.
        dropped: u64,
        /// Of those, left out because a newer one of their market came
        /// ([`Overflow::ConflateByMarket`](crate::Overflow::ConflateByMarket)).
        conflated: u64,
    },
    /// Markets were not covered for a while, and are again: which, and from when to when. Boxed,
    /// since it is larger than the others.
    Uncovered(Box<Uncovered>),
    /// A turn of a shard took longer than `stall_threshold`, and its sockets waited. Told at once,
    /// then at most once a second for each shard.
    ShardStalled {
        /// Which shard.
        shard: ShardId,
        /// The longest turn since the last such event.
        took: Duration,
        /// How many turns since then were too long.
        turns: u64,
    },
    /// A shard has had no turn for seconds and its sockets wait: its inline handler does not come
    /// back, or a bug of the engine's. Told once; a `ShardStalled` follows when it goes on.
    ShardStuck {
        /// Which shard.
        shard: ShardId,
        /// Since its last turn, about.
        lasted: Duration,
    },
    /// A shard failed by a bug of the engine's. Its connections are closed, each with its `Down`,
    /// and made anew, an inline handler too; the other shards go on. One that only fails again
    /// at once is given up: `ThreadLost`.
    ShardRestarted {
        /// Which shard.
        shard: ShardId,
    },
    /// A thread of the engine ended, by a bug in it or because its inline handler panicked. The
    /// connections of a shard are halted and the others go on; without the connector nothing
    /// reconnects, and without the conductor the engine stops.
    ThreadLost {
        /// Its name.
        thread: String,
    },
}

impl Event {
    pub(crate) fn of_sign(sign: Sign, conn: ConnId, role: Role, epoch: Epoch) -> Self {
        match sign {
            Sign::Silent(quiet_for) => Self::Silent { conn, role, epoch, quiet_for },
            Sign::Heard(quiet_for) => Self::Heard { conn, role, epoch, quiet_for },
            Sign::Lagging(lag) => Self::Lagging { conn, role, epoch, lag },
            Sign::CaughtUp(lag) => Self::CaughtUp { conn, role, epoch, lag },
        }
    }
}

/// The host's end of the events.
///
/// ```
/// # fn show(events: &kalshi_feed::Events) {
/// while let Ok(event) = events.try_recv() {
///     println!("{event:?}");
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Events {
    receiver: Receiver<Event>,
}

impl Events {
    pub(crate) fn new(capacity: usize) -> (Sender<Event>, Self) {
        let (sender, receiver) = bounded(capacity);
        (sender, Self { receiver })
    }

    /// The next event, if one is waiting.
    ///
    /// # Errors
    /// [`RecvError::Empty`] or [`RecvError::Disconnected`].
    pub fn try_recv(&self) -> Result<Event, RecvError> {
        self.receiver.try_recv().map_err(|error| match error {
            TryRecvError::Empty => RecvError::Empty,
            TryRecvError::Disconnected => RecvError::Disconnected,
        })
    }

    /// Waits at most `timeout` for the next event.
    ///
    /// # Errors
    /// [`RecvError::Timeout`] or [`RecvError::Disconnected`].
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Event, RecvError> {
        self.receiver.recv_timeout(timeout).map_err(|error| match error {
            RecvTimeoutError::Timeout => RecvError::Timeout,
            RecvTimeoutError::Disconnected => RecvError::Disconnected,
        })
    }
}
