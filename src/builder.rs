use std::{path::PathBuf, sync::Arc, time::Instant};

use engine_core::{
    KvFormat, LoadProgress, ModelBackend, ModelConfig, RopeLength, WeightSource, load,
    planned_weight_bytes,
};
use engine_quant::SchemePlan;
use engine_sched::{CacheEpochs, Preemption, Scheduler, SchedulerConfig};

use crate::execute::ModelExecutor;
use crate::memory::{KvSize, KvWish};
use crate::model_files::ModelFiles;
use crate::runner::{ModelRunner, Runner, panic_message};
use crate::step::EngineCore;
use crate::threads::Threads;
use crate::{Device, Engine, EngineError, EngineInfo, Execution, MemoryPlan, Selected, memory};

/// How far making an engine has come.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// A file is downloaded.
    Download {
        /// Its name.
        file: String,
        /// Bytes that are there.
        bytes_done: u64,
        /// Bytes in all.
        bytes_total: u64,
    },
    /// Weights go to the device.
    Load(LoadProgress),
}

/// Where a model comes from.
enum Origin {
    /// A directory, a GGUF file or a Hub id.
    Named(String),
    Source(Box<SourceModel>),
}

/// A model whose weights are in no file.
struct SourceModel {
    name: String,
    config: ModelConfig,
    weights: Box<dyn WeightSource + Send>,
}

/// Describes an engine before it is loaded.
///
/// ```
/// use engine::{Device, Engine};
/// # let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/models/stories260K");
/// let engine = Engine::builder(model)
///     .device(Device::Cpu)
///     .threads(1)
///     .max_context(256)
///     .kv_cache_bytes(8 << 20)
///     .load()?;
/// assert_eq!(engine.info().max_context, 256);
/// # Ok::<(), engine::EngineError>(())
/// ```
pub struct EngineBuilder {
    origin: Origin,
    device: Device,
    execution: Execution,
    quantization: SchemePlan,
    threads: Option<usize>,
    kv_size: KvSize,
    kv_format: KvFormat,
    swap_bytes: usize,
    preemption: Preemption,
    block_size: usize,
    max_context: Option<usize>,
    max_batched_tokens: usize,
    max_sequences: usize,
    max_queue: usize,
    prefix_caching: bool,
    map_files: bool,
    progress: Box<dyn FnMut(Progress) + Send>,
}

impl EngineBuilder {
    pub(crate) fn named(model: String) -> Self {
        Self::new(Origin::Named(model))
    }

    pub(crate) fn of_source(
        name: String,
        config: ModelConfig,
        weights: Box<dyn WeightSource + Send>,
    ) -> Self {
        Self::new(Origin::Source(Box::new(SourceModel { name, config, weights })))
    }

    fn new(origin: Origin) -> Self {
        Self {
            origin,
            device: Device::Auto,
            execution: Execution::default(),
            quantization: SchemePlan::default(),
            threads: None,
            kv_size: KvSize::Default,
            kv_format: KvFormat::default(),
            swap_bytes: 0,
            preemption: Preemption::default(),
            block_size: 16,
            max_context: None,
            max_batched_tokens: 512,
            max_sequences: 256,
            max_queue: 4096,
            prefix_caching: true,
            map_files: true,
            progress: Box::new(|_| ()),
        }
    }

    /// Where to run; [`Device::Auto`] by default.
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// With which operations to compute; [`Execution::Kernels`] by default. The others are there to
    /// be compared with.
    pub fn execution(mut self, execution: Execution) -> Self {
        self.execution = execution;
        self
    }

    /// What becomes of the weights while they are loaded; by default they stay as the file has
    /// them. A matrix that the file has in few bits keeps them in any case.
    pub fn quantization(mut self, plan: SchemePlan) -> Self {
        self.quantization = plan;
        self
    }

    /// Threads of the CPU kernels; all cores by default.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Bytes of the KV storage, allocated once, rounded up to a whole block; by default room for
    /// several contexts, but at most two fifths of the memory that the weights leave free.
    pub fn kv_cache_bytes(mut self, bytes: usize) -> Self {
        self.kv_size = KvSize::Bytes(bytes);
        self
    }

    /// Makes the KV storage this part, above 0 and at most 1, of the memory that the weights leave
    /// free, rounded down to a whole block; only where the device says how much is free.
    pub fn kv_cache_fraction(mut self, fraction: f64) -> Self {
        self.kv_size = KvSize::Fraction(fraction);
        self
    }

    /// How keys and values are stored; [`KvFormat::F32`] by default. [`KvFormat::Int8`] takes a
    /// little more than a quarter of the bytes, so that as many bytes hold almost four times the
    /// tokens, and attention over long contexts reads that much less.
    pub fn kv_cache_format(mut self, format: KvFormat) -> Self {
        self.kv_format = format;
        self
    }

    /// Host memory for sequences that make room for others; without it they are recomputed.
    pub fn swap_bytes(mut self, bytes: usize) -> Self {
        self.swap_bytes = bytes;
        self
    }

    /// What becomes of what a sequence has computed when it makes room for another: saved in the
    /// swap memory or computed again, by default whichever is measured to be cheaper.
    pub fn preemption(mut self, preemption: Preemption) -> Self {
        self.preemption = preemption;
        self
    }

    /// Positions in one block of the KV storage; 16 by default.
    pub fn block_size(mut self, block_size: usize) -> Self {
        self.block_size = block_size;
        self
    }

    /// Positions of the longest sequence; by default the model's own limit, or what fits.
    pub fn max_context(mut self, max_context: usize) -> Self {
        self.max_context = Some(max_context);
        self
    }

    /// Tokens of one step over all sequences; longer prompts run in chunks. 512 by default.
    pub fn max_batched_tokens(mut self, tokens: usize) -> Self {
        self.max_batched_tokens = tokens;
        self
    }

    /// Sequences that run at once; 256 by default.
    pub fn max_sequences(mut self, sequences: usize) -> Self {
        self.max_sequences = sequences;
        self
    }

    /// Requests that may wait; 4096 by default.
    pub fn max_queue(mut self, requests: usize) -> Self {
        self.max_queue = requests;
        self
    }

    /// Whether requests share the blocks of equal prefixes; yes by default.
    pub fn prefix_caching(mut self, on: bool) -> Self {
        self.prefix_caching = on;
        self
    }

    /// Whether weights stay where their files are mapped, as far as the backend reads them there; yes
    /// by default. It starts at once, and the system keeps one copy for all processes, but the files
    /// must not be changed in place. Without it weights are copied, for files on a network or such as
    /// will be overwritten.
    pub fn map_files(mut self, on: bool) -> Self {
        self.map_files = on;
        self
    }

    /// Hears how far downloading and loading have come.
    pub fn on_progress(mut self, progress: impl FnMut(Progress) + Send + 'static) -> Self {
        self.progress = Box::new(progress);
        self
    }

    /// Loads the model and starts the engine's thread.
    ///
    /// # Errors
    /// If the model cannot be found or read, the device is not there, or memory does not suffice.
    pub fn load(self) -> Result<Engine, EngineError> {
        Engine::spawn(self.load_core()?)
    }

    /// Loads the model for a caller that drives it with [`EngineCore::step`].
    ///
    /// # Errors
    /// As [`EngineBuilder::load`].
    pub fn load_core(mut self) -> Result<EngineCore, EngineError> {
        let started = Instant::now();
        self.check()?;
        let (path, files) = self.open()?;
        let ModelFiles { config, generation, tokenizer, weights } = files;
        let device = self.device.select()?;
        if let Some(problem) = self.execution.problem(device.device) {
            return Err(setting("execution", problem));
        }
        let memory = self.plan(&config, weights.as_ref(), &device)?;
        let max_context = self.context(&config)?.min(memory.kv_tokens);
        let threads = self.threads.unwrap_or_else(available_threads);

        let scheduler = Scheduler::new(self.scheduler_config(&config, &memory, max_context))
            .map_err(|error| setting("scheduler", error))?;
        let runner = self.runner(&config, weights.as_ref(), &device, &memory, threads)?;
        let weights = runner.weights();
        let info = EngineInfo {
            path,
            generation,
            tokenizer,
            device,
            threads,
            memory: MemoryPlan { weight_bytes: weights.num_bytes, ..memory },
            step_weight_bytes: weights.step_bytes,
            weight_formats: weights.formats,
            multiply_adds: weights.multiply_adds,
            load_report: weights.report,
            max_context,
            load_time: started.elapsed(),
            config,
        };
        let executor = ModelExecutor::new(runner, info.config.vocab_size, self.block_size);
        Ok(EngineCore::new(Arc::new(info), scheduler, executor))
    }

    fn check(&self) -> Result<(), EngineError> {
        let positive = [
            ("threads", self.threads.unwrap_or(1)),
            ("block_size", self.block_size),
            ("max_context", self.max_context.unwrap_or(1)),
            ("max_batched_tokens", self.max_batched_tokens),
            ("max_sequences", self.max_sequences),
        ];
        if let KvSize::Fraction(part) = self.kv_size
            && !(part > 0.0 && part <= 1.0)
        {
            return Err(setting("kv_cache_fraction", format!("{part} is not in 0 < part <= 1")));
        }
        match positive.into_iter().find(|(_, value)| *value == 0) {
            Some((name, _)) => Err(setting(name, "0 is too few, give at least 1")),
            None => Ok(()),
        }
    }

    fn open(&mut self) -> Result<(PathBuf, ModelFiles), EngineError> {
        let model = match std::mem::replace(&mut self.origin, Origin::Named(String::new())) {
            Origin::Named(model) => model,
            Origin::Source(model) => {
                let SourceModel { name, config, weights } = *model;
                let files = ModelFiles { config, generation: None, tokenizer: None, weights };
                return Ok((PathBuf::from(name), files));
            }
        };
        let progress = &mut self.progress;
        let mut report = |file: &str, bytes_done, bytes_total| {
            progress(Progress::Download { file: file.to_owned(), bytes_done, bytes_total });
        };
        let path = crate::resolve_model(&model, &mut report)?;
        let files = ModelFiles::open(&path, self.map_files)?;
        Ok((path, files))
    }

    /// Positions of the longest sequence, before memory has its say.
    fn context(&self, config: &ModelConfig) -> Result<usize, EngineError> {
        let limit = config.max_context();
        match self.max_context {
            Some(wanted) if wanted > limit => {
                Err(setting("max_context", format!("{wanted} is more than the model's {limit}")))
            }
            wanted => Ok(wanted.unwrap_or(limit)),
        }
    }

    fn plan(
        &self,
        config: &ModelConfig,
        source: &dyn WeightSource,
        device: &Selected,
    ) -> Result<MemoryPlan, EngineError> {
        let free = match device.device {
            Device::Cpu => memory::free_host_bytes(),
            _ => None,
        };
        if matches!(self.kv_size, KvSize::Fraction(_)) && free.is_none() {
            let message = "the device does not say how much is free: give kv_cache_bytes";
            return Err(setting("kv_cache_fraction", message));
        }
        let wish = KvWish {
            format: self.kv_format,
            size: self.kv_size,
            context: self.context(config)?,
            whole_context: self.max_context.is_some(),
            block_size: self.block_size,
        };
        let weights = planned_weight_bytes(config, source, &self.quantization);
        let plan = MemoryPlan::new(config, weights, free, &wish);
        if wish.whole_context && plan.kv_tokens < wish.context {
            let needed = wish.context.saturating_mul(plan.kv_bytes_per_token);
            let message = format!(
                "{} tokens need a KV cache of {needed} bytes, {} hold {}: give it more, or ask for \
                 a shorter context",
                wish.context, plan.kv_cache_bytes, plan.kv_tokens,
            );
            return Err(setting("max_context", message));
        }
        if plan.fits() { Ok(plan) } else { Err(EngineError::DoesNotFit(plan)) }
    }

    fn scheduler_config(
        &self,
        config: &ModelConfig,
        memory: &MemoryPlan,
        max_context: usize,
    ) -> SchedulerConfig {
        let block_bytes = memory.kv_bytes_per_token.saturating_mul(self.block_size).max(1);
        SchedulerConfig {
            num_blocks: memory.kv_tokens / self.block_size,
            block_size: self.block_size,
            max_batched_tokens: self.max_batched_tokens,
            max_sequences: self.max_sequences,
            // The last token is chosen and never computed, so it needs no position.
            max_context: max_context + 1,
            max_queue: self.max_queue,
            prefix_caching: self.prefix_caching,
            cache_epochs: cache_epochs(config),
            num_host_blocks: self.swap_bytes / block_bytes,
            preemption: self.preemption,
            window: widest_window(config),
            ..SchedulerConfig::default()
        }
    }

    /// The one place where a device becomes a type.
    fn runner(
        &mut self,
        config: &ModelConfig,
        source: &dyn WeightSource,
        device: &Selected,
        memory: &MemoryPlan,
        threads: usize,
    ) -> Result<Box<dyn Runner>, EngineError> {
        match device.device {
            #[cfg(feature = "cpu")]
            Device::Cpu => {
                let threads = Threads::new(threads).map_err(|error| setting("threads", error))?;
                let device = burn_flex::FlexDevice;
                match self.execution {
                    #[cfg(feature = "composed")]
                    Execution::Composed => self
                        .load_on::<burn_autodiff::Autodiff<burn_flex::Flex>>(
                            config, source, memory, device, threads,
                        ),
                    _ => self.load_on::<burn_flex::Flex>(config, source, memory, device, threads),
                }
            }
            #[cfg(feature = "wgpu")]
            Device::Wgpu => {
                let (device, threads) = (burn_wgpu::WgpuDevice::default(), Threads::default());
                match self.execution {
                    #[cfg(feature = "composed")]
                    Execution::Composed => self
                        .load_on::<burn_autodiff::Autodiff<burn_wgpu::Wgpu>>(
                            config, source, memory, device, threads,
                        ),
                    #[cfg(feature = "fusion")]
                    Execution::Fusion => self.load_on::<burn_fusion::Fusion<burn_wgpu::Wgpu>>(
                        config, source, memory, device, threads,
                    ),
                    _ => self.load_on::<burn_wgpu::Wgpu>(config, source, memory, device, threads),
                }
            }
            #[cfg(feature = "cuda")]
            Device::Cuda(index) => {
                let (device, threads) = (burn_cuda::CudaDevice::new(index), Threads::default());
                match self.execution {
                    #[cfg(feature = "composed")]
                    Execution::Composed => self
                        .load_on::<burn_autodiff::Autodiff<burn_cuda::Cuda>>(
                            config, source, memory, device, threads,
                        ),
                    #[cfg(feature = "fusion")]
                    Execution::Fusion => self.load_on::<burn_fusion::Fusion<burn_cuda::Cuda>>(
                        config, source, memory, device, threads,
                    ),
                    _ => self.load_on::<burn_cuda::Cuda>(config, source, memory, device, threads),
                }
            }
            other => Err(setting("device", format!("`{other}` is not in this build"))),
        }
    }

    fn load_on<B: ModelBackend>(
        &mut self,
        config: &ModelConfig,
        source: &dyn WeightSource,
        memory: &MemoryPlan,
        device: B::Device,
        threads: Threads,
    ) -> Result<Box<dyn Runner>, EngineError> {
        let (block_size, slots, format) = (self.block_size, memory.kv_tokens, memory.kv_format);
        let (plan, progress) = (&self.quantization, &mut self.progress);
        let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let report = &mut |done| progress(Progress::Load(done));
            let model = threads
                .load(|| load::<B>(config.clone(), source, plan, &device, report))
                .map_err(|error| setting("threads", error))??;
            let kv = model.allocate_kv(slots, format);
            Ok(Box::new(ModelRunner::new(model, kv, block_size, threads)) as Box<dyn Runner>)
        }));
        made.unwrap_or_else(|payload| {
            Err(EngineError::LoadFailed { message: panic_message(payload.as_ref()) })
        })
    }
}

fn setting(setting: &'static str, message: impl ToString) -> EngineError {
    EngineError::Setting { setting, message: message.to_string() }
}

fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The positions that some layer still reads, where every layer has a window.
fn widest_window(config: &ModelConfig) -> Option<usize> {
    let windows: Option<Vec<usize>> = config.layers.iter().map(|layer| layer.window).collect();
    windows?.into_iter().max()
}

/// How keys depend on the length of their sequence.
fn cache_epochs(config: &ModelConfig) -> CacheEpochs {
    let lengths = config.ropes.iter().map(|rope| rope.length());
    lengths.fold(CacheEpochs::Constant, |epochs, length| match length {
        RopeLength::Fixed => epochs,
        RopeLength::Threshold(len) => CacheEpochs::Threshold(len),
        RopeLength::EveryLengthAbove(len) => CacheEpochs::EveryLengthAbove(len),
    })
}
