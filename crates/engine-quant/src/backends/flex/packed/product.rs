//! Products with packed rows.

#![allow(
    clippy::needless_range_loop,
    reason = "the indices number registers, and the loops over them are unrolled"
)]

use std::ops::Range;

use super::super::dots::Widened;
use super::super::panels::{self, Fill, Limits, Tiles};
use super::super::simd::{self, Isa, Kernel, Simd};
use super::super::tiles::{self, COLUMNS, Part, STREAMS, Sizes, steps, x_pointers};
use super::unpack::{Scratch, Unpack, codes, span};
use super::walk::{EightBit, Format, FourBit, Sink, walk};
use super::{BLOCK, Stored, StoredZeros};
use crate::Bits;

/// `x [rows, in]` times the matrix transposed, `[rows, out]`.
pub fn product(isa: Isa, x: &[f32], matrix: &Stored<'_>, rows: usize) -> Vec<f32> {
    let [out, width] = matrix.spec.shape;
    assert_eq!(x.len(), rows * width, "packed_linear: x has rows of {width} columns");
    let (max_tile, lanes) = isa.run(Limits);
    let sizes = Sizes::new(x, [rows, out], max_tile);
    if isa.run(Streams { rows, matrix }) {
        return tiles::product(sizes, |part| StreamPart { part, x, matrix }.run(isa));
    }
    let x = Tiles::new(x, sizes, lanes, |part| isa.run(part));
    tiles::product(sizes, |part| isa.run(Unpacked { part, x: &x, matrix }))
}

/// A part of a product of few rows.
struct StreamPart<'a> {
    part: Part,
    /// `[rows, width]`.
    x: &'a [f32],
    matrix: &'a Stored<'a>,
}

impl StreamPart<'_> {
    /// Fills the part.
    fn run(&self, isa: Isa) {
        // Each of these is a function of its own: one of all formats would be huge.
        match self.part.rows.len() {
            1 => self.stream::<1>(isa),
            2 => self.stream::<2>(isa),
            _ => self.stream::<4>(isa),
        }
    }

    fn stream<const R: usize>(&self, isa: Isa) {
        let has_zeros = matches!(self.matrix.zeros, StoredZeros::PerGroup(_));
        match (self.matrix.spec.bits, has_zeros, self.matrix.mins.is_some()) {
            (Bits::Four, false, false) => isa.run(Stream::<true, false, false, R>(self)),
            (Bits::Four, true, false) => isa.run(Stream::<true, true, false, R>(self)),
            (Bits::Four, _, true) => isa.run(Stream::<true, true, true, R>(self)),
            (Bits::Eight, false, false) => isa.run(Stream::<false, false, false, R>(self)),
            (Bits::Eight, true, false) => isa.run(Stream::<false, true, false, R>(self)),
            (Bits::Eight, _, true) => isa.run(Stream::<false, true, true, R>(self)),
        }
    }
}

/// Whether rows are so few, and groups such, that [`Stream`] can compute the product.
struct Streams<'a> {
    rows: usize,
    matrix: &'a Stored<'a>,
}

impl Kernel for Streams<'_> {
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(self, _s: S) -> bool {
        self.rows <= S::TILE_ROWS.min(4) && self.matrix.has_whole_vectors::<S>()
    }
}

/// Few rows, up to `R`: memory is the limit. Each stored row is read from its first code to its
/// last and goes from registers into the sums of all rows.
struct Stream<'a, const FOUR: bool, const ZEROS: bool, const MINS: bool, const R: usize>(
    &'a StreamPart<'a>,
);

impl<const FOUR: bool, const ZEROS: bool, const MINS: bool, const R: usize> Kernel
    for Stream<'_, FOUR, ZEROS, MINS, R>
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let zero = match self.0.matrix.zeros {
            StoredZeros::Fixed(zero) if !ZEROS => zero,
            _ => 0.0,
        };
        if FOUR {
            let format = FourBit::<S, ZEROS, MINS>(self.0.matrix.centred(s, zero));
            self.with_format(s, format);
        } else {
            self.with_format(s, EightBit::<S, ZEROS, MINS>(s.splat(zero)));
        }
    }
}

impl<const FOUR: bool, const ZEROS: bool, const MINS: bool, const R: usize>
    Stream<'_, FOUR, ZEROS, MINS, R>
{
    #[inline(always)]
    fn with_format<S: Simd, F: Format<S>>(&self, s: S, format: F) {
        if R == 1 && S::TILE_ROWS > 1 {
            self.stream::<S, F, STREAMS>(s, format);
        } else if R <= S::TILE_ROWS.next_power_of_two() {
            self.stream::<S, F, COLUMNS>(s, format);
        }
    }

    #[inline(always)]
    fn stream<S: Simd, F: Format<S>, const O: usize>(&self, s: S, format: F) {
        let StreamPart { part, x, matrix } = self.0;
        let mut scratch = Scratch::<O>::new();
        for columns in steps(&part.columns, O) {
            for block in steps(&(0..part.sizes.width), BLOCK) {
                let rows = scratch.read(s, format, (matrix, &columns), &block);
                let x = x_pointers::<f32, R>(x, part.sizes.width, &part.rows, &block);
                let mut dot = Dot::<S, R, O> { x, sums: [[s.splat(0.0); O]; R] };
                // SAFETY: the rows' lengths were checked where the pointers were made.
                unsafe { walk(s, format, rows, span(matrix, &block), &mut dot) };
                part.add(&simd::sum_tile(s, dot.sums), part.rows.start, &columns);
            }
        }
    }
}

/// A part of a product of many rows, or of groups that end within vectors.
struct Unpacked<'a> {
    part: Part,
    x: &'a Tiles<f32>,
    matrix: &'a Stored<'a>,
}

impl Kernel for Unpacked<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { part, x, matrix } = self;
        let rows = UnpackedRows { matrix, scratch: Scratch::new() };
        panels::multiply(&part, x, Widened::<S, f32>::new(s), rows);
    }
}

/// Packed rows that are unpacked into panels.
struct UnpackedRows<'a> {
    matrix: &'a Stored<'a>,
    scratch: Scratch<1>,
}

impl<S: Simd> Fill<Widened<S, f32>> for UnpackedRows<'_> {
    fn bytes(&self, row: usize, block: &Range<usize>) -> &[u8] {
        codes(self.matrix, row, block)
    }

    #[inline(always)]
    unsafe fn fill(
        &mut self,
        dots: Widened<S, f32>,
        row: usize,
        block: &Range<usize>,
        to: *mut f32,
    ) {
        let unpack = Unpack { matrix: self.matrix, row, block, scratch: &mut self.scratch };
        // SAFETY: the caller's promise.
        unsafe { unpack.place(dots.simd(), to) };
    }
}

/// Adds the products with `R` rows of activations, each in the lane order of [`simd`].
struct Dot<S: Simd, const R: usize, const O: usize> {
    x: [*const f32; R],
    sums: [[S::V; O]; R],
}

impl<S: Simd, const R: usize, const O: usize> Dot<S, R, O> {
    #[inline(always)]
    fn add(&mut self, s: S, x: [S::V; R], weights: [S::V; O]) {
        for r in 0..R {
            for o in 0..O {
                self.sums[r][o] = s.mul_add(x[r], weights[o], self.sums[r][o]);
            }
        }
    }
}

impl<S: Simd, const R: usize, const O: usize> Sink<S, O> for Dot<S, R, O> {
    #[inline(always)]
    unsafe fn take(&mut self, s: S, column: usize, weights: [S::V; O]) {
        let mut x = [s.splat(0.0); R];
        for r in 0..R {
            // SAFETY: the block has these columns.
            x[r] = unsafe { s.load(self.x[r].add(column)) };
        }
        self.add(s, x, weights);
    }

    #[inline(always)]
    unsafe fn take_last(&mut self, s: S, column: usize, len: usize, mut weights: [S::V; O]) {
        let mut x = [s.splat(0.0); R];
        for r in 0..R {
            // SAFETY: the block has `len` columns left.
            x[r] = unsafe { s.load_partial(self.x[r].add(column), len) };
        }
        for weights in &mut weights {
            // The lanes after the last column count as zeros, as those of a stored `f32` do.
            let lanes = super::lanes(s, *weights);
            // SAFETY: `len` is less than the lanes.
            *weights = unsafe { s.load_partial(lanes.as_ptr(), len) };
        }
        self.add(s, x, weights);
    }
}
