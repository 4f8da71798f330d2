//! Where weights come from: a directory in Hugging Face layout, or a GGUF file.

use engine_quant::PackedMatrix;

use crate::{DenseMatrix, LoadError};

/// A matrix as a file has it.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "there is one at a time")]
pub enum StoredMatrix {
    /// Floats.
    Dense(DenseMatrix),
    /// In few bits.
    Packed(PackedMatrix),
}

impl StoredMatrix {
    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Self::Dense(matrix) => matrix.shape(),
            Self::Packed(packed) => packed.spec.shape,
        }
    }

    /// Bytes of the numbers as they are stored.
    pub fn num_bytes(&self) -> usize {
        match self {
            Self::Dense(matrix) => matrix.num_bytes(),
            Self::Packed(packed) => packed.num_bytes(),
        }
    }

    /// Says that few rows will be read, here and there; see [`SharedBytes::scatter`].
    ///
    /// [`SharedBytes::scatter`]: engine_quant::SharedBytes::scatter
    pub fn scatter(&self) {
        match self {
            Self::Dense(matrix) => matrix.scatter(),
            Self::Packed(packed) => packed.codes.scatter(),
        }
    }

    /// All numbers, row-major.
    pub fn to_f32(&self) -> Vec<f32> {
        match self {
            Self::Dense(matrix) => matrix.to_f32(),
            Self::Packed(packed) => packed.dequantize(),
        }
    }
}

/// The weights of a model under the names of a Hugging Face checkpoint, whatever file they are in.
///
/// Names are whole tensor names, such as `model.layers.0.self_attn.q_proj.weight`; a source whose
/// file has other names or parts (`qweight`, `blk.0.attn_q.weight`) translates.
pub trait WeightSource: Sync {
    /// Whether there is a tensor of this name.
    fn contains(&self, name: &str) -> bool;

    /// Bytes of all tensors in the file.
    fn num_bytes(&self) -> usize;

    /// Bytes of all tensors as they are held in memory: more than in the file where its blocks are
    /// taken apart.
    fn held_bytes(&self) -> usize {
        self.num_bytes()
    }

    /// What the decoder's tensor names start with, usually `model.`.
    fn model_prefix(&self) -> &'static str;

    /// The matrix `name`, of shape `[out, in]`.
    ///
    /// # Errors
    /// If it is not there, has another shape, or is of a type that cannot be read.
    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<StoredMatrix, LoadError>;

    /// The vector `name` as `f32`, `[len]`.
    ///
    /// # Errors
    /// As [`WeightSource::matrix`].
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError>;

    /// The name of the type in which the file has `name`, such as `BF16`, `Q4_K` or `gptq 4-bit`.
    fn stored_type(&self, name: &str) -> String;
}
