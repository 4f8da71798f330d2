//! From what became of sequences to what requests hear of it.

use engine_core::sampling::{Sampled, SamplingError};
use engine_sched::SequenceUpdate;

use crate::step::{EngineCore, RequestEvent, RequestId};
use crate::{Event, ExecuteError, FinishReason, GenerateError, PromptReport, TokenizerError};

impl EngineCore {
    /// Turns one sequence's update into events of its request.
    pub(crate) fn emit(&mut self, update: &SequenceUpdate, events: &mut Vec<RequestEvent>) {
        let Some(&id) = self.owners.get(&update.parent) else { return };
        let sampled = match self.executor.take_chosen(update.sequence).transpose() {
            Ok(sampled) => sampled,
            Err(error) => return self.fail_choice(id, &error, events),
        };
        self.report_prompt(id, update, events);
        let stopped = self.emit_token(id, update, sampled, events);
        let reason = match (stopped, update.finish) {
            (Some(text), finish) => {
                if finish.is_none() {
                    self.scheduler.cancel(update.sequence);
                }
                Some(FinishReason::StopText(text))
            }
            (None, finish) => finish.map(FinishReason::from),
        };
        if let Some(reason) = reason {
            self.finish(id, update.sample_index, reason, events);
        }
    }

    /// Ends the request of a sequence whose step failed.
    pub(crate) fn fail(
        &mut self,
        update: &SequenceUpdate,
        error: &ExecuteError,
        events: &mut Vec<RequestEvent>,
    ) {
        if let Some(&id) = self.owners.get(&update.parent) {
            events.push((id, Err(error.clone().into())));
            self.cancel(id);
        }
    }

    fn fail_choice(
        &mut self,
        id: RequestId,
        error: &SamplingError,
        events: &mut Vec<RequestEvent>,
    ) {
        events.push((id, Err(GenerateError::Sampling { message: error.to_string() })));
        self.cancel(id);
    }

    fn fail_text(&mut self, id: RequestId, error: &TokenizerError, events: &mut Vec<RequestEvent>) {
        events.push((id, Err(GenerateError::Text { message: error.to_string() })));
        self.cancel(id);
    }

    /// Before the first token: what was asked of the prompt.
    fn report_prompt(
        &mut self,
        id: RequestId,
        update: &SequenceUpdate,
        events: &mut Vec<RequestEvent>,
    ) {
        // What timed out or was cancelled has no complete report.
        if update.token.is_none() && update.finish != Some(engine_sched::FinishReason::Length) {
            return;
        }
        let now = self.started.elapsed();
        let Some(state) = self.requests.get_mut(&id) else { return };
        if state.usage.completion_tokens > 0 {
            return;
        }
        state.usage.time_to_first_token = now.saturating_sub(state.submitted);
        state.usage.cached_tokens = update.cached_prompt_tokens;
        if state.request.prompt_report != PromptReport::None {
            match self.executor.take_prompt(state.sequence) {
                Some(Ok(prompt)) => events.push((id, Ok(Event::Prompt(prompt)))),
                Some(Err(error)) => self.fail_choice(id, &error, events),
                None => {}
            }
        }
    }

    /// Emits a token with its text; returns the stop text that it completed.
    fn emit_token(
        &mut self,
        id: RequestId,
        update: &SequenceUpdate,
        sampled: Option<Sampled>,
        events: &mut Vec<RequestEvent>,
    ) -> Option<String> {
        let state = self.requests.get_mut(&id)?;
        let (token, index) = (update.token?, update.sample_index);
        state.usage.completion_tokens += 1;
        let ends = matches!(update.finish, Some(engine_sched::FinishReason::StopToken(_)));
        let step = match state.completions.get_mut(index)?.text.push(token, ends) {
            Ok(step) => step,
            Err(error) => {
                self.fail_text(id, &error, events);
                return None;
            }
        };
        let logprobs = sampled.and_then(|sampled| sampled.logprobs);
        events.push((id, Ok(Event::Token { index, token, text: step.text, logprobs })));
        step.matched
    }

    /// Ends one completion, and the request with the last of them.
    fn finish(
        &mut self,
        id: RequestId,
        index: usize,
        reason: FinishReason,
        events: &mut Vec<RequestEvent>,
    ) {
        let Some(state) = self.requests.get_mut(&id) else { return };
        let Some(completion) = state.completions.get_mut(index) else { return };
        if std::mem::replace(&mut completion.done, true) {
            return;
        }
        let held_back = match completion.text.finish() {
            Ok(step) => step,
            Err(error) => return self.fail_text(id, &error, events),
        };
        let reason = held_back.matched.map_or(reason, FinishReason::StopText);
        events.push((id, Ok(Event::Finished { index, text: held_back.text, reason })));
        if state.completions.iter().all(|completion| completion.done) {
            let mut usage = state.usage;
            usage.total_time = self.started.elapsed().saturating_sub(state.submitted);
            events.push((id, Ok(Event::Done(usage))));
            self.cancel(id);
        }
    }
}
