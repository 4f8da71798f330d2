use burn_tensor::TensorData;
use half::{bf16, f16};
use rayon::prelude::*;

use super::{GgufType, Layout, blocks::Block};
use crate::{CodeOrder, GroupValues, PackedMatrix, PackedSpec, QuantError, Zeros};

/// A matrix as a GGUF file has it.
///
/// ```
/// use engine_quant::{GgufMatrix, GgufType};
/// // One block of Q8_0: the scale 0.5 in half precision, then 32 signed bytes.
/// let mut bytes = vec![0x00, 0x38];
/// bytes.extend((-16..16).map(|q: i8| q as u8));
/// let matrix = GgufMatrix { kind: GgufType::Q8_0, shape: [1, 32], bytes: &bytes, row_order: None };
/// let packed = matrix.pack()?;
/// assert_eq!(packed.dequantize()[..3], [-8.0, -7.5, -7.0]);
/// assert_eq!(packed.format, "q8_0");
/// # Ok::<(), engine_quant::QuantError>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct GgufMatrix<'a> {
    /// Type of its numbers.
    pub kind: GgufType,
    /// `[out, in]`, the reverse of how the file lists it.
    pub shape: [usize; 2],
    /// The rows, one after the other, each a whole number of blocks.
    pub bytes: &'a [u8],
    /// Row `r` of the result is row `row_order[r]` of the file; in its order when `None`.
    pub row_order: Option<&'a [usize]>,
}

impl GgufMatrix<'_> {
    /// The matrix with the file's own codes and scales; all threads share the rows.
    ///
    /// Its values are those of ggml's dequantizer, bit for bit. Codes take four bits where the
    /// format's fit and eight elsewhere; a scale that is a product takes 32 bits.
    ///
    /// # Errors
    /// If the type is not one of the block formats that can be read, rows are no whole blocks,
    /// there are too few or too many bytes, or a scale is not finite.
    pub fn pack(&self) -> Result<PackedMatrix, QuantError> {
        let Some(layout) = Layout::of(self.kind) else {
            return Err(QuantError::UnreadableType { found: self.kind.to_string() });
        };
        self.check()?;
        let (codes, scales, mins) = if layout.half {
            let (codes, scales, mins) = self.unpack(&layout, f16::from_f32);
            (codes, GroupValues::F16(scales), GroupValues::F16(mins))
        } else {
            let (codes, scales, mins) = self.unpack(&layout, |value| value);
            (codes, GroupValues::F32(scales), GroupValues::F32(mins))
        };
        let matrix = PackedMatrix {
            spec: self.spec(&layout),
            format: self.kind.to_string().to_lowercase(),
            order: CodeOrder::Rows,
            codes: codes.into(),
            scales,
            zeros: Zeros::Fixed(layout.zero),
            mins: layout.has_mins.then_some(mins),
            column_order: None,
            factor: 1.0,
        };
        matrix.check()?;
        Ok(matrix)
    }

    /// The numbers of a matrix of plain floats, in their own type.
    ///
    /// # Errors
    /// If it is not `F32`, `F16` or `BF16`, or there are too few or too many bytes.
    pub fn floats(&self) -> Result<TensorData, QuantError> {
        if !self.kind.is_float() {
            return Err(QuantError::UnreadableType { found: self.kind.to_string() });
        }
        self.check()?;
        Ok(match self.kind {
            GgufType::F16 => TensorData::new(self.gather(f16::from_le_bytes), self.shape),
            GgufType::BF16 => TensorData::new(self.gather(bf16::from_le_bytes), self.shape),
            _ => TensorData::new(self.gather(f32::from_le_bytes), self.shape),
        })
    }

    fn check(&self) -> Result<(), QuantError> {
        let [out, in_] = self.shape;
        if out == 0 || in_ == 0 {
            return Err(QuantError::Empty { shape: self.shape, group_size: self.kind.block_len() });
        }
        let Some(row_bytes) = self.kind.row_bytes(in_) else {
            return Err(QuantError::RowLength {
                format: self.kind.to_string(),
                block_len: self.kind.block_len(),
                found: in_,
            });
        };
        let malformed = |what, expected, found| QuantError::Malformed { what, expected, found };
        let expected = out.saturating_mul(row_bytes);
        if self.bytes.len() != expected {
            return Err(malformed("bytes of blocks", expected, self.bytes.len()));
        }
        match self.row_order {
            Some(order) if order.len() != out || order.iter().any(|&row| row >= out) => {
                Err(malformed("rows in the order", out, order.len()))
            }
            _ => Ok(()),
        }
    }

    fn spec(&self, layout: &Layout) -> PackedSpec {
        PackedSpec {
            shape: self.shape,
            bits: layout.bits,
            levels: layout.levels,
            group_size: layout.group_size,
            per_tensor: false,
        }
    }

    /// The bytes of the row that becomes row `row`.
    fn row(&self, row: usize) -> &[u8] {
        let row = self.row_order.map_or(row, |order| order[row]);
        let row_bytes = self.bytes.len() / self.shape[0];
        &self.bytes[row * row_bytes..][..row_bytes]
    }

    /// Codes `[out, row_bytes]`, scales and mins `[out, groups]`.
    fn unpack<T: Copy + Default + Send>(
        &self,
        layout: &Layout,
        stored: fn(f32) -> T,
    ) -> (Vec<u8>, Vec<T>, Vec<T>) {
        let spec = self.spec(layout);
        let [out, in_] = self.shape;
        let block_len = self.kind.block_len();
        let block_groups = block_len / layout.group_size;
        let mut codes = vec![0; out * spec.row_bytes()];
        let mut scales = vec![T::default(); spec.num_groups()];
        let mut mins = scales.clone();
        let rows = codes
            .par_chunks_mut(spec.row_bytes())
            .zip(scales.par_chunks_mut(spec.groups()))
            .zip(mins.par_chunks_mut(spec.groups()));
        let scratch = || (Block::new(), vec![0; in_]);
        rows.enumerate().for_each_init(scratch, |(block, row_codes), (row, parts)| {
            let ((packed, scales), mins) = parts;
            let blocks = self.row(row).chunks_exact(self.kind.block_bytes());
            let groups =
                scales.chunks_exact_mut(block_groups).zip(mins.chunks_exact_mut(block_groups));
            let codes = row_codes.chunks_exact_mut(block_len);
            for ((bytes, codes), (scales, mins)) in blocks.zip(codes).zip(groups) {
                (layout.unpack)(bytes, block);
                codes.copy_from_slice(&block.codes[..block_len]);
                for (i, (scale, min)) in scales.iter_mut().zip(mins).enumerate() {
                    *scale = stored(block.scales[i]);
                    *min = stored(block.mins[i]);
                }
            }
            spec.bits.pack_row(row_codes, packed);
        });
        (codes, scales, mins)
    }

    fn gather<const N: usize, T>(&self, read: fn([u8; N]) -> T) -> Vec<T> {
        let rows = (0..self.shape[0]).map(|row| self.row(row));
        rows.flat_map(|row| row.as_chunks::<N>().0).map(|&bytes| read(bytes)).collect()
    }
}
