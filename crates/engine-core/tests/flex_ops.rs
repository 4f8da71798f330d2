//! The CPU backend's row operations against their composed references.
#![cfg(feature = "flex")]
#![allow(clippy::unwrap_used, clippy::panic)]

use burn_flex::{Flex, FlexDevice};
use burn_tensor::{DType, Int, Tensor, TensorData};
use engine_core::ops::activation::{Activation, gated, gated_reference};
use engine_core::ops::norm::{add_rms_norm, add_rms_norm_reference, rms_norm, rms_norm_reference};
use engine_core::ops::rope::{QkNorm, RopeArgs, rope_kv_write, rope_kv_write_reference};
use engine_core::ops::sample::{TokenChoice, choose_tokens, choose_tokens_reference};
use engine_core::{BatchInput, ForwardBatch, LayerKv, LogitRows, SequenceChunk};
use proptest::prelude::*;

/// Numbers in −1 .. 1 that have no pattern.
fn numbers(len: usize, seed: usize) -> Vec<f32> {
    let mut state = (seed as u32 + 1).wrapping_mul(0x9E37_79B9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / 2_147_483_648.0 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<Flex, D> {
    Tensor::from_data(TensorData::new(values, shape), (&FlexDevice, DType::F32))
}

fn matrix(rows: usize, columns: usize, seed: usize) -> Tensor<Flex, 2> {
    tensor(numbers(rows * columns, seed), [rows, columns])
}

fn values<const D: usize>(tensor: Tensor<Flex, D>) -> Vec<f32> {
    tensor.into_data().to_vec().unwrap()
}

fn bits(tensor: Tensor<Flex, 2>) -> Vec<u32> {
    values(tensor).into_iter().map(f32::to_bits).collect()
}

fn tokens_of(tensor: Tensor<Flex, 1, Int>) -> Vec<i32> {
    tensor.cast(DType::I32).into_data().to_vec().unwrap()
}

fn address(tensor: &Tensor<Flex, 2>) -> *const u8 {
    tensor.clone().into_primitive().tensor().bytes().as_ptr()
}

fn addresses(kv: &LayerKv<Flex>) -> Vec<*const u8> {
    match kv {
        LayerKv::F32 { keys, values } => [keys, values].map(address).into(),
        LayerKv::Int8 { keys, values } => [keys, values]
            .into_iter()
            .flat_map(|rows| {
                let codes = rows.codes.clone().into_primitive();
                [codes.bytes().as_ptr(), address(&rows.scales)]
            })
            .collect(),
    }
}

#[track_caller]
fn assert_close(found: Vec<f32>, expected: Vec<f32>, tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let allowed = tolerance * (1.0 + expected.abs());
        assert!((found - expected).abs() <= allowed, "{what} at {i}: {found}, {expected}");
    }
}

#[test]
fn norms_equal_the_composed_ones() {
    for rows in [1, 2, 7, 33, 300] {
        for hidden in [1, 7, 64, 65, 172, 1000] {
            let what = format!("{rows} rows of {hidden}");
            let (x, residual) = (matrix(rows, hidden, 1), matrix(rows, hidden, 2));
            let weight = tensor(numbers(hidden, 3), [hidden]);
            let expected = rms_norm_reference(x.clone(), &weight, 1e-5);
            assert_close(values(rms_norm(x.clone(), &weight, 1e-5)), values(expected), 2e-6, &what);
            let (normed, sum) = add_rms_norm(x.clone(), residual.clone(), &weight, 1e-6);
            let expected = add_rms_norm_reference(x, residual, &weight, 1e-6);
            assert_close(values(normed), values(expected.0), 2e-6, &what);
            assert_eq!(values(sum), values(expected.1), "{what}");
        }
    }
}

#[test]
fn norms_reuse_a_buffer_that_nobody_else_holds_and_spare_one_that_somebody_does() {
    let weight = tensor(vec![1.0; 64], [64]);
    let x = matrix(3, 64, 1);
    let before = address(&x);
    assert_eq!(address(&rms_norm(x, &weight, 1e-5)), before);

    let (x, residual) = (matrix(3, 64, 1), matrix(3, 64, 2));
    let (kept, before) = (x.clone(), values(x.clone()));
    add_rms_norm(x, residual.clone(), &weight, 1e-5);
    assert_eq!(values(kept), before);
    assert_eq!(values(residual), numbers(3 * 64, 2));
}

#[test]
fn views_are_read_as_what_they_show() {
    let weight = tensor(numbers(40, 3), [40]);
    let view = matrix(50, 9, 1).transpose().slice([2..6, 5..45]);
    let copy = tensor(values(view.clone()), [4, 40]);
    assert_eq!(
        bits(rms_norm(view.clone(), &weight, 1e-5)),
        bits(rms_norm(copy.clone(), &weight, 1e-5))
    );
    assert_eq!(bits(gated(view, Activation::Silu)), bits(gated(copy, Activation::Silu)));
}

#[test]
fn activations_equal_the_composed_ones() {
    use Activation::{Gelu, GeluTanh, Relu, Silu};
    for activation in [Silu, GeluTanh, Gelu, Relu] {
        for rows in [1, 2, 7, 33, 300] {
            for intermediate in [1, 7, 64, 65, 172, 1000] {
                let x = numbers(rows * 2 * intermediate, rows).iter().map(|x| x * 12.0).collect();
                let x = tensor(x, [rows, 2 * intermediate]);
                let expected = values(gated_reference(x.clone(), activation));
                let what = format!("{activation:?}, {rows} rows of {intermediate}");
                assert_close(values(gated(x, activation)), expected, 4e-6, &what);
            }
        }
    }
}

/// Sequences with chunks of several lengths, in blocks that lie scrambled in the pool.
fn batch(block_size: usize, chunks: &[(usize, usize)]) -> (ForwardBatch<Flex>, usize) {
    let mut input = BatchInput::new(block_size);
    let blocks_of = |&(start, len): &(usize, usize)| (start + len).div_ceil(block_size);
    let num_blocks: usize = chunks.iter().map(blocks_of).sum();
    // A step that has no common factor with the number of blocks visits each of them once.
    let step = (num_blocks / 2..).find(|s| gcd(*s, num_blocks) == 1).unwrap_or(1);
    let mut next = 0;
    for chunk in chunks {
        let page_table: Vec<u32> = (0..blocks_of(chunk))
            .map(|_| {
                next += 1;
                (next * step % num_blocks) as u32
            })
            .collect();
        input.push(SequenceChunk {
            tokens: &vec![0; chunk.1],
            start_position: chunk.0,
            page_table: &page_table,
            logits: LogitRows::Last,
            rope_len: chunk.0 + chunk.1,
        });
    }
    (ForwardBatch::upload(input, &FlexDevice), num_blocks * block_size)
}

/// Keys and values of a cache of floats.
fn floats(kv: LayerKv<Flex>) -> [Tensor<Flex, 2>; 2] {
    match kv {
        LayerKv::F32 { keys, values } => [keys, values],
        LayerKv::Int8 { .. } => panic!("a cache of floats was asked for"),
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[test]
fn rotation_and_cache_write_equal_the_composed_ones() {
    for (head_dim, rotary_dim) in
        [(2, 2), (6, 4), (8, 8), (10, 10), (33, 32), (80, 20), (128, 128), (256, 64)]
    {
        for (heads, kv_heads) in [(1, 1), (3, 1), (8, 1), (6, 2), (4, 4)] {
            for chunks in [&[(0, 1)][..], &[(5, 1), (0, 7), (16, 33)], &[(0, 150)]] {
                for with_norm in [false, true] {
                    let (batch, slots) = batch(3, chunks);
                    let tokens = batch.num_tokens();
                    let columns = (heads + 2 * kv_heads) * head_dim;
                    let qkv = matrix(tokens, columns, head_dim);
                    let cos_sin = matrix(tokens, rotary_dim, 5);
                    let q_weight = tensor(numbers(head_dim, 6), [head_dim]);
                    let k_weight = tensor(numbers(head_dim, 7), [head_dim]);
                    let norm = QkNorm { q_weight: &q_weight, k_weight: &k_weight, eps: 1e-6 };
                    let args = RopeArgs {
                        heads,
                        kv_heads,
                        head_dim,
                        rotary_dim,
                        cos_sin: &cos_sin,
                        norm: with_norm.then_some(norm),
                    };
                    let cache = || {
                        let cache = |seed| matrix(slots, kv_heads * head_dim, seed);
                        LayerKv::F32 { keys: cache(8), values: cache(9) }
                    };
                    let (mut found_kv, mut expected_kv) = (cache(), cache());
                    let expected =
                        rope_kv_write_reference(qkv.clone(), &args, &batch, &mut expected_kv);
                    let found = rope_kv_write(qkv, &args, &batch, &mut found_kv);
                    let what = format!("{heads}/{kv_heads} heads of {head_dim}, norm {with_norm}");
                    assert_close(values(found), values(expected), 3e-6, &what);
                    let [found, expected] = [found_kv, expected_kv].map(floats);
                    let keys = [&found[0], &expected[0]].map(|keys| values(keys.clone()));
                    assert_close(keys[0].clone(), keys[1].clone(), 3e-6, &format!("keys, {what}"));
                    let [found, expected] = [found, expected].map(|[_, rows]| values(rows));
                    assert_eq!(found, expected, "{what}");
                }
            }
        }
    }
}

#[test]
fn the_cache_is_written_where_it_lies() {
    let (batch, slots) = batch(4, &[(3, 2), (0, 5)]);
    let cos_sin = matrix(7, 8, 1);
    let args = RopeArgs {
        heads: 2,
        kv_heads: 1,
        head_dim: 8,
        rotary_dim: 8,
        cos_sin: &cos_sin,
        norm: None,
    };
    let floats = LayerKv::F32 { keys: matrix(slots, 8, 2), values: matrix(slots, 8, 3) };
    let codes = floats.clone().quantize(1);
    for mut kv in [floats, codes] {
        let before = addresses(&kv);
        for step in 0..3 {
            rope_kv_write(matrix(7, 32, step), &args, &batch, &mut kv);
            assert_eq!(addresses(&kv), before);
        }
    }
}

#[test]
#[should_panic(expected = "rope_kv_write: slot 15 of a cache with 12 slots")]
fn a_slot_outside_the_cache_is_named() {
    let mut input = BatchInput::new(4);
    input.push(SequenceChunk {
        tokens: &[1],
        start_position: 3,
        page_table: &[3],
        logits: LogitRows::Last,
        rope_len: 4,
    });
    let batch = ForwardBatch::upload(input, &FlexDevice);
    let cos_sin = matrix(1, 8, 1);
    let args = RopeArgs {
        heads: 1,
        kv_heads: 1,
        head_dim: 8,
        rotary_dim: 8,
        cos_sin: &cos_sin,
        norm: None,
    };
    let mut kv = LayerKv::F32 { keys: matrix(12, 8, 2), values: matrix(12, 8, 3) };
    rope_kv_write(matrix(1, 24, 1), &args, &batch, &mut kv);
}

fn choice(temperature: f32, position: u32) -> TokenChoice {
    TokenChoice { temperature, seed: 0x1234_5678_9abc_def0, position }
}

#[test]
fn the_chosen_tokens_are_those_of_the_composed_choice() {
    for rows in [1, 2, 7, 33] {
        for vocab in [1, 2, 3, 5, 131, 4099, 40_000] {
            if rows * vocab > 400_000 {
                continue;
            }
            let logits = tensor(
                numbers(rows * vocab, rows + vocab).iter().map(|x| x * 8.0).collect(),
                [rows, vocab],
            );
            let temperatures = [0.0, 1.0, 0.3, 2.5, 0.0, 1e-3, 50.0];
            let choices: Vec<TokenChoice> = (0..rows)
                .map(|row| choice(temperatures[row % temperatures.len()], row as u32))
                .collect();
            let expected = tokens_of(choose_tokens_reference(logits.clone(), &choices));
            let found = choose_tokens(logits, &choices);
            assert_eq!(found.dtype(), DType::I32);
            assert_eq!(tokens_of(found), expected, "{rows} rows of {vocab}");
        }
    }
}

#[test]
fn many_positions_of_flat_logits_give_the_composed_tokens() {
    let rows = 200;
    let logits = tensor(vec![0.25; rows * 131], [rows, 131]);
    let choices: Vec<TokenChoice> = (0..rows).map(|row| choice(1.0, row as u32)).collect();
    let expected = tokens_of(choose_tokens_reference(logits.clone(), &choices));
    assert_eq!(tokens_of(choose_tokens(logits, &choices)), expected);
}

#[test]
fn the_first_of_equal_logits_wins_and_nan_never_does() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    for (row, expected) in [
        ([1.0, 3.0, 3.0, 2.0, 3.0], 1),
        ([nan, -1.0, nan, -0.5, nan], 3),
        ([nan, nan, -inf, -inf, nan], -1),
        ([-inf, -inf, -inf, -inf, -inf], -1),
        ([nan, nan, nan, nan, nan], -1),
        ([0.0, inf, nan, inf, 0.0], 1),
        ([-0.0, 0.0, -1.0, 0.0, -2.0], 0),
    ] {
        let found = choose_tokens(tensor(row.to_vec(), [1, 5]), &[choice(0.0, 0)]);
        assert_eq!(tokens_of(found), [expected], "{row:?}");
        let row = tensor(row.to_vec(), [1, 5]);
        let found = choose_tokens_reference(row, &[choice(0.0, 0)]);
        assert_eq!(tokens_of(found), [expected], "the reference");
    }
    for position in 0..50 {
        let row = vec![nan, 0.0, nan, 0.0, nan];
        let found = tokens_of(choose_tokens(tensor(row, [1, 5]), &[choice(1.0, position)]));
        assert!(found[0] == 1 || found[0] == 3, "{found:?}");
        let row = vec![nan, -inf, nan, -inf, nan];
        let found = tokens_of(choose_tokens(tensor(row, [1, 5]), &[choice(1.0, position)]));
        assert_eq!(found, [-1]);
    }
}

fn in_pool<T: Send>(threads: usize, job: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(job)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Rows in any batch, cut anywhere, on any number of threads: the same bits as alone.
    #[test]
    fn a_row_never_depends_on_its_neighbours(
        rows in 2_usize..120, width in 1_usize..500, cut in 1_usize..120, threads in 1_usize..5,
    ) {
        let width = 2 * width;
        let cut = cut.min(rows - 1);
        let weight = tensor(numbers(width, 3), [width]);
        let x = matrix(rows, width, rows + width);
        type Op = fn(Tensor<Flex, 2>, &Tensor<Flex, 1>) -> Tensor<Flex, 2>;
        let ops: [Op; 3] = [
            |x, weight| rms_norm(x, weight, 1e-5),
            |x, weight| add_rms_norm(x.clone(), x * 0.5, weight, 1e-5).0,
            |x, _| gated(x, Activation::GeluTanh),
        ];
        for op in ops {
            let (whole_x, whole_weight) = (x.clone(), weight.clone());
            let whole = in_pool(threads, move || bits(op(whole_x, &whole_weight)));
            let mut parts = bits(op(x.clone().slice(0..cut), &weight));
            parts.extend(bits(op(x.clone().slice(cut..rows), &weight)));
            prop_assert_eq!(&whole, &parts);
        }
    }

    /// A row's token does not depend on the other rows or on threads.
    #[test]
    fn a_token_never_depends_on_its_neighbours(
        rows in 1_usize..6, vocab in 1_usize..40_000, seed in any::<u64>(),
        temperature in 0.0_f32..3.0, threads in 1_usize..5,
    ) {
        let logits = matrix(rows, vocab, vocab) * 6.0;
        let choices: Vec<TokenChoice> =
            (0..rows as u32).map(|position| TokenChoice { temperature, seed, position }).collect();
        let (whole, all) = (logits.clone(), choices.clone());
        let together = in_pool(threads, move || tokens_of(choose_tokens(whole, &all)));
        for row in 0..rows {
            let alone = choose_tokens(logits.clone().slice(row..row + 1), &choices[row..=row]);
            prop_assert_eq!(tokens_of(alone), &together[row..=row]);
        }
    }
}
