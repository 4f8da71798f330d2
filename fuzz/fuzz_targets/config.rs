//! `config.json` and `generation_config.json`: whatever is accepted is consistent.
#![no_main]

use std::path::Path;

use engine_core::{GenerationConfig, ModelConfig, Rope};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| {
    let _ = GenerationConfig::parse(json, Path::new("generation_config.json"));
    let Ok(config) = ModelConfig::parse(json, Path::new("config.json")) else { return };
    assert_eq!(config.layers.len(), config.num_layers);
    assert!(config.num_heads.is_multiple_of(config.num_kv_heads));
    for layer in &config.layers {
        assert!(layer.rope < config.ropes.len() && layer.window != Some(0));
    }
    for rope in &config.ropes {
        assert!(rope.rotary_dim <= config.head_dim);
        let mut out = vec![f32::NAN; rope.rotary_dim];
        Rope::new(rope).cos_sin_into(config.max_context() - 1, config.max_context(), &mut out);
        assert!(out.iter().all(|x| x.is_finite()));
    }
});
