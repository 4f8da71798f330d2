use std::time::Duration;

use engine_kv::{Counters, Usage};

use crate::sequence::Sequence;
use crate::{FinishReason, Scheduler};

/// Buckets per power of two; a bucket is at most an eighth wide.
const SUB_BUCKETS: u64 = 8;
const NUM_BUCKETS: usize = 304;

/// A distribution of durations, from a microsecond up, to within an eighth.
#[derive(Clone, PartialEq, Eq)]
pub struct Histogram {
    counts: [u32; NUM_BUCKETS],
    count: u64,
    total: Duration,
    max: Duration,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [0; NUM_BUCKETS], count: 0, total: Duration::ZERO, max: Duration::ZERO }
    }
}

impl std::fmt::Debug for Histogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Histogram")
            .field("count", &self.count)
            .field("mean", &self.mean())
            .field("p50", &self.quantile(0.5))
            .field("p99", &self.quantile(0.99))
            .field("max", &self.max)
            .finish()
    }
}

impl Histogram {
    pub(crate) fn record(&mut self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let count = &mut self.counts[bucket(micros)];
        *count = count.saturating_add(1);
        self.count += 1;
        self.total = self.total.saturating_add(duration);
        self.max = self.max.max(duration);
    }

    /// Durations recorded.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their mean, zero if there are none.
    pub fn mean(&self) -> Duration {
        self.total.div_f64(self.count.max(1) as f64)
    }

    /// The longest.
    pub fn max(&self) -> Duration {
        self.max
    }

    /// The duration that a part `q` (0 to 1) of them does not exceed, up to an eighth too long;
    /// zero if there are none.
    pub fn quantile(&self, q: f64) -> Duration {
        let rank = (q.clamp(0.0, 1.0) * self.count as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (i, &count) in self.counts.iter().enumerate() {
            seen += u64::from(count);
            if seen >= rank {
                return Duration::from_micros(upper_bound(i)).min(self.max);
            }
        }
        self.max
    }
}

fn bucket(micros: u64) -> usize {
    if micros < SUB_BUCKETS {
        return micros as usize;
    }
    let exponent = u64::from(micros.ilog2()) - 3;
    let index = (exponent + 1) * SUB_BUCKETS + (micros >> exponent) - SUB_BUCKETS;
    (index as usize).min(NUM_BUCKETS - 1)
}

fn upper_bound(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < SUB_BUCKETS {
        return bucket;
    }
    let exponent = bucket / SUB_BUCKETS - 1;
    ((bucket % SUB_BUCKETS + SUB_BUCKETS + 1) << exponent) - 1
}

/// What is recorded as it happens.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recorder {
    pub(crate) submitted: u64,
    pub(crate) finished: [u64; 5],
    pub(crate) queue_time: Histogram,
    pub(crate) first_token: Histogram,
    pub(crate) inter_token: Histogram,
    pub(crate) steps: u64,
    pub(crate) failed_steps: u64,
    pub(crate) busy: Duration,
    pub(crate) computed_tokens: u64,
    pub(crate) generated_tokens: u64,
    pub(crate) batched_sequences: u64,
    pub(crate) max_batch_tokens: usize,
    pub(crate) max_batch_sequences: usize,
    pub(crate) preemptions_by_recompute: u64,
    pub(crate) preemptions_by_swap: u64,
    pub(crate) epoch_recomputations: u64,
}

impl Recorder {
    pub(crate) fn finished(&mut self, reason: FinishReason) {
        self.finished[place(reason)] += 1;
    }

    pub(crate) fn step(&mut self, tokens: usize, sequences: usize, elapsed: Duration) {
        self.steps += 1;
        self.busy = self.busy.saturating_add(elapsed);
        self.computed_tokens += tokens as u64;
        self.batched_sequences += sequences as u64;
        self.max_batch_tokens = self.max_batch_tokens.max(tokens);
        self.max_batch_sequences = self.max_batch_sequences.max(sequences);
    }

    pub(crate) fn token(&mut self, sequence: &Sequence, now: Duration) {
        self.generated_tokens += 1;
        match sequence.last_token_at {
            None => self.first_token.record(now.saturating_sub(sequence.arrival)),
            Some(last) => self.inter_token.record(now.saturating_sub(last)),
        }
    }
}

fn place(reason: FinishReason) -> usize {
    match reason {
        FinishReason::Length => 0,
        FinishReason::StopToken(_) => 1,
        FinishReason::Cancelled => 2,
        FinishReason::DeadlinePassed => 3,
        FinishReason::Failed => 4,
    }
}

/// What the scheduler did and how full it is: a snapshot that can be sent anywhere.
#[derive(Debug, Clone, Default)]
pub struct Statistics {
    /// Requests taken.
    pub submitted: u64,
    /// Samples that ended with all their tokens.
    pub completed: u64,
    /// Samples that were cancelled.
    pub cancelled: u64,
    /// Samples whose deadline passed.
    pub deadline_passed: u64,
    /// Samples that the executor failed.
    pub failed: u64,
    /// Sequences that wait now.
    pub waiting: usize,
    /// Sequences that run now.
    pub running: usize,
    /// How long the longest waiting one has waited.
    pub longest_wait: Duration,
    /// From arrival to admission.
    pub queue_time: Histogram,
    /// From arrival to the first token (TTFT).
    pub first_token: Histogram,
    /// From one token of a sequence to its next (ITL).
    pub inter_token: Histogram,
    /// Steps that were committed.
    pub steps: u64,
    /// Steps that were aborted.
    pub failed_steps: u64,
    /// Time from schedule to commit, of all steps together.
    pub busy: Duration,
    /// Tokens computed, prompt and recomputed ones among them.
    pub computed_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Chunks in all steps together.
    pub batched_sequences: u64,
    /// Most tokens in one step.
    pub max_batch_tokens: usize,
    /// Most sequences in one step.
    pub max_batch_sequences: usize,
    /// Sequences that lost their blocks and were computed again.
    pub preemptions_by_recompute: u64,
    /// Sequences that were saved on the host.
    pub preemptions_by_swap: u64,
    /// Sequences that were computed again because their length entered another epoch.
    pub epoch_recomputations: u64,
    /// Measured time to compute one more token in a step.
    pub token_cost: Duration,
    /// Measured time to move one block between device and host.
    pub swap_block_cost: Duration,
    /// How full the block pool is.
    pub blocks: Usage,
    /// Host blocks that hold saved sequences.
    pub used_host_blocks: usize,
    /// Prefix hits, evictions, copies and moves.
    pub cache: Counters,
}

impl Statistics {
    /// Tokens generated per second of busy time.
    pub fn generated_per_second(&self) -> f64 {
        per(self.generated_tokens as f64, self.busy.as_secs_f64())
    }

    /// Tokens computed per step, on average.
    pub fn mean_batch_tokens(&self) -> f64 {
        per(self.computed_tokens as f64, self.steps as f64)
    }

    /// Sequences per step, on average.
    pub fn mean_batch_sequences(&self) -> f64 {
        per(self.batched_sequences as f64, self.steps as f64)
    }

    /// Part of the prompt tokens that came from the prefix cache, 0 to 1.
    pub fn prefix_hit_rate(&self) -> f64 {
        self.cache.hit_rate()
    }
}

fn per(amount: f64, unit: f64) -> f64 {
    if unit > 0.0 { amount / unit } else { 0.0 }
}

impl Scheduler {
    /// A snapshot for another thread, say.
    pub fn statistics(&self) -> Statistics {
        let Recorder { finished, .. } = self.recorder;
        let recorder = self.recorder.clone();
        let running = self.running.iter().filter_map(|id| self.sequences.get(id));
        Statistics {
            submitted: recorder.submitted,
            completed: finished[0] + finished[1],
            cancelled: finished[2],
            deadline_passed: finished[3],
            failed: finished[4],
            waiting: self.waiting.len(),
            running: self.running.len(),
            longest_wait: self
                .waiting
                .earliest()
                .map_or(Duration::ZERO, |arrival| self.now.saturating_sub(arrival)),
            queue_time: recorder.queue_time,
            first_token: recorder.first_token,
            inter_token: recorder.inter_token,
            steps: recorder.steps,
            failed_steps: recorder.failed_steps,
            busy: recorder.busy,
            computed_tokens: recorder.computed_tokens,
            generated_tokens: recorder.generated_tokens,
            batched_sequences: recorder.batched_sequences,
            max_batch_tokens: recorder.max_batch_tokens,
            max_batch_sequences: recorder.max_batch_sequences,
            preemptions_by_recompute: recorder.preemptions_by_recompute,
            preemptions_by_swap: recorder.preemptions_by_swap,
            epoch_recomputations: recorder.epoch_recomputations,
            token_cost: self.cost.token(),
            swap_block_cost: self.cost.swap_block(),
            blocks: self.pool.usage(running.map(|sequence| &sequence.table)),
            used_host_blocks: self.host.num_blocks() - self.host.num_free(),
            cache: self.pool.counters(),
        }
    }
}
