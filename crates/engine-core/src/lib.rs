//! The model mathematics of Llama-family language models, generic over Burn backends.
//!
//! This crate computes. It knows no request, no scheduler and no text: tokens, positions and slots
//! come in ([`BatchInput`]), logits go out.

mod backends;
mod batch;
mod calibrate;
mod checkpoint;
mod config;
mod dense_matrix;
mod error;
mod gguf;
mod kv;
mod model;
pub mod ops;
mod rope;
pub mod sampling;
mod source;

pub use batch::{BatchInput, ForwardBatch, LogitRows, MetaLayout, SequenceChunk};
pub use calibrate::{
    CalibrateError, CalibratedModel, CalibratedTensor, Calibration, CalibrationEvent, MatrixReport,
    SinkError, UnscaledReason, calibrate,
};
pub use checkpoint::{Checkpoint, StoredType, TensorRef};
pub use config::{
    Architecture, GenerationConfig, LayerConfig, ModelConfig, NativeConfig, QuantizationConfig,
};
pub use dense_matrix::DenseMatrix;
pub use error::LoadError;
pub use gguf::{GgufFile, GgufMetadata, GgufTensor, GgufValue};
pub use kv::{CodedRows, KvCache, KvFormat, KvShape, LayerKv, UnknownKvFormat};
pub use model::{
    LoadEntry, LoadProgress, LoadReport, MatrixTensor, Model, MultiplyAdds, Treatment, load,
    planned_weight_bytes,
};
pub use ops::CoreOps;
pub use rope::{Rope, RopeConfig, RopeLength, RopeScaling};
pub use sampling::{
    SampleScratch, Sampled, SamplingError, SamplingParams, TokenHistory, TokenLogprobs,
};
pub use source::{StoredMatrix, WeightSource};

/// Everything a model needs of a backend.
pub trait ModelBackend: CoreOps + engine_quant::QuantOps {}

impl<B: CoreOps + engine_quant::QuantOps> ModelBackend for B {}
