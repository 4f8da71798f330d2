use std::collections::BTreeMap;
use std::time::Duration;

use thiserror::Error;

use super::{CostModel, SimulationRng};
use crate::{
    CheckError, ConfigError, Executor, FinishReason, ScheduledBatch, Scheduler, SchedulerConfig,
    SequenceId, SequenceRequest, SequenceUpdate, Statistics, SubmitError, TokenId,
};

/// What goes wrong in a simulation, each with a probability per step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Faults {
    /// The executor fails, before or after it did its work.
    pub executor_errors: f64,
    /// Some request or sample is cancelled, half of the time while its batch is in flight.
    pub cancels: f64,
    /// The step takes ten times as long.
    pub slow_steps: f64,
}

/// A scheduler, an executor, a virtual clock and the requests to come.
///
/// Everything that happens follows from the fields, so a failure is repeated by its seed.
///
/// ```
/// use engine_sched::SchedulerConfig;
/// use engine_sched::simulation::{CostModel, FakeModel, Faults, Simulation, Workload};
/// let config = SchedulerConfig { num_blocks: 32, ..SchedulerConfig::default() };
/// let seed = 1;
/// let report = Simulation {
///     executor: FakeModel::new(&config, 1000),
///     cost: CostModel { step: std::time::Duration::from_millis(5), ..CostModel::free() },
///     requests: Workload::default().generate(seed),
///     faults: Faults::default(),
///     check_each_step: true,
///     config,
///     seed,
/// }
/// .run()?;
/// assert_eq!(report.statistics.completed, 100);
/// # Ok::<(), engine_sched::simulation::SimulationError>(())
/// ```
#[derive(Debug)]
pub struct Simulation<E> {
    /// Limits of the scheduler.
    pub config: SchedulerConfig,
    /// What runs the steps.
    pub executor: E,
    /// How long they take.
    pub cost: CostModel,
    /// What comes, in order of arrival.
    pub requests: Vec<SequenceRequest>,
    /// What goes wrong.
    pub faults: Faults,
    /// Seed of the faults.
    pub seed: u64,
    /// Whether all invariants are checked after each step; it takes most of the time.
    pub check_each_step: bool,
}

/// What became of one sample.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Index of the request.
    pub request: usize,
    /// Which of its samples.
    pub sample_index: usize,
    /// The id that the scheduler gave the request.
    pub parent: Option<SequenceId>,
    /// The tokens generated.
    pub tokens: Vec<TokenId>,
    /// How it ended.
    pub finish: Option<FinishReason>,
    /// When the first token came.
    pub first_token_at: Option<Duration>,
    /// When it ended.
    pub finished_at: Duration,
}

/// What a simulation did.
#[derive(Debug)]
pub struct Report {
    /// Every sample that was taken, by request and sample.
    pub outcomes: Vec<Outcome>,
    /// Requests that were refused, by index.
    pub refused: Vec<(usize, SubmitError)>,
    /// The scheduler's statistics at the end.
    pub statistics: Statistics,
    /// Virtual time.
    pub elapsed: Duration,
    /// Steps planned.
    pub steps: u64,
}

/// Why a simulation stopped: a bug, with the seed that repeats it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("seed {seed}, step {step}: {failure}")]
pub struct SimulationError {
    /// Seed of the simulation.
    pub seed: u64,
    /// Step at which it was noticed.
    pub step: u64,
    /// What was noticed.
    pub failure: Failure,
}

/// What can be wrong with a simulated scheduler.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Failure {
    /// The limits make no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An invariant does not hold.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// The executor could not run a batch.
    #[error("the executor failed: {0}")]
    Executor(String),
    /// There is work and no batch, or a limit of the batch is not kept.
    #[error("the batch is wrong: {0}")]
    Batch(&'static str),
    /// It goes on and on.
    #[error("there is no end: every step does something and the work is not done")]
    Livelock,
    /// A sample got an update after its last one, or none of its updates was the last.
    #[error("request {request}, sample {sample_index}: {what}")]
    Update {
        /// Index of the request.
        request: usize,
        /// Which of its samples.
        sample_index: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// Something is held after all work is done.
    #[error("{blocks} blocks and {host_blocks} host blocks are held after the last sequence ended")]
    Leak {
        /// Device blocks.
        blocks: usize,
        /// Host blocks.
        host_blocks: usize,
    },
}

struct Run<E> {
    scheduler: Scheduler,
    simulation: Simulation<E>,
    rng: SimulationRng,
    clock: Duration,
    step: u64,
    max_steps: u64,
    next_request: usize,
    requests: BTreeMap<SequenceId, usize>,
    outcomes: BTreeMap<(usize, usize), Outcome>,
    refused: Vec<(usize, SubmitError)>,
}

impl<E: Executor> Simulation<E> {
    /// Runs until every request ended.
    pub fn run(self) -> Result<Report, SimulationError> {
        let seed = self.seed;
        let max_steps = self.requests.iter().map(steps_at_most).fold(1000, u64::saturating_add);
        let scheduler = Scheduler::new(self.config.clone()).map_err(|error| SimulationError {
            seed,
            step: 0,
            failure: error.into(),
        })?;
        let mut run = Run {
            scheduler,
            rng: SimulationRng::new(seed),
            simulation: self,
            clock: Duration::ZERO,
            step: 0,
            max_steps,
            next_request: 0,
            requests: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            refused: Vec::new(),
        };
        loop {
            match run.turn() {
                Ok(true) => {}
                Ok(false) => break,
                Err(failure) => return Err(SimulationError { seed, step: run.step, failure }),
            }
        }
        let step = run.step;
        run.report().map_err(|failure| SimulationError { seed, step, failure })
    }
}

/// Steps that a request could need if each computed one token and each token of each sample needed
/// all before it again, several times over.
fn steps_at_most(request: &SequenceRequest) -> u64 {
    let len = request.prompt.len().saturating_add(request.max_tokens) as u64;
    let samples = request.num_samples as u64;
    len.saturating_mul(len).saturating_mul(samples).saturating_mul(4)
}

impl<E: Executor> Run<E> {
    /// One step of the engine's loop; false when everything is done.
    fn turn(&mut self) -> Result<bool, Failure> {
        self.submit_arrivals();
        if !self.scheduler.has_work() {
            let Some(next) = self.simulation.requests.get(self.next_request) else {
                return Ok(false);
            };
            self.clock = self.clock.max(next.arrival.unwrap_or_default());
            return Ok(true);
        }
        self.cancel_some(0.5);
        let mut batch = self.scheduler.schedule(self.clock);
        self.step += 1;
        if self.step > self.max_steps {
            return Err(Failure::Livelock);
        }
        self.check_batch(&batch)?;
        let finished = std::mem::take(&mut batch.finished);
        self.record(&finished)?;
        self.check()?;
        if !batch.is_empty() {
            let updates = self.execute(batch)?;
            self.record(&updates)?;
            self.check()?;
        } else if finished.is_empty() {
            return Err(Failure::Batch("there is work and nothing in it"));
        }
        Ok(true)
    }

    fn submit_arrivals(&mut self) {
        while let Some(request) = self.simulation.requests.get(self.next_request)
            && request.arrival.unwrap_or_default() <= self.clock
        {
            let index = self.next_request;
            self.next_request += 1;
            match self.scheduler.submit(request.clone()) {
                Ok(id) => {
                    self.requests.insert(id, index);
                    for sample_index in 0..request.num_samples {
                        let parent = Some(id);
                        let outcome =
                            Outcome { request: index, sample_index, parent, ..Outcome::default() };
                        self.outcomes.insert((index, sample_index), outcome);
                    }
                }
                Err(error) => self.refused.push((index, error)),
            }
        }
    }

    /// With the faults' probability, half of it here, cancels a request or one of its samples.
    fn cancel_some(&mut self, part: f64) {
        if self.requests.is_empty() || !self.rng.chance(self.simulation.faults.cancels * part) {
            return;
        }
        let newest = self.requests.last_key_value().map_or(0, |(id, _)| id.0 as usize);
        // One beyond the newest: a sample of it, or nothing.
        let id = self.rng.in_range(0..newest + 2);
        self.scheduler.cancel(SequenceId(id as u64));
    }

    fn execute(&mut self, batch: ScheduledBatch) -> Result<Vec<SequenceUpdate>, Failure> {
        let faults = self.simulation.faults;
        let fails = self.rng.chance(faults.executor_errors);
        let slow = self.rng.chance(faults.slow_steps);
        let duration = self.simulation.cost.duration(&batch);
        self.clock =
            self.clock.saturating_add(if slow { duration.saturating_mul(10) } else { duration });
        if fails && self.rng.chance(0.5) {
            return Ok(self.scheduler.abort(batch, self.clock));
        }
        let tokens = self.simulation.executor.execute(&batch);
        let tokens = tokens.map_err(|error| Failure::Executor(error.to_string()))?;
        self.cancel_some(0.5);
        self.submit_arrivals();
        Ok(match fails {
            true => self.scheduler.abort(batch, self.clock),
            false => self.scheduler.commit(batch, &tokens, self.clock),
        })
    }

    fn check(&self) -> Result<(), Failure> {
        if self.simulation.check_each_step {
            self.scheduler.check()?;
        }
        Ok(())
    }

    fn check_batch(&self, batch: &ScheduledBatch) -> Result<(), Failure> {
        let config = &self.simulation.config;
        if batch.num_tokens() > config.max_batched_tokens {
            return Err(Failure::Batch("it exceeds the token budget"));
        }
        if batch.chunks.len() > config.max_sequences {
            return Err(Failure::Batch("it has too many sequences"));
        }
        if batch.chunks.iter().any(|chunk| chunk.tokens.is_empty()) {
            return Err(Failure::Batch("a chunk is empty"));
        }
        let moves = batch.copies.len() + batch.swap_in.len() + batch.swap_out.len();
        if batch.is_empty() && moves > 0 {
            return Err(Failure::Batch("it moves blocks and computes nothing"));
        }
        Ok(())
    }

    fn record(&mut self, updates: &[SequenceUpdate]) -> Result<(), Failure> {
        for update in updates {
            let request = self.requests.get(&update.parent).copied().unwrap_or(usize::MAX);
            let sample_index = update.sample_index;
            let wrong = |what| Failure::Update { request, sample_index, what };
            let outcome = self.outcomes.get_mut(&(request, sample_index));
            let outcome = outcome.ok_or(wrong("it was never submitted"))?;
            if outcome.finish.is_some() {
                return Err(wrong("it had ended"));
            }
            if update.token.is_some() {
                outcome.first_token_at = outcome.first_token_at.or(Some(self.clock));
            }
            outcome.tokens.extend(update.token);
            outcome.finish = update.finish;
            outcome.finished_at = self.clock;
        }
        Ok(())
    }

    fn report(self) -> Result<Report, Failure> {
        self.scheduler.check()?;
        if let Some(outcome) = self.outcomes.values().find(|outcome| outcome.finish.is_none()) {
            let Outcome { request, sample_index, .. } = *outcome;
            return Err(Failure::Update { request, sample_index, what: "it never ended" });
        }
        let statistics = self.scheduler.statistics();
        let (blocks, host_blocks) = (statistics.blocks.used_blocks, statistics.used_host_blocks);
        if blocks + host_blocks > 0 {
            return Err(Failure::Leak { blocks, host_blocks });
        }
        Ok(Report {
            outcomes: self.outcomes.into_values().collect(),
            refused: self.refused,
            statistics,
            elapsed: self.clock,
            steps: self.step,
        })
    }
}
