//! Perplexity of a text: how well a model predicts it.
//!
//! `exp` of the mean negative log-likelihood (natural logarithm) of the scored tokens. What is
//! scored, and with how much context, is the [`Method`]; two numbers compare only within one.

use std::{fmt, str::FromStr};

use engine::{Engine, EngineInfo, Generation, PromptReport, Request, RunError, TokenizerError};
use serde::Serialize;
use thiserror::Error;

/// Which tokens are scored, and with what before them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// The text is split at `<|endoftext|>`; each trimmed part runs alone, a beginning-of-sequence
    /// token before it, cut at the context; all but the first token are scored.
    PerDocument,
    /// Windows of `len` tokens without overlap, each alone; all but its first token are scored.
    Chunked {
        /// Tokens in a window.
        len: usize,
    },
    /// Windows of `len` tokens that advance by `stride`, Hugging Face's sliding window; each scores
    /// the tokens that no earlier one has.
    Strided {
        /// Tokens in a window.
        len: usize,
        /// How far the next window starts.
        stride: usize,
    },
}

/// The name is no method.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "unknown method `{0}`: use per-document, chunked:N or strided:N:S with N of at least 2 and S \
     from 1 to N"
)]
pub struct UnknownMethod(String);

/// Why a text could not be scored.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PerplexityError {
    /// A text needs a tokenizer.
    #[error("the model directory has no tokenizer.json, which a text needs")]
    NoTokenizer,
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A window is longer than the context.
    #[error("windows of {len} tokens do not fit the context of {context}")]
    WindowTooLong {
        /// Tokens in a window.
        len: usize,
        /// Positions of the context.
        context: usize,
    },
    /// There is nothing to score.
    #[error("the text has no token to score: it needs at least two")]
    NothingToScore,
    /// The engine failed.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// What a text scored.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Perplexity {
    /// `exp(mean_nll)`.
    pub perplexity: f64,
    /// Mean negative log-likelihood of the scored tokens, in nats.
    pub mean_nll: f64,
    /// Tokens that were scored.
    pub scored_tokens: usize,
    /// Bytes of the model's weights on the device.
    pub weight_bytes: usize,
}

/// A piece of the text that runs alone: its tokens, and the first one that is scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Index of the first scored token, at least 1.
    pub first_scored: usize,
}

impl Method {
    /// The windows of a text; `encode` gives the ids of a part without special tokens.
    ///
    /// # Errors
    /// What `encode` returns.
    pub fn windows<E>(
        self,
        text: &str,
        bos: Option<u32>,
        context: usize,
        encode: impl Fn(&str) -> Result<Vec<u32>, E>,
    ) -> Result<Vec<Window>, E> {
        let ids = |part: &str| {
            let mut ids: Vec<u32> = bos.into_iter().collect();
            ids.extend(encode(part)?);
            Ok(ids)
        };
        let windows: Vec<Window> = match self {
            Self::PerDocument => text
                .split("<|endoftext|>")
                .map(str::trim)
                .filter(|part| !part.is_empty())
                .map(|part| {
                    let mut tokens = ids(part)?;
                    tokens.truncate(context);
                    Ok(Window { tokens, first_scored: 1 })
                })
                .collect::<Result<_, E>>()?,
            Self::Chunked { len } => ids(text)?
                .chunks(len)
                .map(|tokens| Window { tokens: tokens.to_vec(), first_scored: 1 })
                .collect(),
            Self::Strided { len, stride } => strided(&ids(text)?, len, stride),
        };
        Ok(windows.into_iter().filter(|window| window.tokens.len() > window.first_scored).collect())
    }

    pub(crate) fn longest_window(self) -> Option<usize> {
        match self {
            Self::PerDocument => None,
            Self::Chunked { len } | Self::Strided { len, .. } => Some(len),
        }
    }
}

fn strided(ids: &[u32], len: usize, stride: usize) -> Vec<Window> {
    let mut windows = Vec::new();
    let (mut start, mut scored) = (0, 0);
    while scored < ids.len() {
        let end = (start + len).min(ids.len());
        let first_scored = scored.max(start + 1) - start;
        windows.push(Window { tokens: ids[start..end].to_vec(), first_scored });
        scored = end;
        start += stride;
    }
    windows
}

/// The windows of a text for a model, at least one; documents are cut at `context`.
pub(crate) fn text_windows(
    info: &EngineInfo,
    text: &str,
    method: Method,
    context: usize,
) -> Result<Vec<Window>, PerplexityError> {
    let tokenizer = info.tokenizer.as_ref().ok_or(PerplexityError::NoTokenizer)?;
    if let Some(len) = method.longest_window().filter(|len| *len > context) {
        return Err(PerplexityError::WindowTooLong { len, context });
    }
    let bos = tokenizer.bos_id().or(info.config.bos_token_id);
    let windows = method.windows(text, bos, context, |part| tokenizer.encode(part, false))?;
    if windows.is_empty() { Err(PerplexityError::NothingToScore) } else { Ok(windows) }
}

/// Windows that are given to the engine at once.
const IN_FLIGHT: usize = 16;

/// Scores a text. `progress` hears how many windows are done, and of how many.
///
/// # Errors
/// If there is nothing to score, a window does not fit, or the engine fails.
pub fn perplexity(
    engine: &Engine,
    text: &str,
    method: Method,
    mut progress: impl FnMut(usize, usize),
) -> Result<Perplexity, PerplexityError> {
    let info = engine.info();
    let windows = text_windows(info, text, method, info.max_context)?;
    let (mut nll, mut scored, mut done) = (0.0, 0, 0);
    for group in windows.chunks(IN_FLIGHT) {
        let running = group
            .iter()
            .map(|window| {
                let request = Request::tokens(window.tokens.clone())
                    .max_tokens(0)
                    .prompt_report(PromptReport::Logprobs(0));
                engine.submit(request).map_err(RunError::from)
            })
            .collect::<Result<Vec<_>, _>>()?;
        for (window, generation) in group.iter().zip(running) {
            // Entry `i` is the log-probability of token `i + 1`.
            let logprobs = prompt_logprobs(generation)?;
            let window_scored = &logprobs[window.first_scored - 1..];
            nll -= window_scored.iter().sum::<f64>();
            scored += window_scored.len();
            done += 1;
            progress(done, windows.len());
        }
    }
    let mean_nll = nll / scored as f64;
    let weight_bytes = info.memory.weight_bytes;
    Ok(Perplexity { perplexity: mean_nll.exp(), mean_nll, scored_tokens: scored, weight_bytes })
}

fn prompt_logprobs(generation: Generation) -> Result<Vec<f64>, RunError> {
    let prompt = generation.wait()?.prompt.unwrap_or_default();
    Ok(prompt.logprobs.iter().map(|token| f64::from(token.logprob)).collect())
}

impl FromStr for Method {
    type Err = UnknownMethod;

    fn from_str(name: &str) -> Result<Self, UnknownMethod> {
        let unknown = || UnknownMethod(name.to_owned());
        let number = |text: &str| text.parse::<usize>().map_err(|_| unknown());
        let method = match name.split(':').collect::<Vec<_>>()[..] {
            ["per-document"] => Self::PerDocument,
            ["chunked", len] => Self::Chunked { len: number(len)? },
            ["strided", len, stride] => {
                Self::Strided { len: number(len)?, stride: number(stride)? }
            }
            _ => return Err(unknown()),
        };
        match method {
            Self::Chunked { len } if len < 2 => Err(unknown()),
            Self::Strided { len, stride } if len < 2 || stride == 0 || stride > len => {
                Err(unknown())
            }
            method => Ok(method),
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PerDocument => f.write_str("per-document"),
            Self::Chunked { len } => write!(f, "chunked:{len}"),
            Self::Strided { len, stride } => write!(f, "strided:{len}:{stride}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(method: &str, ids: std::ops::Range<u32>) -> Vec<(Vec<u32>, usize)> {
        let encode = |_: &str| Ok::<_, ()>(ids.clone().collect());
        let method: Method = method.parse().unwrap();
        let windows = method.windows("text", None, 100, encode).unwrap();
        windows.into_iter().map(|window| (window.tokens, window.first_scored)).collect()
    }

    #[test]
    fn chunks_score_all_but_their_first_token_and_drop_a_lone_last_one() {
        assert_eq!(windows("chunked:3", 0..7), [(vec![0, 1, 2], 1), (vec![3, 4, 5], 1)]);
        assert_eq!(windows("chunked:3", 0..8)[2], (vec![6, 7], 1));
    }

    #[test]
    fn strides_score_every_token_but_the_first_once() {
        let found = windows("strided:4:2", 0..7);
        assert_eq!(found, [(vec![0, 1, 2, 3], 1), (vec![2, 3, 4, 5], 2), (vec![4, 5, 6], 2)]);
    }

    #[test]
    fn absurd_methods_are_refused() {
        for name in ["", "chunked", "chunked:1", "strided:8:0", "strided:8:9", "chunked:x"] {
            assert!(name.parse::<Method>().is_err(), "{name}");
        }
        assert_eq!("strided:256:128".parse::<Method>().unwrap().to_string(), "strided:256:128");
    }
}
