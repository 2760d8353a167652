//! Puts the engine's parts together: the queues between the threads, and what each thread is made
//! of. It starts nothing.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::arbitration::ArbiterSettings;
use crate::config::{Config, ConfigBuilder};
use crate::conflate::Limits;
use crate::connector::{ConnectorParts, Dial, Dialed};
use crate::delivery::Delivery;
use crate::dialect::Dialect;
use crate::event::Event;
use crate::ids::{ShardId, Ticker};
use crate::link::LinkSettings;
use crate::mailbox::{
    Lost, Mailbox, Order, Report, dial_queue_size, order_queue_size, report_queue_size,
};
use crate::messages::Handoff;
use crate::pulse::PulseSettings;
use crate::resolve::{SystemResolver, Wake};
use crate::sequence::sids_max;
use crate::shard::ShardParts;
use crate::stats::Counters;
use crate::suspicion::SuspicionSettings;
use crate::thread::Exits;
use crate::transport::{TcpLink, TcpTransport};
use crate::warning::Warnings;

/// Replies the peer may leave unread before its connection is given up, beside commands.
const REPLIES_BYTES_MAX: usize = 1 << 20;

/// The queues to the connector and to the shards.
pub(crate) type Mailboxes = (Mailbox<Dial>, Vec<Mailbox<Order<TcpLink>>>);

/// The queues between the threads, and the parts of those that sleep in a poll.
pub(crate) struct Wiring {
    pub(crate) shards: Vec<ShardParts<TcpTransport>>,
    pub(crate) connector: ConnectorParts<TcpTransport, SystemResolver>,
    pub(crate) mailboxes: Mailboxes,
    pub(crate) dialed: Receiver<Dialed<TcpLink>>,
    pub(crate) reports: Receiver<Report>,
    pub(crate) lost: Receiver<Lost>,
    pub(crate) exits: Exits,
    pub(crate) ended: Receiver<String>,
}

impl Wiring {
    pub(crate) fn new(
        config: &Config,
        counters: &Counters,
        handoff: &Handoff,
        delivery: &Delivery,
        warnings: &Arc<Warnings>,
        events: Sender<Event>,
    ) -> std::io::Result<Self> {
        let settings = &config.settings;
        let (connections, in_flight) = (settings.pool.connections(), settings.commands_in_flight);
        let (report_sender, reports) = bounded(report_queue_size(connections, in_flight));
        let (mut shards, mut shard_boxes) = (Vec::new(), Vec::new());
        for ((id, block), _) in (0u16..).zip(&counters.shards).zip(&config.placement.shards) {
            let id = ShardId::new(id);
            let (transport, wake) = transport(config, warnings)?;
            let (orders, order_receiver) = bounded(order_queue_size(connections, in_flight));
            let Some(outlet) = handoff.outlet(id) else {
                break;
            };
            shards.push(ShardParts {
                id,
                shards: config.shards(),
                transport,
                settings: link_settings(config),
                orders: order_receiver,
                reports: report_sender.clone(),
                outlet,
                pool: settings.pool,
                overflow: settings.overflow,
                conflate: Limits::new(settings),
                arbitration: arbiter_settings(settings),
                delivery: delivery.clone(),
                turn_budget: settings.turn_budget,
                handler_slow_threshold: settings.handler_slow_threshold,
                stall_threshold: settings.stall_threshold,
                counters: Arc::clone(block),
            });
            shard_boxes.push(Mailbox { orders, wake });
        }
        let (transport, wake) = transport(config, warnings)?;
        let endpoint = config.endpoint.clone();
        let host = (endpoint.host.as_str(), endpoint.port);
        let resolver = SystemResolver::new(host, settings.bind_address, Arc::clone(&wake));
        let (orders, dial_receiver) = bounded(dial_queue_size(connections));
        let (dialed_sender, dialed) = bounded(dial_queue_size(connections));
        let connector = ConnectorParts {
            transport,
            resolver,
            endpoint,
            credentials: settings.credentials.clone(),
            connect_timeout: settings.connect_timeout,
            connections,
            orders: dial_receiver,
            reports: dialed_sender,
            counters: Arc::clone(&counters.control),
        };
        let threads = config.shards().saturating_add(2);
        let (ended_sender, ended) = bounded(threads);
        let (lost_sender, lost) = bounded(threads);
        Ok(Self {
            shards,
            connector,
            mailboxes: (Mailbox { orders, wake }, shard_boxes),
            dialed,
            reports,
            lost,
            exits: Exits { ended: ended_sender, lost: lost_sender, events },
            ended,
        })
    }
}

/// A transport with its own poll, and what wakes it.
fn transport(config: &Config, warnings: &Arc<Warnings>) -> std::io::Result<(TcpTransport, Wake)> {
    let tls = config.tls.clone().zip(config.endpoint.tls_name.clone());
    let (transport, waker) = TcpTransport::new(tls, config.socket.clone(), Arc::clone(warnings))?;
    let wake: Wake = Arc::new(move || {
        // Fails only when the poll it wakes is gone, and with it everyone who waits there.
        waker.wake().unwrap_or_default();
    });
    Ok((transport, wake))
}

/// What each pair's arbiter needs to know.
pub(crate) fn arbiter_settings(settings: &ConfigBuilder) -> ArbiterSettings {
    ArbiterSettings {
        policy: settings.arbitration,
        window: settings.arbitration_window,
        messages: settings.arbitration_messages,
    }
}

fn link_settings(config: &Config) -> LinkSettings {
    let settings = &config.settings;
    let command_bytes = settings.chunk.saturating_mul(Ticker::BYTES_MAX + 3).min(1 << 16);
    LinkSettings {
        message_bytes_max: settings.max_message_size,
        outgoing_bytes_max: command_bytes
            .saturating_mul(settings.commands_in_flight)
            .saturating_add(REPLIES_BYTES_MAX),
        subscribe_timeout: settings.subscribe_timeout,
        keep_responses: settings.command_events,
        dialect: settings.dialect,
        single_sids: single_sids(settings),
        ping_idle: settings.ping_idle,
        pong_timeout: settings.pong_timeout,
        write_timeout: settings.write_timeout,
        message_timeout: settings.message_timeout,
        pulse: PulseSettings {
            silent_after: settings.silent_after,
            lag_threshold: settings.lag_threshold,
        },
        silent_reconnect: settings.silent_reconnect,
        suspicion: suspicion_settings(settings),
    }
}

/// Markets of one connection that have a sid of their own.
fn single_sids(settings: &ConfigBuilder) -> usize {
    match settings.dialect {
        Dialect::Live => 0,
        // As many again may have ended and not been forgotten.
        Dialect::Legacy => settings.markets_per_connection.saturating_mul(2),
    }
}

/// What shards need to know of gaps.
pub(crate) fn suspicion_settings(settings: &ConfigBuilder) -> SuspicionSettings {
    SuspicionSettings {
        follows: settings.gap_policy.repairs(),
        single: settings.dialect == Dialect::Legacy,
        // Markets may have come since the gap, others left.
        markets_max: settings.markets_per_connection.saturating_mul(2),
        sids_max: sids_max(single_sids(settings)),
    }
}
