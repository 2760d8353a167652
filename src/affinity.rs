//! Which cores this process may use, and pinning the calling thread to one of them. A pin is
//! verified after the fact: what the system then allows is what counts.

/// The cores this process may run on, in order. Asked once, from an unpinned thread.
pub(crate) fn allowed_cores() -> Vec<usize> {
    let mut cores: Vec<_> =
        core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect();
    cores.sort_unstable();
    cores
}

/// Pins the calling thread to `core`. Returns whether the thread is now allowed there and
/// nowhere else.
pub(crate) fn pin(core: usize) -> bool {
    core_affinity::set_for_current(core_affinity::CoreId { id: core }) && allowed_cores() == [core]
}
