//! What several tests need.

/// Numbers in −1 .. 1 that have no pattern.
pub fn numbers(len: usize, seed: usize) -> Vec<f32> {
    let mut state = (seed as u32 + 1).wrapping_mul(0x9E37_79B9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / 2_147_483_648.0 - 1.0
    };
    (0..len).map(|_| next()).collect()
}
