//! A scheduler and a fake model, driven step by step.
#![allow(dead_code)]

use std::time::Duration;

use engine_sched::simulation::FakeModel;
use engine_sched::{
    Executor, FinishReason, ScheduledBatch, Scheduler, SchedulerConfig, SequenceId,
    SequenceRequest, SequenceUpdate, TokenId,
};

pub struct Driver {
    pub scheduler: Scheduler,
    pub model: FakeModel,
    pub now: Duration,
}

pub fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A prompt of `len` tokens that begins like no prompt with another `first`.
pub fn prompt(first: TokenId, len: usize) -> Vec<TokenId> {
    (0..len as TokenId).map(|i| first * 1000 + i).collect()
}

pub fn request(first: TokenId, len: usize, max_tokens: usize) -> SequenceRequest {
    SequenceRequest { max_tokens, ..SequenceRequest::new(prompt(first, len)) }
}

impl Driver {
    pub fn new(config: SchedulerConfig) -> Self {
        let model = FakeModel::new(&config, 50_000);
        Self { scheduler: Scheduler::new(config).unwrap(), model, now: Duration::ZERO }
    }

    pub fn submit(&mut self, request: SequenceRequest) -> SequenceId {
        self.scheduler.submit(request).unwrap()
    }

    pub fn schedule(&mut self) -> ScheduledBatch {
        self.now += ms(10);
        let batch = self.scheduler.schedule(self.now);
        self.scheduler.check().unwrap();
        batch
    }

    /// Executes and commits; the batch's own finished updates come first.
    pub fn finish(&mut self, mut batch: ScheduledBatch) -> Vec<SequenceUpdate> {
        let mut updates = std::mem::take(&mut batch.finished);
        let tokens = self.model.execute(&batch).unwrap();
        updates.extend(self.scheduler.commit(batch, &tokens, self.now));
        self.scheduler.check().unwrap();
        updates
    }

    pub fn step(&mut self) -> Vec<SequenceUpdate> {
        let batch = self.schedule();
        self.finish(batch)
    }

    /// Steps until there is no work; all updates.
    pub fn run(&mut self) -> Vec<SequenceUpdate> {
        let mut updates = Vec::new();
        while self.scheduler.has_work() {
            updates.extend(self.step());
        }
        updates
    }

    pub fn free_blocks(&self) -> usize {
        let blocks = self.scheduler.statistics().blocks;
        blocks.num_blocks - blocks.used_blocks
    }
}

/// `(sequence, tokens, start)` of each chunk.
pub fn chunks(batch: &ScheduledBatch) -> Vec<(u64, usize, usize)> {
    let of = |c: &engine_sched::ScheduledChunk| (c.sequence.0, c.tokens.len(), c.start_position);
    batch.chunks.iter().map(of).collect()
}

pub fn finishes(updates: &[SequenceUpdate]) -> Vec<(u64, FinishReason)> {
    updates.iter().filter_map(|update| Some((update.sequence.0, update.finish?))).collect()
}

pub fn tokens_of(updates: &[SequenceUpdate], sequence: SequenceId) -> Vec<TokenId> {
    let own = updates.iter().filter(|update| update.sequence == sequence);
    own.filter_map(|update| update.token).collect()
}
