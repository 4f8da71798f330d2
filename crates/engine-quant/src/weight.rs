use std::fmt::Debug;

use burn_tensor::{Int, Tensor, backend::Backend};

use crate::{Activations, Fused};

/// A stored matrix `[out, in]` and its product with activations.
///
/// Activations come and go as `f32`, and so are all sums, whatever the stored type is.
pub trait WeightMatrix<B: Backend>: Debug + Send + Sync {
    /// `x · Wᵀ`: `[rows, in]` to `[rows, out]`.
    ///
    /// # Panics
    /// If `x` has another number of columns than the matrix.
    fn linear(&self, x: Tensor<B, 2>) -> Tensor<B, 2>;

    /// `then(norm(x) · Wᵀ)` in one launch: `[rows, in]` to `[rows, out]`, or to `[rows, out/2]` with a
    /// gate. `None` where the backend has no such kernel for this matrix and this number of rows;
    /// the caller then composes it of [`WeightMatrix::linear`] and the other operations.
    ///
    /// # Panics
    /// If a shape does not fit the matrix.
    fn fused_linear(&self, _x: &Tensor<B, 2>, _fused: &Fused<'_, B>) -> Option<Tensor<B, 2>> {
        None
    }

    /// The rows with the given numbers as `f32`, `[ids]` to `[ids, in]`: the embedding look-up.
    fn rows(&self, ids: Tensor<B, 1, Int>) -> Tensor<B, 2>;

    /// `[out, in]`.
    fn shape(&self) -> [usize; 2];

    /// Bytes that the stored matrix takes on the device, scales and zero points included.
    fn num_bytes(&self) -> usize;

    /// What [`WeightMatrix::linear`] rounds activations to.
    fn activations(&self) -> Activations;

    /// The whole matrix as `f32`, `[out, in]`.
    fn dequantize(&self) -> Tensor<B, 2>;

    /// The name of the storage format, such as `bf16` or `int4:group=32:sym8`.
    fn format(&self) -> String;

    /// The formats of its parts, each with its bytes.
    fn formats(&self) -> Vec<(String, usize)> {
        vec![(self.format(), self.num_bytes())]
    }
}
