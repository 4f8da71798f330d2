//! Whole runs on a virtual clock: whatever is shared, preempted, swapped, cancelled or failed on
//! the way, each sample's tokens are those of its request run alone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use engine_sched::simulation::{
    CostModel, FakeModel, FakeModelError, Faults, Outcome, Report, Simulation, SimulationRng,
    Workload, read_trace,
};
use engine_sched::{
    CacheEpochs, Executor, FinishReason, LogitRows, ScheduledBatch, SchedulerConfig, SequenceId,
    SequenceRequest, TokenId,
};

/// The fake model, and the prompt rows that it was asked for.
struct Recording {
    model: FakeModel,
    rows: BTreeMap<SequenceId, Vec<usize>>,
}

impl Executor for Recording {
    type Error = FakeModelError;

    fn execute(&mut self, batch: &ScheduledBatch) -> Result<Vec<TokenId>, FakeModelError> {
        for chunk in batch.chunks.iter().filter(|chunk| chunk.logits == LogitRows::All) {
            let end = chunk.start_position + chunk.tokens.len();
            self.rows.entry(chunk.sequence).or_default().extend(chunk.start_position..end);
        }
        self.model.execute(batch)
    }
}

fn pick<T: Copy>(rng: &mut SimulationRng, choices: &[T]) -> T {
    choices[rng.in_range(0..choices.len())]
}

fn config(rng: &mut SimulationRng) -> SchedulerConfig {
    let block_size = pick(rng, &[1, 2, 4, 7, 16]);
    let max_context: usize = pick(rng, &[60, 90, 120]);
    SchedulerConfig {
        // From just enough for the longest sequence to plenty.
        num_blocks: (max_context - 1).div_ceil(block_size) + pick(rng, &[0, 1, 6, 60]),
        block_size,
        max_batched_tokens: pick(rng, &[1, 3, 16, 64, 300]),
        max_sequences: pick(rng, &[1, 3, 8, 40]),
        max_context,
        max_queue: pick(rng, &[5, 1000]),
        prefix_caching: rng.chance(0.7),
        cache_epochs: pick(
            rng,
            &[
                CacheEpochs::Constant,
                CacheEpochs::Constant,
                CacheEpochs::Threshold(30),
                CacheEpochs::EveryLengthAbove(50),
            ],
        ),
        num_host_blocks: pick(rng, &[0, 10, 200]),
        window: pick(rng, &[None, None, Some(1), Some(5), Some(16), Some(50)]),
        max_wait: pick(rng, &[Duration::ZERO, Duration::from_millis(300), Duration::MAX]),
        token_cost: pick(rng, &[Duration::ZERO, Duration::from_millis(1), Duration::from_secs(1)]),
        ..SchedulerConfig::default()
    }
}

fn workload(rng: &mut SimulationRng) -> Workload {
    let lens: [Range<usize>; 3] = [1..5, 1..40, 20..90];
    Workload {
        num_requests: rng.in_range(1..30),
        arrival_rate: pick(rng, &[5.0, 100.0, 1e6]),
        prompt_len: lens[rng.in_range(0..3)].clone(),
        output_len: 0..pick(rng, &[2, 20, 60]),
        num_prefixes: rng.in_range(0..3),
        prefix_len: 0..60,
        num_samples: 1..pick(rng, &[2, 2, 4]),
        num_priorities: rng.in_range(1..4),
        deadlines: pick(rng, &[0.0, 0.0, 0.3]),
        longest_deadline: Duration::from_secs(2),
        prompt_logits: pick(rng, &[0.0, 0.3]),
        stop_tokens: pick(rng, &[0.0, 0.5]),
    }
}

fn faults(rng: &mut SimulationRng) -> Faults {
    if rng.chance(0.4) {
        return Faults::default();
    }
    Faults {
        executor_errors: pick(rng, &[0.0, 0.03]),
        cancels: pick(rng, &[0.0, 0.1]),
        slow_steps: pick(rng, &[0.0, 0.05]),
    }
}

/// Every outcome is what the request alone would have become, as far as it came.
fn verify(
    seed: u64,
    model: &FakeModel,
    config: &SchedulerConfig,
    requests: &[SequenceRequest],
    report: &Report,
) {
    for outcome in &report.outcomes {
        let request = &requests[outcome.request];
        let mut tokens = request.prompt.clone();
        for (i, &token) in outcome.tokens.iter().enumerate() {
            let expected = model.next_token(&tokens, outcome.sample_index);
            assert_eq!(token, expected, "seed {seed}: token {i} of {outcome:?}");
            tokens.push(token);
        }
        verify_finish(seed, config, request, outcome);
    }
}

fn verify_finish(
    seed: u64,
    config: &SchedulerConfig,
    request: &SequenceRequest,
    outcome: &Outcome,
) {
    let room = config.max_context - request.prompt.len();
    let most = request.max_tokens.min(room);
    let is_stop = |token: &TokenId| request.stop_tokens.contains(token);
    let stopped_at = outcome.tokens.iter().position(is_stop);
    match outcome.finish {
        Some(FinishReason::Length) => {
            assert_eq!(outcome.tokens.len(), most, "seed {seed}: {outcome:?}");
            assert_eq!(stopped_at, None, "seed {seed}: {outcome:?}");
        }
        Some(FinishReason::StopToken(token)) => {
            assert_eq!(outcome.tokens.last(), Some(&token), "seed {seed}: {outcome:?}");
            assert_eq!(stopped_at, Some(outcome.tokens.len() - 1), "seed {seed}: {outcome:?}");
        }
        Some(FinishReason::DeadlinePassed) => {
            assert!(request.deadline.unwrap() <= outcome.finished_at, "seed {seed}: {outcome:?}");
        }
        _ => assert_eq!(stopped_at, None, "seed {seed}: {outcome:?}"),
    }
}

fn run(seed: u64) -> Report {
    let mut rng = SimulationRng::new(seed);
    let config = config(&mut rng);
    let requests = workload(&mut rng).generate(seed);
    let faults = faults(&mut rng);
    let model = FakeModel::new(&config, pick(&mut rng, &[16, 1000]));
    let mut executor = Recording { model: model.clone(), rows: BTreeMap::new() };
    let simulation = Simulation {
        config: config.clone(),
        executor: &mut executor,
        cost: CostModel {
            step: Duration::from_millis(10),
            token: Duration::from_micros(300),
            token_position: Duration::from_nanos(100),
            block_copy: Duration::from_micros(10),
            block_swap: Duration::from_micros(200),
        },
        requests: requests.clone(),
        faults,
        seed,
        check_each_step: true,
    };
    let report = simulation.run().unwrap_or_else(|error| panic!("{error}\n{config:?}"));
    verify(seed, &model, &config, &requests, &report);
    for outcome in report.outcomes.iter().filter(|outcome| requests[outcome.request].prompt_logits)
    {
        let completed =
            matches!(outcome.finish, Some(FinishReason::Length | FinishReason::StopToken(_)));
        let rows = executor.rows.get(&outcome.parent.unwrap());
        if completed {
            let every_row: Vec<_> = (0..requests[outcome.request].prompt.len()).collect();
            assert_eq!(rows, Some(&every_row), "seed {seed}: {outcome:?}");
        }
    }
    report
}

#[test]
fn every_run_ends_with_the_tokens_of_each_request_alone() {
    let seeds = std::env::var("SIMULATION_SEEDS").ok();
    let seeds = seeds.map_or(0..1500, |text| {
        let (from, to) = text.split_once("..").expect("SIMULATION_SEEDS=FROM..TO");
        from.parse().unwrap()..to.parse().unwrap()
    });
    let mut seen = engine_sched::Statistics::default();
    for seed in seeds {
        let report = run(seed);
        seen.completed += report.statistics.completed;
        seen.cancelled += report.statistics.cancelled;
        seen.deadline_passed += report.statistics.deadline_passed;
        seen.failed += report.statistics.failed;
        seen.preemptions_by_swap += report.statistics.preemptions_by_swap;
        seen.preemptions_by_recompute += report.statistics.preemptions_by_recompute;
        seen.epoch_recomputations += report.statistics.epoch_recomputations;
        seen.cache.hit_tokens += report.statistics.cache.hit_tokens;
        seen.cache.copies += report.statistics.cache.copies;
    }
    // The runs are worth something only if all of it happened.
    let happened = [
        seen.completed,
        seen.cancelled,
        seen.deadline_passed,
        seen.failed,
        seen.preemptions_by_swap,
        seen.preemptions_by_recompute,
        seen.epoch_recomputations,
        seen.cache.hit_tokens,
        seen.cache.copies,
    ];
    assert!(happened.iter().all(|&count| count > 100), "{happened:?}");
}

#[test]
fn a_failure_names_the_seed_that_repeats_it() {
    /// Refuses large batches.
    struct Picky(FakeModel);
    impl Executor for Picky {
        type Error = FakeModelError;
        fn execute(&mut self, batch: &ScheduledBatch) -> Result<Vec<TokenId>, FakeModelError> {
            let large = batch.num_tokens() > 40;
            if large { Err(FakeModelError::NoLogits { sample: 7 }) } else { self.0.execute(batch) }
        }
    }
    let config = SchedulerConfig::default();
    let run = |seed| {
        let executor = Picky(FakeModel::new(&config, 9));
        let requests = Workload::default().generate(seed);
        let (cost, faults) = (CostModel::free(), Faults::default());
        Simulation {
            config: config.clone(),
            executor,
            cost,
            requests,
            faults,
            seed,
            check_each_step: true,
        }
        .run()
    };
    let error = run(5).unwrap_err();
    assert_eq!(run(5).unwrap_err(), error);
    assert!(error.to_string().starts_with("seed 5, step "), "{error}");
    assert!(error.to_string().ends_with("sample 7 has no logits"), "{error}");
}

#[test]
fn a_recorded_trace_is_replayed() {
    let lines: String = (0..50)
        .map(|i| {
            let prefix = if i % 2 == 0 { r#", "prefix_id": 1, "prefix_len": 64"# } else { "" };
            format!(
                "{{\"arrival_ms\": {}, \"prompt_len\": 100, \"output_len\": 10{prefix}}}\n",
                i * 20
            )
        })
        .collect();
    let trace = read_trace(lines.as_bytes()).unwrap();
    let run = |prefix_caching| {
        Simulation {
            config: SchedulerConfig { prefix_caching, ..SchedulerConfig::default() },
            executor: CostModel::free(),
            cost: CostModel {
                step: Duration::from_millis(2),
                token: Duration::from_micros(200),
                ..CostModel::free()
            },
            requests: trace.iter().enumerate().map(|(i, entry)| entry.request(i)).collect(),
            faults: Faults::default(),
            check_each_step: true,
            seed: 0,
        }
        .run()
        .unwrap()
    };
    let (with, without) = (run(true), run(false));
    assert_eq!(with.statistics.completed, 50);
    assert_eq!(with.statistics.generated_tokens, 500);
    // 24 of 25 requests share 64 of their 100 tokens with the first.
    assert_eq!(with.statistics.cache.hit_tokens, 24 * 64);
    assert_eq!(without.statistics.computed_tokens - with.statistics.computed_tokens, 24 * 64);
    assert!(with.statistics.first_token.mean() < without.statistics.first_token.mean());
    let error = read_trace("{\"arrival_ms\": 1}\n".as_bytes()).unwrap_err().to_string();
    assert!(error.contains("line 1") && error.contains("prompt_len"), "{error}");
}
