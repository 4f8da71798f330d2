//! What weights in few bits save, and what they lose.
//!
//! `cargo run --release --example quality -- --schemes int8,int4,nf4 --plot price.svg`

mod support;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Parser;
use engine::{CalibrationCut, CalibrationText, Device, KvFormat, SchemePlan};
use engine_bench::{
    perplexity::Method,
    quality::{QualityPlan, QualityStage, SpeedTask},
};
use indicatif::{ProgressBar, ProgressStyle};
use support::{
    DEFAULT_MODEL, Failure,
    output::{self, PlotFile, WholeFile},
};

const DEFAULT_TEXT: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/text/tinystories_sample.txt");

#[derive(Parser)]
#[command(about = "What weights in few bits save, and what they lose; the table goes to stdout")]
struct Options {
    /// Model directory in Hugging Face layout, a GGUF file, or a Hub id such as org/name
    #[arg(long, default_value = DEFAULT_MODEL, hide_default_value = true, value_name = "DIR")]
    model: String,
    /// The text file; by default the repository's sample of short stories
    #[arg(long, default_value = DEFAULT_TEXT, hide_default_value = true, value_name = "FILE")]
    text: PathBuf,
    /// per-document, chunked:N or strided:N:S
    #[arg(long, default_value = "per-document")]
    method: Method,
    /// Where per-document cuts documents, in tokens
    #[arg(long, value_name = "TOKENS", default_value_t = 4096)]
    max_context: usize,
    /// Weight formats to compare with the model as it is
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "SCHEME",
        default_value = "int8,int4:group=32,int4:group=32:asym,int4:group=128,nf4"
    )]
    schemes: Vec<SchemePlan>,
    /// The same model in other files, to compare too: directories or GGUF files
    #[arg(long, value_delimiter = ',', value_name = "DIR")]
    models: Vec<PathBuf>,
    /// The text file that schemes with method=gptq or method=awq need
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// How the calibration text is cut: auto, lines or windows:N
    #[arg(long, default_value = "auto", value_name = "METHOD")]
    calibration_method: CalibrationCut,
    /// Formats of keys and values: f32, int8; each scheme runs with each
    #[arg(long, value_delimiter = ',', default_value = "f32")]
    kv_cache: Vec<KvFormat>,
    /// auto, cpu, wgpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: Device,
    /// Threads of the CPU kernels; all cores by default
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Measured runs of decoding, after one to warm up; 0 leaves speed and memory out
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// Write the report as JSON too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw perplexity and KL against bytes, as .svg or .png; several files with commas
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    plot: Vec<PathBuf>,
}

fn main() -> ExitCode {
    support::run(quality)
}

fn quality(options: Options) -> Result<(), Failure> {
    let text = read(&options.text)?;
    let calibration = options.calibration.as_deref().map(read).transpose()?;
    let cut = options.calibration_method;
    let calibration = calibration.map(|text| CalibrationText { cut, ..CalibrationText::new(text) });
    let json = options.json.as_deref().map(WholeFile::create).transpose()?;
    let plots = options.plot.iter().map(PlotFile::create).collect::<Result<Vec<_>, _>>()?;
    let name = options.text.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let plan = QualityPlan {
        schemes: options.schemes,
        models: options.models,
        calibration,
        kv_formats: options.kv_cache,
        text_name: name,
        method: options.method,
        max_context: options.max_context,
        device: options.device.select()?.device,
        threads: options.threads,
        speed: (options.repeats > 0)
            .then_some(SpeedTask { repeats: options.repeats, ..SpeedTask::default() }),
        ..QualityPlan::new(options.model, text)
    };
    let report = plan.run(&mut show_progress()?)?;
    let mut files = Vec::new();
    if let Some(file) = json {
        files.push((file, serde_json::to_vec_pretty(&report)?));
    }
    for PlotFile { file, format } in plots {
        files.push((file, report.plot(format)?));
    }
    for (file, bytes) in files {
        file.write(&bytes)?;
    }
    output::print(&report.markdown())?;
    Ok(())
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))
}

/// A line for each stage and a bar of the windows, on stderr.
fn show_progress() -> Result<impl FnMut(QualityStage), Failure> {
    let style = ProgressStyle::with_template("{msg:28!} {wide_bar} {pos}/{len} {eta}")?;
    let bar = ProgressBar::no_length().with_style(style);
    Ok(move |stage| match stage {
        QualityStage::Note(line) => eprintln!("{line}"),
        QualityStage::Windows { name, done, total } => {
            if bar.length() != Some(total as u64) || done == 1 {
                bar.reset();
                bar.set_length(total as u64);
                bar.set_message(name);
            }
            bar.set_position(done as u64);
            if done == total {
                bar.finish_and_clear();
            }
        }
        _ => {}
    })
}
