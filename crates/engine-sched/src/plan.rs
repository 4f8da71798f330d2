use std::time::Duration;

use crate::scheduler::InFlight;
use crate::sequence::Sequence;
use crate::{
    FinishReason, LogitRows, SampleSlot, ScheduledBatch, ScheduledChunk, Scheduler, SequenceId,
};

/// The step's budget as it is handed out.
#[derive(Debug)]
struct Shares {
    /// Tokens not given away yet.
    budget: usize,
    /// What the sequences behind want together.
    wanted_behind: usize,
}

impl Shares {
    /// Tokens that the next sequence may take: all that those behind it leave over, at least half,
    /// but not the one token that each of them needs to go on. A giant thus slows those behind it
    /// down and never stops them.
    fn next(&self, num_behind: usize) -> usize {
        let left_over = self.budget.saturating_sub(self.wanted_behind);
        let fair = left_over.max(self.budget.div_ceil(2));
        fair.min(self.budget.saturating_sub(num_behind)).max(1)
    }
}

impl Scheduler {
    /// Plans the next step.
    ///
    /// The batch is empty when there is no work, or while an earlier batch is in flight.
    pub fn schedule(&mut self, now: Duration) -> ScheduledBatch {
        self.now = self.now.max(now);
        let mut batch = ScheduledBatch::default();
        if self.in_flight.is_none() {
            self.stamp_arrivals();
            self.expire();
            let mut flight = InFlight { scheduled_at: self.now, ..InFlight::default() };
            self.admit(&mut batch, &mut flight);
            self.plan(&mut batch, &mut flight);
            if !batch.is_empty() {
                self.step += 1;
                batch.step = self.step;
                flight.step = self.step;
                flight.num_tokens = batch.num_tokens();
                flight.moved_blocks = batch.swap_in.len() + batch.swap_out.len();
                flight.samples.clone_from(&batch.samples);
                flight.sequences.extend(batch.chunks.iter().map(|chunk| chunk.sequence));
                self.in_flight = Some(flight);
            }
        }
        batch.finished = std::mem::take(&mut self.updates);
        batch
    }

    fn stamp_arrivals(&mut self) {
        for id in std::mem::take(&mut self.unstamped) {
            let Some(sequence) = self.sequences.get_mut(&id) else { continue };
            self.waiting.remove(sequence);
            sequence.arrival = self.now;
            self.waiting.insert(sequence);
        }
    }

    fn expire(&mut self) {
        while let Some(&(deadline, id)) = self.deadlines.first()
            && deadline <= self.now
        {
            self.deadlines.pop_first();
            self.finish(id, FinishReason::DeadlinePassed);
        }
    }

    /// Gives budget and blocks to the running sequences, the first in rank first.
    fn plan(&mut self, batch: &mut ScheduledBatch, flight: &mut InFlight) {
        let mut shares = Shares { budget: self.config.max_batched_tokens, wanted_behind: 0 };
        let mut ranked = Vec::with_capacity(self.running.len());
        for sequence in self.running.iter().filter_map(|id| self.sequences.get(id)) {
            shares.wanted_behind += sequence.remaining();
            ranked.push((sequence.rank(self.now, self.config.max_wait), sequence.id));
        }
        ranked.sort_unstable();
        self.running.clear();
        self.running.extend(ranked.into_iter().map(|(_, id)| id));
        let mut place = 0;
        while place < self.running.len() && shares.budget > 0 {
            shares.budget -= self.plan_sequence(place, &mut shares, batch, flight);
            place += 1;
        }
    }

    /// Plans a chunk within its share for the sequence at `place`, preempting sequences behind it
    /// if it cannot have a single block otherwise. Returns the chunk's length, 0 if the sequence
    /// must wait.
    fn plan_sequence(
        &mut self,
        place: usize,
        shares: &mut Shares,
        batch: &mut ScheduledBatch,
        flight: &mut InFlight,
    ) -> usize {
        let id = self.running[place];
        let Some(mut sequence) = self.sequences.remove(&id) else { return 0 };
        shares.wanted_behind = shares.wanted_behind.saturating_sub(sequence.remaining());
        let limit = shares.next(self.running.len() - place - 1);
        let mut planned = 0;
        loop {
            if self.restore(&mut sequence, batch, flight) {
                planned = self.plan_chunk(&mut sequence, limit, batch);
            }
            if planned > 0 || !self.preempt_behind(place, batch, flight) {
                break;
            }
        }
        sequence.planned = planned;
        self.sequences.insert(id, sequence);
        planned
    }

    /// Brings the sequence's computed tokens back, from the host or from the prefix cache.
    /// Returns whether it can go on.
    fn restore(
        &mut self,
        sequence: &mut Sequence,
        batch: &mut ScheduledBatch,
        flight: &mut InFlight,
    ) -> bool {
        if let Some(swapped) = &sequence.swapped {
            let moves = self.pool.swap_in(swapped, &mut sequence.table, &sequence.tokens);
            let Ok(moves) = moves else { return false };
            batch.swap_in.extend(moves);
            flight.swapped_in.extend(sequence.swapped.take());
            flight.restored.push(sequence.id);
        }
        // A neighbour may have computed its prefix since it was admitted.
        if sequence.table.num_blocks() == 0 && sequence.table.is_empty() {
            let usable = &sequence.tokens[..sequence.cacheable_len()];
            if self.pool.lookup_prefix(sequence.table.namespace(), usable).blocks > 0 {
                self.attach_prefix(sequence);
            }
        }
        true
    }

    /// Takes what the prefix cache has, leaving at least one token to compute.
    pub(crate) fn attach_prefix(&mut self, sequence: &mut Sequence) {
        let usable = sequence.cacheable_len();
        if usable > 0 && self.config.prefix_caching {
            let hit = self.pool.attach_prefix(&mut sequence.table, &sequence.tokens[..usable]);
            let oldest = self.config.oldest_read(hit);
            self.pool.release_before(&mut sequence.table, oldest);
            if sequence.tokens.len() == sequence.terms.prompt_len {
                sequence.cached_prompt_tokens = hit;
            }
        }
    }

    fn plan_chunk(
        &mut self,
        sequence: &mut Sequence,
        limit: usize,
        batch: &mut ScheduledBatch,
    ) -> usize {
        let start = sequence.table.len();
        let mut len = sequence.next_chunk_len(limit);
        let needed = self.pool.blocks_to_reserve(&sequence.table, start + len);
        if needed > self.pool.num_free() {
            let missing = needed - self.pool.num_free();
            let end = (self.pool.blocks_for(start + len) - missing) * self.pool.block_size();
            len = end.saturating_sub(start);
        }
        if len == 0 {
            return 0;
        }
        let Ok(copy) = self.pool.reserve(&mut sequence.table, start + len) else { return 0 };
        batch.copies.extend(copy);
        let chunk = ScheduledChunk {
            sequence: sequence.id,
            tokens: sequence.tokens[start..start + len].to_vec(),
            start_position: start,
            page_table: sequence.table.page_table(),
            logits: sequence.logit_rows(start, len),
            known_len: sequence.tokens.len(),
        };
        if start + len == sequence.tokens.len() && sequence.wants_token() {
            batch.samples.extend(sequence.sample_indices().map(|sample_index| SampleSlot {
                sequence: sequence.terms.sample_id(sample_index),
                parent: sequence.terms.parent,
                sample_index,
                chunk: batch.chunks.len(),
                position: sequence.tokens.len(),
            }));
        }
        batch.chunks.push(chunk);
        len
    }

    /// The sequences that run, first in rank first as of the last step.
    pub fn running(&self) -> &[SequenceId] {
        &self.running
    }
}

impl Sequence {
    /// Leading tokens that may come from the prefix cache.
    pub(crate) fn cacheable_len(&self) -> usize {
        let needs_rows = self.terms.prompt_logits && self.reported_rows < self.terms.prompt_len;
        if needs_rows { self.reported_rows } else { self.tokens.len() - 1 }
    }

    /// Tokens to compute next within `limit`. Chunks with logits for every row end where the rows
    /// that were already delivered end, and where the prompt ends.
    fn next_chunk_len(&self, limit: usize) -> usize {
        let start = self.table.len();
        let mut end = self.tokens.len().min(start.saturating_add(limit));
        if self.terms.prompt_logits {
            for border in [self.reported_rows, self.terms.prompt_len] {
                if start < border {
                    end = end.min(border);
                }
            }
        }
        end - start
    }

    fn logit_rows(&self, start: usize, len: usize) -> LogitRows {
        let in_prompt = start < self.terms.prompt_len;
        if self.terms.prompt_logits && in_prompt && start >= self.reported_rows {
            LogitRows::All
        } else if start + len == self.tokens.len() && self.wants_token() {
            LogitRows::Last
        } else {
            LogitRows::None
        }
    }
}
