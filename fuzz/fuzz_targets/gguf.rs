//! GGUF files: every tensor of a file that is accepted can be read or is refused, and so is the
//! configuration.
#![no_main]

use std::{cell::OnceCell, fs};

use engine_core::{GgufFile, ModelConfig, Rope, WeightSource};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

thread_local! {
    static DIR: OnceCell<TempDir> = const { OnceCell::new() };
}

fuzz_target!(|bytes: &[u8]| {
    DIR.with(|dir| {
        let path = dir.get_or_init(|| tempfile::tempdir().unwrap()).path().join("model.gguf");
        fs::write(&path, bytes).unwrap();
        let Ok(file) = GgufFile::open(&path) else { return };
        for tensor in file.tensors() {
            let columns = tensor.shape[tensor.shape.len() - 1];
            let rows = tensor.shape.iter().product::<usize>() / columns;
            let matrix = engine_quant::GgufMatrix {
                kind: tensor.kind,
                shape: [rows, columns],
                bytes: tensor.bytes,
                row_order: None,
            };
            match tensor.kind.is_float() {
                true => assert!(matrix.floats().is_ok()),
                false => drop(matrix.pack()),
            }
        }
        let Ok(config) = ModelConfig::from_gguf(&file) else { return };
        config.ropes.iter().for_each(|rope| drop(Rope::new(rope)));
        let table = [config.vocab_size, config.hidden_size];
        let _ = file.matrix("model.embed_tokens.weight", table);
        let rows = config.num_heads * config.head_dim;
        let name = "model.layers.0.self_attn.q_proj.weight";
        let _ = file.matrix(name, [rows, config.hidden_size]);
    });
});
