use burn_tensor::TensorData;
use half::{bf16, f16};

use super::{StoredType, TensorRef};

/// Copies tensors into one, joined along the first dimension; in their type if it is the same,
/// else in f32.
pub(super) fn concat(tensors: &[TensorRef<'_>]) -> TensorData {
    assert!(!tensors.is_empty(), "load_concat: there is at least one tensor");
    let mut shape = tensors[0].shape.to_vec();
    for tensor in &tensors[1..] {
        assert!(
            !shape.is_empty()
                && shape.len() == tensor.shape.len()
                && shape[1..] == tensor.shape[1..],
            "load_concat: {:?} and {:?} differ beyond the first dimension",
            shape,
            tensor.shape
        );
        shape[0] += tensor.shape[0];
    }
    let first = tensors[0].dtype;
    let same = tensors.iter().all(|tensor| tensor.dtype == first);
    match (same, first) {
        (true, StoredType::F16) => TensorData::new(gather(tensors, f16::from_le_bytes), shape),
        (true, StoredType::Bf16) => TensorData::new(gather(tensors, bf16::from_le_bytes), shape),
        (true, StoredType::F32) => TensorData::new(gather(tensors, f32::from_le_bytes), shape),
        (false, _) => {
            let values = tensors.iter().flat_map(widen).collect::<Vec<f32>>();
            TensorData::new(values, shape)
        }
    }
}

fn gather<const N: usize, T>(tensors: &[TensorRef<'_>], read: fn([u8; N]) -> T) -> Vec<T> {
    let len = tensors.iter().map(|tensor| tensor.bytes.len() / N).sum();
    let mut values = Vec::with_capacity(len);
    for tensor in tensors {
        values.extend(tensor.bytes.as_chunks::<N>().0.iter().map(|&bytes| read(bytes)));
    }
    values
}

fn widen(tensor: &TensorRef<'_>) -> Vec<f32> {
    let one = std::slice::from_ref(tensor);
    match tensor.dtype {
        StoredType::F32 => gather(one, f32::from_le_bytes),
        StoredType::F16 => gather(one, |bytes| f16::from_le_bytes(bytes).to_f32()),
        StoredType::Bf16 => gather(one, |bytes| bf16::from_le_bytes(bytes).to_f32()),
    }
}
