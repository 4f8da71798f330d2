//! A weight matrix in few bits, and its product with activations.
//!
//! The crate knows matrices and nothing about models: engine-core holds a `Box<dyn WeightMatrix<B>>`
//! wherever a layer has weights and never asks how they are stored.
//!
//! * [`WeightMatrix`]: what every stored matrix can do.
//! * [`Dense`]: 32-bit and 16-bit floats as the checkpoint has them.
//! * [`Activations`]: what activations are rounded to inside a product.
//! * [`PackedMatrix`]: a matrix in few bits on the host, whatever made it; [`Packed`] is the same on
//!   a device, [`Stacked`] several matrices of different formats as one.
//! * [`Grid`] and [`round_to_nearest`]: how numbers become codes; [`Scheme`] and [`SchemePlan`]: what
//!   users call it.
//! * [`formats`]: layouts of such matrices in checkpoints.
//! * [`Hessian`], [`gptq`](gptq()) and [`awq`]: codes chosen with the help of activations.
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

mod activations;
mod backends;
mod codes;
mod dense;
mod error;
pub mod formats;
mod fused;
mod gguf;
mod grid;
mod ops;
mod packed;
mod quantizers;
mod reference;
mod round;
mod scheme;
mod shared;
mod stored;
mod weight;

pub use activations::Activations;
#[cfg(feature = "cube")]
pub use backends::cube::gate_value;
#[cfg(feature = "flex")]
pub use backends::flex::{
    instruction_set::{self, InstructionSet, UnknownInstructionSet},
    peak, simd, threads,
};
pub use codes::CodeOrder;
pub use dense::Dense;
pub use error::QuantError;
pub use fused::{Fused, GateFunction, RowNorm, Then};
pub use gguf::{GgufMatrix, GgufType};
pub use grid::{Grid, Group, GroupParams, Int4Range, NF4_LEVELS};
pub use ops::QuantOps;
pub use packed::{Bits, CHUNK, GroupValues, Levels, PackedMatrix, PackedSpec, Zeros};
pub use quantizers::{GptqFactor, GptqOptions, Hessian, awq, gptq};
pub use round::{RoundToNearest, Rows, SliceRows, round_to_nearest};
pub use scheme::{Method, Scheme, SchemeError, SchemePlan};
pub use shared::{ByteSource, SharedBytes};
pub use stored::{Packed, PackedTensors, Stacked};
pub use weight::WeightMatrix;
