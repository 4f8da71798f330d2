//! Which tokens a draw may choose: top-k, top-p and min-p without sorting the vocabulary.

use std::cmp::Ordering;

use super::SamplingParams;

/// A token that may be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub(super) token: u32,
    /// Its logit after everything that changes logits.
    pub(super) score: f32,
}

/// The one order of tokens: larger scores first, equal ones by id. Candidates hold no NaN.
pub(super) fn most_probable_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.score.partial_cmp(&a.score).unwrap_or(Ordering::Equal).then(a.token.cmp(&b.token))
}

/// The probability of a score in proportion to that of the largest, `exp(score − largest)`; 1 where
/// both are infinite, 0 for NaN.
pub(super) fn weight(score: f32, largest: f32) -> f64 {
    if score == largest {
        1.0
    } else if score.is_nan() {
        0.0
    } else {
        (f64::from(score) - f64::from(largest)).exp()
    }
}

/// Collects into `kept` the tokens of `scores [vocab]` that pass the filters of `params`, in no
/// particular order; at least one unless every score is NaN or minus infinity. `largest` is the
/// largest score.
pub(super) fn collect_kept(
    scores: &[f32],
    largest: f32,
    params: &SamplingParams,
    kept: &mut Vec<Candidate>,
) {
    collect_top_k(scores, if params.top_k == 0 { usize::MAX } else { params.top_k }, kept);
    if params.top_p < 1.0 {
        keep_top_p(kept, largest, params.top_p);
    }
    if params.min_p > 0.0 {
        kept.retain(|candidate| weight(candidate.score, largest) as f32 >= params.min_p);
    }
}

/// Collects into `kept` the `k` largest scores and all that equal the last of them, in no
/// particular order; NaN and minus infinity are never among them.
pub(super) fn collect_top_k(scores: &[f32], k: usize, kept: &mut Vec<Candidate>) {
    kept.clear();
    if k >= scores.len() {
        kept.extend(candidates(scores));
        return;
    }
    // A running floor: the buffer is cut back to the k best whenever it has doubled.
    let mut floor = f32::NEG_INFINITY;
    let mut full = 2 * k + 64;
    for candidate in candidates(scores) {
        if candidate.score < floor {
            continue;
        }
        kept.push(candidate);
        if kept.len() >= full {
            floor = cut_to_top_k(kept, k);
            full = 2 * kept.len() + 64;
        }
    }
    cut_to_top_k(kept, k);
}

fn candidates(scores: &[f32]) -> impl Iterator<Item = Candidate> + '_ {
    let pairs = scores.iter().enumerate().filter(|(_, score)| **score > f32::NEG_INFINITY);
    pairs.map(|(token, &score)| Candidate { token: token as u32, score })
}

/// Drops what is smaller than the `k`-th largest score, which it returns.
fn cut_to_top_k(kept: &mut Vec<Candidate>, k: usize) -> f32 {
    if kept.len() <= k || k == 0 {
        return f32::NEG_INFINITY;
    }
    let floor = kept.select_nth_unstable_by(k - 1, most_probable_first).1.score;
    kept.retain(|candidate| candidate.score >= floor);
    floor
}

/// Keeps each token before which, in the order of tokens, there is less than `top_p` of the
/// probability. Probabilities are summed in f64 and compared as f32, so that three of ten equal
/// tokens are 0.3 of them.
fn keep_top_p(kept: &mut Vec<Candidate>, largest: f32, top_p: f32) {
    let total: f64 = kept.iter().map(|candidate| weight(candidate.score, largest)).sum();
    let mut mass = 0.0;
    let mut num_kept = 0;
    let mut num_sorted = 0;
    while num_kept < kept.len() && ((mass / total) as f32) < top_p {
        if num_kept == num_sorted {
            num_sorted = sort_next(kept, num_sorted);
        }
        mass += weight(kept[num_kept].score, largest);
        num_kept += 1;
    }
    // Rounding may leave the whole at less than `top_p`, never the empty set at more.
    kept.truncate(num_kept.max(1));
}

/// With the first `num_sorted` in their place, brings about seven times as many more into theirs,
/// and returns how many are now.
fn sort_next(kept: &mut [Candidate], num_sorted: usize) -> usize {
    let end = (8 * num_sorted).max(64).min(kept.len());
    let rest = &mut kept[num_sorted..];
    let count = end - num_sorted;
    if count < rest.len() {
        rest.select_nth_unstable_by(count - 1, most_probable_first);
    }
    rest[..count].sort_unstable_by(most_probable_first);
    end
}
