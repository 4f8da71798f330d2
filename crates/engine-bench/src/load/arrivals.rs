use std::{fs::File, io::BufReader, path::Path, time::Duration};

use engine_sched::SequenceRequest;
use engine_sched::simulation::{TraceEntry, TraceError, Workload, read_trace};

use crate::BenchError;

/// When requests arrive, and how long they are.
#[derive(Debug, Clone, PartialEq)]
pub enum Arrivals {
    /// A Poisson process: the same requests at each of several rates.
    Poisson {
        /// Mean arrivals per second.
        rates: Vec<f64>,
        /// What the requests are drawn from; of its fields those of lengths and prefixes count.
        workload: Workload,
        /// Of the arrivals and lengths.
        seed: u64,
    },
    /// As they were recorded.
    Trace(Vec<TraceEntry>),
}

/// One request of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LoadRequest {
    /// From the start of the run.
    pub arrival: Duration,
    pub prompt: Vec<u32>,
    /// New tokens, exactly.
    pub output_len: usize,
}

impl Arrivals {
    /// Rates to run at; a trace has its own.
    pub(crate) fn rates(&self) -> Vec<Option<f64>> {
        match self {
            Self::Poisson { rates, .. } => rates.iter().copied().map(Some).collect(),
            Self::Trace(_) => vec![None],
        }
    }

    /// The requests in order of arrival, with prompts from a vocabulary of `vocab_size`.
    pub(crate) fn requests(&self, rate: Option<f64>, vocab_size: usize) -> Vec<LoadRequest> {
        let drawn = match self {
            Self::Poisson { workload, seed, .. } => {
                let arrival_rate = rate.unwrap_or(workload.arrival_rate);
                Workload { arrival_rate, ..workload.clone() }.generate(*seed)
            }
            Self::Trace(entries) => {
                let requests = entries.iter().enumerate();
                requests.map(|(index, entry)| entry.request(index)).collect()
            }
        };
        let in_vocabulary = |request: SequenceRequest| LoadRequest {
            arrival: request.arrival.unwrap_or_default(),
            prompt: request.prompt.iter().map(|&token| token % vocab_size as u32).collect(),
            output_len: request.max_tokens,
        };
        let mut requests: Vec<_> = drawn.into_iter().map(in_vocabulary).collect();
        requests.sort_by_key(|request| request.arrival);
        requests
    }

    pub(crate) fn check(&self) -> Result<(), BenchError> {
        let zero = |name| Err(BenchError::Zero { name });
        match self {
            Self::Poisson { rates, workload, .. } => {
                if rates.is_empty() {
                    return zero("the number of rates");
                }
                let bad = rates.iter().find(|rate| !(rate.is_finite() && **rate > 0.0));
                if let Some(&value) = bad {
                    return Err(BenchError::NotPositive { name: "the rate", value });
                }
                match (workload.num_requests, workload.output_len.start) {
                    (0, _) => zero("the number of requests"),
                    (_, 0) => zero("the shortest output"),
                    _ => Ok(()),
                }
            }
            Self::Trace(entries) if entries.is_empty() => zero("the number of requests"),
            Self::Trace(entries) => {
                match entries.iter().find(|entry| entry.prompt_len.min(entry.output_len) == 0) {
                    Some(_) => zero("a prompt_len or output_len of the trace"),
                    None => Ok(()),
                }
            }
        }
    }
}

/// Reads a trace: JSON lines such as
/// `{"arrival_ms": 12.5, "prompt_len": 100, "output_len": 20, "prefix_id": 3, "prefix_len": 64}`,
/// the last two if requests share a prefix.
///
/// # Errors
/// If the file cannot be read or a line is no entry; the error names the line.
pub fn read_trace_file(path: &Path) -> Result<Vec<TraceEntry>, BenchError> {
    let failed = |source| BenchError::Trace { path: path.to_owned(), source };
    let file = File::open(path).map_err(|error| failed(TraceError::Io(error)))?;
    read_trace(BufReader::new(file)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poisson(rates: Vec<f64>) -> Arrivals {
        let workload = Workload {
            num_requests: 400,
            prompt_len: 40..60,
            num_prefixes: 1,
            prefix_len: 32..33,
            ..Workload::default()
        };
        Arrivals::Poisson { rates, workload, seed: 3 }
    }

    #[test]
    fn a_rate_moves_the_arrivals_and_nothing_else() {
        let arrivals = poisson(vec![10.0, 40.0]);
        let (slow, fast) = (arrivals.requests(Some(10.0), 512), arrivals.requests(Some(40.0), 512));
        assert_eq!(slow, arrivals.requests(Some(10.0), 512));
        for (slow, fast) in slow.iter().zip(&fast) {
            assert_eq!((&slow.prompt, slow.output_len), (&fast.prompt, fast.output_len));
            let ratio = slow.arrival.as_secs_f64() / fast.arrival.as_secs_f64();
            assert!((ratio - 4.0).abs() < 1e-3, "{ratio}");
        }
        let rate = 400.0 / slow.last().unwrap().arrival.as_secs_f64();
        assert!((8.0..12.5).contains(&rate), "{rate}");
    }

    #[test]
    fn prompts_share_their_prefix_and_stay_in_the_vocabulary() {
        let requests = poisson(vec![10.0]).requests(Some(10.0), 512);
        for pair in requests.windows(2) {
            assert_eq!(pair[0].prompt[..32], pair[1].prompt[..32]);
            assert_ne!(pair[0].prompt[32..40], pair[1].prompt[32..40]);
        }
        assert!(requests.iter().flat_map(|request| &request.prompt).all(|&token| token < 512));
    }

    #[test]
    fn loads_without_sense_are_refused() {
        let refusal = |arrivals: Arrivals| arrivals.check().unwrap_err().to_string();
        assert!(refusal(poisson(vec![])).contains("rates is 0"));
        assert!(refusal(poisson(vec![10.0, -1.0])).contains("-1"));
        assert!(refusal(Arrivals::Trace(Vec::new())).contains("requests is 0"));
        let entry = r#"{"arrival_ms": 1, "prompt_len": 0, "output_len": 1}"#;
        let empty = Arrivals::Trace(vec![serde_json::from_str(entry).unwrap()]);
        assert!(refusal(empty).contains("prompt_len"));
    }
}
