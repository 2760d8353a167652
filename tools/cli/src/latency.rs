//! Latencies: histograms and their quantiles, and the time an order-book delta carries. It never
//! reads a clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;
use serde::Serialize;

/// Longer ones are recorded as this long: 100 s in nanoseconds.
const LONGEST_NS: u64 = 100_000_000_000;
/// Where in a delta its time may begin, counted from its end.
const TIME_WITHIN: usize = 96;

/// Four figures of a distribution, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Quantiles {
    pub(crate) p50: u64,
    pub(crate) p99: u64,
    pub(crate) p999: u64,
    pub(crate) max: u64,
}

/// A distribution of durations.
#[derive(Debug)]
pub(crate) struct Latency(Option<Histogram<u64>>);

impl Latency {
    /// An empty one: 1 ns to 100 s, three digits.
    pub(crate) fn new() -> Self {
        // The bounds are right by construction; without a histogram all figures are zero.
        Self(Histogram::new_with_bounds(1, LONGEST_NS, 3).ok())
    }

    /// Adds one.
    pub(crate) fn record(&mut self, duration: Duration) {
        if let Some(histogram) = &mut self.0 {
            let ns = u64::try_from(duration.as_nanos()).unwrap_or(LONGEST_NS);
            histogram.saturating_record(ns);
        }
    }

    /// Its figures; zeros when nothing was recorded.
    pub(crate) fn quantiles(&self) -> Quantiles {
        self.0.as_ref().map_or_else(Quantiles::default, |histogram| Quantiles {
            p50: histogram.value_at_quantile(0.5),
            p99: histogram.value_at_quantile(0.99),
            p999: histogram.value_at_quantile(0.999),
            max: histogram.max(),
        })
    }
}

/// The figures so far, for the view in another thread.
#[derive(Clone, Debug, Default)]
pub(crate) struct LiveLatency(Arc<[AtomicU64; 2]>);

impl LiveLatency {
    /// Publishes.
    pub(crate) fn publish(&self, quantiles: Quantiles) {
        let [p50, p99] = &*self.0;
        p50.store(quantiles.p50, Ordering::Relaxed);
        p99.store(quantiles.p99, Ordering::Relaxed);
    }

    /// The median and the 99th percentile, in nanoseconds.
    pub(crate) fn read(&self) -> (u64, u64) {
        let [p50, p99] = &*self.0;
        (p50.load(Ordering::Relaxed), p99.load(Ordering::Relaxed))
    }
}

/// When an order-book delta was made, by the `ts` it carries near its end
/// (Kalshi's WebSocket documentation, "Orderbook Updates").
pub(crate) fn delta_time(frame: &[u8]) -> Option<SystemTime> {
    const KEY: &[u8] = b"\"ts\":\"";
    let tail = frame.get(frame.len().saturating_sub(TIME_WITHIN)..)?;
    let at = tail.windows(KEY.len()).rposition(|window| window == KEY)?;
    let text = tail.get(at + KEY.len()..)?;
    let end = text.iter().position(|&byte| byte == b'"')?;
    rfc3339(text.get(..end)?)
}

/// `2026-11-01T12:00:00.957081Z`, UTC, any number of fraction digits up to nine.
fn rfc3339(text: &[u8]) -> Option<SystemTime> {
    let (date_time, rest) = text.split_at_checked(19)?;
    let separators = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if separators.iter().any(|&(at, byte)| date_time.get(at) != Some(&byte)) {
        return None;
    }
    let field = |from: usize, to: usize| digits(date_time.get(from..to)?);
    let days = days_since_epoch(field(0, 4)?, field(5, 7)?, field(8, 10)?)?;
    let seconds = days * 86_400 + field(11, 13)? * 3_600 + field(14, 16)? * 60 + field(17, 19)?;
    let nanos = match rest.strip_suffix(b"Z")?.strip_prefix(b".") {
        Some(fraction) if fraction.len() <= 9 => {
            let scale = 10u64.pow(9 - u32::try_from(fraction.len()).ok()?);
            digits(fraction)? * scale
        }
        None if rest == b"Z" => 0,
        _ => return None,
    };
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds) + Duration::from_nanos(nanos))
}

fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |number, byte| {
        byte.is_ascii_digit().then(|| number * 10 + u64::from(byte - b'0'))
    })
}

/// Days from 1970-01-01, of the proleptic Gregorian calendar with years that begin in March.
fn days_since_epoch(year: u64, month: u64, day: u64) -> Option<u64> {
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let year = if month <= 2 { year.checked_sub(1)? } else { year };
    let from_march = (month + 9) % 12;
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * from_march + 2) / 5 + day;
    days.checked_sub(719_469)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nanos(text: &str) -> Option<u128> {
        let since = rfc3339(text.as_bytes())?.duration_since(UNIX_EPOCH).ok()?;
        Some(since.as_nanos())
    }

    #[test]
    fn times_are_read_to_the_last_digit() {
        assert_eq!(nanos("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(nanos("2026-11-01T12:00:00.957081Z"), Some(1_793_534_400_957_081_000));
        assert_eq!(nanos("2026-11-01T12:00:00.9Z"), Some(1_793_534_400_900_000_000));
        assert_eq!(nanos("2024-02-29T23:59:59.000000001Z"), Some(1_709_251_199_000_000_001));
        assert_eq!(nanos("2000-03-01T00:00:00Z"), Some(951_868_800_000_000_000));
    }

    #[test]
    fn what_is_not_a_time_is_none() {
        for text in [
            "",
            "2026-11-01",
            "2026-11-01T12:00:00",
            "2026-11-01T12:00:00.Z",
            "2026-13-01T12:00:00Z",
            "2026-11-01 12:00:00Z",
            "2026-11-01T12:00:00+01",
            "2026-11-01T12:00:00.1234567890Z",
            "0000-01-01T00:00:00Z",
        ] {
            assert_eq!(nanos(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_delta_tells_its_time() {
        let frame = br#"{"type":"orderbook_delta","sid":1,"seq":2,"msg":{"market_ticker":"A","ts":"2026-11-01T12:00:00.957081Z","ts_ms":1793534400957}}"#;
        let since = delta_time(frame).unwrap().duration_since(UNIX_EPOCH).unwrap();
        assert_eq!(since.as_micros(), 1_793_534_400_957_081);
        assert_eq!(delta_time(b"{\"type\":\"trade\",\"msg\":{\"ts\":1793534400}}"), None);
        assert_eq!(delta_time(b""), None);
    }

    #[test]
    fn quantiles_of_nothing_are_zero() {
        assert_eq!(Latency::new().quantiles(), Quantiles::default());
        let mut latency = Latency::new();
        latency.record(Duration::from_secs(1_000));
        assert!(latency.quantiles().max >= LONGEST_NS);
    }
}
