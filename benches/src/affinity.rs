//! Which core does what.

use crate::failure::Failure;

/// The core of the servers.
pub(crate) const SERVER_CORE: usize = 0;
/// The core of the load.
pub(crate) const LOAD_CORE: usize = 1;

/// Pins the calling thread to a core this process may use, counted from 0; a machine with fewer starts over.
pub(crate) fn pin(core: usize) -> Result<(), Failure> {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let pinned = !cores.is_empty() && core_affinity::set_for_current(cores[core % cores.len()]);
    if pinned { Ok(()) } else { Err(Failure::Setup(format!("cannot pin a thread to core {core}"))) }
}

/// The kernel's number of a core this process may use, counted from 0; a machine with fewer starts over.
pub(crate) fn kernel_number(core: usize) -> Option<usize> {
    let cores = core_affinity::get_core_ids()?;
    cores.get(core % cores.len().max(1)).map(|core| core.id)
}

/// Runs the load on a thread of its own, pinned to the load core, and waits for it.
pub(crate) fn on_load_core<T: Send>(load: impl FnOnce() -> Result<T, Failure> + Send) -> Result<T, Failure> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            pin(LOAD_CORE)?;
            load()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
