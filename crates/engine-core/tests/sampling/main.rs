//! Host sampling against a naive implementation, token by token and in distribution.

#![allow(clippy::unwrap_used)]

mod agreement;
mod naive;
mod refusals;
mod statistics;

use engine_core::sampling::{SampleScratch, SamplingParams, TokenHistory, sample};

/// What a sequence has seen, as the naive implementation wants it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) prompt: Vec<u32>,
    pub(crate) generated: Vec<u32>,
}

impl Seen {
    pub(crate) fn history(&self) -> TokenHistory {
        let mut history = TokenHistory::from_prompt(&self.prompt);
        self.generated.iter().for_each(|&token| history.push(token));
        history
    }
}

/// The token that the library chooses.
pub(crate) fn chosen(logits: &[f32], params: &SamplingParams, seen: &Seen, position: u32) -> u32 {
    let mut scratch = SampleScratch::default();
    sample(logits, params, &seen.history(), position, &mut scratch).unwrap().token
}

/// Logits that look like a model's: most of them low, some high, no two equal.
pub(crate) fn spread_logits(vocab: usize, seed: u64) -> Vec<f32> {
    (0..vocab as u32)
        .map(|token| 1.5 * engine_core::sampling::rng::gumbel(seed, u32::MAX, token))
        .collect()
}
