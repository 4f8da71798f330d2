use half::{bf16, f16};

use super::Simd;

const LANES: usize = 8;

/// Eight lanes in an array, which the compiler turns into NEON or SSE2.
#[derive(Clone, Copy)]
pub struct Portable(());

impl Portable {
    pub fn new() -> Self {
        Self(())
    }
}

/// `a · b + c`. Without the instruction, `f32::mul_add` would be a slow library call.
#[inline(always)]
fn mul_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
        a.mul_add(b, c)
    } else {
        a * b + c
    }
}

/// The exact value of a half float, subnormals included, without branches: its bits, moved to
/// their place in an `f32`, are 2⁻¹¹² of it.
#[inline(always)]
fn widen_f16(x: f16) -> f32 {
    let bits = u32::from(x.to_bits());
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits((112 + 127) << 23);
    let special = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(magnitude.to_bits() | special | (bits & 0x8000) << 16)
}

#[inline(always)]
fn map(v: [f32; LANES], f: impl Fn(f32) -> f32) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    for l in 0..LANES {
        out[l] = f(v[l]);
    }
    out
}

#[inline(always)]
fn zip(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    for l in 0..LANES {
        out[l] = f(a[l], b[l]);
    }
    out
}

impl Simd for Portable {
    const LANES: usize = LANES;
    const TILE_ROWS: usize = if cfg!(target_arch = "aarch64") { 3 } else { 1 };
    const WIDENS_FREELY: bool = false;
    type V = [f32; LANES];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::V {
        // SAFETY: the caller vouches for the floats; arrays are aligned like their elements.
        unsafe { from.cast::<Self::V>().read() }
    }

    #[inline(always)]
    unsafe fn load_partial(self, from: *const f32, len: usize) -> Self::V {
        let mut v = [0.0; LANES];
        for (l, lane) in v.iter_mut().enumerate().take(len) {
            // SAFETY: the caller vouches for `len` floats.
            *lane = unsafe { from.add(l).read() };
        }
        v
    }

    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8) -> Self::V {
        // SAFETY: the caller vouches for the numbers.
        let stored = unsafe { from.cast::<[i8; LANES]>().read() };
        let mut v = [0.0; LANES];
        for l in 0..LANES {
            v[l] = f32::from(stored[l]);
        }
        v
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> Self::V {
        // SAFETY: the caller vouches for the numbers.
        let stored = unsafe { from.cast::<[f16; LANES]>().read() };
        let mut v = [0.0; LANES];
        for l in 0..LANES {
            v[l] = widen_f16(stored[l]);
        }
        v
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> Self::V {
        // SAFETY: the caller vouches for the numbers.
        let stored = unsafe { from.cast::<[bf16; LANES]>().read() };
        let mut v = [0.0; LANES];
        for l in 0..LANES {
            v[l] = f32::from_bits(u32::from(stored[l].to_bits()) << 16);
        }
        v
    }

    #[inline(always)]
    unsafe fn load_u8(self, from: *const u8) -> Self::V {
        // SAFETY: the caller vouches for the bytes.
        let bytes = unsafe { from.cast::<[u8; LANES]>().read() };
        let mut v = [0.0; LANES];
        for l in 0..LANES {
            v[l] = f32::from(bytes[l]);
        }
        v
    }

    #[inline(always)]
    unsafe fn lookup_u4(self, chunk: *const u8, vector: usize, table: [Self::V; 2]) -> Self::V {
        // SAFETY: the caller vouches for 16 bytes, two times `LANES`.
        let bytes = unsafe { chunk.add(vector % 2 * LANES).cast::<[u8; LANES]>().read() };
        let (table, shift) = (table.as_flattened(), vector / 2 * 4);
        let mut v = [0.0; LANES];
        for l in 0..LANES {
            v[l] = table[usize::from(bytes[l] >> shift & 15)];
        }
        v
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, v: Self::V) {
        // SAFETY: the caller vouches for the room.
        unsafe { to.cast::<Self::V>().write(v) }
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        let mut out = [0.0; LANES];
        for l in 0..LANES {
            out[l] = mul_add(a[l], b[l], c[l]);
        }
        out
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn select_lt(self, a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V {
        let mut out = [0.0; LANES];
        for l in 0..LANES {
            out[l] = if a[l] < b[l] { yes[l] } else { no[l] };
        }
        out
    }

    #[inline(always)]
    fn round(self, v: Self::V) -> Self::V {
        // Beyond 2²³ a float has no room for fractions: adding 1.5 · 2²³ rounds.
        const SHIFT: f32 = 12_582_912.0;
        map(v, |x| (x + SHIFT) - SHIFT)
    }

    #[inline(always)]
    fn exp2_whole(self, n: Self::V) -> Self::V {
        // The same addition leaves the whole number in the lowest bits.
        const SHIFT: f32 = 12_582_912.0;
        map(n, |n| f32::from_bits((n + SHIFT).to_bits().wrapping_add(127) << 23))
    }

    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        let [a, b, c, d] = [v[0] + v[4], v[1] + v[5], v[2] + v[6], v[3] + v[7]];
        (a + c) + (b + d)
    }

    #[inline(always)]
    fn sum4(self, v: [Self::V; 4]) -> [f32; 4] {
        [self.sum(v[0]), self.sum(v[1]), self.sum(v[2]), self.sum(v[3])]
    }
}
