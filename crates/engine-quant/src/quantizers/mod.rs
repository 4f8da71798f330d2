//! Quantizers that look at activations: GPTQ and AWQ.
//!
//! Both lower the error of a layer's *output* `X · Wᵀ` instead of that of its weights. Here is their
//! mathematics, on matrices; which activations reach which matrix, and what a scale is folded into,
//! is the model's business.

pub mod awq;
mod gptq;
mod hessian;
mod linalg;

pub use gptq::{GptqFactor, GptqOptions, gptq};
pub use hessian::Hessian;
