//! Root mean square normalisation (Zhang and Sennrich 2019), alone and after a residual addition.

use burn_tensor::Tensor;

use super::CoreOps;

/// `x / sqrt(mean(x²) + eps) · weight` over the last dimension.
///
/// `x [tokens, hidden]`, `weight [hidden]`. Gemma's `1 + weight` is folded into `weight` at load.
pub fn rms_norm<B: CoreOps>(x: Tensor<B, 2>, weight: &Tensor<B, 1>, eps: f32) -> Tensor<B, 2> {
    let ([_, hidden], [expected]) = (x.dims(), weight.dims());
    assert_eq!(hidden, expected, "rms_norm: x has {hidden} columns, the weight {expected}");
    B::rms_norm(x, weight, eps)
}

/// `sum = x + residual`, then its [`rms_norm`]. Returns `(normed, sum)`.
///
/// `x` and `residual [tokens, hidden]`, `weight [hidden]`.
pub fn add_rms_norm<B: CoreOps>(
    x: Tensor<B, 2>,
    residual: Tensor<B, 2>,
    weight: &Tensor<B, 1>,
    eps: f32,
) -> (Tensor<B, 2>, Tensor<B, 2>) {
    assert_eq!(x.dims(), residual.dims(), "add_rms_norm: x and residual differ in shape");
    let ([_, hidden], [expected]) = (x.dims(), weight.dims());
    assert_eq!(hidden, expected, "add_rms_norm: x has {hidden} columns, the weight {expected}");
    B::add_rms_norm(x, residual, weight, eps)
}

/// Composed reference of [`rms_norm`].
pub fn rms_norm_reference<B: CoreOps>(
    x: Tensor<B, 2>,
    weight: &Tensor<B, 1>,
    eps: f32,
) -> Tensor<B, 2> {
    let mean_square = x.clone().powi_scalar(2).mean_dim(1);
    x / (mean_square + eps).sqrt() * weight.clone().unsqueeze()
}

/// Composed reference of [`add_rms_norm`].
pub fn add_rms_norm_reference<B: CoreOps>(
    x: Tensor<B, 2>,
    residual: Tensor<B, 2>,
    weight: &Tensor<B, 1>,
    eps: f32,
) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let sum = x + residual;
    (rms_norm_reference(sum.clone(), weight, eps), sum)
}
