//! Calibration of small models of every family: names, formats, reports and refusals.

#![cfg(feature = "flex")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use burn_flex::Flex;
use burn_tensor::TensorData;
use engine_core::{
    BatchInput, CalibrateError, CalibratedModel, Calibration, Checkpoint, ForwardBatch, KvFormat,
    LogitRows, Model, ModelConfig, SequenceChunk, StoredMatrix, UnscaledReason, WeightSource,
    calibrate, load,
};
use engine_quant::SchemePlan;

fn directory(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/models").join(model)
}

fn source(model: &str) -> (ModelConfig, Checkpoint) {
    let directory = directory(model);
    (ModelConfig::load(&directory).unwrap(), Checkpoint::open(&directory).unwrap())
}

fn load_from(config: &ModelConfig, source: &dyn WeightSource) -> Model<Flex> {
    load(config.clone(), source, &SchemePlan::default(), &Default::default(), &mut |_| ()).unwrap()
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
        let mut kv = model.allocate_kv(tokens.len().next_multiple_of(16), KvFormat::F32);
        let batch = ForwardBatch::upload(input, model.device());
        let data = model.forward(&batch, &mut kv).unwrap().into_data();
        let mut values: Vec<f32> = data.iter::<f32>().collect();
        values.truncate((tokens.len() - 1) * model.config().vocab_size);
        values
    };
    windows.iter().map(forward).collect()
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
fn every_family_keeps_its_names_and_loses_less_than_by_rounding_to_nearest() {
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
        let plans = [
            ("int8:method=gptq", 0.9),
            ("int4:group=8:asym:method=awq", 1.0),
            ("int4:group=8:asym:method=gptq", 0.9),
        ];
        for (plan, limit) in plans {
            let (config, calibrated) = calibrate_random(family, plan);
            let names: BTreeMap<_, _> = calibrated.tensors().collect();
            let checkpoint = Checkpoint::open(directory(family)).unwrap();
            let expected: Vec<_> = checkpoint.names().collect();
            assert_eq!(names.keys().copied().collect::<Vec<_>>(), expected, "{family} {plan}");
            let total = calibrated.matrices.len();
            let numbers: Vec<_> =
                calibrated.matrices.iter().map(|report| (report.number, report.total)).collect();
            assert_eq!(numbers, (1..=total).map(|n| (n, total)).collect::<Vec<_>>());

            let floats = load_from(&config, &checkpoint);
            let windows = sequences(&config);
            let original = logits(&floats, &windows).concat();
            let error = |calibrated: &CalibratedModel| {
                let quantized = logits(&load_from(&config, calibrated), &windows).concat();
                let size: f32 = original.iter().map(|x| x * x).sum();
                let lost: f32 = original.iter().zip(&quantized).map(|(a, b)| (a - b).powi(2)).sum();
                (lost / size).sqrt()
            };
            let (_, nearest) = calibrate_random(family, plan.split(":method").next().unwrap());
            let (found, nearest) = (error(&calibrated), error(&nearest));
            assert!(found < limit * nearest, "{family} {plan}: {found}, to nearest {nearest}");
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
    let StoredMatrix::Dense(matrix) = calibrated.matrix(kept, [rows, columns]).unwrap() else {
        panic!("kept matrices stay dense");
    };
    let expected: TensorData = original.load(kept, &[rows, columns]).unwrap();
    assert_eq!(matrix.into_data().bytes, expected.bytes);
    assert!(calibrated.matrix(kept, [columns + 1, columns]).is_err());
    assert!(calibrated.vector("model.norm.weight", 1).is_err());
    assert!(!calibrated.contains("model.nothing"));
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
