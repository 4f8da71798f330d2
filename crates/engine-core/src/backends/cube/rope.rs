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

/// What is rotated, and where it goes.
pub(super) struct Rope<R: CubeRuntime> {
    /// `[tokens, (heads + 2 · kv_heads) · head_dim]`.
    pub qkv: CubeTensor<R>,
    pub cos_sin: PitchedRows<R>,
    pub norm: Option<NormWeights<R>>,
    pub heads: Heads,
    /// The step's metadata.
    pub meta: CubeTensor<R>,
    /// Where the slots start in it.
    pub slots: usize,
}

impl<R: CubeRuntime> Rope<R> {
    pub fn tokens(&self) -> usize {
        dims(&self.qkv)[0]
    }

    /// Room for the rotated queries.
    pub fn queries(&self) -> CubeTensor<R> {
        let Heads { heads, head_dim, .. } = self.heads;
        empty(&self.qkv, [self.tokens(), heads * head_dim], DType::F32)
    }

    /// One cube for each token and each head of queries, keys and values.
    pub fn cubes(&self) -> CubeCount {
        cube_grid(self.tokens() * (self.heads.heads + 2 * self.heads.kv_heads))
    }

    /// Without a norm a kernel never reads its weights; any array serves.
    pub fn norm_weights(&self) -> [CubeTensor<R>; 2] {
        match &self.norm {
            Some(norm) => [norm.q.clone(), norm.k.clone()],
            None => [self.cos_sin.tensor.clone(), self.cos_sin.tensor.clone()],
        }
    }

    pub fn sizes(&self, key_pitch: usize, value_pitch: usize) -> RopeSizesLaunch<R> {
        RopeSizesLaunch::new(
            self.tokens(),
            self.heads.heads,
            self.heads.kv_heads,
            self.heads.head_dim,
            self.heads.rotary_dim,
            self.slots,
            key_pitch,
            value_pitch,
            self.cos_sin.pitch,
            self.norm.as_ref().map_or(0.0, |norm| norm.eps),
        )
    }
}

/// Writes keys and values and returns the rotated queries.
pub(super) fn rope_kv_write<R: CubeRuntime>(
    rope: Rope<R>,
    keys: &PitchedRows<R>,
    values: &PitchedRows<R>,
) -> CubeTensor<R> {
    let q = rope.queries();
    let (client, units) = (q.client.clone(), units_for(rope.heads.head_dim));
    let (cubes, sizes) = (rope.cubes(), rope.sizes(keys.pitch, values.pitch));
    let [q_weight, k_weight] = rope.norm_weights();
    rope_kernel::launch::<R>(
        &client,
        cubes,
        CubeDim::new_1d(units as u32),
        rope.qkv.into_array_arg(),
        rope.cos_sin.array(),
        q_weight.into_array_arg(),
        k_weight.into_array_arg(),
        rope.meta.into_array_arg(),
        q.clone().into_array_arg(),
        keys.array(),
        values.array(),
        sizes,
        rope.norm.is_some(),
        units,
    );
    q
}

/// Run-time numbers of the kernels.
#[derive(CubeType, CubeLaunch)]
pub(super) struct RopeSizes {
    pub tokens: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub rotary_dim: usize,
    pub slots: usize,
    pub key_pitch: usize,
    pub value_pitch: usize,
    pub angle_pitch: usize,
    pub eps: f32,
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
        let angles = token * sizes.angle_pitch;
        for i in range_stepped(unit, head_dim, units) {
            let value = rotated_value(
                qkv, cos_sin, q_weight, k_weight, source, angles, i, factor, is_query, sizes,
                normalise,
            );
            if is_query {
                q[(token * sizes.heads + head) * head_dim + i] = value;
            } else {
                keys[slot * sizes.key_pitch + (head - sizes.heads) * head_dim + i] = value;
            }
        }
    }
}

/// Element `i` of the head at `source`, normalised where the model does and rotated.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn rotated_value(
    qkv: &Array<f32>,
    cos_sin: &Array<f32>,
    q_weight: &Array<f32>,
    k_weight: &Array<f32>,
    source: usize,
    angles: usize,
    i: usize,
    factor: f32,
    is_query: bool,
    sizes: &RopeSizes,
    #[comptime] normalise: bool,
) -> f32 {
    let half = sizes.rotary_dim / 2;
    let mut value = head_value(qkv, q_weight, k_weight, source, i, factor, is_query, normalise);
    if i < sizes.rotary_dim {
        let first = i < half;
        let partner = select(first, i + half, i - half);
        let angle = angles + select(first, i, i - half);
        let other =
            head_value(qkv, q_weight, k_weight, source, partner, factor, is_query, normalise);
        let cross = other * cos_sin[angle + half];
        value = value * cos_sin[angle] + select(first, -cross, cross);
    }
    value
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
