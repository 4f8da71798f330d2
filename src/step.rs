use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use engine_sched::{Executor, ScheduledBatch, Scheduler, SequenceId, SequenceRequest, Statistics};

use crate::{
    Detokenizer, EngineInfo, Event, GenerateError, PromptReport, Request, StopMatcher, SubmitError,
    Usage, completion::CompletionText, execute::ModelExecutor,
};

/// Names a request of an [`EngineCore`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(u64);

/// What happened to which request.
pub type RequestEvent = (RequestId, Result<Event, GenerateError>);

/// The engine without a thread: the caller drives it, one [`EngineCore::step`] after the other.
///
/// [`crate::Engine`] is the same on a thread of its own.
///
/// ```
/// use engine::{Engine, Event, Request};
/// # let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/models/stories260K");
/// let mut core = Engine::builder(model).device(engine::Device::Cpu).load_core()?;
/// let id = core.submit(Request::text("Once upon a time").max_tokens(3))?;
/// let mut tokens = 0;
/// while core.has_work() {
///     for (request, event) in core.step() {
///         assert_eq!(request, id);
///         tokens += usize::from(matches!(event?, Event::Token { .. }));
///     }
/// }
/// assert_eq!(tokens, 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct EngineCore {
    info: Arc<EngineInfo>,
    pub(crate) scheduler: Scheduler,
    pub(crate) executor: ModelExecutor,
    pub(crate) requests: HashMap<RequestId, RequestState>,
    /// Which request a submitted sequence is.
    pub(crate) owners: HashMap<SequenceId, RequestId>,
    next_id: u64,
    pub(crate) started: Instant,
    statistics: Arc<Mutex<Statistics>>,
}

pub(crate) struct RequestState {
    /// What the scheduler knows it by.
    pub sequence: SequenceId,
    pub request: Request,
    pub completions: Vec<CompletionState>,
    pub submitted: Duration,
    pub usage: Usage,
}

pub(crate) struct CompletionState {
    /// The request's own until it forks.
    pub sequence: SequenceId,
    pub text: CompletionText,
    pub done: bool,
}

impl EngineCore {
    pub(crate) fn new(
        info: Arc<EngineInfo>,
        scheduler: Scheduler,
        executor: ModelExecutor,
    ) -> Self {
        let statistics = Arc::new(Mutex::new(scheduler.statistics()));
        Self {
            info,
            scheduler,
            executor,
            requests: HashMap::new(),
            owners: HashMap::new(),
            next_id: 0,
            started: Instant::now(),
            statistics,
        }
    }

    /// What was loaded.
    pub fn info(&self) -> &Arc<EngineInfo> {
        &self.info
    }

    /// The scheduler's statistics after the last step.
    pub fn statistics(&self) -> Statistics {
        self.scheduler.statistics()
    }

    pub(crate) fn shared_statistics(&self) -> Arc<Mutex<Statistics>> {
        self.statistics.clone()
    }

    /// Whether a request is waiting or running.
    pub fn has_work(&self) -> bool {
        self.scheduler.has_work()
    }

    /// Takes a request in.
    ///
    /// # Errors
    /// If it can never run, or the queue is full.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, SubmitError> {
        let prompt = self.info.prepare(&request)?;
        self.submit_prepared(request, prompt)
    }

    /// [`EngineCore::submit`] of a request that [`EngineInfo::prepare`] has checked.
    pub(crate) fn submit_prepared(
        &mut self,
        request: Request,
        prompt: Vec<u32>,
    ) -> Result<RequestId, SubmitError> {
        let max_sequences = self.scheduler.config().max_sequences;
        if request.n > max_sequences {
            let num_samples = request.n;
            let refusal = engine_sched::SubmitError::TooManySamples { num_samples, max_sequences };
            return Err(refusal.into());
        }
        let texts = (0..request.n)
            .map(|_| self.completion_text(&request, &prompt))
            .collect::<Result<Vec<_>, SubmitError>>()?;
        let now = self.started.elapsed();
        let room = self.info.max_context - prompt.len();
        let sequence = self.scheduler.submit(SequenceRequest {
            max_tokens: request.max_tokens.unwrap_or(room),
            stop_tokens: self.info.stop_tokens(&request),
            priority: request.priority,
            deadline: request.timeout.map(|timeout| now.saturating_add(timeout)),
            salt: request.cache_salt,
            prompt_logits: request.prompt_report != PromptReport::None,
            num_samples: request.n,
            arrival: Some(now),
            ..SequenceRequest::new(prompt.clone())
        })?;
        self.executor.add(sequence, &prompt, request.sampling.clone(), request.prompt_report);
        let completions =
            texts.into_iter().map(|text| CompletionState { sequence, text, done: false }).collect();
        let id = RequestId(self.next_id);
        self.next_id += 1;
        self.owners.insert(sequence, id);
        let usage = Usage { prompt_tokens: prompt.len(), ..Usage::default() };
        let state = RequestState { sequence, request, completions, submitted: now, usage };
        self.requests.insert(id, state);
        Ok(id)
    }

    fn completion_text(
        &self,
        request: &Request,
        prompt: &[u32],
    ) -> Result<CompletionText, SubmitError> {
        let start = |tokenizer| Detokenizer::new(tokenizer, prompt, true);
        Ok(CompletionText {
            detokenizer: self.info.tokenizer.as_ref().map(start).transpose()?,
            stops: StopMatcher::new(&request.stop, request.include_stop)?,
            include_stop: request.include_stop,
        })
    }

    /// Ends a request at once and frees its blocks. Nothing more is reported of it.
    pub fn cancel(&mut self, id: RequestId) {
        let Some(state) = self.requests.remove(&id) else { return };
        self.owners.remove(&state.sequence);
        let forked = state.completions.iter().map(|completion| completion.sequence);
        for sequence in forked.chain([state.sequence]) {
            self.scheduler.cancel(sequence);
            self.executor.remove(sequence);
        }
    }

    /// One step: schedule, pack, forward, sample, commit, emit.
    pub fn step(&mut self) -> Vec<RequestEvent> {
        let mut events = Vec::new();
        let mut batch = self.scheduler.schedule(self.started.elapsed());
        for update in std::mem::take(&mut batch.finished) {
            self.emit(&update, &mut events);
        }
        self.adopt_children(&batch);
        match self.executor.execute(&batch) {
            Ok(tokens) => {
                for update in self.scheduler.commit(batch, &tokens, self.started.elapsed()) {
                    self.emit(&update, &mut events);
                }
            }
            Err(error) => {
                for update in self.scheduler.abort(batch, self.started.elapsed()) {
                    self.fail(&update, &error, &mut events);
                }
            }
        }
        *self.statistics.lock().unwrap_or_else(PoisonError::into_inner) =
            self.scheduler.statistics();
        events
    }

    /// Gives the sequences that a request forked into a copy of its sampling state.
    fn adopt_children(&mut self, batch: &ScheduledBatch) {
        for slot in batch.samples.iter().filter(|slot| slot.sequence != slot.parent) {
            let Some(&id) = self.owners.get(&slot.parent) else { continue };
            let Some(state) = self.requests.get_mut(&id) else { continue };
            let Some(completion) = state.completions.get_mut(slot.sample_index) else { continue };
            if completion.sequence != slot.sequence {
                completion.sequence = slot.sequence;
                self.executor.fork(slot.parent, slot.sequence, slot.sample_index);
            }
        }
    }
}
