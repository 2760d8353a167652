//! Wall-clock stamps as the exchange writes them: Unix milliseconds, RFC 3339 with microseconds,
//! HTTP dates. It keeps the text of the current second so that a stamp costs six digits. It never
//! sleeps.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// One moment of the wall clock, microsecond resolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    micros: u64,
}

impl Stamp {
    pub(crate) fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { micros: u64::try_from(since.as_micros()).unwrap_or(u64::MAX) }
    }

    pub(crate) fn later(self, by: Duration) -> Self {
        let by = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
        Self { micros: self.micros.saturating_add(by) }
    }

    /// As a clock shows it that is this many milliseconds ahead, or behind if negative.
    pub(crate) fn skewed(self, millis: i64) -> Self {
        Self { micros: self.micros.saturating_add_signed(millis.saturating_mul(1_000)) }
    }

    /// This moment, or the one right after `last` if that is not over yet.
    pub(crate) fn after(self, last: Self) -> Self {
        Self { micros: self.micros.max(last.micros + 1) }
    }

    #[cfg(test)]
    pub(crate) fn from_micros(micros: u64) -> Self {
        Self { micros }
    }

    pub(crate) fn millis(self) -> u64 {
        self.micros / 1_000
    }

    pub(crate) fn seconds(self) -> u64 {
        self.micros / 1_000_000
    }

    /// The `Date` header of an HTTP answer.
    pub(crate) fn http_date(self) -> String {
        const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
        let (days, rest) = (self.seconds() / 86_400, self.seconds() % 86_400);
        let (year, month, day) = civil(days);
        let name = DAYS[(days % 7) as usize];
        let month = MONTHS[month as usize - 1];
        let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
        format!("{name}, {day:02} {month} {year} {hour:02}:{minute:02}:{second:02} GMT")
    }
}

/// Month names as in HTTP dates; upper-cased they are those of the market tickers.
pub(crate) const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Year, month 1-12 and day 1-31 of a number of days since 1970-01-01.
pub(crate) fn civil(days: u64) -> (u64, u64, u64) {
    // Howard Hinnant's civil_from_days, for dates after the epoch.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

/// Writes RFC 3339 stamps; formats the date only when the second changes.
#[derive(Debug)]
pub(crate) struct StampWriter {
    second: u64,
    text: [u8; 20],
}

impl StampWriter {
    pub(crate) fn new() -> Self {
        Self { second: u64::MAX, text: *b"0000-00-00T00:00:00." }
    }

    /// Appends `2026-11-01T12:00:00.957081Z`, always with six digits.
    pub(crate) fn write(&mut self, stamp: Stamp, out: &mut Vec<u8>) {
        if stamp.seconds() != self.second {
            self.second = stamp.seconds();
            let (year, month, day) = civil(self.second / 86_400);
            let rest = self.second % 86_400;
            self.digits(0, 4, year);
            self.digits(5, 2, month);
            self.digits(8, 2, day);
            self.digits(11, 2, rest / 3_600);
            self.digits(14, 2, rest / 60 % 60);
            self.digits(17, 2, rest % 60);
        }
        out.extend_from_slice(&self.text);
        let mut fraction = stamp.micros % 1_000_000;
        let mut digits = *b"000000Z";
        for place in (0..6).rev() {
            digits[place] = b'0' + (fraction % 10) as u8;
            fraction /= 10;
        }
        out.extend_from_slice(&digits);
    }

    fn digits(&mut self, at: usize, count: usize, mut value: u64) {
        for place in (at..at + count).rev() {
            self.text[place] = b'0' + (value % 10) as u8;
            value /= 10;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_the_moment_they_name() {
        let mut writer = StampWriter::new();
        let mut out = Vec::new();
        writer.write(Stamp::from_micros(1_793_534_400_957_081), &mut out);
        assert_eq!(out, b"2026-11-01T12:00:00.957081Z");
        out.clear();
        writer.write(Stamp::from_micros(1_793_534_400_000_100), &mut out);
        assert_eq!(out, b"2026-11-01T12:00:00.000100Z");
        out.clear();
        writer.write(Stamp::from_micros(951_782_400_000_000), &mut out);
        assert_eq!(out, b"2000-02-29T00:00:00.000000Z");
    }

    #[test]
    fn http_dates_have_the_right_weekday() {
        let date = Stamp::from_micros(784_111_777_000_000).http_date();
        assert_eq!(date, "Sun, 06 Nov 1994 08:49:37 GMT");
    }
}
