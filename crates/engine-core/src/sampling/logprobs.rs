use super::SamplingError;
use super::filter::{self, Candidate};

/// The log probability of one token and the most probable tokens at its place.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// The token.
    pub token: u32,
    /// Its natural log probability; minus infinity where the model rules it out.
    pub logprob: f32,
    /// The most probable tokens with their log probabilities, most probable first, equal ones by
    /// id. `token` is among them only if it is that probable, tokens of probability zero never are.
    pub top: Vec<(u32, f32)>,
}

/// The log probability of `token` and of the `num_top` most probable tokens under `logits [vocab]`.
///
/// Log-softmax, summed in f64, of the logits as the model gives them, before temperature,
/// penalties, bias and filters. NaN counts as minus infinity.
///
/// ```
/// use engine_core::sampling::logprobs_of;
///
/// let logprobs = logprobs_of(&[0.0, 3f32.ln()], 0, 1)?;
/// assert!((logprobs.logprob - 0.25f32.ln()).abs() < 1e-6);
/// assert_eq!(logprobs.top[0].0, 1);
/// # Ok::<(), engine_core::sampling::SamplingError>(())
/// ```
pub fn logprobs_of(
    logits: &[f32],
    token: u32,
    num_top: usize,
) -> Result<TokenLogprobs, SamplingError> {
    let vocab = logits.len();
    let Some(&logit) = logits.get(token as usize) else {
        return Err(SamplingError::UnknownToken { token, vocab });
    };
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if largest == f32::NEG_INFINITY {
        return Err(SamplingError::NoDistribution { vocab });
    }
    let log_sum = logits.iter().map(|&logit| filter::weight(logit, largest)).sum::<f64>().ln();
    let logprob = |logit: f32| (log_weight(logit, largest) - log_sum) as f32;
    let mut top: Vec<Candidate> = Vec::new();
    if num_top > 0 {
        filter::collect_top_k(logits, num_top, &mut top);
        top.sort_unstable_by(filter::most_probable_first);
        top.truncate(num_top);
    }
    Ok(TokenLogprobs {
        token,
        logprob: logprob(logit),
        top: top.iter().map(|candidate| (candidate.token, logprob(candidate.score))).collect(),
    })
}

/// `logit − largest`, also where both are infinite; NaN is minus infinity.
fn log_weight(logit: f32, largest: f32) -> f64 {
    if logit == largest {
        0.0
    } else if logit.is_nan() {
        f64::NEG_INFINITY
    } else {
        f64::from(logit) - f64::from(largest)
    }
}
