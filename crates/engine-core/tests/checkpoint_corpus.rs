//! The fuzz targets' corpus, and damaged variants of real files: an error or a value, no panic.
// Clippy's exception for tests ends at the functions they share.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use engine_core::{Checkpoint, GenerationConfig, ModelConfig, Rope, StoredMatrix, WeightSource};
use tempfile::TempDir;

/// A small reproducible source of randomness (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let dir = root().join("fuzz/corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 5, "the corpus of {target} has {} files", files.len());
    files.into_iter().map(|file| fs::read(file).unwrap()).collect()
}

/// What the target `config` does.
fn read_config(json: &[u8]) -> bool {
    let Ok(config) = ModelConfig::parse(json, Path::new("config.json")) else { return false };
    assert_eq!(config.layers.len(), config.num_layers);
    assert!(config.num_heads.is_multiple_of(config.num_kv_heads));
    for layer in &config.layers {
        assert!(layer.rope < config.ropes.len() && layer.window != Some(0));
    }
    for rope in &config.ropes {
        assert!(rope.rotary_dim <= config.head_dim);
        let mut out = vec![f32::NAN; rope.rotary_dim];
        Rope::new(rope).cos_sin_into(config.max_context() - 1, config.max_context(), &mut out);
        assert!(out.iter().all(|x| x.is_finite()), "{rope:?}");
    }
    true
}

/// A directory whose files are rewritten again and again.
struct Scratch(TempDir);

impl Scratch {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// What the targets `checkpoint` and `index` do.
    fn read(&self, name: &str, bytes: &[u8]) -> bool {
        fs::write(self.0.path().join(name), bytes).unwrap();
        let Ok(checkpoint) = Checkpoint::open(self.0.path()) else { return false };
        for name in checkpoint.names() {
            let Ok(tensor) = checkpoint.tensor(name) else { continue };
            let loaded = checkpoint.load(name, tensor.shape).unwrap();
            assert_eq!(loaded.bytes.len(), tensor.bytes.len());
        }
        true
    }
}

/// A file changed in one of the ways that disks, networks and hostile people change files.
fn damage(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=random.below(3) {
        let len = bytes.len().max(1);
        let at = random.below(len).min(bytes.len());
        match random.below(6) {
            0 => bytes.truncate(at),
            1 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            2 if at < bytes.len() => bytes[at] = random.next() as u8,
            // Digits are where sizes, shapes and offsets are.
            3 => {
                let digits: Vec<usize> =
                    (0..bytes.len()).filter(|&i| bytes[i].is_ascii_digit()).collect();
                if let Some(&digit) = digits.get(random.below(digits.len().max(1))) {
                    bytes[digit] = b"0123456789-.e\"[]{}"[random.below(18)];
                }
            }
            4 => {
                let end = (at + random.below(40)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                let to = random.below(len).min(bytes.len());
                bytes.splice(to..to, piece);
            }
            _ => {
                let end = (at + random.below(40)).min(bytes.len());
                bytes.drain(at..end);
            }
        }
    }
    bytes
}

/// Reads each file of a corpus and 39 damaged variants of it, and asserts how many of the files
/// themselves are accepted.
fn replay(target: &str, expected: usize, read: impl Fn(&[u8]) -> bool) {
    let mut random = Random(target.len() as u64);
    let (mut accepted, mut refused) = (0, 0);
    for bytes in corpus(target) {
        accepted += usize::from(read(&bytes));
        for _ in 1..40 {
            refused += usize::from(!read(&damage(&bytes, &mut random)));
        }
    }
    assert_eq!(accepted, expected, "good files of the corpus {target}");
    assert!(refused > 50, "only {refused} damaged files of the corpus {target} were refused");
}

#[test]
fn the_corpus_of_configs() {
    replay("config", 18, |json| {
        let _ = GenerationConfig::parse(json, Path::new("generation_config.json"));
        read_config(json)
    });
}

#[test]
fn the_corpus_of_checkpoints() {
    let scratch = Scratch::new();
    replay("checkpoint", 5, |bytes| scratch.read("model.safetensors", bytes));
}

#[test]
fn the_corpus_of_indices() {
    let scratch = Scratch::new();
    for shard in ["one.safetensors", "two.safetensors"] {
        let bytes = fs::read(root().join("fuzz/shards").join(shard)).unwrap();
        fs::write(scratch.0.path().join(shard), bytes).unwrap();
    }
    replay("index", 3, |json| scratch.read("model.safetensors.index.json", json));
}

/// The layouts of the target `packed`, in its order.
const LAYOUTS: [&str; 7] = [
    r#"{"quant_method":"gptq","bits":4,"group_size":8,"sym":true}"#,
    r#"{"quant_method":"gptq","bits":8,"group_size":-1}"#,
    r#"{"quant_method":"awq","bits":4,"group_size":8}"#,
    r#"{"quant_method":"bitsandbytes","load_in_4bit":true,"bnb_4bit_quant_type":"nf4"}"#,
    r#"{"quant_method":"bitsandbytes","load_in_8bit":true}"#,
    r#"{"quant_method":"engine","version":1,
        "default":{"format":"x","bits":4,"group_size":8,"zero":8}}"#,
    r#"{"quant_method":"engine","version":2,
        "default":{"format":"x","bits":8,"zero":128,"order":"blocks"}}"#,
];

#[test]
fn the_corpus_of_matrices_in_few_bits() {
    let scratch = Scratch::new();
    replay("packed", 11, |input| {
        let Some((&layout, bytes)) = input.split_first() else { return false };
        let layout = LAYOUTS[usize::from(layout) % LAYOUTS.len()];
        let json = format!(
            r#"{{"model_type":"llama","hidden_size":16,"intermediate_size":16,
            "num_hidden_layers":1,"num_attention_heads":1,"vocab_size":8,
            "quantization_config":{layout}}}"#
        );
        let config = ModelConfig::parse(json.as_bytes(), Path::new("config.json")).unwrap();
        fs::write(scratch.0.path().join("model.safetensors"), bytes).unwrap();
        let Ok(checkpoint) = Checkpoint::open(scratch.0.path()) else { return false };
        let checkpoint = checkpoint.with_quantization(config.quantization);
        match checkpoint.matrix("w.weight", [8, 16]) {
            Ok(StoredMatrix::Packed(packed)) => {
                packed.check().unwrap();
                assert_eq!(packed.dequantize().len(), 8 * 16);
                true
            }
            Ok(StoredMatrix::Dense(matrix)) => {
                assert_eq!(matrix.shape(), [8, 16]);
                true
            }
            Err(_) => false,
        }
    });
}

#[test]
fn damaged_real_checkpoints() {
    let scratch = Scratch::new();
    let mut random = Random(4);
    let file = root().join("tests/data/models/llama-f16/model.safetensors");
    let bytes = fs::read(file).unwrap();
    let header_len = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut refused = 0;
    for _ in 0..150 {
        // Damage to the tensors' bytes is not an error, so it goes into the header.
        let mut damaged = damage(&bytes[..header_len], &mut random);
        damaged.extend(&bytes[header_len..]);
        refused += usize::from(!scratch.read("model.safetensors", &damaged));
    }
    for _ in 0..50 {
        assert!(!scratch.read("model.safetensors", &bytes[..random.below(bytes.len())]));
    }
    assert!(refused > 100, "only {refused} of 150 damaged headers were refused");
}

#[test]
fn damaged_real_configs() {
    let mut random = Random(5);
    for dir in fs::read_dir(root().join("tests/data/models")).unwrap() {
        let dir = dir.unwrap().path();
        let config = fs::read(dir.join("config.json")).unwrap();
        assert!(read_config(&config), "{}", dir.display());
        for len in 0..config.len() - 2 {
            assert!(!read_config(&config[..len]), "{} cut to {len}", dir.display());
        }
        for _ in 0..60 {
            read_config(&damage(&config, &mut random));
        }
    }
}
