//! Gated activations, one unit for each output.

use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use burn_tensor::DType;
use cubecl::prelude::*;

use super::{cube_grid, dims, empty};
use crate::ops::activation::Activation;

const UNITS: usize = 256;

pub(super) fn gated<R: CubeRuntime>(
    gate_up: CubeTensor<R>,
    activation: Activation,
) -> CubeTensor<R> {
    let [tokens, columns] = dims(&gate_up);
    let output = empty(&gate_up, [tokens, columns / 2], DType::F32);
    if tokens * columns > 0 {
        let client = gate_up.client.clone();
        gated_kernel::launch::<R>(
            &client,
            cube_grid((tokens * columns / 2).div_ceil(UNITS)),
            CubeDim::new_1d(UNITS as u32),
            gate_up.into_array_arg(),
            output.clone().into_array_arg(),
            columns / 2,
            activation,
        );
    }
    output
}

/// `output[t, i] = activation(gate_up[t, i]) · gate_up[t, intermediate + i]`.
#[cube(launch)]
fn gated_kernel(
    gate_up: &Array<f32>,
    output: &mut Array<f32>,
    intermediate: usize,
    #[comptime] activation: Activation,
) {
    let at = CUBE_POS * UNITS + UNIT_POS as usize;
    if at < output.len() {
        let gate = at + at / intermediate * intermediate;
        output[at] = activate(gate_up[gate], activation) * gate_up[gate + intermediate];
    }
}

#[cube]
fn activate(x: f32, #[comptime] activation: Activation) -> f32 {
    if comptime!(activation == Activation::Silu) {
        x * sigmoid(x)
    } else if comptime!(activation == Activation::Gelu) {
        0.5f32 * x * (1.0f32 + Erf::erf(x * std::f32::consts::FRAC_1_SQRT_2))
    } else if comptime!(activation == Activation::Relu) {
        max(x, 0.0f32)
    } else {
        // (1 + tanh y) / 2 = sigmoid(2 y), which does not cancel; 0.79788… is √(2/π).
        x * sigmoid(2.0f32 * 0.797_884_6 * (x + 0.044_715f32 * x * x * x))
    }
}

/// The bound keeps the exponential finite; the result is below 1e-34 there.
#[cube]
fn sigmoid(x: f32) -> f32 {
    1.0f32 / (1.0f32 + min(-x, 80.0f32).exp())
}
