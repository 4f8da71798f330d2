//! `exp`, `tanh` and `erf` on vectors, to a few units in the last place of `f32`.
//!
//! The polynomials are Chebyshev fits of the functions named beside them.

use engine_quant::simd::Simd;

/// `c[0] + c[1] · x + c[2] · x² + …`
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(s: S, x: S::V, c: [f32; N]) -> S::V {
    let mut sum = s.splat(c[N - 1]);
    for i in (0..N - 1).rev() {
        sum = s.mul_add(sum, x, s.splat(c[i]));
    }
    sum
}

/// `|x|`
#[inline(always)]
fn abs<S: Simd>(s: S, x: S::V) -> S::V {
    s.max(s.sub(s.splat(0.0), x), x)
}

/// `eˣ`, subnormal results included; zero below −104, infinity above 89.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    // The upper part of ln 2 has so few bits that its products with `n` are exact.
    const LN2_HIGH: f32 = 0.693_115_23;
    const LN2_LOW: f32 = 3.194_618_5e-5;
    let x = s.min(s.splat(89.0), s.max(s.splat(-104.0), x));
    let n = s.round(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    let r = s.mul_add(n, s.splat(-LN2_HIGH), x);
    let r = s.mul_add(n, s.splat(-LN2_LOW), r);
    // (eʳ − 1 − r) / r² for |r| up to ln 2 / 2.
    let tail = polynomial(s, r, [0.5, 0.166_665_76, 0.041_666_556, 0.008_363_179, 0.001_392_618_4]);
    let e = s.add(s.mul_add(s.mul(r, r), tail, r), s.splat(1.0));
    // Two factors: the power of two of a subnormal result is none itself.
    let half = s.round(s.mul(n, s.splat(0.5)));
    s.mul(s.mul(e, s.exp2_whole(half)), s.exp2_whole(s.sub(n, half)))
}

/// `tanh x`
#[inline(always)]
pub fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
    let size = abs(s, x);
    // tanh √u / √u for u up to 0.4.
    const NEAR_ZERO: [f32; 6] =
        [1.0, -0.333_332_5, 0.133_309_17, -0.053_704_277, 0.020_536_972, -0.005_599_785];
    let near = s.mul(x, polynomial(s, s.mul(x, x), NEAR_ZERO));
    let one = s.splat(1.0);
    let far = exp(s, s.add(size, size));
    let far = s.sub(one, s.div(s.splat(2.0), s.add(far, one)));
    let zero = s.splat(0.0);
    let far = s.select_lt(x, zero, s.sub(zero, far), far);
    s.select_lt(size, s.splat(0.63), near, far)
}

/// `1 + erf x`, without cancellation for negative `x`; zero below −4.2.
#[inline(always)]
pub fn one_plus_erf<S: Simd>(s: S, x: S::V) -> S::V {
    const END: f32 = 4.2;
    let size = abs(s, x);
    // erf √u / √u for u up to 0.86.
    const NEAR_ZERO: [f32; 7] = [
        std::f32::consts::FRAC_2_SQRT_PI,
        -0.376_126_35,
        0.112_836_94,
        -0.026_859_296,
        0.005_200_729_7,
        -0.000_813_879_25,
        8.351_897e-5,
    ];
    let near = s.mul_add(x, polynomial(s, s.mul(x, x), NEAR_ZERO), s.splat(1.0));
    // ln (1 − erf t) for t in 0.92 ..= 4.2.
    const LOG_REST: [f32; 9] = [
        2.879_735_5e-4,
        -1.130_097_4,
        -0.632_069_05,
        -0.109_840_81,
        0.026_279_006,
        -0.004_707_398,
        0.000_585_213_7,
        -4.463_221e-5,
        1.562_628_7e-6,
    ];
    let rest = exp(s, polynomial(s, s.min(s.splat(END), size), LOG_REST));
    let rest = s.select_lt(s.splat(END), size, s.splat(0.0), rest);
    let far = s.select_lt(x, s.splat(0.0), rest, s.sub(s.splat(2.0), rest));
    s.select_lt(size, s.splat(0.92), near, far)
}

/// A function of one variable. Not a closure: closures are compiled without the wider instructions
/// unless the compiler happens to inline them.
pub trait Map: Copy {
    /// The function, on each lane.
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V;
}

/// Replaces each element by its function value.
#[inline(always)]
pub fn map_in_place<S: Simd>(s: S, values: &mut [f32], map: impl Map) {
    let mut chunks = values.chunks_exact_mut(S::LANES);
    for chunk in &mut chunks {
        // SAFETY: the chunk has `LANES` elements.
        unsafe { s.store(chunk.as_mut_ptr(), map.apply(s, s.load(chunk.as_ptr()))) };
    }
    let rest = chunks.into_remainder();
    if !rest.is_empty() {
        // SAFETY: `rest` has fewer than `LANES` elements.
        let v = unsafe { s.load_partial(rest.as_ptr(), rest.len()) };
        store_partial(s, rest, map.apply(s, v));
    }
}

/// The sum of a slice in the fixed order of lanes.
#[inline(always)]
pub fn sum<S: Simd>(s: S, values: &[f32]) -> f32 {
    let mut sums = s.splat(0.0);
    let chunks = values.chunks_exact(S::LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        // SAFETY: the chunk has `LANES` elements.
        sums = s.add(sums, unsafe { s.load(chunk.as_ptr()) });
    }
    if !rest.is_empty() {
        // SAFETY: `rest` has fewer than `LANES` elements.
        sums = s.add(sums, unsafe { s.load_partial(rest.as_ptr(), rest.len()) });
    }
    s.sum(sums)
}

/// Writes the first lanes, as many as `to` has elements: fewer than `LANES`.
#[inline(always)]
pub fn store_partial<S: Simd>(s: S, to: &mut [f32], v: S::V) {
    let mut lanes = [0.0; 16];
    assert!(S::LANES <= lanes.len() && to.len() < S::LANES);
    // SAFETY: there is room for `LANES` floats.
    unsafe { s.store(lanes.as_mut_ptr(), v) };
    to.copy_from_slice(&lanes[..to.len()]);
}

#[cfg(test)]
mod tests {
    use engine_quant::simd::{Isa, Kernel};

    use super::*;

    #[derive(Clone, Copy)]
    enum Function {
        Exp,
        Tanh,
        OnePlusErf,
    }

    impl Map for Function {
        #[inline(always)]
        fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
            match self {
                Self::Exp => exp(s, x),
                Self::Tanh => tanh(s, x),
                Self::OnePlusErf => one_plus_erf(s, x),
            }
        }
    }

    struct Apply<'a>(Function, &'a mut [f32]);

    impl Kernel for Apply<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            map_in_place(s, self.1, self.0);
        }
    }

    /// The largest error over the arguments, relative to the exact value plus `floor`.
    fn worst(function: Function, x: &[f32], exact: impl Fn(f64) -> f64, floor: f64) -> f64 {
        let mut worst = 0.0_f64;
        for isa in Isa::available() {
            let mut y = x.to_vec();
            isa.run(Apply(function, &mut y));
            for (&x, &y) in x.iter().zip(&y) {
                let exact = exact(f64::from(x));
                let error = (f64::from(y) - exact).abs() / (exact.abs() + floor);
                assert!(error.is_finite(), "{} at {x}: {y}, exact {exact}", isa.name());
                worst = worst.max(error);
            }
        }
        worst
    }

    fn grid(from: f32, to: f32) -> Vec<f32> {
        const STEPS: usize = 200_003;
        (0..STEPS).map(|i| from + (to - from) * i as f32 / STEPS as f32).collect()
    }

    /// `erfc` for `x >= 0`: the series of `erf` near zero, its continued fraction elsewhere.
    fn erfc(x: f64) -> f64 {
        let factor = (-x * x).exp() / std::f64::consts::PI.sqrt();
        if x < 2.0 {
            let mut term = x;
            let mut sum = 0.0;
            for n in 0..200 {
                sum += term;
                term *= 2.0 * x * x / f64::from(2 * n + 3);
            }
            return 1.0 - 2.0 * factor * sum;
        }
        let tail = (1..200).rev().fold(0.0, |tail, n| f64::from(n) / 2.0 / (x + tail));
        factor / (x + tail)
    }

    #[test]
    fn exp_is_accurate_to_the_edge_of_the_subnormals() {
        assert!(worst(Function::Exp, &grid(-87.3, 88.7), f64::exp, 0.0) < 1.5e-7);
        assert!(worst(Function::Exp, &grid(-1e-3, 1e-3), f64::exp, 0.0) < 1.0e-7);
        // Below, half of the smallest subnormal number is all that can be asked.
        let exact = |x: f64| x.exp();
        assert!(worst(Function::Exp, &grid(-104.0, -87.3), exact, 1.2e-38) < 1.5e-7);
    }

    #[test]
    fn tanh_is_accurate_near_zero_and_far_away() {
        assert!(worst(Function::Tanh, &grid(-12.0, 12.0), f64::tanh, 0.0) < 2.0e-7);
        assert!(worst(Function::Tanh, &grid(-1e-3, 1.1e-3), f64::tanh, 1e-30) < 1.5e-7);
    }

    #[test]
    fn one_plus_erf_is_accurate_and_keeps_its_tail() {
        let exact = |x: f64| if x < 0.0 { erfc(-x) } else { 2.0 - erfc(x) };
        assert!(worst(Function::OnePlusErf, &grid(0.0, 6.0), exact, 0.0) < 2.0e-7);
        assert!(worst(Function::OnePlusErf, &grid(-0.9, 0.0), exact, 0.0) < 6.0e-7);
        assert!(worst(Function::OnePlusErf, &grid(-4.2, -0.9), exact, 0.0) < 1.0e-5);
        assert!(worst(Function::OnePlusErf, &grid(-30.0, 30.0), exact, 1.0) < 2.0e-7);
    }

    #[test]
    fn special_values_are_what_they_should_be() {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        for isa in Isa::available() {
            let apply = |function, x: &[f32]| {
                let mut y = x.to_vec();
                isa.run(Apply(function, &mut y));
                y
            };
            let y = apply(Function::Exp, &[-inf, inf, 0.0, -1e30, 1e30, nan]);
            assert_eq!(y[..5], [0.0, inf, 1.0, 0.0, inf]);
            assert!(y[5].is_nan());
            let y = apply(Function::Tanh, &[-inf, inf, 0.0, -1e30, 1e30, nan]);
            assert_eq!(y[..5], [-1.0, 1.0, 0.0, -1.0, 1.0]);
            assert!(y[5].is_nan());
            let y = apply(Function::OnePlusErf, &[-inf, inf, 0.0, -1e30, 1e30, nan]);
            assert_eq!(y[..5], [0.0, 2.0, 1.0, 0.0, 2.0]);
            assert!(y[5].is_nan());
        }
    }
}
