//! The judge of loss: collects what a client says it was handed and told it missed, and settles
//! that against the ledger. Plain numbers, ranges only. It never looks inside a message except for
//! a ticker's running number, and it shares no type with any client.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use serde::Serialize;

use crate::ledger::{ConnectionRecord, Ledger};
use crate::settle;
use crate::slots;

/// A client's account of what it was handed, filled while it runs.
#[derive(Clone, Debug, Default)]
pub struct Audit {
    pub(crate) ups: Vec<Up>,
    pub(crate) downs: BTreeSet<(u16, u32)>,
    /// By connection number.
    pub(crate) connections: Vec<Vec<EpochLog>>,
    pub(crate) owed: BTreeMap<(u16, u32, u64), u64>,
    /// Messages that carried no number at all, by connection and epoch.
    pub(crate) unnumbered: BTreeMap<(u16, u32), u64>,
}

/// One connection that came up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Up {
    pub(crate) conn: u16,
    pub(crate) epoch: u32,
    pub(crate) address: SocketAddr,
}

/// What was delivered in one epoch of one connection.
#[derive(Clone, Debug)]
pub(crate) struct EpochLog {
    pub(crate) epoch: u32,
    /// By sid, in the order of delivery.
    pub(crate) sids: BTreeMap<u64, Vec<Span>>,
}

/// Messages `first..=last` delivered in order with nothing missing inside; the first of them said
/// that `gap_before` were missed before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) gap_before: u64,
}

impl Audit {
    /// Connection `conn` came up as `epoch` from `local_addr` (the exchange's peer address).
    pub fn up(&mut self, conn: u16, epoch: u32, local_addr: SocketAddr) {
        self.ups.push(Up { conn, epoch, address: local_addr });
    }

    /// The epoch ended and the host was told.
    pub fn down(&mut self, conn: u16, epoch: u32) {
        self.downs.insert((conn, epoch));
    }

    /// A message was handed over. `seq` is `None` on unsequenced channels: the running number
    /// `"Clock":N` is then read out of `data`. `gap_size` is what the client said was missed before
    /// it.
    pub fn delivered(
        &mut self,
        conn: u16,
        epoch: u32,
        sid: u64,
        seq: Option<u64>,
        gap_size: u64,
        data: &[u8],
    ) {
        let Some(number) = seq.or_else(|| clock_of(data)) else {
            *self.unnumbered.entry((conn, epoch)).or_default() += 1;
            return;
        };
        let spans = self.log(conn, epoch, sid);
        match spans.last_mut() {
            Some(span) if gap_size == 0 && number == span.last.wrapping_add(1) => {
                span.last = number;
            }
            _ => spans.push(Span { first: number, last: number, gap_before: gap_size }),
        }
    }

    /// At its stop, or when a subscription ended, the client reported `missed` messages of that sid
    /// as lost that no message in the stream told of.
    pub fn owed(&mut self, conn: u16, epoch: u32, sid: u64, missed: u64) {
        *self.owed.entry((conn, epoch, sid)).or_default() += missed;
    }

    /// Adds another consumer's account to this one.
    pub fn merge(&mut self, other: Self) {
        self.ups.extend(other.ups);
        self.downs.extend(other.downs);
        for (conn, epochs) in other.connections.into_iter().enumerate() {
            let Ok(conn) = u16::try_from(conn) else {
                continue;
            };
            for log in epochs {
                for (sid, spans) in log.sids {
                    self.log(conn, log.epoch, sid).extend(spans);
                }
            }
        }
        for (key, missed) in other.owed {
            *self.owed.entry(key).or_default() += missed;
        }
        for (key, count) in other.unnumbered {
            *self.unnumbered.entry(key).or_default() += count;
        }
    }

    /// Compares the account with what the exchange sent.
    #[must_use]
    pub fn settle(&self, ledger: &Ledger) -> Verdict {
        settle::settle(self, ledger)
    }

    fn log(&mut self, conn: u16, epoch: u32, sid: u64) -> &mut Vec<Span> {
        let conn = usize::from(conn);
        if conn >= self.connections.len() {
            self.connections.resize_with(conn + 1, Vec::new);
        }
        let epochs = &mut self.connections[conn];
        // The latest is the likeliest.
        let at = match epochs.iter().rposition(|log| log.epoch == epoch) {
            Some(at) => at,
            None => {
                epochs.push(EpochLog { epoch, sids: BTreeMap::new() });
                epochs.len() - 1
            }
        };
        epochs[at].sids.entry(sid).or_default()
    }

    /// Pairs every up with the ledger's connection of that address. Addresses get reused: of
    /// several, the oldest that fits what was delivered.
    pub(crate) fn join<'a>(&self, ledger: &'a Ledger) -> Vec<(Up, Option<&'a ConnectionRecord>)> {
        let mut by_address: BTreeMap<SocketAddr, Vec<(&ConnectionRecord, bool)>> = BTreeMap::new();
        for record in ledger.connections.iter().filter(|record| record.upgraded) {
            by_address.entry(record.peer).or_default().push((record, false));
        }
        let mut joined = Vec::with_capacity(self.ups.len());
        for &up in &self.ups {
            let candidates = by_address.entry(up.address).or_default();
            let free = |used: &&mut (&ConnectionRecord, bool)| !used.1;
            let fits = candidates.iter().position(|(record, used)| !used && self.fits(up, record));
            let chosen = match fits {
                Some(at) => candidates.get_mut(at),
                None => candidates.iter_mut().find(free),
            };
            joined.push((
                up,
                chosen.map(|entry| {
                    entry.1 = true;
                    entry.0
                }),
            ));
        }
        joined
    }

    fn fits(&self, up: Up, record: &ConnectionRecord) -> bool {
        self.sids(up.conn, up.epoch).all(|(sid, spans)| {
            let most = spans.iter().map(|span| span.last).max().unwrap_or(0);
            record.sid(sid).is_some_and(|record| slots::highest_number(record) >= most)
        })
    }

    fn epoch(&self, conn: u16, epoch: u32) -> Option<&EpochLog> {
        self.connections.get(usize::from(conn))?.iter().find(|log| log.epoch == epoch)
    }

    /// What was delivered of one sid.
    pub(crate) fn spans(&self, up: Up, sid: u64) -> &[Span] {
        let log = self.epoch(up.conn, up.epoch);
        log.and_then(|log| log.sids.get(&sid)).map_or(&[], Vec::as_slice)
    }

    /// Everything delivered in one epoch, by sid.
    pub(crate) fn sids(&self, conn: u16, epoch: u32) -> impl Iterator<Item = (u64, &[Span])> {
        let sids = self.epoch(conn, epoch).map(|log| log.sids.iter());
        sids.into_iter().flatten().map(|(&sid, spans)| (sid, spans.as_slice()))
    }
}

/// The number behind `"Clock":`.
fn clock_of(data: &[u8]) -> Option<u64> {
    const KEY: &[u8] = b"\"Clock\":";
    let at = data.windows(KEY.len()).position(|window| window == KEY)?;
    let digits = data.get(at + KEY.len()..)?;
    let count = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(digits.get(..count)?).ok()?.parse().ok()
}

/// The account settled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Data frames the exchange numbered.
    pub sent: u64,
    /// Of those, handed over.
    pub delivered: u64,
    /// Of those, lost and honestly told.
    pub covered: u64,
    /// Of those, not delivered where no client could notice: withheld where no number shows it, or
    /// repeats.
    pub undetectable: u64,
    /// Lost silently, told wrongly, delivered twice, or delivered though never sent.
    pub unaccounted: u64,
    /// What is wrong, at most 50 entries, each naming conn, epoch, sid and numbers.
    #[serde(skip)]
    pub findings: Vec<String>,
}
