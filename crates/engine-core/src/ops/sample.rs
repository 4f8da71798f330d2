//! Choice of the next token on the device, for requests that need no more than a temperature.

use burn_tensor::{DType, Int, Tensor, TensorData};

use super::CoreOps;
use crate::sampling::rng;

/// How one row's token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenChoice {
    /// Zero takes the largest logit; otherwise logits are divided by it and a token is drawn.
    pub temperature: f32,
    /// The request's seed.
    pub seed: u64,
    /// Position that the chosen token will have in its sequence.
    pub position: u32,
}

/// The chosen token of each row of `logits [rows, vocab]`, `i32 [rows]`; −1 where every logit is NaN
/// or −∞.
///
/// Greedy: the first of the largest logits. With a temperature: the largest of
/// `logit / temperature + gumbel(seed, position, token)` ([`rng::gumbel`]), which draws from the
/// softmax exactly and depends on nothing but the row.
pub fn choose_tokens<B: CoreOps>(logits: Tensor<B, 2>, rows: &[TokenChoice]) -> Tensor<B, 1, Int> {
    assert_eq!(logits.dims()[0], rows.len(), "choose_tokens: one choice for each row");
    B::choose_tokens(logits, rows)
}

/// Composed reference of [`choose_tokens`]; the noise is made on the host.
pub fn choose_tokens_reference<B: CoreOps>(
    logits: Tensor<B, 2>,
    rows: &[TokenChoice],
) -> Tensor<B, 1, Int> {
    let device = logits.device();
    let [num_rows, vocab] = logits.dims();
    let factors: Vec<f32> = rows
        .iter()
        .map(|row| if row.temperature > 0.0 { 1.0 / row.temperature } else { 1.0 })
        .collect();
    let noise: Vec<f32> = rows
        .iter()
        .flat_map(|row| {
            (0..vocab as u32).map(move |token| match row.temperature > 0.0 {
                true => rng::gumbel(row.seed, row.position, token),
                false => 0.0,
            })
        })
        .collect();
    let upload =
        |values, shape| Tensor::from_data(TensorData::new(values, shape), (&device, DType::F32));
    let scores = logits * upload(factors, [num_rows, 1]) + upload(noise, [num_rows, vocab]);
    let scores = scores.clone().mask_fill(scores.is_nan(), f32::NEG_INFINITY);
    let ruled_out = scores.clone().max_dim(1).lower_elem(f32::MIN);
    scores.argmax(1).mask_fill(ruled_out, -1).flatten(0, 1)
}
