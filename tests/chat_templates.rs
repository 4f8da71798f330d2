//! Chat templates of real models against recorded prompts, and templates that mean harm.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

use engine::{ChatOptions, ChatTemplate, ChatTemplateError, Content, Message, Tokenizer};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Fixtures {
    templates: Vec<Fixture>,
}

#[derive(Deserialize)]
struct Fixture {
    template: String,
    tokenizer: String,
    bos_token: Option<String>,
    eos_token: Option<String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    case: String,
    messages: Vec<Message>,
    #[serde(default)]
    tools: Vec<Value>,
    add_generation_prompt: bool,
    rendered: String,
    ids: Option<Vec<u32>>,
}

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path)
}

#[test]
fn recorded_prompts_are_reproduced() {
    let path = data("fixtures/chat_templates.json");
    let fixtures: Fixtures = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let (mut num_cases, mut num_encoded) = (0, 0);
    for fixture in &fixtures.templates {
        let dir = data(fixture.tokenizer.strip_suffix("/tokenizer.json").unwrap());
        let tokenizer = Tokenizer::load(dir).unwrap();
        let tokens = [("bos_token", &fixture.bos_token), ("eos_token", &fixture.eos_token)];
        let tokens = tokens.into_iter().filter_map(|(name, text)| Some((name, text.clone()?)));
        let source = fs::read_to_string(data(&fixture.template)).unwrap();
        let template = ChatTemplate::new(source, tokens);
        for case in &fixture.cases {
            let name = format!("{}, {}", fixture.template, case.case);
            let options = ChatOptions {
                tools: case.tools.clone(),
                add_generation_prompt: case.add_generation_prompt,
                ..ChatOptions::default()
            };
            let prompt = template.render(&case.messages, &options).unwrap();
            assert_eq!(prompt, case.rendered, "{name}");
            num_cases += 1;
            if let Some(ids) = &case.ids {
                assert_eq!(&tokenizer.encode(&prompt, false).unwrap(), ids, "{name}");
                num_encoded += 1;
            }
        }
    }
    assert_eq!((fixtures.templates.len(), num_cases, num_encoded), (6, 72, 60));
}

#[test]
fn the_template_of_a_directory_is_used() {
    let tokenizer = Tokenizer::load(data("tokenizers/qwen2.5")).unwrap();
    let template = tokenizer.chat_template().unwrap().unwrap();
    let prompt = template.render(&[Message::user("Hi")], &ChatOptions::default()).unwrap();
    assert!(
        prompt.ends_with("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
        "{prompt}"
    );
}

/// What `source` makes of a user's "Hi".
fn render(source: &str) -> Result<String, ChatTemplateError> {
    render_with(source, &ChatOptions::default())
}

fn render_with(source: &str, options: &ChatOptions) -> Result<String, ChatTemplateError> {
    let template = ChatTemplate::new(source, [("bos_token", "<s>")]);
    template.render(&[Message::user("Hi")], options)
}

#[test]
fn jinja_behaves_as_in_transformers() {
    for (source, expected) in [
        // Blocks take their line with them.
        ("a\n  {% if true %}\nb\n  {% endif %}\nc\n", "a\nb\nc"),
        ("{{ bos_token }}{{ eos_token }}|", "<s>|"),
        ("{{ '  x '.strip() }}{{ 'ab'.upper() }}{{ 'a,b'.split(',')[1] }}", "xABb"),
        (
            "{{ {'a': 1}.get('b', 2) }}{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}",
            "2a1",
        ),
        ("{{ messages[::-1][0].role }}{{ messages[-1]['content'] }}", "userHi"),
        ("{{ true }} {{ none }} {{ 1.0 }} {{ tools is none }}", "True None 1.0 True"),
        (
            "{% set ns = namespace(n=0) %}{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}\
          {% if i == 3 %}{% break %}{% endif %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
            "2",
        ),
        (
            "{% macro m(x, y='d') %}{{ x }}{{ y }}{% endmacro %}{{ m('a') }}{{ m('b', y='c') }}",
            "adbc",
        ),
        ("x {%- generation -%} y {%- endgeneration %} z", "xy z"),
        ("{% generation %}\nx{% endgeneration %}\ny", "xy"),
        ("{{ '<a>&\\'' }}", "<a>&'"),
        ("{{ {'b': '<é>', 'a': [1, none]} | tojson }}", r#"{"b": "<é>", "a": [1, null]}"#),
        (
            "{{ {'b': 1, 'a': 'é'} | tojson(ensure_ascii=true, sort_keys=true) }}",
            r#"{"a": "\u00e9", "b": 1}"#,
        ),
        ("{{ [1, {}] | tojson(indent=2) }}", "[\n  1,\n  {}\n]"),
        ("{{ [1, {'a': 2}] | tojson(separators=(',', ':')) }}", r#"[1,{"a":2}]"#),
        ("{{ strftime_now('%d %b %Y') | length }}", "11"),
    ] {
        assert_eq!(render(source).unwrap(), expected, "{source}");
    }
}

#[test]
fn tools_keep_the_order_of_their_keys() {
    let tool = r#"{"type":"function","function":{"name":"f","description":"d","arguments":{"z":1,"a":2}}}"#;
    let options =
        ChatOptions { tools: vec![serde_json::from_str(tool).unwrap()], ..ChatOptions::default() };
    let prompt = render_with("{{ tools[0] | tojson(separators=(',', ':')) }}", &options).unwrap();
    assert_eq!(prompt, tool);
}

#[test]
fn arguments_of_calls_are_objects_for_the_template() {
    let mut message = Message::assistant("");
    message.content = None;
    let call = json!({"id": "1", "type": "function",
        "function": {"name": "f", "arguments": "{\"b\": 1, \"a\": [2]}"}});
    message.tool_calls = vec![serde_json::from_value(call).unwrap()];
    let template = ChatTemplate::new(
        "{% for m in messages %}{{ m.content is none }} \
         {%- for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}",
        [("", "")],
    );
    let prompt = template.render(&[message], &ChatOptions::default()).unwrap();
    assert_eq!(prompt, r#"True{"b": 1, "a": [2]}"#);
}

#[test]
fn messages_keep_what_they_do_not_know() {
    let source = json!({"role": "tool", "content": [{"type": "text", "text": "x"}],
        "tool_call_id": "7", "name": "f", "reasoning_content": "because"});
    let message: Message = serde_json::from_value(source.clone()).unwrap();
    assert!(matches!(message.content, Some(Content::Parts(_))));
    assert_eq!(message.extra["reasoning_content"], "because");
    assert_eq!(serde_json::to_value(&message).unwrap(), source);
}

#[test]
fn extra_variables_reach_the_template() {
    let mut options = ChatOptions { add_generation_prompt: false, ..ChatOptions::default() };
    options.extra.insert("enable_thinking".to_owned(), json!(false));
    let source =
        "{{ enable_thinking is defined and enable_thinking is false }}{{ add_generation_prompt }}";
    assert_eq!(render_with(source, &options).unwrap(), "TrueFalse");
}

#[test]
fn a_template_may_refuse_in_its_own_words() {
    let error = render("{{ raise_exception('Roles must alternate') }}").unwrap_err();
    assert!(
        matches!(&error, ChatTemplateError::Refused { message } if message == "Roles must alternate")
    );
    assert_eq!(
        error.to_string(),
        "the model's chat template refuses this conversation: Roles must alternate"
    );
    let nested = "{% macro f() %}{{ raise_exception('no') }}{% endmacro %}{{ f() }}";
    assert!(matches!(render(nested), Err(ChatTemplateError::Refused { .. })));
}

#[test]
fn failures_name_the_line() {
    for (source, line, reason) in [
        ("a\n{% if %}", 2, "syntax error"),
        ("a\nb\n{{ nothing.at.all }}", 3, "undefined"),
        ("{{ 'x' | no_such_filter }}", 1, "no_such_filter"),
        ("{{ strftime_now('%') }}", 1, "strftime_now"),
        ("{{ 1 | tojson(colour=1) }}", 1, "colour"),
    ] {
        match render(source) {
            Err(ChatTemplateError::Failed { line: found, reason: text, .. }) => {
                assert_eq!(found, line, "{source}: {text}");
                assert!(text.contains(reason), "{source}: {text}");
            }
            other => panic!("{source}: {other:?}"),
        }
    }
}

/// Each must come back, with whatever result, on a thread with an ordinary stack.
#[test]
fn hostile_templates_come_to_an_end() {
    let deep =
        |open: &str, close: &str| format!("{{{{ {}1{} }}}}", open.repeat(5000), close.repeat(5000));
    let forever = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
    let hostile = [
        forever.to_owned(),
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".to_owned(),
        "{% for a in range(9999) %}{{ 'x' * 100000 }}{% endfor %}".to_owned(),
        "{{ range(1000000000) | list }}".to_owned(),
        "{{ 'x' * 99999999999 }}".to_owned(),
        "{% set ns = namespace(x=[]) %}{% for a in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}".to_owned(),
        "{% set ns = namespace(x=[]) %}{% for a in range(7000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}".to_owned(),
        "{% set ns = namespace(x=[]) %}{% for a in range(7000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}".to_owned(),
        "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns.x }}{{ ns | tojson }}".to_owned(),
        deep("(", ")"),
        deep("[", "]"),
        deep("not ", ""),
        "{% if true %}".repeat(5000),
        "{% include 'chat_template' %}".to_owned(),
        "{% extends 'chat_template' %}".to_owned(),
        "{{ '%9999999999d' | format(1) }}".to_owned(),
        "{{ '{:>9999999999}'.format(1) }}".to_owned(),
        "{{ [1, 2] | tojson(indent=99999999999) }}".to_owned(),
    ];
    for source in hostile {
        let shown: String = source.chars().take(80).collect();
        let worker = std::thread::spawn(move || render(&source).map(|text| text.len()));
        if let Ok(prompt_len) = worker.join().unwrap_or_else(|_| panic!("panicked: {shown}")) {
            assert!(prompt_len < 1 << 21, "{shown}: {prompt_len} bytes");
        }
    }
    assert!(matches!(render(forever), Err(ChatTemplateError::Runaway { .. })));
}

#[test]
fn long_conversations_are_not_taken_for_hostile_ones() {
    let messages: Vec<Message> = (0..4000)
        .map(|turn| Message::new(["user", "assistant"][turn % 2], format!("turn {turn}")))
        .collect();
    for name in ["qwen2.5", "minimind", "phi-3-mini"] {
        let tokenizer = Tokenizer::load(data("tokenizers").join(name)).unwrap();
        let template = tokenizer.chat_template().unwrap().unwrap();
        let prompt = template.render(&messages, &ChatOptions::default()).unwrap();
        assert!(prompt.contains("turn 3999"), "{name}");
    }
}

/// Loads the chat template of a directory with these files and a borrowed tokenizer.json.
fn load_with(files: &[(&str, &str)]) -> (tempfile::TempDir, Tokenizer) {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = data("models/stories260K/tokenizer.json");
    fs::copy(tokenizer, dir.path().join("tokenizer.json")).unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    (dir, tokenizer)
}

#[test]
fn templates_are_found_in_every_place_where_models_keep_them() {
    let config = ("tokenizer_config.json", r#"{"chat_template": "config", "bos_token": "<s>"}"#);
    let jinja = ("chat_template.jinja", "jinja {{ bos_token }}");
    let json = ("chat_template.json", r#"{"chat_template": "json"}"#);
    for (files, expected) in [
        (vec![config, jinja, json], "jinja <s>"),
        (vec![config, json], "config"),
        (vec![json], "json"),
    ] {
        let (_dir, tokenizer) = load_with(&files);
        let template = tokenizer.chat_template().unwrap().unwrap();
        assert_eq!(template.render(&[], &ChatOptions::default()).unwrap(), expected);
    }
    let (_dir, tokenizer) = load_with(&[]);
    assert!(tokenizer.chat_template().unwrap().is_none());
}

#[test]
fn of_several_templates_the_fitting_one_is_used() {
    let config = r#"{"chat_template": [{"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "tools"}, {"name": "rag", "template": "documents"}]}"#;
    let (_dir, tokenizer) = load_with(&[("tokenizer_config.json", config)]);
    let template = tokenizer.chat_template().unwrap().unwrap();
    let mut options = ChatOptions::default();
    assert_eq!(template.render(&[], &options).unwrap(), "plain");
    options.tools = vec![json!({})];
    assert_eq!(template.render(&[], &options).unwrap(), "tools");
    options.variant = Some("rag".to_owned());
    assert_eq!(template.render(&[], &options).unwrap(), "documents");
    options.variant = Some("poetry".to_owned());
    let error = template.render(&[], &options).unwrap_err().to_string();
    assert!(error.contains("`poetry`") && error.contains("`tool_use`"), "{error}");
}

#[test]
fn a_broken_template_entry_does_not_cost_the_tokenizer() {
    let (dir, tokenizer) = load_with(&[("tokenizer_config.json", r#"{"chat_template": [1]}"#)]);
    assert!(!tokenizer.has_chat_template());
    assert_eq!(tokenizer.encode("Once", false).unwrap(), [403]);
    let error = tokenizer.chat_template().unwrap_err().to_string();
    assert!(error.starts_with(&dir.path().display().to_string()), "{error}");
}
