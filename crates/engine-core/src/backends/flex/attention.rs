//! Paged attention with a running softmax over partitions of the context.
//!
//! A query's context is cut into partitions of [`PARTITION`] positions, by absolute position. Each
//! gives a maximum, a sum of exponentials and a weighted sum of values; these are merged in the
//! order of the partitions. Nothing in that depends on blocks, on the other queries or on which
//! thread computed a partition, so neither do the bits of the result.

mod partition;

use std::{cell::RefCell, ops::Range};

use engine_quant::simd::{Isa, StoredFloat};
use engine_quant::threads;

use crate::{BatchInput, ops::attention::AttentionArgs};
use partition::{Merge, PartitionKernel};

/// Positions in a partition.
const PARTITION: usize = 256;

/// Queries (tokens times the heads that share a key head) that read a partition together.
const TILE: usize = 16;

/// Products and sums below which waking other threads costs more than they save.
const PARALLEL_WORK: usize = 1 << 17;

/// Keys and values as they are stored: floats, or codes that are widened in registers.
pub struct Cache<'a, T> {
    /// `[slots, kv_heads · head_pitch]`.
    pub keys: &'a [T],
    /// `[slots, kv_heads · head_pitch]`.
    pub values: &'a [T],
    /// Elements from one head to the next, `head_dim` or more.
    pub head_pitch: usize,
    /// What keys and what values are multiplied by, `[slots, kv_heads]` each; nothing for floats.
    pub scales: Option<[&'a [f32]; 2]>,
}

/// The operands of one call.
pub struct Attention<'a, T> {
    /// `[tokens, heads · head_dim]`.
    pub q: &'a [f32],
    pub cache: Cache<'a, T>,
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

impl<T: StoredFloat> Attention<'_, T> {
    /// `[tokens, heads · head_dim]`.
    pub fn run(&self, isa: Isa) -> Vec<f32> {
        let mut out = vec![0.0; self.q.len()];
        let tiles = self.tiles();
        let seen: usize = tiles.iter().map(|tile| tile.queries.len() * tile.seen.len()).sum();
        let num_threads = threads::count();
        let shared = SharedMut(out.as_mut_ptr());
        let attend = |tile| self.finish(tile, &self.attend(isa, tile), shared);
        if num_threads == 1 || seen * self.args.head_dim < PARALLEL_WORK {
            tiles.iter().for_each(attend);
        } else if tiles.len() >= 4 * num_threads {
            threads::for_each(tiles.len(), |i| attend(&tiles[i]));
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
        let mut parts: Vec<_> = tasks.iter().map(|_| Partial::new(self.args.head_dim)).collect();
        threads::for_each_chunk(&mut parts, 1, |i, part| {
            let (tile, partition) = tasks[i];
            self.attend_partition(isa, tile, partition, &mut part[0]);
        });
        let mut parts = parts.into_iter();
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
        assert!(starts.is_sorted(), "paged_attention: the batch's query starts do not ascend");
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

    /// Neighbouring slots of `positions`, each run with the number of positions before it.
    fn runs(
        &self,
        tile: &Tile,
        positions: Range<usize>,
    ) -> impl Iterator<Item = (usize, Range<usize>)> {
        let block_size = self.input.block_size;
        let table = &self.input.page_tables[tile.sequence];
        let mut position = positions.start;
        std::iter::from_fn(move || {
            let before = position - positions.start;
            let offset = position % block_size;
            let run = (block_size - offset).min(positions.end - position);
            (run > 0).then(|| {
                let slot = table[position / block_size] as usize * block_size + offset;
                position += run;
                (before, slot..slot + run)
            })
        })
    }

    /// Where the rows of `positions` lie in the cache, for one key head.
    fn row_starts(&self, tile: &Tile, positions: Range<usize>) -> [usize; PARTITION] {
        let Cache { keys, values, head_pitch, .. } = self.cache;
        let row_len = self.args.kv_heads * head_pitch;
        let mut starts = [0; PARTITION];
        for (before, slots) in self.runs(tile, positions) {
            let end = slots.end * row_len;
            assert!(
                end <= keys.len() && end <= values.len(),
                "paged_attention: slot {} of a cache with {} slots",
                slots.end - 1,
                keys.len() / row_len
            );
            for (start, slot) in starts[before..].iter_mut().zip(slots) {
                *start = slot * row_len + tile.kv_head * head_pitch;
            }
        }
        starts
    }

    /// The scales of the rows of `positions`, for one key head.
    fn row_scales(&self, tile: &Tile, positions: Range<usize>, scales: &[f32]) -> [f32; PARTITION] {
        let mut found = [0.0; PARTITION];
        for (before, slots) in self.runs(tile, positions) {
            for (found, slot) in found[before..].iter_mut().zip(slots) {
                *found = scales[slot * self.args.kv_heads + tile.kv_head];
            }
        }
        found
    }
}
