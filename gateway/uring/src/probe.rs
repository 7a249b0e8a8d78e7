//! Whether the kernel has what the rings of shards use: tried before anything starts.

use crate::ring::{Ring, RingError, Shape};
use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{Probe, opcode};
use std::io;

/// The operations that a shard's ring submits, by name. What a probe cannot tell, such as multishot receive or passing
/// a descriptor, came before Linux 6.1.
const OPERATIONS: [(&str, u8); 13] = [
    ("accept", opcode::AcceptMulti::CODE),
    ("receive", opcode::RecvMulti::CODE),
    ("send", opcode::Send::CODE),
    ("poll", opcode::PollAdd::CODE),
    ("cancel", opcode::AsyncCancel::CODE),
    ("timeout", opcode::Timeout::CODE),
    ("close", opcode::Close::CODE),
    ("shutdown", opcode::Shutdown::CODE),
    ("connect", opcode::Connect::CODE),
    ("putting a socket into the descriptor table", opcode::FilesUpdate::CODE),
    ("messages between rings", opcode::MsgRingSendFd::CODE),
    ("read, for the executor", opcode::Read::CODE),
    ("write, for the executor", opcode::Write::CODE),
];

/// The first of [`OPERATIONS`] that is not there, by name.
fn lacking(is_supported: impl Fn(u8) -> bool) -> Option<&'static str> {
    OPERATIONS.iter().find(|(_, code)| !is_supported(*code)).map(|(name, _)| *name)
}

/// Sets up a ring as a shard does, with so many slots and receive buffers, waits in it for a moment, and takes it down
/// again.
///
/// # Errors
/// What the kernel refuses, or does not know.
pub fn probe(slots: u32, buffers: u16, buffer_bytes: u32) -> Result<(), RingError> {
    let mut ring = Ring::new(&Shape { submissions: 8, completions: 16, slots, buffers, buffer_bytes })?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(|error| RingError::Feature("probing", Some(error)))?;
    if let Some(name) = lacking(|code| probe.is_supported(code)) {
        return Err(RingError::Feature(name, None));
    }
    enter(&mut ring).map_err(RingError::Enter)
}

/// Waits in the ring for a moment, as every turn does. Filters judge this call apart from those that set a ring up.
fn enter(ring: &mut Ring) -> io::Result<()> {
    let moment = Timespec::new().nsec(1);
    match ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&moment)) {
        Ok(_) => Ok(()),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR)) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_missing_operation_is_named() {
        assert_eq!(lacking(|_| true), None);
        for (name, missing) in OPERATIONS {
            assert_eq!(lacking(|code| code != missing), Some(name));
        }
    }

    #[test]
    fn a_ring_that_cannot_be_says_which_step_it_was() {
        // The kernel allows 2^20 slots at most, and the limit of open files.
        let error = probe(u32::MAX, 8, 64).expect_err("more slots than there can be");
        assert!(matches!(error, RingError::Feature(name, Some(_)) if name.contains("descriptors")), "{error}");
        probe(8, 8, 64).expect("a small ring");
    }
}
