use std::fmt::Debug;

use burn_tensor::{Int, Tensor, backend::Backend};

use crate::Activations;

/// A stored matrix `[out, in]` and its product with activations.
///
/// Activations come and go as `f32`, and so are all sums, whatever the stored type is.
pub trait WeightMatrix<B: Backend>: Debug + Send + Sync {
    /// `x · Wᵀ`: `[rows, in]` to `[rows, out]`.
    ///
    /// # Panics
    /// If `x` has another number of columns than the matrix.
    fn linear(&self, x: Tensor<B, 2>) -> Tensor<B, 2>;

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
