//! What a message says, whatever line brought it: one number, the same for all its copies. It
//! never fails; a frame it cannot make out has no identity.

use std::hash::{BuildHasher, Hasher, RandomState};

use memchr::memmem;

use crate::ids::Role;

/// A trade is its id, wherever in the frame that stands.
const TRADE_ID: &[u8] = b"\"trade_id\":\"";
/// The longest trade id looked for.
const TRADE_ID_BYTES_MAX: usize = 64;
/// Everything else is all that it says, from here on.
const SAYS: &[u8] = b"\"msg\":{";
/// Looked for within so many bytes: type, sid and seq come before it.
const SAYS_WITHIN: usize = 256;
/// A number some tickers carry that each line counts for itself.
const CLOCK: &[u8] = b"\"Clock\":";

/// Tells contents apart. The hash is keyed anew in each process, so that nobody can make two
/// messages that are taken for one.
#[derive(Debug, Default)]
pub(super) struct Identities {
    keys: RandomState,
}

impl Identities {
    /// The identity of what a frame of this role says. A quote within a JSON text is escaped, so
    /// no value can pass for one of the names looked for.
    pub(super) fn of(&self, role: Role, frame: &[u8]) -> Option<u64> {
        match role {
            Role::Trade => self.trade(frame),
            Role::Ticker | Role::Lifecycle => self.whole(frame),
            Role::Orderbook => None,
        }
    }

    fn trade(&self, frame: &[u8]) -> Option<u64> {
        let start = memmem::find(frame, TRADE_ID)? + TRADE_ID.len();
        let rest = frame.get(start..)?;
        let end = rest.iter().take(TRADE_ID_BYTES_MAX + 1).position(|&byte| byte == b'"')?;
        Some(self.keys.hash_one(rest.get(..end).filter(|id| !id.is_empty())?))
    }

    /// The market or event, the time and all else the message says, and its type.
    fn whole(&self, frame: &[u8]) -> Option<u64> {
        let front = frame.get(..SAYS_WITHIN.min(frame.len()))?;
        let says = frame.get(memmem::find(front, SAYS)? + SAYS.len()..)?.trim_ascii_end();
        let kind = front.split(|&byte| byte == b',').next().unwrap_or_default();
        let mut hasher = self.keys.build_hasher();
        hasher.write(kind);
        match memmem::find(says, CLOCK).and_then(|at| says.split_at_checked(at)) {
            None => hasher.write(says),
            Some((before, clocked)) => {
                let rest = clocked.get(CLOCK.len()..)?;
                let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
                hasher.write(before);
                hasher.write(rest.get(digits..)?);
            }
        }
        Some(hasher.finish())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PARTS: [&str; 7] = ["\"msg\":{", "\"Clock\":", "\"trade_id\":\"", ",", "\"", "}}", "9"];

    fn same(role: Role, one: &str, other: &str) -> bool {
        let identities = Identities::default();
        let of = |text: &str| identities.of(role, text.as_bytes()).unwrap();
        of(one) == of(other)
    }

    #[test]
    fn a_trade_is_its_id() {
        let one = r#"{"type":"trade","sid":1,"seq":7,"msg":{"trade_id":"a-1","count":1}}"#;
        let other = r#"{"sid":4,"type":"trade","seq":9, "msg":{"x":1,"trade_id":"a-1"}}"#;
        assert!(same(Role::Trade, one, other));
        assert!(!same(Role::Trade, one, &one.replace("a-1", "a-2")));
        let trap = r#"{"type":"trade","msg":{"note":"\"trade_id\":\"b\"","trade_id":"a-1"}}"#;
        assert!(same(Role::Trade, one, trap), "a text that holds the name");
    }

    #[test]
    fn a_ticker_is_what_it_says_but_for_its_clock() {
        let one = r#"{"type":"ticker","sid":1,"msg":{"Clock":3,"market_ticker":"A","ts_ms":5}}"#;
        let other = r#"{"type":"ticker","sid":8,"msg":{"Clock":41,"market_ticker":"A","ts_ms":5}}"#;
        assert!(same(Role::Ticker, one, &format!("{other}\n")));
        assert!(!same(Role::Ticker, one, &one.replace("\"ts_ms\":5", "\"ts_ms\":6")));
        assert!(!same(Role::Ticker, one, &one.replace("\"A\"", "\"B\"")));
        let late = r#"{"type":"ticker","sid":1,"msg":{"market_ticker":"A","Clock":7,"ts_ms":5}}"#;
        assert!(same(Role::Ticker, late, &late.replace("\"Clock\":7", "\"Clock\":123")));
    }

    #[test]
    fn a_lifecycle_message_is_its_type_and_what_it_says() {
        let one = r#"{"type":"event_lifecycle","sid":1,"seq":8,"msg":{"event_ticker":"E"}}"#;
        assert!(same(Role::Lifecycle, one, &one.replace("\"seq\":8", "\"seq\":11")));
        assert!(!same(Role::Lifecycle, one, &one.replace("event_lifecycle", "event_fee_update")));
    }

    #[test]
    fn what_cannot_be_made_out_has_no_identity() {
        let identities = Identities::default();
        let far = format!(r#"{{"type":"ticker","x":"{}","msg":{{}}}}"#, "y".repeat(300));
        let long = format!(r#"{{"type":"trade","msg":{{"trade_id":"{}"}}}}"#, "y".repeat(65));
        for (role, text) in [
            (Role::Trade, r#"{"type":"trade","sid":1,"seq":1,"msg":{}}"#),
            (Role::Trade, r#"{"type":"trade","sid":1,"seq":1,"msg":{"trade_id":""}}"#),
            (Role::Trade, long.as_str()),
            (Role::Ticker, "not json"),
            (Role::Ticker, far.as_str()),
            (Role::Lifecycle, ""),
            (Role::Orderbook, r#"{"type":"orderbook_delta","msg":{"trade_id":"a"}}"#),
        ] {
            assert_eq!(identities.of(role, text.as_bytes()), None, "{text}");
        }
    }

    proptest! {
        #![proptest_config(crate::property::cases(2_000))]

        #[test]
        fn no_bytes_panic(
            parts in prop::collection::vec(
                prop_oneof![
                    prop::sample::select(PARTS.to_vec())
                        .prop_map(|part| part.as_bytes().to_vec()),
                    prop::collection::vec(any::<u8>(), 0..40),
                ],
                0..12,
            ),
        ) {
            let identities = Identities::default();
            for role in Role::ALL {
                identities.of(role, &parts.concat());
            }
        }
    }
}
