use std::time::Duration;

use engine_kv::PageTable;

use crate::scheduler::InFlight;
use crate::sequence::Sequence;
use crate::{
    CacheEpochs, FinishReason, SampleSlot, ScheduledBatch, Scheduler, SequenceId, SequenceUpdate,
    TokenId,
};

impl Scheduler {
    /// Records that `batch` was executed: `sampled` holds one token for each of `batch.samples`.
    ///
    /// Returns what became of the sequences, together with the ends of those that were cancelled
    /// meanwhile. A sequence whose token is missing from `sampled` ends as
    /// [`FinishReason::Failed`]; a batch that is not the one in flight changes nothing.
    pub fn commit(
        &mut self,
        batch: ScheduledBatch,
        sampled: &[TokenId],
        now: Duration,
    ) -> Vec<SequenceUpdate> {
        self.now = self.now.max(now);
        if let Some(flight) = self.land(&batch) {
            let elapsed = self.now.saturating_sub(flight.scheduled_at);
            self.cost.observe(flight.num_tokens, flight.moved_blocks, elapsed);
            self.recorder.step(flight.num_tokens, flight.sequences.len(), elapsed);
            for swapped in flight.swapped_in {
                self.host.release(swapped);
            }
            for id in flight.sequences {
                self.commit_chunk(id);
            }
            for (i, slot) in flight.samples.iter().enumerate() {
                self.commit_token(slot, sampled.get(i).copied());
            }
        }
        std::mem::take(&mut self.updates)
    }

    /// Gives up `batch`, whose execution failed: the sequences in it end as
    /// [`FinishReason::Failed`] and their blocks are free again. Other sequences are not affected;
    /// those that the batch moved to or from the host are computed again.
    pub fn abort(&mut self, batch: ScheduledBatch, now: Duration) -> Vec<SequenceUpdate> {
        self.now = self.now.max(now);
        if let Some(flight) = self.land(&batch) {
            self.undo(flight);
        }
        std::mem::take(&mut self.updates)
    }

    /// Like [`Self::abort`] for a batch that was lost, with the thread that executed it, say.
    pub fn abort_in_flight(&mut self, now: Duration) -> Vec<SequenceUpdate> {
        self.now = self.now.max(now);
        if let Some(flight) = self.in_flight.take() {
            self.undo(flight);
        }
        std::mem::take(&mut self.updates)
    }

    fn undo(&mut self, flight: InFlight) {
        self.recorder.failed_steps += 1;
        for swapped in flight.swapped_in {
            self.host.release(swapped);
        }
        for id in flight.sequences {
            let cancelled = self.sequences.get(&id).is_some_and(|sequence| sequence.cancelled);
            let reason = if cancelled { FinishReason::Cancelled } else { FinishReason::Failed };
            self.finish(id, reason);
        }
        for id in flight.swapped_out.into_iter().chain(flight.restored) {
            self.forget_computed(id);
        }
    }

    /// Takes the batch in flight down if it is `batch`.
    fn land(&mut self, batch: &ScheduledBatch) -> Option<InFlight> {
        self.in_flight.take_if(|flight| flight.step == batch.step)
    }

    fn forget_computed(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        self.pool.release(&mut sequence.table);
        if let Some(swapped) = sequence.swapped.take() {
            self.host.release(swapped);
        }
    }

    fn commit_chunk(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let computed = sequence.table.len() + std::mem::take(&mut sequence.planned);
        // Where each length is an epoch, the keys of a growing sequence are of no use to others,
        // and would drive out those that are.
        let fleeting = matches!(self.config.cache_epochs, CacheEpochs::EveryLengthAbove(_))
            && sequence.table.namespace().epoch > 0
            && sequence.tokens.len() > sequence.terms.prompt_len;
        if fleeting {
            self.pool.commit_private(&mut sequence.table, computed);
        } else {
            self.pool.commit(&mut sequence.table, computed, &sequence.tokens);
        }
        self.pool.release_before(&mut sequence.table, self.config.oldest_read(computed));
        let prompt_len = sequence.terms.prompt_len;
        sequence.reported_rows = sequence.reported_rows.max(computed.min(prompt_len));
        let caught_up = computed == sequence.tokens.len();
        if sequence.cancelled {
            self.finish(id, FinishReason::Cancelled);
        } else if caught_up && !sequence.wants_token() {
            self.finish(id, FinishReason::Length);
        }
    }

    /// Appends a token to the sequence of `slot`, forking its request if it is the first one.
    fn commit_token(&mut self, slot: &SampleSlot, token: Option<TokenId>) {
        let unforked = self.sequences.get(&slot.parent);
        if unforked.is_some_and(|sequence| sequence.sample_index.is_none()) {
            self.fork(slot.parent);
        }
        let Some(sequence) = self.sequences.get_mut(&slot.sequence) else { return };
        let Some(token) = token else {
            self.finish(slot.sequence, FinishReason::Failed);
            return;
        };
        sequence.tokens.push(token);
        let finish = sequence.finish_after(token);
        self.updates.push(sequence.update(slot.sample_index, Some(token), finish));
        self.recorder.token(sequence, self.now);
        sequence.last_token_at = Some(self.now);
        if let Some(reason) = finish {
            self.recorder.finished(reason);
            self.remove(slot.sequence);
        } else {
            self.enter_epoch(slot.sequence);
        }
    }

    /// Keys computed in another epoch are wrong in this one: start over.
    fn enter_epoch(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let mut namespace = sequence.table.namespace();
        let epoch = self.config.cache_epochs.epoch(sequence.tokens.len());
        if namespace.epoch != epoch {
            namespace.epoch = epoch;
            self.pool.release(&mut sequence.table);
            sequence.table = PageTable::new(namespace);
            self.recorder.epoch_recomputations += 1;
        }
    }

    /// Replaces the request by its samples, which share its blocks.
    fn fork(&mut self, id: SequenceId) {
        let Some(parent) = self.sequences.get_mut(&id) else { return };
        let terms = parent.terms.clone();
        let mut samples = Vec::with_capacity(terms.num_samples);
        for index in 0..terms.num_samples {
            samples.push(Sequence {
                id: terms.sample_id(index),
                terms: terms.clone(),
                sample_index: Some(index),
                tokens: parent.tokens.clone(),
                table: self.pool.fork(&mut parent.table),
                swapped: None,
                ..**parent
            });
        }
        self.remove(id);
        for sample in samples {
            if let Some(deadline) = terms.deadline {
                self.deadlines.insert((deadline, sample.id));
            }
            self.running.push(sample.id);
            self.sequences.insert(sample.id, Box::new(sample));
        }
        let live = terms.num_samples;
        self.forked.insert(id, (terms, live));
    }
}
