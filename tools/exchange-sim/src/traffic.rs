//! When to send what: paced by a rate with carry, or as fast as sockets take it. Picks markets by
//! popularity and mixes deltas, tickers and trades. It formats nothing and never sleeps.

use std::time::{Duration, Instant};

use crate::config::Mode;
use crate::market::MarketId;
use crate::subscription::Channel;
use crate::venue::Venue;

/// After a stall at most this much is caught up.
const CATCH_UP: Duration = Duration::from_millis(50);
/// Events in a row that nobody was there to receive before a turn is given up.
const MOST_MISSES: u32 = 64;

/// Messages made for one client at a time: withheld ones fill nothing.
const MOST_MADE: u32 = 10_000;

/// The generator's settings and debt.
#[derive(Debug)]
pub(crate) struct Traffic {
    pub(crate) mode: Mode,
    pub(crate) rate: u64,
    pub(crate) running: bool,
    last: Instant,
    /// Frames due and not sent yet; negative after a message that went to many.
    carry: f64,
}

impl Traffic {
    pub(crate) fn new(mode: Mode, rate: u64, now: Instant) -> Self {
        Self { mode, rate, running: true, last: now, carry: 0.0 }
    }

    /// Whether the paced generator has anything to do at all.
    pub(crate) fn paced(&self, venue: &Venue) -> bool {
        self.running && self.mode == Mode::Paced && self.rate > 0 && audience(venue)
    }

    pub(crate) fn bursting(&self) -> bool {
        self.running && matches!(self.mode, Mode::Burst | Mode::Flood)
    }

    /// Sends what is due since the last turn.
    pub(crate) fn tick(&mut self, venue: &mut Venue, now: Instant) {
        self.earn(venue, now);
        while self.one(venue) {}
    }

    /// Counts what has become due since the last turn.
    pub(crate) fn earn(&mut self, venue: &Venue, now: Instant) {
        let elapsed = now.saturating_duration_since(self.last).min(CATCH_UP);
        self.last = now;
        if self.paced(venue) {
            self.carry += self.rate as f64 * elapsed.as_secs_f64();
        } else {
            self.carry = 0.0;
        }
    }

    /// Sends one of the messages that are due; false when none is.
    pub(crate) fn one(&mut self, venue: &mut Venue) -> bool {
        let mut misses = 0;
        while self.carry >= 1.0 && misses < MOST_MISSES {
            match event(venue) {
                0 => misses += 1,
                frames => {
                    self.carry -= frames as f64;
                    return true;
                }
            }
        }
        if misses > 0 {
            self.carry = self.carry.min(1.0);
        }
        false
    }
}

fn audience(venue: &Venue) -> bool {
    venue.universe.anybody_listens()
        || !venue.all_tickers.is_empty()
        || !venue.all_trades.is_empty()
}

/// One event at a random market; returns the frames it caused.
fn event(venue: &mut Venue) -> usize {
    let order: [fn(&mut Venue) -> usize; 4] = match venue.rng.u8(0..100) {
        0..80 => [delta, ticker, trade, delta],
        80..94 => [ticker, delta, trade, ticker],
        _ => [trade, delta, ticker, trade],
    };
    for send in &order[..3] {
        match send(venue) {
            0 => {}
            frames => return frames,
        }
    }
    0
}

fn delta(venue: &mut Venue) -> usize {
    for _ in 0..3 {
        let Some(id) = venue.universe.draw_popular(&mut venue.rng) else {
            break;
        };
        let frames = venue.send_delta(id);
        if frames > 0 {
            return frames;
        }
    }
    // Only a few markets are subscribed: popularity rarely hits them.
    venue.universe.draw_wanted(&mut venue.rng).map_or(0, |id| venue.send_delta(id))
}

fn ticker(venue: &mut Venue) -> usize {
    let everybody = !venue.all_tickers.is_empty();
    draw(venue, everybody).map_or(0, |id| venue.send_ticker(id, None))
}

fn trade(venue: &mut Venue) -> usize {
    let everybody = !venue.all_trades.is_empty();
    draw(venue, everybody).map_or(0, |id| venue.send_trade(id, None))
}

fn draw(venue: &mut Venue, everybody: bool) -> Option<MarketId> {
    if everybody {
        venue.universe.draw_popular(&mut venue.rng)
    } else {
        venue.universe.draw_wanted(&mut venue.rng)
    }
}

/// Fills one client's queue up to `target` bytes with its own data; returns whether any was made.
pub(crate) fn fill(venue: &mut Venue, slot: u32, target: usize) -> bool {
    let (mut made, mut misses) = (0, 0);
    while misses < MOST_MISSES && made < MOST_MADE {
        let Some(Some(client)) = venue.clients.get(slot as usize) else {
            break;
        };
        if client.out.len() >= target || client.streams.is_empty() {
            break;
        }
        let at = venue.rng.usize(0..client.streams.len());
        let stream = &client.streams[at];
        // Those who follow a whole channel all get the same.
        let only = (!stream.all).then_some(slot);
        let market = match (stream.live && !stream.stalled, stream.channel, stream.all) {
            (false, ..)
            | (_, Channel::Lifecycle | Channel::LegacyLifecycle | Channel::Silent(..), _) => None,
            (true, _, true) => venue.universe.draw_popular(&mut venue.rng),
            (true, _, false) => {
                // Squaring makes the first members of the list hot.
                let draw = venue.rng.f64();
                let at = (draw * draw * stream.members.len() as f64) as usize;
                stream.members.get(at).copied()
            }
        };
        let channel = stream.channel;
        let frames = match market {
            Some(id) if venue.universe.streams(id) => match channel {
                Channel::Orderbook => venue.send_delta(id),
                Channel::Ticker => venue.send_ticker(id, only),
                Channel::Trade => venue.send_trade(id, only),
                Channel::Lifecycle | Channel::LegacyLifecycle | Channel::Silent(..) => 0,
            },
            _ => 0,
        };
        if frames == 0 {
            misses += 1;
        } else {
            misses = 0;
            made += 1;
        }
    }
    made > 0
}
