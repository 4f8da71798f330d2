//! GGUF files: the header, the metadata and where each tensor is.
//!
//! The layout is that of ggml's `docs/gguf.md`, versions 2 and 3, little-endian. Everything about
//! a file's structure is checked when it is opened, and nothing is allocated by a length that the
//! file cannot hold.

mod config;
mod cursor;
mod header;
mod metadata;
mod names;
mod source;

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
};

use engine_quant::GgufType;

use crate::{LoadError, checkpoint::MappedFile};
pub use metadata::{GgufMetadata, GgufValue};

/// One tensor in a GGUF file.
#[derive(Debug, Clone, Copy)]
pub struct GgufTensor<'a> {
    /// Its name in the file, such as `blk.0.attn_q.weight`.
    pub name: &'a str,
    /// Type of its numbers.
    pub kind: GgufType,
    /// Its shape, outermost dimension first, as in a Hugging Face checkpoint; the file lists it the
    /// other way round.
    pub shape: &'a [usize],
    /// Its rows, one after the other, in blocks.
    pub bytes: &'a [u8],
}

/// A GGUF file, mapped into memory.
///
/// Matrices of floats stay where the file is mapped as long as somebody has them, so it must not be
/// changed in place while it is open or a model uses it; [`GgufFile::copied`] copies them instead.
///
/// ```
/// use engine_core::GgufFile;
/// # let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/quant/gguf/bard1m.Q4_K_M.gguf");
/// let file = GgufFile::open(file)?;
/// assert_eq!(file.metadata().text("general.architecture")?, Some("llama"));
/// assert_eq!(file.metadata().count("llama.block_count")?, Some(2));
/// let output = file.tensor("output.weight").unwrap();
/// assert_eq!((output.kind.to_string().as_str(), output.shape), ("Q6_K", [512, 256].as_slice()));
/// # Ok::<(), engine_core::LoadError>(())
/// ```
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    bytes: MappedFile,
    metadata: GgufMetadata,
    tensors: BTreeMap<String, Entry>,
}

/// Where a tensor is in its file.
#[derive(Debug)]
struct Entry {
    kind: GgufType,
    /// Outermost dimension first.
    shape: Vec<usize>,
    /// Bytes of the file.
    range: Range<usize>,
}

impl GgufFile {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// If it cannot be read, is no GGUF file, or of a version or byte order that is not supported;
    /// if the header is damaged or the file cut off, tensors overlap, a name appears twice or a
    /// type is unknown.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, LoadError> {
        let path = path.as_ref().to_path_buf();
        let bytes = MappedFile::open(&path)?;
        let (metadata, tensors) = header::read(&bytes, &path)?;
        Ok(Self { path, bytes, metadata, tensors })
    }

    /// Copies matrices when they are read, so that a model does not depend on the file once it is
    /// loaded.
    pub fn copied(mut self) -> Self {
        self.bytes.copy();
        self
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The metadata: architecture, sizes, tokenizer, chat template.
    pub fn metadata(&self) -> &GgufMetadata {
        &self.metadata
    }

    /// The tensor with this name, if there is one.
    pub fn tensor(&self, name: &str) -> Option<GgufTensor<'_>> {
        let (name, entry) = self.tensors.get_key_value(name)?;
        Some(self.view(name, entry))
    }

    /// All tensors in alphabetical order.
    pub fn tensors(&self) -> impl Iterator<Item = GgufTensor<'_>> {
        self.tensors.iter().map(|(name, entry)| self.view(name, entry))
    }

    /// Bytes of all tensors.
    pub fn num_bytes(&self) -> usize {
        self.tensors.values().map(|entry| entry.range.len()).sum()
    }

    fn view<'a>(&'a self, name: &'a str, entry: &'a Entry) -> GgufTensor<'a> {
        let bytes = &self.bytes[entry.range.clone()];
        GgufTensor { name, kind: entry.kind, shape: &entry.shape, bytes }
    }
}
