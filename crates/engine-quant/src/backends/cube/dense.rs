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

/// The most rows of `x` that one pass over the weights serves.
const FEW_ROWS: usize = 8;
/// Units that share one output of [`few_rows_kernel`].
const LANES: usize = 32;
/// Outputs of one cube of [`few_rows_kernel`].
const OUTPUTS: usize = 8;
/// Units along each side of a cube of [`tiled_kernel`].
const TILE_UNITS: usize = 16;
/// Outputs of one cube of [`tiled_kernel`].
const TILE_OUTPUTS: usize = 4 * TILE_UNITS;
/// Columns of `x` that a cube of [`tiled_kernel`] holds in shared memory at a time.
const TILE_K: usize = 16;
/// Units of a cube of the element-wise kernels.
const UNITS: usize = 256;

/// What a word of a stored matrix holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Format {
    F32,
    F16,
    Bf16,
}

impl Format {
    fn of(dtype: DType) -> Self {
        match dtype {
            DType::F16 => Self::F16,
            DType::BF16 => Self::Bf16,
            _ => Self::F32,
        }
    }

    /// Numbers in one word.
    fn per_word(self) -> usize {
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
        // Vectors of four words: no vector crosses the end of a row.
        let wide = inputs.is_multiple_of(4 * format.per_word());
        few_rows_kernel::launch::<R>(
            &client,
            cube_grid(outputs.div_ceil(OUTPUTS)),
            CubeDim::new_2d(LANES as u32, OUTPUTS as u32),
            if wide { 4 } else { 1 },
            x.into_array_arg(),
            words(weight),
            output.clone().into_array_arg(),
            rows,
            inputs,
            outputs,
            rows.next_power_of_two(),
            format,
        );
    } else {
        let rows_per_unit = rows.div_ceil(TILE_UNITS).next_power_of_two().min(4);
        let cubes_x = outputs.div_ceil(TILE_OUTPUTS);
        let cubes_y = rows.div_ceil(rows_per_unit * TILE_UNITS);
        tiled_kernel::launch::<R>(
            &client,
            CubeCount::Static(cubes_x as u32, cubes_y as u32, 1),
            CubeDim::new_2d(TILE_UNITS as u32, TILE_UNITS as u32),
            x.into_array_arg(),
            words(weight),
            output.clone().into_array_arg(),
            rows,
            inputs,
            outputs,
            rows_per_unit,
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

fn dims<R: CubeRuntime>(tensor: &CubeTensor<R>) -> [usize; 2] {
    let shape = tensor.shape();
    [shape[0], shape[1]]
}

/// An uninitialised `f32 [rows, columns]` on the device of `like`.
fn empty<R: CubeRuntime>(like: &CubeTensor<R>, rows: usize, columns: usize) -> CubeTensor<R> {
    let (client, device) = (like.client.clone(), like.device.clone());
    empty_device_contiguous_dtype(client, device, Shape::new([rows, columns]), DType::F32)
}

/// The whole buffer of a stored matrix as words.
fn words<R: CubeRuntime>(weight: CubeTensor<R>) -> ArrayArg<R> {
    let len = weight.handle.size_in_used() as usize / size_of::<u32>();
    // SAFETY: the buffer holds exactly `len` words.
    unsafe { ArrayArg::from_raw_parts(weight.handle, len) }
}

/// The number in the lower (`half` 0) or upper (`half` 1) part of a word.
#[cube]
fn decode(word: u32, half: u32, #[comptime] format: Format) -> f32 {
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
fn element<N: Size>(
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
/// `row_slots` is the number of rows rounded up to a power of two.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn few_rows_kernel<N: Size>(
    x: &Array<Vector<f32, N>>,
    weight: &Array<Vector<u32, N>>,
    output: &mut Array<f32>,
    rows: usize,
    inputs: usize,
    outputs: usize,
    #[comptime] row_slots: usize,
    #[comptime] format: Format,
) {
    let lane = UNIT_POS_X as usize;
    let place = CUBE_POS * OUTPUTS + UNIT_POS_Y as usize;
    // Groups without an output repeat the last one, so that all units meet at the barriers.
    let out = min(place, outputs - 1);
    let mut sums = Array::<f32>::new(row_slots);
    #[unroll]
    for row in 0..row_slots {
        sums[row] = 0.0f32;
    }

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

    let mut shared = SharedMemory::<f32>::new(comptime!(row_slots * LANES * OUTPUTS));
    let base = UNIT_POS as usize;
    #[unroll]
    for row in 0..row_slots {
        shared[row * comptime!(LANES * OUTPUTS) + base] = sums[row];
    }
    sync_cube();
    #[unroll]
    for level in 0..5u32 {
        let stride = comptime!(LANES >> (level + 1));
        if lane < stride {
            #[unroll]
            for row in 0..row_slots {
                let at = row * comptime!(LANES * OUTPUTS) + base;
                shared[at] = shared[at] + shared[at + stride];
            }
        }
        sync_cube();
    }
    // Lane `r` writes row `r`.
    if lane < rows && place < outputs {
        let at = lane * comptime!(LANES * OUTPUTS) + UNIT_POS_Y as usize * LANES;
        output[lane * outputs + place] = shared[at];
    }
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
    let tile_rows = comptime!(rows_per_unit * TILE_UNITS);
    // One more than the tile: neighbours in `k` fall into different banks.
    let x_pitch = comptime!(tile_rows + 1);
    let w_pitch = comptime!(TILE_OUTPUTS + 1);
    let mut x_tile = SharedMemory::<f32>::new(comptime!(TILE_K * (tile_rows + 1)));
    let mut w_tile = SharedMemory::<f32>::new(comptime!(TILE_K * (TILE_OUTPUTS + 1)));
    let first_row = CUBE_POS_Y as usize * tile_rows;
    let first_output = CUBE_POS_X as usize * TILE_OUTPUTS;
    let column = UNIT_POS_X as usize;
    let line = UNIT_POS_Y as usize;

    let mut sums = Array::<f32>::new(comptime!(rows_per_unit * 4));
    #[unroll]
    for i in 0..comptime!(rows_per_unit * 4) {
        sums[i] = 0.0f32;
    }
    for start in range_stepped(0, inputs, TILE_K) {
        // Unit (i, j) loads column `start + i` of lines j, j + 16, ….
        let k = start + column;
        #[unroll]
        for i in 0..rows_per_unit {
            let row = line + comptime!(i * TILE_UNITS);
            let mut value = 0.0f32;
            if k < inputs && first_row + row < rows {
                value = x[(first_row + row) * inputs + k];
            }
            x_tile[column * x_pitch + row] = value;
        }
        #[unroll]
        for i in 0..4usize {
            let out = line + comptime!(i * TILE_UNITS);
            let mut value = 0.0f32;
            if k < inputs && first_output + out < outputs {
                value = element(weight, (first_output + out) * inputs + k, format);
            }
            w_tile[column * w_pitch + out] = value;
        }
        sync_cube();
        for k in 0..TILE_K {
            #[unroll]
            for j in 0..4usize {
                let w = w_tile[k * w_pitch + column + comptime!(j * TILE_UNITS)];
                #[unroll]
                for i in 0..rows_per_unit {
                    let value = x_tile[k * x_pitch + line + comptime!(i * TILE_UNITS)];
                    sums[comptime!(i * 4 + j)] += value * w;
                }
            }
        }
        sync_cube();
    }
    #[unroll]
    for i in 0..rows_per_unit {
        let row = first_row + line + comptime!(i * TILE_UNITS);
        #[unroll]
        for j in 0..4usize {
            let out = first_output + column + comptime!(j * TILE_UNITS);
            if row < rows && out < outputs {
                output[row * outputs + out] = sums[comptime!(i * 4 + j)];
            }
        }
    }
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
