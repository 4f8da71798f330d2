//! The operations of a transformer layer that are worth fusing.
//!
//! Each file has one operation: its public function with shapes and formula, and its composed
//! reference of plain Burn operations, which is the default body in [`CoreOps`]. The fast
//! implementations stand in files of the same name under `backends/`.

pub mod activation;
pub mod attention;
pub mod norm;
pub mod rope;
pub mod sample;

use burn_tensor::{DType, Int, Tensor, backend::Backend};

use crate::{ForwardBatch, LayerKv};
use activation::Activation;
use attention::AttentionArgs;
use rope::RopeArgs;
use sample::TokenChoice;

/// The fused operations, on one backend. Every default body is the composed reference, so a
/// backend that nobody tuned for works with an empty implementation.
///
/// Call the functions of the sub-modules, which check shapes, and not these methods.
pub trait CoreOps: Backend {
    /// Zeros for a cache, `f32 [slots, row]`. Where the system hands out memory as it is written,
    /// slots that are never used take none.
    fn cache_floats(shape: [usize; 2], device: &Self::Device) -> Tensor<Self, 2> {
        Tensor::zeros(shape, (device, DType::F32))
    }

    /// The same of `i32`.
    fn cache_words(shape: [usize; 2], device: &Self::Device) -> Tensor<Self, 2, Int> {
        Tensor::zeros(shape, (device, DType::I32))
    }

    /// See [`norm::rms_norm`].
    fn rms_norm(x: Tensor<Self, 2>, weight: &Tensor<Self, 1>, eps: f32) -> Tensor<Self, 2> {
        norm::rms_norm_reference(x, weight, eps)
    }

    /// See [`norm::add_rms_norm`].
    fn add_rms_norm(
        x: Tensor<Self, 2>,
        residual: Tensor<Self, 2>,
        weight: &Tensor<Self, 1>,
        eps: f32,
    ) -> (Tensor<Self, 2>, Tensor<Self, 2>) {
        norm::add_rms_norm_reference(x, residual, weight, eps)
    }

    /// See [`activation::gated`].
    fn gated(gate_up: Tensor<Self, 2>, activation: Activation) -> Tensor<Self, 2> {
        activation::gated_reference(gate_up, activation)
    }

    /// See [`rope::rope_kv_write`].
    fn rope_kv_write(
        qkv: Tensor<Self, 2>,
        args: &RopeArgs<'_, Self>,
        batch: &ForwardBatch<Self>,
        kv: &mut LayerKv<Self>,
    ) -> Tensor<Self, 2> {
        rope::rope_kv_write_reference(qkv, args, batch, kv)
    }

    /// See [`attention::paged_attention`].
    fn paged_attention(
        q: Tensor<Self, 2>,
        kv: &LayerKv<Self>,
        batch: &ForwardBatch<Self>,
        args: &AttentionArgs,
    ) -> Tensor<Self, 2> {
        attention::paged_attention_reference(q, kv, batch, args)
    }

    /// See [`sample::choose_tokens`].
    fn choose_tokens(logits: Tensor<Self, 2>, rows: &[TokenChoice]) -> Tensor<Self, 1, Int> {
        sample::choose_tokens_reference(logits, rows)
    }
}
