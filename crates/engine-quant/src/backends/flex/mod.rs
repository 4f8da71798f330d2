//! Products on the CPU.

mod dense;
pub mod simd;

use burn_flex::{Flex, FlexTensor};
use burn_tensor::{DType, Int, Tensor, TensorData, TensorPrimitive};

use crate::QuantOps;

impl QuantOps for Flex {
    fn dense_upload(data: TensorData, _device: &Self::Device) -> Tensor<Self, 2> {
        float_tensor(FlexTensor::from_data(dense::aligned(data)))
    }

    fn dense_linear(x: Tensor<Self, 2>, weight: &Tensor<Self, 2>) -> Tensor<Self, 2> {
        let x = contiguous(x.cast(DType::F32).into_primitive().tensor());
        let weight = contiguous(weight.clone().into_primitive().tensor());
        float_tensor(dense::linear(&x, &weight))
    }

    fn dense_rows(weight: &Tensor<Self, 2>, ids: Tensor<Self, 1, Int>) -> Tensor<Self, 2> {
        let weight = contiguous(weight.clone().into_primitive().tensor());
        let ids = contiguous(ids.cast(DType::I32).into_primitive());
        float_tensor(dense::rows(&weight, &ids))
    }

    fn dense_to_f32(weight: &Tensor<Self, 2>) -> Tensor<Self, 2> {
        let weight = contiguous(weight.clone().into_primitive().tensor());
        float_tensor(dense::to_f32(weight))
    }
}

fn float_tensor(tensor: FlexTensor) -> Tensor<Flex, 2> {
    Tensor::from_primitive(TensorPrimitive::Float(tensor))
}

/// The tensor itself where its elements lie one after the other, otherwise a copy that does.
fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.layout().contiguous_offsets().is_some() { tensor } else { tensor.to_contiguous() }
}
