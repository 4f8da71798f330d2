//! Vectors of `f32` on whatever the CPU offers, chosen once at run time.
//!
//! A kernel is written once, generic over [`Simd`], and [`Isa::run`] compiles it for AVX-512, for
//! AVX2 and for the portable lanes that the compiler turns into NEON or SSE2:
//!
//! ```
//! use engine_quant::simd::{Isa, Kernel, Simd};
//!
//! struct Square<'a>(&'a [f32]);
//!
//! impl Kernel for Square<'_> {
//!     type Output = f32;
//!     #[inline(always)]
//!     fn run<S: Simd>(self, s: S) -> f32 {
//!         engine_quant::simd::dot(s, self.0, self.0)
//!     }
//! }
//! for isa in Isa::available() {
//!     assert_eq!(isa.run(Square(&[1.0, 2.0, 3.0])), 14.0);
//! }
//! ```
//!
//! Sums have one fixed order on one instruction set: lane `l` adds the elements `l`, `l + LANES`,
//! …, missing ones counting as zeros, and [`Simd::sum`] adds the lanes. Everything that kernels
//! promise about bit-exactness rests on this.

mod dot;
mod portable;
mod stored;
#[cfg(target_arch = "x86_64")]
mod x86_avx2;
#[cfg(target_arch = "x86_64")]
mod x86_avx512;

pub(crate) use dot::sum_tile;
pub use dot::{dot, dot_tile};
pub use stored::StoredFloat;
pub(crate) use stored::widen_into;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_avx512::Avx512;

use std::sync::LazyLock;

use half::{bf16, f16};

use crate::InstructionSet;

/// A computation that is compiled once for each instruction set.
///
/// `run` and every generic function below it is `#[inline(always)]`: code that stays a function of
/// its own is compiled without the wider instructions.
pub trait Kernel {
    /// What the computation gives.
    type Output;

    /// The computation, on vectors of `S`.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// An instruction set that this CPU has. Only detection makes one, so running on it is sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isa(Set);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Set {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

static BEST: LazyLock<Isa> = LazyLock::new(|| {
    let allowed = |isa: &Isa| isa.0.instruction_set().is_allowed();
    Isa::available().into_iter().find(allowed).unwrap_or(Isa(Set::Portable))
});

impl Set {
    fn instruction_set(self) -> InstructionSet {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => InstructionSet::Avx512,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => InstructionSet::Avx2,
            Self::Portable => InstructionSet::Portable,
        }
    }
}

impl Isa {
    /// The widest instruction set of this CPU that kernels may use.
    pub fn best() -> Self {
        *BEST
    }

    /// Every instruction set of this CPU that kernels are compiled for, the widest first.
    pub fn available() -> Vec<Self> {
        let mut sets = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if Avx512::is_available() {
                sets.push(Self(Set::Avx512));
            }
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                sets.push(Self(Set::Avx2));
            }
        }
        sets.push(Self(Set::Portable));
        sets
    }

    /// Its name: `avx512`, `avx2` or `portable`.
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => "avx2",
            Set::Portable => "portable",
        }
    }

    /// Runs the kernel as compiled for this instruction set.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            // SAFETY: `available`, the only maker of these values, detected the features.
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => unsafe { x86_avx512::run(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => unsafe { x86_avx2::run(kernel) },
            Set::Portable => kernel.run(portable::Portable::new()),
        }
    }
}

/// Operations on vectors of `LANES` floats. A value of the implementing type proves that the CPU
/// has the instructions; only [`Isa::run`] hands one out.
pub trait Simd: Copy + Send + Sync {
    /// Floats in a vector.
    const LANES: usize;

    /// Rows of the largest [`dot_tile`] with four columns that fits into the registers.
    const TILE_ROWS: usize;

    /// Whether widening 16-bit floats as they are read costs next to nothing beside the products.
    const WIDENS_FREELY: bool;

    /// A vector of `LANES` floats.
    type V: Copy;

    /// `x` in every lane.
    fn splat(self, x: f32) -> Self::V;

    /// Reads `LANES` floats.
    ///
    /// # Safety
    /// They can be read at `from`.
    unsafe fn load(self, from: *const f32) -> Self::V;

    /// Reads the first `len < LANES` floats, zeros in the lanes after them.
    ///
    /// # Safety
    /// `len` floats can be read at `from`.
    unsafe fn load_partial(self, from: *const f32, len: usize) -> Self::V;

    /// Reads and widens `LANES` numbers.
    ///
    /// # Safety
    /// They can be read at `from`.
    unsafe fn load_i8(self, from: *const i8) -> Self::V;

    /// Reads and widens `LANES` numbers.
    ///
    /// # Safety
    /// They can be read at `from`.
    unsafe fn load_f16(self, from: *const f16) -> Self::V;

    /// Reads and widens `LANES` numbers.
    ///
    /// # Safety
    /// They can be read at `from`.
    unsafe fn load_bf16(self, from: *const bf16) -> Self::V;

    /// Reads `LANES` bytes as the numbers 0 ..= 255.
    ///
    /// # Safety
    /// They can be read at `from`.
    unsafe fn load_u8(self, from: *const u8) -> Self::V;

    /// Looks up vector `vector` of the 32 four-bit codes of a chunk: byte `i` has number `i` in
    /// its low half and number `i + 16` in its high half. The table is given as its first and its
    /// last `LANES` entries of 16; where a vector has 16 lanes, both are the same.
    ///
    /// # Safety
    /// 16 bytes can be read at `chunk`, and `vector < 32 / LANES`.
    unsafe fn lookup_u4(self, chunk: *const u8, vector: usize, table: [Self::V; 2]) -> Self::V;

    /// Writes `LANES` floats.
    ///
    /// # Safety
    /// They can be written at `to`.
    unsafe fn store(self, to: *mut f32, v: Self::V);

    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;

    /// `a − b`.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;

    /// `a · b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;

    /// `a / b`.
    fn div(self, a: Self::V, b: Self::V) -> Self::V;

    /// `a · b + c`, rounded once where the CPU has such an instruction.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;

    /// `a` where `a > b`, otherwise `b`: a NaN in `b` stays, one in `a` does not.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;

    /// `a` where `a < b`, otherwise `b`: a NaN in `b` stays, one in `a` does not.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;

    /// `yes` where `a < b`, otherwise (NaN included) `no`.
    fn select_lt(self, a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V;

    /// Nearest whole number, ties to even, for magnitudes below 2²².
    fn round(self, v: Self::V) -> Self::V;

    /// `2ⁿ` for whole `n` in −126 ..= 127.
    fn exp2_whole(self, n: Self::V) -> Self::V;

    /// Sum of the lanes: the upper half is added to the lower until four are left, `a b c d`, then
    /// `(a + c) + (b + d)`.
    fn sum(self, v: Self::V) -> f32;

    /// Four sums at once, each the same bits as from [`Simd::sum`].
    fn sum4(self, v: [Self::V; 4]) -> [f32; 4];
}

#[cfg(test)]
mod tests;
