//! The examples as a user meets them: run as processes, with good and with foolish input.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use common::{Fixture, data, max_difference, model};
use engine::Device;
use engine_quant::instruction_set::VARIABLE;
use safetensors::SafeTensors;
use serde_json::Value;

/// What a process did.
struct Output {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// The built example; `cargo test` puts it beside the tests.
fn example(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    let path = profile.join("examples").join(name).with_extension(std::env::consts::EXE_EXTENSION);
    assert!(path.is_file(), "{} is not built: cargo build --examples", path.display());
    let mut command = Command::new(path);
    // Mesa complains on stderr where there is none.
    command.env("XDG_RUNTIME_DIR", std::env::temp_dir());
    command
}

fn run(name: &str, arguments: &[&str]) -> Output {
    finished(example(name).args(arguments).stdin(Stdio::null()).output().unwrap())
}

fn run_with_input(name: &str, arguments: &[&str], input: &str) -> Output {
    let pipes = |command: &mut Command| {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
    };
    let mut child = pipes(example(name).args(arguments)).unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    finished(child.wait_with_output().unwrap())
}

fn finished(output: std::process::Output) -> Output {
    Output {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Standard output of a run that must succeed.
fn accepted(name: &str, arguments: &[&str]) -> String {
    let output = run(name, arguments);
    assert_eq!(output.code, Some(0), "{name} {arguments:?}: {}", output.stderr);
    output.stdout
}

/// The one line of a run that must be refused.
fn refused(name: &str, arguments: &[&str]) -> String {
    let output = run(name, arguments);
    let about = format!("{name} {arguments:?}\n{}", output.stderr);
    assert_eq!(output.code, Some(2), "{about}");
    assert_eq!(output.stdout, "", "{about}");
    let errors = output.stderr.lines().filter(|line| line.starts_with("error:")).count();
    assert_eq!(errors, 1, "{about}");
    let last = output.stderr.lines().last().unwrap();
    assert!(last.starts_with("error: "), "{about}");
    assert!(!output.stderr.contains("panicked"), "{about}");
    last.to_owned()
}

/// Refused, and the line says each of `words`.
fn refused_saying(name: &str, arguments: &[&str], words: &[&str]) {
    let line = refused(name, arguments);
    for word in words {
        assert!(line.contains(word), "{name} {arguments:?} does not say `{word}`: {line}");
    }
}

fn stories_text(key: &str) -> String {
    let fixture = Fixture::open("stories260K");
    fixture.json["prompts"][0][key].as_str().unwrap().to_owned()
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().next().is_none()
}

/// A copy of the small model, to be damaged.
fn copied_model(folder: &Path) -> PathBuf {
    let copy = folder.join("model");
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(model("stories260K")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    copy
}

#[test]
fn chat_completes_a_prompt_as_the_reference_does() {
    let arguments = ["--device", "cpu", "--prompt", "Once upon a time", "--temperature", "0"];
    let expected = stories_text("greedy_text");
    assert_eq!(accepted("chat", &arguments), format!("{expected}\n"));
    let short = accepted("chat", &[&arguments[..], &["--max-tokens", "3"]].concat());
    assert!(expected.starts_with(short.trim_end()) && short.len() < 30, "{short}");
}

#[test]
fn chat_draws_the_same_text_from_the_same_seed() {
    let draw = |seed| {
        let options = ["--device", "cpu", "--prompt", "Lily", "--temperature", "1.2"];
        accepted("chat", &[&options[..], &["--max-tokens", "24", "--seed", seed]].concat())
    };
    assert_eq!(draw("7"), draw("7"));
    assert_ne!(draw("7"), draw("8"));
}

#[test]
fn chat_goes_on_with_each_line_and_says_how_it_went() {
    let options = ["--device", "cpu", "--temperature", "0", "--max-tokens", "8"];
    let input = "Once upon a time\n\n/stats\n/nonsense\n/reset\nOnce upon a time\n/quit\nunread\n";
    let output = run_with_input("chat", &options, input);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    let lines: Vec<_> = output.stdout.lines().collect();
    let [first, second, again] = lines[..] else { panic!("{}", output.stdout) };
    let reference = stories_text("greedy_text");
    assert!(reference.starts_with(&format!("{first}{second}")), "{first}{second}");
    assert_eq!(first, again);
    assert!(output.stderr.contains("prompt 13 tokens"), "{}", output.stderr);
    assert!(output.stderr.contains("unknown command /nonsense"), "{}", output.stderr);
    let hints = output.stderr.matches("has no chat template").count();
    assert_eq!(hints, 1, "{}", output.stderr);
}

#[test]
fn chat_says_that_the_context_is_full() {
    let options = ["--device", "cpu", "--temperature", "0", "--max-context", "24"];
    let output = run_with_input("chat", &options, "Once upon a time\nand then\n");
    assert_eq!(output.code, Some(2), "{}", output.stderr);
    assert!(output.stderr.contains("the context of 24 tokens is full"), "{}", output.stderr);
    assert!(output.stderr.lines().last().unwrap().contains("/reset"), "{}", output.stderr);
}

#[test]
#[cfg(unix)]
fn a_reader_that_goes_away_is_no_failure() {
    let mut command = example("chat");
    command.args(["--device", "cpu", "--prompt", "Once upon a time", "--max-tokens", "200"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = finished(child.wait_with_output().unwrap());
    assert!(!output.stderr.contains("panicked"), "{}", output.stderr);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
}

#[test]
fn generate_prints_the_reference_tokens() {
    let fixture = Fixture::open("stories260K");
    let ids = |name: &str| fixture.ids(name).iter().map(u32::to_string).collect::<Vec<_>>();
    let tokens = ids("prompt0.input_ids").join(",");
    let arguments =
        ["--device", "cpu", "--tokens", &tokens, "--max-tokens", "64", "--ignore-eos", "--json"];
    let json: Value = serde_json::from_str(&accepted("generate", &arguments)).unwrap();
    let expected: Vec<Value> =
        fixture.ids("prompt0.greedy_ids").into_iter().map(Value::from).collect();
    assert_eq!(json["tokens"].as_array(), Some(&expected));
}

/// A run whose kernels use no wider instruction set than this.
fn limited(instruction_set: &str, name: &str, arguments: &[&str]) -> Output {
    let mut command = example(name);
    command.args(arguments).env(VARIABLE, instruction_set).stdin(Stdio::null());
    finished(command.output().unwrap())
}

#[test]
fn every_instruction_set_continues_alike() {
    let fixture = Fixture::open("stories260K");
    let ids: Vec<_> = fixture.ids("prompt0.input_ids").iter().map(u32::to_string).collect();
    for quant in ["none", "none+activations=16bit", "int8", "int4:group=32+activations=16bit"] {
        let tokens = ids.join(",");
        let arguments = ["--device", "cpu", "--quant", quant, "--tokens", &tokens];
        let arguments =
            [&arguments[..], &["--max-tokens", "64", "--ignore-eos", "--json"]].concat();
        let expected: Value = serde_json::from_str(&accepted("generate", &arguments)).unwrap();
        for widest in ["portable", "avx2", "avx-vnni", "avx512"] {
            let output = limited(widest, "generate", &arguments);
            assert_eq!(output.code, Some(0), "{}", output.stderr);
            let found: Value = serde_json::from_str(&output.stdout).unwrap();
            assert_eq!(found["tokens"], expected["tokens"], "{quant} with {widest}");
        }
    }
    let output = limited("sse9", "generate", &["--tokens", "1"]);
    assert_eq!(output.code, Some(2), "{}", output.stderr);
    assert!(output.stderr.contains("sse9") && output.stderr.contains("avx2"), "{}", output.stderr);
}

#[test]
fn logits_are_those_of_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("logits.safetensors");
    let fixture = Fixture::open("stories260K");
    let ids = fixture.ids("prompt0.input_ids");
    let tokens = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let path = file.display().to_string();
    let stdout = accepted("logits", &["--device", "cpu", "--tokens", &tokens, "--output", &path]);
    assert_eq!(stdout, "");
    let bytes = fs::read(&file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let logits = tensors.tensor("logits").unwrap();
    assert_eq!(logits.shape(), [ids.len(), 512]);
    let found: Vec<f32> =
        logits.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let expected = fixture.floats("prompt0.logits").unwrap();
    assert!(max_difference(&found, &expected) < common::LOGIT_TOLERANCE);
}

#[test]
fn perplexities_are_those_of_the_reference() {
    let fixture = Fixture::open("stories260K");
    let mut compared = 0;
    for expected in fixture.json["perplexity"].as_array().unwrap() {
        let text = data().join("text").join(expected["text"].as_str().unwrap());
        if !text.is_file() {
            continue;
        }
        let method = match expected["method"].as_str().unwrap() {
            "per_document" => "per-document",
            "chunked256" => "chunked:256",
            "strided256_128" => "strided:256:128",
            other => panic!("unknown method {other}"),
        };
        let text = text.display().to_string();
        let arguments = ["--device", "cpu", "--text", &text, "--method", method, "--json"];
        let found: Value = serde_json::from_str(&accepted("perplexity", &arguments)).unwrap();
        for (key, reference) in [("perplexity", "perplexity"), ("mean_nll", "mean_nll")] {
            let (found, reference) = (found[key].as_f64(), expected[reference].as_f64());
            let relative = found.unwrap() / reference.unwrap() - 1.0;
            assert!(relative.abs() < 1e-3, "{text} {method} {key}: {found:?}, {reference:?}");
        }
        assert_eq!(found["scored_tokens"], expected["n_scored"]);
        assert!(found["weight_bytes"].as_u64().unwrap() > 100_000);
        compared += 1;
    }
    assert_eq!(compared, 5);
}

#[test]
fn the_benchmark_writes_its_table_and_its_json() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("report.json");
    let path = file.display().to_string();
    let row = ["--batch", "2", "--prompt-tokens", "20", "--output-tokens", "5", "--threads", "1"];
    let table = accepted("bench_cpu", &[&row[..], &["--repeats", "2", "--json", &path]].concat());
    assert_eq!(table.lines().filter(|line| line.starts_with("| engine cpu |")).count(), 1);
    let report: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert!(report["machine"]["bandwidth_bytes_per_s"].as_f64().unwrap() > 1e8);
    assert!(report["machine"]["matrix_flops_per_s"].as_f64().unwrap() > 1e8);
    let [row] = &report["rows"].as_array().unwrap()[..] else { panic!("{report}") };
    let asked = [("batch", 2), ("prompt_tokens", 20), ("output_tokens", 5), ("repeats", 2)];
    asked.iter().for_each(|(key, value)| assert_eq!(row[key], *value, "{key}"));
    assert_eq!((&row["shape"], &row["quant"]), (&"stories260K".into(), &"none".into()));
    for key in ["ttft_ms", "prefill_tokens_per_s", "decode_tokens_per_s", "bandwidth_fraction"] {
        assert!(row[key].as_f64().unwrap() > 0.0, "{key}: {row}");
    }
    let has_peak = row["peak_memory_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20);
    assert_eq!(has_peak, cfg!(target_os = "linux"), "{row}");
}

#[test]
fn help_is_help() {
    for name in ["chat", "generate", "logits", "perplexity", "bench_cpu", "batch", "load_test"] {
        assert!(accepted(name, &["--help"]).contains("--model"), "{name}");
    }
}

#[test]
fn missing_and_unknown_options_are_refused() {
    refused_saying("generate", &[], &["--tokens"]);
    refused_saying("logits", &["--tokens", "1"], &["--output"]);
    refused_saying("perplexity", &[], &["--text"]);
    refused_saying("chat", &["--promt", "x"], &["--promt"]);
    refused_saying("generate", &["--tokens", "1,x"], &["`x`", "token id"]);
    refused_saying("generate", &["--tokens", "1", "--max-tokens", "-3"], &["-3"]);
    refused_saying("generate", &["--tokens", "1", "--device", "gpu"], &["gpu", "cuda"]);
    refused_saying("generate", &["--tokens", "1", "--quant", "int9"], &["int9", "none"]);
    refused_saying("bench_cpu", &["--quant", "int9"], &["int9", "none"]);
    let kv_cache = ["--tokens", "1", "--kv-cache", "int4"];
    refused_saying("generate", &kv_cache, &["int4", "use f32 or int8"]);
    refused_saying("bench_cpu", &["--shape", "llama-9"], &["llama-9", "tinyllama-1.1b"]);
    refused_saying("bench_cpu", &["--batch", "0"], &["batch is 0"]);
    let text = data().join("text/excerpt_alice.txt").display().to_string();
    let method = ["--text", &text, "--method", "chunked:1"];
    refused_saying("perplexity", &method, &["chunked:1", "strided:N:S"]);
}

#[test]
fn models_that_are_none_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let with = |path: &Path, words: &[&str]| {
        let path = path.display().to_string();
        refused_saying("generate", &["--model", &path, "--tokens", "1"], words);
        refused_saying("chat", &["--model", &path, "--prompt", "x"], words);
        refused_saying("bench_cpu", &["--model", &path], words);
    };
    with(&folder.path().join("nothing"), &["nothing"]);
    with(&model("stories260K").join("config.json"), &["config.json"]);
    with(folder.path(), &["config.json"]);

    let damaged = copied_model(folder.path());
    let weights = damaged.join("model.safetensors");
    let file = fs::File::options().write(true).open(&weights).unwrap();
    file.set_len(fs::metadata(&weights).unwrap().len() / 2).unwrap();
    let path = damaged.display().to_string();
    let output = folder.path().join("logits.safetensors");
    let out = output.display().to_string();
    let arguments = ["--model", &path, "--tokens", "1", "--output", &out];
    refused_saying("logits", &arguments, &["model.safetensors"]);
    assert!(!output.exists());
    fs::remove_file(damaged.join("tokenizer.json")).unwrap();
    refused("chat", &["--model", &path, "--prompt", "x"]);
}

#[test]
fn prompts_that_cannot_run_are_refused() {
    let on_cpu = |arguments: &[&str], words: &[&str]| {
        refused_saying("generate", &[&["--device", "cpu"], arguments].concat(), words);
    };
    on_cpu(&["--tokens", "1,512"], &["512", "position 1", "vocabulary"]);
    on_cpu(&["--tokens", "4294967296"], &["4294967296"]);
    on_cpu(&["--tokens", ""], &["token id"]);
    on_cpu(&["--prompt", ""], &["--prompt"]);
    on_cpu(&["--tokens", "1", "--max-tokens", "1000"], &["1000", "512"]);
    on_cpu(&["--tokens", &["1"; 600].join(",")], &["600", "512"]);
    on_cpu(&["--tokens", "1", "--max-context", "4096"], &["4096", "512"]);
    on_cpu(&["--tokens", "1", "--threads", "0"], &["threads"]);
    on_cpu(&["--tokens", "1", "--n", "0"], &["n is 0"]);
    refused_saying("chat", &["--prompt", ""], &["--prompt"]);
    let long = "Once upon a time ".repeat(300);
    refused_saying("chat", &["--device", "cpu", "--prompt", &long], &["512", "context"]);
}

#[test]
fn absurd_sampling_is_refused() {
    for (option, value) in [
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--top-p", "0"),
        ("--top-p", "1.5"),
        ("--min-p", "2"),
        ("--repetition-penalty", "0"),
        ("--presence-penalty", "inf"),
        ("--top-k", "-1"),
        ("--seed", "x"),
    ] {
        let value = format!("{option}={value}");
        refused("generate", &["--device", "cpu", "--tokens", "1", &value]);
        refused("chat", &["--device", "cpu", "--prompt", "x", &value]);
    }
}

#[test]
fn what_cannot_be_written_is_refused_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let logits = |token: &str, output: &str, word: &str| {
        let arguments = ["--device", "cpu", "--tokens", token, "--output", output];
        refused_saying("logits", &arguments, &[word]);
    };
    logits("1", &path("no/such/folder.safetensors"), "folder.safetensors");
    logits("1", &folder.path().display().to_string(), "is a directory");
    logits("9999", &path("logits.safetensors"), "9999");
    refused_saying("bench_cpu", &["--json", &path("no/report.json")], &["report.json"]);
    let failing = ["--model", "/no/such/model", "--json", &path("report.json")];
    refused_saying("bench_cpu", &failing, &["/no/such/model"]);
    assert!(is_empty(folder.path()));
}

#[test]
fn texts_that_cannot_be_scored_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let score = |name: &str, content: Option<&[u8]>, words: &[&str]| {
        let file = folder.path().join(name);
        content.iter().for_each(|bytes| fs::write(&file, bytes).unwrap());
        let path = file.display().to_string();
        refused_saying("perplexity", &["--device", "cpu", "--text", &path], words);
    };
    score("missing.txt", None, &["missing.txt"]);
    score("empty.txt", Some(b""), &["no token to score"]);
    score("broken.txt", Some(b"\xff\xfe"), &["broken.txt"]);
}

#[test]
fn a_device_that_is_not_there_is_refused() {
    for (name, device) in [("bench_wgpu", Device::Wgpu), ("bench_cuda", Device::Cuda(0))] {
        if let Err(error) = device.select() {
            refused_saying(name, &[], &[&error.to_string()]);
        }
    }
    refused_saying("generate", &["--device", "cuda:99", "--tokens", "1"], &["cuda:99"]);
}

/// Each line of a batch's results.
fn results(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_batch_answers_in_the_order_of_its_lines() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let prompts = "{\"id\": \"first\", \"prompt\": \"Once upon a time\", \"max_tokens\": 40}\n\n\
                   {\"tokens\": [1, 403, 407], \"max_tokens\": 3}\n\
                   {\"prompt\": \"Lily\", \"temperature\": 1.2, \"seed\": 7}\n";
    fs::write(path("prompts.jsonl"), prompts).unwrap();
    // One request in flight and many give the same lines.
    for in_flight in ["1", "64"] {
        let options = ["--device", "cpu", "--max-tokens", "5", "--in-flight", in_flight];
        let files = [&path("prompts.jsonl"), "--output", &path("results.jsonl")];
        assert_eq!(accepted("batch", &[&files[..], &options].concat()), "");
        let lines = results(&fs::read_to_string(path("results.jsonl")).unwrap());
        let ids: Vec<_> = lines.iter().map(|line| line["id"].clone()).collect();
        assert_eq!(ids, ["first".into(), Value::from(3), Value::from(4)]);
        let lengths: Vec<_> =
            lines.iter().map(|line| line["tokens"].as_array().unwrap().len()).collect();
        assert_eq!(lengths, [40, 3, 5]);
        let text = lines[0]["text"].as_str().unwrap();
        assert!(stories_text("greedy_text").starts_with(text), "{text}");
        for (line, prompt_tokens) in lines.iter().zip([5, 3, 2]) {
            assert_eq!(line["finish_reason"], "length");
            assert_eq!(
                line["usage"]["completion_tokens"],
                line["tokens"].as_array().unwrap().len()
            );
            assert_eq!(line["usage"]["prompt_tokens"], prompt_tokens, "{line}");
        }
    }
    fs::write(path("prompts.txt"), "Once upon a time\nLily\n").unwrap();
    let lines = results(&accepted("batch", &["--device", "cpu", &path("prompts.txt")]));
    assert_eq!(lines.len(), 2);
}

#[test]
fn a_prompt_that_fails_does_not_stop_its_batch() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let prompts = "{\"tokens\": [1]}\n{\"tokens\": [9999]}\n\
                   {\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}\n\
                   {\"tokens\": [1], \"temperature\": -1}\n{\"tokens\": [403]}\n";
    fs::write(path("prompts.jsonl"), prompts).unwrap();
    let files = [&path("prompts.jsonl"), "--output", &path("results.jsonl")];
    let arguments = [&files[..], &["--device", "cpu", "--max-tokens", "2"]].concat();
    refused_saying("batch", &arguments, &["3 of 5"]);
    let lines = results(&fs::read_to_string(path("results.jsonl")).unwrap());
    let failed: Vec<_> = lines.iter().map(|line| line["error"].as_str().is_some()).collect();
    assert_eq!(failed, [false, true, true, true, false]);
    assert!(lines[1]["error"].as_str().unwrap().contains("9999"));
    assert!(lines[2]["error"].as_str().unwrap().contains("chat template"));
    assert_eq!(lines[4]["tokens"].as_array().unwrap().len(), 2);
}

#[test]
fn bad_lines_of_a_batch_are_named_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let bad = |content: &[u8], words: &[&str]| {
        fs::write(path("bad.jsonl"), content).unwrap();
        let arguments = [&path("bad.jsonl"), "--device", "cpu", "--output", &path("results")];
        refused_saying("batch", &arguments, words);
        assert!(!Path::new(&path("results")).exists());
    };
    bad(b"{\"prompt\": \"a\"}\n\n{\"prompt\": 3}\n", &["bad.jsonl line 3", "string"]);
    bad(b"{\"promt\": \"a\"}\n", &["line 1", "promt"]);
    bad(b"{\"prompt\": \"a\", \"tokens\": [1]}\n", &["line 1", "exactly one"]);
    bad(b"{\"prompt\": \"a\"}\n{}\n", &["line 2", "exactly one"]);
    bad(b"{\"prompt\": \"a\"}\n\xff\xfe\n", &["line 2", "UTF-8"]);
    bad(b"\n", &["no prompt"]);
    refused_saying("batch", &[&path("missing.jsonl")], &["missing.jsonl"]);
    refused_saying("batch", &[], &["FILE"]);
}

#[test]
fn the_load_test_writes_its_tables_its_json_and_its_curves() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let load = ["--device", "cpu", "--rate", "50,200", "--requests", "10", "--shared-tokens", "32"];
    let lengths = ["--prompt-tokens", "4", "--output-tokens", "2-4", "--threads", "1"];
    let sweep = ["--sweep", "--sweep-tokens", "32", "--sweep-sequences", "1,4"];
    let files = ["--json", &path("load.json"), "--plot", &path("load.svg")];
    let table = accepted("load_test", &[&load[..], &lengths, &sweep, &files].concat());
    assert_eq!(table.matches("| yes |").count(), 2, "{table}");
    assert_eq!(table.matches("**knee**").count(), 1, "{table}");
    let report: Value = serde_json::from_slice(&fs::read(path("load.json")).unwrap()).unwrap();
    let runs = report["runs"].as_array().unwrap();
    let rates: Vec<_> = runs.iter().map(|run| run["rate"].as_f64().unwrap()).collect();
    assert_eq!(rates, [50.0, 200.0, 50.0, 200.0]);
    let sweep = report["sweep"].as_array().unwrap();
    assert!(runs.iter().chain(sweep).all(|run| run["completed"] == 10), "{report}");
    assert!(runs.iter().all(|run| run["ttft_ms"]["p99"].as_f64().unwrap() > 0.0), "{report}");
    let svg = fs::read_to_string(path("load.svg")).unwrap();
    assert!(svg.contains("with prefix caching") && svg.contains("knee"));
}

#[test]
fn a_load_test_of_a_trace_or_of_nonsense() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let trace = "{\"arrival_ms\": 0, \"prompt_len\": 20, \"output_len\": 3, \"prefix_id\": 1}\n\
                 {\"arrival_ms\": 4.5, \"prompt_len\": 8, \"output_len\": 2}\n";
    fs::write(path("trace.jsonl"), trace).unwrap();
    fs::write(path("bad.jsonl"), "{\"arrival_ms\": 0, \"prompt_len\": 20}\n").unwrap();
    let table = accepted("load_test", &["--device", "cpu", "--trace", &path("trace.jsonl")]);
    assert_eq!(table.matches("| trace |").count(), 2, "{table}");
    let on_trace = |name: &str, words: &[&str]| {
        refused_saying("load_test", &["--trace", &path(name)], words);
    };
    on_trace("bad.jsonl", &["bad.jsonl", "line 1", "output_len"]);
    on_trace("missing.jsonl", &["missing.jsonl"]);
    refused_saying("load_test", &["--rate", "0"], &["rate is 0"]);
    refused_saying("load_test", &["--requests", "0"], &["requests is 0"]);
    refused_saying("load_test", &["--output-tokens", "9-3"], &["16-48"]);
    refused_saying("load_test", &["--ttft-limit-ms", "0"], &["TTFT is 0"]);
    refused_saying("load_test", &["--plot", &path("no/load.svg")], &["load.svg"]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn quality_writes_its_table_its_json_and_its_plots() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(path("text.txt"), "Once upon a time there was a dog.<|endoftext|>The end.").unwrap();
    let plots = format!("{},{}", path("price.svg"), path("price.png"));
    let text = ["--device", "cpu", "--threads", "1", "--text", &path("text.txt")];
    let schemes = ["--schemes", "none,int8,int4:group=64:asym", "--repeats", "1"];
    let files = ["--json", &path("price.json"), "--plot", &plots];
    let table = accepted("quality", &[&text[..], &schemes, &files].concat());
    for row in ["\n| none |", "\n| int8 |", "\n| int4:group=64:asym |", "\n- int8: "] {
        assert_eq!(table.matches(row).count(), 1, "{row}: {table}");
    }
    let report: Value = serde_json::from_slice(&fs::read(path("price.json")).unwrap()).unwrap();
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(
        (rows.len(), &rows[0]["kl_nats"], &rows[0]["loss"]),
        (3, &0.0.into(), &"none".into())
    );
    assert!(rows.iter().all(|row| row["decode_tokens_per_s"].as_f64().unwrap() > 0.0), "{report}");
    let svg = fs::read_to_string(path("price.svg")).unwrap();
    assert!(svg.contains("perplexity") && svg.contains("3 int4:group=64:asym"));
    assert!(fs::read(path("price.png")).unwrap().starts_with(b"\x89PNG"));
}

#[test]
fn quality_refuses_nonsense_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let json = path("price.json");
    let refused = |arguments: &[&str], words: &[&str]| {
        let fixed = ["--device", "cpu", "--repeats", "0", "--json", &json];
        refused_saying("quality", &[&fixed[..], arguments].concat(), words);
    };
    refused(&["--schemes", "int9"], &["int9"]);
    refused(&["--schemes", "int4:method=gptq"], &["--calibration"]);
    refused(&["--text", &path("missing.txt")], &["missing.txt"]);
    refused(&["--plot", &path("price.jpeg")], &["price.jpeg", ".png"]);
    refused(&["--plot", &path("no/price.svg")], &["price.svg"]);
    refused(&["--models", &path("no_model")], &["no_model"]);
    refused(&["--method", "chunked:5000"], &["5000"]);
    assert!(is_empty(folder.path()));
}

#[test]
fn row_scales_answers_with_a_table_and_a_plot() {
    let folder = tempfile::tempdir().unwrap();
    let plot = folder.path().join("rows.png").display().to_string();
    let table = accepted("row_scales", &["--plot", &plot, "--seed", "3"]);
    assert!(table.contains("| random, 1000 |") && table.contains("down_proj"), "{table}");
    assert!(table.contains("\nOne scale per row."), "{table}");
    assert!(fs::read(&plot).unwrap().starts_with(b"\x89PNG"));
    refused_saying("row_scales", &["--model", "/no/model", "--plot", &plot], &["/no/model"]);
}
