//! CubeCL kernels, one source for CUDA and wgpu.
//!
//! No kernel uses plane operations, 64-bit integers or a 16-bit float type, so every runtime that
//! CubeCL has can run them.

mod dense;

use burn_cubecl::{
    BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement, kernel, tensor::CubeTensor,
};
use burn_tensor::{DType, Int, Tensor, TensorData, TensorPrimitive};
use cubecl::prelude::*;

use crate::QuantOps;

impl<R, F, I, BT> QuantOps for CubeBackend<R, F, I, BT>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    fn dense_upload(data: TensorData, device: &Self::Device) -> Tensor<Self, 2> {
        into_floats(dense::upload(data, device))
    }

    fn dense_linear(x: Tensor<Self, 2>, weight: &Tensor<Self, 2>) -> Tensor<Self, 2> {
        let x = contiguous(x.into_primitive().tensor(), DType::F32);
        into_floats(dense::linear(x, stored(weight)))
    }

    fn dense_rows(weight: &Tensor<Self, 2>, ids: Tensor<Self, 1, Int>) -> Tensor<Self, 2> {
        let ids = contiguous(ids.into_primitive(), DType::I32);
        into_floats(dense::rows(stored(weight), ids))
    }

    fn dense_to_f32(weight: &Tensor<Self, 2>) -> Tensor<Self, 2> {
        into_floats(dense::widen(stored(weight)))
    }
}

/// The tensor with `dtype` elements, row after row without gaps.
fn contiguous<R: CubeRuntime>(tensor: CubeTensor<R>, dtype: DType) -> CubeTensor<R> {
    kernel::into_contiguous(kernel::cast(tensor, dtype))
}

/// The primitive of a matrix that [`dense::upload`] made.
fn stored<R, F, I, BT>(weight: &Tensor<CubeBackend<R, F, I, BT>, 2>) -> CubeTensor<R>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    weight.clone().into_primitive().tensor()
}

fn into_floats<R, F, I, BT, const D: usize>(
    tensor: CubeTensor<R>,
) -> Tensor<CubeBackend<R, F, I, BT>, D>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    Tensor::from_primitive(TensorPrimitive::Float(tensor))
}

/// At least `cubes` cubes, spread over two dimensions: one dimension holds 65535 of them.
/// Kernels number them with `CUBE_POS` and end those that are too many.
fn cube_grid(cubes: usize) -> CubeCount {
    let columns = cubes.min(32_768);
    CubeCount::Static(columns as u32, cubes.div_ceil(columns.max(1)) as u32, 1)
}
