//! What the system says about cores: threads of one physical core, isolation, governor. It reads
//! Linux's sysfs and judges nothing; what cannot be read is unknown.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Where Linux describes its cores.
pub(crate) const SYSFS: &str = "/sys/devices/system/cpu";
/// No list of cores goes on beyond this, whatever a file says.
const CORES_MAX: usize = 8_192;

/// What there is to know about a core.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CoreFacts {
    pub(crate) core: usize,
    /// The threads of its physical core, itself among them.
    pub(crate) siblings: BTreeSet<usize>,
    /// Whether the scheduler leaves it alone (`isolcpus`); none when unknown.
    pub(crate) isolated: Option<bool>,
    /// Its frequency governor; none where frequencies are not the system's to choose.
    pub(crate) governor: Option<String>,
}

impl CoreFacts {
    /// The facts below `root`, which is [`SYSFS`] but in tests.
    pub(crate) fn read(root: &Path, core: usize) -> Self {
        let of_core = |file: &str| text(&root.join(format!("cpu{core}/{file}")));
        let siblings = of_core("topology/thread_siblings_list");
        Self {
            core,
            siblings: siblings.map(|list| parse_list(&list)).unwrap_or_default(),
            isolated: isolated(root).map(|cores| cores.contains(&core)),
            governor: of_core("cpufreq/scaling_governor"),
        }
    }
}

/// The cores the scheduler leaves alone; none when unknown.
pub(crate) fn isolated(root: &Path) -> Option<BTreeSet<usize>> {
    text(&root.join("isolated")).map(|list| parse_list(&list))
}

fn text(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// A list as the kernel writes it: `0-3,8`. What is not a number is left out.
fn parse_list(list: &str) -> BTreeSet<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<usize>().ok();
        Some(number(first)?..=number(last)?.min(CORES_MAX))
    };
    list.split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_the_kernel_writes_them() {
        let read = |list: &str| parse_list(list).into_iter().collect::<Vec<_>>();
        assert_eq!(read("0-3,8\n"), [0, 1, 2, 3, 8]);
        assert_eq!(read("5"), [5]);
        assert!(read("").is_empty());
        assert!(read("(null)").is_empty());
        assert!(read("7-2").is_empty());
        assert_eq!(read("0-18446744073709551615").len(), CORES_MAX + 1);
    }

    #[test]
    fn facts_come_from_the_files_and_are_unknown_without() {
        let root = std::env::temp_dir().join(format!("kalshi-feed-cores-{}", std::process::id()));
        let write = |file: &str, text: &str| {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("isolated", "2-3\n");
        write("cpu2/topology/thread_siblings_list", "2,6\n");
        write("cpu2/cpufreq/scaling_governor", "powersave\n");
        let two = CoreFacts::read(&root, 2);
        let bare = CoreFacts::read(&root, 4);
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(two.siblings, BTreeSet::from([2, 6]));
        assert_eq!((two.isolated, two.governor.as_deref()), (Some(true), Some("powersave")));
        assert_eq!(bare, CoreFacts { core: 4, isolated: Some(false), ..CoreFacts::default() });
        let nothing = CoreFacts::read(&root, 2);
        assert_eq!(nothing, CoreFacts { core: 2, ..CoreFacts::default() });
    }
}
