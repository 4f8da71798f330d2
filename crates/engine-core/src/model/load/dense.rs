//! Rows of floats as a file has them.

use std::ops::Range;

use burn_tensor::{DType, Element, TensorData};
use bytemuck::Pod;
use engine_quant::Rows;
use half::{bf16, f16};

/// Some rows of a matrix of floats, read as `f32` one at a time.
#[derive(Debug)]
pub struct DenseRows<'a> {
    pub(super) data: &'a TensorData,
    pub(super) rows: Range<usize>,
}

impl<'a> DenseRows<'a> {
    /// All rows of a matrix `[out, in]` of `f32`, `f16` or `bf16`.
    ///
    /// # Panics
    /// If the data has not two dimensions.
    pub fn new(data: &'a TensorData) -> Self {
        assert_eq!(data.shape.len(), 2, "rows: a matrix has two dimensions");
        Self { data, rows: 0..data.shape[0] }
    }
}

impl Rows for DenseRows<'_> {
    fn shape(&self) -> [usize; 2] {
        [self.rows.len(), self.data.shape[1]]
    }

    fn read_row(&self, row: usize, values: &mut [f32]) {
        let bytes = row_bytes(self.data, self.rows.start + row..self.rows.start + row + 1);
        match self.data.dtype {
            DType::F16 => fill(bytes, values, |bytes| f16::from_ne_bytes(bytes).to_f32()),
            DType::BF16 => fill(bytes, values, |bytes| bf16::from_ne_bytes(bytes).to_f32()),
            _ => fill(bytes, values, f32::from_ne_bytes),
        }
    }
}

/// Copies rows, in their type.
pub(super) fn slice_rows(data: &TensorData, rows: Range<usize>) -> TensorData {
    let shape = [rows.len(), data.shape[1]];
    let bytes = row_bytes(data, rows);
    match data.dtype {
        DType::F16 => TensorData::new(gather(bytes, f16::from_ne_bytes), shape),
        DType::BF16 => TensorData::new(gather(bytes, bf16::from_ne_bytes), shape),
        _ => TensorData::new(gather(bytes, f32::from_ne_bytes), shape),
    }
}

/// Puts the rows of `below` under those of `above`; in their type if it is the same, else in `f32`.
/// The memory of `above` grows, so that its rows need not be copied.
pub(super) fn join(above: TensorData, below: TensorData) -> TensorData {
    match (above.dtype, below.dtype) {
        (DType::F16, DType::F16) => append(above, &below, f16::from_ne_bytes),
        (DType::BF16, DType::BF16) => append(above, &below, bf16::from_ne_bytes),
        (DType::F32, DType::F32) => append(above, &below, f32::from_ne_bytes),
        _ => join(above.convert_dtype(DType::F32), below.convert_dtype(DType::F32)),
    }
}

fn append<const N: usize, T: Element + Pod>(
    above: TensorData,
    below: &TensorData,
    read: fn([u8; N]) -> T,
) -> TensorData {
    let shape = [above.shape[0] + below.shape[0], above.shape[1]];
    let whole = above.bytes.try_into_vec::<T>();
    let mut values = whole.unwrap_or_else(|bytes| gather(&bytes, read));
    values.reserve_exact(below.bytes.len() / N);
    values.extend(below.as_bytes().as_chunks().0.iter().map(|&bytes| read(bytes)));
    TensorData::new(values, shape)
}

fn row_bytes(data: &TensorData, rows: Range<usize>) -> &[u8] {
    let row_len = data.shape[1] * data.dtype.size();
    &data.as_bytes()[rows.start * row_len..rows.end * row_len]
}

fn fill<const N: usize>(bytes: &[u8], values: &mut [f32], read: impl Fn([u8; N]) -> f32) {
    for (value, &bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
        *value = read(bytes);
    }
}

fn gather<const N: usize, T>(bytes: &[u8], read: fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks().0.iter().map(|&bytes| read(bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(data: &TensorData) -> Vec<f32> {
        data.iter::<f32>().collect()
    }

    #[test]
    fn rows_of_sixteen_bits_keep_their_type_alone_and_become_f32_together() {
        let half = |values: [f32; 4]| TensorData::new(values.map(f16::from_f32).to_vec(), [2, 2]);
        let short = |values: [f32; 2]| TensorData::new(values.map(bf16::from_f32).to_vec(), [1, 2]);
        let (a, b) = (half([1.0, 2.0, 3.0, -0.5]), short([7.0, 8.0]));
        let second = slice_rows(&a, 1..2);
        assert_eq!((second.dtype, values(&second)), (DType::F16, vec![3.0, -0.5]));
        let both = join(a.clone(), half([5.0, 6.0, 7.0, 8.0]));
        assert_eq!((both.dtype, both.shape.to_vec()), (DType::F16, vec![4, 2]));
        let mixed = join(a.clone(), b);
        assert_eq!(mixed.dtype, DType::F32);
        assert_eq!(values(&mixed), [1.0, 2.0, 3.0, -0.5, 7.0, 8.0]);
        let mut row = [0.0; 2];
        DenseRows { data: &a, rows: 1..2 }.read_row(0, &mut row);
        assert_eq!(row, [3.0, -0.5]);
    }
}
