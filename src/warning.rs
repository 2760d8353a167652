//! What makes the engine slower than it could be and does not stop it: told once each, in the log
//! and to whoever asks. Nothing here decides what is worth a warning.

use std::fmt::{self, Display};
use std::sync::OnceLock;

use crate::ids::ShardId;

/// Kinds of warnings there can be at once: some for each shard and each setting.
const WARNINGS_MAX: usize = 256;

/// Something that costs latency or was asked for and could not be had. The engine runs all the
/// same. Its text is one sentence that ends with what to do.
///
/// ```
/// # fn show(manager: &kalshi_feed::Manager) {
/// for warning in manager.warnings() {
///     eprintln!("warning: {warning}");
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// Several shards run on one core.
    SharedCore {
        /// The core.
        core: usize,
        /// Its shards.
        shards: Vec<ShardId>,
    },
    /// Two cores with a shard each are threads of one physical core (SMT).
    Siblings {
        /// The one.
        core: usize,
        /// The other.
        sibling: usize,
    },
    /// The scheduler may put other programs on these cores.
    NotIsolated {
        /// The shards' cores among them.
        cores: Vec<usize>,
    },
    /// These cores do not run at full speed all the time.
    Governor {
        /// The shards' cores among them.
        cores: Vec<usize>,
        /// Their frequency governor.
        governor: String,
    },
    /// Every allowed core has a shard, so the control threads share them.
    NoControlCore,
    /// A shard's thread is not, or no longer, pinned to its core.
    NotPinned {
        /// The shard.
        shard: ShardId,
        /// The core it was to have.
        core: usize,
    },
    /// A control thread could not be kept off the shards' cores.
    NotConfined {
        /// What the system said.
        problem: String,
    },
    /// A setting could not be applied, or not in full.
    Setting {
        /// Its name.
        setting: &'static str,
        /// What the system said, and what to do.
        problem: String,
    },
}

impl Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SharedCore { core, shards } => write!(
                f,
                "core {core} is shared by shards {}, which wait for each other; give each a core \
                 of its own (cores), or run fewer shards",
                list(shards, ", ")
            ),
            Self::Siblings { core, sibling } => write!(
                f,
                "cores {core} and {sibling} are two threads of one physical core, and both have a \
                 shard; name a core of another physical one (cores), or switch SMT off"
            ),
            Self::NotIsolated { cores } => write!(
                f,
                "other programs may run on core {cores}; boot with isolcpus={kernel} \
                 nohz_full={kernel}, or keep them off with a cpuset",
                cores = list(cores, ", "),
                kernel = list(cores, ",")
            ),
            Self::Governor { cores, governor } => write!(
                f,
                "core {} runs under the frequency governor {governor}, which slows it down when \
                 idle; set performance (cpupower -c {} frequency-set -g performance)",
                list(cores, ", "),
                list(cores, ",")
            ),
            Self::NoControlCore => f.write_str(
                "every allowed core has a shard, so conductor and connector interrupt the shards; \
                 run one shard less, or allow one more core",
            ),
            Self::NotPinned { shard, core } => write!(
                f,
                "shard {shard} does not run on core {core} as it should; check that nothing \
                 changes its affinity (taskset, cpuset)"
            ),
            Self::NotConfined { problem } => write!(
                f,
                "a control thread cannot be kept off the shards' cores ({problem}); check that \
                 sched_setaffinity is permitted"
            ),
            Self::Setting { setting, problem } => write!(f, "{setting}: {problem}"),
        }
    }
}

fn list<T: Display>(items: &[T], separator: &str) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(separator)
}

/// The warnings so far, added to by any thread and read by any; each is told once.
#[derive(Debug)]
pub(crate) struct Warnings {
    places: Box<[OnceLock<Warning>]>,
}

impl Default for Warnings {
    fn default() -> Self {
        Self { places: (0..WARNINGS_MAX).map(|_| OnceLock::new()).collect() }
    }
}

impl Warnings {
    /// Adds and logs it, unless it was told before.
    pub(crate) fn add(&self, warning: Warning) {
        for place in &self.places {
            if place.get().is_none() && place.set(warning.clone()).is_ok() {
                log::warn!("{warning}");
                return;
            }
            if place.get() == Some(&warning) {
                return;
            }
        }
    }

    /// All so far, in the order they were told.
    pub(crate) fn all(&self) -> Vec<Warning> {
        self.places.iter().map_while(|place| place.get().cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_told_once_and_says_what_to_do() {
        let warnings = Warnings::default();
        let shards = vec![ShardId::new(0), ShardId::new(2)];
        let shared = Warning::SharedCore { core: 3, shards };
        warnings.add(shared.clone());
        warnings.add(Warning::NoControlCore);
        warnings.add(shared.clone());
        assert_eq!(warnings.all(), [shared, Warning::NoControlCore]);
        let isolated = Warning::NotIsolated { cores: vec![2, 3] }.to_string();
        assert!(isolated.contains("core 2, 3;") && isolated.contains("isolcpus=2,3"), "{isolated}");
        let governor = Warning::Governor { cores: vec![4], governor: "powersave".into() };
        assert!(governor.to_string().contains("cpupower -c 4 frequency-set"), "{governor}");
    }

    #[test]
    fn there_is_an_end_to_them() {
        let warnings = Warnings::default();
        for core in 0..2 * WARNINGS_MAX {
            warnings.add(Warning::NotPinned { shard: ShardId::new(0), core });
        }
        assert_eq!(warnings.all().len(), WARNINGS_MAX);
    }
}
