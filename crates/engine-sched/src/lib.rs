//! Continuous batching: which tokens run in the next step, without a tensor in sight.
#![forbid(unsafe_code)]

mod batch;
mod config;
mod executor;
mod request;

pub use batch::{
    FinishReason, LogitRows, SampleSlot, ScheduledBatch, ScheduledChunk, SequenceUpdate,
};
pub use config::{CacheEpochs, ConfigError, SchedulerConfig};
pub use engine_kv::{BlockId, HostBlockId, slot};
pub use executor::Executor;
pub use request::{SequenceId, SequenceRequest, SubmitError, TokenId};
