//! Dense matrices in GPU memory, 16-bit ones as 16-bit on every GPU.
//!
//! A stored matrix is one linear buffer of little-endian `u32` words, row after row without gaps,
//! padded with zeros to a multiple of 16 bytes. A word holds one `f32` or two 16-bit floats, the
//! lower half first; kernels widen them by integer arithmetic, so WGSL, which has no `bf16` and
//! not always `f16`, reads them as well as CUDA. With an odd row length a row may begin in the
//! middle of a word.
//!
//! Element numbers are 32 bits wide, so a matrix has fewer than 2³² elements, and a wgpu device
//! must allow a storage buffer as large as the matrix (`max_storage_buffer_binding_size`).
//!
//! Up to [`FEW_ROWS`] rows of `x` go through [`few_rows_kernel`], whose order of summation depends
//! on nothing but the matrix' shape; more rows go through [`tiled_kernel`], which sums each output
//! in the order of `k`. A row's result is the same bits for any number of rows on the same side of
//! that limit and equal to rounding across it.

use burn_cubecl::{CubeRuntime, ops::numeric::empty_device_contiguous_dtype, tensor::CubeTensor};
use burn_tensor::{Bytes, DType, Shape, TensorData, TensorMetadata};
use cubecl::prelude::*;

use super::cube_grid;
use super::tile::{
    FEW_ROWS, Lanes, TILE_K, TILE_OUTPUTS, TILE_UNITS, W_PITCH, load_x_tile, multiply_tiles,
    rows_per_unit, tile_count, w_tile, write_lane_sums, write_tile, x_tile, zero_sums,
};

/// Units that share one output of [`few_rows_kernel`].
pub(super) const LANES: usize = 32;
/// Outputs of one cube of [`few_rows_kernel`].
pub(super) const OUTPUTS: usize = 8;
/// Units of a cube of the element-wise kernels.
pub(super) const UNITS: usize = 256;

/// What a word of a stored matrix holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Format {
    F32,
    F16,
    Bf16,
}

impl Format {
    pub(super) fn of(dtype: DType) -> Self {
        match dtype {
            DType::F16 => Self::F16,
            DType::BF16 => Self::Bf16,
            _ => Self::F32,
        }
    }

    /// Numbers in one word.
    pub(super) fn per_word(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// Stores a matrix of `f32`, `f16` or `bf16`.
pub(super) fn upload<R: CubeRuntime>(data: TensorData, device: &R::Device) -> CubeTensor<R> {
    let client = R::client(device);
    let TensorData { bytes, shape, dtype } = data;
    let bytes = if bytes.len().is_multiple_of(16) && !bytes.is_empty() {
        bytes
    } else {
        let mut padded = bytes.to_vec();
        padded.resize(padded.len().next_multiple_of(16).max(16), 0);
        Bytes::from_bytes_vec(padded)
    };
    let handle = client.create(bytes);
    CubeTensor::new_contiguous(client, device.clone(), shape, handle, dtype)
}

/// `x · Wᵀ`, `x f32 [rows, in]` and contiguous.
pub(super) fn linear<R: CubeRuntime>(x: CubeTensor<R>, weight: CubeTensor<R>) -> CubeTensor<R> {
    let ([rows, _], [outputs, inputs]) = (dims(&x), dims(&weight));
    let output = empty(&x, rows, outputs);
    if rows * outputs == 0 {
        return output;
    }
    let format = Format::of(weight.dtype);
    let client = x.client.clone();
    if rows <= FEW_ROWS {
        let shape = Lanes { lanes: LANES, outputs: OUTPUTS, row_slots: rows.next_power_of_two() };
        // Vectors of four words: no vector crosses the end of a row.
        let wide = inputs.is_multiple_of(4 * format.per_word());
        few_rows_kernel::launch::<R>(
            &client,
            cube_grid(outputs.div_ceil(OUTPUTS)),
            shape.cube_dim(),
            if wide { 4 } else { 1 },
            x.into_array_arg(),
            words(weight),
            output.clone().into_array_arg(),
            rows,
            inputs,
            outputs,
            shape,
            format,
        );
    } else {
        tiled_kernel::launch::<R>(
            &client,
            tile_count(rows, outputs),
            CubeDim::new_2d(TILE_UNITS as u32, TILE_UNITS as u32),
            x.into_array_arg(),
            words(weight),
            output.clone().into_array_arg(),
            rows,
            inputs,
            outputs,
            rows_per_unit(rows),
            format,
        );
    }
    output
}

/// Rows `ids`, `i32 [ids]` and contiguous, as `f32`.
pub(super) fn rows<R: CubeRuntime>(weight: CubeTensor<R>, ids: CubeTensor<R>) -> CubeTensor<R> {
    let (num_ids, [_, inputs]) = (ids.meta.num_elements(), dims(&weight));
    let output = empty(&weight, num_ids, inputs);
    if num_ids * inputs > 0 {
        let client = weight.client.clone();
        let format = Format::of(weight.dtype);
        rows_kernel::launch::<R>(
            &client,
            cube_grid((num_ids * inputs).div_ceil(UNITS)),
            CubeDim::new_1d(UNITS as u32),
            words(weight),
            ids.into_array_arg(),
            output.clone().into_array_arg(),
            inputs,
            format,
        );
    }
    output
}

/// The whole matrix as `f32`.
pub(super) fn widen<R: CubeRuntime>(weight: CubeTensor<R>) -> CubeTensor<R> {
    let [outputs, inputs] = dims(&weight);
    let output = empty(&weight, outputs, inputs);
    if outputs * inputs > 0 {
        let client = weight.client.clone();
        let format = Format::of(weight.dtype);
        widen_kernel::launch::<R>(
            &client,
            cube_grid((outputs * inputs).div_ceil(UNITS)),
            CubeDim::new_1d(UNITS as u32),
            words(weight),
            output.clone().into_array_arg(),
            format,
        );
    }
    output
}

pub(super) fn dims<R: CubeRuntime>(tensor: &CubeTensor<R>) -> [usize; 2] {
    let shape = tensor.shape();
    [shape[0], shape[1]]
}

/// An uninitialised `f32 [rows, columns]` on the device of `like`.
pub(super) fn empty<R: CubeRuntime>(
    like: &CubeTensor<R>,
    rows: usize,
    columns: usize,
) -> CubeTensor<R> {
    let (client, device) = (like.client.clone(), like.device.clone());
    empty_device_contiguous_dtype(client, device, Shape::new([rows, columns]), DType::F32)
}

/// The whole buffer of a stored matrix as words.
pub(super) fn words<R: CubeRuntime>(weight: CubeTensor<R>) -> ArrayArg<R> {
    let len = weight.handle.size_in_used() as usize / size_of::<u32>();
    // SAFETY: the buffer holds exactly `len` words.
    unsafe { ArrayArg::from_raw_parts(weight.handle, len) }
}

/// The number in the lower (`half` 0) or upper (`half` 1) part of a word.
#[cube]
pub(super) fn decode(word: u32, half: u32, #[comptime] format: Format) -> f32 {
    if comptime!(format == Format::F32) {
        f32::reinterpret(word)
    } else if comptime!(format == Format::Bf16) {
        f32::reinterpret((word >> (half * 16)) << 16)
    } else {
        let bits = (word >> (half * 16)) & 0xffff;
        let sign = (bits & 0x8000) << 16;
        let magnitude = bits & 0x7fff;
        // A subnormal counts units of 2⁻²⁴; infinities and NaN keep an exponent of ones.
        let subnormal = u32::reinterpret(f32::cast_from(magnitude) * 5.960_464_5e-8_f32);
        let rebias = select(magnitude >= 0x7c00, 224u32 << 23, 112u32 << 23);
        let normal = (magnitude << 13) + rebias;
        f32::reinterpret(sign | select(magnitude < 0x0400, subnormal, normal))
    }
}

/// Element number `index` of a matrix.
#[cube]
pub(super) fn element<N: Size>(
    weight: &Array<Vector<u32, N>>,
    index: usize,
    #[comptime] format: Format,
) -> f32 {
    if comptime!(format == Format::F32) {
        decode(weight[index][0], 0u32, format)
    } else {
        decode(weight[index / 2][0], (index % 2) as u32, format)
    }
}

/// `output[r, o] = Σₖ x[r, k] · weight[o, k]` for up to [`FEW_ROWS`] rows, the weights read once.
///
/// A cube has `OUTPUTS` groups of `LANES` units, each group one output. Lane `l` sums the vectors
/// of four words `l, l + LANES, …` of its row (words one by one, element by element, where a
/// vector could cross the end of a row: `N` = 1), then the lanes are added as a binary tree.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn few_rows_kernel<N: Size>(
    x: &Array<Vector<f32, N>>,
    weight: &Array<Vector<u32, N>>,
    output: &mut Array<f32>,
    rows: usize,
    inputs: usize,
    outputs: usize,
    #[comptime] shape: Lanes,
    #[comptime] format: Format,
) {
    let lane = UNIT_POS_X as usize;
    let place = CUBE_POS * OUTPUTS + UNIT_POS_Y as usize;
    // Groups without an output repeat the last one, so that all units meet at the barriers.
    let out = min(place, outputs - 1);
    let row_slots = comptime!(shape.row_slots);
    let mut sums = zero_sums(row_slots);
    let width = N::value();
    if comptime!(width == 1) {
        for k in range_stepped(lane, inputs, LANES) {
            let w = element(weight, out * inputs + k, format);
            #[unroll]
            for row in 0..row_slots {
                sums[row] += w * x[min(row, rows - 1) * inputs + k][0];
            }
        }
    } else {
        let per_word = comptime!(format.per_word());
        let vectors = inputs / (4 * per_word);
        for vector in range_stepped(lane, vectors, LANES) {
            let packed = weight[out * vectors + vector];
            #[unroll]
            for row in 0..row_slots {
                let first = (min(row, rows - 1) * vectors + vector) * per_word;
                #[unroll]
                for part in 0..per_word {
                    let values = x[first + part];
                    #[unroll]
                    for i in 0..4usize {
                        let at = comptime!(part * 4 + i);
                        let word = packed[comptime!(at / per_word)];
                        let half = comptime!((at % per_word) as u32);
                        sums[row] += decode(word, half, format) * values[i];
                    }
                }
            }
        }
    }

    write_lane_sums(&sums, output, rows, outputs, place, shape);
}

/// `output[r, o] = Σₖ x[r, k] · weight[o, k]` for many rows.
///
/// A cube of 16 × 16 units computes a tile of `16 · rows_per_unit` rows and [`TILE_OUTPUTS`]
/// outputs; unit `(i, j)` has the outputs `i, i + 16, …` of the rows `j, j + 16, …`. The tile's
/// columns of `x` and `weight` pass through shared memory, [`TILE_K`] at a time.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn tiled_kernel(
    x: &Array<f32>,
    weight: &Array<Vector<u32, Const<1>>>,
    output: &mut Array<f32>,
    rows: usize,
    inputs: usize,
    outputs: usize,
    #[comptime] rows_per_unit: usize,
    #[comptime] format: Format,
) {
    let mut x_tile = x_tile(rows_per_unit);
    let mut w_tile = w_tile();
    let mut sums = zero_sums(comptime!(rows_per_unit * 4));
    let first_output = CUBE_POS_X as usize * TILE_OUTPUTS;
    let column = UNIT_POS_X as usize;
    for start in range_stepped(0, inputs, TILE_K) {
        load_x_tile(x, &mut x_tile, start, rows, inputs, rows_per_unit);
        let k = start + column;
        #[unroll]
        for i in 0..4usize {
            let out = UNIT_POS_Y as usize + comptime!(i * TILE_UNITS);
            let mut value = 0.0f32;
            if k < inputs && first_output + out < outputs {
                value = element(weight, (first_output + out) * inputs + k, format);
            }
            w_tile[column * W_PITCH + out] = value;
        }
        sync_cube();
        multiply_tiles(&x_tile, &w_tile, &mut sums, rows_per_unit);
        sync_cube();
    }
    write_tile(&sums, output, rows, outputs, rows_per_unit);
}

/// `output[i, k] = weight[ids[i], k]`, one unit for each element.
#[cube(launch)]
fn rows_kernel(
    weight: &Array<Vector<u32, Const<1>>>,
    ids: &Array<i32>,
    output: &mut Array<f32>,
    inputs: usize,
    #[comptime] format: Format,
) {
    let at = CUBE_POS * UNITS + UNIT_POS as usize;
    if at < output.len() {
        let row = ids[at / inputs] as usize;
        output[at] = element(weight, row * inputs + at % inputs, format);
    }
}

/// `output[i] = weight[i]`, one unit for each element.
#[cube(launch)]
fn widen_kernel(
    weight: &Array<Vector<u32, Const<1>>>,
    output: &mut Array<f32>,
    #[comptime] format: Format,
) {
    let at = CUBE_POS * UNITS + UNIT_POS as usize;
    if at < output.len() {
        output[at] = element(weight, at, format);
    }
}
