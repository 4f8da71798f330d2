//! Exact products of small integers on whatever the CPU offers, chosen once at run time.
//!
//! Every operation is exact, or rounds once as IEEE 754 says: results have the same bits on every
//! instruction set.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86_avx2;
#[cfg(target_arch = "x86_64")]
mod x86_avx512;

use std::sync::LazyLock;

use half::f16;

use crate::InstructionSet;

/// A computation that is compiled once for each instruction set; as for
/// [`simd::Kernel`](crate::simd::Kernel), all of it is `#[inline(always)]`.
pub trait Kernel {
    /// What the computation gives.
    type Output;

    /// The computation, on vectors of `S`.
    fn run<S: Integers>(self, s: S) -> Self::Output;
}

/// An instruction set that this CPU has. Only detection makes one, so running on it is sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isa(Set);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Set {
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
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
            Self::Avx512Vnni => InstructionSet::Avx512,
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => InstructionSet::AvxVnni,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => InstructionSet::Avx2,
            Self::Portable => InstructionSet::Portable,
        }
    }
}

impl Isa {
    /// Whether it has instructions that multiply and add neighbours.
    pub fn adds_neighbours(self) -> bool {
        self.0 != Set::Portable
    }

    /// The fastest instruction set of this CPU that kernels may use.
    pub fn best() -> Self {
        *BEST
    }

    /// Every instruction set of this CPU that kernels are compiled for, the fastest first.
    pub fn available() -> Vec<Self> {
        let mut sets = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
            {
                sets.push(Self(Set::Avx512Vnni));
            }
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                if is_x86_feature_detected!("avxvnni") {
                    sets.push(Self(Set::AvxVnni));
                }
                sets.push(Self(Set::Avx2));
            }
        }
        sets.push(Self(Set::Portable));
        sets
    }

    /// Runs the kernel as compiled for this instruction set.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            // SAFETY: `available`, the only maker of these values, detected the features.
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Vnni => unsafe { x86_avx512::run(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Set::AvxVnni => unsafe { x86_avx2::run_vnni(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => unsafe { x86_avx2::run(kernel) },
            Set::Portable => kernel.run(portable::Portable::new()),
        }
    }
}

/// Operations on vectors of `LANES` numbers of 32 bits. A value of the implementing type proves
/// that the CPU has the instructions; only [`Isa::run`] hands one out.
pub trait Integers: Copy + Send + Sync {
    /// Lanes of a vector: 8 or 16.
    const LANES: usize;

    /// Digits that are multiplied as one number. A single one is a byte, so that a word has those of
    /// four columns; two are a number of 16 bits, the first and the third column's in a word and the
    /// second and the fourth one's in the next.
    const DIGITS: usize;

    /// Rows of sums in the largest tile that fits into the registers, [`Integers::VECTORS`] wide.
    const ROWS: usize;

    /// Vectors of codes that a tile multiplies side by side.
    const VECTORS: usize;

    /// 32-bit integers, also four bytes in each lane.
    type I: Copy;

    /// 32-bit floats.
    type F: Copy;

    /// Four numbers in each lane, as [`Integers::dot`] multiplies them.
    type Factors: Copy;

    /// Runs a kernel that stays a function of its own: compilers take long over large ones.
    fn call<K: Kernel>(self, kernel: K) -> K::Output;

    /// `x` in every lane.
    fn splat(self, x: i32) -> Self::I;

    /// Reads four bytes for each lane.
    ///
    /// # Safety
    /// `4 · LANES` bytes can be read at `from`.
    unsafe fn load_codes(self, from: *const u8) -> Self::I;

    /// Codes as they are multiplied.
    fn spread(self, codes: Self::I) -> Self::Factors;

    /// The digits of four columns in every lane.
    ///
    /// # Safety
    /// `DIGITS` words can be read at `from`.
    unsafe fn load_digits(self, from: *const u32) -> Self::Factors;

    /// The lower half of every byte.
    fn low_halves(self, codes: Self::I) -> Self::I;

    /// The upper half of every byte.
    fn high_halves(self, codes: Self::I) -> Self::I;

    /// Adds the products of four unsigned codes and four signed numbers in each lane.
    fn dot(self, sums: Self::I, codes: Self::Factors, digits: Self::Factors) -> Self::I;

    /// `256 · high + low`, wrapping.
    fn join(self, high: Self::I, low: Self::I) -> Self::I;

    /// `d − a · b`, wrapping.
    fn sub_product(self, d: Self::I, a: Self::I, b: Self::I) -> Self::I;

    /// The nearest floats.
    fn to_f32(self, d: Self::I) -> Self::F;

    /// `x` in every lane.
    fn splat_f32(self, x: f32) -> Self::F;

    /// Reads `LANES` floats.
    ///
    /// # Safety
    /// They can be read at `from`.
    unsafe fn load_f32(self, from: *const f32) -> Self::F;

    /// Reads and widens `LANES` floats.
    ///
    /// # Safety
    /// They can be read at `from`.
    unsafe fn load_f16(self, from: *const f16) -> Self::F;

    /// Reads `LANES` bytes as integers.
    ///
    /// # Safety
    /// They can be read at `from`.
    unsafe fn load_u8(self, from: *const u8) -> Self::I;

    /// Writes `LANES` floats.
    ///
    /// # Safety
    /// They can be written at `to`.
    unsafe fn store(self, to: *mut f32, v: Self::F);

    /// `a · b`.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;

    /// `a · b + c`, rounded once.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;

    /// Asks for the cache line at `from`, which need not exist.
    fn prefetch(self, from: *const u8);
}
