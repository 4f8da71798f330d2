use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::{task::Poll, time::Duration};

use crate::engine::Command;
use crate::step::RequestId;
use crate::{Choice, Completion, Event, FinishReason, GenerateError, Usage};

/// A running request: an iterator over its events. Dropping it cancels the request.
///
/// ```
/// use engine::{Engine, Event, Request};
/// # let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/models/stories260K");
/// let engine = Engine::builder(model).device(engine::Device::Cpu).load()?;
/// let mut text = String::new();
/// for event in engine.submit(Request::text("Once upon a time").max_tokens(8))? {
///     match event? {
///         Event::Token { text: piece, .. } | Event::Finished { text: piece, .. } => text += &piece,
///         _ => {}
///     }
/// }
/// assert_eq!(text, ", there was a little girl");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Generation {
    pub(crate) id: RequestId,
    pub(crate) events: Receiver<Result<Event, GenerateError>>,
    pub(crate) commands: Sender<Command>,
    pub(crate) done: bool,
}

impl Generation {
    /// Waits for the next event, but no longer than `timeout`: for callers that must also look
    /// elsewhere, as for a key that stops the reply.
    pub fn poll_next(&mut self, timeout: Duration) -> Poll<Option<Result<Event, GenerateError>>> {
        if self.done {
            return Poll::Ready(None);
        }
        match self.events.recv_timeout(timeout) {
            Ok(event) => Poll::Ready(Some(self.pass_on(event))),
            Err(RecvTimeoutError::Timeout) => Poll::Pending,
            Err(RecvTimeoutError::Disconnected) => {
                Poll::Ready(Some(self.pass_on(Err(GenerateError::EngineStopped))))
            }
        }
    }

    fn pass_on(&mut self, event: Result<Event, GenerateError>) -> Result<Event, GenerateError> {
        self.done = matches!(event, Ok(Event::Done(_)) | Err(_));
        event
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// If the request failed.
    pub fn wait(mut self) -> Result<Completion, GenerateError> {
        let mut builder = CompletionBuilder::default();
        for event in &mut self {
            builder.push(event?);
        }
        Ok(builder.completion)
    }
}

impl Iterator for Generation {
    type Item = Result<Event, GenerateError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let event = self.events.recv().unwrap_or(Err(GenerateError::EngineStopped));
        Some(self.pass_on(event))
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if !self.done {
            // An engine that is gone has cancelled everything already.
            let _ = self.commands.send(Command::Cancel(self.id));
        }
    }
}

/// Puts a request's events together.
struct CompletionBuilder {
    completion: Completion,
}

impl Default for CompletionBuilder {
    fn default() -> Self {
        let completion = Completion { choices: Vec::new(), prompt: None, usage: Usage::default() };
        Self { completion }
    }
}

impl CompletionBuilder {
    fn push(&mut self, event: Event) {
        match event {
            Event::Prompt(output) => self.completion.prompt = Some(output),
            Event::Token { index, token, text, logprobs } => {
                let choice = self.choice(index);
                choice.tokens.push(token);
                choice.text.push_str(&text);
                choice.logprobs.extend(logprobs);
            }
            Event::Finished { index, text, reason } => {
                let choice = self.choice(index);
                choice.text.push_str(&text);
                choice.finish_reason = reason;
            }
            Event::Done(usage) => self.completion.usage = usage,
        }
    }

    fn choice(&mut self, index: usize) -> &mut Choice {
        let choices = &mut self.completion.choices;
        if choices.len() <= index {
            choices.resize_with(index + 1, || Choice {
                text: String::new(),
                tokens: Vec::new(),
                logprobs: Vec::new(),
                finish_reason: FinishReason::Cancelled,
            });
        }
        &mut choices[index]
    }
}
