//! Paged attention, the context split over cubes.
//!
//! The positions of a sequence fall into partitions of [`PARTITION`], counted from position zero.
//! [`partition_kernel`] attends to one partition and keeps its unnormalised sum, its largest score
//! and the sum of its exponentials; [`merge_kernel`] adds the partitions of each token. A token's
//! result therefore depends neither on the other tokens of the batch nor on its chunk.
//!
//! Element numbers are 32 bits wide: the keys of one layer are fewer than 2³² elements, gaps
//! between padded rows included, and so are the values.

use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use burn_tensor::DType;
use cubecl::prelude::*;

use super::{Cache, PitchedRows, cube_grid, dims, empty};
use crate::kv::{WORD, head_words};
use crate::ops::attention::AttentionArgs;
use crate::{BatchInput, MetaLayout};

/// Positions of one partition, a multiple of [`TILE`].
const PARTITION: usize = 256;
/// Positions whose scores are in shared memory at a time.
const TILE: usize = 32;
/// Columns of the keys that are in shared memory at a time.
const KEY_COLUMNS: usize = 32;
/// The most elements of queries that one cube holds in shared memory.
const MAX_QUERY_ELEMENTS: usize = 2048;
/// The most query heads of one cube; they share the reads of one key and value head.
const MAX_HEADS_PER_CUBE: usize = 8;
/// The most tokens of one launch: cubes along one dimension are limited to 65535.
const MAX_TOKENS: usize = 32_768;
/// Bytes that the partitions' sums may take; longer batches run in several launches.
const MAX_PARTIAL_BYTES: usize = 64 << 20;
/// Units of a cube of [`merge_kernel`].
const MERGE_UNITS: usize = 64;

/// What the kernels read of a step: its metadata and the cache.
pub(super) struct Step<'a, R: CubeRuntime> {
    pub meta: CubeTensor<R>,
    pub layout: MetaLayout,
    pub input: &'a BatchInput,
    pub cache: Cache<R>,
}

/// `q [tokens, heads · head_dim]`, result alike.
pub(super) fn paged_attention<R: CubeRuntime>(
    q: CubeTensor<R>,
    step: &Step<'_, R>,
    args: &AttentionArgs,
) -> CubeTensor<R> {
    let [tokens, columns] = dims(&q);
    let output = empty(&q, [tokens, columns], DType::F32);
    let window = args.window.unwrap_or(usize::MAX).clamp(1, u32::MAX as usize);
    let last = step.input.positions.iter().max().map_or(0, |&p| p as usize);
    let first = step.input.positions.iter().min().map_or(0, |&p| p as usize);
    let first_partition = (first + 1).saturating_sub(window) / PARTITION;
    let partitions = last / PARTITION + 1 - first_partition;
    let bytes_per_token = args.heads * partitions * (args.head_dim + 2) * size_of::<f32>();
    let tokens_per_launch = match partitions {
        1 => MAX_TOKENS,
        _ => (MAX_PARTIAL_BYTES / bytes_per_token).clamp(1, MAX_TOKENS),
    };
    for first_token in (0..tokens).step_by(tokens_per_launch) {
        let span = Span {
            first_token,
            tokens: tokens_per_launch.min(tokens - first_token),
            first_partition,
            partitions,
            window,
        };
        match step.cache.scales {
            None => attend::<R, f32>(&q, &output, step, args, span),
            Some(_) => attend::<R, u32>(&q, &output, step, args, span),
        }
    }
    output
}

/// The tokens and partitions of one launch.
#[derive(Clone, Copy)]
struct Span {
    first_token: usize,
    tokens: usize,
    first_partition: usize,
    partitions: usize,
    window: usize,
}

/// Attends to a cache of `E`.
fn attend<R: CubeRuntime, E: Numeric>(
    q: &CubeTensor<R>,
    output: &CubeTensor<R>,
    step: &Step<'_, R>,
    args: &AttentionArgs,
    span: Span,
) {
    let client = &q.client;
    // The kernel reads no scales of floats; any array serves.
    let no_scales = || PitchedRows { tensor: q.clone(), pitch: 0 };
    let [key_scales, value_scales] = match &step.cache.scales {
        Some([keys, values]) => [keys.clone(), values.clone()],
        None => [no_scales(), no_scales()],
    };
    let sizes = |step: &Step<'_, R>| {
        AttentionSizesLaunch::new(
            span.first_token,
            span.first_partition,
            span.partitions,
            span.window,
            args.heads,
            args.heads / args.kv_heads,
            step.layout.positions,
            step.layout.sequences,
            step.layout.page_tables,
            step.layout.max_blocks,
            step.input.block_size,
            step.cache.keys.pitch,
            step.cache.values.pitch,
            key_scales.pitch,
            value_scales.pitch,
            args.scale,
            args.softcap.unwrap_or(1.0),
        )
    };
    let split = span.partitions > 1;
    let (sums, stats) = if split {
        let parts = [span.tokens * args.heads, span.partitions];
        let sums = empty(q, [parts[0], parts[1], args.head_dim], DType::F32);
        (sums, empty(q, [parts[0], parts[1], 2], DType::F32))
    } else {
        // The kernel writes no statistics then; any array serves.
        (output.clone(), empty(q, [2], DType::F32))
    };
    let shape = CubeShape::of(args, split, step.cache.scales.is_some());
    let cubes = (args.heads / shape.heads, span.tokens, span.partitions);
    partition_kernel::launch::<E, R>(
        client,
        CubeCount::Static(cubes.0 as u32, cubes.1 as u32, cubes.2 as u32),
        CubeDim::new_1d(shape.units as u32),
        q.clone().into_array_arg(),
        step.cache.keys.array(),
        step.cache.values.array(),
        key_scales.array(),
        value_scales.array(),
        step.meta.clone().into_array_arg(),
        sums.clone().into_array_arg(),
        stats.clone().into_array_arg(),
        sizes(step),
        shape,
    );
    if split {
        merge_kernel::launch::<R>(
            client,
            cube_grid(span.tokens * args.heads),
            CubeDim::new_1d(MERGE_UNITS as u32),
            sums.into_array_arg(),
            stats.into_array_arg(),
            step.meta.clone().into_array_arg(),
            output.clone().into_array_arg(),
            sizes(step),
            span.tokens,
            args.head_dim,
        );
    }
}

/// What chooses the code of [`partition_kernel`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct CubeShape {
    /// Query heads of one cube.
    heads: usize,
    head_dim: usize,
    units: usize,
    softcap: bool,
    /// Whether partitions are merged afterwards.
    split: bool,
    /// Whether keys and values are codes.
    coded: bool,
}

impl CubeShape {
    fn of(args: &AttentionArgs, split: bool, coded: bool) -> Self {
        let group = args.heads / args.kv_heads;
        let columns = args.head_dim.next_multiple_of(KEY_COLUMNS);
        let most = (MAX_QUERY_ELEMENTS / columns).clamp(1, MAX_HEADS_PER_CUBE);
        let heads = (1..=most).rev().find(|&heads| group.is_multiple_of(heads)).unwrap_or(1);
        Self {
            heads,
            head_dim: args.head_dim,
            units: (heads * args.head_dim).next_power_of_two().clamp(TILE, 128),
            softcap: args.softcap.is_some(),
            split,
            coded,
        }
    }
}

/// Run-time numbers of the kernels.
#[derive(CubeType, CubeLaunch)]
struct AttentionSizes {
    first_token: usize,
    first_partition: usize,
    partitions: usize,
    window: usize,
    heads: usize,
    group: usize,
    /// Where each part of `meta` starts, as in `MetaLayout`.
    positions: usize,
    sequences: usize,
    page_tables: usize,
    max_blocks: usize,
    block_size: usize,
    key_pitch: usize,
    value_pitch: usize,
    key_scale_pitch: usize,
    value_scale_pitch: usize,
    scale: f32,
    softcap: f32,
}

/// The first position that the token at `position` sees.
#[cube]
fn window_start(position: usize, window: usize) -> usize {
    let mut start = 0usize.runtime();
    if position + 1 > window {
        start = position + 1 - window;
    }
    start
}

/// `tanh`, also where a GPU computes it from exponentials that overflow.
#[cube]
fn bounded_tanh(x: f32) -> f32 {
    max(min(x, 15.0f32), -15.0f32).tanh()
}

/// The signed byte number `place` of a word.
#[cube]
fn code(word: u32, place: u32) -> f32 {
    let byte = (word >> (place * 8)) & 255;
    f32::cast_from(i32::cast_from(byte ^ 128) - 128)
}

/// Attention of one token's `shape.heads` query heads, all of one key head, over one partition.
///
/// Cube `(x, y, z)` has heads `x · shape.heads ..`, token `first_token + y` and partition
/// `first_partition + z`. It walks the partition in tiles of [`TILE`] positions, counted from
/// position zero, with the online softmax (Milakov and Gimelshein 2018): the scores of a tile are
/// made from keys in shared memory, one unit for each pair of position and head; the largest
/// score so far rescales what was summed; then each unit adds the values of its output elements
/// (head, column). Positions outside the window and after the token are not read.
///
/// `keys` and `values` are rows of floats, or where `shape.coded` rows of words with four codes
/// each: the codes are widened as they are read, the keys' scale multiplies the score and the
/// values' scale the weight.
///
/// `sums`: unnormalised `[tokens · heads, partitions, head_dim]` with
/// `stats [tokens · heads, partitions, 2]` (largest score, sum of exponentials) if `shape.split`,
/// else the result `[tokens, heads · head_dim]`.
#[cube(launch)]
#[allow(clippy::too_many_arguments, clippy::collapsible_if, clippy::assign_op_pattern)]
fn partition_kernel<E: Numeric>(
    q: &Array<f32>,
    keys: &Array<E>,
    values: &Array<E>,
    key_scales: &Array<f32>,
    value_scales: &Array<f32>,
    meta: &Array<i32>,
    sums: &mut Array<f32>,
    stats: &mut Array<f32>,
    sizes: &AttentionSizes,
    #[comptime] shape: CubeShape,
) {
    let units = comptime!(shape.units);
    let head_dim = comptime!(shape.head_dim);
    let columns = comptime!(shape.head_dim.next_multiple_of(KEY_COLUMNS));
    let pairs_per_unit = comptime!((TILE * shape.heads).div_ceil(shape.units));
    let elements = comptime!(shape.heads * shape.head_dim);
    let elements_per_unit = comptime!((shape.heads * shape.head_dim).div_ceil(shape.units));
    let pitch = comptime!(KEY_COLUMNS + 1);
    let unit = UNIT_POS as usize;

    let first_head = CUBE_POS_X as usize * comptime!(shape.heads);
    let kv_head = first_head / sizes.group;
    let head_pitch =
        comptime!(if shape.coded { head_words(shape.head_dim) } else { shape.head_dim });
    let column = kv_head * head_pitch;
    let token = sizes.first_token + CUBE_POS_Y as usize;
    let partition = sizes.first_partition + CUBE_POS_Z as usize;
    let position = meta[sizes.positions + token] as usize;
    let pages = sizes.page_tables + meta[sizes.sequences + token] as usize * sizes.max_blocks;
    let begin = max(window_start(position, sizes.window), partition * PARTITION);
    let end = min(position + 1, (partition + 1) * PARTITION);
    if begin >= end {
        terminate!();
    }

    let mut queries = SharedMemory::<f32>::new(comptime!(shape.heads * columns));
    let mut key_tile = SharedMemory::<f32>::new(comptime!(TILE * pitch));
    let mut slots = SharedMemory::<u32>::new(TILE);
    let mut tile_scales =
        SharedMemory::<f32>::new(comptime!(if shape.coded { 2 * TILE } else { 1 }));
    let mut scores = SharedMemory::<f32>::new(comptime!(shape.heads * TILE));
    let mut largest = SharedMemory::<f32>::new(comptime!(shape.heads));
    let mut totals = SharedMemory::<f32>::new(comptime!(shape.heads));
    let mut rescale = SharedMemory::<f32>::new(comptime!(shape.heads));
    for i in range_stepped(unit, comptime!(shape.heads * columns).runtime(), units) {
        let (head, d) = (i / columns, i % columns);
        let mut value = 0.0f32;
        if d < head_dim {
            value = q[(token * sizes.heads + first_head + head) * head_dim + d];
        }
        queries[i] = value;
    }
    if unit < comptime!(shape.heads) {
        largest[unit] = f32::min_value();
        totals[unit] = 0.0f32;
    }
    let mut sum = Array::<f32>::new(elements_per_unit);
    #[unroll]
    for n in 0..elements_per_unit {
        sum[n] = 0.0f32;
    }

    for tile in range_stepped(begin / TILE * TILE, end, TILE) {
        let tile_begin = max(begin, tile) - tile;
        let tile_end = min(end - tile, TILE);
        if unit >= tile_begin && unit < tile_end {
            let at = tile + unit;
            let block = meta[pages + at / sizes.block_size] as usize;
            let slot = block * sizes.block_size + at % sizes.block_size;
            slots[unit] = slot as u32;
            if comptime!(shape.coded) {
                tile_scales[unit] = key_scales[slot * sizes.key_scale_pitch + kv_head];
                tile_scales[TILE + unit] = value_scales[slot * sizes.value_scale_pitch + kv_head];
            }
        }
        sync_cube();

        let mut dots = Array::<f32>::new(pairs_per_unit);
        #[unroll]
        for n in 0..pairs_per_unit {
            dots[n] = 0.0f32;
        }
        for first_column in range_stepped(0, columns, KEY_COLUMNS) {
            if comptime!(shape.coded) {
                for i in range_stepped(unit, comptime!(TILE * KEY_COLUMNS / WORD).runtime(), units)
                {
                    let (j, w) =
                        (i / comptime!(KEY_COLUMNS / WORD), i % comptime!(KEY_COLUMNS / WORD));
                    let word_column = first_column / WORD + w;
                    let mut word = 0u32;
                    if j >= tile_begin && j < tile_end && word_column < head_pitch {
                        let row = slots[j] as usize * sizes.key_pitch + column;
                        word = u32::cast_from(keys[row + word_column]);
                    }
                    #[unroll]
                    for place in 0..WORD {
                        key_tile[j * pitch + w * WORD + place] = code(word, place as u32);
                    }
                }
            } else {
                for i in range_stepped(unit, comptime!(TILE * KEY_COLUMNS).runtime(), units) {
                    let (j, d) = (i / KEY_COLUMNS, i % KEY_COLUMNS);
                    let mut value = 0.0f32;
                    if j >= tile_begin && j < tile_end && first_column + d < head_dim {
                        let row = slots[j] as usize * sizes.key_pitch + column;
                        value = f32::cast_from(keys[row + first_column + d]);
                    }
                    key_tile[j * pitch + d] = value;
                }
            }
            sync_cube();
            #[unroll]
            for n in 0..pairs_per_unit {
                let pair = unit + comptime!(n * shape.units);
                if pair < comptime!(TILE * shape.heads) {
                    let query = pair / TILE * columns + first_column;
                    let key = pair % TILE * pitch;
                    let mut dot = dots[n];
                    for d in 0..KEY_COLUMNS {
                        dot += queries[query + d] * key_tile[key + d];
                    }
                    dots[n] = dot;
                }
            }
            sync_cube();
        }
        #[unroll]
        for n in 0..pairs_per_unit {
            let pair = unit + comptime!(n * shape.units);
            if pair < comptime!(TILE * shape.heads) {
                let mut score = dots[n] * sizes.scale;
                if comptime!(shape.coded) {
                    score = score * tile_scales[pair % TILE];
                }
                if comptime!(shape.softcap) {
                    score = sizes.softcap * bounded_tanh(score / sizes.softcap);
                }
                scores[pair] = score;
            }
        }
        sync_cube();

        if unit < comptime!(shape.heads) {
            let before = largest[unit];
            let mut now = before;
            for j in tile_begin..tile_end {
                now = max(now, scores[unit * TILE + j]);
            }
            largest[unit] = now;
            rescale[unit] = (before - now).exp();
        }
        sync_cube();
        #[unroll]
        for n in 0..pairs_per_unit {
            let pair = unit + comptime!(n * shape.units);
            if pair < comptime!(TILE * shape.heads) {
                scores[pair] = (scores[pair] - largest[pair / TILE]).exp();
            }
        }
        sync_cube();
        if unit < comptime!(shape.heads) {
            let mut total = totals[unit] * rescale[unit];
            for j in tile_begin..tile_end {
                total += scores[unit * TILE + j];
            }
            totals[unit] = total;
        }
        #[unroll]
        for n in 0..elements_per_unit {
            let element = unit + comptime!(n * shape.units);
            if element < elements {
                let (head, d) = (element / head_dim, element % head_dim);
                let mut value = sum[n] * rescale[head];
                for j in tile_begin..tile_end {
                    let row = slots[j] as usize * sizes.value_pitch + column;
                    if comptime!(shape.coded) {
                        let weight = scores[head * TILE + j] * tile_scales[TILE + j];
                        let word = u32::cast_from(values[row + d / WORD]);
                        value += weight * code(word, (d % WORD) as u32);
                    } else {
                        value += scores[head * TILE + j] * f32::cast_from(values[row + d]);
                    }
                }
                sum[n] = value;
            }
        }
        sync_cube();
    }

    let row = CUBE_POS_Y as usize * sizes.heads + first_head;
    let part = CUBE_POS_Z as usize;
    if comptime!(shape.split) {
        if unit < comptime!(shape.heads) {
            let at = ((row + unit) * sizes.partitions + part) * 2;
            stats[at] = largest[unit];
            stats[at + 1] = totals[unit];
        }
    }
    #[unroll]
    for n in 0..elements_per_unit {
        let element = unit + comptime!(n * shape.units);
        if element < elements {
            let (head, d) = (element / head_dim, element % head_dim);
            if comptime!(shape.split) {
                sums[((row + head) * sizes.partitions + part) * head_dim + d] = sum[n];
            } else {
                let at = (token * sizes.heads + first_head) * head_dim;
                sums[at + element] = sum[n] / totals[head];
            }
        }
    }
}

/// Adds the partitions of one token's head, each rescaled to the largest score of all: one cube
/// for each token and head, its units walk the columns.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn merge_kernel(
    sums: &Array<f32>,
    stats: &Array<f32>,
    meta: &Array<i32>,
    output: &mut Array<f32>,
    sizes: &AttentionSizes,
    tokens: usize,
    #[comptime] head_dim: usize,
) {
    let row = CUBE_POS;
    if row >= tokens * sizes.heads {
        terminate!();
    }
    let token = sizes.first_token + row / sizes.heads;
    let position = meta[sizes.positions + token] as usize;
    // Cubes outside these partitions wrote nothing.
    let first = window_start(position, sizes.window) / PARTITION - sizes.first_partition;
    let end = position / PARTITION + 1 - sizes.first_partition;
    let parts = row * sizes.partitions;
    let mut largest = f32::min_value();
    for part in first..end {
        largest = max(largest, stats[(parts + part) * 2]);
    }
    for d in range_stepped(UNIT_POS as usize, head_dim.runtime(), MERGE_UNITS) {
        let mut sum = 0.0f32;
        let mut total = 0.0f32;
        for part in first..end {
            let factor = (stats[(parts + part) * 2] - largest).exp();
            sum += factor * sums[(parts + part) * head_dim + d];
            total += factor * stats[(parts + part) * 2 + 1];
        }
        output[(token * sizes.heads + row % sizes.heads) * head_dim + d] = sum / total;
    }
}
