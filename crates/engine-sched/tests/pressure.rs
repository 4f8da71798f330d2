//! Too much to do and too little room: preemption, priorities, waiting, deadlines, cancellation and
//! failure, each with exact expectations.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Driver, chunks, finishes, ms, prompt, request, tokens_of};
use engine_sched::{
    FinishReason, ScheduledBatch, Scheduler, SchedulerConfig, SequenceId, SequenceRequest,
    Statistics,
};
use std::time::Duration;

fn tight() -> SchedulerConfig {
    SchedulerConfig {
        num_blocks: 8,
        block_size: 4,
        max_batched_tokens: 32,
        max_sequences: 4,
        max_context: 32,
        prefix_caching: false,
        ..SchedulerConfig::default()
    }
}

/// Two sequences that both fit at first and not to their ends.
fn squeeze(config: SchedulerConfig, priorities: [i32; 2]) -> (Vec<u64>, Statistics) {
    let mut driver = Driver::new(config);
    for (i, priority) in priorities.into_iter().enumerate() {
        driver.submit(SequenceRequest { priority, ..request(i as u32 + 1, 8, 20) });
    }
    let updates = driver.run();
    for i in 0..2 {
        let mut all = prompt(i as u32 + 1, 8);
        for token in tokens_of(&updates, SequenceId(i)) {
            assert_eq!(token, driver.model.next_token(&all, 0));
            all.push(token);
        }
        assert_eq!(all.len(), 28);
    }
    let order = finishes(&updates).iter().map(|&(id, _)| id).collect();
    (order, driver.scheduler.statistics())
}

#[test]
fn the_youngest_of_the_lowest_priority_is_preempted() {
    let (order, statistics) = squeeze(tight(), [0, 0]);
    assert_eq!(order, [0, 1]);
    assert_eq!((statistics.preemptions_by_recompute, statistics.preemptions_by_swap), (1, 0));
    let (order, _) = squeeze(tight(), [0, 5]);
    assert_eq!(order, [1, 0]);
}

#[test]
fn the_cheaper_way_to_preempt_is_taken() {
    let swap = SchedulerConfig {
        num_host_blocks: 8,
        token_cost: ms(100),
        swap_block_cost: ms(1),
        ..tight()
    };
    let recompute = SchedulerConfig { swap_block_cost: ms(1000), ..swap.clone() };
    let no_room = SchedulerConfig { num_host_blocks: 1, ..swap.clone() };
    let by = |config| {
        let (order, statistics) = squeeze(config, [0, 0]);
        assert_eq!(order, [0, 1]);
        (statistics.preemptions_by_swap, statistics.preemptions_by_recompute)
    };
    assert_eq!(by(swap), (1, 0));
    assert_eq!(by(recompute), (0, 1));
    assert_eq!(by(no_room), (0, 1));
}

#[test]
fn costs_are_learnt_from_the_steps() {
    let mut driver = Driver::new(SchedulerConfig {
        num_blocks: 64,
        max_context: 64,
        token_cost: ms(1000),
        ..tight()
    });
    for i in 0..40 {
        driver.submit(request(i, 1 + i as usize % 13, 3));
    }
    let mut now = Duration::ZERO;
    while driver.scheduler.has_work() {
        let batch = driver.scheduler.schedule(now);
        now += ms(5) + ms(2) * batch.num_tokens() as u32;
        let tokens = vec![0; batch.samples.len()];
        driver.scheduler.commit(batch, &tokens, now);
    }
    let cost = driver.scheduler.statistics().token_cost;
    assert!(cost > Duration::from_micros(1990) && cost < Duration::from_micros(2010), "{cost:?}");
}

#[test]
fn a_more_important_request_takes_the_place_of_a_running_one() {
    let mut driver = Driver::new(SchedulerConfig { max_sequences: 1, ..tight() });
    driver.submit(request(1, 4, 6));
    driver.step();
    driver.submit(request(2, 4, 2));
    driver.submit(SequenceRequest { priority: 1, ..request(3, 4, 2) });
    let batch = driver.schedule();
    assert_eq!(chunks(&batch), [(2, 4, 0)]);
    driver.finish(batch);
    let updates = driver.run();
    // The one it displaced comes before the one that arrived later.
    let order: Vec<_> = finishes(&updates).iter().map(|&(id, _)| id).collect();
    assert_eq!(order, [2, 0, 1]);
    assert_eq!(driver.scheduler.statistics().preemptions_by_recompute, 1);
}

/// Steps until the unimportant request ends while important ones keep coming.
fn steps_under_fire(max_wait: Duration) -> Option<usize> {
    let mut driver = Driver::new(SchedulerConfig { max_sequences: 2, max_wait, ..tight() });
    let low = driver.submit(SequenceRequest { priority: -1, ..request(1, 4, 4) });
    for step in 0..300 {
        for _ in 0..2 {
            driver.submit(SequenceRequest { priority: 9, ..request(2 + step, 4, 3) });
        }
        let updates = driver.step();
        if updates.iter().any(|update| update.sequence == low && update.finish.is_some()) {
            return Some(step as usize);
        }
    }
    None
}

#[test]
fn waiting_is_bounded_whatever_the_priorities() {
    // Without a bound it starves: two important requests come with each step.
    assert_eq!(steps_under_fire(Duration::MAX), None);
    // 100 ms are 10 steps; then at most those running end first, and it runs to its end.
    let steps = steps_under_fire(ms(100)).unwrap();
    assert!((10..=20).contains(&steps), "{steps}");
}

#[test]
fn first_come_is_first_served() {
    let mut driver = Driver::new(tight());
    // The second needs the whole pool; the small ones behind it wait for it.
    for (i, len) in [(1, 12), (2, 28), (3, 1), (4, 1)] {
        driver.submit(request(i, len, 4));
    }
    let batch = driver.schedule();
    assert_eq!(chunks(&batch), [(0, 12, 0)]);
    driver.finish(batch);
    let updates = driver.run();
    let order: Vec<_> = finishes(&updates).iter().map(|&(id, _)| id).collect();
    assert_eq!(order, [0, 1, 2, 3]);
}

#[test]
fn a_deadline_ends_a_sequence_wherever_it_is() {
    let mut driver = Driver::new(SchedulerConfig { max_sequences: 1, ..tight() });
    driver.submit(SequenceRequest { deadline: Some(ms(25)), ..request(1, 4, 20) });
    driver.submit(SequenceRequest { deadline: Some(ms(15)), ..request(2, 4, 20) });
    driver.submit(SequenceRequest { deadline: Some(ms(35)), ..request(3, 4, 20) });
    driver.step();
    let batch = driver.schedule();
    assert_eq!(finishes(&batch.finished), [(1, FinishReason::DeadlinePassed)]);
    assert_eq!(chunks(&batch), [(0, 1, 4)]);
    driver.finish(batch);
    let batch = driver.schedule();
    assert_eq!(finishes(&batch.finished), [(0, FinishReason::DeadlinePassed)]);
    assert_eq!(chunks(&batch), [(2, 4, 0)]);
    driver.finish(batch);
    let batch = driver.schedule();
    assert_eq!(finishes(&batch.finished), [(2, FinishReason::DeadlinePassed)]);
    assert!(batch.is_empty() && !driver.scheduler.has_work());
    assert_eq!(driver.free_blocks(), 8);
}

#[test]
fn what_is_in_flight_can_be_cancelled_and_keeps_its_blocks_until_it_lands() {
    let mut driver = Driver::new(tight());
    let (one, two) = (driver.submit(request(1, 8, 4)), driver.submit(request(2, 8, 4)));
    let batch = driver.schedule();
    assert!(driver.scheduler.cancel(one));
    assert!(!driver.scheduler.cancel(one));
    assert_eq!(driver.free_blocks(), 4);
    // Nothing else is planned meanwhile.
    let other = driver.schedule();
    assert!(other.is_empty() && other.finished.is_empty());
    let updates = driver.finish(batch);
    assert_eq!(finishes(&updates), [(one.0, FinishReason::Cancelled)]);
    assert!(tokens_of(&updates, one).is_empty());
    assert_eq!(tokens_of(&updates, two).len(), 1);
    assert_eq!(driver.free_blocks(), 6);
    assert!(!driver.scheduler.cancel(one));
    assert!(driver.scheduler.cancel(two));
    assert!(driver.scheduler.has_work());
    assert_eq!(finishes(&driver.step()), [(two.0, FinishReason::Cancelled)]);
    assert!(!driver.scheduler.has_work());
    assert!(!driver.scheduler.cancel(SequenceId(99)));
}

#[test]
fn cancelling_a_request_cancels_its_samples_before_and_after_they_part() {
    for steps in 0..3 {
        let mut driver = Driver::new(tight());
        let id = driver.submit(SequenceRequest { num_samples: 3, ..request(1, 5, 9) });
        for _ in 0..steps {
            driver.step();
        }
        assert!(driver.scheduler.cancel(id));
        let expected = [1, 2, 3].map(|sample| (sample, FinishReason::Cancelled));
        assert_eq!(finishes(&driver.step()), expected);
        assert!(!driver.scheduler.cancel(id) && !driver.scheduler.has_work());
        assert_eq!(driver.free_blocks(), 8);
    }
}

#[test]
fn a_failed_step_fails_its_sequences_and_no_others() {
    let mut driver = Driver::new(SchedulerConfig { max_sequences: 1, ..tight() });
    let (one, two) = (driver.submit(request(1, 8, 4)), driver.submit(request(2, 8, 2)));
    let batch = driver.schedule();
    let updates = driver.scheduler.abort(batch, driver.now);
    assert_eq!(finishes(&updates), [(one.0, FinishReason::Failed)]);
    assert_eq!(driver.free_blocks(), 8);
    assert_eq!(finishes(&driver.run()), [(two.0, FinishReason::Length)]);
    // A batch that never came back does not block the scheduler for ever.
    let three = driver.submit(request(3, 8, 4));
    drop(driver.schedule());
    let updates = driver.scheduler.abort_in_flight(driver.now);
    assert_eq!(finishes(&updates), [(three.0, FinishReason::Failed)]);
    assert!(!driver.scheduler.has_work());
}

#[test]
fn a_failed_swap_is_computed_again() {
    let config = SchedulerConfig {
        num_host_blocks: 8,
        token_cost: ms(100),
        swap_block_cost: ms(1),
        ..tight()
    };
    let mut driver = Driver::new(config);
    let (one, two) = (driver.submit(request(1, 8, 20)), driver.submit(request(2, 8, 20)));
    let mut updates = Vec::new();
    let batch = loop {
        let batch = driver.schedule();
        if !batch.swap_out.is_empty() {
            break batch;
        }
        updates.extend(driver.finish(batch));
    };
    // The copies to the host may not have been done.
    let failed = driver.scheduler.abort(batch, driver.now);
    assert_eq!(finishes(&failed), [(one.0, FinishReason::Failed)]);
    driver.scheduler.check().unwrap();
    assert_eq!(driver.scheduler.statistics().used_host_blocks, 0);
    updates.extend(driver.run());
    let mut all = prompt(2, 8);
    for token in tokens_of(&updates, two) {
        assert_eq!(token, driver.model.next_token(&all, 0));
        all.push(token);
    }
    assert_eq!(all.len(), 28);
}

#[test]
fn a_batch_that_is_not_in_flight_changes_nothing() {
    let mut driver = Driver::new(tight());
    let id = driver.submit(request(1, 8, 2));
    let batch = driver.schedule();
    assert!(driver.scheduler.commit(ScheduledBatch::default(), &[1, 2, 3], driver.now).is_empty());
    // Too few tokens: the sequence that lacks its own fails.
    let updates = driver.scheduler.commit(batch, &[], driver.now);
    assert_eq!(finishes(&updates), [(id.0, FinishReason::Failed)]);
    driver.scheduler.check().unwrap();
    assert!(!driver.scheduler.has_work());
    let mut empty = Scheduler::new(tight()).unwrap();
    let batch = empty.schedule(ms(1));
    assert!(batch.is_empty() && empty.commit(batch, &[], ms(2)).is_empty());
}

#[test]
fn every_decode_goes_on_beside_a_giant() {
    let config = SchedulerConfig {
        num_blocks: 200,
        max_batched_tokens: 16,
        max_sequences: 16,
        max_context: 400,
        ..tight()
    };
    let mut driver = Driver::new(config);
    // The giant came first, so that it is before all others in rank.
    driver.submit(request(1, 300, 1));
    for i in 0..12 {
        driver.submit(request(2 + i, 1, 40));
    }
    // Until all have their first token.
    for _ in 0..4 {
        driver.step();
    }
    for step in 0..10 {
        let batch = driver.schedule();
        let sizes: Vec<_> = chunks(&batch).iter().map(|&(_, len, _)| len).collect();
        assert_eq!(sizes, [4, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1], "step {step}");
        driver.finish(batch);
    }
}

#[test]
fn who_waited_too_long_displaces_a_more_important_one() {
    let config = SchedulerConfig { max_sequences: 1, max_wait: ms(55), ..tight() };
    let mut driver = Driver::new(config);
    driver.submit(SequenceRequest { arrival: Some(ms(20)), priority: 9, ..request(1, 4, 20) });
    driver.submit(SequenceRequest { arrival: Some(ms(10)), ..request(2, 4, 3) });
    let mut ran = Vec::new();
    for _ in 0..10 {
        let batch = driver.schedule();
        ran.push(batch.chunks[0].sequence.0);
        driver.finish(batch);
    }
    // At 70 ms it has waited for 60; the other one, overdue later, is not displaced again.
    assert_eq!(ran, [0, 0, 0, 0, 0, 0, 1, 1, 1, 0]);
}

#[test]
fn cached_blocks_are_room_only_once() {
    let mut driver = Driver::new(SchedulerConfig { prefix_caching: true, ..tight() });
    driver.submit(request(1, 12, 1));
    driver.run();
    driver.submit(request(2, 15, 10));
    driver.step();
    assert_eq!(driver.free_blocks(), 4);
    // Four blocks are free, three of them hold its beginning: with the block that each of the two
    // may need next it does not fit, although two blocks need not be computed.
    driver.submit(request(1, 12, 4));
    let batch = driver.schedule();
    assert_eq!(chunks(&batch), [(1, 1, 15)]);
    driver.finish(batch);
    assert_eq!(driver.run().last().unwrap().cached_prompt_tokens, 8);
    assert_eq!(driver.scheduler.statistics().preemptions_by_recompute, 0);
}
