//! Choosing the next token from logits, on the host.
//!
//! [`sample`] turns the logits of one row into a token. In this order:
//!
//! 1. **Log probabilities**, if asked for, are those of the model: log-softmax of the logits before
//!    anything below (what vLLM calls raw log probabilities).
//! 2. **Logit bias** is added.
//! 3. **Repetition penalty** `r`: the logit of each token in the prompt or generated is divided by
//!    `r` if positive, else multiplied by `r`, once however often it occurs.
//! 4. **Frequency and presence penalty**, as OpenAI and vLLM define them: a token generated `n > 0`
//!    times loses `n · frequency + presence`; the prompt does not count.
//! 5. **Temperature** 0 takes the first of the largest logits, and what follows does not apply.
//!    Otherwise logits are divided by it.
//! 6. **Top-k** keeps the `k` largest, and all that equal the last of them.
//! 7. **Top-p**: over the softmax of what top-k left, a token is kept while the tokens before it
//!    sum to less than `p`. Among equal probabilities the smaller id comes first.
//! 8. **Min-p** keeps what is at least `min_p` times as probable as the most probable token.
//! 9. **The draw** is the largest of `logit + gumbel(seed, position, token)` over the kept tokens,
//!    which is a draw from their softmax. The noise is a pure function of its arguments
//!    ([`rng`]): a request draws the same tokens whatever runs beside it, and with a temperature
//!    alone the same ones as [`choose_tokens`](crate::ops::sample::choose_tokens) on the device.
//!
//! Steps 2, 3 and 5 to 8 act in the order, and keep what is kept, as in Hugging Face transformers;
//! only the order of equal probabilities in top-p, which is unspecified there, is fixed here. Top-p
//! and min-p always leave the most probable token. A NaN logit counts as minus infinity, and minus
//! infinity is never chosen.

mod error;
mod filter;
mod history;
mod logprobs;
mod params;
pub mod rng;

pub use error::SamplingError;
pub use history::TokenHistory;
pub use logprobs::{TokenLogprobs, logprobs_of};
pub use params::{MIN_TEMPERATURE, SamplingParams};

use filter::Candidate;

/// A chosen token.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// The token.
    pub token: u32,
    /// Its log probability, where [`SamplingParams::logprobs`] asks for it.
    pub logprobs: Option<TokenLogprobs>,
}

/// Memory that [`sample`] reuses from call to call; what is in it never changes a result.
#[derive(Debug, Clone, Default)]
pub struct SampleScratch {
    /// Processed logits `[vocab]`.
    scores: Vec<f32>,
    kept: Vec<Candidate>,
}

/// Chooses the token at `position` of a sequence from its `logits [vocab]`.
///
/// `position` is the one that the chosen token will have. `params` are taken to be
/// [valid](SamplingParams::validate) for this vocabulary; bias and history of tokens outside it
/// have no effect. Fails where every token is ruled out.
///
/// ```
/// use engine_core::sampling::{SampleScratch, SamplingParams, TokenHistory, sample};
///
/// let logits = [0.1, 2.0, -1.0, 1.9];
/// let mut history = TokenHistory::from_prompt(&[0]);
/// let mut scratch = SampleScratch::default();
/// let params = SamplingParams::greedy().with_presence_penalty(0.5).with_logprobs(2);
///
/// let first = sample(&logits, &params, &history, 1, &mut scratch)?;
/// assert_eq!(first.token, 1);
/// history.push(first.token);
/// let second = sample(&logits, &params, &history, 2, &mut scratch)?;
/// assert_eq!(second.token, 3);
/// assert_eq!(second.logprobs.map(|logprobs| logprobs.top.len()), Some(2));
/// # Ok::<(), engine_core::sampling::SamplingError>(())
/// ```
pub fn sample(
    logits: &[f32],
    params: &SamplingParams,
    history: &TokenHistory,
    position: u32,
    scratch: &mut SampleScratch,
) -> Result<Sampled, SamplingError> {
    let scores = &mut scratch.scores;
    scores.clear();
    scores.extend_from_slice(logits);
    add_bias(scores, params);
    apply_penalties(scores, params, history);
    if params.temperature > 0.0 {
        let factor = 1.0 / params.temperature;
        scores.iter_mut().for_each(|score| *score *= factor);
    }
    let Some(best) = first_of_largest(scores) else {
        let nan = logits.iter().filter(|logit| logit.is_nan()).count();
        return Err(SamplingError::NoCandidate { position, vocab: logits.len(), nan });
    };
    let token = if params.temperature > 0.0 {
        if params.has_filters() {
            filter::collect_kept(scores, best.score, params, &mut scratch.kept);
            draw(best, scratch.kept.iter().copied(), params.seed, position)
        } else {
            let all = (0u32..).zip(scores.iter());
            let all = all.map(|(token, &score)| Candidate { token, score });
            draw(best, all, params.seed, position)
        }
    } else {
        best.token
    };
    let logprobs = match params.logprobs {
        Some(num_top) => Some(logprobs_of(logits, token, num_top)?),
        None => None,
    };
    Ok(Sampled { token, logprobs })
}

fn add_bias(scores: &mut [f32], params: &SamplingParams) {
    for &(token, bias) in &params.logit_bias {
        if let Some(score) = scores.get_mut(token as usize) {
            *score += bias;
        }
    }
}

fn apply_penalties(scores: &mut [f32], params: &SamplingParams, history: &TokenHistory) {
    if !params.has_penalties() {
        return;
    }
    let repetition = params.repetition_penalty;
    for (token, num_generated) in history.iter() {
        let Some(score) = scores.get_mut(token as usize) else { continue };
        *score = if *score > 0.0 { *score / repetition } else { *score * repetition };
        if num_generated > 0 {
            *score -= num_generated as f32 * params.frequency_penalty + params.presence_penalty;
        }
    }
}

/// The first of the largest scores, unless all are NaN or minus infinity.
fn first_of_largest(scores: &[f32]) -> Option<Candidate> {
    let mut best = Candidate { token: 0, score: f32::NEG_INFINITY };
    for (token, &score) in (0u32..).zip(scores) {
        if score > best.score {
            best = Candidate { token, score };
        }
    }
    (best.score > f32::NEG_INFINITY).then_some(best)
}

/// The largest of `score + gumbel` among `candidates`, the smallest id of equal ones. `best` is the
/// candidate of the largest score.
fn draw(
    best: Candidate,
    candidates: impl Iterator<Item = Candidate>,
    seed: u64,
    position: u32,
) -> u32 {
    let mut chosen = best.token;
    let mut highest = best.score + rng::gumbel(seed, position, best.token);
    for Candidate { token, score } in candidates {
        // Rounded sums keep their order, so what cannot win with the largest noise need not draw it.
        // NaN passes here and wins no comparison.
        if score + rng::MAX_GUMBEL < highest {
            continue;
        }
        let perturbed = score + rng::gumbel(seed, position, token);
        if perturbed > highest || (perturbed == highest && token < chosen) {
            (chosen, highest) = (token, perturbed);
        }
    }
    chosen
}
