//! What products with stored rows share, whatever these are stored in: how `x · Wᵀ` is cut into
//! parts and tiles.
//!
//! The product of one row with one stored row is a sum over blocks of [`BLOCK`] elements in order,
//! each block summed in the lane order of [`simd`]. Neither the number of rows nor
//! that of threads has a part in it, so a row's result is the same bits in every batch.

use std::ops::Range;

use super::simd::{self, Simd, StoredFloat};
use super::threads;

/// Elements of a row that are summed before the next ones begin.
pub const BLOCK: usize = 2048;

/// Rows of activations that share one pass over the weights: their blocks stay in the cache.
pub const ROW_BLOCK: usize = 72;

/// Stored rows that are multiplied side by side.
pub const COLUMNS: usize = 4;

/// The same for a single row of activations, which memory limits: more streams keep it busy.
pub const STREAMS: usize = 8;

/// Multiplications below which waking other threads costs more than they save.
const PARALLEL_WORK: usize = 1 << 18;

/// Computes `y [rows, out]` from `x [rows, in]` on all threads: `run` fills the part it is given.
pub fn product(
    x: &[f32],
    [rows, out]: [usize; 2],
    run: impl Fn(Part<'_>) + Send + Sync,
) -> Vec<f32> {
    let mut y = vec![0.0; rows * out];
    if y.is_empty() {
        return y;
    }
    let width = x.len() / rows;
    assert_eq!(x.len(), rows * width, "linear: x has {rows} rows");
    let y_start = SharedMut(y.as_mut_ptr());
    let part = |rows, columns| Part { x, y: y_start, width, out, rows, columns };
    let threads = threads::count();
    if threads == 1 || rows * out * width < PARALLEL_WORK {
        run(part(0..rows, 0..out));
        return y;
    }
    // A few parts for each thread, so that a thread that was late leaves some to the others.
    let row_parts = rows.div_ceil(ROW_BLOCK);
    let column_parts = (threads * 4).div_ceil(row_parts);
    let columns = out.div_ceil(column_parts).next_multiple_of(STREAMS);
    let column_parts = out.div_ceil(columns);
    threads::for_each(row_parts * column_parts, |number| {
        let (row, column) = (number % row_parts * ROW_BLOCK, number / row_parts * columns);
        run(part(row..rows.min(row + ROW_BLOCK), column..out.min(column + columns)));
    });
    y
}

/// A result that several threads fill, each its own elements.
#[derive(Clone, Copy)]
struct SharedMut(*mut f32);

// SAFETY: every `Part` writes the elements of its own rows and columns, and parts do not overlap.
unsafe impl Send for SharedMut {}
// SAFETY: as above.
unsafe impl Sync for SharedMut {}

/// Some rows and columns of a product.
pub struct Part<'a> {
    /// `[all rows, width]`.
    x: &'a [f32],
    /// `[all rows, out]`, zeros.
    y: SharedMut,
    /// Elements of a row.
    pub width: usize,
    out: usize,
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

impl Part<'_> {
    /// Multiplies the rows with `columns` stored rows, as many at a time as registers hold.
    ///
    /// # Safety
    /// `block.len()` elements can be read at the first `columns.len()` pointers.
    #[inline(always)]
    pub unsafe fn row_tiles<S: Simd, T: StoredFloat>(
        &self,
        s: S,
        rows: &Range<usize>,
        block: &Range<usize>,
        (stored, columns): ([*const T; COLUMNS], &Range<usize>),
    ) {
        let mut row = rows.start;
        while row < rows.end {
            let left = rows.end - row;
            // Tiles of equal size: 7 rows are 4 and 3, not 6 and 1.
            let tile = left.div_ceil(left.div_ceil(S::TILE_ROWS));
            let stored = (stored, columns);
            // SAFETY: the caller's promise.
            unsafe {
                match tile {
                    6 => self.tile::<S, T, 6, COLUMNS>(s, row, block, stored),
                    5 => self.tile::<S, T, 5, COLUMNS>(s, row, block, stored),
                    4 => self.tile::<S, T, 4, COLUMNS>(s, row, block, stored),
                    3 => self.tile::<S, T, 3, COLUMNS>(s, row, block, stored),
                    2 => self.tile::<S, T, 2, COLUMNS>(s, row, block, stored),
                    _ => self.tile::<S, T, 1, COLUMNS>(s, row, block, stored),
                }
            }
            row += tile;
        }
    }

    /// Multiplies `R` rows with up to `C` stored rows.
    ///
    /// # Safety
    /// As for [`Part::row_tiles`].
    #[inline(always)]
    pub unsafe fn tile<S: Simd, T: StoredFloat, const R: usize, const C: usize>(
        &self,
        s: S,
        row: usize,
        block: &Range<usize>,
        (stored, columns): ([*const T; C], &Range<usize>),
    ) {
        let x = self.x_pointers::<R>(row, block);
        let mut sums = [[0.0; C]; R];
        if columns.len() == C {
            // SAFETY: the caller's promise, and `x_pointers` checks its own.
            sums = unsafe { simd::dot_tile(s, x, stored, block.len()) };
        } else {
            for (i, &stored) in stored.iter().enumerate().take(columns.len()) {
                // SAFETY: as above.
                let one = unsafe { simd::dot_tile(s, x, [stored], block.len()) };
                for (sums, [sum]) in sums.iter_mut().zip(one) {
                    sums[i] = sum;
                }
            }
        }
        self.add(&sums, row, columns);
    }

    /// A block of each of `R` rows of activations; after the last of the part, the last again.
    #[inline(always)]
    pub fn x_pointers<const R: usize>(&self, row: usize, block: &Range<usize>) -> [*const f32; R] {
        let mut x = [self.x.as_ptr(); R];
        for (i, pointer) in x.iter_mut().enumerate() {
            let row = (row + i).min(self.rows.end - 1);
            *pointer = self.x[row * self.width + block.start..][..block.len()].as_ptr();
        }
        x
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
            for (sum, column) in sums.iter().zip(columns.clone()) {
                // SAFETY: the element is in this part's rows and columns; see `SharedMut`.
                unsafe { *self.y.0.add((row + r) * self.out + column) += sum };
            }
        }
    }
}
