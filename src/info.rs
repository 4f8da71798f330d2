use std::{path::PathBuf, time::Duration};

use engine_core::{
    GenerationConfig, LoadReport, ModelConfig, MultiplyAdds, sampling::SamplingParams,
};

use crate::{
    ChatOptions, ChatTemplate, MemoryPlan, Prompt, Request, Selected, SubmitError, Tokenizer,
};

/// What was loaded, where it runs and what that took.
#[derive(Debug)]
#[non_exhaustive]
pub struct EngineInfo {
    /// The model's directory or GGUF file, or the name of weights that come from no file.
    pub path: PathBuf,
    /// Its configuration.
    pub config: ModelConfig,
    /// Its own defaults of generation.
    pub generation: Option<GenerationConfig>,
    /// Its tokenizer; without one, prompts are token ids.
    pub tokenizer: Option<Tokenizer>,
    /// The device, and why.
    pub device: Selected,
    /// Threads of the CPU kernels.
    pub threads: usize,
    /// The arithmetic of its memory.
    pub memory: MemoryPlan,
    /// Bytes of the weights that each step reads: of an embedding that is not the head too it
    /// reads rows alone, which are not counted.
    pub step_weight_bytes: usize,
    /// Storage formats of the weights with their bytes.
    pub weight_formats: Vec<(String, usize)>,
    /// Arithmetic of one token in the layers' matrices, by format and activations.
    pub multiply_adds: Vec<MultiplyAdds>,
    /// What became of the file's matrices.
    pub load_report: LoadReport,
    /// Positions of the longest sequence.
    pub max_context: usize,
    /// How long loading took.
    pub load_time: Duration,
}

impl EngineInfo {
    /// The prompt's token ids, once everything about the request has been checked.
    pub(crate) fn prepare(&self, request: &Request) -> Result<Vec<u32>, SubmitError> {
        if request.n == 0 {
            return Err(SubmitError::NoCompletion);
        }
        if !request.stop.is_empty() && self.tokenizer.is_none() {
            return Err(SubmitError::NoTokenizer);
        }
        let vocab = self.config.vocab_size;
        request.sampling.validate(vocab)?;
        let prompt = self.encode(&request.prompt)?;
        if prompt.is_empty() {
            return Err(SubmitError::EmptyPrompt);
        }
        if let Some(position) = prompt.iter().position(|&token| token as usize >= vocab) {
            let token = prompt[position];
            return Err(SubmitError::TokenOutOfRange { token, position, vocab });
        }
        let new = request.max_tokens.unwrap_or(1);
        if prompt.len().saturating_add(new) > self.max_context {
            let context = self.max_context;
            return Err(SubmitError::TooLong { prompt: prompt.len(), new, context });
        }
        Ok(prompt)
    }

    fn encode(&self, prompt: &Prompt) -> Result<Vec<u32>, SubmitError> {
        let tokenizer = || self.tokenizer.as_ref().ok_or(SubmitError::NoTokenizer);
        match prompt {
            Prompt::Tokens(ids) => Ok(ids.clone()),
            Prompt::Text(text) => Ok(tokenizer()?.encode(text, true)?),
            Prompt::Chat(messages) => {
                let template = self.chat_template().ok_or(SubmitError::NoChatTemplate)?;
                let text = template.render(messages, &ChatOptions::default())?;
                // The template has written the special tokens itself.
                Ok(tokenizer()?.encode(&text, false)?)
            }
        }
    }

    /// The tokens that end a completion of this request.
    pub(crate) fn stop_tokens(&self, request: &Request) -> Vec<u32> {
        let mut tokens = request.stop_tokens.clone();
        if !request.ignore_eos {
            tokens.extend(self.eos_token_ids());
        }
        tokens
    }

    /// The model's end-of-sequence tokens: `generation_config.json`'s, else `config.json`'s.
    pub fn eos_token_ids(&self) -> &[u32] {
        self.config.stop_token_ids(self.generation.as_ref())
    }

    /// The model's chat template, if it has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.tokenizer.as_ref()?.chat_template().ok()?
    }

    /// The sampling that the model's authors recommend in `generation_config.json`; greedy if none.
    pub fn default_sampling(&self) -> SamplingParams {
        let neutral = SamplingParams::default();
        let Some(given) = &self.generation else {
            return SamplingParams { temperature: 0.0, ..neutral };
        };
        let samples = given.do_sample.unwrap_or(given.temperature.is_some());
        SamplingParams {
            temperature: if samples { given.temperature.unwrap_or(1.0) } else { 0.0 },
            top_k: given.top_k.unwrap_or(neutral.top_k),
            top_p: given.top_p.unwrap_or(neutral.top_p),
            min_p: given.min_p.unwrap_or(neutral.min_p),
            repetition_penalty: given.repetition_penalty.unwrap_or(neutral.repetition_penalty),
            ..neutral
        }
    }
}
