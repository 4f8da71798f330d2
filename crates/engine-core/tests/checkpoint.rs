//! Checkpoints: real ones read exactly, damaged ones refused with an error that says what is wrong.
// Clippy's exception for tests ends at the functions they share.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{fs, path::Path};

use burn_tensor::DType;
use engine_core::{Checkpoint, LoadError, StoredMatrix, StoredType, WeightSource};
use half::{bf16, f16};
use serde_json::{Value, json};
use tempfile::TempDir;

fn model(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/models").join(name)
}

/// A safetensors file with this header and these bytes after it.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// A directory with some files.
fn dir(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

fn open(bytes: &[u8]) -> Result<Checkpoint, LoadError> {
    Checkpoint::open(dir(&[("model.safetensors", bytes)]).path())
}

/// Asserts that the file is refused and that the message has these words.
#[track_caller]
fn refuses(bytes: &[u8], words: &[&str]) {
    says(&open(bytes).unwrap_err(), &[&["model.safetensors"], words].concat());
}

#[track_caller]
fn says(error: &LoadError, words: &[&str]) {
    let message = error.to_string();
    for word in words {
        assert!(message.contains(word), "{word:?} is not in {message:?}");
    }
}

/// One tensor `w`.
fn one(dtype: &str, shape: Value, offsets: [u64; 2]) -> String {
    json!({ "w": { "dtype": dtype, "shape": shape, "data_offsets": offsets } }).to_string()
}

#[test]
fn reads_every_tensor_as_the_safetensors_crate_does() {
    for name in ["llama-gqa", "llama-bf16", "llama-f16", "qwen3-qknorm"] {
        let checkpoint = Checkpoint::open(model(name)).unwrap();
        let bytes = fs::read(model(name).join("model.safetensors")).unwrap();
        let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(checkpoint.names().count(), reference.len());
        let mut num_bytes = 0;
        for tensor in checkpoint.names() {
            let (ours, theirs) =
                (checkpoint.tensor(tensor).unwrap(), reference.tensor(tensor).unwrap());
            assert_eq!(
                (ours.name, ours.shape, ours.bytes),
                (tensor, theirs.shape(), theirs.data())
            );
            let loaded = checkpoint.load(tensor, theirs.shape()).unwrap();
            assert_eq!(&loaded.bytes[..], theirs.data());
            assert_eq!(&loaded.shape[..], theirs.shape());
            num_bytes += theirs.data().len();
        }
        assert_eq!(checkpoint.num_bytes(), num_bytes);
    }
    let bf16 = Checkpoint::open(model("llama-bf16")).unwrap();
    let norm = bf16.tensor("model.norm.weight").unwrap();
    assert_eq!((norm.dtype, norm.dtype.num_bytes(), norm.shape), (StoredType::Bf16, 2, &[64][..]));
    assert_eq!(bf16.load("model.norm.weight", &[64]).unwrap().dtype, DType::BF16);
}

#[test]
fn shards_read_as_one() {
    let checkpoint = Checkpoint::open(model("llama-sharded")).unwrap();
    let index = fs::read(model("llama-sharded").join("model.safetensors.index.json")).unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    let map = index["weight_map"].as_object().unwrap();
    assert_eq!(checkpoint.names().count(), map.len());
    assert_eq!(Some(checkpoint.num_bytes() as u64), index["metadata"]["total_size"].as_u64());
    for (name, shard) in map {
        let bytes = fs::read(model("llama-sharded").join(shard.as_str().unwrap())).unwrap();
        let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let reference = reference.tensor(name).unwrap();
        assert_eq!(checkpoint.tensor(name).unwrap().bytes, reference.data());
        assert!(checkpoint.contains(name));
    }
    assert!(!checkpoint.contains("model.norm"));
    assert_eq!(checkpoint.model_prefix(), "model.");
}

/// A tensor's elements in the file, and how far they are from alignment.
fn place(checkpoint: &Checkpoint, name: &str, align: usize) -> (*const u8, usize) {
    let start = checkpoint.tensor(name).unwrap().bytes.as_ptr();
    (start, start.addr() % align)
}

#[test]
fn matrices_stay_where_the_file_is_mapped_unless_they_are_not_aligned_or_are_to_be_copied() {
    let header = json!({
        "a": { "dtype": "F16", "shape": [2, 1], "data_offsets": [0, 4] },
        "b": { "dtype": "BF16", "shape": [1, 1], "data_offsets": [4, 6] },
        "c": { "dtype": "F32", "shape": [1, 2], "data_offsets": [6, 14] },
    });
    let data = [
        &[1.5, -65504.0].map(|x| f16::from_f32(x).to_le_bytes()).concat()[..],
        &bf16::from_f32(3e38).to_le_bytes(),
        &[f32::MIN_POSITIVE, -0.1].map(f32::to_le_bytes).concat(),
    ];
    let expected = [
        ("a", [2, 1], 2, vec![1.5, -65504.0]),
        ("b", [1, 1], 2, vec![bf16::from_f32(3e38).to_f32()]),
        ("c", [1, 2], 4, vec![f32::MIN_POSITIVE, -0.1]),
    ];
    let mut in_place = 0;
    // The header's length is odd here or not.
    for padding in ["", " ", "  ", "   "] {
        let bytes = file(&format!("{header}{padding}"), &data.concat());
        for copied in [false, true] {
            let checkpoint = open(&bytes).unwrap();
            let checkpoint = if copied { checkpoint.copied() } else { checkpoint };
            for (name, shape, align, values) in &expected {
                let (start, misaligned) = place(&checkpoint, name, *align);
                let StoredMatrix::Dense(matrix) = checkpoint.matrix(name, *shape).unwrap() else {
                    panic!("{name} is dense")
                };
                assert_eq!(matrix.to_f32(), *values);
                let stays = matrix.into_data().as_bytes().as_ptr() == start;
                assert_eq!(stays, !copied && misaligned == 0, "{name} {padding:?} {copied}");
                in_place += usize::from(stays);
            }
        }
    }
    assert!((1..12).contains(&in_place), "{in_place}");
}

#[test]
fn matrices_outlive_their_checkpoint() {
    let checkpoint = Checkpoint::open(model("llama-f16")).unwrap();
    let name = "model.layers.0.self_attn.q_proj.weight";
    let expected = checkpoint.load(name, &[64, 64]).unwrap();
    let matrix = checkpoint.matrix(name, [64, 64]).unwrap();
    let other = checkpoint.matrix(name, [64, 64]).unwrap();
    drop((checkpoint, other));
    assert_eq!(matrix.to_f32(), expected.iter::<f32>().collect::<Vec<_>>());
}

#[test]
fn a_missing_tensor_is_named_with_the_closest_one() {
    let checkpoint = Checkpoint::open(model("llama-mha-tied")).unwrap();
    let error = checkpoint.load("lm_head.weight", &[512, 64]).unwrap_err();
    says(&error, &["model.safetensors", "`lm_head.weight`", "the configuration"]);
    let error = checkpoint.tensor("model.layers.0.self_attn.q_proj.bias").unwrap_err();
    says(&error, &["closest name is `model.layers.0.self_attn.q_proj.weight`"]);
    let empty = open(&file("{}", b"")).unwrap();
    says(&empty.tensor("x").unwrap_err(), &["it is empty"]);
    assert_eq!((empty.num_bytes(), empty.names().count()), (0, 0));
}

#[test]
fn other_element_types_are_refused_when_they_are_needed() {
    let checkpoint = open(&file(&one("I64", json!([1]), [0, 8]), &[0; 8])).unwrap();
    assert!(checkpoint.contains("w"));
    says(&checkpoint.tensor("w").unwrap_err(), &["`w`", "BF16", "found I64", "convert"]);
    let checkpoint = open(&file(&one("F8_E4M3", json!([8]), [0, 8]), &[0; 8])).unwrap();
    says(&checkpoint.load("w", &[8]).unwrap_err(), &["found F8_E4M3"]);
    refuses(&file(&one("F13", json!([1]), [0, 8]), &[0; 8]), &["tensor `w`", "`F13`"]);
}

#[test]
fn files_that_are_something_else() {
    refuses(b"", &["an empty file", "download"]);
    refuses(b"<!DOCTYPE html><html>not found</html>", &["HTML"]);
    refuses(b"version https://git-lfs.github.com/spec/v1\noid sha256:12", &["git lfs pull"]);
    refuses(b"PK\x03\x04archive/data.pkl", &["pickle"]);
    refuses(b"GGUF\x03\0\0\0", &["GGUF"]);
    refuses(b"{\"error\": \"not found\"}", &["header of at most 100000000"]);
    refuses(b"1234", &["at least 8 bytes", "4 bytes"]);
}

#[test]
fn damaged_headers() {
    let good = file(&one("F32", json!([2, 1]), [0, 8]), &[0; 8]);
    assert!(open(&good).is_ok());
    for len in 0..good.len() {
        assert!(open(&good[..len]).is_err(), "{len} bytes of {} were accepted", good.len());
    }
    refuses(&good[..20], &["a file that ends after 12"]);
    refuses(&good[..good.len() - 1], &["`w`", "within the file's 7", "bytes 0..8"]);
    refuses(&[&good[..], b"x"].concat(), &["8 bytes of tensors", "found 9 bytes"]);
    refuses(&u64::MAX.to_le_bytes(), &["18446744073709551615"]);
    let huge = [&(1u64 << 40).to_le_bytes()[..], b"{}"].concat();
    refuses(&huge, &["at most 100000000", "1099511627776"]);

    let header = |text: &str| file(text, &[0; 8]);
    refuses(&header("{"), &["a JSON object"]);
    refuses(&header("[]"), &["a JSON object"]);
    refuses(&header("{\"w\": 3}"), &["tensor `w`"]);
    refuses(&header("{\"w\": {\"dtype\": \"F32\"}}"), &["tensor `w`", "missing field"]);
    refuses(&file("\u{fffd}", b""), &["a JSON object"]);
    refuses(&[&2u64.to_le_bytes()[..], b"\xff\xff"].concat(), &["a JSON object"]);
    let entry = r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;
    refuses(&header(&format!(r#"{{"w":{entry},"w":{entry}}}"#)), &["`w` appears twice"]);
    refuses(&header(&one("F32", json!([-2]), [0, 8])), &["tensor `w`"]);
    refuses(&header(&one("F32", json!([2.5]), [0, 8])), &["tensor `w`"]);
    let entry = r#"{"dtype":"F32","shape":[3],"data_offsets":[0,8]}"#;
    let error = open(&header(&format!(r#"{{"w\n\u001b[2J":{entry}}}"#))).unwrap_err();
    assert!(!error.to_string().contains(|c: char| c.is_control()), "{error}");
    let deep = format!("{{\"__metadata__\": {}}}", "[".repeat(100_000));
    refuses(&header(&deep), &["a JSON object"]);
    // Metadata of any form is no business of ours.
    assert!(open(&file(r#"{"__metadata__":{"format":3}}"#, b"")).is_ok());
}

#[test]
fn shapes_and_offsets_that_lie() {
    let lie = |shape: Value, offsets| file(&one("F32", shape, offsets), &[0; 8]);
    refuses(&lie(json!([3]), [0, 8]), &["`w`", "expected 12 bytes", "F32 [3] in 8 bytes"]);
    refuses(&lie(json!([]), [0, 8]), &["expected 4 bytes"]);
    refuses(&lie(json!([u64::MAX, 2]), [0, 8]), &["fits in memory"]);
    refuses(&lie(json!([1u64 << 62]), [0, 8]), &["fits in memory"]);
    refuses(&lie(json!([1u64 << 40, 0]), [0, 8]), &["expected 0 bytes"]);
    refuses(&lie(json!([2]), [8, 0]), &["offsets that ascend", "8..0"]);
    refuses(&lie(json!([2]), [0, u64::MAX]), &["within the file's 8"]);
    refuses(&lie(json!([1]), [4, 8]), &["a start at byte 0", "leaves a gap"]);
    let two = |second: [u64; 2]| {
        let entry =
            |offsets: [u64; 2]| json!({ "dtype": "F32", "shape": [1], "data_offsets": offsets });
        file(&json!({ "a": entry([0, 4]), "b": entry(second) }).to_string(), &[0; 8])
    };
    assert!(open(&two([4, 8])).is_ok());
    refuses(&two([2, 6]), &["`b`", "a start at byte 4", "overlaps"]);
    refuses(&two([0, 4]), &["overlaps"]);
    // Four-bit elements must fill whole bytes.
    refuses(&file(&one("F4", json!([15]), [0, 8]), &[0; 8]), &["`w`"]);
}

/// Two shards with one tensor each, and an index that says where they are.
fn sharded(weight_map: Value) -> TempDir {
    let tensor = |name: &str| {
        let entry = json!({ "dtype": "F32", "shape": [1], "data_offsets": [0, 4] });
        file(&json!({ name: entry }).to_string(), &[0; 4])
    };
    let index = json!({ "metadata": {}, "weight_map": weight_map }).to_string();
    dir(&[
        ("1.safetensors", &tensor("a")),
        ("2.safetensors", &tensor("b")),
        ("again.safetensors", &tensor("a")),
        ("model.safetensors.index.json", index.as_bytes()),
    ])
}

#[test]
fn indices_that_lie() {
    let good = json!({ "a": "1.safetensors", "b": "2.safetensors" });
    assert!(Checkpoint::open(sharded(good).path()).is_ok());
    let refuses = |weight_map: Value, words: &[&str]| {
        let error = Checkpoint::open(sharded(weight_map).path()).unwrap_err();
        says(&error, words);
    };
    refuses(json!({ "a": "3.safetensors" }), &["3.safetensors"]);
    let (a, b) = ("1.safetensors", "2.safetensors");
    refuses(json!({ "a": a, "c": b }), &["index.json", "`c`", b, "it in no shard"]);
    refuses(json!({ "a": b, "b": b }), &["`a`", "the tensor in 2.safetensors", "no shard"]);
    refuses(json!({ "a": b, "b": a }), &["`a`", b, "it in 1.safetensors", "download"]);
    let twice = json!({ "a": a, "b": b, "c": "again.safetensors" });
    refuses(twice, &["again.safetensors", "`a`", "1.safetensors too"]);
    for path in [
        "../1.safetensors",
        "/etc/passwd",
        "x/1.safetensors",
        "./1.safetensors",
        "..",
        "",
        "1.bin",
        "C:1.safetensors",
        "x\\1.safetensors",
        "1.safetensors\0",
    ] {
        refuses(json!({ "a": path }), &["index.json", "`a`", "the same directory", "trust"]);
    }
    for json in [&b"{"[..], b"[]", b"{}", b"{\"weight_map\": []}", b"{\"weight_map\": {\"a\": 1}}"]
    {
        let dir = dir(&[("model.safetensors.index.json", json)]);
        let error = Checkpoint::open(dir.path()).unwrap_err();
        assert!(matches!(error, LoadError::Json { .. }), "{error}");
    }
    let twice = br#"{"weight_map": {"a": "1.safetensors", "a": "2.safetensors"}}"#;
    let error = Checkpoint::open(dir(&[("model.safetensors.index.json", twice)]).path());
    says(&error.unwrap_err(), &["`a` appears twice"]);
}

#[test]
fn directories_without_safetensors() {
    let found = |name: &str, words: &[&str]| {
        let error = Checkpoint::open(dir(&[(name, b"x"), ("config.json", b"{}")]).path());
        let error = error.unwrap_err();
        assert!(matches!(error, LoadError::NoWeights { .. }));
        says(&error, words);
    };
    found("pytorch_model.bin", &["pytorch_model.bin", "convert the model to safetensors"]);
    found("model.gguf", &["GGUF"]);
    found("adapter_model.safetensors", &["found adapter_model.safetensors", "base model"]);
    found("README.md", &["found no weights", "Hugging Face layout"]);
    let missing = Checkpoint::open(tempfile::tempdir().unwrap().path().join("nowhere"));
    says(&missing.unwrap_err(), &["cannot read", "nowhere"]);
    let dir = tempfile::tempdir().unwrap();
    #[cfg(unix)]
    {
        let link = dir.path().join("model.safetensors");
        std::os::unix::fs::symlink("nothing", &link).unwrap();
        says(&Checkpoint::open(dir.path()).unwrap_err(), &["cannot read", "model.safetensors"]);
        fs::remove_file(link).unwrap();
    }
    fs::create_dir(dir.path().join("model.safetensors")).unwrap();
    assert!(matches!(Checkpoint::open(dir.path()), Err(LoadError::Io { .. })));
}

#[test]
fn the_text_part_of_a_multimodal_checkpoint_is_found() {
    for prefix in ["model.", "language_model.model.", "model.language_model."] {
        let entry = json!({ "dtype": "F32", "shape": [2], "data_offsets": [0, 8] });
        let header = json!({ (format!("{prefix}embed_tokens.weight")): entry }).to_string();
        assert_eq!(open(&file(&header, &[0; 8])).unwrap().model_prefix(), prefix);
    }
}
