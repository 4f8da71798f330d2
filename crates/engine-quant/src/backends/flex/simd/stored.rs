use burn_tensor::Element;
use bytemuck::Pod;
use half::{bf16, f16};

use super::Simd;

/// A number that matrices are stored in, widened to `f32` in registers.
pub trait StoredFloat: Pod + Element + Send + Sync {
    /// Reads and widens `S::LANES` numbers.
    ///
    /// # Safety
    /// They can be read at `from`.
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::V;

    /// Reads and widens the first `len < S::LANES` numbers, zeros in the lanes after them.
    ///
    /// # Safety
    /// `len` numbers can be read at `from`.
    #[inline(always)]
    unsafe fn load_partial<S: Simd>(s: S, from: *const Self, len: usize) -> S::V {
        let mut padded = [Self::zeroed(); MAX_LANES];
        // SAFETY: the caller vouches for `len` numbers, and `len < S::LANES <= MAX_LANES`.
        unsafe {
            std::ptr::copy_nonoverlapping(from, padded.as_mut_ptr(), len);
            Self::load(s, padded.as_ptr())
        }
    }
}

/// Lanes of the widest vectors.
pub(super) const MAX_LANES: usize = 16;

impl StoredFloat for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load(from) }
    }

    #[inline(always)]
    unsafe fn load_partial<S: Simd>(s: S, from: *const Self, len: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_partial(from, len) }
    }
}

impl StoredFloat for i8 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_i8(from) }
    }
}

impl StoredFloat for f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_f16(from) }
    }
}

impl StoredFloat for bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_bf16(from) }
    }
}

/// Widens `from` into `to`, of the same length.
#[inline(always)]
pub(crate) fn widen_into<S: Simd, W: StoredFloat>(s: S, from: &[W], to: &mut [f32]) {
    let chunks = to.chunks_exact_mut(S::LANES).zip(from.chunks_exact(S::LANES));
    for (to, from) in chunks {
        // SAFETY: both chunks hold `LANES` elements.
        unsafe { s.store(to.as_mut_ptr(), W::load(s, from.as_ptr())) };
    }
    let whole = from.len() - from.len() % S::LANES;
    for (to, &from) in to[whole..].iter_mut().zip(&from[whole..]) {
        *to = from.elem();
    }
}
