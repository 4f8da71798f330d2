//! Rotary embedding and the write of codes into the cache in one launch.

use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::norm::rms_factor;
use super::rope::{Rope, RopeSizes, rotated_value};
use super::{PitchedRows, units_for};
use crate::kv::{MAX_CODE, WORD, head_words};

/// Where codes and scales of keys, or of values, lie.
pub(super) struct CodedArrays<R: CubeRuntime> {
    pub codes: PitchedRows<R>,
    pub scales: PitchedRows<R>,
}

/// Quantizes and writes keys and values and returns the rotated queries.
pub(super) fn rope_kv_write<R: CubeRuntime>(
    rope: Rope<R>,
    keys: &CodedArrays<R>,
    values: &CodedArrays<R>,
) -> CubeTensor<R> {
    let q = rope.queries();
    let (client, units) = (q.client.clone(), units_for(rope.heads.head_dim));
    let (cubes, sizes) = (rope.cubes(), rope.sizes(keys.codes.pitch, values.codes.pitch));
    let [q_weight, k_weight] = rope.norm_weights();
    rope_codes_kernel::launch::<R>(
        &client,
        cubes,
        CubeDim::new_1d(units as u32),
        rope.qkv.into_array_arg(),
        rope.cos_sin.array(),
        q_weight.into_array_arg(),
        k_weight.into_array_arg(),
        rope.meta.into_array_arg(),
        q.clone().into_array_arg(),
        keys.codes.array(),
        values.codes.array(),
        keys.scales.array(),
        values.scales.array(),
        sizes,
        keys.scales.pitch,
        values.scales.pitch,
        rope.norm.is_some(),
        rope.heads.head_dim,
        units,
    );
    q
}

/// One cube for each token and each head of queries, keys and values. Its units walk the head; of
/// a key or a value they keep it in shared memory, agree on the largest magnitude, and then each
/// packs whole words of four codes, as `CodedRows` defines them.
///
/// `qkv [tokens, (heads + 2 · kv_heads) · head_dim]`, `cos_sin` rows of `rotary_dim` (cosines, then
/// sines), `q [tokens, heads · head_dim]`, codes: rows of `kv_heads · ⌈head_dim / 4⌉` words at
/// `slot · pitch`, scales: rows of `kv_heads`.
#[cube(launch)]
#[allow(clippy::too_many_arguments, clippy::assign_op_pattern)]
fn rope_codes_kernel(
    qkv: &Array<f32>,
    cos_sin: &Array<f32>,
    q_weight: &Array<f32>,
    k_weight: &Array<f32>,
    meta: &Array<i32>,
    q: &mut Array<f32>,
    key_codes: &mut Array<u32>,
    value_codes: &mut Array<u32>,
    key_scales: &mut Array<f32>,
    value_scales: &mut Array<f32>,
    sizes: &RopeSizes,
    key_scale_pitch: usize,
    value_scale_pitch: usize,
    #[comptime] normalise: bool,
    #[comptime] head_dim: usize,
    #[comptime] units: usize,
) {
    let heads_of_token = sizes.heads + 2 * sizes.kv_heads;
    let token = CUBE_POS / heads_of_token;
    if token >= sizes.tokens {
        terminate!();
    }
    let head = CUBE_POS % heads_of_token;
    let unit = UNIT_POS as usize;
    let source = CUBE_POS * head_dim;
    let angles = token * sizes.angle_pitch;
    let is_query = head < sizes.heads;
    let is_value = head >= sizes.heads + sizes.kv_heads;
    let words = comptime!(head_words(head_dim));

    let mut factor = 1.0f32;
    if comptime!(normalise) {
        let mut squares = 0.0f32;
        for i in range_stepped(unit, head_dim.runtime(), units) {
            let value = qkv[source + i];
            squares += value * value;
        }
        factor = rms_factor(squares, head_dim.runtime(), sizes.eps, units);
    }

    let mut row = SharedMemory::<f32>::new(comptime!(words * WORD));
    // Magnitudes are in the order of their bits, and NaN is the largest.
    let mut largest = 0u32;
    for i in range_stepped(unit, comptime!(words * WORD).runtime(), units) {
        let mut value = 0.0f32;
        if i < head_dim {
            if is_value {
                value = qkv[source + i];
            } else {
                value = rotated_value(
                    qkv, cos_sin, q_weight, k_weight, source, angles, i, factor, is_query, sizes,
                    normalise,
                );
            }
            if is_query {
                q[(token * sizes.heads + head) * head_dim + i] = value;
            }
        }
        row[i] = value;
        largest = max(largest, u32::reinterpret(value) & 0x7fff_ffff);
    }
    largest = cube_max(largest, units);

    if !is_query {
        let scale = select(
            largest >= 0x7f80_0000,
            f32::reinterpret(0x7fc0_0000 | largest),
            f32::reinterpret(largest) / MAX_CODE,
        );
        let slot = meta[sizes.slots + token] as usize;
        let kv_head = select(is_value, head - sizes.kv_heads, head) - sizes.heads;
        for word in range_stepped(unit, words.runtime(), units) {
            let mut codes = 0u32;
            if scale > 0.0f32 {
                #[unroll]
                for place in 0..WORD {
                    let code = (row[word * WORD + place] / scale).round();
                    let code = i32::cast_from(max(min(code, MAX_CODE), -MAX_CODE));
                    codes = codes | ((u32::cast_from(code) & 255) << comptime!(8 * place as u32));
                }
            }
            if is_value {
                value_codes[slot * sizes.value_pitch + kv_head * words + word] = codes;
            } else {
                key_codes[slot * sizes.key_pitch + kv_head * words + word] = codes;
            }
        }
        if unit == 0 {
            if is_value {
                value_scales[slot * value_scale_pitch + kv_head] = scale;
            } else {
                key_scales[slot * key_scale_pitch + kv_head] = scale;
            }
        }
    }
}

/// The largest of each unit's `value` over a cube of `units`, a power of two; every unit gets it.
/// All units of the cube must call it, and see afterwards what the others wrote before it.
#[cube]
fn cube_max(value: u32, #[comptime] units: usize) -> u32 {
    let mut shared = SharedMemory::<u32>::new(units);
    let unit = UNIT_POS as usize;
    shared[unit] = value;
    sync_cube();
    #[unroll]
    for level in 0..comptime!(units.ilog2()) {
        let stride = comptime!(units >> (level + 1));
        if unit < stride {
            shared[unit] = max(shared[unit], shared[unit + stride]);
        }
        sync_cube();
    }
    shared[0]
}
