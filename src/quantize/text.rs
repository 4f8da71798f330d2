//! Sequences of tokens from a calibration text.

use std::{fmt, path::Path, str::FromStr};

use engine_core::{CalibrateError, ModelConfig};
use thiserror::Error;

use super::QuantizeError;
use crate::Tokenizer;

/// Tokens of a window, and more of a document than other windows have.
const WINDOW: usize = 512;
const LONGEST_DOCUMENT: usize = 2048;
/// Bytes of a line that is a document.
const DOCUMENT_BYTES: usize = 1000;

/// A text whose activations the codes are chosen for, and how it is cut.
#[derive(Debug, Clone)]
pub struct CalibrationText {
    /// The text, of the kind that the model will read.
    pub text: String,
    /// What runs together.
    pub cut: CalibrationCut,
    /// Where the sequences end, in tokens over all of them.
    pub max_tokens: usize,
}

impl CalibrationText {
    /// A text of which the first 65,536 tokens count, cut as its lines suggest.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), cut: CalibrationCut::Auto, max_tokens: 1 << 16 }
    }
}

/// How a calibration text becomes sequences.
///
/// ```
/// use engine::CalibrationCut;
/// assert_eq!("windows:256".parse(), Ok(CalibrationCut::Windows(256)));
/// assert!("windows".parse::<CalibrationCut>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum CalibrationCut {
    /// By lines if they have 1000 bytes or more on average, else into windows of 512 tokens, or the
    /// context if it is shorter.
    #[default]
    Auto,
    /// Each line is a document: it begins with the token of beginnings and ends after 2048 tokens,
    /// or at the context if that is shorter. Empty lines do not count.
    Lines,
    /// So many tokens after each other, without overlap; the token of beginnings stands before the
    /// text alone. The last window may be shorter.
    Windows(usize),
}

/// The name is no way to cut a text.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("unknown calibration method `{0}`: use auto, lines or windows:N with N of at least 2")]
pub struct UnknownCut(String);

impl FromStr for CalibrationCut {
    type Err = UnknownCut;

    fn from_str(text: &str) -> Result<Self, UnknownCut> {
        match (text, text.strip_prefix("windows:").map(str::parse)) {
            ("auto", _) => Ok(Self::Auto),
            ("lines", _) => Ok(Self::Lines),
            (_, Some(Ok(len))) if len >= 2 => Ok(Self::Windows(len)),
            _ => Err(UnknownCut(text.to_owned())),
        }
    }
}

impl fmt::Display for CalibrationCut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Lines => f.write_str("lines"),
            Self::Windows(len) => write!(f, "windows:{len}"),
        }
    }
}

/// Cuts a text with the tokenizer in the model's directory.
pub(super) fn sequences(
    text: &CalibrationText,
    config: &ModelConfig,
    dir: &Path,
) -> Result<Vec<Vec<u32>>, QuantizeError> {
    if !dir.join("tokenizer.json").is_file() {
        return Err(QuantizeError::NoTokenizer { path: dir.to_owned() });
    }
    if text.text.trim().is_empty() {
        return Err(CalibrateError::NoTokens.into());
    }
    let tokenizer = Tokenizer::load(dir)?;
    let bos = tokenizer.bos_id().or(config.bos_token_id);
    let encode = |part: &str| {
        let mut ids: Vec<u32> = bos.into_iter().collect();
        ids.extend(tokenizer.encode(part, false)?);
        Ok::<_, QuantizeError>(ids)
    };
    let max = config.max_context();
    let cut = match text.cut {
        CalibrationCut::Auto if has_documents(&text.text) => CalibrationCut::Lines,
        CalibrationCut::Auto => CalibrationCut::Windows(WINDOW.min(max)),
        CalibrationCut::Windows(len) if len > max || len < 2 => {
            return Err(QuantizeError::WindowLength { len, max });
        }
        cut => cut,
    };
    let mut sequences = Vec::new();
    let mut left = text.max_tokens;
    let mut push = |mut ids: Vec<u32>| {
        ids.truncate(left);
        left -= ids.len();
        // A token alone says nothing about a text.
        if ids.len() > 1 {
            sequences.push(ids);
        }
        left > 1
    };
    match cut {
        CalibrationCut::Windows(len) => {
            let ids = encode(&text.text)?;
            ids.chunks(len).all(|window| push(window.to_vec()));
        }
        CalibrationCut::Auto | CalibrationCut::Lines => {
            for line in text.text.lines().map(str::trim).filter(|line| !line.is_empty()) {
                let mut ids = encode(line)?;
                ids.truncate(LONGEST_DOCUMENT.min(max));
                if !push(ids) {
                    break;
                }
            }
        }
    }
    Ok(sequences)
}

/// Whether lines are as long as documents.
fn has_documents(text: &str) -> bool {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let (count, bytes) = lines.fold((0, 0), |(count, bytes), line| (count + 1, bytes + line.len()));
    count > 0 && bytes / count >= DOCUMENT_BYTES
}
