use burn_tensor::{DType, Int, Tensor, TensorData, backend::Backend};

/// Products with stored matrices, on one backend.
///
/// Each method's default body is the composed reference: plain Burn operations that run on any
/// backend. An implementation that overrides one must equal it to rounding, which
/// `tests/dense_parity.rs` checks over a table of shapes.
///
/// A stored tensor is opaque to everybody but the methods of this trait: on some GPUs it holds a
/// 16-bit type that the backend itself cannot compute with.
pub trait QuantOps: Backend {
    /// Uploads a matrix `[out, in]` of `f32`, `f16` or `bf16`, keeping its type where
    /// [`QuantOps::dense_linear`] can read it and widening it to `f32` where not.
    fn dense_upload(data: TensorData, device: &Self::Device) -> Tensor<Self, 2> {
        let dtype = if Self::supports_dtype(device, data.dtype) { data.dtype } else { DType::F32 };
        Tensor::from_data(data.convert_dtype(dtype), (device, dtype))
    }

    /// `x · Wᵀ` with `f32` sums: `x [rows, in]`, `weight [out, in]`, result `f32 [rows, out]`.
    fn dense_linear(x: Tensor<Self, 2>, weight: &Tensor<Self, 2>) -> Tensor<Self, 2> {
        x.matmul(Self::dense_to_f32(weight).transpose())
    }

    /// Rows `ids` of `weight [out, in]` as `f32 [ids, in]`.
    fn dense_rows(weight: &Tensor<Self, 2>, ids: Tensor<Self, 1, Int>) -> Tensor<Self, 2> {
        weight.clone().select(0, ids).cast(DType::F32)
    }

    /// The whole of `weight [out, in]` as `f32`.
    fn dense_to_f32(weight: &Tensor<Self, 2>) -> Tensor<Self, 2> {
        weight.clone().cast(DType::F32)
    }
}
