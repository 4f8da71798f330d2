//! The operations on the CPU: `f32` in, `f32` sums, results that do not depend on what else is in
//! the batch.
//!
//! What holds bit for bit, on one machine: a row's result is the same alone and in any batch, for
//! any cut of a prompt into chunks, any block size and order of blocks, and any number of threads.
//! Every operation works row by row except attention, which says in its file why it holds there.

mod activation;
mod attention;
mod math;
mod norm;
mod rope;
mod sample;
#[cfg(test)]
mod tests;

use burn_flex::{Flex, FlexTensor, Layout};
use burn_tensor::{Bytes, DType, Int, Shape, Tensor, TensorPrimitive};
use engine_quant::{simd::Isa, threads};

use crate::kv::WORD;
use crate::ops::CoreOps;
use crate::ops::{
    activation::Activation, attention::AttentionArgs, rope::RopeArgs, sample::TokenChoice,
};
use crate::{CodedRows, ForwardBatch, LayerKv};

impl CoreOps for Flex {
    fn cache_floats(shape: [usize; 2], _device: &Self::Device) -> Tensor<Self, 2> {
        float_tensor(new_tensor(vec![0.0; shape.iter().product()], shape, DType::F32))
    }

    fn cache_words(shape: [usize; 2], _device: &Self::Device) -> Tensor<Self, 2, Int> {
        let bytes = Bytes::from_elems(vec![0_i32; shape.iter().product()]);
        let layout = Layout::contiguous(Shape::from(shape));
        Tensor::from_primitive(FlexTensor::new(bytes, layout, DType::I32))
    }

    fn rms_norm(x: Tensor<Self, 2>, weight: &Tensor<Self, 1>, eps: f32) -> Tensor<Self, 2> {
        let mut x = owned(x);
        let weight = readable(weight);
        norm::rms_norm(Isa::best(), x.storage_mut(), slice(&weight), eps);
        float_tensor(x)
    }

    fn add_rms_norm(
        x: Tensor<Self, 2>,
        residual: Tensor<Self, 2>,
        weight: &Tensor<Self, 1>,
        eps: f32,
    ) -> (Tensor<Self, 2>, Tensor<Self, 2>) {
        let (mut x, mut sum) = (owned(x), owned(residual));
        let weight = readable(weight);
        let weight = slice(&weight);
        norm::add_rms_norm(Isa::best(), x.storage_mut(), sum.storage_mut(), weight, eps);
        (float_tensor(x), float_tensor(sum))
    }

    fn gated(gate_up: Tensor<Self, 2>, activation: Activation) -> Tensor<Self, 2> {
        let [tokens, columns] = gate_up.dims();
        let gate_up = readable(&gate_up);
        let out = activation::gated(Isa::best(), slice(&gate_up), columns / 2, activation);
        float_tensor(new_tensor(out, [tokens, columns / 2], DType::F32))
    }

    fn rope_kv_write(
        qkv: Tensor<Self, 2>,
        args: &RopeArgs<'_, Self>,
        batch: &ForwardBatch<Self>,
        kv: &mut LayerKv<Self>,
    ) -> Tensor<Self, 2> {
        let [tokens, _] = qkv.dims();
        let mut qkv = owned(qkv);
        let cos_sin = readable(args.cos_sin);
        let norm = args.norm.map(|norm| (readable(norm.q_weight), readable(norm.k_weight)));
        let heads = rope::Heads {
            heads: args.heads,
            kv_heads: args.kv_heads,
            head_dim: args.head_dim,
            rotary_dim: args.rotary_dim,
            norm: norm.as_ref().map(|(q, k)| (slice(q), slice(k))),
            eps: args.norm.map_or(0.0, |norm| norm.eps),
        };
        let qkv = qkv.storage_mut();
        let q = rope::rotate(Isa::best(), qkv, slice(&cos_sin), &heads);
        let kv_len = args.kv_heads * args.head_dim;
        let q_len = args.heads * args.head_dim;
        let slots = &batch.input.slots;
        match kv {
            LayerKv::F32 { keys, values } => {
                for (cache, column) in [(keys, q_len), (values, q_len + kv_len)] {
                    cache.inplace(|cache| {
                        let mut cache = owned(cache);
                        rope::write_rows(cache.storage_mut(), kv_len, slots, qkv, column);
                        float_tensor(cache)
                    });
                }
            }
            LayerKv::Int8 { keys, values } => {
                for (cache, column) in [(keys, q_len), (values, q_len + kv_len)] {
                    write_codes(cache, args, slots, qkv, column);
                }
            }
        }
        float_tensor(new_tensor(q, [tokens, q_len], DType::F32))
    }

    fn paged_attention(
        q: Tensor<Self, 2>,
        kv: &LayerKv<Self>,
        batch: &ForwardBatch<Self>,
        args: &AttentionArgs,
    ) -> Tensor<Self, 2> {
        let shape = q.dims();
        let q = readable(&q);
        let (q, input) = (slice(&q), &batch.input);
        let out = match kv {
            LayerKv::F32 { keys, values } => {
                let [keys, values] = [keys, values].map(readable);
                let cache = attention::Cache {
                    keys: slice(&keys),
                    values: slice(&values),
                    head_pitch: args.head_dim,
                    scales: None,
                };
                attention::Attention { q, cache, input, args }.run(Isa::best())
            }
            LayerKv::Int8 { keys, values } => {
                let scales = [keys, values].map(|rows| readable(&rows.scales));
                let [keys, values] = [keys, values].map(|rows| words(rows.codes.clone()));
                let cache = attention::Cache {
                    keys: codes(&keys),
                    values: codes(&values),
                    head_pitch: args.head_dim.next_multiple_of(WORD),
                    scales: Some([slice(&scales[0]), slice(&scales[1])]),
                };
                attention::Attention { q, cache, input, args }.run(Isa::best())
            }
        };
        float_tensor(new_tensor(out, shape, DType::F32))
    }

    fn choose_tokens(logits: Tensor<Self, 2>, rows: &[TokenChoice]) -> Tensor<Self, 1, Int> {
        let logits = readable(&logits);
        let tokens = sample::choose_tokens(Isa::best(), slice(&logits), rows);
        let layout = Layout::contiguous(Shape::from([tokens.len()]));
        Tensor::from_primitive(FlexTensor::new(Bytes::from_elems(tokens), layout, DType::I32))
    }
}

/// Quantizes keys or values, the columns of `qkv` from `column` on, and writes them.
fn write_codes(
    cache: &mut CodedRows<Flex>,
    args: &RopeArgs<'_, Flex>,
    slots: &[u32],
    qkv: &[f32],
    column: usize,
) {
    let CodedRows { codes, scales } = cache;
    codes.inplace(|codes| {
        let mut codes = words(codes);
        scales.inplace(|scales| {
            let mut scales = owned(scales);
            Isa::best().run(rope::WriteCodes {
                codes: bytemuck::cast_slice_mut(codes.storage_mut::<i32>()),
                scales: scales.storage_mut(),
                slots,
                rows: qkv,
                column,
                kv_heads: args.kv_heads,
                head_dim: args.head_dim,
            });
            float_tensor(scales)
        });
        Tensor::from_primitive(codes)
    });
}

fn float_tensor<const D: usize>(tensor: FlexTensor) -> Tensor<Flex, D> {
    Tensor::from_primitive(TensorPrimitive::Float(tensor))
}

fn new_tensor(values: Vec<f32>, shape: [usize; 2], dtype: DType) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(Shape::from(shape)), dtype)
}

/// The tensor as `f32`, its storage exactly its elements in order: written in place where this was
/// its only owner, otherwise copied on the first write.
fn owned<const D: usize>(tensor: Tensor<Flex, D>) -> FlexTensor {
    tensor.cast(DType::F32).into_primitive().tensor().to_contiguous()
}

/// The tensor as `f32` with its elements one after the other; shared, not copied, if it is so.
fn readable<const D: usize>(tensor: &Tensor<Flex, D>) -> FlexTensor {
    let tensor = tensor.clone().cast(DType::F32).into_primitive().tensor();
    if tensor.layout().contiguous_offsets().is_some() { tensor } else { tensor.to_contiguous() }
}

/// The elements of a tensor from [`readable`].
fn slice(tensor: &FlexTensor) -> &[f32] {
    let range = tensor.layout().contiguous_offsets();
    assert!(range.is_some(), "the tensor was made contiguous");
    let (start, end) = range.unwrap_or_default();
    &tensor.storage()[start..end]
}

/// The tensor as `i32` with its elements one after the other.
fn words(tensor: Tensor<Flex, 2, Int>) -> FlexTensor {
    tensor.cast(DType::I32).into_primitive().to_contiguous()
}

/// The bytes of a tensor from [`words`]. The first code of a word is its lowest byte, as on every
/// machine that this backend is built for.
fn codes(tensor: &FlexTensor) -> &[i8] {
    bytemuck::cast_slice(tensor.storage::<i32>())
}

/// Rows that one task takes when `rows` of them go to all threads; all of them when `work`, in
/// elements, is too little to wake other threads for.
fn rows_per_task(rows: usize, work: usize) -> usize {
    const PARALLEL_WORK: usize = 1 << 16;
    let threads = threads::count();
    if threads == 1 || work < PARALLEL_WORK {
        rows.max(1)
    } else {
        rows.div_ceil(threads * 4).max(1)
    }
}
