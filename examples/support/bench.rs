//! The command line of the benchmarks.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use engine::{Device, KvFormat, SchemePlan};
use engine_bench::{Plan, RandomModel, Shape, Source, Stage, ablation, run};
use indicatif::{ProgressBar, ProgressStyle};

use super::{DEFAULT_MODEL, Failure, output};

#[derive(Parser)]
#[command(about = "Measures the machine, then how fast models run on it; the table goes to stdout")]
struct Options {
    /// Model directories or Hub ids to measure; by default the repository's small model
    #[arg(long, value_name = "DIR", value_delimiter = ',')]
    model: Vec<String>,
    /// Random weights in these shapes, as tinyllama-1.1b,qwen3-4b
    #[arg(long, value_delimiter = ',', value_parser = Shape::named)]
    shape: Vec<Shape>,
    /// Measure here instead, as cuda:1
    #[arg(long)]
    device: Option<Device>,
    /// Weight formats: none (the file's own), int8, int4, nf4, int4:group=64:asym, …
    #[arg(long, value_delimiter = ',', default_value = "none", value_name = "SCHEME")]
    quant: Vec<SchemePlan>,
    /// Requests at once
    #[arg(long, value_delimiter = ',', default_value = "1,8")]
    batch: Vec<usize>,
    /// Tokens of each prompt
    #[arg(long, value_delimiter = ',', default_value = "128")]
    prompt_tokens: Vec<usize>,
    /// New tokens of each request
    #[arg(long, value_delimiter = ',', default_value = "64")]
    output_tokens: Vec<usize>,
    /// Positions to fill before decoding is timed: more rows, as with --prompt-tokens
    #[arg(long, value_delimiter = ',', value_name = "POSITIONS")]
    depth: Vec<usize>,
    /// Format of keys and values: f32 or int8
    #[arg(long, default_value_t = KvFormat::F32)]
    kv_cache: KvFormat,
    /// Measure one format after the other, not in turns: the memory need hold only one at a time
    #[arg(long)]
    one_at_a_time: bool,
    /// Measure one optimisation after the other, each with all before it
    #[arg(long, conflicts_with_all = ["quant", "batch", "depth"])]
    ablation: bool,
    /// Write the random weights of each --shape to a folder here, bf16, and measure nothing
    #[arg(long, value_name = "DIR", requires = "shape", conflicts_with = "json")]
    export: Option<PathBuf>,
    /// Threads of the CPU kernels; all cores by default
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Measured runs of each row, after one to warm up
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    /// Write the report as JSON too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs the benchmark of one device.
pub fn main(device: Device) -> ExitCode {
    super::run(|options| bench(options, device))
}

fn bench(options: Options, device: Device) -> Result<(), Failure> {
    if let Some(folder) = &options.export {
        return export(&options.shape, folder);
    }
    let device = options.device.unwrap_or(device);
    device.select()?;
    let json = options.json.as_deref().map(output::WholeFile::create).transpose()?;
    let mut sources: Vec<Source> = options.model.into_iter().map(Source::Model).collect();
    sources.extend(options.shape.into_iter().map(Source::Shape));
    if sources.is_empty() {
        eprintln!("the repository's small model; --shape tinyllama-1.1b measures a real size");
        sources.push(Source::Model(DEFAULT_MODEL.to_owned()));
    }
    let measure = if options.ablation { ablation } else { run };
    let plan = Plan {
        sources,
        quants: options.quant,
        batches: options.batch,
        prompt_lens: options.prompt_tokens,
        output_lens: options.output_tokens,
        depths: options.depth,
        kv_format: options.kv_cache,
        in_turns: !options.one_at_a_time,
        device,
        threads: options.threads,
        repeats: options.repeats,
    };
    let report = measure(&plan, &mut show_progress())?;
    if let Some(file) = json {
        file.write(&serde_json::to_vec_pretty(&report)?)?;
    }
    output::print(&report.markdown())?;
    Ok(())
}

/// Writes random models and prints where they are.
fn export(shapes: &[Shape], folder: &std::path::Path) -> Result<(), Failure> {
    let mut progress = show_progress();
    for shape in shapes {
        let model = RandomModel::new(*shape, folder);
        model.write(&mut |done, total| {
            progress(Stage::Bytes { name: shape.name.to_owned(), done, total });
        })?;
        output::print_line(&model.folder().display().to_string())?;
    }
    Ok(())
}

/// Notes as lines and bytes as a bar, on stderr.
fn show_progress() -> impl FnMut(Stage) {
    let style = ProgressStyle::with_template("{msg:28!} {wide_bar} {bytes}/{total_bytes} {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::no_length().with_style(style);
    move |stage| match stage {
        Stage::Note(line) => eprintln!("{line}"),
        Stage::Failed(line) => eprintln!("not measured: {line}"),
        Stage::Bytes { name, done, total } => {
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(name);
            if done >= total {
                bar.finish_and_clear();
                bar.reset();
            }
        }
        _ => {}
    }
}
