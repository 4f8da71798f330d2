//! Paged attention with a running softmax over partitions of the context.
//!
//! A query's context is cut into partitions of [`PARTITION`] positions, by absolute position. Each
//! gives a maximum, a sum of exponentials and a weighted sum of values; these are merged in the
//! order of the partitions. Nothing in that depends on blocks, on the other queries or on which
//! thread computed a partition, so neither do the bits of the result.

use std::{cell::RefCell, ops::Range};

use engine_quant::simd::{self, Isa, Kernel, Simd};
use rayon::prelude::*;

use super::{
    math::{self, Map},
    sample,
};
use crate::{BatchInput, ops::attention::AttentionArgs};

/// Positions in a partition.
const PARTITION: usize = 256;

/// Queries (tokens times the heads that share a key head) that read a partition together.
const TILE: usize = 16;

/// Products and sums below which waking other threads costs more than they save.
const PARALLEL_WORK: usize = 1 << 17;

/// The operands of one call.
pub struct Attention<'a> {
    /// `[tokens, heads · head_dim]`.
    pub q: &'a [f32],
    /// `[slots, kv_heads · head_dim]`.
    pub keys: &'a [f32],
    /// `[slots, kv_heads · head_dim]`.
    pub values: &'a [f32],
    pub input: &'a BatchInput,
    pub args: &'a AttentionArgs,
}

/// Consecutive queries of one sequence and one key head. Query `i` of those belongs to token
/// `i / group` of the chunk and to head `i % group` of the key head's group.
struct Tile {
    sequence: usize,
    kv_head: usize,
    queries: Range<usize>,
    /// Positions that some query of the tile sees.
    seen: Range<usize>,
}

impl Tile {
    fn partitions(&self) -> Range<usize> {
        self.seen.start / PARTITION..self.seen.end.div_ceil(PARTITION)
    }
}

/// What some of the context gave to the queries of a tile.
struct Partial {
    /// Largest score of each query; a query that has seen nothing has a sum of zero.
    max: [f32; TILE],
    /// Sum of `exp(score − max)` of each query.
    sum: [f32; TILE],
    /// Values weighted by the same, `[TILE, head_dim]`.
    out: Vec<f32>,
}

impl Partial {
    fn new(head_dim: usize) -> Self {
        Self { max: [0.0; TILE], sum: [0.0; TILE], out: vec![0.0; TILE * head_dim] }
    }
}

/// The result, which several threads fill, each the rows of its own tiles.
#[derive(Clone, Copy)]
struct SharedMut(*mut f32);

// SAFETY: `Attention::finish` writes the heads of one tile, and no two tiles have one in common.
unsafe impl Send for SharedMut {}
// SAFETY: as above.
unsafe impl Sync for SharedMut {}

thread_local! {
    /// Scores of a tile over a partition, `[TILE, PARTITION]`.
    static SCORES: RefCell<Vec<f32>> = RefCell::new(vec![0.0; TILE * PARTITION]);
}

impl Attention<'_> {
    /// `[tokens, heads · head_dim]`.
    pub fn run(&self, isa: Isa) -> Vec<f32> {
        let mut out = vec![0.0; self.q.len()];
        let tiles = self.tiles();
        let seen: usize = tiles.iter().map(|tile| tile.queries.len() * tile.seen.len()).sum();
        let threads = rayon::current_num_threads();
        let shared = SharedMut(out.as_mut_ptr());
        let attend = |tile| self.finish(tile, &self.attend(isa, tile), shared);
        if threads == 1 || seen * self.args.head_dim < PARALLEL_WORK {
            tiles.iter().for_each(attend);
        } else if tiles.len() >= 4 * threads {
            tiles.par_iter().with_max_len(1).for_each(attend);
        } else {
            self.run_split(isa, &tiles, shared);
        }
        out
    }

    /// Few queries: every partition is a task of its own.
    fn run_split(&self, isa: Isa, tiles: &[Tile], out: SharedMut) {
        let tasks: Vec<_> = tiles
            .iter()
            .flat_map(|t| t.partitions().map(move |partition| (t, partition)))
            .collect();
        let mut parts: Vec<_> = tasks
            .into_par_iter()
            .with_max_len(1)
            .map(|(tile, partition)| {
                let mut part = Partial::new(self.args.head_dim);
                self.attend_partition(isa, tile, partition, &mut part);
                part
            })
            .collect();
        let mut parts = parts.drain(..);
        for tile in tiles {
            let mut total = Partial::new(self.args.head_dim);
            for part in parts.by_ref().take(tile.partitions().len()) {
                isa.run(Merge { total: &mut total, part: &part, queries: tile.queries.len() });
            }
            self.finish(tile, &total, out);
        }
    }

    /// One tile over its whole context, partition by partition.
    fn attend(&self, isa: Isa, tile: &Tile) -> Partial {
        let mut total = Partial::new(self.args.head_dim);
        let mut part = Partial::new(self.args.head_dim);
        for partition in tile.partitions() {
            self.attend_partition(isa, tile, partition, &mut part);
            isa.run(Merge { total: &mut total, part: &part, queries: tile.queries.len() });
        }
        total
    }

    fn attend_partition(&self, isa: Isa, tile: &Tile, partition: usize, part: &mut Partial) {
        SCORES.with_borrow_mut(|scores| {
            isa.run(PartitionKernel { attention: self, tile, partition, scores, part });
        });
    }

    /// Divides by the sums and writes the tile's rows.
    fn finish(&self, tile: &Tile, total: &Partial, out: SharedMut) {
        let head_dim = self.args.head_dim;
        for (i, query) in tile.queries.clone().enumerate() {
            let start = self.query_start(tile, query);
            assert!(start + head_dim <= self.q.len());
            let factor = 1.0 / total.sum[i];
            for (d, sum) in total.out[i * head_dim..][..head_dim].iter().enumerate() {
                // SAFETY: `out` is as long as `q`, and this token's head is in no other tile.
                unsafe { *out.0.add(start + d) = sum * factor };
            }
        }
    }

    fn group(&self) -> usize {
        self.args.heads / self.args.kv_heads
    }

    fn tiles(&self) -> Vec<Tile> {
        let group = self.group();
        let starts = &self.input.query_starts;
        let mut tiles = Vec::new();
        for sequence in 0..self.input.num_sequences() {
            let queries = (starts[sequence + 1] - starts[sequence]) as usize * group;
            for kv_head in 0..self.args.kv_heads {
                for first in (0..queries).step_by(TILE) {
                    let queries = first..queries.min(first + TILE);
                    let mut tile = Tile { sequence, kv_head, queries, seen: 0..0 };
                    let last = self.seen(&tile, tile.queries.end - 1);
                    tile.seen = self.seen(&tile, first).start..last.end;
                    tiles.push(tile);
                }
            }
        }
        tiles
    }

    /// Positions that a query sees.
    fn seen(&self, tile: &Tile, query: usize) -> Range<usize> {
        let first = self.input.query_starts[tile.sequence] as usize;
        let end = self.input.positions[first] as usize + query / self.group() + 1;
        self.args.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    /// Where a query lies in `q` and its result in the output.
    fn query_start(&self, tile: &Tile, query: usize) -> usize {
        let group = self.group();
        let token = self.input.query_starts[tile.sequence] as usize + query / group;
        let head = tile.kv_head * group + query % group;
        (token * self.args.heads + head) * self.args.head_dim
    }

    /// Where the rows of `positions` lie in the cache, for one key head.
    fn row_starts(&self, tile: &Tile, positions: Range<usize>) -> [usize; PARTITION] {
        let AttentionArgs { kv_heads, head_dim, .. } = *self.args;
        let row_len = kv_heads * head_dim;
        let block_size = self.input.block_size;
        let table = &self.input.page_tables[tile.sequence];
        let mut starts = [0; PARTITION];
        let mut position = positions.start;
        while position < positions.end {
            let offset = position % block_size;
            let run = (block_size - offset).min(positions.end - position);
            let slot = table[position / block_size] as usize * block_size + offset;
            let end = (slot + run) * row_len;
            assert!(
                end <= self.keys.len() && end <= self.values.len(),
                "paged_attention: slot {} of a cache with {} slots",
                slot + run - 1,
                self.keys.len() / row_len
            );
            for i in 0..run {
                let start = (slot + i) * row_len + tile.kv_head * head_dim;
                starts[position - positions.start + i] = start;
            }
            position += run;
        }
        starts
    }
}

/// One tile over one partition.
struct PartitionKernel<'a> {
    attention: &'a Attention<'a>,
    tile: &'a Tile,
    partition: usize,
    scores: &'a mut [f32],
    part: &'a mut Partial,
}

impl Kernel for PartitionKernel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { attention, tile, partition, scores, part } = self;
        let args = attention.args;
        let whole = partition * PARTITION..(partition + 1) * PARTITION;
        let cut = |seen: Range<usize>| whole.start.max(seen.start)..whole.end.min(seen.end);
        let positions = cut(tile.seen.clone());
        let rows = attention.row_starts(tile, positions.clone());
        // What each query sees, counted from the first position of the tile.
        let mut ranges = [(0, 0); TILE];
        let count = tile.queries.len();
        for (i, query) in tile.queries.clone().enumerate() {
            let seen = cut(attention.seen(tile, query));
            if !seen.is_empty() {
                ranges[i] = (seen.start - positions.start, seen.end - positions.start);
            }
        }
        let mut block = Block { s, attention, tile, rows: &rows, ranges: &ranges, scores };
        let mut first = 0;
        while first < count {
            let left = count - first;
            first += match left {
                4.. if S::TILE_ROWS >= 4 => block.scores::<4>(first),
                2.. if S::TILE_ROWS >= 2 => block.scores::<2>(first),
                _ => block.scores::<1>(first),
            };
        }
        for i in 0..count {
            (part.max[i], part.sum[i]) = block.softmax(i, args);
        }
        part.out.fill(0.0);
        let mut first = 0;
        while first < count {
            let left = count - first;
            first += match left {
                4.. if S::TILE_ROWS >= 4 => block.weigh::<4>(first, &mut part.out),
                2.. if S::TILE_ROWS >= 2 => block.weigh::<2>(first, &mut part.out),
                _ => block.weigh::<1>(first, &mut part.out),
            };
        }
    }
}

/// `x · scale`
#[derive(Clone, Copy)]
struct Scale(f32);

impl Map for Scale {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        s.mul(x, s.splat(self.0))
    }
}

/// `cap · tanh(x · scale / cap)`
#[derive(Clone, Copy)]
struct Cap {
    scale: f32,
    cap: f32,
}

impl Map for Cap {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        let cap = s.splat(self.cap);
        s.mul(cap, math::tanh(s, s.div(s.mul(x, s.splat(self.scale)), cap)))
    }
}

/// `exp(x − shift)`
#[derive(Clone, Copy)]
struct ExpMinus(f32);

impl Map for ExpMinus {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        math::exp(s, s.sub(x, s.splat(self.0)))
    }
}

struct Block<'a, S> {
    s: S,
    attention: &'a Attention<'a>,
    tile: &'a Tile,
    /// Where each position's row starts in the cache, checked to lie in it.
    rows: &'a [usize; PARTITION],
    /// Positions that each query sees, as indices of `rows`.
    ranges: &'a [(usize, usize); TILE],
    /// `[TILE, PARTITION]`.
    scores: &'a mut [f32],
}

impl<S: Simd> Block<'_, S> {
    /// `q · k` of `R` queries from `first` on; returns `R`.
    #[inline(always)]
    fn scores<const R: usize>(&mut self, first: usize) -> usize {
        let head_dim = self.attention.args.head_dim;
        let mut q = [self.attention.q.as_ptr(); R];
        let (mut start, mut end) = (PARTITION, 0);
        for (r, pointer) in q.iter_mut().enumerate() {
            let query = self.tile.queries.start + first + r;
            let from = self.attention.query_start(self.tile, query);
            *pointer = self.attention.q[from..][..head_dim].as_ptr();
            let range = self.ranges[first + r];
            if range.0 < range.1 {
                (start, end) = (start.min(range.0), end.max(range.1));
            }
        }
        let keys = self.attention.keys;
        let mut j = start;
        while j < end {
            if j + 4 <= end {
                let mut k = [keys.as_ptr(); 4];
                for (i, pointer) in k.iter_mut().enumerate() {
                    *pointer = keys[self.rows[j + i]..][..head_dim].as_ptr();
                }
                // SAFETY: the slices above have `head_dim` elements.
                let scores = unsafe { simd::dot_tile(self.s, q, k, head_dim) };
                for (r, scores) in scores.iter().enumerate() {
                    self.scores[(first + r) * PARTITION + j..][..4].copy_from_slice(scores);
                }
                j += 4;
            } else {
                let k = [keys[self.rows[j]..][..head_dim].as_ptr()];
                // SAFETY: as above.
                let scores = unsafe { simd::dot_tile(self.s, q, k, head_dim) };
                for (r, [score]) in scores.into_iter().enumerate() {
                    self.scores[(first + r) * PARTITION + j] = score;
                }
                j += 1;
            }
        }
        R
    }

    /// Turns one query's scores into weights; returns their maximum and the weights' sum.
    #[inline(always)]
    fn softmax(&mut self, query: usize, args: &AttentionArgs) -> (f32, f32) {
        let s = self.s;
        let (start, end) = self.ranges[query];
        if start == end {
            return (0.0, 0.0);
        }
        let scores = &mut self.scores[query * PARTITION..][start..end];
        match args.softcap {
            None => math::map_in_place(s, scores, Scale(args.scale)),
            Some(cap) => math::map_in_place(s, scores, Cap { scale: args.scale, cap }),
        }
        let max = sample::max(s, scores);
        if max == f32::NEG_INFINITY {
            // Nothing weighs anything, or everything is NaN, which must not be hidden.
            let nan = scores.iter().any(|score| score.is_nan());
            return (0.0, if nan { f32::NAN } else { 0.0 });
        }
        math::map_in_place(s, scores, ExpMinus(max));
        (max, math::sum(s, scores))
    }

    /// Adds the weighted values of `R` queries from `first` on to `out [TILE, head_dim]`; returns
    /// `R`. Each query's own positions are added in ascending order, no others are touched.
    #[inline(always)]
    fn weigh<const R: usize>(&mut self, first: usize, out: &mut [f32]) -> usize {
        let (mut start, mut end) = (0, PARTITION);
        for r in 0..R {
            let range = self.ranges[first + r];
            (start, end) = (start.max(range.0), end.min(range.1));
        }
        if R == 1 || start >= end {
            for r in 0..R {
                let (from, to) = self.ranges[first + r];
                self.weigh_range::<1>(first + r, from..to, out);
            }
            return R;
        }
        for r in 0..R {
            self.weigh_range::<1>(first + r, self.ranges[first + r].0..start, out);
        }
        self.weigh_range::<R>(first, start..end, out);
        for r in 0..R {
            self.weigh_range::<1>(first + r, end..self.ranges[first + r].1, out);
        }
        R
    }

    #[inline(always)]
    fn weigh_range<const R: usize>(&self, first: usize, rows: Range<usize>, out: &mut [f32]) {
        let head_dim = self.attention.args.head_dim;
        if rows.is_empty() {
            return;
        }
        let mut column = 0;
        while column < head_dim {
            let lanes = (head_dim - column) / S::LANES;
            column += match lanes {
                4.. => self.weigh_columns::<R, 4>(first, rows.clone(), column, out),
                2.. => self.weigh_columns::<R, 2>(first, rows.clone(), column, out),
                1 => self.weigh_columns::<R, 1>(first, rows.clone(), column, out),
                _ => self.weigh_rest::<R>(first, rows.clone(), column, out),
            };
        }
    }

    /// `N` vectors of columns; returns their number of columns.
    #[inline(always)]
    fn weigh_columns<const R: usize, const N: usize>(
        &self,
        first: usize,
        rows: Range<usize>,
        column: usize,
        out: &mut [f32],
    ) -> usize {
        let s = self.s;
        let head_dim = self.attention.args.head_dim;
        let width = N * S::LANES;
        let mut sums = [[s.splat(0.0); N]; R];
        for (r, sums) in sums.iter_mut().enumerate() {
            let from = &out[(first + r) * head_dim + column..][..width];
            for (n, sum) in sums.iter_mut().enumerate() {
                // SAFETY: `from` has `N · LANES` elements.
                *sum = unsafe { s.load(from.as_ptr().add(n * S::LANES)) };
            }
        }
        for j in rows {
            let values = &self.attention.values[self.rows[j] + column..][..width];
            for n in 0..N {
                // SAFETY: `values` has `N · LANES` elements.
                let value = unsafe { s.load(values.as_ptr().add(n * S::LANES)) };
                for (r, sums) in sums.iter_mut().enumerate() {
                    let weight = s.splat(self.scores[(first + r) * PARTITION + j]);
                    sums[n] = s.mul_add(weight, value, sums[n]);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            let to = &mut out[(first + r) * head_dim + column..][..width];
            for (n, &sum) in sums.iter().enumerate() {
                // SAFETY: `to` has `N · LANES` elements.
                unsafe { s.store(to.as_mut_ptr().add(n * S::LANES), sum) };
            }
        }
        width
    }

    /// The last columns, fewer than a vector; returns their number.
    #[inline(always)]
    fn weigh_rest<const R: usize>(
        &self,
        first: usize,
        rows: Range<usize>,
        column: usize,
        out: &mut [f32],
    ) -> usize {
        let s = self.s;
        let head_dim = self.attention.args.head_dim;
        let width = head_dim - column;
        let mut sums = [s.splat(0.0); R];
        for (r, sum) in sums.iter_mut().enumerate() {
            let from = &out[(first + r) * head_dim + column..][..width];
            // SAFETY: `from` has `width < LANES` elements.
            *sum = unsafe { s.load_partial(from.as_ptr(), width) };
        }
        for j in rows {
            let values = &self.attention.values[self.rows[j] + column..][..width];
            // SAFETY: `values` has `width < LANES` elements.
            let value = unsafe { s.load_partial(values.as_ptr(), width) };
            for (r, sum) in sums.iter_mut().enumerate() {
                let weight = s.splat(self.scores[(first + r) * PARTITION + j]);
                *sum = s.mul_add(weight, value, *sum);
            }
        }
        for (r, &sum) in sums.iter().enumerate() {
            let to = &mut out[(first + r) * head_dim + column..][..width];
            math::store_partial(s, to, sum);
        }
        width
    }
}

/// Adds the next partition's part to the total of the partitions before it.
struct Merge<'a> {
    total: &'a mut Partial,
    part: &'a Partial,
    queries: usize,
}

impl Kernel for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let head_dim = self.total.out.len() / TILE;
        for i in 0..self.queries {
            if self.part.sum[i] == 0.0 {
                continue;
            }
            let total = &mut self.total.out[i * head_dim..][..head_dim];
            let part = &self.part.out[i * head_dim..][..head_dim];
            if self.total.sum[i] == 0.0 {
                total.copy_from_slice(part);
                (self.total.max[i], self.total.sum[i]) = (self.part.max[i], self.part.sum[i]);
                continue;
            }
            let max = self.total.max[i].max(self.part.max[i]);
            let mut factors = [self.total.max[i], self.part.max[i]];
            math::map_in_place(s, &mut factors, ExpMinus(max));
            let [keep, add] = factors;
            self.total.max[i] = max;
            self.total.sum[i] = self.total.sum[i] * keep + self.part.sum[i] * add;
            for (total, part) in total.iter_mut().zip(part) {
                *total = *total * keep + part * add;
            }
        }
    }
}
