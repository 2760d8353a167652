//! Where every market is, at one moment: a compact copy the host may keep and walk at leisure.

use std::time::Duration;

use serde::Serialize;

use crate::ids::{ConnId, Sid};
use crate::market::MarketState;

/// Where one market is.
///
/// ```
/// # fn show(assignment: kalshi_feed::Assignment<'_>) {
/// println!("{} is {:?} on {:?}", assignment.ticker, assignment.state, assignment.conn);
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Assignment<'a> {
    /// The market.
    pub ticker: &'a str,
    /// The connection it is assigned to.
    pub conn: Option<ConnId>,
    /// The subscription it is on.
    pub sid: Option<Sid>,
    /// How far it is.
    pub state: MarketState,
    /// For how long it had been that far, to a tenth of a second.
    pub age: Duration,
}

/// All markets the engine knew at one moment, in no particular order.
///
/// ```
/// # fn show(handle: &kalshi_feed::Handle) {
/// let assignments = handle.assignments();
/// let waiting = assignments.iter().filter(|market| market.conn.is_none()).count();
/// println!("{waiting} of {} markets have no connection", assignments.len());
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Assignments {
    text: String,
    rows: Vec<Row>,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    /// Where the ticker ends in the text, and the next one begins.
    end: usize,
    sid: Option<Sid>,
    tenths: u32,
    conn: Option<ConnId>,
    state: MarketState,
}

impl Assignments {
    pub(crate) fn with_capacity(markets: usize) -> Self {
        Self { text: String::new(), rows: Vec::with_capacity(markets) }
    }

    /// One more; `tenths` of a second it has been in this state.
    pub(crate) fn push(
        &mut self,
        ticker: &str,
        conn: Option<ConnId>,
        sid: Option<Sid>,
        state: MarketState,
        tenths: u32,
    ) {
        self.text.push_str(ticker);
        self.rows.push(Row { end: self.text.len(), sid, tenths, conn, state });
    }

    /// How many markets.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The markets, one by one.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Assignment<'_>> {
        let mut start = 0;
        self.rows.iter().map(move |&Row { end, sid, tenths, conn, state }| {
            let ticker = self.text.get(start..end).unwrap_or_default();
            start = end;
            let age = Duration::from_millis(100) * tenths;
            Assignment { ticker, conn, sid, state, age }
        })
    }
}
