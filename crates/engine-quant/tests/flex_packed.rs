//! Packed matrices on the CPU backend: their products have the bits of the dense product with the
//! numbers that the packed matrix stands for, on any number of rows and threads.
#![cfg(feature = "flex")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use burn_flex::{Flex, FlexDevice};
use burn_tensor::{DType, Int, Tensor, TensorData};
use engine_quant::{
    Bits, CodeOrder, Dense, Grid, Group, GroupValues, Int4Range, Levels, Packed, PackedMatrix,
    PackedSpec, SliceRows, WeightMatrix, Zeros, round_to_nearest,
};
use half::f16;
use proptest::prelude::*;

use common::numbers;

const SHAPES: [[usize; 2]; 8] =
    [[1, 1], [3, 7], [64, 172], [131, 64], [9, 200], [40, 256], [7, 2048], [6, 4101]];

fn tensor(values: Vec<f32>, shape: [usize; 2]) -> Tensor<Flex, 2> {
    Tensor::from_data(TensorData::new(values, shape), (&FlexDevice, DType::F32))
}

fn activations(rows: usize, columns: usize) -> Tensor<Flex, 2> {
    tensor(numbers(rows * columns, rows + 7), [rows, columns])
}

fn bits(tensor: Tensor<Flex, 2>) -> Vec<u32> {
    tensor.into_data().to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

fn dense(values: Vec<f32>, shape: [usize; 2]) -> Dense<Flex> {
    Dense::upload(TensorData::new(values, shape), &FlexDevice).unwrap()
}

fn grids() -> Vec<Grid> {
    let groups = [8, 16, 32, 64, 100, 128].map(Group::Columns).into_iter().chain([Group::Row]);
    let ranges = [Int4Range::Sym7, Int4Range::Sym8, Int4Range::Sym15, Int4Range::Asym];
    let int4 = groups.flat_map(|group| ranges.map(|range| Grid::Int4 { group, range }));
    [Grid::Int8, Grid::Int8Tensor, Grid::Nf4].into_iter().chain(int4).collect()
}

fn quantized(shape: [usize; 2], grid: Grid) -> PackedMatrix {
    let values = numbers(shape[0] * shape[1], 99);
    round_to_nearest(&SliceRows { values: &values, columns: shape[1] }, grid).unwrap()
}

/// An eight-bit matrix with everything a format can have: groups of 16 with single-precision
/// scales, zero points and minima, columns in reverse and a factor.
fn with_everything(shape: [usize; 2]) -> PackedMatrix {
    let group_size = 16;
    let (bits, levels) = (Bits::Eight, Levels::Steps);
    let spec = PackedSpec { shape, bits, levels, group_size, per_tensor: false };
    let bytes = |len, seed| numbers(len, seed).iter().map(|x| (x * 127.0 + 128.0) as u8).collect();
    let mut codes = vec![0; shape[0] * spec.row_bytes()];
    for (row, packed) in codes.chunks_exact_mut(spec.row_bytes()).enumerate() {
        let row: Vec<u8> = bytes(shape[1], row + 3);
        bits.pack_row(&row, packed);
    }
    let groups = spec.num_groups();
    PackedMatrix {
        spec,
        format: "everything".into(),
        order: CodeOrder::Rows,
        codes: codes.into(),
        scales: GroupValues::F32(numbers(groups, 4)),
        zeros: Zeros::PerGroup(bytes(groups, 5)),
        mins: Some(GroupValues::F16(numbers(groups, 6).into_iter().map(f16::from_f32).collect())),
        column_order: Some((0..shape[1] as u32).rev().collect()),
        factor: 1.0 / 127.0,
    }
}

#[test]
fn every_grid_has_the_bits_of_the_dense_product() {
    for grid in grids() {
        for shape @ [out, width] in SHAPES {
            let matrix = quantized(shape, grid);
            let values = matrix.dequantize();
            let expected = dense(values.clone(), shape);
            let packed = Packed::<Flex>::upload(matrix, &FlexDevice).unwrap();
            assert_eq!(bits(packed.dequantize()), bits(tensor(values, shape)), "{grid} {shape:?}");
            // Hundreds of rows of every shape would test the dense product alone.
            let many = if out * width < 12_000 { [33, 512] } else { [33, 73] };
            for rows in [1, 2, 7, 8].into_iter().chain(many) {
                let x = activations(rows, width);
                let found = bits(packed.linear(x.clone()));
                assert_eq!(found, bits(expected.linear(x)), "{grid} {shape:?}, {rows} rows");
            }
        }
    }
}

#[test]
fn rows_are_those_of_the_whole() {
    let matrices = SHAPES.iter().flat_map(|&shape| {
        let mut matrices: Vec<_> = grids().into_iter().map(|grid| quantized(shape, grid)).collect();
        matrices.push(with_everything(shape));
        matrices
    });
    for matrix in matrices {
        let [out, width] = matrix.spec.shape;
        let values = matrix.dequantize();
        let case = format!("{} {out}x{width}", matrix.format);
        let packed = Packed::<Flex>::upload(matrix, &FlexDevice).unwrap();
        let ids = [out - 1, 0, out / 2, 0];
        let wanted = ids.iter().flat_map(|&id| values[id * width..][..width].to_vec()).collect();
        let ids = Tensor::<Flex, 1, Int>::from_data(ids.map(|id| id as i32), &FlexDevice);
        assert_eq!(bits(packed.rows(ids)), bits(tensor(wanted, [4, width])), "{case}");
        assert_eq!(bits(packed.dequantize()), bits(tensor(values, [out, width])), "{case}");
    }
}

#[test]
fn orders_and_factors_reach_the_product() {
    for shape @ [out, width] in SHAPES {
        let matrix = with_everything(shape);
        let values = matrix.dequantize();
        let plain = PackedMatrix { column_order: None, factor: 1.0, ..matrix.clone() };
        let exact = dense(plain.dequantize(), shape);
        let plain = Packed::<Flex>::upload(plain, &FlexDevice).unwrap();
        let packed = Packed::<Flex>::upload(matrix, &FlexDevice).unwrap();
        for rows in [1, 2, 7, 33] {
            let x = activations(rows, width);
            assert_eq!(bits(plain.linear(x.clone())), bits(exact.linear(x.clone())));
            let found: Vec<f32> = packed.linear(x.clone()).into_data().to_vec().unwrap();
            let x: Vec<f32> = x.into_data().to_vec().unwrap();
            for (i, &found) in found.iter().enumerate() {
                let (row, column) = (&x[i / out * width..][..width], &values[i % out * width..]);
                let products = row.iter().zip(column).map(|(x, w)| f64::from(*x) * f64::from(*w));
                let (sum, size) = products.fold((0.0, 0.0), |(s, a), p| (s + p, a + p.abs()));
                let error = (f64::from(found) - sum).abs();
                assert!(error <= 1e-6 * size, "{shape:?}, {rows} rows, {i}: {found}, exact {sum}");
            }
        }
    }
}

#[test]
fn what_lies_after_a_row_has_no_part_in_it() {
    for grid in [Grid::Int8, Grid::Nf4, Grid::Int4 { group: Group::Row, range: Int4Range::Sym8 }] {
        for shape @ [_, width] in [[3, 7], [9, 200], [6, 4101]] {
            let packed = Packed::<Flex>::upload(quantized(shape, grid), &FlexDevice).unwrap();
            let row = activations(1, width);
            let infinite = Tensor::full([1, width], f32::INFINITY, &FlexDevice);
            let both = Tensor::cat(vec![row.clone(), infinite], 0);
            let (alone, both) = (bits(packed.linear(row.clone())), bits(packed.linear(both)));
            assert_eq!(alone, both[..shape[0]], "{grid} {shape:?}");
            assert!(alone.iter().all(|&x| f32::from_bits(x).is_finite()));
        }
    }
}

#[test]
fn views_are_read_as_what_they_show_and_no_rows_give_none() {
    let grid = Grid::Int4 { group: Group::Columns(32), range: Int4Range::Asym };
    let packed = Packed::<Flex>::upload(quantized([40, 50], grid), &FlexDevice).unwrap();
    let part = activations(5, 90).slice([1..4, 20..70]);
    let copy = Tensor::from_data(part.to_data(), (&FlexDevice, DType::F32));
    assert_eq!(bits(packed.linear(part)), bits(packed.linear(copy)));
    assert_eq!(packed.linear(Tensor::zeros([0, 50], &FlexDevice)).dims(), [0, 40]);
    let none =
        Tensor::<Flex, 1, Int>::from_data(TensorData::new(Vec::<i32>::new(), [0]), &FlexDevice);
    assert_eq!(packed.rows(none).dims(), [0, 50]);
}

#[test]
#[should_panic(expected = "packed_rows: row 3 of a matrix with 3 rows")]
fn a_row_that_is_not_there_is_named() {
    let packed = Packed::<Flex>::upload(quantized([3, 7], Grid::Int8), &FlexDevice).unwrap();
    packed.rows(Tensor::from_data([3], &FlexDevice));
}

fn in_pool<T: Send>(threads: usize, job: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(job)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Rows in any batch, cut anywhere, on any number of threads: the same bits as alone.
    #[test]
    fn a_row_never_depends_on_its_neighbours(
        rows in 2_usize..80, out in 1_usize..150, width in 1_usize..600,
        grid in 0_usize..31, cut in 1_usize..80, threads in 1_usize..5,
    ) {
        let cut = cut.min(rows - 1);
        let matrix = quantized([out, width], grids()[grid]);
        let packed = Packed::<Flex>::upload(matrix, &FlexDevice).unwrap();
        let x = activations(rows, width);
        let whole = in_pool(threads, || bits(packed.linear(x.clone())));
        let mut parts = bits(packed.linear(x.clone().slice(0..cut)));
        parts.extend(bits(packed.linear(x.clone().slice(cut..rows))));
        prop_assert_eq!(&whole, &parts);
        let last = bits(packed.linear(x.slice(rows - 1..rows)));
        prop_assert_eq!(&whole[(rows - 1) * out..], &last[..]);
    }
}
