use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};

use crate::{BenchError, Shape, splitmix::SplitMix64};

/// Random weights in the shape of a real model: a directory in Hugging Face layout, bf16.
///
/// Speed does not depend on the weights' values, so what is measured with them holds for the real
/// model. They are written once and found again under the system's folder for temporary files.
#[derive(Debug)]
pub struct RandomModel {
    shape: Shape,
    folder: PathBuf,
}

/// Standard deviation of the weights, as models are initialised.
const DEVIATION: f64 = 0.02;
/// Bytes between two reports of progress.
const REPORT_BYTES: u64 = 16 << 20;

impl RandomModel {
    /// The model of a shape, in `parent/engine-bench`.
    pub fn new(shape: Shape, parent: &Path) -> Self {
        Self { shape, folder: parent.join("engine-bench").join(format!("{}-bf16", shape.name)) }
    }

    /// The model's directory; may not be there yet.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Bytes of the weights.
    pub fn num_bytes(&self) -> u64 {
        2 * self.shape.num_parameters() as u64
    }

    /// Whether the directory is there with all its bytes.
    pub fn is_complete(&self) -> bool {
        let expected = self.header().len() as u64 + self.num_bytes();
        let config = fs::read(self.folder.join("config.json")).ok();
        let weights = fs::metadata(self.folder.join("model.safetensors"));
        config.and_then(|json| serde_json::from_slice::<Value>(&json).ok())
            == Some(self.shape.config())
            && weights.is_ok_and(|weights| weights.len() == expected)
    }

    /// Writes the model unless it is there; `progress` hears bytes done and in all.
    ///
    /// # Errors
    /// If it cannot be written; nothing is left behind then.
    pub fn write(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<(), BenchError> {
        if self.is_complete() {
            return Ok(());
        }
        self.write_files(progress).map_err(|source| BenchError::Write {
            path: self.folder.clone(),
            size_mib: self.num_bytes() >> 20,
            source,
        })
    }

    fn write_files(&self, progress: &mut dyn FnMut(u64, u64)) -> io::Result<()> {
        let parent = self.folder.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(parent)?;
        // Whoever else writes the same model has a folder of their own, until the last step.
        let part = tempfile::tempdir_in(parent)?;
        fs::write(part.path().join("config.json"), self.shape.config().to_string())?;
        self.write_weights(&part.path().join("model.safetensors"), progress)?;
        if self.folder.exists() {
            fs::remove_dir_all(&self.folder)?;
        }
        fs::rename(part.path(), &self.folder)
    }

    fn write_weights(&self, path: &Path, progress: &mut dyn FnMut(u64, u64)) -> io::Result<()> {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
        file.write_all(&self.header())?;
        let table = bell_curve();
        let mut random = SplitMix64(1);
        let (mut done, mut reported, total) = (0, 0, self.num_bytes());
        for (_, dims) in self.shape.tensors() {
            let is_norm = dims.len() == 1;
            let row_len = dims.last().copied().unwrap_or(0);
            let mut row = vec![0_u8; 2 * row_len];
            for _ in 0..dims.iter().product::<usize>() / row_len.max(1) {
                if is_norm {
                    row.chunks_exact_mut(2).for_each(|pair| pair.copy_from_slice(&bf16(1.0)));
                } else {
                    fill(&mut row, &table, &mut random);
                }
                file.write_all(&row)?;
                done += row.len() as u64;
                if done - reported >= REPORT_BYTES || done == total {
                    reported = done;
                    progress(done, total);
                }
            }
        }
        file.into_inner()?.sync_all()
    }

    /// What stands before the weights in a safetensors file.
    fn header(&self) -> Vec<u8> {
        let mut tensors = Map::new();
        let mut start = 0;
        for (name, dims) in self.shape.tensors() {
            let end = start + 2 * dims.iter().product::<usize>();
            let tensor = json!({ "dtype": "BF16", "shape": dims, "data_offsets": [start, end] });
            tensors.insert(name, tensor);
            start = end;
        }
        let mut json = Value::Object(tensors).to_string().into_bytes();
        json.resize(json.len().next_multiple_of(8), b' ');
        let mut header = (json.len() as u64).to_le_bytes().to_vec();
        header.append(&mut json);
        header
    }
}

/// The upper half of a 32-bit float.
fn bf16(value: f32) -> [u8; 2] {
    let [_, _, low, high] = value.to_le_bytes();
    [low, high]
}

/// Weights by the sum of four random bytes, which is nearly normal.
fn bell_curve() -> Vec<[u8; 2]> {
    let largest = 4 * 255;
    // The variance of one of 256 equally likely numbers is (256² - 1) / 12.
    let deviation = (4.0_f64 * (65_536.0 - 1.0) / 12.0).sqrt();
    let middle = f64::from(largest) / 2.0;
    let weight = |sum| ((f64::from(sum) - middle) / deviation * DEVIATION) as f32;
    (0..=largest).map(|sum| bf16(weight(sum))).collect()
}

fn fill(row: &mut [u8], table: &[[u8; 2]], random: &mut SplitMix64) {
    for pairs in row.chunks_mut(4) {
        let bytes = random.next().to_le_bytes();
        let sums = bytes.chunks_exact(4).map(|four| four.iter().map(|b| usize::from(*b)).sum());
        for (pair, sum) in pairs.chunks_exact_mut(2).zip(sums) {
            let sum: usize = sum;
            pair.copy_from_slice(&table[sum]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ShapeFamily;
    use engine::{Device, Engine, Request};

    const SMALL: Shape = Shape {
        name: "small",
        family: ShapeFamily::Qwen3,
        hidden: 64,
        intermediate: 96,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 32,
        vocab: 128,
        context: 64,
        rope_theta: 1e4,
        tied: false,
    };

    #[test]
    fn a_random_model_loads_runs_and_is_written_once() {
        let parent = tempfile::tempdir().unwrap();
        let model = RandomModel::new(SMALL, parent.path());
        assert!(!model.is_complete());
        let mut last = (0, 0);
        model.write(&mut |done, total| last = (done, total)).unwrap();
        assert_eq!(last, (model.num_bytes(), model.num_bytes()));
        assert!(model.is_complete());
        model.write(&mut |_, _| panic!("it is there already")).unwrap();

        let path = model.folder().display().to_string();
        let engine = Engine::builder(path).device(Device::Cpu).kv_cache_bytes(1 << 20).load();
        let request = Request::tokens(vec![1, 2, 3]).max_tokens(5).ignore_eos();
        assert_eq!(engine.unwrap().generate(request).unwrap().tokens().len(), 5);
    }

    #[test]
    fn a_model_that_lost_bytes_is_written_again() {
        let parent = tempfile::tempdir().unwrap();
        let model = RandomModel::new(SMALL, parent.path());
        model.write(&mut |_, _| ()).unwrap();
        let weights = model.folder().join("model.safetensors");
        File::options().write(true).open(&weights).unwrap().set_len(100).unwrap();
        assert!(!model.is_complete());
        model.write(&mut |_, _| ()).unwrap();
        assert!(model.is_complete());
        assert_eq!(fs::read_dir(parent.path().join("engine-bench")).unwrap().count(), 1);
    }

    #[test]
    fn weights_have_the_deviation_of_a_fresh_model() {
        let mut row = vec![0; 20_000];
        fill(&mut row, &bell_curve(), &mut SplitMix64(7));
        let values: Vec<f64> = row
            .chunks_exact(2)
            .map(|pair| f64::from(f32::from_le_bytes([0, 0, pair[0], pair[1]])))
            .collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
        assert!(mean.abs() < 0.001, "{mean}");
        assert!((variance.sqrt() - DEVIATION).abs() < 0.001, "{}", variance.sqrt());
    }
}
