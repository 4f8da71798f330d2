//! The fuzz target's corpus, and damaged variants of it: an error or a value, no panic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod gguf_file;

use engine_core::{ModelConfig, Rope, WeightSource};
use engine_quant::GgufMatrix;
use gguf_file::{
    Writer,
    convert::{convert, data, pairs},
    pair, put, u32_pair,
};

/// What the fuzz target `gguf` does.
fn read_all(bytes: &[u8]) -> bool {
    let Ok(file) = gguf_file::open(bytes) else { return false };
    for tensor in file.tensors() {
        let columns = tensor.shape[tensor.shape.len() - 1];
        let shape = [tensor.shape.iter().product::<usize>() / columns, columns];
        let (kind, bytes) = (tensor.kind, tensor.bytes);
        let matrix = GgufMatrix { kind, shape, bytes, row_order: None };
        match tensor.kind.is_float() {
            true => assert!(matrix.floats().is_ok()),
            false => drop(matrix.pack()),
        }
    }
    let Ok(config) = ModelConfig::from_gguf(&file) else { return false };
    config.ropes.iter().for_each(|rope| drop(Rope::new(rope)));
    let table = [config.vocab_size, config.hidden_size];
    let embedding = file.matrix("model.embed_tokens.weight", table);
    let rows = config.num_heads * config.head_dim;
    let name = "model.layers.0.self_attn.q_proj.weight";
    embedding.is_ok() && file.matrix(name, [rows, config.hidden_size]).is_ok()
}

#[test]
fn the_corpus_and_damaged_variants_of_it() {
    let dir = data().join("../../fuzz/corpus/gguf");
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let (mut seed, mut accepted, mut refused) = (1_u64, 0, 0);
    let mut random = |bound: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) as usize % bound.max(1)
    };
    for path in &files {
        let bytes = std::fs::read(path).unwrap();
        let good = read_all(&bytes);
        assert_eq!(good, path.display().to_string().contains("good"), "{path:?}");
        accepted += usize::from(good);
        for _ in 0..150 {
            let mut damaged = bytes.clone();
            for _ in 0..=random(3) {
                let at = random(damaged.len());
                match random(4) {
                    0 => damaged.truncate(at),
                    1 => drop(damaged.splice(at..at, [random(256) as u8; 3])),
                    _ if at < damaged.len() => damaged[at] = [0, 1, 0x7f, 0xff, 9][random(5)],
                    _ => (),
                }
            }
            refused += usize::from(!read_all(&damaged));
        }
    }
    assert!(files.len() >= 8 && accepted >= 4, "{} files, {accepted} accepted", files.len());
    assert!(refused > 150 * files.len() / 4, "{refused} damaged files were refused");
}

/// The seeds of the fuzz target are what this file makes: a change of the format's writer or of the
/// corpus shows here. `ENGINE_WRITE_CORPUS=1` writes them anew.
#[test]
fn the_corpus_holds_the_seeds() {
    let dir = data().join("../../fuzz/corpus/gguf");
    let write = std::env::var_os("ENGINE_WRITE_CORPUS").is_some();
    for (name, bytes) in seeds() {
        if write {
            std::fs::write(dir.join(&name), &bytes).unwrap();
        }
        assert!(std::fs::read(dir.join(&name)).unwrap() == bytes, "{name}");
    }
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    for (kind, block_len, block_bytes) in [(0, 1, 4), (8, 32, 34), (12, 256, 144), (20, 32, 18)] {
        let writer = tiny(kind, block_len, block_bytes);
        seeds.push((format!("good_type_{kind}.gguf"), writer.bytes()));
    }
    let good = tiny(2, 32, 18);
    let mut alter = |name: &str, change: &dyn Fn(&mut Writer)| {
        let mut writer = good.clone();
        change(&mut writer);
        seeds.push((name.to_owned(), writer.bytes()));
    };
    alter("overlap.gguf", &|w| w.tensors[1].offset = w.tensors[0].offset);
    alter("beyond_end.gguf", &|w| w.tensors[1].offset = 1 << 40);
    alter("twice.gguf", &|w| w.tensors[1].name = w.tensors[0].name.clone());
    alter("absurd_shape.gguf", &|w| w.tensors[0].dims = vec![1 << 62, 1 << 62]);
    alter("unread_type.gguf", &|w| w.tensors[0].kind = 39);
    alter("no_layers.gguf", &|w| w.pairs.truncate(1));
    alter("other_heads.gguf", &|w| {
        put(w, "llama.attention.head_count", u32_pair("llama.attention.head_count", 3));
    });
    let huge = [&8_u32.to_le_bytes()[..], &(1_u64 << 60).to_le_bytes()].concat();
    alter("absurd_list.gguf", &|w| w.pairs.push(pair("list", 9, &huge)));
    seeds.push(("version_1.gguf".to_owned(), b"GGUF\x01\0\0\0\0\0\0\0\0\0\0\0".to_vec()));
    seeds
}

/// A model of one layer whose matrices are of one type.
fn tiny(kind: u32, block_len: u64, block_bytes: usize) -> Writer {
    let hidden = block_len.max(16);
    let (_, mut config, _) = convert("llama-mha-tied");
    (config.num_layers, config.hidden_size, config.head_dim) = (1, hidden as usize, 8);
    (config.num_heads, config.num_kv_heads, config.intermediate_size) = (2, 1, hidden as usize);
    let mut writer = Writer { pairs: pairs("llama", &config), ..Writer::default() };
    let mut matrix = |name: &str, rows: u64| {
        let blocks = (hidden / block_len * rows) as usize;
        writer.push(name, &[hidden, rows], kind, &vec![1; blocks * block_bytes]);
    };
    matrix("token_embd.weight", 3);
    matrix("blk.0.attn_q.weight", 16);
    matrix("blk.0.attn_k.weight", 8);
    writer.push("blk.0.attn_norm.weight", &[hidden], 0, &vec![0; 4 * hidden as usize]);
    writer
}
