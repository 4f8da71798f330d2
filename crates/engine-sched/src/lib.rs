//! Continuous batching: which tokens run in the next step, without a tensor in sight.
//!
//! There is no prefill and no decode phase. Every sequence has computed tokens that must catch up
//! with its known tokens, and each step shares one budget of tokens among them: a prompt is a long
//! chunk, a decode step a chunk of one. Chunked prompts, prefix hits and preemption follow from
//! that rule.
//!
//! A [`Scheduler`] plans a [`ScheduledBatch`], an [`Executor`] runs it, and the scheduler turns the
//! sampled tokens into a [`SequenceUpdate`] per sequence:
//!
//! ```
//! use engine_sched::simulation::FakeModel;
//! use engine_sched::{Executor, Scheduler, SchedulerConfig, SequenceRequest};
//! use std::time::Instant;
//!
//! let config = SchedulerConfig::default();
//! let mut model = FakeModel::new(&config, 1000);
//! let mut scheduler = Scheduler::new(config)?;
//! let clock = Instant::now();
//! let id = scheduler.submit(SequenceRequest::new(vec![1, 403, 407]))?;
//! let mut generated = Vec::new();
//! while scheduler.has_work() {
//!     let mut batch = scheduler.schedule(clock.elapsed());
//!     let mut updates = std::mem::take(&mut batch.finished);
//!     updates.extend(match model.execute(&batch) {
//!         Ok(tokens) => scheduler.commit(batch, &tokens, clock.elapsed()),
//!         Err(_) => scheduler.abort(batch, clock.elapsed()),
//!     });
//!     let own = updates.iter().filter(|update| update.sequence == id);
//!     generated.extend(own.filter_map(|update| update.token));
//! }
//! assert_eq!(generated.len(), 16);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Time is a value that the caller passes in, nothing runs in the background, and the same calls
//! give the same answers: [`simulation`] rests on that. Knows no tensor, no text and no thread.
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
