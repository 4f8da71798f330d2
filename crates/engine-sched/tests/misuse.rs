//! Calls in any order with any arguments: nothing panics, every invariant holds after each call,
//! and once the calls make sense again every sample gets its one end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::Driver;
use engine_sched::{
    CacheEpochs, ScheduledBatch, SchedulerConfig, SequenceId, SequenceRequest, SequenceUpdate,
};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Call {
    Submit(SequenceRequest),
    Cancel(u64),
    Schedule(u64),
    /// Commits the batch that was scheduled last with this many tokens too many or too few.
    Commit(i64),
    /// Changes the batch that was scheduled last.
    Tamper,
    /// Commits a batch of another scheduler.
    CommitForeign,
    Abort,
    Lose,
}

fn any_request() -> impl Strategy<Value = SequenceRequest> {
    let lens = (0..30usize, prop_oneof![0..20usize, Just(usize::MAX)], 0..5usize);
    let times = (prop::option::of(0..500u64), prop::option::of(0..500u64));
    (lens, times, -2..3i32, 0..3u64, any::<bool>(), 0..4usize).prop_map(
        |(
            (prompt_len, max_tokens, num_samples),
            (deadline, arrival),
            priority,
            salt,
            rows,
            min,
        )| {
            SequenceRequest {
                prompt: (0..prompt_len as u32).map(|i| i / 7).collect(),
                max_tokens,
                stop_tokens: vec![1, 2],
                min_tokens: min,
                priority,
                deadline: deadline.map(Duration::from_millis),
                arrival: arrival.map(Duration::from_millis),
                salt,
                prompt_logits: rows,
                num_samples,
            }
        },
    )
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        4 => any_request().prop_map(Call::Submit),
        1 => (0..40u64).prop_map(Call::Cancel),
        6 => (0..500u64).prop_map(Call::Schedule),
        6 => prop_oneof![8 => Just(0), 1 => -2..3i64].prop_map(Call::Commit),
        1 => Just(Call::Tamper),
        1 => Just(Call::CommitForeign),
        1 => Just(Call::Abort),
        1 => Just(Call::Lose),
    ]
}

fn config() -> impl Strategy<Value = SchedulerConfig> {
    let sizes = (1..12usize, 1..5usize, 0..6usize, 1..20usize, 1..6usize);
    let epochs = prop::sample::select(vec![
        CacheEpochs::Constant,
        CacheEpochs::Threshold(10),
        CacheEpochs::EveryLengthAbove(12),
    ]);
    (sizes, epochs, any::<bool>(), prop::option::of(1..20usize), 1..40usize, 0..400u64).prop_map(
        |(sizes, cache_epochs, prefix_caching, window, max_context, max_wait)| SchedulerConfig {
            num_blocks: sizes.0,
            block_size: sizes.1,
            num_host_blocks: sizes.2,
            max_batched_tokens: sizes.3,
            max_sequences: sizes.4,
            max_queue: 12,
            max_context,
            cache_epochs,
            prefix_caching,
            window,
            max_wait: Duration::from_millis(max_wait),
            token_cost: Duration::from_secs(1),
            ..SchedulerConfig::default()
        },
    )
}

/// Which samples have to end, and which did.
#[derive(Default)]
struct Ledger {
    open: BTreeMap<(SequenceId, usize), bool>,
}

impl Ledger {
    fn submitted(&mut self, id: SequenceId, num_samples: usize) {
        self.open.extend((0..num_samples).map(|index| ((id, index), false)));
    }

    fn record(&mut self, updates: &[SequenceUpdate]) {
        for update in updates {
            let ended = self.open.get_mut(&(update.parent, update.sample_index)).unwrap();
            assert!(!*ended, "an update after the last one: {update:?}");
            *ended = update.finish.is_some();
        }
    }
}

fn tamper(batch: &mut ScheduledBatch) {
    if let Some(chunk) = batch.chunks.first_mut() {
        chunk.start_position += 100;
        chunk.sequence = SequenceId(77);
    }
    batch.chunks.truncate(1);
    batch.samples.clear();
    batch.swap_in.clear();
}

fn apply(driver: &mut Driver, ledger: &mut Ledger, last: &mut Option<ScheduledBatch>, call: &Call) {
    let now = driver.now;
    let scheduler = &mut driver.scheduler;
    match call {
        Call::Submit(request) => {
            if let Ok(id) = scheduler.submit(request.clone()) {
                ledger.submitted(id, request.num_samples);
            }
        }
        Call::Cancel(id) => {
            scheduler.cancel(SequenceId(*id));
        }
        Call::Schedule(at) => {
            driver.now = Duration::from_millis(*at);
            let batch = scheduler.schedule(driver.now);
            ledger.record(&batch.finished);
            if !batch.is_empty() {
                *last = Some(batch);
            }
        }
        Call::Commit(surplus) => {
            let Some(batch) = last.take() else { return };
            let count = (batch.samples.len() as i64 + surplus).max(0) as usize;
            ledger.record(&scheduler.commit(batch, &vec![3; count], now));
        }
        Call::Tamper => {
            if let Some(batch) = last {
                tamper(batch);
            }
        }
        Call::CommitForeign => {
            ledger.record(&scheduler.commit(ScheduledBatch::default(), &[1; 9], now));
        }
        Call::Abort => {
            let Some(batch) = last.take() else { return };
            ledger.record(&scheduler.abort(batch, now));
        }
        Call::Lose => ledger.record(&scheduler.abort_in_flight(now)),
    }
    driver.scheduler.check().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 4000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_order_of_calls_breaks_it(
        config in config(),
        calls in prop::collection::vec(call(), 1..80),
    ) {
        let mut driver = Driver::new(config);
        let (mut ledger, mut last) = (Ledger::default(), None);
        for call in &calls {
            apply(&mut driver, &mut ledger, &mut last, call);
        }
        ledger.record(&driver.scheduler.abort_in_flight(driver.now));
        driver.now = driver.now.max(Duration::from_millis(500));
        for _ in 0..20_000 {
            if !driver.scheduler.has_work() {
                break;
            }
            let batch = driver.schedule();
            let progress = !batch.is_empty() || !batch.finished.is_empty();
            prop_assert!(progress, "a step without progress");
            ledger.record(&batch.finished);
            let tokens = vec![3; batch.samples.len()];
            ledger.record(&driver.scheduler.commit(batch, &tokens, driver.now));
        }
        prop_assert!(!driver.scheduler.has_work());
        prop_assert!(ledger.open.values().all(|&ended| ended));
        let statistics = driver.scheduler.statistics();
        prop_assert_eq!((statistics.blocks.used_blocks, statistics.used_host_blocks), (0, 0));
    }
}
