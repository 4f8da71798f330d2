//! What stands before and after the product of a few rows, in the same launch.
//!
//! A row's factor in the norm is known only when all its columns have been seen, which is when the
//! product is complete: `x · weight` goes into the sums, and the factor multiplies them.

use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::gate::gate_value;
use super::stage::{Stage, row_squares};
use super::tile::{Lanes, lane_totals, total_at};
use crate::GateFunction;

/// A norm and what follows the product; each part that is missing is any array.
pub(super) struct Parts<R: CubeRuntime> {
    pub(super) norm: Option<(CubeTensor<R>, f32)>,
    pub(super) add: Option<CubeTensor<R>>,
    pub(super) gate: Option<GateFunction>,
}

impl<R: CubeRuntime> Parts<R> {
    pub(super) fn none() -> Self {
        Self { norm: None, add: None, gate: None }
    }

    pub(super) fn has_norm(&self) -> bool {
        self.norm.is_some()
    }

    /// Columns of the result of a product of `outputs` columns.
    pub(super) fn results(&self, outputs: usize) -> usize {
        if self.gate.is_some() { outputs / 2 } else { outputs }
    }

    /// Cubes of so many outputs that a matrix of `outputs` rows takes.
    pub(super) fn cubes(&self, outputs: usize, per_cube: usize) -> usize {
        let per_cube = if self.gate.is_some() { per_cube / 2 } else { per_cube };
        self.results(outputs).div_ceil(per_cube)
    }

    /// The norm's weight, or `x`.
    pub(super) fn norm_weight(&self, x: &CubeTensor<R>) -> ArrayArg<R> {
        self.norm.as_ref().map_or(x, |(weight, _)| weight).clone().into_array_arg()
    }

    pub(super) fn after(&self, x: &CubeTensor<R>, inputs: usize) -> AfterLaunch<R> {
        AfterLaunch::new(
            self.add.as_ref().unwrap_or(x).clone().into_array_arg(),
            inputs,
            self.norm.as_ref().map_or(0.0, |(_, eps)| *eps),
            Tail { add: self.add.is_some(), gate: self.gate },
        )
    }
}

/// What chooses the code after a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Tail {
    add: bool,
    gate: Option<GateFunction>,
}

/// What comes after a product.
#[derive(CubeLaunch, CubeType)]
pub(super) struct After {
    /// `[rows, outputs]`; any array where nothing is added.
    add: Array<f32>,
    /// Columns of the norm.
    inputs: usize,
    eps: f32,
    #[cube(comptime)]
    tail: Tail,
}

/// The row of the weights that a group of lanes multiplies. Groups without an output repeat the last
/// one, so that all units meet at the barriers. With a gate the upper half of a cube's groups has
/// the values that belong to the gates of the lower half.
#[cube]
pub(super) fn weight_row(after: &After, outputs: usize, #[comptime] shape: Lanes) -> usize {
    let line = UNIT_POS_Y as usize;
    if comptime!(after.tail.gate.is_some()) {
        let pairs = outputs / 2;
        let pair = CUBE_POS * comptime!(shape.outputs / 2) + line % comptime!(shape.outputs / 2);
        min(pair, pairs - 1) + line / comptime!(shape.outputs / 2) * pairs
    } else {
        min(CUBE_POS * comptime!(shape.outputs) + line, outputs - 1)
    }
}

/// Adds the lanes' sums, applies the rows' factors, adds or gates, and writes: lane `r` row `r`.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn finish(
    sums: &Array<f32>,
    squares: &mut Array<f32>,
    after: &After,
    output: &mut Array<f32>,
    rows: usize,
    outputs: usize,
    #[comptime] shape: Lanes,
    #[comptime] stage: Stage,
) {
    let totals = lane_totals(sums, shape);
    let row = UNIT_POS_X as usize;
    let line = UNIT_POS_Y as usize;
    let mut factor = 1.0f32;
    if comptime!(stage.norm) {
        let squares = row_squares(squares, stage);
        let mean = squares[min(row, rows - 1)] / f32::cast_from(after.inputs);
        factor = 1.0f32 / (mean + after.eps).sqrt();
    }
    if row < rows {
        if comptime!(after.tail.gate.is_some()) {
            let function = comptime!(after.tail.gate.unwrap_or(GateFunction::Relu));
            let half = comptime!(shape.outputs / 2);
            let pair = CUBE_POS * half + line;
            if line < half && pair < outputs / 2 {
                let gate = totals[total_at(row, line, shape)] * factor;
                let value = totals[total_at(row, line + half, shape)] * factor;
                output[row * (outputs / 2) + pair] = gate_value(gate, function) * value;
            }
        } else {
            let place = CUBE_POS * comptime!(shape.outputs) + line;
            if place < outputs {
                let mut value = totals[total_at(row, line, shape)] * factor;
                if comptime!(after.tail.add) {
                    value += after.add[row * outputs + place];
                }
                output[row * outputs + place] = value;
            }
        }
    }
}
