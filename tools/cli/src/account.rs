//! The demo's account of every message, held against what the exchange sent in the end: line by
//! line, or as one stream where the engine hands over only the first copy of what lines bring.

use std::net::SocketAddr;

use exchange_sim::{Arbitration, Audit, Exchange, Verdict};
use kalshi_feed::{ConnId, Epoch, PoolLayout, RawMessage, Role, Seq, Sid, Untold};

/// What one thread, or all of them, took.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    audit: Audit,
    /// The channels whose lines are one stream.
    streams: Arbitration,
    merged: bool,
    lifecycle: &'static str,
}

impl Account {
    /// `merged` if the engine arbitrates between lines.
    pub(crate) fn new(merged: bool, legacy: bool) -> Self {
        let lifecycle = if legacy { "market_lifecycle" } else { Role::Lifecycle.channel() };
        Self { audit: Audit::default(), streams: Arbitration::default(), merged, lifecycle }
    }

    /// Whether redundant lines are one stream.
    pub(crate) fn is_merged(&self) -> bool {
        self.merged
    }

    fn channel(&self, role: Role) -> Option<&'static str> {
        let channel = if role == Role::Lifecycle { self.lifecycle } else { role.channel() };
        (self.merged && role.is_global()).then_some(channel)
    }

    /// A connection is live.
    pub(crate) fn up(&mut self, conn: ConnId, epoch: Epoch, address: SocketAddr) {
        self.audit.up(conn.number(), epoch.number(), address);
    }

    /// A connection was lost.
    pub(crate) fn down(&mut self, conn: ConnId, epoch: Epoch) {
        self.audit.down(conn.number(), epoch.number());
    }

    /// A message was handed over.
    pub(crate) fn delivered(&mut self, message: &RawMessage) {
        if let Some(channel) = self.channel(message.role) {
            return self.streams.delivered(channel, message.gap_size, &message.data);
        }
        self.audit.delivered(
            message.conn_id.number(),
            message.epoch.number(),
            message.sid.map_or(0, Sid::number),
            message.seq.map(Seq::number),
            message.gap_size,
            &message.data,
        );
    }

    /// What the engine reported at its stop.
    pub(crate) fn owed(&mut self, untold: &Untold) {
        let role = PoolLayout::default().role(untold.conn_id);
        if let Some(channel) = role.and_then(|role| self.channel(role)) {
            return self.streams.owed(channel, untold.messages);
        }
        let sid = untold.sid.map_or(0, Sid::number);
        let (conn, epoch) = (untold.conn_id.number(), untold.epoch.number());
        self.audit.owed(conn, epoch, sid, untold.messages);
    }

    /// Takes in what another thread took.
    pub(crate) fn merge(&mut self, other: Self) {
        self.audit.merge(other.audit);
        self.streams.merge(other.streams);
    }

    /// Compares all of it with what was sent.
    pub(crate) fn settle(&self, exchange: &Exchange) -> Verdict {
        let mut ledger = exchange.ledger();
        let streams: Vec<_> = Role::ALL.into_iter().filter_map(|role| self.channel(role)).collect();
        for record in &mut ledger.connections {
            record.sids.retain(|sid| !streams.contains(&sid.channel.as_str()));
        }
        let mut verdict = self.audit.settle(&ledger);
        if streams.is_empty() {
            return verdict;
        }
        let contents = exchange.contents();
        for channel in streams {
            let stream = self.streams.settle(channel, &contents);
            verdict.sent += stream.sent;
            verdict.delivered += stream.delivered;
            verdict.covered += stream.covered;
            verdict.undetectable += stream.undetectable;
            verdict.unaccounted += stream.unaccounted;
            let named = stream.findings.into_iter().map(|text| format!("{channel}: {text}"));
            verdict.findings.extend(named);
        }
        verdict
    }
}
