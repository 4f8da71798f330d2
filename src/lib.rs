//! Placeholder.
#![forbid(unsafe_code)]

mod hub;
mod text;

pub use hub::{DownloadProgress, Hub, HubError, resolve_model};
pub use text::{
    ChatOptions, ChatTemplate, ChatTemplateError, Content, Detokenizer, FunctionCall, Message,
    StopError, StopMatcher, StopStep, Tokenizer, TokenizerError, ToolCall,
};
