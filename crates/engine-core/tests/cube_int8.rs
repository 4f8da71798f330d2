//! The KV cache in 8 bits on the GPU backends, against the composed reference on the CPU.
#![recursion_limit = "256"]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod wgpu_device;

use burn_flex::Flex;
use burn_tensor::backend::Backend;
use burn_tensor::{DType, Tensor, TensorData};
use engine_core::ops::attention::{AttentionArgs, paged_attention, paged_attention_reference};
use engine_core::ops::rope::{QkNorm, RopeArgs, rope_kv_write, rope_kv_write_reference};
use engine_core::{
    BatchInput, CodedRows, CoreOps, ForwardBatch, KvCache, KvFormat, KvShape, LayerKv, LogitRows,
    SequenceChunk,
};
use wgpu_device::{Gpu, wgpu_device};

/// Reproducible numbers in [-1, 1).
fn numbers(seed: usize, len: usize) -> Vec<f32> {
    let mut state = (seed as u32).wrapping_mul(2_654_435_761).wrapping_add(12_345);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    (0..len).map(|_| (next() >> 8) as f32 / 8_388_608.0 - 1.0).collect()
}

fn matrix<B: Backend>(values: &[f32], columns: usize, device: &B::Device) -> Tensor<B, 2> {
    let shape = [values.len() / columns, columns];
    Tensor::from_data(TensorData::new(values.to_vec(), shape), (device, DType::F32))
}

fn floats<B: Backend>(tensor: Tensor<B, 2>) -> Vec<f32> {
    tensor.into_data().to_vec().unwrap()
}

/// Sequences as (first position, tokens), one after the other in blocks of three, and the slots.
fn world(sequences: &[(usize, usize)]) -> (BatchInput, usize) {
    let mut input = BatchInput::new(3);
    let mut next = 1;
    for &(start, len) in sequences {
        let blocks = (start + len).div_ceil(3) as u32;
        // Descending, so that a run of positions is no run of slots.
        let page_table: Vec<u32> = (next..next + blocks).rev().collect();
        next += blocks;
        input.push(SequenceChunk {
            tokens: &vec![5; len],
            start_position: start,
            page_table: &page_table,
            logits: LogitRows::Last,
            rope_len: start + len,
        });
    }
    (input, next as usize * 3)
}

fn coded<B: Backend>(kv: LayerKv<B>) -> [CodedRows<B>; 2] {
    match kv {
        LayerKv::Int8 { keys, values } => [keys, values],
        LayerKv::F32 { .. } => panic!("a cache of codes was asked for"),
    }
}

type Rope<B> =
    fn(Tensor<B, 2>, &RopeArgs<'_, B>, &ForwardBatch<B>, &mut LayerKv<B>) -> Tensor<B, 2>;

/// Scales and values of the keys, then of the values, after a write into an empty cache.
fn rope_outputs<B: CoreOps>(
    device: &B::Device,
    [heads, kv_heads, head_dim, rotary_dim]: [usize; 4],
    norm: bool,
    op: Rope<B>,
) -> [Vec<f32>; 5] {
    let (input, slots) = world(&[(0, 7), (16, 1), (3, 3)]);
    let columns = (heads + 2 * kv_heads) * head_dim;
    let tokens = input.tokens.len();
    let weight =
        |seed| Tensor::from_data(TensorData::new(numbers(seed, head_dim), [head_dim]), device);
    let (q_weight, k_weight) = (weight(11), weight(12));
    let args = RopeArgs {
        heads,
        kv_heads,
        head_dim,
        rotary_dim,
        cos_sin: &matrix(&numbers(13, tokens * rotary_dim), rotary_dim, device),
        norm: norm.then_some(QkNorm { q_weight: &q_weight, k_weight: &k_weight, eps: 1e-6 }),
    };
    let mut qkv = numbers(14, tokens * columns);
    // The second token's value of head 0 is zero.
    let value = columns + (heads + kv_heads) * head_dim;
    qkv[value..value + head_dim].fill(0.0);
    let batch = ForwardBatch::upload(input, device);
    let shape = KvShape { num_layers: 1, slots, kv_heads, head_dim, format: KvFormat::Int8 };
    let mut kv = KvCache::allocate(shape, device).layers.remove(0);
    let q = op(matrix(&qkv, columns, device), &args, &batch, &mut kv);
    let [keys, values] = coded(kv);
    let [k, v] = [&keys, &values].map(|rows| floats(rows.dequantize(head_dim)));
    [floats(q), floats(keys.scales), k, floats(values.scales), v]
}

#[test]
fn written_codes_are_those_of_the_reference() {
    let Some(gpu) = wgpu_device("written_codes_are_those_of_the_reference") else { return };
    for (shape, norm) in [
        ([1, 1, 2, 2], false),
        ([3, 1, 20, 20], true),
        ([4, 2, 36, 16], false),
        ([4, 4, 65, 64], true),
        ([4, 2, 128, 128], false),
        ([2, 1, 301, 4], false),
    ] {
        let [_, kv_heads, head_dim, _] = shape;
        let cpu = Default::default();
        let expected = rope_outputs::<Flex>(&cpu, shape, norm, rope_kv_write_reference);
        let mut found = vec![("kernel", rope_outputs::<Gpu>(&gpu, shape, norm, rope_kv_write))];
        if head_dim < 40 {
            let composed = rope_outputs::<Gpu>(&gpu, shape, norm, rope_kv_write_reference);
            found.push(("composed", composed));
        }
        found.push(("flex", rope_outputs::<Flex>(&cpu, shape, norm, rope_kv_write)));
        for (name, found) in found {
            for i in [0, 1, 3] {
                for (found, expected) in found[i].iter().zip(&expected[i]) {
                    let close = (found - expected).abs() <= 3e-6 * (1.0 + expected.abs());
                    assert!(close, "{name} {shape:?} part {i}: {found}, {expected}");
                }
            }
            // Numbers that differ by rounding may fall into neighbouring steps, but seldom do.
            let mut moved = 0;
            for (scales, values) in [(1, 2), (3, 4)] {
                for (j, (found, value)) in found[values].iter().zip(&expected[values]).enumerate() {
                    let step = expected[scales][j / (kv_heads * head_dim) * kv_heads
                        + j % (kv_heads * head_dim) / head_dim];
                    let steps = (found - value).abs() / step.max(f32::MIN_POSITIVE);
                    assert!(steps < 1.01, "{name} {shape:?} at {j}: {found}, {value}");
                    moved += usize::from(steps > 0.5);
                }
            }
            assert!(moved * 500 <= expected[2].len(), "{name} {shape:?}: {moved} codes moved");
        }
    }
}

#[test]
fn what_is_not_finite_spoils_its_own_head_alone() {
    let Some(gpu) = wgpu_device("what_is_not_finite_spoils_its_own_head_alone") else { return };
    let (input, slots) = world(&[(0, 1)]);
    let slot = input.slots[0] as usize;
    let batch = ForwardBatch::upload(input, &gpu);
    let (kv_heads, head_dim) = (3, 5);
    for spoil in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut qkv = vec![1.0; 3 * kv_heads * head_dim];
        qkv[7 * head_dim + 4] = spoil;
        let args = RopeArgs {
            heads: kv_heads,
            kv_heads,
            head_dim,
            rotary_dim: 2,
            cos_sin: &matrix(&[1.0, 0.0], 2, &gpu),
            norm: None,
        };
        let shape = KvShape { num_layers: 1, slots, kv_heads, head_dim, format: KvFormat::Int8 };
        let mut kv = KvCache::<Gpu>::allocate(shape, &gpu).layers.remove(0);
        rope_kv_write(matrix(&qkv, qkv.len(), &gpu), &args, &batch, &mut kv);
        let [keys, values] = coded(kv).map(|rows| floats(rows.dequantize(head_dim)));
        assert!(keys.iter().all(|key| key.is_finite()));
        let row = &values[slot * 15..][..15];
        for (i, value) in row.iter().enumerate() {
            assert_eq!(value.is_nan(), i / head_dim == 1, "{spoil} at {i}: {value}");
        }
    }
}

/// Keys and values of numbers, quantized on the CPU and uploaded as they are.
fn cache<B: Backend>(
    slots: usize,
    kv_heads: usize,
    head_dim: usize,
    device: &B::Device,
) -> LayerKv<B> {
    let rows = |seed| {
        let columns = kv_heads * head_dim;
        let x = matrix::<Flex>(&numbers(seed, slots * columns), columns, &Default::default());
        let rows = CodedRows::quantize(x, kv_heads);
        CodedRows {
            codes: Tensor::from_data(rows.codes.into_data(), (device, DType::I32)),
            scales: Tensor::from_data(rows.scales.into_data(), (device, DType::F32)),
        }
    };
    LayerKv::Int8 { keys: rows(8), values: rows(9) }
}

type Attention<B> = fn(Tensor<B, 2>, &LayerKv<B>, &ForwardBatch<B>, &AttentionArgs) -> Tensor<B, 2>;

fn attention_output<B: Backend>(
    device: &B::Device,
    sequences: &[(usize, usize)],
    args: &AttentionArgs,
    op: Attention<B>,
) -> Vec<f32> {
    let (input, slots) = world(sequences);
    let columns = args.heads * args.head_dim;
    let q = matrix(&numbers(21, input.tokens.len() * columns), columns, device);
    let kv = cache(slots, args.kv_heads, args.head_dim, device);
    floats(op(q, &kv, &ForwardBatch::upload(input, device), args))
}

#[test]
fn attention_to_codes_equals_its_reference() {
    let Some(gpu) = wgpu_device("attention_to_codes_equals_its_reference") else { return };
    let mixed: &[(usize, usize)] = &[(0, 7), (16, 1), (3, 3)];
    let long: &[(usize, usize)] = &[(299, 1), (0, 1), (510, 3)];
    for (sequences, [heads, kv_heads, head_dim], window, softcap) in [
        (mixed, [1, 1, 1], None, None),
        (mixed, [3, 1, 16], None, None),
        (mixed, [8, 1, 20], Some(4), None),
        (mixed, [4, 2, 36], None, Some(2.0)),
        (&[(0, 33)], [4, 2, 65], Some(7), None),
        (mixed, [8, 4, 128], None, None),
        (long, [4, 2, 64], None, None),
        (long, [3, 1, 65], Some(270), Some(2.0)),
    ] {
        let scale = 3.0 / (head_dim as f32).sqrt();
        let args = AttentionArgs { heads, kv_heads, head_dim, scale, softcap, window };
        let cpu = Default::default();
        let expected = attention_output::<Flex>(&cpu, sequences, &args, paged_attention_reference);
        let mut found =
            vec![("kernel", attention_output::<Gpu>(&gpu, sequences, &args, paged_attention))];
        if head_dim < 40 {
            let composed =
                attention_output::<Gpu>(&gpu, sequences, &args, paged_attention_reference);
            found.push(("composed", composed));
        }
        for (name, found) in found {
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let close = (found - expected).abs() <= 5e-6 * (1.0 + expected.abs());
                assert!(close, "{name} {args:?} {sequences:?} at {i}: {found}, {expected}");
            }
        }
    }
}

#[test]
fn blocks_are_moved_exactly() {
    let Some(gpu) = wgpu_device("blocks_are_moved_exactly") else { return };
    let mut kv = KvCache { layers: vec![cache::<Gpu>(12, 2, 5, &gpu)] };
    let bytes = |kv: &KvCache<Gpu>, block| -> Vec<Vec<u8>> {
        kv.read_block(block, 3).iter().map(|data| data.bytes.to_vec()).collect()
    };
    let before = [0, 1, 2, 3].map(|block| bytes(&kv, block));
    let saved = kv.read_block(1, 3);
    kv.copy_blocks(&[(3, 1)], 3);
    kv.write_block(2, 3, saved);
    let after = [0, 1, 2, 3].map(|block| bytes(&kv, block));
    for (block, from) in [(0, 0), (1, 3), (2, 1), (3, 3)] {
        assert_eq!(after[block], before[from], "block {block}");
    }
}
