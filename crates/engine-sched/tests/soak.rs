//! Many short requests through a pool that holds a tenth of what they want at once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use engine_sched::SchedulerConfig;
use engine_sched::simulation::{CostModel, FakeModel, Faults, Simulation, Workload};

#[test]
fn ten_thousand_requests_leave_the_pool_as_it_was() {
    let config = SchedulerConfig {
        num_blocks: 100,
        block_size: 4,
        max_batched_tokens: 128,
        // 64 sequences of about 60 positions want about 1000 blocks.
        max_sequences: 64,
        max_context: 128,
        max_queue: 20_000,
        num_host_blocks: 50,
        ..SchedulerConfig::default()
    };
    let workload = Workload {
        num_requests: 10_000,
        arrival_rate: 1e5,
        prompt_len: 1..60,
        output_len: 1..60,
        num_prefixes: 8,
        prefix_len: 0..40,
        num_samples: 1..3,
        num_priorities: 3,
        stop_tokens: 0.2,
        ..Workload::default()
    };
    let seed = 10_000;
    let report = Simulation {
        executor: FakeModel::new(&config, 100),
        cost: CostModel {
            step: Duration::from_millis(5),
            token: Duration::from_micros(50),
            block_swap: Duration::from_micros(100),
            ..CostModel::free()
        },
        requests: workload.generate(seed),
        faults: Faults { executor_errors: 0.001, cancels: 0.2, slow_steps: 0.01 },
        check_each_step: false,
        config,
        seed,
    }
    .run()
    .unwrap_or_else(|error| panic!("{error}"));
    let statistics = report.statistics;
    println!("{} steps, {statistics:#?}", report.steps);
    assert_eq!(statistics.submitted, 10_000);
    let ended = statistics.completed
        + statistics.cancelled
        + statistics.failed
        + statistics.deadline_passed;
    assert_eq!(ended, report.outcomes.len() as u64);
    assert!(statistics.cancelled > 500 && statistics.failed > 50, "{statistics:#?}");
    assert!(statistics.preemptions_by_recompute + statistics.preemptions_by_swap > 500);
    // The run ended without an error, so nothing is held; what is free is all there is.
    assert_eq!((statistics.blocks.used_blocks, statistics.used_host_blocks), (0, 0));
    assert_eq!((statistics.waiting, statistics.running), (0, 0));
}
