#![allow(
    clippy::needless_range_loop,
    reason = "the indices number registers, and the loops over them are unrolled"
)]

use std::arch::x86_64::*;

use half::bf16;

use super::super::simd::{self, Avx512, Simd};
use super::super::tiles::COLUMNS;
use super::{AHEAD, Dots, PanelDots, prefetch};
use crate::InstructionSet;

/// Both operands are `bf16`, multiplied in pairs by AVX-512.
///
/// Lane `l` adds the products of the elements `2l` and `2l + 1`, then of the 32 further on, and so
/// forth, missing ones counting as zeros; [`Simd::sum`] adds the lanes. A step rounds as the
/// instruction does: products are exact, numbers below the smallest normal one count as zeros.
#[derive(Clone, Copy)]
pub struct Pairs(Avx512);

/// A computation with [`Pairs`].
///
/// As for [`simd::Kernel`], everything below `run` is `#[inline(always)]`.
pub trait PairsKernel {
    fn run(self, pairs: Pairs);
}

/// Whether this CPU has the instructions.
pub fn is_available() -> bool {
    InstructionSet::Avx512.is_allowed()
        && is_x86_feature_detected!("avx512bf16")
        && Avx512::is_available()
}

/// Runs the kernel.
pub fn run(kernel: impl PairsKernel) {
    assert!(is_available(), "dense_linear: no instructions for products of bf16");
    // SAFETY: the features were detected.
    unsafe { run_detected(kernel) }
}

/// # Safety
/// The CPU has the named features.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,avx2,fma,f16c")]
unsafe fn run_detected(kernel: impl PairsKernel) {
    // SAFETY: the caller's promise.
    kernel.run(Pairs(unsafe { Avx512::detected() }));
}

/// Numbers in a vector.
const LANES: usize = 32;

// SAFETY of all blocks below: a value of `Pairs` exists only inside `run`, which has checked the
// features; pointers are vouched for by the caller of each method.
impl Pairs {
    /// Rounds numbers to the nearest `bf16`, ties to even.
    #[inline(always)]
    pub fn round_all(self, from: &[f32], to: &mut [bf16]) {
        for (from, to) in from.chunks(LANES).zip(to.chunks_mut(LANES)) {
            let mut rounded = [bf16::ZERO; LANES];
            // SAFETY: the chunk has the length.
            unsafe {
                let vector = self.round(from.as_ptr(), from.len());
                rounded.as_mut_ptr().cast::<__m512bh>().write_unaligned(vector);
            }
            to.copy_from_slice(&rounded[..from.len()]);
        }
    }

    /// Copies `len` numbers to `to`, each vector `distance` vectors after the one before it, the
    /// last filled up with zeros.
    ///
    /// # Safety
    /// They can be read at `from`, and the vectors can be written.
    #[inline(always)]
    pub unsafe fn copy(self, from: *const bf16, len: usize, to: *mut bf16, distance: usize) {
        let whole = len - len % LANES;
        let mut k = 0;
        // SAFETY: see above.
        unsafe {
            while k < whole {
                to.add(k * distance).cast::<__m512bh>().write_unaligned(self.load(from.add(k)));
                k += LANES;
            }
            if whole < len {
                let last = self.load_partial(from.add(whole), len - whole);
                to.add(whole * distance).cast::<__m512bh>().write_unaligned(last);
            }
        }
    }

    /// Rounds the first `len <= 32` numbers to the nearest `bf16`, ties to even, then zeros.
    ///
    /// # Safety
    /// They can be read at `from`.
    #[inline(always)]
    unsafe fn round(self, from: *const f32, len: usize) -> __m512bh {
        // SAFETY: see above; lanes outside the mask are not read.
        unsafe {
            let mask = ((1_u64 << len) - 1) as u32;
            let low = _mm512_maskz_loadu_ps(mask as u16, from);
            let high = _mm512_maskz_loadu_ps((mask >> 16) as u16, from.wrapping_add(16));
            _mm512_cvtne2ps_pbh(high, low)
        }
    }

    /// # Safety
    /// 32 numbers can be read at `from`.
    #[inline(always)]
    unsafe fn load(self, from: *const bf16) -> __m512bh {
        // SAFETY: see above.
        unsafe { from.cast::<__m512bh>().read_unaligned() }
    }

    /// # Safety
    /// `len < 32` numbers can be read at `from`.
    #[inline(always)]
    unsafe fn load_partial(self, from: *const bf16, len: usize) -> __m512bh {
        // SAFETY: see above; lanes outside the mask are not read.
        unsafe {
            let numbers = _mm512_maskz_loadu_epi16((1_u32 << len) - 1, from.cast());
            std::mem::transmute::<__m512i, __m512bh>(numbers)
        }
    }
}

impl Dots for Pairs {
    type X = bf16;
    type W = bf16;
    const ROWS: usize = <Avx512 as Simd>::TILE_ROWS;

    #[inline(always)]
    unsafe fn dots<const R: usize, const O: usize>(
        self,
        x: [*const bf16; R],
        w: [*const bf16; O],
        len: usize,
    ) -> [[f32; O]; R] {
        let mut sums = [[self.0.splat(0.0); O]; R];
        let whole = len - len % LANES;
        let mut k = 0;
        // SAFETY: see above; `k + LANES <= len`, and `len - whole` elements are left at `whole`.
        unsafe {
            while k < whole {
                let mut stored = [self.load(w[0].add(k)); O];
                for o in 1..O {
                    stored[o] = self.load(w[o].add(k));
                }
                for r in 0..R {
                    let row = self.load(x[r].add(k));
                    for o in 0..O {
                        sums[r][o] = _mm512_dpbf16_ps(sums[r][o], row, stored[o]);
                    }
                }
                k += LANES;
            }
            if whole < len {
                let len = len - whole;
                for o in 0..O {
                    let stored = self.load_partial(w[o].add(whole), len);
                    for r in 0..R {
                        let row = self.load_partial(x[r].add(whole), len);
                        sums[r][o] = _mm512_dpbf16_ps(sums[r][o], row, stored);
                    }
                }
            }
        }
        simd::sum_tile(self.0, sums)
    }

    #[inline(always)]
    unsafe fn tile_dots<const R: usize>(
        self,
        x: *const bf16,
        w: [*const bf16; COLUMNS],
        len: usize,
        ahead: [*const bf16; AHEAD],
    ) -> [[f32; COLUMNS]; R] {
        let mut sums = [[self.0.splat(0.0); COLUMNS]; R];
        let mut k = 0;
        while k < len {
            let left = len - k;
            // SAFETY: see above; `left` elements are left.
            unsafe {
                let stored = if left >= LANES {
                    w.map(|w| self.load(w.add(k)))
                } else {
                    w.map(|w| self.load_partial(w.add(k), left))
                };
                for ahead in ahead {
                    prefetch(ahead.wrapping_add(k));
                }
                for r in 0..R {
                    let row = self.load(x.add(k * R + r * LANES));
                    for c in 0..COLUMNS {
                        sums[r][c] = _mm512_dpbf16_ps(sums[r][c], row, stored[c]);
                    }
                }
            }
            k += LANES;
        }
        simd::sum_tile(self.0, sums)
    }
}

impl PanelDots for Pairs {
    type X = bf16;
    const LANES: usize = LANES;

    #[inline(always)]
    unsafe fn panel_dots<const R: usize>(
        self,
        x: *const bf16,
        panel: *const bf16,
        vectors: usize,
    ) -> [[f32; COLUMNS]; R] {
        let mut sums = [[self.0.splat(0.0); COLUMNS]; R];
        for v in 0..vectors {
            // SAFETY: see above.
            unsafe {
                let mut stored = [self.load(panel.add(v * COLUMNS * LANES)); COLUMNS];
                for c in 1..COLUMNS {
                    stored[c] = self.load(panel.add((v * COLUMNS + c) * LANES));
                }
                for r in 0..R {
                    let row = self.load(x.add((v * R + r) * LANES));
                    for c in 0..COLUMNS {
                        sums[r][c] = _mm512_dpbf16_ps(sums[r][c], row, stored[c]);
                    }
                }
            }
        }
        simd::sum_tile(self.0, sums)
    }

    #[inline(always)]
    unsafe fn place(self, from: *const f32, len: usize, to: *mut bf16, distance: usize) {
        let mut k = 0;
        while k < len {
            // SAFETY: see above.
            unsafe {
                let rounded = self.round(from.add(k), (len - k).min(LANES));
                to.add(k * distance).cast::<__m512bh>().write_unaligned(rounded);
            }
            k += LANES;
        }
    }
}
