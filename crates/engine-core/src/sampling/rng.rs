//! Counter-based random numbers: Philox4x32-10 (Salmon et al. 2011).
//!
//! A number is a pure function of (seed, position, token), so what a request draws depends neither
//! on its neighbours in a batch nor on the order in which anything runs.

pub(crate) const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
pub(crate) const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// The Philox4x32-10 block of `counter` under `key`.
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let b = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// A uniform number in (0, 1), never 0 or 1: word `token % 4` of the block with counter
/// `(token / 4, position, 0, 0)`, its upper 23 bits and a half.
pub fn uniform(seed: u64, position: u32, token: u32) -> f32 {
    let block = philox([token / 4, position, 0, 0], [seed as u32, (seed >> 32) as u32]);
    let bits = block[(token % 4) as usize] >> 9;
    (bits as f32 + 0.5) * (1.0 / 8_388_608.0)
}

/// No [`gumbel`] number is larger.
pub const MAX_GUMBEL: f32 = 16.64;

/// A standard Gumbel number, `−ln(−ln(uniform))`.
pub fn gumbel(seed: u64, position: u32, token: u32) -> f32 {
    -(-uniform(seed, position, token).ln()).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extreme_words_give_finite_gumbel_numbers_within_the_bound() {
        // What `uniform` makes of the smallest and the largest 23 bits.
        let smallest = 0.5f32 / 8_388_608.0;
        let largest = (8_388_607.0f32 + 0.5) / 8_388_608.0;
        assert!(smallest > 0.0 && largest < 1.0);
        let highest = -(-largest.ln()).ln();
        assert!((MAX_GUMBEL - 0.01..MAX_GUMBEL).contains(&highest), "{highest}");
        assert!((-(-smallest.ln()).ln()).is_finite());
    }

    // Known answers of the authors' Random123 distribution.
    #[test]
    fn philox_gives_the_published_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
    }
}
