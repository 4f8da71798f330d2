//! Making a copy of a model with its matrices in few bits.
//!
//! Tensors are quantized as they are read and written as they are made: one matrix (with a
//! calibration text, one layer) is in memory at a time. The new directory is whole or not there.

mod directory;
mod error;
mod export;
mod layout;
mod report;
mod shards;
mod text;

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Instant,
};

use engine_core::{Calibration, Checkpoint, LoadError, MatrixTensor, ModelBackend, ModelConfig};
use engine_quant::{Scheme, SchemePlan};
use serde_json::Value;

pub use error::QuantizeError;
pub use layout::{CheckpointLayout, UnknownLayout};
pub use report::{QuantizeEvent, QuantizeReport, QuantizedMatrix, SchemeBytes};
pub use text::{CalibrationCut, CalibrationText, UnknownCut};

use crate::{Device, hub::is_gguf, runner::panic_message};
use directory::NewDirectory;
use export::Export;
use layout::Writer;
use shards::{ENTRY_BYTES, Shards};

/// Hears of events and says whether to go on.
type Listener<'a> = &'a mut (dyn FnMut(QuantizeEvent<'_>) -> ControlFlow<()> + Send);

/// What is made, from what, and where.
#[derive(Debug, Clone)]
pub struct QuantizeOptions {
    /// What becomes of each matrix.
    pub plan: SchemePlan,
    /// The new model's directory, which must not be there yet or be empty.
    pub output: PathBuf,
    /// How matrices stand in the new checkpoint.
    pub layout: CheckpointLayout,
    /// The text that methods such as `method=gptq` need.
    pub calibration: Option<CalibrationText>,
    /// Where the model runs on the text.
    pub device: Device,
    /// Threads; all cores if none.
    pub threads: Option<usize>,
    /// Whether what is at the output may be replaced.
    pub overwrite: bool,
    /// The most bytes of a file of weights, unless one tensor is larger.
    pub max_shard_bytes: u64,
}

impl QuantizeOptions {
    /// No text, the layout that suits, files of at most 4 GB.
    pub fn new(plan: SchemePlan, output: impl Into<PathBuf>) -> Self {
        Self {
            plan,
            output: output.into(),
            layout: CheckpointLayout::Auto,
            calibration: None,
            device: Device::Auto,
            threads: None,
            overwrite: false,
            max_shard_bytes: 4_000_000_000,
        }
    }
}

/// Writes a copy of a model, a directory or an id of the Hub, with its matrices in few bits; it
/// loads like any other. `progress` hears what happens and may end it with a break.
///
/// Everything in the checkpoint that is not quantized is copied as it is, and with it the
/// tokenizer, templates and licences. The report says what became of the matrices.
///
/// ```
/// use std::ops::ControlFlow;
/// use engine::{Engine, QuantizeOptions, Request, quantize};
/// # let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/models/stories260K");
/// # let dir = tempfile::tempdir()?;
/// # let output = dir.path().join("stories260K-int8");
/// let options = QuantizeOptions::new("int8".parse()?, &output);
/// let report = quantize(model, &options, &mut |_| ControlFlow::Continue(()))?;
/// assert!(report.total().bytes_after < report.total().bytes_before / 2);
/// let engine = Engine::builder(output.display().to_string()).load()?;
/// println!("{}", engine.generate(Request::text("Once").max_tokens(4))?.text());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// If the model cannot be read or is in few bits already, the plan does not suit it, the output is
/// there already or cannot be written. The output is then as it was before.
pub fn quantize(
    model: &str,
    options: &QuantizeOptions,
    progress: Listener<'_>,
) -> Result<QuantizeReport, QuantizeError> {
    let started = Instant::now();
    let source = Source::open(model, &options.plan, progress)?;
    let sequences = sequences(&source, options, progress)?;
    let writer = Writer::choose(options.layout, &source.matrices)?;
    let directory = NewDirectory::create(&options.output, &source.path, options.overwrite)?;
    let shards = Shards::new(&directory, header_len(&source, &writer), options.max_shard_bytes);
    let mut export = Export::new(&source, writer, shards, progress);
    export.tell_layout()?;
    let mut run = || match &sequences {
        Some(sequences) => {
            let Source { config, checkpoint, .. } = &source;
            let plan = &options.plan;
            let task = Calibration { config, source: checkpoint, plan, sequences };
            calibrate(&task, options.device, &mut export)
        }
        None => export.round_to_nearest(),
    };
    match options.threads {
        Some(threads) => {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let failed = |error: rayon::ThreadPoolBuildError| QuantizeError::Threads {
                reason: error.to_string(),
            };
            pool.map_err(failed)?.install(run)?;
        }
        None => run()?,
    }
    let (writer, summary) = export.finish()?;
    directory.copy_from(&source.path)?;
    write_config(&source.path, &writer, &directory)?;
    directory.finish()?;
    Ok(QuantizeReport {
        output: options.output.clone(),
        layout: writer.layout(),
        matrices: summary.matrices,
        schemes: summary.schemes,
        kept: summary.kept,
        duration: started.elapsed(),
    })
}

/// The model as it is, and what is to become of it.
struct Source {
    path: PathBuf,
    config: ModelConfig,
    checkpoint: Checkpoint,
    /// All matrices with their schemes.
    matrices: Vec<(MatrixTensor, Scheme)>,
}

impl Source {
    fn open(model: &str, plan: &SchemePlan, progress: Listener<'_>) -> Result<Self, QuantizeError> {
        let mut report = |file: &str, bytes_done, bytes_total| {
            // A download goes on: what is there need not be fetched again.
            let _ = progress(QuantizeEvent::Download { file, bytes_done, bytes_total });
        };
        let path = crate::resolve_model(model, &mut report)?;
        if is_gguf(&path) {
            return Err(QuantizeError::Gguf { path });
        }
        let config = ModelConfig::load(&path)?;
        if config.quantization.is_some() {
            return Err(QuantizeError::AlreadyQuantized { path });
        }
        let checkpoint = Checkpoint::open(&path)?;
        let matrices = schemes(&config, plan, checkpoint.model_prefix())?;
        Ok(Self { path, config, checkpoint, matrices })
    }
}

/// All matrices of a model with what a plan makes of them.
fn schemes(
    config: &ModelConfig,
    plan: &SchemePlan,
    prefix: &str,
) -> Result<Vec<(MatrixTensor, Scheme)>, QuantizeError> {
    let matrices = MatrixTensor::all(config, prefix);
    let names: Vec<&str> = matrices.iter().flat_map(MatrixTensor::rule_names).collect();
    if let Some(pattern) = plan.unmatched_rule(&names, config.num_layers) {
        return Err(QuantizeError::Load(LoadError::UnmatchedRule {
            plan: plan.to_string(),
            pattern: pattern.to_owned(),
            example: names.last().map_or_else(String::new, |name| (*name).to_owned()),
        }));
    }
    let scheme = |matrix: MatrixTensor| match matrix.scheme(plan, config.num_layers) {
        Some(scheme) => Ok((matrix, scheme)),
        None => Err(QuantizeError::FusedRule { tensor: matrix.name }),
    };
    let matrices = matrices.into_iter().map(scheme).collect::<Result<Vec<_>, _>>()?;
    if matrices.iter().all(|(_, scheme)| *scheme == Scheme::Keep) {
        return Err(QuantizeError::NothingToQuantize { plan: plan.to_string() });
    }
    Ok(matrices)
}

/// The calibration text in tokens, if some matrix needs it.
fn sequences(
    source: &Source,
    options: &QuantizeOptions,
    progress: Listener<'_>,
) -> Result<Option<Vec<Vec<u32>>>, QuantizeError> {
    let needed = source.matrices.iter().any(|(_, scheme)| scheme.needs_calibration());
    let text = match (&options.calibration, needed) {
        (Some(text), true) => text,
        (None, true) => {
            return Err(QuantizeError::NoCalibration { plan: options.plan.to_string() });
        }
        (None, false) => return Ok(None),
        (Some(_), false) => {
            let note = "the scheme rounds to nearest, the calibration text is not used";
            tell(progress, QuantizeEvent::Note(note))?;
            return Ok(None);
        }
    };
    let sequences = text::sequences(text, &source.config, &source.path)?;
    let tokens = sequences.iter().map(Vec::len).sum();
    tell(progress, QuantizeEvent::Calibration { sequences: sequences.len(), tokens })?;
    Ok(Some(sequences))
}

fn tell(progress: Listener<'_>, event: QuantizeEvent<'_>) -> Result<(), QuantizeError> {
    match progress(event) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(QuantizeError::Interrupted),
    }
}

/// Room that the header of all tensors in one file needs at most.
fn header_len(source: &Source, writer: &Writer) -> usize {
    /// The longest suffix of a part, `.column_order`.
    const SUFFIX: usize = 13;
    let kept = source.checkpoint.names().map(|name| name.len() + ENTRY_BYTES);
    let quantized = source.matrices.iter().filter(|(_, scheme)| *scheme != Scheme::Keep);
    let parts = quantized
        .map(|(matrix, _)| writer.max_parts() * (matrix.name.len() + SUFFIX + ENTRY_BYTES));
    ENTRY_BYTES + kept.chain(parts).sum::<usize>()
}

/// Calibrates on a device: here it becomes a type.
fn calibrate(
    task: &Calibration<'_>,
    device: Device,
    export: &mut Export<'_>,
) -> Result<(), QuantizeError> {
    match device.select()?.device {
        #[cfg(feature = "cpu")]
        Device::Cpu => calibrate_on::<burn_flex::Flex>(task, &burn_flex::FlexDevice, export),
        #[cfg(feature = "wgpu")]
        Device::Wgpu => {
            calibrate_on::<burn_wgpu::Wgpu>(task, &burn_wgpu::WgpuDevice::default(), export)
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(index) => {
            calibrate_on::<burn_cuda::Cuda>(task, &burn_cuda::CudaDevice::new(index), export)
        }
        other => {
            let message = format!("`{other}` is not in this build");
            Err(QuantizeError::DeviceFailed { message })
        }
    }
}

fn calibrate_on<B: ModelBackend>(
    task: &Calibration<'_>,
    device: &B::Device,
    export: &mut Export<'_>,
) -> Result<(), QuantizeError> {
    let run = std::panic::AssertUnwindSafe(|| export.calibrate::<B>(task, device));
    std::panic::catch_unwind(run).unwrap_or_else(|payload| {
        Err(QuantizeError::DeviceFailed { message: panic_message(payload.as_ref()) })
    })
}

/// The model's configuration, all of it in its order, with how its matrices are in few bits.
fn write_config(
    model: &Path,
    writer: &Writer,
    directory: &NewDirectory,
) -> Result<(), QuantizeError> {
    const KEY: &str = "quantization_config";
    let path = model.join("config.json");
    let bytes = std::fs::read(&path).map_err(QuantizeError::io("read", &path))?;
    let wrong = |problem: String| QuantizeError::Config { path: path.clone(), problem };
    let mut config: Value =
        serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    let Value::Object(fields) = &mut config else {
        return Err(wrong("a JSON object is expected".to_owned()));
    };
    let Some(quantization) = writer.config() else {
        return Err(wrong("no matrix was quantized".to_owned()));
    };
    if let Some(name) = writer.second_config_file() {
        directory.write(name, format!("{quantization:#}\n").as_bytes())?;
    }
    fields.insert(KEY.to_owned(), quantization);
    directory.write("config.json", format!("{config:#}\n").as_bytes())
}
