//! The slow life of the listing: markets are created and settled, paused and resumed, in pairs that
//! keep the number of active markets what it was asked to be; also what the controls ask for. It
//! sends nothing itself, it announces.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::market::{MarketId, State};
use crate::payload::Happening;
use crate::venue::Venue;

const SETTLE_DELAY: Duration = Duration::from_millis(250);
const PAUSE: Duration = Duration::from_secs(2);

/// The second half of a pair.
#[derive(Debug)]
enum Due {
    /// Determine some active market, for the one created.
    Determine,
    Settle(Arc<str>),
    Resume(Arc<str>),
}

/// Background lifecycle events.
#[derive(Debug)]
pub(crate) struct Churn {
    interval: Option<Duration>,
    next: Instant,
    rounds: u64,
    due: VecDeque<(Instant, Due)>,
}

impl Churn {
    pub(crate) fn new(per_minute: u32, now: Instant) -> Self {
        let interval = (per_minute > 0).then(|| Duration::from_secs(60) / per_minute);
        Self { interval, next: now + interval.unwrap_or_default(), rounds: 0, due: VecDeque::new() }
    }

    /// Does what is due.
    pub(crate) fn tick(&mut self, venue: &mut Venue, now: Instant) {
        let mut at = 0;
        while at < self.due.len() {
            if self.due[at].0 > now {
                at += 1;
            } else if let Some((_, due)) = self.due.remove(at) {
                self.complete(venue, due, now);
            }
        }
        let Some(interval) = self.interval else {
            return;
        };
        if now >= self.next {
            // A stalled thread does not make up for what it missed.
            self.next = (self.next + interval).max(now);
            self.round(venue, now);
        }
    }

    /// Completes every pair now.
    pub(crate) fn finish(&mut self, venue: &mut Venue, now: Instant) {
        while let Some((_, due)) = self.due.pop_front() {
            self.complete(venue, due, now);
        }
    }

    /// A control took the market over: no resumption for it.
    pub(crate) fn forget(&mut self, ticker: &str) {
        self.due.retain(|(_, due)| !matches!(due, Due::Resume(name) if **name == *ticker));
    }

    fn round(&mut self, venue: &mut Venue, now: Instant) {
        self.rounds += 1;
        create(venue);
        self.due.push_back((now + SETTLE_DELAY, Due::Determine));
        let extra = match self.rounds % 20 {
            0 => Some(Happening::EventFeeUpdate),
            5 | 15 => Some(Happening::EventLifecycle),
            2 | 7 | 12 | 17 => Some(Happening::MetadataUpdated),
            4 | 8 | 13 | 18 => Some(Happening::Deactivated),
            _ => None,
        };
        let Some(happening) = extra else { return };
        let Some(id) = venue.universe.draw_active(&mut venue.rng) else {
            return;
        };
        let ticker = Arc::clone(&venue.universe.market(id).ticker);
        if happening == Happening::Deactivated {
            pause(venue, id);
            self.due.push_back((now + PAUSE, Due::Resume(ticker)));
        } else {
            venue.announce(happening, State::Active, &ticker);
        }
    }

    fn complete(&mut self, venue: &mut Venue, due: Due, now: Instant) {
        match due {
            Due::Determine => {
                if let Some(id) = venue.universe.draw_active(&mut venue.rng) {
                    let ticker = determine(venue, id);
                    self.due.push_back((now + SETTLE_DELAY, Due::Settle(ticker)));
                }
            }
            Due::Settle(ticker) => {
                if let Some(id) = venue.universe.find(&ticker) {
                    settle(venue, id);
                }
            }
            Due::Resume(ticker) => {
                if let Some(id) = venue.universe.find(&ticker) {
                    resume(venue, id);
                }
            }
        }
    }
}

/// Lists a new market and opens it at once.
pub(crate) fn create(venue: &mut Venue) -> Arc<str> {
    let id = venue.universe.create(&mut venue.rng);
    let ticker = Arc::clone(&venue.universe.market(id).ticker);
    venue.announce(Happening::Created, State::Unlisted, &ticker);
    venue.announce(Happening::Opened, State::Unlisted, &ticker);
    ticker
}

/// Pauses an active market.
pub(crate) fn pause(venue: &mut Venue, id: MarketId) {
    if venue.universe.market(id).state == State::Active {
        let ticker = Arc::clone(&venue.universe.market(id).ticker);
        venue.universe.halt(id, State::Paused);
        venue.announce(Happening::Deactivated, State::Active, &ticker);
    }
}

/// Resumes a paused market.
pub(crate) fn resume(venue: &mut Venue, id: MarketId) {
    if venue.universe.market(id).state == State::Paused {
        let ticker = Arc::clone(&venue.universe.market(id).ticker);
        venue.universe.activate(id, &mut venue.rng);
        venue.announce(Happening::Activated, State::Paused, &ticker);
    }
}

/// Ends trading of a market.
pub(crate) fn determine(venue: &mut Venue, id: MarketId) -> Arc<str> {
    let ticker = Arc::clone(&venue.universe.market(id).ticker);
    let was = venue.universe.market(id).state;
    if matches!(was, State::Active | State::Paused) {
        venue.universe.halt(id, State::Determined);
        venue.announce(Happening::Determined, was, &ticker);
    }
    ticker
}

/// Settles a determined market.
pub(crate) fn settle(venue: &mut Venue, id: MarketId) {
    if venue.universe.market(id).state == State::Determined {
        let ticker = Arc::clone(&venue.universe.market(id).ticker);
        venue.universe.halt(id, State::Settled);
        venue.announce(Happening::Settled, State::Determined, &ticker);
    }
}
