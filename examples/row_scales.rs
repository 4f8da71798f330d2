//! One scale for a matrix, or one for each of its rows?
//!
//! `cargo run --release --example row_scales -- --plot row_scales.svg`

mod support;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use engine::resolve_model;
use engine_bench::quality::RowScales;
use support::{
    DEFAULT_MODEL, Failure,
    output::{self, PlotFile, WholeFile},
};

#[derive(Parser)]
#[command(about = "Errors of INT8 with one scale for a matrix and with one for each row")]
struct Options {
    /// A model directory, GGUF file or Hub id, whose matrices are measured beside random ones
    #[arg(long, default_value = DEFAULT_MODEL, hide_default_value = true, value_name = "DIR")]
    model: String,
    /// Of the random matrices
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Write the numbers as JSON too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw them, as .svg or .png; several files with commas
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    plot: Vec<PathBuf>,
}

fn main() -> ExitCode {
    support::run(|options| row_scales(&options))
}

fn row_scales(options: &Options) -> Result<(), Failure> {
    let json = options.json.as_deref().map(WholeFile::create).transpose()?;
    let plots = options.plot.iter().map(PlotFile::create).collect::<Result<Vec<_>, _>>()?;
    let path = resolve_model(&options.model, &mut |_: &str, _, _| ())?;
    let measured = RowScales::measure(&path, options.seed)?;
    let mut files = Vec::new();
    if let Some(file) = json {
        files.push((file, serde_json::to_vec_pretty(&measured)?));
    }
    for PlotFile { file, format } in plots {
        files.push((file, measured.plot(format)?));
    }
    for (file, bytes) in files {
        file.write(&bytes)?;
    }
    output::print(&measured.markdown())?;
    Ok(())
}
