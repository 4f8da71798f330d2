//! GPTQ and AWQ on the trained models reach the perplexities and divergences of the reference.

#![cfg(feature = "cpu")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

mod common;

use std::{collections::BTreeMap, path::PathBuf};

use burn_flex::Flex;
use burn_tensor::TensorData;
use common::data;
use engine::Tokenizer;
use engine_bench::perplexity::Method;
use engine_core::{
    BatchInput, CalibrateError, CalibratedModel, CalibratedTensor, Calibration, Checkpoint,
    ForwardBatch, LoadError, LogitRows, Model, ModelConfig, SequenceChunk, StoredMatrix,
    UnscaledReason, WeightSource, calibrate, load,
};
use engine_quant::SchemePlan;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::Value;

/// A checkpoint of floats as a source.
struct Floats(Checkpoint);

impl WeightSource for Floats {
    fn contains(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    fn num_bytes(&self) -> usize {
        self.0.num_bytes()
    }

    fn model_prefix(&self) -> &'static str {
        self.0.model_prefix()
    }

    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<StoredMatrix, LoadError> {
        self.0.load(name, &shape).map(StoredMatrix::Dense)
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        Ok(self.0.load(name, &[len])?.iter::<f32>().collect())
    }

    fn stored_type(&self, _: &str) -> String {
        "floats".to_owned()
    }
}

fn directory(model: &str) -> PathBuf {
    let trained = data().join("models").join(model);
    if trained.exists() { trained } else { data().join("quant/models").join(model) }
}

fn source(model: &str) -> (ModelConfig, Floats) {
    let directory = directory(model);
    (ModelConfig::load(&directory).unwrap(), Floats(Checkpoint::open(&directory).unwrap()))
}

fn floats_of(tensor: &CalibratedTensor) -> (Vec<usize>, Vec<f32>) {
    match tensor {
        CalibratedTensor::Vector(values) => (vec![values.len()], values.clone()),
        CalibratedTensor::Matrix(StoredMatrix::Dense(data)) => {
            (data.shape.to_vec(), data.iter::<f32>().collect())
        }
        CalibratedTensor::Matrix(StoredMatrix::Packed(packed)) => {
            packed.check().unwrap();
            (packed.spec.shape.to_vec(), packed.dequantize())
        }
    }
}

/// The model that a calibration made, its matrices widened to `f32`.
fn load_calibrated(config: &ModelConfig, calibrated: &CalibratedModel) -> Model<Flex> {
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = calibrated
        .tensors()
        .map(|(name, tensor)| {
            let (shape, values) = floats_of(tensor);
            (name.to_owned(), shape, values.iter().flat_map(|w| w.to_le_bytes()).collect())
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("model.safetensors");
    safetensors::serialize_to_file(views, None, &file).unwrap();
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    load(config.clone(), &checkpoint, &Default::default(), &mut |_| ()).unwrap()
}

/// Logits of every position but the last, `[windows][tokens − 1][vocab]`.
fn logits(model: &Model<Flex>, windows: &[Vec<u32>]) -> Vec<Vec<f32>> {
    let forward = |tokens: &Vec<u32>| {
        let mut input = BatchInput::new(16);
        input.push(SequenceChunk {
            tokens,
            start_position: 0,
            page_table: &(0..tokens.len().div_ceil(16) as u32).collect::<Vec<_>>(),
            logits: LogitRows::All,
            rope_len: tokens.len(),
        });
        let mut kv = model.allocate_kv(tokens.len().next_multiple_of(16));
        let batch = ForwardBatch::upload(input, model.device());
        let data = model.forward(&batch, &mut kv).unwrap().into_data();
        let mut values: Vec<f32> = data.iter::<f32>().collect();
        values.truncate((tokens.len() - 1) * model.config().vocab_size);
        values
    };
    windows.iter().map(forward).collect()
}

fn log_probabilities(logits: &[f32]) -> Vec<f64> {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&x| (f64::from(x) - max).exp()).sum();
    logits.iter().map(|&x| f64::from(x) - max - sum.ln()).collect()
}

/// A text with the logits of the float model.
struct Scored {
    name: &'static str,
    windows: Vec<Vec<u32>>,
    floats: Vec<Vec<f32>>,
}

impl Scored {
    /// Perplexity, and divergence from the float model.
    fn score(&self, model: &Model<Flex>) -> (f64, f64) {
        let vocab = model.config().vocab_size;
        let (mut nll, mut divergence, mut count) = (0.0, 0.0, 0);
        let found = logits(model, &self.windows);
        for ((tokens, found), floats) in self.windows.iter().zip(&found).zip(&self.floats) {
            let rows = found.chunks(vocab).zip(floats.chunks(vocab)).zip(&tokens[1..]);
            for ((found, float), &next) in rows {
                let (q, p) = (log_probabilities(found), log_probabilities(float));
                nll -= q[next as usize];
                divergence += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
                count += 1;
            }
        }
        ((nll / f64::from(count)).exp(), divergence / f64::from(count))
    }
}

/// One of the trained models with its calibration and its scored texts.
struct Trained {
    name: &'static str,
    config: ModelConfig,
    source: Floats,
    sequences: Vec<Vec<u32>>,
    scored: Vec<Scored>,
    limits: Value,
}

impl Trained {
    fn new(
        name: &'static str,
        (calibration, method): (&str, &str),
        texts: &[(&'static str, &str, &str)],
    ) -> Self {
        let (config, source) = source(name);
        let tokenizer = Tokenizer::load(directory(name)).unwrap();
        let windows = |path: &str, method: &str| -> Vec<Vec<u32>> {
            let text = std::fs::read_to_string(data().join(path)).unwrap();
            let context = config.max_position_embeddings;
            let encode = |part: &str| tokenizer.encode(part, false);
            let (text, method) = match method {
                "per_line" => (text.replace('\n', "<|endoftext|>"), "per-document"),
                method => (text, method),
            };
            let method: Method = method.parse().unwrap();
            let windows = method.windows(&text, config.bos_token_id, context, encode).unwrap();
            windows.into_iter().map(|window| window.tokens).collect()
        };
        let floats: Model<Flex> =
            load(config.clone(), &source.0, &Default::default(), &mut |_| ()).unwrap();
        let scored = texts
            .iter()
            .map(|&(name, path, method)| {
                let windows = windows(path, method);
                Scored { name, floats: logits(&floats, &windows), windows }
            })
            .collect();
        let file = std::fs::read(data().join("quant/ppl.json")).unwrap();
        let limits: Value = serde_json::from_slice(&file).unwrap();
        let sequences = windows(calibration, method);
        let limits = limits["models"][name].clone();
        assert_eq!(sequences.len() as u64, limits["calibration"]["documents"].as_u64().unwrap());
        let tokens: usize = sequences.iter().map(Vec::len).sum();
        assert_eq!(tokens as u64, limits["calibration"]["tokens"].as_u64().unwrap());
        Self { name, config, source, sequences, scored, limits }
    }

    fn stories() -> Self {
        let texts = [
            ("tinystories", "text/tinystories_sample.txt", "per-document"),
            ("alice", "text/excerpt_alice.txt", "chunked:256"),
        ];
        Self::new("stories260K", ("quant/text/tinystories_calib.txt", "per_line"), &texts)
    }

    fn bard() -> Self {
        let texts = [("bard_valid", "quant/text/bard_valid_excerpt.txt", "chunked:256")];
        Self::new("bard1m", ("quant/text/bard_calib.txt", "chunked:256"), &texts)
    }

    fn calibrate(&self, plan: &str) -> CalibratedModel {
        let plan: SchemePlan = plan.parse().unwrap();
        let (config, source) = (&self.config, &self.source);
        let task = Calibration { config, source, plan: &plan, sequences: &self.sequences };
        CalibratedModel::new::<Flex>(&task, &Default::default(), |_| ()).unwrap()
    }

    /// Quantizes by each scheme, `(plan, name of the reference)`; returns the perplexities of the
    /// first text.
    fn check(&self, schemes: &[(&str, &str)]) -> Vec<f64> {
        let mut failed = Vec::new();
        let mut found = Vec::new();
        for (plan, reference) in schemes {
            let calibrated = self.calibrate(plan);
            assert_eq!(calibrated.matrices.len(), 7 * self.config.num_layers);
            let model = load_calibrated(&self.config, &calibrated);
            for scored in &self.scored {
                let limits = &self.limits["approximate"][reference];
                let number = |what: &str| limits["reach_or_beat"][scored.name][what].as_f64();
                let ppl_limit = number("perplexity").unwrap();
                let mut kl_limit = number("kl_mean_nats").unwrap();
                let nearest = &limits["rtn_with_the_same_format"]["result"][scored.name];
                // Clipping must gain something even where there are no outliers to protect.
                if reference.ends_with("clip") {
                    kl_limit = kl_limit.min(nearest["kl_mean_nats"].as_f64().unwrap());
                }
                let (ppl, kl) = scored.score(&model);
                let line = format!(
                    "{} {} {plan}: perplexity {ppl:.4} of {ppl_limit}, divergence {kl:.5} of {kl_limit:.5}",
                    self.name, scored.name
                );
                eprintln!("{line}");
                if !(ppl <= ppl_limit && kl <= kl_limit) {
                    failed.push(line);
                }
                found.push(ppl);
            }
        }
        assert!(failed.is_empty(), "missed:\n{}", failed.join("\n"));
        found
    }
}

const GPTQ_32: [(&str, &str); 4] = [
    ("int4:group=32:method=gptq", "gptq_g32_asym"),
    ("int4:group=32:sym15:method=gptq", "gptq_g32_sym"),
    ("int4:group=32:method=gptq:actorder", "gptq_g32_asym_actorder"),
    ("int4:group=32:sym15:method=gptq:actorder", "gptq_g32_sym_actorder"),
];

const AWQ_32: [(&str, &str); 2] = [
    ("int4:group=32:method=awq", "awq_g32_asym_clip"),
    ("int4:group=32:method=awq:noclip", "awq_g32_asym"),
];

#[test]
fn gptq_reaches_the_reference_on_stories() {
    let perplexities = Trained::stories().check(&GPTQ_32);
    assert!(perplexities[0] <= 3.77, "{}", perplexities[0]);
}

#[test]
fn awq_reaches_the_reference_on_stories() {
    Trained::stories().check(&AWQ_32);
}

#[test]
fn gptq_reaches_the_reference_on_bard() {
    let bard = Trained::bard();
    bard.check(&GPTQ_32);
    bard.check(&[
        ("int4:group=128:method=gptq", "gptq_g128_asym"),
        ("int4:group=128:sym15:method=gptq", "gptq_g128_sym"),
        ("int4:group=128:method=gptq:actorder", "gptq_g128_asym_actorder"),
        ("int4:group=128:sym15:method=gptq:actorder", "gptq_g128_sym_actorder"),
    ]);
}

#[test]
fn awq_reaches_the_reference_on_bard() {
    let bard = Trained::bard();
    bard.check(&AWQ_32);
    bard.check(&[
        ("int4:group=128:method=awq", "awq_g128_asym_clip"),
        ("int4:group=128:method=awq:noclip", "awq_g128_asym"),
    ]);
}

/// Tokens that look like nothing in particular.
fn sequences(config: &ModelConfig) -> Vec<Vec<u32>> {
    let vocab = config.vocab_size as u32;
    (1..=6).map(|s| (0..20 + s).map(|i| (i * i * 7 + i * s + s) % vocab).collect()).collect()
}

fn calibrate_random(model: &str, plan: &str) -> (ModelConfig, CalibratedModel) {
    let (config, source) = source(model);
    let (plan, sequences) = (plan.parse().unwrap(), sequences(&config));
    let task = Calibration { config: &config, source: &source, plan: &plan, sequences: &sequences };
    let calibrated = CalibratedModel::new::<Flex>(&task, &Default::default(), |_| ()).unwrap();
    (config, calibrated)
}

#[test]
fn every_family_keeps_its_names_and_its_function() {
    let families = [
        "gemma2",
        "gemma3-text",
        "llama-bias",
        "llama-f16",
        "llama-mha-tied",
        "mistral-sliding",
        "phi3-fused",
        "qwen2-bias-tied",
        "qwen3-qknorm",
    ];
    for family in families {
        for plan in ["int8:method=gptq", "int4:group=8:asym:method=awq", "int4:group=8:method=gptq"]
        {
            let (config, calibrated) = calibrate_random(family, plan);
            let names: BTreeMap<_, _> = calibrated.tensors().collect();
            let checkpoint = Checkpoint::open(directory(family)).unwrap();
            let expected: Vec<_> = checkpoint.names().collect();
            assert_eq!(names.keys().copied().collect::<Vec<_>>(), expected, "{family} {plan}");
            let total = calibrated.matrices.len();
            let numbers: Vec<_> =
                calibrated.matrices.iter().map(|report| (report.number, report.total)).collect();
            assert_eq!(numbers, (1..=total).map(|n| (n, total)).collect::<Vec<_>>());

            let floats: Model<Flex> =
                load(config.clone(), &checkpoint, &Default::default(), &mut |_| ()).unwrap();
            let windows = sequences(&config);
            let original = logits(&floats, &windows).concat();
            let quantized = logits(&load_calibrated(&config, &calibrated), &windows).concat();
            let size: f32 = original.iter().map(|x| x * x).sum();
            let lost: f32 = original.iter().zip(&quantized).map(|(a, b)| (a - b).powi(2)).sum();
            let limit = if plan.starts_with("int8") { 0.02 } else { 0.25 };
            let error = (lost / size).sqrt();
            assert!(error < limit, "{family} {plan}: the logits are {error} off");
        }
    }
}

#[test]
fn scales_that_are_folded_in_change_nothing_by_themselves() {
    // INT8 after the scales of INT4: what is left is eight-bit noise, so a scale that is folded
    // into the wrong place, or not at all, cannot hide.
    let plan = "int4:group=8:asym:method=awq+self_attn=int8+up_proj=int8+down_proj=none";
    for family in ["gemma2", "llama-mha-tied", "llama-bias"] {
        let (_, calibrated) = calibrate_random(family, plan);
        for report in &calibrated.matrices {
            let limit = if report.name.ends_with("gate_proj") { 0.2 } else { 0.012 };
            assert!(report.error < limit, "{family} {}: {}", report.name, report.error);
            assert!(report.nearest_error.is_finite());
        }
    }
}

#[test]
fn a_plan_may_mix_methods_and_what_it_keeps_stays_as_it_was() {
    let plan = "int4:group=16:method=gptq+v_proj=int8+layers.1=none+embeddings=int8+o_proj=nf4";
    let (_, calibrated) = calibrate_random("llama-gqa", plan);
    let original = Checkpoint::open(directory("llama-gqa")).unwrap();
    let type_of = |name: &str| calibrated.stored_type(&format!("model.layers.{name}.weight"));
    assert_eq!(type_of("0.self_attn.q_proj"), "int4:group=16:asym");
    assert_eq!(type_of("0.self_attn.v_proj"), "int8");
    assert_eq!(type_of("2.self_attn.o_proj"), "nf4");
    assert_eq!(calibrated.stored_type("model.embed_tokens.weight"), "int8");
    let kept = "model.layers.1.mlp.up_proj.weight";
    let [rows, columns] =
        [original.tensor(kept).unwrap().shape[0], original.tensor(kept).unwrap().shape[1]];
    let StoredMatrix::Dense(data) = calibrated.matrix(kept, [rows, columns]).unwrap() else {
        panic!("kept matrices stay dense");
    };
    let expected: TensorData = original.load(kept, &[rows, columns]).unwrap();
    assert_eq!(data.bytes, expected.bytes);
    assert!(calibrated.matrix(kept, [columns + 1, columns]).is_err());
    assert!(calibrated.vector("model.norm.weight", 1).is_err());
    assert!(!calibrated.contains("model.nothing"));
}

#[test]
fn gptq_reports_less_error_than_rounding_to_nearest() {
    let stories = Trained::stories();
    let calibrated = stories.calibrate("int4:group=32:method=gptq");
    for report in &calibrated.matrices {
        assert!(report.error < report.nearest_error, "{report:?}");
        assert!(report.error > 0.0 && report.raised_damp.is_none());
    }
}

#[test]
fn awq_says_which_inputs_it_left() {
    let (_, calibrated) = calibrate_random("llama-gqa", "int4:group=16:method=awq+down_proj=none");
    let grouped: Vec<_> = calibrated
        .unscaled
        .iter()
        .filter(|(_, reason)| *reason == UnscaledReason::GroupedHeads)
        .map(|(name, _)| name.as_str())
        .collect();
    let expected: Vec<_> = (0..3).map(|i| format!("model.layers.{i}.self_attn.o_proj")).collect();
    assert_eq!(grouped, expected);
    let (_, calibrated) =
        calibrate_random("llama-mha-tied", "int4:group=16:method=awq+v_proj=none");
    let reasons: Vec<_> = calibrated.unscaled.iter().map(|(_, reason)| *reason).collect();
    assert!(reasons.contains(&UnscaledReason::SourceKept), "o_proj after a kept v_proj");
    assert!(reasons.contains(&UnscaledReason::SharedInputKept), "q_proj beside a kept v_proj");
}

#[test]
fn bad_calibrations_are_errors() {
    let (config, source) = source("llama-gqa");
    let plan: SchemePlan = "int4:method=gptq".parse().unwrap();
    let run = |sequences: &[Vec<u32>]| {
        let task = Calibration { config: &config, source: &source, plan: &plan, sequences };
        calibrate::<Flex>(&task, &Default::default(), &mut |_| Ok(())).unwrap_err()
    };
    assert!(matches!(run(&[]), CalibrateError::NoTokens));
    assert!(matches!(run(&[vec![]]), CalibrateError::NoTokens));
    let vocab = config.vocab_size as u32;
    let found = run(&[vec![1], vec![vocab]]);
    assert!(matches!(found, CalibrateError::TokenOutOfRange { sequence: 1, .. }));
    let found = run(&[vec![1; config.max_context() + 1]]);
    assert!(matches!(found, CalibrateError::SequenceTooLong { sequence: 0, .. }));
    let task = Calibration { config: &config, source: &source, plan: &plan, sequences: &[vec![1]] };
    let full = |_| Err("the disk is full".into());
    let found = calibrate::<Flex>(&task, &Default::default(), &mut { full }).unwrap_err();
    assert_eq!(found.to_string(), "model.embed_tokens.weight: the disk is full");

    let (config, source) = self::source("phi3-fused");
    let plan: SchemePlan = "int4:method=gptq+v_proj=int8".parse().unwrap();
    let task = Calibration { config: &config, source: &source, plan: &plan, sequences: &[vec![1]] };
    let found = calibrate::<Flex>(&task, &Default::default(), &mut |_| Ok(())).unwrap_err();
    assert!(found.to_string().contains("qkv_proj"), "{found}");
}
