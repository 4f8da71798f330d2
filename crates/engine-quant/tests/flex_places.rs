//! Where a matrix lies changes no bit of a product on the CPU backend: in one piece or in several
//! below one another, with codes in either order, at the start of a cache line or not.
#![cfg(feature = "flex")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use burn_flex::{Flex, FlexDevice};
use burn_tensor::{DType, Int, Tensor, TensorData};
use engine_quant::{
    Activations, CodeOrder, Dense, Grid, Packed, PackedMatrix, SharedBytes, SliceRows, Stacked,
    WeightMatrix, round_to_nearest,
};
use half::{bf16, f16};

use common::numbers;

const WIDTH: usize = 300;
/// The rows of the parts: queries, keys and values, and odd ones.
const PARTS: [&[usize]; 3] = [&[64, 16, 16], &[7, 1, 40], &[33, 33]];

type Matrix = Box<dyn WeightMatrix<Flex>>;

fn bits(tensor: Tensor<Flex, 2>) -> Vec<u32> {
    tensor.into_data().iter::<f32>().map(f32::to_bits).collect()
}

/// Everything that a matrix can be asked, as bits.
fn answers(matrix: &dyn WeightMatrix<Flex>) -> Vec<Vec<u32>> {
    let products = [1, 2, 5, 13, 40].map(|rows| {
        let x = TensorData::new(numbers(rows * WIDTH, rows), [rows, WIDTH]);
        bits(matrix.linear(Tensor::from_data(x, (&FlexDevice, DType::F32))))
    });
    let out = matrix.shape()[0] as i32;
    let ids = Tensor::<Flex, 1, Int>::from_data([out - 1, 0, out / 2], (&FlexDevice, DType::I32));
    let all = [bits(matrix.rows(ids)), bits(matrix.dequantize())];
    products.into_iter().chain(all).collect()
}

/// The matrix of some rows of numbers, and where the file would have them.
fn slices(parts: &[usize]) -> Vec<(usize, usize)> {
    let starts = parts.iter().scan(0, |end, rows| {
        *end += rows;
        Some((*end - rows, *rows))
    });
    starts.collect()
}

fn check_parts(make: impl Fn(usize, usize) -> Matrix, case: &str) {
    for parts in PARTS {
        let whole = make(0, parts.iter().sum());
        let parts = slices(parts).into_iter().map(|(start, rows)| make(start, rows)).collect();
        let stacked = Stacked::new(parts).unwrap();
        assert_eq!(whole.shape(), stacked.shape());
        assert_eq!(whole.activations(), stacked.activations());
        assert_eq!(whole.format(), stacked.format(), "parts of one format are one format");
        assert_eq!(answers(whole.as_ref()), answers(&stacked), "{case}");
    }
}

const ACTIVATIONS: [Activations; 4] =
    [Activations::F32, Activations::Bits24, Activations::Bits16, Activations::Bits8];

#[test]
fn floats_in_parts_multiply_as_one() {
    let values = numbers(100 * WIDTH, 9);
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for activations in [Activations::F32, Activations::Bits16] {
            let make = |start: usize, rows: usize| {
                let values = values[start * WIDTH..(start + rows) * WIDTH].iter().copied();
                let shape = [rows, WIDTH];
                let data = match dtype {
                    DType::F16 => TensorData::new(values.map(f16::from_f32).collect(), shape),
                    DType::BF16 => TensorData::new(values.map(bf16::from_f32).collect(), shape),
                    _ => TensorData::new(values.collect::<Vec<_>>(), shape),
                };
                Box::new(Dense::upload_for(activations, data, &FlexDevice).unwrap()) as Matrix
            };
            check_parts(make, &format!("{dtype:?} {activations}"));
        }
    }
}

fn quantized(start: usize, rows: usize, grid: Grid) -> PackedMatrix {
    let values = &numbers(100 * WIDTH, 9)[start * WIDTH..(start + rows) * WIDTH];
    round_to_nearest(&SliceRows { values, columns: WIDTH }, grid).unwrap()
}

fn grids() -> [Grid; 4] {
    ["int8", "int4:group=32:asym", "int4:group=128", "nf4"].map(|name| {
        let scheme: engine_quant::Scheme = name.parse().unwrap();
        scheme.grid().unwrap()
    })
}

#[test]
fn codes_in_parts_multiply_as_one() {
    for grid in grids() {
        for activations in ACTIVATIONS {
            let make = |start, rows| {
                let matrix = quantized(start, rows, grid);
                Box::new(Packed::upload_for(activations, matrix, &FlexDevice).unwrap()) as Matrix
            };
            check_parts(make, &format!("{grid} {activations}"));
        }
    }
}

#[test]
fn neither_the_order_of_codes_nor_their_place_changes_a_bit() {
    for grid in grids() {
        for activations in ACTIVATIONS {
            let upload = |matrix: PackedMatrix| {
                Packed::<Flex>::upload_for(activations, matrix, &FlexDevice).unwrap()
            };
            let matrix = quantized(0, 37, grid);
            let expected = answers(&upload(matrix.clone()));
            for order in [CodeOrder::Rows, CodeOrder::Blocks] {
                let matrix = matrix.clone().into_order(order);
                for start in [0, 1, 7, 32, 64] {
                    let mut bytes = vec![0xAA; start];
                    bytes.extend_from_slice(&matrix.codes);
                    bytes.extend([0xAA; 9]);
                    let codes = SharedBytes::from(bytes).slice(start..start + matrix.codes.len());
                    let moved = upload(PackedMatrix { codes, ..matrix.clone() });
                    assert_eq!(answers(&moved), expected, "{grid} {activations} {order:?} {start}");
                }
            }
        }
    }
}
