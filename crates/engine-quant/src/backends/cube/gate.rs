//! The non-linearities of gates.
#![allow(missing_docs, reason = "what the macro makes beside a function cannot be documented")]

use cubecl::prelude::*;

use crate::GateFunction;

/// The gate of `x`, with no overflow in between.
#[cube]
pub fn gate_value(x: f32, #[comptime] function: GateFunction) -> f32 {
    if comptime!(function == GateFunction::Silu) {
        x * sigmoid(x)
    } else if comptime!(function == GateFunction::Gelu) {
        0.5f32 * x * (1.0f32 + Erf::erf(x * std::f32::consts::FRAC_1_SQRT_2))
    } else if comptime!(function == GateFunction::Relu) {
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
