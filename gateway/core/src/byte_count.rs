//! A count of bytes that are held, for a bound on all of them.

/// Bytes held. What is let go was counted when it came: the tests look that this is so. Should it not be, in a program
/// that runs, the count stays at nothing held; to begin anew from the top would refuse everything from then on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ByteCount(usize);

impl ByteCount {
    /// So many are held.
    #[inline]
    pub(crate) fn get(self) -> usize {
        self.0
    }

    /// So many more are held.
    #[inline]
    pub(crate) fn add(&mut self, bytes: usize) {
        self.0 += bytes;
    }

    /// So many are let go.
    #[inline]
    pub(crate) fn sub(&mut self, bytes: usize) {
        debug_assert!(self.0 >= bytes, "{bytes} bytes are let go, of {} that are held", self.0);
        self.0 = self.0.saturating_sub(bytes);
    }
}
