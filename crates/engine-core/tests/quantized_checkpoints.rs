//! Checkpoints in few bits that other tools made: every number equals the reference bit for bit.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use burn_flex::{Flex, FlexDevice};
use engine_core::{
    Checkpoint, LoadError, LoadProgress, ModelConfig, StoredMatrix, WeightSource, load,
    planned_weight_bytes,
};
use engine_quant::SchemePlan;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

const CHECKPOINTS: [&str; 10] = [
    "gptq/bard1m-gptq-w4-g128-actorder",
    "gptq/rand128-gptq-w4-g32",
    "gptq/rand128-gptq-w4-g32-actorder-asym",
    "gptq/rand128-gptq-w8-gall",
    "gptq/rand128-gptqv2-w4-g32-asym",
    "awq/bard1m-awq-w4-g128",
    "awq/rand128-awq-w4-g32",
    "bnb/rand128-bnb-int8",
    "bnb/rand128-bnb-nf4",
    "bnb/rand128-bnb-nf4dq",
];

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/quant").join(name)
}

fn open(dir: &Path) -> (ModelConfig, Checkpoint) {
    let config = ModelConfig::load(dir).unwrap();
    let checkpoint = Checkpoint::open(dir).unwrap();
    let checkpoint = checkpoint.with_quantization(config.quantization.clone());
    (config, checkpoint)
}

fn checksum(values: &[f32]) -> String {
    let mut hash = Sha256::new();
    // The references have no negative zeros.
    values.iter().for_each(|value| hash.update((value + 0.0).to_le_bytes()));
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn every_matrix_equals_its_reference_bit_for_bit() {
    for name in CHECKPOINTS {
        let (_, checkpoint) = open(&data(name));
        let json = fs::read(data(&format!("{name}.json"))).unwrap();
        let json: Value = serde_json::from_slice(&json).unwrap();
        let matrices = json["linears"].as_object().unwrap();
        assert_eq!(matrices.len(), 14, "{name}");
        for (matrix, expected) in matrices {
            let shape: Vec<usize> =
                serde_json::from_value(expected["shape_out_in"].clone()).unwrap();
            let weight = format!("{matrix}.weight");
            assert!(WeightSource::contains(&checkpoint, &weight));
            let stored = checkpoint.matrix(&weight, [shape[0], shape[1]]).unwrap();
            let StoredMatrix::Packed(packed) = stored else {
                panic!("{name}: {matrix} did not keep its bits");
            };
            packed.check().unwrap();
            let found = checksum(&packed.dequantize());
            assert_eq!(found, expected["sha256_dequantized_f32"], "{name}: {matrix}");
            let ordered = expected["g_idx_is_trivial"] == json!(false);
            assert_eq!(packed.column_order.is_some(), ordered, "{name}: {matrix}");
        }
    }
}

#[test]
fn the_bytes_that_are_planned_are_those_that_are_there() {
    for (name, plan) in [
        ("stories260K", "none"),
        ("stories260K", "int8+embeddings=int8:tensor"),
        ("stories260K", "int4:group=32:asym+lm_head=nf4+last=none"),
        ("phi3-fused", "int4:group=row+v_proj=int8+gate_up_proj=none"),
    ] {
        let (config, checkpoint) = open(&data("../models").join(name));
        let plan: SchemePlan = plan.parse().unwrap();
        let planned = planned_weight_bytes(&config, &checkpoint, &plan);
        let mut last = None;
        let progress = &mut |progress: LoadProgress| last = Some(progress);
        let device = FlexDevice;
        let model = load::<Flex>(config, &checkpoint, &plan, &device, progress).unwrap();
        assert_eq!(planned, model.weight_bytes(), "{name} {plan}");
        let last = last.unwrap();
        assert_eq!(last.bytes_done, last.bytes_total);
    }
}

/// A tensor of a safetensors file: type, shape, bytes.
type Tensor = (String, Vec<usize>, Vec<u8>);

/// A copy of a checkpoint that can be changed.
struct Copy {
    dir: TempDir,
    tensors: std::collections::BTreeMap<String, Tensor>,
    config: Value,
}

impl Copy {
    fn of(name: &str) -> Self {
        let bytes = fs::read(data(name).join("model.safetensors")).unwrap();
        let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
        let (header, data_bytes) = rest.split_at(u64::from_le_bytes(*length) as usize);
        let header: serde_json::Map<String, Value> = serde_json::from_slice(header).unwrap();
        let tensor = |value: &Value| {
            let offset = |i: usize| value["data_offsets"][i].as_u64().unwrap() as usize;
            let dtype = value["dtype"].as_str().unwrap().to_owned();
            let shape = serde_json::from_value(value["shape"].clone()).unwrap();
            (dtype, shape, data_bytes[offset(0)..offset(1)].to_vec())
        };
        let tensors = header.iter().filter(|(name, _)| *name != "__metadata__");
        let tensors = tensors.map(|(name, value)| (name.clone(), tensor(value))).collect();
        let config = fs::read(data(name).join("config.json")).unwrap();
        let config = serde_json::from_slice(&config).unwrap();
        Self { dir: tempfile::tempdir().unwrap(), tensors, config }
    }

    fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.get_mut(name).unwrap()
    }

    fn read(&self, shape: [usize; 2]) -> Result<StoredMatrix, LoadError> {
        let (mut header, mut bytes) = (serde_json::Map::new(), Vec::<u8>::new());
        for (name, (dtype, shape, data)) in &self.tensors {
            let offsets = [bytes.len(), bytes.len() + data.len()];
            let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets });
            header.insert(name.clone(), entry);
            bytes.extend(data);
        }
        let header = serde_json::to_vec(&header).unwrap();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header);
        file.extend(bytes);
        fs::write(self.dir.path().join("model.safetensors"), file).unwrap();
        fs::write(self.dir.path().join("config.json"), self.config.to_string()).unwrap();
        let (_, checkpoint) = open(self.dir.path());
        checkpoint.matrix(&format!("{MATRIX}.weight"), shape)
    }

    fn values(&self) -> Vec<f32> {
        self.read([128, 128]).unwrap().to_f32()
    }

    fn refused(&self, needles: &[&str]) {
        let error = self.read([128, 128]).unwrap_err().to_string();
        for needle in needles.iter().chain(&["model.safetensors", MATRIX]) {
            assert!(error.contains(needle), "`{error}` does not say `{needle}`");
        }
    }
}

const MATRIX: &str = "model.layers.0.self_attn.q_proj";

fn part(suffix: &str) -> String {
    format!("{MATRIX}.{suffix}")
}

#[test]
fn symmetric_files_that_say_one_version_and_hold_the_other_are_told_apart() {
    let mut copy = Copy::of("gptq/rand128-gptq-w4-g32");
    let expected = copy.values();
    // Sevens with a word for version 2, eights with a word for version 1.
    copy.config["quantization_config"]["checkpoint_format"] = "gptq_v2".into();
    assert_eq!(copy.values(), expected);
    copy.tensor(&part("qzeros")).2.fill(0x88);
    assert_eq!(copy.values(), expected);
    copy.config["quantization_config"]["checkpoint_format"] = "gptq".into();
    assert_eq!(copy.values(), expected);
    // Nothing is guessed about asymmetric files.
    copy.config["quantization_config"]["sym"] = false.into();
    assert_ne!(copy.values(), expected);
}

#[test]
fn groups_of_unequal_sizes_become_the_same_numbers_as_floats() {
    let mut copy = Copy::of("gptq/rand128-gptq-w4-g32");
    let packed = copy.values();
    // The first column moves to the second group, which then has 33.
    copy.tensor(&part("g_idx")).2[0] = 1;
    let StoredMatrix::Dense(floats) = copy.read([128, 128]).unwrap() else {
        panic!("33 columns cannot be a group of 32");
    };
    let floats = floats.to_f32();
    let differs = |i: &usize| floats[*i] != packed[*i];
    assert!((0..128 * 128).filter(|i| i % 128 != 0).all(|i| !differs(&i)));
    assert!((0..128).map(|row| row * 128).any(|i| differs(&i)));
}

#[test]
fn an_absent_order_of_columns_is_their_own() {
    let mut copy = Copy::of("gptq/rand128-gptq-w4-g32");
    let expected = copy.values();
    copy.tensors.remove(&part("g_idx"));
    assert_eq!(copy.values(), expected);
}

#[test]
fn damaged_gptq_tensors_are_refused_by_name() {
    let fresh = || Copy::of("gptq/rand128-gptq-w4-g32");
    for missing in ["qweight", "qzeros", "scales"] {
        let mut copy = fresh();
        copy.tensors.remove(&part(missing));
        copy.refused(&[&part(missing)]);
    }
    let mut copy = fresh();
    copy.tensor(&part("g_idx")).2[3] = 0x80;
    copy.refused(&["column 0", "4"]);
    let mut copy = fresh();
    copy.tensor(&part("scales")).2[1] = 0x7c;
    copy.tensor(&part("scales")).2[0] = 1;
    copy.refused(&["scale", "finite"]);
    let mut copy = fresh();
    copy.tensor(&part("qweight")).0 = "F32".into();
    copy.refused(&["qweight", "I32", "F32"]);
    let mut copy = fresh();
    copy.config["quantization_config"]["group_size"] = 64.into();
    copy.refused(&["qzeros", "[2, 16]", "[4, 16]"]);
    let mut copy = fresh();
    copy.config["quantization_config"]["bits"] = 8.into();
    copy.refused(&["qweight", "[32, 128]", "[16, 128]"]);
    assert!(matches!(fresh().read([128, 64]), Err(LoadError::Shape { .. })));
}

#[test]
fn damaged_awq_and_bitsandbytes_tensors_are_refused_by_name() {
    let mut copy = Copy::of("awq/rand128-awq-w4-g32");
    copy.tensors.remove(&part("qzeros"));
    copy.refused(&["qzeros"]);

    let fresh = || Copy::of("bnb/rand128-bnb-nf4dq");
    for missing in ["weight.absmax", "weight.nested_absmax", "weight.quant_state.bitsandbytes__nf4"]
    {
        let mut copy = fresh();
        copy.tensors.remove(&part(missing));
        copy.refused(&[missing]);
    }
    let mut copy = fresh();
    copy.tensor(&part("weight.quant_state.bitsandbytes__nf4")).2[0] = b'x';
    copy.refused(&["quant_state", "JSON"]);
    let mut copy = fresh();
    let weight = copy.tensor(&part("weight"));
    weight.2.truncate(100);
    weight.1 = vec![100, 1];
    copy.refused(&["[8192, 1]", "[100, 1]"]);

    let mut copy = Copy::of("bnb/rand128-bnb-int8");
    copy.tensor(&part("weight_format")).2[0] = 2;
    copy.refused(&["weight_format"]);
    copy.tensor(&part("weight_format")).2[0] = 0;
    copy.tensor(&part("SCB")).2[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    copy.refused(&["scale", "finite"]);
    copy.tensors.remove(&part("SCB"));
    copy.refused(&["SCB"]);
}
