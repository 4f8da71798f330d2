//! What the products of dense and packed matrices share: the sum over the lanes of an output for a
//! few rows of `x`, and tiles in shared memory for many.

use cubecl::prelude::*;

/// The most rows of `x` that one pass over the weights serves.
pub(super) const FEW_ROWS: usize = 8;
/// Units along each side of a cube that computes a tile.
pub(super) const TILE_UNITS: usize = 16;
/// Outputs of a tile.
pub(super) const TILE_OUTPUTS: usize = 4 * TILE_UNITS;
/// Columns that a cube holds in shared memory at a time.
pub(super) const TILE_K: usize = 16;
/// Between the columns of the weights in shared memory; one more than the outputs, so that
/// neighbours in `k` fall into different banks.
pub(super) const W_PITCH: usize = TILE_OUTPUTS + 1;

/// A cube whose units are `lanes` for each of `outputs` outputs, unit `(lane, output)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Lanes {
    /// Units that share an output; a power of two, and at least [`FEW_ROWS`].
    pub(super) lanes: usize,
    /// Outputs of the cube.
    pub(super) outputs: usize,
    /// The number of rows, rounded up to a power of two.
    pub(super) row_slots: usize,
}

impl Lanes {
    pub(super) fn units(self) -> usize {
        self.lanes * self.outputs
    }

    pub(super) fn cube_dim(self) -> CubeDim {
        CubeDim::new_2d(self.lanes as u32, self.outputs as u32)
    }
}

/// Rows of `x` that a unit of a tile has.
pub(super) fn rows_per_unit(rows: usize) -> usize {
    rows.div_ceil(TILE_UNITS).next_power_of_two().min(4)
}

/// As many cubes as there are tiles.
pub(super) fn tile_count(rows: usize, outputs: usize) -> CubeCount {
    let cubes_x = outputs.div_ceil(TILE_OUTPUTS);
    let cubes_y = rows.div_ceil(rows_per_unit(rows) * TILE_UNITS);
    CubeCount::Static(cubes_x as u32, cubes_y as u32, 1)
}

/// Writes each row's sum over the lanes of output number `place`, lane `r` row `r`.
#[cube]
pub(super) fn write_lane_sums(
    sums: &Array<f32>,
    output: &mut Array<f32>,
    rows: usize,
    outputs: usize,
    place: usize,
    #[comptime] shape: Lanes,
) {
    let totals = lane_totals(sums, shape);
    let lane = UNIT_POS_X as usize;
    if lane < rows && place < outputs {
        output[lane * outputs + place] = totals[total_at(lane, UNIT_POS_Y as usize, shape)];
    }
}

/// Where [`lane_totals`] has the sum of row `row` of the cube's output number `line`.
#[cube]
pub(super) fn total_at(row: usize, line: usize, #[comptime] shape: Lanes) -> usize {
    row * comptime!(shape.units()) + line * comptime!(shape.lanes)
}

/// Adds each row's sum over the lanes of each output as a binary tree.
#[cube]
pub(super) fn lane_totals(sums: &Array<f32>, #[comptime] shape: Lanes) -> SharedMemory<f32> {
    let lane = UNIT_POS_X as usize;
    let base = UNIT_POS as usize;
    let mut shared = SharedMemory::<f32>::new(comptime!(shape.row_slots * shape.units()));
    #[unroll]
    for row in 0..comptime!(shape.row_slots) {
        shared[row * comptime!(shape.units()) + base] = sums[row];
    }
    sync_cube();
    #[unroll]
    for level in 0..comptime!(shape.lanes.ilog2()) {
        let stride = comptime!(shape.lanes >> (level + 1));
        if lane < stride {
            #[unroll]
            for row in 0..comptime!(shape.row_slots) {
                let at = row * comptime!(shape.units()) + base;
                shared[at] = shared[at] + shared[at + stride];
            }
        }
        sync_cube();
    }
    shared
}

/// The tile's columns of `x`, one after the other.
#[cube]
pub(super) fn x_tile(#[comptime] rows_per_unit: usize) -> SharedMemory<f32> {
    SharedMemory::<f32>::new(comptime!(TILE_K * (rows_per_unit * TILE_UNITS + 1)))
}

/// The tile's columns of the weights, one after the other.
#[cube]
pub(super) fn w_tile() -> SharedMemory<f32> {
    SharedMemory::<f32>::new(comptime!(TILE_K * W_PITCH))
}

/// One sum for each output of a unit, zeros at first.
#[cube]
pub(super) fn zero_sums(#[comptime] len: usize) -> Array<f32> {
    let mut sums = Array::<f32>::new(len);
    #[unroll]
    for i in 0..len {
        sums[i] = 0.0f32;
    }
    sums
}

/// Loads columns `start ..` of `x`: unit `(i, j)` column `start + i` of the rows `j, j + 16, …`.
#[cube]
pub(super) fn load_x_tile(
    x: &Array<f32>,
    tile: &mut SharedMemory<f32>,
    start: usize,
    rows: usize,
    inputs: usize,
    #[comptime] rows_per_unit: usize,
) {
    let first_row = CUBE_POS_Y as usize * comptime!(rows_per_unit * TILE_UNITS);
    let k = start + UNIT_POS_X as usize;
    #[unroll]
    for i in 0..rows_per_unit {
        let row = UNIT_POS_Y as usize + comptime!(i * TILE_UNITS);
        let mut value = 0.0f32;
        if k < inputs && first_row + row < rows {
            value = x[(first_row + row) * inputs + k];
        }
        tile[UNIT_POS_X as usize * comptime!(rows_per_unit * TILE_UNITS + 1) + row] = value;
    }
}

/// Adds the products of the columns in shared memory, in the order of `k`.
#[cube]
pub(super) fn multiply_tiles(
    x_tile: &SharedMemory<f32>,
    w_tile: &SharedMemory<f32>,
    sums: &mut Array<f32>,
    #[comptime] rows_per_unit: usize,
) {
    let column = UNIT_POS_X as usize;
    let line = UNIT_POS_Y as usize;
    let x_pitch = comptime!(rows_per_unit * TILE_UNITS + 1);
    for k in 0..TILE_K {
        #[unroll]
        for j in 0..4usize {
            let w = w_tile[k * W_PITCH + column + comptime!(j * TILE_UNITS)];
            #[unroll]
            for i in 0..rows_per_unit {
                let value = x_tile[k * x_pitch + line + comptime!(i * TILE_UNITS)];
                sums[comptime!(i * 4 + j)] += value * w;
            }
        }
    }
}

/// Writes a unit's sums.
#[cube]
pub(super) fn write_tile(
    sums: &Array<f32>,
    output: &mut Array<f32>,
    rows: usize,
    outputs: usize,
    #[comptime] rows_per_unit: usize,
) {
    let first_row = CUBE_POS_Y as usize * comptime!(rows_per_unit * TILE_UNITS);
    let first_output = CUBE_POS_X as usize * TILE_OUTPUTS;
    #[unroll]
    for i in 0..rows_per_unit {
        let row = first_row + UNIT_POS_Y as usize + comptime!(i * TILE_UNITS);
        #[unroll]
        for j in 0..4usize {
            let out = first_output + UNIT_POS_X as usize + comptime!(j * TILE_UNITS);
            if row < rows && out < outputs {
                output[row * outputs + out] = sums[comptime!(i * 4 + j)];
            }
        }
    }
}
