use burn_flex::FlexDevice;
use burn_tensor::TensorData;

use super::super::floats;
use super::*;
use crate::reference;

/// Numbers in −1 .. 1 that have no pattern.
fn numbers(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / 2_147_483_648.0 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn codes(len: usize, seed: u32, max: u8) -> Vec<u8> {
    numbers(len, seed).iter().map(|x| ((x + 1.0) / 2.0 * f32::from(max)).round() as u8).collect()
}

/// What formats differ in, beside shape and groups.
#[derive(Debug, Clone, Copy)]
struct Kind {
    bits: Bits,
    table: bool,
    half: bool,
    zeros: bool,
    mins: bool,
}

fn kinds() -> impl Iterator<Item = Kind> {
    (0..32).filter_map(|i| {
        let has = |bit: i32| i >> bit & 1 == 1;
        let bits = if has(0) { Bits::Four } else { Bits::Eight };
        let kind = Kind { bits, table: has(1), half: has(2), zeros: has(3), mins: has(4) };
        (bits == Bits::Four || !kind.table).then_some(kind)
    })
}

/// A matrix of random codes, scales (negative ones too), zero points and minima.
fn matrix(kind: Kind, shape: [usize; 2], group_size: usize, per_tensor: bool) -> PackedMatrix {
    let Kind { bits, table, half, zeros, mins } = kind;
    let levels = if table { Levels::Table(crate::NF4_LEVELS) } else { Levels::Steps };
    let spec = PackedSpec { shape, bits, levels, group_size, per_tensor };
    let max = if bits == Bits::Four { 15 } else { 255 };
    let row_bytes = spec.row_bytes();
    let mut packed = vec![0; shape[0] * row_bytes];
    for (row, packed) in packed.chunks_exact_mut(row_bytes).enumerate() {
        bits.pack_row(&codes(shape[1], row as u32 + 5, max), packed);
    }
    let groups = spec.num_groups();
    let values = |seed| match (half, numbers(groups, seed)) {
        (true, values) => GroupValues::F16(values.into_iter().map(f16::from_f32).collect()),
        (false, values) => GroupValues::F32(values),
    };
    let matrix = PackedMatrix {
        spec,
        format: "test".into(),
        order: CodeOrder::Rows,
        codes: packed.into(),
        scales: values(71),
        zeros: if zeros {
            Zeros::PerGroup(codes(groups, 72, max))
        } else {
            Zeros::Fixed(if table { 0 } else { max / 2 + 1 })
        },
        mins: mins.then(|| values(73)),
        column_order: None,
        factor: 1.0,
    };
    matrix.check().unwrap();
    matrix
}

fn bits_of(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// The product and the numbers on every instruction set against the dense product, bit for bit.
fn check(matrix: &PackedMatrix, rows: &[usize], case: &str) {
    let [out, width] = matrix.spec.shape;
    let dequantized = matrix.dequantize();
    let tensors = upload(matrix.clone());
    let tensors = Tensors::of(&tensors);
    let stored = tensors.stored();
    for isa in Isa::available() {
        let unpacked = unpack::rows(isa, &stored, out, |row| row);
        assert_eq!(bits_of(&unpacked), bits_of(&dequantized), "{} numbers, {case}", isa.name());
        for &rows in rows {
            let x = numbers(rows * width, 1);
            let found = product(isa, &x, &stored, rows);
            let expected = floats::product::<f32>(isa, &x, &dequantized, [rows, out]);
            assert_eq!(bits_of(&found), bits_of(&expected), "{} {rows} rows, {case}", isa.name());
        }
    }
}

#[test]
fn every_format_has_the_bits_of_the_dense_product_on_every_instruction_set() {
    for kind in kinds() {
        for [out, width] in [[1, 1], [3, 7], [9, 200], [40, 256], [6, 4101]] {
            for group in [1, 8, 16, 24, 32, 48, 64, 100, 128, 300, width] {
                let matrix = matrix(kind, [out, width], group, false);
                let case = format!("{kind:?}, {out}x{width} in groups of {group}");
                check(&matrix, &[1, 2, 7], &case);
            }
            check(&matrix(kind, [out, width], 16, true), &[1, 7], "one group");
        }
    }
}

#[test]
fn every_number_of_rows_has_the_bits_of_the_dense_product() {
    let four = Kind { bits: Bits::Four, table: false, half: true, zeros: true, mins: false };
    for kind in [four, Kind { bits: Bits::Eight, ..four }] {
        for [out, width] in [[64, 172], [131, 64], [9, 200], [7, 2048], [13, 4101]] {
            for group in [16, 32, 100, width] {
                let matrix = matrix(kind, [out, width], group, false);
                let case = format!("{kind:?}, {out}x{width} in groups of {group}");
                check(&matrix, &[1, 2, 3, 4, 5, 6, 7, 8, 13, 33, 100], &case);
            }
        }
    }
}

#[test]
fn the_composed_reference_gives_the_same() {
    for kind in kinds() {
        for ([out, width], group) in [([3, 7], 2), ([9, 200], 32), ([40, 256], 16)] {
            let matrix = matrix(kind, [out, width], group, false);
            let composed = reference::upload::<Flex>(&matrix, &FlexDevice);
            let composed = reference::to_f32(&composed);
            let numbers_of = |tensor: Tensor<Flex, 2>| tensor.into_data().to_vec::<f32>().unwrap();
            let fast = upload(matrix);
            let whole = float_tensor::<2>(to_f32(&fast));
            assert_eq!(numbers_of(whole), numbers_of(composed.clone()), "{kind:?}");
            let x = TensorData::new(numbers(7 * width, 3), [7, width]);
            let x = Tensor::<Flex, 2>::from_data(x, (&FlexDevice, DType::F32));
            let found =
                numbers_of(float_tensor(linear(&super::super::activations(x.clone()), &fast)));
            let sizes = numbers_of(x.clone().abs().matmul(composed.clone().abs().transpose()));
            let expected = numbers_of(x.matmul(composed.transpose()));
            for ((found, expected), size) in found.iter().zip(expected).zip(sizes) {
                assert!((found - expected).abs() <= 1e-5 * size, "{kind:?}: {found}, {expected}");
            }
        }
    }
}

#[test]
fn an_upload_keeps_types_and_bytes() {
    let kind = Kind { bits: Bits::Four, table: false, half: true, zeros: true, mins: true };
    let matrix = matrix(kind, [5, 40], 16, false);
    let expected = matrix.num_bytes();
    let tensors = upload(matrix);
    let parts = Tensors::of(&tensors);
    let all = [Some(&parts.codes), Some(&parts.scales), parts.zeros.as_ref(), parts.mins.as_ref()];
    let bytes: usize = all.into_iter().flatten().map(|tensor| tensor.bytes().len()).sum();
    assert_eq!(bytes, expected);
    assert_eq!(parts.scales.dtype(), DType::F16);
    assert_eq!(parts.codes.dtype(), DType::U8);
}
