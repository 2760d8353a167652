//! Which core each thread gets, and what spoils those cores. Pure: the allowed cores and the
//! facts about them are arguments.

use std::collections::{BTreeMap, BTreeSet};

use crate::cores::CoreFacts;
use crate::error::ConfigError;
use crate::ids::ShardId;
use crate::warning::Warning;

/// Event loops a process may have.
const SHARDS_MAX: usize = 64;
/// The governor under which a core is always at full speed.
const FULL_SPEED: &str = "performance";

/// Where the threads go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Placement {
    /// The core of each shard; none when not pinned.
    pub(crate) shards: Vec<Option<usize>>,
    /// The cores of all other threads; empty when they may go anywhere.
    pub(crate) control: Vec<usize>,
    /// Whether the user named the cores, and so cares for what spoils them.
    pub(crate) named: bool,
}

/// What was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) shards: Option<usize>,
    pub(crate) cores: Option<&'a [usize]>,
    pub(crate) pin: bool,
}

impl Placement {
    /// Puts the threads on the `allowed` cores. A core outside is taken only if named and
    /// `isolated` says so: isolation takes cores out of every program's set, and naming one is
    /// how to get it.
    pub(crate) fn choose(
        wanted: Wanted<'_>,
        allowed: &[usize],
        isolated: impl Fn(usize) -> bool,
    ) -> Result<Self, ConfigError> {
        let default = allowed.len().saturating_sub(1).clamp(1, 4);
        let shards = wanted.shards.or(wanted.cores.map(<[_]>::len)).unwrap_or(default);
        if !(1..=SHARDS_MAX).contains(&shards) {
            let problem = format!("{shards} is outside 1 to {SHARDS_MAX}; one per core is usual");
            return Err(ConfigError::Invalid { setting: "shards", problem });
        }
        let cores: Vec<_> = match wanted.cores {
            Some(cores) => checked(cores, shards, allowed, isolated)?,
            // From the last core down: the first ones serve interrupts and everything else.
            None => allowed.iter().rev().cycle().take(shards).map(|&core| Some(core)).collect(),
        };
        let named = wanted.cores.is_some();
        if !wanted.pin {
            return Ok(Self { shards: vec![None; shards], control: Vec::new(), named });
        }
        let taken = |core: &usize| cores.contains(&Some(*core));
        let control = allowed.iter().copied().filter(|core| !taken(core)).collect();
        // Where the system names no cores there are none to pin to.
        let shards = cores.into_iter().chain(std::iter::repeat(None)).take(shards).collect();
        Ok(Self { shards, control, named })
    }

    /// The cores the shards have, each once.
    pub(crate) fn cores(&self) -> BTreeSet<usize> {
        self.shards.iter().flatten().copied().collect()
    }

    /// What spoils the shards' cores. Isolation and governor are for who has begun to tune: the
    /// cores named, or `spinning`.
    pub(crate) fn spoiled(&self, facts: &[CoreFacts], spinning: bool) -> Vec<Warning> {
        let mut warnings = self.shared();
        let used = self.cores();
        let mine = || facts.iter().filter(|facts| used.contains(&facts.core));
        for facts in mine() {
            let others = facts.siblings.range(facts.core.saturating_add(1)..);
            warnings.extend(
                others
                    .filter(|sibling| used.contains(sibling))
                    .map(|&sibling| Warning::Siblings { core: facts.core, sibling }),
            );
        }
        if !used.is_empty() && self.control.is_empty() {
            warnings.push(Warning::NoControlCore);
        }
        if !self.named && !spinning {
            return warnings;
        }
        let open = mine().filter(|facts| facts.isolated == Some(false));
        let cores: Vec<_> = open.map(|facts| facts.core).collect();
        if !cores.is_empty() {
            warnings.push(Warning::NotIsolated { cores });
        }
        let mut slow = BTreeMap::<&str, Vec<usize>>::new();
        for facts in mine() {
            if let Some(governor) = facts.governor.as_deref().filter(|name| *name != FULL_SPEED) {
                slow.entry(governor).or_default().push(facts.core);
            }
        }
        warnings.extend(
            slow.into_iter().map(|(governor, cores)| Warning::Governor {
                cores,
                governor: governor.to_owned(),
            }),
        );
        warnings
    }

    fn shared(&self) -> Vec<Warning> {
        let mut shards = BTreeMap::<usize, Vec<ShardId>>::new();
        for (id, core) in (0u16..).zip(&self.shards) {
            if let Some(core) = core {
                shards.entry(*core).or_default().push(ShardId::new(id));
            }
        }
        let several = shards.into_iter().filter(|(_, shards)| shards.len() > 1);
        several.map(|(core, shards)| Warning::SharedCore { core, shards }).collect()
    }
}

fn checked(
    cores: &[usize],
    shards: usize,
    allowed: &[usize],
    isolated: impl Fn(usize) -> bool,
) -> Result<Vec<Option<usize>>, ConfigError> {
    let invalid = |problem| Err(ConfigError::Invalid { setting: "cores", problem });
    if cores.len() != shards {
        let given = cores.len();
        return invalid(format!("{given} cores for {shards} shards; name one for each"));
    }
    let usable = |core: usize| allowed.contains(&core) || isolated(core);
    match cores.iter().find(|&&core| !usable(core)) {
        Some(missing) => invalid(format!(
            "core {missing} is not among those allowed here ({allowed:?}); name one of these, or \
             widen the set (taskset, cpuset)"
        )),
        None => Ok(cores.iter().copied().map(Some).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(shards: usize, cores: &[usize]) -> Wanted<'_> {
        Wanted { shards: Some(shards), cores: Some(cores), pin: true }
    }

    fn placed(cores: &[usize], allowed: &[usize]) -> Placement {
        Placement::choose(wanted(cores.len(), cores), allowed, |_| false).unwrap()
    }

    /// A quiet core: isolated, alone, at full speed.
    fn quiet(core: usize) -> CoreFacts {
        let governor = Some("performance".to_owned());
        CoreFacts { core, siblings: BTreeSet::from([core]), isolated: Some(true), governor }
    }

    #[test]
    fn shards_take_the_last_cores_and_the_rest_is_for_the_others() {
        let free = Wanted { shards: None, cores: None, pin: true };
        let choose =
            |wanted, allowed: &[usize]| Placement::choose(wanted, allowed, |_| false).unwrap();
        let four = choose(free, &[0, 1, 2, 3]);
        assert_eq!(four.shards, [Some(3), Some(2), Some(1)]);
        assert_eq!(four.control, [0]);
        let one = choose(free, &[5]);
        assert_eq!((one.shards, one.control), (vec![Some(5)], vec![]));
        let crowded = choose(Wanted { shards: Some(3), ..free }, &[0, 1]);
        assert_eq!(crowded.shards, [Some(1), Some(0), Some(1)]);
        let loose = choose(Wanted { pin: false, ..free }, &[0, 1, 2]);
        assert_eq!((loose.shards, loose.control), (vec![None, None], vec![]));
        let unknown = choose(free, &[]);
        assert_eq!((unknown.shards, unknown.control), (vec![None], vec![]));
    }

    #[test]
    fn named_cores_must_be_allowed_or_isolated() {
        let choose = |cores: &[usize]| {
            Placement::choose(wanted(1, cores), &[0, 1], |core| core == 7)
                .map_err(|error| error.to_string())
        };
        assert_eq!(choose(&[1]).unwrap().control, [0]);
        assert_eq!(choose(&[7]).unwrap().control, [0, 1], "isolation took it out of the set");
        let error = choose(&[2]).unwrap_err();
        assert!(error.starts_with("cores: core 2 is not among those allowed"), "{error}");
        assert!(choose(&[0, 1]).unwrap_err().contains("2 cores for 1 shards"));
    }

    #[test]
    fn quiet_cores_raise_no_warning() {
        let placement = placed(&[2, 3], &[0, 1, 2, 3]);
        assert_eq!(placement.spoiled(&[quiet(2), quiet(3)], true), []);
    }

    #[test]
    fn a_core_with_two_shards_is_named_with_them() {
        let shards = vec![ShardId::new(0), ShardId::new(2)];
        let warnings = placed(&[1, 2, 1], &[0, 1, 2]).spoiled(&[quiet(1), quiet(2)], true);
        assert_eq!(warnings, [Warning::SharedCore { core: 1, shards }]);
    }

    #[test]
    fn siblings_count_only_when_both_have_a_shard() {
        let smt =
            |core, sibling| CoreFacts { siblings: BTreeSet::from([core, sibling]), ..quiet(core) };
        let facts = [smt(2, 6), smt(3, 7), smt(6, 2)];
        let warnings = placed(&[2, 3, 6], &[0, 2, 3, 6]).spoiled(&facts, true);
        assert_eq!(warnings, [Warning::Siblings { core: 2, sibling: 6 }]);
    }

    #[test]
    fn isolation_and_governor_matter_to_those_who_tune() {
        let plain = |core| CoreFacts {
            isolated: Some(false),
            governor: Some("schedutil".to_owned()),
            ..quiet(core)
        };
        let facts = [plain(2), plain(3)];
        let told = [
            Warning::NotIsolated { cores: vec![2, 3] },
            Warning::Governor { cores: vec![2, 3], governor: "schedutil".to_owned() },
        ];
        let named = placed(&[2, 3], &[1, 2, 3]);
        assert_eq!(named.spoiled(&facts, false), told);
        let chosen = Placement { named: false, ..named };
        assert_eq!(chosen.spoiled(&facts, true), told);
        assert_eq!(chosen.spoiled(&facts, false), []);
        let unknown = CoreFacts { core: 2, ..CoreFacts::default() };
        assert_eq!(placed(&[2], &[1, 2]).spoiled(&[unknown], true), []);
    }

    #[test]
    fn no_core_left_for_the_others_is_told() {
        let full = placed(&[0, 1], &[0, 1]);
        assert_eq!(full.spoiled(&[quiet(0), quiet(1)], true), [Warning::NoControlCore]);
        let loose = Placement { shards: vec![None], ..Placement::default() };
        assert_eq!(loose.spoiled(&[], true), []);
    }
}
