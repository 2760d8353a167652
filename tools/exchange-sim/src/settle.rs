//! The rules of the settlement: which missing messages were honestly told. Works on an account and
//! a ledger, both complete; it collects nothing.
//!
//! Per connection and channel the sids form a chain in time; some run side by side. Within a sid,
//! places are counted in slots, so that numbers sent twice or started anew cause no confusion;
//! what is missing between two delivered messages must be exactly what the second one told. What is
//! missing after the last one is its tail: told by the first message of a sid that began after it,
//! reported at the client's stop, or excused because the connection broke before anything sent
//! later had arrived. Anything else is unaccounted.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use crate::audit::{Audit, Span, Up, Verdict};
use crate::ledger::{ConnectionRecord, Ledger, SidRecord};
use crate::slots::{self, Ranges, Slots};

const MOST_FINDINGS: usize = 50;

/// What is missing at the end of one sid and not told yet.
struct Tail {
    epoch: u32,
    sid: u64,
    /// Where on the connection its last message was.
    position: u64,
    left: u64,
    excused: bool,
}

#[derive(Default)]
struct Settlement {
    verdict: Verdict,
    unlisted: u64,
    /// Messages without a number that were sent, by connection and epoch.
    odd: BTreeMap<(u16, u32), u64>,
    /// Sids whose reports at the stop were settled.
    reported_on: BTreeSet<(u16, u32, u64)>,
}

/// Compares an account with what the exchange sent.
pub(crate) fn settle(audit: &Audit, ledger: &Ledger) -> Verdict {
    let mut settlement = Settlement::default();
    let mut chains: BTreeMap<(u16, &str), Vec<Link<'_>>> = BTreeMap::new();
    let mut claimed = Vec::new();
    for (up, record) in audit.join(ledger) {
        let Some(record) = record else {
            settlement.unknown_connection(audit, up);
            continue;
        };
        claimed.push(record.accept_number);
        *settlement.odd.entry((up.conn, up.epoch)).or_default() += record.unnumbered;
        for sid in &record.sids {
            let chain = chains.entry((up.conn, sid.channel.as_str())).or_default();
            let spans = slots::of_spans(audit.spans(up, sid.sid), sid);
            chain.push(Link { up, record, sid, slots: Slots::of(sid), spans });
        }
        settlement.unknown_sids(audit, up, record);
    }
    for (&(conn, _), chain) in &mut chains {
        chain.sort_by_key(|link| (link.up.epoch, link.sid.first_position, link.sid.sid));
        settlement.chain(audit, conn, chain);
    }
    settlement.never_up(ledger, &claimed);
    settlement.without_up(audit);
    settlement.finish()
}

/// One sid of one epoch, in the chain of its connection and channel.
struct Link<'a> {
    up: Up,
    record: &'a ConnectionRecord,
    sid: &'a SidRecord,
    slots: Slots,
    /// What was delivered of it, in slots.
    spans: Cow<'a, [Span]>,
}

impl Link<'_> {
    fn place(&self) -> String {
        format!("conn {} epoch {} sid {}", self.up.conn, self.up.epoch, self.sid.sid)
    }

    /// The latest position on the connection that what was delivered of it proves to have arrived.
    fn reached(&self) -> u64 {
        let Some(last) = self.spans.iter().map(|span| span.last).max() else {
            return 0;
        };
        if last >= self.slots.last_data { self.sid.last_position } else { self.sid.first_position }
    }
}

impl Settlement {
    fn blame(&mut self, count: u64, finding: impl FnOnce() -> String) {
        if count == 0 {
            return;
        }
        self.verdict.unaccounted += count;
        if self.verdict.findings.len() < MOST_FINDINGS {
            self.verdict.findings.push(finding());
        } else {
            self.unlisted += 1;
        }
    }

    /// Settles all sids of one connection and channel, oldest first.
    fn chain(&mut self, audit: &Audit, conn: u16, chain: &[Link<'_>]) {
        let mut tails: Vec<Tail> = Vec::new();
        let mut reached: BTreeMap<u32, u64> = BTreeMap::new();
        for link in chain {
            let reached = reached.entry(link.up.epoch).or_default();
            *reached = link.reached().max(*reached);
        }
        for link in chain {
            let slots = &link.slots;
            self.verdict.sent += slots.up_to(slots.last) + slots.hidden.total();
            self.verdict.undetectable += slots.hidden.total();
            let spans = self.valid_spans(link, slots);
            let mut after = 0;
            for (index, span) in spans.iter().enumerate() {
                let repeats = slots.repeats.between(span.first, span.last);
                self.verdict.undetectable -= repeats;
                self.verdict.delivered +=
                    slots.up_to(span.last) - slots.up_to(span.first - 1) + repeats;
                let missing = slots.between(after, span.first);
                let carried = self.gap(link, missing, span, index == 0, &mut tails);
                self.blame(carried, || {
                    format!(
                        "{}: message {} told {} missed, {} more than were",
                        link.place(),
                        span.first,
                        span.gap_before,
                        carried
                    )
                });
                after = span.last;
            }
            let missing = slots.up_to(slots.last) - slots.up_to(after);
            let epoch = link.up.epoch;
            let position = link.sid.last_position;
            let overtaken = reached.get(&epoch).is_some_and(|&reached| reached > position);
            let excused = link.record.ended.may_lose_tail()
                && audit.downs.contains(&(conn, epoch))
                && !overtaken;
            tails.push(Tail { epoch, sid: link.sid.sid, position, left: missing, excused });
        }
        self.tails(audit, conn, tails);
    }

    /// Settles what one message told against what was missing before it; returns how many it told
    /// too many.
    fn gap(
        &mut self,
        link: &Link<'_>,
        missing: u64,
        span: &Span,
        first_of_sid: bool,
        tails: &mut [Tail],
    ) -> u64 {
        let told = span.gap_before;
        self.verdict.covered += missing.min(told);
        self.blame(missing.saturating_sub(told), || {
            format!(
                "{}: {missing} missing before message {}, told {told}",
                link.place(),
                span.first
            )
        });
        let mut surplus = told.saturating_sub(missing);
        if first_of_sid && surplus > 0 {
            let (epoch, began) = (link.up.epoch, link.sid.first_position);
            let over = |tail: &Tail| (tail.epoch, tail.position) < (epoch, began);
            // Carried from earlier sids: those that nothing else can explain come first.
            for excused in [false, true] {
                for tail in tails.iter_mut().filter(|tail| tail.excused == excused && over(tail)) {
                    let part = surplus.min(tail.left);
                    tail.left -= part;
                    surplus -= part;
                    self.verdict.covered += part;
                }
            }
        }
        surplus
    }

    /// Settles what no message told: reports at the stop, then broken connections.
    fn tails(&mut self, audit: &Audit, conn: u16, mut tails: Vec<Tail>) {
        let mut last_epochs: Vec<(usize, u32)> = Vec::new();
        for at in 0..tails.len() {
            let (epoch, sid) = (tails[at].epoch, tails[at].sid);
            self.reports(audit, (conn, epoch, sid), &mut tails[..=at]);
            last_epochs.retain(|&(_, last)| last != epoch);
            last_epochs.push((at, epoch));
        }
        for (at, epoch) in last_epochs {
            // Reported under no sid: of those that had ended.
            self.reports(audit, (conn, epoch, 0), &mut tails[..=at]);
        }
        for tail in tails {
            self.verdict.covered += if tail.excused { tail.left } else { 0 };
            let left = if tail.excused { 0 } else { tail.left };
            self.blame(left, || {
                let (epoch, sid) = (tail.epoch, tail.sid);
                format!("conn {conn} epoch {epoch} sid {sid}: the last {left} were never told")
            });
        }
    }

    /// Settles a report at the stop: it is about its own sid first, and then about what that took
    /// over from earlier ones, which nothing after them told.
    fn reports(&mut self, audit: &Audit, key: (u16, u32, u64), tails: &mut [Tail]) {
        self.reported_on.insert(key);
        let reported = audit.owed.get(&key).copied().unwrap_or(0);
        let mut rest = reported;
        for excused in [false, true] {
            for tail in tails.iter_mut().rev().filter(|tail| tail.excused == excused) {
                let part = rest.min(tail.left);
                (tail.left, rest) = (tail.left - part, rest - part);
                self.verdict.covered += part;
            }
        }
        self.blame(rest, || {
            let ((conn, epoch, sid), were) = (key, reported - rest);
            format!("conn {conn} epoch {epoch} sid {sid}: reported {reported} missed, {were} were")
        });
    }

    /// The delivered spans in order, without numbers that were never data or came twice.
    fn valid_spans(&mut self, link: &Link<'_>, slots: &Slots) -> Vec<Span> {
        let mut spans = link.spans.to_vec();
        spans.sort_by_key(|span| (span.first, span.last));
        let control = Ranges::new(link.sid.control_slots.iter().copied());
        let withheld = Ranges::new(link.sid.withheld.iter().copied());
        let mut valid: Vec<Span> = Vec::with_capacity(spans.len());
        let mut done = 0;
        for mut span in spans {
            if span.first <= done {
                let twice = span.last.min(done) - span.first + 1;
                self.blame(twice, || {
                    format!("{}: {} from {} delivered twice", link.place(), twice, span.first)
                });
                if span.last <= done {
                    self.blame(span.gap_before, || {
                        format!("{}: a repeated message told a gap", link.place())
                    });
                    continue;
                }
                span.first = done + 1;
            }
            if span.first == 0 || span.last > slots.last {
                let never = span.last - span.first.max(slots.last + 1) + 1;
                let never = if span.first == 0 { never.max(1) } else { never };
                self.blame(never, || {
                    format!("{}: {} delivered, never sent", link.place(), span.last)
                });
                span.first = span.first.max(1);
                span.last = span.last.min(slots.last);
                if span.first > span.last {
                    continue;
                }
            }
            let inside = |ranges: &Ranges| ranges.between(span.first, span.last);
            let wrong = inside(&control) + inside(&withheld);
            self.blame(wrong, || {
                let range = (span.first, span.last);
                format!("{}: {wrong} in {range:?} delivered, not data that was sent", link.place())
            });
            done = span.last;
            if control.contains(span.first) && span.first == span.last {
                continue;
            }
            valid.push(span);
        }
        valid
    }

    fn unknown_connection(&mut self, audit: &Audit, up: Up) {
        let count: u64 = audit.sids(up.conn, up.epoch).map(|(_, spans)| delivered(spans)).sum();
        self.blame(count.max(1), || {
            let (conn, epoch, address) = (up.conn, up.epoch, up.address);
            format!("conn {conn} epoch {epoch}: the exchange knows no connection from {address}")
        });
    }

    fn unknown_sids(&mut self, audit: &Audit, up: Up, record: &ConnectionRecord) {
        for (sid, spans) in audit.sids(up.conn, up.epoch) {
            if record.sid(sid).is_none() {
                self.blame(delivered(spans), || {
                    let (conn, epoch) = (up.conn, up.epoch);
                    format!("conn {conn} epoch {epoch} sid {sid}: never existed")
                });
            }
        }
    }

    /// Connections that sent data and that the client never reported as up.
    fn never_up(&mut self, ledger: &Ledger, claimed: &[u64]) {
        let claimed: BTreeSet<u64> = claimed.iter().copied().collect();
        let silent = |record: &&ConnectionRecord| {
            record.upgraded && !claimed.contains(&record.accept_number)
        };
        for record in ledger.connections.iter().filter(silent) {
            for sid in &record.sids {
                let slots = Slots::of(sid);
                let sent = slots.up_to(slots.last);
                self.verdict.sent += sent + slots.hidden.total();
                self.verdict.undetectable += slots.hidden.total();
                if record.ended.may_lose_tail() {
                    self.verdict.covered += sent;
                } else {
                    self.blame(sent, || {
                        let (peer, sid) = (record.peer, sid.sid);
                        format!("connection from {peer} was never reported up: sid {sid}, {sent}")
                    });
                }
            }
        }
    }

    /// Messages of epochs nobody reported as up, messages without a number, reports about nothing.
    fn without_up(&mut self, audit: &Audit) {
        let known =
            |conn: u16, epoch: u32| audit.ups.iter().any(|up| up.conn == conn && up.epoch == epoch);
        for (conn, epochs) in audit.connections.iter().enumerate() {
            let Ok(conn) = u16::try_from(conn) else {
                continue;
            };
            for log in epochs.iter().filter(|log| !known(conn, log.epoch)) {
                let count = log.sids.values().map(|spans| delivered(spans)).sum();
                self.blame(count, || {
                    format!("conn {conn} epoch {}: delivered, never reported up", log.epoch)
                });
            }
        }
        for (&(conn, epoch, sid), &missed) in &audit.owed {
            if !self.reported_on.contains(&(conn, epoch, sid)) {
                self.blame(missed, || {
                    format!("conn {conn} epoch {epoch} sid {sid}: {missed} reported, never existed")
                });
            }
        }
        for (&(conn, epoch), &count) in &audit.unnumbered {
            let sent = self.odd.get(&(conn, epoch)).copied().unwrap_or(0);
            self.blame(count.saturating_sub(sent), || {
                format!("conn {conn} epoch {epoch}: {count} delivered without any number")
            });
        }
    }

    fn finish(mut self) -> Verdict {
        if self.unlisted > 0
            && let Some(last) = self.verdict.findings.last_mut()
        {
            last.push_str(&format!(" (and {} more findings)", self.unlisted));
        }
        self.verdict
    }
}

fn delivered(spans: &[Span]) -> u64 {
    spans.iter().map(|span| span.last - span.first + 1).sum()
}
