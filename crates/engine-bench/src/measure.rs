//! One row: the same batch several times, timed step by step.

use std::{collections::HashMap, time::Instant};

use engine::{
    EngineBuilder, EngineCore, EngineInfo, Event, KvFormat, ModelConfig, Request, RequestId,
};

use crate::{BenchError, Machine, Row, Spread, machine::peak_memory_bytes, splitmix::SplitMix64};

/// One row's batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Task {
    pub batch: usize,
    pub prompt_len: usize,
    pub output_len: usize,
    /// Tokens at the start of every prompt that are the same in all of them and in every run.
    pub shared_len: usize,
}

/// Positions in a block of the KV storage, the engine's default.
const BLOCK: usize = 16;
/// Tokens of one step, the engine's default.
const STEP_TOKENS: usize = 512;

impl Task {
    /// A task whose prompts have nothing in common.
    pub fn new(batch: usize, prompt_len: usize, output_len: usize) -> Self {
        Self { batch, prompt_len, output_len, shared_len: 0 }
    }

    fn step_tokens(&self) -> usize {
        STEP_TOKENS.max(2 * self.batch)
    }

    /// Tokens that the first sequences generate before the last prompt is computed: they share
    /// each step's budget with what is left of the prompts.
    fn stagger(&self) -> usize {
        if self.batch == 1 {
            return 0;
        }
        let for_prompts = self.step_tokens() - self.batch;
        (self.batch * self.prompt_len).div_ceil(for_prompts) + 2
    }

    /// New tokens of a request, so that all of them decode together for `output_len` tokens.
    fn max_tokens(&self, context: usize) -> usize {
        let room = context.saturating_sub(self.prompt_len);
        (self.output_len + self.stagger()).min(room).max(self.output_len)
    }

    fn sequence_len(&self, context: usize) -> usize {
        self.prompt_len + self.max_tokens(context)
    }

    /// Positions of the longest sequence where the model sets no limit.
    pub fn wanted_context(&self) -> usize {
        self.sequence_len(usize::MAX)
    }
}

/// Loads a model with room for each of the tasks by itself and no more.
pub(crate) fn load(
    engine: EngineBuilder,
    config: &ModelConfig,
    tasks: &[Task],
    kv_format: KvFormat,
) -> Result<EngineCore, BenchError> {
    let context = config.max_context();
    let most = |value: &dyn Fn(&Task) -> usize| tasks.iter().map(value).max().unwrap_or(1);
    let sequence_len = most(&|task| task.sequence_len(context));
    let kv_tokens =
        most(&|task| task.batch * BLOCK * (task.sequence_len(context).div_ceil(BLOCK) + 1));
    let sequences = most(&|task| task.batch);
    let core = engine
        .block_size(BLOCK)
        .kv_cache_format(kv_format)
        .kv_cache_bytes(kv_tokens * config.kv_bytes_per_token(kv_format))
        // A prompt that the model has no room for is refused when it is submitted.
        .max_context(sequence_len.min(context))
        .max_sequences(sequences)
        .max_queue(sequences)
        .max_batched_tokens(most(&Task::step_tokens))
        .prefix_caching(tasks.iter().any(|task| task.shared_len > 0))
        .load_core()?;
    Ok(core)
}

/// Runs a task once to warm up and then `repeats` times.
pub(crate) fn measure(
    core: &mut EngineCore,
    task: &Task,
    repeats: usize,
    machine: &Machine,
    row: Row,
) -> Result<Row, BenchError> {
    warm_up(core, task)?;
    let peak_memory_bytes = peak_memory_bytes();
    let mut series = Series::default();
    for _ in 0..repeats {
        series.run(core, task, machine)?;
    }
    Ok(Row { peak_memory_bytes, ..series.row(core.info(), task, machine, row) })
}

/// Runs a task once, so that memory is there and kernels are compiled.
pub(crate) fn warm_up(core: &mut EngineCore, task: &Task) -> Result<(), BenchError> {
    run_once(core, task, 0).map(drop)
}

/// The measured runs of one row, each with the bandwidth around it.
#[derive(Debug, Default)]
pub(crate) struct Series {
    timings: Vec<Timing>,
    bandwidths: Vec<f64>,
}

impl Series {
    /// One more run.
    pub fn run(
        &mut self,
        core: &mut EngineCore,
        task: &Task,
        machine: &Machine,
    ) -> Result<(), BenchError> {
        let before = machine.bandwidth_now();
        let timing = run_once(core, task, 1 + self.timings.len() as u64)?;
        self.timings.push(timing);
        self.bandwidths.push((before + machine.bandwidth_now()) / 2.0);
        Ok(())
    }

    /// How much faster than `first` each run was, prompts and decoding, if both ran in turns.
    pub fn ratios(&self, first: &Self) -> (Option<Spread>, Option<Spread>) {
        let pairs = || self.timings.iter().zip(&first.timings);
        let prefill = pairs().map(|(own, first)| first.prefill_s / own.prefill_s).collect();
        let decode = pairs().filter_map(|(own, first)| Some(own.steps_per_s? / first.steps_per_s?));
        (Spread::of(prefill), Spread::of(decode.collect()))
    }

    /// The row of these runs.
    pub fn row(&self, info: &EngineInfo, task: &Task, machine: &Machine, row: Row) -> Row {
        let timings = &self.timings;
        let spread = |value: &dyn Fn(&Timing) -> Option<f64>| {
            Spread::of(timings.iter().filter_map(value).collect())
        };
        let ttft = spread(&|timing| Some(timing.first_token_s * 1e3));
        let tokens = (task.batch * task.prompt_len) as f64;
        let prefill = spread(&|timing| Some(tokens / timing.prefill_s));
        let decode = spread(&|timing| timing.steps_per_s.map(|steps| steps * task.batch as f64));
        let context_len = timings.first().map_or(0.0, |timing| timing.context_len);
        let bytes = bytes_per_step(info, task.batch, context_len);
        let used = timings.iter().zip(&self.bandwidths).filter_map(|(timing, bandwidth)| {
            timing.steps_per_s.map(|steps| bytes * steps / bandwidth)
        });
        let least = machine.least_seconds(&info.multiply_adds);
        // What a cached prefix saves is no arithmetic.
        let computed = (task.prompt_len - task.shared_len) as f64 / task.prompt_len as f64;
        let matrix = |prefill: Spread| Some(computed * prefill.median * least.as_ref()?.0);
        Row {
            weight_bytes: Some(info.memory.weight_bytes as u64),
            kv_cache: info.memory.kv_format.to_string(),
            kv_cache_bytes: Some(info.memory.kv_cache_bytes as u64),
            load_s: Some(info.load_time.as_secs_f64()),
            ttft_ms: ttft.map(|ttft| ttft.median),
            ttft_ms_spread: ttft,
            prefill_tokens_per_s: prefill.map(|prefill| prefill.median),
            prefill_tokens_per_s_spread: prefill,
            decode_tokens_per_s: decode.map(|decode| decode.median),
            decode_tokens_per_s_spread: decode,
            bytes_per_step: Some(bytes),
            bandwidth_bytes_per_s_spread: Spread::of(self.bandwidths.clone()),
            bandwidth_fraction: Spread::of(used.collect()).map(|used| used.median),
            matrix_fraction: prefill.and_then(matrix),
            arithmetic: least.as_ref().map(|(_, kinds)| kinds.clone()),
            ..row
        }
    }
}

/// What one run took.
#[derive(Debug)]
struct Timing {
    /// Median over the requests.
    first_token_s: f64,
    /// Until the last prompt was computed.
    prefill_s: f64,
    /// Steps in which every sequence got a token.
    steps_per_s: Option<f64>,
    /// Mean positions that a sequence's queries saw in those steps.
    context_len: f64,
}

fn run_once(core: &mut EngineCore, task: &Task, seed: u64) -> Result<Timing, BenchError> {
    let info = core.info().clone();
    let (vocab, max_tokens) = (info.config.vocab_size as u64, task.max_tokens(info.max_context));
    let mut random = SplitMix64(seed);
    let token = |random: &mut SplitMix64| (random.next() % vocab) as u32;
    let prompts: Vec<Vec<u32>> = (0..task.batch)
        .map(|_| {
            // The shared tokens are the same in every run, the others in none.
            let mut shared = SplitMix64(u64::MAX);
            let start = (0..task.shared_len).map(|_| token(&mut shared));
            start.chain((task.shared_len..task.prompt_len).map(|_| token(&mut random))).collect()
        })
        .collect();
    let start = Instant::now();
    let ids = prompts
        .into_iter()
        .map(|prompt| core.submit(Request::tokens(prompt).max_tokens(max_tokens).ignore_eos()))
        .collect::<Result<Vec<_>, _>>()?;
    let timing = follow(core, task, start);
    // The first sequences of a batch are longer than what was timed.
    ids.into_iter().for_each(|id| core.cancel(id));
    while core.has_work() {
        core.step();
    }
    timing
}

fn follow(core: &mut EngineCore, task: &Task, start: Instant) -> Result<Timing, BenchError> {
    let mut first: HashMap<RequestId, f64> = HashMap::new();
    let mut prefill_s = None;
    let (mut before, mut decode_steps, mut decode_s) = (0, 0, 0.0);
    while core.has_work() && decode_steps + 1 < task.output_len.max(2) {
        let events = core.step();
        let now = start.elapsed().as_secs_f64();
        let mut tokens = 0;
        for (id, event) in events {
            if let Event::Token { .. } = event? {
                first.entry(id).or_insert(now);
                tokens += 1;
            }
        }
        match prefill_s {
            None => {
                before += tokens;
                prefill_s = (first.len() == task.batch).then_some(now);
                if task.output_len == 1 && prefill_s.is_some() {
                    break;
                }
            }
            Some(prefill) if tokens == task.batch => {
                decode_steps += 1;
                decode_s = now - prefill;
            }
            Some(_) => break,
        }
    }
    let prefill_s = prefill_s.ok_or(BenchError::EndedEarly { batch: task.batch })?;
    let first_tokens = Spread::of(first.into_values().collect());
    let generated = before as f64 / task.batch as f64;
    Ok(Timing {
        first_token_s: first_tokens.map_or(prefill_s, |first| first.median),
        prefill_s,
        steps_per_s: (decode_steps > 0).then(|| decode_steps as f64 / decode_s),
        context_len: task.prompt_len as f64 + generated + (decode_steps as f64 - 1.0) / 2.0,
    })
}

/// Bytes that one decode step must read: every weight once, and the keys and values of every
/// sequence. Of an embedding that is not the output matrix a step reads a few rows, so it is out.
fn bytes_per_step(info: &EngineInfo, batch: usize, context_len: f64) -> f64 {
    let config = &info.config;
    let row_bytes = info.memory.kv_bytes_per_token as f64 / config.num_layers as f64;
    let seen =
        |window: Option<usize>| window.map_or(context_len, |window| context_len.min(window as f64));
    let positions: f64 = config.layers.iter().map(|layer| seen(layer.window)).sum();
    info.step_weight_bytes as f64 + batch as f64 * positions * row_bytes
}

#[cfg(test)]
mod tests {
    use engine::{Device, Engine};

    use super::*;

    const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/models/stories260K");

    fn small(threads: usize, task: &Task) -> EngineCore {
        let engine = Engine::builder(MODEL).device(Device::Cpu).threads(threads);
        load(engine, &ModelConfig::load(MODEL).unwrap(), &[*task], KvFormat::F32).unwrap()
    }

    #[test]
    fn every_sequence_of_a_batch_decodes_together_for_the_whole_output() {
        let task = Task::new(8, 100, 10);
        let mut core = small(2, &task);
        let timing = run_once(&mut core, &task, 1).unwrap();
        assert!(timing.steps_per_s.unwrap() > 0.0);
        assert!(timing.prefill_s >= timing.first_token_s);
        // Nine full steps follow the prompts; the first sequences are a token or two ahead.
        let ahead = timing.context_len - (100.0 + 1.0 + 4.0);
        assert!((0.0..=2.0).contains(&ahead), "{}", timing.context_len);
        assert!(!core.has_work());
    }

    #[test]
    fn one_token_has_no_decode_speed() {
        let task = Task::new(1, 4, 1);
        let mut core = small(1, &task);
        assert_eq!(run_once(&mut core, &task, 1).unwrap().steps_per_s, None);
    }

    #[test]
    fn a_step_reads_the_weights_once_and_each_sequences_keys_and_values() {
        let task = Task::new(1, 4, 2);
        let core = small(1, &task);
        let info = core.info();
        let one = bytes_per_step(info, 1, 100.0);
        let kv = (100 * info.memory.kv_bytes_per_token) as f64;
        assert_eq!(one, info.memory.weight_bytes as f64 + kv);
        assert_eq!(bytes_per_step(info, 3, 100.0), one + 2.0 * kv);
    }

    #[test]
    fn a_shared_start_is_computed_once() {
        let task = Task { shared_len: 96, ..Task::new(2, 100, 4) };
        let mut core = small(1, &task);
        warm_up(&mut core, &task).unwrap();
        let before = core.statistics().computed_tokens;
        run_once(&mut core, &task, 1).unwrap();
        let computed = core.statistics().computed_tokens - before;
        assert!(computed < 60, "{computed} of more than 200");
    }
}
