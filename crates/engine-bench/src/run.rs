use std::path::Path;

use engine::{
    Engine, EngineBuilder, EngineCore, Execution, ModelConfig, SchemePlan, resolve_model,
};

use crate::{
    BenchError, Machine, Plan, RandomWeights, Report, Row, Shape, Source, Stage,
    machine::{peak_memory_bytes, reset_peak_memory, resident_bytes},
    measure::{Series, Task, load, warm_up},
};

/// Measures the machine, then every row of the plan. A row that fails stays without values and is
/// told to `progress`.
///
/// The formats of a model are measured in turns, one run of each, then the next of each, and
/// [`Row::prefill_ratio`] and [`Row::decode_ratio`] compare each with the first.
///
/// # Errors
/// If the plan makes no sense, the device or a model is not there, or not one row could be
/// measured.
pub fn run(plan: &Plan, progress: &mut dyn FnMut(Stage)) -> Result<Report, BenchError> {
    plan.check()?;
    let models = models(plan, &plan.tasks(), progress)?;
    let mut bench = Bench::new(plan, progress)?;
    for model in &models {
        let variants: Vec<_> = plan.quants.iter().cloned().map(Variant::kernels).collect();
        if plan.in_turns {
            bench.compare(model, &variants, &plan.tasks());
        } else {
            variants
                .iter()
                .for_each(|one| bench.compare(model, std::slice::from_ref(one), &plan.tasks()));
        }
    }
    bench.finish()
}

/// The models of a plan, each with room for the tasks.
pub(crate) fn models(
    plan: &Plan,
    tasks: &[Task],
    progress: &mut dyn FnMut(Stage),
) -> Result<Vec<Model>, BenchError> {
    plan.device.select()?;
    plan.sources.iter().map(|source| Model::find(source, tasks, progress)).collect()
}

/// One way to run a model.
#[derive(Debug, Clone)]
pub(crate) struct Variant {
    /// What the row's setup says after the device.
    pub label: String,
    pub execution: Execution,
    pub quant: SchemePlan,
}

impl Variant {
    pub fn kernels(quant: SchemePlan) -> Self {
        Self { label: String::new(), execution: Execution::Kernels, quant }
    }
}

/// A model that is known to be there.
pub(crate) struct Model {
    name: String,
    origin: Origin,
    config: ModelConfig,
}

enum Origin {
    Path(String),
    Random(Shape),
}

impl Model {
    fn find(
        source: &Source,
        tasks: &[Task],
        progress: &mut dyn FnMut(Stage),
    ) -> Result<Self, BenchError> {
        match source {
            Source::Shape(shape) => {
                // Random weights know no longest sequence.
                let wanted = tasks.iter().map(Task::wanted_context).max().unwrap_or(0);
                let shape = Shape { context: shape.context.max(wanted), ..*shape };
                let config = RandomWeights::new(shape).config()?;
                Ok(Self { name: shape.name.to_owned(), origin: Origin::Random(shape), config })
            }
            Source::Model(model) => {
                let path = resolve_model(model, &mut |file: &str, done, total| {
                    progress(Stage::Bytes { name: file.to_owned(), done, total });
                })?;
                let config = ModelConfig::load(&path)?;
                let name = Path::new(model).file_name().unwrap_or(model.as_ref());
                let name = name.to_string_lossy().into_owned();
                Ok(Self { name, origin: Origin::Path(path.display().to_string()), config })
            }
        }
    }

    fn builder(&self) -> EngineBuilder {
        match &self.origin {
            Origin::Path(path) => Engine::builder(path),
            Origin::Random(shape) => {
                let weights = RandomWeights::new(*shape);
                Engine::from_source(shape.name, self.config.clone(), weights)
            }
        }
    }
}

/// A model on the device, and what it took to get it there.
struct Loaded {
    core: EngineCore,
    peak_memory_bytes: Option<u64>,
    /// By how much it made the process larger.
    held_bytes: u64,
}

/// A run of a plan: the machine, and the rows so far.
pub(crate) struct Bench<'a> {
    plan: &'a Plan,
    progress: &'a mut dyn FnMut(Stage),
    report: Report,
    last_error: Option<BenchError>,
}

impl<'a> Bench<'a> {
    pub fn new(plan: &'a Plan, progress: &'a mut dyn FnMut(Stage)) -> Result<Self, BenchError> {
        progress(Stage::Note("measuring the machine".to_owned()));
        let machine = Machine::measure(plan.device, plan.threads)?;
        let report = Report { machine, rows: Vec::new() };
        Ok(Self { plan, progress, report, last_error: None })
    }

    /// The report, or the last error if there is no row with a value.
    pub fn finish(self) -> Result<Report, BenchError> {
        match self.last_error {
            Some(error) if self.report.rows.iter().all(|row| row.ttft_ms.is_none()) => Err(error),
            _ => Ok(self.report),
        }
    }

    /// Measures every task with every variant, the variants in turns: one row each, those of a task
    /// together.
    pub fn compare(&mut self, model: &Model, variants: &[Variant], tasks: &[Task]) {
        let mut others = 0;
        let mut loaded = Vec::with_capacity(variants.len());
        for variant in variants {
            let one = self.load(model, variant, tasks, others);
            let one = one.map_err(|error| self.failed(model, variant, error)).ok();
            others += one.as_ref().map_or(0, |one| one.held_bytes);
            loaded.push(one);
        }
        for task in tasks {
            let mut series: Vec<_> =
                loaded.iter().map(|one| one.as_ref().map(|_| Series::default())).collect();
            self.note(model, &format!("measuring {}", words(task)));
            for _ in 0..self.plan.repeats {
                for (i, one) in loaded.iter_mut().enumerate() {
                    let (Some(one), Some(own)) = (one, &mut series[i]) else { continue };
                    if let Err(error) = own.run(&mut one.core, task, &self.report.machine) {
                        self.failed(model, &variants[i], error);
                        series[i] = None;
                    }
                }
            }
            for (i, variant) in variants.iter().enumerate() {
                let row = self.row(model, variant, task, loaded[i].as_ref(), (&series[..], i));
                self.report.rows.push(row);
            }
        }
    }

    /// Loads a variant and runs each task once: peak memory is that of both, less what the `others`
    /// hold that are loaded. What the allocator kept of those that are gone is counted again where it
    /// is not used again: too much, never too little.
    fn load(
        &mut self,
        model: &Model,
        variant: &Variant,
        tasks: &[Task],
        others: u64,
    ) -> Result<Loaded, BenchError> {
        self.note(model, &format!("loading {}", variant.quant));
        let before = resident_bytes().unwrap_or_default();
        reset_peak_memory();
        let engine = model
            .builder()
            .device(self.plan.device)
            .execution(variant.execution)
            .threads(self.report.machine.threads)
            .quantization(variant.quant.clone());
        let mut core = load(engine, &model.config, tasks, self.plan.kv_format)?;
        for task in tasks {
            warm_up(&mut core, task)?;
        }
        let peak_memory_bytes = peak_memory_bytes().map(|peak| peak.saturating_sub(others));
        let held_bytes = resident_bytes().unwrap_or_default().saturating_sub(before);
        Ok(Loaded { core, peak_memory_bytes, held_bytes })
    }

    fn row(
        &self,
        model: &Model,
        variant: &Variant,
        task: &Task,
        loaded: Option<&Loaded>,
        (series, i): (&[Option<Series>], usize),
    ) -> Row {
        let machine = &self.report.machine;
        let label = match variant.label.as_str() {
            "" => String::new(),
            label => format!(": {label}"),
        };
        let row = Row {
            setup: format!("engine {}{label}", machine.device),
            shape: model.name.clone(),
            quant: variant.quant.to_string(),
            kv_cache: self.plan.kv_format.to_string(),
            batch: task.batch,
            prompt_tokens: task.prompt_len,
            output_tokens: task.output_len,
            repeats: self.plan.repeats,
            ..Row::default()
        };
        let (Some(loaded), Some(own)) = (loaded, &series[i]) else { return row };
        let mut row = own.row(loaded.core.info(), task, machine, row);
        row.peak_memory_bytes = loaded.peak_memory_bytes;
        if let (Some(Some(first)), true) = (series.first(), i > 0) {
            (row.prefill_ratio, row.decode_ratio) = own.ratios(first);
        }
        row
    }

    fn note(&mut self, model: &Model, what: &str) {
        (self.progress)(Stage::Note(format!("{}: {what}", model.name)));
    }

    fn failed(&mut self, model: &Model, variant: &Variant, error: BenchError) {
        (self.progress)(Stage::Failed(format!("{} ({}): {error}", model.name, variant.quant)));
        self.last_error = Some(error);
    }
}

fn words(task: &Task) -> String {
    let Task { batch, prompt_len, output_len, .. } = task;
    format!("batch {batch}, {prompt_len} + {output_len} tokens")
}
