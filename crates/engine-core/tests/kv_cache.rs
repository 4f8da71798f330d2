//! The KV cache in 8 bits: its definition, its error, and what moves blocks.
#![cfg(feature = "flex")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

use burn_flex::{Flex, FlexDevice};
use burn_tensor::{DType, Tensor, TensorData};
use engine_core::ops::rope::{RopeArgs, rope_kv_write, rope_kv_write_reference};
use engine_core::{
    BatchInput, CodedRows, ForwardBatch, KvCache, KvFormat, KvShape, LayerKv, LogitRows,
    SequenceChunk,
};
use proptest::prelude::*;

fn matrix(values: &[f32], columns: usize) -> Tensor<Flex, 2> {
    let shape = [values.len() / columns, columns];
    Tensor::from_data(TensorData::new(values.to_vec(), shape), (&FlexDevice, DType::F32))
}

fn bits(tensor: Tensor<Flex, 2>) -> Vec<u32> {
    tensor.into_data().to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

fn words(rows: &CodedRows<Flex>) -> Vec<i32> {
    rows.codes.clone().into_data().to_vec().unwrap()
}

/// Writes one token's key and value, not rotated, by the kernel or by the composed operations.
fn write(key: &[f32], value: &[f32], kv_heads: usize, composed: bool) -> [CodedRows<Flex>; 2] {
    let head_dim = key.len() / kv_heads;
    let qkv = [&vec![0.0; head_dim * kv_heads], key, value].concat();
    let mut input = BatchInput::new(1);
    input.push(SequenceChunk {
        tokens: &[0],
        start_position: 0,
        page_table: &[1],
        logits: LogitRows::Last,
        rope_len: 1,
    });
    let batch = ForwardBatch::upload(input, &FlexDevice);
    // A rotation by nothing: all cosines are one.
    let cos_sin = matrix(&[1.0, 0.0], 2);
    let args = RopeArgs {
        heads: kv_heads,
        kv_heads,
        head_dim,
        rotary_dim: 2,
        cos_sin: &cos_sin,
        norm: None,
    };
    let mut kv = cache(1, 2, kv_heads, head_dim, KvFormat::Int8).layers.remove(0);
    let op = if composed { rope_kv_write_reference } else { rope_kv_write };
    op(matrix(&qkv, qkv.len()), &args, &batch, &mut kv);
    let LayerKv::Int8 { keys, values } = kv else { panic!("another format") };
    [keys, values].map(|rows| CodedRows {
        codes: rows.codes.slice([1..2]),
        scales: rows.scales.slice([1..2]),
    })
}

fn cache(
    num_layers: usize,
    slots: usize,
    kv_heads: usize,
    head_dim: usize,
    format: KvFormat,
) -> KvCache<Flex> {
    KvCache::allocate(KvShape { num_layers, slots, kv_heads, head_dim, format }, &FlexDevice)
}

#[test]
fn codes_and_scales_are_what_the_definition_says() {
    // Scales of 2 and 0.5: the ties 1.0 / 2 and 3.0 / 2 go to the even codes 0 and 2.
    let head = [254.0, -254.0, 1.0, 3.0, -5.0];
    let other = [-63.5, 0.3, 0.25, 0.0, -0.75];
    let x = [head, other].concat();
    let expected = [[127, -127, 0, 2, -2, 0, 0, 0], [-127, 1, 0, 0, -2, 0, 0, 0]];
    let expected: Vec<i32> = expected
        .concat()
        .chunks(4)
        .map(|codes: &[i8]| i32::from_le_bytes([0, 1, 2, 3].map(|i| codes[i] as u8)))
        .collect();
    let mut found = vec![CodedRows::quantize(matrix(&x, 10), 2)];
    for composed in [false, true] {
        found.extend(write(&x, &x, 2, composed));
    }
    for rows in found {
        assert_eq!(words(&rows), expected);
        assert_eq!(rows.scales.clone().into_data().to_vec::<f32>().unwrap(), [2.0, 0.5]);
        let values: Vec<f32> = rows.dequantize(5).into_data().to_vec().unwrap();
        let decoded = [254.0, -254.0, 0.0, 4.0, -4.0, -63.5, 0.5, 0.0, 0.0, -1.0];
        assert_eq!(values, decoded);
    }
}

#[test]
fn zeros_stay_zeros_and_what_is_not_finite_spoils_its_own_head_alone() {
    for spoil in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        // One zero head, one spoilt head, one that is too small for a scale, one of ones.
        let x = [0.0, 0.0, 0.0, 1.0, spoil, 2.0, 1e-45, -1e-45, 0.0, 1.0, 1.0, -1.0];
        let mut found = vec![CodedRows::quantize(matrix(&x, 12), 4)];
        found.extend(write(&x, &x, 4, false));
        found.extend(write(&x, &x, 4, true));
        for rows in found {
            let values: Vec<f32> = rows.dequantize(3).into_data().to_vec().unwrap();
            assert_eq!(values[..3], [0.0; 3]);
            assert!(values[3..6].iter().all(|value| value.is_nan()), "{values:?}");
            assert_eq!(values[6..9], [0.0; 3]);
            let one = 127.0 * (1.0 / 127.0);
            assert_eq!(values[9..], [one, one, -one]);
        }
    }
}

#[test]
fn bytes_are_the_stated_ones_and_names_are_read_back() {
    for (head_dim, int8) in [(1, 8), (20, 24), (36, 40), (64, 68), (65, 72), (128, 132)] {
        assert_eq!(KvFormat::Int8.head_bytes(head_dim), int8);
        assert_eq!(KvFormat::F32.head_bytes(head_dim), 4 * head_dim);
        for format in [KvFormat::F32, KvFormat::Int8] {
            let cache = cache(1, 6, 3, head_dim, format);
            let block = cache.read_block(0, 6);
            let bytes: usize = block.iter().map(|data| data.bytes.len()).sum();
            assert_eq!(bytes, 6 * 2 * 3 * format.head_bytes(head_dim));
            assert_eq!(format.to_string().parse(), Ok(format));
        }
    }
    let error = "int4".parse::<KvFormat>().unwrap_err();
    assert_eq!(error.to_string(), "unknown KV cache format `int4`: use f32 or int8");
}

/// Every tensor of a cache, whole.
fn content(cache: &KvCache<Flex>, slots: usize) -> Vec<Vec<u8>> {
    cache.read_block(0, slots).iter().map(|data| data.bytes.to_vec()).collect()
}

#[test]
fn copied_and_swapped_blocks_are_exactly_what_they_were() {
    let (slots, block_size, kv_heads, head_dim) = (12, 3, 2, 5);
    for format in [KvFormat::F32, KvFormat::Int8] {
        let mut cache = cache(2, slots, kv_heads, head_dim, format);
        for (i, layer) in cache.layers.iter_mut().enumerate() {
            let rows = |seed: usize| {
                let number = |j: usize| ((j * 37 + seed * 11) as f32).sin() * 3.0;
                let len = slots * kv_heads * head_dim;
                matrix(&(0..len).map(number).collect::<Vec<_>>(), kv_heads * head_dim)
            };
            let floats = LayerKv::F32 { keys: rows(2 * i), values: rows(2 * i + 1) };
            *layer = match format {
                KvFormat::F32 => floats,
                KvFormat::Int8 => floats.quantize(kv_heads),
            };
        }
        let before = content(&cache, slots);
        assert!(before.iter().all(|bytes| bytes.iter().any(|&byte| byte != 0)));
        let block_of = |content: &[Vec<u8>], block: usize| -> Vec<Vec<u8>> {
            let rows = |bytes: &Vec<u8>| {
                let len = bytes.len() / slots * block_size;
                bytes[block * len..(block + 1) * len].to_vec()
            };
            content.iter().map(rows).collect()
        };
        let saved = cache.read_block(1, block_size);
        cache.copy_blocks(&[(3, 1), (1, 0)], block_size);
        let copied = content(&cache, slots);
        for (block, from) in [(0, 3), (1, 3), (2, 2), (3, 3)] {
            assert_eq!(block_of(&copied, block), block_of(&before, from), "{format}: {block}");
        }
        cache.write_block(2, block_size, saved);
        let restored = content(&cache, slots);
        for (block, from) in [(0, 3), (1, 3), (2, 1), (3, 3)] {
            assert_eq!(block_of(&restored, block), block_of(&before, from), "{format}: {block}");
        }
    }
}

proptest! {
    /// The value of a code is within half a step of the number, on both paths, whose codes agree.
    #[test]
    fn no_number_is_off_by_more_than_half_a_step(
        kv_heads in 1_usize..4, head_dim in 2_usize..70, seed in any::<u32>(),
        exponent in -30_i32..30,
    ) {
        let mut state = seed | 1;
        let mut number = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state as f32 / 2_147_483_648.0 - 1.0) * 2.0_f32.powi(exponent)
        };
        let x: Vec<f32> = (0..kv_heads * head_dim).map(|_| number()).collect();
        let [keys, values] = write(&x, &x, kv_heads, false);
        let composed = CodedRows::quantize(matrix(&x, x.len()), kv_heads);
        for rows in [&keys, &values] {
            prop_assert_eq!(words(rows), words(&composed));
            prop_assert_eq!(bits(rows.scales.clone()), bits(composed.scales.clone()));
        }
        let scales: Vec<f32> = keys.scales.clone().into_data().to_vec().unwrap();
        let found: Vec<f32> = keys.dequantize(head_dim).into_data().to_vec().unwrap();
        for (i, (x, found)) in x.iter().zip(&found).enumerate() {
            let half = scales[i / head_dim] / 2.0;
            prop_assert!((x - found).abs() <= half * 1.000_01, "{x} became {found}, half {half}");
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn slots_that_nobody_has_written_take_no_memory() {
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    };
    for format in [KvFormat::F32, KvFormat::Int8] {
        let shape = KvShape { num_layers: 2, slots: 1 << 18, kv_heads: 4, head_dim: 64, format };
        let bytes = 2 * 2 * shape.slots * shape.kv_heads * format.head_bytes(shape.head_dim);
        let before = resident();
        let cache = KvCache::<Flex>::allocate(shape, &FlexDevice);
        let taken = resident().saturating_sub(before);
        assert!(taken < bytes / 4, "{taken} of {bytes} bytes in {format}");
        assert_eq!(cache.layers.len(), 2);
    }
}
