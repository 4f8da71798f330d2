//! Quantized copies of models: what is written is what was computed, whole or not at all.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod common;

use std::{
    collections::BTreeMap,
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use burn_flex::Flex;
use common::{data, max_difference, model, tiny::TinyModel};
use engine::{
    CalibrationCut, CalibrationText, CheckpointLayout, Device, Engine, ModelConfig, PromptReport,
    QuantizeError, QuantizeEvent, QuantizeOptions, QuantizeReport, Request, SchemePlan, Treatment,
    quantize,
};
use engine_core::{
    CalibratedModel, CalibratedTensor, Calibration, Checkpoint, DenseRows, MatrixTensor,
    StoredMatrix, WeightSource,
};
use engine_quant::{PackedMatrix, Scheme, round_to_nearest};
use serde_json::Value;
use tempfile::TempDir;

fn quant(path: &str) -> PathBuf {
    data().join("quant").join(path)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn calibration(path: &str) -> CalibrationText {
    CalibrationText::new(fs::read_to_string(quant("text").join(path)).unwrap())
}

/// A quantized copy of a model, at `out` in a new folder.
struct Copy {
    folder: TempDir,
    report: QuantizeReport,
}

impl Copy {
    fn path(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    fn new(model: &Path, plan: &str, change: impl FnOnce(&mut QuantizeOptions)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut options = QuantizeOptions::new(plan.parse().unwrap(), folder.path().join("out"));
        options.device = Device::Cpu;
        change(&mut options);
        let report = run(model, &options).unwrap();
        Self { folder, report }
    }
}

fn run(model: &Path, options: &QuantizeOptions) -> Result<QuantizeReport, QuantizeError> {
    quantize(&model.display().to_string(), options, &mut |_| ControlFlow::Continue(()))
}

fn logits(model: &Path, plan: &str) -> Vec<f32> {
    let engine = Engine::builder(model.display().to_string())
        .device(Device::Cpu)
        .kv_cache_bytes(8 << 20)
        .quantization(plan.parse().unwrap());
    let vocab = ModelConfig::load(model).unwrap().vocab_size as u32;
    let tokens: Vec<u32> = (1..40).map(|i| i * 7 % vocab).collect();
    let request = Request::tokens(tokens).max_tokens(0).prompt_report(PromptReport::Logits);
    engine.load().unwrap().generate(request).unwrap().prompt.unwrap().logits
}

/// All matrices of a checkpoint as it has them.
fn stored(path: &Path) -> BTreeMap<String, StoredMatrix> {
    let config = ModelConfig::load(path).unwrap();
    let checkpoint = Checkpoint::open(path).unwrap().with_quantization(config.quantization.clone());
    let matrices = MatrixTensor::all(&config, checkpoint.model_prefix());
    let read = |matrix: MatrixTensor| {
        let stored = checkpoint.matrix(&format!("{}.weight", matrix.name), matrix.shape);
        (matrix.name, stored.unwrap())
    };
    matrices.into_iter().map(read).collect()
}

/// The packed matrices of a model rounded in memory.
fn rounded(path: &Path, plan: &str) -> BTreeMap<String, PackedMatrix> {
    let config = ModelConfig::load(path).unwrap();
    let plan: SchemePlan = plan.parse().unwrap();
    let matrices = stored(path).into_iter().filter_map(|(name, matrix)| {
        let Scheme::Quantize { grid, .. } = plan.scheme_of(&name, config.num_layers) else {
            return None;
        };
        let StoredMatrix::Dense(data) = matrix else { panic!("{name} is not dense") };
        Some((name, round_to_nearest(&DenseRows::new(&data), grid).unwrap()))
    });
    matrices.collect()
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
fn rounded_copies_hold_what_was_rounded_and_compute_what_loading_with_the_scheme_does() {
    let stories = model("stories260K");
    for (path, plan) in [
        (stories.clone(), "int8"),
        (stories.clone(), "int4"),
        (stories.clone(), "int4:group=32:asym+v_proj=int8+last=none+embed_tokens=int8"),
        (stories.clone(), "nf4"),
        (stories, "int8:tensor"),
        (quant("models/bard1m"), "int4:group=row:sym7+lm_head=nf4"),
        (model("phi3-fused"), "int4:group=16:sym15"),
        (model("llama-sharded"), "int8"),
        (model("gemma3-text"), "int4:group=24"),
    ] {
        let copy = Copy::new(&path, plan, |_| {});
        assert_eq!(copy.report.layout, CheckpointLayout::Engine, "{plan}");
        let expected = rounded(&path, plan);
        assert_eq!(copy.report.matrices.len(), expected.len(), "{plan}");
        for (name, found) in stored(&copy.path()) {
            match (found, expected.get(&name)) {
                (StoredMatrix::Packed(found), Some(expected)) => assert_eq!(&found, expected),
                (StoredMatrix::Dense(_), None) => {}
                (found, _) => panic!("{plan}: {name} is {found:?}"),
            }
        }
        assert_eq!(logits(&copy.path(), "none"), logits(&path, plan), "{path:?} {plan}");
    }
}

#[test]
fn everything_else_is_copied() {
    let path = model("stories260K");
    let copy = Copy::new(&path, "int8", |_| {});
    let mut expected = names(&path);
    assert_eq!(names(&copy.path()), expected);
    expected.retain(|name| !["config.json", "model.safetensors"].contains(&name.as_str()));
    for name in expected {
        let read = |dir: &Path| fs::read(dir.join(&name)).unwrap();
        assert!(read(&path) == read(&copy.path()), "{name}");
    }
    // Keys stay, in their order.
    let (old, new) = (json(&path.join("config.json")), json(&copy.path().join("config.json")));
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let mut expected = keys(&old);
    expected.push("quantization_config".to_owned());
    assert_eq!(keys(&new), expected);
    assert!(old.as_object().unwrap().iter().all(|(key, value)| new[key] == *value));
    // Vectors keep their bytes.
    let [before, after] = [&path, &copy.path()].map(|path| Checkpoint::open(path).unwrap());
    for name in before.names().filter(|name| name.contains("norm")) {
        let [old, new] = [&before, &after].map(|checkpoint| checkpoint.tensor(name).unwrap());
        assert_eq!((old.bytes, old.dtype), (new.bytes, new.dtype), "{name}");
    }
    assert_eq!(copy.report.total().bytes_before as usize, before.num_bytes());
    assert_eq!(copy.report.total().bytes_after as usize, after.num_bytes());
}

#[test]
fn small_shards_make_the_same_model() {
    let path = quant("models/bard1m");
    let whole = Copy::new(&path, "int8", |_| {});
    let shards = Copy::new(&path, "int8", |options| options.max_shard_bytes = 100_000);
    let files = names(&shards.path());
    let count = files.iter().filter(|name| name.ends_with(".safetensors")).count();
    assert!(count > 5, "{files:?}");
    assert!(files.contains(&"model.safetensors.index.json".to_owned()), "{files:?}");
    assert_eq!(logits(&whole.path(), "none"), logits(&shards.path(), "none"));
}

/// Type and shape of each tensor of a file.
fn tensors(path: &Path) -> BTreeMap<String, (String, Vec<usize>)> {
    let bytes = fs::read(path.join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let of = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        (name, (view.dtype().to_string(), view.shape().to_vec()))
    };
    file.tensors().into_iter().map(of).collect()
}

/// What the real tools write from the same model: names, shapes, and types of what is quantized.
#[test]
fn gptq_and_awq_copies_look_like_those_of_other_tools() {
    let cases = [
        ("rand128", "int4:group=32:sym15:method=gptq", "gptq/rand128-gptq-w4-g32"),
        (
            "rand128",
            "int4:group=32:asym:method=gptq:actorder",
            "gptq/rand128-gptq-w4-g32-actorder-asym",
        ),
        ("rand128", "int8:method=gptq", "gptq/rand128-gptq-w8-gall"),
        (
            "bard1m",
            "int4:group=128:sym15:method=gptq:actorder",
            "gptq/bard1m-gptq-w4-g128-actorder",
        ),
        ("rand128", "int4:group=32:asym:method=awq", "awq/rand128-awq-w4-g32"),
        ("bard1m", "int4:group=128:asym:method=awq", "awq/bard1m-awq-w4-g128"),
    ];
    for (name, plan, reference) in cases {
        let path = quant("models").join(name);
        let copy = Copy::new(&path, plan, |options| {
            let text = calibration("bard_calib.txt");
            options.calibration = Some(CalibrationText { max_tokens: 2000, ..text });
        });
        let (found, expected) = (tensors(&copy.path()), tensors(&quant(reference)));
        let names = |all: &BTreeMap<String, _>| all.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&found), names(&expected), "{plan}");
        for (name, (dtype, shape)) in &found {
            let (expected_dtype, expected_shape) = &expected[name];
            assert_eq!(shape, expected_shape, "{plan} {name}");
            if name.contains("_proj") {
                assert_eq!(dtype, expected_dtype, "{plan} {name}");
            }
        }
        let config = |dir: &Path| json(&dir.join("config.json"))["quantization_config"].clone();
        let (found, expected) = (config(&copy.path()), config(&quant(reference)));
        for (key, value) in expected.as_object().unwrap() {
            let free = ["meta", "checkpoint_format", "format"].contains(&key.as_str());
            assert!(free || found[key] == *value, "{plan} {key}: {}", found[key]);
        }
        // Nothing became floats.
        let engine = Engine::builder(copy.path().display().to_string()).device(Device::Cpu);
        let report = engine.load().unwrap().info().load_report.clone();
        assert!(report.entries.iter().all(|entry| entry.treatment == Treatment::Kept), "{report}");
    }
}

/// The sequences that a text becomes, checked against the counts of the reference.
#[test]
fn calibration_texts_are_cut_as_the_reference_cuts_them() {
    let cases = [
        ("stories260K", model("stories260K"), "tinystories_calib.txt", CalibrationCut::Auto),
        ("bard1m", quant("models/bard1m"), "bard_calib.txt", CalibrationCut::Windows(256)),
        ("bard1m", quant("models/bard1m"), "bard_calib.txt", CalibrationCut::Auto),
    ];
    for (name, path, text, cut) in cases {
        let folder = tempfile::tempdir().unwrap();
        let plan = "int4:method=gptq".parse().unwrap();
        let mut options = QuantizeOptions::new(plan, folder.path().join("out"));
        options.calibration = Some(CalibrationText { cut, ..calibration(text) });
        let mut found = None;
        let error = quantize(&path.display().to_string(), &options, &mut |event| match event {
            QuantizeEvent::Calibration { sequences, tokens } => {
                found = Some((sequences as u64, tokens as u64));
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        });
        assert!(matches!(error, Err(QuantizeError::Interrupted)), "{error:?}");
        let expected = &json(&quant("ppl.json"))["models"][name]["calibration"];
        let count = |key: &str| expected[key].as_u64().unwrap();
        assert_eq!(found, Some((count("documents"), count("tokens"))), "{name} {cut}");
        assert!(names(folder.path()).is_empty());
    }
}

/// Bit for bit what the driver computes, in each layout.
#[test]
fn calibrated_copies_hold_what_was_calibrated() {
    let path = quant("models/bard1m");
    let text = CalibrationText { max_tokens: 1024, ..calibration("bard_calib.txt") };
    let config = ModelConfig::load(&path).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let tokenizer = engine::Tokenizer::load(&path).unwrap();
    let mut ids: Vec<u32> = config.bos_token_id.into_iter().collect();
    ids.extend(tokenizer.encode(&text.text, false).unwrap());
    let sequences: Vec<Vec<u32>> =
        ids[..1024].chunks(config.max_context()).map(<[u32]>::to_vec).collect();
    for (plan, layout) in [
        ("int4:group=64:method=gptq", CheckpointLayout::Gptq),
        ("int4:group=64:sym15:method=gptq:actorder", CheckpointLayout::Gptq),
        ("int4:group=64:method=awq", CheckpointLayout::Awq),
        ("int4:group=64:method=gptq+embeddings=int8+v_proj=int8", CheckpointLayout::Engine),
        ("int4:group=24:sym8:method=gptq:actorder", CheckpointLayout::Engine),
    ] {
        let copy = Copy::new(&path, plan, |options| options.calibration = Some(text.clone()));
        assert_eq!(copy.report.layout, layout, "{plan}");
        let plan: SchemePlan = plan.parse().unwrap();
        let (config, source) = (&config, &checkpoint);
        let task = Calibration { config, source, plan: &plan, sequences: &sequences };
        let expected = CalibratedModel::new::<Flex>(&task, &Default::default(), |_| ()).unwrap();
        let found = stored(&copy.path());
        let written = Checkpoint::open(copy.path()).unwrap();
        for (name, tensor) in expected.tensors() {
            match tensor {
                CalibratedTensor::Vector(values) => {
                    assert_eq!(&written.vector(name, values.len()).unwrap(), values, "{name}");
                }
                CalibratedTensor::Matrix(StoredMatrix::Packed(packed)) => {
                    let found = &found[name.strip_suffix(".weight").unwrap()];
                    let StoredMatrix::Packed(found) = found else { panic!("{plan} {name}") };
                    assert!(found.scales == packed.scales, "{plan} {name}");
                    // GPTQ's layout says which columns a group has, not their order in it.
                    let ordered = layout == CheckpointLayout::Gptq && packed.column_order.is_some();
                    assert!(ordered || found.codes == packed.codes, "{plan} {name}");
                    assert!(found.dequantize() == packed.dequantize(), "{plan} {name}");
                }
                CalibratedTensor::Matrix(StoredMatrix::Dense(_)) => {}
            }
        }
        let errors = copy.report.matrices.iter().filter(|matrix| matrix.nearest_error.is_some());
        assert!(errors.count() >= 14, "{plan}");
    }
}

/// A model whose first group of every row is positive, so that its zero point is 0.
#[test]
fn a_zero_point_of_zero_makes_version_two_of_the_layout() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    fs::create_dir(&path).unwrap();
    let tiny = TinyModel {
        hidden: 32,
        intermediate: 64,
        heads: 2,
        head_dim: 16,
        vocab: 64,
        ..TinyModel::default()
    };
    let mut weights = tiny.weights(3);
    for layer in 0..tiny.layers {
        weights.fill(&format!("model.layers.{layer}.mlp.up_proj.weight"), 0.25);
    }
    weights.save(&path);
    let copy = Copy::new(&path, "int4:group=16:asym", |options| {
        options.layout = CheckpointLayout::Gptq;
    });
    let config = json(&copy.path().join("config.json"));
    assert_eq!(config["quantization_config"]["checkpoint_format"], "gptq_v2");
    for (name, expected) in rounded(&path, "int4:group=16:asym") {
        let StoredMatrix::Packed(found) = &stored(&copy.path())[&name] else { panic!("{name}") };
        assert!(found.dequantize() == expected.dequantize(), "{name}");
    }
    let found = logits(&copy.path(), "none");
    assert!(max_difference(&found, &logits(&path, "int4:group=16:asym")) < 2e-4);
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
