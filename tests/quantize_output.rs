//! Where quantized copies go: whole or not there, and what the example says.

#![cfg(feature = "cpu")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use common::{data, model};
use engine::{
    CalibrationCut, CalibrationText, CheckpointLayout, Device, Engine, QuantizeError,
    QuantizeEvent, QuantizeOptions, QuantizeReport, quantize,
};

fn quant(path: &str) -> PathBuf {
    data().join("quant").join(path)
}

fn run(model: &Path, options: &QuantizeOptions) -> Result<QuantizeReport, QuantizeError> {
    quantize(&model.display().to_string(), options, &mut |_| ControlFlow::Continue(()))
}

/// The files of a directory.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn foolish_requests_are_refused_and_leave_nothing() {
    let stories = model("stories260K");
    let refused = |path: &Path, plan: &str, change: &dyn Fn(&mut QuantizeOptions)| {
        let folder = tempfile::tempdir().unwrap();
        let mut options = QuantizeOptions::new(plan.parse().unwrap(), folder.path().join("out"));
        options.device = Device::Cpu;
        change(&mut options);
        let error = run(path, &options).unwrap_err().to_string();
        assert!(names(folder.path()).is_empty(), "{:?} after {error}", names(folder.path()));
        error
    };
    let says = |error: String, words: &[&str]| {
        assert!(words.iter().all(|word| error.contains(word)), "{error} does not say {words:?}");
    };
    let quantized = quant("gptq/rand128-gptq-w4-g32");
    says(refused(&quantized, "int8", &|_| {}), &["quantization_config", "original"]);
    says(refused(&stories, "none", &|_| {}), &["`none` quantizes no matrix"]);
    says(refused(&stories, "int4:method=gptq", &|_| {}), &["calibration text"]);
    says(refused(&stories, "int4+v_prj=int8", &|_| {}), &["`v_prj`"]);
    says(refused(&model("phi3-fused"), "int4+v_proj=int8", &|_| {}), &["qkv_proj"]);
    says(refused(&data().join("nothing-here"), "int8", &|_| {}), &["nothing-here"]);
    let empty = |options: &mut QuantizeOptions| {
        options.calibration = Some(CalibrationText::new(" \n"));
    };
    says(refused(&stories, "int4:method=gptq", &empty), &["calibration text has no tokens"]);
    let wide = |options: &mut QuantizeOptions| {
        let cut = CalibrationCut::Windows(513);
        options.calibration = Some(CalibrationText { cut, ..CalibrationText::new("Once") });
    };
    says(refused(&stories, "int4:method=gptq", &wide), &["513", "2 to 512"]);
    // stories260K has 172 columns and rows between gate, up and down.
    for (layout, plan, words) in [
        (CheckpointLayout::Gptq, "int4:group=32:asym", ["model.layers.0.mlp.gate_proj", "172"]),
        (CheckpointLayout::Awq, "int8", ["q_proj", "four bits"]),
        (CheckpointLayout::Gptq, "nf4", ["q_proj", "nf4"]),
        (CheckpointLayout::Gptq, "int8+last=none", ["model.layers.4.", "float"]),
        (CheckpointLayout::Gptq, "int8+embeddings=int8", ["embed_tokens", "floats"]),
        (CheckpointLayout::Gptq, "int4:asym+v_proj=int8", ["v_proj", "one scheme"]),
    ] {
        let forced = |options: &mut QuantizeOptions| options.layout = layout;
        says(refused(&stories, plan, &forced), &words);
    }
}

#[test]
fn an_output_is_replaced_only_if_that_was_asked_for() {
    let path = quant("models/bard1m");
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("deep/er/out");
    let mut options = QuantizeOptions::new("int8".parse().unwrap(), &output);
    run(&path, &options).unwrap();
    let first = names(&output);
    // It is there now.
    let error = run(&path, &options).unwrap_err().to_string();
    assert!(error.contains("not empty"), "{error}");
    fs::write(output.join("mine"), "").unwrap();
    options.overwrite = true;
    run(&path, &options).unwrap();
    assert_eq!(names(&output), first);
    assert_eq!(names(output.parent().unwrap()), ["out"]);
    // An empty directory is as good as none, a file is neither.
    options.overwrite = false;
    fs::remove_dir_all(&output).unwrap();
    fs::create_dir(&output).unwrap();
    run(&path, &options).unwrap();
    options.output = output.join("config.json");
    options.overwrite = true;
    let error = run(&path, &options).unwrap_err().to_string();
    assert!(error.contains("it is a file"), "{error}");
    // The model's own directory, and one that holds it.
    let copy = output.display().to_string();
    for target in [&output, output.parent().unwrap()] {
        options.output = target.to_path_buf();
        fs::write(output.join("config.json"), fs::read(path.join("config.json")).unwrap()).unwrap();
        let error = quantize(&copy, &options, &mut |_| ControlFlow::Continue(())).unwrap_err();
        assert!(error.to_string().contains("the model itself"), "{error}");
    }
}

#[test]
fn an_interrupted_run_leaves_the_output_as_it_was() {
    let path = quant("models/bard1m");
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    fs::create_dir(&output).unwrap();
    fs::write(output.join("mine"), "mine").unwrap();
    let mut options = QuantizeOptions::new("int4".parse().unwrap(), &output);
    options.overwrite = true;
    for stop in [1, 3, 14] {
        let result = quantize(&path.display().to_string(), &options, &mut |event| match event {
            QuantizeEvent::Matrix { number, .. } if number == stop => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        });
        assert!(matches!(result, Err(QuantizeError::Interrupted)), "{result:?}");
        assert_eq!(names(folder.path()), ["out"]);
        assert_eq!(names(&output), ["mine"]);
    }
}

/// The example as a process; `cargo test` puts it beside the tests.
fn example() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    let name = Path::new("quantize").with_extension(std::env::consts::EXE_EXTENSION);
    let path = profile.join("examples").join(name);
    assert!(path.is_file(), "{} is not built: cargo build --examples", path.display());
    path
}

/// Exit code, stdout and stderr.
fn finished(command: &mut Command) -> (Option<i32>, String, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_example_writes_a_model_and_says_what_became_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let calibration = quant("text/tinystories_calib.txt");
    let mut command = Command::new(example());
    command.args(["--scheme", "int4:group=32:method=gptq", "--device", "cpu", "--calibration"]);
    command.arg(&calibration).args(["--max-calibration-tokens", "1500", "--output"]).arg(&output);
    let (code, stdout, stderr) = finished(&mut command);
    assert_eq!(code, Some(0), "{stderr}");
    // Why not GPTQ's layout, the error of each matrix, the table.
    assert!(stderr.contains("layout engine: `gptq` cannot hold model.layers.0.mlp.gate_proj"));
    assert!(stderr.contains("calibration: 1500 tokens in 4 sequences"), "{stderr}");
    assert_eq!(stderr.lines().filter(|line| line.contains("(to nearest")).count(), 35);
    assert!(stdout.starts_with("| scheme |") && stdout.contains("| kept |"), "{stdout}");
    assert!(stdout.contains("largest error"), "{stdout}");
    Engine::builder(output.display().to_string()).device(Device::Cpu).load().unwrap();

    let refused = |arguments: &[&str], words: &[&str]| {
        let target = folder.path().join("none");
        let mut command = Command::new(example());
        let (code, stdout, stderr) = finished(command.args(arguments).arg("--output").arg(&target));
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{stderr}");
        let line = stderr.lines().last().unwrap();
        assert!(line.starts_with("error: "), "{stderr}");
        assert!(words.iter().all(|word| line.contains(word)), "{line} does not say {words:?}");
        assert_eq!(names(folder.path()), ["out"]);
    };
    let gptq = ["--scheme", "int4:method=gptq", "--calibration"];
    refused(&[&gptq[..], &["/not/there"]].concat(), &["cannot read /not/there"]);
    let weights = model("stories260K").join("model.safetensors").display().to_string();
    refused(&[&gptq[..], &[&weights]].concat(), &["cannot read", "UTF-8"]);
    refused(&["--scheme", "int5"], &["int5"]);
    refused(&["--scheme", "int8", "--layout", "gguf"], &["gguf", "auto, gptq, awq or engine"]);
    refused(&["--scheme", "int8", "--threads", "0"], &["threads"]);
}

/// The disk is full: a limit on the size of files fails in the same place.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for blocks in [1, 50, 100, 300] {
        let mut command = Command::new("bash");
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
        command.arg("-c").arg(script).arg(example());
        command.args(["--scheme", "int8", "--output"]).arg(folder.path().join("out"));
        let (code, _, stderr) = finished(&mut command);
        assert_eq!(code, Some(2), "{blocks}: {stderr}");
        let line = stderr.lines().last().unwrap();
        assert!(line.starts_with("error: cannot write") && line.contains("out"), "{stderr}");
        assert!(names(folder.path()).is_empty(), "{blocks}: {:?}", names(folder.path()));
    }
}

/// Ctrl-C: one line, and nothing that looks like a model.
#[cfg(unix)]
#[test]
fn a_signal_leaves_nothing() {
    use std::io::{BufRead, BufReader};
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(example());
    command.args(["--scheme", "int4:method=gptq", "--device", "cpu", "--calibration"]);
    command.arg(quant("text/tinystories_calib.txt")).arg("--output");
    command.arg(folder.path().join("out")).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    while !lines.next().unwrap().unwrap().contains("q_proj") {}
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let last = lines.map(Result::unwrap).last().unwrap();
    assert_eq!(last, "error: interrupted, nothing was written");
    assert_eq!(child.wait().unwrap().code(), Some(2));
    assert!(names(folder.path()).is_empty());
}
