//! What the data of a live connection says of its health: whether its subscription has fallen
//! silent, and how far the exchange's own times lie behind ours. Pure: bytes and times come in,
//! signs come out; it ends no connection.
//!
//! A silence is told once, and so is its end. Lag is sampled, not measured message by message.

use std::time::{Duration, Instant, SystemTime};

use crate::batch::Buffer;
use crate::clock::{Stamp, unix_ms};
use crate::stats::ShardCounters;
use crate::timer::after;

/// The least time between two samples of the lag.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(250);
/// Samples in a row over the threshold that make a lag: one alone may be an old price sent anew.
const SAMPLES_OVER: u8 = 2;
/// How far from a message's end its time is looked for: near it on all channels that have one.
const TAIL_BYTES: usize = 256;

/// When to speak up; zero means never.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PulseSettings {
    pub(crate) silent_after: Duration,
    pub(crate) lag_threshold: Duration,
}

/// Something worth telling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sign {
    /// No data for this long.
    Silent(Duration),
    /// Data again, after this long.
    Heard(Duration),
    /// Data comes this late.
    Lagging(Duration),
    /// It no longer does.
    CaughtUp(Duration),
}

/// The pulse of one connection's epoch.
#[derive(Clone, Debug)]
pub(crate) struct Pulse {
    settings: PulseSettings,
    /// Since when there is no data on an open subscription.
    quiet_since: Option<Instant>,
    /// The present silence has been told.
    is_silent: bool,
    next_sample: Option<Instant>,
    over: u8,
    /// The present lag has been told.
    is_lagging: bool,
}

impl Pulse {
    pub(crate) fn new(settings: PulseSettings) -> Self {
        Self {
            settings,
            quiet_since: None,
            is_silent: false,
            next_sample: None,
            over: 0,
            is_lagging: false,
        }
    }

    /// Data may be expected from now on, or no longer.
    pub(crate) fn expect(&mut self, subscribed: bool, now: Instant, counters: &ShardCounters) {
        counters.silent.subtract(u64::from(std::mem::take(&mut self.is_silent)));
        self.quiet_since = subscribed.then_some(now);
    }

    /// Takes what a read with data says beside its content.
    pub(crate) fn take(
        &mut self,
        batch: &Buffer,
        counters: &ShardCounters,
    ) -> impl Iterator<Item = Sign> + use<> {
        counters.silent.subtract(u64::from(self.is_silent));
        let heard = self.data(batch.received_at.mono);
        let newest = batch.entries.last().and_then(|entry| batch.bytes.get(entry.start..entry.end));
        let sampled = newest.and_then(|message| self.sample(message, batch.received_at));
        let sign = sampled.and_then(|(lag, sign)| {
            let lag_ms = u64::try_from(lag.as_millis()).unwrap_or(u64::MAX);
            counters.lag_ms.set(lag_ms);
            counters.lag_ms_max.raise(lag_ms);
            match sign {
                Some(Sign::Lagging(_)) => counters.lagging.add(1),
                Some(_) => counters.lagging.subtract(1),
                None => {}
            }
            sign
        });
        heard.into_iter().chain(sign)
    }

    /// The connection is over: what it counted as "now" is no longer.
    pub(crate) fn forget(&self, counters: &ShardCounters) {
        counters.silent.subtract(u64::from(self.is_silent));
        counters.lagging.subtract(u64::from(self.is_lagging));
    }

    fn data(&mut self, now: Instant) -> Option<Sign> {
        let since = self.quiet_since.as_mut().map(|since| std::mem::replace(since, now))?;
        let silent = std::mem::take(&mut self.is_silent);
        silent.then(|| Sign::Heard(now.saturating_duration_since(since)))
    }

    /// Nothing was read for a while, on purpose: that was no silence.
    pub(crate) fn excuse(&mut self, now: Instant) {
        self.quiet_since = self.quiet_since.map(|_| now);
    }

    /// When `tick` has something to tell.
    pub(crate) fn due(&self) -> Option<Instant> {
        let limit = self.settings.silent_after;
        let waits = !limit.is_zero() && !self.is_silent;
        self.quiet_since.filter(|_| waits).map(|since| after(since, limit))
    }

    pub(crate) fn tick(&mut self, now: Instant, counters: &ShardCounters) -> Option<Sign> {
        self.due().filter(|due| *due <= now)?;
        self.is_silent = true;
        counters.silent.add(1);
        counters.silences.add(1);
        self.quiet_since.map(|since| Sign::Silent(now.saturating_duration_since(since)))
    }

    /// Takes a sample from the newest message of a read, if it is time for one: how late it came,
    /// and whether that is worth telling.
    fn sample(&mut self, message: &[u8], received: Stamp) -> Option<(Duration, Option<Sign>)> {
        if self.next_sample.is_some_and(|next| received.mono < next) {
            return None;
        }
        self.next_sample = Some(after(received.mono, SAMPLE_INTERVAL));
        let lag = behind(sent_ms(message)?, received.wall);
        Some((lag, self.judge(lag)))
    }

    /// A lag begins over the threshold and ends below half of it, so that it does not flap.
    fn judge(&mut self, lag: Duration) -> Option<Sign> {
        let threshold = self.settings.lag_threshold;
        if threshold.is_zero() {
            return None;
        }
        self.over = if lag > threshold { self.over.saturating_add(1) } else { 0 };
        if !self.is_lagging && self.over >= SAMPLES_OVER {
            self.is_lagging = true;
            return Some(Sign::Lagging(lag));
        }
        if self.is_lagging && lag <= threshold / 2 {
            self.is_lagging = false;
            return Some(Sign::CaughtUp(lag));
        }
        None
    }
}

/// How long before `wall` that was; nothing if our clock is behind.
fn behind(sent_ms: u64, wall: SystemTime) -> Duration {
    Duration::from_millis(unix_ms(wall).saturating_sub(sent_ms))
}

/// The exchange's time of a message, in milliseconds since the Unix epoch (`ts_ms` in Kalshi's
/// WebSocket documentation: on order-book deltas, tickers and trades).
fn sent_ms(message: &[u8]) -> Option<u64> {
    const NAME: &[u8] = b"\"ts_ms\":";
    let tail = message.get(message.len().saturating_sub(TAIL_BYTES)..)?;
    let at = tail.windows(NAME.len()).rposition(|part| part == NAME)? + NAME.len();
    let digits = tail.get(at..)?.iter().take_while(|byte| byte.is_ascii_digit());
    let mut number = None;
    for digit in digits {
        let value = u64::from(digit - b'0');
        number = Some(number.unwrap_or(0_u64).checked_mul(10)?.checked_add(value)?);
    }
    number
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: PulseSettings = PulseSettings {
        silent_after: Duration::from_secs(60),
        lag_threshold: Duration::from_secs(5),
    };

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_silence_and_its_end_are_told_once_each() {
        let start = crate::clock::now();
        let at = |s| start + seconds(s);
        let mut pulse = Pulse::new(SETTINGS);
        let counters = ShardCounters::default();
        assert_eq!(
            (pulse.due(), pulse.tick(at(999), &counters)),
            (None, None),
            "nothing is subscribed"
        );
        pulse.expect(true, at(0), &counters);
        assert_eq!(pulse.data(at(10)), None);
        assert_eq!(pulse.due(), Some(at(70)));
        assert_eq!(pulse.tick(at(69), &counters), None);
        assert_eq!(pulse.tick(at(71), &counters), Some(Sign::Silent(seconds(61))));
        assert_eq!((pulse.due(), pulse.tick(at(500), &counters)), (None, None), "told");
        assert_eq!(pulse.data(at(7_210)), Some(Sign::Heard(seconds(7_200))));
        assert_eq!(pulse.data(at(7_211)), None);
        pulse.excuse(at(8_000));
        assert_eq!(pulse.due(), Some(at(8_060)), "what was not read was not silent");
        pulse.expect(false, at(8_001), &counters);
        assert_eq!(pulse.due(), None);
    }

    #[test]
    fn zero_means_never() {
        let start = crate::clock::now();
        let mut pulse = Pulse::new(PulseSettings::default());
        let counters = ShardCounters::default();
        pulse.expect(true, start, &counters);
        assert_eq!((pulse.due(), pulse.tick(start + seconds(9_999), &counters)), (None, None));
        assert_eq!(pulse.judge(seconds(9_999)), None);
        assert_eq!(pulse.judge(seconds(9_999)), None);
    }

    #[test]
    fn lag_is_sampled_begins_over_the_threshold_and_ends_well_below() {
        let start = crate::clock::now();
        let mut pulse = Pulse::new(SETTINGS);
        let mut signs = Vec::new();
        let mut samples = 0;
        // A message each 50 ms; the lag in seconds is written beside each quarter of a second.
        for (quarter, lag) in [0, 6, 0, 6, 7, 4, 3, 2, 0].into_iter().enumerate() {
            for tick in 0..5 {
                let ms = u64::try_from(quarter * 250 + tick * 50).unwrap();
                let wall = SystemTime::UNIX_EPOCH + seconds(1_793_534_400);
                let sent = unix_ms(wall) - lag * 1_000;
                let text = format!("{{\"type\":\"trade\",\"msg\":{{\"ts_ms\":{sent}}}}}\n");
                let mono = start + Duration::from_millis(ms);
                if let Some((found, sign)) = pulse.sample(text.as_bytes(), Stamp { wall, mono }) {
                    assert_eq!(found, seconds(lag));
                    samples += 1;
                    signs.extend(sign);
                }
            }
        }
        assert_eq!(samples, 9);
        assert_eq!(signs, [Sign::Lagging(seconds(7)), Sign::CaughtUp(seconds(2))]);
    }

    #[test]
    fn the_exchanges_time_is_found_where_there_is_one() {
        let long = format!("{{\"ts_ms\":7,\"rules\":\"{}\"}}", "x".repeat(TAIL_BYTES));
        for (text, expected) in [
            (r#"{"msg":{"ts":1793534400,"ts_ms":1793534400544,"time":"x"}}"#, Some(1793534400544)),
            (r#"{"msg":{"ts_ms":1,"x":"\"ts_ms\":2"}}"#, Some(1)),
            (r#"{"msg":{"ts_ms":"5"}}"#, None),
            (r#"{"msg":{"ts_ms":99999999999999999999}}"#, None),
            (r#"{"msg":{"ts_ms":"#, None),
            (long.as_str(), None),
            ("", None),
        ] {
            assert_eq!(sent_ms(text.as_bytes()), expected, "{text}");
        }
        let before = SystemTime::UNIX_EPOCH;
        assert_eq!(behind(5, before), Duration::ZERO, "our clock is behind");
    }
}
