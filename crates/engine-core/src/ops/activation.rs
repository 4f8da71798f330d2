//! Gated activations: SwiGLU and GeGLU (Shazeer 2020).

use burn_tensor::{Tensor, activation};

use super::CoreOps;

pub use engine_quant::GateFunction as Activation;

/// `activation(gate) · up` where `gate_up [tokens, 2 · intermediate]` holds the gate first.
/// Returns `[tokens, intermediate]`.
pub fn gated<B: CoreOps>(gate_up: Tensor<B, 2>, activation: Activation) -> Tensor<B, 2> {
    let [_, columns] = gate_up.dims();
    assert!(columns.is_multiple_of(2), "gated: gate_up has an odd number of columns, {columns}");
    B::gated(gate_up, activation)
}

/// Composed reference of [`gated`].
pub fn gated_reference<B: CoreOps>(gate_up: Tensor<B, 2>, activation: Activation) -> Tensor<B, 2> {
    let [tokens, columns] = gate_up.dims();
    let intermediate = columns / 2;
    let gate = gate_up.clone().slice([0..tokens, 0..intermediate]);
    let up = gate_up.slice([0..tokens, intermediate..columns]);
    let gate = match activation {
        Activation::Silu => activation::silu(gate),
        Activation::Gelu => activation::gelu(gate),
        Activation::Relu => activation::relu(gate),
        Activation::GeluTanh => {
            let cubed = gate.clone().powi_scalar(3);
            let inner = (gate.clone() + cubed * 0.044715) * (2.0 / std::f64::consts::PI).sqrt();
            gate * 0.5 * (inner.tanh() + 1.0)
        }
    };
    gate * up
}
