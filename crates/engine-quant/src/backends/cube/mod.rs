//! CubeCL kernels, one source for CUDA and wgpu.
//!
//! No kernel uses plane operations, 64-bit integers or a 16-bit float type, so every runtime that
//! CubeCL has can run them.

mod dense;
mod dense_staged;
mod fused;
mod gate;
mod packed;
mod packed_linear;
mod stage;
mod tile;

pub use gate::gate_value;

use burn_cubecl::{
    BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement, kernel, tensor::CubeTensor,
};
use burn_tensor::{DType, Int, Tensor, TensorData, TensorPrimitive};
use cubecl::prelude::*;

use crate::{Activations, Fused, PackedMatrix, PackedTensors, QuantOps, Then};
use fused::Parts;
use packed::Stored;
use tile::FEW_ROWS;

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

    fn dense_linear(
        x: Tensor<Self, 2>,
        weight: &Tensor<Self, 2>,
        _activations: Activations,
    ) -> Tensor<Self, 2> {
        let x = contiguous(x.into_primitive().tensor(), DType::F32);
        into_floats(dense::linear(x, stored(weight)))
    }

    fn dense_fused_linear(
        x: &Tensor<Self, 2>,
        weight: &Tensor<Self, 2>,
        fused: &Fused<'_, Self>,
    ) -> Option<Tensor<Self, 2>> {
        if x.dims()[0] > FEW_ROWS {
            return None;
        }
        let x = contiguous(x.clone().into_primitive().tensor(), DType::F32);
        dense_staged::few_rows(x, stored(weight), parts(fused)).map(into_floats)
    }

    fn dense_rows(weight: &Tensor<Self, 2>, ids: Tensor<Self, 1, Int>) -> Tensor<Self, 2> {
        let ids = contiguous(ids.into_primitive(), DType::I32);
        into_floats(dense::rows(stored(weight), ids))
    }

    fn dense_to_f32(weight: &Tensor<Self, 2>) -> Tensor<Self, 2> {
        into_floats(dense::widen(stored(weight)))
    }

    fn packed_upload(
        matrix: PackedMatrix,
        _activations: Activations,
        device: &Self::Device,
    ) -> PackedTensors<Self> {
        let stored = packed::upload(matrix, device);
        PackedTensors {
            spec: stored.spec,
            activations: Activations::F32,
            codes: Tensor::from_primitive(stored.codes),
            scales: into_floats(stored.scales),
            fixed_zero: stored.fixed_zero,
            zeros: stored.zeros.map(Tensor::from_primitive),
            mins: stored.mins.map(into_floats),
        }
    }

    fn packed_linear(x: Tensor<Self, 2>, weight: &PackedTensors<Self>) -> Tensor<Self, 2> {
        let x = contiguous(x.into_primitive().tensor(), DType::F32);
        into_floats(packed::linear(x, stored_packed(weight)))
    }

    fn packed_fused_linear(
        x: &Tensor<Self, 2>,
        weight: &PackedTensors<Self>,
        fused: &Fused<'_, Self>,
    ) -> Option<Tensor<Self, 2>> {
        if x.dims()[0] > FEW_ROWS {
            return None;
        }
        let x = contiguous(x.clone().into_primitive().tensor(), DType::F32);
        Some(into_floats(packed::few_rows(x, stored_packed(weight), parts(fused))))
    }

    fn packed_rows(weight: &PackedTensors<Self>, ids: Tensor<Self, 1, Int>) -> Tensor<Self, 2> {
        let ids = contiguous(ids.into_primitive(), DType::I32);
        into_floats(packed::rows(stored_packed(weight), Some(ids)))
    }

    fn packed_to_f32(weight: &PackedTensors<Self>) -> Tensor<Self, 2> {
        into_floats(packed::rows(stored_packed(weight), None))
    }
}

/// The tensor with `dtype` elements, row after row without gaps.
fn contiguous<R: CubeRuntime>(tensor: CubeTensor<R>, dtype: DType) -> CubeTensor<R> {
    kernel::into_contiguous(kernel::cast(tensor, dtype))
}

fn parts<R, F, I, BT>(fused: &Fused<'_, CubeBackend<R, F, I, BT>>) -> Parts<R>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    let norm = fused.norm.as_ref().map(|norm| {
        let weight = norm.weight.clone().into_primitive().tensor();
        (contiguous(weight, DType::F32), norm.eps)
    });
    let add = match fused.then {
        Then::Add(other) => Some(contiguous(other.clone().into_primitive().tensor(), DType::F32)),
        Then::Keep | Then::Gate(_) => None,
    };
    let gate = match fused.then {
        Then::Gate(function) => Some(function),
        Then::Keep | Then::Add(_) => None,
    };
    Parts { norm, add, gate }
}

/// The primitives of a matrix that [`packed::upload`] made.
fn stored_packed<R, F, I, BT>(weight: &PackedTensors<CubeBackend<R, F, I, BT>>) -> Stored<R>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    Stored {
        spec: weight.spec,
        codes: weight.codes.clone().into_primitive(),
        scales: stored(&weight.scales),
        fixed_zero: weight.fixed_zero,
        zeros: weight.zeros.clone().map(Tensor::into_primitive),
        mins: weight.mins.as_ref().map(stored),
    }
}

/// The primitive of floats that [`dense::upload`] made.
fn stored<R, F, I, BT, const D: usize>(
    weight: &Tensor<CubeBackend<R, F, I, BT>, D>,
) -> CubeTensor<R>
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
