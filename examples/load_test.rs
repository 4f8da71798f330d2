//! Requests arrive on their own clock: how long they wait, and how many the engine serves well.
//!
//! `cargo run --release --example load_test -- --model DIR --rate 10 --requests 200 --sweep`

mod support;

use std::{ops::RangeInclusive, path::PathBuf, process::ExitCode, str::FromStr};

use clap::Parser;
use engine_bench::{
    Machine,
    load::{Arrivals, LatencyLimits, LoadPlan, RunProgress, Sweep, Workload, read_trace_file},
};
use indicatif::{ProgressBar, ProgressStyle};
use support::{
    Failure, ModelOptions,
    output::{self, PlotFile, WholeFile},
};

#[derive(Parser)]
#[command(about = "Measures latencies and throughput under load; the tables go to stdout")]
struct Options {
    #[command(flatten)]
    model: ModelOptions,
    /// Mean arrivals per second of a Poisson process; several rates give a curve
    #[arg(long, value_delimiter = ',', default_value = "10")]
    rate: Vec<f64>,
    /// Requests at each rate
    #[arg(long, default_value_t = 200)]
    requests: usize,
    /// Tokens of the system prompt that all requests begin with
    #[arg(long, default_value_t = 128)]
    shared_tokens: usize,
    /// Tokens of a request's own after it, as 32 or 16-48
    #[arg(long, default_value = "16-48")]
    prompt_tokens: Lengths,
    /// New tokens of a request
    #[arg(long, default_value = "16-64")]
    output_tokens: Lengths,
    /// Arrivals, lengths and shared prefixes from a file instead: JSON lines such as
    /// {"arrival_ms": 12.5, "prompt_len": 100, "output_len": 20, "prefix_id": 3, "prefix_len": 64}
    #[arg(long, value_name = "FILE", conflicts_with_all = ["rate", "requests"])]
    trace: Option<PathBuf>,
    /// Of the arrivals and lengths
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// A good request has its first token within this time
    #[arg(long, value_name = "MS", default_value_t = 500.0)]
    ttft_limit_ms: f64,
    /// And its other tokens within this time of each other, on average
    #[arg(long, value_name = "MS", default_value_t = 50.0)]
    itl_limit_ms: f64,
    /// Most tokens of a step
    #[arg(long, default_value_t = 512)]
    max_batched_tokens: usize,
    /// Most sequences that run at once
    #[arg(long, default_value_t = 64)]
    max_sequences: usize,
    /// Then all requests at once under each pair of limits, to find the knee
    #[arg(long)]
    sweep: bool,
    /// Values of max_batched_tokens in the sweep
    #[arg(long, value_delimiter = ',', default_value = "64,256,1024")]
    sweep_tokens: Vec<usize>,
    /// Values of max_sequences in the sweep
    #[arg(long, value_delimiter = ',', default_value = "4,16,64,256")]
    sweep_sequences: Vec<usize>,
    /// Write the report as JSON too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw throughput against latency, as .svg or .png
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

/// Lengths to draw from: `32`, or `16-48` with both ends.
#[derive(Debug, Clone)]
struct Lengths(RangeInclusive<usize>);

impl FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (least, most) = text.split_once('-').unwrap_or((text, text));
        match (least.trim().parse(), most.trim().parse()) {
            (Ok(least), Ok(most)) if 0 < least && least <= most && most < 1 << 31 => {
                Ok(Self(least..=most))
            }
            _ => Err("give a number above 0, as 32, or two, as 16-48".to_owned()),
        }
    }
}

fn main() -> ExitCode {
    support::run(load_test)
}

fn load_test(options: Options) -> Result<(), Failure> {
    let plan = LoadPlan {
        arrivals: arrivals(&options)?,
        limits: LatencyLimits { ttft_ms: options.ttft_limit_ms, itl_ms: options.itl_limit_ms },
        max_batched_tokens: options.max_batched_tokens,
        max_sequences: options.max_sequences,
        sweep: options.sweep.then_some(Sweep {
            max_batched_tokens: options.sweep_tokens,
            max_sequences: options.sweep_sequences,
        }),
    };
    plan.check()?;
    options.model.device.select()?;
    let json = options.json.as_deref().map(WholeFile::create).transpose()?;
    let plot = options.plot.as_deref().map(PlotFile::create).transpose()?;
    eprintln!("measuring the machine");
    let machine = Machine::measure(options.model.device, options.model.threads)?;
    let report = plan.run(machine, &|| options.model.builder(), &mut show_progress()?)?;
    if let Some(file) = json {
        file.write(&serde_json::to_vec_pretty(&report)?)?;
    }
    if let Some(PlotFile { file, format }) = plot {
        file.write(&report.plot(format)?)?;
    }
    output::print(&report.markdown())?;
    Ok(())
}

fn arrivals(options: &Options) -> Result<Arrivals, Failure> {
    if let Some(path) = &options.trace {
        return Ok(Arrivals::Trace(read_trace_file(path)?));
    }
    let shared = options.shared_tokens;
    let (prompt, output) = (&options.prompt_tokens.0, &options.output_tokens.0);
    let workload = Workload {
        num_requests: options.requests,
        prompt_len: shared.saturating_add(*prompt.start())
            ..shared.saturating_add(*prompt.end()).saturating_add(1),
        output_len: *output.start()..*output.end() + 1,
        num_prefixes: 1,
        prefix_len: shared..shared.saturating_add(1),
        ..Workload::default()
    };
    Ok(Arrivals::Poisson { rates: options.rate.clone(), workload, seed: options.seed })
}

/// A line and a bar for each run, on stderr.
fn show_progress() -> Result<impl FnMut(RunProgress), Failure> {
    let style = ProgressStyle::with_template("{msg:14!} {wide_bar} {pos}/{len} {eta}")?;
    let bar = ProgressBar::no_length().with_style(style);
    let mut shown = None;
    Ok(move |progress: RunProgress| {
        if shown.replace(progress.run) != Some(progress.run) {
            let setting = progress.setting;
            let message = format!(
                "run {} of {}: {}, {} tokens a step, {} sequences, {} prefix caching",
                progress.run + 1,
                progress.num_runs,
                setting.rate.map_or("all at once".to_owned(), |rate| format!("{rate} requests/s")),
                setting.max_batched_tokens,
                setting.max_sequences,
                if setting.prefix_caching { "with" } else { "without" },
            );
            eprintln!("{message}");
            bar.reset();
            bar.set_message(format!("run {} of {}", progress.run + 1, progress.num_runs));
            bar.set_length(progress.total as u64);
        }
        bar.set_position(progress.done as u64);
        if progress.done == progress.total {
            bar.finish_and_clear();
        }
    })
}
