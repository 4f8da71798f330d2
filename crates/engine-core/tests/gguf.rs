//! GGUF files: the header, and what damaged ones are refused with.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod gguf_file;

use std::{fs, path::PathBuf};

use engine_core::{GgufFile, GgufValue, LoadError};
use gguf_file::{Writer, pair, text_pair};
use serde_json::Value;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/quant/gguf")
}

fn json(path: PathBuf) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// All files with their descriptions.
fn files() -> Vec<(PathBuf, Value)> {
    let mut files: Vec<_> = fs::read_dir(fixtures())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "gguf"))
        .map(|path| (path.clone(), json(path.with_extension("json"))))
        .collect();
    files.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(files.len(), 15);
    files
}

#[test]
fn headers_of_real_files() {
    for (path, expected) in files() {
        let file = GgufFile::open(&path).unwrap();
        let tensors = expected["tensors"].as_array().unwrap();
        assert_eq!(file.tensors().count(), tensors.len());
        for expected in tensors {
            let tensor = file.tensor(expected["name"].as_str().unwrap()).unwrap();
            assert_eq!(tensor.kind.to_string(), expected["type"].as_str().unwrap());
            assert_eq!(Value::from(tensor.shape), expected["shape_out_in"]);
            assert_eq!(Value::from(tensor.bytes.len()), expected["n_bytes"]);
        }
        let metadata = expected["metadata"].as_object().unwrap();
        for (key, expected) in metadata.iter().filter(|(key, _)| !key.starts_with("GGUF.")) {
            check_value(key, file.metadata().get(key).unwrap(), expected);
        }
        assert_eq!(file.metadata().iter().count(), metadata["GGUF.kv_count"], "{path:?}");
    }
}

fn check_value(key: &str, value: &GgufValue, expected: &Value) {
    let list = |len: usize, first: Value| {
        assert_eq!(Value::from(len), expected["length"], "{key}");
        assert_eq!(first, expected["first8"], "{key}");
    };
    match value {
        GgufValue::Integer(x) => assert_eq!(&Value::from(*x), expected, "{key}"),
        GgufValue::Float(x) => assert_eq!(&Value::from(*x), expected, "{key}"),
        GgufValue::Flag(x) => assert_eq!(&Value::from(*x), expected, "{key}"),
        GgufValue::Text(x) => assert_eq!(&Value::from(x.as_str()), expected, "{key}"),
        GgufValue::Integers(x) => list(x.len(), x[..8].into()),
        GgufValue::Texts(x) => list(x.len(), x[..8].into()),
        GgufValue::Floats(x) => list(x.len(), x[..8].into()),
        GgufValue::Flags(x) => list(x.len(), x[..8].into()),
    }
}

#[test]
fn values_of_every_type() {
    let mut writer = Writer::default();
    let numbers: [(&str, u32, Vec<u8>, GgufValue); 12] = [
        ("u8", 0, vec![200], GgufValue::Integer(200)),
        ("i8", 1, vec![0x80], GgufValue::Integer(-128)),
        ("u16", 2, vec![0xff, 0xff], GgufValue::Integer(65_535)),
        ("i16", 3, vec![0xff, 0xff], GgufValue::Integer(-1)),
        ("u32", 4, vec![0xff; 4], GgufValue::Integer(4_294_967_295)),
        ("i32", 5, vec![0xff; 4], GgufValue::Integer(-1)),
        ("f32", 6, 0.1_f32.to_le_bytes().into(), GgufValue::Float(f64::from(0.1_f32))),
        ("bool", 7, vec![1], GgufValue::Flag(true)),
        (
            "text",
            8,
            [&3_u64.to_le_bytes()[..], "né".as_bytes()].concat(),
            GgufValue::Text("né".into()),
        ),
        ("u64", 10, i64::MAX.to_le_bytes().into(), GgufValue::Integer(i64::MAX)),
        ("i64", 11, i64::MIN.to_le_bytes().into(), GgufValue::Integer(i64::MIN)),
        ("f64", 12, 0.1_f64.to_le_bytes().into(), GgufValue::Float(0.1)),
    ];
    for (key, kind, bytes, _) in &numbers {
        writer.pairs.push(pair(key, *kind, bytes));
        let list = [&kind.to_le_bytes()[..], &2_u64.to_le_bytes(), bytes, bytes].concat();
        writer.pairs.push(pair(&format!("{key}s"), 9, &list));
    }
    let file = writer.open().unwrap();
    for (key, _, _, expected) in &numbers {
        assert_eq!(file.metadata().get(key), Some(expected), "{key}");
        let list = match expected.clone() {
            GgufValue::Integer(x) => GgufValue::Integers(vec![x; 2]),
            GgufValue::Float(x) => GgufValue::Floats(vec![x as f32; 2]),
            GgufValue::Flag(x) => GgufValue::Flags(vec![x; 2]),
            GgufValue::Text(x) => GgufValue::Texts(vec![x.clone(), x]),
            other => other,
        };
        assert_eq!(file.metadata().get(&format!("{key}s")), Some(&list), "{key}s");
    }
    let metadata = file.metadata();
    assert_eq!(metadata.count("u32").unwrap(), Some(4_294_967_295));
    assert_eq!(metadata.number("i16").unwrap(), Some(-1.0));
    assert_eq!(metadata.count("nothing").unwrap(), None);
    let error = metadata.count("i16").unwrap_err().to_string();
    assert!(error.ends_with("`i16`: expected a whole number from 0 on, found -1"), "{error}");
    let error = metadata.texts("u8s").unwrap_err().to_string();
    assert!(
        error.ends_with("expected a list of texts, found a list of 2 whole numbers"),
        "{error}"
    );
}

/// A file that is refused, and a part of the message.
fn refused(bytes: &[u8], part: &str) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.gguf");
    fs::write(&path, bytes).unwrap();
    let error = GgufFile::open(&path).unwrap_err().to_string();
    assert!(error.contains(part), "{error}\n  does not contain\n{part}");
    assert!(error.contains("bad.gguf"), "{error}");
    assert!(!error.contains('\n'));
}

#[test]
fn what_is_no_gguf_file() {
    refused(b"", "not a GGUF file but an empty file");
    refused(b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer");
    refused(b"<!DOCTYPE html><html>", "an HTML or XML page");
    refused(b"tjgg\x03\0\0\0", "a model in a format of llama.cpp from before GGUF");
    refused(b"hello, world", "it does not begin with the letters GGUF");
    refused(b"GGUF\x01\0\0\0", "GGUF version 1 is not read");
    refused(b"GGUF\0\0\0\x03", "GGUF version 3 in big-endian byte order is not read");
    refused(b"GGUF\x04\0\0\0", "GGUF version 4 is not read");
    refused(b"GGUF\x03\0", "expected 4 more bytes in the header, found a file that ends after 2");
}

#[test]
fn version_2_is_the_same() {
    let mut bytes = Writer::with_tensor().bytes();
    bytes[4] = 2;
    assert!(gguf_file::open(&bytes).is_ok());
}

#[test]
fn absurd_counts() {
    let huge = u64::MAX.to_le_bytes();
    let header = |tensors: [u8; 8], pairs: [u8; 8]| {
        [b"GGUF\x03\0\0\0".as_slice(), &tensors, &pairs].concat()
    };
    refused(&header(huge, [0; 8]), "expected at most 0 tensors, for which the file has room,");
    refused(&header([0; 8], huge), "keys, for which the file has room, in the header");
    let with = |kind: u32, value: &[u8]| {
        Writer { pairs: vec![pair("k", kind, value)], ..Writer::default() }.bytes()
    };
    refused(&with(8, &huge), "expected 18446744073709551615 more bytes in the value of `k`");
    for (kind, name) in [(0_u32, "elements"), (8, "elements"), (12, "elements")] {
        let list = [&kind.to_le_bytes()[..], &(1_u64 << 60).to_le_bytes()].concat();
        refused(&with(9, &list), name);
    }
    refused(&with(9, &[9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), "found a list of lists");
    refused(&with(13, &[]), "expected a type of values from 0 to 12 in the value of `k`, found 13");
    refused(&with(7, &[2]), "expected a truth of 0 or 1");
    refused(&with(10, &huge), "expected a whole number of at most 63 bits");
    refused(&with(8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff]), "expected text in UTF-8");
}

#[test]
fn contradictions() {
    let twice =
        Writer { pairs: vec![text_pair("k", "a"), text_pair("k", "b")], ..Writer::default() };
    refused(&twice.bytes(), "expected a key that appears once in the value of `k`, found it twice");

    let mut writer = Writer::with_tensor();
    writer.tensors.push(writer.tensors[0].clone());
    refused(&writer.bytes(), "expected a name that appears once in tensor `a.weight`");
    writer.tensors[1].name = "b.weight".into();
    refused(&writer.bytes(), "tensor `b.weight`: expected a start behind byte");

    let alter = |change: fn(&mut gguf_file::Tensor)| {
        let mut writer = Writer::with_tensor();
        change(&mut writer.tensors[0]);
        writer.bytes()
    };
    let tensor = |part: &str| format!("tensor `a.weight`: expected {part}");
    refused(&alter(|t| t.offset = 16), &tensor("an offset that is a multiple of 32, found 16"));
    refused(&alter(|t| t.offset = 1 << 63), &tensor("bytes within the file's 128 of data"));
    refused(&alter(|t| t.offset = 32), "found 128 from byte 32 on");
    refused(&alter(|t| t.dims = vec![1 << 40, 1 << 40]), &tensor("a shape that holds numbers"));
    refused(&alter(|t| t.dims = vec![u64::MAX]), &tensor("a shape that holds numbers"));
    refused(&alter(|t| t.dims = vec![8, 0]), &tensor("a shape that holds numbers"));
    refused(
        &alter(|t| t.dims = vec![]),
        "expected 1 to 4 dimensions in tensor `a.weight`, found 0",
    );
    refused(&alter(|t| t.dims = vec![1; 5]), "expected 1 to 4 dimensions");
    refused(
        &alter(|t| (t.kind, t.dims) = (2, vec![8, 4])),
        &tensor("rows of whole Q4_0 blocks of 32"),
    );
    refused(&alter(|t| t.kind = 33), "type Q4_0_8_8, which llama.cpp no longer has, is not read");
    refused(&alter(|t| t.kind = 1000), "type number 1000 is not read");

    let mut writer = Writer::with_tensor();
    writer.pairs.push(pair("general.alignment", 4, &24_u32.to_le_bytes()));
    refused(
        &writer.bytes(),
        "`general.alignment`: expected a power of two up to 1073741824, found 24",
    );
    writer.pairs[0] = pair("general.alignment", 4, &4096_u32.to_le_bytes());
    assert!(writer.open().is_err(), "the data is aligned to 32 in this file");
    writer.alignment = 4096;
    assert!(writer.open().is_ok());
}

#[test]
fn a_missing_file_and_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let error = GgufFile::open(dir.path()).unwrap_err();
    assert!(matches!(error, LoadError::Io { .. }), "{error}");
    let error = GgufFile::open(dir.path().join("none.gguf")).unwrap_err();
    assert!(matches!(error, LoadError::Io { .. }), "{error}");
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = Writer::with_tensor().bytes();
    for len in 0..bytes.len() {
        assert!(gguf_file::open(&bytes[..len]).is_err(), "cut to {len} of {}", bytes.len());
    }
}
