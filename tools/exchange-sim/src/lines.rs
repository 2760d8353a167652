//! The lines of a channel: the connections that follow the whole of it, numbered, so that redundant
//! ones can be told apart and one held back behind the other. A line's number is the lowest that is
//! free when it is made.

use std::net::SocketAddr;
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::subscription::Channel;
use crate::venue::Venue;

/// How long everything on one line is held back before it is written.
///
/// As a text: `trade/2 5` or `trade/2 5/20`, in milliseconds, the second number for the jitter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineDelay {
    /// The channel's name.
    pub channel: String,
    /// Which line, from 1.
    pub line: u8,
    /// Every frame comes this much later.
    pub base: Duration,
    /// And by up to this much more, drawn for each frame; their order stays.
    pub jitter: Duration,
}

impl FromStr for LineDelay {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            let (place, times) = text.split_once(' ')?;
            let (channel, line) = place.split_once('/')?;
            let (base, jitter) = times.split_once('/').unwrap_or((times, "0"));
            let millis = |text: &str| text.parse().ok().map(Duration::from_millis);
            Some(Self {
                channel: channel.to_owned(),
                line: line.parse().ok()?,
                base: millis(base)?,
                jitter: millis(jitter)?,
            })
        };
        read().ok_or_else(|| {
            format!("`{text}` is no delay: give CHANNEL/LINE MS or CHANNEL/LINE MS/JITTER")
        })
    }
}

/// One connection that follows a whole channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LineHolder {
    /// The channel's name.
    pub channel: &'static str,
    /// Its number among them, from 1.
    pub line: u8,
    /// The client's address.
    pub peer: SocketAddr,
    /// The subscription id.
    pub sid: u64,
}

impl Venue {
    /// Makes a stream the next line of its channel.
    pub(crate) fn join_line(&mut self, slot: u32, at: u32, channel: Channel) {
        let Some(list) = self.everywhere(channel) else {
            return;
        };
        let list = list.clone();
        let taken = |line: u8| {
            let held = |&(slot, at): &(u32, u32)| {
                self.stream(slot, at).is_some_and(|stream| stream.line == line)
            };
            list.iter().any(held)
        };
        let line = (1..=u8::MAX).find(|&line| !taken(line)).unwrap_or(u8::MAX);
        if let Some(Some(client)) = self.clients.get_mut(slot as usize) {
            client.streams[at as usize].line = line;
        }
        if let Some(list) = self.everywhere(channel) {
            list.push((slot, at));
        }
        let delayed = |delay: &&LineDelay| delay.channel == channel.name() && delay.line == line;
        if let Some(delay) = self.delays.iter().rev().find(delayed).cloned() {
            self.hold_back(slot, &delay);
        }
    }

    /// Holds a line back from now on, and whoever is that line later.
    pub(crate) fn set_line_delay(&mut self, delay: LineDelay) {
        let same = |known: &LineDelay| (&known.channel, known.line) == (&delay.channel, delay.line);
        self.delays.retain(|known| !same(known));
        for holder in self.holders() {
            if (holder.1.channel, holder.1.line) == (delay.channel.as_str(), delay.line) {
                self.hold_back(holder.0, &delay);
            }
        }
        self.delays.push(delay);
    }

    fn hold_back(&mut self, slot: u32, delay: &LineDelay) {
        let seed = self.rng.u64(..);
        if let Some(client) = self.client(slot) {
            client.out.set_delay(delay.base, delay.jitter, seed);
        }
    }

    /// Who follows which channel whole, by channel and line; with their places.
    pub(crate) fn holders(&self) -> Vec<(u32, LineHolder)> {
        let lists = [&self.all_tickers, &self.all_trades, &self.lifecycles];
        let mut holders = Vec::new();
        for &(slot, at) in lists.into_iter().flatten() {
            let client = self.clients.get(slot as usize).and_then(Option::as_ref);
            if let (Some(client), Some(stream)) = (client, self.stream(slot, at)) {
                let (channel, line, sid) = (stream.channel.name(), stream.line, stream.sid);
                holders.push((slot, LineHolder { channel, line, peer: client.peer, sid }));
            }
        }
        holders.sort_unstable_by_key(|(_, holder)| (holder.channel, holder.line));
        holders
    }

    /// Lets go what was held back until now.
    pub(crate) fn release(&mut self, now: Instant) {
        for slot in 0..self.clients.len() {
            let Some(Some(client)) = self.clients.get_mut(slot) else {
                continue;
            };
            if client.out.release(now) {
                self.mark(slot as u32);
            }
        }
    }

    /// When there is next something to let go.
    pub(crate) fn next_release(&self) -> Option<Instant> {
        self.clients.iter().flatten().filter_map(|client| client.out.next_release()).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_read_from_text() {
        let delay = |line, base, jitter| LineDelay {
            channel: "trade".to_owned(),
            line,
            base: Duration::from_millis(base),
            jitter: Duration::from_millis(jitter),
        };
        assert_eq!("trade/2 5".parse(), Ok(delay(2, 5, 0)));
        assert_eq!("trade/1 5/20".parse(), Ok(delay(1, 5, 20)));
        for wrong in ["trade 5", "trade/2", "trade/x 5", "trade/2 5/x", ""] {
            assert!(wrong.parse::<LineDelay>().is_err(), "{wrong}");
        }
    }
}
