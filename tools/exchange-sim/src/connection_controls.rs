//! The handle's controls over single connections and their making: wrong answers to upgrades, bad
//! manners, frames out of the ordinary, ends without a Close. They do nothing themselves but pass
//! the calls on.

use std::net::SocketAddr;
use std::time::Instant;

use crate::exchange::Exchange;
use crate::farewell::Break;
use crate::manners::Manners;
use crate::oddity::Oddity;
use crate::upgrade_faults::UpgradeRule;

impl Exchange {
    /// Adds a rule of what goes wrong with upgrades, behind those there are.
    pub fn inject_upgrade(&self, rule: UpgradeRule) {
        self.tell(move |server| server.upgrade_faults.add(rule, Instant::now()));
    }

    /// Nothing goes wrong with upgrades any more; answers under way stay as they are.
    pub fn clear_upgrade_faults(&self) {
        self.tell(|server| server.upgrade_faults.clear());
    }

    /// How far ahead the exchange's clock is from now on, in milliseconds, behind if negative: the
    /// `Date` of its answers, and against what it checks a signature's timestamp. Stamps in
    /// messages stay.
    pub fn set_clock_skew(&self, millis: i64) {
        self.tell(move |server| server.clock_skew = millis);
    }

    /// How it behaves from now on, on the connections there are and on new ones.
    pub fn set_manners(&self, manners: Manners) {
        self.tell(move |server| server.set_manners(manners));
    }

    /// How it behaves from now on to these clients. Returns how many connections there were.
    pub fn set_manners_of(&self, peers: &[SocketAddr], manners: Manners) -> usize {
        let peers = peers.to_vec();
        self.ask(move |server| server.set_manners_of(&peers, manners)).unwrap_or(0)
    }

    /// Sends a frame out of the ordinary behind what is queued. Returns how many connections there
    /// were.
    pub fn send_odd(&self, peers: &[SocketAddr], oddity: &Oddity) -> usize {
        let (peers, oddity) = (peers.to_vec(), oddity.clone());
        self.ask(move |server| server.send_odd(&peers, &oddity)).unwrap_or(0)
    }

    /// Changes the keys of TLS 1.3 connections, both ways. Returns how many could.
    pub fn renew_keys(&self, peers: &[SocketAddr]) -> usize {
        let peers = peers.to_vec();
        self.ask(move |server| server.renew_keys(&peers)).unwrap_or(0)
    }

    /// Writes what is queued and ends connections without a Close. Returns how many there were.
    pub fn break_off(&self, peers: &[SocketAddr], how: Break) -> usize {
        let peers = peers.to_vec();
        self.ask(move |server| server.break_off(&peers, how)).unwrap_or(0)
    }
}
