//! Rotary position embedding (Su et al. 2021) of queries and keys, and the write of keys and
//! values into the cache.

use burn_tensor::{BasicOps, Tensor};

use super::{CoreOps, norm};
use crate::{CodedRows, ForwardBatch, LayerKv};

/// Shapes and tables of [`rope_kv_write`].
#[derive(Debug)]
pub struct RopeArgs<'a, B: CoreOps> {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Leading dimensions of a head that are rotated; even, at most `head_dim`.
    pub rotary_dim: usize,
    /// `[tokens, rotary_dim]`: the cosines of each token's angles, then the sines.
    pub cos_sin: &'a Tensor<B, 2>,
    /// Per-head normalisation of queries and keys before the rotation (Qwen 3, Gemma 3).
    pub norm: Option<QkNorm<'a, B>>,
}

/// Weights of the per-head query and key normalisation.
#[derive(Debug, Clone, Copy)]
pub struct QkNorm<'a, B: CoreOps> {
    /// `[head_dim]`.
    pub q_weight: &'a Tensor<B, 1>,
    /// `[head_dim]`.
    pub k_weight: &'a Tensor<B, 1>,
    /// Added to the mean square.
    pub eps: f32,
}

/// Splits `qkv [tokens, (heads + 2 · kv_heads) · head_dim]` (queries, keys, values), normalises
/// queries and keys where the model does, rotates them, writes keys and values into the slots of
/// the batch and returns the rotated queries, `[tokens, heads · head_dim]`. Where the cache holds
/// codes, keys and values are quantized as [`CodedRows`] defines it, last of all.
///
/// Pairs are `(i, i + rotary_dim / 2)`, Hugging Face's convention:
/// `(a, b)` becomes `(a · cos − b · sin, b · cos + a · sin)`.
pub fn rope_kv_write<B: CoreOps>(
    qkv: Tensor<B, 2>,
    args: &RopeArgs<'_, B>,
    batch: &ForwardBatch<B>,
    kv: &mut LayerKv<B>,
) -> Tensor<B, 2> {
    let [tokens, columns] = qkv.dims();
    let expected = (args.heads + 2 * args.kv_heads) * args.head_dim;
    assert_eq!(columns, expected, "rope_kv_write: qkv has {columns} columns, heads say {expected}");
    assert_eq!(tokens, batch.num_tokens(), "rope_kv_write: qkv and batch differ in tokens");
    assert_eq!(
        args.cos_sin.dims(),
        [tokens, args.rotary_dim],
        "rope_kv_write: cos_sin is [tokens, rotary_dim]"
    );
    assert!(
        args.rotary_dim.is_multiple_of(2) && args.rotary_dim <= args.head_dim,
        "rope_kv_write: rotary_dim is even and at most head_dim"
    );
    kv.check("rope_kv_write", args.kv_heads, args.head_dim);
    B::rope_kv_write(qkv, args, batch, kv)
}

/// Composed reference of [`rope_kv_write`].
pub fn rope_kv_write_reference<B: CoreOps>(
    qkv: Tensor<B, 2>,
    args: &RopeArgs<'_, B>,
    batch: &ForwardBatch<B>,
    kv: &mut LayerKv<B>,
) -> Tensor<B, 2> {
    let [tokens, columns] = qkv.dims();
    let q_len = args.heads * args.head_dim;
    let kv_len = args.kv_heads * args.head_dim;
    let q = qkv.clone().slice([0..tokens, 0..q_len]);
    let k = qkv.clone().slice([0..tokens, q_len..q_len + kv_len]);
    let v = qkv.slice([0..tokens, q_len + kv_len..columns]);

    let q = rotate_heads(q, args, args.norm.as_ref().map(|norm| (norm.q_weight, norm.eps)));
    let k = rotate_heads(k, args, args.norm.as_ref().map(|norm| (norm.k_weight, norm.eps)));
    let slots = &batch.input.slots;
    match kv {
        LayerKv::F32 { keys, values } => {
            write_rows(keys, k, slots);
            write_rows(values, v, slots);
        }
        LayerKv::Int8 { keys, values } => {
            for (cache, rows) in [(keys, k), (values, v)] {
                let rows = CodedRows::quantize(rows, args.kv_heads);
                write_rows(&mut cache.codes, rows.codes, slots);
                write_rows(&mut cache.scales, rows.scales, slots);
            }
        }
    }
    q
}

/// Normalises and rotates each head of `x [tokens, heads · head_dim]`.
fn rotate_heads<B: CoreOps>(
    x: Tensor<B, 2>,
    args: &RopeArgs<'_, B>,
    norm: Option<(&Tensor<B, 1>, f32)>,
) -> Tensor<B, 2> {
    let [tokens, columns] = x.dims();
    let heads = columns / args.head_dim;
    let x = match norm {
        Some((weight, eps)) => {
            let rows = x.reshape([tokens * heads, args.head_dim]);
            norm::rms_norm_reference(rows, weight, eps)
        }
        None => x,
    };
    let x = x.reshape([tokens, heads, args.head_dim]);
    let half = args.rotary_dim / 2;
    let cos = args.cos_sin.clone().slice([0..tokens, 0..half]).unsqueeze_dim::<3>(1);
    let sin = args.cos_sin.clone().slice([0..tokens, half..args.rotary_dim]).unsqueeze_dim::<3>(1);
    let part = |from: usize, to: usize| x.clone().slice([0..tokens, 0..heads, from..to]);
    let (a, b) = (part(0, half), part(half, args.rotary_dim));
    let mut parts = vec![a.clone() * cos.clone() - b.clone() * sin.clone(), b * cos + a * sin];
    if args.rotary_dim < args.head_dim {
        parts.push(part(args.rotary_dim, args.head_dim));
    }
    Tensor::cat(parts, 2).reshape([tokens, columns])
}

/// Writes row `i` of `rows` to row `slots[i]` of `cache`, runs of neighbouring slots at once.
fn write_rows<B: CoreOps, K: BasicOps<B>>(
    cache: &mut Tensor<B, 2, K>,
    rows: Tensor<B, 2, K>,
    slots: &[u32],
) {
    let mut start = 0;
    for run in slots.chunk_by(|a, b| a + 1 == *b) {
        let slot = run[0] as usize;
        let values = rows.clone().slice([start..start + run.len()]);
        cache.inplace(|cache| cache.slice_assign([slot..slot + run.len()], values));
        start += run.len();
    }
}
