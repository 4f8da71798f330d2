use std::path::Path;

use super::json::{Fields, parse_object, read_file};
use crate::LoadError;

const MAX_BYTES: u64 = 16 << 20;

/// The defaults for generation that a model's authors recommend: `generation_config.json`.
///
/// ```
/// use std::path::Path;
/// let json = br#"{"eos_token_id": [1, 2], "temperature": 0.6, "top_p": 0.9}"#;
/// let config = engine_core::GenerationConfig::parse(json, Path::new("generation_config.json"))?;
/// assert_eq!(config.eos_token_ids.as_deref(), Some([1, 2].as_slice()));
/// assert_eq!(config.top_k, None);
/// # Ok::<(), engine_core::LoadError>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationConfig {
    /// Tokens that end a reply.
    pub eos_token_ids: Option<Vec<u32>>,
    /// Token that starts a sequence.
    pub bos_token_id: Option<u32>,
    /// Token that fills a batch.
    pub pad_token_id: Option<u32>,
    /// Whether tokens are drawn at random rather than greedily.
    pub do_sample: Option<bool>,
    /// Divides the logits before sampling.
    pub temperature: Option<f32>,
    /// Candidates kept by rank; 0 keeps all.
    pub top_k: Option<usize>,
    /// Candidates kept by cumulative probability.
    pub top_p: Option<f32>,
    /// Candidates kept by probability relative to the best.
    pub min_p: Option<f32>,
    /// Divides the logits of tokens already seen.
    pub repetition_penalty: Option<f32>,
    /// Tokens of prompt and reply together.
    pub max_length: Option<usize>,
    /// Tokens of the reply.
    pub max_new_tokens: Option<usize>,
}

impl GenerationConfig {
    /// Reads `generation_config.json` in `dir`; `None` if there is no such file.
    ///
    /// # Errors
    /// If the file cannot be read, is not JSON, or a value has the wrong type or range.
    pub fn load(dir: impl AsRef<Path>) -> Result<Option<Self>, LoadError> {
        let file = dir.as_ref().join("generation_config.json");
        match read_file(&file, MAX_BYTES) {
            Ok(bytes) => Self::parse(&bytes, &file).map(Some),
            Err(LoadError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Reads the content of such a file; `file` is only for the messages.
    ///
    /// # Errors
    /// As [`GenerationConfig::load`].
    pub fn parse(json: &[u8], file: &Path) -> Result<Self, LoadError> {
        let map = parse_object(json, file)?;
        let fields = Fields::new(file, &map);
        let number =
            |key, range| Ok::<_, LoadError>(fields.number(key, range)?.map(|value| value as f32));
        let count = |key| fields.count(key, 0..=u32::MAX as usize);
        Ok(Self {
            eos_token_ids: fields.token_ids("eos_token_id")?,
            bos_token_id: fields.token_id("bos_token_id")?,
            pad_token_id: fields.token_id("pad_token_id")?,
            do_sample: fields.flag("do_sample")?,
            temperature: number("temperature", 0.0..=1e6)?,
            top_k: count("top_k")?,
            top_p: number("top_p", 0.0..=1.0)?,
            min_p: number("min_p", 0.0..=1.0)?,
            repetition_penalty: number("repetition_penalty", 1e-3..=1e6)?,
            max_length: count("max_length")?,
            max_new_tokens: count("max_new_tokens")?,
        })
    }
}
