use std::collections::HashMap;

use engine_sched::Preemption;

use super::workload::Random;
use super::{Observation, VerifyError, Workload, WorkloadLimits};
use crate::{EngineCore, Event, FinishReason, KvFormat, Request, RequestId, TokenLogprobs};

/// How an engine is set up and how requests are given to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Setup {
    /// Positions in one block of the cache.
    pub block_size: usize,
    /// Tokens in one step.
    pub max_batched_tokens: usize,
    /// Sequences at once.
    pub max_sequences: usize,
    /// Whether equal prefixes are shared.
    pub prefix_caching: bool,
    /// How keys and values are stored.
    pub kv_format: KvFormat,
    /// Positions of the cache; `None` has room for all.
    pub kv_tokens: Option<usize>,
    /// Positions of the swap memory.
    pub swap_tokens: usize,
    /// How sequences make room.
    pub preemption: Preemption,
    /// Threads of the CPU kernels.
    pub threads: Option<usize>,
    /// Give each request only when the one before it has ended.
    pub one_by_one: bool,
    /// Shuffles the requests.
    pub order_seed: Option<u64>,
    /// How often the requests run; the last time counts.
    pub rounds: usize,
    /// Requests that run beside the others and are cancelled on the way.
    pub cancelled_neighbours: usize,
}

impl Setup {
    /// The undisturbed way: one by one, whole prompts, no prefix cache, room for everything.
    pub fn plain() -> Self {
        Self {
            block_size: 16,
            max_batched_tokens: 1 << 14,
            max_sequences: 256,
            prefix_caching: false,
            kv_format: KvFormat::default(),
            kv_tokens: None,
            swap_tokens: 0,
            preemption: Preemption::Cheapest,
            threads: None,
            one_by_one: true,
            order_seed: None,
            rounds: 1,
            cancelled_neighbours: 0,
        }
    }

    /// A random setup in which everything may happen at once.
    pub(super) fn random(random: &mut Random, limits: &WorkloadLimits) -> Self {
        let longest = limits.max_prompt_tokens + limits.max_new_tokens;
        Self {
            block_size: random.between(1, 17),
            max_batched_tokens: random.between(1, 2 * longest),
            max_sequences: random.between(3, 20),
            prefix_caching: random.chance(0.7),
            kv_format: KvFormat::default(),
            kv_tokens: Some(random.between(longest, 3 * longest)),
            swap_tokens: random.between(0, 4 * longest),
            preemption: [Preemption::Swap, Preemption::Recompute][random.between(0, 1)],
            threads: Some(random.between(1, 3)),
            one_by_one: false,
            order_seed: Some(random.next()),
            rounds: random.between(1, 2),
            cancelled_neighbours: random.between(0, 5),
        }
    }
}

/// Runs a workload under a setup; the completions of each request, in the workload's order.
///
/// # Errors
/// If a request is refused or fails.
pub fn observe(
    core: &mut EngineCore,
    workload: &Workload,
    setup: &Setup,
) -> Result<Vec<Vec<Observation>>, VerifyError> {
    let mut order: Vec<usize> = (0..workload.requests().len()).collect();
    if let Some(seed) = setup.order_seed {
        Random::new(seed).shuffle(&mut order);
    }
    let mut found = Vec::new();
    for _ in 0..setup.rounds.max(1) {
        found = vec![Vec::new(); order.len()];
        let groups = if setup.one_by_one { 1 } else { order.len().max(1) };
        for group in order.chunks(groups) {
            let requests = group.iter().map(|&i| &workload.requests()[i]);
            let done = run_together(core, requests, setup.cancelled_neighbours)?;
            for (&i, observations) in group.iter().zip(done) {
                found[i] = observations;
            }
        }
    }
    Ok(found)
}

/// Submits all requests, cancels the neighbours while they run, and waits for the rest.
pub(super) fn run_together<'a>(
    core: &mut EngineCore,
    requests: impl Iterator<Item = &'a Request>,
    neighbours: usize,
) -> Result<Vec<Vec<Observation>>, VerifyError> {
    let mut ids = Vec::new();
    let mut cancelled = Vec::new();
    for request in requests {
        // Neighbours that share the prompt share its cached prefix too.
        if cancelled.len() < neighbours {
            cancelled.push(core.submit(Request { n: 2, ..request.clone() })?);
        }
        ids.push(core.submit(request.clone())?);
    }
    let mut collected: HashMap<RequestId, Vec<Observation>> = HashMap::new();
    let mut step = 0;
    while core.has_work() {
        for (id, event) in core.step() {
            collect(collected.entry(id).or_default(), event?);
        }
        step += 1;
        if step % 2 == 0
            && let Some(id) = cancelled.pop()
        {
            core.cancel(id);
        }
    }
    Ok(ids.iter().map(|id| collected.remove(id).unwrap_or_default()).collect())
}

fn collect(observations: &mut Vec<Observation>, event: Event) {
    let mut at = |index: usize| {
        if observations.len() <= index {
            observations.resize_with(index + 1, || Observation {
                tokens: Vec::new(),
                logprobs: Vec::<TokenLogprobs>::new(),
                prompt_logits: Vec::new(),
                finish_reason: FinishReason::Cancelled,
            });
        }
        index
    };
    match event {
        Event::Prompt(prompt) => {
            let index = at(0);
            observations[index].prompt_logits = prompt.logits;
        }
        Event::Token { index, token, logprobs, .. } => {
            let index = at(index);
            observations[index].tokens.push(token);
            observations[index].logprobs.extend(logprobs);
        }
        Event::Finished { index, reason, .. } => {
            let index = at(index);
            observations[index].finish_reason = reason;
        }
        Event::Done(_) => {}
    }
}
