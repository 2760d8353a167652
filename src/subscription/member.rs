//! One connection as the plan sees it: its subscription, its markets by what they need, the
//! commands under way, and what could not be settled. No decision is made here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use super::directory::Directory;
use super::list::{List, Ranks};
use super::pace::Pace;
use crate::code::ExchangeCode;
use crate::gap::Gaps;
use crate::ids::{CommandId, ConnId, Role, Sid};
use crate::market::{Change, Shelf, Slot};
use crate::recovery::Recovery;
use crate::request::Ask;

/// Strays that have ended, remembered of one connection.
const ENDED_MAX: usize = 1_024;
/// Sids with gaps, of no market yet, remembered of one connection.
const EARLY_MAX: usize = 64;

/// A connection's subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    Closed,
    Opening,
    /// `renew`: it must be ended and opened anew.
    Open {
        sid: Sid,
        renew: bool,
    },
    Closing {
        sid: Sid,
    },
    /// There may be one, and nobody knows its sid. `taken`: the exchange says that there is.
    Unsure {
        taken: bool,
    },
    /// The exchange is being asked.
    Asking {
        taken: bool,
    },
}

impl Line {
    pub(crate) fn sid(self) -> Option<Sid> {
        match self {
            Self::Open { sid, .. } | Self::Closing { sid } => Some(sid),
            _ => None,
        }
    }
}

/// A command under way.
#[derive(Clone, Debug)]
pub(crate) struct Flight {
    pub(crate) id: CommandId,
    pub(crate) ask: Ask,
    pub(crate) markets: Vec<Slot>,
    /// It looks for a market the exchange does not like.
    pub(crate) search: bool,
    /// Those of its markets that an older command, given up before, was carried out on while this
    /// one was under way: which of the two came last, its end does not tell.
    pub(crate) doubted: BTreeSet<Slot>,
}

/// A command that ended without a reply, and until when one is waited for all the same.
#[derive(Clone, Debug)]
pub(crate) struct Overdue {
    pub(crate) flight: Flight,
    pub(crate) until: Instant,
}

/// Markets acknowledged, whose books are due.
#[derive(Clone, Debug)]
pub(crate) struct Due {
    pub(crate) at: Instant,
    pub(crate) markets: Vec<Slot>,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) conn: ConnId,
    pub(crate) role: Role,
    pub(crate) live: bool,
    pub(crate) down_since: Option<Instant>,
    pub(crate) line: Line,
    /// A subscription told to be over before its sid was known to be the line's.
    pub(crate) over: Option<Sid>,
    /// When the line's subscription, not ended by us, was over.
    pub(crate) over_at: Option<Instant>,
    /// A late reply told of this subscription beside the line's.
    pub(crate) other: Option<Sid>,
    /// The last subscription that is known to have ended.
    pub(crate) ended: Option<Sid>,
    adds: Ranks,
    deletes: List,
    rest: List,
    held: List,
    /// How many of its markets are wanted, and how many are with the exchange.
    pub(crate) wanted: usize,
    pub(crate) present: usize,
    pub(crate) pace: Pace,
    pub(crate) flights: Vec<Flight>,
    pub(crate) overdue: VecDeque<Overdue>,
    /// Lists to be asked for by themselves, because a longer one was refused; and when the next
    /// may be.
    pub(crate) suspects: Vec<(Change, Vec<Slot>)>,
    pub(crate) search_at: Option<Instant>,
    pub(crate) due: VecDeque<Due>,
    /// Markets whose books did not come.
    pub(crate) bookless: Vec<Slot>,
    /// When a limit the exchange set is tried again.
    pub(crate) limited_until: Option<Instant>,
    /// The code of the last refusal to open the line.
    pub(crate) refused: Option<ExchangeCode>,
    pub(crate) own: OwnSids,
    /// Getting books back in step.
    pub(crate) repair: Recovery<Slot>,
    last_id: u64,
}

/// Subscriptions of single markets, in the legacy dialect.
#[derive(Debug, Default)]
pub(crate) struct OwnSids {
    pub(crate) by_market: BTreeMap<Slot, Sid>,
    pub(crate) by_sid: BTreeMap<Sid, Slot>,
    /// When those of these markets, not ended by us, were over, or since when they are wanted again
    /// if that was later; the latter in either dialect.
    pub(crate) over_at: BTreeMap<Slot, Instant>,
    /// Subscriptions that belong to no market: to be ended.
    pub(crate) strays: Vec<Sid>,
    /// Those that have been, while a late reply may still tell of them.
    pub(crate) ended: BTreeSet<Sid>,
    /// There may be subscriptions nobody knows: the exchange must be asked.
    pub(crate) unsure: bool,
    /// Gaps of sids of which nobody has heard yet whose they are: the number of the last, and since
    /// when.
    early: BTreeMap<Sid, (u64, Instant)>,
}

impl OwnSids {
    /// The market's subscription has this sid. The market that had it before, if there is one, has
    /// none now.
    pub(crate) fn insert(&mut self, slot: Slot, sid: Sid) -> Option<Slot> {
        if self.by_market.insert(slot, sid) != Some(sid) {
            self.over_at.remove(&slot);
        }
        let robbed = self.by_sid.insert(sid, slot).filter(|&other| other != slot)?;
        self.by_market.remove(&robbed);
        self.over_at.remove(&robbed);
        Some(robbed)
    }

    /// The markets these gaps are about. What belongs to none is remembered: the reply that says
    /// whose it is may be told after it.
    pub(crate) fn lost(&mut self, gaps: &Gaps) -> Vec<Slot> {
        let unknown = gaps.sids.iter().filter(|sid| !self.by_sid.contains_key(sid));
        for &sid in unknown {
            let (last, _) = self.early.entry(sid).or_insert((gaps.last, gaps.since));
            *last = gaps.last;
            if self.early.len() > EARLY_MAX {
                self.early.pop_first();
            }
        }
        gaps.sids.iter().filter_map(|sid| self.by_sid.get(sid).copied()).collect()
    }

    /// Of what is remembered, that of which it is known by now whose it is.
    pub(crate) fn take_early(&mut self) -> Option<Gaps> {
        let mut known = self.early.extract_if(.., |sid, _| self.by_sid.contains_key(sid));
        let (sid, (last, since)) = known.next()?;
        let mut gaps = Gaps { sids: vec![sid], last, since };
        for (sid, (last, since)) in known {
            gaps.sids.push(sid);
            (gaps.last, gaps.since) = (gaps.last.max(last), gaps.since.min(since));
        }
        Some(gaps)
    }

    /// A stray is no more.
    pub(crate) fn note_end(&mut self, sid: Sid) {
        self.ended.insert(sid);
        if self.ended.len() > ENDED_MAX {
            self.ended.pop_first();
        }
    }

    /// The market's subscription is no more.
    pub(crate) fn remove(&mut self, sid: Sid) -> Option<Slot> {
        let slot = self.by_sid.remove(&sid)?;
        self.by_market.remove(&slot);
        Some(slot)
    }
}

impl Member {
    pub(crate) fn new(conn: ConnId, role: Role, chunk: usize) -> Self {
        Self {
            conn,
            role,
            live: false,
            down_since: None,
            line: Line::Closed,
            over: None,
            over_at: None,
            other: None,
            ended: None,
            adds: Ranks::default(),
            deletes: List::default(),
            rest: List::default(),
            held: List::default(),
            wanted: 0,
            present: 0,
            pace: Pace::new(chunk),
            flights: Vec::new(),
            overdue: VecDeque::new(),
            suspects: Vec::new(),
            search_at: None,
            due: VecDeque::new(),
            bookless: Vec::new(),
            limited_until: None,
            refused: None,
            own: OwnSids::default(),
            repair: Recovery::default(),
            last_id: 0,
        }
    }

    /// A new epoch: what was learned of the last one means nothing.
    pub(crate) fn reset(&mut self) {
        let chunk = self.pace.chunk_max();
        let (refused, wanted) = (None, self.wanted);
        let fresh = Self::new(self.conn, self.role, chunk);
        let old = std::mem::replace(self, fresh);
        (self.adds, self.deletes, self.rest, self.held) =
            (old.adds, old.deletes, old.rest, old.held);
        (self.live, self.down_since) = (old.live, old.down_since);
        (self.refused, self.wanted, self.present) = (refused, wanted, old.present);
    }

    /// The line has this sid.
    pub(crate) fn opened(&mut self, sid: Sid) {
        let renew = self.over == Some(sid);
        self.line = Line::Open { sid, renew };
        if !renew {
            self.over_at = None;
            self.own.over_at.clear();
        }
    }

    /// Ids are never used twice in an epoch.
    pub(crate) fn next_id(&mut self) -> CommandId {
        self.last_id += 1;
        CommandId::new(self.last_id)
    }

    pub(crate) fn shelve(&mut self, directory: &mut Directory, slot: Slot, shelf: Shelf, rank: u8) {
        match shelf {
            Shelf::Adds => self.adds.push(directory, slot, rank),
            Shelf::Deletes => self.deletes.push(directory, slot),
            Shelf::Rest => self.rest.push(directory, slot),
            Shelf::Held => self.held.push(directory, slot),
            Shelf::Nowhere | Shelf::Unplaced => {}
        }
    }

    pub(crate) fn unshelve(
        &mut self,
        directory: &mut Directory,
        slot: Slot,
        shelf: Shelf,
        rank: u8,
    ) {
        match shelf {
            Shelf::Adds => self.adds.remove(directory, slot, rank),
            Shelf::Deletes => self.deletes.remove(directory, slot),
            Shelf::Rest => self.rest.remove(directory, slot),
            Shelf::Held => self.held.remove(directory, slot),
            Shelf::Nowhere | Shelf::Unplaced => {}
        }
    }

    /// The next market that waits for this change.
    pub(crate) fn first(&self, change: Change) -> Option<Slot> {
        match change {
            Change::Add => self.adds.first(),
            Change::Delete => self.deletes.first(),
        }
    }

    /// The market that has been refused for longest.
    pub(crate) fn first_held(&self) -> Option<Slot> {
        self.held.first()
    }

    /// The markets that wait to be added, the highest priority first.
    pub(crate) fn waiting(&self, directory: &Directory) -> Vec<Slot> {
        let mut all = Vec::new();
        self.adds.collect(directory, &mut all);
        all
    }

    /// All its markets.
    pub(crate) fn markets(&self, directory: &Directory) -> Vec<Slot> {
        let mut all = self.waiting(directory);
        for list in [&self.deletes, &self.rest, &self.held] {
            list.collect(directory, &mut all);
        }
        all
    }

    /// The command of this id, which is over.
    pub(crate) fn land(&mut self, id: CommandId) -> Option<Flight> {
        let index = self.flights.iter().position(|flight| flight.id == id)?;
        Some(self.flights.swap_remove(index))
    }

    /// The command of this id, whose reply came late.
    pub(crate) fn land_late(&mut self, id: CommandId) -> Option<Flight> {
        let index = self.overdue.iter().position(|overdue| overdue.flight.id == id)?;
        self.overdue.remove(index).map(|overdue| overdue.flight)
    }

    /// The markets of this command, carried out late, that later commands without a reply name
    /// too. What those say of them is in doubt from now on, and what a list says of all.
    pub(crate) fn doubt(&mut self, late: &Flight) -> BTreeSet<Slot> {
        let markets: BTreeSet<Slot> = late.markets.iter().copied().collect();
        let overdue = self.overdue.iter_mut().map(|overdue| &mut overdue.flight);
        let later = self.flights.iter_mut().chain(overdue).filter(|flight| flight.id > late.id);
        let mut all = BTreeSet::new();
        for flight in later {
            if flight.ask == Ask::List {
                flight.doubted.extend(&markets);
            }
            let named = flight.markets.iter().copied();
            let shared: BTreeSet<Slot> = named.filter(|slot| markets.contains(slot)).collect();
            flight.doubted.extend(&shared);
            all.extend(shared);
        }
        all
    }

    /// Whether a search for an unwelcome market is under way.
    pub(crate) fn searches(&self) -> bool {
        self.flights.iter().any(|flight| flight.search)
    }
}
