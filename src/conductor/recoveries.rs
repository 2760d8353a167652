//! Gaps in order-book subscriptions: what the host is told of them and of their repair, and what
//! shards are told when it is done. What is repaired how, the plan decides.

use std::time::{Duration, Instant};

use super::Conductor;
use crate::event::Event;
use crate::gap::Gaps;
use crate::ids::{ConnId, Epoch, widen};
use crate::mailbox::{Order, SETTLED_ORDERS_MAX};
use crate::pool::shard_of;
use crate::subscription::{MARKETS_TOLD_MAX, Suspected};
use crate::timer::after;

/// How soon a shard that has much to do is told again.
const AGAIN: Duration = Duration::from_millis(1);

impl<L> Conductor<L> {
    pub(super) fn gap(&mut self, conn: ConnId, epoch: Epoch, gaps: &Gaps, now: Instant) {
        let suspected = self.parts.subscriptions.gap(conn, gaps, now);
        let Some(Suspected { sid, markets }) = suspected else { return };
        let total = widen(markets.len());
        log::debug!("connection {conn}: {total} markets are suspect after a gap");
        for part in markets.chunks(MARKETS_TOLD_MAX) {
            let markets = part.to_vec();
            self.event(Event::Suspect { conn, epoch, sid, markets, total });
        }
    }

    /// Gaps heard of before the reply that says what they are about.
    pub(super) fn early_gap(&mut self, conn: ConnId, epoch: Epoch, now: Instant) {
        if let Some(gaps) = self.parts.subscriptions.take_early_gap(conn) {
            self.gap(conn, epoch, &gaps, now);
        }
    }

    pub(super) fn books_came(&mut self, conn: ConnId, epoch: Epoch, tickers: &str, now: Instant) {
        let recovered = self.parts.subscriptions.books_came(conn, tickers, now);
        let mut left = recovered.left + widen(recovered.markets.len());
        for part in recovered.markets.chunks(MARKETS_TOLD_MAX) {
            left -= widen(part.len());
            let times = part.iter().map(|&(_, took)| took);
            times.clone().for_each(|took| self.parts.counters.control.recovery.recovered(took));
            let took = times.max().unwrap_or_default();
            let markets = part.iter().map(|(ticker, _)| ticker.clone()).collect();
            self.event(Event::Recovered { conn, epoch, markets, took, left });
        }
    }

    /// Tells the shard that nothing is suspect after the last gap it told of.
    pub(super) fn settle(&mut self, conn: ConnId, epoch: Epoch, now: Instant) {
        let Some(last) = self.parts.subscriptions.unsettled(conn) else { return };
        if !self.is_busy(conn) {
            self.order(conn, Order::Settled { conn, epoch, last }, now);
            self.parts.subscriptions.settled(conn);
        }
    }

    /// Whether a connection's shard has so many orders that this one can wait.
    fn is_busy(&self, conn: ConnId) -> bool {
        let shard = self.parts.shards.get(shard_of(conn, self.parts.shards.len()));
        shard.is_some_and(|mailbox| mailbox.orders.len() >= SETTLED_ORDERS_MAX)
    }

    /// When a shard is to be told what it had no time for.
    pub(super) fn unsettled_due(&self, now: Instant) -> Option<Instant> {
        let waits = |conn| self.parts.subscriptions.unsettled(conn).is_some();
        let mut all = self.connections.iter().map(|connection| connection.conn);
        all.any(waits).then(|| after(now, AGAIN))
    }
}
