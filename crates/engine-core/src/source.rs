//! Where weights come from: a directory in Hugging Face layout, or a GGUF file.

use burn_tensor::TensorData;
use engine_quant::PackedMatrix;
use half::bf16;

use crate::LoadError;

/// A matrix as a file has it.
#[derive(Debug, Clone)]
pub enum StoredMatrix {
    /// Floats, `[out, in]`, of `f32`, `f16` or `bf16`.
    Dense(TensorData),
    /// In few bits.
    Packed(PackedMatrix),
}

impl StoredMatrix {
    /// A matrix of `bf16`, `[out, in]`, from its elements row by row.
    ///
    /// # Panics
    /// If the number of elements is not that of the shape.
    pub fn from_bf16(values: Vec<bf16>, shape: [usize; 2]) -> Self {
        Self::Dense(TensorData::new(values, shape))
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
