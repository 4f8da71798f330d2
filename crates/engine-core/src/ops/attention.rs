//! Causal attention over the paged cache.

use burn_tensor::{Bool, DType, Int, Tensor, TensorData, activation};

use super::CoreOps;
use crate::{ForwardBatch, LayerKv};

/// Shapes and options of [`paged_attention`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionArgs {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; query head `h` reads head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor of the scores, usually `1 / √head_dim`.
    pub scale: f32,
    /// Scores become `c · tanh(score / c)` (Gemma 2).
    pub softcap: Option<f32>,
    /// A token sees itself and this many positions minus one before it.
    pub window: Option<usize>,
}

/// `softmax(scale · q · kᵀ) · v` of each token over its own sequence's cache, up to its position.
///
/// `q [tokens, heads · head_dim]`, cache rows `[slots, kv_heads · head_dim]`, result like `q`.
/// The keys and values of the batch's own tokens are already in the cache. Where it holds codes,
/// `k` and `v` are the values of the codes.
pub fn paged_attention<B: CoreOps>(
    q: Tensor<B, 2>,
    kv: &LayerKv<B>,
    batch: &ForwardBatch<B>,
    args: &AttentionArgs,
) -> Tensor<B, 2> {
    assert_eq!(
        q.dims(),
        [batch.num_tokens(), args.heads * args.head_dim],
        "paged_attention: q is [tokens, heads * head_dim]"
    );
    kv.check("paged_attention", args.kv_heads, args.head_dim);
    assert!(
        args.heads.is_multiple_of(args.kv_heads),
        "paged_attention: heads are a multiple of kv_heads"
    );
    B::paged_attention(q, kv, batch, args)
}

/// Composed reference of [`paged_attention`]: one sequence after the other, all scores at once.
pub fn paged_attention_reference<B: CoreOps>(
    q: Tensor<B, 2>,
    kv: &LayerKv<B>,
    batch: &ForwardBatch<B>,
    args: &AttentionArgs,
) -> Tensor<B, 2> {
    let starts = &batch.input.query_starts;
    let outputs = (0..batch.input.num_sequences())
        .map(|sequence| {
            let rows = starts[sequence] as usize..starts[sequence + 1] as usize;
            let q = q.clone().slice([rows.clone(), 0..args.heads * args.head_dim]);
            attend_one(q, kv, batch, sequence, args)
        })
        .collect();
    Tensor::cat(outputs, 0)
}

/// Attention of one sequence's rows `q [rows, heads · head_dim]`.
fn attend_one<B: CoreOps>(
    q: Tensor<B, 2>,
    kv: &LayerKv<B>,
    batch: &ForwardBatch<B>,
    sequence: usize,
    args: &AttentionArgs,
) -> Tensor<B, 2> {
    let device = q.device();
    let [rows, columns] = q.dims();
    let first = batch.input.positions[batch.input.query_starts[sequence] as usize] as usize;
    let context = first + rows;
    let slots: Vec<i32> = (0..context).map(|p| batch.input.slot(sequence, p) as i32).collect();
    let slots =
        Tensor::<B, 1, Int>::from_data(TensorData::new(slots, [context]), (&device, DType::I32));
    let [keys, values] = match kv {
        LayerKv::F32 { keys, values } => {
            [keys, values].map(|rows| rows.clone().select(0, slots.clone()))
        }
        LayerKv::Int8 { keys, values } => {
            [keys, values].map(|rows| rows.select(&slots).dequantize(args.head_dim))
        }
    };
    // [kv_heads, context, head_dim], each repeated for its group of query heads.
    let group = args.heads / args.kv_heads;
    let repeat = |rows: Tensor<B, 2>| {
        rows.reshape([context, args.kv_heads, args.head_dim])
            .swap_dims(0, 1)
            .unsqueeze_dim::<4>(1)
            .repeat_dim(1, group)
            .reshape([args.heads, context, args.head_dim])
    };
    let q = q.reshape([rows, args.heads, args.head_dim]).swap_dims(0, 1);
    let mut scores = q.matmul(repeat(keys).swap_dims(1, 2)) * args.scale;
    if let Some(cap) = args.softcap {
        scores = (scores / cap).tanh() * cap;
    }
    let visible = |row: usize, position: usize| {
        let own = first + row;
        position <= own && args.window.is_none_or(|window| own - position < window)
    };
    let hidden: Vec<bool> = (0..rows)
        .flat_map(|row| (0..context).map(move |position| !visible(row, position)))
        .collect();
    let mask = Tensor::<B, 2, Bool>::from_data(TensorData::new(hidden, [rows, context]), &device)
        .unsqueeze::<3>()
        .repeat_dim(0, args.heads);
    let weights = activation::softmax(scores.mask_fill(mask, f32::NEG_INFINITY), 2);
    weights.matmul(repeat(values)).swap_dims(0, 1).reshape([rows, columns])
}
