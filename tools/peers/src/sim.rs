//! The exchange as a process of its own: built, started on its core, told what to do over its
//! stdin, and ended with us. It knows nothing of the clients.

use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::Value;

use crate::setup::Access;

/// What a process of the exchange is started with.
#[derive(Clone, Copy, Debug)]
pub struct SimSettings {
    /// The core it runs on.
    pub core: usize,
    /// Active markets.
    pub markets: usize,
    /// `stream`, `whole` or `single`.
    pub packing: &'static str,
    /// Whether paced messages are written one by one.
    pub write_through: bool,
    /// Connections at a time.
    pub connections: usize,
}

/// What the exchange has sent so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Data frames.
    pub frames: u64,
    /// TLS records.
    pub records: u64,
    /// Plaintext bytes.
    pub bytes: u64,
}

/// A running process of the exchange; quiet until told otherwise.
#[derive(Debug)]
pub struct Sim {
    child: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    folder: PathBuf,
    /// What it told about itself.
    pub facts: Facts,
}

/// What a client needs to know of an exchange.
#[derive(Clone)]
pub struct Facts {
    /// Where it listens.
    pub url: String,
    /// The certificate authority to trust.
    pub ca_pem: String,
    /// The API key's private half.
    pub key_pem: String,
    /// The API key's id.
    pub key_id: String,
    /// The active markets.
    pub markets: Vec<String>,
}

impl Facts {
    /// The same, ready for the peers.
    #[must_use]
    pub fn access(&self) -> Access {
        Access::new(&self.url, &self.ca_pem, &self.key_id, &self.key_pem)
    }
}

impl fmt::Debug for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Facts").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Sim {
    /// Starts the executable, which then inherits the core of the thread that starts it.
    #[must_use]
    pub fn start(executable: &Path, settings: SimSettings) -> Self {
        Self::start_with(executable, settings, &[])
    }

    /// The same with more flags.
    #[must_use]
    pub fn start_with(executable: &Path, settings: SimSettings, flags: &[&str]) -> Self {
        let folder = std::env::temp_dir().join(format!("peers-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        let file = |name: &str| folder.join(name);
        let mut command = Command::new(executable);
        command.args(["--mode", "quiet", "--churn", "0", "--control"]);
        command.args(["--markets", &settings.markets.to_string()]);
        command.args(["--packing", settings.packing]);
        command.args(["--max-connections", &(settings.connections + 16).to_string()]);
        command.args(flags);
        if settings.write_through {
            command.arg("--write-through");
        }
        command.arg("--ca-out").arg(file("ca")).arg("--key-out").arg(file("key"));
        command.arg("--key-id-out").arg(file("id")).arg("--markets-out").arg(file("markets"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let starter = std::thread::spawn(move || {
            crate::clock::pin(settings.core);
            command.spawn().expect("the exchange starts")
        });
        let mut child = starter.join().expect("the starter");
        let mut answers = BufReader::new(child.stdout.take().expect("its stdout"));
        let ready = line(&mut answers);
        let text = |name| std::fs::read_to_string(file(name)).expect("what the exchange wrote");
        Self {
            commands: child.stdin.take(),
            child,
            answers,
            facts: Facts {
                url: ready["url"].as_str().expect("its url").to_owned(),
                ca_pem: text("ca"),
                key_pem: text("key"),
                key_id: text("id").trim().to_owned(),
                markets: text("markets").lines().map(str::to_owned).collect(),
            },
            folder,
        }
    }

    /// Gives a command (`mode flood`, `rate 20000`, `stats`); the totals as it is carried out.
    pub fn tell(&mut self, command: &str) -> Totals {
        let commands = self.commands.as_mut().expect("its stdin");
        writeln!(commands, "{command}").expect("the exchange lives");
        let answer = line(&mut self.answers);
        let number = |name: &str| answer[name].as_u64().expect("a total");
        Totals {
            frames: number("data_frames_sent"),
            records: number("records_sent"),
            bytes: number("bytes_sent"),
        }
    }
}

impl Sim {
    /// No more traffic; then, once it has written what was queued, the account of all it sent, as
    /// JSON. Between the two `taken` sees to it that all of it is read.
    pub fn settle(&mut self, taken: impl FnOnce()) -> String {
        self.tell("rest");
        taken();
        let path = self.folder.join("ledger");
        self.tell(&format!("ledger {}", path.display()));
        std::fs::read_to_string(path).expect("the ledger it wrote")
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        drop(self.commands.take());
        for _ in 0..100 {
            if matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(self.child.kill());
        drop(self.child.wait());
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

fn line(answers: &mut BufReader<ChildStdout>) -> Value {
    let mut text = String::new();
    answers.read_line(&mut text).expect("the exchange answers");
    serde_json::from_str(&text).expect("one JSON object a line")
}

/// The folder cargo builds into, found from where this program lies (`release/deps/…`).
#[must_use]
pub fn target_dir() -> PathBuf {
    let here = std::env::current_exe().expect("our own path");
    here.ancestors().nth(3).expect("target/profile/deps/program").to_owned()
}

/// Builds the exchange in release mode and says where it is.
#[must_use]
pub fn executable() -> PathBuf {
    let target = target_dir();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.toml");
    let built = Command::new(cargo)
        .args(["build", "--quiet", "--release", "-p", "exchange-sim", "--manifest-path"])
        .arg(manifest)
        .arg("--target-dir")
        .arg(&target)
        .status();
    assert!(built.is_ok_and(|status| status.success()), "the exchange does not build");
    target.join("release").join("exchange-sim")
}

/// Makes room for this many sockets, here and in what is started from here.
pub fn raise_file_limit(sockets: usize) {
    let wanted = sockets as u64 + 256;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit of open files");
    if soft < wanted {
        setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard).expect("a raised limit");
        assert!(hard >= wanted, "at most {hard} open files here, {wanted} needed (ulimit -Hn)");
    }
}
