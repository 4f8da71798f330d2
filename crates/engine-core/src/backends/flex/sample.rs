//! Greedy choice and the Gumbel trick, `−ln(−ln u)` computed only where it can matter.

use engine_quant::simd::{Isa, Kernel, Simd};
use engine_quant::threads::{count, for_each_chunk};

use crate::ops::sample::TokenChoice;
use crate::sampling::rng;

/// Tokens that one task looks at; whole blocks of random numbers.
const CHUNK: usize = 1 << 14;

/// The chosen token of each row of `logits [rows, vocab]`; −1 where every logit is NaN or −∞.
pub fn choose_tokens(isa: Isa, logits: &[f32], rows: &[TokenChoice]) -> Vec<i32> {
    if rows.is_empty() {
        return Vec::new();
    }
    let vocab = logits.len() / rows.len();
    if vocab == 0 {
        return vec![-1; rows.len()];
    }
    let mut tokens = vec![-1; rows.len()];
    let tasks = if logits.len() < CHUNK { 1 } else { rows.len() };
    for_each_chunk(&mut tokens, rows.len().div_ceil(tasks), |task, tokens| {
        let first = task * rows.len().div_ceil(tasks);
        let logits = logits[first * vocab..].chunks_exact(vocab);
        for ((token, logits), choice) in tokens.iter_mut().zip(logits).zip(&rows[first..]) {
            *token = choose_token(isa, logits, choice);
        }
    });
    tokens
}

fn choose_token(isa: Isa, logits: &[f32], choice: &TokenChoice) -> i32 {
    let best = if choice.temperature > 0.0 {
        draw(logits, choice)
    } else {
        let max = isa.run(Max(logits));
        logits.iter().position(|&logit| logit == max && max > f32::NEG_INFINITY)
    };
    best.map_or(-1, |token| token as i32)
}

/// The first token of the largest noisy score.
fn draw(logits: &[f32], choice: &TokenChoice) -> Option<usize> {
    let chunk = |(i, chunk): (usize, &[f32])| draw_from(chunk, i * CHUNK, choice);
    // Ties go to the first: a later chunk must be larger.
    let better = |a: Option<(f32, usize)>, b: Option<(f32, usize)>| match (a, b) {
        (Some(a), Some(b)) if b.0 > a.0 => Some(b),
        (None, b) => b,
        (a, _) => a,
    };
    let best = if logits.len() <= CHUNK || count() == 1 {
        logits.chunks(CHUNK).enumerate().map(chunk).fold(None, better)
    } else {
        let mut bests = vec![None; logits.len().div_ceil(CHUNK)];
        for_each_chunk(&mut bests, 1, |i, best| {
            let end = logits.len().min((i + 1) * CHUNK);
            best.fill(chunk((i, &logits[i * CHUNK..end])));
        });
        bests.into_iter().fold(None, better)
    };
    best.map(|(_, token)| token)
}

/// The best score above −∞ of the tokens from `first` on, and its token.
fn draw_from(logits: &[f32], first: usize, choice: &TokenChoice) -> Option<(f32, usize)> {
    let factor = 1.0 / choice.temperature;
    let key = [choice.seed as u32, (choice.seed >> 32) as u32];
    let mut best = (f32::NEG_INFINITY, None);
    for (i, four) in logits.chunks(4).enumerate() {
        let block = (first / 4 + i) as u32;
        let words = rng::philox([block, choice.position, 0, 0], key);
        for (j, (&logit, word)) in four.iter().zip(words).enumerate() {
            let scaled = logit * factor;
            let bits = word >> 9;
            // A score that cannot win needs no logarithms: rounding is monotonic.
            if scaled + gumbel_bound(bits) > best.0 {
                let score = scaled + gumbel(bits);
                if score > best.0 {
                    best = (score, Some(first + 4 * i + j));
                }
            }
        }
    }
    best.1.map(|token| (best.0, token))
}

/// `rng::gumbel` from the upper 23 bits of its random word.
fn gumbel(bits: u32) -> f32 {
    let uniform = (bits as f32 + 0.5) * (1.0 / 8_388_608.0);
    -(-uniform.ln()).ln()
}

/// No less than [`gumbel`]: `−ln(−ln u) ≤ −ln(1 − u)` since `ln u ≤ u − 1`, and `1 − u` is at least
/// the power of two below it.
fn gumbel_bound(bits: u32) -> f32 {
    let rest = 8_388_607 - bits;
    let halvings = 23 - rest.checked_ilog2().map_or(-1, |log| log as i32);
    halvings as f32 * std::f32::consts::LN_2 + 1e-3
}

/// The largest number of a slice, −∞ if it has only NaN.
struct Max<'a>(&'a [f32]);

impl Kernel for Max<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        max(s, self.0)
    }
}

/// The largest number of a slice, −∞ if it has only NaN.
#[inline(always)]
pub fn max<S: Simd>(s: S, values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let mut best = s.splat(f32::NEG_INFINITY);
    let chunks = values.chunks_exact(S::LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        // SAFETY: the chunk has `LANES` elements.
        best = s.max(unsafe { s.load(chunk.as_ptr()) }, best);
    }
    assert!(S::LANES <= lanes.len());
    // SAFETY: there is room for `LANES` floats.
    unsafe { s.store(lanes.as_mut_ptr(), best) };
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_holds_for_every_random_word_and_the_noise_is_that_of_the_generator() {
        for bits in 0..1 << 23 {
            assert!(gumbel(bits) <= gumbel_bound(bits), "{bits}");
        }
        for token in 0..1000_u32 {
            let word = rng::philox([token / 4, 17, 0, 0], [5, 9])[(token % 4) as usize];
            let expected = rng::gumbel(5 | 9 << 32, 17, token);
            assert_eq!(gumbel(word >> 9).to_bits(), expected.to_bits());
        }
    }
}
