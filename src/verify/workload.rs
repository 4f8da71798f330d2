use super::run::run_together;
use super::{Observation, VerifyError};
use crate::{EngineCore, Prompt, PromptReport, Request, SamplingParams};

/// Most likely tokens whose log-probabilities are compared.
const NUM_TOP: usize = 16;

/// How large requests may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkloadLimits {
    /// Token ids are below this.
    pub vocab: usize,
    /// Tokens of the longest prompt.
    pub max_prompt_tokens: usize,
    /// Tokens of the longest completion.
    pub max_new_tokens: usize,
}

/// Requests to run in different ways.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    requests: Vec<Request>,
}

impl Workload {
    /// These requests.
    pub fn from_requests(requests: Vec<Request>) -> Self {
        Self { requests }
    }

    /// Random requests: prompts that share prefixes, greedy and sampled in different ways, some
    /// with several completions, with log-probabilities or with the prompt's logits.
    pub fn random(seed: u64, num_requests: usize, limits: WorkloadLimits) -> Self {
        let mut random = Random::new(seed);
        let mut prompts: Vec<Vec<u32>> = Vec::new();
        let mut requests = Vec::new();
        for index in 0..num_requests {
            let prompt = random_prompt(&mut random, &prompts, limits);
            prompts.push(prompt.clone());
            let mut request = Request::tokens(prompt)
                .max_tokens(random.between(1, limits.max_new_tokens))
                .sampling(random_sampling(&mut random, limits.vocab))
                .ignore_eos();
            // What a property is about must occur in small workloads too.
            if index % 4 == 1 {
                request.n = random.between(2, 3);
            }
            if index % 4 == 2 {
                request.prompt_report = PromptReport::Logits;
            }
            request.priority = random.between(0, 1) as i32;
            requests.push(request);
        }
        Self { requests }
    }

    /// The requests.
    pub fn requests(&self) -> &[Request] {
        &self.requests
    }

    /// Requests with several completions.
    pub fn num_forked(&self) -> usize {
        self.requests.iter().filter(|request| request.n > 1).count()
    }

    /// Runs every completion of every request alone, as a request of its own, with
    /// log-probabilities.
    ///
    /// # Errors
    /// If a request is refused or fails.
    pub fn alone(&self, core: &mut EngineCore) -> Result<Vec<Vec<Observation>>, VerifyError> {
        let vocab = core.info().config.vocab_size;
        let mut all = Vec::new();
        for request in &self.requests {
            let mut completions = Vec::new();
            for index in 0..request.n {
                let mut one = Request { n: 1, ..request.clone() };
                one.sampling.seed = one.sampling.seed.wrapping_add(index as u64);
                one.sampling.logprobs = Some(NUM_TOP.min(vocab));
                let found = run_together(core, std::iter::once(&one), 0)?;
                completions.extend(found.into_iter().flatten());
            }
            all.push(completions);
        }
        Ok(all)
    }
}

fn random_prompt(random: &mut Random, earlier: &[Vec<u32>], limits: WorkloadLimits) -> Vec<u32> {
    let len = random.between(1, limits.max_prompt_tokens);
    let mut prompt = Vec::new();
    if !earlier.is_empty() && random.chance(0.6) {
        let from = &earlier[random.between(0, earlier.len() - 1)];
        prompt.extend(&from[..random.between(1, from.len())]);
    }
    prompt.truncate(len);
    prompt.resize_with(len, || random.between(0, limits.vocab - 1) as u32);
    prompt
}

fn random_sampling(random: &mut Random, vocab: usize) -> SamplingParams {
    let seed = random.next();
    let mut params = match random.between(0, 3) {
        0 => SamplingParams::greedy(),
        1 => SamplingParams::default(),
        2 => SamplingParams::default().with_temperature(0.7).with_top_k(20).with_top_p(0.9),
        _ => SamplingParams::default()
            .with_temperature(1.3)
            .with_min_p(0.02)
            .with_repetition_penalty(1.2)
            .with_frequency_penalty(0.3),
    };
    if random.chance(0.5) {
        params.logprobs = Some(NUM_TOP.min(vocab));
    }
    params.with_seed(seed)
}

/// Where to cut a completion to continue it from there: nowhere if penalties or a report treat
/// prompt and completion differently.
pub(super) fn cuts(request: &Request, expected: &Observation) -> Vec<usize> {
    let penalties =
        request.sampling.frequency_penalty != 0.0 || request.sampling.presence_penalty != 0.0;
    let len = expected.tokens.len();
    if penalties || len < 2 {
        return Vec::new();
    }
    let mut cuts = vec![1, len / 2, len - 1];
    cuts.dedup();
    cuts.retain(|cut| *cut > 0);
    cuts
}

/// The request that continues a completion after `cut` of its tokens.
pub(super) fn continued(
    request: &Request,
    index: usize,
    expected: &Observation,
    cut: usize,
) -> Request {
    let mut prompt = match &request.prompt {
        Prompt::Tokens(tokens) => tokens.clone(),
        _ => Vec::new(),
    };
    prompt.extend(&expected.tokens[..cut]);
    let mut sampling = request.sampling.clone();
    sampling.seed = sampling.seed.wrapping_add(index as u64);
    Request::tokens(prompt).max_tokens(expected.tokens.len() - cut).sampling(sampling).ignore_eos()
}

/// A small generator of random numbers (SplitMix64).
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + (self.next() % (high - low + 1) as u64) as usize
    }

    pub fn chance(&mut self, probability: f64) -> bool {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64 <= probability
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.between(0, last));
        }
    }
}
