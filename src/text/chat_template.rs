//! [`ChatTemplate`]: the prompt of a conversation, as the model was trained to read it.

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::path::PathBuf;

use minijinja::formatting::{FormatStyle, format};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Serde, Value, ValueKind};
use minijinja::{Environment, ErrorKind, State};
use serde_json::Map;

use super::message::Message;
use super::python_json::JsonStyle;

/// A model's Jinja chat template, rendered as the transformers library renders it.
///
/// ```
/// use engine::{ChatOptions, ChatTemplate, Message};
///
/// let template = ChatTemplate::new(
///     "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}\n{% endfor %}\
///      {% if add_generation_prompt %}[assistant]{% endif %}",
///     [("eos_token", "</s>")],
/// );
/// let prompt = template.render(&[Message::user("Hello!")], &ChatOptions::default())?;
/// assert_eq!(prompt, "[user] Hello!</s>\n[assistant]");
/// # Ok::<(), engine::ChatTemplateError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    /// (name, source), as `default` and `tool_use`.
    variants: Vec<(String, String)>,
    special_tokens: Map<String, serde_json::Value>,
}

/// What a chat template is given besides the messages.
#[derive(Clone, Debug)]
pub struct ChatOptions {
    /// Tool descriptions, as JSON schemas in the form that chat APIs share.
    pub tools: Vec<serde_json::Value>,
    /// Ends the prompt where the assistant is to speak. On by default.
    pub add_generation_prompt: bool,
    /// Which template of a model that has several; the fitting one by default.
    pub variant: Option<String>,
    /// Further variables that the template reads, as `enable_thinking`.
    pub extra: Map<String, serde_json::Value>,
}

impl Default for ChatOptions {
    fn default() -> Self {
        Self { tools: Vec::new(), add_generation_prompt: true, variant: None, extra: Map::new() }
    }
}

/// Why a conversation has no prompt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChatTemplateError {
    /// A template file is there and cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file's chat template is not one.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The model has several templates and none of this name.
    #[error("the model has no chat template `{name}`, but {known}; name one of them")]
    NoVariant {
        /// The name looked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// The template refused the conversation in its own words (`raise_exception`).
    #[error("the model's chat template refuses this conversation: {message}")]
    Refused {
        /// What the template says.
        message: String,
    },
    /// The template is not valid Jinja or failed while it ran.
    #[error("chat template `{variant}`, line {line}: {reason}")]
    Failed {
        /// Which of the model's templates.
        variant: String,
        /// Line in the template, from 1; 0 where it is not known.
        line: usize,
        /// What Jinja said.
        reason: String,
    },
    /// The template runs without end or writes without end.
    #[error("chat template `{variant}` was stopped: {reason}; do not trust this model's files")]
    Runaway {
        /// Which of the model's templates.
        variant: String,
        /// Which limit it hit.
        reason: String,
    },
}

/// `raise_exception` of a template, on its way through Jinja's own error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

impl ChatTemplate {
    /// Instructions a template may run: for nothing, for each message or tool, and at most. Known
    /// templates take about a hundred per message.
    const BASE_FUEL: u64 = 50_000;
    const FUEL_PER_ITEM: u64 = 1_000;
    const MAX_FUEL: u64 = 4_000_000;
    /// A value nested as deeply as the fuel allows is printed within this stack. Only the part in
    /// use takes memory.
    const STACK_BYTES: usize = 256 << 20;
    /// Nesting that `tojson` follows.
    const MAX_JSON_DEPTH: usize = 100;
    const MAX_JSON_INDENT: usize = 16;
    /// A prompt longer than this many bytes per byte of input is not one.
    const MAX_GROWTH: usize = 16;
    const BASE_PROMPT_BYTES: usize = 1 << 20;

    /// A template from its source, with the texts of special tokens that it names (`bos_token`, …).
    /// Errors in the source show when it is rendered.
    #[must_use]
    pub fn new<K: Into<String>, V: Into<String>>(
        source: impl Into<String>,
        special_tokens: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        let special_tokens = special_tokens
            .into_iter()
            .map(|(name, text)| (name.into(), serde_json::Value::from(text.into())))
            .collect();
        Self::from_variants(vec![("default".to_owned(), source.into())], special_tokens)
    }

    pub(crate) fn from_variants(
        variants: Vec<(String, String)>,
        special_tokens: Map<String, serde_json::Value>,
    ) -> Self {
        Self { variants, special_tokens }
    }

    /// The prompt of a conversation. Encode it without adding special tokens: the template has
    /// written them.
    ///
    /// # Errors
    /// When the template refuses the conversation, is not valid, fails, or does not come to an end.
    pub fn render(
        &self,
        messages: &[Message],
        options: &ChatOptions,
    ) -> Result<String, ChatTemplateError> {
        let (variant, source) = self.variant(options)?;
        let messages: Vec<Message> = messages.iter().map(Message::with_parsed_arguments).collect();
        let mut context: BTreeMap<&str, Value> = self
            .special_tokens
            .iter()
            .chain(&options.extra)
            .map(|(name, value)| (name.as_str(), Value::from(Serde(value))))
            .collect();
        context.insert("messages", Value::from(Serde(&messages)));
        context.insert("add_generation_prompt", Value::from(options.add_generation_prompt));
        let tools = &options.tools;
        let tools = if tools.is_empty() { Value::from(()) } else { Value::from(Serde(tools)) };
        context.insert("tools", tools);
        context.entry("documents").or_insert(Value::from(()));

        let num_items = (messages.len() + options.tools.len()) as u64;
        let fuel = (Self::BASE_FUEL + Self::FUEL_PER_ITEM * num_items).min(Self::MAX_FUEL);
        let input_len = serde_json::to_string(&messages).map_or(0, |json| json.len());
        let mut prompt = Bounded {
            bytes: Vec::new(),
            max_len: Self::BASE_PROMPT_BYTES + Self::MAX_GROWTH * input_len,
        };
        let source = plain_generation_blocks(source);
        let run = || {
            environment(fuel)?
                .template_from_named_str("chat_template", &source)?
                .render_captured_to(context, &mut prompt)
                .map(|_| ())
        };
        on_deep_stack(Self::STACK_BYTES, run).map_err(|error| failure(variant, &error))?;
        Ok(String::from_utf8_lossy(&prompt.bytes).into_owned())
    }

    /// The template asked for, or `tool_use` where there are tools and it exists, or `default`.
    fn variant(&self, options: &ChatOptions) -> Result<(&str, &str), ChatTemplateError> {
        let find = |name: &str| {
            self.variants.iter().find(|(n, _)| n == name).map(|(n, s)| (n.as_str(), s.as_str()))
        };
        let tool_use = if options.tools.is_empty() { None } else { find("tool_use") };
        let found = match &options.variant {
            Some(name) => find(name),
            None => tool_use.or_else(|| find("default")),
        };
        found.ok_or_else(|| ChatTemplateError::NoVariant {
            name: options.variant.clone().unwrap_or_else(|| "default".to_owned()),
            known: self
                .variants
                .iter()
                .map(|(n, _)| format!("`{n}`"))
                .collect::<Vec<_>>()
                .join(", "),
        })
    }
}

/// Jinja as transformers sets it up.
fn environment<'source>(fuel: u64) -> Result<Environment<'source>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_fuel(Some(fuel));
    environment.set_unknown_method_callback(python_method);
    environment.add_filter("format", format_filter);
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    Ok(environment)
}

fn invalid(message: impl Into<String>) -> minijinja::Error {
    minijinja::Error::new(ErrorKind::InvalidOperation, message.into())
}

/// Python's methods.
fn python_method(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, minijinja::Error> {
    if method == "format" {
        check_widths(value.as_str().unwrap_or_default())?;
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

fn format_filter(text: &str, args: Rest<Value>) -> Result<String, minijinja::Error> {
    check_widths(text)?;
    format(FormatStyle::Printf, text, &args)
}

/// A width of many digits would allocate that much.
fn check_widths(text: &str) -> Result<(), minijinja::Error> {
    let longest = text.split(|c: char| !c.is_ascii_digit()).map(str::len).max();
    if longest > Some(4) || text.contains('*') {
        return Err(invalid("format: the width is absurd"));
    }
    Ok(())
}

fn raise_exception(message: &Value) -> Result<Value, minijinja::Error> {
    Err(invalid("raise_exception").with_source(Refusal(message.to_string())))
}

fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    jiff::fmt::strtime::format(format, &jiff::Zoned::now())
        .map_err(|error| invalid(format!("strftime_now({format:?}): {error}")))
}

/// Runs `work` on a thread with that much stack.
fn on_deep_stack<T: Send>(
    stack_bytes: usize,
    work: impl FnOnce() -> Result<T, minijinja::Error> + Send,
) -> Result<T, minijinja::Error> {
    std::thread::scope(|scope| {
        let worker = std::thread::Builder::new().stack_size(stack_bytes).spawn_scoped(scope, work);
        let worker = worker.map_err(|error| invalid(format!("no thread to run it on: {error}")))?;
        worker.join().unwrap_or_else(|_| Err(invalid("the template engine panicked")))
    })
}

/// Refuses nesting deeper than `levels`.
fn check_depth(value: &Value, levels: usize) -> Result<(), minijinja::Error> {
    if levels == 0 {
        return Err(invalid("tojson: the value is nested too deeply"));
    }
    let Some(object) = value.as_object() else { return Ok(()) };
    if let Some(mut pairs) = object.try_iter_pairs() {
        return pairs.try_for_each(|(_, inner)| check_depth(&inner, levels - 1));
    }
    Ok(())
}

/// `tojson` with the arguments of transformers: ensure_ascii, indent, separators, sort_keys.
fn to_json(
    value: &Value,
    indent: Option<usize>,
    kwargs: Kwargs,
) -> Result<String, minijinja::Error> {
    check_depth(value, ChatTemplate::MAX_JSON_DEPTH)?;
    let json = serde_json::to_value(value).map_err(|error| invalid(format!("tojson: {error}")))?;
    let named: Option<usize> = kwargs.get("indent")?;
    let indent = indent.or(named);
    if indent.is_some_and(|spaces| spaces > ChatTemplate::MAX_JSON_INDENT) {
        return Err(invalid("tojson: the indentation is absurd"));
    }
    let mut style = JsonStyle::new(indent);
    style.ensure_ascii = kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    style.sort_keys = kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    if let Some(separators) = kwargs.get::<Option<Value>>("separators")?
        && separators.kind() != ValueKind::None
    {
        let text = |index| separators.get_item_by_index(index).map(|s| s.to_string());
        style.separators = (text(0)?, text(1)?);
    }
    kwargs.assert_all_used()?;
    Ok(style.dump(&json))
}

/// Rewrites `{% generation %}` blocks, which only mark text for training, to blocks that always
/// apply and keep the whitespace as it is.
fn plain_generation_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(end + 2);
        let inner = tag[2..end].trim_matches(['-', '+']).trim();
        match inner {
            "generation" => out.push_str(&tag.replace(inner, "if true")),
            "endgeneration" => out.push_str(&tag.replace(inner, "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Our error for Jinja's.
fn failure(variant: &str, error: &minijinja::Error) -> ChatTemplateError {
    let variant = variant.to_owned();
    let mut cause: Option<&(dyn Error + 'static)> = error.source();
    while let Some(source) = cause {
        if let Some(Refusal(message)) = source.downcast_ref() {
            return ChatTemplateError::Refused { message: message.clone() };
        }
        cause = source.source();
    }
    match error.kind() {
        ErrorKind::OutOfFuel => ChatTemplateError::Runaway {
            variant,
            reason: "it runs far longer than the conversation explains".to_owned(),
        },
        ErrorKind::WriteFailure => ChatTemplateError::Runaway {
            variant,
            reason: "it writes far more than the conversation explains".to_owned(),
        },
        kind => ChatTemplateError::Failed {
            variant,
            line: error.line().unwrap_or(0),
            reason: match error.detail() {
                Some(detail) => format!("{kind}: {detail}"),
                None => kind.to_string(),
            },
        },
    }
}

/// Refuses to grow over a limit.
struct Bounded {
    bytes: Vec<u8>,
    max_len: usize,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.max_len {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
