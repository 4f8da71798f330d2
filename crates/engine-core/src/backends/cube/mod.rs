//! CubeCL kernels, one source for CUDA and wgpu.
//!
//! No kernel uses plane operations or 64-bit integers, so every runtime that CubeCL has can run
//! them. Lengths that change from step to step are run-time values: only shapes of the model
//! choose a kernel's code.

mod activation;
mod attention;
mod norm;
mod rope;
mod rope_int8;
mod sample;

use burn_cubecl::{
    BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement, kernel,
    ops::numeric::empty_device_contiguous_dtype, tensor::CubeTensor,
};
use burn_tensor::{DType, Int, Shape, Tensor, TensorMetadata, TensorPrimitive};
use cubecl::prelude::*;

use crate::ops::activation::Activation;
use crate::ops::attention::{AttentionArgs, paged_attention_reference};
use crate::ops::rope::{RopeArgs, rope_kv_write_reference};
use crate::ops::sample::TokenChoice;
use crate::{CoreOps, ForwardBatch, LayerKv};

impl<R, F, I, BT> CoreOps for CubeBackend<R, F, I, BT>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    fn rms_norm(x: Tensor<Self, 2>, weight: &Tensor<Self, 1>, eps: f32) -> Tensor<Self, 2> {
        into_floats(norm::rms_norm(floats(x), floats(weight.clone()), eps))
    }

    fn add_rms_norm(
        x: Tensor<Self, 2>,
        residual: Tensor<Self, 2>,
        weight: &Tensor<Self, 1>,
        eps: f32,
    ) -> (Tensor<Self, 2>, Tensor<Self, 2>) {
        let (normed, sum) =
            norm::add_rms_norm(floats(x), floats(residual), floats(weight.clone()), eps);
        (into_floats(normed), into_floats(sum))
    }

    fn gated(gate_up: Tensor<Self, 2>, activation: Activation) -> Tensor<Self, 2> {
        into_floats(activation::gated(floats(gate_up), activation))
    }

    fn rope_kv_write(
        qkv: Tensor<Self, 2>,
        args: &RopeArgs<'_, Self>,
        batch: &ForwardBatch<Self>,
        kv: &mut LayerKv<Self>,
    ) -> Tensor<Self, 2> {
        let Some(cache) = Cache::of(kv) else {
            return rope_kv_write_reference(qkv, args, batch, kv);
        };
        let norm = args.norm.as_ref().map(|norm| rope::NormWeights {
            q: floats(norm.q_weight.clone()),
            k: floats(norm.k_weight.clone()),
            eps: norm.eps,
        });
        let rope = rope::Rope {
            qkv: floats(qkv),
            cos_sin: PitchedRows::or_copy(args.cos_sin),
            norm,
            heads: rope::Heads {
                heads: args.heads,
                kv_heads: args.kv_heads,
                head_dim: args.head_dim,
                rotary_dim: args.rotary_dim,
            },
            meta: ints(batch.meta.clone()),
            slots: batch.layout.slots,
        };
        let Cache { keys, values, scales } = cache;
        into_floats(match scales {
            None => rope::rope_kv_write(rope, &keys, &values),
            Some([key_scales, value_scales]) => rope_int8::rope_kv_write(
                rope,
                &rope_int8::CodedArrays { codes: keys, scales: key_scales },
                &rope_int8::CodedArrays { codes: values, scales: value_scales },
            ),
        })
    }

    fn paged_attention(
        q: Tensor<Self, 2>,
        kv: &LayerKv<Self>,
        batch: &ForwardBatch<Self>,
        args: &AttentionArgs,
    ) -> Tensor<Self, 2> {
        let Some(cache) = Cache::of(kv) else {
            return paged_attention_reference(q, kv, batch, args);
        };
        let step = attention::Step {
            meta: ints(batch.meta.clone()),
            layout: batch.layout,
            input: &batch.input,
            cache,
        };
        into_floats(attention::paged_attention(floats(q), &step, args))
    }

    fn choose_tokens(logits: Tensor<Self, 2>, rows: &[TokenChoice]) -> Tensor<Self, 1, Int> {
        Tensor::from_primitive(sample::choose_tokens(floats(logits), rows))
    }
}

/// The `f32` elements of a tensor, row after row without gaps.
fn floats<R, F, I, BT, const D: usize>(tensor: Tensor<CubeBackend<R, F, I, BT>, D>) -> CubeTensor<R>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    kernel::into_contiguous(kernel::cast(tensor.into_primitive().tensor(), DType::F32))
}

/// The `i32` elements of a tensor, row after row without gaps.
fn ints<R, F, I, BT, const D: usize>(
    tensor: Tensor<CubeBackend<R, F, I, BT>, D, Int>,
) -> CubeTensor<R>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    kernel::into_contiguous(kernel::cast(tensor.into_primitive(), DType::I32))
}

fn into_floats<R, F, I, BT>(tensor: CubeTensor<R>) -> Tensor<CubeBackend<R, F, I, BT>, 2>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    Tensor::from_primitive(TensorPrimitive::Float(tensor))
}

/// The buffers of one layer's keys and values.
struct Cache<R: CubeRuntime> {
    /// Rows of floats, or of words with four codes each.
    keys: PitchedRows<R>,
    values: PitchedRows<R>,
    /// Of keys and of values, where those are codes.
    scales: Option<[PitchedRows<R>; 2]>,
}

impl<R: CubeRuntime> Cache<R> {
    /// `None` if some tensor has no rows to be used in place, which `KvCache::allocate` never makes.
    fn of<F, I, BT>(kv: &LayerKv<CubeBackend<R, F, I, BT>>) -> Option<Self>
    where
        F: FloatElement,
        I: IntElement,
        BT: BoolElement,
    {
        let words = |codes: &Tensor<CubeBackend<R, F, I, BT>, 2, Int>| {
            PitchedRows::new(codes.clone().into_primitive(), DType::I32)
        };
        let (keys, values, scales) = match kv {
            LayerKv::F32 { keys, values } => (PitchedRows::of(keys), PitchedRows::of(values), None),
            LayerKv::Int8 { keys, values } => {
                let scales = [PitchedRows::of(&keys.scales)?, PitchedRows::of(&values.scales)?];
                (words(&keys.codes), words(&values.codes), Some(scales))
            }
        };
        Some(Self { keys: keys?, values: values?, scales })
    }
}

/// The own buffer of a matrix, never a copy of it. Rows are contiguous and `pitch` elements apart:
/// CUDA pads the rows of Burn's tensors to its alignment.
#[derive(Clone)]
struct PitchedRows<R: CubeRuntime> {
    tensor: CubeTensor<R>,
    pitch: usize,
}

impl<R: CubeRuntime> PitchedRows<R> {
    /// `None` if the tensor is no matrix of rows of `dtype`, a type of 32 bits.
    fn new(tensor: CubeTensor<R>, dtype: DType) -> Option<Self> {
        let strides = tensor.meta.strides();
        let (pitch, step) = (strides[0], strides[1]);
        let contiguous_rows = step == 1 || tensor.shape()[1] == 1;
        (tensor.dtype == dtype && contiguous_rows).then_some(Self { tensor, pitch })
    }

    /// `None` if the tensor is no matrix of `f32` rows.
    fn of<F, I, BT>(matrix: &Tensor<CubeBackend<R, F, I, BT>, 2>) -> Option<Self>
    where
        F: FloatElement,
        I: IntElement,
        BT: BoolElement,
    {
        Self::new(matrix.clone().into_primitive().tensor(), DType::F32)
    }

    /// The buffer of `matrix` where that is possible, else a copy.
    fn or_copy<F, I, BT>(matrix: &Tensor<CubeBackend<R, F, I, BT>, 2>) -> Self
    where
        F: FloatElement,
        I: IntElement,
        BT: BoolElement,
    {
        Self::of(matrix).unwrap_or_else(|| {
            let tensor = floats(matrix.clone());
            let pitch = tensor.shape()[1];
            Self { tensor, pitch }
        })
    }

    fn array(&self) -> ArrayArg<R> {
        let handle = self.tensor.handle.clone();
        let len = handle.size_in_used() as usize / size_of::<f32>();
        // SAFETY: the buffer holds exactly `len` elements.
        unsafe { ArrayArg::from_raw_parts(handle, len) }
    }
}

/// An uninitialised tensor without gaps on the device of `like`.
fn empty<R: CubeRuntime, const D: usize>(
    like: &CubeTensor<R>,
    shape: [usize; D],
    dtype: DType,
) -> CubeTensor<R> {
    let (client, device) = (like.client.clone(), like.device.clone());
    empty_device_contiguous_dtype(client, device, Shape::new(shape), dtype)
}

fn dims<R: CubeRuntime>(tensor: &CubeTensor<R>) -> [usize; 2] {
    let shape = tensor.shape();
    [shape[0], shape[1]]
}

/// At least `cubes` cubes, spread over two dimensions: one dimension holds 65535 of them.
/// Kernels number them with `CUBE_POS` and end those that are too many.
fn cube_grid(cubes: usize) -> CubeCount {
    let columns = cubes.min(32_768);
    CubeCount::Static(columns as u32, cubes.div_ceil(columns.max(1)) as u32, 1)
}

/// Units of a cube that walks a row of `columns`: a power of two from 32 to 256.
fn units_for(columns: usize) -> usize {
    columns.div_ceil(4).next_power_of_two().clamp(32, 256)
}

/// The sum of each unit's `value` over a cube of `units`, a power of two, added as a binary tree;
/// every unit gets it. All units of the cube must call it.
#[cube]
fn cube_sum(value: f32, #[comptime] units: usize) -> f32 {
    let mut shared = SharedMemory::<f32>::new(units);
    let unit = UNIT_POS as usize;
    shared[unit] = value;
    sync_cube();
    #[unroll]
    for level in 0..comptime!(units.ilog2()) {
        let stride = comptime!(units >> (level + 1));
        if unit < stride {
            shared[unit] = shared[unit] + shared[unit + stride];
        }
        sync_cube();
    }
    shared[0]
}
