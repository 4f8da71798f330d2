//! A small world with exact expectations: who gets which tokens, blocks and rows in each step.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Driver, chunks, finishes, ms, prompt, request, tokens_of};
use engine_sched::{
    BlockId, CacheEpochs, FinishReason, LogitRows, SchedulerConfig, SequenceId, SequenceRequest,
    SubmitError,
};

fn small() -> SchedulerConfig {
    SchedulerConfig {
        num_blocks: 11,
        block_size: 4,
        max_batched_tokens: 16,
        max_sequences: 4,
        max_context: 40,
        max_queue: 8,
        ..SchedulerConfig::default()
    }
}

#[test]
fn a_prompt_longer_than_the_budget_is_computed_in_chunks_beside_a_decode() {
    let mut driver = Driver::new(small());
    driver.submit(request(1, 3, 4));
    driver.step();
    driver.submit(request(2, 20, 2));
    let batch = driver.schedule();
    assert_eq!(chunks(&batch), [(0, 1, 3), (1, 15, 0)]);
    assert_eq!(batch.chunks[0].logits, LogitRows::Last);
    assert_eq!(batch.chunks[1].logits, LogitRows::None);
    assert_eq!(batch.chunks[1].known_len, 20);
    assert_eq!(batch.chunks[1].page_table, [1, 2, 3, 4].map(BlockId));
    assert_eq!(batch.samples.len(), 1);
    driver.finish(batch);
    let batch = driver.schedule();
    assert_eq!(chunks(&batch), [(0, 1, 4), (1, 5, 15)]);
    assert_eq!(
        batch.samples.iter().map(|slot| (slot.chunk, slot.position)).collect::<Vec<_>>(),
        [(0, 5), (1, 20)]
    );
    driver.finish(batch);
    let updates = driver.run();
    assert_eq!(finishes(&updates), [(0, FinishReason::Length), (1, FinishReason::Length)]);
    assert_eq!(driver.free_blocks(), 11);
}

#[test]
fn a_giant_takes_what_others_leave_and_at_least_half() {
    let config = SchedulerConfig { num_blocks: 40, max_context: 100, ..small() };
    let mut driver = Driver::new(config);
    driver.submit(request(1, 80, 1));
    driver.submit(request(2, 6, 1));
    driver.submit(request(3, 30, 1));
    let batch = driver.schedule();
    // 16 tokens: half for the giant, half of the rest and what is over for the second, ...
    assert_eq!(chunks(&batch), [(0, 8, 0), (1, 4, 0), (2, 4, 0)]);
    driver.finish(batch);
    let batch = driver.schedule();
    assert_eq!(chunks(&batch), [(0, 8, 8), (1, 2, 4), (2, 6, 4)]);
    let updates = driver.finish(batch);
    assert_eq!(finishes(&updates), [(1, FinishReason::Length)]);
}

#[test]
fn a_cached_prefix_is_shared_and_one_token_is_left_to_compute() {
    let mut driver = Driver::new(small());
    driver.submit(request(1, 8, 1));
    let updates = driver.run();
    assert_eq!(updates[0].cached_prompt_tokens, 0);
    // The whole prompt is in two full blocks, but its last token must be computed.
    driver.submit(request(1, 8, 1));
    let batch = driver.schedule();
    assert_eq!(chunks(&batch), [(1, 4, 4)]);
    assert_eq!(batch.chunks[0].page_table[0], BlockId(0));
    let updates = driver.finish(batch);
    assert_eq!(updates[0].cached_prompt_tokens, 4);
    // With another salt nothing is shared.
    driver.submit(SequenceRequest { salt: 7, ..request(1, 8, 1) });
    let batch = driver.schedule();
    assert_eq!(chunks(&batch), [(2, 8, 0)]);
    driver.finish(batch);
    // Every row is wanted: nothing is taken from the cache.
    driver.submit(SequenceRequest { prompt_logits: true, ..request(1, 8, 1) });
    let batch = driver.schedule();
    assert_eq!(chunks(&batch), [(3, 8, 0)]);
    assert_eq!(batch.chunks[0].logits, LogitRows::All);
    driver.finish(batch);
    assert_eq!(driver.scheduler.statistics().cache.hit_tokens, 4);
}

#[test]
fn samples_share_the_prompt_and_copy_its_last_block_when_they_part() {
    let mut driver = Driver::new(small());
    let parent = driver.submit(SequenceRequest { num_samples: 3, ..request(1, 6, 3) });
    let batch = driver.schedule();
    assert_eq!(chunks(&batch), [(0, 6, 0)]);
    let slots: Vec<_> =
        batch.samples.iter().map(|s| (s.sequence.0, s.sample_index, s.chunk)).collect();
    assert_eq!(slots, [(1, 0, 0), (2, 1, 0), (3, 2, 0)]);
    let first = driver.finish(batch);
    assert!(first.iter().all(|update| update.parent == parent && update.finish.is_none()));
    let batch = driver.schedule();
    assert_eq!(chunks(&batch), [(1, 1, 6), (2, 1, 6), (3, 1, 6)]);
    assert_eq!(batch.copies, [(BlockId(1), BlockId(2)), (BlockId(1), BlockId(3))]);
    let tables: Vec<_> = batch.chunks.iter().map(|chunk| chunk.page_table.clone()).collect();
    assert_eq!(tables, [[0, 2], [0, 3], [0, 1]].map(|table| table.map(BlockId).to_vec()));
    let second = driver.finish(batch);
    // The second sample goes, the others go on.
    assert!(driver.scheduler.cancel(SequenceId(2)));
    let third = driver.run();
    assert_eq!(
        finishes(&third),
        [(2, FinishReason::Cancelled), (1, FinishReason::Length), (3, FinishReason::Length)]
    );
    for (index, sequence) in [1, 2, 3].map(SequenceId).into_iter().enumerate() {
        let updates: Vec<_> = first.iter().chain(&second).chain(&third).copied().collect();
        let mut all = prompt(1, 6);
        for token in tokens_of(&updates, sequence) {
            assert_eq!(token, driver.model.next_token(&all, index));
            all.push(token);
        }
    }
    assert_eq!(driver.free_blocks(), 11);
}

#[test]
fn stop_tokens_end_a_sequence_but_not_before_min_tokens() {
    let mut driver = Driver::new(small());
    let mut expected = prompt(1, 3);
    for _ in 0..3 {
        expected.push(driver.model.next_token(&expected, 0));
    }
    let stop_tokens = expected[3..].to_vec();
    driver.submit(SequenceRequest { stop_tokens: stop_tokens.clone(), ..request(1, 3, 9) });
    driver.submit(SequenceRequest { stop_tokens, min_tokens: 2, ..request(1, 3, 9) });
    let updates = driver.run();
    assert_eq!(
        finishes(&updates),
        [(0, FinishReason::StopToken(expected[3])), (1, FinishReason::StopToken(expected[5]))]
    );
    assert_eq!(tokens_of(&updates, SequenceId(1)), expected[3..]);
}

#[test]
fn entering_an_epoch_starts_over() {
    let config = SchedulerConfig { cache_epochs: CacheEpochs::Threshold(9), ..small() };
    let mut driver = Driver::new(config);
    driver.submit(request(1, 8, 4));
    driver.step();
    let batch = driver.schedule();
    assert_eq!(chunks(&batch), [(0, 1, 8)]);
    driver.finish(batch);
    // Ten tokens are known: all are computed again, and the cached blocks are of no use.
    let batch = driver.schedule();
    assert_eq!(chunks(&batch), [(0, 10, 0)]);
    driver.finish(batch);
    let batch = driver.schedule();
    assert_eq!(chunks(&batch), [(0, 1, 10)]);
    driver.finish(batch);
    assert_eq!(driver.scheduler.statistics().epoch_recomputations, 1);
    // A prompt beyond the border finds what was computed beyond it.
    driver.submit(request(1, 12, 1));
    assert_eq!(chunks(&driver.schedule()), [(1, 4, 8)]);
}

#[test]
fn above_a_length_every_token_is_its_own_epoch() {
    let config = SchedulerConfig { cache_epochs: CacheEpochs::EveryLengthAbove(5), ..small() };
    let mut driver = Driver::new(config);
    driver.submit(request(1, 4, 4));
    let mut computed = Vec::new();
    while driver.scheduler.has_work() {
        let batch = driver.schedule();
        computed.push(chunks(&batch)[0]);
        driver.finish(batch);
    }
    assert_eq!(computed, [(0, 4, 0), (0, 1, 4), (0, 6, 0), (0, 7, 0)]);
}

#[test]
fn keys_of_one_length_do_not_drive_out_those_that_others_can_use() {
    let config = SchedulerConfig { cache_epochs: CacheEpochs::EveryLengthAbove(9), ..small() };
    let mut driver = Driver::new(config);
    driver.submit(request(1, 9, 1));
    driver.run();
    driver.submit(request(2, 9, 20));
    driver.run();
    driver.submit(request(1, 9, 1));
    let updates = driver.run();
    assert_eq!(updates[0].cached_prompt_tokens, 8);
}

#[test]
fn a_prompt_can_be_scored_without_sampling() {
    let mut driver = Driver::new(small());
    driver.submit(SequenceRequest { prompt_logits: true, ..request(1, 20, 0) });
    let mut rows = 0;
    let mut updates = Vec::new();
    while driver.scheduler.has_work() {
        let batch = driver.schedule();
        assert!(batch.samples.is_empty());
        assert_eq!(batch.chunks[0].logits, LogitRows::All);
        rows += batch.num_tokens();
        updates.extend(driver.finish(batch));
    }
    assert_eq!(rows, 20);
    assert_eq!(finishes(&updates), [(0, FinishReason::Length)]);
    assert!(tokens_of(&updates, SequenceId(0)).is_empty());
}

#[test]
fn a_window_gives_blocks_back_and_lets_long_sequences_into_a_small_pool() {
    let config = SchedulerConfig {
        num_blocks: 4,
        window: Some(6),
        max_context: 1000,
        max_batched_tokens: 7,
        ..small()
    };
    let mut driver = Driver::new(config);
    let id = driver.submit(request(1, 50, 40));
    let mut most = 0;
    let mut updates = Vec::new();
    while driver.scheduler.has_work() {
        let batch = driver.schedule();
        most = most.max(4 - driver.free_blocks());
        updates.extend(driver.finish(batch));
    }
    assert!(most <= 4);
    let mut all = prompt(1, 50);
    for token in tokens_of(&updates, id) {
        assert_eq!(token, driver.model.next_token(&all, 0));
        all.push(token);
    }
    assert_eq!(all.len(), 90);
}

#[test]
fn a_cached_prefix_longer_than_the_window_takes_no_more_than_the_window() {
    let config = SchedulerConfig {
        num_blocks: 9,
        block_size: 1,
        window: Some(1),
        max_batched_tokens: 9,
        ..small()
    };
    let mut driver = Driver::new(config);
    driver.submit(request(1, 9, 1));
    driver.run();
    driver.submit(request(1, 12, 1));
    // All nine blocks hold its beginning, and none of them is read again.
    let batch = driver.schedule();
    assert_eq!(chunks(&batch), [(1, 3, 9)]);
    driver.finish(batch);
    assert_eq!(driver.free_blocks(), 9);
}

#[test]
fn what_can_never_run_is_refused_with_the_numbers() {
    let mut driver = Driver::new(SchedulerConfig { num_blocks: 5, max_queue: 2, ..small() });
    let scheduler = &mut driver.scheduler;
    assert_eq!(scheduler.submit(SequenceRequest::new(vec![])), Err(SubmitError::EmptyPrompt));
    let none = SequenceRequest { num_samples: 0, ..request(1, 3, 1) };
    assert_eq!(scheduler.submit(none), Err(SubmitError::NoSamples));
    let many = SequenceRequest { num_samples: 5, ..request(1, 3, 1) };
    let expected = SubmitError::TooManySamples { num_samples: 5, max_sequences: 4 };
    assert_eq!(scheduler.submit(many), Err(expected));
    assert_eq!(
        scheduler.submit(request(1, 40, 1)),
        Err(SubmitError::PromptTooLong { prompt_len: 40, max_tokens: 1, max_context: 40 })
    );
    let error = scheduler.submit(request(1, 16, 6)).unwrap_err();
    assert_eq!(
        error,
        SubmitError::NeverFits {
            prompt_len: 16,
            new_tokens: 6,
            needed_blocks: 6,
            num_blocks: 5,
            block_size: 4,
            max_tokens_that_fit: 5
        }
    );
    assert!(error.to_string().contains("lower max_tokens to at most 5"), "{error}");
    // What the message says is true.
    assert!(scheduler.submit(request(1, 16, 5)).is_ok());
    // `max_tokens` beyond the context is cut to it, not refused.
    assert!(
        scheduler.submit(SequenceRequest { max_tokens: usize::MAX, ..request(1, 39, 1) }).is_err()
    );
    assert!(scheduler.submit(request(2, 1, 1)).is_ok());
    let full = SubmitError::QueueFull { waiting: 2, max_queue: 2 };
    assert_eq!(scheduler.submit(request(3, 1, 1)), Err(full));
    driver.step();
    assert!(driver.scheduler.submit(request(3, 1, 1)).is_ok());
    let updates = driver.run();
    assert_eq!(tokens_of(&updates, SequenceId(0)).len() + 1, 5);
}

#[test]
fn nonsense_limits_are_named() {
    let config = |config| engine_sched::Scheduler::new(config).unwrap_err().to_string();
    let error = config(SchedulerConfig { max_sequences: 0, ..small() });
    assert!(error.contains("max_sequences is 0"), "{error}");
    let error = config(SchedulerConfig { num_blocks: usize::MAX, ..small() });
    assert!(error.contains("num_blocks"), "{error}");
}

#[test]
fn statistics_tell_what_happened() {
    let mut driver = Driver::new(small());
    driver.submit(SequenceRequest { arrival: Some(ms(0)), ..request(1, 5, 3) });
    driver.submit(SequenceRequest { arrival: Some(ms(0)), ..request(2, 5, 3) });
    driver.run();
    let statistics = driver.scheduler.statistics();
    assert_eq!((statistics.submitted, statistics.completed), (2, 2));
    assert_eq!((statistics.steps, statistics.computed_tokens), (3, 14));
    assert_eq!(statistics.generated_tokens, 6);
    assert_eq!(statistics.mean_batch_sequences(), 2.0);
    assert_eq!((statistics.max_batch_tokens, statistics.max_batch_sequences), (10, 2));
    assert_eq!(statistics.queue_time.quantile(0.5), ms(10));
    assert_eq!((statistics.first_token.count(), statistics.inter_token.count()), (2, 4));
    assert_eq!(statistics.inter_token.quantile(0.99), ms(10));
    assert_eq!(statistics.blocks.used_blocks, 0);
    // A snapshot goes to another thread.
    let thread = std::thread::spawn(move || statistics.prefix_hit_rate());
    assert_eq!(thread.join().unwrap(), 0.0);
}
