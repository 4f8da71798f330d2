//! [`Detokenizer`]: text from tokens as they arrive.

use super::pieces::PieceRule;
use super::tokenizer::{Tokenizer, TokenizerError};

/// Turns a model's tokens into text, one at a time.
///
/// Never emits half a character: bytes that may still become one wait for the next token, and what
/// is left at the end becomes U+FFFD. The pieces put together are exactly what
/// [`Tokenizer::decode`] makes of prompt and new tokens, less the prompt's text. Each token costs
/// constant time.
///
/// ```
/// use engine::{Detokenizer, Tokenizer};
///
/// let tokenizer = Tokenizer::load("tests/data/models/stories260K")?;
/// let prompt = tokenizer.encode("Once upon", true)?;
/// let mut detokenizer = Detokenizer::new(&tokenizer, &prompt, true)?;
/// let mut text = detokenizer.push(261)?;
/// text += &detokenizer.push(378)?;
/// text += &detokenizer.finish()?;
/// assert_eq!(text, " a time");
/// # Ok::<(), engine::TokenizerError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special: bool,
    stream: Stream,
}

#[derive(Clone, Debug)]
enum Stream {
    Bytes(ByteStream),
    Window(WindowStream),
}

impl Detokenizer {
    /// Starts after `prompt`, whose text is not emitted again but decides whether the new text
    /// begins with a space. `skip_special` leaves special tokens out.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails on the prompt.
    pub fn new(
        tokenizer: &Tokenizer,
        prompt: &[u32],
        skip_special: bool,
    ) -> Result<Self, TokenizerError> {
        let stream = match tokenizer.piece_rule() {
            PieceRule::Whole => Stream::Window(WindowStream::new(tokenizer, prompt, skip_special)),
            rule => {
                let mut stream = ByteStream::new(rule);
                let mut prompt_text = String::new();
                for &id in prompt {
                    tokenizer.push_bytes(&mut stream, id, skip_special, &mut prompt_text);
                    prompt_text.clear();
                }
                Stream::Bytes(stream)
            }
        };
        Ok(Self { tokenizer: tokenizer.clone(), skip_special, stream })
    }

    /// The text that this token makes certain; may be empty.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        match &mut self.stream {
            Stream::Bytes(stream) => {
                let mut text = String::new();
                self.tokenizer.push_bytes(stream, id, self.skip_special, &mut text);
                Ok(text)
            }
            Stream::Window(stream) => stream.push(&self.tokenizer, id, self.skip_special),
        }
    }

    /// What is left when no token follows.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn finish(&mut self) -> Result<String, TokenizerError> {
        match &mut self.stream {
            Stream::Bytes(stream) => {
                let mut text = String::new();
                stream.finish(&mut text);
                Ok(text)
            }
            Stream::Window(stream) => stream.emit(&self.tokenizer, self.skip_special),
        }
    }
}

/// Decodes UTF-8 from bytes as they arrive, in the way of [`String::from_utf8_lossy`].
#[derive(Clone, Debug)]
pub(crate) struct ByteStream {
    /// The beginning of a character, at most three bytes between calls.
    pending: Vec<u8>,
    /// A byte that is removed from the start of the text, and how many times still.
    strip: Option<(u8, usize)>,
}

impl ByteStream {
    pub(crate) fn new(rule: &PieceRule) -> Self {
        Self { pending: Vec::new(), strip: rule.strip() }
    }

    /// Appends every character that is certain to `text`.
    pub(crate) fn push(&mut self, bytes: &[u8], text: &mut String) {
        let bytes = self.stripped(bytes);
        self.pending.extend_from_slice(bytes);
        let mut rest = self.pending.as_slice();
        loop {
            let error = match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => error,
            };
            let (valid, invalid) = rest.split_at(error.valid_up_to());
            text.push_str(&String::from_utf8_lossy(valid));
            rest = invalid;
            let Some(invalid_len) = error.error_len() else { break };
            text.push(char::REPLACEMENT_CHARACTER);
            rest = &rest[invalid_len..];
        }
        let certain_len = self.pending.len() - rest.len();
        self.pending.drain(..certain_len);
    }

    /// An incomplete character at the end is one U+FFFD.
    pub(crate) fn finish(&mut self, text: &mut String) {
        if !self.pending.is_empty() {
            self.pending.clear();
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }

    fn stripped<'a>(&mut self, mut bytes: &'a [u8]) -> &'a [u8] {
        while let (Some((byte, times)), Some(&first)) = (self.strip, bytes.first()) {
            if first != byte || times == 0 {
                self.strip = None;
            } else {
                self.strip = Some((byte, times - 1));
                bytes = &bytes[1..];
            }
        }
        bytes
    }
}

/// Decodes a short window of tokens again for each new one: for decoders whose text depends on
/// neighbours. What the new token appends to the window's text is the new text.
#[derive(Clone, Debug)]
struct WindowStream {
    ids: Vec<u32>,
    /// `ids[..emitted]` have been emitted and serve as context.
    emitted: usize,
}

impl WindowStream {
    /// Tokens that give the next one its context.
    const CONTEXT: usize = 6;
    /// A character has at most four bytes, so that many tokens without a character never make one.
    const MAX_PENDING: usize = 4;

    fn new(tokenizer: &Tokenizer, prompt: &[u32], skip_special: bool) -> Self {
        let shown = |id: &&u32| !(skip_special && tokenizer.is_special(**id));
        let mut ids: Vec<u32> =
            prompt.iter().rev().filter(shown).take(Self::CONTEXT).copied().collect();
        ids.reverse();
        Self { emitted: ids.len(), ids }
    }

    fn push(
        &mut self,
        tokenizer: &Tokenizer,
        id: u32,
        skip_special: bool,
    ) -> Result<String, TokenizerError> {
        if skip_special && tokenizer.is_special(id) {
            return Ok(String::new());
        }
        self.ids.push(id);
        let full = tokenizer.decode(&self.ids, skip_special)?;
        let pending = self.ids.len() - self.emitted;
        if full.ends_with(char::REPLACEMENT_CHARACTER) && pending < Self::MAX_PENDING {
            return Ok(String::new());
        }
        self.emit(tokenizer, skip_special)
    }

    fn emit(
        &mut self,
        tokenizer: &Tokenizer,
        skip_special: bool,
    ) -> Result<String, TokenizerError> {
        let before = tokenizer.decode(&self.ids[..self.emitted], skip_special)?;
        let mut full = tokenizer.decode(&self.ids, skip_special)?;
        // Some decoders tidy up across tokens and change text that is already out; then only what
        // is new after the common beginning can be added.
        let common: usize = before
            .chars()
            .zip(full.chars())
            .take_while(|(old, new)| old == new)
            .map(|(old, _)| old.len_utf8())
            .sum();
        self.emitted = self.ids.len();
        let surplus = self.ids.len().saturating_sub(Self::CONTEXT);
        self.ids.drain(..surplus);
        self.emitted -= surplus;
        Ok(full.split_off(common))
    }
}
