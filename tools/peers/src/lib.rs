//! Other ways to read the same feed, for the benches: the bare floor, and clients built on the
//! WebSocket libraries people use. Each does per message what the engine does: check UTF-8, read
//! sid and seq, keep sequence state, stamp the time, hand the payload to a consumer thread. They
//! reconnect nothing and serve no one.

#![allow(
    clippy::as_conversions,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a measurement fails by panicking, and reads clocks"
)]

mod clock;
mod fast;
mod floor;
mod setup;
mod sim;
mod tokio_side;
mod tung;
mod work;

pub use clock::{Stamp, age, pin, thread_cpu};
pub use fast::fastwebsockets;
pub use floor::{floor, read};
pub use setup::{Access, Job, Layout, Link, plan};
pub use sim::{Facts, Sim, SimSettings, Totals, executable, raise_file_limit, target_dir};
pub use tokio_side::tokio_tungstenite;
pub use tung::tungstenite_mio;
pub use work::{Cores, Io, Outcome, Task, touch};
