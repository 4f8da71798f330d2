use std::{io, path::PathBuf};

use engine::{
    DeviceError, EngineError, GenerateError, HubError, LoadError, QuantizeError, SubmitError,
};
use engine_quant::QuantError;
use engine_sched::simulation::TraceError;
use thiserror::Error;

use crate::perplexity::PerplexityError;

/// Why something could not be measured.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BenchError {
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The model cannot be found.
    #[error(transparent)]
    Model(#[from] HubError),
    /// The model's configuration cannot be read.
    #[error(transparent)]
    Config(#[from] LoadError),
    /// The engine could not be made, or the device not be measured.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The engine refused the prompt.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// The engine failed on the way.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// No shape has this name.
    #[error("unknown shape `{name}`: use one of {known}")]
    UnknownShape {
        /// What was given.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A weight format whose codes are chosen with the help of a text.
    #[error(
        "`{plan}` needs a calibration text: give one with --calibration, or measure what `quantize` \
         made"
    )]
    NeedsCalibration {
        /// What was given.
        plan: String,
    },
    /// A weight format has no such name.
    #[error(transparent)]
    Scheme(#[from] engine::SchemeError),
    /// A number makes no sense.
    #[error("{name} is 0: give at least 1")]
    Zero {
        /// Which one.
        name: &'static str,
    },
    /// A number must be above 0 and is not.
    #[error("{name} is {value}: give a number above 0")]
    NotPositive {
        /// Which one.
        name: &'static str,
        /// What was given.
        value: f64,
    },
    /// A recorded trace of requests could not be read.
    #[error("cannot read the trace {}: {source}", path.display())]
    Trace {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: TraceError,
    },
    /// Curves could not be drawn.
    #[error("the curves cannot be drawn: {message}")]
    Plot {
        /// What the drawing library said.
        message: String,
    },
    /// A file's name asks for a format that charts are not drawn in.
    #[error("cannot draw {}: a chart's name ends in .svg or .png", path.display())]
    ImageFormat {
        /// The file.
        path: PathBuf,
    },
    /// A text could not be scored.
    #[error(transparent)]
    Perplexity(#[from] PerplexityError),
    /// Two models cannot be compared.
    #[error("the reference has a vocabulary of {expected} tokens, this model one of {found}")]
    OtherVocabulary {
        /// Of the reference.
        expected: usize,
        /// Of the other model.
        found: usize,
    },
    /// The reference's logits could not be kept.
    #[error("the folder for temporary files, {}, cannot keep logits: {source}", folder.display())]
    Scratch {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A matrix could not be quantized.
    #[error(transparent)]
    Matrix(#[from] QuantError),
    /// A model could not be quantized with the help of a text.
    #[error(transparent)]
    Quantize(#[from] QuantizeError),
    /// A file of random weights could not be written.
    #[error("cannot write {size_mib} MiB of random weights to {}: {source}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// How large the model is.
        size_mib: u64,
        /// What the system said.
        source: io::Error,
    },
    /// A run ended before anything could be timed.
    #[error("the run ended before all {batch} prompts were computed")]
    EndedEarly {
        /// Requests of the run.
        batch: usize,
    },
}
