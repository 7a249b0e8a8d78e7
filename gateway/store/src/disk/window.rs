//! Reading a file from its beginning to its end.

use std::io;
use std::ops::Range;

/// A part of a file in memory. What is asked for in rising order is read in large pieces, each byte once.
#[derive(Default)]
pub(crate) struct Window {
    bytes: Vec<u8>,
    /// Where the bytes begin in the file.
    at: u64,
}

impl Window {
    /// What is at a place of the file, if it is here.
    pub(crate) fn get(&self, place: &Range<u64>) -> Option<&[u8]> {
        let from = usize::try_from(place.start.checked_sub(self.at)?).ok()?;
        let upto = usize::try_from(place.end.checked_sub(self.at)?).ok()?;
        self.bytes.get(from..upto)
    }

    /// Lets a place of the file be here, and up to `piece` bytes from its beginning, but nothing from `end` on. It must
    /// not be larger than what memory there is for it.
    ///
    /// # Errors
    /// Those of `read`, which fills a buffer from an offset; nothing is here then.
    pub(crate) fn read_on(
        &mut self,
        place: &Range<u64>,
        piece: u64,
        end: u64,
        read: impl FnOnce(&mut [u8], u64) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.get(place).is_some() {
            return Ok(());
        }
        let upto = place.end.max(end.min(place.start + piece));
        self.bytes.resize((upto - place.start) as usize, 0);
        self.at = place.start;
        let result = read(&mut self.bytes, place.start);
        if result.is_err() {
            self.bytes.clear();
        }
        result
    }
}
