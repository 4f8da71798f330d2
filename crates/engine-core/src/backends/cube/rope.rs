//! Rotary embedding and the write into the cache in one launch.

use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use burn_tensor::DType;
use cubecl::prelude::*;

use super::norm::rms_factor;
use super::{PitchedRows, cube_grid, dims, empty, units_for};

/// Per-head normalisation weights, `[head_dim]` each.
pub(super) struct NormWeights<R: CubeRuntime> {
    pub q: CubeTensor<R>,
    pub k: CubeTensor<R>,
    pub eps: f32,
}

/// Numbers of heads and their widths.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub rotary_dim: usize,
}

/// `slots`: the step's metadata and where the slots start in it. `cache`: keys and values.
/// Returns the rotated queries.
pub(super) fn rope_kv_write<R: CubeRuntime>(
    qkv: CubeTensor<R>,
    cos_sin: PitchedRows<R>,
    norm: Option<NormWeights<R>>,
    heads: Heads,
    slots: (CubeTensor<R>, usize),
    cache: (PitchedRows<R>, PitchedRows<R>),
) -> CubeTensor<R> {
    let [tokens, _] = dims(&qkv);
    let q = empty(&qkv, [tokens, heads.heads * heads.head_dim], DType::F32);
    let (client, units) = (qkv.client.clone(), units_for(heads.head_dim));
    let cubes = tokens * (heads.heads + 2 * heads.kv_heads);
    let normalise = norm.is_some();
    // Without a norm the kernel never reads its weights; any array serves.
    let (q_weight, k_weight, eps) = match norm {
        Some(norm) => (norm.q, norm.k, norm.eps),
        None => (cos_sin.tensor.clone(), cos_sin.tensor.clone(), 0.0),
    };
    rope_kernel::launch::<R>(
        &client,
        cube_grid(cubes),
        CubeDim::new_1d(units as u32),
        qkv.into_array_arg(),
        cos_sin.array(),
        q_weight.into_array_arg(),
        k_weight.into_array_arg(),
        slots.0.into_array_arg(),
        q.clone().into_array_arg(),
        cache.0.array(),
        cache.1.array(),
        RopeSizesLaunch::new(
            tokens,
            heads.heads,
            heads.kv_heads,
            heads.head_dim,
            heads.rotary_dim,
            slots.1,
            cache.0.pitch,
            cache.1.pitch,
            cos_sin.pitch,
            eps,
        ),
        normalise,
        units,
    );
    q
}

/// Run-time numbers of [`rope_kernel`].
#[derive(CubeType, CubeLaunch)]
struct RopeSizes {
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    rotary_dim: usize,
    slots: usize,
    key_pitch: usize,
    value_pitch: usize,
    angle_pitch: usize,
    eps: f32,
}

/// One cube for each token and each head of queries, keys and values; its units walk the head.
///
/// `qkv [tokens, (heads + 2 · kv_heads) · head_dim]`, `cos_sin` rows of `rotary_dim`
/// (cosines, then sines), `q [tokens, heads · head_dim]`, `keys` and `values` rows of
/// `kv_heads · head_dim` at `slot · pitch`.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn rope_kernel(
    qkv: &Array<f32>,
    cos_sin: &Array<f32>,
    q_weight: &Array<f32>,
    k_weight: &Array<f32>,
    meta: &Array<i32>,
    q: &mut Array<f32>,
    keys: &mut Array<f32>,
    values: &mut Array<f32>,
    sizes: &RopeSizes,
    #[comptime] normalise: bool,
    #[comptime] units: usize,
) {
    let heads_of_token = sizes.heads + 2 * sizes.kv_heads;
    let token = CUBE_POS / heads_of_token;
    if token >= sizes.tokens {
        terminate!();
    }
    let head = CUBE_POS % heads_of_token;
    let head_dim = sizes.head_dim;
    let unit = UNIT_POS as usize;
    let source = CUBE_POS * head_dim;
    let slot = meta[sizes.slots + token] as usize;
    let is_query = head < sizes.heads;

    if head >= sizes.heads + sizes.kv_heads {
        let target = slot * sizes.value_pitch + (head - sizes.heads - sizes.kv_heads) * head_dim;
        for i in range_stepped(unit, head_dim, units) {
            values[target + i] = qkv[source + i];
        }
    } else {
        let mut factor = 1.0f32;
        if comptime!(normalise) {
            let mut squares = 0.0f32;
            for i in range_stepped(unit, head_dim, units) {
                let value = qkv[source + i];
                squares += value * value;
            }
            factor = rms_factor(squares, head_dim, sizes.eps, units);
        }
        let half = sizes.rotary_dim / 2;
        for i in range_stepped(unit, head_dim, units) {
            let mut value =
                head_value(qkv, q_weight, k_weight, source, i, factor, is_query, normalise);
            if i < sizes.rotary_dim {
                let first = i < half;
                let partner = select(first, i + half, i - half);
                let angle = token * sizes.angle_pitch + select(first, i, i - half);
                let other = head_value(
                    qkv, q_weight, k_weight, source, partner, factor, is_query, normalise,
                );
                let cross = other * cos_sin[angle + half];
                value = value * cos_sin[angle] + select(first, -cross, cross);
            }
            if is_query {
                q[(token * sizes.heads + head) * head_dim + i] = value;
            } else {
                keys[slot * sizes.key_pitch + (head - sizes.heads) * head_dim + i] = value;
            }
        }
    }
}

/// Element `i` of the head at `source`, normalised where the model does.
#[cube]
#[allow(clippy::too_many_arguments)]
fn head_value(
    qkv: &Array<f32>,
    q_weight: &Array<f32>,
    k_weight: &Array<f32>,
    source: usize,
    i: usize,
    factor: f32,
    is_query: bool,
    #[comptime] normalise: bool,
) -> f32 {
    let mut value = qkv[source + i];
    if comptime!(normalise) {
        value = value * factor * select(is_query, q_weight[i], k_weight[i]);
    }
    value
}
