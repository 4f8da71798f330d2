//! [`Tokenizer`]: text to token ids and back, as a model's files describe it.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::IgnoredAny;

use super::chat_template::{ChatTemplate, ChatTemplateError};
use super::detokenizer::ByteStream;
use super::pieces::PieceRule;
use super::sentencepiece::SentencePiece;
use super::tokenizer_config::TokenizerConfig;

/// Turns text into token ids and back; read from the directory of a model or from a GGUF file.
///
/// Cloning is cheap and threads may share it.
///
/// ```
/// use engine::Tokenizer;
///
/// let tokenizer = Tokenizer::load("tests/data/models/stories260K")?;
/// let ids = tokenizer.encode("Once upon a time", true)?;
/// assert_eq!(ids, [1, 403, 407, 261, 378]);
/// assert_eq!(tokenizer.decode(&ids, true)?, "Once upon a time");
/// # Ok::<(), engine::TokenizerError>(())
/// ```
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

pub(crate) struct Inner {
    pub segmenter: Segmenter,
    pub rule: PieceRule,
    pub special_ids: HashSet<u32>,
    pub bos_id: Option<u32>,
    pub eos_id: Option<u32>,
    /// What is put around a text in addition to what the segmenter itself puts there.
    pub around: Around,
    pub chat_template: Result<Option<ChatTemplate>, ChatTemplateError>,
}

/// What cuts text into tokens.
pub(crate) enum Segmenter {
    Pipeline(Box<tokenizers::Tokenizer>),
    SentencePiece(Box<SentencePiece>),
}

/// The special tokens before and after a text.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Around {
    pub before: Option<u32>,
    pub after: Option<u32>,
}

/// Why a tokenizer cannot be loaded or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The model directory is not there.
    #[error("{}: no such directory; give the directory of a model in Hugging Face layout", dir.display())]
    NoDirectory {
        /// The directory asked for.
        dir: PathBuf,
    },
    /// The directory has no tokenizer that can be read.
    #[error("{}: no tokenizer.json here; {advice}", dir.display())]
    Missing {
        /// The directory asked for.
        dir: PathBuf,
        /// What was found instead and what to do about it.
        advice: String,
    },
    /// A file is there and cannot be used.
    #[error("{}: {reason}; download the file again or take it from the model's repository", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A GGUF file describes its tokenizer in a way that is not read.
    #[error(
        "{}: {what}; run the model from its directory in Hugging Face layout, with tokenizer.json",
        path.display()
    )]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What is not read.
        what: String,
    },
    /// The tokenizer failed on a text.
    #[error("the tokenizer cannot encode this text of {text_len} bytes: {reason}")]
    Encode {
        /// Length of the text in bytes.
        text_len: usize,
        /// What the tokenizer said.
        reason: String,
    },
    /// The tokenizer failed on token ids.
    #[error("the tokenizer cannot decode these {num_ids} token ids: {reason}")]
    Decode {
        /// How many ids were given.
        num_ids: usize,
        /// What the tokenizer said.
        reason: String,
    },
}

impl Tokenizer {
    /// Reads `tokenizer.json`, and beside it `tokenizer_config.json`, `special_tokens_map.json` and
    /// the chat template where they exist.
    ///
    /// # Errors
    /// When the directory or its tokenizer.json is missing, or one of the files is malformed. A
    /// broken chat template is no error here: [`Self::chat_template`] tells.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let dir = dir.as_ref();
        let path = dir.join("tokenizer.json");
        if !path.is_file() {
            return Err(missing(dir));
        }
        let malformed = |reason: String| TokenizerError::Malformed { path: path.clone(), reason };
        let json = fs::read(&path).map_err(|error| malformed(error.to_string()))?;
        let mut tokenizer = parse(&json).map_err(malformed)?;
        // A training set-up left in the file must not cut or fill what we encode.
        let truncation = tokenizer.with_truncation(None).map(|_| ());
        truncation.map_err(|error| malformed(error.to_string()))?;
        tokenizer.with_padding(None);

        let config = TokenizerConfig::load(dir).map_err(|error| TokenizerError::Malformed {
            path: error.path,
            reason: error.reason,
        })?;
        let decoder = serde_json::to_value(tokenizer.get_decoder())
            .map_err(|error| malformed(error.to_string()))?;
        let special_id = |name: &str| tokenizer.token_to_id(config.special_token(name)?);
        let added = tokenizer.get_added_tokens_decoder();
        let inner = Inner {
            around: Around::default(),
            rule: PieceRule::from_decoder(&decoder),
            special_ids: added.iter().filter(|(_, t)| t.special).map(|(id, _)| *id).collect(),
            bos_id: special_id("bos_token"),
            eos_id: special_id("eos_token"),
            chat_template: config.chat_template(dir),
            segmenter: Segmenter::Pipeline(Box::new(tokenizer)),
        };
        Ok(Self::from_inner(inner))
    }

    pub(crate) fn from_inner(inner: Inner) -> Self {
        Self { inner: Arc::new(inner) }
    }

    /// The token ids of `text`.
    ///
    /// `add_special` adds what the tokenizer puts around a text, as a beginning-of-text token; a
    /// prompt rendered from a chat template already has them. Special tokens written out in the
    /// text (`<|im_end|>`) become those tokens either way.
    ///
    /// # Errors
    /// When the tokenizer's model cannot express the text and has no token for the unknown.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        let fail = |reason| TokenizerError::Encode { text_len: text.len(), reason };
        let around = if add_special { self.inner.around } else { Around::default() };
        let mut ids = Vec::from_iter(around.before);
        match &self.inner.segmenter {
            Segmenter::Pipeline(pipeline) => {
                let encoding = pipeline.encode_fast(text, add_special);
                ids.extend(encoding.map_err(|error| fail(error.to_string()))?.get_ids());
            }
            Segmenter::SentencePiece(model) => {
                let no_token = |c: char| fail(format!("the vocabulary has no token for {c:?}"));
                ids.extend(model.encode(text).map_err(no_token)?);
            }
        }
        ids.extend(around.after);
        Ok(ids)
    }

    /// The text of `ids`; what is not valid UTF-8 becomes U+FFFD.
    ///
    /// `skip_special` leaves special tokens out. Ids outside the vocabulary have no text. For one
    /// token after the other use a [`Detokenizer`](crate::Detokenizer), which gives the same text.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        if let (PieceRule::Whole, Segmenter::Pipeline(pipeline)) =
            (&self.inner.rule, &self.inner.segmenter)
        {
            return pipeline.decode(ids, skip_special).map_err(|error| TokenizerError::Decode {
                num_ids: ids.len(),
                reason: error.to_string(),
            });
        }
        let mut stream = ByteStream::new(&self.inner.rule);
        let mut text = String::new();
        for &id in ids {
            self.push_bytes(&mut stream, id, skip_special, &mut text);
        }
        stream.finish(&mut text);
        Ok(text)
    }

    /// Appends to `text` what one more token makes certain.
    pub(crate) fn push_bytes(
        &self,
        stream: &mut ByteStream,
        id: u32,
        skip_special: bool,
        text: &mut String,
    ) {
        if skip_special && self.is_special(id) {
            return;
        }
        let Some(piece) = self.id_to_piece(id) else { return };
        if let Some(bytes) = self.inner.rule.bytes(&piece) {
            stream.push(&bytes, text);
        }
    }

    /// How pieces become bytes.
    pub(crate) fn piece_rule(&self) -> &PieceRule {
        &self.inner.rule
    }

    /// The id of a token given as it is written in the vocabulary.
    #[must_use]
    pub fn token_id(&self, token: &str) -> Option<u32> {
        match &self.inner.segmenter {
            Segmenter::Pipeline(pipeline) => pipeline.token_to_id(token),
            Segmenter::SentencePiece(model) => model.id(token),
        }
    }

    /// The token as it is written in the vocabulary (`▁Once`, `Ġthe`, `<0x0A>`).
    #[must_use]
    pub fn id_to_piece(&self, id: u32) -> Option<String> {
        match &self.inner.segmenter {
            Segmenter::Pipeline(pipeline) => pipeline.id_to_token(id),
            Segmenter::SentencePiece(model) => model.piece(id).map(str::to_owned),
        }
    }

    /// Whether this is a special token, one that `skip_special` leaves out.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.special_ids.contains(&id)
    }

    /// How many tokens there are, added ones included. A model's embedding may have more rows.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        match &self.inner.segmenter {
            Segmenter::Pipeline(pipeline) => pipeline.get_vocab_size(true),
            Segmenter::SentencePiece(model) => model.len(),
        }
    }

    /// The token that begins a text, if the model names one.
    #[must_use]
    pub fn bos_id(&self) -> Option<u32> {
        self.inner.bos_id
    }

    /// The token that ends a text, if the tokenizer's files name one. The model's
    /// generation_config.json may list more.
    #[must_use]
    pub fn eos_id(&self) -> Option<u32> {
        self.inner.eos_id
    }

    /// Whether the model comes with a usable chat template.
    #[must_use]
    pub fn has_chat_template(&self) -> bool {
        matches!(self.inner.chat_template, Ok(Some(_)))
    }

    /// The model's chat template, if it has one.
    ///
    /// # Errors
    /// When it has one that cannot be read.
    pub fn chat_template(&self) -> Result<Option<&ChatTemplate>, &ChatTemplateError> {
        self.inner.chat_template.as_ref().map(Option::as_ref)
    }
}

/// Parses a tokenizer.json.
fn parse(json: &[u8]) -> Result<tokenizers::Tokenizer, String> {
    // The crate panics on some files that are not JSON, so that is settled first.
    serde_json::from_slice::<IgnoredAny>(json).map_err(|error| format!("not JSON: {error}"))?;
    // It also panics on templates that name tokens which are not there, some only when first used.
    let usable = std::panic::catch_unwind(|| {
        let tokenizer = tokenizers::Tokenizer::from_bytes(json)?;
        tokenizer.encode_fast("", true).map(|_| tokenizer)
    });
    match usable {
        Ok(Ok(tokenizer)) => Ok(tokenizer),
        Ok(Err(error)) => Err(format!("not a tokenizer: {error}")),
        Err(_) => Err("not a tokenizer: it contradicts itself".to_owned()),
    }
}

/// Says why there is no tokenizer to load.
fn missing(dir: &Path) -> TokenizerError {
    if !dir.is_dir() {
        return TokenizerError::NoDirectory { dir: dir.to_owned() };
    }
    let has = |name: &str| dir.join(name).is_file();
    let convert = "make one with transformers: \
        AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)";
    let advice = if has("tokenizer.model") {
        format!("tokenizer.model (SentencePiece) is not read directly, {convert}")
    } else if has("vocab.json") || has("merges.txt") {
        format!("vocab.json and merges.txt are not read directly, {convert}")
    } else {
        "copy tokenizer.json and tokenizer_config.json from the model's repository".to_owned()
    };
    TokenizerError::Missing { dir: dir.to_owned(), advice }
}
