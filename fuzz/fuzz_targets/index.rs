//! `model.safetensors.index.json` over two good shards: no file outside the directory is opened,
//! and every tensor of an index that is accepted can be read.
#![no_main]

use std::{cell::OnceCell, fs};

use engine_core::Checkpoint;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

thread_local! {
    static DIR: OnceCell<TempDir> = const { OnceCell::new() };
}

/// A directory with two shards.
fn shards() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let one = include_bytes!("../shards/one.safetensors");
    let two = include_bytes!("../shards/two.safetensors");
    fs::write(dir.path().join("one.safetensors"), one).unwrap();
    fs::write(dir.path().join("two.safetensors"), two).unwrap();
    dir
}

fuzz_target!(|json: &[u8]| {
    DIR.with(|dir| {
        let dir = dir.get_or_init(shards).path();
        fs::write(dir.join("model.safetensors.index.json"), json).unwrap();
        let Ok(checkpoint) = Checkpoint::open(dir) else { return };
        for name in checkpoint.names() {
            assert!(checkpoint.tensor(name).is_ok());
        }
    });
});
