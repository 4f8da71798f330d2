//! `x · Wᵀ` with `W` in few bits and activations rounded to integers inside the product.
//!
//! # Arithmetic
//! Columns are cut into segments: groups of up to 256 columns, longer ones in parts of
//! 256. In each segment a token's activations become integers `q` of one, two or three digits:
//!
//! * `a = max|x| / 127`, `max|x| / 32512` or `max|x| / 4128768`, in `f32`; `q = x / a`, rounded to the
//!   nearest integer, ties to even. Digits are signed bytes, `q = 32768 · top + 256 · high + low`: the
//!   lower two are what rounding `q / 32768` leaves, and fit into 16 bits as one.
//! * `d = Σ (code − zero) · q`, exact in 32 bits for up to two digits. With three the sums of the top
//!   digit and of the rest are exact in 32 bits each, and `d` is made of them in `f32`.
//! * `y ← scale · (a · d) + y` for one segment after the other, the outer product and sum rounded
//!   once; where there are minima, `y ← min · (a · Σq) + y` follows.
//!
//! So a result has the same bits on every instruction set, in every batch, on any number of threads.
//! Each activation is off by at most `a / 2`. Where `a` would be subnormal, activations count as zero:
//! they are below 2⁻¹¹¹. A segment that holds an infinity or a NaN makes all results of its token
//! NaN, and magnitudes beyond 2⁹⁶ may give infinities earlier than sums in `f32` would.
//!
//! # Layout
//! Codes lie in [`CodeOrder::Blocks`]: a line meets four digits of a token in one instruction. Scales,
//! zero points and minima are `[blocks, groups, 16]`. Rows after the last one have scales of zero.

mod activations;
mod isa;
mod kernel;
mod layout;
mod product;

use burn_flex::{Flex, FlexTensor, Layout};
use burn_tensor::{Bytes, DType, Element, Shape, Tensor};
use half::f16;
use rayon::prelude::*;

use super::{bytes, dims, float_tensor, slice, tensor};
use crate::codes::{LINE, Lines};
use crate::{
    Activations, CodeOrder, GroupValues, Levels, PackedMatrix, PackedSpec, PackedTensors,
    SharedBytes, Zeros,
};
use isa::Isa;
use layout::{Numbers, Stored, StoredZeros, regroup};

/// Whether matrices of this format can be multiplied with integers.
pub fn supports(spec: &PackedSpec) -> bool {
    spec.levels == Levels::Steps
}

/// Whether this CPU multiplies three digits without unpacking codes to `f32` in about the time of a
/// product of `f32`, or less.
pub fn is_faster() -> bool {
    Isa::best().adds_neighbours()
}

/// Lays a matrix out for activations of 24, 16 or 8 bits; codes that lie so stay where they are.
pub fn upload(matrix: PackedMatrix, activations: Activations) -> PackedTensors<Flex> {
    let matrix = matrix.into_order(CodeOrder::Blocks);
    let spec = &matrix.spec;
    let (fixed_zero, zeros) = match &matrix.zeros {
        Zeros::Fixed(zero) => (*zero, None),
        Zeros::PerGroup(zeros) => (0, Some(regroup(spec, zeros))),
    };
    PackedTensors {
        activations,
        spec: *spec,
        codes: bytes(if matrix.codes.is_aligned(LINE) {
            matrix.codes
        } else {
            aligned(&matrix.codes)
        }),
        scales: group_values(spec, &matrix.scales),
        fixed_zero,
        zeros: zeros.map(|zeros| Tensor::from_primitive(vector(zeros))),
        mins: matrix.mins.as_ref().map(|mins| group_values(spec, mins)),
    }
}

/// A copy that begins a cache line.
fn aligned(codes: &[u8]) -> SharedBytes {
    let mut lines = Lines::zeroed(codes.len());
    lines.bytes().copy_from_slice(codes);
    lines.into_shared()
}

fn group_values(spec: &PackedSpec, values: &GroupValues) -> Tensor<Flex, 1> {
    float_tensor(match values {
        GroupValues::F16(values) => vector(regroup(spec, values)),
        GroupValues::F32(values) => vector(regroup(spec, values)),
    })
}

fn vector<E: Element>(values: Vec<E>) -> FlexTensor {
    let layout = Layout::contiguous(Shape::from([values.len()]));
    FlexTensor::new(Bytes::from_elems(values), layout, E::dtype())
}

/// `x [rows, in]`, result `[rows, out]`.
pub fn linear(x: &FlexTensor, weight: &PackedTensors<Flex>) -> FlexTensor {
    let shape = [dims(x)[0], weight.spec.shape[0]];
    let tensors = Tensors::of(weight);
    let (isa, x, stored) = (Isa::best(), slice::<f32>(x), tensors.stored());
    let y = match weight.activations {
        Activations::Bits8 => product::product::<1>(isa, x, &stored, shape[0]),
        Activations::Bits16 => product::product::<2>(isa, x, &stored, shape[0]),
        Activations::Bits24 | Activations::F32 => product::product::<3>(isa, x, &stored, shape[0]),
    };
    tensor(y, shape)
}

/// Rows `ids` as `f32 [ids, in]`.
pub fn rows(weight: &PackedTensors<Flex>, ids: &FlexTensor) -> FlexTensor {
    let [out, width] = weight.spec.shape;
    let ids = slice::<i32>(ids);
    let tensors = Tensors::of(weight);
    let stored = tensors.stored();
    let mut y = vec![0.0; ids.len() * width];
    for (&id, row) in ids.iter().zip(y.chunks_exact_mut(width)) {
        assert!(
            usize::try_from(id).is_ok_and(|id| id < out),
            "packed_rows: row {id} of a matrix with {out} rows"
        );
        stored.read_row(id as usize, row);
    }
    tensor(y, [ids.len(), width])
}

/// The whole matrix as `f32 [out, in]`.
pub fn to_f32(weight: &PackedTensors<Flex>) -> FlexTensor {
    let [out, width] = weight.spec.shape;
    let tensors = Tensors::of(weight);
    let stored = tensors.stored();
    let mut y = vec![0.0; out * width];
    y.par_chunks_exact_mut(width).enumerate().for_each(|(row, to)| stored.read_row(row, to));
    tensor(y, weight.spec.shape)
}

/// The primitives behind [`PackedTensors`].
struct Tensors {
    spec: PackedSpec,
    codes: FlexTensor,
    scales: FlexTensor,
    fixed_zero: u8,
    zeros: Option<FlexTensor>,
    mins: Option<FlexTensor>,
}

impl Tensors {
    fn of(weight: &PackedTensors<Flex>) -> Self {
        let float = |values: &Tensor<Flex, 1>| values.clone().into_primitive().tensor();
        Self {
            spec: weight.spec,
            codes: weight.codes.clone().into_primitive(),
            scales: float(&weight.scales),
            fixed_zero: weight.fixed_zero,
            zeros: weight.zeros.clone().map(Tensor::into_primitive),
            mins: weight.mins.as_ref().map(float),
        }
    }

    fn stored(&self) -> Stored<'_> {
        let numbers = |tensor| match FlexTensor::dtype(tensor) {
            DType::F16 => Numbers::F16(slice::<f16>(tensor)),
            _ => Numbers::F32(slice(tensor)),
        };
        let zeros = match &self.zeros {
            Some(zeros) => StoredZeros::PerGroup(slice(zeros)),
            None => StoredZeros::Fixed(self.fixed_zero),
        };
        Stored::new(
            self.spec,
            slice(&self.codes),
            numbers(&self.scales),
            (zeros, self.mins.as_ref().map(numbers)),
        )
    }
}

#[cfg(test)]
mod tests;
