use super::kernel::TILE_TOKENS;
use super::layout::{Stored, StoredZeros};
use super::segments::{MAX_COLUMNS, STEP, Segment, num_steps};

/// What is known of one token's segment beside its digits.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[repr(C)]
pub struct SegmentNumbers {
    /// The unit of the integers.
    pub scale: f32,
    /// −zero · sum where all groups share the code of zero, otherwise 0.
    pub bias: i32,
    /// Sum of the integers.
    pub sum: i32,
    /// scale · sum.
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
/// The digits of a tile of tokens are `[steps, tokens, D, 4 bytes]`, the low digit first, its
/// numbers `[segments, tokens]`; tiles follow one another.
#[derive(Default)]
pub struct Rounded {
    pub digits: Vec<u32>,
    pub numbers: Vec<SegmentNumbers>,
}

impl Rounded {
    /// Makes room for so many tokens.
    pub fn reserve<const D: usize>(&mut self, tokens: usize, segments: &[Segment]) {
        self.digits.resize(tokens * num_steps(segments) * D, 0);
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
    pub fn round<const D: usize>(&mut self, stored: &Stored<'_>, token: usize, x: &[f32]) {
        let zero = match stored.zeros {
            StoredZeros::Fixed(zero) => i32::from(zero),
            StoredZeros::PerGroup(_) => 0,
        };
        let stride = self.len * D;
        let tokens = self.numbers.chunks_exact_mut(self.len);
        for (segment, numbers) in stored.segments.iter().zip(tokens) {
            let x = &x[segment.start..][..segment.len];
            let scale = unit::<D>(x);
            let mut bytes = [[[0; STEP]; MAX_COLUMNS / STEP]; 2];
            let sum = round_segment(x, scale, &mut bytes);
            numbers[token] =
                SegmentNumbers { scale, bias: -zero * sum, sum, total: scale * sum as f32 };
            let digits = &mut self.digits[segment.first_step * stride + token * D..];
            for step in 0..segment.steps {
                for d in 0..D {
                    digits[step * stride + d] = u32::from_le_bytes(bytes[d][step]);
                }
            }
        }
    }
}

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
/// digits. Zero where that is subnormal, NaN where a number is not finite.
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
    let unit = largest / if D == 2 { 32512.0 } else { 127.0 };
    if unit < f32::MIN_POSITIVE { 0.0 } else { unit }
}

/// The digits of `x / scale` rounded to the nearest integers, ties to even; the integers' sum.
#[inline(always)]
fn round_segment(
    x: &[f32],
    scale: f32,
    [low, high]: &mut [[[u8; STEP]; MAX_COLUMNS / STEP]; 2],
) -> i32 {
    if scale.is_nan() || scale == 0.0 {
        return 0;
    }
    // Beyond 2²³ a float has no room for fractions: adding 1.5 · 2²³ rounds.
    const SHIFT: f32 = 12_582_912.0;
    let low = low.as_flattened_mut().as_chunks_mut::<LANES>().0;
    let high = high.as_flattened_mut().as_chunks_mut::<LANES>().0;
    let mut sums = [0_i32; LANES];
    for ((x, low), high) in vectors(x).zip(low).zip(high) {
        let integers = x.map(|x| (x / scale + SHIFT).to_bits() as i32 - SHIFT.to_bits() as i32);
        *low = integers.map(|q| q as u8);
        *high = integers.map(|q| ((q + 128) >> 8) as u8);
        for (sum, q) in sums.iter_mut().zip(integers) {
            *sum += q;
        }
    }
    sums.into_iter().sum()
}
