//! Runs Llama-family language models on a CPU, an NVIDIA card or any Vulkan or Metal GPU.
//!
//! ```
//! use engine::{Engine, Request};
//! # let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/models/stories260K");
//! let engine = Engine::builder(model).load()?;
//! let completion = engine.generate(Request::text("Once upon a time").max_tokens(16))?;
//! println!("{}", completion.text());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! This package is the bridge between two towers of crates that know nothing of each other: the
//! control plane (`engine-sched`, `engine-kv`) decides which tokens run and where their keys and
//! values go; the data plane (`engine-core`, `engine-quant`) computes. `ARCHITECTURE.md` tells more.
//!
//! # What is equal to what
//! On the CPU a request's logits do not depend, bit for bit, on its neighbours in the batch, on how
//! its prompt was cut into chunks, on the block size, on where its blocks lie, on a prefix hit, on
//! preemption or on the number of threads. On GPUs they agree to rounding.

#![forbid(unsafe_code)]

mod builder;
mod completion;
mod device;
mod emit;
mod engine;
mod error;
mod execute;
mod execution;
mod generation;
mod hub;
mod info;
mod memory;
mod model_files;
mod quantize;
mod rates;
mod request;
mod runner;
mod step;
mod text;
mod threads;
pub mod verify;

pub use builder::{EngineBuilder, Progress};
pub use device::{Device, DeviceError, Selected};
pub use engine::{Engine, RunError};
pub use error::{EngineError, GenerateError, SubmitError};
pub use execution::Execution;
pub use generation::Generation;
pub use hub::{DownloadProgress, Hub, HubError, resolve_model};
pub use info::EngineInfo;
pub use memory::MemoryPlan;
pub use quantize::{
    CalibrationCut, CalibrationText, CheckpointLayout, QuantizeError, QuantizeEvent,
    QuantizeOptions, QuantizeReport, QuantizedMatrix, SchemeBytes, UnknownCut, UnknownLayout,
    quantize,
};
pub use rates::DeviceRates;
pub use request::{
    Choice, Completion, Event, FinishReason, Prompt, PromptOutput, PromptReport, Request, Usage,
};
pub use runner::ExecuteError;
pub use step::{EngineCore, RequestEvent, RequestId};
pub use text::{
    ChatOptions, ChatTemplate, ChatTemplateError, Content, Detokenizer, FunctionCall,
    GgufVocabulary, Message, StopError, StopMatcher, StopStep, Tokenizer, TokenizerError, ToolCall,
};

pub use engine_core::sampling::{SamplingError, SamplingParams, TokenLogprobs};
pub use engine_core::{
    Checkpoint, DenseMatrix, GenerationConfig, GgufFile, GgufMetadata, GgufValue, KvFormat,
    LoadEntry, LoadError, LoadProgress, LoadReport, ModelConfig, MultiplyAdds, StoredMatrix,
    Treatment, UnknownKvFormat, WeightSource,
};
pub use engine_quant::{Activations, Scheme, SchemeError, SchemePlan};
pub use engine_sched::{Preemption, Statistics};
