use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, Sender},
    },
    thread::JoinHandle,
};

use engine_core::{ModelConfig, WeightSource};
use engine_sched::Statistics;
use thiserror::Error;

use crate::step::{EngineCore, RequestId};
use crate::{
    Completion, EngineBuilder, EngineError, EngineInfo, Event, GenerateError, Generation, Request,
    SubmitError,
};
use std::collections::HashMap;

/// A language model, loaded and ready, on a thread of its own.
///
/// Clones are handles of the same engine and may go to any thread; the engine ends with the last.
///
/// ```
/// use engine::{Device, Engine, Request};
/// # let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/models/stories260K");
/// let engine = Engine::builder(model).device(Device::Cpu).load()?;
/// let completion = engine.generate(Request::text("Once upon a time").max_tokens(20))?;
/// println!("{}", completion.text());
/// # assert!(completion.text().starts_with(", there was a little girl"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    commands: Sender<Command>,
    info: Arc<EngineInfo>,
    statistics: Arc<Mutex<Statistics>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

type EventSender = Sender<Result<Event, GenerateError>>;

/// What handles ask of the engine's thread.
#[derive(Debug)]
pub(crate) enum Command {
    Submit {
        request: Box<Request>,
        prompt: Vec<u32>,
        events: EventSender,
        reply: Sender<Result<RequestId, SubmitError>>,
    },
    Cancel(RequestId),
    Shutdown,
}

/// Why [`Engine::generate`] gave nothing.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RunError {
    /// The request was not accepted.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// The request did not finish.
    #[error(transparent)]
    Generate(#[from] GenerateError),
}

impl Engine {
    /// Starts describing an engine: a model directory, a GGUF file, or a Hub id such as
    /// `TinyLlama/TinyLlama-1.1B-Chat-v1.0`.
    pub fn builder(model: impl Into<String>) -> EngineBuilder {
        EngineBuilder::named(model.into())
    }

    /// Starts describing an engine whose weights come from `weights` and not from a file: made up,
    /// received, or read from a format of one's own. There is no tokenizer, so prompts are token
    /// ids; `name` is what reports call the model.
    ///
    /// ```
    /// # let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/models/stories260K");
    /// use engine::{Checkpoint, Engine, ModelConfig, Request};
    /// let (config, weights) = (ModelConfig::load(model)?, Checkpoint::open(model)?);
    /// let engine = Engine::from_source("stories", config, weights).load()?;
    /// let completion = engine.generate(Request::tokens(vec![1, 403, 407]).max_tokens(4))?;
    /// assert_eq!(completion.tokens().len(), 4);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn from_source(
        name: impl Into<String>,
        config: ModelConfig,
        weights: impl WeightSource + Send + 'static,
    ) -> EngineBuilder {
        EngineBuilder::of_source(name.into(), config, Box::new(weights))
    }

    pub(crate) fn spawn(core: EngineCore) -> Result<Self, EngineError> {
        let (commands, receiver) = mpsc::channel();
        let (info, statistics) = (core.info().clone(), core.shared_statistics());
        let thread = std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || run(core, &receiver))
            .map_err(EngineError::Thread)?;
        let thread = Mutex::new(Some(thread));
        Ok(Self { shared: Arc::new(Shared { commands, info, statistics, thread }) })
    }

    /// Takes a request in and returns its events as they come.
    ///
    /// # Errors
    /// If the request can never run, or the queue is full.
    pub fn submit(&self, request: Request) -> Result<Generation, SubmitError> {
        let prompt = self.shared.info.prepare(&request)?;
        let (events, receiver) = mpsc::channel();
        let (reply, answer) = mpsc::channel();
        let command = Command::Submit { request: Box::new(request), prompt, events, reply };
        self.shared.commands.send(command).map_err(|_| SubmitError::EngineStopped)?;
        let id = answer.recv().map_err(|_| SubmitError::EngineStopped)??;
        let commands = self.shared.commands.clone();
        Ok(Generation { id, events: receiver, commands, done: false })
    }

    /// Runs a request to its end. Many threads may do so at once; their requests share the steps.
    ///
    /// # Errors
    /// If the request is refused or fails.
    pub fn generate(&self, request: Request) -> Result<Completion, RunError> {
        Ok(self.submit(request)?.wait()?)
    }

    /// What was loaded, and where.
    pub fn info(&self) -> &EngineInfo {
        &self.shared.info
    }

    /// Counters and times, as of the last step.
    pub fn statistics(&self) -> Statistics {
        self.shared.statistics.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("info", &self.shared.info).finish_non_exhaustive()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Either fails only if the thread is gone already.
        let _ = self.commands.send(Command::Shutdown);
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let _ = thread.map(JoinHandle::join);
    }
}

/// The engine's thread: commands between steps, steps while there is work.
fn run(mut core: EngineCore, commands: &Receiver<Command>) {
    let mut listeners: HashMap<RequestId, EventSender> = HashMap::new();
    loop {
        let waiting = if core.has_work() { None } else { commands.recv().ok() };
        if waiting.is_none() && !core.has_work() {
            return;
        }
        for command in waiting.into_iter().chain(commands.try_iter()) {
            match command {
                Command::Submit { request, prompt, events, reply } => {
                    let id = core.submit_prepared(*request, prompt);
                    if let Ok(id) = id {
                        listeners.insert(id, events);
                    }
                    // A caller that has gone away cancels by dropping its generation.
                    let _ = reply.send(id);
                }
                Command::Cancel(id) => {
                    listeners.remove(&id);
                    core.cancel(id);
                }
                Command::Shutdown => return,
            }
        }
        if core.has_work() {
            deliver(&mut core, &mut listeners);
        }
    }
}

/// One step, its events sent to whom they concern.
fn deliver(core: &mut EngineCore, listeners: &mut HashMap<RequestId, EventSender>) {
    for (id, event) in core.step() {
        let last = matches!(event, Ok(Event::Done(_)) | Err(_));
        let gone = listeners.get(&id).is_none_or(|listener| listener.send(event).is_err());
        if gone {
            core.cancel(id);
        }
        if gone || last {
            listeners.remove(&id);
        }
    }
}
