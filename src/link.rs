//! A live connection as its shard sees it: frames, replies, sequences and deadlines of one epoch.
//! Bytes and the time go in; batch entries, notes for the conductor and bytes to send come out. It
//! owns no socket and reads no clock.
//!
//! The contract: after `digest`, `command`, `close` or `tick`, send what `outgoing` holds and
//! deliver the notes; after an error, the link is over and nothing more may be fed to it.

use std::ops::Range;
use std::time::{Duration, Instant};

use crate::batch::{Buffer, Continuity, Entry};
use crate::clock::Stamp;
use crate::code::{Action, ExchangeCode};
use crate::command::{Answer, Commands, Ended, Outcome, error_code};
use crate::dialect::Dialect;
use crate::envelope::{Envelope, Kind};
use crate::error::Cause;
use crate::frame::{Framer, Incoming};
use crate::ids::{ConnId, Epoch, Role, Seq, Sid, widen};
use crate::lapse::Lapses;
use crate::partial::Partial;
use crate::pulse::{Pulse, PulseSettings, Sign};
use crate::request::{Expects, Request};
use crate::sequence::{Observed, Sequences, sids_max};
use crate::stats::ShardCounters;
use crate::suspicion::{Suspicion, SuspicionSettings};
use crate::timer::{Moment, after, earlier};
use crate::transport::Sent;
use losses::Came;
use sids::{Over, Sids};

/// A sign of life is sent this often while reading is held back.
const HELD_PONG: Duration = Duration::from_secs(10);
/// Tickers of books that wait to be told, in bytes; beyond that they are not told at all.
const BOOKS_BYTES_MAX: usize = 1 << 20;

/// What a link needs to know of the configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkSettings {
    pub(crate) message_bytes_max: usize,
    pub(crate) outgoing_bytes_max: usize,
    pub(crate) subscribe_timeout: Duration,
    /// Whether replies are kept for the host.
    pub(crate) keep_responses: bool,
    pub(crate) dialect: Dialect,
    /// Markets that have a sid of their own.
    pub(crate) single_sids: usize,
    pub(crate) ping_idle: Duration,
    pub(crate) pong_timeout: Duration,
    pub(crate) write_timeout: Duration,
    pub(crate) message_timeout: Duration,
    pub(crate) pulse: PulseSettings,
    /// Whether silence ends the connection.
    pub(crate) silent_reconnect: bool,
    /// Of order books.
    pub(crate) suspicion: SuspicionSettings,
}

/// What the conductor must hear.
#[derive(Debug)]
pub(crate) enum Note {
    /// A command ended.
    Ended(Ended),
    /// A reply came to one that had ended without.
    Late(Ended),
    /// The subscription is over or out of step and must be renewed; told once for each. Here only
    /// what must be heard before a reply; the others wait in the link until there is time.
    SubscriptionEnded { sid: Sid, code: Option<ExchangeCode> },
    /// Something an operator should know.
    Sign(Sign),
}

/// Where the link is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// Quiet for so long that we asked; an answer is due.
    Pinged {
        until: Instant,
    },
    /// Our Close frame is out; the peer's is due.
    Closing {
        until: Instant,
    },
}

/// One epoch of one connection.
pub(crate) struct Link {
    pub(crate) conn: ConnId,
    pub(crate) epoch: Epoch,
    pub(crate) role: Role,
    /// Bytes to send, in order.
    pub(crate) outgoing: Vec<u8>,
    /// The front of a frame whose rest has not come.
    pub(crate) partial: Partial,
    pub(crate) sequences: Sequences,
    pulse: Pulse,
    framer: Framer,
    commands: Commands,
    settings: LinkSettings,
    phase: Phase,
    last_inbound: Instant,
    /// When data came, and what was lost lately.
    came: Came,
    pub(crate) lapses: Lapses,
    /// Since when the peer takes none of our bytes.
    blocked_since: Option<Instant>,
    /// Since when reading is held back, and when the next sign of life is due.
    held: Option<(Instant, Instant)>,
    /// The subscriptions there are.
    sids: Sids,
    /// Which books are out of step.
    suspicion: Suspicion,
    /// Tickers of the books that came since the last report, one a line.
    books: String,
    /// Those that came before a gap that is not told yet.
    books_before: String,
    /// How many bytes of both are of reads before the last one.
    books_read: usize,
    /// Whether this epoch brought data or an acknowledgement.
    heard: bool,
}

impl Link {
    pub(crate) fn new(
        (conn, epoch, role): (ConnId, Epoch, Role),
        owed: u64,
        unread: Vec<u8>,
        settings: LinkSettings,
        now: Instant,
    ) -> Self {
        let follows = settings.suspicion.follows && role == Role::Orderbook;
        Self {
            suspicion: Suspicion::new(SuspicionSettings { follows, ..settings.suspicion }),
            conn,
            epoch,
            role,
            outgoing: Vec::new(),
            pulse: Pulse::new(settings.pulse),
            partial: Partial::new(unread),
            sequences: Sequences::new(owed).with_room(settings.single_sids),
            framer: Framer::new(settings.message_bytes_max),
            commands: Commands::new(settings.subscribe_timeout, settings.keep_responses),
            settings,
            phase: Phase::Open,
            last_inbound: now,
            came: Came::new(now),
            lapses: Lapses::default(),
            blocked_since: None,
            held: None,
            sids: Sids::new(sids_max(settings.single_sids)),
            books: String::new(),
            books_before: String::new(),
            books_read: 0,
            heard: false,
        }
    }

    /// Takes every whole frame out of the batch's bytes, marks its data messages as entries, and
    /// keeps the rest in `partial`. An error ends the link; what came before it stands.
    pub(crate) fn digest(
        &mut self,
        batch: &mut Buffer,
        notes: &mut Vec<Note>,
        counters: &ShardCounters,
    ) -> Result<(), Cause> {
        let (frames, subscribed) = (self.framer.frames(), self.sids.is_any_open());
        self.begin_books();
        let verdict = self.digest_frames(batch, notes, counters);
        if subscribed != self.sids.is_any_open() {
            self.pulse.expect(!subscribed, batch.received_at.mono, counters);
        }
        counters.messages_received.add(widen(batch.entries.len()));
        if !batch.entries.is_empty() {
            self.heard = true;
            self.came(&batch.entries, batch.received_at.mono);
            notes.extend(self.pulse.take(batch, counters).map(Note::Sign));
        }
        if self.framer.frames() > frames {
            // Whole frames are a sign of life; bytes of one that never ends are not.
            self.last_inbound = batch.received_at.mono;
            if let Phase::Pinged { .. } = self.phase {
                self.phase = Phase::Open;
            }
        }
        verdict
    }

    fn digest_frames(
        &mut self,
        batch: &mut Buffer,
        notes: &mut Vec<Note>,
        counters: &ShardCounters,
    ) -> Result<(), Cause> {
        // A message put together from fragments is appended behind what was received.
        let (received, mut at) = (batch.bytes.len(), 0);
        loop {
            let bytes = batch.bytes.get(..received).unwrap_or_default();
            let Some(incoming) = self.framer.next(bytes, &mut at, &mut self.outgoing)? else {
                break;
            };
            match incoming {
                Incoming::Text(range) => self.text(range, batch, notes, counters),
                Incoming::Assembled(text) => {
                    let start = batch.bytes.len();
                    batch.bytes.extend_from_slice(text.as_bytes());
                    self.text(start..batch.bytes.len(), batch, notes, counters);
                }
                Incoming::Binary => counters.binary_frames.add(1),
                Incoming::Ping | Incoming::Pong => counters.control_frames.add(1),
                Incoming::Close { code, reason } => return Err(self.closed(code, reason)),
            }
            if self.outgoing.len() > self.settings.outgoing_bytes_max {
                let message = "the exchange does not take our replies".to_owned();
                return Err(Cause::Liveness { message });
            }
        }
        let rest = batch.bytes.get(at..received).unwrap_or_default();
        self.partial.keep(rest, &self.framer, batch.received_at.mono);
        Ok(())
    }

    /// The link is over: what it counted as "now" is no longer.
    pub(crate) fn forget(&self, counters: &ShardCounters) {
        self.pulse.forget(counters);
    }

    /// One text message, which lies at `range` of the batch's bytes.
    #[inline]
    fn text(
        &mut self,
        range: Range<usize>,
        batch: &mut Buffer,
        notes: &mut Vec<Note>,
        counters: &ShardCounters,
    ) {
        let text = batch.bytes.get(range.clone()).unwrap_or_default();
        let envelope = Envelope::read(text);
        if let (Kind::Known, Some(sid), Some(seq)) = (envelope.kind, envelope.sid, envelope.seq)
            && self.suspicion.is_none()
            && self.sequences.advance(sid, seq)
        {
            batch.entries.push(Entry::next(range, sid, seq));
            return;
        }
        self.unusual(range, &envelope, batch, notes, counters);
    }

    /// A message that is not simply the next of its sequence. Apart from the others, whose path
    /// stays short by that.
    #[inline(never)]
    fn unusual(
        &mut self,
        range: Range<usize>,
        envelope: &Envelope,
        batch: &mut Buffer,
        notes: &mut Vec<Note>,
        counters: &ShardCounters,
    ) {
        let text = batch.bytes.get(range.clone()).unwrap_or_default();
        let at = batch.received_at.mono;
        let observed = self.observe(envelope, batch.received_at, counters);
        if envelope.kind.is_data() {
            if envelope.kind == Kind::Book {
                self.book(text, envelope, observed, notes);
            }
            let suspect = !self.suspicion.is_none() && self.suspicion.of(envelope.sid, text);
            let entry = self.data(range, envelope, observed, counters);
            batch.entries.push(Entry { suspect, ..entry });
        } else {
            counters.replies.add(1);
            if self.reply(text, envelope, at, notes, counters).is_none() {
                counters.replies_unmatched.add(1);
            }
        }
    }

    /// The sequence check: before anything looks at the frame's type, since replies and errors
    /// take places in the sequence too.
    #[inline]
    fn observe(&mut self, envelope: &Envelope, at: Stamp, counters: &ShardCounters) -> Observed {
        let (Some(sid), Some(seq)) = (envelope.sid, envelope.seq) else {
            return Observed::Contiguous;
        };
        let observed = self.sequences.observe(sid, seq);
        match observed {
            Observed::Contiguous => {}
            Observed::Gap(missing) => {
                counters.sequence_gaps.add(1);
                counters.messages_missed.add_slots(missing);
                self.lapses.missed(Some(sid), missing, self.lost_since(sid), at);
                self.gap(sid, Seq::new(seq.number().wrapping_sub(1)), at.mono);
            }
            Observed::Duplicate => counters.duplicates.add(1),
            Observed::Backward => counters.backward.add(1),
            Observed::Restarted => {
                counters.backward.add(1);
                self.broken(sid, at.mono);
                self.sids.ended(sid, None);
            }
        }
        observed
    }

    #[inline]
    fn data(
        &mut self,
        range: Range<usize>,
        envelope: &Envelope,
        observed: Observed,
        counters: &ShardCounters,
    ) -> Entry {
        match envelope.kind {
            Kind::Unknown => counters.unknown_types.add(1),
            Kind::Unreadable => counters.unreadable.add(1),
            _ => {}
        }
        let (gap_size, continuity) = match envelope.sid {
            Some(sid) => {
                let mark = self.sequences.take(sid, observed);
                (mark.gap_size, mark.continuity)
            }
            None => (0, Continuity::Next),
        };
        let (Range { start, end }, sid, seq) = (range, envelope.sid, envelope.seq);
        Entry { start, end, sid, seq, gap_size, continuity, suspect: false }
    }

    /// A reply or an error; `None` when nothing waited for it.
    fn reply(
        &mut self,
        text: &[u8],
        envelope: &Envelope,
        at: Instant,
        notes: &mut Vec<Note>,
        counters: &ShardCounters,
    ) -> Option<()> {
        let response = self.commands.read(text, envelope)?;
        let code = error_code(&response).filter(|_| envelope.kind == Kind::Error);
        match self.commands.reply(response, envelope.sid) {
            Answer::Ended(ended) => {
                self.heard = true;
                self.land(ended, (envelope, at), Note::Ended, notes);
            }
            Answer::Late(ended) if envelope.seq.is_none() && self.is_stale(&ended) => {
                counters.replies_late.add(1);
                self.tell_end_before(&ended, notes);
                notes.push(Note::Late(ended));
            }
            Answer::Late(ended) => {
                counters.replies_late.add(1);
                self.land(ended, (envelope, at), Note::Late, notes);
            }
            Answer::Part => {}
            Answer::Unknown => {
                let code = code.filter(|code| code.is_terminal())?;
                // Without a sid it can only mean the connection's one subscription.
                let sid = envelope.sid.or_else(|| self.sids.only())?;
                self.broken(sid, at);
                self.retire(sid);
                self.sids.ended(sid, Some(code));
            }
        }
        Some(())
    }

    /// Whether a late reply without a number says that a subscription was opened which has ended
    /// since: it must not begin to count anew, what is still on its way would be a false gap.
    fn is_stale(&self, ended: &Ended) -> bool {
        let opened = ended.expects == Expects::Subscription && ended.outcome.is_ok();
        opened && ended.sid.is_some_and(|sid| self.sequences.is_retired(sid))
    }

    /// Tells of a command's end, and of a subscription's that it says is over.
    fn land(
        &mut self,
        ended: Ended,
        (envelope, at): (&Envelope, Instant),
        told: fn(Ended) -> Note,
        notes: &mut Vec<Note>,
    ) {
        let over = self.sids.ended_by(&ended, envelope.sid);
        self.tell_end_before(&ended, notes);
        self.confirmed(&ended, (envelope.seq, at));
        notes.push(told(ended));
        if let Some((sid, code)) = over {
            // It counts on until it is ended: it may stream all the same.
            self.broken(sid, at);
            self.sids.ended(sid, Some(code));
        }
    }

    /// An end of a subscription that is still to be told, and came before a reply that names it.
    fn tell_end_before(&mut self, ended: &Ended, notes: &mut Vec<Note>) {
        let over = ended.sid.and_then(|sid| self.sids.take_over(sid));
        notes.extend(over.map(|(sid, code)| Note::SubscriptionEnded { sid, code }));
    }

    /// What a command's end means for sids.
    fn confirmed(&mut self, ended: &Ended, place: (Option<Seq>, Instant)) {
        let gone = match ended.outcome {
            Outcome::Rejected { code } => code.action() == Action::Reopen,
            outcome => outcome.is_ok(),
        };
        match (ended.expects, ended.outcome, ended.sid) {
            (Expects::Subscription, Outcome::Ok, Some(sid)) => self.opened(sid, place),
            // One that came late tells nothing any more.
            (Expects::List, Outcome::Ok, _) if ended.detail.is_some() => {
                let channel = self.settings.dialect.channel(self.role);
                let ours = ended.listed().iter().filter(|listed| listed.channel == channel);
                // Each counts on from where it was, if it was there before.
                self.sids.listed(&ours.map(|listed| Sid::new(listed.sid)).collect());
            }
            (Expects::End(sid), ..) if gone => {
                self.retire(sid);
                self.sids.closed(sid);
            }
            _ => {}
        }
    }

    /// A sid is ours from now on, unless it ended before we knew.
    fn opened(&mut self, sid: Sid, (seq, at): (Option<Seq>, Instant)) {
        if self.sids.opened(sid) {
            self.sequences.open_at(sid, seq, at);
            self.suspicion.opened(sid);
        }
    }

    /// Whether there is an end of a subscription to tell.
    pub(crate) fn has_over(&self) -> bool {
        self.sids.is_any_over()
    }

    /// The next subscription that is over or out of step, told once for each.
    pub(crate) fn next_over(&mut self) -> Option<Over> {
        self.sids.next_over()
    }

    fn closed(&self, code: Option<u16>, reason: String) -> Cause {
        match self.phase {
            Phase::Closing { .. } => Cause::Stopped,
            Phase::Open | Phase::Pinged { .. } => Cause::PeerClosed { code, reason },
        }
    }

    /// Sends a command.
    pub(crate) fn command(&mut self, request: Request, now: Instant) -> Result<(), Cause> {
        let Request { id, text, expects } = request;
        self.commands.issue(id, expects, now);
        self.framer.text(text, &mut self.outgoing)
    }

    /// Begins our side of the close.
    pub(crate) fn close(&mut self, until: Instant) -> Result<(), Cause> {
        self.phase = Phase::Closing { until };
        self.framer.close(&mut self.outgoing)
    }

    /// The next command lost with the connection.
    pub(crate) fn lose_command(&mut self) -> Option<Ended> {
        self.commands.lose()
    }

    /// Whether the epoch brought data or an acknowledgement.
    pub(crate) fn heard(&self) -> bool {
        self.heard
    }

    /// Tells how much of what waited the socket took: taking some is a sign of life.
    pub(crate) fn sent(&mut self, sent: Sent, now: Instant) {
        self.blocked_since = match sent {
            Sent::All => None,
            Sent::Some => Some(now),
            Sent::None => Some(self.blocked_since.unwrap_or(now)),
        };
    }

    /// Reading is held back from now on: the clocks of liveness and commands stand still.
    pub(crate) fn hold(&mut self, now: Instant) {
        if self.held.is_none() {
            self.held = Some((now, after(now, HELD_PONG)));
        }
    }

    /// Reading goes on: what stood still gets its time back. False when it was not held.
    pub(crate) fn release(&mut self, now: Instant) -> bool {
        let Some((since, _)) = self.held.take() else { return false };
        self.commands.postpone(now.saturating_duration_since(since));
        self.last_inbound = now;
        self.pulse.excuse(now);
        self.partial.excuse(now);
        true
    }

    /// When `tick` has something to do.
    pub(crate) fn deadline(&self) -> Instant {
        let blocked = self.blocked_since.map(|since| after(since, self.settings.write_timeout));
        let quiet = match (self.phase, self.held) {
            (Phase::Closing { until }, _) => until,
            (_, Some((_, pong))) => pong,
            (Phase::Pinged { until }, None) => until,
            (Phase::Open, None) => after(self.last_inbound, self.settings.ping_idle),
        };
        let closing = matches!(self.phase, Phase::Closing { .. });
        let reads = self.held.is_none() && !closing;
        let reading = earlier(self.commands.next_deadline(), self.unfinished_due());
        let reading = earlier(reading, self.pulse.due()).filter(|_| reads);
        earlier(blocked, reading).map_or(quiet, |due| due.min(quiet))
    }

    /// Does what was due at `judged`, a time since which the socket has been looked at; an error
    /// ends the link. Nobody is called silent while there is more to read (`unread`).
    pub(crate) fn tick(
        &mut self,
        Moment { judged, now }: Moment,
        unread: bool,
        notes: &mut Vec<Note>,
        counters: &ShardCounters,
    ) -> Result<(), Cause> {
        let blocked = |since| after(since, self.settings.write_timeout) <= judged;
        if self.blocked_since.is_some_and(blocked) {
            let message = format!("no byte taken in {:?}", self.settings.write_timeout);
            return Err(Cause::Liveness { message });
        }
        if let Phase::Closing { until } = self.phase {
            return if until <= judged { Err(Cause::Stopped) } else { Ok(()) };
        }
        if let Some((since, pong)) = self.held {
            if pong <= judged {
                self.held = Some((since, after(now, HELD_PONG)));
                self.framer.pong(&mut self.outgoing)?;
            }
            return Ok(());
        }
        while let Some(ended) = self.commands.expire(judged) {
            notes.push(Note::Ended(ended));
        }
        if unread {
            return Ok(());
        }
        self.check_data(judged, notes, counters)?;
        self.check_quiet(Moment { judged, now })
    }

    /// The message under way, and the subscription.
    fn check_data(
        &mut self,
        judged: Instant,
        notes: &mut Vec<Note>,
        counters: &ShardCounters,
    ) -> Result<(), Cause> {
        if self.unfinished_due().is_some_and(|due| due <= judged) {
            let limit = self.settings.message_timeout;
            let message = format!("only a part of a message came in {limit:?}");
            return Err(Cause::Liveness { message });
        }
        let Some(sign) = self.pulse.tick(judged, counters) else { return Ok(()) };
        notes.push(Note::Sign(sign));
        if self.settings.silent_reconnect {
            let message = format!("no data for {:?}", self.settings.pulse.silent_after);
            return Err(Cause::Liveness { message });
        }
        Ok(())
    }

    fn unfinished_due(&self) -> Option<Instant> {
        self.partial.due(self.settings.message_timeout)
    }

    fn check_quiet(&mut self, Moment { judged, now }: Moment) -> Result<(), Cause> {
        match self.phase {
            Phase::Pinged { until } if until <= judged => {
                let quiet = judged.saturating_duration_since(self.last_inbound).as_secs_f32();
                let message = format!("no frame for {quiet:.1} s, and no answer to a ping");
                Err(Cause::Liveness { message })
            }
            Phase::Open if after(self.last_inbound, self.settings.ping_idle) <= judged => {
                self.phase = Phase::Pinged { until: after(now, self.settings.pong_timeout) };
                self.framer.ping(&mut self.outgoing)
            }
            _ => Ok(()),
        }
    }
}

#[path = "link/books.rs"]
mod books;
#[path = "link/losses.rs"]
mod losses;
#[path = "link/sids.rs"]
mod sids;
