//! Which core does what.

use std::sync::OnceLock;

use core_affinity::CoreId;

use crate::failure::Failure;

/// The core of the servers.
pub(crate) const SERVER_CORE: usize = 0;
/// The core of the load.
pub(crate) const LOAD_CORE: usize = 1;

/// The cores that this process may use. A thread begins with those that the one which starts it is pinned to, so they
/// are asked for once, by the first that is to be pinned.
fn cores() -> &'static [CoreId] {
    static CORES: OnceLock<Vec<CoreId>> = OnceLock::new();
    CORES.get_or_init(|| core_affinity::get_core_ids().unwrap_or_default())
}

/// Pins the calling thread to a core this process may use, counted from 0; a machine with fewer starts over.
pub(crate) fn pin(core: usize) -> Result<(), Failure> {
    let cores = cores();
    let pinned = !cores.is_empty() && core_affinity::set_for_current(cores[core % cores.len()]);
    if pinned { Ok(()) } else { Err(Failure::Setup(format!("cannot pin a thread to core {core}"))) }
}

/// The kernel's number of a core this process may use, counted from 0; a machine with fewer starts over.
pub(crate) fn kernel_number(core: usize) -> Option<usize> {
    let cores = cores();
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn a_thread_that_a_pinned_one_starts_is_pinned_to_its_own_core() {
        let last = cores().len() - 1;
        let started = move || {
            pin(0).expect("there is one");
            let pinned = move || pin(last).map(|()| core_affinity::get_core_ids().expect("Linux tells"));
            thread::spawn(pinned).join().expect("it does not panic").expect("there is one")
        };
        let cores_of_it = thread::spawn(started).join().expect("it does not panic");
        assert_eq!(cores_of_it, [cores()[last]]);
    }
}
