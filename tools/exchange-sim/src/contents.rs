//! Which contents were sent on which lines: a record of every message of the channels that can be
//! followed whole, once for all its copies. Kept only where asked for. It sends nothing and judges
//! nothing.

use std::net::SocketAddr;

use serde::Serialize;

/// Most contents kept; beyond that the record is not complete and says so.
const MOST: usize = 4_000_000;

/// One message, whatever lines it was sent on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Content {
    /// The channel's name.
    pub channel: &'static str,
    /// A hash of what the message says, the same for all its copies ([`Content::identity_of`]).
    pub identity: u64,
    /// Its copies: one for each line that had room for it.
    pub copies: Vec<LineCopy>,
}

/// One message on one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LineCopy {
    /// Which of the connections that follow the whole channel, from 1.
    pub line: u8,
    /// The client's address.
    pub peer: SocketAddr,
    /// The number of its connection's accept.
    pub accept_number: u64,
    /// The subscription id.
    pub sid: u64,
    /// The frame's `seq`, or `Clock` on channels without.
    pub number: u64,
    /// False if it took its number and was withheld.
    pub written: bool,
}

/// Every message sent to those who follow a whole channel, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Contents {
    /// The messages.
    pub list: Vec<Content>,
    /// Whether some did not fit any more.
    pub truncated: bool,
}

impl Content {
    /// The identity of what a whole frame says, its envelope and its running number aside; `None`
    /// for what is no data frame.
    #[must_use]
    pub fn identity_of(frame: &[u8]) -> Option<u64> {
        const KEY: &[u8] = b"\"msg\":{";
        let at = frame.windows(KEY.len()).position(|window| window == KEY)?;
        let mut says = frame.get(at + KEY.len()..)?;
        if let Some(clocked) = says.strip_prefix(b"\"Clock\":") {
            let comma = clocked.iter().position(|&byte| byte == b',')?;
            says = clocked.get(comma + 1..)?;
        }
        Some(hash(says))
    }

    /// Whether it was written on any line.
    #[must_use]
    pub fn written(&self) -> bool {
        self.copies.iter().any(|copy| copy.written)
    }
}

/// FNV-1a of a message without the ends of its objects.
fn hash(says: &[u8]) -> u64 {
    let says = says.trim_ascii_end();
    let says = says.strip_suffix(b"}}").unwrap_or(says);
    says.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The record while it grows.
#[derive(Debug)]
pub(crate) struct Recorder {
    kept: Option<Contents>,
    copies: Vec<LineCopy>,
}

impl Recorder {
    pub(crate) fn new(on: bool) -> Self {
        Self { kept: on.then(Contents::default), copies: Vec::new() }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.kept.is_some()
    }

    /// A copy of the message being sent.
    pub(crate) fn copy(&mut self, copy: LineCopy) {
        self.copies.push(copy);
    }

    /// The message has been sent: `tail` is what it says.
    pub(crate) fn finish(&mut self, channel: &'static str, tail: &[u8]) {
        let Some(kept) = self.kept.as_mut().filter(|_| !self.copies.is_empty()) else {
            return;
        };
        if kept.list.len() >= MOST {
            kept.truncated = true;
            return self.copies.clear();
        }
        let copies = std::mem::take(&mut self.copies);
        kept.list.push(Content { channel, identity: hash(tail), copies });
    }

    pub(crate) fn contents(&self) -> Contents {
        self.kept.clone().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_is_what_a_message_says_and_nothing_else() {
        let tail = b"\"market_ticker\":\"A\",\"x\":1}}\n";
        let frames: [&[u8]; 3] = [
            b"{\"type\":\"trade\",\"sid\":1,\"seq\":7,\"msg\":{\"market_ticker\":\"A\",\"x\":1}}\n",
            b"{\"type\":\"trade\",\"sid\":4,\"seq\":9,\"msg\":{\"market_ticker\":\"A\",\"x\":1}}",
            b"{\"type\":\"ticker\",\"sid\":1,\"msg\":{\"Clock\":3,\"market_ticker\":\"A\",\"x\":1}}\n",
        ];
        for frame in frames {
            assert_eq!(Content::identity_of(frame), Some(hash(tail)));
        }
        assert_eq!(Content::identity_of(b"{\"type\":\"ok\",\"id\":1}"), None);
        assert_ne!(hash(tail), hash(b"\"market_ticker\":\"A\",\"x\":2}}\n"));
    }
}
