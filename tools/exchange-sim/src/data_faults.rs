//! What can be made to go wrong with data frames: which ones, what happens, when and for how long.
//! It draws and counts; it numbers and writes nothing.

use std::str::FromStr;
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::faults::{self, When};
use crate::subscription::Stream;

/// How a data frame goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataFault {
    /// It takes its number and is never written. The ledger has it as withheld.
    Drop,
    /// It is written twice under one number.
    Duplicate,
    /// After it, it is written again under the number this much lower, at least 1. On channels
    /// with `seq` only.
    Backward(u64),
    /// Numbers start again at 1 with it. On channels with `seq` only, and not right behind a frame
    /// that was dropped.
    Restart,
}

/// The frames a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Among {
    /// All data frames.
    Any,
    /// Those of channels with `seq`.
    Sequenced,
    /// Those of one channel.
    Channel(String),
    /// Those of one channel on one line: the first, second, … of the connections that follow the
    /// whole of it ([`crate::Exchange::lines`]), from 1.
    Line(String, u8),
}

/// One thing that goes wrong with data.
///
/// As a text: `any`, `sequenced`, a channel or `channel/line`; the fault; then `next=N` or `p=F`
/// (without either: every time), and `for=MS` for how long.
///
/// ```
/// use exchange_sim::{Among, DataFault, DataRule, When};
/// let rule: DataRule = "trade/2 drop p=0.01 for=20000".parse()?;
/// assert_eq!(rule.among, Among::Line("trade".to_owned(), 2));
/// assert_eq!((rule.fault, rule.when), (DataFault::Drop, When::Chance(0.01)));
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct DataRule {
    /// The frames it is about.
    pub among: Among,
    /// What happens to them.
    pub fault: DataFault,
    /// When.
    pub when: When,
    /// For how long from the moment it is given; `None` = until cleared.
    pub lasting: Option<Duration>,
}

impl DataRule {
    /// A rule that strikes with this probability until cleared.
    #[must_use]
    pub fn chance(among: Among, fault: DataFault, probability: f64) -> Self {
        Self { among, fault, when: When::Chance(probability), lasting: None }
    }

    /// A rule for the next `count` frames.
    #[must_use]
    pub fn next(among: Among, fault: DataFault, count: u32) -> Self {
        Self { among, fault, when: When::Next(count), lasting: None }
    }
}

impl FromStr for DataRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is not a fault of data: give any, sequenced, CHANNEL or CHANNEL/LINE, \
                 then drop, duplicate, backward=N or restart, then next=N or p=F, and for=MS"
            )
        };
        let mut words = text.split_whitespace();
        let among = match words.next().ok_or_else(wrong)? {
            "any" => Among::Any,
            "sequenced" => Among::Sequenced,
            name => match name.split_once('/') {
                Some((name, line)) => {
                    Among::Line(name.to_owned(), line.parse().map_err(|_| wrong())?)
                }
                None => Among::Channel(name.to_owned()),
            },
        };
        let fault = match words.next().ok_or_else(wrong)? {
            "drop" => DataFault::Drop,
            "duplicate" => DataFault::Duplicate,
            "restart" => DataFault::Restart,
            word => {
                let by = word.strip_prefix("backward=").and_then(|by| by.parse().ok());
                DataFault::Backward(by.ok_or_else(wrong)?)
            }
        };
        let (mut when, mut lasting) = (When::Chance(1.0), None);
        for word in words {
            match word.strip_prefix("for=") {
                Some(millis) => {
                    lasting = Some(Duration::from_millis(millis.parse().map_err(|_| wrong())?));
                }
                None => when = faults::when(word).ok_or_else(wrong)?,
            }
        }
        Ok(Self { among, fault, when, lasting })
    }
}

impl Among {
    fn means(&self, stream: &Stream) -> bool {
        match self {
            Self::Any => true,
            Self::Sequenced => stream.channel.sequenced(),
            Self::Channel(name) => stream.channel.name() == name,
            Self::Line(name, line) => stream.channel.name() == name && stream.line == *line,
        }
    }
}

/// The rules in force.
#[derive(Debug)]
pub(crate) struct DataFaults {
    rules: Vec<(DataRule, Option<Instant>)>,
    /// Its own, so that rules do not change the traffic of a seed.
    rng: Rng,
    now: Instant,
    /// Frames that took a number and were not written.
    pub(crate) withheld: u64,
    /// Frames written again.
    pub(crate) repeated: u64,
}

impl DataFaults {
    pub(crate) fn new(rules: Vec<DataRule>, seed: u64, now: Instant) -> Self {
        let rng = Rng::with_seed(seed ^ 0x0064_6174_6100);
        let mut faults = Self { rules: Vec::new(), rng, now, withheld: 0, repeated: 0 };
        rules.into_iter().for_each(|rule| faults.add(rule));
        faults
    }

    pub(crate) fn add(&mut self, rule: DataRule) {
        let until = rule.lasting.map(|lasting| self.now + lasting);
        self.rules.push((rule, until));
    }

    pub(crate) fn clear(&mut self) {
        self.rules.clear();
    }

    /// Ends the rules whose time is over.
    pub(crate) fn at(&mut self, now: Instant) {
        self.now = now;
        self.rules.retain(|(_, until)| until.is_none_or(|until| now < until));
    }

    /// What goes wrong with the next frame of a stream: the first rule that strikes.
    pub(crate) fn fate(&mut self, stream: &Stream) -> Option<DataFault> {
        if self.rules.is_empty() {
            return None;
        }
        let Self { rules, rng, .. } = self;
        let possible = |fault: DataFault| match fault {
            DataFault::Drop | DataFault::Duplicate => true,
            DataFault::Backward(_) => stream.channel.sequenced(),
            DataFault::Restart => stream.channel.sequenced() && stream.may_restart(),
        };
        let meant = rules
            .iter_mut()
            .filter(|(rule, _)| rule.among.means(stream) && possible(rule.fault))
            .find_map(|(rule, _)| rule.when.strikes(rng).then_some(rule.fault));
        match meant {
            Some(DataFault::Drop) => self.withheld += 1,
            Some(DataFault::Duplicate | DataFault::Backward(_)) => self.repeated += 1,
            Some(DataFault::Restart) | None => {}
        }
        meant
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subscription::Channel;

    #[test]
    fn rules_are_read_from_text() {
        let channel = |name: &str| Among::Channel(name.to_owned());
        let cases = [
            ("any drop", DataRule::chance(Among::Any, DataFault::Drop, 1.0)),
            ("trade duplicate next=2", DataRule::next(channel("trade"), DataFault::Duplicate, 2)),
            (
                "sequenced backward=3 p=0.5",
                DataRule::chance(Among::Sequenced, DataFault::Backward(3), 0.5),
            ),
            (
                "ticker/1 restart next=1 for=9",
                DataRule {
                    lasting: Some(Duration::from_millis(9)),
                    ..DataRule::next(Among::Line("ticker".to_owned(), 1), DataFault::Restart, 1)
                },
            ),
        ];
        for (text, want) in cases {
            assert_eq!(text.parse(), Ok(want), "{text}");
        }
        for wrong in ["", "any", "any lose", "trade/x drop", "any drop p=2", "any backward=x"] {
            assert!(wrong.parse::<DataRule>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn rules_mean_their_streams_and_end_in_time() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let rule: DataRule = "trade/2 drop for=10".parse().unwrap();
        let mut faults = DataFaults::new(vec![rule], 1, start);
        let mut stream = Stream::new(1, Channel::Trade, false);
        stream.line = 1;
        assert_eq!(faults.fate(&stream), None);
        stream.line = 2;
        assert_eq!(faults.fate(&stream), Some(DataFault::Drop));
        faults.at(at(9));
        assert_eq!(faults.fate(&stream), Some(DataFault::Drop));
        faults.at(at(10));
        assert_eq!((faults.fate(&stream), faults.withheld), (None, 2));
        faults.add("sequenced restart".parse().unwrap());
        assert_eq!(faults.fate(&Stream::new(1, Channel::Ticker, false)), None);
        assert_eq!(faults.fate(&stream), None, "nothing was sent that could start again");
    }
}
