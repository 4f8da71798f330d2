//! The product of a few rows with a dense matrix and what stands around it.

use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use burn_tensor::TensorMetadata;
use cubecl::prelude::*;

use super::cube_grid;
use super::dense::{Format, LANES, OUTPUTS, decode, dims, empty, words};
use super::fused::{After, Parts, finish, weight_row};
use super::stage::{Stage, load_stage, no_squares};
use super::tile::{FEW_ROWS, Lanes, zero_sums};

/// `None` where there are more rows, or a vector of four words would cross the end of a row.
pub(super) fn few_rows<R: CubeRuntime>(
    x: CubeTensor<R>,
    weight: CubeTensor<R>,
    parts: Parts<R>,
) -> Option<CubeTensor<R>> {
    let ([rows, _], [outputs, inputs]) = (dims(&x), dims(&weight));
    let format = Format::of(weight.dtype());
    if rows > FEW_ROWS || !inputs.is_multiple_of(4 * format.per_word()) {
        return None;
    }
    let output = empty(&x, rows, parts.results(outputs));
    if rows * outputs == 0 {
        return Some(output);
    }
    let row_slots = rows.next_power_of_two();
    let shape = Lanes { lanes: LANES, outputs: OUTPUTS, row_slots };
    let units = shape.units();
    let max_steps = units / (LANES * format.per_word());
    let stage = Stage {
        lanes: LANES,
        units,
        row_slots,
        steps: (max_steps / row_slots).max(1),
        max_steps,
        parts: format.per_word(),
        norm: parts.has_norm(),
    };
    staged_kernel::launch::<R>(
        &x.client,
        cube_grid(parts.cubes(outputs, OUTPUTS)),
        shape.cube_dim(),
        x.clone().into_array_arg(),
        parts.norm_weight(&x),
        words(weight),
        parts.after(&x, inputs),
        output.clone().into_array_arg(),
        rows,
        inputs,
        outputs,
        shape,
        stage,
        format,
    );
    Some(output)
}

/// `output[r, o] = Σₖ x[r, k] · weight[o, k]` with norm, sum or gate as [`After`] and the stage say.
///
/// A cube has `OUTPUTS` groups of `LANES` units, each group one row of the weights. Lane `l` sums
/// the vectors of four words `l, l + LANES, …` of it, then the lanes are added as a binary tree.
/// `x` passes through shared memory, so that a norm touches each of its columns once in a cube.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn staged_kernel(
    x: &Array<Vector<f32, Const<4>>>,
    norm_weight: &Array<Vector<f32, Const<4>>>,
    weight: &Array<Vector<u32, Const<4>>>,
    after: &After,
    output: &mut Array<f32>,
    rows: usize,
    inputs: usize,
    outputs: usize,
    #[comptime] shape: Lanes,
    #[comptime] stage: Stage,
    #[comptime] format: Format,
) {
    let per_word = comptime!(format.per_word());
    let lane = UNIT_POS_X as usize;
    let out = weight_row(after, outputs, shape);
    let vectors = inputs / (4 * per_word);
    let mut sums = zero_sums(comptime!(stage.row_slots));
    let mut squares = no_squares(stage);
    let mut packed = Array::<Vector<u32, Const<4>>>::new(comptime!(stage.steps));
    let mut staged = SharedMemory::<Vector<f32, Const<4>>>::new(comptime!(stage.len()));
    for start in range_stepped(0, vectors, comptime!(stage.steps * LANES)) {
        #[unroll]
        for step in 0..comptime!(stage.steps) {
            let vector = start + lane + comptime!(step * LANES);
            packed[step] = weight[out * vectors + min(vector, vectors - 1)];
        }
        load_stage(x, norm_weight, &mut staged, &mut squares, start, rows, inputs, stage);
        sync_cube();
        #[unroll]
        for step in 0..comptime!(stage.steps) {
            // Past the last vector `x` is zero, but a weight may be infinite.
            if start + lane + comptime!(step * LANES) < vectors {
                let bits = packed[step];
                #[unroll]
                for row in 0..comptime!(stage.row_slots) {
                    #[unroll]
                    for part in 0..per_word {
                        let values = staged[lane + comptime!(stage.first(row, step, part))];
                        #[unroll]
                        for i in 0..4usize {
                            let at = comptime!(part * 4 + i);
                            let word = bits[comptime!(at / per_word)];
                            let half = comptime!((at % per_word) as u32);
                            sums[row] += decode(word, half, format) * values[i];
                        }
                    }
                }
            }
        }
        sync_cube();
    }
    finish(&sums, &mut squares, after, output, rows, outputs, shape, stage);
}
