//! Talks to a model, or completes one prompt.
//!
//! `cargo run --release --example chat`
//! `cargo run --release --example chat -- --prompt "Once upon a time" --temperature 0`

mod support;

use std::{
    io::{BufRead, IsTerminal},
    ops::ControlFlow,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};

use clap::{Parser, builder::NonEmptyStringValueParser};
use engine::{
    ChatOptions, ChatTemplate, Engine, Event, FinishReason, Message, Request, SamplingParams,
    Tokenizer, Usage,
};
use rustyline::{DefaultEditor, error::ReadlineError};
use support::{Failure, ModelOptions, output, sampling::SamplingOptions};

#[derive(Parser)]
#[command(about = "Talks to a model, or completes one prompt")]
struct Options {
    #[command(flatten)]
    model: ModelOptions,
    /// Complete this and end: the completion goes to stdout, everything else to stderr
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    prompt: Option<String>,
    /// How the assistant shall behave; needs a model with a chat template
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// New tokens of a reply at most; by default up to the reply's end, but 64 for a model that
    /// continues text
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    #[command(flatten)]
    sampling: SamplingOptions,
}

/// A continued text has no end of its own.
const CONTINUATION_TOKENS: usize = 64;
/// How often a reply looks for Ctrl-C while no token comes.
const POLL: Duration = Duration::from_millis(50);

const HELP: &str = "\
/help   this list
/reset  forgets the conversation
/stats  times and token counts of the last reply
/quit   ends, as does Ctrl-D
Ctrl-C stops a reply.";

fn main() -> ExitCode {
    support::run(chat)
}

fn chat(options: Options) -> Result<(), Failure> {
    let engine = options.model.load()?;
    let sampling = options.sampling.over(engine.info().default_sampling(), engine.info())?;
    let mut talk = Talk::new(&engine, sampling, options.max_tokens, options.system)?;
    match options.prompt {
        Some(prompt) => talk.reply(&prompt),
        None if std::io::stdin().is_terminal() => converse(talk),
        None => answer_lines(talk),
    }
}

/// Reads lines from a terminal until the user ends.
fn converse(mut talk: Talk<'_>) -> Result<(), Failure> {
    let stop = talk.stop.clone();
    ctrlc::set_handler(move || stop.store(true, Ordering::Relaxed))?;
    eprintln!("/help lists the commands");
    let mut editor = DefaultEditor::new()?;
    let mut interrupted = false;
    loop {
        let line = match editor.readline("> ") {
            Ok(line) => line,
            Err(ReadlineError::Eof) => return Ok(()),
            Err(ReadlineError::Interrupted) if interrupted => return Ok(()),
            Err(ReadlineError::Interrupted) => {
                eprintln!("Ctrl-C once more, Ctrl-D or /quit ends");
                interrupted = true;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        interrupted = false;
        if !line.trim().is_empty() {
            editor.add_history_entry(&line)?;
        }
        match talk.take(&line) {
            Ok(ControlFlow::Continue(())) => {}
            Ok(ControlFlow::Break(())) => return Ok(()),
            Err(error) if output::is_closed_pipe(error.as_ref()) => return Err(error),
            Err(error) => {
                support::fail(&error);
            }
        }
    }
}

/// Answers each line of a file or pipe.
fn answer_lines(mut talk: Talk<'_>) -> Result<(), Failure> {
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|error| format!("cannot read stdin: {error}"))?;
        if talk.take(&line)?.is_break() {
            break;
        }
    }
    Ok(())
}

/// A conversation with a loaded model.
struct Talk<'a> {
    engine: &'a Engine,
    tokenizer: &'a Tokenizer,
    sampling: SamplingParams,
    max_tokens: Option<usize>,
    system: Option<String>,
    history: History<'a>,
    usage: Option<Usage>,
    /// Set by Ctrl-C.
    stop: Arc<AtomicBool>,
}

/// What was said so far.
#[derive(Clone)]
enum History<'a> {
    /// With a chat template.
    Messages(&'a ChatTemplate, Vec<Message>),
    /// Without one: the tokens of a text that goes on.
    Text(Vec<u32>),
}

/// What came of one request.
#[derive(Default)]
struct Reply {
    text: String,
    tokens: Vec<u32>,
    usage: Usage,
    reason: Option<FinishReason>,
}

impl<'a> Talk<'a> {
    fn new(
        engine: &'a Engine,
        sampling: SamplingParams,
        max_tokens: Option<usize>,
        system: Option<String>,
    ) -> Result<Self, Failure> {
        let info = engine.info();
        let tokenizer = info
            .tokenizer
            .as_ref()
            .ok_or("the model directory has no tokenizer.json, which a chat needs")?;
        let history = match info.chat_template() {
            Some(template) => History::Messages(template, Vec::new()),
            None => {
                eprintln!("the model has no chat template: it continues what you write");
                if system.is_some() {
                    return Err("--system needs a model with a chat template".into());
                }
                History::Text(Vec::new())
            }
        };
        let stop = Arc::default();
        let mut talk =
            Self { engine, tokenizer, sampling, max_tokens, system, history, usage: None, stop };
        talk.reset();
        Ok(talk)
    }

    /// Runs a command or answers what was said.
    fn take(&mut self, line: &str) -> Result<ControlFlow<()>, Failure> {
        match line.trim() {
            "/quit" | "/exit" => return Ok(ControlFlow::Break(())),
            "/help" => eprintln!("{HELP}"),
            "/reset" => {
                self.reset();
                eprintln!("the conversation is forgotten");
            }
            "/stats" => self.print_stats(),
            // Nothing said: a text goes on by itself.
            "" if !matches!(&self.history, History::Text(tokens) if !tokens.is_empty()) => {}
            command if command.starts_with('/') => {
                eprintln!("unknown command {command}: /help lists them");
            }
            _ => self.reply(line)?,
        }
        Ok(ControlFlow::Continue(()))
    }

    fn reset(&mut self) {
        match &mut self.history {
            History::Text(tokens) => tokens.clear(),
            History::Messages(_, messages) => {
                messages.clear();
                messages.extend(self.system.as_ref().map(Message::system));
            }
        }
    }

    /// Answers on stdout and keeps both sides; a failed turn leaves the conversation as it was.
    fn reply(&mut self, line: &str) -> Result<(), Failure> {
        let before = self.history.clone();
        let said = self.say(line).and_then(|()| self.answer());
        match said {
            Ok(reply) if reply.tokens.is_empty() && reply.reason.is_none() => self.history = before,
            Ok(reply) => self.keep(reply),
            Err(error) => {
                self.history = before;
                return Err(error);
            }
        }
        Ok(())
    }

    fn say(&mut self, line: &str) -> Result<(), Failure> {
        match &mut self.history {
            History::Messages(_, messages) => messages.push(Message::user(line)),
            History::Text(tokens) => {
                let first = tokens.is_empty();
                tokens.extend(self.tokenizer.encode(line, first)?);
            }
        }
        Ok(())
    }

    fn keep(&mut self, reply: Reply) {
        match &mut self.history {
            History::Messages(_, messages) => messages.push(Message::assistant(reply.text)),
            History::Text(tokens) => {
                tokens.extend(reply.tokens);
                // The text goes on, so its end must not stand in it.
                if matches!(reply.reason, Some(FinishReason::StopToken(_))) {
                    tokens.pop();
                }
            }
        }
        self.usage = Some(reply.usage);
    }

    /// Streams the model's answer to stdout, until its end or Ctrl-C.
    fn answer(&self) -> Result<Reply, Failure> {
        let request = self.request()?;
        let prompt_tokens = match &request.prompt {
            engine::Prompt::Tokens(tokens) => tokens.len(),
            _ => 0,
        };
        self.stop.store(false, Ordering::Relaxed);
        let start = Instant::now();
        let mut generation = self.engine.submit(request)?;
        let mut reply = Reply::default();
        reply.usage.prompt_tokens = prompt_tokens;
        loop {
            if self.stop.swap(false, Ordering::Relaxed) {
                // Dropping the generation cancels it.
                drop(generation);
                reply.usage.completion_tokens = reply.tokens.len();
                reply.usage.total_time = start.elapsed();
                break;
            }
            let event = match generation.poll_next(POLL) {
                Poll::Pending => continue,
                Poll::Ready(None) => break,
                Poll::Ready(Some(event)) => event?,
            };
            let text = match event {
                Event::Token { token, text, .. } => {
                    if reply.tokens.is_empty() {
                        reply.usage.time_to_first_token = start.elapsed();
                    }
                    reply.tokens.push(token);
                    text
                }
                Event::Finished { text, reason, .. } => {
                    reply.reason = Some(reason);
                    text
                }
                Event::Done(usage) => {
                    reply.usage = usage;
                    continue;
                }
                _ => continue,
            };
            output::print(&text)?;
            reply.text.push_str(&text);
        }
        output::print("\n")?;
        self.explain_end(&reply);
        Ok(reply)
    }

    /// Says on stderr why a reply is not complete.
    fn explain_end(&self, reply: &Reply) {
        let length = reply.usage.prompt_tokens + reply.tokens.len();
        match &reply.reason {
            None => eprintln!("stopped"),
            Some(FinishReason::Length) if length >= self.engine.info().max_context => {
                eprintln!("the context of {length} tokens is full: /reset starts anew");
            }
            _ => {}
        }
    }

    fn request(&self) -> Result<Request, Failure> {
        let (ids, usual) = match &self.history {
            History::Text(tokens) => (tokens.clone(), CONTINUATION_TOKENS),
            History::Messages(template, messages) => {
                let text = template.render(messages, &ChatOptions::default())?;
                // The template has written the special tokens itself.
                (self.tokenizer.encode(&text, false)?, usize::MAX)
            }
        };
        let context = self.engine.info().max_context;
        if ids.len() >= context {
            let tokens = ids.len();
            return Err(format!(
                "{tokens} tokens leave no room for a reply in the context of {context}: write \
                 less, or start anew with /reset"
            )
            .into());
        }
        let limit = self.max_tokens.unwrap_or(usual).min(context - ids.len());
        Ok(Request::tokens(ids).max_tokens(limit).sampling(self.sampling.clone()))
    }

    fn print_stats(&self) {
        let Some(usage) = &self.usage else {
            eprintln!("no reply yet");
            return;
        };
        let speed = usage
            .decode_tokens_per_second()
            .map_or_else(|| "-".to_owned(), |speed| format!("{speed:.1} tokens/s"));
        eprintln!(
            "first token after {:.1} ms, then {speed}; prompt {} tokens ({} of them cached), reply \
             {} tokens",
            usage.time_to_first_token.as_secs_f64() * 1e3,
            usage.prompt_tokens,
            usage.cached_tokens,
            usage.completion_tokens,
        );
    }
}
