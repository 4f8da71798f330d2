use std::path::Path;

use engine::{Device, Engine, ModelConfig, SchemePlan, resolve_model};

use crate::{
    BenchError, Machine, RandomModel, Report, Row, Shape,
    measure::{Task, load, measure},
};

/// What is measured: every combination of models, formats, batches and lengths.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The models.
    pub sources: Vec<Source>,
    /// Weight formats; `none` keeps the checkpoint's.
    pub quants: Vec<SchemePlan>,
    /// Requests at once.
    pub batches: Vec<usize>,
    /// Tokens of each prompt.
    pub prompt_lens: Vec<usize>,
    /// New tokens of each request.
    pub output_lens: Vec<usize>,
    /// Where.
    pub device: Device,
    /// Threads of the CPU kernels; all cores by default.
    pub threads: Option<usize>,
    /// Measured runs of each row, after one to warm up.
    pub repeats: usize,
}

/// A model to measure.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// A model directory or Hub id.
    Model(String),
    /// Random weights in this shape.
    Shape(Shape),
}

/// How far a [`run`] has come.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Stage {
    /// A line for people.
    Note(String),
    /// Random weights are written, or a model is downloaded.
    Bytes {
        /// What.
        name: String,
        /// Bytes that are there.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A row could not be measured; the others go on.
    Failed(String),
}

impl Plan {
    /// One request of 128 tokens that generates 64 on the CPU, measured five times.
    pub fn new(sources: Vec<Source>) -> Self {
        Self {
            sources,
            quants: vec![SchemePlan::default()],
            batches: vec![1],
            prompt_lens: vec![128],
            output_lens: vec![64],
            device: Device::Cpu,
            threads: None,
            repeats: 5,
        }
    }

    fn check(&self) -> Result<(), BenchError> {
        if let Some(plan) = self.quants.iter().find(|plan| plan.needs_calibration()) {
            return Err(BenchError::NeedsCalibration { plan: plan.to_string() });
        }
        let least = |values: &[usize]| values.iter().copied().min().unwrap_or(0);
        let numbers = [
            ("the number of models", self.sources.len()),
            ("the number of formats", self.quants.len()),
            ("the batch", least(&self.batches)),
            ("the number of prompt tokens", least(&self.prompt_lens)),
            ("the number of output tokens", least(&self.output_lens)),
            ("the number of repeats", self.repeats),
            ("the number of threads", self.threads.unwrap_or(1)),
        ];
        match numbers.into_iter().find(|(_, value)| *value == 0) {
            Some((name, _)) => Err(BenchError::Zero { name }),
            None => Ok(()),
        }
    }

    fn tasks(&self) -> Vec<Task> {
        let mut tasks = Vec::new();
        for &batch in &self.batches {
            for &prompt_len in &self.prompt_lens {
                for &output_len in &self.output_lens {
                    tasks.push(Task { batch, prompt_len, output_len });
                }
            }
        }
        tasks
    }
}

/// Measures the machine, then every row of the plan. A row that fails stays without values and is
/// told to `progress`.
///
/// # Errors
/// If the plan makes no sense, the device or a model is not there, or not one row could be
/// measured.
pub fn run(plan: &Plan, progress: &mut dyn FnMut(Stage)) -> Result<Report, BenchError> {
    plan.check()?;
    let device = plan.device.select()?.device;
    let models = plan
        .sources
        .iter()
        .map(|source| Model::find(source, progress))
        .collect::<Result<Vec<_>, _>>()?;
    progress(Stage::Note("measuring the machine".to_owned()));
    let machine = Machine::measure(device, plan.threads)?;
    let mut report = Report { machine, rows: Vec::new() };
    let mut last_error = None;
    for model in &models {
        for quant in &plan.quants {
            for task in plan.tasks() {
                let row = model.empty_row(plan, quant, &task, &report.machine);
                let setting = Setting { quant, task, machine: &report.machine };
                let result = model.measure(plan, &setting, row.clone(), progress);
                report.rows.push(result.unwrap_or_else(|error| {
                    progress(Stage::Failed(format!("{}: {error}", model.name)));
                    last_error = Some(error);
                    row
                }));
            }
        }
    }
    match last_error {
        Some(error) if report.rows.iter().all(|row| row.ttft_ms.is_none()) => Err(error),
        _ => Ok(report),
    }
}

/// What one row is measured with.
struct Setting<'a> {
    quant: &'a SchemePlan,
    task: Task,
    machine: &'a Machine,
}

/// A model that is known to be there, or to be written first.
struct Model {
    name: String,
    path: String,
    random: Option<RandomModel>,
}

impl Model {
    fn find(source: &Source, progress: &mut dyn FnMut(Stage)) -> Result<Self, BenchError> {
        match source {
            Source::Shape(shape) => {
                let random = RandomModel::new(*shape, &std::env::temp_dir());
                let path = random.folder().display().to_string();
                Ok(Self { name: shape.name.to_owned(), path, random: Some(random) })
            }
            Source::Model(model) => {
                let path = resolve_model(model, &mut |file: &str, done, total| {
                    progress(Stage::Bytes { name: file.to_owned(), done, total });
                })?;
                ModelConfig::load(&path)?;
                let name = Path::new(model).file_name().unwrap_or(model.as_ref());
                let name = name.to_string_lossy().into_owned();
                Ok(Self { name, path: path.display().to_string(), random: None })
            }
        }
    }

    fn empty_row(&self, plan: &Plan, quant: &SchemePlan, task: &Task, machine: &Machine) -> Row {
        Row {
            setup: format!("engine {}", machine.device),
            shape: self.name.clone(),
            quant: quant.to_string(),
            batch: task.batch,
            prompt_tokens: task.prompt_len,
            output_tokens: task.output_len,
            repeats: plan.repeats,
            ..Row::default()
        }
    }

    fn measure(
        &self,
        plan: &Plan,
        setting: &Setting<'_>,
        row: Row,
        progress: &mut dyn FnMut(Stage),
    ) -> Result<Row, BenchError> {
        self.write(progress)?;
        let Setting { quant, task, machine } = setting;
        let Task { batch, prompt_len, output_len } = task;
        progress(Stage::Note(format!(
            "{} ({}): batch {batch}, {prompt_len} + {output_len} tokens",
            self.name, row.quant,
        )));
        // Each row loads the model anew, so that its peak memory is its own.
        let engine = Engine::builder(&self.path)
            .device(plan.device)
            .threads(machine.threads)
            .quantization((*quant).clone());
        let mut core = load(engine, &ModelConfig::load(&self.path)?, task)?;
        measure(&mut core, task, plan.repeats, machine, row)
    }

    fn write(&self, progress: &mut dyn FnMut(Stage)) -> Result<(), BenchError> {
        let Some(random) = self.random.as_ref().filter(|random| !random.is_complete()) else {
            return Ok(());
        };
        progress(Stage::Note(format!(
            "writing {} MiB of random weights to {}",
            random.num_bytes() >> 20,
            random.folder().display()
        )));
        random.write(&mut |done, total| {
            progress(Stage::Bytes { name: self.name.clone(), done, total });
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_is_a_row() {
        let plan = Plan {
            batches: vec![1, 8],
            prompt_lens: vec![16, 32, 64],
            ..Plan::new(vec![Source::Model("model".to_owned())])
        };
        assert_eq!(plan.tasks().len(), 6);
        assert_eq!(plan.tasks()[5], Task { batch: 8, prompt_len: 64, output_len: 64 });
    }

    #[test]
    fn plans_without_sense_are_refused_before_anything_is_measured() {
        let plan = Plan::new(vec![Source::Model("/no/such/model".to_owned())]);
        let refusal = |plan: Plan| run(&plan, &mut |_| ()).unwrap_err().to_string();
        assert!(refusal(Plan { batches: vec![1, 0], ..plan.clone() }).contains("batch is 0"));
        let calibrated = vec!["int4:method=gptq".parse().unwrap()];
        assert!(refusal(Plan { quants: calibrated, ..plan.clone() }).contains("method=gptq"));
        assert!(refusal(plan).contains("/no/such/model"));
    }
}
