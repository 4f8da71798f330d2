//! Quantized copies of models: what is written is what was computed, whole or not at all.

#![cfg(feature = "cpu")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod common;

use std::{
    collections::BTreeMap,
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use burn_flex::Flex;
use common::{data, max_difference, model, tiny::TinyModel};
use engine::{
    CalibrationCut, CalibrationText, CheckpointLayout, Device, Engine, ModelConfig, PromptReport,
    QuantizeError, QuantizeEvent, QuantizeOptions, QuantizeReport, Request, SchemePlan, Treatment,
    quantize,
};
use engine_core::{
    CalibratedModel, CalibratedTensor, Calibration, Checkpoint, MatrixTensor, StoredMatrix,
    WeightSource,
};
use engine_quant::{CodeOrder, PackedMatrix, Scheme, round_to_nearest};
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

/// All matrices of a checkpoint as it has them, codes row by row.
fn stored(path: &Path) -> BTreeMap<String, StoredMatrix> {
    let config = ModelConfig::load(path).unwrap();
    let checkpoint = Checkpoint::open(path).unwrap().with_quantization(config.quantization.clone());
    let matrices = MatrixTensor::all(&config, checkpoint.model_prefix());
    let read = |matrix: MatrixTensor| {
        let stored = checkpoint.matrix(&format!("{}.weight", matrix.name), matrix.shape);
        let stored = match stored.unwrap() {
            StoredMatrix::Packed(packed) => {
                StoredMatrix::Packed(packed.into_order(CodeOrder::Rows))
            }
            dense => dense,
        };
        (matrix.name, stored)
    };
    matrices.into_iter().map(read).collect()
}

#[test]
fn codes_of_our_own_layout_can_be_multiplied_where_they_are() {
    let path = model("stories260K");
    for plan in ["int8", "int4:group=32:asym", "int4:group=64+down_proj=int8"] {
        let copy = Copy::new(&path, plan, |_| {});
        let config = ModelConfig::load(copy.path()).unwrap();
        let checkpoint = Checkpoint::open(copy.path()).unwrap();
        let checkpoint = checkpoint.with_quantization(config.quantization.clone());
        let codes = |matrix: &MatrixTensor| {
            let stored = checkpoint.matrix(&format!("{}.weight", matrix.name), matrix.shape);
            let StoredMatrix::Packed(packed) = stored.unwrap() else { return None };
            assert_eq!(packed.order, CodeOrder::Blocks);
            Some(packed.codes)
        };
        let matrices = MatrixTensor::all(&config, "model.");
        let is = |matrix: &MatrixTensor, part: &str| matrix.name.ends_with(part);
        let first = matrices.iter().find_map(codes).unwrap();
        assert!(first.is_aligned(64), "{plan}: tensors begin a cache line");
        let mut neighbours = 0;
        for pair in matrices.windows(2) {
            let (Some(first), Some(second)) = (codes(&pair[0]), codes(&pair[1])) else { continue };
            let same_input = (is(&pair[0], "q_proj") && is(&pair[1], "k_proj"))
                || (is(&pair[0], "k_proj") && is(&pair[1], "v_proj"))
                || (is(&pair[0], "gate_proj") && is(&pair[1], "up_proj"));
            if same_input {
                let both = first.followed_by(&second);
                assert!(both.is_some(), "{plan}: {} and {}", pair[0].name, pair[1].name);
                neighbours += 1;
            }
        }
        assert_eq!(neighbours, 3 * config.num_layers);
    }
}

/// The packed matrices of a model rounded in memory.
fn rounded(path: &Path, plan: &str) -> BTreeMap<String, PackedMatrix> {
    let config = ModelConfig::load(path).unwrap();
    let plan: SchemePlan = plan.parse().unwrap();
    let matrices = stored(path).into_iter().filter_map(|(name, matrix)| {
        let Scheme::Quantize { grid, .. } = plan.scheme_of(&name, config.num_layers) else {
            return None;
        };
        let StoredMatrix::Dense(matrix) = matrix else { panic!("{name} is not dense") };
        Some((name, round_to_nearest(&matrix, grid).unwrap()))
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
        ("int4:group=64:sym15:method=gptq:actorder:static", CheckpointLayout::Gptq),
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
                    let packed = packed.clone().into_order(CodeOrder::Rows);
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
