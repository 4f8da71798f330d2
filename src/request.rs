use std::time::Duration;

use engine_core::sampling::{SamplingParams, TokenLogprobs};

use crate::Message;

/// What a request starts from.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// Text to continue; the tokenizer adds its special tokens.
    Text(String),
    /// Token ids, taken as they are.
    Tokens(Vec<u32>),
    /// A conversation, rendered with the model's chat template.
    Chat(Vec<Message>),
}

/// One request: a prompt and how to continue it.
///
/// ```
/// use engine::Request;
/// let request = Request::text("Once upon a time").max_tokens(40).temperature(0.8).seed(7);
/// assert_eq!(request.max_tokens, Some(40));
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// What to continue.
    pub prompt: Prompt,
    /// New tokens at most; `None` goes on to the end of the context.
    pub max_tokens: Option<usize>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Texts that end the completion; they may span tokens.
    pub stop: Vec<String>,
    /// Whether the stop text that ended the completion is part of it.
    pub include_stop: bool,
    /// Tokens that end the completion, besides the model's own end-of-sequence tokens.
    pub stop_tokens: Vec<u32>,
    /// Go on past the model's end-of-sequence tokens.
    pub ignore_eos: bool,
    /// Completions of the same prompt. Number `i` draws with `seed + i`.
    pub n: usize,
    /// What to report of the prompt itself.
    pub prompt_report: PromptReport,
    /// Higher runs first.
    pub priority: i32,
    /// Give up when this much time has passed since the request was submitted.
    pub timeout: Option<Duration>,
    /// Requests share cached prefixes only with requests of the same salt.
    pub cache_salt: u64,
}

/// What to report of a prompt's own tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PromptReport {
    /// Nothing.
    #[default]
    None,
    /// The log-probability of each token but the first, and this many of the most likely ones.
    Logprobs(usize),
    /// All logits of every position.
    Logits,
}

impl Request {
    /// A request with the defaults: greedy choice, no limit but the context, one completion.
    pub fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            max_tokens: None,
            sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
            stop: Vec::new(),
            include_stop: false,
            stop_tokens: Vec::new(),
            ignore_eos: false,
            n: 1,
            prompt_report: PromptReport::None,
            priority: 0,
            timeout: None,
            cache_salt: 0,
        }
    }

    /// Continues a text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::new(Prompt::Text(text.into()))
    }

    /// Continues token ids.
    pub fn tokens(ids: impl Into<Vec<u32>>) -> Self {
        Self::new(Prompt::Tokens(ids.into()))
    }

    /// Answers a conversation.
    pub fn chat(messages: impl Into<Vec<Message>>) -> Self {
        Self::new(Prompt::Chat(messages.into()))
    }

    /// Sets the number of new tokens at most.
    pub fn max_tokens(mut self, max_tokens: usize) -> Self {
        self.max_tokens = Some(max_tokens);
        self
    }

    /// Sets the temperature; zero is greedy.
    pub fn temperature(mut self, temperature: f32) -> Self {
        self.sampling.temperature = temperature;
        self
    }

    /// Sets the seed.
    pub fn seed(mut self, seed: u64) -> Self {
        self.sampling.seed = seed;
        self
    }

    /// Sets all sampling parameters.
    pub fn sampling(mut self, sampling: SamplingParams) -> Self {
        self.sampling = sampling;
        self
    }

    /// Adds a text that ends the completion.
    pub fn stop(mut self, text: impl Into<String>) -> Self {
        self.stop.push(text.into());
        self
    }

    /// Goes on past the model's end-of-sequence tokens.
    pub fn ignore_eos(mut self) -> Self {
        self.ignore_eos = true;
        self
    }

    /// Asks for several completions.
    pub fn n(mut self, n: usize) -> Self {
        self.n = n;
        self
    }

    /// Asks for a report on the prompt's own tokens.
    pub fn prompt_report(mut self, report: PromptReport) -> Self {
        self.prompt_report = report;
        self
    }
}

/// Why a completion ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FinishReason {
    /// `max_tokens` or the end of the context was reached.
    Length,
    /// The model ended it, or one of the request's stop tokens came.
    StopToken(u32),
    /// This stop text came.
    StopText(String),
    /// It was cancelled.
    Cancelled,
    /// Its time was over.
    TimedOut,
}

/// Something that happened to a request.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// The report on the prompt, before the first token.
    Prompt(PromptOutput),
    /// A token of one of the completions.
    Token {
        /// Which completion, `0..n`.
        index: usize,
        /// The token.
        token: u32,
        /// The text that is certain now; may be empty, never broken in the middle of a character.
        text: String,
        /// Its log-probability, if asked for.
        logprobs: Option<TokenLogprobs>,
    },
    /// A completion ended.
    Finished {
        /// Which completion, `0..n`.
        index: usize,
        /// Text that was held back until now.
        text: String,
        /// Why.
        reason: FinishReason,
    },
    /// All completions have ended; nothing follows.
    Done(Usage),
}

/// What was asked of the prompt.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PromptOutput {
    /// The prompt's tokens.
    pub tokens: Vec<u32>,
    /// For each token but the first, if asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// `[tokens * vocab]`, if asked for.
    pub logits: Vec<f32>,
}

/// Counts and times of a request.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of those, taken from the prefix cache.
    pub cached_tokens: usize,
    /// New tokens of all completions.
    pub completion_tokens: usize,
    /// From submission to the first token.
    pub time_to_first_token: Duration,
    /// From submission to the end.
    pub total_time: Duration,
}

impl Usage {
    /// New tokens per second after the first, `None` before there are two.
    pub fn decode_tokens_per_second(&self) -> Option<f64> {
        let seconds = (self.total_time.saturating_sub(self.time_to_first_token)).as_secs_f64();
        let tokens = self.completion_tokens.saturating_sub(1);
        (tokens > 0 && seconds > 0.0).then(|| tokens as f64 / seconds)
    }
}

/// One finished completion.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The text.
    pub text: String,
    /// Its tokens, a stop token that ended it included.
    pub tokens: Vec<u32>,
    /// One for each token, if asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// Everything a request gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// The completions, `[n]`, at least one.
    pub choices: Vec<Choice>,
    /// The report on the prompt, if asked for.
    pub prompt: Option<PromptOutput>,
    /// Counts and times.
    pub usage: Usage,
}

impl Completion {
    /// Text of the first completion.
    pub fn text(&self) -> &str {
        self.choices.first().map_or("", |choice| &choice.text)
    }

    /// Tokens of the first completion.
    pub fn tokens(&self) -> &[u32] {
        self.choices.first().map_or(&[], |choice| &choice.tokens)
    }
}
