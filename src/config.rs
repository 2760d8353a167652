//! The engine's settings: each documented once, with unit and default; validated when built.
//! Nothing reads the environment or a file unless the host asks for it here.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::affinity;
use crate::arbitration::ArbitrationPolicy;
use crate::auth::Credentials;
use crate::cores;
use crate::dialect::Dialect;
use crate::endpoint::Endpoint;
use crate::error::ConfigError;
use crate::gap::GapPolicy;
use crate::overflow::OverflowPolicy;
use crate::placement::{Placement, Wanted};
use crate::pool::PoolLayout;
use crate::socket::SocketOptions;
use crate::tls::TlsConfig;
use crate::wait::Wait;

/// Defines the settings struct, its defaults and its setters from one list. A setter takes the
/// setting's own type; `[into]` widens that to what converts into it, `[some]` takes what the
/// `Option` holds.
macro_rules! settings {
    ($(
        $(#[doc = $doc:literal])+ $(#[serde($($serde:tt)+)])? $([$way:tt])?
        $name:ident: $type:ty = $default:expr;
    )+) => {
        /// Settings on their way to a [`Config`]. Every setting has a default; `build` checks them
        /// all. Deserialises from a configuration file, where durations are text (`"10s"`,
        /// `"250ms"`) and an unknown name is an error.
        ///
        /// ```
        /// use std::time::Duration;
        /// let config = kalshi_feed::Config::builder()
        ///     .url("wss://external-api-ws.kalshi.com/trade-api/ws/v2")
        ///     .connect_timeout(Duration::from_secs(5))
        ///     .build()?;
        /// # Ok::<(), kalshi_feed::ConfigError>(())
        /// ```
        #[derive(Clone, Debug, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        #[must_use]
        pub struct ConfigBuilder {
            $($(#[serde($($serde)+)])? pub(crate) $name: $type,)+
        }

        impl Default for ConfigBuilder {
            fn default() -> Self {
                Self { $($name: $default,)+ }
            }
        }

        impl ConfigBuilder {
            $(setter! { $(#[doc = $doc])+ $([$way])? $name: $type })+
        }
    };
}

macro_rules! setter {
    ($(#[doc = $doc:literal])+ [into] $name:ident: $type:ty) => {
        $(#[doc = $doc])+
        pub fn $name(mut self, $name: impl Into<$type>) -> Self {
            self.$name = $name.into();
            self
        }
    };
    ($(#[doc = $doc:literal])+ [some] $name:ident: $type:ty) => {
        $(#[doc = $doc])+
        pub fn $name(mut self, $name: <$type as IntoIterator>::Item) -> Self {
            self.$name = Some($name);
            self
        }
    };
    ($(#[doc = $doc:literal])+ $name:ident: $type:ty) => {
        $(#[doc = $doc])+
        pub fn $name(mut self, $name: $type) -> Self {
            self.$name = $name;
            self
        }
    };
}

settings! {
    /// The exchange's WebSocket address. Default: Kalshi's production exchange,
    /// `wss://external-api-ws.kalshi.com/trade-api/ws/v2`. `ws://` only to loopback.
    [into] url: String = "wss://external-api-ws.kalshi.com/trade-api/ws/v2".to_owned();
    /// Key id and private key. Default: none, and the upgrade goes unsigned.
    #[serde(skip)]
    [some] credentials: Option<Credentials> = None;
    /// In a configuration file: the key id, with `key_file`. Default: none.
    [some] key_id: Option<String> = None;
    /// In a configuration file: the PEM file of the private key, with `key_id`. Default: none.
    [some] key_file: Option<PathBuf> = None;
    /// PEM file with a certificate authority to trust beside the system's. Default: none.
    [some] ca_file: Option<PathBuf> = None;
    /// PEM text with a certificate authority to trust beside the system's. Default: none.
    #[serde(skip)]
    [some] ca_pem: Option<String> = None;
    /// How the exchange is spoken to: `live`, as Kalshi's exchange is, or `legacy`. Default: live.
    dialect: Dialect = Dialect::Live;
    /// How many connections each role has. Default: 2 ticker, 2 trade, 2 lifecycle, 144 orderbook.
    pool: PoolLayout = PoolLayout::default();

    /// Event-loop threads. Default: the allowed cores less one, within 1 to 4.
    [some] shards: Option<usize> = None;
    /// The core of each shard, in order. Default: from the last allowed core down.
    [some] cores: Option<Vec<usize>> = None;
    /// Whether shards are pinned to their cores at all. Default: true.
    pin: bool = true;
    /// What a shard does when nothing is ready: `block`, `spin` or `adaptive`, in a configuration
    /// file also `{ adaptive = { spin = "50us" } }`. Default: block.
    wait: Wait = Wait::Block;
    /// Reads of up to 96 KiB (64 KiB with `kernel_timestamps`) one connection may have in one turn
    /// of its shard before the others have theirs. More is cheaper in a burst, and unfair.
    /// Default: 1.
    turn_budget: usize = 1;
    /// Time one call of an inline handler may take before it is reported as slow; its shard's
    /// sockets wait meanwhile. Default: 1 ms.
    #[serde(with = "humantime_serde")]
    handler_slow_threshold: Duration = Duration::from_millis(1);
    /// Time one turn of a shard may take before it is reported as stalled. Default: 50 ms.
    #[serde(with = "humantime_serde")]
    stall_threshold: Duration = Duration::from_millis(50);

    /// Receive buffer of each socket in bytes (`SO_RCVBUF`), set before it connects. Default:
    /// none; the kernel sizes it as it goes, which a size of your own ends.
    [some] receive_buffer_bytes: Option<usize> = None;
    /// Microseconds a read that finds nothing polls the network card (`SO_BUSY_POLL`); needs a
    /// card that can be polled and, on older kernels, `CAP_NET_ADMIN`. Shards that sleep in the
    /// kernel poll only if `net.core.busy_poll` is set, too. Default: none, as the system says.
    [some] busy_poll_us: Option<u32> = None;
    /// Time data we sent may go unacknowledged before the kernel gives the connection up
    /// (`TCP_USER_TIMEOUT`). Default: `ping_idle` and `pong_timeout` together, 25 s. Zero: left
    /// to the system.
    #[serde(with = "humantime_serde")]
    [some] tcp_user_timeout: Option<Duration> = None;
    /// This machine's address to connect from. Default: as the routes say.
    [some] bind_address: Option<IpAddr> = None;
    /// The network interface to connect through (`SO_BINDTODEVICE`). Default: as the routes say.
    [some] bind_interface: Option<String> = None;
    /// Whether [`Stamp::wall`](crate::Stamp::wall) is the kernel's time of arrival
    /// (`SO_TIMESTAMPNS`) instead of the time of the read. The kernel takes it in software when
    /// its network stack gets a packet; the read gets that of the last segment it took bytes of,
    /// still encrypted. So it is exact for a message that came alone; of several in one read all
    /// carry the arrival of the last, perhaps of the front of the next. Where the kernel has no
    /// stamp it is the time of the read. `Stamp::mono` stays the time of the read. Default: false.
    kernel_timestamps: bool = false;

    /// Time for a connect in all: lookup, TCP, TLS and upgrade. Default: 10 s.
    #[serde(with = "humantime_serde")]
    connect_timeout: Duration = Duration::from_secs(10);
    /// Time for the reply to a command. Default: 5 s.
    #[serde(with = "humantime_serde")]
    subscribe_timeout: Duration = Duration::from_secs(5);
    /// Time `start` waits for `min_healthy` connections. Default: 30 s.
    #[serde(with = "humantime_serde")]
    start_timeout: Duration = Duration::from_secs(30);
    /// Live connections `start` asks for. Default: 100, or all of a smaller pool.
    [some] min_healthy: Option<usize> = None;

    /// Longest delay of the first reconnect. Default: 1 s.
    #[serde(with = "humantime_serde")]
    reconnect_initial: Duration = Duration::from_secs(1);
    /// Longest delay of any reconnect. Default: 5 min.
    #[serde(with = "humantime_serde")]
    reconnect_max: Duration = Duration::from_secs(300);
    /// Growth of the delay from one attempt to the next. Default: 2.
    reconnect_factor: f64 = 2.0;
    /// Least time between two connection attempts of the whole process; each connection's first
    /// attempt after `start` is exempt. Default: 50 ms. Zero: no pacing.
    #[serde(with = "humantime_serde")]
    connect_interval: Duration = Duration::from_millis(50);
    /// Seed of the jitter. Default: none, drawn at start.
    [some] seed: Option<u64> = None;

    /// Silence after which a connection is pinged. Default: 15 s.
    #[serde(with = "humantime_serde")]
    ping_idle: Duration = Duration::from_secs(15);
    /// Further silence after which it is given up. Default: 10 s.
    #[serde(with = "humantime_serde")]
    pong_timeout: Duration = Duration::from_secs(10);
    /// Time the peer may refuse to take bytes we owe it. Default: 10 s.
    #[serde(with = "humantime_serde")]
    write_timeout: Duration = Duration::from_secs(10);
    /// Time a message may take from its first byte to its last; a slower one ends its connection.
    /// Default: 20 s.
    #[serde(with = "humantime_serde")]
    message_timeout: Duration = Duration::from_secs(20);
    /// Time without data on an open subscription after which its connection is reported silent.
    /// Default: 60 s. Zero: never.
    #[serde(with = "humantime_serde")]
    silent_after: Duration = Duration::from_secs(60);
    /// Whether a silent connection is also given up and made anew. Default: false: while the
    /// exchange is quiet for all (its weekly maintenance) that would be reconnecting in vain.
    silent_reconnect: bool = false;
    /// How far the exchange's times may lie behind ours before a connection is reported lagging.
    /// Default: 5 s. Zero: never.
    #[serde(with = "humantime_serde")]
    lag_threshold: Duration = Duration::from_secs(5);

    /// Markets named in one command. Default: 500.
    chunk: usize = 500;
    /// Commands in flight on one connection. Default: 4.
    commands_in_flight: usize = 4;
    /// Markets on one order-book connection. Default: 7,500.
    markets_per_connection: usize = 7_500;
    /// How long an order-book connection may be down before its markets move to others; they stay
    /// there. They wait for their own while half of the connections are down. Default: none, they
    /// always wait.
    #[serde(with = "humantime_serde")]
    [some] migrate_after: Option<Duration> = None;
    /// Whether the end of each command is told as an event, with the exchange's replies.
    /// Default: false.
    command_events: bool = false;

    /// What happens to messages that find no room: one policy for all roles, or one for each.
    /// Default: drop the newest.
    [into] overflow: OverflowPolicy = OverflowPolicy::default();
    /// What is done about lost messages of order books: `flag` them, `resnapshot` the markets whose
    /// books may be wrong, or `resubscribe` them. Default: flag.
    gap_policy: GapPolicy = GapPolicy::Flag;
    /// Snapshots asked for after gaps in a second, over the whole process; markets subscribed anew
    /// for that count, too. Default: 10,000.
    recovery_rate: usize = 10_000;
    /// Markets of which one connection, or one arbitrated pair, keeps the newest message under
    /// [`Overflow::ConflateByMarket`](crate::Overflow::ConflateByMarket). Default: 65,536.
    conflate_markets: usize = 65_536;
    /// What happens to second copies of what redundant lines bring: one policy for all roles that
    /// have pairs, or one for each. Default: both are delivered.
    [into] arbitration: ArbitrationPolicy = ArbitrationPolicy::default();
    /// How long messages missing on one line are waited for from the other. Default: 500 ms.
    #[serde(with = "humantime_serde")]
    arbitration_window: Duration = Duration::from_millis(500);
    /// Messages of each pair remembered (for 10 s at most), so that second copies are known as
    /// such; each takes about 250 bytes. Default: 65,536.
    arbitration_messages: usize = 1 << 16;
    /// Messages waiting for the host. Default: 10,000.
    message_buffer: usize = 10_000;
    /// Bytes waiting for the host, counted as the capacity of the buffers that hold them and of
    /// their lists of messages. Default: 64 MiB.
    message_buffer_bytes: usize = 64 << 20;
    /// The longest message accepted, in bytes; a longer one ends its connection. Default: 2 MiB.
    max_message_size: usize = 2 << 20;
    /// Events waiting for the host; when full, new ones are counted and dropped. Default: 4,096.
    event_buffer: usize = 4_096;
}

/// Checked settings, ready for [`Manager::new`](crate::Manager::new).
///
/// ```
/// let config = kalshi_feed::Config::builder().shards(1).build()?;
/// assert_eq!(config.pool().connections(), 150);
/// # Ok::<(), kalshi_feed::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) settings: ConfigBuilder,
    pub(crate) endpoint: Endpoint,
    pub(crate) tls: Option<TlsConfig>,
    pub(crate) placement: Placement,
    pub(crate) socket: SocketOptions,
    pub(crate) min_healthy: usize,
}

impl Config {
    /// Settings with their defaults.
    pub fn builder() -> ConfigBuilder {
        ConfigBuilder::default()
    }

    /// The pool's layout.
    pub fn pool(&self) -> PoolLayout {
        self.settings.pool
    }

    /// How many shards there will be.
    pub fn shards(&self) -> usize {
        self.placement.shards.len()
    }
}

impl ConfigBuilder {
    /// Takes the reconnect settings from `WS_RECONNECT_INITIAL`, `WS_RECONNECT_MAX` (durations
    /// such as `1s`) and `WS_RECONNECT_FACTOR` (a number), where `lookup` finds them.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] for a value that is not what the name asks for.
    pub fn environment(
        mut self,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let duration = |name: &'static str| match lookup(name) {
            None => Ok(None),
            Some(text) => {
                use serde::de::IntoDeserializer;
                let source: serde::de::value::StrDeserializer<'_, serde::de::value::Error> =
                    text.as_str().into_deserializer();
                humantime_serde::deserialize::<Duration, _>(source).map(Some).map_err(|_| {
                    let problem = format!("{text:?} is not a duration; write 1s, 250ms or 5min");
                    ConfigError::Invalid { setting: name, problem }
                })
            }
        };
        self.reconnect_initial =
            duration("WS_RECONNECT_INITIAL")?.unwrap_or(self.reconnect_initial);
        self.reconnect_max = duration("WS_RECONNECT_MAX")?.unwrap_or(self.reconnect_max);
        if let Some(text) = lookup("WS_RECONNECT_FACTOR") {
            self.reconnect_factor = text.parse().map_err(|_| ConfigError::Invalid {
                setting: "WS_RECONNECT_FACTOR",
                problem: format!("{text:?} is not a number; write 2 or 1.5"),
            })?;
        }
        Ok(self)
    }

    /// Checks every setting, reads the files they name, and puts the rest together.
    ///
    /// # Errors
    /// [`ConfigError`] for the first setting that cannot work: its name, why, and what to do.
    pub fn build(mut self) -> Result<Config, ConfigError> {
        self.check_numbers()?;
        self.check_times()?;
        let endpoint = Endpoint::parse(&self.url)?;
        if self.credentials.is_none() {
            self.credentials = match (&self.key_id, &self.key_file) {
                (Some(id), Some(file)) => Some(Credentials::from_pem_file(id, file)?),
                (None, None) => None,
                (Some(_), None) => {
                    return invalid("key_file", "missing beside key_id; name the PEM file");
                }
                (None, Some(_)) => {
                    return invalid("key_id", "missing beside key_file; give the key's id");
                }
            };
        }
        let connections = self.pool.connections();
        let tls = endpoint.tls_name.is_some().then(|| self.tls_config()).transpose()?;
        let min_healthy = self.min_healthy.unwrap_or(connections.min(100));
        if min_healthy > connections {
            let problem = format!("{min_healthy} of {connections} connections; ask for fewer");
            return invalid("min_healthy", problem);
        }
        let placement = self.placement()?;
        let socket = self.socket_options();
        socket.check()?;
        Ok(Config { endpoint, tls, placement, socket, min_healthy, settings: self })
    }

    fn placement(&self) -> Result<Placement, ConfigError> {
        let isolated = cores::isolated(Path::new(cores::SYSFS)).unwrap_or_default();
        let wanted = Wanted { shards: self.shards, cores: self.cores.as_deref(), pin: self.pin };
        Placement::choose(wanted, &affinity::allowed_cores(), |core| {
            isolated.contains(&core) && affinity::may_pin(core)
        })
    }

    fn socket_options(&self) -> SocketOptions {
        let liveness = self.ping_idle.saturating_add(self.pong_timeout);
        SocketOptions {
            receive_buffer_bytes: self.receive_buffer_bytes,
            busy_poll_us: self.busy_poll_us,
            user_timeout: self.tcp_user_timeout.unwrap_or(liveness),
            bind_address: self.bind_address,
            bind_interface: self.bind_interface.clone(),
            kernel_timestamps: self.kernel_timestamps,
        }
    }

    fn check_numbers(&self) -> Result<(), ConfigError> {
        let at_least = |setting, value: usize, least: usize, most: usize| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            invalid(setting, format!("{value} is outside {least} to {most}"))
        };
        at_least("pool", self.pool.connections(), 1, PoolLayout::CONNECTIONS_MAX)?;
        at_least("chunk", self.chunk, 1, 10_000)?;
        at_least("commands_in_flight", self.commands_in_flight, 1, 32)?;
        at_least("markets_per_connection", self.markets_per_connection, 1, 1_000_000)?;
        at_least("message_buffer", self.message_buffer, 1, 1 << 24)?;
        at_least("arbitration_messages", self.arbitration_messages, 16, 1 << 24)?;
        if let Err(problem) = self.arbitration.check(self.pool) {
            return invalid("arbitration", problem);
        }
        at_least("event_buffer", self.event_buffer, 1, 1 << 20)?;
        at_least("recovery_rate", self.recovery_rate, 1, 1_000_000)?;
        at_least("conflate_markets", self.conflate_markets, 1, 1 << 24)?;
        if self.overflow.conflates_too_much() {
            let problem = "conflate-by-market is for ticker alone, where the newest message says \
                           all; write { ticker = \"conflate-by-market\" }";
            return invalid("overflow", problem);
        }
        at_least("turn_budget", self.turn_budget, 1, 1_024)?;
        if let Some(bytes) = self.receive_buffer_bytes {
            at_least("receive_buffer_bytes", bytes, 4_096, 1 << 30)?;
        }
        if let Some(us) = self.busy_poll_us.filter(|us| *us > 1_000_000) {
            return invalid("busy_poll_us", format!("{us} is outside 0 to 1000000; 50 is usual"));
        }
        at_least("max_message_size", self.max_message_size, 4_096, 256 << 20)?;
        let least = self.max_message_size.saturating_add(256 << 10);
        at_least("message_buffer_bytes", self.message_buffer_bytes, least, 1 << 36)?;
        if !(1.0..=100.0).contains(&self.reconnect_factor) {
            let problem = format!("{} is outside 1 to 100", self.reconnect_factor);
            return invalid("reconnect_factor", problem);
        }
        Ok(())
    }

    fn check_times(&self) -> Result<(), ConfigError> {
        let (second, day) = (Duration::from_secs(1), Duration::from_secs(86_400));
        let ms = Duration::from_millis(1);
        let within = |setting, value: Duration, least: Duration, most: Duration| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            invalid(setting, format!("{value:?} is outside {least:?} to {most:?}"))
        };
        within("connect_timeout", self.connect_timeout, ms, day)?;
        within("subscribe_timeout", self.subscribe_timeout, ms, day)?;
        within("start_timeout", self.start_timeout, ms, day)?;
        within("reconnect_initial", self.reconnect_initial, ms, day)?;
        within("reconnect_max", self.reconnect_max, self.reconnect_initial, day)?;
        within("connect_interval", self.connect_interval, Duration::ZERO, day)?;
        within("migrate_after", self.migrate_after.unwrap_or(second), ms, day)?;
        within("ping_idle", self.ping_idle, ms, day)?;
        within("pong_timeout", self.pong_timeout, ms, day)?;
        within("write_timeout", self.write_timeout, ms, day)?;
        within("arbitration_window", self.arbitration_window, ms, day)?;
        let us = Duration::from_micros(1);
        within("handler_slow_threshold", self.handler_slow_threshold, us, day)?;
        within("stall_threshold", self.stall_threshold, us, day)?;
        within("message_timeout", self.message_timeout, ms, day)?;
        within("silent_after", self.silent_after, Duration::ZERO, day)?;
        within("lag_threshold", self.lag_threshold, Duration::ZERO, day)?;
        if self.silent_reconnect && self.silent_after.is_zero() {
            return invalid("silent_reconnect", "nothing is silent while silent_after is 0s");
        }
        if let Some(timeout) = self.tcp_user_timeout.filter(|timeout| !timeout.is_zero()) {
            within("tcp_user_timeout", timeout, ms, day)?;
        }
        if let Wait::Adaptive { spin } = self.wait {
            within("wait", spin, Duration::from_nanos(1), second)?;
        }
        Ok(())
    }

    /// One TLS configuration for the whole pool: verified certificates, tickets shared.
    fn tls_config(&self) -> Result<TlsConfig, ConfigError> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(path) = &self.ca_file {
            let pem = std::fs::read(path).map_err(|error| ConfigError::Unreadable {
                setting: "ca_file",
                path: path.clone(),
                error,
            })?;
            add_roots(&mut roots, "ca_file", &pem)?;
        }
        if let Some(pem) = &self.ca_pem {
            add_roots(&mut roots, "ca_pem", pem.as_bytes())?;
        }
        if roots.is_empty() {
            return invalid(
                "ca_file",
                "the system has no certificate authorities; name a PEM file",
            );
        }
        TlsConfig::new(roots, self.pool.connections()).map_err(|cause| ConfigError::Invalid {
            setting: "ca_file",
            problem: cause.to_string(),
        })
    }
}

fn add_roots(
    roots: &mut rustls::RootCertStore,
    setting: &'static str,
    pem: &[u8],
) -> Result<(), ConfigError> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    let before = roots.len();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let added = certificate
            .map_err(|error| error.to_string())
            .and_then(|certificate| roots.add(certificate).map_err(|error| error.to_string()));
        if let Err(problem) = added {
            return invalid(setting, format!("a certificate in it is damaged ({problem})"));
        }
    }
    if roots.len() == before {
        return invalid(setting, "no certificate in it; give PEM text with BEGIN CERTIFICATE");
    }
    Ok(())
}

fn invalid<T>(setting: &'static str, problem: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError::Invalid { setting, problem: problem.into() })
}

#[cfg(test)]
mod tests;
