//! Gated activations: SwiGLU and GeGLU (Shazeer 2020).

use burn_tensor::{Tensor, activation};

use super::CoreOps;

/// The non-linearity of the gate, with its Hugging Face names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x · sigmoid(x)`: `silu`, `swish`.
    Silu,
    /// `x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))`: `gelu_pytorch_tanh`, `gelu_new`.
    GeluTanh,
    /// `x/2 · (1 + erf(x / √2))`: `gelu`.
    Gelu,
    /// `max(x, 0)`: `relu`.
    Relu,
}

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
