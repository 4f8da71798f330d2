//! What the tests share: where data is, which devices are there, what a fixture holds.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

pub mod tiny;

use std::path::{Path, PathBuf};

use engine::{Device, Engine, EngineBuilder};
use safetensors::SafeTensors;

/// Largest difference of a logit from the reference that rounding in `f32` explains.
pub const LOGIT_TOLERANCE: f32 = 2e-4;

/// `tests/data`.
pub fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

/// The directory of a model.
pub fn model(name: &str) -> PathBuf {
    data().join("models").join(name)
}

/// A builder for one of the models on a device.
pub fn builder(name: &str, device: Device) -> EngineBuilder {
    Engine::builder(model(name).display().to_string()).device(device).kv_cache_bytes(8 << 20)
}

/// The CPU, and every GPU backend that this build has and this machine can run.
///
/// With `ENGINE_REQUIRE_WGPU` set, a missing wgpu adapter fails the test instead of being skipped.
pub fn devices() -> Vec<Device> {
    let mut devices = vec![Device::Cpu];
    for device in [Device::Wgpu, Device::Cuda(0)] {
        match device.select() {
            Ok(_) => devices.push(device),
            Err(error) => eprintln!("skipped: {error}"),
        }
    }
    if std::env::var_os("ENGINE_REQUIRE_WGPU").is_some() {
        assert!(devices.contains(&Device::Wgpu), "ENGINE_REQUIRE_WGPU is set, but see above");
    }
    devices
}

/// Reference outputs of one model, `tests/data/fixtures/<model>.{safetensors,json}`.
pub struct Fixture {
    bytes: Vec<u8>,
    /// The JSON beside the tensors.
    pub json: serde_json::Value,
}

impl Fixture {
    pub fn open(name: &str) -> Self {
        let path = data().join("fixtures").join(name);
        let bytes = std::fs::read(path.with_extension("safetensors")).unwrap();
        let json = std::fs::read(path.with_extension("json")).unwrap();
        Self { bytes, json: serde_json::from_slice(&json).unwrap() }
    }

    /// `prompt0`, `prompt1`, …
    pub fn prompts(&self) -> Vec<String> {
        let prompts = self.json["prompts"].as_array().unwrap();
        prompts.iter().map(|prompt| prompt["key"].as_str().unwrap().to_owned()).collect()
    }

    /// An `I64` tensor as token ids.
    pub fn ids(&self, name: &str) -> Vec<u32> {
        let (bytes, _) = self.tensor(name).unwrap();
        bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect()
    }

    /// An `F32` tensor, if the fixture has it.
    pub fn floats(&self, name: &str) -> Option<Vec<f32>> {
        let (bytes, _) = self.tensor(name)?;
        Some(bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect())
    }

    fn tensor(&self, name: &str) -> Option<(Vec<u8>, Vec<usize>)> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = tensors.tensor(name).ok()?;
        Some((view.data().to_vec(), view.shape().to_vec()))
    }
}

/// Names of all models with fixtures.
pub fn fixture_names() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(data().join("fixtures"))
        .unwrap()
        .filter_map(|entry| {
            let path = entry.unwrap().path();
            let is_fixture = path.extension().is_some_and(|e| e == "safetensors");
            is_fixture.then(|| path.file_stem().unwrap().to_str().unwrap().to_owned())
        })
        .collect();
    names.sort();
    names
}

/// Largest absolute difference; infinite where one is not a number.
pub fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |max, d| if d.is_nan() { f32::INFINITY } else { max.max(d) })
}
