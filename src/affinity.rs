//! Which cores this process may use, and binding the calling thread to some of them. What the
//! system says after the fact is what counts. It decides nothing.

use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

/// The calling thread, to the calls below.
const SELF: Pid = Pid::from_raw(0);

/// The cores this process may run on, in order. Asked once, from an unpinned thread.
pub(crate) fn allowed_cores() -> Vec<usize> {
    let mut cores: Vec<_> =
        core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect();
    cores.sort_unstable();
    cores
}

/// Pins the calling thread to `core`. Returns whether the thread is now allowed there and
/// nowhere else, and runs there.
pub(crate) fn pin(core: usize) -> bool {
    core_affinity::set_for_current(core_affinity::CoreId { id: core }) && is_pinned(core)
}

/// Whether the calling thread runs on `core` and may run nowhere else.
pub(crate) fn is_pinned(core: usize) -> bool {
    let only = |set: CpuSet| {
        (0..CpuSet::count()).all(|other| set.is_set(other).unwrap_or(false) == (other == core))
    };
    sched_getcpu() == Ok(core) && sched_getaffinity(SELF).is_ok_and(only)
}

/// Whether a thread of this process may be pinned to `core`, by trying it on one of its own.
pub(crate) fn may_pin(core: usize) -> bool {
    std::thread::scope(|scope| scope.spawn(|| pin(core)).join().unwrap_or(false))
}

/// Keeps the calling thread, and every thread it starts, on `cores`.
pub(crate) fn confine(cores: &[usize]) -> Result<(), String> {
    let mut set = CpuSet::new();
    cores
        .iter()
        .try_for_each(|&core| set.set(core))
        .and_then(|()| sched_setaffinity(SELF, &set))
        .map_err(|error| error.desc().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_goes_where_it_is_told() {
        let last = *allowed_cores().last().unwrap();
        assert!(may_pin(last));
        assert!(!may_pin(CpuSet::count() - 1), "no machine here has that many");
        let confined = std::thread::spawn(move || {
            confine(&[last]).unwrap();
            is_pinned(last) && std::thread::spawn(move || is_pinned(last)).join().unwrap()
        });
        assert!(confined.join().unwrap(), "its own threads stay there too");
        assert!(confine(&[]).is_err());
        assert!(confine(&[CpuSet::count()]).is_err());
    }
}
