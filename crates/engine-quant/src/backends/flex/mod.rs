//! Products on the CPU.

mod dense;
mod dots;
mod floats;
pub mod instruction_set;
mod integer;
mod packed;
mod panels;
pub mod peak;
pub mod simd;
pub mod threads;
mod tiles;

use burn_flex::{Flex, FlexTensor, Layout};
use burn_tensor::{Bytes, DType, Element, Int, Shape, Tensor, TensorData, TensorPrimitive};

use crate::{
    Activations, CodeOrder, PackedMatrix, PackedSpec, PackedTensors, QuantOps, SharedBytes,
};

impl QuantOps for Flex {
    /// A product of its own costs ten microseconds, in which a core reads a quarter of this.
    const MAX_JOIN_BYTES: usize = 4 << 20;

    fn exact() -> Activations {
        if integer::is_faster() { Activations::Bits24 } else { Activations::F32 }
    }

    fn dense_upload(data: TensorData, _device: &Self::Device) -> Tensor<Self, 2> {
        float_tensor(FlexTensor::from_data(dense::aligned(data)))
    }

    fn dense_activations(weight: &Tensor<Self, 2>, wanted: Activations) -> Activations {
        dense::activations(&weight.clone().into_primitive().tensor(), wanted)
    }

    fn dense_linear(
        x: Tensor<Self, 2>,
        weight: &Tensor<Self, 2>,
        rounding: Activations,
    ) -> Tensor<Self, 2> {
        let weight = contiguous(weight.clone().into_primitive().tensor());
        float_tensor(dense::linear(&activations(x), &weight, rounding))
    }

    fn dense_rows(weight: &Tensor<Self, 2>, ids: Tensor<Self, 1, Int>) -> Tensor<Self, 2> {
        let weight = contiguous(weight.clone().into_primitive().tensor());
        float_tensor(dense::rows(&weight, &numbers(ids)))
    }

    fn dense_to_f32(weight: &Tensor<Self, 2>) -> Tensor<Self, 2> {
        let weight = contiguous(weight.clone().into_primitive().tensor());
        float_tensor(dense::to_f32(weight))
    }

    fn code_order(spec: &PackedSpec, activations: Activations) -> CodeOrder {
        match activations {
            Activations::F32 => CodeOrder::Rows,
            _ if integer::supports(spec) => CodeOrder::Blocks,
            _ => CodeOrder::Rows,
        }
    }

    fn packed_upload(
        matrix: PackedMatrix,
        activations: Activations,
        _device: &Self::Device,
    ) -> PackedTensors<Self> {
        match Self::code_order(&matrix.spec, activations) {
            CodeOrder::Rows => packed::upload(matrix),
            CodeOrder::Blocks => integer::upload(matrix, activations),
        }
    }

    fn packed_linear(x: Tensor<Self, 2>, weight: &PackedTensors<Self>) -> Tensor<Self, 2> {
        float_tensor(match weight.activations {
            Activations::F32 => packed::linear(&activations(x), weight),
            _ => integer::linear(&activations(x), weight),
        })
    }

    fn packed_rows(weight: &PackedTensors<Self>, ids: Tensor<Self, 1, Int>) -> Tensor<Self, 2> {
        float_tensor(match weight.activations {
            Activations::F32 => packed::rows(weight, &numbers(ids)),
            _ => integer::rows(weight, &numbers(ids)),
        })
    }

    fn packed_to_f32(weight: &PackedTensors<Self>) -> Tensor<Self, 2> {
        float_tensor(match weight.activations {
            Activations::F32 => packed::to_f32(weight),
            _ => integer::to_f32(weight),
        })
    }
}

fn float_tensor<const D: usize>(tensor: FlexTensor) -> Tensor<Flex, D> {
    Tensor::from_primitive(TensorPrimitive::Float(tensor))
}

/// Activations as contiguous `f32`.
fn activations(x: Tensor<Flex, 2>) -> FlexTensor {
    contiguous(x.cast(DType::F32).into_primitive().tensor())
}

/// Numbers of rows as contiguous `i32`.
fn numbers(ids: Tensor<Flex, 1, Int>) -> FlexTensor {
    contiguous(ids.cast(DType::I32).into_primitive())
}

/// The tensor itself where its elements lie one after the other, otherwise a copy that does.
fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.layout().contiguous_offsets().is_some() { tensor } else { tensor.to_contiguous() }
}

/// Bytes where they lie.
fn bytes(values: SharedBytes) -> Tensor<Flex, 1, Int> {
    let layout = Layout::contiguous(Shape::from([values.len()]));
    Tensor::from_primitive(FlexTensor::new(values.into_bytes(), layout, DType::U8))
}

fn tensor(values: Vec<f32>, shape: [usize; 2]) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(Shape::from(shape)), DType::F32)
}

fn dims(tensor: &FlexTensor) -> [usize; 2] {
    let shape = tensor.layout().shape();
    [shape[0], shape[1]]
}

/// The elements of a contiguous tensor of this type.
fn slice<E: Element + bytemuck::Pod>(tensor: &FlexTensor) -> &[E] {
    let range = tensor.layout().contiguous_offsets();
    assert!(range.is_some(), "the tensor was made contiguous");
    let (start, end) = range.unwrap_or_default();
    &tensor.storage()[start..end]
}
