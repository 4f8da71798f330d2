//! How far one model's predictions are from another's at one position.

/// Sums over scored positions, in `f64` from `f32` logits.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Comparison {
    /// Negative log-likelihoods of the scored tokens, nats.
    pub nll: f64,
    /// KL(reference ‖ candidate), nats.
    pub kl: f64,
    /// Positions with the same most likely token.
    pub same_top: usize,
    /// Scored positions.
    pub positions: usize,
}

impl Comparison {
    /// Takes in one position: the logits `[vocab]` of both models, and the token that follows.
    pub fn add(&mut self, reference: &[f32], candidate: &[f32], target: u32) {
        let (p, q) = (log_sum_exp(reference), log_sum_exp(candidate));
        let terms = reference.iter().zip(candidate).map(|(&a, &b)| {
            let (log_p, log_q) = (f64::from(a) - p, f64::from(b) - q);
            // A token without probability adds nothing, though its logarithm is infinite.
            if log_p == f64::NEG_INFINITY { 0.0 } else { log_p.exp() * (log_p - log_q) }
        });
        self.kl += terms.sum::<f64>();
        self.nll += q - f64::from(candidate[target as usize]);
        self.same_top += usize::from(top(reference) == top(candidate));
        self.positions += 1;
    }
}

/// `ln Σ exp(logit)`.
pub(super) fn log_sum_exp(logits: &[f32]) -> f64 {
    let most = logits.iter().fold(f32::NEG_INFINITY, |most, &logit| most.max(logit));
    let most = f64::from(most);
    most + logits.iter().map(|&logit| (f64::from(logit) - most).exp()).sum::<f64>().ln()
}

/// The token with the largest logit, the first one if several are equal.
fn top(logits: &[f32]) -> usize {
    let larger = |best: usize, i: usize| if logits[i] > logits[best] { i } else { best };
    (1..logits.len()).fold(0, larger)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compare(reference: &[f32], candidate: &[f32], target: u32) -> Comparison {
        let mut sums = Comparison::default();
        sums.add(reference, candidate, target);
        sums
    }

    #[test]
    fn a_hand_made_pair_has_its_divergence() {
        // Probabilities 1/4, 3/4 against 1/2, 1/2; logits may be shifted by anything.
        let (p, q) = ([1.0_f32.ln() + 50.0, 3.0_f32.ln() + 50.0], [-900.0, -900.0]);
        let sums = compare(&p, &q, 0);
        let expected = 0.25 * 0.5_f64.ln() + 0.75 * 1.5_f64.ln();
        assert!((sums.kl - expected).abs() < 1e-6, "{} for {expected}", sums.kl);
        assert!((sums.nll - 2.0_f64.ln()).abs() < 1e-12);
        // Of equal logits the first is the most likely.
        assert_eq!((sums.same_top, sums.positions), (0, 1));
        assert_eq!(compare(&q, &q, 1).same_top, 1);
    }

    #[test]
    fn a_model_is_no_distance_from_itself_and_impossible_tokens_add_nothing() {
        let logits = [0.3, f32::NEG_INFINITY, 2.0, -1.5];
        let sums = compare(&logits, &logits, 3);
        assert_eq!((sums.kl, sums.same_top), (0.0, 1));
        // What the reference holds possible and the candidate does not is infinitely far.
        assert_eq!(compare(&[0.0, 0.0], &[0.0, f32::NEG_INFINITY], 0).kl, f64::INFINITY);
        assert!(compare(&[0.0, 0.0], &[0.0, f32::NAN], 0).kl.is_nan());
    }
}
