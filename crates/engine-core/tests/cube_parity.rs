//! Every CubeCL operation against its composed reference, which runs on the CPU backend.
#![recursion_limit = "256"]
#![allow(clippy::unwrap_used, clippy::panic)]

mod wgpu_device;

use burn_flex::Flex;
use burn_tensor::backend::Backend;
use burn_tensor::{Tensor, TensorData, TensorPrimitive};
use engine_core::ops::activation::{Activation, gated, gated_reference};
use engine_core::ops::attention::{AttentionArgs, paged_attention, paged_attention_reference};
use engine_core::ops::norm::{add_rms_norm, add_rms_norm_reference, rms_norm, rms_norm_reference};
use engine_core::ops::rope::{QkNorm, RopeArgs, rope_kv_write, rope_kv_write_reference};
use engine_core::ops::sample::{TokenChoice, choose_tokens, choose_tokens_reference};
use engine_core::{BatchInput, ForwardBatch, LayerKv, LogitRows, SequenceChunk};
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

fn tensor<B: Backend, const D: usize>(
    values: &[f32],
    shape: [usize; D],
    device: &B::Device,
) -> Tensor<B, D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

fn floats<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().to_vec().unwrap()
}

fn assert_close(case: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{case}: lengths");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            (found - expected).abs() <= tolerance * (1.0 + expected.abs()),
            "{case}, element {i}: found {found}, expected {expected}"
        );
    }
}

#[test]
fn norms_equal_their_references() {
    let Some(gpu) = wgpu_device("norms_equal_their_references") else { return };
    let cpu = Default::default();
    for hidden in [1, 7, 65, 172, 1500] {
        for tokens in [1, 2, 9, 33] {
            let case = format!("[{tokens}, {hidden}]");
            let x = numbers(1, tokens * hidden);
            let residual = numbers(2, tokens * hidden);
            let weight = numbers(3, hidden);
            let shape = [tokens, hidden];
            let expected = floats(rms_norm_reference::<Flex>(
                tensor(&x, shape, &cpu),
                &tensor(&weight, [hidden], &cpu),
                1e-5,
            ));
            let gpu_weight = tensor::<Gpu, 1>(&weight, [hidden], &gpu);
            let found = floats(rms_norm(tensor(&x, shape, &gpu), &gpu_weight, 1e-5));
            assert_close(&case, &found, &expected, 2e-6);

            let (normed, sum) = add_rms_norm_reference::<Flex>(
                tensor(&x, shape, &cpu),
                tensor(&residual, shape, &cpu),
                &tensor(&weight, [hidden], &cpu),
                1e-5,
            );
            let (found_normed, found_sum) = add_rms_norm(
                tensor(&x, shape, &gpu),
                tensor(&residual, shape, &gpu),
                &gpu_weight,
                1e-5,
            );
            assert_close(&case, &floats(found_normed), &floats(normed), 2e-6);
            assert_eq!(floats(found_sum), floats(sum), "{case}: sum");
        }
    }
}

#[test]
fn a_view_is_read_in_its_own_order() {
    let Some(gpu) = wgpu_device("a_view_is_read_in_its_own_order") else { return };
    let values = numbers(4, 6 * 10);
    let view = tensor::<Gpu, 2>(&values, [6, 10], &gpu).transpose().slice([2..9, 1..5]);
    let copy = tensor::<Gpu, 2>(&floats(view.clone()), [7, 4], &gpu);
    let weight = tensor(&numbers(5, 4), [4], &gpu);
    let found = floats(rms_norm(view.clone(), &weight, 1e-6));
    assert_eq!(found, floats(rms_norm(copy.clone(), &weight, 1e-6)));
    assert_eq!(floats(gated(view, Activation::Silu)), floats(gated(copy, Activation::Silu)));
}

#[test]
fn activations_equal_their_references() {
    let Some(gpu) = wgpu_device("activations_equal_their_references") else { return };
    let cpu = Default::default();
    let kinds = [Activation::Silu, Activation::GeluTanh, Activation::Gelu, Activation::Relu];
    for kind in kinds {
        for (tokens, intermediate) in [(1, 1), (2, 7), (9, 172)] {
            let mut values = numbers(6, tokens * intermediate * 2);
            for row in values.chunks_mut(2 * intermediate) {
                let gates = &mut row[..intermediate];
                gates.iter_mut().for_each(|gate| *gate *= 8.0);
                // Where exponentials and cubes overflow.
                let large = [100.0, -100.0, 1e4, -1e4, 1e20, -1e20, 0.0];
                gates.iter_mut().skip(5).step_by(2).zip(large).for_each(|(gate, x)| *gate = x);
            }
            let shape = [tokens, 2 * intermediate];
            let expected = floats(gated_reference::<Flex>(tensor(&values, shape, &cpu), kind));
            let found = floats(gated::<Gpu>(tensor(&values, shape, &gpu), kind));
            assert_close(&format!("{kind:?} {shape:?}"), &found, &expected, 2e-6);
        }
    }
}

/// Sequences as (first position, tokens) over scrambled blocks of one pool.
struct World {
    input: BatchInput,
    slots: usize,
}

impl World {
    fn new(block_size: usize, sequences: &[(usize, usize)]) -> Self {
        let blocks = |&(start, len): &(usize, usize)| (start + len).div_ceil(block_size);
        let pool: usize = sequences.iter().map(blocks).sum::<usize>() + 2;
        let mut order: Vec<(f32, u32)> = numbers(77, pool).into_iter().zip(0..).collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut free = order.into_iter().map(|(_, block)| block);
        let mut input = BatchInput::new(block_size);
        for sequence in sequences {
            let page_table: Vec<u32> = free.by_ref().take(blocks(sequence)).collect();
            input.push(SequenceChunk {
                tokens: &vec![5; sequence.1],
                start_position: sequence.0,
                page_table: &page_table,
                logits: LogitRows::Last,
                rope_len: sequence.0 + sequence.1,
            });
        }
        Self { input, slots: pool * block_size }
    }

    fn tokens(&self) -> usize {
        self.input.tokens.len()
    }

    fn kv<B: Backend>(&self, row_len: usize, device: &B::Device) -> LayerKv<B> {
        let shape = [self.slots, row_len];
        LayerKv::F32 {
            keys: tensor(&numbers(8, self.slots * row_len), shape, device),
            values: tensor(&numbers(9, self.slots * row_len), shape, device),
        }
    }
}

/// Keys and values of a cache of floats.
fn float_rows<B: Backend>(kv: LayerKv<B>) -> [Tensor<B, 2>; 2] {
    match kv {
        LayerKv::F32 { keys, values } => [keys, values],
        LayerKv::Int8 { .. } => panic!("a cache of floats was asked for"),
    }
}

const MIXED: &[(usize, usize)] = &[(0, 5), (16, 1), (3, 3), (40, 2)];

type Rope<B> =
    fn(Tensor<B, 2>, &RopeArgs<'_, B>, &ForwardBatch<B>, &mut LayerKv<B>) -> Tensor<B, 2>;

/// Rotated queries and the whole cache afterwards.
fn rope_outputs<B: engine_core::CoreOps>(
    device: &B::Device,
    world: &World,
    [heads, kv_heads, head_dim, rotary_dim]: [usize; 4],
    norm: bool,
    op: Rope<B>,
) -> [Vec<f32>; 3] {
    let tokens = world.tokens();
    let columns = (heads + 2 * kv_heads) * head_dim;
    let q_weight = tensor::<B, 1>(&numbers(11, head_dim), [head_dim], device);
    let k_weight = tensor::<B, 1>(&numbers(12, head_dim), [head_dim], device);
    let cos_sin = tensor(&numbers(13, tokens * rotary_dim), [tokens, rotary_dim], device);
    let args = RopeArgs {
        heads,
        kv_heads,
        head_dim,
        rotary_dim,
        cos_sin: &cos_sin,
        norm: norm.then_some(QkNorm { q_weight: &q_weight, k_weight: &k_weight, eps: 1e-6 }),
    };
    let batch = ForwardBatch::upload(world.input.clone(), device);
    let mut kv = world.kv(kv_heads * head_dim, device);
    let qkv = tensor(&numbers(14, tokens * columns), [tokens, columns], device);
    let q = op(qkv, &args, &batch, &mut kv);
    let [keys, values] = float_rows(kv);
    [floats(q), floats(keys), floats(values)]
}

#[test]
fn rope_and_cache_equal_their_references() {
    let Some(gpu) = wgpu_device("rope_and_cache_equal_their_references") else { return };
    let shapes = [
        [1, 1, 2, 2],
        [4, 4, 6, 4],
        [3, 1, 33, 2],
        [8, 1, 33, 16],
        [6, 2, 80, 32],
        [4, 2, 64, 64],
        [2, 1, 256, 128],
    ];
    for shape in shapes {
        for (block_size, norm) in [(1, false), (3, true), (16, false), (16, true)] {
            let world = World::new(block_size, MIXED);
            let expected = rope_outputs::<Flex>(
                &Default::default(),
                &world,
                shape,
                norm,
                rope_kv_write_reference,
            );
            let found = rope_outputs::<Gpu>(&gpu, &world, shape, norm, rope_kv_write);
            for (name, i) in [("queries", 0), ("keys", 1), ("values", 2)] {
                let case = format!("{shape:?}, blocks of {block_size}, norm {norm}: {name}");
                assert_close(&case, &found[i], &expected[i], 3e-6);
            }
        }
    }
}

/// One line of the attention table.
fn attention_args(
    [heads, kv_heads, head_dim]: [usize; 3],
    window: Option<usize>,
    softcap: Option<f32>,
) -> AttentionArgs {
    // Larger than 1/√head_dim: scores that differ give weights that differ.
    let scale = 3.0 / (head_dim as f32).sqrt();
    AttentionArgs { heads, kv_heads, head_dim, scale, softcap, window }
}

type Attention<B> = fn(Tensor<B, 2>, &LayerKv<B>, &ForwardBatch<B>, &AttentionArgs) -> Tensor<B, 2>;

fn attention_output<B: Backend>(
    device: &B::Device,
    world: &World,
    args: &AttentionArgs,
    op: Attention<B>,
) -> Vec<f32> {
    let columns = args.heads * args.head_dim;
    let q = tensor(&numbers(21, world.tokens() * columns), [world.tokens(), columns], device);
    let batch = ForwardBatch::upload(world.input.clone(), device);
    floats(op(q, &world.kv(args.kv_heads * args.head_dim, device), &batch, args))
}

#[test]
fn attention_equals_its_reference() {
    let Some(gpu) = wgpu_device("attention_equals_its_reference") else { return };
    let long: &[(usize, usize)] = &[(299, 1), (0, 1), (510, 3), (16, 1), (255, 2)];
    let table = [
        (16, MIXED, attention_args([1, 1, 1], None, None)),
        (1, MIXED, attention_args([1, 1, 2], None, None)),
        (3, MIXED, attention_args([3, 1, 6], None, None)),
        (16, MIXED, attention_args([8, 1, 33], Some(4), None)),
        (16, MIXED, attention_args([6, 2, 80], None, Some(2.0))),
        (3, MIXED, attention_args([10, 1, 128], Some(1), Some(2.0))),
        (16, MIXED, attention_args([2, 2, 256], None, None)),
        (16, MIXED, attention_args([2, 1, 300], None, None)),
        (16, &[(0, 33)], attention_args([4, 2, 16], Some(7), None)),
        (16, long, attention_args([4, 2, 32], None, None)),
        (3, long, attention_args([3, 1, 33], Some(20), None)),
        (1, long, attention_args([8, 1, 6], Some(270), Some(2.0))),
        (16, &[(600, 2), (590, 1)], attention_args([2, 2, 64], Some(40), None)),
    ];
    for (block_size, sequences, args) in table {
        let world = World::new(block_size, sequences);
        let cpu = Default::default();
        let expected = attention_output::<Flex>(&cpu, &world, &args, paged_attention_reference);
        let found = attention_output::<Gpu>(&gpu, &world, &args, paged_attention);
        let case = format!("blocks of {block_size}, {sequences:?}, {args:?}");
        assert_close(&case, &found, &expected, 5e-6);
    }
}

#[test]
fn attention_does_not_depend_on_the_batch() {
    let Some(gpu) = wgpu_device("attention_does_not_depend_on_the_batch") else { return };
    let args = attention_args([4, 2, 33], None, None);
    let world = World::new(3, &[(299, 1), (0, 5), (700, 2)]);
    let together = attention_output::<Gpu>(&gpu, &world, &args, paged_attention);
    let columns = args.heads * args.head_dim;
    let q = numbers(21, world.tokens() * columns);
    let kv = world.kv::<Gpu>(args.kv_heads * args.head_dim, &gpu);
    for token in 0..world.tokens() {
        let sequence = world.input.sequences[token] as usize;
        let mut alone = BatchInput::new(3);
        alone.push(SequenceChunk {
            tokens: &[5],
            start_position: world.input.positions[token] as usize,
            page_table: &world.input.page_tables[sequence],
            logits: LogitRows::Last,
            rope_len: 1,
        });
        let own = token * columns..(token + 1) * columns;
        let found = floats(paged_attention(
            tensor(&q[own.clone()], [1, columns], &gpu),
            &kv,
            &ForwardBatch::upload(alone, &gpu),
            &args,
        ));
        assert_eq!(found, together[own], "token {token}");
    }
}

#[test]
fn attention_reads_nothing_outside_the_window() {
    let Some(gpu) = wgpu_device("attention_reads_nothing_outside_the_window") else { return };
    let args = attention_args([4, 2, 33], Some(20), None);
    let world = World::new(3, &[(299, 2), (5, 1), (250, 9)]);
    let row_len = args.kv_heads * args.head_dim;
    let clean = attention_output::<Gpu>(&gpu, &world, &args, paged_attention);
    let mut visible = vec![false; world.slots];
    for (token, &position) in world.input.positions.iter().enumerate() {
        for seen in (position as usize + 1).saturating_sub(20)..=position as usize {
            visible[world.input.slot(world.input.sequences[token] as usize, seen)] = true;
        }
    }
    let poisoned = |seed| {
        let mut rows = numbers(seed, world.slots * row_len);
        for (slot, row) in rows.chunks_mut(row_len).enumerate() {
            if !visible[slot] {
                row.fill(f32::NAN);
            }
        }
        tensor::<Gpu, 2>(&rows, [world.slots, row_len], &gpu)
    };
    let kv = LayerKv::F32 { keys: poisoned(8), values: poisoned(9) };
    let columns = args.heads * args.head_dim;
    let q = tensor(&numbers(21, world.tokens() * columns), [world.tokens(), columns], &gpu);
    let batch = ForwardBatch::upload(world.input.clone(), &gpu);
    assert_eq!(floats(paged_attention(q, &kv, &batch, &args)), clean);
}

#[test]
fn a_padded_cache_is_used_in_place() {
    let Some(gpu) = wgpu_device("a_padded_cache_is_used_in_place") else { return };
    let (heads, kv_heads, head_dim) = (4, 2, 6);
    let (row_len, pitch) = (kv_heads * head_dim, kv_heads * head_dim + 5);
    let world = World::new(3, MIXED);
    let tokens = world.tokens();
    let batch = ForwardBatch::upload(world.input.clone(), &gpu);
    let padded = tensor::<Gpu, 2>(&numbers(8, world.slots * pitch), [world.slots, pitch], &gpu);
    // The same memory, the last columns of each row left out: what CUDA's row alignment makes.
    let narrow = |matrix: &Tensor<Gpu, 2>, columns| {
        let mut primitive = matrix.clone().into_primitive().tensor();
        primitive.meta.shape_mut()[1] = columns;
        Tensor::<Gpu, 2>::from_primitive(TensorPrimitive::Float(primitive))
    };
    let view = || narrow(&padded, row_len);
    let [_, values] = float_rows(world.kv(row_len, &gpu));
    // A copy with rows of its own, written first: `view` shares its memory with `padded`.
    let keys = tensor(&floats(view()), [world.slots, row_len], &gpu);
    let mut tight = LayerKv::F32 { keys, values: values.clone() };
    let mut loose = LayerKv::F32 { keys: view(), values: values.mul_scalar(1.0) };
    let angles = tensor::<Gpu, 2>(&numbers(13, tokens * 9), [tokens, 9], &gpu);
    let loose_angles = narrow(&angles, head_dim);
    let tight_angles = tensor(&floats(loose_angles.clone()), [tokens, head_dim], &gpu);
    let args =
        |cos_sin| RopeArgs { heads, kv_heads, head_dim, rotary_dim: head_dim, cos_sin, norm: None };
    let columns = (heads + 2 * kv_heads) * head_dim;
    let qkv = tensor::<Gpu, 2>(&numbers(14, tokens * columns), [tokens, columns], &gpu);
    let q = rope_kv_write(qkv.clone(), &args(&tight_angles), &batch, &mut tight);
    let loose_q = rope_kv_write(qkv, &args(&loose_angles), &batch, &mut loose);
    assert!(floats(loose_q) == floats(q.clone()), "the queries differ");
    let [tight_keys, tight_values] = float_rows(tight.clone());
    let [_, loose_values] = float_rows(loose.clone());
    assert!(floats(view()) == floats(tight_keys), "the keys went elsewhere");
    assert!(floats(loose_values) == floats(tight_values), "the values differ");
    let kept = floats(padded.clone().slice([0..world.slots, row_len..pitch]));
    let before = tensor::<Gpu, 2>(&numbers(8, world.slots * pitch), [world.slots, pitch], &gpu);
    let before = floats(before.slice([0..world.slots, row_len..pitch]));
    assert!(kept == before, "the padding was overwritten");
    let args = attention_args([heads, kv_heads, head_dim], None, None);
    let expected = floats(paged_attention(q.clone(), &tight, &batch, &args));
    assert_eq!(floats(paged_attention(q, &loose, &batch, &args)), expected);
}

fn chosen<B: Backend>(tokens: Tensor<B, 1, burn_tensor::Int>) -> Vec<i32> {
    tokens.into_data().convert::<i32>().to_vec().unwrap()
}

#[test]
fn choices_equal_their_references() {
    let Some(gpu) = wgpu_device("choices_equal_their_references") else { return };
    let cpu = Default::default();
    for (rows, vocab, spread) in [(1, 1, 1.0), (7, 3, 1.0), (33, 131, 2.0), (16, 5000, 0.0)] {
        let logits: Vec<f32> = numbers(31, rows * vocab).iter().map(|x| x * spread).collect();
        for temperature in [0.0, 0.3, 1.0] {
            let choices: Vec<TokenChoice> = (0..rows)
                .map(|row| TokenChoice {
                    // Every third row is greedy.
                    temperature: if row % 3 == 2 { 0.0 } else { temperature },
                    seed: 0x1234_5678_9ABC_DEF0 ^ row as u64,
                    position: 7 * row as u32,
                })
                .collect();
            let shape = [rows, vocab];
            let expected = choose_tokens_reference::<Flex>(tensor(&logits, shape, &cpu), &choices);
            let found = choose_tokens::<Gpu>(tensor(&logits, shape, &gpu), &choices);
            assert_eq!(
                chosen(found),
                chosen(expected),
                "{rows} rows of {vocab}, temperature {temperature}"
            );
        }
    }
}

#[test]
fn greedy_takes_the_first_of_equals() {
    let Some(gpu) = wgpu_device("greedy_takes_the_first_of_equals") else { return };
    let mut logits = vec![-1.0; 3 * 700];
    for (row, places) in [(0, [699, 64]), (1, [3, 2]), (2, [511, 510])] {
        for place in places {
            logits[row * 700 + place] = 2.5;
        }
    }
    let greedy = TokenChoice { temperature: 0.0, seed: 1, position: 1 };
    let found = choose_tokens::<Gpu>(tensor(&logits, [3, 700], &gpu), &[greedy; 3]);
    assert_eq!(chosen(found), [64, 2, 510]);
}

#[test]
fn nothing_is_chosen_where_nothing_can_be() {
    let Some(gpu) = wgpu_device("nothing_is_chosen_where_nothing_can_be") else { return };
    let mut logits = vec![f32::NAN; 3 * 700];
    logits[700..1400].fill(f32::NEG_INFINITY);
    logits[1400 + 333] = -7.0;
    for temperature in [0.0, 1.0] {
        let choice = TokenChoice { temperature, seed: 1, position: 1 };
        let found = choose_tokens::<Gpu>(tensor(&logits, [3, 700], &gpu), &[choice; 3]);
        assert_eq!(chosen(found), [-1, -1, 333], "temperature {temperature}");
    }
}
