//! Proof, on your own model and device, that nothing but a request decides what it gets.
//!
//! Every [`Property`] runs random requests through an engine that is set up to disturb them
//! (neighbours, chunks, shared prefixes, a cache that is too small, cancellations) and compares
//! tokens and log-probabilities with the same requests run one by one, undisturbed. On the CPU they
//! must be equal bit for bit; on GPUs tokens must be equal and log-probabilities within a tolerance.
//!
//! ```
//! use engine::{Device, verify::{Property, Verifier}};
//! # let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/models/stories260K");
//! let verifier = Verifier::new(model, Device::Cpu).requests(2).open()?;
//! let result = verifier.check(Property::ChunkedEqualsWhole)?;
//! assert!(result.holds() && result.cases > 0);
//! # Ok::<(), engine::verify::VerifyError>(())
//! ```

mod compare;
mod property;
mod run;
mod workload;

use std::path::PathBuf;

use thiserror::Error;

pub use compare::{Comparison, Divergence, Observation};
pub use property::Property;
pub use run::{Setup, observe};
pub use workload::{Workload, WorkloadLimits};

use crate::{
    Device, Engine, EngineBuilder, EngineError, GenerateError, KvFormat, SchemePlan, SubmitError,
};

/// Largest difference of a log-probability that rounding on a GPU explains.
pub const GPU_TOLERANCE: f32 = 2e-4;

/// Why a property could not be checked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// An engine could not be loaded.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A request of the workload was refused.
    #[error("a request of the workload was refused: {0}")]
    Submit(#[from] SubmitError),
    /// A request of the workload failed.
    #[error("a request of the workload failed: {0}")]
    Generate(#[from] GenerateError),
}

/// What a property's check found.
#[derive(Debug, Clone, PartialEq)]
pub struct PropertyReport {
    /// Which property.
    pub property: Property,
    /// Completions that were compared.
    pub cases: usize,
    /// How often what the property is about happened: preemptions, cached tokens, chunks, …
    pub exercised: u64,
    /// What the comparison of all of them found.
    pub comparison: Comparison,
    /// What a log-probability may differ; `None` asks for equal bits.
    pub tolerance: Option<f32>,
}

impl PropertyReport {
    /// Whether every case is as it must be.
    pub fn holds(&self) -> bool {
        self.comparison.holds(self.tolerance)
    }
}

/// Describes what to verify.
#[derive(Debug, Clone)]
pub struct Verifier {
    model: String,
    device: Device,
    quantization: SchemePlan,
    requests: usize,
    seed: u64,
    tolerance: f32,
    kv_format: KvFormat,
    max_prompt_tokens: usize,
    max_new_tokens: usize,
}

impl Verifier {
    /// Verifies a model directory or Hub id on a device.
    pub fn new(model: impl Into<String>, device: Device) -> Self {
        Self {
            model: model.into(),
            device,
            quantization: SchemePlan::default(),
            requests: 8,
            seed: 0,
            tolerance: GPU_TOLERANCE,
            kv_format: KvFormat::default(),
            max_prompt_tokens: 40,
            max_new_tokens: 16,
        }
    }

    /// What becomes of the weights while they are loaded; they stay as they are by default.
    pub fn quantization(mut self, plan: SchemePlan) -> Self {
        self.quantization = plan;
        self
    }

    fn engine(&self, model: &str, device: Device) -> EngineBuilder {
        Engine::builder(model).device(device).quantization(self.quantization.clone())
    }

    /// Requests of each property; 8 by default.
    pub fn requests(mut self, requests: usize) -> Self {
        self.requests = requests;
        self
    }

    /// Seed of everything random; 0 by default.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// What a log-probability may differ on a GPU; [`GPU_TOLERANCE`] by default.
    pub fn tolerance(mut self, tolerance: f32) -> Self {
        self.tolerance = tolerance;
        self
    }

    /// How keys and values are stored, in the undisturbed runs and in all others. On a GPU a number
    /// that differs by rounding may fall into the neighbouring step of [`KvFormat::Int8`], so ask
    /// for a wider [`Verifier::tolerance`] there; tokens that are about as likely may differ too.
    pub fn kv_cache_format(mut self, format: KvFormat) -> Self {
        self.kv_format = format;
        self
    }

    /// Tokens of the longest prompt and of the longest completion.
    pub fn lengths(mut self, max_prompt_tokens: usize, max_new_tokens: usize) -> Self {
        self.max_prompt_tokens = max_prompt_tokens;
        self.max_new_tokens = max_new_tokens;
        self
    }

    /// Loads the model once, runs the undisturbed requests and keeps what they gave.
    ///
    /// # Errors
    /// If the model does not load or a request fails.
    pub fn open(self) -> Result<OpenVerifier, VerifyError> {
        let setup = Setup { kv_format: self.kv_format, ..Setup::plain() };
        let mut plain = setup.load(self.engine(&self.model, self.device), 0, None)?;
        let info = plain.info().clone();
        let half = (info.max_context / 2).max(1);
        let mixed = WorkloadLimits {
            vocab: info.config.vocab_size,
            max_prompt_tokens: self.max_prompt_tokens.clamp(1, half),
            max_new_tokens: self.max_new_tokens.clamp(1, half),
        };
        let growing = WorkloadLimits { max_prompt_tokens: mixed.max_prompt_tokens.min(3), ..mixed };
        let known = |limits, workload: Workload, plain: &mut crate::EngineCore| {
            let expected = workload.alone(plain)?;
            Ok::<_, VerifyError>(Known { limits, workload, expected })
        };
        let random = Workload::random(self.seed, self.requests, mixed);
        let grown = Workload::random(self.seed ^ 1, self.requests, growing).longest(growing);
        Ok(OpenVerifier {
            mixed: known(mixed, random, &mut plain)?,
            growing: known(growing, grown, &mut plain)?,
            path: info.path.clone(),
            device: info.device.device,
            kv_bytes_per_token: info.memory.kv_bytes_per_token,
            threads: info.threads,
            verifier: self,
        })
    }
}

/// A verifier that knows what is right: see [`Verifier::open`].
#[derive(Debug)]
pub struct OpenVerifier {
    verifier: Verifier,
    path: PathBuf,
    device: Device,
    kv_bytes_per_token: usize,
    threads: usize,
    /// Requests of all kinds.
    mixed: Known,
    /// Short prompts with long completions: they fit when they come, and then they grow.
    growing: Known,
}

/// Requests, and what they give when nothing disturbs them.
#[derive(Debug)]
struct Known {
    limits: WorkloadLimits,
    workload: Workload,
    /// Of each request, its completions.
    expected: Vec<Vec<Observation>>,
}

impl OpenVerifier {
    /// The device that is verified, never [`Device::Auto`].
    pub fn device(&self) -> Device {
        self.device
    }

    /// The properties that mean something on this device, in the order of a report.
    pub fn properties(&self) -> impl Iterator<Item = Property> + use<> {
        let cpu = self.device == Device::Cpu;
        Property::ALL.into_iter().filter(move |p| cpu || *p != Property::AnyThreads)
    }

    /// Checks one property.
    ///
    /// # Errors
    /// If an engine does not load or a request fails; a violation is no error.
    pub fn check(&self, property: Property) -> Result<PropertyReport, VerifyError> {
        let mut report = PropertyReport {
            property,
            cases: 0,
            exercised: 0,
            comparison: Comparison::default(),
            tolerance: (self.device != Device::Cpu).then_some(self.verifier.tolerance),
        };
        let known = match property {
            Property::PreemptedByRecompute | Property::PreemptedBySwap => &self.growing,
            _ => &self.mixed,
        };
        if property == Property::CachedEqualsRecomputed {
            self.check_recomputed(known, &mut report)?;
        } else {
            for setup in property.setups(&known.limits, self.threads, self.verifier.seed) {
                let setup = Setup { kv_format: self.verifier.kv_format, ..setup };
                self.check_setup(known, &setup, &mut report)?;
            }
        }
        Ok(report)
    }

    /// Runs the requests under a setup and compares.
    fn check_setup(
        &self,
        known: &Known,
        setup: &Setup,
        report: &mut PropertyReport,
    ) -> Result<(), VerifyError> {
        let max_context = known.limits.max_prompt_tokens + known.limits.max_new_tokens;
        let path = self.path.display().to_string();
        let engine = self.verifier.engine(&path, self.device);
        let mut core = setup.load(engine, self.kv_bytes_per_token, Some(max_context))?;
        let found = observe(&mut core, &known.workload, setup)?;
        let statistics = core.statistics();
        report.exercised += report.property.exercised(&statistics, &known.workload, setup);
        for (expected, found) in known.expected.iter().zip(&found) {
            report.cases += expected.len();
            report.comparison.add_request(expected, found);
        }
        Ok(())
    }

    /// Continues each completion from the middle, its tokens so far as the prompt of a new request
    /// to an engine without a prefix cache.
    fn check_recomputed(
        &self,
        known: &Known,
        report: &mut PropertyReport,
    ) -> Result<(), VerifyError> {
        let setup = Setup { kv_format: self.verifier.kv_format, ..Setup::plain() };
        let path = self.path.display().to_string();
        let engine = self.verifier.engine(&path, self.device);
        let mut core = setup.load(engine, self.kv_bytes_per_token, None)?;
        for (request, expected) in known.workload.requests().iter().zip(&known.expected) {
            for (index, expected) in expected.iter().enumerate() {
                for cut in workload::cuts(request, expected) {
                    let continued = workload::continued(request, index, expected, cut);
                    let alone = Workload::from_requests(vec![continued]).alone(&mut core)?;
                    let rest = expected.from(cut);
                    report.cases += 1;
                    report.exercised += cut as u64;
                    report.comparison.add_request(&[rest], &alone[0]);
                }
            }
        }
        Ok(())
    }
}

impl Setup {
    /// An engine with this setup on top of what the builder says. Room for keys and values is what the setup asks for, with
    /// `kv_bytes_per_token` known, else the default.
    ///
    /// # Errors
    /// If the model does not load.
    pub fn load(
        &self,
        engine: EngineBuilder,
        kv_bytes_per_token: usize,
        max_context: Option<usize>,
    ) -> Result<crate::EngineCore, EngineError> {
        let mut builder = engine
            .block_size(self.block_size)
            .max_batched_tokens(self.max_batched_tokens)
            .max_sequences(self.max_sequences)
            .prefix_caching(self.prefix_caching)
            .preemption(self.preemption)
            .kv_cache_format(self.kv_format)
            .swap_bytes(self.swap_tokens * kv_bytes_per_token);
        if let Some(threads) = self.threads {
            builder = builder.threads(threads);
        }
        if let Some(tokens) = self.kv_tokens.filter(|_| kv_bytes_per_token > 0) {
            builder = builder.kv_cache_bytes(tokens * kv_bytes_per_token);
            if let Some(max_context) = max_context {
                builder = builder.max_context(max_context);
            }
        }
        builder.load_core()
    }
}
