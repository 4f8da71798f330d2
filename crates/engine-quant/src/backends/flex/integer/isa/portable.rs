use half::f16;

use super::{Integers, Kernel};

const LANES: usize = 8;

/// Eight lanes in an array, which the compiler turns into NEON or SSE2.
#[derive(Clone, Copy)]
pub struct Portable(());

impl Portable {
    pub fn new() -> Self {
        Self(())
    }
}

#[inline(never)]
fn call<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Portable::new())
}

#[inline(always)]
fn lanes<T: Copy + Default>(f: impl Fn(usize) -> T) -> [T; LANES] {
    let mut out = [T::default(); LANES];
    for (l, lane) in out.iter_mut().enumerate() {
        *lane = f(l);
    }
    out
}

#[inline(always)]
fn byte(lane: i32, i: usize) -> u8 {
    (lane >> (8 * i)) as u8
}

impl Integers for Portable {
    const LANES: usize = LANES;
    const DIGITS: usize = 1;
    const ROWS: usize = 2;
    const VECTORS: usize = 1;
    type I = [i32; LANES];
    type F = [f32; LANES];
    type Factors = [i32; LANES];

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        call(kernel)
    }

    #[inline(always)]
    fn splat(self, x: i32) -> Self::I {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn load_codes(self, from: *const u8) -> Self::I {
        // SAFETY: the caller vouches for the bytes.
        let bytes = unsafe { from.cast::<[[u8; 4]; LANES]>().read() };
        lanes(|l| i32::from_le_bytes(bytes[l]))
    }

    #[inline(always)]
    fn spread(self, codes: Self::I) -> Self::I {
        codes
    }

    #[inline(always)]
    unsafe fn load_digits(self, from: *const u32) -> Self::I {
        // SAFETY: the caller vouches for the word.
        [unsafe { from.cast::<i32>().read() }; LANES]
    }

    #[inline(always)]
    fn low_halves(self, codes: Self::I) -> Self::I {
        lanes(|l| codes[l] & 0x0f0f_0f0f)
    }

    #[inline(always)]
    fn high_halves(self, codes: Self::I) -> Self::I {
        lanes(|l| codes[l] >> 4 & 0x0f0f_0f0f)
    }

    #[inline(always)]
    fn dot(self, mut sums: Self::I, codes: Self::I, digits: Self::I) -> Self::I {
        for i in 0..4 {
            let digit = i32::from(byte(digits[0], i) as i8);
            for l in 0..LANES {
                sums[l] = sums[l].wrapping_add(i32::from(byte(codes[l], i)) * digit);
            }
        }
        sums
    }

    #[inline(always)]
    fn join(self, high: Self::I, low: Self::I) -> Self::I {
        lanes(|l| (high[l] << 8).wrapping_add(low[l]))
    }

    #[inline(always)]
    fn sub_product(self, d: Self::I, a: Self::I, b: Self::I) -> Self::I {
        lanes(|l| d[l].wrapping_sub(a[l].wrapping_mul(b[l])))
    }

    #[inline(always)]
    fn to_f32(self, d: Self::I) -> Self::F {
        lanes(|l| d[l] as f32)
    }

    #[inline(always)]
    fn splat_f32(self, x: f32) -> Self::F {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn load_f32(self, from: *const f32) -> Self::F {
        // SAFETY: the caller vouches for the floats.
        unsafe { from.cast::<Self::F>().read() }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> Self::F {
        // SAFETY: the caller vouches for the floats.
        let halves = unsafe { from.cast::<[f16; LANES]>().read() };
        lanes(|l| halves[l].to_f32())
    }

    #[inline(always)]
    unsafe fn load_u8(self, from: *const u8) -> Self::I {
        // SAFETY: the caller vouches for the bytes.
        let bytes = unsafe { from.cast::<[u8; LANES]>().read() };
        lanes(|l| i32::from(bytes[l]))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, v: Self::F) {
        // SAFETY: the caller vouches for the room.
        unsafe { to.cast::<Self::F>().write(v) }
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        lanes(|l| a[l] * b[l])
    }

    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // Without the instruction this is a slow library call, once for each segment: rounding
        // twice would give other bits than everywhere else.
        lanes(|l| a[l].mul_add(b[l], c[l]))
    }

    #[inline(always)]
    fn prefetch(self, _from: *const u8) {}
}
