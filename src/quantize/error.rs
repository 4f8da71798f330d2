use std::{io, path::PathBuf};

use engine_core::{CalibrateError, LoadError};
use engine_quant::QuantError;
use thiserror::Error;

use super::CheckpointLayout;
use crate::{DeviceError, HubError, TokenizerError};

/// Why a model was not quantized. Whatever the reason, the output is as it was before.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum QuantizeError {
    /// The model could not be found or downloaded.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The configuration or the checkpoint could not be read, or a rule concerns no matrix.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The tokenizer could not be read or failed.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The device for the calibration cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The calibration failed.
    #[error(transparent)]
    Calibrate(#[from] CalibrateError),
    /// A matrix cannot be quantized or written.
    #[error("tensor `{tensor}`: {source}")]
    Matrix {
        /// The matrix, without `.weight`.
        tensor: String,
        /// Why.
        source: QuantError,
    },
    /// The model is one GGUF file.
    #[error("{} is a GGUF file: give the directory of the model's floats", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
    },
    /// The model is in few bits already.
    #[error(
        "{} has a quantization_config, its matrices are in few bits already: give the directory of \
         the original floats",
        path.display()
    )]
    AlreadyQuantized {
        /// The model's directory.
        path: PathBuf,
    },
    /// The plan leaves everything as it is.
    #[error("`{plan}` quantizes no matrix of this model: give a scheme such as int8 or int4")]
    NothingToQuantize {
        /// The plan.
        plan: String,
    },
    /// A plan that calibrates, without a text.
    #[error("`{plan}` needs a calibration text: give one, or leave out method=")]
    NoCalibration {
        /// The plan.
        plan: String,
    },
    /// A calibration text, but no tokenizer for it.
    #[error("{} has no tokenizer.json, which a calibration text needs", path.display())]
    NoTokenizer {
        /// The model's directory.
        path: PathBuf,
    },
    /// Calibration windows that the model cannot read.
    #[error("calibration windows of {len} tokens do not fit: give 2 to {max}")]
    WindowLength {
        /// The length that was asked for.
        len: usize,
        /// The model's context.
        max: usize,
    },
    /// A rule treats some rows of a tensor differently from others.
    #[error(
        "a rule names a part of `{tensor}`, which this checkpoint has as one matrix: name \
         `{tensor}` or all of its parts"
    )]
    FusedRule {
        /// The tensor.
        tensor: String,
    },
    /// The layout that was asked for cannot hold a matrix.
    #[error(
        "layout `{layout}` cannot hold `{tensor}`: {problem}; choose layout engine, or auto, or \
         another scheme"
    )]
    Layout {
        /// The layout.
        layout: CheckpointLayout,
        /// The matrix, without `.weight`.
        tensor: String,
        /// What does not fit.
        problem: String,
    },
    /// The output cannot be made where it was asked for.
    #[error("output {}: {problem}", path.display())]
    Output {
        /// The output directory.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: &'static str,
    },
    /// A file or directory of the model or the output failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The configuration is no JSON object.
    #[error("{}: {problem}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The threads could not be started.
    #[error("the threads could not be started: {reason}")]
    Threads {
        /// What the system said.
        reason: String,
    },
    /// The device failed.
    #[error("the device failed during the calibration: {message}")]
    DeviceFailed {
        /// What the backend said.
        message: String,
    },
    /// The caller ended it.
    #[error("interrupted, nothing was written")]
    Interrupted,
}

impl QuantizeError {
    pub(super) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
