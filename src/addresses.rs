//! The exchange's addresses: what the last lookup that succeeded gave, and which of them failed
//! since. Pure. With the name service away, what was known goes on being used.

use std::collections::VecDeque;
use std::net::SocketAddr;

/// Addresses kept of one answer, and so tried in one attempt.
const ADDRESSES_MAX: usize = 16;

/// The addresses of one host.
#[derive(Debug, Default)]
pub(crate) struct Addresses {
    known: Vec<SocketAddr>,
    /// Those among `known` that failed last time.
    suspects: Vec<SocketAddr>,
}

impl Addresses {
    /// Takes a lookup's answer.
    pub(crate) fn learn(&mut self, found: &[SocketAddr]) {
        self.known.clear();
        self.known.extend(found.iter().take(ADDRESSES_MAX));
        self.suspects.retain(|suspect| self.known.contains(suspect));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// The order to try them in: the name service's, but those that failed last time at the end.
    pub(crate) fn in_order(&self) -> VecDeque<SocketAddr> {
        let suspect = |address: &&SocketAddr| self.suspects.contains(address);
        let (last, first): (Vec<_>, Vec<_>) = self.known.iter().partition(suspect);
        first.into_iter().chain(last).collect()
    }

    pub(crate) fn failed(&mut self, address: SocketAddr) {
        if self.known.contains(&address) && !self.suspects.contains(&address) {
            self.suspects.push(address);
        }
    }

    pub(crate) fn worked(&mut self, address: SocketAddr) {
        self.suspects.retain(|suspect| *suspect != address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a2_what_failed_is_tried_last_until_it_works_again() {
        let [a, b, c] = [1, 2, 3].map(|last| SocketAddr::from(([10, 0, 0, last], 443)));
        let mut addresses = Addresses::default();
        assert!(addresses.is_empty());
        addresses.learn(&[a, b, c]);
        assert_eq!(addresses.in_order(), [a, b, c]);
        addresses.failed(a);
        addresses.failed(a);
        assert_eq!(addresses.in_order(), [b, c, a]);
        addresses.failed(b);
        addresses.failed(c);
        assert_eq!(addresses.in_order(), [a, b, c], "all have: the name service's order");
        addresses.worked(b);
        assert_eq!(addresses.in_order(), [b, a, c]);
        addresses.learn(&[c]);
        addresses.failed(a);
        addresses.learn(&[a, c]);
        assert_eq!(addresses.in_order(), [a, c], "what was not listed is forgotten");
    }

    #[test]
    fn no_answer_makes_an_endless_attempt() {
        let many: Vec<_> = (0..200).map(|last| SocketAddr::from(([10, 0, 0, last], 443))).collect();
        let mut addresses = Addresses::default();
        addresses.learn(&many);
        assert_eq!(addresses.in_order().len(), ADDRESSES_MAX);
    }
}
