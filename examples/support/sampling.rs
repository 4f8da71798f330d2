//! Options that say how tokens are chosen.

use clap::Args;
use engine::{EngineInfo, SamplingParams};

/// How tokens are chosen. What is not given is the neutral value: greedy, nothing filtered.
#[derive(Debug, Clone, Args)]
pub struct SamplingOptions {
    /// 0 takes the most likely token; higher is more varied
    #[arg(long)]
    pub temperature: Option<f32>,
    /// Keep this many of the most likely tokens; 0 keeps all
    #[arg(long)]
    pub top_k: Option<usize>,
    /// Keep the most likely tokens up to this probability; 1 keeps all
    #[arg(long)]
    pub top_p: Option<f32>,
    /// Keep tokens at least this many times as likely as the likeliest; 0 keeps all
    #[arg(long)]
    pub min_p: Option<f32>,
    /// Above 1 discourages tokens that were seen before
    #[arg(long)]
    pub repetition_penalty: Option<f32>,
    /// Taken from the logit of each token that was generated before
    #[arg(long, allow_negative_numbers = true)]
    pub presence_penalty: Option<f32>,
    /// The same, for each time it was generated
    #[arg(long, allow_negative_numbers = true)]
    pub frequency_penalty: Option<f32>,
    /// Same seed, same text
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

impl SamplingOptions {
    /// These options over greedy choice, checked for this model.
    pub fn params(&self, info: &EngineInfo) -> Result<SamplingParams, engine::SamplingError> {
        self.over(SamplingParams::greedy(), info)
    }

    /// These options over `defaults`, checked for this model.
    pub fn over(
        &self,
        defaults: SamplingParams,
        info: &EngineInfo,
    ) -> Result<SamplingParams, engine::SamplingError> {
        let params = SamplingParams {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(defaults.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(defaults.frequency_penalty),
            seed: self.seed,
            ..defaults
        };
        params.validate(info.config.vocab_size)?;
        Ok(params)
    }
}
