//! A GGUF file as a source of weights.

use burn_tensor::TensorData;
use engine_quant::{GgufMatrix, GgufType, QuantError};

use super::{GgufFile, GgufTensor, names::gguf_name};
use crate::{
    DenseMatrix, LoadError, StoredMatrix, StoredType, WeightSource, checkpoint::closest_name,
};

impl WeightSource for GgufFile {
    fn contains(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    fn num_bytes(&self) -> usize {
        self.num_bytes()
    }

    fn held_bytes(&self) -> usize {
        let held = |tensor: GgufTensor<'_>| match tensor.shape {
            [rows @ .., columns] => {
                rows.iter().product::<usize>() * tensor.kind.held_row_bytes(*columns)
            }
            [] => 0,
        };
        self.tensors().map(held).sum()
    }

    fn model_prefix(&self) -> &'static str {
        "model."
    }

    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<StoredMatrix, LoadError> {
        let tensor = self.checked(name, &shape)?;
        let order = self.row_order(name, shape[0])?;
        let matrix = GgufMatrix {
            kind: tensor.kind,
            shape,
            bytes: tensor.bytes,
            row_order: order.as_deref(),
        };
        let in_place = match tensor.kind {
            GgufType::F32 => Some(StoredType::F32),
            GgufType::F16 => Some(StoredType::F16),
            GgufType::BF16 => Some(StoredType::Bf16),
            _ => None,
        };
        if let (Some(stored_type), None, Some(entry), false) =
            (in_place, &order, self.tensors.get(tensor.name), shape.contains(&0))
        {
            let bytes = self.bytes.share(entry.range.clone());
            let matrix = DenseMatrix::from_le_bytes(stored_type, shape, bytes);
            return Ok(StoredMatrix::Dense(matrix));
        }
        let stored = match tensor.kind.is_float() {
            true => matrix.floats().and_then(DenseMatrix::from_data).map(StoredMatrix::Dense),
            false => matrix.pack().map(StoredMatrix::Packed),
        };
        self.release(tensor.name);
        stored.map_err(|source| self.refuse(&tensor, source))
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        let tensor = self.checked(name, &[len])?;
        let order = self.row_order(name, len)?;
        let rows = GgufMatrix {
            kind: tensor.kind,
            shape: [len, 1],
            bytes: tensor.bytes,
            row_order: order.as_deref(),
        };
        let values = rows.floats().map_err(|source| self.refuse(&tensor, source))?;
        Ok(floats(&values))
    }

    fn stored_type(&self, name: &str) -> String {
        self.find(name).map_or_else(|| "nothing".to_owned(), |tensor| tensor.kind.to_string())
    }
}

fn floats(values: &TensorData) -> Vec<f32> {
    values.iter::<f32>().collect()
}

impl GgufFile {
    /// What a tensor of a Hugging Face checkpoint is called in this file.
    fn translate(&self, name: &str) -> Option<String> {
        let architecture = self.metadata.text("general.architecture").ok()?;
        gguf_name(name, architecture?.starts_with("gemma"))
    }

    fn find(&self, name: &str) -> Option<GgufTensor<'_>> {
        self.tensor(&self.translate(name)?)
    }

    fn checked(&self, name: &str, shape: &[usize]) -> Result<GgufTensor<'_>, LoadError> {
        let Some(tensor) = self.find(name) else {
            let tensor = self.translate(name).unwrap_or_else(|| name.to_owned());
            let closest = closest_name(self.tensors.keys().map(String::as_str), &tensor);
            return Err(LoadError::MissingTensor { file: self.path.clone(), tensor, closest });
        };
        if tensor.shape == shape {
            return Ok(tensor);
        }
        Err(LoadError::Shape {
            file: self.path.clone(),
            tensor: tensor.name.to_owned(),
            expected: shape.to_vec(),
            found: tensor.shape.to_vec(),
        })
    }

    /// Where the rows of a Hugging Face checkpoint are in the file, if not in the same places.
    ///
    /// Of the architecture `llama`, llama.cpp rotates neighbouring rows of queries and keys where
    /// Hugging Face rotates row `i` with row `i + head_dim / 2`, so its converter interleaves the
    /// two halves of each head.
    fn row_order(&self, name: &str, rows: usize) -> Result<Option<Vec<usize>>, LoadError> {
        let Some(architecture @ "llama") = self.metadata.text("general.architecture")? else {
            return Ok(None);
        };
        let key = |key: &str| format!("{architecture}.attention.{key}");
        let heads = self.metadata.same_count(&key("head_count"))?;
        let heads = if name.contains(".self_attn.q_proj.") {
            heads
        } else if name.contains(".self_attn.k_proj.") {
            self.metadata.same_count(&key("head_count_kv"))?.or(heads)
        } else {
            return Ok(None);
        };
        let Some(heads) = heads.filter(|&heads| heads > 0 && rows.is_multiple_of(2 * heads)) else {
            let expected = format!("heads of an even number of the {rows} rows");
            return Err(self.metadata.error(&key("head_count"), expected));
        };
        let head_dim = rows / heads;
        let half = head_dim / 2;
        let from = |row: usize| {
            let (head, i) = (row / head_dim, row % head_dim);
            head * head_dim + i % half * 2 + i / half
        };
        Ok(Some((0..rows).map(from).collect()))
    }

    /// The numbers of a vector of the file under its own name, if it is there.
    pub(super) fn own_vector(&self, name: &str, len: usize) -> Result<Option<Vec<f32>>, LoadError> {
        let Some(tensor) = self.tensor(name) else { return Ok(None) };
        if tensor.shape != [len] {
            return Err(LoadError::Shape {
                file: self.path.clone(),
                tensor: name.to_owned(),
                expected: vec![len],
                found: tensor.shape.to_vec(),
            });
        }
        let row =
            GgufMatrix { kind: tensor.kind, shape: [1, len], bytes: tensor.bytes, row_order: None };
        let values = row.floats().map_err(|source| self.refuse(&tensor, source))?;
        Ok(Some(floats(&values)))
    }

    /// Gives back the memory of a tensor that has been read.
    fn release(&self, name: &str) {
        if let Some(entry) = self.tensors.get(name) {
            self.bytes.release(entry.range.clone());
        }
    }

    /// The error for a tensor that cannot be stored.
    fn refuse(&self, tensor: &GgufTensor<'_>, source: QuantError) -> LoadError {
        let (file, name) = (self.path.clone(), tensor.name.to_owned());
        match source {
            QuantError::UnreadableType { found } => {
                LoadError::GgufType { file, tensor: name, found }
            }
            source => LoadError::Matrix { file, tensor: name, source },
        }
    }
}
