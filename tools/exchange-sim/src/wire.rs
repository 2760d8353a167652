//! What the network between client and exchange does: plain values, for one direction each, and
//! their form as a text. It moves no byte.

use std::str::FromStr;
use std::time::Duration;

/// What the network does with one connection. The default passes everything on at once.
///
/// As a text: words for both directions first, then behind `down` those towards the client, behind
/// `up` those towards the exchange; times in milliseconds.
///
/// ```
/// use exchange_sim::{Flow, Wire};
/// let wire: Wire = "latency=20 jitter=5 slow_close=100 up stalled down slice=7/1".parse()?;
/// assert_eq!(wire.to_exchange.flow, Flow::Stalled);
/// assert_eq!((wire.to_exchange.latency.as_millis(), wire.to_client.slice), (20, Some(7)));
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wire {
    /// From the exchange to the client.
    pub to_client: Lane,
    /// From the client to the exchange.
    pub to_exchange: Lane,
    /// How much longer than its bytes an end (FIN or reset) takes.
    pub slow_close: Duration,
}

/// What happens to one direction's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lane {
    /// Whether bytes pass at all.
    pub flow: Flow,
    /// Each byte comes this much later. The order of bytes never changes.
    pub latency: Duration,
    /// And by up to this much more, drawn for each read.
    pub jitter: Duration,
    /// Most bytes a second.
    pub bandwidth: Option<u64>,
    /// Most bytes in one write, so in one segment.
    pub slice: Option<usize>,
    /// Pause between such slices.
    pub slice_pause: Duration,
    /// After this many bytes, counted over the connection's life, the client gets FIN and the
    /// exchange a reset, wherever in a record or frame that is.
    pub limit: Option<u64>,
}

/// Whether bytes pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flow {
    /// They do.
    #[default]
    Open,
    /// They wait: nothing is read once the buffers are full. Nothing is lost; they go on when the
    /// flow is open again.
    Stalled,
    /// They are read and vanish, ends of connection too: half-open. What follows after the flow is
    /// open again makes no sense any more.
    BlackHole,
}

impl Wire {
    /// Both directions alike.
    #[must_use]
    pub fn both(lane: Lane) -> Self {
        Self { to_client: lane, to_exchange: lane, slow_close: Duration::ZERO }
    }

    /// Nothing passes in either direction, and neither side is told.
    #[must_use]
    pub fn black_hole() -> Self {
        Self::both(Lane { flow: Flow::BlackHole, ..Lane::default() })
    }

    /// Nothing passes in either direction for now.
    #[must_use]
    pub fn stalled() -> Self {
        Self::both(Lane { flow: Flow::Stalled, ..Lane::default() })
    }
}

impl FromStr for Wire {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |word: &str| {
            format!(
                "`{word}` is nothing a wire does: give latency=MS, jitter=MS, bandwidth=BYTES, \
                 slice=BYTES, slice=BYTES/MS, limit=BYTES, open, stalled, black_hole or \
                 slow_close=MS; `down` or `up` before those for one direction"
            )
        };
        let mut wire = Self::default();
        let (mut down, mut up) = (true, true);
        for word in text.split_whitespace() {
            match word {
                "down" => (down, up) = (true, false),
                "up" => (down, up) = (false, true),
                "both" => (down, up) = (true, true),
                _ => {
                    if let Some(("slow_close", value)) = word.split_once('=') {
                        wire.slow_close = millis(value).ok_or_else(|| wrong(word))?;
                        continue;
                    }
                    let lanes = [(down, &mut wire.to_client), (up, &mut wire.to_exchange)];
                    for (_, lane) in lanes.into_iter().filter(|(meant, _)| *meant) {
                        lane.obey(word).ok_or_else(|| wrong(word))?;
                    }
                }
            }
        }
        Ok(wire)
    }
}

impl Lane {
    fn obey(&mut self, word: &str) -> Option<()> {
        match word.split_once('=') {
            None => {
                self.flow = match word {
                    "open" => Flow::Open,
                    "stalled" => Flow::Stalled,
                    "black_hole" => Flow::BlackHole,
                    _ => return None,
                }
            }
            Some(("latency", value)) => self.latency = millis(value)?,
            Some(("jitter", value)) => self.jitter = millis(value)?,
            Some(("bandwidth", value)) => self.bandwidth = Some(positive(value)?),
            Some(("limit", value)) => self.limit = Some(value.parse().ok()?),
            Some(("slice", value)) => {
                let (bytes, pause) = value.split_once('/').unwrap_or((value, "0"));
                self.slice = Some(usize::try_from(positive(bytes)?).ok()?);
                self.slice_pause = millis(pause)?;
            }
            Some(_) => return None,
        }
        Some(())
    }
}

fn millis(text: &str) -> Option<Duration> {
    text.parse().ok().map(Duration::from_millis)
}

fn positive(text: &str) -> Option<u64> {
    text.parse().ok().filter(|&value| value > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_word_by_word() {
        let ms = Duration::from_millis;
        let lane = Lane { latency: ms(3), bandwidth: Some(9), ..Lane::default() };
        assert_eq!("latency=3 bandwidth=9".parse(), Ok(Wire::both(lane)));
        assert_eq!("black_hole".parse(), Ok(Wire::black_hole()));
        assert_eq!("".parse(), Ok(Wire::default()));
        let wire: Wire = "up limit=7 slice=1/2 down stalled both jitter=4".parse().unwrap();
        assert_eq!((wire.to_exchange.limit, wire.to_client.limit), (Some(7), None));
        assert_eq!((wire.to_exchange.slice, wire.to_exchange.slice_pause), (Some(1), ms(2)));
        assert_eq!((wire.to_client.flow, wire.to_client.jitter), (Flow::Stalled, ms(4)));
        for wrong in ["fast", "latency=x", "slice=0", "bandwidth=0", "slow_close=", "latency"] {
            assert!(wrong.parse::<Wire>().is_err(), "{wrong}");
        }
    }
}
