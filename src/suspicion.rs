//! Which order books of a connection's epoch are known to be out of step, message by message, as
//! its shard sees it. It asks for nothing and knows no market by name: that is the conductor's
//! part (`recovery`), which hears of every gap and says when no book is suspect any more. Pure.
//!
//! A gap makes all markets of its sid suspect. A book above the last gap of its sid, or of a later
//! subscription, makes its market sound. While nothing is suspect, nothing is looked at.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::gap::Gaps;
use crate::ids::{Seq, Sid, Ticker};
use crate::timer::after;

/// While books are suspect already, the conductor is told of further gaps this far apart.
const TOLD_APART: Duration = Duration::from_millis(50);
/// A sid whose books prove nothing any more: it is over.
const OVER: u64 = u64::MAX;

/// What a link needs to know of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SuspicionSettings {
    /// Whether gaps are followed up at all.
    pub(crate) follows: bool,
    /// Whether each market has a sid of its own.
    pub(crate) single: bool,
    /// Markets remembered as sound; what goes beyond stays suspect.
    pub(crate) markets_max: usize,
    /// Sids remembered. There are no more of ours; beyond that the exchange makes them up.
    pub(crate) sids_max: usize,
}

/// The suspicion of one connection's epoch.
#[derive(Debug)]
pub(crate) struct Suspicion {
    settings: SuspicionSettings,
    state: State,
    /// How many gaps there were.
    gaps: u64,
    /// Gaps the conductor has not been told of, and since when.
    untold: Option<(Instant, BTreeSet<Sid>)>,
    /// When it was last told of one.
    told: Option<Instant>,
}

#[derive(Debug)]
enum State {
    Sound,
    Suspect(Box<Suspect>),
}

#[derive(Debug, Default)]
struct Suspect {
    /// The last number missing, by sid.
    lost: BTreeMap<Sid, u64>,
    /// There were too many of them: where each market has its own, all are suspect for good.
    crowded: bool,
    /// Markets whose books have come since, by the hash of their tickers.
    sound: BTreeSet<u64>,
    hasher: RandomState,
}

impl Suspicion {
    pub(crate) fn new(settings: SuspicionSettings) -> Self {
        Self { settings, state: State::Sound, gaps: 0, untold: None, told: None }
    }

    /// Whether gaps are followed up at all.
    pub(crate) fn follows(&self) -> bool {
        self.settings.follows
    }

    /// Whether nothing is suspect: then no message needs a look.
    #[inline]
    pub(crate) fn is_none(&self) -> bool {
        matches!(self.state, State::Sound)
    }

    /// Messages of this sid are lost, the last of them with this number. False when that changes
    /// nothing.
    pub(crate) fn gap(&mut self, sid: Sid, last: Seq, at: Instant) -> bool {
        if !self.settings.follows {
            return false;
        }
        if self.is_none() {
            self.state = State::Suspect(Box::default());
        }
        let State::Suspect(suspect) = &mut self.state else { return false };
        suspect.lose(sid, last.number(), self.settings.sids_max);
        suspect.sound.clear();
        self.gaps += 1;
        let (_, untold) = self.untold.get_or_insert_with(|| (at, BTreeSet::new()));
        if untold.len() < self.settings.sids_max {
            untold.insert(sid);
        }
        true
    }

    /// The exchange ended this sid, or its numbers make no sense any more.
    pub(crate) fn broken(&mut self, sid: Sid, at: Instant) -> bool {
        self.gap(sid, Seq::new(OVER), at)
    }

    /// A sid is over: the books of another make its markets sound.
    pub(crate) fn retire(&mut self, sid: Sid) {
        let State::Suspect(suspect) = &mut self.state else { return };
        if self.settings.single {
            suspect.lost.remove(&sid);
            if suspect.lost.is_empty() && !suspect.crowded {
                self.state = State::Sound;
            }
        } else {
            suspect.lose(sid, OVER, self.settings.sids_max);
        }
    }

    /// A sid that was over is given out again.
    pub(crate) fn opened(&mut self, sid: Sid) {
        if let State::Suspect(suspect) = &mut self.state
            && suspect.lost.get(&sid) == Some(&OVER)
        {
            suspect.lost.remove(&sid);
        }
    }

    /// The book of this market came; whether it makes it sound.
    pub(crate) fn book(&mut self, sid: Sid, seq: Seq, market: &str) -> bool {
        let State::Suspect(suspect) = &mut self.state else { return true };
        if suspect.lost.get(&sid).is_some_and(|&lost| seq.number() <= lost) {
            return false;
        }
        if self.settings.single {
            self.retire(sid);
            return true;
        }
        let market = suspect.hasher.hash_one(market);
        let room = suspect.sound.len() < self.settings.markets_max;
        suspect.sound.contains(&market) || room && suspect.sound.insert(market)
    }

    /// Whether the book this message belongs to is suspect. What names no market is, while any is.
    pub(crate) fn of(&self, sid: Option<Sid>, text: &[u8]) -> bool {
        let State::Suspect(suspect) = &self.state else { return false };
        if self.settings.single {
            return suspect.crowded || sid.is_none_or(|sid| suspect.lost.contains_key(&sid));
        }
        let market = market_of(text).map(|market| suspect.hasher.hash_one(market.as_ref()));
        market.is_none_or(|market| !suspect.sound.contains(&market))
    }

    /// Whether there are gaps that the conductor does not know.
    pub(crate) fn has_untold(&self) -> bool {
        self.untold.is_some()
    }

    /// The time before which it is not told of them, if there is one.
    pub(crate) fn told_after(&self) -> Option<Instant> {
        self.told.filter(|_| self.has_untold()).map(|told| after(told, TOLD_APART))
    }

    /// What it is told, once.
    pub(crate) fn take_untold(&mut self, now: Instant) -> Option<Gaps> {
        let (since, sids) = self.untold.take()?;
        self.told = Some(now);
        Some(Gaps { sids: sids.into_iter().collect(), last: self.gaps, since })
    }

    /// Every market that this gap and those before it made suspect is sound.
    pub(crate) fn settled(&mut self, last: u64) {
        if last == self.gaps && !self.settings.single {
            (self.state, self.told) = (State::Sound, None);
        }
    }
}

impl Suspect {
    /// Messages of this sid up to this number are lost.
    fn lose(&mut self, sid: Sid, last: u64, sids_max: usize) {
        let room = self.lost.len() < sids_max;
        match self.lost.get_mut(&sid) {
            Some(lost) => *lost = (*lost).max(last),
            None if room => drop(self.lost.insert(sid, last)),
            None => self.crowded = true,
        }
    }
}

/// The ticker of a message's market: where it stands first in the message, as the exchange puts
/// it, or wherever else it is.
pub(crate) fn market_of(text: &[u8]) -> Option<Cow<'_, str>> {
    ticker_of(text).map(Cow::Borrowed).or_else(|| written_otherwise(text))
}

/// How far from its beginning a message is looked through for the ticker.
const NEAR: usize = 256;

fn ticker_of(text: &[u8]) -> Option<&str> {
    const NAME: &[u8] = b"\"market_ticker\":\"";
    let start = text.windows(NAME.len()).take(NEAR).position(|part| part == NAME)? + NAME.len();
    let rest = text.get(start..)?;
    let end = rest.iter().take(Ticker::BYTES_MAX + 1).position(|&b| b == b'"' || b == b'\\')?;
    rest.get(end).filter(|&&byte| byte == b'"')?;
    std::str::from_utf8(rest.get(..end)?).ok()
}

/// Escapes, white space, another order of keys.
#[cold]
fn written_otherwise(text: &[u8]) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Frame<'a> {
        #[serde(borrow)]
        msg: Named<'a>,
    }
    #[derive(Deserialize)]
    struct Named<'a> {
        #[serde(borrow)]
        market_ticker: Cow<'a, str>,
    }
    let named = serde_json::from_slice::<Frame<'_>>(text).ok()?.msg.market_ticker;
    (named.len() <= Ticker::BYTES_MAX).then_some(named)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SHARED: SuspicionSettings =
        SuspicionSettings { follows: true, single: false, markets_max: 100, sids_max: 32 };

    fn sid(number: u64) -> Sid {
        Sid::new(number)
    }

    fn delta(market: &str) -> Vec<u8> {
        format!(r#"{{"type":"orderbook_delta","msg":{{"market_ticker":"{market}"}}}}"#).into_bytes()
    }

    #[test]
    fn f1_a_gap_makes_all_markets_of_the_sid_suspect_until_their_books_come() {
        let at = crate::clock::now();
        let mut suspicion = Suspicion::new(SHARED);
        let of = |suspicion: &Suspicion, market| suspicion.of(Some(sid(1)), &delta(market));
        assert!(!of(&suspicion, "A") && suspicion.is_none());
        assert!(suspicion.gap(sid(1), Seq::new(10), at));
        assert!(of(&suspicion, "A") && of(&suspicion, "B"));
        assert!(!suspicion.book(sid(1), Seq::new(10), "A"), "not above the gap");
        assert!(of(&suspicion, "A"));
        assert!(suspicion.book(sid(1), Seq::new(11), "A"));
        assert!(!of(&suspicion, "A") && of(&suspicion, "B"));
        assert!(suspicion.gap(sid(1), Seq::new(12), at));
        assert!(of(&suspicion, "A"), "suspect anew");
        let told = suspicion.take_untold(at).unwrap();
        assert_eq!((told.last, told.sids, told.since), (2, vec![sid(1)], at));
        assert!(suspicion.gap(sid(1), Seq::new(13), at));
        assert_eq!(suspicion.told_after(), Some(at + TOLD_APART), "they are told together");
        assert_eq!(suspicion.take_untold(at).unwrap().last, 3);
        suspicion.settled(1);
        assert!(!suspicion.is_none(), "there was another gap since");
        suspicion.settled(3);
        assert!(suspicion.is_none() && !suspicion.has_untold());
        assert!(suspicion.gap(sid(1), Seq::new(14), at) && suspicion.has_untold());
        assert_eq!(suspicion.told_after(), None, "at once, when all was sound");
    }

    #[test]
    fn a_subscription_that_is_over_proves_nothing_and_the_next_does() {
        let at = crate::clock::now();
        let mut suspicion = Suspicion::new(SHARED);
        assert!(suspicion.broken(sid(1), at));
        assert!(!suspicion.book(sid(1), Seq::new(99), "A"));
        assert!(suspicion.book(sid(2), Seq::new(1), "A"));
        assert!(suspicion.gap(sid(2), Seq::new(5), at));
        suspicion.retire(sid(2));
        assert!(!suspicion.book(sid(2), Seq::new(9), "A"));
        suspicion.opened(sid(2));
        assert!(suspicion.book(sid(2), Seq::new(1), "A"), "its number was given out again");
    }

    #[test]
    fn a_market_with_a_sid_of_its_own_is_suspect_alone() {
        let at = crate::clock::now();
        let mut suspicion = Suspicion::new(SuspicionSettings { single: true, ..SHARED });
        assert!(suspicion.gap(sid(1), Seq::new(3), at));
        assert!(suspicion.gap(sid(2), Seq::new(3), at));
        assert!(suspicion.of(Some(sid(1)), b"{}") && !suspicion.of(Some(sid(3)), b"{}"));
        assert!(!suspicion.book(sid(1), Seq::new(3), "A"));
        assert!(suspicion.book(sid(1), Seq::new(4), "A"));
        assert!(!suspicion.of(Some(sid(1)), b"{}") && suspicion.of(Some(sid(2)), b"{}"));
        suspicion.retire(sid(2));
        assert!(suspicion.is_none());
    }

    #[test]
    fn nothing_is_followed_up_that_is_only_flagged() {
        let mut suspicion = Suspicion::new(SuspicionSettings { follows: false, ..SHARED });
        assert!(!suspicion.gap(sid(1), Seq::new(3), crate::clock::now()));
        assert!(suspicion.is_none() && !suspicion.has_untold());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut suspicion = Suspicion::new(SuspicionSettings { markets_max: 1, ..SHARED });
        suspicion.gap(sid(1), Seq::new(3), crate::clock::now());
        assert!(
            suspicion.book(sid(1), Seq::new(4), "A") && suspicion.book(sid(1), Seq::new(5), "A")
        );
        assert!(!suspicion.book(sid(1), Seq::new(6), "B"));
    }

    #[test]
    fn sids_that_are_made_up_grow_nothing_and_excuse_nobody() {
        let at = crate::clock::now();
        for single in [false, true] {
            let mut suspicion = Suspicion::new(SuspicionSettings { single, ..SHARED });
            for number in 1..=10_000 {
                assert!(suspicion.gap(sid(number), Seq::new(3), at));
                assert!(suspicion.broken(sid(number), at));
            }
            let State::Suspect(suspect) = &suspicion.state else { panic!("not suspect") };
            assert_eq!(suspect.lost.len(), SHARED.sids_max);
            assert!(suspicion.of(Some(sid(20_000)), &delta("A")), "any may be the one");
            let told = suspicion.take_untold(at).unwrap();
            assert_eq!((told.sids.len(), told.last), (SHARED.sids_max, 20_000));
            (1..=10_000).for_each(|number| suspicion.retire(sid(number)));
            assert!(suspicion.of(Some(sid(20_000)), &delta("A")));
            suspicion.book(sid(20_000), Seq::new(1), "A");
            suspicion.settled(20_000);
            assert_eq!(suspicion.is_none(), !single, "which of many sids it was, nobody knows");
        }
    }

    #[test]
    fn a_ticker_is_found_however_it_is_written() {
        for (text, expected) in [
            (r#"{"type":"x","msg":{"market_ticker":"A-1.5"}}"#, Some("A-1.5")),
            (r#"{"msg":{"z":1,"market_ticker" : "A"},"type":"x"}"#, Some("A")),
            (r#"{"msg":{"market_ticker":"A\u002dB"}}"#, Some("A-B")),
            (r#"{"msg":{"market_ticker":"a\"b"}}"#, Some("a\"b")),
            (r#"{"msg":{}}"#, None),
            (r#"{"msg":{"market_ticker":5}}"#, None),
            ("", None),
        ] {
            assert_eq!(market_of(text.as_bytes()).as_deref(), expected, "{text}");
        }
        let long = format!(r#"{{"msg":{{"market_ticker":"{}"}}}}"#, "A".repeat(200));
        assert_eq!(market_of(long.as_bytes()), None);
    }

    proptest! {
        #![proptest_config(crate::property::cases(2_000))]

        /// Against a list of all that happened: a market is suspect from a gap of its connection
        /// to a book of it above the last gap of the book's sid.
        #[test]
        fn agrees_with_a_record_of_everything(
            steps in prop::collection::vec((0u8..4, 1u64..3, 0usize..4), 1..60),
        ) {
            const MARKETS: [&str; 4] = ["A", "B", "C", "D"];
            let at = crate::clock::now();
            let mut suspicion = Suspicion::new(SHARED);
            let mut seqs = [0u64; 3];
            let mut record = Vec::new();
            for (what, number, market) in steps {
                let index = usize::try_from(number).unwrap();
                seqs[index] += 1;
                if what == 0 {
                    suspicion.gap(sid(number), Seq::new(seqs[index]), at);
                    record.push((number, seqs[index], None));
                } else {
                    // Some come again from before.
                    let seq = if what == 1 { seqs[index] / 2 } else { seqs[index] };
                    suspicion.book(sid(number), Seq::new(seq), MARKETS[market]);
                    record.push((number, seq, Some(market)));
                }
                for (market, name) in MARKETS.iter().enumerate() {
                    let last_gap = record.iter().rposition(|(_, _, book)| book.is_none());
                    let sound = last_gap.is_none_or(|last_gap| {
                        record[last_gap..].iter().any(|&(of, seq, book)| {
                            let gaps = record.iter().filter(|(other, _, book)| {
                                *other == of && book.is_none()
                            });
                            let above = gaps.map(|&(_, lost, _)| lost).max();
                            book == Some(market) && above.is_none_or(|lost| seq > lost)
                        })
                    });
                    prop_assert_eq!(suspicion.of(Some(sid(1)), &delta(name)), !sound);
                }
            }
        }
    }
}
