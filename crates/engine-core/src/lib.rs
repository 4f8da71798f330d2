//! The model mathematics of Llama-family language models, generic over Burn backends.
//!
//! This crate computes. It knows no request, no scheduler and no text: tokens, positions and slots
//! come in ([`BatchInput`]), logits go out.

mod backends;
mod batch;
mod kv;
pub mod ops;
pub mod sampling;

pub use batch::{BatchInput, ForwardBatch, LogitRows, MetaLayout, SequenceChunk};
pub use kv::{KvCache, LayerKv};
pub use ops::CoreOps;
pub use sampling::{
    SampleScratch, Sampled, SamplingError, SamplingParams, TokenHistory, TokenLogprobs,
};

/// Everything a model needs of a backend.
pub trait ModelBackend: CoreOps + engine_quant::QuantOps {}

impl<B: CoreOps + engine_quant::QuantOps> ModelBackend for B {}
