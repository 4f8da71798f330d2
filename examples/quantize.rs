//! Writes a copy of a model with its weights in few bits.
//!
//! `cargo run --release --example quantize -- --model DIR --scheme int4:group=64:method=gptq
//! --calibration FILE --output DIR`

mod support;

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use clap::Parser;
use engine::{
    CalibrationCut, CalibrationText, CheckpointLayout, Device, QuantizeEvent, QuantizeOptions,
    SchemePlan, quantize,
};
use indicatif::{ProgressBar, ProgressStyle};
use support::{DEFAULT_MODEL, Failure, output::print};

#[derive(Parser)]
#[command(about = "Writes a copy of a model with its weights in few bits")]
struct Options {
    /// Model directory in Hugging Face layout, or a Hub id such as org/name
    #[arg(long, default_value = DEFAULT_MODEL, hide_default_value = true, value_name = "DIR")]
    model: String,
    /// int8, int4, nf4, int4:group=64:asym, int4:group=64:method=gptq, int4+v_proj=int8, …
    #[arg(long)]
    scheme: SchemePlan,
    /// The new model's directory
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Text that method=gptq and method=awq choose their codes for
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// How that text is cut: lines (each a document), windows:N (tokens), or auto: lines if they
    /// have 1000 bytes on average, else windows of 512 tokens
    #[arg(long, default_value = "auto", value_name = "METHOD")]
    calibration_method: CalibrationCut,
    /// Tokens of that text that are used
    #[arg(long, default_value_t = 65_536, value_name = "TOKENS")]
    max_calibration_tokens: usize,
    /// Layout of the checkpoint: gptq or awq, which Hugging Face tools read, engine (our own), or
    /// auto: that of the method where it holds all matrices
    #[arg(long, default_value = "auto")]
    layout: CheckpointLayout,
    /// Where the model runs on the calibration text: auto, cpu, wgpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: Device,
    /// Threads; all cores by default
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Most megabytes of a file of weights
    #[arg(long, default_value_t = 4000, value_name = "MB")]
    max_shard_mb: u64,
    /// Replace what is at the output
    #[arg(long)]
    force: bool,
}

fn main() -> ExitCode {
    support::run(|options| write(&options))
}

fn write(options: &Options) -> Result<(), Failure> {
    if options.threads == Some(0) {
        return Err("--threads 0 is too few, give at least 1".into());
    }
    let calibration = options.calibration.as_deref().map(read_text).transpose()?;
    let settings = QuantizeOptions {
        layout: options.layout,
        calibration: calibration.map(|text| CalibrationText {
            cut: options.calibration_method,
            max_tokens: options.max_calibration_tokens,
            ..CalibrationText::new(text)
        }),
        device: options.device,
        threads: options.threads,
        overwrite: options.force,
        max_shard_bytes: options.max_shard_mb.saturating_mul(1_000_000),
        ..QuantizeOptions::new(options.scheme.clone(), &options.output)
    };
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    ctrlc::set_handler(move || {
        // The first asks politely, at the next matrix; the second does not wait for it.
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    })?;
    let bar = ProgressBar::no_length().with_style(
        ProgressStyle::with_template("{msg:28!} {wide_bar} {pos}/{len} {eta}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let report = quantize(&options.model, &settings, &mut |event| {
        show(&bar, &event);
        match interrupted.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    bar.finish_and_clear();
    let report = report?;
    eprintln!(
        "{} written in {:.1} s, layout {}",
        report.output.display(),
        report.duration.as_secs_f64(),
        report.layout,
    );
    print(&report.to_string())?;
    Ok(())
}

fn read_text(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path)
        .map_err(|error| format!("cannot read {}: {error}", path.display()).into())
}

/// A line, or the bar.
fn show(bar: &ProgressBar, event: &QuantizeEvent<'_>) {
    let line = |text: String| bar.suspend(|| eprintln!("{text}"));
    match event {
        QuantizeEvent::Download { file, bytes_done, bytes_total } => {
            bar.set_message((*file).to_owned());
            bar.set_length(*bytes_total);
            bar.set_position(*bytes_done);
        }
        QuantizeEvent::Layout { layout, reason } => {
            bar.reset();
            line(format!("layout {layout}: {reason}"));
        }
        QuantizeEvent::Calibration { sequences, tokens } => {
            line(format!("calibration: {tokens} tokens in {sequences} sequences"));
        }
        QuantizeEvent::Matrix { matrix, number, total } => {
            bar.set_length(*total as u64);
            bar.set_message("quantizing");
            bar.set_position(*number as u64);
            let nearest = matrix.nearest_error;
            let nearest = nearest.map_or_else(String::new, |e| format!(" (to nearest {e:.4})"));
            let (name, scheme, error) = (&matrix.name, matrix.scheme, matrix.error);
            line(format!("{name}: {scheme}, error {error:.4}{nearest}"));
        }
        QuantizeEvent::Note(text) => line(format!("note: {text}")),
        _ => {}
    }
}
