use super::SamplingError;

/// The smallest temperature other than zero: below it the division overflows for large logits.
pub const MIN_TEMPERATURE: f32 = 1e-5;

/// How a request chooses its tokens.
///
/// The default draws from exactly the distribution that the model states: temperature 1 and nothing
/// else. Llama-family chat models are usually run a little cooler, for example with temperature 0.7
/// and `top_p` 0.9; `temperature: 0.0` is greedy decoding. The order in which the fields act is
/// described at [`sampling`](super).
///
/// ```
/// use engine_core::sampling::SamplingParams;
///
/// let params = SamplingParams::default().with_temperature(0.7).with_top_p(0.9).with_seed(42);
/// params.validate(32_000)?;
/// assert!(!params.on_device());
///
/// let error = params.with_top_p(1.5).validate(32_000).unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "sampling parameter `top_p` is 1.5: it must be more than 0 and at most 1 (1 is off)"
/// );
/// # Ok::<(), engine_core::sampling::SamplingError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Logits are divided by it before a token is drawn; 0 takes the largest. Default 1.
    pub temperature: f32,
    /// Keep this many of the largest logits, and those equal to the last of them; 0 (the default)
    /// keeps all.
    pub top_k: usize,
    /// Keep the most probable tokens up to the first at which their probabilities sum to this
    /// much; 1 (the default) keeps all.
    pub top_p: f32,
    /// Keep tokens at least this many times as probable as the most probable one; 0 (the default)
    /// keeps all.
    pub min_p: f32,
    /// Positive logits of tokens in the prompt or generated are divided by it, others multiplied;
    /// above 1 discourages, below 1 encourages. Default 1.
    pub repetition_penalty: f32,
    /// Taken once from the logit of each token generated so far. Default 0.
    pub presence_penalty: f32,
    /// Taken from a token's logit as many times as it was generated. Default 0.
    pub frequency_penalty: f32,
    /// Numbers added to the logits of tokens; minus infinity bans a token. Several for one token add
    /// up.
    pub logit_bias: Vec<(u32, f32)>,
    /// Key of the random numbers. The same seed, position and logits give the same token, whatever
    /// else runs; a caller that wants a different text each time chooses a different seed each
    /// time. Default 0.
    pub seed: u64,
    /// Report the log probability of each chosen token, and this many of the most probable ones.
    /// Default `None`.
    pub logprobs: Option<usize>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            logprobs: None,
        }
    }
}

impl SamplingParams {
    /// Always the largest logit: temperature 0.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Sets [`temperature`](Self::temperature).
    pub fn with_temperature(mut self, temperature: f32) -> Self {
        self.temperature = temperature;
        self
    }

    /// Sets [`top_k`](Self::top_k).
    pub fn with_top_k(mut self, top_k: usize) -> Self {
        self.top_k = top_k;
        self
    }

    /// Sets [`top_p`](Self::top_p).
    pub fn with_top_p(mut self, top_p: f32) -> Self {
        self.top_p = top_p;
        self
    }

    /// Sets [`min_p`](Self::min_p).
    pub fn with_min_p(mut self, min_p: f32) -> Self {
        self.min_p = min_p;
        self
    }

    /// Sets [`repetition_penalty`](Self::repetition_penalty).
    pub fn with_repetition_penalty(mut self, penalty: f32) -> Self {
        self.repetition_penalty = penalty;
        self
    }

    /// Sets [`presence_penalty`](Self::presence_penalty).
    pub fn with_presence_penalty(mut self, penalty: f32) -> Self {
        self.presence_penalty = penalty;
        self
    }

    /// Sets [`frequency_penalty`](Self::frequency_penalty).
    pub fn with_frequency_penalty(mut self, penalty: f32) -> Self {
        self.frequency_penalty = penalty;
        self
    }

    /// Adds `bias` to [`logit_bias`](Self::logit_bias) for `token`.
    pub fn with_logit_bias(mut self, token: u32, bias: f32) -> Self {
        self.logit_bias.push((token, bias));
        self
    }

    /// Sets [`seed`](Self::seed).
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets [`logprobs`](Self::logprobs) to report `num_top` of the most probable tokens.
    pub fn with_logprobs(mut self, num_top: usize) -> Self {
        self.logprobs = Some(num_top);
        self
    }

    /// Checks every field against its range for a vocabulary of `vocab` tokens.
    pub fn validate(&self, vocab: usize) -> Result<(), SamplingError> {
        let temperature = self.temperature;
        check(
            "temperature",
            temperature,
            temperature == 0.0 || (MIN_TEMPERATURE..=f32::MAX).contains(&temperature),
            "0 (greedy) or a finite number of at least 0.00001",
        )?;
        check(
            "top_p",
            self.top_p,
            self.top_p > 0.0 && self.top_p <= 1.0,
            "more than 0 and at most 1 (1 is off)",
        )?;
        let min_p_valid = (0.0..=1.0).contains(&self.min_p);
        check("min_p", self.min_p, min_p_valid, "between 0 (off) and 1")?;
        check(
            "repetition_penalty",
            self.repetition_penalty,
            self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite(),
            "finite and more than 0 (1 is off)",
        )?;
        for (field, value) in [
            ("presence_penalty", self.presence_penalty),
            ("frequency_penalty", self.frequency_penalty),
        ] {
            check(field, value, (-2.0..=2.0).contains(&value), "between -2 and 2 (0 is off)")?;
        }
        self.validate_tokens(vocab)
    }

    fn validate_tokens(&self, vocab: usize) -> Result<(), SamplingError> {
        for &(token, bias) in &self.logit_bias {
            if token as usize >= vocab {
                return Err(SamplingError::InvalidParameter {
                    field: "logit_bias",
                    value: format!("{bias} for token {token}"),
                    allowed: format!(
                        "for a token of the vocabulary, ids 0 to {}",
                        vocab.saturating_sub(1)
                    ),
                });
            }
            if !(bias.is_finite() || bias == f32::NEG_INFINITY) {
                return Err(SamplingError::InvalidParameter {
                    field: "logit_bias",
                    value: format!("{bias} for token {token}"),
                    allowed: "finite, or minus infinity to ban the token".to_string(),
                });
            }
        }
        match self.logprobs {
            Some(num_top) if num_top > vocab => Err(SamplingError::InvalidParameter {
                field: "logprobs",
                value: num_top.to_string(),
                allowed: format!("at most the size of the vocabulary, {vocab}"),
            }),
            _ => Ok(()),
        }
    }

    /// Whether [`ops::sample::choose_tokens`](crate::ops::sample::choose_tokens) may choose the
    /// tokens: there is a temperature or greed and nothing else.
    pub fn on_device(&self) -> bool {
        !self.has_filters() && !self.changes_logits() && self.logprobs.is_none()
    }

    /// Whether a draw leaves tokens out. Greedy choice is never changed by that.
    pub(super) fn has_filters(&self) -> bool {
        self.temperature != 0.0 && (self.top_k > 0 || self.top_p < 1.0 || self.min_p > 0.0)
    }

    /// Whether the history can change a logit.
    pub(super) fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
    }

    fn changes_logits(&self) -> bool {
        self.has_penalties() || self.logit_bias.iter().any(|&(_, bias)| bias != 0.0)
    }
}

fn check(
    field: &'static str,
    value: f32,
    valid: bool,
    allowed: &'static str,
) -> Result<(), SamplingError> {
    if valid {
        return Ok(());
    }
    Err(SamplingError::InvalidParameter {
        field,
        value: value.to_string(),
        allowed: allowed.to_string(),
    })
}
