//! Codes become numbers in registers, and somebody takes these.

#![allow(
    clippy::needless_range_loop,
    reason = "the indices number registers, and the loops over them are unrolled"
)]

use super::super::simd::Simd;
use super::BLOCK;
use crate::CHUNK;

/// Groups that a block touches at most, where these have whole vectors: it may begin within one.
pub const GROUPS: usize = BLOCK / 8 + 1;

/// Scales, zero points and minima of a row's groups, from the first on that a block touches.
pub type GroupNumbers = [[f32; GROUPS]; 3];

/// A block of `O` packed rows. Where a format has no zero points or minima, these are not read.
#[derive(Clone, Copy)]
pub struct PackedRows<'a, const O: usize> {
    pub codes: [*const u8; O],
    pub numbers: &'a [GroupNumbers; O],
}

/// How codes become numbers: `(level − zero) · scale + min`.
///
/// Without zero points of their own, groups have the zero that is part of the format.
pub trait Format<S: Simd>: Copy {
    /// Whether groups have zero points.
    const ZEROS: bool;
    /// Whether groups have minima.
    const MINS: bool;
    /// What unpacking needs of a group.
    type Group: Copy;

    /// Reads group `group` of a block.
    ///
    /// # Safety
    /// `group < GROUPS`.
    unsafe fn group(self, s: S, numbers: &GroupNumbers, group: usize) -> Self::Group;

    /// Unpacks the columns from `column + vector · LANES` on, where `place` is the two and `column`
    /// is a multiple of [`CHUNK`].
    ///
    /// # Safety
    /// There are codes, up to the bytes that rows are padded to.
    unsafe fn vector(
        self,
        s: S,
        codes: *const u8,
        place: (usize, usize),
        group: Self::Group,
    ) -> S::V;
}

/// Codes of four bits: the levels less the format's zero, the first and the last `LANES` of 16.
#[derive(Clone, Copy)]
pub struct FourBit<S: Simd, const ZEROS: bool, const MINS: bool>(pub [S::V; 2]);

impl<S: Simd, const ZEROS: bool, const MINS: bool> Format<S> for FourBit<S, ZEROS, MINS> {
    const ZEROS: bool = ZEROS;
    const MINS: bool = MINS;
    type Group = [S::V; 2];

    #[inline(always)]
    unsafe fn group(self, s: S, numbers: &GroupNumbers, group: usize) -> Self::Group {
        let [mut first, mut last] = self.0;
        // SAFETY: the caller vouches for the group.
        unsafe {
            if ZEROS {
                let zero = s.splat(*numbers[1].get_unchecked(group));
                (first, last) = (s.sub(first, zero), s.sub(last, zero));
            }
            let scale = s.splat(*numbers[0].get_unchecked(group));
            (first, last) = (s.mul(first, scale), s.mul(last, scale));
            if MINS {
                let min = s.splat(*numbers[2].get_unchecked(group));
                (first, last) = (s.add(first, min), s.add(last, min));
            }
        }
        [first, last]
    }

    #[inline(always)]
    unsafe fn vector(
        self,
        s: S,
        codes: *const u8,
        (column, vector): (usize, usize),
        group: Self::Group,
    ) -> S::V {
        // SAFETY: the caller vouches for the chunk.
        unsafe { s.lookup_u4(codes.add(column / 2), vector, group) }
    }
}

/// Codes of eight bits: the format's zero.
#[derive(Clone, Copy)]
pub struct EightBit<S: Simd, const ZEROS: bool, const MINS: bool>(pub S::V);

impl<S: Simd, const ZEROS: bool, const MINS: bool> Format<S> for EightBit<S, ZEROS, MINS> {
    const ZEROS: bool = ZEROS;
    const MINS: bool = MINS;
    /// Zero, scale and minimum.
    type Group = [S::V; 3];

    #[inline(always)]
    unsafe fn group(self, s: S, numbers: &GroupNumbers, group: usize) -> Self::Group {
        // SAFETY: the caller vouches for the group.
        unsafe {
            let zero = if ZEROS { s.splat(*numbers[1].get_unchecked(group)) } else { self.0 };
            let min = if MINS { s.splat(*numbers[2].get_unchecked(group)) } else { self.0 };
            [zero, s.splat(*numbers[0].get_unchecked(group)), min]
        }
    }

    #[inline(always)]
    unsafe fn vector(
        self,
        s: S,
        codes: *const u8,
        (column, vector): (usize, usize),
        [zero, scale, min]: Self::Group,
    ) -> S::V {
        // SAFETY: the caller vouches for the codes.
        let levels = unsafe { s.load_u8(codes.add(column + vector * S::LANES)) };
        let scaled = s.mul(s.sub(levels, zero), scale);
        if MINS { s.add(scaled, min) } else { scaled }
    }
}

/// Takes the numbers of `O` rows, vector by vector from the first column to the last.
pub trait Sink<S: Simd, const O: usize> {
    /// Takes the columns from `column` on.
    ///
    /// # Safety
    /// The block has `LANES` columns there.
    unsafe fn take(&mut self, s: S, column: usize, weights: [S::V; O]);

    /// Takes the last `len < LANES` columns; the lanes after them hold anything.
    ///
    /// # Safety
    /// The block has `len` columns at `column`.
    unsafe fn take_last(&mut self, s: S, column: usize, len: usize, weights: [S::V; O]);
}

/// Columns of a block and the groups they are in.
#[derive(Clone, Copy)]
pub struct Span {
    /// Columns of the block.
    pub len: usize,
    /// Columns of its first group that are in the block or beyond it.
    pub first_group: usize,
    /// Columns of every other group.
    pub group_size: usize,
}

/// Unpacks a block of `O` rows for `sink`.
///
/// # Safety
/// The rows have the block's codes and groups, and where a group ends a vector does, at the end of
/// the matrix excepted.
#[inline(always)]
pub unsafe fn walk<S: Simd, F: Format<S>, K: Sink<S, O>, const O: usize>(
    s: S,
    format: F,
    rows: PackedRows<'_, O>,
    span: Span,
    sink: &mut K,
) {
    let whole = span.len - span.len % S::LANES;
    let (mut k, mut group, mut group_end) = (0, 0, span.first_group);
    while k < whole {
        // SAFETY: `k` is in the block, hence its group and the columns up to the next vector's end.
        unsafe {
            let groups = groups_of(s, format, rows, group);
            let end = whole.min(group_end);
            if k % CHUNK == 0 {
                while k + CHUNK <= end {
                    for vector in 0..CHUNK / S::LANES {
                        let weights = vectors_of(s, format, rows, (k, vector), groups);
                        sink.take(s, k + vector * S::LANES, weights);
                    }
                    k += CHUNK;
                }
            }
            while k < end {
                let place = (k / CHUNK * CHUNK, k % CHUNK / S::LANES);
                sink.take(s, k, vectors_of(s, format, rows, place, groups));
                k += S::LANES;
            }
        }
        if k == group_end {
            group += 1;
            group_end += span.group_size;
        }
    }
    if whole < span.len {
        let place = (whole / CHUNK * CHUNK, whole % CHUNK / S::LANES);
        // SAFETY: rows are padded to whole vectors.
        unsafe {
            let groups = groups_of(s, format, rows, group);
            let weights = vectors_of(s, format, rows, place, groups);
            sink.take_last(s, whole, span.len - whole, weights);
        }
    }
}

/// # Safety
/// As for [`Format::group`].
#[inline(always)]
unsafe fn groups_of<S: Simd, F: Format<S>, const O: usize>(
    s: S,
    format: F,
    rows: PackedRows<'_, O>,
    group: usize,
) -> [F::Group; O] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut groups = [format.group(s, &rows.numbers[0], group); O];
        for o in 1..O {
            groups[o] = format.group(s, &rows.numbers[o], group);
        }
        groups
    }
}

/// # Safety
/// As for [`Format::vector`].
#[inline(always)]
unsafe fn vectors_of<S: Simd, F: Format<S>, const O: usize>(
    s: S,
    format: F,
    rows: PackedRows<'_, O>,
    place: (usize, usize),
    groups: [F::Group; O],
) -> [S::V; O] {
    let mut weights = [s.splat(0.0); O];
    for o in 0..O {
        // SAFETY: the caller's promise.
        weights[o] = unsafe { format.vector(s, rows.codes[o], place, groups[o]) };
    }
    weights
}
