use burn_tensor::{DType, Int, Tensor, TensorData, backend::Backend};

use crate::{Activations, CodeOrder, Fused, PackedMatrix, PackedSpec, PackedTensors, reference};

/// Products with stored matrices, on one backend.
///
/// Each method's default body is the composed reference: plain Burn operations that run on any
/// backend. An implementation that overrides one must equal it to rounding, which the
/// crate's tests check over a table of shapes.
///
/// A stored tensor is opaque to everybody but the methods of this trait: on some GPUs it holds a
/// 16-bit type that the backend itself cannot compute with.
pub trait QuantOps: Backend {
    /// Up to so many bytes, matrices below one another are worth a copy that makes them one; larger
    /// ones are multiplied where they lie unless they are neighbours already.
    const MAX_JOIN_BYTES: usize = usize::MAX;

    /// The fastest of those [`Activations`] that lose nothing against `f32` here.
    fn exact() -> Activations {
        Activations::F32
    }

    /// Uploads a matrix `[out, in]` of `f32`, `f16` or `bf16`, keeping its type where
    /// [`QuantOps::dense_linear`] can read it and widening it to `f32` where not.
    fn dense_upload(data: TensorData, device: &Self::Device) -> Tensor<Self, 2> {
        let dtype = if Self::supports_dtype(device, data.dtype) { data.dtype } else { DType::F32 };
        Tensor::from_data(data.convert_dtype(dtype), (device, dtype))
    }

    /// What [`QuantOps::dense_linear`] rounds activations to when asked for `wanted`: that, or
    /// `f32` where there is no such kernel for this weight.
    fn dense_activations(_weight: &Tensor<Self, 2>, _wanted: Activations) -> Activations {
        Activations::F32
    }

    /// `x · Wᵀ` with `f32` sums: `x [rows, in]`, `weight [out, in]`, result `f32 [rows, out]`.
    /// `activations` is what [`QuantOps::dense_activations`] gave.
    fn dense_linear(
        x: Tensor<Self, 2>,
        weight: &Tensor<Self, 2>,
        _activations: Activations,
    ) -> Tensor<Self, 2> {
        x.matmul(Self::dense_to_f32(weight).transpose())
    }

    /// [`QuantOps::dense_linear`] and what stands around it in one launch, where there is such a
    /// kernel. Without one the caller composes it, so the default has none.
    fn dense_fused_linear(
        _x: &Tensor<Self, 2>,
        _weight: &Tensor<Self, 2>,
        _fused: &Fused<'_, Self>,
    ) -> Option<Tensor<Self, 2>> {
        None
    }

    /// Rows `ids` of `weight [out, in]` as `f32 [ids, in]`.
    fn dense_rows(weight: &Tensor<Self, 2>, ids: Tensor<Self, 1, Int>) -> Tensor<Self, 2> {
        weight.clone().select(0, ids).cast(DType::F32)
    }

    /// The whole of `weight [out, in]` as `f32`.
    fn dense_to_f32(weight: &Tensor<Self, 2>) -> Tensor<Self, 2> {
        weight.clone().cast(DType::F32)
    }

    /// The order of codes that [`QuantOps::packed_upload`] takes without a copy, where there is one.
    fn code_order(_spec: &PackedSpec, _activations: Activations) -> CodeOrder {
        CodeOrder::Rows
    }

    /// Uploads a packed matrix that [`PackedMatrix::check`] accepts, laid out for products that
    /// round activations to `activations`, or to `f32` where there is no such kernel for it;
    /// [`PackedTensors::activations`] says which.
    fn packed_upload(
        matrix: PackedMatrix,
        _activations: Activations,
        device: &Self::Device,
    ) -> PackedTensors<Self> {
        reference::upload(&matrix.into_order(CodeOrder::Rows), device)
    }

    /// `x · Wᵀ` with sums no narrower than `f32`: `x [rows, in]`, its columns in the packed order, to `[rows, out]`.
    fn packed_linear(x: Tensor<Self, 2>, weight: &PackedTensors<Self>) -> Tensor<Self, 2> {
        x.matmul(Self::packed_to_f32(weight).transpose())
    }

    /// [`QuantOps::packed_linear`] as [`QuantOps::dense_fused_linear`].
    fn packed_fused_linear(
        _x: &Tensor<Self, 2>,
        _weight: &PackedTensors<Self>,
        _fused: &Fused<'_, Self>,
    ) -> Option<Tensor<Self, 2>> {
        None
    }

    /// Rows `ids` as `f32 [ids, in]`, columns in the packed order.
    fn packed_rows(weight: &PackedTensors<Self>, ids: Tensor<Self, 1, Int>) -> Tensor<Self, 2> {
        Self::packed_to_f32(weight).select(0, ids)
    }

    /// The whole matrix as `f32 [out, in]`, columns in the packed order.
    fn packed_to_f32(weight: &PackedTensors<Self>) -> Tensor<Self, 2> {
        reference::to_f32(weight)
    }
}
