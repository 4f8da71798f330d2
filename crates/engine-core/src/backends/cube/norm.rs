//! Root mean square normalisation: one cube for each token, its units walk the row side by side.

use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use burn_tensor::DType;
use cubecl::prelude::*;

use super::{cube_grid, cube_sum, dims, empty, units_for};

pub(super) fn rms_norm<R: CubeRuntime>(
    x: CubeTensor<R>,
    weight: CubeTensor<R>,
    eps: f32,
) -> CubeTensor<R> {
    let [tokens, hidden] = dims(&x);
    let normed = empty(&x, [tokens, hidden], DType::F32);
    if tokens * hidden > 0 {
        let (client, units) = (x.client.clone(), units_for(hidden));
        rms_norm_kernel::launch::<R>(
            &client,
            cube_grid(tokens),
            CubeDim::new_1d(units as u32),
            x.into_array_arg(),
            weight.into_array_arg(),
            normed.clone().into_array_arg(),
            tokens,
            hidden,
            eps,
            units,
        );
    }
    normed
}

/// Returns `(normed, sum)`.
pub(super) fn add_rms_norm<R: CubeRuntime>(
    x: CubeTensor<R>,
    residual: CubeTensor<R>,
    weight: CubeTensor<R>,
    eps: f32,
) -> (CubeTensor<R>, CubeTensor<R>) {
    let [tokens, hidden] = dims(&x);
    let normed = empty(&x, [tokens, hidden], DType::F32);
    let sum = empty(&x, [tokens, hidden], DType::F32);
    if tokens * hidden > 0 {
        let (client, units) = (x.client.clone(), units_for(hidden));
        add_rms_norm_kernel::launch::<R>(
            &client,
            cube_grid(tokens),
            CubeDim::new_1d(units as u32),
            x.into_array_arg(),
            residual.into_array_arg(),
            weight.into_array_arg(),
            normed.clone().into_array_arg(),
            sum.clone().into_array_arg(),
            tokens,
            hidden,
            eps,
            units,
        );
    }
    (normed, sum)
}

/// `1 / sqrt(mean + eps)` where the units hold parts of the sum of `columns` squares.
#[cube]
pub(super) fn rms_factor(squares: f32, columns: usize, eps: f32, #[comptime] units: usize) -> f32 {
    let mean = cube_sum(squares, units) / f32::cast_from(columns);
    1.0f32 / (mean + eps).sqrt()
}

/// `normed = x / sqrt(mean(x²) + eps) · weight`, `x` and `normed [tokens, hidden]`.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn rms_norm_kernel(
    x: &Array<f32>,
    weight: &Array<f32>,
    normed: &mut Array<f32>,
    tokens: usize,
    hidden: usize,
    eps: f32,
    #[comptime] units: usize,
) {
    if CUBE_POS >= tokens {
        terminate!();
    }
    let start = CUBE_POS * hidden;
    let unit = UNIT_POS as usize;
    let mut squares = 0.0f32;
    for i in range_stepped(unit, hidden, units) {
        let value = x[start + i];
        squares += value * value;
    }
    let factor = rms_factor(squares, hidden, eps, units);
    for i in range_stepped(unit, hidden, units) {
        normed[start + i] = x[start + i] * factor * weight[i];
    }
}

/// `sum = x + residual`, then the norm of `sum`; all but `weight` are `[tokens, hidden]`.
/// A unit reads back only those sums that it wrote itself.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn add_rms_norm_kernel(
    x: &Array<f32>,
    residual: &Array<f32>,
    weight: &Array<f32>,
    normed: &mut Array<f32>,
    sum: &mut Array<f32>,
    tokens: usize,
    hidden: usize,
    eps: f32,
    #[comptime] units: usize,
) {
    if CUBE_POS >= tokens {
        terminate!();
    }
    let start = CUBE_POS * hidden;
    let unit = UNIT_POS as usize;
    let mut squares = 0.0f32;
    for i in range_stepped(unit, hidden, units) {
        let value = x[start + i] + residual[start + i];
        sum[start + i] = value;
        squares += value * value;
    }
    let factor = rms_factor(squares, hidden, eps, units);
    for i in range_stepped(unit, hidden, units) {
        normed[start + i] = sum[start + i] * factor * weight[i];
    }
}
