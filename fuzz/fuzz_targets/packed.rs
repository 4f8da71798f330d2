//! A checkpoint in few bits: the first byte says in which layout, the rest is
//! `model.safetensors`. Every matrix that is accepted has only finite numbers to compute with.
#![no_main]

use std::{cell::OnceCell, fs, path::Path};

use engine_core::{Checkpoint, ModelConfig, StoredMatrix, WeightSource};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

thread_local! {
    static DIR: OnceCell<TempDir> = const { OnceCell::new() };
}

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

fuzz_target!(|input: &[u8]| {
    let Some((&layout, bytes)) = input.split_first() else { return };
    let layout = LAYOUTS[usize::from(layout) % LAYOUTS.len()];
    let json = format!(
        r#"{{"model_type":"llama","hidden_size":16,"intermediate_size":16,"num_hidden_layers":1,
        "num_attention_heads":1,"vocab_size":8,"quantization_config":{layout}}}"#
    );
    let config = ModelConfig::parse(json.as_bytes(), Path::new("config.json")).unwrap();
    DIR.with(|dir| {
        let dir = dir.get_or_init(|| tempfile::tempdir().unwrap()).path();
        fs::write(dir.join("model.safetensors"), bytes).unwrap();
        let Ok(checkpoint) = Checkpoint::open(dir) else { return };
        let checkpoint = checkpoint.with_quantization(config.quantization.clone());
        if let Ok(StoredMatrix::Packed(packed)) = checkpoint.matrix("w.weight", [8, 16]) {
            packed.check().unwrap();
            assert_eq!(packed.dequantize().len(), 8 * 16);
        }
    });
});
