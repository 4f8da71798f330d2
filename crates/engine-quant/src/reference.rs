//! The composed reference of packed products: plain Burn operations, for any backend.

use burn_tensor::{DType, ElementConversion, Int, Tensor, TensorData};

use crate::{Activations, Bits, CHUNK, Levels, PackedMatrix, PackedTensors, QuantOps, Zeros};

/// Uploads codes as `i32` words of four bytes, the lowest first, and everything else as it is.
pub(crate) fn upload<B: QuantOps>(matrix: &PackedMatrix, device: &B::Device) -> PackedTensors<B> {
    let floats = |values: Vec<f32>| {
        let len = values.len();
        Tensor::from_data(TensorData::new(values, [len]), (device, DType::F32))
    };
    let ints = |values: Vec<i32>| {
        let len = values.len();
        Tensor::from_data(TensorData::new(values, [len]), (device, DType::I32))
    };
    let words = matrix.codes.as_chunks::<4>().0.iter().map(|&word| i32::from_le_bytes(word));
    let (fixed_zero, zeros) = match &matrix.zeros {
        Zeros::Fixed(zero) => (*zero, None),
        Zeros::PerGroup(zeros) => (0, Some(ints(zeros.iter().map(|&z| i32::from(z)).collect()))),
    };
    PackedTensors {
        activations: Activations::F32,
        spec: matrix.spec,
        codes: ints(words.collect()),
        scales: floats(matrix.scales.to_f32()),
        fixed_zero,
        zeros,
        mins: matrix.mins.as_ref().map(|mins| floats(mins.to_f32())),
    }
}

/// `(level − zero) · scale + min` of every column, `[out, in]`.
pub(crate) fn to_f32<B: QuantOps>(weight: &PackedTensors<B>) -> Tensor<B, 2> {
    let spec = weight.spec;
    let [out, in_] = spec.shape;
    let codes = unpack(weight);
    let levels = match spec.levels {
        Levels::Steps => codes.float().cast(DType::F32),
        Levels::Table(levels) => {
            let options = (&codes.device(), DType::F32);
            let levels = Tensor::<B, 1>::from_data(TensorData::from(levels), options);
            levels.select(0, codes.reshape([out * in_])).reshape([out, in_])
        }
    };
    let device = levels.device();
    let groups: Vec<i32> = (0..in_).map(|column| spec.group_of(0, column) as i32).collect();
    let groups =
        Tensor::<B, 1, Int>::from_data(TensorData::new(groups, [in_]), (&device, DType::I32));
    let spread = |values: Tensor<B, 1>| {
        let rows = if spec.per_tensor { 1 } else { out };
        let values = values.cast(DType::F32).reshape([rows, spec.groups()]);
        values.select(1, groups.clone()).expand([out, in_])
    };
    let centred = match &weight.zeros {
        Some(zeros) => levels - spread(zeros.clone().float()),
        None => levels - f32::from(weight.fixed_zero),
    };
    let scaled = centred * spread(weight.scales.clone());
    match &weight.mins {
        Some(mins) => scaled + spread(mins.clone()),
        None => scaled,
    }
}

/// One code in each element, `[out, in]`.
fn unpack<B: QuantOps>(weight: &PackedTensors<B>) -> Tensor<B, 2, Int> {
    let spec = weight.spec;
    let [out, in_] = spec.shape;
    let words = spec.row_bytes() / 4;
    let codes = weight.codes.clone().reshape([out, words, 1]);
    let byte = |i: i32| {
        codes.clone().bitwise_right_shift_scalar((8 * i).elem()).bitwise_and_scalar(255.elem())
    };
    let bytes = Tensor::cat((0..4).map(byte).collect(), 2).reshape([out, words * 4]);
    let codes = match spec.bits {
        Bits::Eight => bytes,
        Bits::Four => {
            let chunks = in_.div_ceil(CHUNK);
            let bytes = bytes.reshape([out, chunks, 16]);
            let low = bytes.clone().bitwise_and_scalar(15.elem());
            let high = bytes.bitwise_right_shift_scalar(4.elem());
            Tensor::cat(vec![low, high], 2).reshape([out, chunks * CHUNK])
        }
    };
    codes.slice([0..out, 0..in_])
}
