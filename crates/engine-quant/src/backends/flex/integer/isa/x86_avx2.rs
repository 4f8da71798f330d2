use std::arch::x86_64::*;

use half::f16;

use super::{Integers, Kernel};

/// Eight lanes: AVX2, with products of bytes (AVX-VNNI) or, without them, of numbers of 16 bits.
#[derive(Clone, Copy)]
pub struct Avx2<const VNNI: bool>(());

/// Compiles the kernel with AVX2.
///
/// # Safety
/// The CPU has the named features.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2::<false>(()))
}

/// Compiles the kernel with AVX2 and AVX-VNNI.
///
/// # Safety
/// The CPU has the named features.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
pub unsafe fn run_vnni<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2::<true>(()))
}

/// As [`run`], never inlined.
///
/// # Safety
/// The CPU has the named features.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2::<false>(()))
}

/// As [`run_vnni`], never inlined.
///
/// # Safety
/// The CPU has the named features.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
#[inline(never)]
unsafe fn call_vnni<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2::<true>(()))
}

// SAFETY of all blocks below: a value of `Avx2` exists only inside `run` and `run_vnni`, whose
// callers have checked the features; pointers are vouched for by the caller of each method.
impl<const VNNI: bool> Integers for Avx2<VNNI> {
    const LANES: usize = 8;
    const DIGITS: usize = if VNNI { 1 } else { 2 };
    const ROWS: usize = 4;
    const VECTORS: usize = 2;
    type I = __m256i;
    type F = __m256;
    /// The second half repeats the first where bytes are multiplied.
    type Factors = [__m256i; 2];

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: see above.
        unsafe { if VNNI { call_vnni(kernel) } else { call(kernel) } }
    }

    #[inline(always)]
    fn splat(self, x: i32) -> __m256i {
        // SAFETY: see above.
        unsafe { _mm256_set1_epi32(x) }
    }

    #[inline(always)]
    unsafe fn load_codes(self, from: *const u8) -> __m256i {
        // SAFETY: see above.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    fn spread(self, codes: __m256i) -> [__m256i; 2] {
        if VNNI {
            return [codes; 2];
        }
        // SAFETY: see above.
        unsafe { [_mm256_and_si256(codes, _mm256_set1_epi16(255)), _mm256_srli_epi16::<8>(codes)] }
    }

    #[inline(always)]
    unsafe fn load_digits(self, from: *const u32) -> [__m256i; 2] {
        // SAFETY: see above.
        unsafe {
            let first = _mm256_set1_epi32(from.cast::<i32>().read());
            if VNNI {
                return [first; 2];
            }
            [first, _mm256_set1_epi32(from.add(1).cast::<i32>().read())]
        }
    }

    #[inline(always)]
    fn low_halves(self, codes: __m256i) -> __m256i {
        // SAFETY: see above.
        unsafe { _mm256_and_si256(codes, _mm256_set1_epi8(15)) }
    }

    #[inline(always)]
    fn high_halves(self, codes: __m256i) -> __m256i {
        // SAFETY: see above.
        unsafe { _mm256_and_si256(_mm256_srli_epi32::<4>(codes), _mm256_set1_epi8(15)) }
    }

    #[inline(always)]
    fn dot(self, sums: __m256i, codes: [__m256i; 2], digits: [__m256i; 2]) -> __m256i {
        // SAFETY: see above.
        unsafe {
            if VNNI {
                return _mm256_dpbusd_avx_epi32(sums, codes[0], digits[0]);
            }
            let first = _mm256_madd_epi16(codes[0], digits[0]);
            let second = _mm256_madd_epi16(codes[1], digits[1]);
            _mm256_add_epi32(sums, _mm256_add_epi32(first, second))
        }
    }

    #[inline(always)]
    fn join(self, high: __m256i, low: __m256i) -> __m256i {
        // SAFETY: see above.
        unsafe { _mm256_add_epi32(_mm256_slli_epi32::<8>(high), low) }
    }

    #[inline(always)]
    fn sub_product(self, d: __m256i, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: see above.
        unsafe { _mm256_sub_epi32(d, _mm256_mullo_epi32(a, b)) }
    }

    #[inline(always)]
    fn to_f32(self, d: __m256i) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_cvtepi32_ps(d) }
    }

    #[inline(always)]
    fn splat_f32(self, x: f32) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load_f32(self, from: *const f32) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_u8(self, from: *const u8) -> __m256i {
        // SAFETY: see above.
        unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast())) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, v: __m256) {
        // SAFETY: see above.
        unsafe { _mm256_storeu_ps(to, v) }
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn prefetch(self, from: *const u8) {
        // SAFETY: see above; a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }
}
