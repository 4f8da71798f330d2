use std::cell::Cell;
use std::ops::Range;

use super::super::threads;
use super::activations::{Rounded, RoundedTile, SegmentNumbers, TokenTile, num_words, token_tiles};
use super::isa::{Integers, Isa, Kernel};
use super::kernel::{TilePointers, add_tile, num_vectors, tile_rows};
use super::layout::Stored;
use crate::codes::{BLOCK_ROWS, Segment, num_steps, vector_steps};

/// Multiplications below which waking other threads costs more than they save.
const PARALLEL_WORK: usize = 1 << 18;

/// Activations that are rounded on one thread.
const PARALLEL_ROUNDING: usize = 1 << 15;

/// Digits of a block of tokens: half of a second-level cache.
const TOKEN_BLOCK_BYTES: usize = 384 << 10;

/// Floats of a block's sums, `[tokens, vectors, lanes]`.
const MAX_SUMS: usize = 96 * 32;

/// Codes that several tiles of tokens read in turn: a third of a first-level cache.
const CODE_BYTES: usize = 16 << 10;

/// How far ahead codes are asked for.
const AHEAD: usize = 2048;

thread_local! {
    static SCRATCH: Cell<Rounded> = const { Cell::new(Rounded { digits: Vec::new(), numbers: Vec::new() }) };
}

/// `x [tokens, width]` times the matrix transposed, `[tokens, out]`, activations of `D` digits.
pub fn product<const D: usize>(
    isa: Isa,
    x: &[f32],
    stored: &Stored<'_>,
    tokens: usize,
) -> Vec<f32> {
    let [out, width] = stored.spec.shape;
    assert_eq!(x.len(), tokens * width, "packed_linear: x has rows of {width} columns");
    let mut y = Vec::with_capacity(tokens * out);
    if tokens == 0 {
        return y;
    }
    let mut rounded = SCRATCH.take();
    let y_start = SharedMut(y.as_mut_ptr());
    isa.run(Product::<D> { x, stored, tokens, rounded: &mut rounded, y: y_start, isa });
    SCRATCH.set(rounded);
    // SAFETY: the product has written every element.
    unsafe { y.set_len(tokens * out) };
    y
}

/// Memory that several threads fill, each its own elements.
#[derive(Clone, Copy)]
struct SharedMut<T>(*mut T);

// SAFETY: tiles of tokens and parts of a product do not overlap.
unsafe impl<T> Send for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for SharedMut<T> {}

impl<T> SharedMut<T> {
    /// # Safety
    /// The elements exist and nobody else uses them.
    unsafe fn slice<'a>(self, start: usize, len: usize) -> &'a mut [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

struct Product<'a, const D: usize> {
    x: &'a [f32],
    stored: &'a Stored<'a>,
    tokens: usize,
    rounded: &'a mut Rounded,
    y: SharedMut<f32>,
    isa: Isa,
}

impl<const D: usize> Kernel for Product<'_, D> {
    type Output = ();

    #[inline(always)]
    fn run<S: Integers>(self, _s: S) {
        let Self { x, stored, tokens, rounded, y, isa } = self;
        let [out, width] = stored.spec.shape;
        rounded.reserve::<S, D>(tokens, &stored.segments);
        let tiles: Vec<TokenTile> = token_tiles(tokens, tile_rows::<S, D>()).collect();
        let digits = SharedMut(rounded.digits.as_mut_ptr());
        let numbers = SharedMut(rounded.numbers.as_mut_ptr());
        let round = |tile: usize| {
            isa.run(Round::<D> { x, stored, tile: tiles[tile], digits, numbers });
        };
        if tokens * width < PARALLEL_ROUNDING {
            (0..tiles.len()).for_each(round);
        } else {
            threads::for_each(tiles.len(), round);
        }
        let part = |tiles: &[TokenTile], vectors| {
            isa.run(Part::<D> { stored, tiles, vectors, rounded: (digits, numbers), y });
        };
        let vectors = num_vectors::<S>(stored);
        let block = block_tiles::<S, D>(stored);
        let threads = threads::count();
        if threads == 1 || tokens * out * width < PARALLEL_WORK {
            return tiles.chunks(block).for_each(|tiles| part(tiles, 0..vectors));
        }
        // A few parts for each thread, so that a thread that was late leaves some to the others.
        let token_parts = tiles.len().div_ceil(block);
        let columns = vectors.div_ceil((threads * 4).div_ceil(token_parts));
        let columns = columns.next_multiple_of(S::VECTORS);
        threads::for_each(token_parts * vectors.div_ceil(columns), |number| {
            let tile = number % token_parts * block;
            let vector = number / token_parts * columns;
            let vectors = vector..vectors.min(vector + columns);
            part(&tiles[tile..tiles.len().min(tile + block)], vectors);
        });
    }
}

/// Tiles of tokens that share a pass over the codes.
fn block_tiles<S: Integers, const D: usize>(stored: &Stored<'_>) -> usize {
    let tile = tile_rows::<S, D>();
    let tile_bytes = tile * num_words::<S, D>() * num_steps(&stored.segments) * size_of::<u32>();
    let tile_sums = tile * S::VECTORS * S::LANES;
    (TOKEN_BLOCK_BYTES / tile_bytes).min(MAX_SUMS / tile_sums).max(1)
}

/// Rounds the activations of a tile of tokens.
struct Round<'a, const D: usize> {
    x: &'a [f32],
    stored: &'a Stored<'a>,
    tile: TokenTile,
    digits: SharedMut<u32>,
    numbers: SharedMut<SegmentNumbers>,
}

impl<const D: usize> Kernel for Round<'_, D> {
    type Output = ();

    #[inline(always)]
    fn run<S: Integers>(self, _s: S) {
        let (width, TokenTile { first, len }) = (self.stored.spec.shape[1], self.tile);
        let token_words = num_steps(&self.stored.segments) * num_words::<S, D>();
        let segments = self.stored.segments.len();
        // SAFETY: there is room for all tokens, and tiles do not overlap.
        let (digits, numbers) = unsafe {
            (
                self.digits.slice(first * token_words, len * token_words),
                self.numbers.slice(first * segments, len * segments),
            )
        };
        let mut tile = RoundedTile { digits, numbers, len };
        for (token, x) in self.x[first * width..].chunks_exact(width).take(len).enumerate() {
            tile.round::<S, D>(self.stored, token, x);
        }
    }
}

/// The products of some tiles of tokens with some vectors of rows.
struct Part<'a, const D: usize> {
    stored: &'a Stored<'a>,
    tiles: &'a [TokenTile],
    vectors: Range<usize>,
    rounded: (SharedMut<u32>, SharedMut<SegmentNumbers>),
    y: SharedMut<f32>,
}

/// Sums at the start of a cache line.
#[repr(align(64))]
struct Sums([f32; MAX_SUMS]);

impl<const D: usize> Kernel for Part<'_, D> {
    type Output = ();

    #[inline(always)]
    fn run<S: Integers>(self, s: S) {
        match S::VECTORS {
            1 => self.run_vectors::<S, 1>(s),
            _ => self.run_vectors::<S, 2>(s),
        }
    }
}

impl<const D: usize> Part<'_, D> {
    #[inline(always)]
    fn run_vectors<S: Integers, const O: usize>(&self, s: S) {
        let (Some(first), Some(last)) = (self.tiles.first(), self.tiles.last()) else { return };
        let tokens = last.first + last.len - first.first;
        let token_sums = O * S::LANES;
        let mut sums = Sums([0.0; MAX_SUMS]);
        for group in 0..self.vectors.len().div_ceil(O) {
            let sums = &mut sums.0[..tokens * token_sums];
            sums.fill(0.0);
            let vectors = self.vectors_of_group::<S, O>(group);
            let mut at = TilePointers::<O>::of_vectors::<S>(
                self.stored,
                vectors.map(|vector| vector.min(self.vectors.end - 1)),
            );
            let mut segment = 0;
            while segment < self.stored.segments.len() {
                let end = self.segments_end::<S, O>(segment);
                for (i, tile) in self.tiles.iter().enumerate() {
                    at.ahead = if self.tiles.len() == 1 {
                        AHEAD
                    } else if i + 1 == self.tiles.len() {
                        // The codes that the next round will read.
                        CODE_BYTES / O
                    } else {
                        0
                    };
                    // SAFETY: the buffers hold all tokens; `sums` those of this part.
                    unsafe {
                        let (digits, numbers) = self.tile_start::<S>(tile);
                        (at.digits, at.numbers) = (digits, numbers);
                        at.sums = sums[(tile.first - first.first) * token_sums..].as_mut_ptr();
                        add_tile::<S, D, O>(s, tile.len, self.stored, segment..end, &at);
                    }
                }
                segment = end;
            }
            self.store::<S, O>(s, vectors, first.first, sums);
        }
    }

    /// Vectors that are multiplied side by side: the halves of a block where vectors are half as
    /// long, otherwise blocks far apart, so that each of `O` streams of codes goes on and on. Some
    /// may lie beyond the last.
    #[inline(always)]
    fn vectors_of_group<S: Integers, const O: usize>(&self, group: usize) -> [usize; O] {
        let groups = self.vectors.len().div_ceil(O);
        let mut vectors = [0; O];
        for (o, vector) in vectors.iter_mut().enumerate() {
            let place = if S::LANES < BLOCK_ROWS { group * O + o } else { o * groups + group };
            *vector = self.vectors.start + place;
        }
        vectors
    }

    /// The end of the segments from `first` on whose codes stay in the first-level cache.
    #[inline(always)]
    fn segments_end<S: Integers, const O: usize>(&self, first: usize) -> usize {
        let segments = &self.stored.segments;
        if self.tiles.len() == 1 {
            return segments.len();
        }
        let max_steps = CODE_BYTES / (O * S::LANES * 4) * vector_steps(self.stored.spec.bits);
        let first_step = segments[first].first_step;
        let fit = |segment: &&Segment| segment.first_step + segment.steps <= first_step + max_steps;
        first + segments[first..].iter().take_while(fit).count().max(1)
    }

    #[inline(always)]
    unsafe fn tile_start<S: Integers>(
        &self,
        tile: &TokenTile,
    ) -> (*const u32, *const SegmentNumbers) {
        let words = tile.first * num_steps(&self.stored.segments) * num_words::<S, D>();
        // SAFETY: the caller vouches for the tile.
        unsafe {
            (
                self.rounded.0.0.add(words),
                self.rounded.1.0.add(tile.first * self.stored.segments.len()),
            )
        }
    }

    /// Writes the sums of all tokens, `[tokens, O, LANES]`.
    #[inline(always)]
    fn store<S: Integers, const O: usize>(
        &self,
        s: S,
        vectors: [usize; O],
        token: usize,
        sums: &[f32],
    ) {
        let out = self.stored.spec.shape[0];
        for (o, vector) in vectors.into_iter().enumerate() {
            let row = vector * S::LANES;
            if vector >= self.vectors.end || row >= out {
                continue;
            }
            let rows = S::LANES.min(out - row);
            for (i, sums) in sums.chunks_exact(O * S::LANES).enumerate() {
                let sums = &sums[o * S::LANES..][..S::LANES];
                // SAFETY: these rows of these tokens belong to this part alone.
                let y = unsafe { self.y.slice((token + i) * out + row, rows) };
                if rows == S::LANES {
                    // SAFETY: both hold a vector.
                    unsafe { s.store(y.as_mut_ptr(), s.load_f32(sums.as_ptr())) };
                } else {
                    y.copy_from_slice(&sums[..rows]);
                }
            }
        }
    }
}
