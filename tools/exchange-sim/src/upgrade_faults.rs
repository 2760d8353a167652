//! What can be made to go wrong with upgrades: refusals of every kind and answers that are wrong,
//! slow or cut short. It changes the bytes of an answer; it reads no request and writes nothing.

use std::str::FromStr;
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::clock::Stamp;
use crate::faults::{self, When};
use crate::upgrade::{self, Answer, Denied};

/// How an upgrade goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpgradeFault {
    /// It is answered with another status.
    Refused(Refusal),
    /// The 101 proves that another key was read.
    WrongAccept,
    /// The 101 names an extension nobody offered.
    Extension,
    /// The 101 names a subprotocol nobody offered.
    Protocol,
    /// The 101 lacks its `Upgrade` header.
    NoUpgradeHeader,
    /// The 101 is one of HTTP/1.0.
    Http10,
    /// Bytes that are no HTTP.
    Garbage,
    /// No answer ever.
    Silent,
    /// Half of the answer, and no more ever.
    Half,
    /// A reset instead of an answer.
    Reset,
    /// The answer comes byte by byte, each a write of its own, with this pause between.
    Slow(Duration),
    /// Behind the 101, in the same record and segment, come a ping and this text message; only the
    /// ping if it is empty.
    Riding(String),
}

/// A refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status; 3xx come with a `Location`.
    pub status: u16,
    /// One of the recorded 401 bodies; `None` = the usual body of the status.
    pub denied: Option<Denied>,
    /// A `Retry-After` header.
    pub retry_after: Option<RetryAfter>,
}

/// The two forms of `Retry-After`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryAfter {
    /// A number of seconds.
    Seconds(u64),
    /// A date this far ahead of the exchange's clock.
    Date(Duration),
}

/// One thing that goes wrong with upgrades.
///
/// As a text: the fault, then `next=N` or `p=F` (without either: every time), and `for=MS` for how
/// long. Faults: `refused=STATUS`, with `body=CODE` and `retry_after=SECONDS` or
/// `retry_at=SECONDS` behind it, `wrong_accept`, `extension`, `protocol`, `no_upgrade`, `http10`,
/// `garbage`, `silent`, `half`, `reset`, `slow=MS`, `riding` or `riding=TEXT`.
///
/// ```
/// use exchange_sim::{Denied, UpgradeFault, UpgradeRule, When};
/// let rule: UpgradeRule = "refused=429 retry_after=7 next=3".parse()?;
/// assert_eq!(rule.when, When::Next(3));
/// let rule: UpgradeRule = "refused=401 body=NOT_FOUND for=5000".parse()?;
/// assert!(matches!(rule.fault, UpgradeFault::Refused(refusal) if
///     refusal.denied == Some(Denied::UnknownKey)));
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct UpgradeRule {
    /// What happens.
    pub fault: UpgradeFault,
    /// When.
    pub when: When,
    /// For how long from the moment it is given; `None` = until cleared.
    pub lasting: Option<Duration>,
}

impl UpgradeRule {
    /// A rule for the next `count` upgrades.
    #[must_use]
    pub fn next(fault: UpgradeFault, count: u32) -> Self {
        Self { fault, when: When::Next(count), lasting: None }
    }

    /// A rule for every upgrade until cleared.
    #[must_use]
    pub fn always(fault: UpgradeFault) -> Self {
        Self { fault, when: When::Chance(1.0), lasting: None }
    }
}

impl From<u16> for Refusal {
    fn from(status: u16) -> Self {
        Self { status, denied: None, retry_after: None }
    }
}

impl FromStr for UpgradeRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split_whitespace();
        let mut rule = words.next().and_then(fault).map(Self::always);
        for word in words {
            rule = rule.and_then(|rule| rule.also(word));
        }
        rule.ok_or_else(|| {
            format!(
                "`{text}` is not a fault of upgrades: give refused=STATUS [body=CODE] \
                 [retry_after=S|retry_at=S], wrong_accept, extension, protocol, no_upgrade, \
                 http10, garbage, silent, half, reset, slow=MS, riding or riding=TEXT, then \
                 next=N or p=F, and for=MS"
            )
        })
    }
}

impl UpgradeRule {
    /// One more word of its text.
    fn also(mut self, word: &str) -> Option<Self> {
        let (name, value) = word.split_once('=')?;
        match (name, &mut self.fault) {
            ("for", _) => self.lasting = Some(Duration::from_millis(value.parse().ok()?)),
            ("body", UpgradeFault::Refused(refusal)) => {
                refusal.denied = Some(Denied::from_code(value)?);
            }
            ("retry_after", UpgradeFault::Refused(refusal)) => {
                refusal.retry_after = Some(RetryAfter::Seconds(value.parse().ok()?));
            }
            ("retry_at", UpgradeFault::Refused(refusal)) => {
                let ahead = Duration::from_secs(value.parse().ok()?);
                refusal.retry_after = Some(RetryAfter::Date(ahead));
            }
            _ => self.when = faults::when(word)?,
        }
        Some(self)
    }
}

fn fault(word: &str) -> Option<UpgradeFault> {
    Some(match word.split_once('=') {
        Some(("refused", status)) => {
            let status: u16 = status.parse().ok().filter(|status| (200..600).contains(status))?;
            UpgradeFault::Refused(status.into())
        }
        Some(("slow", millis)) => UpgradeFault::Slow(Duration::from_millis(millis.parse().ok()?)),
        Some(("riding", text)) => UpgradeFault::Riding(text.to_owned()),
        Some(_) => return None,
        None => match word {
            "wrong_accept" => UpgradeFault::WrongAccept,
            "extension" => UpgradeFault::Extension,
            "protocol" => UpgradeFault::Protocol,
            "no_upgrade" => UpgradeFault::NoUpgradeHeader,
            "http10" => UpgradeFault::Http10,
            "garbage" => UpgradeFault::Garbage,
            "silent" => UpgradeFault::Silent,
            "half" => UpgradeFault::Half,
            "reset" => UpgradeFault::Reset,
            "riding" => UpgradeFault::Riding(String::new()),
            _ => return None,
        },
    })
}

/// How an answer is given.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    Whole,
    Slowly(Duration),
    /// Nothing follows, and the connection stays.
    AndNoMore,
    Reset,
    /// With a ping and perhaps a message in the same write.
    Riding(String),
}

/// The answer a fault makes of the honest one. What is wrong with a 101 cannot be wrong with
/// anything else: other answers stay as they are then.
pub(crate) fn spoil(fault: Option<UpgradeFault>, honest: Answer, now: Stamp) -> (Answer, Manner) {
    let Some(fault) = fault else {
        return (honest, Manner::Whole);
    };
    let plain = |answer| (answer, Manner::Whole);
    let accepted = honest.status == 101;
    match fault {
        UpgradeFault::Refused(refusal) => plain(refuse(refusal, now)),
        UpgradeFault::Slow(every) => (honest, Manner::Slowly(every)),
        UpgradeFault::Silent => (Answer { status: 0, bytes: Vec::new() }, Manner::AndNoMore),
        UpgradeFault::Half => {
            let bytes = honest.bytes.get(..honest.bytes.len() / 2).unwrap_or_default().to_vec();
            (Answer { status: 0, bytes }, Manner::AndNoMore)
        }
        UpgradeFault::Reset => (Answer { status: 0, bytes: Vec::new() }, Manner::Reset),
        UpgradeFault::Garbage => {
            let bytes = b"\x16\x03\x01 what is this?\r\n\r\n".to_vec();
            plain(Answer { status: 0, bytes })
        }
        UpgradeFault::Riding(text) if accepted => (honest, Manner::Riding(text)),
        UpgradeFault::WrongAccept if accepted => {
            plain(replaced(&honest, "Sec-WebSocket-Accept: ", "Sec-WebSocket-Accept: x"))
        }
        UpgradeFault::Extension if accepted => plain(replaced(
            &honest,
            "\r\n\r\n",
            "\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n",
        )),
        UpgradeFault::Protocol if accepted => {
            plain(replaced(&honest, "\r\n\r\n", "\r\nSec-WebSocket-Protocol: fix\r\n\r\n"))
        }
        UpgradeFault::NoUpgradeHeader if accepted => {
            plain(replaced(&honest, "Upgrade: websocket\r\n", ""))
        }
        UpgradeFault::Http10 if accepted => plain(replaced(&honest, "HTTP/1.1", "HTTP/1.0")),
        _ => plain(honest),
    }
}

fn replaced(answer: &Answer, from: &str, to: &str) -> Answer {
    let text = String::from_utf8_lossy(&answer.bytes).replacen(from, to, 1);
    Answer { status: answer.status, bytes: text.into_bytes() }
}

fn refuse(refusal: Refusal, now: Stamp) -> Answer {
    let mut extra = match refusal.retry_after {
        Some(RetryAfter::Seconds(seconds)) => format!("Retry-After: {seconds}\r\n"),
        Some(RetryAfter::Date(ahead)) => {
            format!("Retry-After: {}\r\n", now.later(ahead).http_date())
        }
        None => String::new(),
    };
    if (300..400).contains(&refusal.status) {
        extra.push_str("Location: /elsewhere\r\n");
    }
    upgrade::refusal_with(refusal.status, refusal.denied, &extra, now)
}

/// The rules in force.
#[derive(Debug)]
pub(crate) struct UpgradeFaults {
    rules: Vec<(UpgradeRule, Option<Instant>)>,
    /// Its own, so that rules do not change the traffic of a seed.
    rng: Rng,
}

impl UpgradeFaults {
    pub(crate) fn new(rules: Vec<UpgradeRule>, seed: u64, now: Instant) -> Self {
        let mut faults = Self { rules: Vec::new(), rng: Rng::with_seed(seed ^ 0x0075_7067) };
        rules.into_iter().for_each(|rule| faults.add(rule, now));
        faults
    }

    pub(crate) fn add(&mut self, rule: UpgradeRule, now: Instant) {
        let until = rule.lasting.map(|lasting| now + lasting);
        self.rules.push((rule, until));
    }

    pub(crate) fn clear(&mut self) {
        self.rules.clear();
    }

    /// What goes wrong with the upgrade asked for now: the first rule that strikes.
    pub(crate) fn strike(&mut self, now: Instant) -> Option<UpgradeFault> {
        let Self { rules, rng } = self;
        rules.retain(|(_, until)| until.is_none_or(|until| now < until));
        let mut rules = rules.iter_mut();
        rules.find_map(|(rule, _)| rule.when.strikes(rng).then(|| rule.fault.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_793_534_400_000_000;

    fn spoiled(rule: &str) -> (u16, String, Manner) {
        let rule: UpgradeRule = rule.parse().unwrap();
        let now = Stamp::from_micros(NOW);
        let (answer, manner) = spoil(Some(rule.fault), upgrade::switching("key", now), now);
        (answer.status, String::from_utf8_lossy(&answer.bytes).into_owned(), manner)
    }

    #[test]
    fn refusals_carry_what_was_asked_for() {
        let (status, text, _) = spoiled("refused=401 body=header_timestamp_expired");
        assert!(status == 401 && text.contains("\"header_timestamp_expired\""), "{text}");
        let (_, text, _) = spoiled("refused=429 retry_after=7");
        assert!(
            text.contains("\r\nRetry-After: 7\r\n") && text.contains(" 429 Too Many"),
            "{text}"
        );
        let (_, text, _) = spoiled("refused=503 retry_at=90");
        assert!(text.contains("\r\nRetry-After: Sun, 01 Nov 2026 12:01:30 GMT\r\n"), "{text}");
        let (_, text, _) = spoiled("refused=302");
        assert!(text.contains("\r\nLocation: /elsewhere\r\n"), "{text}");
        let (_, text, _) = spoiled("refused=403");
        assert!(text.ends_with("\r\n\r\nForbidden\n") && text.contains("text/plain"), "{text}");
        assert_eq!(spoiled("refused=200").0, 200);
    }

    #[test]
    fn answers_are_spoiled_in_one_place() {
        let now = Stamp::from_micros(NOW);
        let honest = String::from_utf8(upgrade::switching("key", now).bytes).unwrap();
        let texts = ["wrong_accept", "extension", "protocol", "no_upgrade", "http10"];
        for text in texts {
            let (status, bytes, manner) = spoiled(text);
            assert_eq!((status, manner), (101, Manner::Whole), "{text}");
            assert_ne!(bytes, honest, "{text}");
            assert!(bytes.ends_with("\r\n\r\n"), "{text}");
            let refused = upgrade::refusal(404, now);
            let rule: UpgradeRule = text.parse().unwrap();
            assert_eq!(spoil(Some(rule.fault), refused, now).0.status, 404, "{text}");
        }
        assert!(honest.starts_with(&spoiled("half").1) && spoiled("half").1.len() > 50);
        assert_eq!(spoiled("slow=3").2, Manner::Slowly(Duration::from_millis(3)));
        assert_eq!(spoiled("riding={}").2, Manner::Riding("{}".to_owned()));
    }

    #[test]
    fn rules_run_out_by_count_and_by_time() {
        let start = Instant::now();
        let rules = ["garbage next=1", "silent for=10"].map(|rule| rule.parse().unwrap());
        let mut faults = UpgradeFaults::new(rules.to_vec(), 1, start);
        let mut at = |millis| faults.strike(start + Duration::from_millis(millis));
        assert_eq!(at(0), Some(UpgradeFault::Garbage));
        assert_eq!((at(9), at(10)), (Some(UpgradeFault::Silent), None));
        for wrong in ["", "refused", "refused=99", "slow", "silent body=x", "refused=401 body=x"] {
            assert!(wrong.parse::<UpgradeRule>().is_err(), "{wrong}");
        }
    }
}
