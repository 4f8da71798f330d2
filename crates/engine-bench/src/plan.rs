use engine::{Device, KvFormat, SchemePlan};

use crate::{BenchError, Shape, measure::Task};

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
    /// Positions that are filled before decoding is timed: rows of their own, beside those of
    /// `prompt_lens`, with the same batches and output lengths.
    pub depths: Vec<usize>,
    /// Format of keys and values.
    pub kv_format: KvFormat,
    /// Whether the formats of a model are held in memory together and measured in turns, so that
    /// whatever the machine does meanwhile happens to all of them.
    pub in_turns: bool,
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

/// How far a [run](crate::run()) has come.
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
            depths: Vec::new(),
            kv_format: KvFormat::F32,
            in_turns: true,
            device: Device::Cpu,
            threads: None,
            repeats: 5,
        }
    }

    pub(crate) fn check(&self) -> Result<(), BenchError> {
        if let Some(plan) = self.quants.iter().find(|plan| plan.needs_calibration()) {
            return Err(BenchError::NeedsCalibration { plan: plan.to_string() });
        }
        let least = |values: &[usize]| values.iter().copied().min().unwrap_or(0);
        let numbers = [
            ("the number of models", self.sources.len()),
            ("the number of formats", self.quants.len()),
            ("the batch", least(&self.batches)),
            ("the number of prompt tokens", least(&self.prompt_and_depth())),
            ("the number of output tokens", least(&self.output_lens)),
            ("the number of repeats", self.repeats),
            ("the number of threads", self.threads.unwrap_or(1)),
        ];
        match numbers.into_iter().find(|(_, value)| *value == 0) {
            Some((name, _)) => Err(BenchError::Zero { name }),
            None => Ok(()),
        }
    }

    fn prompt_and_depth(&self) -> Vec<usize> {
        self.prompt_lens.iter().chain(&self.depths).copied().collect()
    }

    pub(crate) fn tasks(&self) -> Vec<Task> {
        let mut tasks = Vec::new();
        for &batch in &self.batches {
            for prompt_len in self.prompt_and_depth() {
                for &output_len in &self.output_lens {
                    tasks.push(Task::new(batch, prompt_len, output_len));
                }
            }
        }
        tasks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run;

    #[test]
    fn every_combination_is_a_row() {
        let plan = Plan {
            batches: vec![1, 8],
            prompt_lens: vec![16, 32, 64],
            ..Plan::new(vec![Source::Model("model".to_owned())])
        };
        assert_eq!(plan.tasks().len(), 6);
        assert_eq!(plan.tasks()[5], Task::new(8, 64, 64));
        let plan = Plan { depths: vec![1000], prompt_lens: Vec::new(), ..plan };
        assert_eq!(plan.tasks(), [Task::new(1, 1000, 64), Task::new(8, 1000, 64)]);
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
