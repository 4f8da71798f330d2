//! Round to nearest against reference values, bit for bit.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::path::PathBuf;

use engine_quant::{
    Bits, CodeOrder, Grid, Group, GroupValues, Int4Range, PackedMatrix, RoundToNearest, SliceRows,
    Zeros, round_to_nearest,
};
use half::f16;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

fn data(path: &str) -> Vec<u8> {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data").join(path);
    std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn f32s(view: &TensorView<'_>) -> Vec<f32> {
    match view.dtype() {
        Dtype::F32 => view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F16 => {
            view.data().as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()
        }
        other => panic!("{other:?}"),
    }
}

/// The codes in row-major order, as signed numbers where the format has no zero points.
fn codes(matrix: &PackedMatrix) -> Vec<i32> {
    let [_, columns] = matrix.spec.shape;
    let zero = match matrix.zeros {
        Zeros::Fixed(zero) => i32::from(zero),
        Zeros::PerGroup(_) => 0,
    };
    let mut all = Vec::with_capacity(matrix.spec.shape[0] * columns);
    matrix.for_rows(|_, codes| all.extend(codes.iter().map(|&code| i32::from(code) - zero)));
    all
}

/// `(file, grid)` of every scheme that the references have.
fn schemes() -> Vec<(String, Grid)> {
    let mut schemes = vec![
        ("int8_row".to_owned(), Grid::Int8),
        ("int8_tensor".to_owned(), Grid::Int8Tensor),
        ("nf4_row64_f16".to_owned(), Grid::Nf4),
    ];
    let ranges = [
        ("sym7", Int4Range::Sym7),
        ("sym8", Int4Range::Sym8),
        ("sym15", Int4Range::Sym15),
        ("asym", Int4Range::Asym),
    ];
    for (name, range) in ranges {
        for columns in [32, 64, 128] {
            let grid = Grid::Int4 { group: Group::Columns(columns), range };
            schemes.push((format!("int4_{name}_g{columns}"), grid));
        }
    }
    schemes
}

#[test]
fn every_scheme_gives_the_reference_codes_scales_zero_points_and_values() {
    let (inputs, model) =
        (data("quant/rtn/matrices.safetensors"), data("models/stories260K/model.safetensors"));
    let inputs = SafeTensors::deserialize(&inputs).unwrap();
    let model = SafeTensors::deserialize(&model).unwrap();
    for (scheme, grid) in schemes() {
        let file = data(&format!("quant/rtn/{scheme}.safetensors"));
        let expected = SafeTensors::deserialize(&file).unwrap();
        let mut checked = 0;
        for name in expected.names().into_iter().filter_map(|name| name.strip_suffix(".q")) {
            let input = inputs.tensor(name).or_else(|_| model.tensor(name)).unwrap();
            let columns = input.shape()[1];
            let packed = round_to_nearest(&SliceRows { values: &f32s(&input), columns }, grid);
            let packed = packed.unwrap();
            packed.check().unwrap();
            let of = |part: &str| expected.tensor(&format!("{name}.{part}")).ok();

            let q = of("q").unwrap();
            let signed = q.dtype() == Dtype::I8;
            let q = q.data().iter().map(|&b| if signed { i32::from(b as i8) } else { b.into() });
            assert!(codes(&packed).into_iter().eq(q), "{scheme} {name}: codes");

            let scales = of("scale").or_else(|| of("absmax")).unwrap();
            assert_eq!(packed.scales.to_f32(), f32s(&scales), "{scheme} {name}: scales");
            assert!(matches!(packed.scales, GroupValues::F16(_)));
            if let Some(zeros) = of("zero") {
                assert_eq!(packed.zeros, Zeros::PerGroup(zeros.data().to_vec()), "{scheme} {name}");
            }
            if let Some(deq) = of("deq") {
                // The references have no negative zeros.
                let found: Vec<u32> =
                    packed.dequantize().iter().map(|w| (w + 0.0).to_bits()).collect();
                let deq: Vec<u32> = f32s(&deq).iter().map(|w| w.to_bits()).collect();
                assert_eq!(found, deq, "{scheme} {name}: values");
            }
            checked += 1;
        }
        assert_eq!(checked, 7, "{scheme}");
    }
}

#[test]
fn the_textbook_matrix_has_the_textbook_bytes() {
    let values = vec![0.5_f32; 2048 * 2048];
    let rows = SliceRows { values: &values, columns: 2048 };
    assert_eq!(round_to_nearest(&rows, Grid::Int8).unwrap().num_bytes(), 4_198_400);
    let int4 = Grid::Int4 { group: Group::Columns(32), range: Int4Range::Sym8 };
    // Half a byte for each number and two for each group.
    assert_eq!(round_to_nearest(&rows, int4).unwrap().num_bytes(), 2_097_152 + 2 * 131_072);
}

#[test]
fn numbers_that_no_scale_can_hold_are_refused() {
    for bad in [f32::NAN, f32::INFINITY, 1e30] {
        let values = [0.0, bad, 1.0, 2.0];
        let rows = SliceRows { values: &values, columns: 2 };
        for (scheme, grid) in schemes() {
            assert!(round_to_nearest(&rows, grid).is_err(), "{scheme}: {bad}");
        }
    }
    assert!(round_to_nearest(&SliceRows { values: &[], columns: 4 }, Grid::Int8).is_err());
}

mod properties {
    use super::*;
    use proptest::prelude::*;

    fn grids() -> impl Strategy<Value = Grid> {
        let ranges = prop_oneof![
            Just(Int4Range::Sym7),
            Just(Int4Range::Sym8),
            Just(Int4Range::Sym15),
            Just(Int4Range::Asym),
        ];
        let groups = prop_oneof![(8..130_usize).prop_map(Group::Columns), Just(Group::Row)];
        prop_oneof![
            Just(Grid::Int8),
            Just(Grid::Int8Tensor),
            Just(Grid::Nf4),
            (groups, ranges).prop_map(|(group, range)| Grid::Int4 { group, range }),
        ]
    }

    proptest! {
        #[test]
        fn packing_is_a_bijection(codes in prop::collection::vec(any::<u8>(), 1..200)) {
            for (bits, mask) in [(Bits::Four, 15), (Bits::Eight, 255)] {
                let codes: Vec<u8> = codes.iter().map(|code| code & mask).collect();
                let mut packed = vec![0xAA; bits.row_bytes(codes.len())];
                bits.pack_row(&codes, &mut packed);
                let mut again = vec![0; codes.len()];
                bits.unpack_row(&packed, &mut again);
                prop_assert_eq!(&again, &codes);
                // Every packed bit belongs to a code or is zero: packing again gives the same.
                let mut twice = vec![0x55; packed.len()];
                bits.pack_row(&again, &mut twice);
                prop_assert_eq!(packed, twice);
            }
        }

        #[test]
        fn a_number_moves_at_most_half_a_step(
            grid in grids(),
            columns in 1..150_usize,
            numbers in prop::collection::vec(-4.0_f32..4.0, 450),
        ) {
            let values = &numbers[..3 * columns];
            let packed = round_to_nearest(&SliceRows { values, columns }, grid).unwrap();
            for (i, (&w, q)) in values.iter().zip(packed.dequantize()).enumerate() {
                let group = packed.spec.group_of(i / columns, i % columns);
                let scale = packed.scales.get(group);
                let step = match grid {
                    // The widest gap between levels, which the largest number fills.
                    Grid::Nf4 => 0.304 * scale,
                    // The one side of an asymmetric grid that its largest number does not reach.
                    Grid::Int4 { range: Int4Range::Sym8, .. } => 2.0 * scale.abs(),
                    Grid::Int4 { range: Int4Range::Asym | Int4Range::Sym15, .. } => {
                        2.0 * scale
                    }
                    _ => scale,
                };
                // The scale itself was rounded to half precision, 2⁻¹¹ of the largest level.
                let slack = 130.0 * scale.abs() / 2048.0 + 1e-6;
                prop_assert!((w - q).abs() <= step / 2.0 + slack, "{grid:?} {w} {q} {scale}");
            }
        }

        #[test]
        fn stacked_rows_are_the_rows_of_the_parts(
            grid in grids(),
            columns in 1..100_usize,
            numbers in prop::collection::vec(-4.0_f32..4.0, 2000),
            first in prop_oneof![Just(2_usize), Just(16)],
            orders in prop::array::uniform2(prop_oneof![Just(CodeOrder::Rows), Just(CodeOrder::Blocks)]),
        ) {
            let (top, bottom) = numbers[..(first + 3) * columns].split_at(first * columns);
            let round = |values, order| {
                let matrix = round_to_nearest(&SliceRows { values, columns }, grid).unwrap();
                matrix.into_order(order)
            };
            let parts = vec![round(top, orders[0]), round(bottom, orders[1])];
            let expected = [parts[0].dequantize(), parts[1].dequantize()].concat();
            let size: usize = parts.iter().map(|part| part.codes.len()).sum();
            let parts = PackedMatrix::stack(parts, size - 1).unwrap_err();
            match PackedMatrix::stack(parts, size) {
                Ok(stacked) => {
                    stacked.check().unwrap();
                    prop_assert_eq!(stacked.dequantize(), expected);
                }
                Err(parts) => prop_assert!(grid == Grid::Int8Tensor && parts.len() == 2),
            }
        }

        #[test]
        fn parts_become_the_matrix_that_the_whole_becomes(
            grid in grids(),
            columns in 1..100_usize,
            numbers in prop::collection::vec(-4.0_f32..4.0, 4000),
            lens in prop::collection::vec(1..20_usize, 1..3),
            spare in 0..20_usize,
            order in prop_oneof![Just(CodeOrder::Rows), Just(CodeOrder::Blocks)],
        ) {
            let lens = if grid == Grid::Int8Tensor { &lens[..1] } else { &lens };
            let out = lens.iter().sum::<usize>();
            let spare = if grid == Grid::Int8Tensor { 0 } else { spare };
            let rows = |rows: std::ops::Range<usize>| {
                SliceRows { values: &numbers[rows.start * columns..rows.end * columns], columns }
            };
            let mut rounding = RoundToNearest::new([out + spare, columns], grid, order).unwrap();
            let mut next = 0;
            for len in lens {
                rounding.push(&rows(next..next + len)).unwrap();
                next += len;
            }
            prop_assert!(rounding.push(&rows(0..spare + 1)).is_err(), "there is no more room");
            let whole = round_to_nearest(&rows(0..out), grid).unwrap();
            prop_assert_eq!(rounding.finish().unwrap(), whole.into_order(order));
        }
    }
}
