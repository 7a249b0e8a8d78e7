//! UTF-8 that comes in pieces.

/// What the bytes so far allow to follow. Unicode 15, table 3-7: only the byte behind the first has bounds of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Utf8 {
    /// Bytes that the character begun still needs.
    needs: u8,
    /// Bounds of the next of them.
    low: u8,
    high: u8,
}

impl Utf8 {
    /// Takes a piece. Returns whether all so far can be the beginning of UTF-8.
    pub(super) fn push(&mut self, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        while self.needs > 0
            && let Some((&byte, behind)) = rest.split_first()
        {
            if byte < self.low || byte > self.high {
                return false;
            }
            *self = Utf8 { needs: self.needs - 1, low: 0x80, high: 0xBF };
            rest = behind;
        }
        match std::str::from_utf8(rest) {
            Ok(_) => true,
            Err(error) if error.error_len().is_some() => false,
            Err(error) => {
                self.begin(&rest[error.valid_up_to()..]);
                true
            }
        }
    }

    /// Notes a character of which only the beginning is there; that is right as far as it goes.
    fn begin(&mut self, beginning: &[u8]) {
        let (needs, low, high) = match beginning[0] {
            0xE0 => (2, 0xA0, 0xBF),
            0xED => (2, 0x80, 0x9F),
            0xE1..=0xEF => (2, 0x80, 0xBF),
            0xF0 => (3, 0x90, 0xBF),
            0xF4 => (3, 0x80, 0x8F),
            0xF1..=0xF3 => (3, 0x80, 0xBF),
            _ => (1, 0x80, 0xBF),
        };
        let there = beginning.len() as u8 - 1;
        *self = match there {
            0 => Utf8 { needs, low, high },
            _ => Utf8 { needs: needs - there, low: 0x80, high: 0xBF },
        };
    }

    /// Whether no character is half there.
    pub(super) fn is_whole(&self) -> bool {
        self.needs == 0
    }
}
