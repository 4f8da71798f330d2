use engine_quant::simd::{Isa, Kernel, Simd};
use engine_quant::threads::for_each_chunk;

use super::{
    math::{self, Map},
    rows_per_task,
};
use crate::ops::activation::Activation;

/// `activation(gate) · up` for each row of `gate_up [tokens, 2 · intermediate]`.
pub fn gated(isa: Isa, gate_up: &[f32], intermediate: usize, activation: Activation) -> Vec<f32> {
    let mut out = vec![0.0; gate_up.len() / 2];
    if out.is_empty() {
        return out;
    }
    let chunk = rows_per_task(out.len() / intermediate, out.len()) * intermediate;
    if chunk >= out.len() {
        isa.run(Rows { gate_up, out: &mut out, intermediate, activation });
        return out;
    }
    for_each_chunk(&mut out, chunk, |i, out| {
        let gate_up = &gate_up[2 * i * chunk..][..2 * out.len()];
        isa.run(Rows { gate_up, out, intermediate, activation });
    });
    out
}

struct Rows<'a> {
    gate_up: &'a [f32],
    out: &'a mut [f32],
    intermediate: usize,
    activation: Activation,
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.activation {
            Activation::Silu => self.rows(s, Silu),
            Activation::GeluTanh => self.rows(s, GeluTanh),
            Activation::Gelu => self.rows(s, Gelu),
            Activation::Relu => self.rows(s, Relu),
        }
    }
}

impl Rows<'_> {
    #[inline(always)]
    fn rows<S: Simd>(self, s: S, activation: impl Map) {
        let width = self.intermediate;
        let rows = self.out.chunks_exact_mut(width).zip(self.gate_up.chunks_exact(2 * width));
        for (out, gate_up) in rows {
            let (gate, up) = gate_up.split_at(width);
            out.copy_from_slice(gate);
            math::map_in_place(s, out, activation);
            for (out, up) in out.iter_mut().zip(up) {
                *out *= up;
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Silu;

impl Map for Silu {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        x_sigmoid(s, x, x)
    }
}

#[derive(Clone, Copy)]
struct GeluTanh;

impl Map for GeluTanh {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        // (1 + tanh u) / 2 is sigmoid 2u.
        let factor = s.splat(2.0 * (2.0 / std::f32::consts::PI).sqrt());
        let square = s.mul(x, x);
        let inner = s.mul_add(s.mul(square, x), s.splat(0.044_715), x);
        x_sigmoid(s, x, s.mul(inner, factor))
    }
}

#[derive(Clone, Copy)]
struct Gelu;

impl Map for Gelu {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        let scaled = s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2));
        s.mul(s.mul(x, s.splat(0.5)), math::one_plus_erf(s, scaled))
    }
}

#[derive(Clone, Copy)]
struct Relu;

impl Map for Relu {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        s.max(s.splat(0.0), x)
    }
}

/// `x / (1 + e⁻ᵘ)`
#[inline(always)]
fn x_sigmoid<S: Simd>(s: S, x: S::V, u: S::V) -> S::V {
    let e = math::exp(s, s.sub(s.splat(0.0), u));
    s.div(x, s.add(s.splat(1.0), e))
}
