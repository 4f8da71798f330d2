//! The CubeCL kernels of packed matrices against the host's definition of their numbers and sums
//! in `f64`.
#![allow(clippy::unwrap_used, clippy::single_range_in_vec_init, reason = "tests")]

#[path = "../../engine-core/tests/wgpu_device/mod.rs"]
mod wgpu_device;

use burn_tensor::{Int, Tensor, TensorData};
use engine_quant::{
    Bits, CodeOrder, Grid, Group, GroupValues, Int4Range, Levels, NF4_LEVELS, Packed, PackedMatrix,
    PackedSpec, SliceRows, WeightMatrix, Zeros, round_to_nearest,
};
use half::f16;
use wgpu_device::{Gpu, wgpu_device};

const SHAPES: [[usize; 2]; 7] =
    [[1, 1], [3, 7], [64, 172], [33, 64], [9, 200], [40, 256], [5, 2080]];

/// Reproducible numbers in [-1, 1).
fn numbers(seed: u32, len: usize) -> Vec<f32> {
    bits(seed, len).into_iter().map(|bits| (bits >> 8) as f32 / 8_388_608.0 - 1.0).collect()
}

fn bits(seed: u32, len: usize) -> Vec<u32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    (0..len).map(|_| next()).collect()
}

fn rounded(shape: [usize; 2], grid: Grid) -> PackedMatrix {
    let values = numbers(7, shape[0] * shape[1]);
    round_to_nearest(&SliceRows { values: &values, columns: shape[1] }, grid).unwrap()
}

/// Which numbers a hand-built matrix has.
#[derive(Debug, Clone, Copy)]
struct Parts {
    bits: Bits,
    group_size: usize,
    zeros: bool,
    /// Whether there are minima, and whether scales and minima are single precision.
    mins: bool,
    single: bool,
}

/// Random codes, scales, zero points and minima: codes that no grid would choose are there too.
fn built(shape: [usize; 2], parts: Parts) -> PackedMatrix {
    let [out, in_] = shape;
    let spec = PackedSpec {
        shape,
        bits: parts.bits,
        levels: Levels::Steps,
        group_size: parts.group_size,
        per_tensor: false,
    };
    let mut codes = vec![0; out * spec.row_bytes()];
    for (row, packed) in codes.chunks_exact_mut(spec.row_bytes()).enumerate() {
        let row: Vec<u8> = bits(row as u32 + 1, in_).iter().map(|&b| (b >> 16) as u8).collect();
        parts.bits.pack_row(&row, packed);
    }
    let values = |seed| {
        let values = numbers(seed, spec.num_groups());
        match parts.single {
            true => GroupValues::F32(values),
            false => GroupValues::F16(values.into_iter().map(f16::from_f32).collect()),
        }
    };
    let matrix = PackedMatrix {
        spec,
        format: format!("{parts:?}"),
        order: CodeOrder::Rows,
        codes: codes.into(),
        scales: values(21),
        zeros: match parts.zeros {
            true => {
                let zeros = bits(22, spec.num_groups());
                Zeros::PerGroup(zeros.iter().map(|&b| (b >> 16) as u8).collect())
            }
            false => Zeros::Fixed(3),
        },
        mins: parts.mins.then(|| values(23)),
        column_order: None,
        factor: 1.0,
    };
    matrix.check().unwrap();
    matrix
}

/// The products of so many rows of `x` equal the sums of the host's numbers in `f64`.
fn check_linear(matrix: &PackedMatrix, rows: &[usize], device: &burn_wgpu::WgpuDevice) {
    let [outputs, inputs] = matrix.spec.shape;
    let w = matrix.dequantize();
    let packed = Packed::<Gpu>::upload(matrix.clone(), device).unwrap();
    for &rows in rows {
        let x = numbers(rows as u32, rows * inputs);
        let input = Tensor::from_data(TensorData::new(x.clone(), [rows, inputs]), device);
        let found = packed.linear(input).into_data();
        assert_eq!(found.shape.to_vec(), [rows, outputs]);
        for (at, found) in found.to_vec::<f32>().unwrap().into_iter().enumerate() {
            let (row, out) = (at / outputs, at % outputs);
            let product = |k| f64::from(x[row * inputs + k]) * f64::from(w[out * inputs + k]);
            let expected: f64 = (0..inputs).map(product).sum();
            let scale: f64 = (0..inputs).map(|k| product(k).abs()).sum();
            assert!(
                (f64::from(found) - expected).abs() <= 2e-6 * scale,
                "{} [{outputs}, {inputs}], {rows} rows, ({row}, {out}): found {found}, \
                 expected {expected}",
                matrix.format
            );
        }
    }
}

/// The whole matrix and chosen rows are the host's, `ulps` units in the last place apart at most.
fn check_numbers(matrix: &PackedMatrix, ulps: f32, device: &burn_wgpu::WgpuDevice) {
    let [outputs, inputs] = matrix.spec.shape;
    let expected = matrix.dequantize();
    let packed = Packed::<Gpu>::upload(matrix.clone(), device).unwrap();
    let name = format!("{} [{outputs}, {inputs}]", matrix.format);
    let close = |found: Vec<f32>, expected: &[f32]| {
        // Of the largest term: where it cancels, the sum keeps its error.
        let slack = ulps * f32::EPSILON * 256.0;
        assert_eq!(found.len(), expected.len(), "{name}");
        for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
            assert!((found - expected).abs() <= slack, "{name} {i}: {found}, expected {expected}");
        }
    };
    let found = packed.dequantize().into_data();
    assert_eq!(found.shape.to_vec(), [outputs, inputs]);
    close(found.to_vec().unwrap(), &expected);
    let ids = [outputs as i32 - 1, 0, outputs as i32 / 2, 0];
    let found = packed.rows(Tensor::<Gpu, 1, Int>::from_data(ids, device)).into_data();
    assert_eq!(found.shape.to_vec(), [4, inputs]);
    let rows = ids.map(|id| &expected[id as usize * inputs..][..inputs]).concat();
    close(found.to_vec().unwrap(), &rows);
}

fn int4(group: Group, range: Int4Range) -> Grid {
    Grid::Int4 { group, range }
}

/// Every grid, and groups of every span that kernels tell apart.
fn grids() -> Vec<Grid> {
    let mut grids = vec![Grid::Int8, Grid::Int8Tensor, Grid::Nf4];
    for range in [Int4Range::Sym8, Int4Range::Asym] {
        let columns = [8, 16, 32, 64, 100, 128].map(Group::Columns);
        grids.extend(columns.into_iter().chain([Group::Row]).map(|group| int4(group, range)));
    }
    grids
}

#[test]
fn linear_equals_the_exact_sums_on_every_grid() {
    let Some(device) = wgpu_device("linear_equals_the_exact_sums_on_every_grid") else { return };
    for grid in grids() {
        for shape in SHAPES {
            check_linear(&rounded(shape, grid), &[1, 2, 7, 8, 33], &device);
        }
    }
    let grid = int4(Group::Columns(32), Int4Range::Asym);
    check_linear(&rounded([70, 256], grid), &[3, 9, 17, 512], &device);
}

#[test]
fn numbers_are_the_hosts_bit_for_bit() {
    let Some(device) = wgpu_device("numbers_are_the_hosts_bit_for_bit") else { return };
    for grid in grids() {
        for shape in SHAPES {
            check_numbers(&rounded(shape, grid), 0.0, &device);
        }
    }
}

#[test]
fn hand_built_matrices_of_every_kind() {
    let Some(device) = wgpu_device("hand_built_matrices_of_every_kind") else { return };
    for bits in [Bits::Four, Bits::Eight] {
        for group_size in [1, 16, 20, 32] {
            for (zeros, mins, single) in
                [(true, false, true), (false, true, false), (true, true, true)]
            {
                let parts = Parts { bits, group_size, zeros, mins, single };
                for shape in [[1, 1], [9, 200], [5, 544]] {
                    let matrix = built(shape, parts);
                    check_linear(&matrix, &[2, 11], &device);
                    // Where neither product nor sum is exact, a driver that contracts them rounds
                    // once, not twice.
                    let ulps = if mins && single { 1.0 } else { 0.0 };
                    check_numbers(&matrix, ulps, &device);
                }
            }
        }
    }
}

#[test]
fn a_group_may_be_longer_than_the_row_or_the_whole_matrix() {
    let Some(device) = wgpu_device("a_group_may_be_longer_than_the_row") else { return };
    let parts =
        Parts { bits: Bits::Four, group_size: 1000, zeros: true, mins: true, single: false };
    let mut matrix = built([5, 70], parts);
    check_numbers(&matrix, 0.0, &device);
    check_linear(&matrix, &[2], &device);
    // Groups of 16 in name, but one for all rows.
    matrix.spec.group_size = 16;
    matrix.spec.per_tensor = true;
    matrix.scales = GroupValues::F16(vec![f16::from_f32(0.37)]);
    matrix.zeros = Zeros::PerGroup(vec![5]);
    matrix.mins = None;
    matrix.check().unwrap();
    check_numbers(&matrix, 0.0, &device);
    check_linear(&matrix, &[2], &device);
}

#[test]
fn column_orders_tables_and_factors() {
    let Some(device) = wgpu_device("column_orders_tables_and_factors") else { return };
    let mut matrix = rounded([9, 200], int4(Group::Columns(64), Int4Range::Asym));
    // 77 and 200 have no common divisor.
    matrix.column_order = Some((0..200).map(|k| k * 77 % 200).collect());
    matrix.factor = 1.0 / 127.0;
    matrix.check().unwrap();
    check_linear(&matrix, &[1, 7, 33], &device);
    check_numbers(&matrix, 0.0, &device);

    // A table that is not NF4's, and a kernel of its own.
    let mut matrix = rounded([9, 200], Grid::Nf4);
    matrix.spec.levels = Levels::Table(NF4_LEVELS.map(|level| (level * 113.0).round()));
    check_linear(&matrix, &[1, 33], &device);
    check_numbers(&matrix, 0.0, &device);
}

#[test]
fn a_row_is_the_same_bits_in_any_batch_on_its_side_of_the_limit() {
    let Some(device) = wgpu_device("a_row_is_the_same_bits_in_any_batch") else { return };
    for group in [32, 100] {
        let matrix = rounded([33, 2080], int4(Group::Columns(group), Int4Range::Asym));
        let matrix = Packed::<Gpu>::upload(matrix, &device).unwrap();
        let x = TensorData::new(numbers(4, 33 * 2080), [33, 2080]);
        let x = Tensor::<Gpu, 2>::from_data(x, &device);
        let first = |rows: usize| -> Vec<f32> {
            let y = matrix.linear(x.clone().slice([0..rows]));
            y.slice([0..1]).into_data().to_vec().unwrap()
        };
        for rows in 2..=8 {
            assert_eq!(first(1), first(rows), "{rows} rows, groups of {group}");
        }
        for rows in [17, 33] {
            assert_eq!(first(9), first(rows), "{rows} rows, groups of {group}");
        }
    }
}

#[test]
fn views_and_empty_inputs() {
    let Some(device) = wgpu_device("views_and_empty_inputs") else { return };
    let matrix = rounded([12, 10], Grid::Int8);
    let matrix = Packed::<Gpu>::upload(matrix, &device).unwrap();
    let x = Tensor::<Gpu, 2>::from_data(TensorData::new(numbers(9, 10 * 4), [10, 4]), &device);
    let expected = matrix.dequantize().matmul(x.clone());
    let found = matrix.linear(x.transpose()).transpose();
    let difference = (found - expected).abs().max().into_scalar();
    assert!(difference < 1e-5, "differs by {difference}");
    assert_eq!(matrix.linear(Tensor::empty([0, 10], &device)).dims(), [0, 12]);
    let none = Tensor::<Gpu, 1, Int>::empty([0], &device);
    assert_eq!(matrix.rows(none).dims(), [0, 10]);
}
