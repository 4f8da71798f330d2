use crate::scheduler::InFlight;
use crate::sequence::{Rank, Sequence};
use crate::{ScheduledBatch, Scheduler, SequenceId};

/// Prompts that are computed side by side when one step cannot hold them: a few, so that a short
/// one need not wait for a long one, and no more, so that each is done soon.
const MAX_PROMPTS: usize = 4;

/// What sequences will soon need beyond what they hold.
#[derive(Debug, Clone, Copy, Default)]
struct Demand {
    /// Tokens known and not computed.
    tokens: usize,
    /// Blocks for known tokens that are not allocated yet, and one more for each sample.
    blocks: usize,
    /// Places among `max_sequences`.
    places: usize,
    /// Sequences with more than one token to compute.
    prompts: usize,
}

impl Demand {
    fn add(&mut self, other: Demand) {
        self.tokens = self.tokens.saturating_add(other.tokens);
        self.blocks = self.blocks.saturating_add(other.blocks);
        self.places = self.places.saturating_add(other.places);
        self.prompts += other.prompts;
    }
}

impl Scheduler {
    /// Moves waiting sequences to the running ones as far as budget, places and blocks reach, in
    /// their order and without skipping any. One that outclasses running ones has them preempted.
    pub(crate) fn admit(&mut self, batch: &mut ScheduledBatch, flight: &mut InFlight) {
        if self.waiting.is_empty() {
            return;
        }
        let mut demand = self.running_demand();
        let mut last = self.last_running();
        while let Some(id) = self.waiting.head(self.now, self.config.max_wait) {
            let Some(rank) = self.rank(id) else { return };
            let victim = last.filter(|&(last, _)| rank.outclasses(last));
            let full = demand.tokens >= self.config.max_batched_tokens;
            if full && demand.prompts >= MAX_PROMPTS && victim.is_none() {
                return;
            }
            if self.fits(id, demand) {
                demand.add(self.admit_sequence(id));
                last = last.max(Some((rank, id)));
            } else if let Some((_, victim)) = victim {
                self.preempt(victim, batch, flight);
                demand = self.running_demand();
                last = self.last_running();
            } else {
                return;
            }
        }
    }

    fn admit_sequence(&mut self, id: SequenceId) -> Demand {
        let Some(mut sequence) = self.sequences.remove(&id) else { return Demand::default() };
        self.waiting.remove(&sequence);
        if !sequence.admitted {
            sequence.admitted = true;
            self.recorder.queue_time.record(self.now.saturating_sub(sequence.arrival));
        }
        if sequence.swapped.is_none() {
            self.attach_prefix(&mut sequence);
        }
        let demand = self.demand(&sequence);
        self.sequences.insert(id, sequence);
        self.running.push(id);
        demand
    }

    fn running_demand(&self) -> Demand {
        let mut total = Demand::default();
        for sequence in self.running.iter().filter_map(|id| self.sequences.get(id)) {
            total.add(self.demand(sequence));
        }
        total
    }

    fn demand(&self, sequence: &Sequence) -> Demand {
        let held = sequence.table.num_blocks();
        let samples = sequence.num_samples();
        Demand {
            tokens: sequence.remaining(),
            blocks: self.blocks_to_catch_up(sequence).saturating_sub(held) + samples,
            places: samples,
            prompts: usize::from(sequence.remaining() > 1),
        }
    }

    /// Blocks that hold all known tokens, or what the window and a step need of them.
    fn blocks_to_catch_up(&self, sequence: &Sequence) -> usize {
        let whole = self.pool.blocks_for(sequence.tokens.len());
        match self.config.window {
            Some(window) => {
                let held = window.saturating_add(self.config.max_batched_tokens);
                whole.min(self.pool.blocks_for(held).saturating_add(1))
            }
            None => whole,
        }
    }

    /// Whether the waiting sequence can join the running ones, which demand `running`. Alone it
    /// always can: `submit` saw to it.
    fn fits(&self, id: SequenceId, running: Demand) -> bool {
        let Some(sequence) = self.sequences.get(&id) else { return false };
        if self.running.is_empty() {
            return true;
        }
        let own = self.demand(sequence);
        if running.places.saturating_add(own.places) > self.config.max_sequences {
            return false;
        }
        let needed = running.blocks.saturating_add(own.blocks);
        let missing = needed.saturating_sub(self.pool.num_free());
        if missing == 0 || sequence.swapped.is_some() || !self.config.prefix_caching {
            return missing == 0;
        }
        let usable = &sequence.tokens[..sequence.cacheable_len()];
        let found = self.pool.lookup_prefix(sequence.table.namespace(), usable);
        found.blocks - found.free_blocks >= missing
    }

    fn last_running(&self) -> Option<(Rank, SequenceId)> {
        self.running.iter().filter_map(|&id| Some((self.rank(id)?, id))).max()
    }
}
