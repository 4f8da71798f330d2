//! A scheduler without a machine: a virtual clock, requests from a seed or a recorded trace, a fake
//! model that notices every misplaced key, and faults. Thousands of runs take seconds, and each is
//! repeated by its seed.

mod cost_model;
mod fake_model;
mod rng;
mod run;
mod workload;

pub use cost_model::CostModel;
pub use fake_model::{FakeModel, FakeModelError};
pub use rng::SimulationRng;
pub use run::{Failure, Faults, Outcome, Report, Simulation, SimulationError};
pub use workload::{TraceEntry, TraceError, Workload, read_trace, write_trace};
