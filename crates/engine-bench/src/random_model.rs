use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};

use crate::{BenchError, RandomWeights, Shape};

/// [`RandomWeights`] as a directory in Hugging Face layout, bf16: for what starts from a file, such
/// as the time from a program's start to its first token.
#[derive(Debug)]
pub struct RandomModel {
    shape: Shape,
    folder: PathBuf,
}

/// Bytes between two reports of progress.
const REPORT_BYTES: u64 = 16 << 20;

impl RandomModel {
    /// The model of a shape, in a folder of `parent`.
    pub fn new(shape: Shape, parent: &Path) -> Self {
        Self { shape, folder: parent.join(format!("{}-bf16", shape.name)) }
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
        let weights = RandomWeights::new(self.shape);
        let (mut done, mut reported, total) = (0, 0, self.num_bytes());
        for (name, dims) in self.shape.tensors() {
            for values in weights.values(&name, &dims).chunks(1 << 16) {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                file.write_all(&bytes)?;
                done += bytes.len() as u64;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random_weights::SMALL;
    use engine::{Device, Engine, Request};

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
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }
}
