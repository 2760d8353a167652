//! The engine as a whole in virtual time: the real conductor, connector and shards over a scripted
//! network, against a model exchange, on one thread. A seed decides everything: what goes wrong,
//! when, and in what order threads have their turns. What must hold is checked at every step, and
//! the ledger of the exchange is the oracle.
//!
//! TLS stays outside: what the transport gives is plaintext. Upgrade, frames, commands and
//! sequences are the engine's own, byte by byte.

mod books;
mod clock;
mod drawn;
mod engine;
mod exchange;
mod faults;
mod feed;
mod host;
mod invariants;
mod ledger;
mod mishap;
mod network;
mod pairs;
pub(crate) mod peer;
mod rows;
mod seeds;
mod trace;
mod wire;
mod world;
