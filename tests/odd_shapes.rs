//! Models of shapes that no kernel was tuned for give the logits of the plain computation.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use common::tiny::TinyModel;
use common::{LOGIT_TOLERANCE, devices, max_difference};
use engine::{Engine, PromptReport, Request};

fn shapes() -> Vec<TinyModel> {
    let base = TinyModel::default();
    vec![
        TinyModel { head_dim: 2, heads: 5, kv_heads: 5, tied: true, ..base.clone() },
        TinyModel { head_dim: 6, heads: 6, kv_heads: 2, bias: true, ..base.clone() },
        TinyModel { head_dim: 10, heads: 7, kv_heads: 1, layers: 2, ..base.clone() },
        TinyModel { head_dim: 34, heads: 2, kv_heads: 1, bias: true, tied: true, ..base.clone() },
        TinyModel { hidden: 6, intermediate: 2, heads: 1, vocab: 3, ..base.clone() },
        TinyModel { hidden: 130, intermediate: 258, vocab: 1031, layers: 3, ..base.clone() },
        TinyModel { heads: 33, kv_heads: 11, head_dim: 4, tied: true, ..base },
    ]
}

#[test]
fn odd_models_equal_the_plain_computation_on_every_device() {
    for (seed, shape) in (1..).zip(shapes()) {
        let folder = tempfile::tempdir().unwrap();
        let weights = shape.weights(seed);
        weights.save(folder.path());
        for device in devices() {
            let engine = Engine::builder(folder.path().display().to_string())
                .device(device)
                .block_size(3)
                .max_batched_tokens(7)
                .kv_cache_bytes(1 << 18)
                .load()
                .unwrap();
            for len in [1, 2, 19] {
                let tokens: Vec<u32> =
                    (0..len).map(|i| (i * 37 + 2) % shape.vocab as u32).collect();
                let request = Request::tokens(tokens.clone()).max_tokens(3);
                let request = request.prompt_report(PromptReport::Logits).ignore_eos();
                let completion = engine.generate(request).unwrap();
                let found = &completion.prompt.as_ref().unwrap().logits;
                let difference = max_difference(found, &weights.logits(&tokens));
                assert!(
                    difference <= LOGIT_TOLERANCE,
                    "{shape:?}, {len} tokens on {device}: logits differ by {difference}"
                );
                // The tokens that it chose are the likeliest of the plain computation, or tie.
                let whole = [&tokens[..], completion.tokens()].concat();
                let logits = weights.logits(&whole);
                for (row, chosen) in (tokens.len() - 1..).zip(completion.tokens()) {
                    let row = &logits[row * shape.vocab..][..shape.vocab];
                    let largest = row.iter().copied().fold(f32::MIN, f32::max);
                    let behind = largest - row[*chosen as usize];
                    assert!(behind <= 2.0 * LOGIT_TOLERANCE, "{shape:?} on {device}: {behind}");
                }
            }
        }
    }
}
