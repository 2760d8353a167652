//! Names and identifiers that look like the exchange's: unique tickers from a running number,
//! UUIDs, the event and series of a ticker. It holds no state.

use crate::clock::{MONTHS, civil};

/// 2026-11-23 in days since the epoch: the first trading day of the simulated listing.
const FIRST_DAY: u64 = 20_780;
const TEAMS: [&str; 30] = [
    "ATL", "BOS", "BKN", "CHA", "CHI", "CLE", "DAL", "DEN", "DET", "GSW", "HOU", "IND", "LAC",
    "LAL", "MEM", "MIA", "MIL", "MIN", "NOP", "NYK", "OKC", "ORL", "PHI", "PHX", "POR", "SAC",
    "SAS", "TOR", "UTA", "WAS",
];
const CITIES: [&str; 8] = ["NY", "CHI", "MIA", "AUS", "LAX", "DEN", "PHIL", "HOU"];

/// The ticker of the n-th market ever listed; no two are equal.
pub(crate) fn ticker(n: u64) -> String {
    let k = n / 6;
    match n % 6 {
        0 => hourly("KXBTCD", k, 100, |strike| format!("T{}.99", 85_499 + strike * 250)),
        1 => hourly("KXETHD", k, 100, |strike| format!("T{}.99", 1_999 + strike * 20)),
        2 => hourly("KXINXU", k, 80, |strike| format!("T{}.4999", 5_600 + strike * 10)),
        3 => hourly("KXSOLD", k, 60, |strike| format!("T{}.9999", 90 + strike)),
        4 => {
            let (day, game, side) = (k / 870 / 2, k / 2 % 870, k % 2);
            let (home, away) = (game / 29, game % 29);
            let away = away + u64::from(away >= home);
            let (home, away) = (TEAMS[home as usize], TEAMS[away as usize]);
            let winner = if side == 0 { home } else { away };
            format!("KXNBAGAME-{}{away}{home}-{winner}", date(FIRST_DAY + day))
        }
        _ => {
            let (day, city, step) = (k / 160, k / 20 % 8, k % 20);
            let city = CITIES[city as usize];
            format!("KXHIGH{city}-{}-B{}.5", date(FIRST_DAY + day), 20 + step * 2)
        }
    }
}

fn hourly(series: &str, k: u64, strikes: u64, strike: impl Fn(u64) -> String) -> String {
    let hour = k / strikes + 17;
    let day = date(FIRST_DAY + hour / 24);
    format!("{series}-{day}{:02}-{}", hour % 24, strike(k % strikes))
}

fn date(days: u64) -> String {
    let (year, month, day) = civil(days);
    let month = MONTHS[month as usize - 1].to_uppercase();
    format!("{:02}{month}{day:02}", year % 100)
}

/// The event a market belongs to.
pub(crate) fn event_of(ticker: &str) -> &str {
    ticker.rsplit_once('-').map_or(ticker, |(event, _)| event)
}

/// The series a market or event belongs to.
pub(crate) fn series_of(ticker: &str) -> &str {
    ticker.split_once('-').map_or(ticker, |(series, _)| series)
}

/// A stable UUID of a market.
pub(crate) fn uuid(seed: u64, id: u32) -> u128 {
    let high = mix(seed ^ u64::from(id) ^ 0x6d61_726b_6574);
    let low = mix(high ^ u64::from(id));
    version4((u128::from(high) << 64) | u128::from(low))
}

/// Sets the version and variant bits of a random UUID.
pub(crate) fn version4(bits: u128) -> u128 {
    (bits & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62)
}

/// SplitMix64's finaliser: spreads close numbers.
pub(crate) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn tickers_look_real_and_never_repeat() {
        assert_eq!(ticker(0), "KXBTCD-26NOV2317-T85499.99");
        let names: HashSet<String> = (0..300_000).map(ticker).collect();
        assert_eq!(names.len(), 300_000);
        assert!(names.iter().all(|name| name.len() <= 32));
    }

    #[test]
    fn event_and_series_are_prefixes() {
        assert_eq!(event_of("KXBTCD-26NOV2317-T95499.99"), "KXBTCD-26NOV2317");
        assert_eq!(series_of("KXBTCD-26NOV2317-T95499.99"), "KXBTCD");
    }
}
