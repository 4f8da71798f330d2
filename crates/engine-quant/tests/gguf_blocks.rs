//! ggml's blocks against the values of ggml's own dequantizers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::{fs, path::PathBuf};

use engine_quant::{Bits, GgufMatrix, GgufType, GroupValues, PackedMatrix, QuantError};
use safetensors::SafeTensors;

/// What is read, and the bytes that a block takes here.
const READ: [(GgufType, usize); 12] = [
    (GgufType::Q8_0, 34),
    (GgufType::Q4_0, 18),
    (GgufType::Q4_1, 20),
    (GgufType::Q5_0, 34),
    (GgufType::Q5_1, 36),
    (GgufType::Q2_K, 128 + 16 * 8),
    (GgufType::Q3_K, 128 + 16 * 4),
    (GgufType::Q4_K, 128 + 8 * 8),
    (GgufType::Q5_K, 256 + 8 * 8),
    (GgufType::Q6_K, 256 + 16 * 4),
    (GgufType::IQ4_NL, 18),
    (GgufType::IQ4_XS, 128 + 8 * 4),
];

fn file() -> Vec<u8> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    fs::read(root.join("tests/data/quant/gguf/blocks.safetensors")).unwrap()
}

/// Bits with one zero instead of two.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| (value + 0.0).to_bits()).collect()
}

fn values(tensors: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let data = tensors.tensor(name).unwrap();
    data.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

fn matrix(kind: GgufType, shape: [usize; 2], bytes: &[u8]) -> GgufMatrix<'_> {
    GgufMatrix { kind, shape, bytes, row_order: None }
}

fn pack(kind: GgufType, shape: [usize; 2], bytes: &[u8]) -> PackedMatrix {
    matrix(kind, shape, bytes).pack().unwrap_or_else(|error| panic!("{kind}: {error}"))
}

#[test]
fn blocks_have_the_values_of_ggml() {
    let bytes = file();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    for (kind, block_bytes) in READ {
        for (part, rows) in [("random", 12), ("quant", 6)] {
            let blocks = tensors.tensor(&format!("{kind}.{part}_bytes")).unwrap();
            let expected = values(&tensors, &format!("{kind}.{part}_values"));
            let columns = expected.len() / rows;
            let packed = pack(kind, [rows, columns], blocks.data());
            assert_eq!(bits(&packed.dequantize()), bits(&expected), "{kind} {part}");
            assert_eq!(packed.num_bytes(), expected.len() / kind.block_len() * block_bytes);
            assert_eq!(packed.num_bytes(), rows * kind.held_row_bytes(columns));
            assert_eq!(packed.format, kind.to_string().to_lowercase());
        }
    }
}

#[test]
fn codes_and_scales_are_as_wide_as_the_format_needs() {
    let bytes = file();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    for (kind, _) in READ {
        let blocks = tensors.tensor(&format!("{kind}.random_bytes")).unwrap();
        let packed = pack(kind, [12, kind.block_len()], blocks.data());
        let name = kind.to_string();
        let wide = name.starts_with("Q5") || name.starts_with("Q6") || name.starts_with("Q8");
        assert_eq!(packed.spec.bits, if wide { Bits::Eight } else { Bits::Four }, "{kind}");
        let products = name.ends_with('K') || name == "IQ4_XS";
        assert_eq!(matches!(packed.scales, GroupValues::F32(_)), products, "{kind}");
    }
}

#[test]
fn rows_in_another_order_are_the_rows() {
    let bytes = file();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let order = [3, 0, 5, 5, 1, 2];
    for (kind, _) in READ {
        let blocks = tensors.tensor(&format!("{kind}.quant_bytes")).unwrap();
        let mut given = matrix(kind, [6, 512], blocks.data());
        let plain = given.pack().unwrap().dequantize();
        given.row_order = Some(&order);
        let moved = given.pack().unwrap().dequantize();
        for (row, &from) in order.iter().enumerate() {
            assert_eq!(bits(&moved[row * 512..][..512]), bits(&plain[from * 512..][..512]));
        }
    }
    let floats = [1.0_f32, 2.0, 3.0, 4.0].iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
    let given = GgufMatrix { row_order: Some(&[1, 0]), ..matrix(GgufType::F32, [2, 2], &floats) };
    assert_eq!(given.floats().unwrap().to_vec::<f32>().unwrap(), [3.0, 4.0, 1.0, 2.0]);
}

#[test]
fn floats_keep_their_type_and_bits() {
    let half = [0x3c00_u16, 0x0001, 0xfbff, 0x8000].map(u16::to_le_bytes).concat();
    let as_f16 = matrix(GgufType::F16, [2, 2], &half).floats().unwrap();
    let expected = [0x3c00, 0x0001, 0xfbff, 0x8000].map(half::f16::from_bits);
    let bits = |x: &half::f16| x.to_bits();
    let found: Vec<u16> = as_f16.to_vec::<half::f16>().unwrap().iter().map(bits).collect();
    assert_eq!(found, expected.iter().map(bits).collect::<Vec<_>>());
    let as_bf16 = matrix(GgufType::BF16, [1, 4], &half).floats().unwrap();
    let found: Vec<u16> =
        as_bf16.to_vec::<half::bf16>().unwrap().iter().map(|x| x.to_bits()).collect();
    assert_eq!(found, [0x3c00, 0x0001, 0xfbff, 0x8000]);
}

#[test]
fn what_does_not_fit_is_an_error() {
    fn q4(shape: [usize; 2], bytes: &[u8]) -> GgufMatrix<'_> {
        matrix(GgufType::Q4_0, shape, bytes)
    }
    let message = |matrix: GgufMatrix<'_>| matrix.pack().unwrap_err().to_string();
    assert!(
        message(q4([1, 48], &[0; 27])).contains("48 numbers is no whole number of Q4_0 blocks")
    );
    assert_eq!(message(q4([2, 32], &[0; 18])), "expected 36 bytes of blocks, found 18");
    assert!(matches!(q4([0, 32], &[]).pack(), Err(QuantError::Empty { .. })));
    assert!(matches!(q4([1, 0], &[]).pack(), Err(QuantError::Empty { .. })));
    let huge = q4([usize::MAX, 32], &[0; 18]);
    assert!(matches!(huge.pack(), Err(QuantError::Malformed { .. })));
    let order = GgufMatrix { row_order: Some(&[1]), ..q4([1, 32], &[0; 18]) };
    assert!(matches!(order.pack(), Err(QuantError::Malformed { .. })));
    // A scale of infinity, and one that is no number.
    for high in [0x7c, 0x7e] {
        let mut block = [0; 18];
        block[1] = high;
        assert!(matches!(q4([1, 32], &block).pack(), Err(QuantError::NotFinite { .. })));
    }
    // A product that overflows is told from the scale: 65504 · 63 fits in f32.
    let mut block = [0xff; 144];
    block[..4].copy_from_slice(&[0xff, 0x7b, 0xff, 0x7b]);
    let packed = pack(GgufType::Q4_K, [1, 256], &block).dequantize();
    assert_eq!(packed[0], 65_504.0 * 63.0 * 15.0 - 65_504.0 * 63.0);
}

#[test]
fn unread_types_are_named() {
    for (kind, bytes) in [(GgufType::IQ2_XXS, 66), (GgufType::MXFP4, 17), (GgufType::Q8_1, 36)] {
        assert!(!kind.is_readable() && kind.block_bytes() == bytes);
        let data = vec![0; bytes];
        let error = matrix(kind, [1, kind.block_len()], &data).pack().unwrap_err().to_string();
        assert!(error.contains(&format!("type {kind} is not read; read are F32")), "{error}");
    }
    assert!(matrix(GgufType::F64, [1, 1], &[0; 8]).floats().is_err());
    assert!(matrix(GgufType::F32, [1, 1], &[0; 4]).pack().is_err());
    let read = (0..64).filter_map(GgufType::from_number).filter(|kind| kind.is_readable());
    assert_eq!(read.count(), READ.len() + 3);
    for number in 0..64 {
        if let Some(kind) = GgufType::from_number(number) {
            assert_eq!(kind.number(), number);
        }
    }
}
