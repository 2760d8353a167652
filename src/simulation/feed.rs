//! What the exchange says on both lines of each redundant pair: each content is made once, and put
//! on every line that is subscribed, with that line's own numbers and that line's own faults. What
//! befalls lines alone or together is here, too. It judges nothing: see `pairs`.

use std::collections::BTreeMap;

use super::exchange::{Exchange, Phase, millis};
use super::faults::Fault;
use super::network::{Event, Network, Part};
use crate::clock::unix_ms;
use crate::dialect::Dialect;
use crate::ids::Role;

/// The longest that a line stands still: with all else that may hold it up, shorter than the engine
/// remembers first copies.
const STALL_MS: (u64, u64) = (300, 7_000);

/// Where a content was to come: a number of a subscription, none for tickers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Given {
    pub(super) link: usize,
    pub(super) sid: u64,
    pub(super) seq: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Content {
    pub(super) role: Role,
    pub(super) given: Vec<Given>,
}

impl Content {
    /// Whether one line was to bring it twice.
    pub(super) fn is_doubled(&self) -> bool {
        let mut links: Vec<_> = self.given.iter().map(|given| given.link).collect();
        links.sort_unstable();
        links.windows(2).any(|two| two.first() == two.last())
    }
}

/// All that was ever said to pairs.
#[derive(Debug)]
pub(super) struct Feed {
    roles: Vec<Role>,
    dialect: Dialect,
    /// By what each says of itself.
    pub(super) contents: BTreeMap<u64, Content>,
}

impl Feed {
    pub(super) fn new(roles: Vec<Role>, dialect: Dialect) -> Self {
        Self { roles, dialect, contents: BTreeMap::new() }
    }

    /// What was said to a role's lines, in order.
    pub(super) fn of(&self, role: Role) -> impl Iterator<Item = (u64, &Content)> {
        let contents = self.contents.iter().map(|(&number, content)| (number, content));
        contents.filter(move |(_, content)| content.role == role)
    }

    /// Whether a channel's messages come from here.
    pub(super) fn brings(&self, channel: &str) -> bool {
        self.roles.iter().any(|&role| self.dialect.channel(role) == channel)
    }
}

impl Exchange {
    /// The next contents of every pair.
    pub(super) fn feed(&mut self, network: &mut Network) {
        let Some(feed) = &self.feed else { return };
        for role in feed.roles.clone() {
            for _ in 0..network.faults.below(self.burst + 1) {
                self.say_to_all(role, network);
            }
            self.befall_lines(role, network);
        }
        let by = self.interval / 2 + network.faults.between_ms(0, 1 + millis(self.interval));
        network.later(by, Event::Feeds);
    }

    /// The lines of a role that stream: socket and sid.
    fn lines(&self, role: Role) -> Vec<(usize, u64)> {
        let channel = self.dialect.channel(role);
        let mut lines = Vec::new();
        for (link, session) in self.sessions.iter().enumerate() {
            let open = session.phase == Phase::Open && !self.muted.contains(&link);
            let subscriptions = session.peer.subscriptions.iter();
            let streams = subscriptions.filter(|&(&sid, sub)| {
                open && sub.channel == channel && !self.ledger.is_over(link, sid)
            });
            lines.extend(streams.map(|(&sid, _)| (link, sid)));
        }
        lines
    }

    fn say_to_all(&mut self, role: Role, network: &mut Network) {
        self.numbered += 1;
        let (number, ts_ms) = (self.numbered, unix_ms(network.clock.exchange_wall()));
        let large = network.faults.strikes(Fault::Large);
        let more = "x".repeat(if large { network.faults.below(12_000) } else { 0 });
        let market = ["ONE", "TWO", "SIX"][usize::try_from(number % 3).unwrap()];
        let msg = format!(
            "{{\"market_ticker\":\"{market}\",\"trade_id\":\"t-{number}\",\"n\":{number},\
             \"x\":\"{more}\",\"ts_ms\":{ts_ms}}}"
        );
        let lost_on_all = network.faults.strikes(Fault::PairLoses);
        let (mut lines, mut given) = (self.lines(role), Vec::new());
        if !lines.is_empty() {
            // No line is always the first.
            let by = network.faults.below(lines.len());
            lines.rotate_left(by);
        }
        let kind = self.dialect.channel(role);
        for (link, sid) in lines {
            let lost = lost_on_all || network.faults.strikes(Fault::LineLoses);
            self.bring(link, sid, (kind, "", &msg), lost, network);
            let seq = self.sessions[link].last_number(sid);
            given.push(Given { link, sid, seq: seq.filter(|_| role != Role::Ticker) });
        }
        if let Some(feed) = &mut self.feed {
            feed.contents.insert(number, Content { role, given });
        }
    }

    /// A line stands still or is cut, or both are cut.
    fn befall_lines(&mut self, role: Role, network: &mut Network) {
        let lines = self.lines(role);
        if lines.is_empty() {
            return;
        }
        let (link, _) = lines[network.faults.below(lines.len())];
        if network.faults.strikes(Fault::LineStalls) {
            let by = network.faults.between_ms(STALL_MS.0, STALL_MS.1);
            network.stall(link, by);
            network.trace.note(network.now(), format_args!("{link} stands still for {by:?}"));
        }
        if network.faults.strikes(Fault::LineCut) {
            network.trace.note(network.now(), format_args!("{link} is cut"));
            self.end(link, Part::Reset, network);
        }
        if network.faults.strikes(Fault::PairCut) {
            network.trace.note(network.now(), format_args!("{role} lines are cut"));
            for (link, _) in lines {
                if self.is_open(link) {
                    self.end(link, Part::Reset, network);
                }
            }
        }
    }
}
