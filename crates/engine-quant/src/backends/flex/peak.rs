//! What the arithmetic units of this CPU do at best: chains of multiply-adds that never leave the
//! registers. No product can be faster, so the speed of a product is told as a part of this.

use std::{hint::black_box, thread, time::Instant};

#[cfg(target_arch = "x86_64")]
use crate::InstructionSet;

/// A type of arithmetic that matrix products may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arithmetic {
    /// 32-bit floats: fused multiply-add.
    F32,
    /// Pairs of `bf16` added to `f32`.
    Bf16,
    /// Four 8-bit integers, unsigned by signed, added to 32-bit integers.
    Int8,
}

impl Arithmetic {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::Int8];

    /// `f32`, `bf16` or `int8`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}

/// Independent chains: enough to hide the latency of two units, few enough for the registers.
const CHAINS: usize = 12;
/// Links of every chain in one timed run, a few milliseconds: short enough to find a moment in which
/// no other program has a core.
const LINKS: usize = 1 << 20;
/// The best of this many runs counts: the others shared the machine.
const RUNS: usize = 50;

/// The instruction that multiplies and adds, and the loop over it.
#[derive(Clone, Copy)]
struct Unit {
    instruction: &'static str,
    /// Multiply-adds of one instruction.
    width: usize,
    /// Runs all chains for so many links.
    run: unsafe fn(usize),
}

/// Multiplications with their additions that `threads` threads do in a second together, and the
/// instruction that does them; `None` where this CPU, or this crate, has none for the type.
///
/// ```
/// use engine_quant::peak::{Arithmetic, multiply_adds_per_second};
/// let (rate, instruction) = multiply_adds_per_second(Arithmetic::F32, 1).ok_or("no floats?")?;
/// assert!(rate > 1e8, "{rate} with {instruction}");
/// # Ok::<(), &str>(())
/// ```
pub fn multiply_adds_per_second(kind: Arithmetic, threads: usize) -> Option<(f64, &'static str)> {
    let unit = unit(kind)?;
    let threads = threads.max(1);
    let seconds = || {
        let start = Instant::now();
        thread::scope(|scope| {
            for _ in 0..threads {
                // SAFETY: `unit` gives only what it detected the features for.
                scope.spawn(|| unsafe { (unit.run)(black_box(LINKS)) });
            }
        });
        start.elapsed().as_secs_f64()
    };
    let best = (0..RUNS).map(|_| seconds()).fold(f64::INFINITY, f64::min);
    Some(((threads * CHAINS * LINKS * unit.width) as f64 / best, unit.instruction))
}

#[cfg(target_arch = "x86_64")]
fn unit(kind: Arithmetic) -> Option<Unit> {
    use x86::*;
    let [avx512, avx_vnni, avx2] =
        [InstructionSet::Avx512, InstructionSet::AvxVnni, InstructionSet::Avx2]
            .map(InstructionSet::is_allowed);
    let unit = |instruction, width, run| Some(Unit { instruction, width, run });
    match kind {
        Arithmetic::F32 if avx512 && is_x86_feature_detected!("avx512f") => {
            unit("vfmadd231ps zmm", 16, f32_avx512)
        }
        Arithmetic::F32
            if avx2 && is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") =>
        {
            unit("vfmadd231ps ymm", 8, f32_avx2)
        }
        Arithmetic::F32 => Some(PORTABLE),
        Arithmetic::Bf16 if avx512 && is_x86_feature_detected!("avx512bf16") => {
            unit("vdpbf16ps zmm", 32, bf16_avx512)
        }
        Arithmetic::Int8 if avx512 && is_x86_feature_detected!("avx512vnni") => {
            unit("vpdpbusd zmm", 64, int8_avx512)
        }
        Arithmetic::Int8 if avx_vnni && is_x86_feature_detected!("avxvnni") => {
            unit("vpdpbusd ymm", 32, int8_avx_vnni)
        }
        Arithmetic::Int8 if avx2 && is_x86_feature_detected!("avx2") => {
            unit("vpmaddubsw ymm", 32, int8_avx2)
        }
        _ => None,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn unit(kind: Arithmetic) -> Option<Unit> {
    (kind == Arithmetic::F32).then_some(PORTABLE)
}

/// Whatever vectors the compiler uses by default.
const PORTABLE: Unit = Unit { instruction: "multiply, add", width: 8, run: f32_portable };

fn f32_portable(links: usize) {
    let mut sums = [[1.0_f32; 8]; CHAINS];
    let (a, b) = (black_box([0.5_f32; 8]), black_box([0.25_f32; 8]));
    for _ in 0..links {
        for sum in &mut sums {
            for ((sum, a), b) in sum.iter_mut().zip(&a).zip(&b) {
                *sum = *sum * a + b;
            }
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::{arch::x86_64::*, hint::black_box};

    use super::CHAINS;

    /// Twelve chains of one instruction: `link` makes a chain's next value of the last.
    macro_rules! chains {
        ($name:ident, $features:literal, $start:expr, $operand:expr,
         |$c:ident, $a:ident, $b:ident| $link:expr) => {
            /// # Safety
            /// The CPU has the named features.
            #[target_feature(enable = $features)]
            pub unsafe fn $name(links: usize) {
                let ($a, $b) = (black_box($operand), black_box($operand));
                let mut chains = [$start; CHAINS];
                for _ in 0..links {
                    for chain in &mut chains {
                        let $c = *chain;
                        *chain = $link;
                    }
                }
                black_box(chains);
            }
        };
    }

    chains!(f32_avx512, "avx512f", _mm512_set1_ps(1.0), _mm512_set1_ps(0.5), |c, a, b| {
        _mm512_fmadd_ps(c, a, b)
    });
    chains!(f32_avx2, "avx2,fma", _mm256_set1_ps(1.0), _mm256_set1_ps(0.5), |c, a, b| {
        _mm256_fmadd_ps(c, a, b)
    });
    chains!(
        bf16_avx512,
        "avx512f,avx512bf16",
        _mm512_set1_ps(1.0),
        _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5), _mm512_set1_ps(0.25)),
        |c, a, b| _mm512_dpbf16_ps(c, a, b)
    );
    chains!(
        int8_avx512,
        "avx512f,avx512vnni",
        _mm512_set1_epi32(1),
        _mm512_set1_epi8(3),
        |c, a, b| _mm512_dpbusd_epi32(c, a, b)
    );
    chains!(int8_avx_vnni, "avx2,avxvnni", _mm256_set1_epi32(1), _mm256_set1_epi8(3), |c, a, b| {
        _mm256_dpbusd_avx_epi32(c, a, b)
    });
    // Without the instruction for four at once: pairs to 16 bits, those to 32, and the sum.
    chains!(int8_avx2, "avx2", _mm256_set1_epi32(1), _mm256_set1_epi8(3), |c, a, b| {
        let pairs = _mm256_maddubs_epi16(a, _mm256_xor_si256(b, c));
        _mm256_add_epi32(c, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrower_types_are_not_slower_and_two_threads_not_slower_than_one() {
        let rate = |kind, threads| multiply_adds_per_second(kind, threads).map(|(rate, _)| rate);
        let floats = rate(Arithmetic::F32, 1).unwrap();
        assert!(floats > 1e8, "{floats}");
        for kind in [Arithmetic::Bf16, Arithmetic::Int8] {
            if let Some(narrow) = rate(kind, 1) {
                assert!(narrow > 0.5 * floats, "{kind:?}: {narrow} against {floats}");
            }
        }
    }
}
