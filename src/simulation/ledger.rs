//! The oracle: what the exchange put on each wire, and whether what reached the host is that, in
//! order, with every hole told exactly. It knows the wire, not how the engine keeps its accounts.
//!
//! A message is *delivered*; or *dropped* here for want of room, or *withheld* by the exchange
//! after its number was used up: both are owed, to be told by the next message of that
//! subscription, by the first of the next one, or at the stop; or it was *unread* when its
//! connection ended. A withheld message without a number is *undetectable*.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::batch::{Continuity, RawMessage};
use crate::ids::{ConnId, Epoch};

/// One frame on the wire that takes a number or carries data.
#[derive(Debug)]
pub(super) struct Slip {
    pub(super) sid: u64,
    pub(super) seq: Option<u64>,
    /// The text, if it is the host's.
    pub(super) data: Option<Vec<u8>>,
    /// Where it ends in the stream.
    pub(super) end: u64,
}

/// What went out on one socket.
#[derive(Debug, Default)]
struct Account {
    place: Option<(ConnId, Epoch)>,
    bytes: u64,
    /// Not accounted for yet.
    slips: VecDeque<Slip>,
    /// The highest number so far, by sid.
    high: BTreeMap<u64, u64>,
    /// Sids of which the host has had a message.
    begun: BTreeSet<u64>,
    /// Sids the exchange ended of its own accord.
    over: BTreeSet<u64>,
    /// Sids that were unsubscribed.
    ended: BTreeSet<u64>,
}

/// What a place in the pool owes its host.
#[derive(Debug, Default)]
struct Debt {
    epoch: u32,
    owed: BTreeMap<(Epoch, u64), u64>,
}

/// What became of all messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) sent: u64,
    pub(super) delivered: u64,
    pub(super) dropped: u64,
    /// Numbers used up whose message never came.
    pub(super) missing: u64,
    pub(super) told: u64,
    pub(super) undetectable: u64,
    pub(super) unread: u64,
}

impl Totals {
    pub(super) fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.delivered += other.delivered;
        self.dropped += other.dropped;
        self.missing += other.missing;
        self.told += other.told;
        self.undetectable += other.undetectable;
        self.unread += other.unread;
    }
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    accounts: Vec<Account>,
    links: BTreeMap<(ConnId, Epoch), usize>,
    debts: BTreeMap<ConnId, Debt>,
    pub(super) totals: Totals,
}

/// Where a number stands to the highest so far.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Fresh,
    Same,
    Older,
}

impl Account {
    fn class(&self, slip: &Slip) -> Class {
        let high = self.high.get(&slip.sid).copied().unwrap_or(0);
        match slip.seq {
            Some(seq) if seq == high => Class::Same,
            Some(seq) if seq < high => Class::Older,
            _ => Class::Fresh,
        }
    }

    /// Takes note of a number on the wire, and says how many before it are missing.
    fn pass(&mut self, slip: &Slip) -> u64 {
        let (Some(seq), Class::Fresh) = (slip.seq, self.class(slip)) else { return 0 };
        seq - 1 - self.high.insert(slip.sid, seq).unwrap_or(0)
    }
}

impl Ledger {
    fn account(&mut self, link: usize) -> &mut Account {
        if self.accounts.len() <= link {
            self.accounts.resize_with(link + 1, Account::default);
        }
        &mut self.accounts[link]
    }

    /// So many bytes went out, and this is what they were.
    pub(super) fn sent(&mut self, link: usize, bytes: usize, slip: Option<Slip>) {
        self.totals.sent += u64::from(slip.as_ref().is_some_and(|slip| slip.data.is_some()));
        let account = self.account(link);
        account.bytes += crate::ids::widen(bytes);
        let end = account.bytes;
        account.slips.extend(slip.map(|slip| Slip { end, ..slip }));
    }

    pub(super) fn over(&mut self, link: usize, sid: u64) {
        self.account(link).over.insert(sid);
    }

    pub(super) fn is_over(&self, link: usize, sid: u64) -> bool {
        self.accounts.get(link).is_some_and(|account| account.over.contains(&sid))
    }

    pub(super) fn ended(&mut self, link: usize, sid: u64) {
        self.account(link).ended.insert(sid);
    }

    /// Which place the socket fills.
    pub(super) fn up(&mut self, link: usize, conn: ConnId, epoch: Epoch) {
        self.account(link).place = Some((conn, epoch));
        self.links.insert((conn, epoch), link);
    }

    /// The host, or the registry, took a message; so many bytes of its socket were read by then.
    pub(super) fn delivered(
        &mut self,
        message: &RawMessage,
        read: impl Fn(usize) -> u64,
    ) -> Result<(), String> {
        let (conn, epoch) = (message.conn_id, message.epoch);
        let link = *self.links.get(&(conn, epoch)).ok_or("of an epoch that never was")?;
        let debt = self.debts.entry(conn).or_default();
        if epoch.number() < debt.epoch {
            return Err(format!("after one of epoch {}", debt.epoch));
        }
        if std::mem::replace(&mut debt.epoch, epoch.number()) < epoch.number() {
            self.end_earlier(conn, epoch, &read);
        }
        let class = match message.continuity {
            Continuity::Duplicate => Class::Same,
            Continuity::Backward => Class::Older,
            _ => Class::Fresh,
        };
        loop {
            let account = &mut self.accounts[link];
            let slip = account.slips.pop_front().ok_or("never sent, or out of order")?;
            if slip.end > read(link) {
                return Err("before it was read".to_owned());
            }
            let same = slip.data.as_deref() == Some(&message.data[..]);
            // Of what was sent again and again, the one that can tell so much.
            let owed = || self.debts[&conn].owed.get(&(epoch, slip.sid)).copied().unwrap_or(0);
            if same
                && account.class(&slip) == class
                && (class == Class::Fresh
                    || owed() == message.gap_size
                    || account.over.contains(&slip.sid)
                    // Nothing of its sid came yet: it may tell what earlier ones owe.
                    || (owed() < message.gap_size && !account.begun.contains(&slip.sid)))
            {
                return self.take(link, &slip, message);
            }
            self.skip(link, (conn, epoch), &slip);
        }
    }

    /// A new epoch speaks: what the earlier ones left is owed from now on.
    fn end_earlier(&mut self, conn: ConnId, epoch: Epoch, read: impl Fn(usize) -> u64) {
        let earlier = self.links.range((conn, Epoch::new(0))..(conn, epoch));
        let earlier: Vec<_> = earlier.map(|(_, &link)| link).collect();
        for link in earlier {
            self.finish(link, read(link));
        }
    }

    fn take(&mut self, link: usize, slip: &Slip, message: &RawMessage) -> Result<(), String> {
        let key = (message.epoch, slip.sid);
        let account = &mut self.accounts[link];
        let class = account.class(slip);
        let missing = account.pass(slip);
        let first = class == Class::Fresh && account.begun.insert(slip.sid);
        let debt = self.debts.entry(message.conn_id).or_default();
        let owed = debt.owed.remove(&key).unwrap_or(0) + missing;
        let told = message.gap_size;
        let is_first = message.continuity == Continuity::First;
        self.totals.delivered += 1;
        self.totals.missing += missing;
        self.totals.told += told;
        if message.sid.map(|sid| sid.number()) != Some(slip.sid)
            || message.seq.map(|seq| seq.number()) != slip.seq
            || message.seq_gap != (told > 0)
        {
            return Err("with the wrong numbers".to_owned());
        }
        let restarted = account.over.contains(&slip.sid);
        if first != is_first && !restarted {
            return Err(format!("first of its subscription: {first}"));
        }
        if class == Class::Fresh
            && !is_first
            && (message.continuity == Continuity::Gap) != (told > 0)
        {
            return Err("a gap that is none, or the other way round".to_owned());
        }
        if restarted && told < owed {
            // What was owed when it ended is told by another.
            *debt.owed.entry(key).or_default() += owed - told;
            return Ok(());
        }
        match told.checked_sub(owed) {
            Some(0) => Ok(()),
            Some(more) if is_first || restarted || !account.begun.contains(&slip.sid) => {
                let old = |&(epoch, sid): &(Epoch, u64)| {
                    let ended = account.over.contains(&sid) || account.ended.contains(&sid);
                    epoch < message.epoch || ended
                };
                // First those of which nothing more is to come.
                let coming: BTreeSet<u64> = account.slips.iter().map(|slip| slip.sid).collect();
                let quiet = |key: &(Epoch, u64)| {
                    old(key) && (key.0 < message.epoch || !coming.contains(&key.1))
                };
                let rest = debt.settle(more, quiet);
                let rest = debt.settle(rest, old);
                if rest == 0 { Ok(()) } else { Err(format!("a false gap of {rest}")) }
            }
            _ => Err(format!("should tell of {owed}")),
        }
    }

    /// A frame that was read and is not for the host, or did not reach it.
    fn skip(&mut self, link: usize, (conn, epoch): (ConnId, Epoch), slip: &Slip) {
        let account = &mut self.accounts[link];
        let fresh = account.class(slip) == Class::Fresh;
        let missing = account.pass(slip);
        let dropped = u64::from(slip.data.is_some() && fresh);
        self.totals.missing += missing;
        self.totals.dropped += u64::from(slip.data.is_some());
        let debt = self.debts.entry(conn).or_default();
        *debt.owed.entry((epoch, slip.sid)).or_default() += missing + dropped;
    }

    /// All is over: what was read of each socket and not delivered was dropped. Says how many
    /// messages of it were never read.
    pub(super) fn finish(&mut self, link: usize, read: u64) -> u64 {
        let account = self.account(link);
        let Some(place) = account.place else { return 0 };
        let mut unread = 0;
        while let Some(slip) = self.accounts[link].slips.pop_front() {
            if slip.end <= read {
                self.skip(link, place, &slip);
            } else {
                unread += u64::from(slip.data.is_some());
            }
        }
        self.totals.unread += unread;
        unread
    }

    /// What a place still owes.
    pub(super) fn owed(&self, conn: ConnId) -> u64 {
        self.debts.get(&conn).map_or(0, |debt| debt.owed.values().sum())
    }

    /// What was put on the message's socket and is that.
    pub(super) fn find(&self, message: &RawMessage) -> Option<(usize, &Slip)> {
        let link = *self.links.get(&(message.conn_id, message.epoch))?;
        let same = |slip: &&Slip| slip.data.as_deref() == Some(&message.data[..]);
        self.slips(link).find(same).map(|slip| (link, slip))
    }

    /// What of a socket is not accounted for yet; of lines that are judged by content, all.
    pub(super) fn slips(&self, link: usize) -> impl Iterator<Item = &Slip> {
        self.accounts.get(link).into_iter().flat_map(|account| &account.slips)
    }

    /// Which connection a socket was of, if it ever came to one.
    pub(super) fn conn(&self, link: usize) -> Option<ConnId> {
        self.accounts.get(link)?.place.map(|(conn, _)| conn)
    }

    /// Sockets the ledger knows.
    pub(super) fn links(&self) -> usize {
        self.accounts.len()
    }
}

impl Debt {
    /// Takes so much off what such subscriptions owe, and says what is too much.
    fn settle(&mut self, mut much: u64, such: impl Fn(&(Epoch, u64)) -> bool) -> u64 {
        for (_, owed) in self.owed.iter_mut().filter(|(key, _)| such(key)) {
            let part = much.min(*owed);
            *owed -= part;
            much -= part;
        }
        much
    }
}
