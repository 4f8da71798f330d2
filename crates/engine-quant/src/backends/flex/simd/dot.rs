use super::{Simd, StoredFloat};

/// The dot products of `R` rows of activations with `O` stored rows, `len` elements each.
///
/// Every product has the order of sums that the module states, whatever `R` and `O` are.
///
/// # Safety
/// `len` elements can be read at each of the pointers.
#[inline(always)]
pub unsafe fn dot_tile<S: Simd, W: StoredFloat, const R: usize, const O: usize>(
    s: S,
    x: [*const f32; R],
    w: [*const W; O],
    len: usize,
) -> [[f32; O]; R] {
    let zero = s.splat(0.0);
    let mut sums = [[zero; O]; R];
    let whole = len - len % S::LANES;
    let mut k = 0;
    while k < whole {
        let mut stored = [zero; O];
        for o in 0..O {
            // SAFETY: `k + LANES <= len`, and the caller vouches for `len` elements.
            stored[o] = unsafe { W::load(s, w[o].add(k)) };
        }
        for r in 0..R {
            // SAFETY: as above.
            let row = unsafe { s.load(x[r].add(k)) };
            for o in 0..O {
                sums[r][o] = s.mul_add(row, stored[o], sums[r][o]);
            }
        }
        k += S::LANES;
    }
    if whole < len {
        let mut stored = [zero; O];
        for o in 0..O {
            // SAFETY: `len - whole` elements are left at `whole`.
            stored[o] = unsafe { W::load_partial(s, w[o].add(whole), len - whole) };
        }
        for r in 0..R {
            // SAFETY: as above.
            let row = unsafe { s.load_partial(x[r].add(whole), len - whole) };
            for o in 0..O {
                sums[r][o] = s.mul_add(row, stored[o], sums[r][o]);
            }
        }
    }
    sum_tile(s, sums)
}

/// The sum of each vector's lanes.
#[inline(always)]
pub(crate) fn sum_tile<S: Simd, const R: usize, const O: usize>(
    s: S,
    sums: [[S::V; O]; R],
) -> [[f32; O]; R] {
    let mut result = [[0.0; O]; R];
    for r in 0..R {
        let mut o = 0;
        while o + 4 <= O {
            let four = s.sum4([sums[r][o], sums[r][o + 1], sums[r][o + 2], sums[r][o + 3]]);
            result[r][o..o + 4].copy_from_slice(&four);
            o += 4;
        }
        while o < O {
            result[r][o] = s.sum(sums[r][o]);
            o += 1;
        }
    }
    result
}

/// The dot product of two slices of equal length, in the module's order of sums.
#[inline(always)]
pub fn dot<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "dot: the slices differ in length");
    // SAFETY: both slices have this many elements.
    unsafe { dot_tile(s, [a.as_ptr()], [b.as_ptr()], a.len())[0][0] }
}
