//! Which description of the exchange is spoken: what the live exchange does, or the older page
//! many programs were written against. The two differ in channels, commands and what a sid is.

use serde::Deserialize;

use crate::ids::Role;

/// How the exchange is spoken to.
///
/// ```
/// use kalshi_feed::{Config, Dialect};
/// let config = Config::builder().dialect(Dialect::Legacy).build()?;
/// # Ok::<(), kalshi_feed::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Dialect {
    /// What Kalshi's exchange does: one sid for each channel of a connection, lists of markets,
    /// a second subscribe merges into the first and is answered `ok`, integer codes.
    #[default]
    Live,
    /// An older page: one ticker a subscribe and one sid for it, removed by `unsubscribe`; the
    /// channel `market_lifecycle`; codes are texts.
    Legacy,
}

impl Dialect {
    /// The name of a role's channel on the wire.
    pub const fn channel(self, role: Role) -> &'static str {
        match (self, role) {
            (Self::Legacy, Role::Lifecycle) => "market_lifecycle",
            _ => role.channel(),
        }
    }
}
