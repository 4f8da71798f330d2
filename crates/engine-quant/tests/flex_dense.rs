//! Dense products on the CPU backend against their composed references, and which bits stay the
//! same whatever runs beside a row.
#![cfg(feature = "flex")]
#![allow(clippy::unwrap_used)]

mod common;

use burn_flex::{Flex, FlexDevice};
use burn_tensor::{DType, Int, Tensor, TensorData};
use engine_quant::{Activations, QuantOps};
use proptest::prelude::*;

use common::numbers;

const TYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

fn matrix(rows: usize, columns: usize, seed: usize) -> Tensor<Flex, 2> {
    let data = TensorData::new(numbers(rows * columns, seed), [rows, columns]);
    Tensor::from_data(data, (&FlexDevice, DType::F32))
}

fn stored(rows: usize, columns: usize, dtype: DType) -> Tensor<Flex, 2> {
    let data = TensorData::new(numbers(rows * columns, 99), [rows, columns]);
    Flex::dense_upload(data.convert_dtype(dtype), &FlexDevice)
}

fn values(tensor: Tensor<Flex, 2>) -> Vec<f32> {
    tensor.into_data().to_vec().unwrap()
}

fn bits(tensor: Tensor<Flex, 2>) -> Vec<u32> {
    values(tensor).into_iter().map(f32::to_bits).collect()
}

#[test]
fn the_product_equals_the_composed_one() {
    for rows in [1, 2, 7, 8, 33, 300] {
        for (out, width) in [(1, 1), (131, 7), (64, 65), (172, 64), (65, 172), (33, 2100)] {
            for dtype in TYPES {
                let x = matrix(rows, width, rows);
                let weight = stored(out, width, dtype);
                let wide = weight.clone().cast(DType::F32);
                let expected = values(x.clone().matmul(wide.transpose()));
                let found = values(Flex::dense_linear(x, &weight, Activations::F32));
                let tolerance = 2e-6 * (width as f32).sqrt();
                for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    assert!(
                        (found - expected).abs() <= tolerance,
                        "{dtype:?} {rows}x{out}x{width} at {i}: {found}, composed {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn an_upload_keeps_the_type_and_the_bytes() {
    for dtype in TYPES {
        let data = TensorData::new(numbers(7 * 5, 3), [7, 5]).convert_dtype(dtype);
        let tensor = Flex::dense_upload(data.clone(), &FlexDevice);
        assert_eq!(tensor.dtype(), dtype);
        assert_eq!(tensor.into_data().bytes[..], data.bytes[..]);
    }
}

#[test]
fn rows_and_the_whole_are_widened_exactly() {
    for dtype in TYPES {
        for (out, width) in [(1, 1), (131, 64), (9, 65), (300, 1000)] {
            let weight = stored(out, width, dtype);
            let expected = values(weight.clone().cast(DType::F32));
            assert_eq!(values(Flex::dense_to_f32(&weight)), expected, "{dtype:?}");
            let ids = [out as i32 - 1, 0, out as i32 / 2, 0];
            let wanted: Vec<f32> = ids
                .iter()
                .flat_map(|&id| expected[id as usize * width..][..width].to_vec())
                .collect();
            let ids = Tensor::<Flex, 1, Int>::from_data(ids, &FlexDevice);
            assert_eq!(values(Flex::dense_rows(&weight, ids)), wanted, "{dtype:?}");
        }
    }
}

#[test]
fn views_are_read_as_what_they_show() {
    for dtype in TYPES {
        let weight = stored(40, 30, dtype);
        let part = matrix(5, 90, 1).slice([1..4, 20..60]);
        let copy = Tensor::from_data(part.to_data(), (&FlexDevice, DType::F32));
        let turned = weight.clone().transpose();
        let turned_copy = Flex::dense_upload(turned.to_data(), &FlexDevice);
        assert_eq!(
            bits(Flex::dense_linear(part, &turned, Activations::F32)),
            bits(Flex::dense_linear(copy, &turned_copy, Activations::F32))
        );
        // A slice of rows is a view with an offset.
        let rows = weight.slice(3..9);
        let rows_copy = Flex::dense_upload(rows.to_data(), &FlexDevice);
        let x = matrix(2, 30, 2);
        assert_eq!(
            bits(Flex::dense_linear(x.clone(), &rows, Activations::F32)),
            bits(Flex::dense_linear(x, &rows_copy, Activations::F32))
        );
    }
}

#[test]
fn no_rows_give_an_empty_result() {
    let weight = stored(3, 4, DType::BF16);
    let none = Flex::dense_linear(Tensor::zeros([0, 4], &FlexDevice), &weight, Activations::F32);
    assert_eq!(none.dims(), [0, 3]);
    let ids = TensorData::new(Vec::<i32>::new(), [0]);
    let ids = Tensor::<Flex, 1, Int>::from_data(ids, &FlexDevice);
    assert_eq!(Flex::dense_rows(&weight, ids).dims(), [0, 4]);
}

#[test]
#[should_panic(expected = "dense_rows: row 3 of a matrix with 3 rows")]
fn a_row_that_is_not_there_is_named() {
    let ids = Tensor::<Flex, 1, Int>::from_data([3], &FlexDevice);
    Flex::dense_rows(&stored(3, 4, DType::F16), ids);
}

fn in_pool<T: Send>(threads: usize, job: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(job)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Rows in any batch, cut anywhere, on any number of threads: the same bits as alone.
    #[test]
    fn a_row_never_depends_on_its_neighbours(
        rows in 2_usize..70, out in 1_usize..150, width in 1_usize..600,
        dtype in 0_usize..3, cut in 1_usize..70, threads in 1_usize..5,
    ) {
        let cut = cut.min(rows - 1);
        let weight = stored(out, width, TYPES[dtype]);
        let x = matrix(rows, width, rows * out);
        let (whole_x, whole_weight) = (x.clone(), weight.clone());
        let whole = in_pool(threads, move || bits(Flex::dense_linear(whole_x, &whole_weight, Activations::F32)));
        let mut parts = bits(Flex::dense_linear(x.clone().slice(0..cut), &weight, Activations::F32));
        parts.extend(bits(Flex::dense_linear(x.clone().slice(cut..rows), &weight, Activations::F32)));
        prop_assert_eq!(&whole, &parts);
        let last = bits(Flex::dense_linear(x.slice(rows - 1..rows), &weight, Activations::F32));
        prop_assert_eq!(&whole[(rows - 1) * out..], &last[..]);
    }
}

/// The product of activations rounded to `bf16`, in `f64`, and the sum of the magnitudes.
fn exact(x: &[f32], weight: &[f32], width: usize) -> (f64, f64) {
    let rounded = x.iter().map(|&x| f64::from(half::bf16::from_f32(x)));
    let products = rounded.zip(weight).take(width).map(|(x, &w)| x * f64::from(w));
    products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()))
}

#[test]
fn rounded_activations_are_for_bf16_weights_alone_and_say_so() {
    for dtype in TYPES {
        let weight = stored(5, 33, dtype);
        for wanted in Activations::ALL {
            let chosen = Flex::dense_activations(&weight, wanted);
            if dtype != DType::BF16 || wanted == Activations::F32 {
                assert_eq!(chosen, Activations::F32, "{dtype:?} {wanted}");
            } else {
                assert_ne!(chosen, Activations::Bits8, "there are no products of 8 bits with bf16");
            }
        }
    }
}

#[test]
fn rounded_activations_give_the_product_of_the_rounded_numbers() {
    for rows in [1, 2, 7, 33] {
        for (out, width) in [(1, 1), (1, 65), (131, 7), (65, 172), (33, 2100)] {
            let weight = stored(out, width, DType::BF16);
            if Flex::dense_activations(&weight, Activations::Bits16) != Activations::Bits16 {
                return;
            }
            let x = matrix(rows, width, rows);
            let (wide, numbers) = (values(weight.clone().cast(DType::F32)), values(x.clone()));
            let found = values(Flex::dense_linear(x, &weight, Activations::Bits16));
            for (i, found) in found.iter().enumerate() {
                let (row, column) = (i / out * width, i % out * width);
                let (exact, size) = exact(&numbers[row..], &wide[column..], width);
                assert!(
                    (f64::from(*found) - exact).abs() <= 1e-6 * size,
                    "{rows}x{out}x{width} at {i}: {found}, exact {exact}"
                );
            }
        }
    }
}
