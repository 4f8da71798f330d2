//! AWQ checkpoints of version `gemm`: `qweight`, `qzeros`, `scales`, four bits.
//!
//! `qweight` is `i32 [in, out / 8]`: nibble `i` of word `j`, from the low bits on, is output column
//! `8 · j + ORDER[i]`. `qzeros` is `i32 [groups, out / 8]` in the same order, `scales`
//! `[groups, out]`. `value = (code − zero) · scale`, zero points as they are (AutoAWQ's
//! `WQLinear_GEMM`).

use rayon::prelude::*;

use super::{
    NamedTensor, counted, only_steps, shared_zero, transpose_values, unwritable, word, zero_of_each,
};
use crate::{Bits, CodeOrder, GroupValues, Levels, PackedMatrix, PackedSpec, QuantError};

/// Which of eight neighbouring output columns each nibble of a word belongs to.
const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// The tensors of one matrix, as the file has them.
#[derive(Debug, Clone)]
pub struct AwqTensors<'a> {
    /// `i32 [in, out / 8]`.
    pub qweight: &'a [u8],
    /// `i32 [groups, out / 8]`.
    pub qzeros: &'a [u8],
    /// `[groups, out]`.
    pub scales: GroupValues,
}

/// Words whose output rows are unpacked together, so that whole cache lines are used.
const WORDS: usize = 8;

/// Reads a matrix of shape `[out, in]` in groups of `group_size` input columns.
///
/// # Errors
/// If lengths do not fit or a scale is not finite.
pub fn unpack(
    shape: [usize; 2],
    group_size: usize,
    tensors: &AwqTensors<'_>,
) -> Result<PackedMatrix, QuantError> {
    let [out, in_] = shape;
    let group_size = group_size.clamp(1, in_.max(1));
    let groups = in_.div_ceil(group_size);
    counted("output columns beyond whole words", 0, out % 8)?;
    counted("bytes of qweight", in_ * out / 2, tensors.qweight.len())?;
    counted("bytes of qzeros", groups * out / 2, tensors.qzeros.len())?;
    counted("scales", groups * out, tensors.scales.len())?;
    let levels = Levels::Steps;
    let spec = PackedSpec { shape, bits: Bits::Four, levels, group_size, per_tensor: false };
    let row_bytes = spec.row_bytes();
    let mut codes = vec![0; out * row_bytes];
    codes.par_chunks_mut(8 * WORDS * row_bytes).enumerate().for_each_init(
        || vec![0; 8 * WORDS * in_],
        |rows, (block, packed)| {
            let num_rows = packed.len() / row_bytes;
            let first = block * WORDS;
            for column in 0..in_ {
                for j in 0..num_rows / 8 {
                    let word = word(tensors.qweight, column * (out / 8) + first + j);
                    for (i, row) in ORDER.into_iter().enumerate() {
                        rows[(8 * j + row) * in_ + column] = (word >> (4 * i)) as u8 & 15;
                    }
                }
            }
            for (row, packed) in rows.chunks_exact(in_).zip(packed.chunks_exact_mut(row_bytes)) {
                spec.bits.pack_row(row, packed);
            }
        },
    );
    let mut zeros = vec![0; out * groups];
    for (i, zeros) in zeros.iter_mut().enumerate() {
        let (row, group) = (i / groups, i % groups);
        let nibble = ORDER.iter().position(|column| *column == row % 8).unwrap_or(0);
        let word = word(tensors.qzeros, group * (out / 8) + row / 8);
        *zeros = (word >> (4 * nibble)) as u8 & 15;
    }
    let packed = PackedMatrix {
        spec,
        format: format!("awq int4:group={group_size}"),
        order: CodeOrder::Rows,
        codes: codes.into(),
        scales: transpose_values(&tensors.scales, groups, out),
        zeros: shared_zero(zeros),
        mins: None,
        column_order: None,
        factor: 1.0,
    };
    packed.check()?;
    Ok(packed)
}

/// Writes a matrix as `name.qweight`, `.qzeros` and `.scales`.
///
/// # Errors
/// If the layout cannot hold it: it has not four bits, or a table of levels, minima, a factor or an
/// order of columns, or a number of rows that is no multiple of eight.
pub fn pack(name: &str, matrix: &PackedMatrix) -> Result<Vec<NamedTensor>, QuantError> {
    only_steps("awq", matrix)?;
    let spec = &matrix.spec;
    let ([out, in_], groups) = (spec.shape, spec.groups());
    if spec.bits != Bits::Four || matrix.column_order.is_some() || out % 8 != 0 {
        let problem = "codes have four bits, columns their order, rows come in eights";
        return Err(unwritable("awq", problem));
    }
    let place = |words: &mut [u32], line: usize, row: usize, code: u8| {
        let nibble = ORDER.iter().position(|column| *column == row % 8).unwrap_or(0);
        words[line * (out / 8) + row / 8] |= u32::from(code) << (4 * nibble);
    };
    let mut qweight = vec![0_u32; in_ * out / 8];
    matrix.for_rows(|row, codes| {
        for (column, &code) in codes.iter().enumerate() {
            place(&mut qweight, column, row, code);
        }
    });
    let mut qzeros = vec![0_u32; groups * out / 8];
    for (i, zero) in zero_of_each(&matrix.zeros, out * groups).into_iter().enumerate() {
        place(&mut qzeros, i % groups, i / groups, zero);
    }
    let scales = transpose_values(&matrix.scales, out, groups);
    Ok(vec![
        NamedTensor::words(format!("{name}.qweight"), vec![in_, out / 8], &qweight),
        NamedTensor::words(format!("{name}.qzeros"), vec![groups, out / 8], &qzeros),
        NamedTensor::floats(format!("{name}.scales"), vec![groups, out], &scales),
    ])
}
