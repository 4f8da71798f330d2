//! Proves on your own model and device that nothing but a request decides what it gets.
//!
//! `cargo run --release --example verify -- --model DIR --device cpu`

mod support;

use std::process::ExitCode;

use clap::Parser;
use engine::verify::{PropertyReport, Verifier, VerifyError};
use indicatif::{ProgressBar, ProgressStyle};
use support::Failure;

#[derive(Parser)]
#[command(about = "Proves that batching, chunking, caching and preemption change nothing")]
struct Options {
    /// Model directory in Hugging Face layout, GGUF file, or Hub id such as org/name
    #[arg(long, default_value = support::DEFAULT_MODEL, hide_default_value = true)]
    model: String,
    /// auto, cpu, wgpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: engine::Device,
    /// Weight format: none (the file's own), int8, int4, nf4, …
    #[arg(long, default_value = "none", value_name = "SCHEME")]
    quant: engine::SchemePlan,
    /// Format of keys and values: f32 or int8
    #[arg(long, default_value_t = engine::KvFormat::F32)]
    kv_cache: engine::KvFormat,
    /// Requests of each property
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(4..))]
    requests: u16,
    /// Longest prompt in tokens
    #[arg(long, default_value_t = 48, value_parser = clap::value_parser!(u16).range(1..))]
    prompt_tokens: u16,
    /// Longest completion in tokens
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u16).range(1..))]
    new_tokens: u16,
    /// What a log-probability may differ on a GPU; on the CPU bits must be equal
    #[arg(long, default_value_t = engine::verify::GPU_TOLERANCE)]
    tolerance: f32,
    /// Seed of the random requests
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn main() -> ExitCode {
    match verify(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => support::fail(&error),
    }
}

/// Whether every property holds.
fn verify(options: &Options) -> Result<bool, Failure> {
    let bar = ProgressBar::no_length()
        .with_style(ProgressStyle::with_template("{msg:40!} {wide_bar} {pos}/{len} {elapsed}")?);
    bar.set_message("undisturbed requests");
    let verifier = Verifier::new(&options.model, options.device)
        .quantization(options.quant.clone())
        .kv_cache_format(options.kv_cache)
        .requests(options.requests.into())
        .lengths(options.prompt_tokens.into(), options.new_tokens.into())
        .tolerance(options.tolerance)
        .seed(options.seed)
        .open()?;
    let properties: Vec<_> = verifier.properties().collect();
    bar.set_length(properties.len() as u64);
    let check = |&property| {
        bar.set_message(format!("{property}"));
        let report = verifier.check(property);
        bar.inc(1);
        report
    };
    let reports = properties.iter().map(check).collect::<Result<Vec<_>, VerifyError>>()?;
    bar.finish_and_clear();
    println!("{} on {}", options.model, verifier.device());
    println!("| property | cases | happened | largest difference | first diverging token | |");
    println!("|---|---:|---:|---:|---|---|");
    reports.iter().for_each(print_row);
    let violated = reports.iter().filter(|report| !report.holds()).count();
    match violated {
        0 => println!("all {} properties hold", reports.len()),
        _ => println!("{violated} of {} properties are violated", reports.len()),
    }
    Ok(violated == 0)
}

fn print_row(report: &PropertyReport) {
    let comparison = &report.comparison;
    let difference = match comparison.different_bits {
        0 => "0 (equal bits)".to_owned(),
        _ => format!("{:.1e}", comparison.max_difference),
    };
    let divergence = comparison.divergence.as_ref().map_or("none".to_owned(), |d| d.to_string());
    let verdict = match (report.holds(), report.exercised) {
        (false, _) => "VIOLATED",
        (true, 0) => "did not occur",
        (true, _) => "holds",
    };
    println!(
        "| {} | {} | {} | {difference} | {divergence} | {verdict} |",
        report.property, report.cases, report.exercised,
    );
}
