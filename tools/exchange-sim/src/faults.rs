//! What can be made to go wrong with a command: which command, what happens, and when. It draws
//! and counts; it never answers anything itself.

use std::str::FromStr;
use std::time::Duration;

use fastrand::Rng;
use serde::Serialize;

/// The kinds of command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// `subscribe`, the first of a channel or a later one.
    Subscribe,
    /// `unsubscribe`.
    Unsubscribe,
    /// `update_subscription` with `add_markets`.
    AddMarkets,
    /// `update_subscription` with `delete_markets`.
    DeleteMarkets,
    /// `update_subscription` with `get_snapshot`.
    GetSnapshot,
    /// `list_subscriptions`.
    ListSubscriptions,
}

const VERBS: [(&str, Verb); 6] = [
    ("subscribe", Verb::Subscribe),
    ("unsubscribe", Verb::Unsubscribe),
    ("add_markets", Verb::AddMarkets),
    ("delete_markets", Verb::DeleteMarkets),
    ("get_snapshot", Verb::GetSnapshot),
    ("list_subscriptions", Verb::ListSubscriptions),
];

/// How a command goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandFault {
    /// Carried out at once; the reply comes this much later. Data does not wait for it.
    Late(Duration),
    /// Carried out; no reply, and no `seq` taken for one.
    Lost,
    /// Neither carried out nor answered.
    Ignored,
    /// Carried out and answered twice. Replies with a `seq` take one each.
    Doubled,
    /// Carried out; what it causes (snapshots) is sent before any reply, `subscribed` included.
    DataFirst,
    /// Not carried out; answered with this error code (1 to 29 are known).
    Refused(u8),
    /// Carried out, and answered with error 18, "Command timeout".
    TimedOut,
    /// Carried out and answered; this much later its subscription ends with an error of this code
    /// (live: 10 or 25) that answers no command, and is silent from then on.
    Terminal {
        /// The error's code.
        code: u8,
        /// How long after the reply.
        after: Duration,
    },
    /// Carried out and answered; before the reply comes one that nobody asked for.
    Stray(Stray),
}

/// A reply that answers no command of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stray {
    /// An `ok` with this id.
    Ok(u64),
    /// An `error` of code 1 with this id.
    Error(u64),
    /// An `ok` without any id.
    Nameless,
}

/// When a rule strikes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum When {
    /// With this probability, 0 to 1, drawn from the exchange's seed.
    Chance(f64),
    /// The next so many times, then never again.
    Next(u32),
}

impl When {
    /// Whether it strikes now; counts if it does.
    pub(crate) fn strikes(&mut self, rng: &mut Rng) -> bool {
        match self {
            Self::Chance(chance) => rng.f64() < *chance,
            Self::Next(0) => false,
            Self::Next(left) => {
                *left -= 1;
                true
            }
        }
    }
}

/// One thing that goes wrong.
///
/// As a text: the command or `any`, the fault, and `next=N` or `p=F` (without either: every time).
///
/// ```
/// use exchange_sim::{CommandFault, FaultRule, Verb, When};
/// let rule: FaultRule = "add_markets refused=26 next=2".parse()?;
/// assert_eq!(rule, FaultRule {
///     verb: Some(Verb::AddMarkets),
///     fault: CommandFault::Refused(26),
///     when: When::Next(2),
/// });
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FaultRule {
    /// The commands it is about; `None` = all.
    pub verb: Option<Verb>,
    /// What happens to them.
    pub fault: CommandFault,
    /// When.
    pub when: When,
}

impl FaultRule {
    /// A rule for the next `count` commands of one kind.
    #[must_use]
    pub fn next(verb: Verb, fault: CommandFault, count: u32) -> Self {
        Self { verb: Some(verb), fault, when: When::Next(count) }
    }

    /// A rule for any command, with this probability.
    #[must_use]
    pub fn chance(fault: CommandFault, probability: f64) -> Self {
        Self { verb: None, fault, when: When::Chance(probability) }
    }
}

impl FromStr for FaultRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is not a fault: give a command or `any`, then late=MS, lost, ignored, \
                 doubled, data_first, refused=CODE, timed_out, terminal=CODE, terminal=CODE/MS, \
                 stray=ID, stray_error=ID or nameless, then next=N or p=F"
            )
        };
        let mut words = text.split_whitespace();
        let verb = match words.next().ok_or_else(wrong)? {
            "any" => None,
            name => Some(VERBS.iter().find(|(known, _)| *known == name).ok_or_else(wrong)?.1),
        };
        let fault = words.next().and_then(fault).ok_or_else(wrong)?;
        let when = match words.next() {
            None => When::Chance(1.0),
            Some(word) => when(word).ok_or_else(wrong)?,
        };
        match words.next() {
            None => Ok(Self { verb, fault, when }),
            Some(_) => Err(wrong()),
        }
    }
}

fn fault(word: &str) -> Option<CommandFault> {
    let millis = |text: &str| text.parse().ok().map(Duration::from_millis);
    let Some((name, value)) = word.split_once('=') else {
        return Some(match word {
            "lost" => CommandFault::Lost,
            "ignored" => CommandFault::Ignored,
            "doubled" => CommandFault::Doubled,
            "data_first" => CommandFault::DataFirst,
            "timed_out" => CommandFault::TimedOut,
            "nameless" => CommandFault::Stray(Stray::Nameless),
            _ => return None,
        });
    };
    match name {
        "late" => millis(value).map(CommandFault::Late),
        "refused" => value.parse().ok().map(CommandFault::Refused),
        "terminal" => {
            let (code, after) = value.split_once('/').unwrap_or((value, "0"));
            Some(CommandFault::Terminal { code: code.parse().ok()?, after: millis(after)? })
        }
        "stray" => value.parse().ok().map(|id| CommandFault::Stray(Stray::Ok(id))),
        "stray_error" => value.parse().ok().map(|id| CommandFault::Stray(Stray::Error(id))),
        _ => None,
    }
}

/// `next=N` or `p=F`.
pub(crate) fn when(word: &str) -> Option<When> {
    match word.split_once('=')? {
        ("next", count) => count.parse().ok().map(When::Next),
        ("p", chance) => {
            chance.parse().ok().filter(|chance| (0.0..=1.0).contains(chance)).map(When::Chance)
        }
        _ => None,
    }
}

/// Tickers a command may not name: a list with one of them is refused as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BadTickers {
    /// The code that answers it (live candidates: 11, 14).
    pub code: u8,
    /// The tickers.
    pub tickers: std::collections::BTreeSet<String>,
}

/// Commands read, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VerbCounts {
    /// `subscribe`.
    pub subscribe: u64,
    /// `unsubscribe`.
    pub unsubscribe: u64,
    /// `add_markets`.
    pub add_markets: u64,
    /// `delete_markets`.
    pub delete_markets: u64,
    /// `get_snapshot`.
    pub get_snapshot: u64,
    /// `list_subscriptions`.
    pub list_subscriptions: u64,
    /// Messages that were none of these.
    pub unreadable: u64,
}

impl VerbCounts {
    pub(crate) fn note(&mut self, verb: Option<Verb>) {
        let count = match verb {
            Some(Verb::Subscribe) => &mut self.subscribe,
            Some(Verb::Unsubscribe) => &mut self.unsubscribe,
            Some(Verb::AddMarkets) => &mut self.add_markets,
            Some(Verb::DeleteMarkets) => &mut self.delete_markets,
            Some(Verb::GetSnapshot) => &mut self.get_snapshot,
            Some(Verb::ListSubscriptions) => &mut self.list_subscriptions,
            None => &mut self.unreadable,
        };
        *count += 1;
    }
}

/// The rules in force.
#[derive(Debug)]
pub(crate) struct Faults {
    rules: Vec<FaultRule>,
    /// Its own, so that rules do not change the traffic of a seed.
    rng: Rng,
    /// Commands something went wrong with.
    pub(crate) struck: u64,
}

impl Faults {
    pub(crate) fn new(rules: Vec<FaultRule>, seed: u64) -> Self {
        Self { rules, rng: Rng::with_seed(seed ^ 0x0066_6175_6c74), struck: 0 }
    }

    pub(crate) fn add(&mut self, rule: FaultRule) {
        self.rules.push(rule);
    }

    pub(crate) fn clear(&mut self) {
        self.rules.clear();
    }

    /// What goes wrong with a command of this kind now: the first rule that strikes.
    pub(crate) fn strike(&mut self, verb: Verb) -> Option<CommandFault> {
        let Self { rules, rng, .. } = self;
        let concerned = |rule: &&mut FaultRule| rule.verb.is_none_or(|only| only == verb);
        let mut hit = rules.iter_mut().filter(concerned);
        let hit = hit.find_map(|rule| rule.when.strikes(rng).then_some(rule.fault));
        self.struck += u64::from(hit.is_some());
        hit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_from_text() {
        let rule = |verb, fault, when| FaultRule { verb, fault, when };
        let always = When::Chance(1.0);
        let cases = [
            ("any lost", rule(None, CommandFault::Lost, always)),
            (
                "subscribe late=250 p=0.5",
                rule(
                    Some(Verb::Subscribe),
                    CommandFault::Late(Duration::from_millis(250)),
                    When::Chance(0.5),
                ),
            ),
            (
                "add_markets terminal=25/40 next=1",
                rule(
                    Some(Verb::AddMarkets),
                    CommandFault::Terminal { code: 25, after: Duration::from_millis(40) },
                    When::Next(1),
                ),
            ),
            ("any stray=9", rule(None, CommandFault::Stray(Stray::Ok(9)), always)),
            ("any nameless", rule(None, CommandFault::Stray(Stray::Nameless), always)),
        ];
        for (text, want) in cases {
            assert_eq!(text.parse(), Ok(want), "{text}");
        }
        for wrong in ["", "any", "dance lost", "any vanish", "any lost p=2", "any lost next=1 x"] {
            assert!(wrong.parse::<FaultRule>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_first_rule_that_strikes_counts_and_counted_ones_run_out() {
        let rules = vec![
            FaultRule::next(Verb::Subscribe, CommandFault::Lost, 2),
            FaultRule::chance(CommandFault::Doubled, 1.0),
        ];
        let mut faults = Faults::new(rules, 1);
        assert_eq!(faults.strike(Verb::Unsubscribe), Some(CommandFault::Doubled));
        assert_eq!(faults.strike(Verb::Subscribe), Some(CommandFault::Lost));
        assert_eq!(faults.strike(Verb::Subscribe), Some(CommandFault::Lost));
        assert_eq!(faults.strike(Verb::Subscribe), Some(CommandFault::Doubled));
        assert_eq!(faults.struck, 4);
        faults.clear();
        assert_eq!(faults.strike(Verb::Subscribe), None);
    }

    #[test]
    fn chances_follow_the_seed() {
        let draws = |seed| {
            let rule = FaultRule::chance(CommandFault::Lost, 0.25);
            let mut faults = Faults::new(vec![rule], seed);
            (0..4_000).map(|_| faults.strike(Verb::AddMarkets).is_some()).collect::<Vec<_>>()
        };
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1), draws(2));
        let hits = draws(3).into_iter().filter(|hit| *hit).count();
        assert!((850..1_150).contains(&hits), "{hits}");
    }
}
