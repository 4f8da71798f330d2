//! Packed matrices in GPU memory: uploads, launches, and how a code becomes a number.
//!
//! Codes keep their layout, four bytes in a little-endian `u32` word. A row is a whole number of
//! vectors of four words; a vector holds 32 columns of four bits or 16 of eight, and word `w` of it
//! the columns `4w ..` of each *half*: the low halves of its bytes are the first 16 columns, the
//! high halves the other 16. Scales and minima are stored as dense matrices are, `f16` as two
//! halves of a word; zero points are four to a word.
//!
//! `(level − zero) · scale + min` is computed in this order, in `f32`. A driver may contract the
//! last two operations into one with a single rounding; where `scale` has the precision of `f16`
//! and levels are steps, the product is exact and the result the same. Codes become numbers without
//! a conversion: `code | 0x4b00_0000` are the bits of `2²³ + code`, and `2²³ + zero` is subtracted.

use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use burn_tensor::{DType, TensorData, TensorMetadata};
use cubecl::prelude::*;
use half::f16;

use super::cube_grid;
use super::dense::{self, Format, UNITS, element, empty, words};
use super::fused::Parts;
use super::packed_linear;
use super::tile::{FEW_ROWS, Lanes, TILE_UNITS, rows_per_unit, tile_count};
use crate::{Bits, CodeOrder, GroupValues, Levels, PackedMatrix, PackedSpec, SharedBytes, Zeros};

/// The bits of 2²³ as `f32`: the lowest bit of the mantissa counts ones.
const BIAS_BITS: u32 = 0x4b00_0000;
/// 2²³.
const BIAS: f32 = 8_388_608.0;

/// A packed matrix on a device.
pub(super) struct Stored<R: CubeRuntime> {
    pub(super) spec: PackedSpec,
    pub(super) codes: CubeTensor<R>,
    /// `f16` or `f32`, [`dense::upload`]ed.
    pub(super) scales: CubeTensor<R>,
    pub(super) fixed_zero: u8,
    pub(super) zeros: Option<CubeTensor<R>>,
    pub(super) mins: Option<CubeTensor<R>>,
}

/// What a kernel knows of a matrix when it is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Coding {
    bits: Bits,
    /// The bits of the levels, where codes do not count steps.
    table: Option<[u32; 16]>,
    scales: Format,
    zeros: bool,
    mins: Option<Format>,
    /// So many columns, from a multiple of their number on, are of one group: 1, 16, or 32 where a
    /// vector has as many.
    pub(super) span: usize,
}

impl Coding {
    fn mask(self) -> u32 {
        match self.bits {
            Bits::Four => 15,
            Bits::Eight => 255,
        }
    }

    /// Runs of 16 columns in a vector of four words.
    pub(super) fn halves(self) -> usize {
        match self.bits {
            Bits::Four => 2,
            Bits::Eight => 1,
        }
    }

    fn level(self, code: usize) -> f32 {
        self.table.map_or(0.0, |levels| f32::from_bits(levels[code]))
    }
}

/// The numbers of the groups and where a column finds its own.
#[derive(CubeLaunch, CubeType)]
pub(super) struct Groups {
    scales: Array<Vector<u32, Const<1>>>,
    /// Any array where the coding has none.
    zeros: Array<u32>,
    /// Any array where the coding has none.
    mins: Array<Vector<u32, Const<1>>>,
    fixed_zero: f32,
    /// Columns of the matrix.
    pub(super) inputs: usize,
    /// Vectors of four words in a row.
    pub(super) vectors: usize,
    /// Groups from one row to the next: 0 where one group is the whole matrix.
    row_groups: usize,
    /// Columns of a group, or their binary logarithm where the span is more than one column.
    group_len: u32,
    #[cube(comptime)]
    pub(super) coding: Coding,
}

/// Stores a matrix.
pub(super) fn upload<R: CubeRuntime>(matrix: PackedMatrix, device: &R::Device) -> Stored<R> {
    let matrix = matrix.into_order(CodeOrder::Rows);
    let bytes = |bytes: SharedBytes| {
        let shape = [bytes.len()];
        dense::upload(TensorData::from_bytes(bytes.into_bytes(), shape, DType::U8), device)
    };
    let floats = |values: GroupValues| {
        let len = values.len();
        let data = match values {
            GroupValues::F16(values) => TensorData::new::<f16, _>(values, [len]),
            GroupValues::F32(values) => TensorData::new::<f32, _>(values, [len]),
        };
        dense::upload(data, device)
    };
    let (fixed_zero, zeros) = match matrix.zeros {
        Zeros::Fixed(zero) => (zero, None),
        Zeros::PerGroup(zeros) => (0, Some(bytes(zeros.into()))),
    };
    Stored {
        spec: matrix.spec,
        codes: bytes(matrix.codes),
        scales: floats(matrix.scales),
        fixed_zero,
        zeros,
        mins: matrix.mins.map(floats),
    }
}

impl<R: CubeRuntime> Stored<R> {
    fn coding(&self) -> Coding {
        let group_size = self.spec.group_size;
        let vector = match self.spec.bits {
            Bits::Four => 32,
            Bits::Eight => 16,
        };
        let span = match group_size.is_power_of_two() {
            _ if self.spec.groups() == 1 => vector,
            true if group_size >= 16 => group_size.min(vector),
            _ => 1,
        };
        Coding {
            bits: self.spec.bits,
            table: match self.spec.levels {
                Levels::Steps => None,
                Levels::Table(levels) => Some(levels.map(f32::to_bits)),
            },
            scales: Format::of(self.scales.dtype),
            zeros: self.zeros.is_some(),
            mins: self.mins.as_ref().map(|mins| Format::of(mins.dtype)),
            span,
        }
    }

    fn groups(&self) -> GroupsLaunch<R> {
        let coding = self.coding();
        let spec = &self.spec;
        let group_len = match coding.span {
            1 => spec.group_size as u32,
            _ if spec.groups() == 1 => 31,
            _ => spec.group_size.ilog2(),
        };
        let or_scales =
            |values: &Option<CubeTensor<R>>| words(values.as_ref().unwrap_or(&self.scales).clone());
        GroupsLaunch::new(
            words(self.scales.clone()),
            or_scales(&self.zeros),
            or_scales(&self.mins),
            f32::from(self.fixed_zero),
            spec.shape[1],
            spec.row_bytes() / 16,
            if spec.per_tensor { 0 } else { spec.groups() },
            group_len,
            coding,
        )
    }
}

/// `x · Wᵀ`, `x f32 [rows, in]` and contiguous.
pub(super) fn linear<R: CubeRuntime>(x: CubeTensor<R>, weight: Stored<R>) -> CubeTensor<R> {
    let (rows, [outputs, _]) = (x.shape()[0], weight.spec.shape);
    if rows <= FEW_ROWS {
        return few_rows(x, weight, Parts::none());
    }
    let output = empty(&x, rows, outputs);
    if outputs > 0 {
        packed_linear::tiled_kernel::launch::<R>(
            &x.client.clone(),
            tile_count(rows, outputs),
            CubeDim::new_2d(TILE_UNITS as u32, TILE_UNITS as u32),
            x.into_array_arg(),
            words(weight.codes.clone()),
            weight.groups(),
            output.clone().into_array_arg(),
            rows,
            outputs,
            rows_per_unit(rows),
        );
    }
    output
}

/// [`linear`] for up to [`FEW_ROWS`] rows with what stands around it.
pub(super) fn few_rows<R: CubeRuntime>(
    x: CubeTensor<R>,
    weight: Stored<R>,
    parts: Parts<R>,
) -> CubeTensor<R> {
    let (rows, [outputs, inputs]) = (x.shape()[0], weight.spec.shape);
    let output = empty(&x, rows, parts.results(outputs));
    if rows * outputs == 0 {
        return output;
    }
    let (lanes, per_cube) = (packed_linear::LANES, packed_linear::OUTPUTS);
    let row_slots = rows.next_power_of_two();
    let shape = Lanes { lanes, outputs: per_cube, row_slots };
    let (groups, coding) = (weight.groups(), weight.coding());
    packed_linear::few_rows_kernel::launch::<R>(
        &x.client,
        cube_grid(parts.cubes(outputs, per_cube)),
        shape.cube_dim(),
        if inputs.is_multiple_of(4) { 4 } else { 1 },
        x.clone().into_array_arg(),
        parts.norm_weight(&x),
        words(weight.codes),
        groups,
        parts.after(&x, inputs),
        output.clone().into_array_arg(),
        rows,
        outputs,
        shape,
        packed_linear::stage(row_slots, coding.halves(), parts.has_norm()),
    );
    output
}

/// Rows `ids`, `i32 [ids]` and contiguous, as `f32`; all of them in order where there are no ids.
pub(super) fn rows<R: CubeRuntime>(weight: Stored<R>, ids: Option<CubeTensor<R>>) -> CubeTensor<R> {
    let [outputs, inputs] = weight.spec.shape;
    let num_rows = ids.as_ref().map_or(outputs, |ids| ids.meta.num_elements());
    let output = empty(&weight.codes, num_rows, inputs);
    if num_rows > 0 {
        let (client, groups, all) = (weight.codes.client.clone(), weight.groups(), ids.is_none());
        let ids = ids.unwrap_or_else(|| weight.codes.clone());
        rows_kernel::launch::<R>(
            &client,
            cube_grid((num_rows * inputs).div_ceil(UNITS)),
            CubeDim::new_1d(UNITS as u32),
            words(weight.codes),
            groups,
            words(ids),
            output.clone().into_array_arg(),
            all,
        );
    }
    output
}

/// Scale, zero and min of one group.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Group {
    scale: f32,
    /// Plus 2²³ where codes count steps.
    zero: f32,
    min: f32,
}

/// The group of a row's column; columns after the last one are of the last group.
#[cube]
pub(super) fn group_of(groups: &Groups, row: usize, column: usize) -> Group {
    let coding = comptime!(groups.coding);
    let column = min(column, groups.inputs - 1) as u32;
    let in_row = if comptime!(coding.span > 1) {
        column >> groups.group_len
    } else {
        column / groups.group_len
    };
    let index = row * groups.row_groups + in_row as usize;
    let zero = if comptime!(coding.zeros) {
        f32::cast_from((groups.zeros[index / 4] >> ((index % 4) as u32 * 8)) & 255)
    } else {
        groups.fixed_zero
    };
    let bias = comptime!(if coding.table.is_some() { 0.0f32 } else { BIAS });
    let min = if comptime!(coding.mins.is_some()) {
        element(&groups.mins, index, comptime!(coding.mins.unwrap_or(Format::F32)))
    } else {
        0.0f32.runtime()
    };
    Group {
        scale: element(&groups.scales, index, comptime!(coding.scales)),
        zero: zero + bias,
        min,
    }
}

/// The levels of the codes in shared memory; nothing where codes count steps.
#[cube]
pub(super) fn level_table(#[comptime] coding: Coding) -> SharedMemory<f32> {
    let mut table = SharedMemory::<f32>::new(16usize);
    if comptime!(coding.table.is_some()) {
        if UNIT_POS == 0 {
            #[unroll]
            for code in 0..16usize {
                table[code] = comptime!(coding.level(code)).runtime();
            }
        }
        sync_cube();
    }
    table
}

/// The number of column `4w + byte` of half `half`, of word `w`.
#[cube]
fn number(
    word: u32,
    byte: u32,
    half: u32,
    group: &Group,
    table: &SharedMemory<f32>,
    #[comptime] coding: Coding,
) -> f32 {
    let code = (word >> (byte * 8 + half * 4)) & comptime!(coding.mask());
    let level = if comptime!(coding.table.is_some()) {
        table[code as usize]
    } else {
        f32::reinterpret(code | BIAS_BITS)
    };
    let scaled = (level - group.zero) * group.scale;
    if comptime!(coding.mins.is_some()) { scaled + group.min } else { scaled }
}

/// The numbers of `row` from column `column` on that a half of a word holds. `group` is theirs,
/// unless each column has to look for its own.
#[cube]
pub(super) fn four_numbers(
    word: u32,
    half: u32,
    row: usize,
    column: usize,
    group: &Group,
    groups: &Groups,
    table: &SharedMemory<f32>,
) -> Vector<f32, Const<4>> {
    let coding = comptime!(groups.coding);
    let mut values = Vector::<f32, Const<4>>::empty();
    #[unroll]
    for i in 0..4usize {
        let byte = comptime!(i as u32);
        if comptime!(coding.span == 1) {
            let own = group_of(groups, row, column + i);
            values[i] = number(word, byte, half, &own, table, coding);
        } else {
            values[i] = number(word, byte, half, group, table, coding);
        }
    }
    values
}

/// `output[i, k] = weight[ids[i], k]`, one unit for each element; `weight[i, k]` for `all` rows.
#[cube(launch)]
fn rows_kernel(
    codes: &Array<u32>,
    groups: &Groups,
    ids: &Array<u32>,
    output: &mut Array<f32>,
    #[comptime] all: bool,
) {
    let coding = comptime!(groups.coding);
    let table = level_table(coding);
    let at = CUBE_POS * UNITS + UNIT_POS as usize;
    if at < output.len() {
        let place = at / groups.inputs;
        let row = if comptime!(all) { place } else { ids[place] as usize };
        let column = at % groups.inputs;
        let halves = comptime!(coding.halves());
        let vector = row * groups.vectors + column / comptime!(16 * halves);
        let half = column / 16 % halves;
        let word = codes[vector * 4 + column % 16 / 4];
        let group = group_of(groups, row, column);
        output[at] = number(word, (column % 4) as u32, half as u32, &group, &table, coding);
    }
}
