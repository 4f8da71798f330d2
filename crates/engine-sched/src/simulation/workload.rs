use std::io::{BufRead, Write};
use std::ops::Range;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::SimulationRng;
use super::rng::mix;
use crate::{SequenceRequest, TokenId};

/// Tokens of made-up prompts are below this.
const VOCAB: u64 = 32_000;

/// Seeded arrivals: what to draw requests from.
///
/// ```
/// use engine_sched::simulation::Workload;
/// let workload = Workload { num_requests: 3, ..Workload::default() };
/// assert_eq!(workload.generate(7), workload.generate(7));
/// assert_ne!(workload.generate(7), workload.generate(8));
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    /// Requests to make.
    pub num_requests: usize,
    /// Mean arrivals per second; the gaps are exponential.
    pub arrival_rate: f64,
    /// Prompt lengths, uniform.
    pub prompt_len: Range<usize>,
    /// `max_tokens`, uniform.
    pub output_len: Range<usize>,
    /// Shared prefixes to choose from; 0 for none.
    pub num_prefixes: usize,
    /// Lengths of the shared prefix in a prompt, uniform, cut to the prompt.
    pub prefix_len: Range<usize>,
    /// Samples per request, uniform.
    pub num_samples: Range<usize>,
    /// Priorities from 0, uniform.
    pub num_priorities: usize,
    /// Part of the requests with a deadline.
    pub deadlines: f64,
    /// Time from arrival to a deadline, at most.
    pub longest_deadline: Duration,
    /// Part of the requests that want the prompt's logits.
    pub prompt_logits: f64,
    /// Part of the requests that stop at some token below 8.
    pub stop_tokens: f64,
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            num_requests: 100,
            arrival_rate: 50.0,
            prompt_len: 1..64,
            output_len: 1..32,
            num_prefixes: 4,
            prefix_len: 0..32,
            num_samples: 1..2,
            num_priorities: 1,
            deadlines: 0.0,
            longest_deadline: Duration::from_secs(1),
            prompt_logits: 0.0,
            stop_tokens: 0.0,
        }
    }
}

impl Workload {
    /// The requests in order of arrival; the same for the same seed.
    pub fn generate(&self, seed: u64) -> Vec<SequenceRequest> {
        let mut rng = SimulationRng::new(seed);
        let mut at = Duration::ZERO;
        (0..self.num_requests)
            .map(|index| {
                at = at.saturating_add(rng.arrival_gap(self.arrival_rate));
                self.request(index, at, &mut rng)
            })
            .collect()
    }

    fn request(&self, index: usize, at: Duration, rng: &mut SimulationRng) -> SequenceRequest {
        let prompt_len = rng.in_range(self.prompt_len.clone()).max(1);
        let shares = self.num_prefixes > 0;
        let prefix = TraceEntry {
            arrival_ms: 0.0,
            prompt_len,
            output_len: rng.in_range(self.output_len.clone()),
            prefix_id: shares.then(|| rng.in_range(0..self.num_prefixes) as u64),
            prefix_len: Some(rng.in_range(self.prefix_len.clone())),
        };
        let deadline =
            rng.chance(self.deadlines).then(|| at + self.longest_deadline.mul_f64(rng.unit()));
        let stop_tokens = if rng.chance(self.stop_tokens) { (0..8).collect() } else { Vec::new() };
        SequenceRequest {
            arrival: Some(at),
            deadline,
            stop_tokens,
            num_samples: rng.in_range(self.num_samples.clone()),
            priority: rng.in_range(0..self.num_priorities) as i32,
            prompt_logits: rng.chance(self.prompt_logits),
            ..prefix.request(index)
        }
    }
}

/// One line of a recorded trace, as JSON:
/// `{"arrival_ms": 12.5, "prompt_len": 100, "output_len": 20, "prefix_id": 3, "prefix_len": 64}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceEntry {
    /// Milliseconds from the start of the trace.
    pub arrival_ms: f64,
    /// Tokens of the prompt.
    pub prompt_len: usize,
    /// Tokens that were generated.
    pub output_len: usize,
    /// Requests with the same id begin with the same tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix_id: Option<u64>,
    /// How many tokens of the prompt are that prefix; half of it if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix_len: Option<usize>,
}

impl TraceEntry {
    /// A request with made-up tokens; `index`, its number in the trace, makes them its own.
    pub fn request(&self, index: usize) -> SequenceRequest {
        let shared = match self.prefix_id {
            Some(_) => self.prefix_len.unwrap_or(self.prompt_len / 2),
            None => 0,
        };
        let token = |position: usize| {
            let stream = match self.prefix_id {
                Some(id) if position < shared => mix(id ^ 0x5eed),
                _ => mix(index as u64 ^ (1 << 63)),
            };
            (mix(stream ^ position as u64) % VOCAB) as TokenId
        };
        let seconds = self.arrival_ms.max(0.0) / 1e3;
        SequenceRequest {
            max_tokens: self.output_len,
            arrival: Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)),
            ..SequenceRequest::new((0..self.prompt_len).map(token).collect())
        }
    }
}

/// What is wrong with a trace.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TraceError {
    /// A line is not an entry.
    #[error(
        "line {line}: {source}; expected arrival_ms, prompt_len, output_len and, if need be, \
         prefix_id and prefix_len"
    )]
    Entry {
        /// Number of the line, from 1.
        line: usize,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// Reading or writing failed.
    #[error("the trace cannot be read or written: {0}")]
    Io(#[from] std::io::Error),
}

/// Reads a trace, one JSON object per line; empty lines are skipped.
///
/// ```
/// use engine_sched::simulation::{read_trace, write_trace};
/// let text = "{\"arrival_ms\": 1.5, \"prompt_len\": 8, \"output_len\": 2, \"prefix_id\": 3}\n";
/// let trace = read_trace(text.as_bytes())?;
/// assert_eq!(trace[0].request(0).prompt.len(), 8);
/// let mut written = Vec::new();
/// write_trace(&trace, &mut written)?;
/// assert_eq!(read_trace(written.as_slice())?, trace);
/// # Ok::<(), engine_sched::simulation::TraceError>(())
/// ```
pub fn read_trace(reader: impl BufRead) -> Result<Vec<TraceEntry>, TraceError> {
    let mut entries = Vec::new();
    for (i, line) in reader.lines().enumerate() {
        let line = line?;
        if !line.trim().is_empty() {
            let entry = serde_json::from_str(&line);
            entries.push(entry.map_err(|source| TraceError::Entry { line: i + 1, source })?);
        }
    }
    Ok(entries)
}

/// Writes a trace, one JSON object per line.
pub fn write_trace(entries: &[TraceEntry], mut writer: impl Write) -> Result<(), TraceError> {
    for entry in entries {
        serde_json::to_writer(&mut writer, entry).map_err(std::io::Error::from)?;
        writer.write_all(b"\n")?;
    }
    Ok(())
}
