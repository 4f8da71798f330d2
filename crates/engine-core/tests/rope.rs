//! Rotary embeddings against transformers' own numbers and against the formulas in `f64`.
// Clippy's exception for tests ends at the functions they share.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{f64::consts::TAU, path::Path};

use engine_core::{ModelConfig, Rope, RopeConfig, RopeLength, RopeScaling};
use proptest::prelude::*;
use serde_json::Value;

fn read(rope: &Rope, position: usize, rope_len: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; rope.rotary_dim()];
    rope.cos_sin_into(position, rope_len, &mut out);
    out
}

fn plain(theta: f64, rotary_dim: usize) -> RopeConfig {
    RopeConfig { theta, rotary_dim, max_position_embeddings: 256, scaling: RopeScaling::None }
}

/// How far a cosine may be off: the rounding of the cosine and, for an angle computed in `f32`,
/// two units in the angle's last place.
fn tolerance(position: usize, inv_freq: f64) -> f64 {
    2e-7 + 2.0 * position as f64 * inv_freq * f64::from(f32::EPSILON)
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

#[test]
fn agrees_with_transformers() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/rope.json");
    let fixture: Value = serde_json::from_slice(&std::fs::read(fixture).unwrap()).unwrap();
    let cases = fixture["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 21);
    let mut compared = 0;
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let json = serde_json::to_vec(&case["config"]).unwrap();
        let config = ModelConfig::parse(&json, Path::new(name)).unwrap();
        let expected = case["ropes"].as_array().unwrap();
        assert_eq!(config.ropes.len(), expected.len(), "{name}");
        for (config, lengths) in config.ropes.iter().zip(expected) {
            let rope = Rope::new(config);
            for run in lengths.as_array().unwrap() {
                compared += compare(name, &rope, run);
            }
        }
    }
    assert!(compared > 5_000, "only {compared} numbers were compared");
}

/// Compares one run of the fixture and returns how many numbers it had.
fn compare(name: &str, rope: &Rope, run: &Value) -> usize {
    let rope_len = run["rope_len"].as_u64().unwrap() as usize;
    let inv_freq = floats(&run["inv_freq"]);
    let factor = run["attention_factor"].as_f64().unwrap();
    assert_eq!(rope.rotary_dim(), 2 * inv_freq.len(), "{name}");
    let positions = floats(&run["positions"]);
    for (i, &position) in positions.iter().enumerate() {
        let out = read(rope, position as usize, rope_len);
        let reference = [floats(&run["cos"][i]), floats(&run["sin"][i])].concat();
        for (j, (&ours, theirs)) in out.iter().zip(reference).enumerate() {
            let freq = inv_freq[j % inv_freq.len()];
            let limit = factor * tolerance(position as usize, freq);
            let diff = (f64::from(ours) - theirs).abs();
            assert!(diff <= limit, "{name}, length {rope_len}, position {position}, {j}: {diff}");
        }
    }
    positions.len() * 2 * inv_freq.len()
}

/// The published formulas, in `f64` and without regard to transformers' order of operations.
fn inv_freq_f64(config: &RopeConfig, rope_len: usize) -> Vec<f64> {
    let dim = config.rotary_dim as f64;
    let turn = |theta: f64, i: usize| theta.powf(-2.0 * i as f64 / dim);
    let plain = (0..config.rotary_dim / 2).map(|i| turn(config.theta, i));
    match &config.scaling {
        RopeScaling::None => plain.collect(),
        RopeScaling::Linear { factor } => plain.map(|f| f / factor).collect(),
        RopeScaling::Divided { factors } => {
            plain.zip(factors).map(|(f, factor)| f / f64::from(*factor)).collect()
        }
        RopeScaling::Dynamic { factor } => {
            let max = config.max_position_embeddings as f64;
            let len = (rope_len as f64).max(max);
            let growth = (1.0 + factor * (len / max - 1.0)).powf(dim / (dim - 2.0));
            (0..config.rotary_dim / 2).map(|i| turn(config.theta * growth, i)).collect()
        }
        &RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings: original,
        } => {
            let blend = |f: f64| {
                let turns = original as f64 * f / TAU;
                let keep = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                let keep = keep.clamp(0.0, 1.0);
                f * (keep + (1.0 - keep) / factor)
            };
            plain.map(blend).collect()
        }
        &RopeScaling::Yarn {
            factor,
            original_max_position_embeddings: original,
            beta_fast,
            beta_slow,
            truncate,
            ..
        } => {
            // The dimension that makes `beta` turns in the trained context.
            let dimension =
                |beta: f64| dim / 2.0 * (original as f64 / (beta * TAU)).log(config.theta);
            let (mut first, mut last) = (dimension(beta_fast), dimension(beta_slow));
            if truncate {
                (first, last) = (first.floor(), last.ceil());
            }
            let (first, last) = (first.max(0.0), last.min(dim - 1.0));
            let blend = |(i, f): (usize, f64)| {
                let slow = ((i as f64 - first) / (last - first)).clamp(0.0, 1.0);
                f * (1.0 - slow + slow / factor)
            };
            plain.enumerate().map(blend).collect()
        }
        RopeScaling::LongRope {
            short_factor,
            long_factor,
            original_max_position_embeddings,
            ..
        } => {
            let long = rope_len > *original_max_position_embeddings;
            let factors = if long { long_factor } else { short_factor };
            plain.zip(factors).map(|(f, &factor)| f / f64::from(factor)).collect()
        }
    }
}

#[test]
fn agrees_with_the_formulas() {
    let yarn = |truncate| RopeScaling::Yarn {
        factor: 4.0,
        original_max_position_embeddings: 64,
        attention_factor: None,
        mscale: None,
        mscale_all_dim: None,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate,
    };
    let long_rope = RopeScaling::LongRope {
        short_factor: (0..16).map(|i| 1.0 + 0.1 * i as f32).collect(),
        long_factor: (0..16).map(|i| 2.0 + 3.0 * i as f32).collect(),
        factor: Some(4.0),
        attention_factor: None,
        original_max_position_embeddings: 64,
    };
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 64,
    };
    let yarn_attention = 1.0 + 0.1 * 4f64.ln();
    let cases = [
        (RopeScaling::None, 1.0),
        (RopeScaling::Linear { factor: 3.0 }, 1.0),
        (RopeScaling::Dynamic { factor: 2.0 }, 1.0),
        (llama3, 1.0),
        (yarn(true), yarn_attention),
        (yarn(false), yarn_attention),
        (long_rope, (1.0 + 4f64.ln() / 64f64.ln()).sqrt()),
    ];
    for (scaling, attention) in cases {
        let config = RopeConfig { scaling, ..plain(500_000.0, 32) };
        let rope = Rope::new(&config);
        for rope_len in [1, 64, 65, 256, 257, 1000] {
            let inv_freq = inv_freq_f64(&config, rope_len);
            for position in [0, 1, 63, 64, 255, 256, 999] {
                let out = read(&rope, position, rope_len);
                for (i, &freq) in inv_freq.iter().enumerate() {
                    let (sin, cos) = (position as f64 * freq).sin_cos();
                    let limit = attention * 4.0 * tolerance(position, freq);
                    for (ours, exact) in [(out[i], cos), (out[i + 16], sin)] {
                        let diff = (f64::from(ours) - attention * exact).abs();
                        assert!(diff <= limit, "{config:?}, {rope_len}, {position}: {diff}");
                    }
                }
            }
        }
    }
}

#[test]
fn only_some_scalings_depend_on_the_length() {
    let factors = vec![2.0; 4];
    let long_rope = RopeScaling::LongRope {
        short_factor: vec![1.0; 4],
        long_factor: factors,
        factor: None,
        attention_factor: Some(1.0),
        original_max_position_embeddings: 64,
    };
    let of = |scaling| Rope::new(&RopeConfig { scaling, ..plain(10_000.0, 8) });

    let fixed = of(RopeScaling::Linear { factor: 2.0 });
    assert_eq!(fixed.length(), RopeLength::Fixed);
    assert_eq!(read(&fixed, 9, 10), read(&fixed, 9, 100_000));

    let threshold = of(long_rope);
    assert_eq!(threshold.length(), RopeLength::Threshold(64));
    assert_eq!(read(&threshold, 9, 10), read(&threshold, 9, 64));
    assert_ne!(read(&threshold, 9, 64), read(&threshold, 9, 65));
    assert_eq!(read(&threshold, 9, 65), read(&threshold, 9, 100_000));

    let every = of(RopeScaling::Dynamic { factor: 2.0 });
    assert_eq!(every.length(), RopeLength::EveryLengthAbove(256));
    assert_eq!(read(&every, 9, 10), read(&every, 9, 256));
    assert_ne!(read(&every, 9, 256), read(&every, 9, 257));
    assert_ne!(read(&every, 9, 257), read(&every, 9, 258));
}

#[test]
fn tables_change_nothing() {
    // Declares 256 positions, so later ones are computed each time; a config that declares more
    // reads the same positions from its table.
    let small = Rope::new(&plain(10_000.0, 16));
    let large = Rope::new(&RopeConfig { max_position_embeddings: 5000, ..plain(10_000.0, 16) });
    for position in [4999, 0, 255, 256, 257, 511, 512, 3000, 0, 4999] {
        assert_eq!(read(&small, position, 1), read(&large, position, 1), "position {position}");
    }
    let positions: Vec<usize> = (0..5000).step_by(7).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let fresh = Rope::new(&plain(10_000.0, 16));
                for &position in &positions {
                    assert_eq!(read(&large, position, 1), read(&fresh, position, 1));
                }
            });
        }
    });
}

#[test]
fn max_context_follows_the_scaling() {
    let of = |scaling| RopeConfig { scaling, ..plain(10_000.0, 8) }.max_context();
    let yarn = |factor, original| RopeScaling::Yarn {
        factor,
        original_max_position_embeddings: original,
        attention_factor: None,
        mscale: None,
        mscale_all_dim: None,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: true,
    };
    assert_eq!(of(RopeScaling::None), 256);
    assert_eq!(of(RopeScaling::Linear { factor: 2.5 }), 640);
    assert_eq!(of(RopeScaling::Dynamic { factor: 4.0 }), 1024);
    // Qwen 2.5 declares the trained length, DeepSeek the extended one.
    assert_eq!(of(yarn(4.0, 256)), 1024);
    assert_eq!(of(yarn(4.0, 64)), 256);
    assert_eq!(of(RopeScaling::Linear { factor: 1e6 }), 256_000_000);
    let huge = RopeConfig { max_position_embeddings: i32::MAX as usize, ..plain(10_000.0, 8) };
    let scaling = RopeScaling::Linear { factor: 1e6 };
    assert_eq!(RopeConfig { scaling, ..huge }.max_context(), i32::MAX as usize);
}

#[test]
#[should_panic(expected = "rotary_dim is even")]
fn an_odd_rotary_dim_is_a_programmer_error() {
    Rope::new(&plain(10_000.0, 7));
}

const KINDS: [&str; 6] = ["default", "linear", "dynamic", "yarn", "llama3", "longrope"];

proptest! {
    /// Whatever a config that is accepted says, every cosine and sine is a number, and each pair
    /// is a rotation times one common factor.
    #[test]
    fn every_accepted_config_rotates(
        (theta, half, max, original) in (1.1f64..1e9, 2usize..40, 2usize..100_000, 2usize..100_000),
        (factor, beta_fast, beta_slow) in (1.0f64..1e6, 0.1f64..100.0, 0.1f64..100.0),
        (mscale, truncate) in (0.0f64..10.0, any::<bool>()),
        kind in prop::sample::select(KINDS.to_vec()),
        (position, rope_len) in (0usize..200_000, 1usize..200_000),
    ) {
        let factors: Vec<f64> = (0..half).map(|i| 1.0 + i as f64 * factor / 1e6).collect();
        let config = serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": 4 * 2 * half,
            "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 4,
            "vocab_size": 8, "max_position_embeddings": max, "rope_theta": theta,
            "rope_scaling": {
                "rope_type": kind, "factor": factor, "original_max_position_embeddings": original,
                "beta_fast": beta_fast.max(beta_slow), "beta_slow": beta_fast.min(beta_slow),
                "mscale": mscale, "mscale_all_dim": 1.0, "truncate": truncate,
                "low_freq_factor": 1.0, "high_freq_factor": 1.0 + factor,
                "short_factor": factors, "long_factor": factors,
            },
        });
        let parsed = ModelConfig::parse(config.to_string().as_bytes(), Path::new("config.json"));
        let config = parsed.unwrap();
        let out = read(&Rope::new(&config.ropes[0]), position, rope_len);
        let norm = |i: usize| out[i].hypot(out[i + half]);
        for i in 0..half {
            prop_assert!(norm(i).is_finite());
            prop_assert!((norm(i) - norm(0)).abs() <= 1e-5 * norm(0), "{} {}", norm(i), norm(0));
        }
    }
}
