//! Continues given tokens, greedily unless told otherwise.
//!
//! `cargo run --release --example generate -- --tokens 1,403 --max-tokens 32 --json`

mod support;

use std::process::ExitCode;

use clap::{Parser, builder::NonEmptyStringValueParser};
use engine::{Prompt, Request};
use support::{Failure, ModelOptions, TokenList, output::print_line, sampling::SamplingOptions};

#[derive(Parser)]
#[command(about = "Continues given tokens or a text")]
struct Options {
    #[command(flatten)]
    model: ModelOptions,
    /// Token ids to continue, as 1,403,407
    #[arg(long, required_unless_present = "prompt", conflicts_with = "prompt")]
    tokens: Option<TokenList>,
    /// Text to continue
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    prompt: Option<String>,
    /// New tokens at most
    #[arg(long, default_value_t = 32)]
    max_tokens: usize,
    /// Go on past the model's end-of-sequence tokens
    #[arg(long)]
    ignore_eos: bool,
    /// Completions of the same prompt
    #[arg(long, default_value_t = 1)]
    n: usize,
    /// End at this text; may be given several times
    #[arg(long)]
    stop: Vec<String>,
    #[command(flatten)]
    sampling: SamplingOptions,
    /// Print JSON: {"tokens":[...]}, the new tokens
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    support::run(generate)
}

fn generate(options: Options) -> Result<(), Failure> {
    let engine = options.model.load()?;
    let prompt = match (options.tokens, options.prompt) {
        (Some(tokens), _) => Prompt::Tokens(tokens.0),
        (None, text) => Prompt::Text(text.unwrap_or_default()),
    };
    let request = Request {
        ignore_eos: options.ignore_eos,
        stop: options.stop,
        n: options.n,
        sampling: options.sampling.params(engine.info())?,
        ..Request::new(prompt).max_tokens(options.max_tokens)
    };
    let completion = engine.generate(request)?;
    for choice in &completion.choices {
        if options.json {
            print_line(&serde_json::json!({ "tokens": choice.tokens }).to_string())?;
        } else if engine.info().tokenizer.is_some() {
            print_line(&choice.text)?;
        } else {
            let ids: Vec<_> = choice.tokens.iter().map(u32::to_string).collect();
            print_line(&ids.join(","))?;
        }
    }
    Ok(())
}
