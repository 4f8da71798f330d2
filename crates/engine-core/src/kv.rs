//! Where keys and values are kept between steps.

mod coded;

use std::{fmt, ops::Range, str::FromStr};

use burn_tensor::{BasicOps, DType, Int, Tensor, TensorData, backend::Backend};
use thiserror::Error;

use crate::ops::CoreOps;

pub use coded::CodedRows;
pub(crate) use coded::{MAX_CODE, WORD, head_words};

/// How the numbers of the KV cache are stored.
///
/// ```
/// use engine_core::KvFormat;
/// let format: KvFormat = "int8".parse()?;
/// // A head of 64 numbers: their codes and one scale.
/// assert_eq!((format.head_bytes(64), KvFormat::F32.head_bytes(64)), (68, 256));
/// # Ok::<(), engine_core::UnknownKvFormat>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KvFormat {
    /// 32-bit floats.
    #[default]
    F32,
    /// Codes of 8 bits and a scale for each token and head, as [`CodedRows`] defines them.
    Int8,
}

impl KvFormat {
    /// Bytes of one head's keys, or values, at one position. Codes fill whole words of 4 bytes.
    pub fn head_bytes(self, head_dim: usize) -> usize {
        match self {
            Self::F32 => head_dim * size_of::<f32>(),
            Self::Int8 => head_words(head_dim) * size_of::<i32>() + size_of::<f32>(),
        }
    }
}

/// The name is no format of the KV cache.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("unknown KV cache format `{0}`: use f32 or int8")]
pub struct UnknownKvFormat(String);

impl FromStr for KvFormat {
    type Err = UnknownKvFormat;

    fn from_str(name: &str) -> Result<Self, UnknownKvFormat> {
        match name {
            "f32" => Ok(Self::F32),
            "int8" => Ok(Self::Int8),
            _ => Err(UnknownKvFormat(name.to_owned())),
        }
    }
}

impl fmt::Display for KvFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::F32 => "f32",
            Self::Int8 => "int8",
        })
    }
}

/// Keys and values of one layer; the keys are rotated.
#[derive(Debug, Clone)]
pub enum LayerKv<B: Backend> {
    /// 32-bit floats.
    F32 {
        /// `f32 [slots, kv_heads * head_dim]`.
        keys: Tensor<B, 2>,
        /// `f32 [slots, kv_heads * head_dim]`.
        values: Tensor<B, 2>,
    },
    /// 8-bit codes.
    Int8 {
        /// Quantized after the rotation, and after the norm where there is one.
        keys: CodedRows<B>,
        /// Quantized as they are projected.
        values: CodedRows<B>,
    },
}

impl<B: Backend> LayerKv<B> {
    /// How the numbers are stored.
    pub fn format(&self) -> KvFormat {
        match self {
            Self::F32 { .. } => KvFormat::F32,
            Self::Int8 { .. } => KvFormat::Int8,
        }
    }

    /// The same keys and values with a code of 8 bits for each number of `kv_heads` heads.
    pub fn quantize(self, kv_heads: usize) -> Self {
        match self {
            Self::F32 { keys, values } => Self::Int8 {
                keys: CodedRows::quantize(keys, kv_heads),
                values: CodedRows::quantize(values, kv_heads),
            },
            coded => coded,
        }
    }

    /// The same keys and values as floats; heads of `head_dim` numbers.
    pub fn dequantize(&self, head_dim: usize) -> Self {
        match self {
            Self::F32 { .. } => self.clone(),
            Self::Int8 { keys, values } => {
                Self::F32 { keys: keys.dequantize(head_dim), values: values.dequantize(head_dim) }
            }
        }
    }

    /// Asserts that rows hold `kv_heads` heads of `head_dim` numbers.
    pub(crate) fn check(&self, op: &str, kv_heads: usize, head_dim: usize) {
        let fits = match self {
            Self::F32 { keys, values } => {
                [keys, values].iter().all(|rows| rows.dims()[1] == kv_heads * head_dim)
            }
            Self::Int8 { keys, values } => {
                [keys, values].iter().all(|rows| rows.holds(kv_heads, head_dim))
            }
        };
        assert!(fits, "{op}: the cache has another row length");
    }

    fn copy(&mut self, from: &Tensor<B, 1, Int>, to: Range<usize>) {
        match self {
            Self::F32 { keys, values } => {
                [keys, values].into_iter().for_each(|rows| copy_rows(rows, from, to.clone()));
            }
            Self::Int8 { keys, values } => {
                for rows in [keys, values] {
                    copy_rows(&mut rows.codes, from, to.clone());
                    copy_rows(&mut rows.scales, from, to.clone());
                }
            }
        }
    }

    /// All tensors' rows of some slots, in the order in which [`LayerKv::write`] takes them.
    fn read(&self, slots: Range<usize>) -> Vec<TensorData> {
        match self {
            Self::F32 { keys, values } => {
                [keys, values].map(|rows| read_rows(rows, slots.clone())).into()
            }
            Self::Int8 { keys, values } => [keys, values]
                .into_iter()
                .flat_map(|rows| {
                    [read_rows(&rows.codes, slots.clone()), read_rows(&rows.scales, slots.clone())]
                })
                .collect(),
        }
    }

    fn write(&mut self, slots: Range<usize>, data: &mut impl Iterator<Item = TensorData>) {
        match self {
            Self::F32 { keys, values } => {
                [keys, values].into_iter().for_each(|rows| write_rows(rows, slots.clone(), data));
            }
            Self::Int8 { keys, values } => {
                for rows in [keys, values] {
                    write_rows(&mut rows.codes, slots.clone(), data);
                    write_rows(&mut rows.scales, slots.clone(), data);
                }
            }
        }
    }
}

/// What a [`KvCache`] is allocated for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// Layers of the model.
    pub num_layers: usize,
    /// Positions that it holds.
    pub slots: usize,
    /// Key and value heads of a layer.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// How the numbers are stored.
    pub format: KvFormat,
}

/// The KV storage of a model, allocated once.
///
/// A *slot* holds one position's key and value. Which sequence owns which slots is decided
/// elsewhere; here `slot = block_id * block_size + position % block_size` and nothing more.
#[derive(Debug)]
pub struct KvCache<B: Backend> {
    /// One entry per layer, all of one format.
    pub layers: Vec<LayerKv<B>>,
}

impl<B: CoreOps> KvCache<B> {
    /// Allocates zeros.
    pub fn allocate(shape: KvShape, device: &B::Device) -> Self {
        let KvShape { num_layers, slots, kv_heads, head_dim, format } = shape;
        let floats = || B::cache_floats([slots, kv_heads * head_dim], device);
        let codes = || CodedRows::zeros(slots, kv_heads, head_dim, device);
        let layer = |_| match format {
            KvFormat::F32 => LayerKv::F32 { keys: floats(), values: floats() },
            KvFormat::Int8 => LayerKv::Int8 { keys: codes(), values: codes() },
        };
        Self { layers: (0..num_layers).map(layer).collect() }
    }
}

impl<B: Backend> KvCache<B> {
    /// Copies whole blocks, `(from, to)`, in every layer: the copy of copy-on-write.
    pub fn copy_blocks(&mut self, copies: &[(u32, u32)], block_size: usize) {
        for layer in &mut self.layers {
            let device = match layer {
                LayerKv::F32 { keys, .. } => keys.device(),
                LayerKv::Int8 { keys, .. } => keys.scales.device(),
            };
            for &(from, to) in copies {
                let from: Vec<i32> =
                    block_slots(from, block_size).map(|slot| slot as i32).collect();
                let from = Tensor::from_data(TensorData::from(&from[..]), (&device, DType::I32));
                layer.copy(&from, block_slots(to, block_size));
            }
        }
    }

    /// Downloads a block, exactly as it is stored: the tensors of each layer in turn, keys before
    /// values, codes before scales, each `[block_size, row]`.
    pub fn read_block(&self, block: u32, block_size: usize) -> Vec<TensorData> {
        let slots = block_slots(block, block_size);
        self.layers.iter().flat_map(|layer| layer.read(slots.clone())).collect()
    }

    /// Uploads what [`KvCache::read_block`] gave to another block.
    pub fn write_block(&mut self, block: u32, block_size: usize, data: Vec<TensorData>) {
        let mut data = data.into_iter();
        for layer in &mut self.layers {
            layer.write(block_slots(block, block_size), &mut data);
        }
    }
}

fn block_slots(block: u32, block_size: usize) -> Range<usize> {
    let start = block as usize * block_size;
    start..start + block_size
}

fn copy_rows<B, K>(rows: &mut Tensor<B, 2, K>, from: &Tensor<B, 1, Int>, to: Range<usize>)
where
    B: Backend,
    K: BasicOps<B>,
{
    rows.inplace(|rows| {
        // `select` copies; a slice would share the cache's memory and force a copy of it all.
        let block = rows.clone().select(0, from.clone());
        rows.slice_assign([to], block)
    });
}

fn read_rows<B: Backend, K: BasicOps<B>>(
    rows: &Tensor<B, 2, K>,
    slots: Range<usize>,
) -> TensorData {
    rows.clone().slice([slots]).into_data()
}

fn write_rows<B: Backend, K: BasicOps<B>>(
    rows: &mut Tensor<B, 2, K>,
    slots: Range<usize>,
    data: &mut impl Iterator<Item = TensorData>,
) {
    if let Some(data) = data.next() {
        let block = Tensor::from_data(data, (&rows.device(), rows.dtype()));
        rows.inplace(|rows| rows.slice_assign([slots], block));
    }
}
