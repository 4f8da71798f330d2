#![allow(
    clippy::needless_range_loop,
    reason = "the indices number registers, and the loops over them are unrolled"
)]

use std::marker::PhantomData;
use std::ops::Range;

use super::activations::{SegmentNumbers, TOP, num_words};
use super::isa::{Integers, Kernel};
use super::layout::{Numbers, Stored, StoredZeros};
use crate::Bits;
use crate::codes::{BLOCK_ROWS, LINE, STEP, vector_steps};

/// Where `O` vectors of rows and one tile of tokens are.
pub struct TilePointers<const O: usize> {
    /// Codes of the vectors' first step.
    pub codes: [*const u8; O],
    /// Where the numbers of the vectors' first group are.
    pub places: [usize; O],
    /// `[steps, tokens, words]`.
    pub digits: *const u32,
    /// `[segments, tokens]`.
    pub numbers: *const SegmentNumbers,
    /// `[tokens, O, LANES]`.
    pub sums: *mut f32,
    /// Bytes between codes and those to ask for.
    pub ahead: usize,
}

impl<const O: usize> TilePointers<O> {
    /// Codes and places of these vectors; instead of those after the last one, of the last.
    #[inline(always)]
    pub fn of_vectors<S: Integers>(stored: &Stored<'_>, numbers: [usize; O]) -> Self {
        let block_bytes = stored.block_bytes;
        let (mut codes, mut places) = ([std::ptr::null(); O], [0; O]);
        for o in 0..O {
            let row = numbers[o] * S::LANES;
            let (block, lane) = (row / BLOCK_ROWS, row % BLOCK_ROWS);
            codes[o] = stored.codes[block * block_bytes + lane * STEP..].as_ptr();
            places[o] = block * stored.spec.groups() * BLOCK_ROWS + lane;
        }
        let (digits, numbers) = (std::ptr::null(), std::ptr::null());
        Self { codes, places, digits, numbers, sums: std::ptr::null_mut(), ahead: 0 }
    }
}

/// Tokens of the largest tile.
pub const fn tile_rows<S: Integers, const D: usize>() -> usize {
    let sums = D.div_ceil(S::DIGITS);
    if sums > S::ROWS { 1 } else { S::ROWS / sums }
}

/// Vectors of rows, those of the last block's padding included.
pub fn num_vectors<S: Integers>(stored: &Stored<'_>) -> usize {
    stored.spec.shape[0].next_multiple_of(BLOCK_ROWS) / S::LANES
}

/// Tokens of the tiles that kernels are compiled for.
pub const TILE_TOKENS: [usize; 5] = [1, 2, 4, 6, 12];

/// Adds the products of some segments to the sums of a tile of `tokens` tokens.
///
/// # Safety
/// The pointers are those of the matrix and of a tile of so many tokens of `D` digits, one of
/// [`TILE_TOKENS`].
#[inline(always)]
pub unsafe fn add_tile<S: Integers, const D: usize, const O: usize>(
    s: S,
    tokens: usize,
    stored: &Stored<'_>,
    range: Range<usize>,
    at: &TilePointers<O>,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match tokens {
            1 => by_format::<S, D, 1, O>(s, stored, range, at),
            2 => by_format::<S, D, 2, O>(s, stored, range, at),
            4 => by_format::<S, D, 4, O>(s, stored, range, at),
            6 => by_format::<S, D, 6, O>(s, stored, range, at),
            _ => by_format::<S, D, 12, O>(s, stored, range, at),
        }
    }
}

#[inline(always)]
unsafe fn by_format<S: Integers, const D: usize, const T: usize, const O: usize>(
    s: S,
    stored: &Stored<'_>,
    range: Range<usize>,
    at: &TilePointers<O>,
) {
    // Larger tiles never come, and are not compiled.
    if T > tile_rows::<S, D>() {
        return;
    }
    let at = (stored, range, at);
    let is_plain = matches!(stored.zeros, StoredZeros::Fixed(_)) && stored.mins.is_none();
    // SAFETY: the caller's promise.
    unsafe {
        match (stored.spec.bits, is_plain) {
            (Bits::Four, true) => s.call(Tile::<Rules<true, true>, D, T, O>::of(at)),
            (Bits::Four, false) => s.call(Tile::<Rules<true, false>, D, T, O>::of(at)),
            (Bits::Eight, true) => s.call(Tile::<Rules<false, true>, D, T, O>::of(at)),
            (Bits::Eight, false) => s.call(Tile::<Rules<false, false>, D, T, O>::of(at)),
        }
    }
}

/// The products of some segments with a tile of `T` tokens.
struct Tile<'a, F, const D: usize, const T: usize, const O: usize> {
    stored: &'a Stored<'a>,
    range: Range<usize>,
    at: &'a TilePointers<O>,
    format: PhantomData<F>,
}

impl<'a, F, const D: usize, const T: usize, const O: usize> Tile<'a, F, D, T, O> {
    /// # Safety
    /// As for [`add_tile`].
    unsafe fn of((stored, range, at): (&'a Stored<'a>, Range<usize>, &'a TilePointers<O>)) -> Self {
        Self { stored, range, at, format: PhantomData }
    }
}

impl<F: Format, const D: usize, const T: usize, const O: usize> Kernel for Tile<'_, F, D, T, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Integers>(self, s: S) {
        // SAFETY: whoever made the tile has promised.
        unsafe { tile::<S, F, D, T, O>(s, self.stored, self.range, self.at) }
    }
}

/// What a kernel is compiled for.
trait Format {
    /// Whether codes take four bits.
    const FOUR: bool;
    /// Whether one code of zero serves all groups, and there are no minima.
    const PLAIN: bool;
}

struct Rules<const FOUR: bool, const PLAIN: bool>;

impl<const FOUR: bool, const PLAIN: bool> Format for Rules<FOUR, PLAIN> {
    const FOUR: bool = FOUR;
    const PLAIN: bool = PLAIN;
}

/// Integer sums of a tile: `[tokens, digits, vectors]`, those of two digits that are multiplied as
/// one in the first's place.
type Sums<S, const D: usize, const T: usize, const O: usize> = [[[<S as Integers>::I; O]; D]; T];

#[inline(always)]
unsafe fn tile<S: Integers, F: Format, const D: usize, const T: usize, const O: usize>(
    s: S,
    stored: &Stored<'_>,
    range: Range<usize>,
    at: &TilePointers<O>,
) {
    let line_steps = vector_steps(stored.spec.bits);
    for (segment, i) in stored.segments[range.clone()].iter().zip(range) {
        // SAFETY: the caller's promise; segments lie within the rows.
        unsafe {
            let numbers = at.numbers.add(i * T);
            let mut sums = [[[s.splat(0); O]; D]; T];
            for t in 0..T {
                sums[t][0] = [s.splat((*numbers.add(t)).bias); O];
                if D == 3 {
                    sums[t][D - 1] = [s.splat((*numbers.add(t)).top_bias); O];
                }
            }
            let step_words = T * num_words::<S, D>();
            let mut digits = at.digits.add(segment.first_step * step_words);
            let first = segment.first_step / line_steps;
            for line in first..first + segment.steps / line_steps {
                let mut codes = [s.splat(0); O];
                for o in 0..O {
                    let from = at.codes[o].add(line * LINE);
                    s.prefetch(from.wrapping_add(at.ahead));
                    codes[o] = s.load_codes(from);
                }
                if F::FOUR {
                    let low = codes.map(
                        #[inline(always)]
                        |codes| s.low_halves(codes),
                    );
                    step::<S, D, T, O>(s, &mut sums, low, digits);
                    let high = codes.map(
                        #[inline(always)]
                        |codes| s.high_halves(codes),
                    );
                    step::<S, D, T, O>(s, &mut sums, high, digits.add(step_words));
                } else {
                    step::<S, D, T, O>(s, &mut sums, codes, digits);
                }
                digits = digits.add(step_words * line_steps);
            }
            end_segment::<S, F, D, T, O>(s, stored, sums, (segment.group, numbers), at);
        }
    }
}

/// Adds the products of four columns.
#[inline(always)]
unsafe fn step<S: Integers, const D: usize, const T: usize, const O: usize>(
    s: S,
    sums: &mut Sums<S, D, T, O>,
    codes: [S::I; O],
    digits: *const u32,
) {
    let codes = codes.map(
        #[inline(always)]
        |codes| s.spread(codes),
    );
    for t in 0..T {
        for d in (0..D).step_by(S::DIGITS) {
            // SAFETY: the caller vouches for the words of `T` tokens.
            let digits = unsafe { s.load_digits(digits.add(t * num_words::<S, D>() + d)) };
            for o in 0..O {
                sums[t][d][o] = s.dot(sums[t][d][o], codes[o], digits);
            }
        }
    }
}

/// Scales the integer sums of a segment and adds them to the sums of the tile.
#[inline(always)]
unsafe fn end_segment<S: Integers, F: Format, const D: usize, const T: usize, const O: usize>(
    s: S,
    stored: &Stored<'_>,
    sums: Sums<S, D, T, O>,
    (group, numbers): (usize, *const SegmentNumbers),
    at: &TilePointers<O>,
) {
    let per_tensor = stored.spec.per_tensor;
    let mut scales = [s.splat_f32(0.0); O];
    let mut zeros = [s.splat(0); O];
    let mut mins = scales;
    for o in 0..O {
        let place = at.places[o] + group * BLOCK_ROWS;
        // SAFETY: the numbers of every block's groups are there.
        unsafe {
            scales[o] = load(s, per_tensor, stored.scales, place);
            if let (false, StoredZeros::PerGroup(from)) = (F::PLAIN, stored.zeros) {
                zeros[o] = match per_tensor {
                    true => s.splat(i32::from(from[0])),
                    false => s.load_u8(from.as_ptr().add(place)),
                };
            }
            if let (false, Some(from)) = (F::PLAIN, stored.mins) {
                mins[o] = load(s, per_tensor, from, place);
            }
        }
    }
    for t in 0..T {
        // SAFETY: the tile has so many tokens, and sums of each.
        let (numbers, to) = unsafe { (*numbers.add(t), at.sums.add(t * O * S::LANES)) };
        for o in 0..O {
            let mut sum = sums[t][0][o];
            if D > 1 && S::DIGITS == 1 {
                sum = s.join(sums[t][1 % D][o], sum);
            }
            if !F::PLAIN {
                sum = s.sub_product(sum, zeros[o], s.splat(numbers.sum));
            }
            let mut sum = s.to_f32(sum);
            if D == 3 {
                let mut top = sums[t][D - 1][o];
                if !F::PLAIN {
                    top = s.sub_product(top, zeros[o], s.splat(numbers.top_sum));
                }
                sum = s.mul_add(s.splat_f32(TOP as f32), s.to_f32(top), sum);
            }
            let value = s.mul(s.splat_f32(numbers.scale), sum);
            // SAFETY: as above.
            unsafe {
                let to = to.add(o * S::LANES);
                let mut y = s.mul_add(scales[o], value, s.load_f32(to));
                if !F::PLAIN && stored.mins.is_some() {
                    y = s.mul_add(mins[o], s.splat_f32(numbers.total), y);
                }
                s.store(to, y);
            }
        }
    }
}

/// The numbers of a vector's groups.
#[inline(always)]
unsafe fn load<S: Integers>(s: S, per_tensor: bool, numbers: Numbers<'_>, place: usize) -> S::F {
    if per_tensor {
        return s.splat_f32(numbers.get(0));
    }
    // SAFETY: the caller vouches for the place.
    unsafe {
        match numbers {
            Numbers::F16(values) => s.load_f16(values.as_ptr().add(place)),
            Numbers::F32(values) => s.load_f32(values.as_ptr().add(place)),
        }
    }
}
