//! One pair of lines, made into one stream: the first copy of each message goes on, the second is
//! taken out of its batch, and what neither line brought is told by the next message that goes on.
//! Lives on the shard of both lines; no lock, no clock.
//!
//! While it judges a pair it keeps the accounts: what the lines' sequences say is missing on one
//! line (`gap_size` of an entry as it comes) is no loss yet, and a message dropped for want of room
//! is the pair's debt and not its line's.

use std::time::{Duration, Instant};

use super::ArbitrationPolicy;
use super::coverage::Coverage;
use super::identity::Identities;
use super::window::{Copy, Kin, Manner, Spot, Window};
use crate::batch::{Buffer, Continuity, Entry};
use crate::ids::{Role, Seq};
use crate::lines::{ArbitrationCounters, Line};

/// How long a second copy is known as one, unless there are too many to remember.
const REMEMBERED: Duration = Duration::from_secs(10);

/// What an arbiter needs to know of the configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ArbiterSettings {
    pub(crate) policy: ArbitrationPolicy,
    /// How long a hole on one line waits for the other.
    pub(crate) window: Duration,
    /// First copies remembered.
    pub(crate) messages: usize,
}

/// What the shard knows when it has a batch judged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    /// All sockets have been looked at since: nothing that has waited until then waits on. None
    /// while the other line may not be read.
    pub(crate) judged: Option<Instant>,
    /// Nothing of the line's waits in its socket.
    pub(crate) is_drained: bool,
}

/// One pair.
#[derive(Debug)]
pub(crate) struct Arbiter {
    role: Role,
    settings: ArbiterSettings,
    identities: Identities,
    window: Window,
    coverage: Coverage,
    /// Lost and not told yet.
    owed: u64,
    /// The next message is the first of the stream.
    begins: bool,
    /// When each line had last brought all that had come.
    heard: [Option<Instant>; 2],
    /// The highest number of each line's subscription.
    high: [u64; 2],
}

impl Arbiter {
    pub(crate) fn new(role: Role, settings: ArbiterSettings) -> Self {
        Self {
            role,
            settings,
            identities: Identities::default(),
            window: Window::new(settings.messages),
            coverage: Coverage::new(settings.window),
            owed: 0,
            begins: true,
            heard: [None; 2],
            high: [0; 2],
        }
    }

    /// As new but for what is owed: nothing of the lines is known any more, and no hole of theirs
    /// will be filled.
    pub(crate) fn renew(&mut self, counters: &ArbitrationCounters) {
        let lost = self.coverage.finish();
        self.lose(lost, counters);
        *self = Self { owed: self.owed, ..Self::new(self.role, self.settings) };
    }

    /// A line is live.
    pub(crate) fn up(&mut self, line: Line, counters: &ArbitrationCounters) {
        let lost = self.coverage.up(line);
        self.coverage.begins_now(line);
        self.lose(lost, counters);
    }

    /// A line is not live any more; so many slots it had missed no message of it has told.
    pub(crate) fn down(
        &mut self,
        line: Line,
        untold: u64,
        now: Instant,
        counters: &ArbitrationCounters,
    ) {
        let lost = if self.role == Role::Ticker {
            // Without numbers only what found no room can be owed.
            self.owe(untold);
            0
        } else {
            self.coverage.pass(line, untold, false, now).1
        };
        let lost = lost.saturating_add(self.coverage.down(line));
        let lost = lost.saturating_add(self.coverage.settle(None));
        self.lose(lost, counters);
        self.begins |= !self.coverage.is_live();
        if let Some(heard) = self.heard.get_mut(line.index()) {
            *heard = None;
        }
    }

    /// Nobody could read for a while.
    pub(crate) fn excuse(&mut self, now: Instant) {
        self.coverage.excuse(now);
    }

    /// Leaves in the batch what is to be delivered, each message with what it has to tell.
    pub(crate) fn judge(
        &mut self,
        line: Line,
        batch: &mut Buffer,
        look: Look,
        counters: &ArbitrationCounters,
    ) {
        let now = batch.received_at.mono;
        counters.cut_short.add(self.forget(line, now, look));
        let Buffer { bytes, entries, .. } = batch;
        entries.retain_mut(|entry| {
            let text = bytes.get(entry.start..entry.end).unwrap_or_default();
            let goes_on = self.goes_on(line, text, entry, now, counters);
            let lost = self.coverage.settle(look.judged);
            self.lose(lost, counters);
            if goes_on {
                self.tell(entry);
            } else {
                counters.duplicates_dropped.add(1);
            }
            goes_on
        });
    }

    fn goes_on(
        &mut self,
        line: Line,
        text: &[u8],
        entry: &Entry,
        now: Instant,
        counters: &ArbitrationCounters,
    ) -> bool {
        let old = matches!(entry.continuity, Continuity::Duplicate | Continuity::Backward);
        let mut spot = self.pass(line, entry, old, now, counters);
        let Some(identity) = self.identities.of(self.role, text) else { return true };
        let once = entry.seq.is_none() && self.role == Role::Ticker;
        let behind = entry.seq.map_or(0, |seq| self.behind(line, seq));
        if old {
            spot = self.coverage.old(line, behind, now);
        }
        let (own, others) =
            (counters.line(self.role, line), counters.line(self.role, line.other()));
        // Trades have an id each; a market may be paused twice, in the same words.
        let repeats = self.role == Role::Lifecycle;
        let is_fresh = !once && !old || repeats && self.coverage.awaits(line, spot);
        let manner = if is_fresh { Manner::Fresh } else { Manner::Repeatable };
        let coverage = &mut self.coverage;
        let kin = |first| if repeats { coverage.kin(line, spot, first) } else { Kin::Unknown };
        match self.window.meet(identity, line, manner, spot, kin) {
            Copy::First => {
                own.inspect(|own| own.first.add(1));
                let late = match entry.seq {
                    Some(_) if old => !self.coverage.fill(line, behind),
                    Some(_) => self.coverage.is_late(line),
                    None => false,
                };
                counters.late.add(u64::from(late));
                true
            }
            Copy::Second(first) => {
                own.inspect(|own| own.second.add(1));
                if let Some(first) = first {
                    let lead = now.saturating_duration_since(first.at);
                    others.inspect(|winner| winner.led(lead));
                    if spot.slot > 0 {
                        let lost = self.coverage.align(line, first);
                        self.lose(lost, counters);
                    }
                }
                false
            }
            Copy::Again => false,
        }
    }

    /// Where the line is with this message.
    fn pass(
        &mut self,
        line: Line,
        entry: &Entry,
        old: bool,
        now: Instant,
        counters: &ArbitrationCounters,
    ) -> Spot {
        if entry.seq.is_none() {
            self.owe(entry.gap_size);
            return Spot { stint: 0, slot: 0, number: 0, least: 0, at: now };
        }
        let mut missing = entry.gap_size;
        if entry.continuity == Continuity::First && self.coverage.has_begun(line) {
            missing = self.begin_anew(line, entry, now, counters);
        }
        if let (Some(high), Some(seq), false) = (self.high.get_mut(line.index()), entry.seq, old) {
            *high = seq.number();
        }
        let (spot, lost) = self.coverage.pass(line, missing, !old, now);
        self.lose(lost, counters);
        spot
    }

    /// A new subscription of a line that was there before: what came between it missed. Says how
    /// much of what its first message tells is missing in its own count.
    fn begin_anew(
        &mut self,
        line: Line,
        entry: &Entry,
        now: Instant,
        counters: &ArbitrationCounters,
    ) -> u64 {
        // No more than that: the rest the one before it could not tell, and lies where that ended.
        let before = entry.seq.map_or(0, Seq::number).saturating_sub(1);
        let missing = entry.gap_size.min(before);
        let left = entry.gap_size.saturating_sub(missing);
        let (_, lost) = self.coverage.pass(line, left, false, now);
        let lost = lost.saturating_add(self.coverage.down(line));
        // What the other line brought last may come on the new one, too.
        let lost = lost.saturating_add(self.coverage.up(line));
        self.lose(lost, counters);
        missing
    }

    /// How far a number lies behind the highest of its line.
    fn behind(&self, line: Line, seq: Seq) -> u64 {
        let high = self.high.get(line.index()).copied().unwrap_or(0);
        high.saturating_sub(seq.number())
    }

    /// What a message that goes on has to tell.
    fn tell(&mut self, entry: &mut Entry) {
        entry.gap_size = std::mem::take(&mut self.owed);
        entry.continuity = match entry.continuity {
            old @ (Continuity::Duplicate | Continuity::Backward) => old,
            _ if std::mem::take(&mut self.begins) => Continuity::First,
            _ if entry.gap_size > 0 => Continuity::Gap,
            _ => Continuity::Next,
        };
    }

    /// Messages that were to go on found no room.
    pub(crate) fn give_back(&mut self, entries: &[Entry]) {
        for entry in entries {
            self.take_back(entry.continuity == Continuity::First, entry.mark().first_copy_debt());
        }
    }

    /// So many that were to go on did not, the first of the stream among them or not.
    pub(crate) fn take_back(&mut self, first: bool, messages: u64) {
        self.begins |= first;
        self.owe(messages);
    }

    /// All is over; says what was lost and could not be told.
    pub(crate) fn finish(&mut self, counters: &ArbitrationCounters) -> u64 {
        let lost = self.coverage.finish();
        self.lose(lost, counters);
        std::mem::take(&mut self.owed)
    }

    /// Slots neither line brought.
    fn lose(&mut self, lost: u64, counters: &ArbitrationCounters) {
        counters.missed_by_both.add_slots(lost);
        self.owe(lost);
    }

    fn owe(&mut self, lost: u64) {
        self.owed = self.owed.saturating_add(lost);
    }

    /// Forgets what both lines have had time enough to bring. A line that was not read for a while
    /// has not had it, so what counts is when it last had nothing more to bring before now.
    fn forget(&mut self, line: Line, now: Instant, look: Look) -> u64 {
        let [a, b] = self.heard;
        let since = match (a, b) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (None, heard) | (heard, None) => heard,
        };
        if let Some(heard) =
            self.heard.get_mut(line.index()).filter(|heard| look.is_drained || heard.is_none())
        {
            *heard = Some(now);
        }
        let since = since.and_then(|since| since.checked_sub(REMEMBERED));
        self.window.forget(since, |line, spot| self.coverage.is_passed(line, spot))
    }
}

#[cfg(test)]
mod tests;
