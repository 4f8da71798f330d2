//! A weight matrix in few bits, and its product with activations.
//!
//! The crate knows matrices and nothing about models: engine-core holds a `Box<dyn WeightMatrix<B>>`
//! wherever a layer has weights and never asks how they are stored.
//!
//! * [`WeightMatrix`]: what every stored matrix can do.
//! * [`Dense`]: 32-bit and 16-bit floats as the checkpoint has them.
//! * [`QuantOps`]: the products, one default body of plain Burn operations and one fast
//!   implementation for each of the CPU (`backends/flex`) and the GPUs (`backends/cube`).
//!
//! ```
//! use burn_tensor::{Tensor, TensorData};
//! use engine_quant::{Dense, WeightMatrix};
//! # #[cfg(feature = "flex")] {
//! type B = burn_flex::Flex;
//! let device = Default::default();
//! let weight = Dense::<B>::upload(TensorData::from([[1.0_f32, 2.0], [3.0, 4.0], [5.0, 6.0]]), &device)?;
//! let x = Tensor::<B, 2>::from_data([[1.0_f32, 1.0]], &device);
//! assert_eq!(weight.linear(x).into_data().to_vec::<f32>().unwrap(), [3.0, 7.0, 11.0]);
//! # }
//! # Ok::<(), engine_quant::QuantError>(())
//! ```

mod backends;
mod dense;
mod error;
mod ops;
mod weight;

#[cfg(feature = "flex")]
pub use backends::flex::simd;
pub use dense::Dense;
pub use error::QuantError;
pub use ops::QuantOps;
pub use weight::WeightMatrix;
