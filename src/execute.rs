//! Runs what the scheduler decided: pack, forward, sample.

use std::collections::HashMap;

use engine_core::ops::sample::TokenChoice;
use engine_core::sampling::{
    SampleScratch, Sampled, SamplingError, SamplingParams, TokenHistory, logprobs_of, sample,
};
use engine_core::{BatchInput, LogitRows, SequenceChunk};
use engine_sched::{Executor, SampleSlot, ScheduledBatch, ScheduledChunk, SequenceId, TokenId};

use crate::runner::{ExecuteError, Logits, Runner, Step};
use crate::{PromptOutput, PromptReport};

/// How one sequence's tokens are chosen, and what it has seen.
#[derive(Debug, Clone)]
struct SamplingState {
    params: SamplingParams,
    history: TokenHistory,
}

/// The model as the scheduler sees it, with the state that sampling needs.
pub(crate) struct ModelExecutor {
    runner: Box<dyn Runner>,
    vocab_size: usize,
    block_size: usize,
    sequences: HashMap<SequenceId, SamplingState>,
    prompts: HashMap<SequenceId, PromptRecorder>,
    /// What the last step chose beside the tokens, or why it could not.
    chosen: HashMap<SequenceId, Result<Sampled, SamplingError>>,
    /// A step failed: what the cache holds is not known any more.
    poisoned: bool,
}

impl ModelExecutor {
    pub fn new(runner: Box<dyn Runner>, vocab_size: usize, block_size: usize) -> Self {
        Self {
            runner,
            vocab_size,
            block_size,
            sequences: HashMap::new(),
            prompts: HashMap::new(),
            chosen: HashMap::new(),
            poisoned: false,
        }
    }

    /// Makes a sequence known before its first step.
    pub fn add(
        &mut self,
        sequence: SequenceId,
        prompt: &[u32],
        params: SamplingParams,
        report: PromptReport,
    ) {
        let history = TokenHistory::from_prompt(prompt);
        self.sequences.insert(sequence, SamplingState { params, history });
        if report != PromptReport::None {
            self.prompts.insert(sequence, PromptRecorder::new(prompt, report));
        }
    }

    /// Makes `child` a copy of `parent` that draws with the parent's seed plus `index`.
    pub fn fork(&mut self, parent: SequenceId, child: SequenceId, index: usize) {
        if let Some(state) = self.sequences.get(&parent) {
            let mut state = state.clone();
            state.params.seed = state.params.seed.wrapping_add(index as u64);
            self.sequences.insert(child, state);
        }
    }

    /// Forgets a sequence.
    pub fn remove(&mut self, sequence: SequenceId) {
        self.sequences.remove(&sequence);
        self.prompts.remove(&sequence);
    }

    /// The report on a sequence's prompt, once.
    pub fn take_prompt(
        &mut self,
        sequence: SequenceId,
    ) -> Option<Result<PromptOutput, SamplingError>> {
        self.prompts.remove(&sequence).map(|recorder| match recorder.error {
            Some(error) => Err(error),
            None => Ok(recorder.output),
        })
    }

    /// How a sequence's last token was chosen, once.
    pub fn take_chosen(&mut self, sequence: SequenceId) -> Option<Result<Sampled, SamplingError>> {
        self.chosen.remove(&sequence)
    }

    fn record_prompts(
        &mut self,
        batch: &ScheduledBatch,
        rows: &RowStarts,
        logits: &dyn Logits,
    ) -> Result<(), ExecuteError> {
        for (chunk, &start) in batch.chunks.iter().zip(&rows.0) {
            if chunk.logits != engine_sched::LogitRows::All {
                continue;
            }
            let Some(recorder) = self.prompts.get_mut(&chunk.sequence) else { continue };
            let wanted: Vec<u32> = (start..start + chunk.tokens.len() as u32).collect();
            let values = logits.download(&wanted)?;
            for (row, position) in values.chunks(self.vocab_size).zip(chunk.start_position..) {
                recorder.record(position, row);
            }
        }
        Ok(())
    }

    /// Chooses a token for each sample of the batch, on the device where that is enough.
    fn sample(
        &self,
        batch: &ScheduledBatch,
        rows: &RowStarts,
        logits: &dyn Logits,
    ) -> Result<Vec<Result<Sampled, SamplingError>>, ExecuteError> {
        let on_device = |slot: &SampleSlot| self.state(slot).is_none_or(|s| s.params.on_device());
        let row = |slot: &SampleSlot| rows.last_row(&batch.chunks, slot.chunk);
        let choice = |slot: &SampleSlot| {
            let (temperature, seed) =
                self.state(slot).map_or((0.0, 0), |s| (s.params.temperature, s.params.seed));
            TokenChoice { temperature, seed, position: slot.position as u32 }
        };
        let (device, host): (Vec<_>, Vec<_>) = batch.samples.iter().partition(|s| on_device(s));
        let choices: Vec<_> = device.iter().copied().map(choice).collect();
        let device_rows: Vec<_> = device.into_iter().map(row).collect();
        let host_rows: Vec<_> = host.into_iter().map(row).collect();
        let mut tokens = logits.choose(&device_rows, &choices)?.into_iter();
        let values = logits.download(&host_rows)?;
        let mut values = values.chunks(self.vocab_size);
        let mut scratch = SampleScratch::default();
        let mut on_host = |row: &[f32], state: &SamplingState, slot: &SampleSlot| {
            sample(row, &state.params, &state.history, slot.position as u32, &mut scratch)
        };
        let choose = |slot: &SampleSlot| match self.state(slot) {
            Some(state) if !state.params.on_device() => {
                let row = values.next().ok_or_else(ExecuteError::too_few_rows)?;
                Ok(on_host(row, state, slot))
            }
            state => match (tokens.next().ok_or_else(ExecuteError::too_few_rows)?, state) {
                (Some(token), _) => Ok(Ok(Sampled { token, logprobs: None })),
                // The host says what is wrong with the row.
                (None, Some(state)) => Ok(on_host(&logits.download(&[row(slot)])?, state, slot)),
                (None, None) => Err(ExecuteError::too_few_rows()),
            },
        };
        batch.samples.iter().map(choose).collect()
    }

    fn state(&self, slot: &SampleSlot) -> Option<&SamplingState> {
        self.sequences.get(&slot.sequence)
    }
}

impl Executor for ModelExecutor {
    type Error = ExecuteError;

    fn execute(&mut self, batch: &ScheduledBatch) -> Result<Vec<TokenId>, ExecuteError> {
        if self.poisoned {
            return Err(ExecuteError::Poisoned);
        }
        let result = self.compute(batch);
        self.poisoned = result.is_err();
        result
    }
}

impl ModelExecutor {
    fn compute(&mut self, batch: &ScheduledBatch) -> Result<Vec<TokenId>, ExecuteError> {
        self.chosen.clear();
        let logits = self.runner.run(pack(batch, self.block_size))?;
        let rows = RowStarts::of(&batch.chunks);
        self.record_prompts(batch, &rows, logits.as_ref())?;
        let chosen = self.sample(batch, &rows, logits.as_ref())?;
        // A row from which nothing can be chosen ends its own request only, when it is emitted.
        let token =
            |choice: &Result<Sampled, SamplingError>| choice.as_ref().map_or(0, |c| c.token);
        let tokens: Vec<_> = chosen.iter().map(token).collect();
        for ((slot, choice), &token) in batch.samples.iter().zip(chosen).zip(&tokens) {
            if let Some(state) = self.sequences.get_mut(&slot.sequence) {
                state.history.push(token);
            }
            self.chosen.entry(slot.sequence).or_insert(choice);
        }
        Ok(tokens)
    }
}

/// The scheduler's decision as one step for the device.
fn pack(batch: &ScheduledBatch, block_size: usize) -> Step {
    let mut input = BatchInput::new(block_size);
    let mut page_table = Vec::new();
    for chunk in &batch.chunks {
        page_table.clear();
        page_table.extend(chunk.page_table.iter().map(|block| block.0));
        input.push(SequenceChunk {
            tokens: &chunk.tokens,
            start_position: chunk.start_position,
            page_table: &page_table,
            logits: match chunk.logits {
                engine_sched::LogitRows::None => LogitRows::None,
                engine_sched::LogitRows::Last => LogitRows::Last,
                engine_sched::LogitRows::All => LogitRows::All,
            },
            rope_len: chunk.known_len,
        });
    }
    Step {
        swap_out: batch.swap_out.iter().map(|(device, host)| (device.0, host.0)).collect(),
        swap_in: batch.swap_in.iter().map(|(host, device)| (host.0, device.0)).collect(),
        copies: batch.copies.iter().map(|(from, to)| (from.0, to.0)).collect(),
        batch: input,
    }
}

/// First logits row of each chunk.
struct RowStarts(Vec<u32>);

impl RowStarts {
    fn of(chunks: &[ScheduledChunk]) -> Self {
        let mut next = 0;
        let starts = chunks.iter().map(|chunk| {
            let start = next;
            next += num_rows(chunk);
            start
        });
        Self(starts.collect())
    }

    fn last_row(&self, chunks: &[ScheduledChunk], chunk: usize) -> u32 {
        self.0[chunk] + num_rows(&chunks[chunk]) - 1
    }
}

fn num_rows(chunk: &ScheduledChunk) -> u32 {
    match chunk.logits {
        engine_sched::LogitRows::None => 0,
        engine_sched::LogitRows::Last => 1,
        engine_sched::LogitRows::All => chunk.tokens.len() as u32,
    }
}

/// Collects what was asked of a prompt, position by position.
#[derive(Debug)]
struct PromptRecorder {
    report: PromptReport,
    output: PromptOutput,
    /// The first row that has no log-probabilities.
    error: Option<SamplingError>,
    /// The next position to record; a recomputed prompt comes by again and is skipped.
    next: usize,
}

impl PromptRecorder {
    fn new(prompt: &[u32], report: PromptReport) -> Self {
        let output = PromptOutput { tokens: prompt.to_vec(), ..PromptOutput::default() };
        Self { report, output, error: None, next: 0 }
    }

    /// Takes the logits `[vocab]` of one position.
    fn record(&mut self, position: usize, logits: &[f32]) {
        if position != self.next || position >= self.output.tokens.len() {
            return;
        }
        self.next += 1;
        match self.report {
            PromptReport::None => {}
            PromptReport::Logits => self.output.logits.extend_from_slice(logits),
            PromptReport::Logprobs(top) => {
                if let Some(&target) = self.output.tokens.get(position + 1) {
                    match logprobs_of(logits, target, top) {
                        Ok(logprobs) => self.output.logprobs.push(logprobs),
                        Err(error) => self.error = self.error.take().or(Some(error)),
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use engine_sched::{Scheduler, SchedulerConfig, SequenceRequest};

    use super::*;
    use crate::runner::Weights;

    /// A device that computes and is lost when its result is read.
    struct Lost;

    fn lost<T>() -> Result<T, ExecuteError> {
        Err(ExecuteError::Device { message: "lost".to_owned() })
    }

    impl Runner for Lost {
        fn run(&mut self, _: Step) -> Result<Box<dyn Logits>, ExecuteError> {
            Ok(Box::new(Lost))
        }

        fn weights(&self) -> Weights {
            Weights::default()
        }
    }

    impl Logits for Lost {
        fn choose(&self, _: &[u32], _: &[TokenChoice]) -> Result<Vec<Option<u32>>, ExecuteError> {
            lost()
        }

        fn download(&self, _: &[u32]) -> Result<Vec<f32>, ExecuteError> {
            lost()
        }
    }

    #[test]
    fn an_executor_that_failed_once_says_that_it_must_be_loaded_again() {
        let mut scheduler = Scheduler::new(SchedulerConfig::default()).unwrap();
        let mut executor = ModelExecutor::new(Box::new(Lost), 8, 16);
        for expected in [lost::<()>().unwrap_err(), ExecuteError::Poisoned] {
            scheduler.submit(SequenceRequest::new(vec![1, 2])).unwrap();
            let batch = scheduler.schedule(Duration::ZERO);
            assert_eq!(executor.execute(&batch).unwrap_err(), expected);
            assert!(!scheduler.abort(batch, Duration::ZERO).is_empty());
        }
        assert!(!scheduler.has_work());
    }
}
