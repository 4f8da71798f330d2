//! Every kernel on every instruction set of this CPU against the composed references; the tests
//! under `tests/` see the widest set alone.

use burn_flex::FlexDevice;
use burn_tensor::TensorData;

use super::*;
use crate::ops::{activation, attention as attention_op, norm as norm_op, rope as rope_op};
use crate::{BatchInput, LogitRows, SequenceChunk};

/// Numbers in −1 .. 1 that have no pattern.
fn numbers(len: usize, seed: u32) -> Vec<f32> {
    let mut state = (seed + 1).wrapping_mul(0x9E37_79B9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / 2_147_483_648.0 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn tensor<const D: usize>(values: &[f32], shape: [usize; D]) -> Tensor<Flex, D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), (&FlexDevice, DType::F32))
}

fn values(tensor: Tensor<Flex, 2>) -> Vec<f32> {
    tensor.into_data().to_vec().unwrap()
}

#[track_caller]
fn assert_close(isa: Isa, found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs() / (1.0 + expected.abs());
        assert!(error < 1e-5, "{} {what} at {i}: {found}, {expected}", isa.name());
    }
}

#[test]
fn norms() {
    for hidden in [1, 7, 64, 65, 172] {
        let (x, other) = (numbers(9 * hidden, 1), numbers(9 * hidden, 2));
        let weight = numbers(hidden, 3);
        let weight_tensor = tensor(&weight, [hidden]);
        let sum: Vec<f32> = x.iter().zip(&other).map(|(a, b)| a + b).collect();
        let reference = |x: &[f32]| {
            values(norm_op::rms_norm_reference(tensor(x, [9, hidden]), &weight_tensor, 1e-5))
        };
        for isa in Isa::available() {
            let mut found = x.clone();
            norm::rms_norm(isa, &mut found, &weight, 1e-5);
            assert_close(isa, &found, &reference(&x), "norm");
            let (mut found, mut residual) = (x.clone(), other.clone());
            norm::add_rms_norm(isa, &mut found, &mut residual, &weight, 1e-5);
            assert_eq!(residual, sum);
            assert_close(isa, &found, &reference(&sum), "norm of a sum");
        }
    }
}

#[test]
fn activations() {
    use Activation::{Gelu, GeluTanh, Relu, Silu};
    for kind in [Silu, GeluTanh, Gelu, Relu] {
        for width in [1, 7, 64, 65, 172] {
            let x: Vec<f32> = numbers(10 * width, 4).iter().map(|x| x * 12.0).collect();
            let expected = values(activation::gated_reference(tensor(&x, [5, 2 * width]), kind));
            for isa in Isa::available() {
                let found = super::activation::gated(isa, &x, width, kind);
                assert_close(isa, &found, &expected, &format!("{kind:?}"));
            }
        }
    }
}

/// Two sequences in blocks of three slots, and the number of slots.
fn batch() -> (ForwardBatch<Flex>, usize) {
    let mut input = BatchInput::new(3);
    for (start, len, first_block) in [(300, 12, 1), (2, 7, 0)] {
        let blocks: Vec<u32> = (0..(start + len) as u32)
            .step_by(3)
            .map(|position| (position / 3) * 2 + first_block)
            .collect();
        input.push(SequenceChunk {
            tokens: &vec![0; len],
            start_position: start,
            page_table: &blocks,
            logits: LogitRows::None,
            rope_len: start + len,
        });
    }
    (ForwardBatch::upload(input, &FlexDevice), 3 * 210)
}

#[test]
fn rotations() {
    for (head_dim, rotary_dim) in [(2, 2), (10, 6), (33, 32), (80, 80)] {
        let (batch, slots) = batch();
        let qkv = numbers(19 * 7 * head_dim, 5);
        let cos_sin = numbers(19 * rotary_dim, 6);
        let weights = [numbers(head_dim, 7), numbers(head_dim, 8)];
        let [q_weight, k_weight] = [&weights[0], &weights[1]].map(|w| tensor(w, [head_dim]));
        let args = RopeArgs {
            heads: 3,
            kv_heads: 2,
            head_dim,
            rotary_dim,
            cos_sin: &tensor(&cos_sin, [19, rotary_dim]),
            norm: Some(rope_op::QkNorm { q_weight: &q_weight, k_weight: &k_weight, eps: 1e-6 }),
        };
        let zeros = || Tensor::zeros([slots, 2 * head_dim], (&FlexDevice, DType::F32));
        let mut kv = LayerKv::F32 { keys: zeros(), values: zeros() };
        let expected = rope_op::rope_kv_write_reference(
            tensor(&qkv, [19, 7 * head_dim]),
            &args,
            &batch,
            &mut kv,
        );
        let LayerKv::F32 { keys: expected_keys, .. } = kv else { panic!("another format") };
        let (expected, expected_keys) = (values(expected), values(expected_keys));
        for isa in Isa::available() {
            let heads = rope::Heads {
                heads: 3,
                kv_heads: 2,
                head_dim,
                rotary_dim,
                norm: Some((&weights[0], &weights[1])),
                eps: 1e-6,
            };
            let (mut qkv, mut keys) = (qkv.clone(), vec![0.0; expected_keys.len()]);
            let q = rope::rotate(isa, &mut qkv, &cos_sin, &heads);
            let slots = &batch.input.slots;
            rope::write_rows(&mut keys, 2 * head_dim, slots, &qkv, 3 * head_dim);
            assert_close(isa, &q, &expected, "queries");
            assert_close(isa, &keys, &expected_keys, "keys");
        }
    }
}

#[test]
fn codes_are_the_defined_ones() {
    for (kv_heads, head_dim) in [(1, 1), (2, 20), (1, 65), (4, 64)] {
        let (columns, slots) = (kv_heads * head_dim, [3, 0, 7]);
        let mut rows = numbers(3 * (columns + 5), 11);
        // A head of zeros, and one with exact ties.
        rows[5..5 + head_dim].fill(0.0);
        rows[columns + 10] = 127.0;
        rows[columns + 10 + head_dim - 1] = if head_dim > 1 { 2.5 } else { 127.0 };
        let wanted: Vec<f32> =
            rows.chunks_exact(columns + 5).flat_map(|row| row[5..].to_vec()).collect();
        let expected = CodedRows::quantize(tensor(&wanted, [3, columns]), kv_heads);
        let expected_codes = words(expected.codes);
        let expected_codes = codes(&expected_codes);
        let expected_scales = values(expected.scales);
        let pitch = head_dim.next_multiple_of(WORD) * kv_heads;
        for isa in Isa::available() {
            let (mut codes, mut scales) = (vec![1_i8; 8 * pitch], vec![-1.0; 8 * kv_heads]);
            isa.run(rope::WriteCodes {
                codes: &mut codes,
                scales: &mut scales,
                slots: &slots,
                rows: &rows,
                column: 5,
                kv_heads,
                head_dim,
            });
            for (i, &slot) in slots.iter().enumerate() {
                let slot = slot as usize;
                assert_eq!(codes[slot * pitch..][..pitch], expected_codes[i * pitch..][..pitch]);
                let found = &scales[slot * kv_heads..][..kv_heads];
                assert_eq!(found, &expected_scales[i * kv_heads..][..kv_heads]);
            }
            assert!(codes[pitch..3 * pitch].iter().all(|&code| code == 1), "{}", isa.name());
        }
    }
}

#[test]
fn attentions() {
    for head_dim in [1, 2, 6, 10, 32, 33, 80, 128] {
        for (heads, kv_heads) in [(1, 1), (3, 1), (16, 2)] {
            for (window, softcap) in [(None, None), (Some(8), None), (Some(300), Some(0.7))] {
                let (batch, slots) = batch();
                let scale = 1.0 / (head_dim as f32).sqrt();
                let args = AttentionArgs { heads, kv_heads, head_dim, scale, softcap, window };
                let row_len = kv_heads * head_dim;
                let q = numbers(19 * heads * head_dim, 1);
                let (keys, cached) = (numbers(slots * row_len, 2), numbers(slots * row_len, 3));
                let kv = LayerKv::F32 {
                    keys: tensor(&keys, [slots, row_len]),
                    values: tensor(&cached, [slots, row_len]),
                };
                let expected = values(attention_op::paged_attention_reference(
                    tensor(&q, [19, heads * head_dim]),
                    &kv,
                    &batch,
                    &args,
                ));
                for isa in Isa::available() {
                    let cache = attention::Cache {
                        keys: &keys[..],
                        values: &cached[..],
                        head_pitch: head_dim,
                        scales: None,
                    };
                    let (q, input, args) = (&q[..], &batch.input, &args);
                    let found = attention::Attention { q, cache, input, args }.run(isa);
                    assert_close(isa, &found, &expected, &format!("{args:?}"));
                }
                let coded = kv.quantize(kv_heads);
                let expected = values(attention_op::paged_attention_reference(
                    tensor(&q, [19, heads * head_dim]),
                    &coded,
                    &batch,
                    &args,
                ));
                let LayerKv::Int8 { keys, values: cached } = coded else { panic!("not coded") };
                let scales = [&keys, &cached].map(|rows| readable(&rows.scales));
                let [keys, cached] = [keys, cached].map(|rows| words(rows.codes));
                for isa in Isa::available() {
                    let cache = attention::Cache {
                        keys: codes(&keys),
                        values: codes(&cached),
                        head_pitch: head_dim.next_multiple_of(WORD),
                        scales: Some([slice(&scales[0]), slice(&scales[1])]),
                    };
                    let (q, input, args) = (&q[..], &batch.input, &args);
                    let found = attention::Attention { q, cache, input, args }.run(isa);
                    assert_close(isa, &found, &expected, &format!("codes {args:?}"));
                }
            }
        }
    }
}

#[test]
fn largest_logits() {
    for vocab in [1, 5, 131, 1000] {
        let logits = numbers(3 * vocab, 9);
        let choice = TokenChoice { temperature: 0.0, seed: 0, position: 0 };
        let expected: Vec<i32> = logits
            .chunks_exact(vocab)
            .map(|row| (0..vocab).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as i32)
            .collect();
        for isa in Isa::available() {
            assert_eq!(sample::choose_tokens(isa, &logits, &[choice; 3]), expected);
        }
    }
}
