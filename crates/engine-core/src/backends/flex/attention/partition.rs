//! One tile of queries over one partition of the context, and the sum of two partitions.

use std::ops::Range;

use engine_quant::simd::{self, Kernel, Simd, StoredFloat};

use super::super::{
    math::{self, Map},
    sample,
};
use super::{Attention, PARTITION, Partial, TILE, Tile};
use crate::ops::attention::AttentionArgs;

/// One tile over one partition.
pub struct PartitionKernel<'a, T> {
    pub attention: &'a Attention<'a, T>,
    pub tile: &'a Tile,
    pub partition: usize,
    /// Room for the scores, `[TILE, PARTITION]`.
    pub scores: &'a mut [f32],
    /// The result.
    pub part: &'a mut Partial,
}

impl<T: StoredFloat> Kernel for PartitionKernel<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { attention, tile, partition, scores, part } = self;
        let args = attention.args;
        let whole = partition * PARTITION..(partition + 1) * PARTITION;
        let cut = |seen: Range<usize>| whole.start.max(seen.start)..whole.end.min(seen.end);
        let positions = cut(tile.seen.clone());
        let rows = attention.row_starts(tile, positions.clone());
        let scales = attention.cache.scales.map(|scales| {
            scales.map(|scales| attention.row_scales(tile, positions.clone(), scales))
        });
        // What each query sees, counted from the first position of the tile.
        let mut ranges = [(0, 0); TILE];
        let count = tile.queries.len();
        for (i, query) in tile.queries.clone().enumerate() {
            let seen = cut(attention.seen(tile, query));
            if !seen.is_empty() {
                ranges[i] = (seen.start - positions.start, seen.end - positions.start);
            }
        }
        let scales = scales.as_ref();
        let mut block = Block { s, attention, tile, rows: &rows, scales, ranges: &ranges, scores };
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

struct Block<'a, S, T> {
    s: S,
    attention: &'a Attention<'a, T>,
    tile: &'a Tile,
    /// Where each position's row starts in the cache, checked to lie in it.
    rows: &'a [usize; PARTITION],
    /// What each position's key and value are multiplied by.
    scales: Option<&'a [[f32; PARTITION]; 2]>,
    /// Positions that each query sees, as indices of `rows`.
    ranges: &'a [(usize, usize); TILE],
    /// `[TILE, PARTITION]`.
    scores: &'a mut [f32],
}

/// `x[i] · factors[i]`
#[inline(always)]
fn multiply(x: &mut [f32], factors: &[f32]) {
    x.iter_mut().zip(factors).for_each(|(x, factor)| *x *= factor);
}

impl<S: Simd, T: StoredFloat> Block<'_, S, T> {
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
        let keys = self.attention.cache.keys;
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

    /// Turns one query's scores into weights; returns their maximum and the weights' sum. The
    /// scales of the keys multiply the scores and those of the values the weights, so that the
    /// products see codes alone.
    #[inline(always)]
    fn softmax(&mut self, query: usize, args: &AttentionArgs) -> (f32, f32) {
        let s = self.s;
        let (start, end) = self.ranges[query];
        if start == end {
            return (0.0, 0.0);
        }
        let scores = &mut self.scores[query * PARTITION..][start..end];
        if let Some([keys, _]) = self.scales {
            multiply(scores, &keys[start..end]);
        }
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
        let sum = math::sum(s, scores);
        if let Some([_, values]) = self.scales {
            multiply(scores, &values[start..end]);
        }
        (max, sum)
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
            let values = &self.attention.cache.values[self.rows[j] + column..][..width];
            for n in 0..N {
                // SAFETY: `values` has `N · LANES` elements.
                let value = unsafe { T::load(s, values.as_ptr().add(n * S::LANES)) };
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
            let values = &self.attention.cache.values[self.rows[j] + column..][..width];
            // SAFETY: `values` has `width < LANES` elements.
            let value = unsafe { T::load_partial(s, values.as_ptr(), width) };
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
pub struct Merge<'a> {
    pub total: &'a mut Partial,
    pub part: &'a Partial,
    pub queries: usize,
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
