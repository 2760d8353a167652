//! The host's side: one consumer of messages and the registry's ear, each fast, slow or asleep.
//! What they take goes to the ledger,
//! or to the oracle of pairs.

use std::time::Duration;

use super::books::Suspects;
use super::exchange::Exchange;
use super::network::Network;
use super::pairs::Pairs;
use crate::batch::RawMessage;
use crate::messages::Messages;
use crate::registry::RegistryHost;

#[derive(Debug)]
pub(super) struct Host {
    messages: Messages,
    registry: RegistryHost,
    pub(super) pairs: Pairs,
    pub(super) suspects: Suspects,
    /// Taken at a time, and the time between.
    pub(super) batch: usize,
    pub(super) interval: Duration,
    pub(super) asleep_until: Duration,
    pub(super) registry_asleep_until: Duration,
    pub(super) is_due: bool,
    pub(super) is_registry_due: bool,
}

impl Host {
    pub(super) fn new(messages: Messages, registry: RegistryHost, suspects: Suspects) -> Self {
        Self {
            messages,
            registry,
            pairs: Pairs::default(),
            suspects,
            batch: usize::MAX,
            interval: Duration::from_micros(100),
            asleep_until: Duration::ZERO,
            registry_asleep_until: Duration::ZERO,
            is_due: false,
            is_registry_due: false,
        }
    }

    /// Takes messages; says how many.
    pub(super) fn look(
        &mut self,
        most: usize,
        exchange: &mut Exchange,
        network: &mut Network,
    ) -> Result<usize, String> {
        let mut taken = 0;
        while taken < most
            && let Ok(message) = self.messages.try_recv()
        {
            taken += 1;
            self.look_at(&message, exchange)?;
            enter(&message, &mut self.pairs, exchange, network)?;
        }
        Ok(taken)
    }

    fn look_at(&mut self, message: &RawMessage, exchange: &Exchange) -> Result<(), String> {
        let bookless = |market: &str| exchange.bookless.contains(market);
        self.suspects.take(message, bookless).map_err(|problem| {
            let RawMessage { conn_id, epoch, .. } = message;
            let text = String::from_utf8_lossy(&message.data);
            format!("F1: {conn_id}/{epoch}: {problem}: {text}")
        })
    }

    /// The registry takes what waits for it.
    pub(super) fn listen(
        &mut self,
        exchange: &mut Exchange,
        network: &mut Network,
    ) -> Result<(), String> {
        while let Ok(message) = self.registry.lifecycle().try_recv() {
            enter(&message, &mut self.pairs, exchange, network)?;
        }
        Ok(())
    }
}

fn enter(
    message: &RawMessage,
    pairs: &mut Pairs,
    exchange: &mut Exchange,
    network: &mut Network,
) -> Result<(), String> {
    let RawMessage { conn_id, epoch, seq, gap_size, continuity, .. } = message;
    let number = seq.map_or(0, |seq| seq.number());
    let now = network.now();
    network
        .trace
        .note(now, format_args!("took {conn_id}/{epoch} #{number} {continuity:?} gap {gap_size}"));
    let sockets = &network.sockets;
    let read = |link: usize| sockets[link].read;
    let verdict = match &exchange.feed {
        Some(feed) if pairs.judges(*conn_id) => {
            pairs.delivered(message, (feed, &exchange.ledger), read)
        }
        _ => exchange.ledger.delivered(message, read),
    };
    verdict.map_err(|problem| {
        let text = String::from_utf8_lossy(&message.data);
        format!("I6: {conn_id}/{epoch} {continuity:?} gap {gap_size}: {problem}: {text}")
    })
}
