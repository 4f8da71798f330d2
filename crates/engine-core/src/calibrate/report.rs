use std::fmt;

use engine_quant::{QuantError, Scheme};
use thiserror::Error;

use crate::{LoadError, StoredMatrix};

/// A tensor of a calibrated model, in the form in which it is stored.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "one is made at a time and handed on")]
pub enum CalibratedTensor {
    /// A matrix, quantized or as the source has it.
    Matrix(StoredMatrix),
    /// A norm or a bias.
    Vector(Vec<f32>),
}

/// What one matrix lost.
#[derive(Debug, Clone, PartialEq)]
pub struct MatrixReport {
    /// Its name, without `.weight`.
    pub name: String,
    /// What was asked for.
    pub scheme: Scheme,
    /// `‖X · (W − Q)ᵀ‖ / ‖X · Wᵀ‖` over the calibration text: the part of its output that is wrong.
    pub error: f64,
    /// The same if it had been rounded to nearest on the same grid.
    pub nearest_error: f64,
    /// GPTQ's damping, where it had to be stronger than asked for.
    pub raised_damp: Option<f64>,
    /// Number of this matrix among those that are quantized, from 1.
    pub number: usize,
    /// Matrices that are quantized.
    pub total: usize,
}

/// Why AWQ's scales were not used for a matrix' input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnscaledReason {
    /// Key and value heads serve several query heads: `o_proj` has inputs that `v_proj` has not.
    GroupedHeads,
    /// A matrix with the same input is kept in its own format.
    SharedInputKept,
    /// The matrix whose rows would take the inverse scales is kept in its own format.
    SourceKept,
    /// No scales had a lower error than none.
    NoGain,
}

impl fmt::Display for UnscaledReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GroupedHeads => "several query heads share a value head",
            Self::SharedInputKept => "a matrix with the same input is not quantized",
            Self::SourceKept => "the matrix before it is not quantized",
            Self::NoGain => "no scales lower the error",
        })
    }
}

/// What a calibration says and gives as it goes on.
#[derive(Debug)]
pub enum CalibrationEvent {
    /// A tensor is finished: its whole name, and itself. Each tensor of the model comes once, a
    /// layer's together.
    Tensor(String, CalibratedTensor),
    /// A matrix was quantized.
    Matrix(MatrixReport),
    /// The input of this matrix (without `.weight`) was not scaled though AWQ was asked for.
    Unscaled(String, UnscaledReason),
    /// This matrix (without `.weight`) is in few bits in the source already and stays so.
    AlreadyQuantized(String),
}

/// An error of the caller's own.
pub type SinkError = Box<dyn std::error::Error + Send + Sync>;

/// Why a model could not be calibrated.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CalibrateError {
    /// There is nothing to calibrate with.
    #[error("the calibration text has no tokens: give a text of some thousand words")]
    NoTokens,
    /// The tokens are of another model.
    #[error("calibration sequence {sequence} has token {token}, the vocabulary has {vocab_size}")]
    TokenOutOfRange {
        /// Index of the sequence.
        sequence: usize,
        /// The token.
        token: u32,
        /// Tokens of the model.
        vocab_size: usize,
    },
    /// A sequence is longer than the model can read.
    #[error(
        "calibration sequence {sequence} has {len} tokens, the model reads {max}: cut it into windows"
    )]
    SequenceTooLong {
        /// Index of the sequence.
        sequence: usize,
        /// Its tokens.
        len: usize,
        /// The model's context.
        max: usize,
    },
    /// A rule treats a part of a matrix differently from the rest.
    #[error(
        "a rule names a part of {name}, which this checkpoint has as one matrix: name {name} instead"
    )]
    FusedRule {
        /// The matrix.
        name: String,
    },
    /// The model's weights cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A matrix cannot be quantized.
    #[error("{name}: {source}")]
    Quantize {
        /// The matrix.
        name: String,
        /// Why.
        source: QuantError,
    },
    /// The caller could not take a tensor.
    #[error("{name}: {source}")]
    Sink {
        /// The tensor.
        name: String,
        /// The caller's reason.
        source: SinkError,
    },
}
