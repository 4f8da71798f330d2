use std::{ops::Range, sync::Arc};

use burn_tensor::{DType, TensorData};
use bytemuck::NoUninit;
use engine_quant::{QuantError, Rows, SharedBytes};
use half::{bf16, f16, slice::HalfFloatSliceExt};

use crate::StoredType;

/// A matrix of floats, `[out, in]`, in memory or where its file is mapped.
///
/// ```
/// use engine_core::{DenseMatrix, StoredType};
/// let matrix = DenseMatrix::from_f32(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [3, 2]);
/// assert_eq!(matrix.slice_rows(1..3).to_f32(), [3.0, 4.0, 5.0, 6.0]);
/// assert_eq!(matrix.stored_type(), StoredType::F32);
/// ```
#[derive(Debug, Clone)]
pub struct DenseMatrix {
    stored_type: StoredType,
    shape: [usize; 2],
    /// Row-major, aligned for the type, in this machine's byte order.
    bytes: SharedBytes,
}

impl DenseMatrix {
    /// A matrix of little-endian bytes, row-major; they are copied if they are not aligned for the
    /// type or this machine is big-endian.
    ///
    /// # Panics
    /// If there are more or fewer bytes than the shape has.
    pub fn from_le_bytes(stored_type: StoredType, shape: [usize; 2], bytes: SharedBytes) -> Self {
        let [out, in_] = shape;
        let expected = out * in_ * stored_type.num_bytes();
        assert_eq!(bytes.len(), expected, "bytes of a matrix {shape:?} of {stored_type:?}");
        Self { stored_type, shape, bytes: native(stored_type, bytes) }
    }

    /// A matrix of `f32`, row-major.
    ///
    /// # Panics
    /// If there are more or fewer numbers than the shape has.
    pub fn from_f32(values: Vec<f32>, shape: [usize; 2]) -> Self {
        Self::from_values(StoredType::F32, values, shape)
    }

    /// A matrix of `bf16`, row-major.
    ///
    /// # Panics
    /// If there are more or fewer numbers than the shape has.
    pub fn from_bf16(values: Vec<bf16>, shape: [usize; 2]) -> Self {
        Self::from_values(StoredType::Bf16, values, shape)
    }

    /// The numbers of a tensor, where they are.
    ///
    /// # Errors
    /// If the data has not two dimensions or is not `f32`, `f16` or `bf16`.
    pub fn from_data(data: TensorData) -> Result<Self, QuantError> {
        let stored_type = match data.dtype {
            DType::F32 => StoredType::F32,
            DType::F16 => StoredType::F16,
            DType::BF16 => StoredType::Bf16,
            other => return Err(QuantError::UnsupportedType { found: format!("{other:?}") }),
        };
        let [out, in_] = data.shape[..] else {
            return Err(QuantError::NotAMatrix { found: data.shape.to_vec() });
        };
        let range = 0..data.bytes.len();
        let bytes = SharedBytes::new(Arc::new(data.bytes), range);
        let bytes = match stored_type.num_bytes() {
            size if bytes.is_aligned(size) => bytes,
            4 => SharedBytes::from_elems(gather(&bytes, u32::from_ne_bytes)),
            _ => SharedBytes::from_elems(gather(&bytes, u16::from_ne_bytes)),
        };
        Ok(Self { stored_type, shape: [out, in_], bytes })
    }

    fn from_values<E: NoUninit + Send + Sync>(
        stored_type: StoredType,
        values: Vec<E>,
        shape: [usize; 2],
    ) -> Self {
        assert_eq!(values.len(), shape[0] * shape[1], "numbers of a matrix {shape:?}");
        Self { stored_type, shape, bytes: SharedBytes::from_elems(values) }
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Type of the numbers.
    pub fn stored_type(&self) -> StoredType {
        self.stored_type
    }

    /// Bytes of all numbers.
    pub fn num_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Says that few rows will be read, here and there; see [`SharedBytes::scatter`].
    pub fn scatter(&self) {
        self.bytes.scatter();
    }

    /// All numbers, row-major.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.shape[0] * self.shape[1]];
        self.widen(&self.bytes, &mut values);
        values
    }

    /// Some rows, where they are.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn slice_rows(&self, rows: Range<usize>) -> Self {
        let row_bytes = self.shape[1] * self.stored_type.num_bytes();
        let bytes = self.bytes.slice(rows.start * row_bytes..rows.end * row_bytes);
        Self { shape: [rows.len(), self.shape[1]], bytes, ..*self }
    }

    /// Puts the rows of `below` under these if they have the same type: without a copy if they are
    /// neighbours in a file, or else copied if together they have at most `max_copy` bytes.
    ///
    /// # Errors
    /// Both matrices as they were.
    pub fn stack(self, below: Self, max_copy: usize) -> Result<Self, (Self, Self)> {
        let alike = self.stored_type == below.stored_type && self.shape[1] == below.shape[1];
        let parts = [self.bytes.clone(), below.bytes.clone()];
        match SharedBytes::join(&parts, max_copy).filter(|_| alike) {
            Some(bytes) => {
                Ok(Self { shape: [self.shape[0] + below.shape[0], self.shape[1]], bytes, ..self })
            }
            None => Err((self, below)),
        }
    }

    /// The same numbers for a tensor, where they are.
    pub fn into_data(self) -> TensorData {
        TensorData::from_bytes(self.bytes.into_bytes(), self.shape, self.stored_type.into())
    }

    fn widen(&self, bytes: &[u8], values: &mut [f32]) {
        match self.stored_type {
            StoredType::F32 => values.copy_from_slice(bytemuck::cast_slice(bytes)),
            // Bytes are aligned for their type.
            StoredType::F16 => bytemuck::cast_slice::<_, f16>(bytes).convert_to_f32_slice(values),
            StoredType::Bf16 => bytemuck::cast_slice::<_, bf16>(bytes).convert_to_f32_slice(values),
        }
    }
}

impl Rows for DenseMatrix {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn read_row(&self, row: usize, values: &mut [f32]) {
        let row_bytes = self.shape[1] * self.stored_type.num_bytes();
        self.widen(&self.bytes[row * row_bytes..][..row_bytes], values);
    }
}

impl From<StoredType> for DType {
    fn from(stored_type: StoredType) -> Self {
        match stored_type {
            StoredType::F32 => Self::F32,
            StoredType::F16 => Self::F16,
            StoredType::Bf16 => Self::BF16,
        }
    }
}

/// Little-endian elements as this machine has them: copied if they are not aligned for the type or
/// the machine is big-endian.
pub(crate) fn native(stored_type: StoredType, bytes: SharedBytes) -> SharedBytes {
    match stored_type.num_bytes() {
        size if cfg!(target_endian = "little") && bytes.is_aligned(size) => bytes,
        4 => SharedBytes::from_elems(gather(&bytes, u32::from_le_bytes)),
        _ => SharedBytes::from_elems(gather(&bytes, u16::from_le_bytes)),
    }
}

fn gather<const N: usize, T>(bytes: &[u8], read: fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks().0.iter().map(|&bytes| read(bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_copied_only_if_they_are_not_aligned() {
        let values = [1.0_f32, -2.5, 1e-3, 7.0].map(bf16::from_f32);
        for start in 0..4 {
            let mut bytes = vec![0; start];
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            let bytes = SharedBytes::from(bytes).slice(start..start + 8);
            let aligned = bytes.is_aligned(2);
            let matrix = DenseMatrix::from_le_bytes(StoredType::Bf16, [2, 2], bytes.clone());
            assert_eq!(matrix.bytes.as_ptr() == bytes.as_ptr(), aligned, "{start}");
            assert_eq!(matrix.to_f32(), values.map(bf16::to_f32), "{start}");
            assert_eq!(matrix.into_data().to_vec::<bf16>().unwrap(), values, "{start}");
        }
    }

    #[test]
    fn rows_are_stacked_in_place_or_copied_or_left_alone() {
        let all = DenseMatrix::from_f32((0..12).map(|i| i as f32).collect(), [4, 3]);
        let (a, b) = (all.slice_rows(0..1), all.slice_rows(1..4));
        let both = a.clone().stack(b.clone(), 0).unwrap();
        assert_eq!((both.shape(), both.bytes.as_ptr()), ([4, 3], all.bytes.as_ptr()));
        let (b, a) = b.stack(a, 47).unwrap_err();
        let swapped = b.stack(a.clone(), 48).unwrap();
        assert_eq!(swapped.to_f32()[6..], [9.0, 10.0, 11.0, 0.0, 1.0, 2.0]);
        let other = DenseMatrix::from_bf16(vec![bf16::ONE; 3], [1, 3]);
        assert!(a.stack(other, usize::MAX).is_err());
    }
}
