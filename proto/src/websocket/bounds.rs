//! Where native frames begin and end in a stream: a message holds whole ones only.

use crate::HEADER_SHORT;

/// Position in a stream of native frames, which may come in pieces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of the frame that have not come, its length field read.
    left: u32,
    /// The beginning of a length field.
    field: [u8; 3],
    there: u8,
    /// A length was read that no frame has. The decoder of frames refuses it, so nothing behind it matters.
    lost: bool,
}

impl Bounds {
    /// Passes over bytes of the stream.
    pub fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.lost {
            let over = bytes.len().min(self.left as usize);
            self.left -= over as u32;
            bytes = &bytes[over..];
            if bytes.is_empty() {
                return;
            }
            let there = usize::from(self.there);
            let mut field = [0; 4];
            field[..there].copy_from_slice(&self.field[..there]);
            let more = bytes.len().min(field.len() - there);
            field[there..there + more].copy_from_slice(&bytes[..more]);
            bytes = &bytes[more..];
            if there + more < field.len() {
                self.field = [field[0], field[1], field[2]];
                self.there = (there + more) as u8;
                return;
            }
            self.there = 0;
            let length = u32::from_be_bytes(field);
            self.lost = length < HEADER_SHORT as u32;
            self.left = length.saturating_sub(field.len() as u32);
        }
    }

    /// Whether it is not known any more where frames begin.
    pub(super) fn is_lost(&self) -> bool {
        self.lost
    }

    /// Whether a message may end here: no frame is half there.
    pub fn is_between(&self) -> bool {
        self.lost || self.left == 0 && self.there == 0
    }
}
