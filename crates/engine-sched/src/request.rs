use std::time::Duration;

use thiserror::Error;

/// A token of the model's vocabulary.
pub type TokenId = u32;

/// Names a submitted request or one of its samples; ids grow in the order of submission.
///
/// A request with one sample has one id. A request with `n` samples has an id of its own, which
/// [`Scheduler::submit`](crate::Scheduler::submit) returns, and the next `n` ids are its samples'.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// What to generate.
///
/// ```
/// use engine_sched::SequenceRequest;
/// let request = SequenceRequest { max_tokens: 8, ..SequenceRequest::new(vec![1, 403]) };
/// assert_eq!(request.num_samples, 1);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceRequest {
    /// Token ids to continue, at least one.
    pub prompt: Vec<TokenId>,
    /// Most tokens to generate. With 0 the prompt is computed and nothing is sampled.
    pub max_tokens: usize,
    /// Tokens that end the sequence; leave it empty to ignore the end of sequence.
    pub stop_tokens: Vec<TokenId>,
    /// Stop tokens among the first `min_tokens` generated ones do not end the sequence.
    pub min_tokens: usize,
    /// Larger goes first.
    pub priority: i32,
    /// When the request is worth nothing any more, on the scheduler's clock.
    pub deadline: Option<Duration>,
    /// When the request arrived, on the scheduler's clock; `None`: when it is first considered.
    pub arrival: Option<Duration>,
    /// Requests share cached prefixes only with requests of the same salt.
    pub salt: u64,
    /// Every prompt position needs its logits, so no cached prefix is used for it.
    pub prompt_logits: bool,
    /// How many continuations: the prompt runs once and then forks. At least 1.
    pub num_samples: usize,
}

impl SequenceRequest {
    /// One continuation of `prompt` of at most 16 tokens, with no stop token.
    pub fn new(prompt: Vec<TokenId>) -> Self {
        Self {
            prompt,
            max_tokens: 16,
            stop_tokens: Vec::new(),
            min_tokens: 0,
            priority: 0,
            deadline: None,
            arrival: None,
            salt: 0,
            prompt_logits: false,
            num_samples: 1,
        }
    }
}

/// Why a request was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// There is no token to continue.
    #[error("the prompt is empty: give at least one token")]
    EmptyPrompt,
    /// Zero samples were asked for.
    #[error("num_samples is 0: ask for at least one")]
    NoSamples,
    /// More samples than sequences that may run together.
    #[error(
        "num_samples is {num_samples}, but at most {max_sequences} sequences run together: \
         ask for fewer samples or raise max_sequences"
    )]
    TooManySamples {
        /// What the request asks for.
        num_samples: usize,
        /// The scheduler's limit.
        max_sequences: usize,
    },
    /// The prompt leaves no room for a new token within the context.
    #[error(
        "the prompt has {prompt_len} tokens, and with {max_tokens} to generate at least one must \
         fit a context of {max_context}: shorten the prompt"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_len: usize,
        /// The request's limit of new tokens.
        max_tokens: usize,
        /// Longest sequence of the scheduler.
        max_context: usize,
    },
    /// Alone in the whole pool the sequence would still not fit.
    #[error(
        "{prompt_len} prompt tokens and up to {new_tokens} new ones need {needed_blocks} blocks of \
         {block_size} positions, the whole pool has {num_blocks}: lower max_tokens to at most \
         {max_tokens_that_fit}, shorten the prompt, or give the KV cache more memory"
    )]
    NeverFits {
        /// Tokens of the prompt.
        prompt_len: usize,
        /// New tokens that the request allows within the context.
        new_tokens: usize,
        /// Blocks the longest outcome needs.
        needed_blocks: usize,
        /// Blocks there are.
        num_blocks: usize,
        /// Positions in one block.
        block_size: usize,
        /// Largest `max_tokens` that would be taken with this prompt; 0 if there is none.
        max_tokens_that_fit: usize,
    },
    /// Too many requests wait already.
    #[error("{waiting} requests wait and the queue holds {max_queue}: try again later")]
    QueueFull {
        /// Requests that wait now.
        waiting: usize,
        /// The scheduler's limit.
        max_queue: usize,
    },
}
