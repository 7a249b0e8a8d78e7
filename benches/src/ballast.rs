//! Memory that is touched before a ramp and given back during it.
//!
//! The memory of a virtual machine may be there only once it is touched: the first touch of a page is a fault of the
//! hypervisor, several times as slow as one of the kernel (measured: 13 µs beside 2.5 µs, where a connection takes two
//! pages). A gateway would be charged for what its host has not been given yet. Free memory may also be taken back
//! within a second, and what is free when a ramp begins is in part reserved by earlier runs for the kernel, which uses
//! that first. So all but a remainder is touched and held, and released in small steps, just as free memory becomes
//! less: then the kernel has no other to give the connections.

use crate::{failure::Failure, process::free_memory, progress::Progress, ring::os::Anonymous};

/// What is touched or released at a time: whole huge pages.
const CHUNK_BYTES: usize = 16 << 20;

/// What is left to everybody else: enough for the kernel not to look for more.
const REMAINDER_BYTES: u64 = 512 << 20;

/// Touched memory.
pub(crate) struct Ballast {
    chunks: Vec<Anonymous>,
    /// Free memory below which some is released.
    free_min: u64,
}

impl Ballast {
    /// Touches so many bytes, rounded up to whole chunks, or what is free but for a remainder. What is free then shall
    /// stay free.
    pub(crate) fn touch(bytes: u64, progress: &Progress) -> Result<Ballast, Failure> {
        let bytes = bytes.min(free_memory().saturating_sub(REMAINDER_BYTES)) as usize;
        let all = bytes.div_ceil(CHUNK_BYTES);
        let bar = progress.phase("MiB touched", bytes as u64 >> 20);
        let mut chunks = Vec::with_capacity(all);
        for number in 0..all {
            chunks.push(Anonymous::touched(CHUNK_BYTES).map_err(|error| Failure::system("touching memory", error))?);
            bar.set((number * CHUNK_BYTES) as u64 >> 20);
        }
        Ok(Ballast { chunks, free_min: free_memory() })
    }

    /// Makes up for the memory that has been taken since.
    pub(crate) fn release(&mut self) {
        self.release_for(free_memory());
    }

    fn release_for(&mut self, free: u64) {
        let missing = self.free_min.saturating_sub(free).div_ceil(CHUNK_BYTES as u64);
        let left = self.chunks.len().saturating_sub(missing as usize);
        self.chunks.truncate(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_makes_up_for_what_is_missing_in_whole_chunks() {
        let chunks = (0..4).map(|_| Anonymous::touched(4_096).expect("a page")).collect();
        let mut ballast = Ballast { chunks, free_min: 1 << 30 };
        ballast.release_for(1 << 30);
        assert_eq!(ballast.chunks.len(), 4, "nothing is missing");
        ballast.release_for((1 << 30) - 1);
        assert_eq!(ballast.chunks.len(), 3);
        ballast.release_for((1 << 30) - CHUNK_BYTES as u64 - 1);
        assert_eq!(ballast.chunks.len(), 1);
        ballast.release_for(0);
        assert_eq!(ballast.chunks.len(), 0);
        ballast.release_for(0);
    }
}
