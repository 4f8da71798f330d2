//! `x · Wᵀ` with `W` in few bits, unpacked in registers.
//!
//! Each code becomes exactly the `f32` that [`PackedMatrix::dequantize`] gives and enters the same
//! sums as a stored `f32`: the product has the bits of the dense product of that matrix.
//!
//! Codes of four bits are looked up in a table of 16 numbers, computed once for each group; codes of
//! eight bits are converted. Scales, zero points and minima of a block of a row are widened to `f32`
//! first, where they lie as formats store them.

mod product;
mod unpack;
mod walk;

use burn_flex::{Flex, FlexTensor, Layout};
use burn_tensor::{Bytes, DType, Element, Shape, Tensor};
use half::f16;

use super::simd::{Isa, Simd, widen_into};
use super::tiles::block_len;
use super::{bytes, dims, float_tensor, slice, tensor};
use crate::{
    Activations, Bits, CodeOrder, GroupValues, Levels, PackedMatrix, PackedSpec, PackedTensors,
    Zeros,
};
use product::product;
use walk::{EightBit, Format, FourBit};

/// Columns of a row that are summed before the next ones begin.
const BLOCK: usize = block_len::<f32>();

/// Keeps all numbers in the types they come in.
pub fn upload(matrix: PackedMatrix) -> PackedTensors<Flex> {
    let matrix = matrix.into_order(CodeOrder::Rows);
    let (fixed_zero, zeros) = match matrix.zeros {
        Zeros::Fixed(zero) => (zero, None),
        Zeros::PerGroup(zeros) => (0, Some(bytes(zeros.into()))),
    };
    PackedTensors {
        activations: Activations::F32,
        spec: matrix.spec,
        codes: bytes(matrix.codes),
        scales: group_values(matrix.scales),
        fixed_zero,
        zeros,
        mins: matrix.mins.map(group_values),
    }
}

fn group_values(values: GroupValues) -> Tensor<Flex, 1> {
    float_tensor(match values {
        GroupValues::F16(values) => vector(values),
        GroupValues::F32(values) => vector(values),
    })
}

fn vector<E: Element>(values: Vec<E>) -> FlexTensor {
    let layout = Layout::contiguous(Shape::from([values.len()]));
    FlexTensor::new(Bytes::from_elems(values), layout, E::dtype())
}

/// `x [rows, in]`, result `[rows, out]`.
pub fn linear(x: &FlexTensor, weight: &PackedTensors<Flex>) -> FlexTensor {
    let (isa, shape) = (Isa::best(), [dims(x)[0], weight.spec.shape[0]]);
    let tensors = Tensors::of(weight);
    tensor(product(isa, slice(x), &tensors.stored(), shape[0]), shape)
}

/// Rows `ids` as `f32 [ids, in]`.
pub fn rows(weight: &PackedTensors<Flex>, ids: &FlexTensor) -> FlexTensor {
    let [out, width] = weight.spec.shape;
    let ids = slice::<i32>(ids);
    let tensors = Tensors::of(weight);
    let row_of = |i: usize| {
        let id = ids[i];
        assert!(
            usize::try_from(id).is_ok_and(|id| id < out),
            "packed_rows: row {id} of a matrix with {out} rows"
        );
        id as usize
    };
    let y = unpack::rows(Isa::best(), &tensors.stored(), ids.len(), row_of);
    tensor(y, [ids.len(), width])
}

/// The whole matrix as `f32 [out, in]`.
pub fn to_f32(weight: &PackedTensors<Flex>) -> FlexTensor {
    let tensors = Tensors::of(weight);
    let y = unpack::rows(Isa::best(), &tensors.stored(), weight.spec.shape[0], |row| row);
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
            DType::F16 => Numbers::F16(slice(tensor)),
            _ => Numbers::F32(slice(tensor)),
        };
        let zeros = match &self.zeros {
            Some(zeros) => StoredZeros::PerGroup(slice(zeros)),
            None => StoredZeros::Fixed(f32::from(self.fixed_zero)),
        };
        Stored::new(
            self.spec,
            slice(&self.codes),
            numbers(&self.scales),
            (zeros, self.mins.as_ref().map(numbers)),
        )
    }
}

/// Numbers of the groups, in the type they are stored in.
#[derive(Clone, Copy)]
enum Numbers<'a> {
    F16(&'a [f16]),
    F32(&'a [f32]),
}

impl Numbers<'_> {
    fn len(self) -> usize {
        match self {
            Self::F16(values) => values.len(),
            Self::F32(values) => values.len(),
        }
    }

    fn get(self, i: usize) -> f32 {
        match self {
            Self::F16(values) => values[i].to_f32(),
            Self::F32(values) => values[i],
        }
    }

    /// Widens the numbers from `first` on into `to`.
    #[inline(always)]
    fn read<S: Simd>(self, s: S, first: usize, to: &mut [f32]) {
        match self {
            Self::F16(values) => widen_into(s, &values[first..][..to.len()], to),
            Self::F32(values) => to.copy_from_slice(&values[first..][..to.len()]),
        }
    }
}

/// The codes of zero.
#[derive(Clone, Copy)]
enum StoredZeros<'a> {
    Fixed(f32),
    PerGroup(&'a [u8]),
}

impl StoredZeros<'_> {
    fn get(self, group: usize) -> f32 {
        match self {
            Self::Fixed(zero) => zero,
            Self::PerGroup(zeros) => f32::from(zeros[group]),
        }
    }
}

/// The levels of four-bit codes that count steps.
const STEPS: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

/// A packed matrix where it is stored, all lengths checked.
struct Stored<'a> {
    spec: PackedSpec,
    /// Columns of a group, the last of a row perhaps shorter; at most those of a row.
    group_size: usize,
    /// `[out, row_bytes]`.
    codes: &'a [u8],
    /// `[out, groups]`, or one.
    scales: Numbers<'a>,
    zeros: StoredZeros<'a>,
    /// `[out, groups]`, or one.
    mins: Option<Numbers<'a>>,
}

impl<'a> Stored<'a> {
    fn new(
        spec: PackedSpec,
        codes: &'a [u8],
        scales: Numbers<'a>,
        (zeros, mins): (StoredZeros<'a>, Option<Numbers<'a>>),
    ) -> Self {
        let [out, width] = spec.shape;
        let groups = spec.num_groups();
        assert_eq!(codes.len(), out * spec.row_bytes(), "packed matrix: bytes of codes");
        assert_eq!(scales.len(), groups, "packed matrix: scales");
        assert!(mins.is_none_or(|mins| mins.len() == groups), "packed matrix: minima");
        if let StoredZeros::PerGroup(zeros) = zeros {
            assert_eq!(zeros.len(), groups, "packed matrix: zero points");
        }
        assert!(
            spec.bits == Bits::Four || spec.levels == Levels::Steps,
            "packed matrix: codes of eight bits count steps, tables have 16 levels"
        );
        let group_size = if spec.per_tensor { width } else { spec.group_size.min(width) };
        Self { spec, group_size, codes, scales, zeros, mins }
    }

    /// Whether no vector spans two groups.
    fn has_whole_vectors<S: Simd>(&self) -> bool {
        self.group_size.is_multiple_of(S::LANES) || self.group_size >= self.spec.shape[1]
    }

    /// The 16 levels of four-bit codes less `zero`: the first and the last `LANES` of them.
    #[inline(always)]
    fn centred<S: Simd>(&self, s: S, zero: f32) -> [S::V; 2] {
        let levels = match self.spec.levels {
            Levels::Table(levels) => levels,
            Levels::Steps => STEPS,
        };
        let zero = s.splat(zero);
        // SAFETY: there are 16 levels, and vectors have 8 or 16 lanes.
        let [first, last] =
            unsafe { [s.load(levels.as_ptr()), s.load(levels.as_ptr().add(16 - S::LANES))] };
        [s.sub(first, zero), s.sub(last, zero)]
    }

    /// Runs a computation with the format's unpacking compiled into it.
    #[inline(always)]
    fn with_format<S: Simd, T: WithFormat<S>>(&self, s: S, task: T) {
        match (self.spec.bits, self.zeros, self.mins) {
            (Bits::Four, StoredZeros::Fixed(zero), None) => {
                task.run(s, FourBit::<S, false, false>(self.centred(s, zero)));
            }
            (Bits::Four, _, None) => task.run(s, FourBit::<S, true, false>(self.centred(s, 0.0))),
            (Bits::Four, _, Some(_)) => task.run(s, FourBit::<S, true, true>(self.centred(s, 0.0))),
            (Bits::Eight, StoredZeros::Fixed(zero), None) => {
                task.run(s, EightBit::<S, false, false>(s.splat(zero)));
            }
            (Bits::Eight, _, None) => task.run(s, EightBit::<S, true, false>(s.splat(0.0))),
            (Bits::Eight, _, Some(_)) => task.run(s, EightBit::<S, true, true>(s.splat(0.0))),
        }
    }
}

/// A computation that is compiled for each format.
trait WithFormat<S: Simd> {
    fn run<F: Format<S>>(self, s: S, format: F);
}

/// The lanes of a vector.
#[inline(always)]
fn lanes<S: Simd>(s: S, v: S::V) -> [f32; 16] {
    let mut lanes = [0.0; 16];
    // SAFETY: vectors have 8 or 16 lanes.
    unsafe { s.store(lanes.as_mut_ptr(), v) };
    lanes
}

#[cfg(test)]
mod tests;
