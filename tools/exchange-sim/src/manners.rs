//! How the exchange behaves on a connection beside what it says there: its pings, pongs and Closes,
//! whether it reads, and how it cuts messages into frames. Plain values and their form as a text.

use std::str::FromStr;
use std::time::Duration;

/// Behaviour on one connection. The default is good behaviour.
///
/// As a text: words from `pings=idle`, `pings=never`, `pings=every/MS`, `pings=flood/N` (a second),
/// `no_pong`, `no_close`, `deaf`, `fragments=BYTES` and `fragments=BYTES/ping`.
///
/// ```
/// use exchange_sim::{Manners, Pings};
/// let manners: Manners = "pings=never no_close".parse()?;
/// assert_eq!(manners, Manners { pings: Pings::Never, answer_close: false, ..Manners::default() });
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manners {
    /// When it pings.
    pub pings: Pings,
    /// Whether it answers pings.
    pub answer_pings: bool,
    /// Whether it answers a Close. If not, it sends nothing more and waits for the client to go.
    pub answer_close: bool,
    /// Whether it reads what the client sends. If not, the client's side of the connection fills
    /// up.
    pub read: bool,
    /// How text messages are cut into frames.
    pub fragments: Option<Fragments>,
}

/// When the exchange pings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pings {
    /// When it has sent nothing for [`crate::ExchangeConfig::heartbeat_idle`], as recorded live.
    #[default]
    Idle,
    /// Always after this long, busy or not.
    Every(Duration),
    /// So many a second, in bursts every 20 ms.
    Flood(u32),
    /// Never.
    Never,
}

/// How text messages are cut into frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragments {
    /// Most bytes of a frame's payload, at least 1.
    pub bytes: usize,
    /// Whether a ping comes behind the first fragment of each message.
    pub ping: bool,
}

impl Default for Manners {
    fn default() -> Self {
        Self {
            pings: Pings::Idle,
            answer_pings: true,
            answer_close: true,
            read: true,
            fragments: None,
        }
    }
}

impl FromStr for Manners {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut manners = Self::default();
        for word in text.split_whitespace() {
            manners.learn(word).ok_or_else(|| {
                format!(
                    "`{word}` is no way to behave: give pings=idle, pings=never, pings=every/MS, \
                     pings=flood/N, no_pong, no_close, deaf, fragments=BYTES or \
                     fragments=BYTES/ping"
                )
            })?;
        }
        Ok(manners)
    }
}

impl Manners {
    fn learn(&mut self, word: &str) -> Option<()> {
        match word.split_once('=') {
            None => match word {
                "no_pong" => self.answer_pings = false,
                "no_close" => self.answer_close = false,
                "deaf" => self.read = false,
                _ => return None,
            },
            Some(("pings", when)) => {
                self.pings = match when.split_once('/') {
                    None if when == "idle" => Pings::Idle,
                    None if when == "never" => Pings::Never,
                    Some(("every", millis)) => {
                        Pings::Every(Duration::from_millis(millis.parse().ok()?))
                    }
                    Some(("flood", count)) => Pings::Flood(count.parse().ok()?),
                    _ => return None,
                }
            }
            Some(("fragments", size)) => {
                let (bytes, ping) = match size.split_once('/') {
                    Some((bytes, "ping")) => (bytes, true),
                    None => (size, false),
                    Some(_) => return None,
                };
                let bytes = bytes.parse().ok().filter(|&bytes| bytes > 0)?;
                self.fragments = Some(Fragments { bytes, ping });
            }
            Some(_) => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_word_by_word() {
        let all = "pings=flood/900 no_pong no_close deaf fragments=7/ping";
        let want = Manners {
            pings: Pings::Flood(900),
            answer_pings: false,
            answer_close: false,
            read: false,
            fragments: Some(Fragments { bytes: 7, ping: true }),
        };
        assert_eq!(all.parse(), Ok(want));
        assert_eq!("".parse(), Ok(Manners::default()));
        let every = Pings::Every(Duration::from_millis(5));
        assert_eq!("pings=every/5".parse(), Ok(Manners { pings: every, ..Manners::default() }));
        for wrong in ["rude", "pings=often", "fragments=0", "fragments=5/pong", "pings=flood/x"] {
            assert!(wrong.parse::<Manners>().is_err(), "{wrong}");
        }
    }
}
