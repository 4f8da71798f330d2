//! Packed rows as `f32` in memory.

use std::ops::Range;

use rayon::prelude::*;

use super::super::dots::Widened;
use super::super::simd::{Isa, Kernel, Simd};
use super::super::tiles::{COLUMNS, steps};
use super::walk::{EightBit, Format, FourBit, PackedRow, Sink, Span, walk};
use super::{BLOCK, Stored, StoredZeros, WithFormat};
use crate::Bits;

/// Numbers that one thread unpacks at a time.
const PARALLEL_NUMBERS: usize = 1 << 16;

/// `count` rows one after the other, the `i`th being row `row_of(i)` of the matrix.
pub fn rows(
    isa: Isa,
    matrix: &Stored<'_>,
    count: usize,
    row_of: impl Fn(usize) -> usize + Sync,
) -> Vec<f32> {
    let width = matrix.spec.shape[1];
    let mut y = vec![0.0; count * width];
    let rows = (PARALLEL_NUMBERS / width).max(1);
    y.par_chunks_mut(rows * width).enumerate().for_each(|(part, to)| {
        let ids: Vec<usize> = (0..to.len() / width).map(|i| row_of(part * rows + i)).collect();
        isa.run(UnpackRows { matrix, ids: &ids, to });
    });
    y
}

struct UnpackRows<'a> {
    matrix: &'a Stored<'a>,
    ids: &'a [usize],
    /// `[ids, width]`.
    to: &'a mut [f32],
}

impl Kernel for UnpackRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (matrix, width) = (self.matrix, self.matrix.spec.shape[1]);
        let mut scratch = Scratch::new(matrix, 1);
        for (&row, to) in self.ids.iter().zip(self.to.chunks_exact_mut(width)) {
            for block in steps(&(0..width), BLOCK) {
                let unpack = Unpack { matrix, row, block: &block, scratch: &mut scratch };
                unpack.unpack(s, &mut to[block.clone()]);
            }
        }
    }
}

/// Scales, zero points and minima of blocks of rows, as `f32`: `[rows, 3, groups]`.
pub struct Scratch {
    values: Vec<f32>,
    groups: usize,
}

impl Scratch {
    /// Room for the groups of a block of so many rows.
    pub fn new(matrix: &Stored<'_>, rows: usize) -> Self {
        // A block that begins and ends within groups touches one more than it holds.
        let groups = matrix.spec.groups().min(BLOCK.div_ceil(matrix.group_size) + 1);
        Self { values: vec![0.0; rows * 3 * groups], groups }
    }

    /// Reads the numbers of a block of row `row` into place `place` and says where everything is.
    #[inline(always)]
    pub fn read<S: Simd, F: Format<S>>(
        &mut self,
        s: S,
        _format: F,
        (matrix, row): (&Stored<'_>, usize),
        block: &Range<usize>,
        place: usize,
    ) -> PackedRow {
        let groups = block.start / matrix.group_size..(block.end - 1) / matrix.group_size + 1;
        let first = matrix.spec.group_of(row, groups.start * matrix.group_size);
        let values = &mut self.values[place * 3 * self.groups..][..3 * self.groups];
        let (scales, others) = values.split_at_mut(self.groups);
        let (zeros, mins) = others.split_at_mut(self.groups);
        let count = groups.len();
        matrix.scales.read(s, first, &mut scales[..count]);
        if F::ZEROS {
            match matrix.zeros {
                StoredZeros::Fixed(zero) => zeros[..count].fill(zero),
                StoredZeros::PerGroup(from) => {
                    for (zero, &from) in zeros[..count].iter_mut().zip(&from[first..][..count]) {
                        *zero = f32::from(from);
                    }
                }
            }
        }
        if let (true, Some(from)) = (F::MINS, matrix.mins) {
            from.read(s, first, &mut mins[..count]);
        }
        PackedRow {
            codes: codes(matrix, row, block).as_ptr(),
            scales: scales.as_ptr(),
            zeros: zeros.as_ptr(),
            mins: mins.as_ptr(),
        }
    }
}

/// The codes of a block of a row, up to the row's padding.
#[inline(always)]
pub fn codes<'a>(matrix: &Stored<'a>, row: usize, block: &Range<usize>) -> &'a [u8] {
    let row_bytes = matrix.spec.row_bytes();
    let bits = matrix.spec.bits;
    let bytes = bits.row_bytes(block.start)..bits.row_bytes(block.end);
    &matrix.codes[row * row_bytes..][..row_bytes][bytes]
}

/// The columns of a block and their groups.
#[inline(always)]
pub fn span(matrix: &Stored<'_>, block: &Range<usize>) -> Span {
    let group_size = matrix.group_size;
    Span { len: block.len(), first_group: group_size - block.start % group_size, group_size }
}

/// A block of a row that is to be unpacked.
pub struct Unpack<'a, 'b> {
    pub matrix: &'a Stored<'b>,
    pub row: usize,
    pub block: &'a Range<usize>,
    pub scratch: &'a mut Scratch,
}

impl Unpack<'_, '_> {
    /// Unpacks it into `to`, as long as the block.
    #[inline(always)]
    pub fn unpack<S: Simd>(self, s: S, to: &mut [f32]) {
        assert_eq!(to.len(), self.block.len(), "unpack: room for a block");
        if self.matrix.has_whole_vectors::<S>() {
            self.matrix.with_format(s, Walk { unpack: self, sink: Store(to.as_mut_ptr()) });
        } else {
            unpack_odd_groups(s, self.matrix, self.row, self.block, to);
        }
    }

    /// Unpacks it into its place in a panel.
    ///
    /// # Safety
    /// The vectors can be written from `to` on.
    #[inline(always)]
    pub unsafe fn place<S: Simd>(self, s: S, to: *mut f32) {
        if self.matrix.has_whole_vectors::<S>() {
            self.matrix.with_format(s, Walk { unpack: self, sink: Place(to) });
        } else {
            let mut numbers = [0.0; BLOCK];
            let numbers = &mut numbers[..self.block.len()];
            unpack_odd_groups(s, self.matrix, self.row, self.block, numbers);
            let dots = Widened::<S, f32>::new(s);
            // SAFETY: the caller's promise.
            unsafe { dots.widen(numbers.as_ptr(), numbers.len(), to, COLUMNS) };
        }
    }
}

/// Unpacks vector by vector for a sink that has room for the block.
struct Walk<'a, 'b, K> {
    unpack: Unpack<'a, 'b>,
    sink: K,
}

impl<S: Simd, K: Sink<S, 1>> WithFormat<S> for Walk<'_, '_, K> {
    #[inline(always)]
    fn run<F: Format<S>>(mut self, s: S, format: F) {
        let Unpack { matrix, row, block, scratch } = self.unpack;
        let packed = scratch.read(s, format, (matrix, row), block, 0);
        // SAFETY: `read` checked codes and groups, and the sink has room.
        unsafe { walk(s, format, [packed], span(matrix, block), &mut self.sink) }
    }
}

/// The same for groups that end within vectors: first all levels, then group after group.
#[inline(always)]
fn unpack_odd_groups<S: Simd>(
    s: S,
    matrix: &Stored<'_>,
    row: usize,
    block: &Range<usize>,
    to: &mut [f32],
) {
    let scale = 1.0;
    let codes = codes(matrix, row, block).as_ptr();
    let packed = [PackedRow { codes, scales: &scale, zeros: &scale, mins: &scale }];
    let span = Span { len: block.len(), first_group: block.len(), group_size: block.len() };
    let mut store = Store(to.as_mut_ptr());
    // SAFETY: `codes` checked the codes, there is one group with a scale, `to` has the length.
    unsafe {
        match matrix.spec.bits {
            Bits::Four => {
                let levels = FourBit::<S, false, false>(matrix.centred(s, 0.0));
                walk(s, levels, packed, span, &mut store);
            }
            Bits::Eight => {
                let levels = EightBit::<S, false, false>(s.splat(0.0));
                walk(s, levels, packed, span, &mut store);
            }
        }
    }
    let mut column = block.start;
    while column < block.end {
        let end = block.end.min((column / matrix.group_size + 1) * matrix.group_size);
        let values = &mut to[column - block.start..end - block.start];
        let group = matrix.spec.group_of(row, column);
        let (scale, zero) = (matrix.scales.get(group), matrix.zeros.get(group));
        for value in values.iter_mut() {
            *value = (*value - zero) * scale;
        }
        if let Some(mins) = matrix.mins {
            let min = mins.get(group);
            for value in values {
                *value += min;
            }
        }
        column = end;
    }
}

/// Writes the numbers of one row into memory that has room for the block.
struct Store(*mut f32);

impl<S: Simd> Sink<S, 1> for Store {
    #[inline(always)]
    unsafe fn take(&mut self, s: S, column: usize, [weights]: [S::V; 1]) {
        // SAFETY: the block has these columns, hence the memory has room.
        unsafe { s.store(self.0.add(column), weights) }
    }

    #[inline(always)]
    unsafe fn take_last(&mut self, s: S, column: usize, len: usize, [weights]: [S::V; 1]) {
        let lanes = super::lanes(s, weights);
        // SAFETY: as above, and `len` is less than the lanes.
        unsafe { std::ptr::copy_nonoverlapping(lanes.as_ptr(), self.0.add(column), len) }
    }
}

/// Writes the numbers of one row into its place in a panel, where zeros fill up the last vector.
struct Place(*mut f32);

impl<S: Simd> Sink<S, 1> for Place {
    #[inline(always)]
    unsafe fn take(&mut self, s: S, column: usize, [weights]: [S::V; 1]) {
        // SAFETY: the block has these columns, hence the panel has room.
        unsafe { s.store(self.0.add(column * COLUMNS), weights) }
    }

    #[inline(always)]
    unsafe fn take_last(&mut self, s: S, column: usize, len: usize, [weights]: [S::V; 1]) {
        let lanes = super::lanes(s, weights);
        // SAFETY: as above, and `len` is less than the lanes.
        unsafe { s.store(self.0.add(column * COLUMNS), s.load_partial(lanes.as_ptr(), len)) }
    }
}
