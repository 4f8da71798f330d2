//! Continuous batching: which tokens run in the next step, without a tensor in sight.
#![forbid(unsafe_code)]

mod admit;
mod batch;
mod check;
mod commit;
mod config;
mod cost;
mod executor;
mod plan;
mod preempt;
mod queue;
mod request;
mod scheduler;
mod sequence;
mod sequence_map;
pub mod simulation;
mod statistics;

pub use batch::{
    FinishReason, LogitRows, SampleSlot, ScheduledBatch, ScheduledChunk, SequenceUpdate,
};
pub use check::CheckError;
pub use config::{CacheEpochs, ConfigError, Preemption, SchedulerConfig};
pub use engine_kv::{BlockId, HostBlockId, slot};
pub use engine_kv::{Counters, InvariantError, Usage};
pub use executor::Executor;
pub use request::{SequenceId, SequenceRequest, SubmitError, TokenId};
pub use scheduler::Scheduler;
pub use statistics::{Histogram, Statistics};
