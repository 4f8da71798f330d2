use super::isa::Integers;
use super::kernel::TILE_TOKENS;
use super::layout::{Stored, StoredZeros};
use crate::codes::{MAX_COLUMNS, STEP, Segment, num_steps};

/// What is known of one token's segment beside its digits.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[repr(C)]
pub struct SegmentNumbers {
    /// The unit of the integers.
    pub scale: f32,
    /// −zero · sum where all groups share the code of zero, otherwise 0.
    pub bias: i32,
    /// Sum of the integers without their third digits.
    pub sum: i32,
    /// −zero · top_sum, as for the sum.
    pub top_bias: i32,
    /// Sum of the third digits.
    pub top_sum: i32,
    /// scale · sum of the integers.
    pub total: f32,
}

/// Neighbouring tokens whose digits lie side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenTile {
    /// First token.
    pub first: usize,
    /// Tokens.
    pub len: usize,
}

/// Cuts tokens into tiles of up to `max`, of about equal size.
pub fn token_tiles(tokens: usize, max: usize) -> impl Iterator<Item = TokenTile> {
    let mut first = 0;
    std::iter::from_fn(move || {
        let left = tokens - first;
        let even = left.div_ceil(left.div_ceil(max).max(1));
        let len = TILE_TOKENS.into_iter().rfind(|len| *len <= even).unwrap_or(0);
        let tile = TokenTile { first, len };
        first += len;
        (len > 0).then_some(tile)
    })
}

/// Activations rounded to integers of `D` digits.
///
/// The digits of a tile of tokens are `[steps, tokens, words, 4 bytes]`, its numbers `[segments,
/// tokens]`; tiles follow one another. [`Integers::DIGITS`] says what the words are.
#[derive(Default)]
pub struct Rounded {
    pub digits: Vec<u32>,
    pub numbers: Vec<SegmentNumbers>,
}

impl Rounded {
    /// Makes room for so many tokens.
    pub fn reserve<S: Integers, const D: usize>(&mut self, tokens: usize, segments: &[Segment]) {
        self.digits.resize(tokens * num_steps(segments) * num_words::<S, D>(), 0);
        self.numbers.resize(tokens * segments.len(), SegmentNumbers::default());
    }
}

/// The part of [`Rounded`] that belongs to one tile.
pub struct RoundedTile<'a> {
    pub digits: &'a mut [u32],
    pub numbers: &'a mut [SegmentNumbers],
    /// Tokens of the tile.
    pub len: usize,
}

impl RoundedTile<'_> {
    /// Rounds the activations `x [width]` of token `token` of the tile.
    #[inline(always)]
    pub fn round<S: Integers, const D: usize>(
        &mut self,
        stored: &Stored<'_>,
        token: usize,
        x: &[f32],
    ) {
        let zero = match stored.zeros {
            StoredZeros::Fixed(zero) => i32::from(zero),
            StoredZeros::PerGroup(_) => 0,
        };
        let words = num_words::<S, D>();
        let stride = self.len * words;
        let tokens = self.numbers.chunks_exact_mut(self.len);
        for (segment, numbers) in stored.segments.iter().zip(tokens) {
            let x = &x[segment.start..][..segment.len];
            let scale = unit::<D>(x);
            let mut bytes = [[[0; STEP]; MAX_COLUMNS / STEP]; 3];
            let [sum, top_sum] = round_segment::<D>(x, scale, &mut bytes);
            // At most 256 integers below 2²², so there is room.
            let whole = top_sum * TOP + sum;
            numbers[token] = SegmentNumbers {
                scale,
                bias: -zero * sum,
                sum,
                top_bias: -zero * top_sum,
                top_sum,
                total: scale * whole as f32,
            };
            let digits = &mut self.digits[segment.first_step * stride + token * words..];
            for step in 0..segment.steps {
                let digits = &mut digits[step * stride..][..words];
                if S::DIGITS == 2 {
                    let [low, high, top] = [0, 1, 2].map(|d| bytes[d][step].map(|b| b as i8));
                    let two = std::array::from_fn(|i| i16::from(high[i]) * 256 + i16::from(low[i]));
                    digits[..2].copy_from_slice(&pairs(two));
                    if D == 3 {
                        digits[2..].copy_from_slice(&pairs(top.map(i16::from)));
                    }
                } else {
                    for (d, word) in digits.iter_mut().enumerate() {
                        *word = u32::from_le_bytes(bytes[d][step]);
                    }
                }
            }
        }
    }
}

/// Words of a token's four columns.
pub const fn num_words<S: Integers, const D: usize>() -> usize {
    D.next_multiple_of(S::DIGITS)
}

/// The first number beside the third, and the second beside the fourth.
#[inline(always)]
fn pairs([a, b, c, d]: [i16; STEP]) -> [u32; 2] {
    let pair = |low: i16, high: i16| u32::from(low as u16) | u32::from(high as u16) << 16;
    [pair(a, c), pair(b, d)]
}

/// Value of the third digit.
pub const TOP: i32 = 32768;

/// Numbers that are rounded at a time.
const LANES: usize = 16;

/// The numbers in vectors, zeros after the last.
#[inline(always)]
fn vectors(x: &[f32]) -> impl Iterator<Item = [f32; LANES]> {
    let (whole, rest) = x.as_chunks::<LANES>();
    let mut last = [0.0; LANES];
    last[..rest.len()].copy_from_slice(rest);
    whole.iter().copied().chain((!rest.is_empty()).then_some(last))
}

/// The largest magnitude in units of the largest integer: 32512 = 127 · 256 where there are two
/// digits, 4128768 = 126 · 32768 where there are three. Zero where that is subnormal, NaN where a number is not finite.
#[inline(always)]
fn unit<const D: usize>(x: &[f32]) -> f32 {
    // Magnitudes of floats are ordered as their bits, the infinities and NaNs last.
    let mut largest = [0; LANES];
    for x in vectors(x) {
        for (largest, x) in largest.iter_mut().zip(x) {
            *largest = (x.to_bits() & 0x7fff_ffff).max(*largest);
        }
    }
    let largest = f32::from_bits(largest.into_iter().fold(0, u32::max));
    if !largest.is_finite() {
        return f32::NAN;
    }
    let unit = largest / [127.0, 32512.0, 4_128_768.0][D - 1];
    if unit < f32::MIN_POSITIVE { 0.0 } else { unit }
}

/// The digits of `x / scale` rounded to the nearest integers, ties to even; the sum of the integers
/// without their third digits, and of those.
#[inline(always)]
fn round_segment<const D: usize>(
    x: &[f32],
    scale: f32,
    [low, high, top]: &mut [[[u8; STEP]; MAX_COLUMNS / STEP]; 3],
) -> [i32; 2] {
    if scale.is_nan() || scale == 0.0 {
        return [0; 2];
    }
    // Beyond 2²³ a float has no room for fractions: adding 1.5 · 2²³ rounds magnitudes up to 2²².
    const SHIFT: f32 = 12_582_912.0;
    let low = low.as_flattened_mut().as_chunks_mut::<LANES>().0;
    let high = high.as_flattened_mut().as_chunks_mut::<LANES>().0;
    let top = top.as_flattened_mut().as_chunks_mut::<LANES>().0;
    let (mut sums, mut top_sums) = ([0_i32; LANES], [0_i32; LANES]);
    for (((x, low), high), top) in vectors(x).zip(low).zip(high).zip(top) {
        let integers = x.map(|x| (x / scale + SHIFT).to_bits() as i32 - SHIFT.to_bits() as i32);
        let tops = integers.map(|q| if D == 3 { (q + TOP / 2) >> TOP.ilog2() } else { 0 });
        let mut rest = integers;
        for (rest, top) in rest.iter_mut().zip(tops) {
            *rest -= top * TOP;
        }
        *low = rest.map(|q| q as u8);
        *high = rest.map(|q| ((q + 128) >> 8) as u8);
        for (sum, q) in sums.iter_mut().zip(rest) {
            *sum += q;
        }
        if D == 3 {
            *top = tops.map(|q| q as u8);
            for (sum, q) in top_sums.iter_mut().zip(tops) {
                *sum += q;
            }
        }
    }
    [sums.into_iter().sum(), top_sums.into_iter().sum()]
}
