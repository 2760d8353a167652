//! What lifecycle frames say about markets, and the demo's market registry: a thread that turns
//! them into market changes and keeps account of them. It knows nothing of order books.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, select_biased};
use kalshi_feed::{MarketChange, MarketStatus, RawMessage, RegistryHost, Ticker};
use serde::Deserialize;

use crate::account::Account;

/// How long the engine may take to accept a change; it only takes longer when it has stopped.
const ACCEPT: Duration = Duration::from_secs(2);

/// A lifecycle frame, as far as markets go. Borrowed where the text has no escapes.
#[derive(Debug, Deserialize)]
struct Frame<'a> {
    #[serde(borrow)]
    msg: Body<'a>,
}

#[derive(Debug, Deserialize)]
struct Body<'a> {
    #[serde(default, borrow)]
    event_type: Option<std::borrow::Cow<'a, str>>,
    #[serde(default, borrow)]
    market_ticker: Option<std::borrow::Cow<'a, str>>,
    /// Only in the mission's dialect.
    #[serde(default, borrow)]
    new_status: Option<std::borrow::Cow<'a, str>>,
}

/// What a frame says has become of a market.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Trading.
    Active,
    /// Paused; it may come back.
    Paused,
    /// Determined or settled: over for good.
    Over,
}

/// Which market a lifecycle frame is about and what became of it; `None` for frames about
/// anything else (Kalshi's WebSocket documentation, "Market & Event Lifecycle"; the mission's
/// `market_lifecycle`, which tells statuses instead).
pub(crate) fn fate(data: &[u8]) -> Option<(Ticker, Fate)> {
    let frame: Frame<'_> = serde_json::from_slice(data).ok()?;
    let event = frame.msg.event_type?;
    let fate = match (event.as_ref(), frame.msg.new_status.as_deref()) {
        ("activated", _) | ("created" | "status_change", Some("active")) => Fate::Active,
        ("deactivated", _) | ("status_change", Some("inactive")) => Fate::Paused,
        ("determined" | "settled", _) | ("status_change", Some(_)) => Fate::Over,
        _ => return None,
    };
    Some((frame.msg.market_ticker?.parse().ok()?, fate))
}

/// The demo's market registry while it runs.
#[derive(Debug)]
pub(crate) struct RegistryThread {
    orders: Sender<Order>,
    stale: Arc<AtomicBool>,
    thread: JoinHandle<Account>,
}

#[derive(Clone, Copy, Debug)]
enum Order {
    /// Read the exchange's list again.
    Reread,
    /// Take what is left and end.
    Finish,
}

impl RegistryThread {
    /// Starts the thread with the markets the engine already has. `list` reads the exchange's
    /// active markets, as a registry would over REST; what it is told goes into `account`.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub(crate) fn spawn(
        host: RegistryHost,
        markets: BTreeSet<Ticker>,
        account: Account,
        list: impl Fn() -> Vec<String> + Send + 'static,
    ) -> io::Result<Self> {
        let (orders, inbox) = bounded(4);
        let stale = Arc::new(AtomicBool::new(false));
        let (changes, frames) = host.split();
        let registry = DemoRegistry {
            changes,
            lines: Lines::default(),
            active: markets,
            account,
            stale: Arc::clone(&stale),
        };
        let thread = std::thread::Builder::new()
            .name("registry".to_owned())
            .spawn(move || registry.run(&frames, &inbox, &list))?;
        Ok(Self { orders, stale, thread })
    }

    /// Whether frames were missed, so that the list should be read again.
    pub(crate) fn is_stale(&self) -> bool {
        self.stale.swap(false, Ordering::Relaxed)
    }

    /// Has it read the exchange's list again.
    pub(crate) fn reread(&self) {
        // A full inbox holds this order already.
        self.orders.try_send(Order::Reread).unwrap_or_default();
    }

    /// Ends the thread once the engine has stopped; `None` if it had died.
    pub(crate) fn finish(self) -> Option<Account> {
        // Refused only by a thread that is gone; the join tells.
        self.orders.send(Order::Finish).unwrap_or_default();
        self.thread.join().ok()
    }
}

struct DemoRegistry {
    changes: Sender<MarketChange>,
    lines: Lines,
    active: BTreeSet<Ticker>,
    account: Account,
    stale: Arc<AtomicBool>,
}

impl DemoRegistry {
    fn run(
        mut self,
        frames: &Receiver<RawMessage>,
        inbox: &Receiver<Order>,
        list: &impl Fn() -> Vec<String>,
    ) -> Account {
        loop {
            select_biased! {
                recv(inbox) -> order => match order {
                    // Frames taken before the list was read are older than it, those after it
                    // are applied over it: nothing old wins over something new.
                    Ok(Order::Reread) => self.reread(&list()),
                    Ok(Order::Finish) | Err(_) => break,
                },
                recv(frames) -> frame => match frame {
                    Ok(frame) => self.frame(&frame),
                    Err(_) => break,
                },
            }
        }
        for frame in frames.try_iter() {
            self.account.delivered(&frame);
        }
        self.account
    }

    fn frame(&mut self, frame: &RawMessage) {
        self.account.delivered(frame);
        let line = match self.account.is_merged() {
            // One stream: whatever it says is news.
            true => (0, 0),
            false => (frame.conn_id.number(), frame.epoch.number()),
        };
        if frame.gap_size > 0 {
            self.stale.store(true, Ordering::Relaxed);
        }
        if let Some((ticker, fate)) = fate(&frame.data)
            && self.lines.is_news(line, &ticker)
        {
            self.set(ticker, fate == Fate::Active);
        }
    }

    fn set(&mut self, ticker: Ticker, active: bool) {
        let change = if active {
            if !self.active.insert(ticker.clone()) {
                return;
            }
            MarketChange::created(ticker, MarketStatus::Active)
        } else {
            if !self.active.remove(&ticker) {
                return;
            }
            MarketChange::status_change(ticker, MarketStatus::Active, MarketStatus::Inactive)
        };
        if self.changes.send_timeout(change, ACCEPT).is_err() {
            log::info!("the engine takes no market changes any more");
        }
    }

    fn reread(&mut self, list: &[String]) {
        let listed: BTreeSet<Ticker> = list.iter().filter_map(|text| text.parse().ok()).collect();
        let gone: Vec<_> = self.active.difference(&listed).cloned().collect();
        for ticker in gone {
            self.set(ticker, false);
        }
        for ticker in listed {
            self.set(ticker, true);
        }
    }
}

/// Which frames of the redundant lifecycle lines are news and which the other line told before.
/// A market's changes have the same order on every line, so counting them is enough.
#[derive(Debug, Default)]
struct Lines {
    epochs: BTreeMap<u16, u32>,
    markets: BTreeMap<Ticker, Told>,
}

#[derive(Debug, Default)]
struct Told {
    changes: u64,
    by_line: BTreeMap<u16, u64>,
}

impl Lines {
    fn is_news(&mut self, (conn, epoch): (u16, u32), ticker: &Ticker) -> bool {
        if self.epochs.insert(conn, epoch).is_some_and(|before| before != epoch) {
            // The line missed an unknown number while it was down: it counts from here.
            for told in self.markets.values_mut() {
                told.by_line.insert(conn, told.changes);
            }
        }
        let told = self.markets.entry(ticker.clone()).or_default();
        let line = told.by_line.entry(conn).or_default();
        *line += 1;
        let news = *line > told.changes;
        told.changes = told.changes.max(*line);
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticker() -> Ticker {
        "KXDEMO-26NOV01-T50".parse().unwrap()
    }

    fn frame(event: &str) -> String {
        format!(
            r#"{{"type":"market_lifecycle_v2","sid":1,"seq":2,"msg":{{"market_ticker":"KXDEMO-26NOV01-T50","event_type":"{event}"}}}}"#
        )
    }

    #[test]
    fn only_activated_makes_a_market_active() {
        let read = |event: &str| fate(frame(event).as_bytes()).map(|(_, fate)| fate);
        assert_eq!(read("activated"), Some(Fate::Active));
        assert_eq!(read("deactivated"), Some(Fate::Paused));
        assert_eq!(read("determined"), Some(Fate::Over));
        assert_eq!(read("settled"), Some(Fate::Over));
        assert_eq!(read("created"), None);
        assert_eq!(read("metadata_updated"), None);
        assert_eq!(fate(frame("settled").as_bytes()).unwrap().0, ticker());
        assert_eq!(fate(br#"{"type":"event_lifecycle","msg":{"event_ticker":"E"}}"#), None);
        assert_eq!(fate(b"not json"), None);
    }

    #[test]
    fn the_missions_statuses_say_the_same() {
        let read = |event: &str, status: &str| {
            let text = format!(
                r#"{{"type":"market_lifecycle","sid":1,"msg":{{"market_ticker":"A","event_type":"{event}","old_status":"","new_status":"{status}"}}}}"#
            );
            fate(text.as_bytes()).map(|(_, fate)| fate)
        };
        assert_eq!(read("created", "active"), Some(Fate::Active));
        assert_eq!(read("created", "initialized"), None);
        assert_eq!(read("status_change", "active"), Some(Fate::Active));
        assert_eq!(read("status_change", "inactive"), Some(Fate::Paused));
        assert_eq!(read("status_change", "determined"), Some(Fate::Over));
        assert_eq!(read("settled", "finalized"), Some(Fate::Over));
    }

    #[test]
    fn the_second_line_tells_nothing_new() {
        let mut lines = Lines::default();
        assert!(lines.is_news((5, 1), &ticker()), "activated");
        assert!(lines.is_news((5, 1), &ticker()), "deactivated");
        assert!(!lines.is_news((6, 1), &ticker()));
        assert!(!lines.is_news((6, 1), &ticker()));
        assert!(lines.is_news((6, 1), &ticker()), "activated again");
        assert!(!lines.is_news((5, 1), &ticker()));
    }

    #[test]
    fn a_line_that_was_down_counts_from_its_return() {
        let mut lines = Lines::default();
        assert!(lines.is_news((5, 1), &ticker()));
        assert!(!lines.is_news((6, 1), &ticker()));
        assert!(lines.is_news((5, 1), &ticker()), "line 6 is down");
        assert!(lines.is_news((6, 2), &ticker()), "and tells the next change first");
        assert!(!lines.is_news((5, 1), &ticker()));
    }
}
