use burn_tensor::TensorData;
use half::{bf16, f16};

use super::{StoredType, TensorRef};

/// Copies a tensor in its type.
pub(super) fn copy(tensor: &TensorRef<'_>) -> TensorData {
    let TensorRef { bytes, shape, .. } = *tensor;
    match tensor.dtype {
        StoredType::F32 => TensorData::new(gather(bytes, f32::from_le_bytes), shape),
        StoredType::F16 => TensorData::new(gather(bytes, f16::from_le_bytes), shape),
        StoredType::Bf16 => TensorData::new(gather(bytes, bf16::from_le_bytes), shape),
    }
}

fn gather<const N: usize, T>(bytes: &[u8], read: fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks().0.iter().map(|&bytes| read(bytes)).collect()
}
