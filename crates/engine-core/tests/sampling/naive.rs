//! Sampling straight from the definitions: whole sorts, whole scans, probabilities in f64.

use engine_core::sampling::{SamplingParams, rng};

use crate::Seen;

/// A token that may be drawn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kept {
    pub(crate) token: u32,
    pub(crate) score: f32,
    /// Its probability among the kept.
    pub(crate) probability: f64,
}

/// Logits after bias, penalties and temperature, in f32.
pub(crate) fn scores(logits: &[f32], params: &SamplingParams, seen: &Seen) -> Vec<f32> {
    let mut scores = Vec::new();
    for (token, &logit) in (0u32..).zip(logits) {
        let mut score = if logit.is_nan() { f32::NEG_INFINITY } else { logit };
        for &(biased, bias) in &params.logit_bias {
            if biased == token {
                score += bias;
            }
        }
        if seen.prompt.contains(&token) || seen.generated.contains(&token) {
            if score < 0.0 {
                score *= params.repetition_penalty;
            } else {
                score /= params.repetition_penalty;
            }
        }
        let count = seen.generated.iter().filter(|&&generated| generated == token).count();
        if count > 0 {
            score -= count as f32 * params.frequency_penalty + params.presence_penalty;
        }
        if params.temperature > 0.0 {
            score *= 1.0 / params.temperature;
        }
        scores.push(score);
    }
    scores
}

/// The tokens that may be drawn, most probable first, equal ones by id.
pub(crate) fn kept(logits: &[f32], params: &SamplingParams, seen: &Seen) -> Vec<Kept> {
    let scores = scores(logits, params, seen);
    let mut kept: Vec<Kept> = (0u32..)
        .zip(scores)
        .filter(|&(_, score)| score > f32::NEG_INFINITY)
        .map(|(token, score)| Kept { token, score, probability: 0.0 })
        .collect();
    kept.sort_by(|a, b| b.score.partial_cmp(&a.score).unwrap().then(a.token.cmp(&b.token)));
    if params.top_k > 0 && params.top_k < kept.len() {
        let last = kept[params.top_k - 1].score;
        kept.retain(|one| one.score >= last);
    }
    normalise(&mut kept);
    let mut before = 0.0f64;
    let mut nucleus = Vec::new();
    for one in kept {
        if nucleus.is_empty() || params.top_p == 1.0 || (before as f32) < params.top_p {
            nucleus.push(one);
        }
        before += one.probability;
    }
    normalise(&mut nucleus);
    let highest = nucleus.first().map_or(0.0, |one| one.probability);
    nucleus.retain(|one| (one.probability / highest) as f32 >= params.min_p);
    normalise(&mut nucleus);
    nucleus
}

fn normalise(kept: &mut [Kept]) {
    let Some(largest) = kept.first().map(|one| f64::from(one.score)) else { return };
    let weight = |one: &Kept| (f64::from(one.score) - largest).exp();
    let total: f64 = kept.iter().map(weight).sum();
    kept.iter_mut().for_each(|one| one.probability = weight(one) / total);
}

/// The token of the largest perturbed score among the kept, the smallest id of equal ones.
pub(crate) fn chosen(logits: &[f32], params: &SamplingParams, seen: &Seen, position: u32) -> u32 {
    let kept = kept(logits, params, seen);
    if params.temperature == 0.0 {
        return kept[0].token;
    }
    let mut drawn: Vec<(u32, f32)> = kept
        .iter()
        .map(|one| (one.token, one.score + rng::gumbel(params.seed, position, one.token)))
        .collect();
    drawn.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
    drawn[0].0
}

/// The exact distribution over `vocab` tokens.
pub(crate) fn distribution(logits: &[f32], params: &SamplingParams, seen: &Seen) -> Vec<f64> {
    let mut distribution = vec![0.0; logits.len()];
    for one in kept(logits, params, seen) {
        distribution[one.token as usize] = one.probability;
    }
    distribution
}
