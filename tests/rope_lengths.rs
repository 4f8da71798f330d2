//! Where RoPE depends on the length of the sequence, decoding with the cache still equals
//! computing the whole sequence anew for every token.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::path::Path;

use engine::{Device, Engine, Request, SamplingParams};
use serde_json::{Value, json};

/// A copy of a test model with some keys of its config replaced.
fn variant(name: &str, keys: Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let source = common::model(name);
    let config = std::fs::read(source.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    for (key, value) in keys.as_object().unwrap() {
        config[key] = value.clone();
    }
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    std::fs::copy(source.join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    dir
}

fn open(dir: &Path, prefix_caching: bool) -> Engine {
    Engine::builder(dir.display().to_string())
        .device(Device::Cpu)
        .block_size(4)
        .kv_cache_bytes(4 << 20)
        .prefix_caching(prefix_caching)
        .load()
        .unwrap()
}

fn greedy(engine: &Engine, prompt: &[u32], max_tokens: usize) -> (Vec<u32>, Vec<u32>) {
    let sampling = SamplingParams { logprobs: Some(0), ..SamplingParams::greedy() };
    let request = Request::tokens(prompt).max_tokens(max_tokens).ignore_eos().sampling(sampling);
    let choice = engine.generate(request).unwrap().choices.remove(0);
    let bits = choice.logprobs.iter().map(|token| token.logprob.to_bits()).collect();
    (choice.tokens, bits)
}

fn decoding_equals_recomputing(name: &str, keys: Value) {
    let dir = variant(name, keys);
    let (cached, fresh) = (open(dir.path(), true), open(dir.path(), false));
    let prompt: Vec<u32> = (0..20).map(|i| (i * 37 + 5) % 300).collect();
    let new = 24;
    let (tokens, bits) = greedy(&cached, &prompt, new);
    let mut sequence = prompt.clone();
    for i in 0..new {
        let (token, bit) = greedy(&fresh, &sequence, 1);
        assert_eq!((token[0], bit[0]), (tokens[i], bits[i]), "{name}: token {i}");
        sequence.push(token[0]);
    }
    // What the first run left in the prefix cache serves another length and must not be wrong there.
    let longer = &sequence[..sequence.len() - 4];
    assert_eq!(greedy(&cached, longer, 4), greedy(&fresh, longer, 4), "{name}: prefix hit");
    assert_eq!(greedy(&cached, &prompt, new), (tokens, bits), "{name}: again");
}

#[test]
fn longrope_crosses_its_threshold() {
    let factors = |base: f64| (0..8).map(|i| base + 0.1 * f64::from(i)).collect::<Vec<_>>();
    decoding_equals_recomputing(
        "phi3-fused",
        json!({
            "max_position_embeddings": 128,
            "original_max_position_embeddings": 32,
            "rope_scaling": {
                "type": "longrope", "short_factor": factors(1.0), "long_factor": factors(2.5),
            },
        }),
    );
}

#[test]
fn dynamic_ntk_changes_with_every_length() {
    decoding_equals_recomputing(
        "llama-gqa",
        json!({
            "max_position_embeddings": 30,
            "rope_scaling": { "type": "dynamic", "factor": 4.0 },
        }),
    );
}

#[test]
fn yarn_is_one_regime() {
    decoding_equals_recomputing(
        "llama-gqa",
        json!({
            "max_position_embeddings": 128,
            "rope_scaling": {
                "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32,
            },
        }),
    );
}
