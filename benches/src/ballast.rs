//! Memory that is touched before a ramp and given back during it.
//!
//! The memory of a virtual machine may be there only once it is touched: the first touch of a page is a fault of the
//! hypervisor, ten times as slow as one of the kernel (measured: 4 s for a GiB, against 0.6 s). A gateway would be charged for
//! what its host has not been given yet. Free memory may also be taken back within seconds, so it is released bit by bit, as the
//! connections come that need it.

use crate::progress::Progress;

const CHUNK_BYTES: usize = 16 << 20;
const PAGE_BYTES: usize = 4_096;

/// Touched memory.
pub(crate) struct Ballast {
    chunks: Vec<Vec<u8>>,
    all: usize,
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
        Ballast { chunks, all }
    }

    /// Gives back what exceeds the share that is still to come, 1.0 being all of it.
    pub(crate) fn keep(&mut self, share: f64) {
        self.chunks.truncate((self.all as f64 * share.clamp(0.0, 1.0)) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_given_back_in_proportion() {
        let mut ballast = Ballast::touch(4 * CHUNK_BYTES - 1, &Progress::new("test".to_owned()));
        assert_eq!(ballast.chunks.len(), 4);
        ballast.keep(0.5);
        assert_eq!(ballast.chunks.len(), 2);
        ballast.keep(1.0);
        assert_eq!(ballast.chunks.len(), 2, "what is gone stays gone");
        ballast.keep(0.0);
        assert_eq!(ballast.chunks.len(), 0);
    }
}
