use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use engine_kv::{BlockPool, HostPool, Namespace, PageTable, SwappedTable};

use crate::cost::CostEstimate;
use crate::queue::WaitingQueue;
use crate::sequence::{Rank, Sequence, Terms};
use crate::sequence_map::SequenceMap;
use crate::statistics::Recorder;
use crate::{
    ConfigError, FinishReason, SampleSlot, SchedulerConfig, SequenceId, SequenceRequest,
    SequenceUpdate, SubmitError,
};

/// Decides which tokens run in the next step and where their keys and values go.
///
/// # Order
/// Sequences are served by priority and then in order of submission, and none is skipped because it
/// is large. A request that arrived [`max_wait`](SchedulerConfig::max_wait) ago is overdue: it goes
/// before every priority, in order of arrival.
///
/// **Starvation bound.** Once overdue, a request waits at most until those have ended that arrived
/// before it or were running when it became overdue; nothing that comes later, however important,
/// goes before it. Their number is at most `max_queue + max_sequences`.
///
/// # Room
/// A waiting sequence is admitted when all its known tokens and one more block for each running
/// sequence fit, so admission rarely leads to preemption. One that is more important than a running
/// sequence has that one preempted if need be. When a running sequence finds no block, the last of
/// the running ones behind it, the youngest of the lowest priority, is preempted: its blocks are
/// saved on the host or computed again later, whichever costs less by the measured steps.
///
/// # Progress
/// [`submit`](Self::submit) refuses what would not fit an empty pool, and the first sequence in the
/// order can take blocks from all others, so every step computes at least one token of it. A long
/// prompt leaves a token per step to each sequence behind it and half of the rest to other prompts.
///
/// ```
/// use engine_sched::{FinishReason, Scheduler, SchedulerConfig, SequenceRequest};
/// use std::time::Duration;
/// let mut scheduler = Scheduler::new(SchedulerConfig::default())?;
/// let request = SequenceRequest { max_tokens: 1, ..SequenceRequest::new(vec![5, 6]) };
/// let id = scheduler.submit(request)?;
/// let batch = scheduler.schedule(Duration::ZERO);
/// assert_eq!(batch.chunks[0].tokens, [5, 6]);
/// // ... the model runs the batch and chooses a token for each of `batch.samples` ...
/// let updates = scheduler.commit(batch, &[7], Duration::from_millis(20));
/// assert_eq!((updates[0].sequence, updates[0].token), (id, Some(7)));
/// assert_eq!(updates[0].finish, Some(FinishReason::Length));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) config: SchedulerConfig,
    pub(crate) pool: BlockPool,
    pub(crate) host: HostPool,
    pub(crate) sequences: SequenceMap,
    /// Sequences that hold device blocks or are about to; sorted by rank while a step is planned.
    pub(crate) running: Vec<SequenceId>,
    pub(crate) waiting: WaitingQueue,
    /// Submitted since the last step without an arrival time.
    pub(crate) unstamped: Vec<SequenceId>,
    pub(crate) deadlines: BTreeSet<(Duration, SequenceId)>,
    /// Requests that forked, and how many of their samples live.
    pub(crate) forked: HashMap<SequenceId, (Arc<Terms>, usize)>,
    pub(crate) next_id: u64,
    pub(crate) now: Duration,
    pub(crate) step: u64,
    pub(crate) in_flight: Option<InFlight>,
    /// Updates that no call has returned yet.
    pub(crate) updates: Vec<SequenceUpdate>,
    pub(crate) cost: CostEstimate,
    pub(crate) recorder: Recorder,
}

/// The batch that is being executed, as it was planned: what its return completes or undoes.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    pub(crate) step: u64,
    pub(crate) scheduled_at: Duration,
    /// Sequences with a chunk, in the batch's order.
    pub(crate) sequences: Vec<SequenceId>,
    /// Tokens of all chunks.
    pub(crate) num_tokens: usize,
    pub(crate) samples: Vec<SampleSlot>,
    /// Blocks that the batch moves to or from the host.
    pub(crate) moved_blocks: usize,
    /// Sequences whose blocks the batch saves on the host.
    pub(crate) swapped_out: Vec<SequenceId>,
    /// Sequences whose blocks the batch brings back.
    pub(crate) restored: Vec<SequenceId>,
    /// Host blocks that the batch reads.
    pub(crate) swapped_in: Vec<SwappedTable>,
}

impl Scheduler {
    /// A scheduler without work.
    pub fn new(config: SchedulerConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self {
            pool: BlockPool::new(config.num_blocks, config.block_size, config.prefix_caching),
            host: HostPool::new(config.num_host_blocks),
            sequences: SequenceMap::default(),
            running: Vec::new(),
            waiting: WaitingQueue::default(),
            unstamped: Vec::new(),
            deadlines: BTreeSet::new(),
            forked: HashMap::new(),
            next_id: 0,
            now: Duration::ZERO,
            step: 0,
            in_flight: None,
            updates: Vec::new(),
            cost: CostEstimate::new(config.token_cost, config.swap_block_cost),
            recorder: Recorder::default(),
            config,
        })
    }

    /// The limits it works within.
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// Takes a request, or says why it cannot.
    pub fn submit(&mut self, request: SequenceRequest) -> Result<SequenceId, SubmitError> {
        let max_len = self.admissible_len(&request)?;
        let id = SequenceId(self.next_id);
        let ids = if request.num_samples == 1 { 1 } else { request.num_samples as u64 + 1 };
        self.next_id = self.next_id.saturating_add(ids);
        let terms = Terms {
            parent: id,
            num_samples: request.num_samples,
            prompt_len: request.prompt.len(),
            max_len,
            stop_tokens: request.stop_tokens,
            min_tokens: request.min_tokens,
            priority: request.priority,
            deadline: request.deadline,
            salt: request.salt,
            prompt_logits: request.prompt_logits,
        };
        let epoch = self.config.cache_epochs.epoch(request.prompt.len());
        let namespace = Namespace { salt: terms.salt, epoch };
        let sequence = Sequence {
            id,
            sample_index: (terms.num_samples == 1).then_some(0),
            terms: Arc::new(terms),
            tokens: request.prompt,
            table: PageTable::new(namespace),
            swapped: None,
            reported_rows: 0,
            cached_prompt_tokens: 0,
            arrival: request.arrival.unwrap_or(Duration::MAX),
            admitted: false,
            last_token_at: None,
            planned: 0,
            cancelled: false,
        };
        if request.arrival.is_none() {
            self.unstamped.push(id);
        }
        if let Some(deadline) = request.deadline {
            self.deadlines.insert((deadline, id));
        }
        self.waiting.insert(&sequence);
        self.sequences.insert(id, Box::new(sequence));
        self.recorder.submitted += 1;
        Ok(id)
    }

    /// The length at which the request would end, if it can be taken.
    fn admissible_len(&self, request: &SequenceRequest) -> Result<usize, SubmitError> {
        let SchedulerConfig { max_context, max_sequences, max_queue, .. } = self.config;
        let SequenceRequest { max_tokens, num_samples, .. } = *request;
        let prompt_len = request.prompt.len();
        if prompt_len == 0 {
            return Err(SubmitError::EmptyPrompt);
        }
        if num_samples == 0 {
            return Err(SubmitError::NoSamples);
        }
        if num_samples > max_sequences {
            return Err(SubmitError::TooManySamples { num_samples, max_sequences });
        }
        if prompt_len + max_tokens.min(1) > max_context {
            return Err(SubmitError::PromptTooLong { prompt_len, max_tokens, max_context });
        }
        let max_len = prompt_len.saturating_add(max_tokens).min(max_context);
        let needed_blocks = self.blocks_at_most(max_len, prompt_len);
        let (num_blocks, block_size) = (self.pool.num_blocks(), self.pool.block_size());
        if needed_blocks > num_blocks {
            return Err(SubmitError::NeverFits {
                prompt_len,
                new_tokens: max_len - prompt_len,
                needed_blocks,
                num_blocks,
                block_size,
                max_tokens_that_fit: (num_blocks * block_size + 1).saturating_sub(prompt_len),
            });
        }
        let waiting = self.waiting.len();
        if waiting >= max_queue {
            return Err(SubmitError::QueueFull { waiting, max_queue });
        }
        Ok(max_len)
    }

    /// Blocks that a sequence needs to reach `max_len` when it runs alone: the last token is never
    /// computed, and with a window at most a window and the token after it are held.
    fn blocks_at_most(&self, max_len: usize, prompt_len: usize) -> usize {
        let computed = (max_len - 1).max(prompt_len);
        let whole = self.pool.blocks_for(computed);
        match self.config.window {
            Some(window) => whole.min(self.pool.blocks_for(window).saturating_add(2)),
            None => whole,
        }
    }

    /// Ends a sequence, or all samples of a request. Returns whether there was something to end.
    ///
    /// What is in flight keeps its blocks until its batch is committed or aborted. The final
    /// update comes with the next batch or commit.
    pub fn cancel(&mut self, id: SequenceId) -> bool {
        if self.sequences.contains_key(&id) {
            return self.cancel_sequence(id);
        }
        let Some((terms, _)) = self.forked.get(&id).cloned() else { return false };
        let samples = (0..terms.num_samples).map(|index| terms.sample_id(index));
        samples.fold(false, |any, sample| self.cancel_sequence(sample) | any)
    }

    fn cancel_sequence(&mut self, id: SequenceId) -> bool {
        let Some(sequence) = self.sequences.get_mut(&id) else { return false };
        let first = !std::mem::replace(&mut sequence.cancelled, true);
        if sequence.planned == 0 {
            self.finish(id, FinishReason::Cancelled);
        }
        first
    }

    /// Removes a sequence, gives back what it holds, and reports the end of its samples.
    pub(crate) fn finish(&mut self, id: SequenceId, reason: FinishReason) {
        let Some(sequence) = self.remove(id) else { return };
        for index in sequence.sample_indices() {
            self.updates.push(sequence.update(index, None, Some(reason)));
            self.recorder.finished(reason);
        }
    }

    /// Removes a sequence and gives back what it holds.
    pub(crate) fn remove(&mut self, id: SequenceId) -> Option<Box<Sequence>> {
        let mut sequence = self.sequences.remove(&id)?;
        if !self.waiting.remove(&sequence)
            && let Some(place) = self.running.iter().position(|&other| other == id)
        {
            self.running.remove(place);
        }
        if let Some(deadline) = sequence.terms.deadline {
            self.deadlines.remove(&(deadline, id));
        }
        self.pool.release(&mut sequence.table);
        if let Some(swapped) = sequence.swapped.take() {
            self.host.release(swapped);
        }
        let parent = sequence.terms.parent;
        if let Some((_, live)) = self.forked.get_mut(&parent) {
            *live -= 1;
            if *live == 0 {
                self.forked.remove(&parent);
            }
        }
        Some(sequence)
    }

    pub(crate) fn rank(&self, id: SequenceId) -> Option<Rank> {
        Some(self.sequences.get(&id)?.rank(self.now, self.config.max_wait))
    }

    /// Whether a sequence waits or runs, or an update was not returned yet.
    pub fn has_work(&self) -> bool {
        !self.sequences.is_empty() || !self.updates.is_empty()
    }

    /// Sequences that wait for admission, preempted ones among them.
    pub fn num_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Sequences that hold blocks or are about to.
    pub fn num_running(&self) -> usize {
        self.running.len()
    }
}
