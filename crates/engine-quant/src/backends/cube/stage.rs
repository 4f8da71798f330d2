//! Columns of `x` in shared memory for the products of a few rows.

use cubecl::prelude::*;

/// The columns of `x` that a cube holds at a time, in vectors of four: `[row, step, part, lane]`.
/// Lanes that read the same part of their vectors read neighbours, and units with the same lane
/// the same. There are no fewer of them than units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Stage {
    /// Units that share an output.
    pub(super) lanes: usize,
    /// Units of the cube; all numbers here are powers of two.
    pub(super) units: usize,
    pub(super) row_slots: usize,
    /// Vectors of weights that a lane reads before it waits for `x`.
    pub(super) steps: usize,
    /// The same for one row. So many sums of squares are kept apart for any number of rows, so that a
    /// row's norm does not depend on the others.
    pub(super) max_steps: usize,
    /// Vectors of `x` for one of weights.
    pub(super) parts: usize,
    /// Whether rows are multiplied by a norm's weight and their squares summed.
    pub(super) norm: bool,
}

impl Stage {
    pub(super) fn len(self) -> usize {
        self.row_slots * self.row_len()
    }

    fn row_len(self) -> usize {
        self.steps * self.parts * self.lanes
    }

    /// Vectors that each unit loads.
    pub(super) fn loads(self) -> usize {
        self.len() / self.units
    }

    /// Turns of the loop over the weights whose squares are kept apart.
    fn turns(self) -> usize {
        self.max_steps / self.steps
    }

    /// Where the lanes' vectors begin.
    pub(super) fn first(self, row: usize, step: usize, part: usize) -> usize {
        ((row * self.steps + step) * self.parts + part) * self.lanes
    }
}

/// Loads the columns of `x` that belong to the vectors of weights from `start` on. Rows and columns
/// that are not there are zeros, so that weights after the last column add nothing.
///
/// With a norm, columns are multiplied by its weight, and the squares of what the unit loads as its
/// vector `i`, always of one row, are added to `squares[i, turn]`.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn load_stage<N: Size>(
    x: &Array<Vector<f32, N>>,
    norm_weight: &Array<Vector<f32, N>>,
    staged: &mut SharedMemory<Vector<f32, Const<4>>>,
    squares: &mut Array<f32>,
    start: usize,
    rows: usize,
    inputs: usize,
    #[comptime] stage: Stage,
) {
    let width = N::value();
    let turn = start / comptime!(stage.steps * stage.lanes) % comptime!(stage.turns());
    #[unroll]
    for load in 0..comptime!(stage.loads()) {
        let at = UNIT_POS as usize + comptime!(load * stage.units);
        let lane = at % comptime!(stage.lanes);
        let part = at / comptime!(stage.lanes) % comptime!(stage.parts);
        let step = at / comptime!(stage.lanes * stage.parts) % comptime!(stage.steps);
        let row = at / comptime!(stage.row_len());
        let vector = start + step * comptime!(stage.lanes) + lane;
        let column = (vector * comptime!(stage.parts) + part) * 4;
        let mut values = Vector::<f32, Const<4>>::empty();
        #[unroll]
        for i in 0..4usize {
            values[i] = 0.0f32;
        }
        let mut square = 0.0f32;
        if row < rows {
            #[unroll]
            for i in 0..comptime!(4 / width) {
                let first = column + comptime!(i * width);
                if first < inputs {
                    let loaded = x[(row * inputs + first) / width];
                    #[unroll]
                    for j in 0..width {
                        values[comptime!(i * width + j)] = loaded[j];
                    }
                    if comptime!(stage.norm) {
                        let weight = norm_weight[first / width];
                        #[unroll]
                        for j in 0..width {
                            let value = loaded[j];
                            square += value * value;
                            values[comptime!(i * width + j)] = value * weight[j];
                        }
                    }
                }
            }
        }
        staged[at] = values;
        if comptime!(stage.norm) {
            #[unroll]
            for i in 0..comptime!(stage.turns()) {
                squares[comptime!(load * stage.turns() + i)] += select(turn == i, square, 0.0f32);
            }
        }
    }
}

/// No squares yet.
#[cube]
pub(super) fn no_squares(#[comptime] stage: Stage) -> Array<f32> {
    let len = comptime!(stage.loads() * stage.turns());
    let mut squares = Array::<f32>::new(len);
    #[unroll]
    for i in 0..len {
        squares[i] = 0.0f32;
    }
    squares
}

/// The sum of all units' squares of row `r` as element `r`, added as a binary tree that has the turns
/// of a step as its first branches and then the steps. All units of the cube must call it.
#[cube]
pub(super) fn row_squares(squares: &mut Array<f32>, #[comptime] stage: Stage) -> SharedMemory<f32> {
    let mut shared = SharedMemory::<f32>::new(comptime!(stage.len()));
    let mut totals = SharedMemory::<f32>::new(comptime!(stage.row_slots));
    #[unroll]
    for load in 0..comptime!(stage.loads()) {
        let first = comptime!(load * stage.turns());
        #[unroll]
        for level in 0..comptime!(stage.turns().ilog2()) {
            let stride = comptime!(stage.turns() >> (level + 1));
            #[unroll]
            for i in 0..stride {
                let other = squares[comptime!(first + i + stride)];
                squares[comptime!(first + i)] += other;
            }
        }
        shared[UNIT_POS as usize + comptime!(load * stage.units)] = squares[first];
    }
    sync_cube();
    #[unroll]
    for level in 0..comptime!(stage.row_len().ilog2()) {
        let stride = comptime!(stage.row_len() >> (level + 1));
        #[unroll]
        for load in 0..comptime!(stage.loads()) {
            let at = UNIT_POS as usize + comptime!(load * stage.units);
            if at % comptime!(stage.row_len()) < stride {
                shared[at] = shared[at] + shared[at + stride];
            }
        }
        sync_cube();
    }
    if (UNIT_POS as usize) < comptime!(stage.row_slots) {
        totals[UNIT_POS as usize] = shared[UNIT_POS as usize * comptime!(stage.row_len())];
    }
    sync_cube();
    totals
}
