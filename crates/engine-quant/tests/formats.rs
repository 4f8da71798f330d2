//! Layouts of checkpoints: writing and reading give the same matrix, and what does not fit is an
//! error.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::path::PathBuf;

use engine_quant::{
    Bits, CodeOrder, GroupValues, Levels, PackedMatrix, PackedSpec, QuantError, SliceRows, Zeros,
    formats::{
        Element, NamedTensor, Unpacked,
        awq::{self, AwqTensors},
        bnb::{self, Nf4Tensors},
        gptq::{self, GptqLayout, GptqTensors, ZeroPoints},
        native::{self, NativeTensors},
    },
    round_to_nearest,
};
use half::f16;
use proptest::prelude::*;
use safetensors::SafeTensors;

fn part<'a>(tensors: &'a [NamedTensor], suffix: &str) -> Option<&'a NamedTensor> {
    tensors.iter().find(|tensor| tensor.name == format!("w.{suffix}"))
}

fn floats(tensor: &NamedTensor) -> GroupValues {
    let bytes = &tensor.bytes;
    match tensor.element {
        Element::F16 => GroupValues::F16(
            bytes.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes)).collect(),
        ),
        _ => GroupValues::F32(
            bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        ),
    }
}

/// A matrix of random codes, scales and zero points, as GPTQ makes them.
fn matrices() -> impl Strategy<Value = PackedMatrix> {
    let sides = (1..6_usize, 1..9_usize, prop_oneof![Just(8_usize), Just(32), Just(24), Just(999)]);
    (sides, any::<u64>(), any::<bool>(), any::<bool>()).prop_map(
        |((out, in_, group_size), seed, eight, ordered)| {
            let bits = if eight { Bits::Eight } else { Bits::Four };
            let (out, in_) = (out * 8, in_ * 8);
            let group_size = group_size.min(in_);
            let spec = PackedSpec {
                shape: [out, in_],
                bits,
                levels: Levels::Steps,
                group_size,
                per_tensor: false,
            };
            let mut state = seed;
            let mut random = move || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 33) as usize
            };
            let mut codes = vec![0; out * spec.row_bytes()];
            for row in codes.chunks_exact_mut(spec.row_bytes()) {
                let row_codes: Vec<u8> =
                    (0..in_).map(|_| random() as u8 & if eight { 255 } else { 15 }).collect();
                bits.pack_row(&row_codes, row);
            }
            let groups = spec.num_groups();
            let mask = if eight { 255 } else { 15 };
            // A random order: swap each column with one before it.
            let mut order: Vec<u32> = (0..in_ as u32).collect();
            (1..in_).for_each(|i| order.swap(i, random() % (i + 1)));
            PackedMatrix {
                spec,
                format: String::new(),
                order: CodeOrder::Rows,
                codes: codes.into(),
                scales: GroupValues::F16(
                    (0..groups).map(|_| f16::from_f32(random() as f32 / 1e9)).collect(),
                ),
                zeros: Zeros::PerGroup((0..groups).map(|_| random() as u8 & mask).collect()),
                mins: None,
                column_order: ordered.then_some(order),
                factor: 1.0,
            }
        },
    )
}

proptest! {
    #[test]
    fn gptq_gives_back_what_was_written(matrix in matrices(), plain in any::<bool>()) {
        let zero_points = if plain { ZeroPoints::Plain } else { ZeroPoints::LessOne };
        let tensors = gptq::pack("w", &matrix, zero_points).unwrap();
        let spec = matrix.spec;
        let layout = GptqLayout {
            shape: spec.shape,
            bits: spec.bits,
            group_size: spec.group_size,
            zero_points,
            symmetric: false,
        };
        let of = |suffix| part(&tensors, suffix).unwrap();
        let read = gptq::unpack(&layout, &GptqTensors {
            qweight: &of("qweight").bytes,
            qzeros: &of("qzeros").bytes,
            scales: floats(of("scales")),
            g_idx: Some(&of("g_idx").bytes),
        }).unwrap();
        // The order within a group is free, so the numbers are compared.
        prop_assert_eq!(read.dequantize(), matrix.dequantize());
        prop_assert!(matches!(read, Unpacked::Packed(_)));
    }

    #[test]
    fn awq_gives_back_what_was_written(matrix in matrices()) {
        match awq::pack("w", &matrix) {
            Ok(tensors) => {
                let of = |suffix| part(&tensors, suffix).unwrap();
                let read = awq::unpack(matrix.spec.shape, matrix.spec.group_size, &AwqTensors {
                    qweight: &of("qweight").bytes,
                    qzeros: &of("qzeros").bytes,
                    scales: floats(of("scales")),
                }).unwrap();
                prop_assert_eq!(&read.codes, &matrix.codes);
                prop_assert_eq!(read.dequantize(), matrix.dequantize());
            }
            Err(error) => {
                let unwritable = matches!(error, QuantError::Unwritable { .. });
                prop_assert!(unwritable);
                prop_assert!(matrix.spec.bits == Bits::Eight || matrix.column_order.is_some());
            }
        }
    }

    #[test]
    fn our_own_layout_gives_back_every_field(matrix in matrices()) {
        let read = through_our_own(matrix.clone()).unwrap();
        prop_assert_eq!(read.order, CodeOrder::Blocks);
        prop_assert_eq!(read.into_order(CodeOrder::Rows), matrix);
    }
}

/// Writes and reads a matrix in our own layout.
fn through_our_own(matrix: PackedMatrix) -> Result<PackedMatrix, QuantError> {
    let shape = matrix.spec.shape;
    let (entry, tensors) = native::pack("w", matrix);
    let of = |suffix| part(&tensors, suffix);
    let ids = |tensor: &NamedTensor| {
        tensor.bytes.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()
    };
    let tensors = NativeTensors {
        codes: of("codes").unwrap().bytes.clone(),
        scales: floats(of("scales").unwrap()),
        zeros: of("zeros").map(|tensor| &tensor.bytes[..]),
        mins: of("mins").map(floats),
        levels: of("levels").map(|tensor| floats(tensor).to_f32()),
        column_order: of("column_order").map(ids),
    };
    native::unpack(shape, &entry, tensors)
}

#[test]
fn our_own_layout_holds_every_scheme_tables_minima_and_factors() {
    let values: Vec<f32> = (0..7 * 75).map(|i| ((i * 37 % 101) as f32 - 50.0) / 9.0).collect();
    let rows = SliceRows { values: &values, columns: 75 };
    for scheme in ["int8", "int8:tensor", "int4:group=32:asym", "int4:group=row", "nf4"] {
        let scheme: engine_quant::Scheme = scheme.parse().unwrap();
        let engine_quant::Scheme::Quantize { grid, .. } = scheme else { panic!("{scheme}") };
        let matrix = round_to_nearest(&rows, grid).unwrap();
        let read = through_our_own(matrix.clone()).unwrap().into_order(CodeOrder::Rows);
        assert_eq!(read, matrix, "{scheme}");
        let mins = GroupValues::F32(vec![0.25; matrix.scales.len()]);
        let odd = PackedMatrix { mins: Some(mins), factor: 1.0 / 127.0, ..matrix };
        let read = through_our_own(odd.clone()).unwrap().into_order(CodeOrder::Rows);
        assert_eq!(read, odd, "{scheme}");
    }
}

#[test]
fn flat_nf4_equals_the_reference() {
    let data = |path: &str| {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data");
        std::fs::read(root.join(path)).unwrap()
    };
    let (inputs, model) =
        (data("quant/rtn/matrices.safetensors"), data("models/stories260K/model.safetensors"));
    let (inputs, model) =
        (SafeTensors::deserialize(&inputs).unwrap(), SafeTensors::deserialize(&model).unwrap());
    let file = data("quant/rtn/nf4_flat64.safetensors");
    let expected = SafeTensors::deserialize(&file).unwrap();
    let f32s = |bytes: &[u8]| -> Vec<f32> {
        bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    };
    let (mut checked, mut packed_rows) = (0, 0);
    for name in expected.names().into_iter().filter_map(|name| name.strip_suffix(".q")) {
        let input = inputs.tensor(name).or_else(|_| model.tensor(name)).unwrap();
        let shape = [input.shape()[0], input.shape()[1]];
        let (codes, absmax) = bnb::quantize_nf4(&f32s(input.data())).unwrap();
        let halves = codes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        let q = expected.tensor(&format!("{name}.q")).unwrap();
        assert!(halves.take(q.data().len()).eq(q.data().iter().copied()), "{name}: codes");
        let reference = expected.tensor(&format!("{name}.absmax")).unwrap();
        assert_eq!(absmax, f32s(reference.data()), "{name}");
        let levels = bnb::LEVELS;
        let tensors = Nf4Tensors { codes: &codes, absmax, levels, block_size: 64 };
        let unpacked = bnb::unpack_nf4(shape, &tensors).unwrap();
        assert_eq!(matches!(unpacked, Unpacked::Packed(_)), shape[1] % 64 == 0, "{name}");
        packed_rows += usize::from(shape[1] % 64 == 0);
        if let Ok(deq) = expected.tensor(&format!("{name}.deq")) {
            let found: Vec<f32> = unpacked.dequantize().iter().map(|w| w + 0.0).collect();
            assert_eq!(found, f32s(deq.data()), "{name}");
        }
        checked += 1;
    }
    assert!(checked >= 7 && (1..checked).contains(&packed_rows), "{checked}, {packed_rows}");
}

#[test]
fn what_does_not_fit_is_an_error() {
    let layout = GptqLayout {
        shape: [8, 16],
        bits: Bits::Four,
        group_size: 8,
        zero_points: ZeroPoints::LessOne,
        symmetric: false,
    };
    let (qweight, qzeros, g_idx) = ([0; 64], [0; 8], [0; 64]);
    let good = GptqTensors {
        qweight: &qweight,
        qzeros: &qzeros,
        scales: GroupValues::F32(vec![1.0; 16]),
        g_idx: None,
    };
    assert!(gptq::unpack(&layout, &good).is_ok());
    let bad = [
        GptqTensors { qweight: &qweight[1..], ..good.clone() },
        GptqTensors { qzeros: &qzeros[1..], ..good.clone() },
        GptqTensors { scales: GroupValues::F32(vec![1.0; 15]), ..good.clone() },
        GptqTensors { scales: GroupValues::F32(vec![f32::NAN; 16]), ..good.clone() },
        GptqTensors { g_idx: Some(&g_idx[4..]), ..good.clone() },
        GptqTensors { g_idx: Some(&[9; 64]), ..good.clone() },
    ];
    bad.iter().for_each(|tensors| assert!(gptq::unpack(&layout, tensors).is_err()));
    // All columns in the first group: two groups of eight are expected, so these are floats.
    let one = GptqTensors { g_idx: Some(&g_idx), ..good.clone() };
    assert!(matches!(gptq::unpack(&layout, &one).unwrap(), Unpacked::Floats(_)));
    for shape in [[8, 12], [12, 16], [0, 16], [8, 0]] {
        assert!(gptq::unpack(&GptqLayout { shape, ..layout }, &good).is_err(), "{shape:?}");
    }
    assert!(bnb::nested_absmax(&[0; 300], &[0.0; 256], &[1.0], (256, 0.0)).is_err());
    assert!(bnb::nested_absmax(&[0; 256], &[0.0; 255], &[1.0], (256, 0.0)).is_err());
    assert!(bnb::quantize_nf4(&[1.0, f32::NAN]).is_err());
}
