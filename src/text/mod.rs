//! Text on both sides of the model: tokens from text, text from tokens, prompts from conversations.

mod chat_template;
mod detokenizer;
mod gguf;
mod gguf_bpe;
mod message;
mod pieces;
mod python_json;
mod sentencepiece;
mod stop;
mod tokenizer;
mod tokenizer_config;
mod written_tokens;

pub use chat_template::{ChatOptions, ChatTemplate, ChatTemplateError};
pub use detokenizer::Detokenizer;
pub use gguf::GgufVocabulary;
pub use message::{Content, FunctionCall, Message, ToolCall};
pub use stop::{StopError, StopMatcher, StopStep};
pub use tokenizer::{Tokenizer, TokenizerError};
