//! Gated activations, one unit for each output.

use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use burn_tensor::DType;
use cubecl::prelude::*;
use engine_quant::gate_value;

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
        output[at] = gate_value(gate_up[gate], activation) * gate_up[gate + intermediate];
    }
}
