//! Products with plain floats.

use std::ops::Range;

use half::bf16;

use super::dots::{AHEAD, Dots, PanelDots, Widened};
use super::panels::{self, Fill, Tiles, TilesPart};
use super::simd::{Isa, Kernel, Simd, StoredFloat};
use super::tiles::{self, COLUMNS, Part, STREAMS, Sizes, block_len, steps, x_pointers};

/// Rows up to which copying stored rows to panels costs more than it saves.
const IN_PLACE_ROWS: usize = 24;

/// `x [rows, in]` times `weight [out, in]` transposed, `[rows, out]`.
pub fn product<W: StoredFloat>(
    isa: Isa,
    x: &[f32],
    weight: &[W],
    [rows, out]: [usize; 2],
) -> Vec<f32> {
    let (max_tile, lanes) = isa.run(panels::Limits);
    let sizes = Sizes::new(x, [rows, out], max_tile);
    sizes.check(weight.len());
    if rows <= max_tile {
        return tiles::product(sizes, |part| isa.run(Stream { part, x, weight }));
    }
    let x = Tiles::new(x, sizes, lanes, |part| isa.run(part));
    if rows <= IN_PLACE_ROWS {
        return tiles::product(sizes, |part| isa.run(InPlace { part, x: &x, weight }));
    }
    tiles::product(sizes, |part| isa.run(Panels { part, x: &x, weight }))
}

/// A part of a product of one tile of rows: memory is the limit, so each stored row is read from
/// its first element to its last.
struct Stream<'a, X, W> {
    part: Part,
    /// `[rows, width]`.
    x: &'a [X],
    /// `[out, width]`.
    weight: &'a [W],
}

impl<W: StoredFloat> Kernel for Stream<'_, f32, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.multiply(Widened::<S, W>::new(s));
    }
}

impl<X, W: Copy> Stream<'_, X, W> {
    #[inline(always)]
    fn multiply<D: Dots<X = X, W = W>>(&self, dots: D) {
        match self.part.rows.len() {
            6 => self.rows::<D, 6, COLUMNS>(dots),
            5 => self.rows::<D, 5, COLUMNS>(dots),
            4 => self.rows::<D, 4, COLUMNS>(dots),
            3 => self.rows::<D, 3, COLUMNS>(dots),
            2 => self.rows::<D, 2, COLUMNS>(dots),
            _ if D::ROWS > 1 => self.rows::<D, 1, STREAMS>(dots),
            _ => self.rows::<D, 1, COLUMNS>(dots),
        }
    }

    #[inline(always)]
    fn rows<D: Dots<X = X, W = W>, const R: usize, const C: usize>(&self, dots: D) {
        for columns in steps(&self.part.columns, C) {
            for block in steps(&(0..self.part.sizes.width), block_len::<X>()) {
                self.tile::<D, R, C>(dots, &columns, &block);
            }
        }
    }

    /// Multiplies `R` rows, all there are, with a block of each of up to `C` stored rows.
    #[inline(always)]
    fn tile<D: Dots<X = X, W = W>, const R: usize, const C: usize>(
        &self,
        dots: D,
        columns: &Range<usize>,
        block: &Range<usize>,
    ) {
        let Self { part, x, weight } = self;
        let width = part.sizes.width;
        let x = x_pointers::<X, R>(x, width, &part.rows, block);
        let stored = |column| row_block(weight, width, column, block).as_ptr();
        let mut sums = [[0.0; C]; R];
        if columns.len() == C {
            let mut w = [weight.as_ptr(); C];
            for (w, column) in w.iter_mut().zip(columns.clone()) {
                *w = stored(column);
            }
            // SAFETY: `row_block` and `x_pointers` check the lengths.
            sums = unsafe { dots.dots(x, w, block.len()) };
        } else {
            for (i, column) in columns.clone().enumerate() {
                // SAFETY: as above.
                let one = unsafe { dots.dots(x, [stored(column)], block.len()) };
                for (sums, [sum]) in sums.iter_mut().zip(one) {
                    sums[i] = sum;
                }
            }
        }
        part.add(&sums, part.rows.start, columns);
    }
}

/// A part of a product of a few tiles of rows: memory and arithmetic take about as long, so stored
/// rows are multiplied where they lie, those after them being fetched meanwhile.
struct InPlace<'a, X, W> {
    part: Part,
    x: &'a Tiles<X>,
    /// `[out, width]`.
    weight: &'a [W],
}

impl<W: StoredFloat> Kernel for InPlace<'_, f32, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.multiply(Widened::<S, W>::new(s));
    }
}

impl<X: Send + Sync, W: Copy> InPlace<'_, X, W> {
    #[inline(always)]
    fn multiply<D: Dots<X = X, W = W>>(&self, dots: D) {
        let Part { sizes, columns, rows, .. } = &self.part;
        let passes = steps(columns, COLUMNS).flat_map(|columns| {
            steps(&(0..sizes.width), block_len::<X>()).map(move |block| (columns.clone(), block))
        });
        let mut passes = passes.peekable();
        while let Some((columns, block)) = passes.next() {
            let w = self.pointers(&columns, &block);
            let next = passes.peek().map_or(w, |(columns, block)| self.pointers(columns, block));
            for (i, tile) in steps(rows, sizes.tile).enumerate() {
                // Each tile fetches a part; what is fetched already costs little once more.
                let ahead = [i * AHEAD, i * AHEAD + 1].map(|i| next[i.min(COLUMNS - 1)]);
                let place = (tile.start, &columns, &block);
                match tile.len() {
                    6 => self.tile::<D, 6>(dots, w, place, ahead),
                    5 => self.tile::<D, 5>(dots, w, place, ahead),
                    4 => self.tile::<D, 4>(dots, w, place, ahead),
                    3 => self.tile::<D, 3>(dots, w, place, ahead),
                    2 => self.tile::<D, 2>(dots, w, place, ahead),
                    _ => self.tile::<D, 1>(dots, w, place, ahead),
                }
            }
        }
    }

    /// A block of each of the stored rows, the last one's again where there are fewer.
    #[inline(always)]
    fn pointers(&self, columns: &Range<usize>, block: &Range<usize>) -> [*const W; COLUMNS] {
        let mut pointers = [self.weight.as_ptr(); COLUMNS];
        for (i, pointer) in pointers.iter_mut().enumerate() {
            let column = (columns.start + i).min(columns.end - 1);
            *pointer = row_block(self.weight, self.part.sizes.width, column, block).as_ptr();
        }
        pointers
    }

    /// Multiplies the `R` rows from `row` on.
    #[inline(always)]
    fn tile<D: Dots<X = X, W = W>, const R: usize>(
        &self,
        dots: D,
        w: [*const W; COLUMNS],
        (row, columns, block): (usize, &Range<usize>, &Range<usize>),
        ahead: [*const W; AHEAD],
    ) {
        let x = self.x.tile(row, block);
        // SAFETY: `row_block` checked the lengths, and the tile has a block of `R` rows.
        let sums = unsafe { dots.tile_dots::<R>(x, w, block.len(), ahead) };
        self.part.add(&sums, row, columns);
    }
}

/// A block of row `row` of `[_, width]`.
#[inline(always)]
fn row_block<'a, W>(matrix: &'a [W], width: usize, row: usize, block: &Range<usize>) -> &'a [W] {
    &matrix[row * width + block.start..][..block.len()]
}

/// A part of a product of many rows.
struct Panels<'a, X, W> {
    part: Part,
    x: &'a Tiles<X>,
    /// `[out, width]`.
    weight: &'a [W],
}

impl<W: StoredFloat> Kernel for Panels<'_, f32, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        panels::multiply(&self.part, self.x, Widened::<S, f32>::new(s), &self);
    }
}

impl<S: Simd, W: StoredFloat> Fill<Widened<S, f32>> for &Panels<'_, f32, W> {
    fn bytes(&self, row: usize, block: &Range<usize>) -> &[u8] {
        bytemuck::cast_slice(row_block(self.weight, self.part.sizes.width, row, block))
    }

    #[inline(always)]
    unsafe fn fill(
        &mut self,
        dots: Widened<S, f32>,
        row: usize,
        block: &Range<usize>,
        to: *mut f32,
    ) {
        let from = row_block(self.weight, self.part.sizes.width, row, block);
        // SAFETY: the caller's promise.
        unsafe { dots.widen(from.as_ptr(), from.len(), to, COLUMNS) };
    }
}

impl Kernel for TilesPart<'_, f32> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.place(Widened::<S, f32>::new(s));
    }
}

#[cfg(target_arch = "x86_64")]
pub use brain::{multiplies_bf16, product_bf16};

/// Whether this CPU has instructions for products of `bf16`.
#[cfg(not(target_arch = "x86_64"))]
pub fn multiplies_bf16() -> bool {
    false
}

/// As [`product`], on the widest instruction set.
#[cfg(not(target_arch = "x86_64"))]
pub fn product_bf16(x: &[f32], weight: &[bf16], shape: [usize; 2]) -> Vec<f32> {
    product(Isa::best(), x, weight, shape)
}

/// Products with both operands in `bf16`.
#[cfg(target_arch = "x86_64")]
mod brain {
    use super::super::dots::x86_bf16::{self, Pairs, PairsKernel};
    use super::*;

    /// Whether this CPU has instructions for products of `bf16`.
    pub fn multiplies_bf16() -> bool {
        x86_bf16::is_available()
    }

    /// As [`super::product`], `x` rounded to `bf16`.
    pub fn product_bf16(x: &[f32], weight: &[bf16], [rows, out]: [usize; 2]) -> Vec<f32> {
        let (max_tile, lanes) = (<Pairs as Dots>::ROWS, <Pairs as PanelDots>::LANES);
        let sizes = Sizes::new(x, [rows, out], max_tile);
        sizes.check(weight.len());
        if rows <= max_tile {
            let mut rounded = vec![bf16::ZERO; x.len()];
            x86_bf16::run(Round { from: x, to: &mut rounded });
            return tiles::product(sizes, |part| {
                x86_bf16::run(Stream { part, x: &rounded[..], weight });
            });
        }
        let x = Tiles::new(x, sizes, lanes, |part| x86_bf16::run(part));
        if rows <= IN_PLACE_ROWS {
            return tiles::product(sizes, |part| x86_bf16::run(InPlace { part, x: &x, weight }));
        }
        tiles::product(sizes, |part| x86_bf16::run(Panels { part, x: &x, weight }))
    }

    impl PairsKernel for Stream<'_, bf16, bf16> {
        #[inline(always)]
        fn run(self, pairs: Pairs) {
            self.multiply(pairs);
        }
    }

    impl PairsKernel for InPlace<'_, bf16, bf16> {
        #[inline(always)]
        fn run(self, pairs: Pairs) {
            self.multiply(pairs);
        }
    }

    impl PairsKernel for Panels<'_, bf16, bf16> {
        #[inline(always)]
        fn run(self, pairs: Pairs) {
            panels::multiply(&self.part, self.x, pairs, &self);
        }
    }

    impl PairsKernel for TilesPart<'_, bf16> {
        #[inline(always)]
        fn run(self, pairs: Pairs) {
            self.place(pairs);
        }
    }

    impl Fill<Pairs> for &Panels<'_, bf16, bf16> {
        fn bytes(&self, row: usize, block: &Range<usize>) -> &[u8] {
            bytemuck::cast_slice(row_block(self.weight, self.part.sizes.width, row, block))
        }

        #[inline(always)]
        unsafe fn fill(&mut self, dots: Pairs, row: usize, block: &Range<usize>, to: *mut bf16) {
            let from = row_block(self.weight, self.part.sizes.width, row, block);
            // SAFETY: the caller's promise.
            unsafe { dots.copy(from.as_ptr(), from.len(), to, COLUMNS) };
        }
    }

    /// Rounds activations where they stay row after row.
    struct Round<'a> {
        from: &'a [f32],
        to: &'a mut [bf16],
    }

    impl PairsKernel for Round<'_> {
        #[inline(always)]
        fn run(self, pairs: Pairs) {
            pairs.round_all(self.from, self.to);
        }
    }
}

#[cfg(test)]
mod tests;
