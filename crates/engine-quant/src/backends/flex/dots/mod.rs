//! How a tile of a product is computed in registers.

#![allow(
    clippy::needless_range_loop,
    reason = "the indices number registers, and the loops over them are unrolled"
)]

#[cfg(target_arch = "x86_64")]
pub mod x86_bf16;

use std::marker::PhantomData;

use super::simd::{self, Simd, StoredFloat};
use super::tiles::COLUMNS;

/// Dot products of rows of activations with stored rows where they lie.
///
/// Every product has the same order of sums, that of [`PanelDots`] with the same activations.
pub trait Dots: Copy {
    /// An activation.
    type X: Copy;

    /// A stored number.
    type W: Copy;

    /// Rows of the largest tile with [`COLUMNS`] columns that fits into the registers.
    const ROWS: usize;

    /// The dot products of `R` rows with `O` stored rows, `len` elements each.
    ///
    /// # Safety
    /// `len` elements can be read at each of the pointers.
    unsafe fn dots<const R: usize, const O: usize>(
        self,
        x: [*const Self::X; R],
        w: [*const Self::W; O],
        len: usize,
    ) -> [[f32; O]; R];

    /// The dot products of `R` rows that lie as [`PanelDots`] reads them with [`COLUMNS`] stored
    /// rows where they lie, `len` elements each. Meanwhile so many elements at `ahead` are fetched
    /// into the second cache.
    ///
    /// # Safety
    /// `len` elements can be read at the pointers to stored rows, and whole vectors at `x`.
    unsafe fn tile_dots<const R: usize>(
        self,
        x: *const Self::X,
        w: [*const Self::W; COLUMNS],
        len: usize,
        ahead: [*const Self::W; AHEAD],
    ) -> [[f32; COLUMNS]; R];
}

/// Stored rows that are fetched while a tile is multiplied.
pub const AHEAD: usize = 2;

/// Dot products of rows that lie side by side: vector `v` of row `r` of `R` is vector `v · R + r`
/// there. The last vectors are filled up with zeros.
pub trait PanelDots: Copy {
    /// What rows are multiplied in.
    type X: Copy + Send + Sync;

    /// Elements of a vector.
    const LANES: usize;

    /// The dot products of `R` rows with [`COLUMNS`] stored rows, of so many vectors each.
    ///
    /// # Safety
    /// They can be read at `x` and `panel`.
    unsafe fn panel_dots<const R: usize>(
        self,
        x: *const Self::X,
        panel: *const Self::X,
        vectors: usize,
    ) -> [[f32; COLUMNS]; R];

    /// Rounds `len` activations of a row to [`PanelDots::X`] and writes them to `to`, each vector
    /// `distance` vectors after the one before it.
    ///
    /// # Safety
    /// They can be read at `from`, and the vectors can be written.
    unsafe fn place(self, from: *const f32, len: usize, to: *mut Self::X, distance: usize);
}

/// Stored numbers are widened to `f32` in registers, in the order of sums of [`simd`].
#[derive(Clone, Copy)]
pub struct Widened<S, W>(S, PhantomData<W>);

impl<S: Simd, W> Widened<S, W> {
    /// On vectors of `S`.
    #[inline(always)]
    pub fn new(s: S) -> Self {
        Self(s, PhantomData)
    }
}

impl<S: Simd> Widened<S, f32> {
    /// Its vectors.
    #[inline(always)]
    pub fn simd(self) -> S {
        self.0
    }

    /// As [`PanelDots::place`], for numbers of another type.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    pub unsafe fn widen<W: StoredFloat>(
        self,
        from: *const W,
        len: usize,
        to: *mut f32,
        distance: usize,
    ) {
        let s = self.0;
        let whole = len - len % S::LANES;
        let mut k = 0;
        // SAFETY: the caller's promise.
        unsafe {
            while k < whole {
                s.store(to.add(k * distance), W::load(s, from.add(k)));
                k += S::LANES;
            }
            if whole < len {
                let last = W::load_partial(s, from.add(whole), len - whole);
                s.store(to.add(whole * distance), last);
            }
        }
    }
}

impl<S: Simd, W: StoredFloat> Dots for Widened<S, W> {
    type X = f32;
    type W = W;
    const ROWS: usize = S::TILE_ROWS;

    #[inline(always)]
    unsafe fn dots<const R: usize, const O: usize>(
        self,
        x: [*const f32; R],
        w: [*const W; O],
        len: usize,
    ) -> [[f32; O]; R] {
        // SAFETY: the caller's promise.
        unsafe { simd::dot_tile(self.0, x, w, len) }
    }

    #[inline(always)]
    unsafe fn tile_dots<const R: usize>(
        self,
        x: *const f32,
        w: [*const W; COLUMNS],
        len: usize,
        ahead: [*const W; AHEAD],
    ) -> [[f32; COLUMNS]; R] {
        let s = self.0;
        let mut sums = [[s.splat(0.0); COLUMNS]; R];
        let mut k = 0;
        while k < len {
            let left = len - k;
            let mut stored = [s.splat(0.0); COLUMNS];
            for c in 0..COLUMNS {
                // SAFETY: `left` elements are left, and the caller vouches for `len`.
                stored[c] = unsafe {
                    if left >= S::LANES {
                        W::load(s, w[c].add(k))
                    } else {
                        W::load_partial(s, w[c].add(k), left)
                    }
                };
            }
            for ahead in ahead {
                prefetch(ahead.wrapping_add(k));
            }
            for r in 0..R {
                // SAFETY: the vectors of the rows lie side by side.
                let row = unsafe { s.load(x.add(k * R + r * S::LANES)) };
                for c in 0..COLUMNS {
                    sums[r][c] = s.mul_add(row, stored[c], sums[r][c]);
                }
            }
            k += S::LANES;
        }
        simd::sum_tile(s, sums)
    }
}

/// Fetches the line of a number into the second cache.
#[inline(always)]
pub fn prefetch<T>(_at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: prefetching reads nothing.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(_at.cast());
    }
}

impl<S: Simd> PanelDots for Widened<S, f32> {
    type X = f32;
    const LANES: usize = S::LANES;

    #[inline(always)]
    unsafe fn panel_dots<const R: usize>(
        self,
        x: *const f32,
        panel: *const f32,
        vectors: usize,
    ) -> [[f32; COLUMNS]; R] {
        let s = self.0;
        let mut sums = [[s.splat(0.0); COLUMNS]; R];
        for v in 0..vectors {
            let mut stored = [s.splat(0.0); COLUMNS];
            for c in 0..COLUMNS {
                // SAFETY: the caller's promise.
                stored[c] = unsafe { s.load(panel.add((v * COLUMNS + c) * S::LANES)) };
            }
            for r in 0..R {
                // SAFETY: as above.
                let row = unsafe { s.load(x.add((v * R + r) * S::LANES)) };
                for c in 0..COLUMNS {
                    sums[r][c] = s.mul_add(row, stored[c], sums[r][c]);
                }
            }
        }
        simd::sum_tile(s, sums)
    }

    #[inline(always)]
    unsafe fn place(self, from: *const f32, len: usize, to: *mut f32, distance: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.widen(from, len, to, distance) }
    }
}
