//! What products with stored rows share, whatever these are stored in: how `x · Wᵀ` is cut into
//! parts and tiles.
//!
//! The product of one row with one stored row is a sum over blocks of [`block_len`] elements in
//! order, each block summed in the order of [`simd`](super::simd). Neither the number of rows nor that of
//! threads has a part in it, so a row's result is the same bits in every batch.

use std::ops::Range;

use super::threads;

/// Bytes of a row of activations that are summed before the next ones begin: the blocks of a tile
/// of rows take half of the first cache, and stored rows go by in the rest.
pub const BLOCK_BYTES: usize = 4096;

/// Elements of a row that are summed before the next ones begin.
pub const fn block_len<X>() -> usize {
    BLOCK_BYTES / size_of::<X>()
}

/// Rows of activations in one part of a product.
const ROW_BLOCK: usize = 576;

/// Stored rows that are multiplied side by side.
pub const COLUMNS: usize = 4;

/// The same for a single row of activations, which memory limits: more streams keep it busy.
pub const STREAMS: usize = 8;

/// Multiplications below which waking other threads costs more than they save.
const PARALLEL_WORK: usize = 1 << 18;

/// Parts that a product is cut into for each thread.
const PARTS_OF_THREAD: usize = 16;

/// Sizes of a product.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Rows of activations.
    pub rows: usize,
    /// Elements of a row.
    pub width: usize,
    /// Stored rows.
    pub out: usize,
    /// Rows of activations that are multiplied side by side, but for the last ones.
    pub tile: usize,
}

impl Sizes {
    /// Of `x [rows, in]` times `[out, in]`, where registers hold tiles of so many rows.
    pub fn new<X>(x: &[X], [rows, out]: [usize; 2], max_tile: usize) -> Self {
        let width = x.len() / rows.max(1);
        assert_eq!(x.len(), rows * width, "linear: x has {rows} rows");
        // Tiles of equal size: 7 rows are 4 and 3, not 6 and 1.
        let tile = rows.div_ceil(rows.div_ceil(max_tile).max(1)).max(1);
        Self { rows, width, out, tile }
    }

    /// Asserts that a weight has as many elements as `[out, width]`; no rows have no width.
    pub fn check(&self, elements: usize) {
        let Self { rows, width, out, .. } = *self;
        assert!(
            rows == 0 || elements == out * width,
            "dense_linear: {elements} elements are not {out} rows of {width} columns"
        );
    }

    /// Whether waking other threads pays.
    pub fn is_parallel(&self) -> bool {
        self.rows * self.out * self.width >= PARALLEL_WORK
    }
}

/// Computes `y [rows, out]` on all threads: `run` fills the part it is given.
pub fn product(sizes: Sizes, run: impl Fn(Part) + Send + Sync) -> Vec<f32> {
    let Sizes { rows, out, .. } = sizes;
    let mut y = vec![0.0; rows * out];
    if y.is_empty() {
        return y;
    }
    let y_start = SharedMut(y.as_mut_ptr());
    let part = |rows, columns| Part { y: y_start, sizes, rows, columns };
    let threads = threads::count();
    if threads == 1 || !sizes.is_parallel() {
        run(part(0..rows, 0..out));
        return y;
    }
    // Several parts for each thread, so that a thread that was late leaves some to the others.
    let row_parts = rows.div_ceil(ROW_BLOCK);
    let row_len = rows.div_ceil(row_parts).next_multiple_of(sizes.tile);
    let columns = out.div_ceil((threads * PARTS_OF_THREAD).div_ceil(row_parts));
    let columns = columns.next_multiple_of(STREAMS);
    let (row_parts, column_parts) = (rows.div_ceil(row_len), out.div_ceil(columns));
    threads::for_each(row_parts * column_parts, |number| {
        let (row, column) = (number % row_parts * row_len, number / row_parts * columns);
        run(part(row..rows.min(row + row_len), column..out.min(column + columns)));
    });
    y
}

/// A result that several threads fill, each its own elements.
pub struct SharedMut<T>(pub *mut T);

impl<T> SharedMut<T> {
    /// # Safety
    /// The result has such an element.
    pub unsafe fn at(&self, i: usize) -> *mut T {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(i) }
    }
}

impl<T> Clone for SharedMut<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for SharedMut<T> {}

// SAFETY: every thread writes the elements of its own parts or chunks, and these do not overlap.
unsafe impl<T: Send> Send for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<T> {}

/// Some rows and columns of a product.
pub struct Part {
    /// `[all rows, out]`, zeros.
    y: SharedMut<f32>,
    pub sizes: Sizes,
    /// Rows of activations.
    pub rows: Range<usize>,
    /// Stored rows.
    pub columns: Range<usize>,
}

/// The range in steps of `len`, the last one shorter.
pub fn steps(range: &Range<usize>, len: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let end = range.end;
    range.clone().step_by(len).map(move |first| first..end.min(first + len))
}

/// A block of each of `R` rows from `rows.start` on, of `x [all rows, width]`; after the last of
/// `rows`, the last again.
#[inline(always)]
pub fn x_pointers<X, const R: usize>(
    x: &[X],
    width: usize,
    rows: &Range<usize>,
    block: &Range<usize>,
) -> [*const X; R] {
    let mut pointers = [x.as_ptr(); R];
    for (i, pointer) in pointers.iter_mut().enumerate() {
        let row = (rows.start + i).min(rows.end - 1);
        *pointer = x[row * width + block.start..][..block.len()].as_ptr();
    }
    pointers
}

impl Part {
    /// Fetches the results that [`Part::add`] will add to.
    #[inline(always)]
    pub fn prefetch<const R: usize>(&self, row: usize, columns: &Range<usize>) {
        #[cfg(target_arch = "x86_64")]
        for r in 0..R {
            // SAFETY: prefetching reads nothing.
            unsafe {
                let y = self.y.0.wrapping_add((row + r) * self.sizes.out + columns.start);
                std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(y.cast());
            }
        }
    }

    /// Adds the sums of a block to the results of `columns` in rows `row ..`, up to the part's last.
    #[inline(always)]
    pub fn add<const R: usize, const C: usize>(
        &self,
        sums: &[[f32; C]; R],
        row: usize,
        columns: &Range<usize>,
    ) {
        debug_assert!(self.rows.contains(&row), "rows of another part");
        debug_assert!(columns.end <= self.columns.end, "columns of another part");
        for (r, sums) in sums.iter().enumerate().take(self.rows.end - row) {
            // SAFETY: the elements are in this part's rows and columns; see `SharedMut`.
            unsafe {
                let y = self.y.at((row + r) * self.sizes.out + columns.start);
                if columns.len() == C {
                    let y = &mut *y.cast::<[f32; C]>();
                    for (y, sum) in y.iter_mut().zip(sums) {
                        *y += sum;
                    }
                } else {
                    for (i, sum) in sums.iter().enumerate().take(columns.len()) {
                        *y.add(i) += sum;
                    }
                }
            }
        }
    }
}
