//! Packed matrices on the CPU backend with activations rounded to integers: how far products are
//! from those of the matrix, and that neither the batch nor the threads change a bit.
#![cfg(feature = "flex")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use burn_flex::{Flex, FlexDevice};
use burn_tensor::{DType, Int, Tensor, TensorData};
use engine_quant::{
    Activations, Bits, CodeOrder, Grid, Group, GroupValues, Int4Range, Levels, Packed,
    PackedMatrix, PackedSpec, SliceRows, WeightMatrix, Zeros, round_to_nearest,
};
use half::f16;

use common::numbers;

const SHAPES: [[usize; 2]; 8] =
    [[1, 1], [3, 7], [64, 172], [131, 64], [9, 200], [40, 256], [7, 2048], [6, 4101]];

const NARROW: [Activations; 3] = [Activations::Bits24, Activations::Bits16, Activations::Bits8];

/// The largest integer that an activation becomes.
fn largest_integer(activations: Activations) -> f64 {
    match activations {
        Activations::Bits24 => 4_128_768.0,
        Activations::Bits16 => 32512.0,
        _ => 127.0,
    }
}

fn tensor(values: Vec<f32>, shape: [usize; 2]) -> Tensor<Flex, 2> {
    Tensor::from_data(TensorData::new(values, shape), (&FlexDevice, DType::F32))
}

fn values(tensor: Tensor<Flex, 2>) -> Vec<f32> {
    tensor.into_data().to_vec().unwrap()
}

fn bits(tensor: Tensor<Flex, 2>) -> Vec<u32> {
    values(tensor).into_iter().map(f32::to_bits).collect()
}

fn grids() -> Vec<Grid> {
    let groups =
        [8, 16, 30, 32, 64, 100, 128, 300].map(Group::Columns).into_iter().chain([Group::Row]);
    let int4 = groups.flat_map(|group| {
        [Int4Range::Sym8, Int4Range::Asym].map(|range| Grid::Int4 { group, range })
    });
    [Grid::Int8, Grid::Int8Tensor].into_iter().chain(int4).collect()
}

fn quantized(shape: [usize; 2], grid: Grid) -> PackedMatrix {
    let values = numbers(shape[0] * shape[1], 99);
    round_to_nearest(&SliceRows { values: &values, columns: shape[1] }, grid).unwrap()
}

fn upload(matrix: PackedMatrix, activations: Activations) -> Packed<Flex> {
    let packed = Packed::upload_for(activations, matrix, &FlexDevice).unwrap();
    assert_eq!(packed.activations(), activations);
    packed
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

/// Checks `y = x · Wᵀ` against the exact product of the dequantized matrix: each activation may be
/// off by half a unit of its segment, each of a few operations for a segment by a rounding.
fn check_error(matrix: &PackedMatrix, x: &[f32], y: &[f32], activations: Activations, case: &str) {
    let [out, width] = matrix.spec.shape;
    let weights = matrix.dequantize();
    let group = if matrix.spec.per_tensor { width } else { matrix.spec.group_size.min(width) };
    let largest_integer = largest_integer(activations);
    // Segments are within groups, so half a unit of a group is an upper bound.
    let half_unit = |x: &[f32], column: usize| {
        let packed = |k: usize| match &matrix.column_order {
            Some(order) => order[k] as usize,
            None => k,
        };
        let k = (0..width).find(|&k| packed(k) == column).unwrap();
        let group = k / group * group..width.min((k / group + 1) * group);
        let largest = group.map(|k| x[packed(k)].abs()).fold(0.0, f32::max);
        f64::from(largest) / largest_integer / 2.0
    };
    for (x, y) in x.chunks_exact(width).zip(y.chunks_exact(out)) {
        let off: Vec<f64> = (0..width).map(|column| half_unit(x, column)).collect();
        for (row, &y) in y.iter().enumerate() {
            let (mut exact, mut size, mut bound) = (0.0, 0.0, 0.0);
            for (k, off) in off.iter().enumerate() {
                let (x, weight) = (f64::from(x[k]), f64::from(weights[row * width + k]));
                exact += x * weight;
                size += (x * weight).abs();
                bound += off * weight.abs();
            }
            let error = (f64::from(y) - exact).abs();
            assert!(
                error <= 1.001 * bound + 1e-5 * size,
                "{case}: {y} for {exact}, off by {error}, bound {bound}"
            );
        }
    }
}

#[test]
fn products_are_within_half_a_unit_of_each_activation() {
    for shape @ [_, width] in SHAPES {
        for grid in grids() {
            let matrix = quantized(shape, grid);
            for activations in NARROW {
                let packed = upload(matrix.clone(), activations);
                for rows in [1, 7] {
                    let x = numbers(rows * width, rows + 7);
                    let y = values(packed.linear(tensor(x.clone(), [rows, width])));
                    let case = format!("{grid} {shape:?} {activations}");
                    check_error(&matrix, &x, &y, activations, &case);
                }
            }
        }
    }
}

#[test]
fn neither_the_batch_nor_the_threads_change_a_bit() {
    let pools = [1, 2, 3, 8]
        .map(|threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap());
    for grid in grids() {
        for (shape @ [out, width], many) in [([64, 172], 512), ([131, 64], 100), ([40, 2100], 33)] {
            let matrix = quantized(shape, grid);
            for activations in NARROW {
                let packed = upload(matrix.clone(), activations);
                let x = numbers(many * width, 3);
                let alone: Vec<u32> = x
                    .chunks_exact(width)
                    .flat_map(|x| bits(packed.linear(tensor(x.to_vec(), [1, width]))))
                    .collect();
                for rows in [1, 2, 7, 8, 33, many] {
                    for pool in &pools {
                        let x = tensor(x[..rows * width].to_vec(), [rows, width]);
                        let found = pool.install(|| bits(packed.linear(x)));
                        let threads = pool.current_num_threads();
                        assert!(
                            found == alone[..rows * out],
                            "{grid} {shape:?} {activations}, {rows} rows on {threads} threads"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn rows_are_those_of_the_whole() {
    for shape @ [out, width] in SHAPES {
        let mut matrices: Vec<_> = grids().into_iter().map(|grid| quantized(shape, grid)).collect();
        matrices.push(with_everything(shape));
        for matrix in matrices {
            let values = matrix.dequantize();
            let case = format!("{} {out}x{width}", matrix.format);
            let packed = upload(matrix, Activations::Bits16);
            let ids = [out - 1, 0, out / 2, 0];
            let wanted =
                ids.iter().flat_map(|&id| values[id * width..][..width].to_vec()).collect();
            let ids = Tensor::<Flex, 1, Int>::from_data(ids.map(|id| id as i32), &FlexDevice);
            assert_eq!(bits(packed.rows(ids)), bits(tensor(wanted, [4, width])), "{case}");
            assert_eq!(bits(packed.dequantize()), bits(tensor(values, [out, width])), "{case}");
        }
    }
}

#[test]
fn orders_and_factors_reach_the_product() {
    for shape @ [_, width] in SHAPES {
        let matrix = with_everything(shape);
        for activations in NARROW {
            let packed = upload(matrix.clone(), activations);
            for rows in [1, 7] {
                let x = numbers(rows * width, rows);
                let y = values(packed.linear(tensor(x.clone(), [rows, width])));
                check_error(&matrix, &x, &y, activations, &format!("{shape:?} {activations}"));
            }
        }
    }
}

#[test]
fn tables_of_levels_keep_their_floats() {
    let matrix = quantized([9, 200], Grid::Nf4);
    let x = tensor(numbers(200, 1), [1, 200]);
    let plain = Packed::<Flex>::upload(matrix.clone(), &FlexDevice).unwrap();
    let packed = Packed::<Flex>::upload_for(Activations::Bits16, matrix, &FlexDevice).unwrap();
    assert_eq!(packed.activations(), Activations::F32);
    assert_eq!(bits(packed.linear(x.clone())), bits(plain.linear(x)));
}

#[test]
fn whole_numbers_are_exact() {
    // Up to 127 in eight bits and 32512 in sixteen, the largest among them: units are powers of two
    // times the largest integer, so nothing is rounded.
    let shape @ [out, width] = [20, 96];
    for activations in [Activations::Bits8, Activations::Bits16] {
        let largest = largest_integer(activations) as i32;
        let mut matrix = quantized(shape, Grid::Int8);
        matrix.scales = GroupValues::F32(vec![0.25; out]);
        let packed = upload(matrix.clone(), activations);
        let mut x: Vec<f32> =
            (0..width).map(|k| ((k as i32 * 7919) % (2 * largest) - largest) as f32).collect();
        x[5] = -largest as f32;
        let weights = matrix.dequantize();
        let exact: Vec<f32> = weights
            .chunks_exact(width)
            .map(|row| row.iter().zip(&x).map(|(w, x)| f64::from(w * x)).sum::<f64>() as f32)
            .collect();
        assert_eq!(values(packed.linear(tensor(x, [1, width]))), exact, "{activations}");
    }
}

#[test]
fn extreme_activations_do_no_harm() {
    let shape @ [out, width] = [33, 300];
    for grid in [Grid::Int8, Grid::Int4 { group: Group::Columns(32), range: Int4Range::Asym }] {
        for activations in NARROW {
            let matrix = quantized(shape, grid);
            let packed = upload(matrix.clone(), activations);
            let product = |x: Vec<f32>| values(packed.linear(tensor(x, [1, width])));
            assert_eq!(product(vec![0.0; width]), vec![0.0; out]);
            assert_eq!(product(vec![-0.0; width]), vec![0.0; out]);
            assert_eq!(product(vec![1e-40; width]), vec![0.0; out], "below the smallest unit");
            for scale in [1e-25, 1.0, 1e25] {
                let x: Vec<f32> = numbers(width, 2).iter().map(|x| x * scale).collect();
                let y = product(x.clone());
                check_error(&matrix, &x, &y, activations, &format!("{grid} {activations} {scale}"));
            }
            assert!(product(vec![7.0; width]).iter().all(|y| y.is_finite()));
            for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
                let mut x = numbers(2 * width, 4);
                x[width + 17] = bad;
                let y = values(packed.linear(tensor(x.clone(), [2, width])));
                assert!(y[out..].iter().all(|y| y.is_nan()), "{bad} reaches all results");
                assert_eq!(y[..out], product(x[..width].to_vec()), "but of its own row alone");
            }
        }
    }
}
