//! `x · Wᵀ` with `W` in `f32`, `f16` or `bf16`, widened in registers.

use std::ops::Range;

use burn_flex::FlexTensor;
use burn_tensor::{Bytes, DType, TensorData};
use half::{bf16, f16};

use super::simd::{Isa, Kernel, Simd, StoredFloat};
use super::tiles::{self, BLOCK, COLUMNS, Part, ROW_BLOCK, STREAMS, steps};
use super::{dims, slice, tensor, threads};

/// The same data, copied if its bytes do not lie as its type demands.
pub fn aligned(data: TensorData) -> TensorData {
    if (data.bytes.as_ptr() as usize).is_multiple_of(data.dtype.size()) {
        return data;
    }
    TensorData { bytes: Bytes::from_bytes_vec(data.bytes.to_vec()), ..data }
}

/// `x [rows, in]`, `weight [out, in]`, result `[rows, out]`.
pub fn linear(x: &FlexTensor, weight: &FlexTensor) -> FlexTensor {
    let isa = Isa::best();
    let (rows, [out, _]) = (dims(x)[0], dims(weight));
    let x = slice::<f32>(x);
    let y = match weight.dtype() {
        DType::F16 => product::<f16>(isa, x, slice(weight), rows, out),
        DType::BF16 => product::<bf16>(isa, x, slice(weight), rows, out),
        _ => product::<f32>(isa, x, slice(weight), rows, out),
    };
    tensor(y, [rows, out])
}

/// Rows `ids` of `weight [out, in]` as `f32 [ids, in]`.
pub fn rows(weight: &FlexTensor, ids: &FlexTensor) -> FlexTensor {
    let ids = slice::<i32>(ids);
    let [out, width] = dims(weight);
    let mut y = vec![0.0; ids.len() * width];
    if width > 0 {
        for (row, &id) in y.chunks_exact_mut(width).zip(ids) {
            assert!(
                usize::try_from(id).is_ok_and(|id| id < out),
                "dense_rows: row {id} of a matrix with {out} rows"
            );
            let start = id as usize * width;
            match weight.dtype() {
                DType::F16 => widen::<f16>(&slice(weight)[start..start + width], row),
                DType::BF16 => widen::<bf16>(&slice(weight)[start..start + width], row),
                _ => row.copy_from_slice(&slice(weight)[start..start + width]),
            }
        }
    }
    tensor(y, [ids.len(), width])
}

/// The whole of `weight` as `f32`.
pub fn to_f32(weight: FlexTensor) -> FlexTensor {
    let [out, width] = dims(&weight);
    let mut y = vec![0.0; if weight.dtype() == DType::F32 { 0 } else { out * width }];
    match weight.dtype() {
        DType::F16 => widen::<f16>(slice(&weight), &mut y),
        DType::BF16 => widen::<bf16>(slice(&weight), &mut y),
        _ => return weight,
    }
    tensor(y, [out, width])
}

fn widen<W: StoredFloat>(from: &[W], to: &mut [f32]) {
    const CHUNK: usize = 1 << 16;
    threads::for_each_chunk(to, CHUNK, |i, to| {
        Isa::best().run(Widen { from: &from[i * CHUNK..][..to.len()], to });
    });
}

struct Widen<'a, W> {
    from: &'a [W],
    to: &'a mut [f32],
}

impl<W: StoredFloat> Kernel for Widen<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        widen_into(s, self.from, self.to);
    }
}

/// Widens `from` into `to`, of the same length.
#[inline(always)]
pub fn widen_into<S: Simd, W: StoredFloat>(s: S, from: &[W], to: &mut [f32]) {
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

/// `x [rows, in]` times `weight [out, in]` transposed, `[rows, out]`.
pub fn product<W: StoredFloat>(
    isa: Isa,
    x: &[f32],
    weight: &[W],
    rows: usize,
    out: usize,
) -> Vec<f32> {
    tiles::product(x, [rows, out], |part| {
        assert_eq!(weight.len(), out * part.width, "dense_linear: the weight has {out} rows");
        isa.run(DensePart { part, weight });
    })
}

/// A part of a product with plain floats.
struct DensePart<'a, W> {
    part: Part<'a>,
    /// `[out, width]`.
    weight: &'a [W],
}

impl<W: StoredFloat> Kernel for DensePart<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let part = &self.part;
        if part.rows.len() <= S::TILE_ROWS {
            return self.stream(s);
        }
        let widens = size_of::<W>() < size_of::<f32>() && !S::WIDENS_FREELY;
        let mut widened = vec![0.0; if widens { COLUMNS * BLOCK } else { 0 }];
        for rows in steps(&part.rows, ROW_BLOCK) {
            for block in steps(&(0..part.width), BLOCK) {
                for columns in steps(&part.columns, COLUMNS) {
                    // SAFETY: `widen` and `stored` check the lengths of what they point to.
                    unsafe {
                        if widens {
                            let wide = self.widen(s, &columns, &block, &mut widened);
                            part.row_tiles(s, &rows, &block, (wide, &columns));
                        } else {
                            let stored = self.stored(&columns, &block);
                            part.row_tiles(s, &rows, &block, (stored, &columns));
                        }
                    }
                }
            }
        }
    }
}

impl<W: StoredFloat> DensePart<'_, W> {
    /// Few rows: memory is the limit, so each stored row is read from its first element to its last.
    #[inline(always)]
    fn stream<S: Simd>(&self, s: S) {
        let part = &self.part;
        let blocks = || steps(&(0..part.width), BLOCK);
        let mut rest = part.columns.clone();
        if part.rows.len() == 1 && S::TILE_ROWS > 1 {
            rest.start = rest.end - rest.len() % STREAMS;
            for columns in steps(&(part.columns.start..rest.start), STREAMS) {
                for block in blocks() {
                    let stored = (self.stored::<STREAMS>(&columns, &block), &columns);
                    // SAFETY: `stored` checks the lengths of what it points to.
                    unsafe { part.tile::<S, W, 1, STREAMS>(s, part.rows.start, &block, stored) };
                }
            }
        }
        for columns in steps(&rest, COLUMNS) {
            for block in blocks() {
                let stored = (self.stored(&columns, &block), &columns);
                // SAFETY: as above.
                unsafe { part.row_tiles(s, &part.rows, &block, stored) };
            }
        }
    }

    /// A block of one stored row.
    #[inline(always)]
    fn stored_row(&self, column: usize, block: &Range<usize>) -> &[W] {
        &self.weight[column * self.part.width + block.start..][..block.len()]
    }

    /// A block of each of the stored rows; null after the last of them.
    #[inline(always)]
    fn stored<const C: usize>(
        &self,
        columns: &Range<usize>,
        block: &Range<usize>,
    ) -> [*const W; C] {
        let mut pointers = [std::ptr::null(); C];
        for (pointer, column) in pointers.iter_mut().zip(columns.clone()) {
            *pointer = self.stored_row(column, block).as_ptr();
        }
        pointers
    }

    /// The same, widened into a buffer `[COLUMNS, BLOCK]` that several tiles of rows read.
    #[inline(always)]
    fn widen<S: Simd>(
        &self,
        s: S,
        columns: &Range<usize>,
        block: &Range<usize>,
        widened: &mut [f32],
    ) -> [*const f32; COLUMNS] {
        let mut pointers = [std::ptr::null(); COLUMNS];
        let buffers = widened.chunks_exact_mut(BLOCK).zip(columns.clone());
        for (pointer, (to, column)) in pointers.iter_mut().zip(buffers) {
            widen_into(s, self.stored_row(column, block), &mut to[..block.len()]);
            *pointer = to.as_ptr();
        }
        pointers
    }
}

#[cfg(test)]
mod tests {
    use burn_tensor::{ElementConversion, cast::ToElement};

    use super::*;

    /// Numbers in −1 .. 1 that have no pattern.
    fn numbers(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9E37_79B9) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as f32 / 2_147_483_648.0 - 1.0
        };
        (0..len).map(|_| next()).collect()
    }

    fn check<W: StoredFloat + ToElement>(rows: usize, out: usize, width: usize) {
        let x = numbers(rows * width, 1);
        let weight: Vec<W> = numbers(out * width, 2).into_iter().map(|w| w.elem()).collect();
        for isa in Isa::available() {
            let y = product(isa, &x, &weight, rows, out);
            for (i, &y) in y.iter().enumerate() {
                let (row, column) = (i / out, i % out);
                let products = (0..width)
                    .map(|k| f64::from(x[row * width + k]) * weight[column * width + k].to_f64());
                let (exact, size) =
                    products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()));
                let error = (f64::from(y) - exact).abs();
                assert!(
                    error <= 1e-6 * size,
                    "{} {rows}x{out}x{width} [{row}, {column}]: {y}, exact {exact}",
                    isa.name()
                );
            }
            for row in 0..rows {
                let alone = product(isa, &x[row * width..][..width], &weight, 1, out);
                assert_eq!(alone, y[row * out..][..out], "{} row {row} of {rows}", isa.name());
            }
        }
    }

    #[test]
    fn every_instruction_set_gives_the_product_and_the_same_bits_for_a_row_alone() {
        for rows in [1, 2, 3, 5, 6, 7, 8, 13, 33, 49, 100] {
            for (out, width) in [(1, 1), (3, 7), (131, 64), (9, 172), (7, 2048), (6, 4101)] {
                check::<f32>(rows, out, width);
                check::<f16>(rows, out, width);
                check::<bf16>(rows, out, width);
            }
        }
    }

    #[test]
    fn parallel_products_are_the_same_bits_on_any_number_of_threads() {
        let (out, width) = (131, 400);
        let weight: Vec<bf16> = numbers(out * width, 4).into_iter().map(bf16::from_f32).collect();
        for rows in [1, 7, 300] {
            let x = numbers(rows * width, 3);
            let on = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| product(Isa::best(), &x, &weight, rows, out))
            };
            let one = on(1);
            for threads in [2, 3, 8] {
                assert_eq!(one, on(threads), "{threads} threads, {rows} rows");
            }
        }
    }
}
