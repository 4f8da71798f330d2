//! `model.safetensors`: every tensor of a file that is accepted can be read.
#![no_main]

use std::{cell::OnceCell, fs};

use engine_core::Checkpoint;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

thread_local! {
    static DIR: OnceCell<TempDir> = const { OnceCell::new() };
}

fuzz_target!(|bytes: &[u8]| {
    DIR.with(|dir| {
        let dir = dir.get_or_init(|| tempfile::tempdir().unwrap()).path();
        fs::write(dir.join("model.safetensors"), bytes).unwrap();
        let Ok(checkpoint) = Checkpoint::open(dir) else { return };
        for name in checkpoint.names() {
            let Ok(tensor) = checkpoint.tensor(name) else { continue };
            let loaded = checkpoint.load(name, tensor.shape).unwrap();
            assert_eq!(loaded.bytes.len(), tensor.bytes.len());
        }
    });
});
