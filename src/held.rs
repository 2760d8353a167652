//! Messages that found no room and must not be dropped, held back with their connection until
//! there is room again: lifecycle frames for the registry, and batches for the host under
//! `Overflow::Backpressure`. Never more than one socket read of each connection.

use std::collections::VecDeque;

use crossbeam_channel::{Sender, TrySendError};

use crate::batch::{Buffer, RawMessage};
use crate::ids::widen;
use crate::mailbox::Untold;
use crate::messages::Outlet;
use crate::sequence::Mark;
use crate::stats::ShardCounters;

/// What one connection holds back.
#[derive(Debug)]
pub(crate) enum Held {
    Nothing,
    /// Lifecycle frames, in order.
    ForRegistry(VecDeque<RawMessage>),
    /// A batch for `Messages`.
    ForHost(Box<Buffer>),
}

impl Held {
    /// A batch's messages, copied out for the registry.
    pub(crate) fn for_registry(batch: Box<Buffer>, outlet: &mut Outlet) -> Self {
        let messages = batch.entries.iter().map(|entry| batch.message(entry).to_owned());
        let held = Self::ForRegistry(messages.collect());
        outlet.recycle(batch);
        held
    }

    pub(crate) fn is_nothing(&self) -> bool {
        matches!(self, Self::Nothing)
    }

    pub(crate) fn is_for_host(&self) -> bool {
        matches!(self, Self::ForHost(_))
    }

    /// Whether both wait for the same room.
    pub(crate) fn is_for_same(&self, other: &Self) -> bool {
        use Held::{ForHost, ForRegistry};
        matches!((self, other), (ForHost(_), ForHost(_)) | (ForRegistry(_), ForRegistry(_)))
    }

    /// Hands over what there is room for; gives what is left, and whether the registry turned out
    /// to have hung up.
    pub(crate) fn offer(
        self,
        outlet: &mut Outlet,
        registry: &mut Option<Sender<RawMessage>>,
        counters: &ShardCounters,
    ) -> (Self, bool) {
        match self {
            Self::Nothing => (Self::Nothing, false),
            Self::ForHost(batch) => {
                let (sent, left) = outlet.offer(batch);
                counters.messages_forwarded.add(widen(sent));
                (left.map_or(Self::Nothing, Self::ForHost), false)
            }
            Self::ForRegistry(messages) => offer_registry(messages, registry, counters),
        }
    }

    /// Nothing is waited for at a stop: what finds no room even now is told as lost. Says how much.
    pub(crate) fn abandon(
        self,
        outlet: &mut Outlet,
        counters: &ShardCounters,
        untold: &mut Vec<Untold>,
        debt: impl Fn(Mark) -> u64,
    ) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::ForRegistry(messages) => {
                counters.lifecycle_discarded.add(widen(messages.len()));
                untold.extend(messages.iter().map(|message| Untold {
                    conn_id: message.conn_id,
                    epoch: message.epoch,
                    sid: message.sid,
                    messages: debt(Mark {
                        continuity: message.continuity,
                        gap_size: message.gap_size,
                    }),
                }));
                widen(messages.len())
            }
            Self::ForHost(batch) => {
                let (conn_id, epoch, mut rest) = (batch.conn, batch.epoch, Vec::new());
                let handed = outlet.send(batch, &mut rest);
                counters.messages_forwarded.add(widen(handed.messages));
                counters.messages_dropped.add(widen(rest.len()));
                untold.extend(rest.iter().map(|entry| Untold {
                    conn_id,
                    epoch,
                    sid: entry.sid,
                    messages: debt(entry.mark()),
                }));
                widen(rest.len())
            }
        }
    }
}

fn offer_registry(
    mut messages: VecDeque<RawMessage>,
    registry: &mut Option<Sender<RawMessage>>,
    counters: &ShardCounters,
) -> (Held, bool) {
    let mut hung_up = false;
    while let Some(message) = messages.pop_front() {
        let Some(sink) = registry else {
            counters.lifecycle_discarded.add(1);
            continue;
        };
        match sink.try_send(message) {
            Ok(()) => counters.lifecycle_forwarded.add(1),
            Err(TrySendError::Full(message)) => {
                messages.push_front(message);
                return (Held::ForRegistry(messages), hung_up);
            }
            Err(TrySendError::Disconnected(_)) => {
                counters.lifecycle_discarded.add(1);
                *registry = None;
                hung_up = true;
            }
        }
    }
    (Held::Nothing, hung_up)
}
