//! The CubeCL products of dense matrices against sums in `f64` on the host, and against the
//! composed reference.
#![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]

#[path = "../../engine-core/tests/wgpu_device/mod.rs"]
mod wgpu_device;

use burn_tensor::{DType, Int, Tensor, TensorData};
use engine_quant::{Dense, WeightMatrix};
use half::{bf16, f16};
use wgpu_device::{Gpu, wgpu_device};

/// Reproducible numbers in [-1, 1).
fn numbers(seed: u32, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    (0..len).map(|_| (next() >> 8) as f32 / 8_388_608.0 - 1.0).collect()
}

/// `values` in the stored type.
fn stored(values: &[f32], shape: [usize; 2], dtype: DType) -> TensorData {
    TensorData::new(values.to_vec(), shape).convert_dtype(dtype)
}

/// The stored values as `f32`.
fn widened(data: &TensorData) -> Vec<f32> {
    data.clone().convert_dtype(DType::F32).to_vec().unwrap()
}

#[test]
fn linear_equals_the_exact_sums() {
    let Some(device) = wgpu_device("linear_equals_the_exact_sums") else { return };
    let shapes = [(131, 64), (7, 65), (64, 172), (33, 6), (1, 1), (9, 256), (70, 520), (3, 10)];
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for (outputs, inputs) in shapes {
            let data = stored(&numbers(7, outputs * inputs), [outputs, inputs], dtype);
            let w = widened(&data);
            let matrix = Dense::<Gpu>::upload(data, &device).unwrap();
            for rows in [1, 2, 3, 7, 8, 9, 17, 33, 70] {
                let x = numbers(rows as u32, rows * inputs);
                let input = TensorData::new(x.clone(), [rows, inputs]);
                let found = matrix.linear(Tensor::from_data(input, &device)).into_data();
                assert_eq!(found.shape.to_vec(), [rows, outputs]);
                for (at, found) in found.to_vec::<f32>().unwrap().into_iter().enumerate() {
                    let (row, out) = (at / outputs, at % outputs);
                    let product =
                        |k| f64::from(x[row * inputs + k]) * f64::from(w[out * inputs + k]);
                    let expected: f64 = (0..inputs).map(product).sum();
                    let scale: f64 = (0..inputs).map(|k| product(k).abs()).sum();
                    assert!(
                        (f64::from(found) - expected).abs() <= 1e-6 * scale,
                        "{dtype:?} [{outputs}, {inputs}], {rows} rows, ({row}, {out}): \
                         found {found}, expected {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_row_is_the_same_bits_in_any_small_batch() {
    let Some(device) = wgpu_device("a_row_is_the_same_bits_in_any_small_batch") else { return };
    for (outputs, inputs) in [(33, 520), (33, 65)] {
        let data = stored(&numbers(3, outputs * inputs), [outputs, inputs], DType::BF16);
        let matrix = Dense::<Gpu>::upload(data, &device).unwrap();
        let x = Tensor::from_data(TensorData::new(numbers(4, 8 * inputs), [8, inputs]), &device);
        let first = |rows: usize| -> Vec<f32> {
            let y = matrix.linear(x.clone().slice([0..rows]));
            y.slice([0..1]).into_data().to_vec().unwrap()
        };
        for rows in 2..=8 {
            assert_eq!(first(1), first(rows), "{rows} rows of [{outputs}, {inputs}]");
        }
    }
}

#[test]
fn every_16_bit_pattern_is_widened_exactly() {
    let Some(device) = wgpu_device("every_16_bit_pattern_is_widened_exactly") else { return };
    let patterns: Vec<u16> = (0..=u16::MAX).collect();
    // bf16 subnormals are subnormal in f32 too, and GPUs may flush those to zero.
    let halves: Vec<f16> = patterns.iter().map(|&bits| f16::from_bits(bits)).collect();
    let brains: Vec<bf16> = patterns.iter().map(|&bits| bf16::from_bits(bits)).collect();
    let shape = [256, 256];
    for (data, flushes) in
        [(TensorData::new(halves, shape), false), (TensorData::new(brains, shape), true)]
    {
        let expected = widened(&data);
        let matrix = Dense::<Gpu>::upload(data, &device).unwrap();
        let found: Vec<f32> = matrix.dequantize().into_data().to_vec().unwrap();
        for (bits, (expected, found)) in expected.into_iter().zip(found).enumerate() {
            let flushed = flushes && expected.is_subnormal() && found == 0.0;
            let equal =
                found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan());
            assert!(
                equal || flushed,
                "{} {bits:#06x}: found {found}, expected {expected}",
                matrix.format()
            );
        }
    }
}

#[test]
fn rows_are_the_stored_rows() {
    let Some(device) = wgpu_device("rows_are_the_stored_rows") else { return };
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for (vocab, hidden) in [(131, 65), (131, 64), (5, 1)] {
            let data = stored(&numbers(5, vocab * hidden), [vocab, hidden], dtype);
            let w = widened(&data);
            let matrix = Dense::<Gpu>::upload(data, &device).unwrap();
            assert_eq!(matrix.num_bytes(), vocab * hidden * dtype.size());
            let ids = [vocab as i32 - 1, 0, 3, 3, 1];
            let found = matrix.rows(Tensor::<Gpu, 1, Int>::from_data(ids, &device)).into_data();
            let expected: Vec<f32> = ids
                .iter()
                .flat_map(|&id| w[id as usize * hidden..][..hidden].iter().copied())
                .collect();
            assert_eq!(found.to_vec::<f32>().unwrap(), expected, "{dtype:?} [{vocab}, {hidden}]");
        }
    }
}

#[test]
fn views_are_read_in_their_own_order() {
    let Some(device) = wgpu_device("views_are_read_in_their_own_order") else { return };
    let data = stored(&numbers(8, 12 * 10), [12, 10], DType::F16);
    let matrix = Dense::<Gpu>::upload(data, &device).unwrap();
    let x = Tensor::<Gpu, 2>::from_data(TensorData::new(numbers(9, 10 * 4), [10, 4]), &device);
    let expected = matrix.dequantize().matmul(x.clone());
    let found = matrix.linear(x.transpose()).transpose();
    let difference = (found - expected).abs().max().into_scalar();
    assert!(difference < 1e-5, "differs by {difference}");
}

#[test]
fn empty_inputs_give_empty_outputs() {
    let Some(device) = wgpu_device("empty_inputs_give_empty_outputs") else { return };
    let data = stored(&numbers(8, 12 * 10), [12, 10], DType::BF16);
    let matrix = Dense::<Gpu>::upload(data, &device).unwrap();
    let x = Tensor::<Gpu, 2>::empty([0, 10], &device);
    assert_eq!(matrix.linear(x).dims(), [0, 12]);
}
