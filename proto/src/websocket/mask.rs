//! Masking (RFC 6455, section 5.3): an exclusive or with four bytes over and over, its own inverse.

use std::ops::Range;

/// Masks or unmasks `bytes` where they lie, `mask[0]` first. Returns the mask for the byte behind them.
pub(super) fn apply(mask: [u8; 4], bytes: &mut [u8]) -> [u8; 4] {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (chunks, rest) = bytes.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (at, byte) in rest.iter_mut().enumerate() {
        *byte ^= mask[at % 4];
    }
    let turned = rest.len() % 4;
    [mask[turned], mask[(turned + 1) % 4], mask[(turned + 2) % 4], mask[(turned + 3) % 4]]
}

/// Unmasks `bytes[from]` into the bytes from `to` on, which is not behind its beginning: one pass, where unmasking in
/// place and moving then would read what has only just been written in other pieces.
pub(super) fn move_unmasked(mask: [u8; 4], bytes: &mut [u8], from: Range<usize>, to: usize) {
    debug_assert!(to <= from.start, "what is not read yet would be overwritten");
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let mut at = 0;
    while let Some(chunk) = bytes[from.start + at..from.end].first_chunk::<32>() {
        let mut words: [u64; 4] =
            std::array::from_fn(|word| u64::from_ne_bytes(std::array::from_fn(|byte| chunk[8 * word + byte])));
        words.iter_mut().for_each(|word| *word ^= wide);
        for (word, place) in words.iter().zip(bytes[to + at..][..32].as_chunks_mut::<8>().0) {
            *place = word.to_ne_bytes();
        }
        at += 32;
    }
    // Up to 31 are left: byte by byte they would cost as much as all that comes before.
    while let Some(chunk) = bytes[from.start + at..from.end].first_chunk::<8>() {
        let word = u64::from_ne_bytes(*chunk) ^ wide;
        bytes[to + at..][..8].copy_from_slice(&word.to_ne_bytes());
        at += 8;
    }
    if let Some(chunk) = bytes[from.start + at..from.end].first_chunk::<4>() {
        let half = u32::from_ne_bytes(*chunk) ^ u32::from_ne_bytes(mask);
        bytes[to + at..][..4].copy_from_slice(&half.to_ne_bytes());
        at += 4;
    }
    for at in at..from.len() {
        bytes[to + at] = bytes[from.start + at] ^ mask[at % 4];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moving_while_unmasking_is_unmasking_and_then_moving() {
        let original: Vec<u8> = (0..300_u16).map(|byte| (byte.wrapping_mul(31) >> 1) as u8).collect();
        for from in [0, 1, 6, 8, 14, 33] {
            for to in [0, 1, 5, from] {
                for len in 0..=200 {
                    if to > from {
                        continue;
                    }
                    let (mask, mut one, mut two) = ([1, 0x80, 0xA5, 0x3C], original.clone(), original.clone());
                    move_unmasked(mask, &mut one, from..from + len, to);
                    apply(mask, &mut two[from..from + len]);
                    two.copy_within(from..from + len, to);
                    assert_eq!(one[..to + len], two[..to + len], "{len} bytes from {from} to {to}");
                    assert_eq!(one[from + len..], original[from + len..], "behind {len} bytes from {from} to {to}");
                }
            }
        }
    }
}
