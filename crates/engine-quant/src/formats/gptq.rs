//! GPTQ checkpoints: `qweight`, `qzeros`, `scales`, `g_idx`.
//!
//! `qweight` is `i32 [in · bits / 32, out]`: a word has the codes of neighbouring input columns, the
//! first in the low bits. `qzeros` is `i32 [groups, out · bits / 32]`, `scales` `[groups, out]` and
//! `g_idx` `i32 [in]`, the group of each input column.
//! `value = (code − zero) · scale`, as AutoGPTQ and gptqmodel compute it.
//!
//! # Two versions of zero points
//! Version 1 (`checkpoint_format` `gptq`, or none) stores each zero point less one; a zero point of
//! 0 is stored as all ones, so adding the one wraps. Version 2 (`gptq_v2`) stores them as they are.
//! Some files say one and hold the other. Where quantization was symmetric that can be told: the
//! zero point is the middle code, stored as 7 or 8 (127 or 128), so what is stored decides. For
//! asymmetric files it cannot be told, and what they say counts.

use rayon::prelude::*;

use super::{
    NamedTensor, Unpacked, counted, only_steps, shared_zero, transpose_values, unwritable, word,
    zero_of_each,
};
use crate::{Bits, CodeOrder, GroupValues, Levels, PackedMatrix, PackedSpec, QuantError};

/// What the configuration says about all matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GptqLayout {
    /// `[out, in]`.
    pub shape: [usize; 2],
    /// Width of a code.
    pub bits: Bits,
    /// Input columns that share a scale.
    pub group_size: usize,
    /// How zero points are stored.
    pub zero_points: ZeroPoints,
    /// Whether the zero point is said to be the middle code.
    pub symmetric: bool,
}

/// How zero points are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ZeroPoints {
    /// Less one, wrapping: version 1.
    LessOne,
    /// As they are: version 2.
    Plain,
}

/// The tensors of one matrix, as the file has them.
#[derive(Debug, Clone)]
pub struct GptqTensors<'a> {
    /// `i32 [in · bits / 32, out]`.
    pub qweight: &'a [u8],
    /// `i32 [groups, out · bits / 32]`.
    pub qzeros: &'a [u8],
    /// `[groups, out]`.
    pub scales: GroupValues,
    /// `i32 [in]`; columns in their order if none.
    pub g_idx: Option<&'a [u8]>,
}

/// Output rows that are unpacked together, so that whole cache lines are used.
const ROWS: usize = 16;

/// Reads a matrix. Columns in another order (act-order) stay packed if all groups are full;
/// otherwise the numbers are given.
///
/// # Errors
/// If lengths do not fit, a column names a group that is not there, or a scale is not finite.
pub fn unpack(layout: &GptqLayout, tensors: &GptqTensors<'_>) -> Result<Unpacked, QuantError> {
    let [out, in_] = layout.shape;
    let group_size = layout.group_size.clamp(1, in_.max(1));
    let groups = in_.div_ceil(group_size);
    let per_word = per_word(layout.bits);
    let word_bytes = size_of::<u32>();
    counted("bytes of qweight", in_ * out / per_word * word_bytes, tensors.qweight.len())?;
    counted("bytes of qzeros", groups * (out / per_word) * word_bytes, tensors.qzeros.len())?;
    counted("input columns beyond whole words", 0, in_ % per_word)?;
    counted("output columns beyond whole words", 0, out % per_word)?;
    counted("scales", groups * out, tensors.scales.len())?;
    let scales = transpose_values(&tensors.scales, groups, out);
    let zeros = zero_points(layout, tensors.qzeros, groups);
    let columns = columns(tensors.g_idx, in_, group_size)?;
    if let Columns::Ungrouped(group_of) = columns {
        return dequantize(layout, tensors, &group_of, (&scales, &zeros));
    }
    let order = if let Columns::Ordered(order) = columns { Some(order) } else { None };
    let spec = PackedSpec {
        shape: layout.shape,
        bits: layout.bits,
        levels: Levels::Steps,
        group_size,
        per_tensor: false,
    };
    let row_bytes = spec.row_bytes();
    let mut codes = vec![0; out * row_bytes];
    for_rows(layout, tensors.qweight, (&mut codes, row_bytes), |_, row, packed| match &order {
        Some(order) => {
            let ordered: Vec<u8> = order.iter().map(|&column| row[column as usize]).collect();
            spec.bits.pack_row(&ordered, packed);
        }
        None => spec.bits.pack_row(row, packed),
    });
    let packed = PackedMatrix {
        spec,
        format: format!("gptq int{}:group={group_size}", 32 / per_word),
        order: CodeOrder::Rows,
        codes: codes.into(),
        scales,
        zeros: shared_zero(zeros),
        mins: None,
        column_order: order,
        factor: 1.0,
    };
    packed.check()?;
    Ok(Unpacked::Packed(packed))
}

fn per_word(bits: Bits) -> usize {
    match bits {
        Bits::Four => 8,
        Bits::Eight => 4,
    }
}

/// `[out, groups]`.
fn zero_points(layout: &GptqLayout, qzeros: &[u8], groups: usize) -> Vec<u8> {
    let out = layout.shape[0];
    let per_word = per_word(layout.bits);
    let width = 32 / per_word;
    let mask = ((1_u32 << width) - 1) as u8;
    let stored = |row: usize, group: usize| {
        let word = word(qzeros, group * (out / per_word) + row / per_word);
        (word >> (row % per_word * width)) as u8 & mask
    };
    let zeros = (0..out).flat_map(|row| (0..groups).map(move |group| stored(row, group)));
    let mut zeros: Vec<u8> = zeros.collect();
    let middle = 1_u8 << (width - 1);
    let all = |value: u8| layout.symmetric && zeros.iter().all(|zero| *zero == value);
    let less_one = match layout.zero_points {
        _ if all(middle) => false,
        _ if all(middle - 1) => true,
        declared => declared == ZeroPoints::LessOne,
    };
    if less_one {
        zeros.iter_mut().for_each(|zero| *zero = zero.wrapping_add(1) & mask);
    }
    zeros
}

/// Which group the input columns belong to.
enum Columns {
    /// Neighbours share one.
    InOrder,
    /// Neighbours in this order do.
    Ordered(Vec<u32>),
    /// Groups of other sizes: the group of each.
    Ungrouped(Vec<usize>),
}

fn columns(g_idx: Option<&[u8]>, in_: usize, group_size: usize) -> Result<Columns, QuantError> {
    let Some(g_idx) = g_idx else { return Ok(Columns::InOrder) };
    counted("bytes of g_idx", in_ * size_of::<u32>(), g_idx.len())?;
    let groups = in_.div_ceil(group_size);
    let group_of: Vec<usize> = (0..in_).map(|column| word(g_idx, column) as usize).collect();
    if let Some(column) = group_of.iter().position(|group| *group >= groups) {
        return Err(QuantError::NoSuchGroup { column, groups });
    }
    if group_of.iter().enumerate().all(|(column, group)| *group == column / group_size) {
        return Ok(Columns::InOrder);
    }
    let mut order: Vec<u32> = (0..in_ as u32).collect();
    order.sort_by_key(|&column| group_of[column as usize]);
    let full = |(k, &column): (usize, &u32)| group_of[column as usize] == k / group_size;
    if order.iter().enumerate().all(full) {
        Ok(Columns::Ordered(order))
    } else {
        Ok(Columns::Ungrouped(group_of))
    }
}

/// Calls `place` with each row's number, its codes in the input's order, and its part of `to.0`,
/// `to.1` elements.
fn for_rows<T: Send>(
    layout: &GptqLayout,
    qweight: &[u8],
    to: (&mut [T], usize),
    place: impl Fn(usize, &[u8], &mut [T]) + Sync,
) {
    let [out, in_] = layout.shape;
    let per_word = per_word(layout.bits);
    let width = 32 / per_word;
    let mask = ((1_u32 << width) - 1) as u8;
    let (to, row_len) = to;
    to.par_chunks_mut(ROWS * row_len).enumerate().for_each_init(
        || vec![0_u8; ROWS * in_],
        |codes, (block, to)| {
            let (first, rows) = (block * ROWS, to.len() / row_len);
            for words in 0..in_ / per_word {
                for row in 0..rows {
                    let word = word(qweight, words * out + first + row);
                    let codes = &mut codes[row * in_ + words * per_word..][..per_word];
                    for (i, code) in codes.iter_mut().enumerate() {
                        *code = (word >> (i * width)) as u8 & mask;
                    }
                }
            }
            for (row, to) in to.chunks_exact_mut(row_len).enumerate() {
                place(first + row, &codes[row * in_..][..in_], to);
            }
        },
    );
}

fn dequantize(
    layout: &GptqLayout,
    tensors: &GptqTensors<'_>,
    group_of: &[usize],
    (scales, zeros): (&GroupValues, &[u8]),
) -> Result<Unpacked, QuantError> {
    let [out, in_] = layout.shape;
    let groups = scales.len() / out.max(1);
    let scales = scales.to_f32();
    if !scales.iter().all(|scale| scale.is_finite()) {
        return Err(QuantError::NotFinite { what: "scale" });
    }
    let mut values = vec![0.0; out * in_];
    for_rows(layout, tensors.qweight, (&mut values, in_), |row, codes, values| {
        for ((value, &code), &group) in values.iter_mut().zip(codes).zip(group_of) {
            let at = row * groups + group;
            *value = (f32::from(code) - f32::from(zeros[at])) * scales[at];
        }
    });
    Ok(Unpacked::Floats(values))
}

/// Writes a matrix as `name.qweight`, `.qzeros`, `.scales` and `.g_idx`.
///
/// # Errors
/// If the layout cannot hold it: it has a table of levels, minima or a factor, or its sides are no
/// multiples of a word's codes.
pub fn pack(
    name: &str,
    matrix: &PackedMatrix,
    zero_points: ZeroPoints,
) -> Result<Vec<NamedTensor>, QuantError> {
    only_steps("gptq", matrix)?;
    let spec = &matrix.spec;
    let ([out, in_], groups) = (spec.shape, spec.groups());
    let per_word = per_word(spec.bits);
    let width = 32 / per_word;
    if out % per_word != 0 || in_ % per_word != 0 {
        return Err(unwritable("gptq", "both sides are multiples of a word's codes"));
    }
    let mut qweight = vec![0_u32; in_ / per_word * out];
    let column = |k: usize| matrix.column_order.as_ref().map_or(k, |order| order[k] as usize);
    matrix.for_rows(|row, codes| {
        for (k, &code) in codes.iter().enumerate() {
            let column = column(k);
            let word = &mut qweight[column / per_word * out + row];
            *word |= u32::from(code) << (column % per_word * width);
        }
    });
    let mask = ((1_u32 << width) - 1) as u8;
    let mut qzeros = vec![0_u32; groups * out / per_word];
    for (i, zero) in zero_of_each(&matrix.zeros, out * groups).into_iter().enumerate() {
        let (row, group) = (i / groups, i % groups);
        let stored = match zero_points {
            ZeroPoints::LessOne => zero.wrapping_sub(1) & mask,
            ZeroPoints::Plain => zero,
        };
        let word = &mut qzeros[group * (out / per_word) + row / per_word];
        *word |= u32::from(stored) << (row % per_word * width);
    }
    let mut g_idx = vec![0_u32; in_];
    (0..in_).for_each(|k| g_idx[column(k)] = (k / spec.group_size) as u32);
    let scales = transpose_values(&matrix.scales, out, groups);
    Ok(vec![
        NamedTensor::words(format!("{name}.qweight"), vec![in_ / per_word, out], &qweight),
        NamedTensor::words(format!("{name}.qzeros"), vec![groups, out / per_word], &qzeros),
        NamedTensor::floats(format!("{name}.scales"), vec![groups, out], &scales),
        NamedTensor::words(format!("{name}.g_idx"), vec![in_], &g_idx),
    ])
}
