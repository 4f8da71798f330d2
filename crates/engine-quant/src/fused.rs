use burn_tensor::{Tensor, backend::Backend};

/// The non-linearity of a gate, with its Hugging Face names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GateFunction {
    /// `x · sigmoid(x)`: `silu`, `swish`.
    Silu,
    /// `x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))`: `gelu_pytorch_tanh`, `gelu_new`.
    GeluTanh,
    /// `x/2 · (1 + erf(x / √2))`: `gelu`.
    Gelu,
    /// `max(x, 0)`: `relu`.
    Relu,
}

/// What stands before and after a product with a matrix `[out, in]` and could share its launch:
/// `then(norm(x) · Wᵀ)`. See [`WeightMatrix::fused_linear`](crate::WeightMatrix::fused_linear).
#[derive(Debug)]
pub struct Fused<'a, B: Backend> {
    /// Root mean square normalisation of each row of `x`.
    pub norm: Option<RowNorm<'a, B>>,
    /// What becomes of the product.
    pub then: Then<'a, B>,
}

/// `x / sqrt(mean(x²) + eps) · weight`, row by row.
#[derive(Debug)]
pub struct RowNorm<'a, B: Backend> {
    /// `[in]`.
    pub weight: &'a Tensor<B, 1>,
    /// Added to the mean square.
    pub eps: f32,
}

/// What becomes of a product `[rows, out]`.
#[derive(Debug)]
pub enum Then<'a, B: Backend> {
    /// Nothing.
    Keep,
    /// The sum with this, `[rows, out]`.
    Add(&'a Tensor<B, 2>),
    /// `function(y[.., i]) · y[.., out/2 + i]`, `[rows, out/2]`.
    Gate(GateFunction),
}

impl<B: Backend> Fused<'_, B> {
    /// Asserts that the parts fit a matrix `[out, in]` and `x [rows, in]`.
    pub(crate) fn check(&self, [rows, columns]: [usize; 2], [out, in_]: [usize; 2]) {
        assert_eq!(columns, in_, "fused_linear: x has {columns} columns, the matrix {in_}");
        if let Some(norm) = &self.norm {
            let [found] = norm.weight.dims();
            assert_eq!(found, in_, "fused_linear: the norm has {found} columns, the matrix {in_}");
        }
        match self.then {
            Then::Keep => {}
            Then::Add(other) => {
                let (found, expected) = (other.dims(), [rows, out]);
                assert_eq!(found, expected, "fused_linear: what is added has another shape");
            }
            Then::Gate(_) => {
                assert!(out.is_multiple_of(2), "fused_linear: {out} rows are no gates and values");
            }
        }
    }
}
