//! Writes small GGUF files, good and bad.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "tests")]

pub mod convert;

use engine_core::{GgufFile, LoadError};

/// A file to be written.
#[derive(Clone)]
pub struct Writer {
    /// Keys with their types and values.
    pub pairs: Vec<Vec<u8>>,
    pub tensors: Vec<Tensor>,
    pub data: Vec<u8>,
    pub alignment: usize,
}

impl Default for Writer {
    fn default() -> Self {
        Self { pairs: Vec::new(), tensors: Vec::new(), data: Vec::new(), alignment: 32 }
    }
}

/// What the header says of a tensor.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    /// Innermost first.
    pub dims: Vec<u64>,
    pub kind: u32,
    pub offset: u64,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

pub fn pair(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(key)[..], &kind.to_le_bytes(), value].concat()
}

pub fn text_pair(key: &str, value: &str) -> Vec<u8> {
    pair(key, 8, &text(value))
}

pub fn u32_pair(key: &str, value: usize) -> Vec<u8> {
    pair(key, 4, &(value as u32).to_le_bytes())
}

pub fn f32_pair(key: &str, value: f64) -> Vec<u8> {
    pair(key, 6, &(value as f32).to_le_bytes())
}

impl Writer {
    /// A file with one F32 tensor `a.weight` of 4 rows of 8.
    pub fn with_tensor() -> Self {
        let mut writer = Self::default();
        writer.push("a.weight", &[8, 4], 0, &[0; 128]);
        writer
    }

    /// Adds a tensor behind the others; `dims` innermost first.
    pub fn push(&mut self, name: &str, dims: &[u64], kind: u32, bytes: &[u8]) {
        self.data.resize(self.data.len().next_multiple_of(self.alignment), 0);
        let offset = self.data.len() as u64;
        self.tensors.push(Tensor { name: name.into(), dims: dims.into(), kind, offset });
        self.data.extend(bytes);
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.pairs.len() as u64).to_le_bytes());
        bytes.extend(self.pairs.concat());
        for tensor in &self.tensors {
            bytes.extend(text(&tensor.name));
            bytes.extend((tensor.dims.len() as u32).to_le_bytes());
            bytes.extend(tensor.dims.iter().flat_map(|dim| dim.to_le_bytes()));
            bytes.extend(tensor.kind.to_le_bytes());
            bytes.extend(tensor.offset.to_le_bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
        bytes.extend(&self.data);
        bytes
    }

    pub fn open(&self) -> Result<GgufFile, LoadError> {
        open(&self.bytes())
    }
}

pub fn open(bytes: &[u8]) -> Result<GgufFile, LoadError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    GgufFile::open(path)
}

/// Puts a key in the place of the one of the same name.
pub fn put(writer: &mut Writer, key: &str, new: Vec<u8>) {
    writer.pairs.retain(|pair| !pair[8..].starts_with(key.as_bytes()));
    writer.pairs.push(new);
}
