//! Matrices of `f32`, `f16` or `bf16`.

use burn_flex::FlexTensor;
use burn_tensor::{Bytes, DType, TensorData};
use half::{bf16, f16};

use super::simd::{Isa, Kernel, Simd, StoredFloat, widen_into};
use super::{dims, floats, slice, tensor, threads};
use crate::Activations;

/// The same data, copied if its bytes do not lie as its type demands.
pub fn aligned(data: TensorData) -> TensorData {
    if (data.bytes.as_ptr() as usize).is_multiple_of(data.dtype.size()) {
        return data;
    }
    TensorData { bytes: Bytes::from_bytes_vec(data.bytes.to_vec()), ..data }
}

/// What products with `weight` round activations to.
pub fn activations(weight: &FlexTensor, wanted: Activations) -> Activations {
    let rounds = weight.dtype() == DType::BF16 && floats::multiplies_bf16();
    match wanted {
        Activations::Bits16 | Activations::Bits8 if rounds => Activations::Bits16,
        _ => Activations::F32,
    }
}

/// `x [rows, in]`, `weight [out, in]`, result `[rows, out]`.
pub fn linear(x: &FlexTensor, weight: &FlexTensor, activations: Activations) -> FlexTensor {
    let isa = Isa::best();
    let shape = [dims(x)[0], dims(weight)[0]];
    let x = slice::<f32>(x);
    let y = match weight.dtype() {
        DType::F16 => floats::product::<f16>(isa, x, slice(weight), shape),
        DType::BF16 if activations != Activations::F32 => {
            floats::product_bf16(x, slice(weight), shape)
        }
        DType::BF16 => floats::product::<bf16>(isa, x, slice(weight), shape),
        _ => floats::product::<f32>(isa, x, slice(weight), shape),
    };
    tensor(y, shape)
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
