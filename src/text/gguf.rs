//! [`GgufVocabulary`]: the tokenizer that the metadata of a GGUF file describes.

use std::collections::HashSet;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::chat_template::ChatTemplate;
use super::gguf_bpe::{PreTokenizer, byte_level};
use super::pieces::PieceRule;
use super::sentencepiece::{Pieces, SentencePiece, TokenKind};
use super::tokenizer::{Around, Inner, Segmenter, Tokenizer, TokenizerError};

/// What a GGUF file's metadata says of its tokenizer, as the file says it; each field names its key.
///
/// [`Tokenizer::from_vocabulary`] makes a tokenizer of it.
#[derive(Clone, Debug, Default)]
pub struct GgufVocabulary {
    /// The file, for messages.
    pub path: PathBuf,
    /// `general.name`: it decides on whitespace after special tokens, which GGUF does not record.
    pub model_name: String,
    /// `tokenizer.ggml.model`: `llama` (SentencePiece) or `gpt2` (byte-level).
    pub model: String,
    /// `tokenizer.ggml.pre`: the name of the pre-tokenizer of a byte-level model.
    pub pre: Option<String>,
    /// `tokenizer.ggml.tokens`, by id.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.scores`, by id; of use for `llama` only.
    pub scores: Option<Vec<f32>>,
    /// `tokenizer.ggml.token_type`, by id: 1 normal, 2 unknown, 3 control, 4 user-defined,
    /// 5 unused, 6 byte.
    pub token_types: Option<Vec<i32>>,
    /// `tokenizer.ggml.merges`: two tokens with a space between, the first to be merged first; of
    /// use for `gpt2` only.
    pub merges: Option<Vec<String>>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos_id: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos_id: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`.
    pub unknown_id: Option<u32>,
    /// `tokenizer.ggml.padding_token_id`.
    pub padding_id: Option<u32>,
    /// `tokenizer.ggml.eot_token_id`: ends a turn.
    pub eot_id: Option<u32>,
    /// `tokenizer.ggml.eom_token_id`: ends a message.
    pub eom_id: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`.
    pub add_eos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`; of use for `llama` only.
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.chat_template` under the name `default`, and every `tokenizer.chat_template.NAME`.
    pub chat_templates: Vec<(String, String)>,
}

/// Texts of tokens that end what a model says, whatever the file names as its end.
const END_TOKENS: [&str; 9] = [
    "</s>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<｜end▁of▁sentence｜>",
];

/// The numbers of `tokenizer.ggml.token_type` that matter.
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const BYTE: i32 = 6;

impl Tokenizer {
    /// The tokenizer that the metadata of a GGUF file describes.
    ///
    /// Token ids are those of llama.cpp where it recognises special tokens written out in the text.
    /// Unlike it, text that is given to a Qwen model is composed (NFC) first, as its own
    /// tokenizer.json says, and a text such as `<0x0A>` is never taken for that byte.
    ///
    /// ```
    /// use engine::{GgufVocabulary, Tokenizer};
    ///
    /// let tokens = ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "▁ab"];
    /// let tokenizer = Tokenizer::from_vocabulary(GgufVocabulary {
    ///     model: "llama".into(),
    ///     tokens: tokens.map(String::from).into(),
    ///     scores: Some(vec![0.0, 0.0, 0.0, -3.0, -4.0, -5.0, -1.0, -2.0]),
    ///     token_types: Some(vec![2, 3, 3, 1, 1, 1, 1, 1]),
    ///     ..GgufVocabulary::default()
    /// })?;
    /// assert_eq!(tokenizer.encode("ab b", true)?, [1, 7, 3, 5]);
    /// assert_eq!(tokenizer.decode(&[1, 7, 3, 5], true)?, "ab b");
    /// # Ok::<(), engine::TokenizerError>(())
    /// ```
    ///
    /// # Errors
    /// When the file uses a kind of tokenizer that is not read, or contradicts itself. A broken chat
    /// template is no error here: [`Self::chat_template`] tells.
    pub fn from_vocabulary(vocabulary: GgufVocabulary) -> Result<Self, TokenizerError> {
        let is_byte_level = match vocabulary.model.as_str() {
            "gpt2" => true,
            "llama" => false,
            other => return Err(vocabulary.other_model(other)),
        };
        let vocabulary = vocabulary.completed()?;
        let kinds = vocabulary.kinds()?;
        vocabulary.check_tokens()?;
        let (segmenter, rule, adds_bos) = if is_byte_level {
            let pre = vocabulary.pre_tokenizer()?;
            let merges = vocabulary.merges.as_ref();
            let merges = merges.ok_or_else(|| vocabulary.missing("tokenizer.ggml.merges"))?;
            let pipeline = byte_level(&vocabulary.tokens, &kinds, merges, &pre)
                .map_err(|reason| vocabulary.malformed(reason))?;
            let rule = PieceRule::from_decoder(&json!({"type": "ByteLevel"}));
            (Segmenter::Pipeline(Box::new(pipeline)), rule, pre.adds_bos)
        } else {
            let (model, rule) = vocabulary.sentencepiece(&kinds)?;
            (Segmenter::SentencePiece(Box::new(model)), rule, true)
        };
        let around = vocabulary.around(adds_bos)?;
        let special = (0..).zip(&kinds).filter(|(_, kind)| **kind == TokenKind::Control);
        Ok(Self::from_inner(Inner {
            segmenter,
            rule,
            special_ids: special.map(|(id, _)| id).collect(),
            bos_id: vocabulary.bos_id,
            eos_id: vocabulary.eos_id,
            around,
            chat_template: Ok(vocabulary.chat_template()),
        }))
    }
}

impl GgufVocabulary {
    /// The tokens that end a completion: those that the file names as ends of text, turn and
    /// message, and control tokens whose text says as much (`<|im_end|>`), in order of their ids.
    pub fn end_ids(&self) -> Vec<u32> {
        let num_tokens = self.tokens.len();
        let named = [self.eos_id, self.eot_id, self.eom_id].into_iter().flatten();
        let types = self.token_types.as_deref().unwrap_or_default();
        let told = (0..).zip(self.tokens.iter().zip(types)).filter_map(|(id, (token, kind))| {
            (*kind == CONTROL && END_TOKENS.contains(&token.as_str())).then_some(id)
        });
        let mut ids: Vec<u32> =
            named.chain(told).filter(|id| (*id as usize) < num_tokens).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Fills in what the format leaves to convention.
    fn completed(mut self) -> Result<Self, TokenizerError> {
        if self.tokens.is_empty() {
            return Err(self.missing("tokenizer.ggml.tokens"));
        }
        for (id, token) in self.tokens.iter_mut().enumerate() {
            if token.is_empty() {
                *token = format!("[EMPTY_{id}]");
            }
        }
        if self.model == "llama" {
            // What SentencePiece's trainer gives by default.
            let num_tokens = self.tokens.len();
            let default = |id: u32| Some(id).filter(|id| (*id as usize) < num_tokens);
            self.unknown_id = self.unknown_id.or(default(0));
            self.bos_id = self.bos_id.or(default(1));
            self.eos_id = self.eos_id.or(default(2));
        }
        let ids = [
            &mut self.bos_id,
            &mut self.eos_id,
            &mut self.unknown_id,
            &mut self.padding_id,
            &mut self.eot_id,
            &mut self.eom_id,
        ];
        for id in ids {
            // Some files spell "none" as -1.
            *id = id.filter(|id| *id != u32::MAX);
        }
        self.check_ids()?;
        Ok(self)
    }

    fn check_ids(&self) -> Result<(), TokenizerError> {
        let num_tokens = self.tokens.len();
        let named = [
            ("bos", self.bos_id),
            ("eos", self.eos_id),
            ("unknown", self.unknown_id),
            ("padding", self.padding_id),
            ("eot", self.eot_id),
            ("eom", self.eom_id),
        ];
        for (name, id) in named {
            if let Some(id) = id.filter(|id| *id as usize >= num_tokens) {
                let reason = format!(
                    "tokenizer.ggml.{name}_token_id is {id}, and there are {num_tokens} tokens"
                );
                return Err(self.malformed(reason));
            }
        }
        Ok(())
    }

    fn kinds(&self) -> Result<Vec<TokenKind>, TokenizerError> {
        let num_tokens = self.tokens.len();
        let mut kinds: Vec<TokenKind> = match &self.token_types {
            Some(types) => {
                self.check_len("token_type", types.len())?;
                let kind = |kind: &i32| match *kind {
                    UNKNOWN | CONTROL => TokenKind::Control,
                    USER_DEFINED => TokenKind::UserDefined,
                    BYTE => TokenKind::Byte,
                    _ => TokenKind::Normal,
                };
                types.iter().map(kind).collect()
            }
            None => vec![TokenKind::Normal; num_tokens],
        };
        let control = [self.bos_id, self.eos_id, self.eot_id, self.eom_id];
        for id in control.into_iter().flatten() {
            kinds[id as usize] = TokenKind::Control;
        }
        Ok(kinds)
    }

    fn check_tokens(&self) -> Result<(), TokenizerError> {
        let mut seen = HashSet::with_capacity(self.tokens.len());
        match self.tokens.iter().position(|token| !seen.insert(token)) {
            Some(id) => {
                let token = &self.tokens[id];
                Err(self.malformed(format!("token {id}, {token:?}, is there twice")))
            }
            None => Ok(()),
        }
    }

    fn check_len(&self, key: &str, len: usize) -> Result<(), TokenizerError> {
        let num_tokens = self.tokens.len();
        if len == num_tokens {
            return Ok(());
        }
        Err(self.malformed(format!(
            "tokenizer.ggml.{key} has {len} entries, and there are {num_tokens} tokens"
        )))
    }

    fn sentencepiece(
        &self,
        kinds: &[TokenKind],
    ) -> Result<(SentencePiece, PieceRule), TokenizerError> {
        let scores = self.scores.as_ref().ok_or_else(|| self.missing("tokenizer.ggml.scores"))?;
        self.check_len("scores", scores.len())?;
        if let Some(id) = scores.iter().position(|score| score.is_nan()) {
            return Err(self.malformed(format!("the score of token {id} is not a number")));
        }
        let space_prefix = self.add_space_prefix.unwrap_or(true);
        let model = SentencePiece::new(Pieces {
            pieces: self.tokens.clone(),
            kinds: kinds.to_vec(),
            scores: scores.clone(),
            unknown: self.unknown_id,
            space_prefix,
            strip_after: self.strip_after(kinds),
        });
        let mut steps = vec![
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if space_prefix {
            steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let rule = PieceRule::from_decoder(&json!({"type": "Sequence", "decoders": steps}));
        Ok((model, rule))
    }

    /// Phi-3's special tokens take in the whitespace after them; GGUF has no key for that, and
    /// llama.cpp too tells by the model's name.
    fn strip_after(&self, kinds: &[TokenKind]) -> HashSet<u32> {
        let name = self.model_name.to_lowercase();
        if !name.contains("phi-3") && !name.contains("phi3") {
            return HashSet::new();
        }
        let strips = |token: &str, kind| match kind {
            TokenKind::Control | TokenKind::UserDefined => {
                !["<unk>", "<s>", "<|endoftext|>"].contains(&token)
            }
            TokenKind::Normal | TokenKind::Byte => false,
        };
        let tokens = (0..).zip(self.tokens.iter().zip(kinds));
        tokens.filter(|(_, (token, kind))| strips(token, **kind)).map(|(id, _)| id).collect()
    }

    fn pre_tokenizer(&self) -> Result<PreTokenizer, TokenizerError> {
        let Some(name) = &self.pre else {
            let what = "it does not name its pre-tokenizer (tokenizer.ggml.pre), so its text cannot \
                        be cut as the model was trained";
            return Err(self.unsupported(what));
        };
        PreTokenizer::named(name).ok_or_else(|| {
            let known = PreTokenizer::NAMES.join(", ");
            self.unsupported(format!(
                "its pre-tokenizer `{name}` (tokenizer.ggml.pre) is not one of {known}"
            ))
        })
    }

    fn around(&self, adds_bos: bool) -> Result<Around, TokenizerError> {
        let token = |add: bool, name: &str, id: Option<u32>| match (add, id) {
            (true, None) => Err(self.malformed(format!(
                "texts are to have the {name} token, and tokenizer.ggml.{name}_token_id is missing"
            ))),
            (true, id) => Ok(id),
            (false, _) => Ok(None),
        };
        Ok(Around {
            before: token(self.add_bos.unwrap_or(adds_bos), "bos", self.bos_id)?,
            after: token(self.add_eos.unwrap_or(false), "eos", self.eos_id)?,
        })
    }

    fn chat_template(&self) -> Option<ChatTemplate> {
        let named = [
            ("bos_token", self.bos_id),
            ("eos_token", self.eos_id),
            ("unk_token", self.unknown_id),
            ("pad_token", self.padding_id),
        ];
        let special_tokens: Map<String, Value> = named
            .into_iter()
            .filter_map(|(name, id)| {
                let token = self.tokens.get(id? as usize)?;
                Some((name.to_owned(), Value::from(token.as_str())))
            })
            .collect();
        let variants = self.chat_templates.clone();
        (!variants.is_empty()).then(|| ChatTemplate::from_variants(variants, special_tokens))
    }

    fn other_model(&self, model: &str) -> TokenizerError {
        let kind = match model {
            "" => return self.missing("tokenizer.ggml.model"),
            "bert" => " (WordPiece)",
            "t5" => " (SentencePiece unigram)",
            _ => "",
        };
        self.unsupported(format!(
            "its tokenizer `{model}`{kind} (tokenizer.ggml.model) is neither `llama` nor `gpt2`"
        ))
    }

    fn unsupported(&self, what: impl Into<String>) -> TokenizerError {
        TokenizerError::Unsupported { path: self.path.clone(), what: what.into() }
    }

    fn missing(&self, key: &str) -> TokenizerError {
        self.malformed(format!("its metadata has no {key}"))
    }

    fn malformed(&self, reason: String) -> TokenizerError {
        TokenizerError::Malformed { path: self.path.clone(), reason }
    }
}
