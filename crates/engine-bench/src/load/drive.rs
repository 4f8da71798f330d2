//! One run: requests in on time, steps while there is work, a time for every token.

use std::{
    collections::HashMap,
    thread,
    time::{Duration, Instant},
};

use engine::{EngineCore, Event, Request, Statistics, SubmitError};

use super::arrivals::LoadRequest;
use crate::BenchError;

/// What became of one request; times are from the start of the run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Timeline {
    pub arrival: Duration,
    pub prompt_len: usize,
    /// When each of its tokens came.
    pub tokens: Vec<Duration>,
    pub completed: bool,
    /// The queue was full.
    pub refused: bool,
}

/// What a run showed.
pub(crate) struct Observed {
    pub timelines: Vec<Timeline>,
    pub duration: Duration,
    /// The scheduler's statistics before and after.
    pub statistics: (Statistics, Statistics),
}

/// Runs `requests`, sorted by arrival. They share cached prefixes with nothing but each other:
/// `salt` must be new.
pub(crate) fn drive(
    core: &mut EngineCore,
    requests: &[LoadRequest],
    salt: u64,
    progress: &mut dyn FnMut(usize),
) -> Result<Observed, BenchError> {
    let before = core.statistics();
    let mut timelines: Vec<_> = requests
        .iter()
        .map(|request| Timeline {
            arrival: request.arrival,
            prompt_len: request.prompt.len(),
            ..Timeline::default()
        })
        .collect();
    let mut waiting = requests.iter().enumerate().peekable();
    let mut owners = HashMap::new();
    let mut ended = 0;
    let start = Instant::now();
    loop {
        let now = start.elapsed();
        while let Some((i, request)) = waiting.next_if(|(_, request)| request.arrival <= now) {
            match core.submit(engine_request(request, salt)) {
                Ok(id) => _ = owners.insert(id, i),
                Err(SubmitError::Scheduler(engine_sched::SubmitError::QueueFull { .. })) => {
                    timelines[i].refused = true;
                    ended += 1;
                }
                Err(error) => return Err(error.into()),
            }
        }
        if core.has_work() {
            let events = core.step();
            let now = start.elapsed();
            for (id, event) in events {
                let event = event?;
                let Some(timeline) = owners.get(&id).and_then(|&i| timelines.get_mut(i)) else {
                    continue;
                };
                match event {
                    Event::Token { .. } => timeline.tokens.push(now),
                    Event::Done(_) => {
                        timeline.completed = true;
                        owners.remove(&id);
                        ended += 1;
                    }
                    _ => {}
                }
            }
            progress(ended);
        } else if let Some((_, next)) = waiting.peek() {
            thread::sleep(next.arrival.saturating_sub(start.elapsed()));
        } else {
            break;
        }
    }
    let statistics = (before, core.statistics());
    Ok(Observed { timelines, duration: start.elapsed(), statistics })
}

fn engine_request(request: &LoadRequest, salt: u64) -> Request {
    let tokens = Request::tokens(request.prompt.clone()).max_tokens(request.output_len);
    Request { cache_salt: salt, ..tokens.ignore_eos() }
}
