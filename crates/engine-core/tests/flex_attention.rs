//! Paged attention on the CPU backend: against its composed reference, and the bits that must not
//! change with batches, chunks, blocks or threads.
#![cfg(feature = "flex")]
#![allow(clippy::unwrap_used, clippy::panic)]

use burn_flex::{Flex, FlexDevice};
use burn_tensor::{DType, Tensor, TensorData};
use engine_core::ops::attention::{AttentionArgs, paged_attention, paged_attention_reference};
use engine_core::{BatchInput, ForwardBatch, KvFormat, LayerKv, LogitRows, SequenceChunk};
use proptest::prelude::*;

/// A number in −1 .. 1 for each index and seed.
fn number(index: usize, seed: usize) -> f32 {
    let mut state = (index as u64 ^ (seed as u64) << 40).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    state ^= state >> 32;
    state = state.wrapping_mul(0xD6E8_FEB8_6659_FD93);
    state ^= state >> 32;
    (state as u32) as f32 / 2_147_483_648.0 - 1.0
}

/// A sequence whose queries, keys and values are functions of its seed and the position.
#[derive(Debug, Clone, Copy)]
struct Sequence {
    seed: usize,
    /// Positions before the chunk.
    start: usize,
    /// Positions in the chunk.
    len: usize,
}

/// What the sequences of one batch need, laid out for a block size.
struct World {
    q: Tensor<Flex, 2>,
    kv: LayerKv<Flex>,
    batch: ForwardBatch<Flex>,
}

/// Lays the sequences out in a pool whose blocks are handed out in the order of `shuffle`.
fn world(sequences: &[Sequence], args: &AttentionArgs, block_size: usize, shuffle: usize) -> World {
    let (q_len, row_len) = (args.heads * args.head_dim, args.kv_heads * args.head_dim);
    let blocks = |s: &Sequence| (s.start + s.len).div_ceil(block_size);
    let num_blocks: usize = sequences.iter().map(blocks).sum::<usize>() + 2;
    let mut order: Vec<u32> = (0..num_blocks as u32).collect();
    order.sort_by_key(|&block| number(block as usize, shuffle).to_bits());
    let mut order = order.into_iter();
    // Slots that belong to nobody hold NaN: whoever reads one shows it.
    let slots = num_blocks * block_size;
    let (mut keys, mut values) = (vec![f32::NAN; slots * row_len], vec![f32::NAN; slots * row_len]);
    let mut q = Vec::new();
    let mut input = BatchInput::new(block_size);
    for sequence in sequences {
        let page_table: Vec<u32> = order.by_ref().take(blocks(sequence)).collect();
        for position in 0..sequence.start + sequence.len {
            let slot =
                page_table[position / block_size] as usize * block_size + position % block_size;
            for d in 0..row_len {
                let index = position * row_len + d;
                keys[slot * row_len + d] = 2.0 * number(index, 3 * sequence.seed);
                values[slot * row_len + d] = number(index, 3 * sequence.seed + 1);
            }
        }
        let queries = sequence.start * q_len..(sequence.start + sequence.len) * q_len;
        q.extend(queries.map(|index| 2.0 * number(index, 3 * sequence.seed + 2)));
        input.push(SequenceChunk {
            tokens: &vec![0; sequence.len],
            start_position: sequence.start,
            page_table: &page_table,
            logits: LogitRows::Last,
            rope_len: sequence.start + sequence.len,
        });
    }
    let upload = |values: Vec<f32>, columns: usize| {
        let rows = values.len() / columns;
        Tensor::from_data(TensorData::new(values, [rows, columns]), (&FlexDevice, DType::F32))
    };
    World {
        q: upload(q, q_len),
        kv: LayerKv::F32 { keys: upload(keys, row_len), values: upload(values, row_len) },
        batch: ForwardBatch::upload(input, &FlexDevice),
    }
}

/// A world whose keys and values are stored in a format.
fn world_in(
    format: KvFormat,
    sequences: &[Sequence],
    args: &AttentionArgs,
    block_size: usize,
    shuffle: usize,
) -> World {
    let world = world(sequences, args, block_size, shuffle);
    match format {
        KvFormat::F32 => world,
        KvFormat::Int8 => World { kv: world.kv.quantize(args.kv_heads), ..world },
    }
}

fn attend(
    sequences: &[Sequence],
    args: &AttentionArgs,
    block_size: usize,
    shuffle: usize,
) -> Vec<f32> {
    attend_in(KvFormat::F32, sequences, args, block_size, shuffle)
}

fn attend_in(
    format: KvFormat,
    sequences: &[Sequence],
    args: &AttentionArgs,
    block_size: usize,
    shuffle: usize,
) -> Vec<f32> {
    let world = world_in(format, sequences, args, block_size, shuffle);
    let out = paged_attention(world.q, &world.kv, &world.batch, args);
    out.into_data().to_vec().unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

fn args(heads: usize, kv_heads: usize, head_dim: usize) -> AttentionArgs {
    let scale = 1.0 / (head_dim as f32).sqrt();
    AttentionArgs { heads, kv_heads, head_dim, scale, softcap: None, window: None }
}

fn sequence(seed: usize, start: usize, len: usize) -> Sequence {
    Sequence { seed, start, len }
}

fn check(sequences: &[Sequence], args: &AttentionArgs, block_size: usize) {
    check_in(KvFormat::F32, sequences, args, block_size);
}

fn check_in(format: KvFormat, sequences: &[Sequence], args: &AttentionArgs, block_size: usize) {
    let world = world_in(format, sequences, args, block_size, 1);
    let expected: Vec<f32> =
        paged_attention_reference(world.q.clone(), &world.kv, &world.batch, args)
            .into_data()
            .to_vec()
            .unwrap();
    let found: Vec<f32> =
        paged_attention(world.q, &world.kv, &world.batch, args).into_data().to_vec().unwrap();
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert!(
            (found - expected).abs() <= 1e-5,
            "{format} {args:?} {sequences:?} blocks of {block_size}, at {i}: {found}, {expected}"
        );
    }
}

#[test]
fn every_width_of_a_head_equals_the_composed_one() {
    for head_dim in (1..=80).chain([128, 256]) {
        check(&[sequence(1, 14, 3), sequence(2, 0, 5)], &args(3, 1, head_dim), 3);
    }
}

#[test]
fn codes_of_every_shape_equal_the_composed_ones() {
    let (single, mixed, long) = (
        [sequence(1, 40, 1), sequence(2, 0, 1)],
        [sequence(1, 0, 7), sequence(2, 250, 33), sequence(3, 299, 1)],
        [sequence(1, 1100, 1), sequence(2, 511, 7)],
    );
    for head_dim in [1, 16, 20, 36, 64, 65, 128] {
        for (heads, kv_heads) in [(1, 1), (3, 1), (4, 2), (8, 4)] {
            for (window, softcap) in [(None, None), (Some(8), Some(0.7)), (Some(300), None)] {
                let args = AttentionArgs { window, softcap, ..args(heads, kv_heads, head_dim) };
                check_in(KvFormat::Int8, &single, &args, 3);
                check_in(KvFormat::Int8, &mixed, &args, 16);
            }
        }
        check_in(KvFormat::Int8, &long, &args(4, 2, head_dim), 16);
    }
}

#[test]
fn groups_contexts_windows_and_caps_equal_the_composed_ones() {
    let mixed = [sequence(1, 0, 1), sequence(2, 16, 1), sequence(3, 299, 1), sequence(4, 250, 33)];
    for (heads, kv_heads) in [(1, 1), (3, 3), (3, 1), (8, 1), (16, 2), (20, 1)] {
        for window in [None, Some(1), Some(8), Some(300)] {
            for softcap in [None, Some(0.7)] {
                let args = AttentionArgs { window, softcap, ..args(heads, kv_heads, 10) };
                for block_size in [1, 3, 16] {
                    check(&mixed, &args, block_size);
                }
            }
        }
    }
}

#[test]
fn long_contexts_equal_the_composed_ones() {
    for window in [None, Some(300), Some(1)] {
        let args = AttentionArgs { window, ..args(4, 2, 64) };
        check(&[sequence(1, 2099, 1)], &args, 16);
        check(&[sequence(1, 2000, 7), sequence(2, 0, 300), sequence(3, 511, 2)], &args, 16);
    }
}

#[test]
fn a_window_hides_what_lies_before_it_even_if_it_is_nan() {
    let args = AttentionArgs { window: Some(8), ..args(2, 1, 16) };
    let sequences = [sequence(1, 600, 20)];
    let expected = attend(&sequences, &args, 4, 5);
    let mut world = world(&sequences, &args, 4, 5);
    // Everything before the first query's window is spoilt.
    for position in 0..600 - 7 {
        let slot = world.batch.input.slot(0, position);
        let nan = Tensor::full([1, 16], f32::NAN, &FlexDevice);
        let LayerKv::F32 { keys, values } = &mut world.kv else { panic!("another format") };
        for cache in [keys, values] {
            cache.inplace(|cache| cache.slice_assign(slot..slot + 1, nan.clone()));
        }
    }
    let found = paged_attention(world.q, &world.kv, &world.batch, &args);
    assert_eq!(bits(&found.into_data().to_vec::<f32>().unwrap()), bits(&expected));
}

#[test]
fn a_nan_spoils_the_positions_from_its_own_on_and_no_earlier_ones() {
    let args = args(2, 1, 16);
    let sequences = [sequence(1, 0, 40)];
    let expected = attend(&sequences, &args, 4, 5);
    let mut world = world(&sequences, &args, 4, 5);
    let slot = world.batch.input.slot(0, 20);
    let nan = Tensor::full([1, 16], f32::NAN, &FlexDevice);
    let LayerKv::F32 { values, .. } = &mut world.kv else { panic!("another format") };
    values.inplace(|cache| cache.slice_assign(slot..slot + 1, nan));
    let found = paged_attention(world.q, &world.kv, &world.batch, &args);
    let found: Vec<f32> = found.into_data().to_vec().unwrap();
    assert_eq!(bits(&found[..20 * 32]), bits(&expected[..20 * 32]));
    assert!(found[20 * 32..].iter().all(|x| x.is_nan()));
}

#[test]
#[should_panic(expected = "paged_attention: slot 15 of a cache with 12 slots")]
fn a_slot_outside_the_cache_is_named() {
    let args = args(1, 1, 4);
    let mut world = world(&[sequence(1, 0, 4)], &args, 4, 1);
    world.batch.input.page_tables[0][0] = 3;
    paged_attention(world.q, &world.kv, &world.batch, &args);
}

fn in_pool<T: Send>(threads: usize, job: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(job)
}

#[test]
fn a_long_context_is_the_same_bits_on_any_number_of_threads() {
    for (heads, kv_heads) in [(1, 1), (8, 2)] {
        for sequences in [vec![sequence(1, 2099, 1)], vec![sequence(2, 700, 90), sequence(1, 5, 1)]]
        {
            let args = args(heads, kv_heads, 64);
            for format in [KvFormat::F32, KvFormat::Int8] {
                let run = || attend_in(format, &sequences, &args, 16, 1);
                let one = in_pool(1, run);
                for threads in [2, 3, 8] {
                    let many = in_pool(threads, run);
                    assert_eq!(bits(&one), bits(&many), "{format}, {threads} threads");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// A batch equals each sequence alone, in other blocks, on other numbers of threads.
    #[test]
    fn batched_equals_alone(
        chunks in prop::collection::vec((0_usize..700, 1_usize..40), 1..5),
        (kv_heads, group, head_dim) in (1_usize..3, 1_usize..9, 1_usize..40),
        window in prop::option::of(1_usize..400), softcap in prop::option::of(0.5_f32..5.0),
        (block_size, other_block_size) in (1_usize..20, 1_usize..20),
        threads in 1_usize..4, coded in any::<bool>(),
    ) {
        let format = if coded { KvFormat::Int8 } else { KvFormat::F32 };
        let args = AttentionArgs { window, softcap, ..args(kv_heads * group, kv_heads, head_dim) };
        let sequences: Vec<Sequence> = chunks
            .iter()
            .enumerate()
            .map(|(seed, &(start, len))| sequence(seed + 1, start, len))
            .collect();
        let together = in_pool(threads, || attend_in(format, &sequences, &args, block_size, 1));
        let alone: Vec<f32> = sequences
            .iter()
            .flat_map(|&sequence| attend_in(format, &[sequence], &args, other_block_size, 2))
            .collect();
        prop_assert_eq!(bits(&together), bits(&alone));
    }

    /// A prompt cut anywhere equals the whole.
    #[test]
    fn chunked_equals_whole(
        len in 2_usize..600, cuts in prop::collection::vec(1_usize..600, 0..4),
        (kv_heads, group, head_dim) in (1_usize..3, 1_usize..5, 1_usize..24),
        window in prop::option::of(1_usize..300), block_size in 1_usize..20,
        coded in any::<bool>(),
    ) {
        let format = if coded { KvFormat::Int8 } else { KvFormat::F32 };
        let args = AttentionArgs { window, ..args(kv_heads * group, kv_heads, head_dim) };
        let whole = attend_in(format, &[sequence(1, 0, len)], &args, block_size, 1);
        let mut ends: Vec<usize> = cuts.into_iter().filter(|&cut| cut < len).collect();
        ends.extend([len - 1, len]);
        ends.sort_unstable();
        ends.dedup();
        let mut start = 0;
        let mut parts = Vec::new();
        for end in ends {
            if end > start {
                let part = [sequence(1, start, end - start)];
                parts.extend(attend_in(format, &part, &args, block_size, 3));
            }
            start = end;
        }
        prop_assert_eq!(bits(&whole), bits(&parts));
    }
}
