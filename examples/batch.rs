//! Runs a file of prompts through one engine; the results are JSON lines in the order of the input.
//!
//! `cargo run --release --example batch -- prompts.jsonl --output results.jsonl`

mod support;

use std::{
    collections::VecDeque,
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use clap::{Parser, ValueEnum};
use engine::{
    Engine, Event, FinishReason, Generation, Message, Prompt, Request, SamplingParams, SubmitError,
    Usage,
};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use support::{
    Failure, ModelOptions,
    output::{self, WholeFile},
    sampling::SamplingOptions,
};

#[derive(Parser)]
#[command(about = "Runs a file of prompts through one engine; the results are JSON lines")]
struct Options {
    /// One prompt per line: text, or JSON such as {"prompt": "Once upon a time"}, with "tokens" or
    /// "messages" in place of "prompt" and, if need be, "max_tokens", "temperature", "seed", "id"
    #[arg(value_name = "FILE")]
    input: PathBuf,
    /// What the lines are; auto takes a name that ends in .jsonl for JSON
    #[arg(long, value_enum, default_value_t = Format::Auto)]
    format: Format,
    /// Write the results here, all of them or nothing; by default they go to stdout
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// New tokens at most, where a line says nothing else; 0 goes on to the end of the context
    #[arg(long, default_value_t = 64)]
    max_tokens: usize,
    /// Most requests in memory at once, waiting, running or finished
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u16).range(1..))]
    in_flight: u16,
    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    sampling: SamplingOptions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Auto,
    Jsonl,
    Text,
}

/// A line of a JSONL file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonLine {
    id: Option<Value>,
    prompt: Option<String>,
    tokens: Option<Vec<u32>>,
    messages: Option<Vec<Message>>,
    max_tokens: Option<usize>,
    temperature: Option<f32>,
    seed: Option<u64>,
}

/// One prompt of the input.
struct Item {
    /// What the line calls itself, else its number.
    id: Value,
    request: Request,
}

/// One line of the output.
#[derive(Serialize)]
#[serde(untagged)]
enum Outcome {
    Finished {
        id: Value,
        text: String,
        tokens: Vec<u32>,
        finish_reason: &'static str,
        usage: TokenCounts,
    },
    Failed {
        id: Value,
        error: String,
    },
}

#[derive(Serialize)]
struct TokenCounts {
    prompt_tokens: usize,
    cached_tokens: usize,
    completion_tokens: usize,
}

fn main() -> ExitCode {
    support::run(batch)
}

fn batch(options: Options) -> Result<(), Failure> {
    let mut input = Input::new(&options);
    // A bad line is told before anything is computed.
    let mut total = 0_u64;
    for item in input.items()? {
        item?;
        total += 1;
    }
    if total == 0 {
        return Err(format!("{} has no prompt in it", input.path.display()).into());
    }
    let mut file = options.output.as_deref().map(WholeFile::create).transpose()?;
    let engine = options.model.builder().max_queue(options.in_flight.into()).load()?;
    support::describe(&engine);
    input.sampling = options.sampling.params(engine.info())?;

    let stop = Arc::new(AtomicBool::new(false));
    let stopping = stop.clone();
    ctrlc::set_handler(move || stopping.store(true, Ordering::Relaxed))?;
    let bar = ProgressBar::new(total).with_style(ProgressStyle::with_template(
        "{wide_bar} {pos}/{len} prompts, {msg} {elapsed}, {eta} left",
    )?);
    let run = Run { engine, in_flight: options.in_flight.into(), stop, bar };
    let failed = run.all(input.items()?, |line| match &mut file {
        Some(file) => file.append(line.as_bytes()),
        None => Ok(output::print(line)?),
    })?;
    file.map_or(Ok(()), WholeFile::finish)?;
    match failed {
        0 => Ok(()),
        _ => {
            Err(format!("{failed} of {total} prompts failed: see the lines with \"error\"").into())
        }
    }
}

/// The file of prompts, read as often as need be and never held as a whole.
struct Input<'a> {
    path: &'a Path,
    json: bool,
    /// `None` goes on to the end of the context.
    max_tokens: Option<usize>,
    sampling: SamplingParams,
}

impl<'a> Input<'a> {
    fn new(options: &'a Options) -> Self {
        let path = options.input.as_path();
        let json = match options.format {
            Format::Auto => path.extension().is_some_and(|extension| extension == "jsonl"),
            format => format == Format::Jsonl,
        };
        let max_tokens = Some(options.max_tokens).filter(|&tokens| tokens > 0);
        Self { path, json, max_tokens, sampling: SamplingParams::greedy() }
    }

    /// The prompts in their order; empty lines are none.
    fn items(&self) -> Result<impl Iterator<Item = Result<Item, Failure>>, Failure> {
        let unreadable = |error| format!("cannot read {}: {error}", self.path.display());
        let file = File::open(self.path).map_err(unreadable)?;
        let lines = BufReader::new(file).lines().zip(1_u64..);
        let full =
            lines.filter(|(line, _)| !line.as_ref().is_ok_and(|line| line.trim().is_empty()));
        Ok(full.map(|(line, number)| {
            let item = line.map_err(Failure::from).and_then(|line| self.item(&line, number));
            item.map_err(|error| format!("{} line {number}: {error}", self.path.display()).into())
        }))
    }

    fn item(&self, line: &str, number: u64) -> Result<Item, Failure> {
        let line = match self.json {
            true => serde_json::from_str(line).map_err(|error| {
                // Its line number is that within this line.
                error.to_string().replace(" at line 1 column ", " at column ")
            })?,
            false => JsonLine { prompt: Some(line.to_owned()), ..JsonLine::default() },
        };
        let prompt = match (line.prompt, line.tokens, line.messages) {
            (Some(text), None, None) => Prompt::Text(text),
            (None, Some(tokens), None) => Prompt::Tokens(tokens),
            (None, None, Some(messages)) => Prompt::Chat(messages),
            _ => return Err("give exactly one of \"prompt\", \"tokens\" and \"messages\"".into()),
        };
        let mut request = Request::new(prompt).sampling(self.sampling.clone());
        request.max_tokens = line.max_tokens.or(self.max_tokens);
        request.sampling.temperature = line.temperature.unwrap_or(self.sampling.temperature);
        request.sampling.seed = line.seed.unwrap_or(self.sampling.seed);
        Ok(Item { id: line.id.unwrap_or_else(|| number.into()), request })
    }
}

/// Everything that a run of the whole file needs.
struct Run {
    engine: Engine,
    in_flight: usize,
    /// Set by Ctrl-C.
    stop: Arc<AtomicBool>,
    bar: ProgressBar,
}

/// A prompt that the engine has taken, or refused.
struct Submitted {
    id: Value,
    generation: Result<Generation, SubmitError>,
}

impl Run {
    /// Runs every prompt and hands each result to `write`, in order. Returns how many failed.
    fn all(
        &self,
        mut items: impl Iterator<Item = Result<Item, Failure>>,
        mut write: impl FnMut(&str) -> Result<(), Failure>,
    ) -> Result<usize, Failure> {
        let mut submitted = VecDeque::new();
        let (mut failed, mut tokens) = (0, 0);
        loop {
            while submitted.len() < self.in_flight {
                let Some(item) = items.next() else { break };
                let Item { id, request } = item?;
                submitted.push_back(Submitted { id, generation: self.engine.submit(request) });
            }
            let Some(first) = submitted.pop_front() else { break };
            let outcome = self.finish(first)?;
            match &outcome {
                Outcome::Finished { usage, .. } => tokens += usage.completion_tokens,
                Outcome::Failed { .. } => failed += 1,
            }
            write(&(serde_json::to_string(&outcome)? + "\n"))?;
            let seconds = self.bar.elapsed().as_secs_f64().max(1e-9);
            self.bar.set_message(format!("{:.0} new tokens/s", tokens as f64 / seconds));
            self.bar.inc(1);
        }
        self.bar.finish_and_clear();
        let seconds = self.bar.elapsed().as_secs_f64();
        eprintln!("{tokens} new tokens in {seconds:.2} s, {failed} prompts failed");
        Ok(failed)
    }

    /// Waits for the end of a request; what went wrong with it is its result.
    fn finish(&self, submitted: Submitted) -> Result<Outcome, Failure> {
        let Submitted { id, generation } = submitted;
        let failed = |id, error: &dyn std::error::Error| Outcome::Failed { id, error: line(error) };
        let generation = match generation {
            Ok(generation) => generation,
            Err(error) => return Ok(failed(id, &error)),
        };
        let (mut text, mut tokens, mut usage) = (String::new(), Vec::new(), Usage::default());
        let mut finish_reason = "";
        for event in generation {
            if self.stop.load(Ordering::Relaxed) {
                return Err("stopped by Ctrl-C".into());
            }
            match event {
                Ok(Event::Token { token, text: piece, .. }) => {
                    tokens.push(token);
                    text += &piece;
                }
                Ok(Event::Finished { text: rest, reason, .. }) => {
                    text += &rest;
                    finish_reason = reason_name(&reason);
                }
                Ok(Event::Done(counts)) => usage = counts,
                Ok(_) => {}
                Err(error) => return Ok(failed(id, &error)),
            }
        }
        let usage = TokenCounts {
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: usage.cached_tokens,
            completion_tokens: usage.completion_tokens,
        };
        Ok(Outcome::Finished { id, text, tokens, finish_reason, usage })
    }
}

/// An error in one line.
fn line(error: &dyn std::error::Error) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn reason_name(reason: &FinishReason) -> &'static str {
    match reason {
        FinishReason::Length => "length",
        FinishReason::StopToken(_) | FinishReason::StopText(_) => "stop",
        FinishReason::TimedOut => "timeout",
        _ => "cancelled",
    }
}
