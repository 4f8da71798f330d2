//! How well a model predicts a text.
//!
//! `cargo run --release --example perplexity -- --text FILE --method chunked:256 --json`

mod support;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use engine_bench::perplexity::{Method, perplexity};
use indicatif::ProgressBar;
use support::{Failure, ModelOptions, output::print_line};

#[derive(Parser)]
#[command(about = "How well a model predicts a text")]
struct Options {
    #[command(flatten)]
    model: ModelOptions,
    /// The text file
    #[arg(long)]
    text: PathBuf,
    /// per-document, chunked:N or strided:N:S
    #[arg(long, default_value = "per-document")]
    method: Method,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    support::run(|options| score(&options))
}

fn score(options: &Options) -> Result<(), Failure> {
    let text = std::fs::read_to_string(&options.text)
        .map_err(|error| format!("cannot read {}: {error}", options.text.display()))?;
    let engine = options.model.load()?;
    let bar = ProgressBar::no_length();
    let result = perplexity(&engine, &text, options.method, |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    if options.json {
        print_line(&serde_json::to_string(&result)?)?;
    } else {
        print_line(&format!(
            "perplexity {:.4} ({:.6} nats a token over {} tokens, {}), weights {} bytes",
            result.perplexity,
            result.mean_nll,
            result.scored_tokens,
            options.method,
            result.weight_bytes,
        ))?;
    }
    Ok(())
}
