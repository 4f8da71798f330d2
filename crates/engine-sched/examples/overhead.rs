//! Time that the scheduler itself takes per step: `cargo run --release -p engine-sched --example overhead`.

use std::time::{Duration, Instant};

use engine_sched::simulation::CostModel;
use engine_sched::{Executor, Scheduler, SchedulerConfig, SequenceRequest};

const STEPS: usize = 2000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("| running | context | waiting | schedule | commit | together |");
    println!("|---|---|---|---|---|---|");
    for (running, context, waiting) in
        [(1, 512, 0), (32, 512, 0), (256, 128, 0), (256, 512, 0), (256, 2048, 0), (256, 512, 500)]
    {
        let (schedule, commit) = measure(running, context, waiting)?;
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        println!(
            "| {running} | {context} | {waiting} | {:.1} µs | {:.1} µs | {:.1} µs |",
            micros(schedule),
            micros(commit),
            micros(schedule + commit)
        );
    }
    Ok(())
}

/// Median times of a step in which `running` sequences decode.
fn measure(
    running: usize,
    context: usize,
    waiting: usize,
) -> Result<(Duration, Duration), Box<dyn std::error::Error>> {
    let config = SchedulerConfig {
        num_blocks: running * (context + STEPS + 32).div_ceil(16),
        max_batched_tokens: 1 << 20,
        max_sequences: running,
        max_context: 1 << 20,
        max_queue: running + waiting,
        ..SchedulerConfig::default()
    };
    let mut scheduler = Scheduler::new(config)?;
    for i in 0..running + waiting {
        let prompt = (0..context).map(|position| (i * context + position) as u32).collect();
        scheduler
            .submit(SequenceRequest { max_tokens: STEPS + 8, ..SequenceRequest::new(prompt) })?;
    }
    let (mut schedules, mut commits) = (Vec::new(), Vec::new());
    for step in 0..STEPS {
        let now = Duration::from_millis(step as u64);
        let start = Instant::now();
        let batch = scheduler.schedule(now);
        schedules.push(start.elapsed());
        let tokens = CostModel::free().execute(&batch)?;
        let start = Instant::now();
        let updates = scheduler.commit(batch, &tokens, now);
        commits.push(start.elapsed());
        assert_eq!(updates.len(), running);
    }
    Ok((median(schedules), median(commits)))
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
