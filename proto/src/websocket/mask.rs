//! Masking (RFC 6455, section 5.3): an exclusive or with four bytes over and over, its own inverse.

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
