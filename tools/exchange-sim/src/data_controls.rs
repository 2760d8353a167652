//! The handle's controls over data: what goes wrong with it, which lines are held back, which
//! subscriptions are silent, and what was sent where. They do nothing themselves but pass the calls
//! on.

use std::net::SocketAddr;

use crate::contents::Contents;
use crate::data_faults::DataRule;
use crate::exchange::Exchange;
use crate::lines::{LineDelay, LineHolder};

impl Exchange {
    /// Adds a rule of what goes wrong with data, behind those there are.
    pub fn inject_data(&self, rule: DataRule) {
        self.tell(move |server| server.venue.data_faults.add(rule));
    }

    /// Nothing goes wrong with data any more.
    pub fn clear_data_faults(&self) {
        self.tell(|server| server.venue.data_faults.clear());
    }

    /// Holds one line back from now on, whoever has it; zero times end that.
    pub fn set_line_delay(&self, delay: LineDelay) {
        self.tell(move |server| server.venue.set_line_delay(delay));
    }

    /// Who follows which channel whole, by channel and line.
    #[must_use]
    pub fn lines(&self) -> Vec<LineHolder> {
        let holders = self.ask(|server| server.venue.holders()).unwrap_or_default();
        holders.into_iter().map(|(_, holder)| holder).collect()
    }

    /// Every message sent on lines so far, if [`crate::ExchangeConfig::record_contents`] has it
    /// kept. Frames of [`crate::Mode::Flood`] are not among them: its lines say different things.
    #[must_use]
    pub fn contents(&self) -> Contents {
        self.ask(|server| server.venue.contents.contents()).unwrap_or_default()
    }

    /// Makes one subscription silent, or ends that, while others flow. Commands on it are answered
    /// still, with snapshots too. Its order-book markets stand still for everybody; of the other
    /// channels it skips messages, without numbers for them. Returns whether there was one.
    pub fn stall(&self, peer: SocketAddr, sid: u64, silent: bool) -> bool {
        self.ask(move |server| {
            let slot = server.slots(&[peer]).first().copied()?;
            let stream = server.venue.live_stream(slot, sid)?;
            server.venue.client(slot)?.streams[stream as usize].stalled = silent;
            Some(())
        })
        .flatten()
        .is_some()
    }
}
