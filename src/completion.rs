//! The text side of one completion: tokens in, certain text out, stop conditions.

use crate::{Detokenizer, FinishReason, StopMatcher, StopStep, TokenizerError};

/// Turns a completion's tokens into text and watches for its end.
#[derive(Debug)]
pub(crate) struct CompletionText {
    /// `None` without a tokenizer: then there is no text.
    pub detokenizer: Option<Detokenizer>,
    pub stops: StopMatcher,
    pub include_stop: bool,
}

impl CompletionText {
    /// Takes a token into the text. A token that ends the completion leaves no text unless the
    /// request asked for it.
    pub fn push(&mut self, token: u32, ends: bool) -> Result<StopStep, TokenizerError> {
        match &mut self.detokenizer {
            Some(detokenizer) if !ends || self.include_stop => {
                Ok(self.stops.push(&detokenizer.push(token)?))
            }
            _ => Ok(StopStep::default()),
        }
    }

    /// Everything that was held back.
    pub fn finish(&mut self) -> Result<StopStep, TokenizerError> {
        let Some(detokenizer) = &mut self.detokenizer else { return Ok(StopStep::default()) };
        let mut step = self.stops.push(&detokenizer.finish()?);
        if step.matched.is_none() {
            step.text.push_str(&self.stops.finish());
        }
        Ok(step)
    }
}

impl From<engine_sched::FinishReason> for FinishReason {
    fn from(reason: engine_sched::FinishReason) -> Self {
        use engine_sched::FinishReason as Scheduled;
        match reason {
            Scheduled::Length => Self::Length,
            Scheduled::StopToken(token) => Self::StopToken(token),
            Scheduled::DeadlinePassed => Self::TimedOut,
            _ => Self::Cancelled,
        }
    }
}
