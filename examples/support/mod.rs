//! What every example shares: the options that say which model runs where, loading with a progress
//! bar, and errors in one line with exit code 2.

#![allow(dead_code, reason = "each example uses its part")]

pub mod bench;
pub mod output;
pub mod sampling;

use std::{fmt::Display, process::ExitCode};

use clap::{Args, Parser};
use engine::{Device, Engine, EngineBuilder, KvFormat, Progress, SchemePlan};
use indicatif::{ProgressBar, ProgressStyle};

/// The real, small model that is part of the repository.
pub const DEFAULT_MODEL: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/models/stories260K");

/// An error is whatever has one line for people.
pub type Failure = Box<dyn std::error::Error>;

/// Which model runs where.
#[derive(Debug, Clone, Args)]
pub struct ModelOptions {
    /// Model directory in Hugging Face layout, GGUF file, or Hub id such as org/name
    #[arg(long, default_value = DEFAULT_MODEL, hide_default_value = true, value_name = "DIR")]
    pub model: String,
    /// auto, cpu, wgpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: Device,
    /// Weight format: none (the file's own), int8, int4, nf4, int4:group=64:asym,
    /// int4+v_proj=int8+last=none, …; with +activations=16bit also what products round
    /// activations to (f32, 24bit, 16bit or 8bit)
    #[arg(long, default_value = "none", value_name = "SCHEME")]
    pub quant: SchemePlan,
    /// Threads of the CPU kernels; all cores by default
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Longest sequence in tokens; by default the model's own limit
    #[arg(long, value_name = "TOKENS")]
    pub max_context: Option<usize>,
    /// Memory of keys and values; by default a share of what is free
    #[arg(long, value_name = "MIB")]
    pub kv_cache_mib: Option<usize>,
    /// Format of keys and values: f32, or int8 in a quarter of the memory
    #[arg(long, default_value_t = KvFormat::F32)]
    pub kv_cache: KvFormat,
    /// Copy weights into memory instead of reading them where their files are mapped
    #[arg(long)]
    pub no_mmap: bool,
}

impl ModelOptions {
    /// A builder with these options and a progress bar on stderr.
    pub fn builder(&self) -> EngineBuilder {
        let mut builder = Engine::builder(&self.model)
            .device(self.device)
            .quantization(self.quant.clone())
            .kv_cache_format(self.kv_cache)
            .map_files(!self.no_mmap);
        if let Some(threads) = self.threads {
            builder = builder.threads(threads);
        }
        if let Some(tokens) = self.max_context {
            builder = builder.max_context(tokens);
        }
        if let Some(mib) = self.kv_cache_mib {
            builder = builder.kv_cache_bytes(mib.saturating_mul(1 << 20));
        }
        builder.on_progress(progress_bar())
    }

    /// Loads the model and says on stderr what was loaded where.
    pub fn load(&self) -> Result<Engine, Failure> {
        let engine = self.builder().load()?;
        describe(&engine);
        Ok(engine)
    }
}

/// What was loaded, where and how, on stderr.
pub fn describe(engine: &Engine) {
    let info = engine.info();
    let formats: Vec<_> = info.weight_formats.iter().map(|(name, _)| name.as_str()).collect();
    eprintln!(
        "{} ({}, {}) on {} ({}), context {}, loaded in {:.2} s",
        info.path.file_name().unwrap_or_default().to_string_lossy(),
        info.config.architecture.name(),
        formats.join(" + "),
        info.device.device,
        info.device.reason,
        info.max_context,
        info.load_time.as_secs_f64(),
    );
    eprintln!("{}", info.load_report);
    eprintln!("memory: {}", info.memory);
}

/// Draws downloads and loading on stderr; nothing where stderr is no terminal.
fn progress_bar() -> impl FnMut(Progress) + Send + 'static {
    let style = ProgressStyle::with_template("{msg:28!} {wide_bar} {bytes}/{total_bytes} {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::no_length().with_style(style);
    move |progress| {
        let (message, done, total) = match progress {
            Progress::Download { file, bytes_done, bytes_total } => (file, bytes_done, bytes_total),
            Progress::Load(load) => {
                ("loading".to_owned(), load.bytes_done as u64, load.bytes_total as u64)
            }
            _ => return,
        };
        bar.set_length(total);
        bar.set_position(done);
        bar.set_message(message);
        if done >= total {
            bar.reset();
        }
    }
}

/// Runs an example: its error, or that of its command line, in one line on stderr, exit code 2.
pub fn run<Options: Parser>(main: impl FnOnce(Options) -> Result<(), Failure>) -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => return usage(&error),
    };
    match main(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if output::is_closed_pipe(error.as_ref()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// Prints an error in one line.
pub fn fail(error: &dyn Display) -> ExitCode {
    let line = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    eprintln!("error: {line}");
    ExitCode::from(2)
}

/// What the command line gets for an answer: help as it is, an error in one line.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // A closed pipe is no reason to complain about help.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.to_string();
    let what = text.split("\n\n").next().unwrap_or_default();
    let what = what.strip_prefix("error: ").unwrap_or(what).trim();
    fail(&format_args!("{what}; --help lists the options"))
}

/// Token ids as they are written on a command line: `1,403,407`.
#[derive(Debug, Clone)]
pub struct TokenList(pub Vec<u32>);

impl std::str::FromStr for TokenList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let id = |part: &str| {
            part.trim().parse().map_err(|_| {
                format!("`{}` is no token id: give numbers with commas, as 1,403,407", part.trim())
            })
        };
        text.split(',').map(id).collect::<Result<_, _>>().map(Self)
    }
}
