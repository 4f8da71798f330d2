//! Writes the logits of given tokens to a safetensors file: tensor `logits`, f32, `[tokens, vocab]`.
//!
//! `cargo run --release --example logits -- --tokens 1,403,407 --output logits.safetensors`

mod support;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use engine::{PromptReport, Request};
use safetensors::{Dtype, tensor::TensorView};
use support::{Failure, ModelOptions, TokenList, output::WholeFile};

#[derive(Parser)]
#[command(about = "Writes the logits of given tokens to a safetensors file")]
struct Options {
    #[command(flatten)]
    model: ModelOptions,
    /// Token ids, as 1,403,407
    #[arg(long)]
    tokens: TokenList,
    /// The file to write
    #[arg(long)]
    output: PathBuf,
}

fn main() -> ExitCode {
    support::run(|options| write_logits(&options))
}

fn write_logits(options: &Options) -> Result<(), Failure> {
    let file = WholeFile::create(&options.output)?;
    let engine = options.model.load()?;
    let request =
        Request::tokens(options.tokens.0.clone()).max_tokens(0).prompt_report(PromptReport::Logits);
    let output = engine.generate(request)?.prompt.ok_or("the engine reported no logits")?;
    let shape = vec![output.tokens.len(), engine.info().config.vocab_size];
    let bytes: Vec<u8> = output.logits.iter().flat_map(|logit| logit.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, shape.clone(), &bytes)?;
    file.write(&safetensors::serialize([("logits", view)], None)?)?;
    eprintln!("wrote logits {shape:?} to {}", options.output.display());
    Ok(())
}
