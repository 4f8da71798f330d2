//! The tensors of one matrix in few bits, checked and handed to the format that knows them.

use engine_quant::{
    GroupValues, QuantError, SharedBytes,
    formats::{
        Unpacked,
        awq::{self, AwqTensors},
        bnb::{self, Nf4Tensors},
        gptq::{self, GptqLayout, GptqTensors},
        native::{self, Entry, NativeTensors},
    },
};
use half::{bf16, f16};
use safetensors::Dtype;
use serde_json::Value;

use super::{Checkpoint, header::Entry as Place};
use crate::{DenseMatrix, LoadError, StoredMatrix};

/// Types of scales.
const FLOATS: &[Dtype] = &[Dtype::F16, Dtype::BF16, Dtype::F32];

/// Where the tensors of one matrix are.
pub(super) struct Parts<'a> {
    pub checkpoint: &'a Checkpoint,
    /// The matrix' name without `.weight`.
    pub module: &'a str,
    /// `[out, in]`.
    pub shape: [usize; 2],
}

/// A tensor whose type and shape are right.
struct Tensor<'a> {
    dtype: Dtype,
    shape: &'a [usize],
    bytes: &'a [u8],
}

impl<'a> Parts<'a> {
    pub(super) fn gptq(&self, layout: GptqLayout) -> Result<StoredMatrix, LoadError> {
        let [out, in_] = self.shape;
        let groups = in_.div_ceil(layout.group_size.max(1));
        let per_word = if layout.bits == engine_quant::Bits::Four { 8 } else { 4 };
        let tensors = GptqTensors {
            qweight: self.tensor("qweight", &[Dtype::I32], &[in_ / per_word, out])?.bytes,
            qzeros: self.tensor("qzeros", &[Dtype::I32], &[groups, out / per_word])?.bytes,
            scales: self.values("scales", &[groups, out])?,
            g_idx: self.optional("g_idx", &[Dtype::I32], &[in_])?.map(|tensor| tensor.bytes),
        };
        self.finish(gptq::unpack(&layout, &tensors), &["qweight", "qzeros", "scales", "g_idx"])
    }

    pub(super) fn awq(&self, group_size: usize) -> Result<StoredMatrix, LoadError> {
        let [out, in_] = self.shape;
        let groups = in_.div_ceil(group_size.max(1));
        let tensors = AwqTensors {
            qweight: self.tensor("qweight", &[Dtype::I32], &[in_, out / 8])?.bytes,
            qzeros: self.tensor("qzeros", &[Dtype::I32], &[groups, out / 8])?.bytes,
            scales: self.values("scales", &[groups, out])?,
        };
        let packed = awq::unpack(self.shape, group_size, &tensors);
        self.finish(packed.map(Unpacked::Packed), &["qweight", "qzeros", "scales"])
    }

    pub(super) fn nf4(&self) -> Result<StoredMatrix, LoadError> {
        const STATE: &str = "weight.quant_state.bitsandbytes__nf4";
        let state = Nf4State::read(self.any_shape(STATE, &[Dtype::U8])?.bytes)
            .ok_or_else(|| self.wrong(STATE, "JSON with shape and blocksize", "something else"))?;
        if state.shape != self.shape {
            return Err(self.wrong_shape("weight", &self.shape, &state.shape));
        }
        let bytes = (self.shape[0] * self.shape[1]).div_ceil(2);
        let codes = self.any_shape("weight", &[Dtype::U8])?;
        if codes.bytes.len() != bytes {
            return Err(self.wrong_shape("weight", &[bytes, 1], codes.shape));
        }
        let absmax = self.any_shape("weight.absmax", &[Dtype::F32, Dtype::U8])?;
        let absmax = if absmax.dtype == Dtype::U8 {
            let map = self.values("weight.nested_quant_map", &[256])?.to_f32();
            let scales = self.any_shape("weight.nested_absmax", &[Dtype::F32])?;
            let nested = (state.nested_blocksize, state.nested_offset);
            bnb::nested_absmax(absmax.bytes, &map, &values(&scales).to_f32(), nested)
                .map_err(|error| self.damaged(error))?
        } else {
            values(&absmax).to_f32()
        };
        let map = match self.optional("weight.quant_map", &[Dtype::F32], &[16])? {
            Some(map) => values(&map).to_f32(),
            None => bnb::LEVELS.to_vec(),
        };
        let mut levels = bnb::LEVELS;
        levels.copy_from_slice(&map);
        let block_size = state.blocksize;
        let tensors = Nf4Tensors { codes: codes.bytes, absmax, levels, block_size };
        self.finish(bnb::unpack_nf4(self.shape, &tensors), &["weight", "weight.absmax"])
    }

    pub(super) fn int8(&self) -> Result<StoredMatrix, LoadError> {
        if let Some(format) = self.optional("weight_format", &[Dtype::U8], &[])?
            && format.bytes != [0]
        {
            let found = format!("{:?}", format.bytes);
            return Err(self.wrong("weight_format", "0, rows one after the other", &found));
        }
        let weight = self.tensor("weight", &[Dtype::I8], &self.shape)?.bytes;
        let scb = self.values("SCB", &[self.shape[0]])?.to_f32();
        let packed = bnb::unpack_int8(self.shape, weight, scb);
        self.finish(packed.map(Unpacked::Packed), &["weight", "SCB"])
    }

    pub(super) fn native(&self, entry: &Entry) -> Result<StoredMatrix, LoadError> {
        let [out, in_] = self.shape;
        let spec = entry.spec(self.shape, engine_quant::Levels::Steps);
        let per_group = if spec.per_tensor { [1, 1] } else { [out, spec.groups()] };
        let optional = |part: &str, shape: &[usize]| self.optional(part, FLOATS, shape);
        let order = |tensor: Tensor<'_>| {
            tensor.bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
        };
        let tensors = NativeTensors {
            codes: self.share("codes", &[Dtype::U8], &spec.code_shape(entry.order))?,
            scales: self.values("scales", &per_group)?,
            zeros: self.optional("zeros", &[Dtype::U8], &per_group)?.map(|tensor| tensor.bytes),
            mins: optional("mins", &per_group)?.map(|tensor| values(&tensor)),
            levels: optional("levels", &[16])?.map(|tensor| values(&tensor).to_f32()),
            column_order: self.optional("column_order", &[Dtype::I32], &[in_])?.map(order),
        };
        let packed = native::unpack(self.shape, entry, tensors);
        self.finish(packed.map(Unpacked::Packed), &["scales", "zeros", "mins"])
    }

    /// The matrix for the loader; gives the memory of its tensors back.
    fn finish(
        &self,
        unpacked: Result<Unpacked, QuantError>,
        parts: &[&str],
    ) -> Result<StoredMatrix, LoadError> {
        let stored = match unpacked.map_err(|error| self.damaged(error))? {
            Unpacked::Packed(packed) => StoredMatrix::Packed(packed),
            Unpacked::Floats(values) => {
                StoredMatrix::Dense(DenseMatrix::from_f32(values, self.shape))
            }
        };
        parts.iter().for_each(|part| self.checkpoint.release(&self.name(part)));
        Ok(stored)
    }

    fn name(&self, part: &str) -> String {
        format!("{}.{part}", self.module)
    }

    fn values(&self, part: &str, shape: &[usize]) -> Result<GroupValues, LoadError> {
        self.tensor(part, FLOATS, shape).map(|tensor| values(&tensor))
    }

    /// A tensor's bytes where they are mapped.
    fn share(
        &self,
        part: &str,
        dtypes: &[Dtype],
        shape: &[usize],
    ) -> Result<SharedBytes, LoadError> {
        self.tensor(part, dtypes, shape)?;
        self.checkpoint.share(&self.name(part))
    }

    fn optional(
        &self,
        part: &str,
        dtypes: &[Dtype],
        shape: &[usize],
    ) -> Result<Option<Tensor<'a>>, LoadError> {
        if !self.checkpoint.contains(&self.name(part)) {
            return Ok(None);
        }
        self.tensor(part, dtypes, shape).map(Some)
    }

    fn tensor(
        &self,
        part: &str,
        dtypes: &[Dtype],
        shape: &[usize],
    ) -> Result<Tensor<'a>, LoadError> {
        let tensor = self.any_shape(part, dtypes)?;
        if tensor.shape == shape {
            return Ok(tensor);
        }
        Err(self.wrong_shape(part, shape, tensor.shape))
    }

    fn any_shape(&self, part: &str, dtypes: &[Dtype]) -> Result<Tensor<'a>, LoadError> {
        let (Place { dtype, shape, .. }, bytes) = self.checkpoint.raw(&self.name(part))?;
        if dtypes.contains(dtype) {
            return Ok(Tensor { dtype: *dtype, shape, bytes });
        }
        let expected: Vec<_> = dtypes.iter().map(Dtype::to_string).collect();
        Err(self.wrong(part, &expected.join(" or "), &dtype.to_string()))
    }

    fn wrong_shape(&self, part: &str, expected: &[usize], found: &[usize]) -> LoadError {
        let tensor = self.name(part);
        LoadError::Shape {
            file: self.checkpoint.path_of(&tensor),
            tensor,
            expected: expected.to_vec(),
            found: found.to_vec(),
        }
    }

    fn wrong(&self, part: &str, expected: &str, found: &str) -> LoadError {
        let tensor = self.name(part);
        LoadError::PartType {
            file: self.checkpoint.path_of(&tensor),
            tensor,
            expected: expected.to_owned(),
            found: found.to_owned(),
        }
    }

    fn damaged(&self, source: QuantError) -> LoadError {
        let some = ["qweight", "weight", "codes"].map(|part| self.name(part));
        let file = some.iter().find(|name| self.checkpoint.contains(name));
        LoadError::Packed {
            file: self.checkpoint.path_of(file.map_or("", String::as_str)),
            tensor: self.module.to_owned(),
            source,
        }
    }
}

/// Numbers in the type that [`FLOATS`] allowed; BF16 becomes F32, as half precision cannot hold it.
fn values(tensor: &Tensor<'_>) -> GroupValues {
    let pairs = || tensor.bytes.as_chunks().0.iter();
    match tensor.dtype {
        Dtype::F16 => GroupValues::F16(pairs().map(|b| f16::from_le_bytes(*b)).collect()),
        Dtype::BF16 => GroupValues::F32(pairs().map(|b| bf16::from_le_bytes(*b).into()).collect()),
        _ => {
            let words = tensor.bytes.as_chunks().0.iter();
            GroupValues::F32(words.map(|b| f32::from_le_bytes(*b)).collect())
        }
    }
}

/// The JSON that bitsandbytes stores as a tensor of bytes.
struct Nf4State {
    shape: Vec<usize>,
    blocksize: usize,
    nested_blocksize: usize,
    nested_offset: f32,
}

impl Nf4State {
    fn read(json: &[u8]) -> Option<Self> {
        let json: Value = serde_json::from_slice(json).ok()?;
        let count = |value: &Value| usize::try_from(value.as_u64()?).ok();
        if json["quant_type"].as_str()? != "nf4" {
            return None;
        }
        Some(Self {
            shape: json["shape"].as_array()?.iter().map(count).collect::<Option<_>>()?,
            blocksize: count(&json["blocksize"]).filter(|size| *size > 0)?,
            nested_blocksize: count(&json["nested_blocksize"]).unwrap_or(256).max(1),
            nested_offset: json["nested_offset"].as_f64().unwrap_or(0.0) as f32,
        })
    }
}
