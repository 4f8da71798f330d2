//! [`Message`]: one turn of a conversation.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One turn of a conversation, in the shape chat templates and chat APIs share.
///
/// ```
/// use engine::Message;
///
/// let message = Message::user("Hello!");
/// assert_eq!(serde_json::to_string(&message)?, r#"{"role":"user","content":"Hello!"}"#);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, or what else the template knows.
    pub role: String,
    /// What was said; nothing for an assistant's message of tool calls alone.
    #[serde(default)]
    pub content: Option<Content>,
    /// The tools that an assistant's message calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Which call a `tool` message answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Who speaks, or which tool answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whatever else a template reads, as `reasoning_content`.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// What a message says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// Plain text.
    Text(String),
    /// Parts such as `{"type": "text", "text": …}`, passed to the template as they are.
    Parts(Vec<Value>),
}

/// One call of a tool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    /// The name by which a `tool` message answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Always `function` today.
    #[serde(rename = "type", default = "function_kind")]
    pub kind: String,
    /// The function called.
    pub function: FunctionCall,
}

/// A function and its arguments.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FunctionCall {
    /// The function's name.
    pub name: String,
    /// The arguments as an object, or that object as JSON text: a template sees the object.
    pub arguments: Value,
}

fn function_kind() -> String {
    "function".to_owned()
}

impl Message {
    /// A message of plain text.
    #[must_use]
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: Some(Content::Text(content.into())),
            tool_calls: Vec::new(),
            tool_call_id: None,
            name: None,
            extra: Map::new(),
        }
    }

    /// Says how the assistant shall behave.
    #[must_use]
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    /// What the user says.
    #[must_use]
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// What the model said.
    #[must_use]
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }

    /// A tool's answer.
    #[must_use]
    pub fn tool(content: impl Into<String>) -> Self {
        Self::new("tool", content)
    }

    /// The same message with the arguments of its calls as objects, as templates expect them.
    pub(crate) fn with_parsed_arguments(&self) -> Self {
        let mut message = self.clone();
        for call in &mut message.tool_calls {
            let arguments = &mut call.function.arguments;
            let parsed = arguments.as_str().and_then(|text| serde_json::from_str(text).ok());
            if let Some(object @ Value::Object(_)) = parsed {
                *arguments = object;
            }
        }
        message
    }
}
