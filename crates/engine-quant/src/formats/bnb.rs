//! bitsandbytes checkpoints: NF4 in flat blocks, with or without double quantization, and INT8.

use rayon::prelude::*;

use super::{Unpacked, counted};
use crate::{
    Bits, CodeOrder, GroupValues, Levels, NF4_LEVELS, PackedMatrix, PackedSpec, QuantError, Zeros,
    grid::nf4_code,
};

/// The tensors of an NF4 matrix.
///
/// Blocks run over the flattened matrix, so they may straddle rows. `value = level · absmax`.
#[derive(Debug, Clone, PartialEq)]
pub struct Nf4Tensors<'a> {
    /// Two codes in each byte, the first in the high half.
    pub codes: &'a [u8],
    /// `[blocks]`.
    pub absmax: Vec<f32>,
    /// What the codes stand for.
    pub levels: [f32; 16],
    /// Numbers in a block.
    pub block_size: usize,
}

/// Reads an NF4 matrix `[out, in]`. Where rows are whole blocks it keeps its bits; otherwise its
/// numbers are given.
///
/// # Errors
/// If lengths do not fit or a number is not finite.
pub fn unpack_nf4(shape: [usize; 2], tensors: &Nf4Tensors<'_>) -> Result<Unpacked, QuantError> {
    let [out, in_] = shape;
    let Nf4Tensors { codes, absmax, levels, block_size } = tensors;
    let block_size = *block_size;
    if out == 0 || in_ == 0 || block_size == 0 {
        return Err(QuantError::Empty { shape, group_size: block_size });
    }
    let len = out * in_;
    counted("bytes of codes", len.div_ceil(2), codes.len())?;
    counted("blocks", len.div_ceil(block_size), absmax.len())?;
    if !absmax.iter().chain(levels).all(|value| value.is_finite()) {
        return Err(QuantError::NotFinite { what: "scale" });
    }
    let code = |i: usize| codes[i / 2] >> (4 * (1 - i % 2)) & 15;
    if in_ % block_size != 0 {
        let value = |i: usize| levels[usize::from(code(i))] * absmax[i / block_size];
        return Ok(Unpacked::Floats((0..len).into_par_iter().map(value).collect()));
    }
    let spec = PackedSpec {
        shape,
        bits: Bits::Four,
        levels: Levels::Table(*levels),
        group_size: block_size,
        per_tensor: false,
    };
    let row_bytes = spec.row_bytes();
    let mut packed = vec![0; out * row_bytes];
    packed.par_chunks_exact_mut(row_bytes).enumerate().for_each_init(
        || vec![0; in_],
        |row_codes, (row, packed)| {
            for (column, to) in row_codes.iter_mut().enumerate() {
                *to = code(row * in_ + column);
            }
            spec.bits.pack_row(row_codes, packed);
        },
    );
    Ok(Unpacked::Packed(PackedMatrix {
        spec,
        format: "bitsandbytes nf4".to_owned(),
        order: CodeOrder::Rows,
        codes: packed.into(),
        scales: GroupValues::F32(absmax.clone()),
        zeros: Zeros::Fixed(0),
        mins: None,
        column_order: None,
        factor: 1.0,
    }))
}

/// The `absmax` that double quantization stores in eight bits:
/// `map[code] · scale + offset`, with a scale for each `block_size` codes.
///
/// # Errors
/// If there are too few scales or the map has not 256 numbers.
pub fn nested_absmax(
    codes: &[u8],
    map: &[f32],
    scales: &[f32],
    (block_size, offset): (usize, f32),
) -> Result<Vec<f32>, QuantError> {
    counted("numbers in nested_quant_map", 256, map.len())?;
    counted("numbers in nested_absmax", codes.len().div_ceil(block_size.max(1)), scales.len())?;
    let blocks = codes.chunks(block_size.max(1)).zip(scales);
    let value = |code: &u8, scale: f32| map[usize::from(*code)] * scale + offset;
    Ok(blocks.flat_map(|(codes, &scale)| codes.iter().map(move |c| value(c, scale))).collect())
}

/// Reads an INT8 matrix: `value = (code · SCB) · (1 / 127)`, `weight` is `i8 [out, in]` and `SCB`
/// `[out]`.
///
/// # Errors
/// If lengths do not fit or a scale is not finite.
pub fn unpack_int8(
    shape: [usize; 2],
    weight: &[u8],
    scb: Vec<f32>,
) -> Result<PackedMatrix, QuantError> {
    let [out, in_] = shape;
    let spec = PackedSpec {
        shape,
        bits: Bits::Eight,
        levels: Levels::Steps,
        group_size: in_.max(1),
        per_tensor: false,
    };
    counted("bytes of weight", out * in_, weight.len())?;
    let row_bytes = spec.row_bytes();
    let mut codes = vec![0; out * row_bytes];
    let rows = codes.chunks_exact_mut(row_bytes.max(1)).zip(weight.chunks_exact(in_.max(1)));
    for (packed, row) in rows {
        // Flipping the sign bit adds 128.
        packed.iter_mut().zip(row).for_each(|(code, byte)| *code = byte ^ 0x80);
    }
    let packed = PackedMatrix {
        spec,
        format: "bitsandbytes int8".to_owned(),
        order: CodeOrder::Rows,
        codes: codes.into(),
        scales: GroupValues::F32(scb),
        zeros: Zeros::Fixed(128),
        mins: None,
        column_order: None,
        factor: 1.0 / 127.0,
    };
    packed.check()?;
    Ok(packed)
}

/// Rounds numbers to NF4 in flat blocks of 64 as bitsandbytes does: the packed codes and `absmax`.
/// Unlike [`Grid::Nf4`](crate::Grid::Nf4) it multiplies by the reciprocal of an unrounded `absmax`.
///
/// # Errors
/// If a number is not finite.
pub fn quantize_nf4(values: &[f32]) -> Result<(Vec<u8>, Vec<f32>), QuantError> {
    const BLOCK: usize = 64;
    if !values.iter().all(|value| value.is_finite()) {
        return Err(QuantError::NotFinite { what: "weight" });
    }
    let (mut packed, mut absmax) = (vec![0; values.len().div_ceil(2)], Vec::new());
    for (b, block) in values.chunks(BLOCK).enumerate() {
        let largest = block.iter().fold(0.0_f32, |max, w| max.max(w.abs()));
        let inverse = 1.0 / largest.max(1e-38);
        absmax.push(largest);
        for (i, w) in block.iter().enumerate() {
            let code = nf4_code((w * inverse).clamp(-1.0, 1.0));
            packed[(b * BLOCK + i) / 2] |= code << (4 * (1 - i % 2));
        }
    }
    Ok((packed, absmax))
}

/// NF4's own levels, for a file without a `quant_map`.
pub const LEVELS: [f32; 16] = NF4_LEVELS;
