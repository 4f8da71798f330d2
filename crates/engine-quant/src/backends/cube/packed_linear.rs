//! The products of packed matrices, the codes unpacked in registers.
//!
//! Up to [`FEW_ROWS`](super::tile::FEW_ROWS) rows of `x` go through [`few_rows_kernel`], more of
//! them through [`tiled_kernel`]. As with dense matrices, a row's result is the same bits for any
//! number of rows on the same side of that limit.

use cubecl::prelude::*;

use super::fused::{After, finish, weight_row};
use super::packed::{Groups, four_numbers, group_of, level_table};
use super::stage::{Stage, load_stage, no_squares};
use super::tile::{
    Lanes, TILE_K, TILE_OUTPUTS, W_PITCH, load_x_tile, multiply_tiles, w_tile, write_tile, x_tile,
    zero_sums,
};

/// Units that share one output of [`few_rows_kernel`].
pub(super) const LANES: usize = 8;
/// Outputs of one cube of [`few_rows_kernel`].
pub(super) const OUTPUTS: usize = 16;

/// Vectors of codes that a lane reads before it waits for one row of `x`.
const MAX_STEPS: usize = 4;

/// What a cube of [`few_rows_kernel`] holds of `x`, for codes of so many halves in a byte.
pub(super) fn stage(row_slots: usize, halves: usize, norm: bool) -> Stage {
    Stage {
        lanes: LANES,
        units: LANES * OUTPUTS,
        row_slots,
        steps: (MAX_STEPS / row_slots).max(1),
        max_steps: MAX_STEPS,
        parts: 4 * halves,
        norm,
    }
}

/// `output[r, o] = Σₖ x[r, k] · weight[o, k]` for a few rows, the weights read once.
///
/// A cube has `OUTPUTS` groups of `LANES` units, each group one output. Lane `l` sums the vectors of
/// four words `l, l + LANES, …` of its row, then the lanes are added as a binary tree. `x` passes
/// through shared memory: a vector of four-bit codes meets 128 bytes of each of its rows, and lanes
/// that fetched them from global memory would touch a cache line each. Norm, sum and gate as
/// [`After`] and the stage say.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
pub(super) fn few_rows_kernel<N: Size>(
    x: &Array<Vector<f32, N>>,
    norm_weight: &Array<Vector<f32, N>>,
    codes: &Array<Vector<u32, Const<4>>>,
    groups: &Groups,
    after: &After,
    output: &mut Array<f32>,
    rows: usize,
    outputs: usize,
    #[comptime] shape: Lanes,
    #[comptime] stage: Stage,
) {
    let span = comptime!(groups.coding.span);
    let table = level_table(comptime!(groups.coding));
    let lane = UNIT_POS_X as usize;
    let out = weight_row(after, outputs, shape);
    let vectors = groups.vectors;
    let mut sums = zero_sums(comptime!(stage.row_slots));
    let mut squares = no_squares(stage);
    let mut packed = Array::<Vector<u32, Const<4>>>::new(comptime!(stage.steps));
    let mut staged = SharedMemory::<Vector<f32, Const<4>>>::new(comptime!(stage.len()));
    for start in range_stepped(0, vectors, comptime!(stage.steps * LANES)) {
        #[unroll]
        for step in 0..comptime!(stage.steps) {
            let vector = start + lane + comptime!(step * LANES);
            packed[step] = codes[out * vectors + min(vector, vectors - 1)];
        }
        load_stage(x, norm_weight, &mut staged, &mut squares, start, rows, groups.inputs, stage);
        sync_cube();
        #[unroll]
        for step in 0..comptime!(stage.steps) {
            let vector = start + lane + comptime!(step * LANES);
            if vector < vectors {
                let words = packed[step];
                let first = vector * comptime!(4 * stage.parts);
                let vector_group = group_of(groups, out, first);
                #[unroll]
                for part in 0..comptime!(stage.parts) {
                    let column = first + comptime!(part * 4);
                    let group = if comptime!(span == 16 && part >= 4) {
                        group_of(groups, out, column)
                    } else {
                        vector_group
                    };
                    let word = words[comptime!(part % 4)];
                    let half = comptime!((part / 4) as u32);
                    let w = four_numbers(word, half, out, column, &group, groups, &table);
                    #[unroll]
                    for row in 0..comptime!(stage.row_slots) {
                        let values = staged[lane + comptime!(stage.first(row, step, part))];
                        #[unroll]
                        for i in 0..4usize {
                            sums[row] += w[i] * values[i];
                        }
                    }
                }
            }
        }
        sync_cube();
    }
    finish(&sums, &mut squares, after, output, rows, outputs, shape, stage);
}

/// `output[r, o] = Σₖ x[r, k] · weight[o, k]` for many rows, in tiles as the dense product's.
///
/// Each unit of the cube unpacks the four numbers that half a word holds: unit `u` those of word
/// `u % 4` of output `u / 4`.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
pub(super) fn tiled_kernel(
    x: &Array<f32>,
    codes: &Array<u32>,
    groups: &Groups,
    output: &mut Array<f32>,
    rows: usize,
    outputs: usize,
    #[comptime] rows_per_unit: usize,
) {
    let halves = comptime!(groups.coding.halves());
    let table = level_table(comptime!(groups.coding));
    let mut x_tile = x_tile(rows_per_unit);
    let mut w_tile = w_tile();
    let mut sums = zero_sums(comptime!(rows_per_unit * 4));
    let line = UNIT_POS as usize / 4;
    let word = UNIT_POS as usize % 4;
    // Outputs after the last one repeat it and are not written.
    let out = min(CUBE_POS_X as usize * TILE_OUTPUTS + line, outputs - 1);
    for start in range_stepped(0, groups.inputs, TILE_K) {
        load_x_tile(x, &mut x_tile, start, rows, groups.inputs, rows_per_unit);
        let run = start / TILE_K;
        let bits = codes[(out * groups.vectors + run / halves) * 4 + word];
        let half = (run % halves) as u32;
        let column = start + word * 4;
        let group = group_of(groups, out, column);
        let w = four_numbers(bits, half, out, column, &group, groups, &table);
        #[unroll]
        for i in 0..4usize {
            w_tile[(word * 4 + i) * W_PITCH + line] = w[i];
        }
        sync_cube();
        multiply_tiles(&x_tile, &w_tile, &mut sums, rows_per_unit);
        sync_cube();
    }
    write_tile(&sums, output, rows, outputs, rows_per_unit);
}
