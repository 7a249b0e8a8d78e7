//! The few system calls that neither the standard library nor socket2 offers in a safe form.

use std::{
    io, mem,
    net::SocketAddrV4,
    os::{
        fd::{AsRawFd, BorrowedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command},
    ptr,
};

/// The kernel's form of an address.
pub(super) fn socket_address(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
        sin_zero: [0; 8],
    }
}

fn set_option(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the value lives on this stack frame for the whole call, and its size is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            ptr::from_ref(&value).cast(),
            mem::size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    checked(result).map(drop)
}

/// Lets a bound socket take its port when it connects, so that a port is taken for one pair of addresses only.
pub(crate) fn set_bind_address_no_port(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)
}

/// Raises the limit of open files of this process to the hard limit and returns it.
pub(crate) fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` lives on this stack frame for both calls.
    checked(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: as above.
    checked(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })?;
    Ok(limit.rlim_cur)
}

/// Makes the kernel kill the child when the thread that starts it ends, so that no server outlives a bench.
pub(crate) fn die_with_parent(command: &mut Command) {
    // SAFETY: the closure runs between fork and exec; prctl is async-signal-safe and touches no memory.
    unsafe {
        command.pre_exec(|| checked(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL)).map(drop));
    }
}

/// Lets the child run on these cores only, which it then takes for the whole machine.
pub(crate) fn confine(command: &mut Command, cores: Vec<usize>) {
    // SAFETY: the closure runs between fork and exec; sched_setaffinity is async-signal-safe, and the set lives on the
    // closure's stack for the whole call; nothing is allocated. CPU_SET checks the number against the size of the set.
    unsafe {
        command.pre_exec(move || {
            let mut set: libc::cpu_set_t = mem::zeroed();
            cores.iter().for_each(|&core| libc::CPU_SET(core, &mut set));
            checked(libc::sched_setaffinity(0, mem::size_of::<libc::cpu_set_t>(), &set)).map(drop)
        });
    }
}

/// Sends the acknowledgement of the connection's beginning together with the first bytes, as clients that speak first
/// do.
pub(crate) fn delay_first_ack(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_QUICKACK, 0)
}

/// Connecting costs nothing by itself: it is done by the first send, whose bytes travel with the SYN where both ends
/// allow it.
pub(crate) fn fast_open(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1)
}

/// Asks a child to end.
pub(crate) fn terminate(child: &Child) -> io::Result<()> {
    // SAFETY: no memory is passed. The child has not been waited for, so its id still names it.
    checked(unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) }).map(drop)
}

/// Anonymous memory of its own, in huge pages where the kernel grants them; dropping it gives it back at once.
#[derive(Debug)]
pub(crate) struct Anonymous {
    address: ptr::NonNull<libc::c_void>,
    len: usize,
}

impl Anonymous {
    /// Maps `len` bytes and writes to each of their pages.
    pub(crate) fn touched(len: usize) -> io::Result<Anonymous> {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory there is.
        let address = unsafe { libc::mmap(ptr::null_mut(), len, access, kind, -1, 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = ptr::NonNull::new(address).ok_or(io::ErrorKind::OutOfMemory)?;
        let mapped = Anonymous { address, len };
        // SAFETY: the mapping is `mapped`'s own until it is dropped. Without huge pages it takes longer and does the
        // same.
        unsafe { libc::madvise(address.as_ptr(), len, libc::MADV_HUGEPAGE) };
        // SAFETY: as above; the kernel writes nothing but the page tables.
        checked(unsafe { libc::madvise(address.as_ptr(), len, libc::MADV_POPULATE_WRITE) })?;
        Ok(mapped)
    }
}

impl Drop for Anonymous {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, nothing refers to it, and it is unmapped once. That cannot fail for
        // a whole mapping.
        unsafe { libc::munmap(self.address.as_ptr(), self.len) };
    }
}

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
