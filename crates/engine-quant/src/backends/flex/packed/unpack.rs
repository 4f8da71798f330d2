//! Packed rows as `f32` in memory.

use std::ops::Range;

use super::super::dots::Widened;
use super::super::simd::{Isa, Kernel, Simd};
use super::super::threads;
use super::super::tiles::{COLUMNS, steps};
use super::walk::{EightBit, Format, FourBit, GROUPS, GroupNumbers, PackedRows, Sink, Span, walk};
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
    threads::for_each_chunk(&mut y, rows * width, |part, to| {
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
        let mut scratch = Scratch::new();
        for (&row, to) in self.ids.iter().zip(self.to.chunks_exact_mut(width)) {
            for block in steps(&(0..width), BLOCK) {
                let unpack = Unpack { matrix, row, block: &block, scratch: &mut scratch };
                unpack.unpack(s, &mut to[block.clone()]);
            }
        }
    }
}

/// Scales, zero points and minima of a block of `O` rows, as `f32`.
pub struct Scratch<const O: usize>(Box<[GroupNumbers; O]>);

impl<const O: usize> Scratch<O> {
    pub fn new() -> Self {
        Self(Box::new([[[0.0; GROUPS]; 3]; O]))
    }

    /// Reads the numbers of a block of the rows and says where everything is; after the last of
    /// `rows`, the last again.
    #[inline(always)]
    pub fn read<S: Simd, F: Format<S>>(
        &mut self,
        s: S,
        _format: F,
        (matrix, rows): (&Stored<'_>, &Range<usize>),
        block: &Range<usize>,
    ) -> PackedRows<'_, O> {
        let groups = block.start / matrix.group_size..(block.end - 1) / matrix.group_size + 1;
        let count = groups.len();
        let mut starts = [std::ptr::null(); O];
        for (o, ([scales, zeros, mins], start)) in self.0.iter_mut().zip(&mut starts).enumerate() {
            let row = (rows.start + o).min(rows.end - 1);
            let first = matrix.spec.group_of(row, groups.start * matrix.group_size);
            matrix.scales.read(s, first, &mut scales[..count]);
            if F::ZEROS {
                match matrix.zeros {
                    StoredZeros::Fixed(zero) => zeros[..count].fill(zero),
                    StoredZeros::PerGroup(from) => {
                        for (zero, &from) in zeros[..count].iter_mut().zip(&from[first..][..count])
                        {
                            *zero = f32::from(from);
                        }
                    }
                }
            }
            if let (true, Some(from)) = (F::MINS, matrix.mins) {
                from.read(s, first, &mut mins[..count]);
            }
            *start = codes(matrix, row, block).as_ptr();
        }
        PackedRows { codes: starts, numbers: &self.0 }
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
    pub scratch: &'a mut Scratch<1>,
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
        let packed = scratch.read(s, format, (matrix, &(row..row + 1)), block);
        // SAFETY: `read` checked codes and groups, and the sink has room.
        unsafe { walk(s, format, packed, span(matrix, block), &mut self.sink) }
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
    let mut numbers = [[[0.0; GROUPS]; 3]];
    numbers[0][0][0] = 1.0;
    let packed = PackedRows { codes: [codes(matrix, row, block).as_ptr()], numbers: &numbers };
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
