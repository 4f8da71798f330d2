//! A load test of the in-process engine: requests arrive on their own clock, whether or not the
//! engine keeps up, and every token is timed.
//!
//! A request's time to first token counts from the moment at which it was to arrive, so that a step
//! that holds up the arrivals is not held in the engine's favour. [`LoadPlan::run`] measures the
//! same requests with and without prefix caching at every rate, and then, if asked to, sweeps the
//! scheduler's two limits with all requests waiting from the start.

mod arrivals;
mod drive;
mod markdown;
mod plan;
mod plot;
mod result;

pub use arrivals::{Arrivals, read_trace_file};
pub use engine_sched::simulation::{TraceEntry, Workload};
pub use plan::{LoadPlan, RunProgress, Sweep};
pub use result::{LatencyLimits, LoadReport, LoadRun, Percentiles, RunSetting};
