//! CRC-32C (Castagnoli), as RFC 4960, appendix B, describes it. Headers are short and come once a connection, so a
//! small table will do.

/// The polynomial 0x1EDC6F41, bits reversed.
const POLYNOMIAL: u32 = 0x82F6_3B78;

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut at = 0;
    while at < table.len() {
        let mut rest = at as u32;
        let mut bit = 0;
        while bit < 8 {
            rest = if rest & 1 == 0 { rest >> 1 } else { rest >> 1 ^ POLYNOMIAL };
            bit += 1;
        }
        table[at] = rest;
        at += 1;
    }
    table
};

/// A checksum over bytes that come in pieces.
#[derive(Clone, Copy, Debug)]
pub(super) struct Crc32c(u32);

impl Default for Crc32c {
    fn default() -> Self {
        Crc32c(u32::MAX)
    }
}

impl Crc32c {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0 >> 8 ^ TABLE[usize::from(self.0 as u8 ^ byte)];
        }
    }

    pub(super) fn value(self) -> u32 {
        !self.0
    }
}

#[cfg(test)]
mod tests {
    use super::Crc32c;

    fn crc(bytes: &[u8]) -> u32 {
        let mut crc = Crc32c::default();
        crc.push(bytes);
        crc.value()
    }

    /// RFC 3720, appendix B.4.
    #[test]
    fn the_examples_of_the_rfc() {
        assert_eq!(crc(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc(&[0xFF; 32]), 0x62A8_AB43);
        let up: Vec<u8> = (0..32).collect();
        assert_eq!(crc(&up), 0x46DD_794E);
        assert_eq!(crc(b"123456789"), 0xE306_9283);
    }
}
