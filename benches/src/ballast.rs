//! Memory that is touched before a ramp and given back during it.
//!
//! The memory of a virtual machine may be there only once it is touched: the first touch of a page is a fault of the
//! hypervisor, ten times as slow as one of the kernel (measured: 4 s for a GiB, against 0.6 s). A gateway would be charged for
//! what its host has not been given yet. Free memory may also be taken back within seconds. So nearly all of it is touched and held, and
//! released bit by bit as the connections come that need it: then the kernel has no other to give them.

use crate::progress::Progress;

const CHUNK_BYTES: usize = 16 << 20;
const PAGE_BYTES: usize = 4_096;

/// Touched memory.
pub(crate) struct Ballast {
    chunks: Vec<Vec<u8>>,
    released: usize,
}

impl Ballast {
    /// Touches so many bytes, rounded up to whole chunks.
    pub(crate) fn touch(bytes: usize, progress: &Progress) -> Ballast {
        let all = bytes.div_ceil(CHUNK_BYTES);
        let bar = progress.phase("MiB touched", (bytes >> 20) as u64);
        let mut chunks = Vec::with_capacity(all);
        for number in 0..all {
            let mut chunk = vec![0u8; CHUNK_BYTES];
            chunk.iter_mut().step_by(PAGE_BYTES).for_each(|byte| *byte = 1);
            // The compiler shall not see that nobody reads it.
            chunks.push(std::hint::black_box(chunk));
            bar.set(((number * CHUNK_BYTES) >> 20) as u64);
        }
        Ballast { chunks, released: 0 }
    }

    /// Sees to it that so many bytes have been given back, or all there are.
    pub(crate) fn release(&mut self, bytes: usize) {
        let chunks = bytes.div_ceil(CHUNK_BYTES);
        for _ in self.released..chunks {
            self.released += 1;
            self.chunks.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_given_back_in_whole_chunks_and_once() {
        let mut ballast = Ballast::touch(4 * CHUNK_BYTES - 1, &Progress::new("test".to_owned()));
        assert_eq!(ballast.chunks.len(), 4);
        ballast.release(CHUNK_BYTES + 1);
        assert_eq!(ballast.chunks.len(), 2);
        ballast.release(1);
        assert_eq!(ballast.chunks.len(), 2, "what is gone stays gone");
        ballast.release(100 * CHUNK_BYTES);
        assert_eq!(ballast.chunks.len(), 0);
    }
}
