//! What surrounds tokenizer.json: special tokens and chat templates.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::chat_template::{ChatTemplate, ChatTemplateError};

/// The special tokens that a chat template may name.
const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// tokenizer_config.json and special_tokens_map.json, as far as they concern us.
#[derive(Debug, Default)]
pub(crate) struct TokenizerConfig {
    /// `bos_token` and its like, to the token's text.
    pub special_tokens: Map<String, Value>,
    /// The value of `chat_template`, where it has one.
    chat_template: Option<Value>,
}

/// A JSON file beside the tokenizer that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub(crate) struct ConfigError {
    pub path: PathBuf,
    pub reason: String,
}

impl TokenizerConfig {
    /// Reads both files of a model directory; a missing file says nothing, a broken one is an error.
    pub(crate) fn load(dir: &Path) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        let settings = read_object(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
        let map = read_object(&dir.join("special_tokens_map.json"))?.unwrap_or_default();
        for name in SPECIAL_TOKENS {
            // A `null` in the first file says that there is none, whatever the second one holds.
            let token = settings.get(name).or_else(|| map.get(name)).and_then(token_text);
            if let Some(text) = token {
                config.special_tokens.insert(name.to_owned(), Value::from(text));
            }
        }
        config.chat_template = settings.get("chat_template").cloned();
        Ok(config)
    }

    /// The text of `bos_token`, `eos_token`, …
    pub(crate) fn special_token(&self, name: &str) -> Option<&str> {
        self.special_tokens.get(name)?.as_str()
    }

    /// The chat template of a model directory: a file `chat_template.jinja` first, then the entry
    /// of tokenizer_config.json, then `chat_template.json`.
    pub(crate) fn chat_template(
        &self,
        dir: &Path,
    ) -> Result<Option<ChatTemplate>, ChatTemplateError> {
        let jinja = dir.join("chat_template.jinja");
        let json = dir.join("chat_template.json");
        let value = if jinja.is_file() {
            let source = fs::read_to_string(&jinja)
                .map_err(|source| ChatTemplateError::Io { path: jinja, source })?;
            Value::from(source)
        } else if let Some(value) = &self.chat_template {
            value.clone()
        } else {
            let file = read_object(&json).map_err(|error| ChatTemplateError::Malformed {
                path: error.path,
                reason: error.reason,
            })?;
            file.and_then(|mut file| file.remove("chat_template")).unwrap_or(Value::Null)
        };
        let malformed = |reason: &str| ChatTemplateError::Malformed {
            path: dir.join("tokenizer_config.json"),
            reason: reason.to_owned(),
        };
        let variants = match value {
            Value::Null => return Ok(None),
            Value::String(source) => vec![("default".to_owned(), source)],
            Value::Array(entries) => entries
                .iter()
                .map(|entry| {
                    let text = |key: &str| entry[key].as_str().map(str::to_owned);
                    text("name").zip(text("template"))
                })
                .collect::<Option<Vec<_>>>()
                .filter(|variants| !variants.is_empty())
                .ok_or_else(|| {
                    malformed("`chat_template` must list {\"name\": …, \"template\": …} objects")
                })?,
            _ => return Err(malformed("`chat_template` must be a string or a list")),
        };
        Ok(Some(ChatTemplate::from_variants(variants, self.special_tokens.clone())))
    }
}

/// A token is written as its text or as an object with the text as `content`.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// `None` where there is no such file.
fn read_object(path: &Path) -> Result<Option<Map<String, Value>>, ConfigError> {
    let fail = |reason: String| ConfigError { path: path.to_owned(), reason };
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail(error.to_string())),
    };
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|error| fail(format!("not a JSON object: {error}")))
}
