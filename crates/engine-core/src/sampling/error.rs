use thiserror::Error;

/// Why sampling parameters were refused or no token could be chosen.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// A field of [`SamplingParams`](super::SamplingParams) is outside its range.
    #[error("sampling parameter `{field}` is {value}: it must be {allowed}")]
    InvalidParameter {
        /// The field's name.
        field: &'static str,
        /// What it holds.
        value: String,
        /// What it may hold.
        allowed: String,
    },
    /// Every token is ruled out.
    #[error(
        "no token can be chosen at position {position}: all {vocab} logits are NaN or minus \
         infinity ({nan} of the model's are NaN); check the weights, or the logit bias if it bans \
         tokens"
    )]
    NoCandidate {
        /// Position of the token that was to be chosen.
        position: u32,
        /// Number of logits.
        vocab: usize,
        /// How many of the model's own logits are NaN.
        nan: usize,
    },
    /// A token whose log probability is asked for is not in the vocabulary.
    #[error("token {token} has no log probability: the vocabulary has {vocab} tokens, ids 0 to {}", vocab.saturating_sub(1))]
    UnknownToken {
        /// The token asked for.
        token: u32,
        /// Number of logits.
        vocab: usize,
    },
    /// Log probabilities of logits that define no distribution.
    #[error(
        "no log probabilities: all {vocab} logits are NaN or minus infinity; check the weights"
    )]
    NoDistribution {
        /// Number of logits.
        vocab: usize,
    },
}
