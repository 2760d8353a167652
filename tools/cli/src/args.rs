//! The flags, and what they make of the engine's settings. It checks text, never files.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};
use exchange_sim::Mode;
use kalshi_feed::{ConfigBuilder, Dialect, Wait};

use crate::failure::Failure;
use crate::policies::Policies;
use crate::throttle::Fraction;

/// Kalshi's WebSocket market data over a pool of 150 connections.
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = "Examples:\n  \
    kalshi-feed demo --duration 10s\n  \
    kalshi-feed check --key-id ID --key-file kalshi.pem\n  \
    kalshi-feed run --key-id ID --key-file kalshi.pem --markets-file markets.txt > feed.jsonl\n\n\
    Exit codes: 0 the job was done, 1 it was not, 2 bad usage or configuration."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// More logs on stderr; twice for details. RUST_LOG overrides.
    #[arg(short, long, action = ArgAction::Count, global = true)]
    pub(crate) verbose: u8,
}

/// The jobs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The whole engine against an exchange in this process: nothing to set up.
    Demo(Demo),
    /// The engine against a real exchange; one JSON line a message.
    Run(Run),
    /// Connects once and says which step fails and what to do.
    Check(Check),
}

/// Flags of `demo`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  \
    kalshi-feed demo --duration 10s --json\n  \
    kalshi-feed demo --markets 20000 --rate 200000 --shards 2\n  \
    kalshi-feed demo --cut 20\n  \
    kalshi-feed demo --slow-consumer 0.1 --overflow backpressure\n  \
    kalshi-feed demo --drop-rate 0.001 --gap-policy resnapshot\n  \
    kalshi-feed demo --cores 1 --spin --json\n\n\
    Exit code 0 means: every connection healthy, every market confirmed and none suspect,\n\
    every message the exchange sent delivered or honestly reported as missed. When the\n\
    traffic has ended, books that are out of step still have up to a minute to come back.")]
pub(crate) struct Demo {
    /// Active markets of the exchange.
    #[arg(long, value_name = "N", default_value_t = 2_000)]
    pub(crate) markets: usize,
    /// Messages a second over all connections, in paced mode.
    #[arg(long, value_name = "R", default_value_t = 20_000)]
    pub(crate) rate: u64,
    /// Traffic: paced, burst (as fast as the sockets take it) or quiet.
    #[arg(long, default_value_t = Mode::Paced)]
    pub(crate) mode: Mode,
    /// Connections of all roles to reset in the middle of the run: 150 at most, 147 with
    /// --arbitrate first-wins, where one line of each pair lives on.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) cut: usize,
    /// Take messages at this part of the speed they come at, such as 0.1, until the traffic ends.
    #[arg(long, value_name = "FRACTION")]
    pub(crate) slow_consumer: Option<Fraction>,
    /// Frames with a sequence number that the exchange numbers and never writes, such as 0.001 of
    /// them; until 10 s before the end, or half time of a shorter run.
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = probability)]
    pub(crate) drop_rate: f64,
    /// How long to run; 0 until Ctrl-C.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub(crate) duration: Duration,
    #[command(flatten)]
    pub(crate) engine: Engine,
    #[command(flatten)]
    pub(crate) policies: Policies,
    /// The summary as one JSON object, the last line of stdout; no live view.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Flags of `run`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  \
    kalshi-feed run --key-id ID --key-file kalshi.pem --markets-file markets.txt > feed.jsonl\n  \
    kalshi-feed run --config feed.toml --markets-file markets.txt --output none --duration 1m\n\n\
    A configuration file holds the engine's settings, such as:\n  \
    url = \"wss://external-api-ws.kalshi.com/trade-api/ws/v2\"\n  \
    key_id = \"ID\"\n  \
    key_file = \"kalshi.pem\"\n  \
    connect_timeout = \"5s\"\n\n\
    Environment: WS_RECONNECT_INITIAL, WS_RECONNECT_MAX, WS_RECONNECT_FACTOR.")]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) exchange: Exchange,
    /// The order books wanted: one ticker a line; blank lines and lines with # are skipped.
    #[arg(long, value_name = "FILE")]
    pub(crate) markets_file: Option<PathBuf>,
    /// How long to run; 0 until Ctrl-C.
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = duration)]
    pub(crate) duration: Duration,
    /// Where each message goes as a JSON line: - for stdout, a file, or none.
    #[arg(long, value_name = "-|FILE|none", default_value = "-")]
    pub(crate) output: PathBuf,
    #[command(flatten)]
    pub(crate) engine: Engine,
    #[command(flatten)]
    pub(crate) policies: Policies,
    /// The summary as one JSON object, the last line of stdout; no live view.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Flags of `check`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Example:\n  \
    kalshi-feed check --key-id ID --key-file kalshi.pem --cores 2,3 --spin")]
pub(crate) struct Check {
    #[command(flatten)]
    pub(crate) exchange: Exchange,
    #[command(flatten)]
    pub(crate) engine: Engine,
    /// The verdict as one JSON object on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which exchange, and who we are there.
#[derive(Clone, Debug, Args)]
pub(crate) struct Exchange {
    /// Settings in TOML, durations as text; flags override them.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The exchange's address: wss://host[:port]/path. Default: Kalshi's production exchange.
    #[arg(long, value_name = "URL")]
    pub(crate) url: Option<String>,
    /// PEM file with a certificate authority to trust beside the system's.
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// The API key's id.
    #[arg(long, value_name = "ID", env = "KALSHI_KEY_ID", hide_env_values = true)]
    pub(crate) key_id: Option<String>,
    /// PEM file with the API key's private half.
    #[arg(long, value_name = "FILE", env = "KALSHI_KEY_FILE", hide_env_values = true)]
    pub(crate) key_file: Option<PathBuf>,
}

/// How the engine uses the machine.
#[derive(Clone, Debug, Args)]
pub(crate) struct Engine {
    /// Speak the older dialect: one ticker a subscribe, one sid a market.
    #[arg(long)]
    pub(crate) legacy: bool,
    /// Event-loop threads. Default: the allowed cores less one, within 1 to 4.
    #[arg(long, value_name = "N")]
    pub(crate) shards: Option<usize>,
    /// The core of each shard, such as 2,3. Default: from the last core down.
    #[arg(long, value_name = "CORES", value_delimiter = ',')]
    pub(crate) cores: Option<Vec<usize>>,
    /// What a shard does when nothing is ready: block, spin, or adaptive[:TIME] (50us).
    #[arg(long, value_parser = wait)]
    pub(crate) wait: Option<Wait>,
    /// The same as --wait spin: never sleep, a whole core for each shard.
    #[arg(long, conflicts_with = "wait")]
    pub(crate) spin: bool,
    #[command(flatten)]
    pub(crate) tuning: Tuning,
}

/// How the engine uses sockets and turns.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Tuning")]
pub(crate) struct Tuning {
    /// Reads of up to 96 KiB (64 KiB with --kernel-timestamps) one connection may have before the
    /// others' turn. Default: 1.
    #[arg(long, value_name = "READS")]
    pub(crate) turn_budget: Option<usize>,
    /// Receive buffer of each socket, SO_RCVBUF. Default: the kernel sizes it.
    #[arg(long, value_name = "BYTES")]
    pub(crate) receive_buffer_bytes: Option<usize>,
    /// Poll the network card this long, SO_BUSY_POLL; older kernels ask for CAP_NET_ADMIN.
    #[arg(long, value_name = "MICROSECONDS")]
    pub(crate) busy_poll_us: Option<u32>,
    /// Time our data may go unacknowledged, TCP_USER_TIMEOUT; 0 leaves it to the system.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) tcp_user_timeout: Option<Duration>,
    /// This machine's address to connect from.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) bind_address: Option<IpAddr>,
    /// The network interface to connect through, SO_BINDTODEVICE.
    #[arg(long, value_name = "NAME")]
    pub(crate) bind_interface: Option<String>,
    /// Receive times are the packets' arrival by the kernel, SO_TIMESTAMPNS.
    #[arg(long)]
    pub(crate) kernel_timestamps: bool,
}

impl Engine {
    /// Puts the flags given over the settings.
    pub(crate) fn apply(&self, mut settings: ConfigBuilder) -> ConfigBuilder {
        if self.legacy {
            settings = settings.dialect(Dialect::Legacy);
        }
        if let Some(shards) = self.shards {
            settings = settings.shards(shards);
        }
        if let Some(cores) = &self.cores {
            settings = settings.cores(cores.clone());
        }
        if let Some(wait) = self.wait.or(self.spin.then_some(Wait::Spin)) {
            settings = settings.wait(wait);
        }
        self.tuning.apply(settings)
    }
}

impl Tuning {
    fn apply(&self, mut settings: ConfigBuilder) -> ConfigBuilder {
        if let Some(reads) = self.turn_budget {
            settings = settings.turn_budget(reads);
        }
        if let Some(bytes) = self.receive_buffer_bytes {
            settings = settings.receive_buffer_bytes(bytes);
        }
        if let Some(us) = self.busy_poll_us {
            settings = settings.busy_poll_us(us);
        }
        if let Some(timeout) = self.tcp_user_timeout {
            settings = settings.tcp_user_timeout(timeout);
        }
        if let Some(address) = self.bind_address {
            settings = settings.bind_address(address);
        }
        if let Some(name) = &self.bind_interface {
            settings = settings.bind_interface(name.clone());
        }
        if self.kernel_timestamps {
            settings = settings.kernel_timestamps(true);
        }
        settings
    }
}

impl Exchange {
    /// The settings of the file, the environment and the flags, later ones first.
    ///
    /// # Errors
    /// The file cannot be read or understood, or the environment's values are not what their
    /// names ask for.
    pub(crate) fn settings(&self) -> Result<ConfigBuilder, Failure> {
        let settings = match &self.config {
            Some(path) => crate::settings::read(path)?,
            None => ConfigBuilder::default(),
        };
        let mut settings = settings.environment(|name| std::env::var(name).ok())?;
        if let Some(url) = &self.url {
            settings = settings.url(url.as_str());
        }
        if let Some(file) = &self.ca_file {
            settings = settings.ca_file(file.clone());
        }
        if let Some(id) = &self.key_id {
            settings = settings.key_id(id.clone());
        }
        if let Some(file) = &self.key_file {
            settings = settings.key_file(file.clone());
        }
        Ok(settings)
    }
}

/// A duration as people write it; a bare 0 is one too.
fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .or_else(|error| if text == "0" { Ok(Duration::ZERO) } else { Err(error) })
        .map_err(|error| format!("{error}; write 10s, 500ms or 1m, or 0 for no end"))
}

/// From 0 to 1.
fn probability(text: &str) -> Result<f64, String> {
    let part = text.parse::<f64>().ok().filter(|part| (0.0..=1.0).contains(part));
    part.ok_or_else(|| "give a probability from 0 to 1, such as 0.001".to_owned())
}

/// `block`, `spin`, `adaptive`, `adaptive:50us`.
fn wait(text: &str) -> Result<Wait, String> {
    let (name, spin) = match text.split_once(':') {
        Some((name, spin)) => (name, Some(spin)),
        None => (text, None),
    };
    match (name, spin) {
        ("block", None) => Ok(Wait::Block),
        ("spin", None) => Ok(Wait::Spin),
        ("adaptive", None) => Ok(Wait::ADAPTIVE),
        ("adaptive", Some(spin)) => humantime::parse_duration(spin)
            .map(|spin| Wait::Adaptive { spin })
            .map_err(|error| format!("{error}; write adaptive:50us")),
        _ => Err("use block, spin, adaptive or adaptive:50us".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_text_and_zero_has_no_end() {
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("1m 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        assert!(duration("10").unwrap_err().contains("write 10s"));
        assert!(duration("soon").is_err());
    }

    #[test]
    fn waits_have_three_names() {
        assert_eq!(wait("block"), Ok(Wait::Block));
        assert_eq!(wait("spin"), Ok(Wait::Spin));
        let spin = |micros| Wait::Adaptive { spin: Duration::from_micros(micros) };
        assert_eq!(wait("adaptive"), Ok(spin(50)));
        assert_eq!(wait("adaptive:120us"), Ok(spin(120)));
        for wrong in ["", "sleep", "spin:1us", "adaptive:", "adaptive:fast"] {
            assert!(wait(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn flags_go_over_the_settings() {
        let command = |more: &str| {
            let args = format!("kalshi-feed demo {more}");
            Cli::try_parse_from(args.split_whitespace())
        };
        let spins = |more: &str| match command(more).unwrap().command {
            Command::Demo(demo) => {
                format!("{:?}", demo.engine.apply(ConfigBuilder::default())).contains("wait: Spin")
            }
            other => panic!("{other:?}"),
        };
        assert!(spins("--spin") && spins("--wait spin") && !spins(""));
        assert!(command("--spin --wait block").is_err());
        let Command::Demo(demo) = command(
            "--turn-budget 4 --receive-buffer-bytes 65536 --busy-poll-us 50 \
             --tcp-user-timeout 5s --bind-address ::1 --bind-interface lo --kernel-timestamps",
        )
        .unwrap()
        .command
        else {
            panic!("not a demo");
        };
        let settings = format!("{:?}", demo.engine.apply(ConfigBuilder::default()));
        for part in [
            "turn_budget: 4",
            "receive_buffer_bytes: Some(65536)",
            "busy_poll_us: Some(50)",
            "tcp_user_timeout: Some(5s)",
            "bind_address: Some(::1)",
            "bind_interface: Some(\"lo\")",
            "kernel_timestamps: true",
        ] {
            assert!(settings.contains(part), "{part} in {settings}");
        }
    }

    #[test]
    fn the_flags_are_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
