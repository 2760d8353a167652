//! Reads lists of markets: one ticker a line. It never asks whether the exchange knows them.

use std::collections::BTreeSet;
use std::path::Path;

use kalshi_feed::Ticker;

use crate::failure::Failure;

/// The tickers of a file; one named twice counts once.
///
/// # Errors
/// The file cannot be read, has a line that is no ticker, or has none at all.
pub(crate) fn read(path: &Path) -> Result<BTreeSet<Ticker>, Failure> {
    let bytes = std::fs::read(path).map_err(|error| {
        Failure::usage(format!(
            "markets-file: cannot read {}: {error}; check the path and its permissions",
            path.display()
        ))
    })?;
    parse(&bytes)
        .map_err(|problem| Failure::usage(format!("markets-file: {}{problem}", path.display())))
}

fn parse(bytes: &[u8]) -> Result<BTreeSet<Ticker>, String> {
    let mut markets = BTreeSet::new();
    for (number, line) in (1u64..).zip(bytes.split(|&byte| byte == b'\n')) {
        let line = std::str::from_utf8(line)
            .map_err(|_| format!(" line {number}: not text; write one market ticker a line"))?
            .trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let ticker = line.parse().map_err(|error| format!(" line {number}: {error}"))?;
        markets.insert(ticker);
    }
    if markets.is_empty() {
        return Err(" names no market; write one ticker a line".to_owned());
    }
    Ok(markets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_ticker_a_line_the_rest_is_skipped() {
        let markets = parse(b"# my markets\nKXA-1\r\n\n  KXB-2.5  \nKXA-1").unwrap();
        let texts: Vec<_> = markets.iter().map(Ticker::as_str).collect();
        assert_eq!(texts, ["KXA-1", "KXB-2.5"]);
    }

    #[test]
    fn what_is_no_list_is_named_with_its_line() {
        assert!(parse(b"").unwrap_err().contains("no market"));
        assert!(parse(b"# nothing\n\n").unwrap_err().contains("no market"));
        assert!(parse(b"KXA-1\n\ntwo words\n").unwrap_err().starts_with(" line 3: "));
        assert!(parse(b"KXA-1\n\xff\xfe\n").unwrap_err().starts_with(" line 2: not text"));
        let long = [b'A'; 129];
        assert!(parse(&long).unwrap_err().contains("longest"));
    }
}
