use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use engine_sched::{Scheduler, SequenceId, SequenceRequest, Statistics};

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
    /// Which request and which of its completions a sequence is.
    pub(crate) owners: HashMap<SequenceId, (RequestId, usize)>,
    next_id: u64,
    pub(crate) started: Instant,
    statistics: Arc<Mutex<Statistics>>,
}

pub(crate) struct RequestState {
    /// The sequence of the first completion.
    pub sequence: SequenceId,
    pub request: Request,
    pub completions: Vec<CompletionState>,
    pub submitted: Duration,
    pub usage: Usage,
}

pub(crate) struct CompletionState {
    /// Known from the first token on.
    pub sequence: Option<SequenceId>,
    pub text: CompletionText,
    pub done: bool,
}

impl EngineCore {
    pub(crate) fn new(info: Arc<EngineInfo>, scheduler: Scheduler, executor: ModelExecutor) -> Self {
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
        let completions = (0..request.n)
            .map(|_| {
                let tokenizer = self.info.tokenizer.as_ref();
                let text = CompletionText {
                    detokenizer: tokenizer
                        .map(|tokenizer| Detokenizer::new(tokenizer, &prompt, true))
                        .transpose()?,
                    stops: StopMatcher::new(&request.stop, request.include_stop)?,
                    include_stop: request.include_stop,
                };
                Ok(CompletionState { sequence: None, text, done: false })
            })
            .collect::<Result<Vec<_>, SubmitError>>()?;
        let now = self.started.elapsed();
        let room = self.info.max_context - prompt.len();
        let sequence = self.scheduler.submit(SequenceRequest {
            prompt: prompt.clone(),
            // A report on the prompt alone still runs one token, which is not shown.
            max_tokens: request.max_tokens.unwrap_or(room).max(1),
            stop_tokens: self.info.stop_tokens(&request),
            priority: request.priority,
            deadline: request.timeout.map(|timeout| now + timeout),
            salt: request.cache_salt,
            prompt_logits: request.prompt_report != PromptReport::None,
            num_samples: request.n,
            ..SequenceRequest::default()
        })?;
        self.executor.add(sequence, &prompt, request.sampling.clone(), request.prompt_report);
        let id = RequestId(self.next_id);
        self.next_id += 1;
        self.owners.insert(sequence, (id, 0));
        let usage = Usage { prompt_tokens: prompt.len(), ..Usage::default() };
        let state = RequestState { sequence, request, completions, submitted: now, usage };
        self.requests.insert(id, state);
        Ok(id)
    }

    /// Ends a request at once and frees its blocks. Nothing more is reported of it.
    pub fn cancel(&mut self, id: RequestId) {
        if let Some(state) = self.requests.remove(&id) {
            self.scheduler.cancel(state.sequence);
            self.forget(state.sequence);
            for sequence in state.completions.iter().filter_map(|c| c.sequence) {
                self.scheduler.cancel(sequence);
                self.forget(sequence);
            }
        }
    }

    /// One step: schedule, pack, forward, sample, commit, emit.
    pub fn step(&mut self) -> Vec<RequestEvent> {
        let mut batch = self.scheduler.schedule(self.started.elapsed());
        let mut events = Vec::new();
        let early = std::mem::take(&mut batch.finished);
        self.adopt_children(&batch);
        match self.executor.execute(&batch) {
            Ok(sampled) => {
                let tokens: Vec<u32> =
                    sampled.iter().map(|s| s.as_ref().map_or(0, |s| s.token)).collect();
                let mut results: HashMap<_, _> =
                    batch.samples.iter().map(|slot| slot.sequence).zip(sampled).collect();
                let updates = self.scheduler.commit(batch, &tokens, self.started.elapsed());
                for update in early.into_iter().chain(updates) {
                    let sampled = results.remove(&update.sequence);
                    self.emit(update, sampled, &mut events);
                }
            }
            Err(error) => {
                let updates = self.scheduler.abort(batch, self.started.elapsed());
                for update in early.into_iter().chain(updates) {
                    self.fail(&update, &error, &mut events);
                }
            }
        }
        *self.statistics.lock().unwrap_or_else(PoisonError::into_inner) =
            self.scheduler.statistics();
        events
    }

    /// Gives sequences that the scheduler forked for a request's further completions their state.
    fn adopt_children(&mut self, batch: &engine_sched::ScheduledBatch) {
        for slot in &batch.samples {
            if self.owners.contains_key(&slot.sequence) {
                continue;
            }
            if let Some(&(id, _)) = self.owners.get(&slot.parent) {
                self.owners.insert(slot.sequence, (id, slot.sample_index));
                self.executor.fork(slot.parent, slot.sequence, slot.sample_index);
                let completion = self
                    .requests
                    .get_mut(&id)
                    .and_then(|state| state.completions.get_mut(slot.sample_index));
                if let Some(completion) = completion {
                    completion.sequence = Some(slot.sequence);
                }
            }
        }
    }

    pub(crate) fn forget(&mut self, sequence: SequenceId) {
        self.owners.remove(&sequence);
        self.executor.remove(sequence);
    }
}
