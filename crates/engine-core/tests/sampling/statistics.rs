//! Every sampler draws from its exact distribution.
//!
//! Each case also names a neighbour of its parameters, only slightly different, which the very same
//! draws must refute: a sampler that is that little wrong fails the test.

use engine_core::sampling::{SampleScratch, SamplingParams, sample};

use crate::{Seen, chosen, naive, spread_logits};

/// Pearson's statistic of `counts` under `probabilities`, and the value that a right sampler exceeds
/// once in about 30,000 seeds (Wilson and Hilferty's approximation at four deviations).
///
/// Cells that expect less than five are put together. A count where the probability is zero makes
/// the statistic infinite.
fn chi_square(counts: &[u64], probabilities: &[f64]) -> (f64, f64) {
    let total = counts.iter().sum::<u64>() as f64;
    let mut statistic = 0.0;
    let mut cells = 0;
    let mut add = |count: f64, expected: f64| {
        cells += 1;
        statistic += (count - expected).powi(2) / expected;
    };
    let (mut rare_count, mut rare_expected) = (0.0, 0.0);
    for (&count, &probability) in counts.iter().zip(probabilities) {
        let (count, expected) = (count as f64, probability * total);
        if probability == 0.0 && count > 0.0 {
            return (f64::INFINITY, 0.0);
        } else if expected >= 5.0 {
            add(count, expected);
        } else {
            rare_count += count;
            rare_expected += expected;
        }
    }
    if rare_expected > 0.0 {
        // Below five the statistic's tail is heavier than assumed; adding five to both tames it.
        let (count, expected) = if rare_expected < 5.0 {
            (rare_count + 5.0, rare_expected + 5.0)
        } else {
            (rare_count, rare_expected)
        };
        add(count, expected);
    }
    let freedom = f64::from((cells - 1).max(1));
    let spread = 2.0 / (9.0 * freedom);
    (statistic, freedom * (1.0 - spread + 4.0 * spread.sqrt()).powi(3))
}

/// Sums cells `i, i + num_bins, …`, so that large vocabularies have bins that expect enough.
fn binned<T: Copy + std::iter::Sum<T>>(cells: &[T], num_bins: usize) -> Vec<T> {
    let num_bins = num_bins.min(cells.len());
    (0..num_bins).map(|bin| cells.iter().skip(bin).step_by(num_bins).copied().sum()).collect()
}

fn counts(logits: &[f32], params: &SamplingParams, seen: &Seen, num_draws: u32) -> Vec<u64> {
    let history = seen.history();
    let mut scratch = SampleScratch::default();
    let mut counts = vec![0; logits.len()];
    for position in 0..num_draws {
        let sampled = sample(logits, params, &history, position, &mut scratch).unwrap();
        counts[sampled.token as usize] += 1;
    }
    counts
}

/// Draws under `params` fit their exact distribution, and do not fit that of `wrong`.
fn check(name: &str, vocab: usize, params: SamplingParams, wrong: SamplingParams) {
    let num_draws = if vocab > 1000 { 4_000 } else { 100_000 };
    // Flat enough that every filter has something to cut.
    let logits: Vec<f32> = spread_logits(vocab, 11).iter().map(|logit| 0.6 * logit).collect();
    let seen = seen(&logits);
    let params = params.with_seed(20_240_607);
    let counts = binned(&counts(&logits, &params, &seen, num_draws), 256);
    let exact = binned(&naive::distribution(&logits, &params, &seen), 256);
    let (statistic, bound) = chi_square(&counts, &exact);
    assert!(statistic < bound, "{name}, vocabulary {vocab}: {statistic} of at most {bound}");
    let wrong = binned(&naive::distribution(&logits, &wrong, &seen), 256);
    let (statistic, bound) = chi_square(&counts, &wrong);
    assert!(statistic > bound, "{name}, vocabulary {vocab}: a wrong sampler passes, {statistic}");
}

/// The most probable tokens, some in the prompt, some generated, some both.
fn seen(logits: &[f32]) -> Seen {
    let best: Vec<u32> = naive::kept(logits, &SamplingParams::default(), &Seen::default())
        .iter()
        .map(|one| one.token)
        .cycle()
        .take(6)
        .collect();
    Seen {
        prompt: vec![best[0], best[1], best[1], best[4]],
        generated: vec![best[1], best[2], best[2], best[3], best[2]],
    }
}

fn params() -> SamplingParams {
    SamplingParams::default()
}

#[test]
fn temperature_draws_from_the_softmax() {
    check("temperature 1", 131, params(), params().with_temperature(1.06));
    check("temperature 0.7", 131, params().with_temperature(0.7), params().with_temperature(0.74));
    check("temperature 2", 131, params().with_temperature(2.0), params().with_temperature(1.9));
    check("two tokens", 2, params(), params().with_temperature(1.2));
    check("large vocabulary", 32_000, params(), params().with_temperature(1.3));
}

#[test]
fn top_k_draws_from_the_k_most_probable() {
    check("top-k 5", 131, params().with_top_k(5), params().with_top_k(4));
    check("top-k 5", 131, params().with_top_k(5), params().with_top_k(6));
    check("top-k 1", 2, params().with_top_k(1), params());
    check("top-k 40", 32_000, params().with_top_k(40), params().with_top_k(39));
}

#[test]
fn top_p_draws_from_the_nucleus() {
    check("top-p 0.9", 131, params().with_top_p(0.9), params().with_top_p(0.87));
    check("top-p 0.5", 131, params().with_top_p(0.5), params().with_top_p(0.55));
    check("top-p 0.3", 32_000, params().with_top_p(0.3), params().with_top_p(0.4));
}

#[test]
fn min_p_draws_from_what_is_near_the_best() {
    check("min-p 0.1", 131, params().with_min_p(0.1), params().with_min_p(0.2));
    check("min-p 0.02", 131, params().with_min_p(0.02), params().with_min_p(0.04));
    check("min-p 0.001", 32_000, params().with_min_p(0.001), params().with_min_p(0.005));
}

#[test]
fn penalties_and_bias_shift_the_softmax() {
    let repetition = |penalty| params().with_repetition_penalty(penalty);
    check("repetition penalty", 131, repetition(1.3), repetition(1.35));
    check("repetition reward", 131, repetition(0.8), repetition(0.78));
    let presence = |penalty| params().with_presence_penalty(penalty);
    check("presence penalty", 131, presence(0.8), presence(0.7));
    check("presence reward", 131, presence(-0.6), presence(-0.5));
    let frequency = |penalty| params().with_frequency_penalty(penalty);
    check("frequency penalty", 131, frequency(0.5), frequency(0.4));
    check("frequency is not presence", 131, frequency(0.5), presence(0.5));
    let bias = |bias| params().with_logit_bias(7, bias).with_logit_bias(90, -1.0);
    check("bias", 131, bias(5.0), bias(4.7));
    check("ban", 131, bias(f32::NEG_INFINITY), bias(1.0));
}

#[test]
fn combinations_follow_the_documented_order() {
    let filters = || params().with_temperature(0.8).with_top_k(20).with_top_p(0.8);
    check("temperature before top-p", 131, filters(), filters().with_temperature(1.0));
    check("top-k before top-p", 131, filters(), filters().with_top_k(0));
    check("min-p", 131, filters().with_min_p(0.6), filters());
    let all = |bias| {
        let penalties = filters().with_repetition_penalty(1.2).with_presence_penalty(0.3);
        penalties.with_frequency_penalty(0.2).with_min_p(0.03).with_logit_bias(7, bias)
    };
    check("all", 131, all(6.0), all(5.7));
    check("all", 32_000, all(9.0), all(8.0));
}

#[test]
fn neighbouring_positions_and_seeds_are_independent() {
    let logits = [0.3, -0.2, 0.8, 0.0];
    let one = naive::distribution(&logits, &params(), &Seen::default());
    let joint: Vec<f64> = one.iter().flat_map(|a| one.iter().map(move |b| a * b)).collect();
    let draw = |seed: u64, position: u32| {
        chosen(&logits, &params().with_seed(seed), &Seen::default(), position) as usize
    };
    let pairs = |pair: &dyn Fn(u32) -> (usize, usize)| {
        let mut counts = vec![0; 16];
        for index in 0..20_000 {
            let (a, b) = pair(index);
            counts[4 * a + b] += 1;
        }
        chi_square(&counts, &joint)
    };
    let (statistic, bound) = pairs(&|index| (draw(5, 2 * index), draw(5, 2 * index + 1)));
    assert!(statistic < bound, "positions: {statistic} of at most {bound}");
    let (statistic, bound) = pairs(&|index| (draw(5, index), draw(6, index)));
    assert!(statistic < bound, "low words of seeds: {statistic} of at most {bound}");
    let (statistic, bound) = pairs(&|index| (draw(5, index), draw(5 | 1 << 32, index)));
    assert!(statistic < bound, "high words of seeds: {statistic} of at most {bound}");
    let (statistic, bound) = pairs(&|index| {
        let token = draw(5, index);
        (token, if index % 20 == 0 { token } else { draw(6, index) })
    });
    assert!(statistic > bound, "one pair in twenty equal goes unnoticed: {statistic}");
}
