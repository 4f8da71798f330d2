use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use engine::{
    CalibrationText, Device, Engine, EngineCore, EngineInfo, KvFormat, ModelConfig, SchemePlan,
    resolve_model,
};
use engine_core::WeightSource;

use super::{
    QualityReport, QualityRow,
    candidate::Candidate,
    layers::{errors_of_model, errors_of_plan, open_weights, read_config},
    reference::Reference,
};
use crate::{
    BenchError, Machine, Row,
    machine::reset_peak_memory,
    measure::{Task, measure},
    perplexity::{Method, text_windows},
};

/// What is compared, on which text.
#[derive(Debug, Clone)]
pub struct QualityPlan {
    /// The reference: a model directory, a GGUF file or a Hub id.
    pub model: String,
    /// What becomes of its weights; each is a candidate. `none` needs no mention.
    pub schemes: Vec<SchemePlan>,
    /// Files of the same model in other formats, candidates as they are.
    pub models: Vec<PathBuf>,
    /// What schemes with `method=gptq` or `method=awq` choose their codes for.
    pub calibration: Option<CalibrationText>,
    /// Formats of keys and values; each candidate runs with each, the reference with `f32`.
    pub kv_formats: Vec<KvFormat>,
    /// The text.
    pub text: String,
    /// Its name in the report.
    pub text_name: String,
    /// Which of its tokens are scored, with what before them.
    pub method: Method,
    /// Where [`Method::PerDocument`] cuts documents; the model's own limit is another.
    pub max_context: usize,
    /// Where models run.
    pub device: Device,
    /// Threads of the CPU kernels; all cores by default.
    pub threads: Option<usize>,
    /// How decoding is timed; `None` leaves speed and memory out.
    pub speed: Option<SpeedTask>,
}

/// One sequence whose decoding is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpeedTask {
    /// Tokens of the prompt.
    pub prompt_len: usize,
    /// New tokens.
    pub output_len: usize,
    /// Measured runs, after one to warm up.
    pub repeats: usize,
}

impl Default for SpeedTask {
    fn default() -> Self {
        Self { prompt_len: 32, output_len: 64, repeats: 3 }
    }
}

/// How far a run has come.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum QualityStage {
    /// Something begins.
    Note(String),
    /// Windows of the text.
    Windows {
        /// The candidate.
        name: String,
        /// Windows that are scored.
        done: usize,
        /// Windows of the text.
        total: usize,
    },
}

/// Positions in a block of the KV storage.
const BLOCK: usize = 16;

impl QualityPlan {
    /// A plan without candidates, scored by document, on the CPU.
    pub fn new(model: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            model: model.into(),
            schemes: Vec::new(),
            models: Vec::new(),
            calibration: None,
            kv_formats: vec![KvFormat::F32],
            text: text.into(),
            text_name: "the text".to_owned(),
            method: Method::PerDocument,
            max_context: 4096,
            device: Device::Cpu,
            threads: None,
            speed: Some(SpeedTask::default()),
        }
    }

    /// Measures the reference and every candidate, one after the other.
    ///
    /// The reference's logits of all scored positions lie in a temporary file meanwhile: four bytes
    /// for each token of the vocabulary at each position.
    ///
    /// # Errors
    /// If something cannot be loaded or scored; the run ends with the first candidate that fails.
    pub fn run(
        &self,
        progress: &mut (dyn FnMut(QualityStage) + Send),
    ) -> Result<QualityReport, BenchError> {
        self.check()?;
        let path = resolve_model(&self.model, &mut |_: &str, _, _| ())?;
        let reference = Candidate::of_plan(&path, &SchemePlan::default());
        let candidates = Candidate::all(self, &path)?;
        let machine = match self.speed {
            Some(_) => {
                progress(QualityStage::Note("measuring the machine".to_owned()));
                Some(Machine::measure(self.device, self.threads)?)
            }
            None => None,
        };
        let mut run = Run { plan: self, machine: machine.as_ref(), progress };
        let mut baseline = run.baseline(path, &reference)?;
        let mut rows = vec![baseline.row.clone()];
        for &format in self.kv_formats.iter().filter(|format| **format != KvFormat::F32) {
            rows.push(run.price(&reference, format, &mut baseline)?);
        }
        for candidate in &candidates {
            let mut note = |line: String| (run.progress)(QualityStage::Note(line));
            let calibrated = candidate.calibrate(self, &mut note)?;
            let candidate = calibrated.as_ref().map_or(candidate, |made| &made.candidate);
            for &format in &self.kv_formats {
                rows.push(run.price(candidate, format, &mut baseline)?);
            }
        }
        Ok(QualityReport {
            model: model_name(&baseline.path),
            text: self.text_name.clone(),
            method: self.method.to_string(),
            scored_tokens: baseline.logits.positions,
            rows,
            machine,
        })
    }

    fn check(&self) -> Result<(), BenchError> {
        let speed = self.speed.unwrap_or_default();
        let numbers = [
            ("max_context", self.max_context),
            ("prompt_len", speed.prompt_len),
            ("output_len", speed.output_len),
            ("repeats", speed.repeats),
            ("threads", self.threads.unwrap_or(1)),
            ("KV cache formats", self.kv_formats.len()),
        ];
        match numbers.into_iter().find(|(_, value)| *value == 0) {
            Some((name, _)) => Err(BenchError::Zero { name }),
            None => Ok(()),
        }
    }
}

/// The reference, once it has run.
struct Baseline {
    path: PathBuf,
    info: Arc<EngineInfo>,
    logits: Reference,
    row: QualityRow,
}

struct Run<'a> {
    plan: &'a QualityPlan,
    machine: Option<&'a Machine>,
    progress: &'a mut (dyn FnMut(QualityStage) + Send),
}

impl Run<'_> {
    /// Loads a candidate with room for one window and no more, and measures its speed.
    fn open(
        &mut self,
        candidate: &Candidate,
        format: KvFormat,
    ) -> Result<(EngineCore, QualityRow), BenchError> {
        let mut row = QualityRow {
            scheme: candidate.name.clone(),
            kv_cache: format.to_string(),
            ..QualityRow::default()
        };
        (self.progress)(QualityStage::Note(format!("loading {}", row.name())));
        reset_peak_memory();
        let path = candidate.path.display().to_string();
        let config = read_config(&candidate.path)?;
        let task = self.task(&config);
        let context = (task.prompt_len + task.output_len).max(self.context(&config));
        let blocks = context.div_ceil(BLOCK) + 1;
        let mut builder = Engine::builder(path)
            .device(self.plan.device)
            .quantization(candidate.plan.clone())
            .kv_cache_format(format)
            .block_size(BLOCK)
            .kv_cache_bytes(blocks * BLOCK * config.kv_bytes_per_token(format))
            .max_context(context)
            .max_sequences(1)
            .prefix_caching(false);
        if let Some(threads) = self.plan.threads {
            builder = builder.threads(threads);
        }
        let mut core = builder.load_core()?;
        if let (Some(speed), Some(machine)) = (self.plan.speed, self.machine) {
            (self.progress)(QualityStage::Note(format!("timing {}", row.name())));
            let timed = measure(&mut core, &task, speed.repeats, machine, Row::default())?;
            row.decode_tokens_per_s = timed.decode_tokens_per_s;
            row.decode_tokens_per_s_spread = timed.decode_tokens_per_s_spread;
            row.peak_memory_bytes = timed.peak_memory_bytes;
        }
        row.weight_bytes = core.info().memory.weight_bytes;
        row.load_s = core.info().load_time.as_secs_f64();
        Ok((core, row))
    }

    /// Measures the reference.
    fn baseline(&mut self, path: PathBuf, reference: &Candidate) -> Result<Baseline, BenchError> {
        let (mut core, mut row) = self.open(reference, KvFormat::F32)?;
        let info = core.info().clone();
        let context = self.context(&info.config);
        let windows = text_windows(&info, &self.plan.text, self.plan.method, context)?;
        let logits = Reference::record(&mut core, windows, &mut self.windows(&row.name()))?;
        row.set_score(logits.nll / logits.positions as f64);
        row.top1_agreement = 1.0;
        row.verdict = format!("{}: the reference", row.name());
        Ok(Baseline { path, info, logits, row })
    }

    /// Measures a candidate.
    fn price(
        &mut self,
        candidate: &Candidate,
        format: KvFormat,
        baseline: &mut Baseline,
    ) -> Result<QualityRow, BenchError> {
        let (mut core, mut row) = self.open(candidate, format)?;
        let sums = baseline.logits.compare(&mut core, &mut self.windows(&row.name()))?;
        let own_config = core.info().config.clone();
        drop(core);
        let positions = sums.positions as f64;
        row.set_score(sums.nll / positions);
        row.perplexity_change = row.perplexity / baseline.row.perplexity - 1.0;
        row.kl_nats = sums.kl / positions;
        row.top1_agreement = sums.same_top as f64 / positions;
        (self.progress)(QualityStage::Note(format!("layer errors of {}", row.name())));
        let config = &baseline.info.config;
        let weights: Box<dyn WeightSource> = open_weights(&baseline.path, config)?;
        row.set_layers(if candidate.is_other_model {
            let other = open_weights(&candidate.path, &own_config)?;
            errors_of_model(weights.as_ref(), other.as_ref(), config)?
        } else {
            errors_of_plan(weights.as_ref(), config, &candidate.plan)?
        });
        row.judge(baseline.row.weight_bytes);
        Ok(row)
    }

    fn windows(&mut self, name: &str) -> impl FnMut(usize, usize) {
        let name = name.to_owned();
        move |done, total| {
            (self.progress)(QualityStage::Windows { name: name.clone(), done, total });
        }
    }

    /// Positions of a window at most.
    fn context(&self, config: &ModelConfig) -> usize {
        let wanted = self.plan.method.longest_window().unwrap_or(self.plan.max_context);
        wanted.min(config.max_context())
    }

    /// What is timed, cut to the context of tiny models.
    fn task(&self, config: &ModelConfig) -> Task {
        let speed = self.plan.speed.unwrap_or_default();
        let prompt_len = speed.prompt_len.min(config.max_context() / 2).max(1);
        let room = config.max_context().saturating_sub(prompt_len).max(1);
        Task::new(1, prompt_len, speed.output_len.min(room))
    }
}

impl QualityRow {
    fn set_score(&mut self, mean_nll: f64) {
        self.mean_nll = mean_nll;
        self.perplexity = mean_nll.exp();
    }
}

fn model_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
