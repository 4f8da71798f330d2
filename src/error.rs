use engine_core::{LoadError, sampling::SamplingError};
use thiserror::Error;

use crate::{
    ChatTemplateError, DeviceError, ExecuteError, HubError, MemoryPlan, StopError, TokenizerError,
};

/// Why an engine could not be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The model could not be found or downloaded.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The chat template could not be read.
    #[error("{0}")]
    ChatTemplate(String),
    /// The configuration or the checkpoint could not be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The tokenizer could not be read.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The model does not fit.
    #[error("the model does not fit: {0}")]
    DoesNotFit(MemoryPlan),
    /// The device failed while the model was loaded.
    #[error("the device failed while the model was loaded: {message}")]
    LoadFailed {
        /// What the backend said.
        message: String,
    },
    /// A setting makes no sense.
    #[error("setting `{setting}`: {message}")]
    Setting {
        /// Which one.
        setting: &'static str,
        /// What is wrong, and what would be right.
        message: String,
    },
    /// The engine's thread could not be started.
    #[error("the engine's thread could not be started: {0}")]
    Thread(std::io::Error),
}

/// Why a request was not accepted.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// A text prompt, stop text or conversation needs a tokenizer.
    #[error("the model directory has no tokenizer.json: give the prompt as token ids")]
    NoTokenizer,
    /// A conversation needs a chat template.
    #[error("the model has no chat template: give the prompt as text")]
    NoChatTemplate,
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The chat template failed.
    #[error(transparent)]
    ChatTemplate(#[from] ChatTemplateError),
    /// A sampling parameter is out of range.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// A token id is not in the vocabulary.
    #[error("token {token} at position {position} is not below the vocabulary size {vocab}")]
    TokenOutOfRange {
        /// The token id.
        token: u32,
        /// Where it stands in the prompt.
        position: usize,
        /// The model's vocabulary size.
        vocab: usize,
    },
    /// The prompt has no tokens.
    #[error("the prompt is empty: give at least one token")]
    EmptyPrompt,
    /// Prompt and new tokens are longer than the context.
    #[error(
        "the prompt has {prompt} tokens and {new} new ones were asked for, \
         but the context holds {context}: shorten one of them"
    )]
    TooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// New tokens asked for.
        new: usize,
        /// Positions of the context.
        context: usize,
    },
    /// A stop text is empty.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// No completion was asked for.
    #[error("n is 0: ask for at least one completion")]
    NoCompletion,
    /// The scheduler refused it.
    #[error(transparent)]
    Scheduler(#[from] engine_sched::SubmitError),
    /// The engine's thread is gone.
    #[error("the engine has stopped: load it again")]
    EngineStopped,
}

/// Why a request that had been accepted did not finish.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// The step that computed it failed.
    #[error(transparent)]
    Execute(#[from] ExecuteError),
    /// The model gave logits from which nothing can be chosen.
    #[error("no token could be chosen: {message}")]
    Sampling {
        /// What was wrong with the logits.
        message: String,
    },
    /// A token has no text.
    #[error("the tokens have no text: {message}")]
    Text {
        /// What the tokenizer said.
        message: String,
    },
    /// The engine's thread is gone.
    #[error("the engine has stopped: load it again")]
    EngineStopped,
}
