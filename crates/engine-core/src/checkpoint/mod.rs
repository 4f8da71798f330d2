//! The weights of a Hugging Face model directory: `model.safetensors`, or shards and their index.

mod header;
mod index;
mod map;
mod packed;
mod source;
mod unique;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use burn_tensor::TensorData;
use engine_quant::SharedBytes;
use safetensors::Dtype;

use crate::{DenseMatrix, LoadError, QuantizationConfig, dense_matrix::native};
pub(crate) use header::disguise;
use header::{Entry, read_header};
use index::read_index;
pub(crate) use map::MappedFile;

const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";

/// An element type that weights can be read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StoredType {
    /// 32-bit float.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a 32-bit float.
    Bf16,
}

impl StoredType {
    /// Its name in safetensors files, such as `BF16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
        }
    }

    /// Bytes of one element.
    pub fn num_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// One tensor in the mapped file.
#[derive(Debug, Clone, Copy)]
pub struct TensorRef<'a> {
    /// Its name in the checkpoint.
    pub name: &'a str,
    /// Type of its elements.
    pub dtype: StoredType,
    /// Its shape, outermost dimension first.
    pub shape: &'a [usize],
    /// Its elements, little-endian, row-major, not aligned.
    pub bytes: &'a [u8],
}

/// The tensors of a model directory, mapped into memory.
///
/// Everything about the files' structure is checked when they are opened. Matrices stay where the
/// files are mapped as long as somebody has them, so the files must not be changed in place while
/// the checkpoint is open or a model uses it; [`Checkpoint::copied`] copies them instead.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use engine_core::Checkpoint;
/// let dir = tempfile::tempdir()?;
/// # let header = br#"{"norm.weight":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
/// # let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
/// # bytes.extend(header);
/// # bytes.extend([1f32, 2.0].iter().flat_map(|x| x.to_le_bytes()));
/// # std::fs::write(dir.path().join("model.safetensors"), bytes)?;
/// let checkpoint = Checkpoint::open(dir.path())?;
/// let norm = checkpoint.load("norm.weight", &[2])?;
/// assert_eq!(norm.to_vec::<f32>().unwrap(), [1.0, 2.0]);
/// assert!(checkpoint.load("norm.weight", &[3]).is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Checkpoint {
    /// The file or index that names the tensors.
    source: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Place>,
    /// How matrices are in few bits.
    quantization: Option<QuantizationConfig>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    bytes: MappedFile,
}

#[derive(Debug)]
struct Place {
    shard: usize,
    entry: Entry,
}

impl Checkpoint {
    /// Opens `model.safetensors` in `dir`, or else the shards of `model.safetensors.index.json`.
    ///
    /// # Errors
    /// If there are no weights, a file is missing, damaged or not what its name says, or the index
    /// and the shards disagree.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, LoadError> {
        let dir = dir.as_ref();
        let (single, index) = (dir.join(SINGLE_FILE), dir.join(INDEX_FILE));
        // A link to nothing is there too: opening it says what is missing.
        let is_there = |path: &Path| path.symlink_metadata().is_ok();
        if is_there(&single) {
            Self::open_file(single)
        } else if is_there(&index) {
            Self::open_shards(dir, index)
        } else {
            Err(no_weights(dir))
        }
    }

    fn open_file(path: PathBuf) -> Result<Self, LoadError> {
        let bytes = MappedFile::open(&path)?;
        let entries = read_header(&bytes, &path)?;
        let place = |(name, entry)| (name, Place { shard: 0, entry });
        let tensors = entries.into_iter().map(place).collect();
        let shards = vec![Shard { path: path.clone(), bytes }];
        Ok(Self { source: path, shards, tensors, quantization: None })
    }

    fn open_shards(dir: &Path, source: PathBuf) -> Result<Self, LoadError> {
        let weight_map = read_index(&source)?;
        let mut files: Vec<&String> = weight_map.values().collect();
        files.sort_unstable();
        files.dedup();
        let mut shards = Vec::with_capacity(files.len());
        let mut found = BTreeMap::new();
        for (shard, file) in files.iter().enumerate() {
            let path = dir.join(file);
            let bytes = MappedFile::open(&path)?;
            for (name, entry) in read_header(&bytes, &path)? {
                if let Some(Place { shard: first, .. }) = found.get(&name) {
                    let first: &Shard = &shards[*first];
                    return Err(LoadError::TensorEntry {
                        file: path,
                        tensor: name,
                        expected: "each tensor in one shard".into(),
                        found: format!("it in {} too", first.path.display()),
                    });
                }
                found.insert(name, Place { shard, entry });
            }
            shards.push(Shard { path, bytes });
        }
        for (tensor, file) in &weight_map {
            let actual = found.get(tensor).map(|place| files[place.shard]);
            if actual != Some(file) {
                return Err(LoadError::Index {
                    file: source,
                    key: tensor.clone(),
                    expected: format!("the tensor in {file}"),
                    found: actual.map_or("it in no shard".into(), |file| format!("it in {file}")),
                    advice: "the index and the shards are of different checkpoints; \
                             download the directory again",
                });
            }
        }
        found.retain(|name, _| weight_map.contains_key(name));
        Ok(Self { source, shards, tensors: found, quantization: None })
    }

    /// Copies matrices when they are read, so that a model does not depend on the files once it is
    /// loaded: for files on a network, or such as will be changed in place.
    pub fn copied(mut self) -> Self {
        self.shards.iter_mut().for_each(|shard| shard.bytes.copy());
        self
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The names of all tensors, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Bytes of all tensors.
    pub fn num_bytes(&self) -> usize {
        self.tensors.values().map(|place| place.entry.range.len()).sum()
    }

    /// The tensor `name`.
    ///
    /// # Errors
    /// If it is not there, or its elements are not f32, f16 or bf16.
    pub fn tensor(&self, name: &str) -> Result<TensorRef<'_>, LoadError> {
        let (entry, bytes) = self.raw(name)?;
        let dtype = match entry.dtype {
            Dtype::F32 => StoredType::F32,
            Dtype::F16 => StoredType::F16,
            Dtype::BF16 => StoredType::Bf16,
            other => {
                return Err(LoadError::ElementType {
                    file: self.path_of(name),
                    tensor: name.to_owned(),
                    found: other.to_string(),
                });
            }
        };
        let name = self.tensors.get_key_value(name).map_or("", |(name, _)| name);
        Ok(TensorRef { name, dtype, shape: &entry.shape, bytes })
    }

    /// The tensor `name`, whatever its type.
    fn raw(&self, name: &str) -> Result<(&Entry, &[u8]), LoadError> {
        let Place { shard, entry } = self.place(name)?;
        Ok((entry, &self.shards[*shard].bytes[entry.range.clone()]))
    }

    fn place(&self, name: &str) -> Result<&Place, LoadError> {
        self.tensors.get(name).ok_or_else(|| LoadError::MissingTensor {
            file: self.source.clone(),
            tensor: name.to_owned(),
            closest: closest_name(self.names(), name),
        })
    }

    /// The tensor `name`, in its stored type, after checking its shape; where the file is mapped, as
    /// matrices are.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`], or if the shape is another.
    pub fn load(&self, name: &str, shape: &[usize]) -> Result<TensorData, LoadError> {
        let TensorRef { dtype, .. } = self.checked(name, shape)?;
        let bytes = native(dtype, self.share(name)?);
        Ok(TensorData::from_bytes(bytes.into_bytes(), shape, dtype.into()))
    }

    /// The matrix `name` where the file is mapped, after checking its shape.
    fn dense(&self, name: &str, shape: [usize; 2]) -> Result<DenseMatrix, LoadError> {
        let TensorRef { dtype, .. } = self.checked(name, &shape)?;
        Ok(DenseMatrix::from_le_bytes(dtype, shape, self.share(name)?))
    }

    /// The bytes of the tensor `name`.
    fn share(&self, name: &str) -> Result<SharedBytes, LoadError> {
        let Place { shard, entry } = self.place(name)?;
        Ok(self.shards[*shard].bytes.share(entry.range.clone()))
    }

    fn checked(&self, name: &str, shape: &[usize]) -> Result<TensorRef<'_>, LoadError> {
        let tensor = self.tensor(name)?;
        if tensor.shape == shape {
            return Ok(tensor);
        }
        Err(LoadError::Shape {
            file: self.path_of(name),
            tensor: name.to_owned(),
            expected: shape.to_vec(),
            found: tensor.shape.to_vec(),
        })
    }

    /// Gives back the memory of a tensor that has been copied.
    fn release(&self, name: &str) {
        if let Some(Place { shard, entry }) = self.tensors.get(name) {
            self.shards[*shard].bytes.release(entry.range.clone());
        }
    }

    /// The type of the tensor's elements in the file.
    fn dtype_of(&self, name: &str) -> Option<Dtype> {
        self.tensors.get(name).map(|place| place.entry.dtype)
    }

    /// The file that has the tensor `name`.
    fn path_of(&self, name: &str) -> PathBuf {
        let shard = self.tensors.get(name).map(|place| &self.shards[place.shard]);
        shard.map_or_else(|| self.source.clone(), |shard| shard.path.clone())
    }
}

/// The name that shares the most letters with `name` at both ends.
pub(crate) fn closest_name<'a>(names: impl Iterator<Item = &'a str>, name: &str) -> String {
    let shared = |other: &&str| {
        let ahead = name.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
        let behind =
            name.bytes().rev().zip(other.bytes().rev()).take_while(|(a, b)| a == b).count();
        ahead + behind
    };
    let closest = names.max_by_key(shared);
    closest.map_or_else(|| "none, it is empty".into(), |name| format!("`{name}`"))
}

/// The error for a directory without safetensors, with what it has instead.
fn no_weights(dir: &Path) -> LoadError {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(source) => return LoadError::Io { path: dir.to_path_buf(), source },
    };
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    let with = |suffixes: &[&str]| {
        names.iter().find(|name| suffixes.iter().any(|suffix| name.ends_with(suffix))).cloned()
    };
    let pickle = with(&[".bin", ".bin.index.json", ".pt", ".pth", ".ckpt"]);
    let (found, advice) = if let Some(name) = with(&[".safetensors", ".safetensors.index.json"]) {
        (Some(name), "rename it, or give the directory of the base model")
    } else if let Some(name) = pickle {
        let advice = "pickles can run code and are not read: convert the model to safetensors \
                      (in transformers, load it and save_pretrained)";
        (Some(name), advice)
    } else if let Some(name) = with(&[".gguf"]) {
        (Some(name), "give the GGUF file itself")
    } else {
        (None, "give the directory of a model in Hugging Face layout")
    };
    let found = found.unwrap_or_else(|| "no weights".into());
    LoadError::NoWeights { dir: dir.to_path_buf(), found, advice }
}
