//! How the exchange's TLS is: plain values and their form as a text. It encrypts nothing.

use std::str::FromStr;

/// The exchange's TLS. The default is as good as the live one's.
///
/// As a text: words from `tls12`, `no_tickets`, `records=BYTES`, and `certificate=expired`,
/// `certificate=future`, `certificate=other_name` or `certificate=none`.
///
/// ```
/// use exchange_sim::{Identity, Security};
/// let security: Security = "tls12 no_tickets certificate=expired".parse()?;
/// assert_eq!((security.version_13, security.identity), (false, Identity::Expired));
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Security {
    /// TLS 1.3 rather than 1.2.
    pub version_13: bool,
    /// Whether clients are given tickets to resume by.
    pub tickets: bool,
    /// Most bytes of a TLS record, its header included; at least 32. Default: full records.
    pub record_bytes: Option<usize>,
    /// What it shows as its certificate.
    pub identity: Identity,
}

/// What a server shows as its certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Identity {
    /// One for loopback names, valid now.
    #[default]
    Good,
    /// The same, of years ago.
    Expired,
    /// The same, of years to come.
    Future,
    /// One for another host.
    OtherName,
    /// None: every handshake ends with a fatal alert.
    None,
}

impl Default for Security {
    fn default() -> Self {
        Self { version_13: true, tickets: true, record_bytes: None, identity: Identity::Good }
    }
}

impl FromStr for Security {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut security = Self::default();
        for word in text.split_whitespace() {
            security.learn(word).ok_or_else(|| {
                format!(
                    "`{word}` is nothing about TLS: give tls12, no_tickets, records=BYTES, \
                     certificate=expired, certificate=future, certificate=other_name or \
                     certificate=none"
                )
            })?;
        }
        Ok(security)
    }
}

impl Security {
    fn learn(&mut self, word: &str) -> Option<()> {
        match word.split_once('=') {
            None => match word {
                "tls12" => self.version_13 = false,
                "no_tickets" => self.tickets = false,
                _ => return None,
            },
            Some(("records", bytes)) => {
                let bytes = bytes.parse().ok().filter(|bytes| (32..=16_389).contains(bytes))?;
                self.record_bytes = Some(bytes);
            }
            Some(("certificate", which)) => {
                self.identity = match which {
                    "expired" => Identity::Expired,
                    "future" => Identity::Future,
                    "other_name" => Identity::OtherName,
                    "none" => Identity::None,
                    _ => return None,
                }
            }
            Some(_) => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_word_by_word() {
        assert_eq!("".parse(), Ok(Security::default()));
        let small = Security { record_bytes: Some(512), ..Security::default() };
        assert_eq!("records=512".parse(), Ok(small));
        let nobody = Security { identity: Identity::None, ..Security::default() };
        assert_eq!("certificate=none".parse(), Ok(nobody));
        for wrong in ["ssl3", "records=3", "records", "certificate=forged", "tickets=no"] {
            assert!(wrong.parse::<Security>().is_err(), "{wrong}");
        }
    }
}
