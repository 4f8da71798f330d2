//! Whole simulated runs with any limits, requests and faults: every request ends, nothing leaks,
//! and each sample's tokens are those of its request run alone.
#![no_main]

use std::time::Duration;

use engine_sched::simulation::{CostModel, FakeModel, Faults, Simulation};
use engine_sched::{CacheEpochs, Preemption, Scheduler, SchedulerConfig, SequenceRequest};
use libfuzzer_sys::{arbitrary, fuzz_target};

#[derive(Debug, arbitrary::Arbitrary)]
struct Input {
    seed: u64,
    num_blocks: u8,
    block_size: u8,
    max_batched_tokens: u8,
    max_sequences: u8,
    max_context: u8,
    max_queue: u8,
    num_host_blocks: u8,
    window: Option<u8>,
    max_wait_ms: u16,
    prefix_caching: bool,
    epochs: Option<(bool, u8)>,
    swap: Option<bool>,
    executor_errors: u8,
    cancels: u8,
    requests: Vec<Request>,
}

#[derive(Debug, arbitrary::Arbitrary)]
struct Request {
    prompt: Vec<u8>,
    max_tokens: u8,
    num_samples: u8,
    stop: Option<u8>,
    min_tokens: u8,
    priority: i8,
    arrival_ms: u8,
    deadline_ms: Option<u8>,
    salt: bool,
    prompt_logits: bool,
}

impl Input {
    fn config(&self) -> SchedulerConfig {
        SchedulerConfig {
            num_blocks: usize::from(self.num_blocks),
            block_size: usize::from(self.block_size % 20),
            max_batched_tokens: usize::from(self.max_batched_tokens),
            max_sequences: usize::from(self.max_sequences),
            max_context: usize::from(self.max_context),
            max_queue: usize::from(self.max_queue),
            num_host_blocks: usize::from(self.num_host_blocks),
            window: self.window.map(usize::from),
            max_wait: Duration::from_millis(u64::from(self.max_wait_ms)),
            prefix_caching: self.prefix_caching,
            cache_epochs: match self.epochs {
                None => CacheEpochs::Constant,
                Some((true, len)) => CacheEpochs::Threshold(len.into()),
                Some((false, len)) => CacheEpochs::EveryLengthAbove(len.into()),
            },
            preemption: match self.swap {
                None => Preemption::Cheapest,
                Some(true) => Preemption::Swap,
                Some(false) => Preemption::Recompute,
            },
            token_cost: Duration::from_millis(1),
            swap_block_cost: Duration::from_millis(2),
        }
    }
}

impl Request {
    fn request(&self, arrival: Duration) -> SequenceRequest {
        SequenceRequest {
            prompt: self.prompt.iter().take(60).map(|&token| u32::from(token % 16)).collect(),
            max_tokens: usize::from(self.max_tokens % 40),
            stop_tokens: self.stop.iter().map(|&token| u32::from(token % 16)).collect(),
            min_tokens: usize::from(self.min_tokens % 40),
            priority: self.priority.into(),
            deadline: self.deadline_ms.map(|ms| arrival + Duration::from_millis(ms.into())),
            arrival: Some(arrival),
            salt: self.salt.into(),
            prompt_logits: self.prompt_logits,
            num_samples: usize::from(self.num_samples % 4),
        }
    }
}

fuzz_target!(|input: Input| {
    let config = input.config();
    if Scheduler::new(config.clone()).is_err() {
        return;
    }
    let mut clock = Duration::ZERO;
    let requests: Vec<SequenceRequest> = input
        .requests
        .iter()
        .take(20)
        .map(|request| {
            clock += Duration::from_millis(request.arrival_ms.into());
            request.request(clock)
        })
        .collect();
    let share = |of: u8| f64::from(of % 64) / 255.0;
    let model = FakeModel::new(&config, 16);
    let report = Simulation {
        executor: model.clone(),
        cost: CostModel { step: Duration::from_millis(3), ..CostModel::free() },
        requests: requests.clone(),
        faults: Faults {
            executor_errors: share(input.executor_errors),
            cancels: share(input.cancels),
            slow_steps: 0.1,
        },
        seed: input.seed,
        check_each_step: true,
        config,
    }
    .run()
    .unwrap();
    for outcome in &report.outcomes {
        let mut tokens = requests[outcome.request].prompt.clone();
        for &token in &outcome.tokens {
            assert_eq!(token, model.next_token(&tokens, outcome.sample_index), "{outcome:?}");
            tokens.push(token);
        }
    }
});
